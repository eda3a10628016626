//! Files of small messages: the thread that gathers messages into the next part of a file, or the next file, while
//! the last one is being synced.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::stat::Mode;

use crate::format::BLOCK;
use crate::id::QueueId;
use crate::layout::{Layout, Place};
use crate::ops::{Directory, Ops, Output, Probe, labelled};
use crate::writer::{Finished, NewMessage, Shared, Small, Submitted, WriteError, WriterDirs};

/// Most messages of one part; a file that has so many gets no further part. The disk's own time sets the size of
/// a batch; this only bounds how many clients one bad block can disappoint.
const BATCH_MESSAGES: usize = 256;
/// Most octets of one part, but for a single message, and those at which a file gets no further part.
const BATCH_OCTETS: usize = 5 << 18;

/// The mode of files in `drop/`: the queue-manager reads them, and copies.
const DROP_MODE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR).union(Mode::S_IRGRP);

/// For how long a committed file is kept for what comes next, before the queue-manager gets it. What is in it is
/// accepted, and waits for so long to be delivered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keep {
    /// Since the last message came.
    pub(crate) quiet: Duration,
    /// Since the first message was committed.
    pub(crate) longest: Duration,
    /// Most parts of a file. One message that waits for days pins two blocks of each.
    pub(crate) parts: u32,
}

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
    if let Err(error) = write_part(ops, &file, &[message], Place::alone(message.id)) {
        ops.discard(&directory, &temporary);
        return Err(error);
    }
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
/// With `keep` its files may have several parts.
pub(crate) fn run(shared: &Arc<Shared>, dirs: &WriterDirs, ops: &Ops, first: bool, keep: Option<Keep>) {
    let (tmp, new) = (labelled(&dirs.tmp, "tmp"), labelled(&dirs.new, "new"));
    let mut committer = Committer { shared, ops, tmp, new, keep, kept: None };
    loop {
        match next_batch(shared, first, committer.kept_until()) {
            Next::Batch(batch) => committer.commit(&batch),
            Next::Quiet => committer.hand_over(),
            Next::Closed => return committer.hand_over(),
        }
    }
}

/// Moves a committed file to where the queue-manager looks, without what was prepared behind its `end` and not used.
/// Nothing depends on its success: the messages are safe in `tmp/`, and the queue-manager takes what stays there when
/// we have closed it; and zeros behind the end mean nothing to a reader.
pub(crate) fn publish(
    ops: &Ops,
    tmp: &Directory<'_>,
    new: &Directory<'_>,
    file: &Output,
    id: QueueId,
    end: u64,
) {
    if end < file.prepared() {
        let _ = ops.cut(file, end);
    }
    let _ = ops.rename((tmp, file.name()), (new, &id.to_string()));
}

/// Whether what waits is enough for a file of its own, whoever is writing already.
pub(crate) fn is_full(small: &Small) -> bool {
    small.waiting.len() >= BATCH_MESSAGES || small.octets >= BATCH_OCTETS
}

/// What a committer is to do next.
enum Next {
    /// Commit these.
    Batch(Vec<Submitted>),
    /// Hand over what it kept: nothing came meanwhile.
    Quiet,
    /// End: the writer is gone.
    Closed,
}

/// Waits for messages, or but for the first committer for enough of them, but not longer than `until`, and takes as
/// many as go into one part.
fn next_batch(shared: &Shared, first: bool, until: Option<Instant>) -> Next {
    let mut small = shared.small();
    while if first { small.waiting.is_empty() } else { small.closed || !is_full(&small) } {
        let rest = until.map(|until| until.saturating_duration_since(Instant::now()));
        if small.closed {
            return Next::Closed;
        }
        if rest.is_some_and(|rest| rest.is_zero()) {
            return Next::Quiet;
        }
        small = shared.wait_small(small, first, rest);
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
    Next::Batch(batch)
}

/// What a message adds to a file, roughly.
pub(crate) fn footprint(message: &NewMessage) -> usize {
    let recipients: usize = message.envelope.recipients.iter().map(|r| r.as_str().len() + 6).sum();
    message.body.len().next_multiple_of(BLOCK as usize) + message.prepend.len() + recipients + 512
}

/// A committer's state.
struct Committer<'a> {
    shared: &'a Shared,
    ops: &'a Ops,
    tmp: Directory<'a>,
    new: Directory<'a>,
    keep: Option<Keep>,
    /// The file to which the next part goes.
    kept: Option<Growing>,
}

/// A file of whole parts, or of none yet.
struct Growing {
    file: Output,
    /// Of its first message.
    id: QueueId,
    parts: u32,
    messages: usize,
    /// Behind the last foot.
    end: u64,
    /// When the first part was committed, and the last.
    since: Instant,
    last: Instant,
}

impl Committer<'_> {
    /// When the file in hand goes to the queue-manager, if nothing comes for it. None when it gets no more.
    fn kept_until(&self) -> Option<Instant> {
        let (keep, kept) = (self.keep?, self.kept.as_ref()?);
        let full = kept.messages >= BATCH_MESSAGES || kept.end >= BATCH_OCTETS as u64;
        let more = kept.parts < keep.parts && !full;
        more.then(|| (kept.last + keep.quiet).min(kept.since + keep.longest))
    }

    /// Makes the batch the next part of the file in hand, or the first of a blank, and reports each of its messages.
    /// Then the file is kept for more, or goes to `new/`.
    fn commit(&mut self, batch: &[Submitted]) {
        let messages: Vec<&NewMessage> = batch.iter().map(|submitted| &submitted.message).collect();
        let written = match self.kept.take() {
            Some(kept) => self.write(kept, &messages),
            None => self.begin(&messages).and_then(|begun| self.write(begun, &messages)),
        };
        let result = written.as_ref().map(|_| ()).map_err(Clone::clone);
        self.shared.report(batch.iter().map(|submitted| Finished {
            token: submitted.token,
            id: submitted.message.id,
            stream: None,
            result: result.clone(),
        }));
        self.kept = written.ok();
        if self.kept_until().is_none_or(|until| until <= Instant::now()) {
            self.hand_over();
        }
    }

    fn begin(&self, messages: &[&NewMessage]) -> Result<Growing, WriteError> {
        let (file, now) = (self.shared.blanks.take()?, Instant::now());
        let id = messages.first().map_or(QueueId::from_u64(0), |message| message.id);
        Ok(Growing { file, id, parts: 0, messages: 0, end: 0, since: now, last: now })
    }

    /// Writes a part. On failure nothing of it stays: the file is unlinked, or cut to what was committed before.
    fn write(&self, mut to: Growing, messages: &[&NewMessage]) -> Result<Growing, WriteError> {
        // A block that was synced is not written again.
        let at = to.end.next_multiple_of(BLOCK);
        let place = Place { id: to.id, at, part: self.keep.map(|_| to.parts) };
        match write_part(self.ops, &to.file, messages, place) {
            Ok(end) => {
                to.last = Instant::now();
                if to.parts == 0 {
                    to.since = to.last;
                }
                (to.parts, to.messages, to.end) = (to.parts + 1, to.messages + messages.len(), end);
                Ok(to)
            }
            Err(error) if to.parts == 0 => {
                self.ops.discard(&self.tmp, to.file.name());
                Err(error)
            }
            Err(error) => {
                self.give_up(&to);
                Err(error)
            }
        }
    }

    /// Cuts off a part that failed. The sync makes that last; of the parts before nothing is left to be synced. While
    /// it is not certain the file stays in `tmp/`, where recovery looks at every part.
    fn give_up(&self, file: &Growing) {
        let cut = self.ops.cut(&file.file, file.end).and_then(|()| self.ops.settle(&file.file));
        if cut.is_ok() {
            publish(self.ops, &self.tmp, &self.new, &file.file, file.id, file.end);
        }
    }

    /// The file in hand, if there is one, gets no more parts.
    fn hand_over(&mut self) {
        if let Some(Growing { file, id, end, .. }) = self.kept.take() {
            self.shared.blanks.used(end);
            publish(self.ops, &self.tmp, &self.new, &file, id, end);
        }
    }
}

/// Writes these messages at a place of a file, syncs it, and says where they end. A failed sync is never tried
/// again: the kernel has marked the pages clean and would answer Ok.
fn write_part(ops: &Ops, file: &Output, messages: &[&NewMessage], at: Place) -> Result<u64, WriteError> {
    let layout = Layout::of(messages, at)?;
    ops.write(file, &mut layout.slices(messages), at.at)?;
    ops.sync(file)?;
    Ok(layout.end())
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOSPC | Errno::EDQUOT) => Self::NoSpace,
            _ => Self::Io(error.to_string()),
        }
    }
}
