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
use crate::together::Together;
use crate::writer::{Finished, NewMessage, Shared, WriteError, WriterDirs};

/// Most messages of one file. The disk's own time sets the size of a batch; this only bounds how many
/// clients one bad block can disappoint.
const BATCH_MESSAGES: usize = 256;
/// Most octets of one file, but for a single message.
const BATCH_OCTETS: usize = 4 << 20;

/// The mode of files in `tmp/` and `new/`: the directories are set-gid, and the group is the
/// queue-manager's, which must be able to write the log.
pub(crate) const SHARED_MODE: Mode =
    Mode::S_IRUSR.union(Mode::S_IWUSR).union(Mode::S_IRGRP).union(Mode::S_IWGRP);
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
    write_file(ops, &directory, temporary.clone(), DROP_MODE, &[message], None)?;
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

/// A committer thread: until the writer is dropped, and then until all that was submitted is written.
pub(crate) fn run(shared: &Arc<Shared>, dirs: &WriterDirs, ops: &Ops) {
    let tmp = labelled(&dirs.tmp, "tmp");
    let new = labelled(&dirs.new, "new");
    while let Some(batch) = next_batch(shared) {
        let name = commit(shared, ops, &tmp, &batch);
        drop(batch);
        if let Some(name) = name {
            publish(ops, &tmp, &new, &name);
        }
    }
}

/// Moves a committed file to where the queue-manager looks. Nothing depends on its success: the message
/// is safe in `tmp/`, and the queue-manager takes what stays there. NotFound means that it already did.
pub(crate) fn publish(ops: &Ops, tmp: &Directory<'_>, new: &Directory<'_>, name: &str) {
    let _ = ops.rename((tmp, name), (new, name));
}

/// Waits for messages and takes as many as go into one file. None when the writer is gone.
fn next_batch(shared: &Shared) -> Option<Vec<(u64, NewMessage)>> {
    let mut small = shared.small();
    while small.waiting.is_empty() {
        if small.closed {
            return None;
        }
        small = shared.wait_small(small);
    }
    let mut octets = 0usize;
    let fits = |(_, message): &&(u64, NewMessage)| {
        octets = octets.saturating_add(footprint(message));
        octets <= BATCH_OCTETS
    };
    let count = small.waiting.iter().take(BATCH_MESSAGES).take_while(fits).count().max(1);
    let batch = small.waiting.drain(..count).collect();
    if !small.waiting.is_empty() {
        // The one who filled the queue has called nobody but us.
        shared.call_small();
    }
    Some(batch)
}

/// What a message adds to a file, roughly.
fn footprint(message: &NewMessage) -> usize {
    let recipients: usize = message.envelope.recipients.iter().map(|r| r.as_str().len() + 6).sum();
    message.body.len().next_multiple_of(BLOCK as usize) + message.prepend.len() + recipients + 512
}

/// Writes the batch, reports each of its messages, and says under which name it is in `tmp/`.
fn commit(shared: &Shared, ops: &Ops, tmp: &Directory<'_>, batch: &[(u64, NewMessage)]) -> Option<String> {
    let messages: Vec<&NewMessage> = batch.iter().map(|(_, message)| message).collect();
    let name = messages.first()?.id.to_string();
    let written = write_file(ops, tmp, name.clone(), SHARED_MODE, &messages, Some(&shared.together));
    shared.report(batch.iter().map(|(token, message)| Finished {
        token: *token,
        id: message.id,
        stream: None,
        result: written.clone(),
    }));
    written.is_ok().then_some(name)
}

/// Creates a file of these messages and syncs it, and its directory at the same time: which of the two
/// is done first does not matter, since nothing is promised before both are. On failure the file is
/// unlinked. A failed sync is never tried again: the kernel has marked the pages clean and would answer Ok.
fn write_file(
    ops: &Ops,
    directory: &Directory<'_>,
    name: String,
    mode: Mode,
    messages: &[&NewMessage],
    together: Option<&Together>,
) -> Result<(), WriteError> {
    let layout = Layout::of(messages)?;
    let file = ops.create(directory, name, mode)?;
    let written = write_and_sync(ops, &file, &mut layout.slices(messages), together);
    if written.is_err() {
        ops.discard(directory, file.name());
    }
    written
}

fn write_and_sync(
    ops: &Ops,
    file: &Output,
    slices: &mut [IoSlice<'_>],
    together: Option<&Together>,
) -> Result<(), WriteError> {
    ops.write(file, slices, 0)?;
    let directory = together.map(|together| {
        ops.begin(file);
        together.ask()
    });
    ops.sync(file)?;
    directory.map_or(Ok(()), |directory| directory.wait())
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
