//! Files of small messages: how one is laid out and written, and the thread that gathers messages into
//! the next file while the last one is being synced.

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::stat::Mode;

use crate::format::{self, BLOCK, FOOT_LEN, HEAD_LEN, Head, INDEX_MAX, StoredRef};
use crate::id::QueueId;
use crate::ops::{Directory, Ops, Output, Probe, labelled};
use crate::writer::{Finished, NewMessage, Shared, Small, Submitted, WriteError, WriterDirs};

/// Most messages of one file. The disk's own time sets the size of a batch; this only bounds how many
/// clients one bad block can disappoint.
const BATCH_MESSAGES: usize = 256;
/// Most octets of one file, but for a single message.
const BATCH_OCTETS: usize = 5 << 18;

/// The mode of files in `drop/`: the queue-manager reads them, and copies.
const DROP_MODE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR).union(Mode::S_IRGRP);

/// Where the next body may begin in a file of several messages.
static ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];

/// Writes one message into `directory` and returns when it is on stable storage: a temporary name, a
/// sync, a rename to the id, a sync of the directory. Blocks. Mode 0640.
pub fn write_one(directory: BorrowedFd<'_>, message: &NewMessage) -> Result<(), WriteError> {
    write_one_with(&Ops::default(), directory, message)
}

/// As [`write_one`], with every file operation shown to `probe` first. For tests.
#[doc(hidden)]
pub fn write_one_probed(
    directory: BorrowedFd<'_>,
    message: &NewMessage,
    probe: Probe,
) -> Result<(), WriteError> {
    write_one_with(&Ops { probe: Some(probe) }, directory, message)
}

fn write_one_with(ops: &Ops, directory: BorrowedFd<'_>, message: &NewMessage) -> Result<(), WriteError> {
    let directory = Directory { fd: directory, label: "drop" };
    let name = message.id.to_string();
    // The dot keeps it from being taken for a queue id before it is whole.
    let temporary = format!(".{name}");
    let file = ops.create(&directory, temporary.clone(), DROP_MODE)?;
    write_file(ops, &directory, &file, &[message])?;
    if let Err(error) = ops.rename((&directory, &temporary), (&directory, &name)) {
        ops.discard(&directory, &temporary);
        return Err(error.into());
    }
    if let Err(error) = ops.sync_directory(&directory) {
        // The caller is told that nothing was taken, so it must not be delivered either.
        ops.discard(&directory, &name);
        return Err(error.into());
    }
    Ok(())
}

/// A committer thread: until the writer is dropped, the first one then until all that was submitted is written.
pub(crate) fn run(shared: &Arc<Shared>, dirs: &WriterDirs, ops: &Ops, first: bool) {
    let tmp = labelled(&dirs.tmp, "tmp");
    let new = labelled(&dirs.new, "new");
    while let Some(batch) = next_batch(shared, first) {
        commit(shared, ops, &tmp, &new, &batch);
    }
}

/// Moves a committed file to where the queue-manager looks. Nothing depends on its success: the message
/// is safe in `tmp/`, and the queue-manager takes what stays there. NotFound means that it already did.
pub(crate) fn publish(ops: &Ops, tmp: &Directory<'_>, new: &Directory<'_>, file: &Output, id: QueueId) {
    let _ = ops.rename((tmp, file.name()), (new, &id.to_string()));
}

/// Whether what waits is enough for a file of its own, whoever is writing already.
pub(crate) fn is_full(small: &Small) -> bool {
    small.waiting.len() >= BATCH_MESSAGES || small.octets >= BATCH_OCTETS
}

/// Waits for messages, or but for the first committer for enough of them, and takes as many as go into one
/// file. None when the writer is gone.
fn next_batch(shared: &Shared, first: bool) -> Option<Vec<Submitted>> {
    let mut small = shared.small();
    while if first { small.waiting.is_empty() } else { small.closed || !is_full(&small) } {
        if small.closed {
            return None;
        }
        small = shared.wait_small(small, first);
    }
    let mut octets = 0;
    let fits = |submitted: &&Submitted| {
        octets += submitted.octets;
        octets <= BATCH_OCTETS
    };
    let count = small.waiting.iter().take(BATCH_MESSAGES).take_while(fits).count().max(1);
    let batch: Vec<_> = small.waiting.drain(..count).collect();
    small.octets -= batch.iter().map(|submitted| submitted.octets).sum::<usize>();
    if is_full(&small) {
        shared.call_small();
    }
    Some(batch)
}

/// What a message adds to a file, roughly.
pub(crate) fn footprint(message: &NewMessage) -> usize {
    let recipients: usize = message.envelope.recipients.iter().map(|r| r.as_str().len() + 6).sum();
    message.body.len().next_multiple_of(BLOCK as usize) + message.prepend.len() + recipients + 512
}

/// Writes the batch into a blank, reports each of its messages, and then moves the file to `new/`.
fn commit(shared: &Shared, ops: &Ops, tmp: &Directory<'_>, new: &Directory<'_>, batch: &[Submitted]) {
    let messages: Vec<&NewMessage> = batch.iter().map(|submitted| &submitted.message).collect();
    let written = shared.blanks.take().and_then(|file| {
        write_file(ops, tmp, &file, &messages)?;
        Ok(file)
    });
    let result = written.as_ref().map(|_| ()).map_err(Clone::clone);
    shared.report(batch.iter().map(|submitted| Finished {
        token: submitted.token,
        id: submitted.message.id,
        stream: None,
        result: result.clone(),
    }));
    if let (Ok(file), Some(first)) = (written, messages.first()) {
        publish(ops, tmp, new, &file, first.id);
    }
}

/// Fills an empty file with these messages and syncs it. On failure the file is unlinked. A failed sync is
/// never tried again: the kernel has marked the pages clean and would answer Ok.
fn write_file(
    ops: &Ops,
    directory: &Directory<'_>,
    file: &Output,
    messages: &[&NewMessage],
) -> Result<(), WriteError> {
    let written = Layout::of(messages).and_then(|layout| {
        ops.write(file, &mut layout.slices(messages), 0)?;
        Ok(ops.sync(file)?)
    });
    if written.is_err() {
        ops.discard(directory, file.name());
    }
    written
}

/// What stands around the bodies of a file.
pub(crate) struct Layout {
    head: [u8; HEAD_LEN],
    /// Where each body begins.
    starts: Vec<u64>,
    /// Index and foot.
    tail: Vec<u8>,
}

impl Layout {
    pub(crate) fn of(messages: &[&NewMessage]) -> Result<Self, WriteError> {
        let mut index = Vec::with_capacity(messages.iter().map(|m| m.prepend.len() + 512).sum());
        let mut starts = Vec::with_capacity(messages.len());
        let mut position = HEAD_LEN as u64;
        for message in messages {
            if messages.len() > 1 {
                position = position.next_multiple_of(BLOCK);
            }
            starts.push(position);
            let stored = StoredRef {
                id: message.id,
                envelope: &message.envelope,
                prepend: &message.prepend,
                offset: position,
                length: message.body.len() as u64,
                crc: crc32c::crc32c(&message.body),
            };
            format::encode_message(&mut index, &stored);
            position += stored.length;
        }
        let id = messages.first().map_or(QueueId::from_u64(0), |m| m.id);
        let (head, tail) = close(id, position, index, messages.len() as u32)?;
        Ok(Self { head, starts, tail })
    }

    /// The whole file, in order.
    pub(crate) fn slices<'a>(&'a self, messages: &[&'a NewMessage]) -> Vec<IoSlice<'a>> {
        let mut slices = Vec::with_capacity(2 * messages.len() + 2);
        let mut position = HEAD_LEN as u64;
        slices.push(IoSlice::new(&self.head));
        for (message, start) in messages.iter().zip(&self.starts) {
            let gap = start.saturating_sub(position) as usize;
            slices.push(IoSlice::new(ZEROS.get(..gap).unwrap_or(&ZEROS)));
            slices.push(IoSlice::new(&message.body));
            position = start + message.body.len() as u64;
        }
        slices.push(IoSlice::new(&self.tail));
        slices
    }
}

/// The head of a file whose index begins at `at`, and the index with its foot.
pub(crate) fn close(
    id: QueueId,
    at: u64,
    mut index: Vec<u8>,
    messages: u32,
) -> Result<([u8; HEAD_LEN], Vec<u8>), WriteError> {
    if index.len() > INDEX_MAX {
        return Err(WriteError::Io(format!("index of {} octets", index.len())));
    }
    let head = format::encode_head(Head { id, foot: at + index.len() as u64 });
    let foot: [u8; FOOT_LEN] = format::encode_foot(id, at, &index, messages);
    index.extend_from_slice(&foot);
    Ok((head, index))
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOSPC | Errno::EDQUOT) => Self::NoSpace,
            _ => Self::Io(error.to_string()),
        }
    }
}
