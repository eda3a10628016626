//! Large messages: each is written to a file of its own as it comes, by a few threads that share them.

use std::collections::HashMap;
use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use postern_sys::WRITE_BLOCK;

use crate::commit::publish;
use crate::envelope::Envelope;
use crate::format::{self, HEAD_LEN, StoredRef};
use crate::id::QueueId;
use crate::layout::{Place, close};
use crate::ops::{Directory, Ops, Output, labelled};
use crate::writer::{Finished, STREAM_ABOVE, Shared, WriteError, WriterDirs};

/// So many octets are given to the disk before the message is finished.
const BEGIN_AFTER: usize = 512 * 1024;

/// What the event loop asks for. A stream is named by a serial number, which is never used again: the
/// event loop's tokens are.
pub(crate) enum Command {
    Open { serial: u64, token: u64, id: QueueId, unwritten: Arc<AtomicUsize> },
    Append { serial: u64, chunk: Vec<u8> },
    Finish { serial: u64, envelope: Box<Envelope>, prepend: Vec<u8> },
    Abort { serial: u64 },
}

impl Command {
    /// The stream's.
    pub(crate) fn serial(&self) -> u64 {
        match self {
            Self::Open { serial, .. }
            | Self::Append { serial, .. }
            | Self::Finish { serial, .. }
            | Self::Abort { serial } => *serial,
        }
    }
}

/// A file that grows.
struct Stream {
    token: u64,
    id: QueueId,
    file: Output,
    /// Octets of the body in the file.
    length: u64,
    /// The beginning of the next block, which is not in the file yet.
    block: Vec<u8>,
    /// Behind the foot, when that is there.
    end: u64,
    crc: u32,
    /// Octets written since the disk was last told to begin.
    lazy: usize,
    /// Shared with the event loop, which stops reading its client above a limit.
    unwritten: Arc<AtomicUsize>,
}

/// A stream that is finished, and what completes its file.
struct Closing {
    serial: u64,
    stream: Stream,
    envelope: Box<Envelope>,
    prepend: Vec<u8>,
}

type Step = fn(&mut Stream, &Streamer<'_>, &Envelope, &[u8]) -> Result<(), WriteError>;

/// A streamer thread's state.
struct Streamer<'a> {
    shared: &'a Shared,
    ops: &'a Ops,
    tmp: Directory<'a>,
    new: Directory<'a>,
    streams: HashMap<u64, Stream>,
}

/// Streamer thread `n`: until the writer is dropped. What is not finished then is unlinked.
pub(crate) fn run(shared: &Arc<Shared>, dirs: &WriterDirs, ops: &Ops, n: usize) {
    let (tmp, new) = (labelled(&dirs.tmp, "tmp"), labelled(&dirs.new, "new"));
    let mut streamer = Streamer { shared, ops, tmp, new, streams: HashMap::new() };
    while let Some(commands) = shared.next_commands(n) {
        streamer.round(commands);
    }
    for stream in streamer.streams.values() {
        ops.discard(&streamer.tmp, stream.file.name());
    }
}

impl Streamer<'_> {
    /// Does all that was asked since the last round. All is written, so that no client waits longer than it must; then
    /// what is finished is synced.
    fn round(&mut self, commands: Vec<Command>) {
        let mut closing = Vec::new();
        for command in commands {
            match command {
                Command::Open { serial, token, id, unwritten } => self.open(serial, token, id, unwritten),
                Command::Append { serial, chunk } => self.append(serial, &chunk),
                Command::Finish { serial, envelope, prepend } => {
                    if let Some(stream) = self.streams.remove(&serial) {
                        closing.push(Closing { serial, stream, envelope, prepend });
                    }
                }
                Command::Abort { serial } => {
                    if let Some(stream) = self.streams.remove(&serial) {
                        self.ops.discard(&self.tmp, stream.file.name());
                    }
                }
            }
        }
        // All are on their way before the first is synced: a journal takes them together.
        let written: Vec<Closing> = closing.into_iter().filter_map(|c| self.step(c, Stream::close)).collect();
        if written.len() > 1 {
            written.iter().for_each(|closing| self.ops.begin(&closing.stream.file));
        }
        for closing in written.into_iter().filter_map(|c| self.step(c, Stream::sync)) {
            self.commit(&closing);
        }
    }

    fn open(&mut self, serial: u64, token: u64, id: QueueId, unwritten: Arc<AtomicUsize>) {
        match self.shared.blanks.take() {
            Ok(file) => {
                let stream = Stream {
                    token,
                    id,
                    file,
                    length: 0,
                    block: Vec::with_capacity(WRITE_BLOCK),
                    end: 0,
                    crc: 0,
                    lazy: 0,
                    unwritten,
                };
                self.streams.insert(serial, stream);
            }
            Err(error) => self.shared.report([failed(serial, token, id, error)]),
        }
    }

    /// A failure is reported at once, so that the client need not send the rest.
    fn append(&mut self, serial: u64, chunk: &[u8]) {
        let Some(stream) = self.streams.get_mut(&serial) else { return };
        if let Err(error) = stream.append(chunk, self.shared, self.ops) {
            self.ops.discard(&self.tmp, stream.file.name());
            let report = failed(serial, stream.token, stream.id, error);
            self.streams.remove(&serial);
            self.shared.report([report]);
        }
    }

    /// Takes one step with a finished stream; it is gone when that fails.
    fn step(&self, mut closing: Closing, step: Step) -> Option<Closing> {
        let Err(error) = step(&mut closing.stream, self, &closing.envelope, &closing.prepend) else {
            return Some(closing);
        };
        self.ops.discard(&self.tmp, closing.stream.file.name());
        self.shared.report([failed(closing.serial, closing.stream.token, closing.stream.id, error)]);
        None
    }

    fn commit(&self, closing: &Closing) {
        let Stream { token, id, file, end, .. } = &closing.stream;
        let stream = Some(closing.serial);
        self.shared.report([Finished { token: *token, id: *id, stream, result: Ok(()) }]);
        publish(self.ops, &self.tmp, &self.new, file, *id, *end);
    }
}

impl Stream {
    /// Writes every block that is whole now.
    fn append(&mut self, chunk: &[u8], shared: &Shared, ops: &Ops) -> Result<(), WriteError> {
        let mut rest = chunk;
        while !rest.is_empty() {
            let room = WRITE_BLOCK - (HEAD_LEN + self.length as usize + self.block.len()) % WRITE_BLOCK;
            let (part, behind) = rest.split_at(room.min(rest.len()));
            if self.block.is_empty() && part.len() == room {
                self.write(part, ops)?;
            } else {
                self.block.extend_from_slice(part);
                if part.len() == room {
                    self.write_block(ops)?;
                }
            }
            rest = behind;
        }
        let before = self.unwritten.fetch_sub(chunk.len(), Ordering::Relaxed);
        // The event loop stopped reading its client above twice this: tell it to go on.
        if before > STREAM_ABOVE && before - chunk.len() <= STREAM_ABOVE {
            shared.wake();
        }
        Ok(())
    }

    fn write_block(&mut self, ops: &Ops) -> Result<(), WriteError> {
        if self.block.is_empty() {
            return Ok(());
        }
        let mut block = std::mem::take(&mut self.block);
        let outcome = self.write(&block, ops);
        block.clear();
        self.block = block;
        outcome
    }

    fn write(&mut self, octets: &[u8], ops: &Ops) -> Result<(), WriteError> {
        ops.write(&self.file, &mut [IoSlice::new(octets)], HEAD_LEN as u64 + self.length)?;
        self.crc = crc32c::crc32c_append(self.crc, octets);
        self.length += octets.len() as u64;
        self.lazy += octets.len();
        if self.lazy >= BEGIN_AFTER {
            // While the rest is on its way to us.
            ops.begin(&self.file);
            self.lazy = 0;
        }
        Ok(())
    }

    /// The head comes last, since only now is it known where the foot is. All three are covered by
    /// checksums and one sync; until that returned nothing was promised, in whatever order they land.
    fn close(&mut self, by: &Streamer<'_>, envelope: &Envelope, prepend: &[u8]) -> Result<(), WriteError> {
        self.write_block(by.ops)?;
        let (id, length, crc) = (self.id, self.length, self.crc);
        let mut index = Vec::with_capacity(prepend.len() + 512);
        let offset = HEAD_LEN as u64;
        format::encode_message(&mut index, &StoredRef { id, envelope, prepend, offset, length, crc });
        let (head, tail) = close(Place::alone(id), offset + length, index, 1)?;
        by.ops.write(&self.file, &mut [IoSlice::new(&tail)], offset + length)?;
        by.ops.write(&self.file, &mut [IoSlice::new(&head)], 0)?;
        self.end = offset + length + tail.len() as u64;
        Ok(())
    }

    fn sync(&mut self, by: &Streamer<'_>, _: &Envelope, _: &[u8]) -> Result<(), WriteError> {
        Ok(by.ops.sync(&self.file)?)
    }
}

fn failed(serial: u64, token: u64, id: QueueId, error: WriteError) -> Finished {
    Finished { token, id, stream: Some(serial), result: Err(error) }
}
