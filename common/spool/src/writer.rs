//! The writer: lives in an event loop and never blocks it; the threads behind it do the waiting.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::statfs::{EXT4_SUPER_MAGIC, fstatfs};
use postern_sys::XFS_SUPER_MAGIC;

use crate::blanks::Blanks;
use crate::commit::Keep;
use crate::envelope::Envelope;
use crate::id::QueueId;
use crate::ops::{Ops, Probe, labelled};
use crate::stream::Command;
use crate::{commit, stream};

/// Threads that write files of small messages. The first takes whatever there is: while it syncs a file all
/// that comes gathers for the next. Were the others to do the same, files would be smaller and no message
/// faster (measured: `docs/performance.md`); they take what is a full file already.
const COMMITTERS: usize = 3;
/// Threads that write large messages.
const STREAMERS: usize = 8;

/// Empty files kept ready for them.
const BLANKS: usize = 16;

/// The first committer's file: one that comes at once behind another shares its file, and of the time that a
/// delivery takes these are nothing. A client on the same machine or the next comes back within a millisecond.
const KEEP: Keep = Keep { quiet: Duration::from_millis(2), longest: Duration::from_millis(5), parts: 16 };

/// Until the writer is dropped, or the file is full.
const FOREVER: Keep =
    Keep { quiet: Duration::from_secs(3600), longest: Duration::from_secs(3600), parts: u32::MAX };

/// As many threads and files as serve well.
const FULL: Crew = Crew {
    committers: COMMITTERS,
    streamers: STREAMERS,
    blanks: BLANKS,
    fill: Fill::WhereItHelps,
    keep: Some(KEEP),
};
/// One of each, and a file for each batch: it is certain what shares a file.
const SINGLE: Crew = Crew { committers: 1, streamers: 1, blanks: 1, fill: Fill::Never, keep: None };

/// Messages of more octets than this are streamed to a file of their own.
pub const STREAM_ABOVE: usize = 128 * 1024;

/// A message to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewMessage {
    /// Its id, made by the producer.
    pub id: QueueId,
    /// Its envelope.
    pub envelope: Envelope,
    /// Trace lines that come before the body, with CRLF.
    pub prepend: Vec<u8>,
    /// The message as received: CRLF line ends, dot-unstuffed.
    pub body: Vec<u8>,
}

/// Where the writer writes.
#[derive(Debug)]
pub struct WriterDirs {
    /// `tmp/`.
    pub tmp: OwnedFd,
    /// `new/`, in the same file system.
    pub new: OwnedFd,
}

/// What became of one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The caller's word for it.
    pub token: u64,
    /// Its id.
    pub id: QueueId,
    /// Ok: the message and its directory entry are on stable storage, and we answer for it.
    pub result: Result<(), WriteError>,
}

/// Why a message was not taken. Nothing of it stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// No space, no inode, or over a quota: 452 4.3.1.
    #[error("no space in the spool")]
    NoSpace,
    /// Anything else: 451 4.3.0.
    #[error("cannot write to the spool: {0}")]
    Io(String),
}

/// Takes messages from an event loop and commits them in groups.
pub struct Writer {
    shared: Arc<Shared>,
    streams: HashMap<u64, Open>,
    last_serial: u64,
    threads: Vec<JoinHandle<()>>,
    /// Makes the blanks. Ends after them: they wait for it.
    maker: Option<JoinHandle<()>>,
}

/// A stream, as the event loop sees it.
struct Open {
    serial: u64,
    unwritten: Arc<AtomicUsize>,
}

/// Between the event loop and the threads.
pub(crate) struct Shared {
    small: Mutex<Small>,
    small_ready: Condvar,
    small_full: Condvar,
    streamers: Vec<Streamer>,
    pub(crate) blanks: Blanks,
    finished: Mutex<Vec<Finished>>,
    wake: Box<dyn Fn() + Send + Sync>,
}

/// Who works behind a writer.
struct Crew {
    committers: usize,
    streamers: usize,
    blanks: usize,
    fill: Fill,
    keep: Option<Keep>,
}

/// Whether blanks are filled with zeros.
enum Fill {
    Never,
    /// Where a block that is there is written in its place: on ext4 and XFS. Others write it elsewhere anyway, or
    /// nothing is known of them.
    WhereItHelps,
    Always,
}

impl Fill {
    fn on(&self, directory: &OwnedFd) -> io::Result<bool> {
        Ok(match self {
            Self::Never => false,
            Self::Always => true,
            Self::WhereItHelps => {
                let system = fstatfs(directory)?.filesystem_type();
                system == EXT4_SUPER_MAGIC || system == XFS_SUPER_MAGIC
            }
        })
    }
}

/// What a thread does.
type Run = dyn FnOnce(&Arc<Shared>, &WriterDirs, &Ops) + Send;

/// Small messages to be written.
#[derive(Default)]
pub(crate) struct Small {
    pub(crate) waiting: VecDeque<Submitted>,
    /// What they will add to their file.
    pub(crate) octets: usize,
    pub(crate) closed: bool,
}

/// A small message and the caller's word for it.
pub(crate) struct Submitted {
    pub(crate) token: u64,
    pub(crate) message: NewMessage,
    /// What it will add to its file, roughly.
    pub(crate) octets: usize,
}

/// What one streamer is to do.
#[derive(Default)]
struct Streamer {
    commands: Mutex<Commands>,
    ready: Condvar,
}

#[derive(Default)]
struct Commands {
    waiting: Vec<Command>,
    closed: bool,
}

/// A completion, and the stream it ends.
pub(crate) struct Finished {
    pub(crate) token: u64,
    pub(crate) id: QueueId,
    pub(crate) stream: Option<u64>,
    pub(crate) result: Result<(), WriteError>,
}

impl Writer {
    /// Starts the threads. `wake` is called from them, once for each group of completions, and when
    /// a stream's unwritten octets fall below [`STREAM_ABOVE`] again; it must not block.
    pub fn start(dirs: WriterDirs, wake: impl Fn() + Send + Sync + 'static) -> io::Result<Self> {
        Self::start_with(dirs, wake, Ops::default(), FULL)
    }

    /// As [`Writer::start`], for messages whose senders wait for nothing: its files are not filled in advance, which is
    /// one sync more for each of them.
    pub fn start_unhurried(dirs: WriterDirs, wake: impl Fn() + Send + Sync + 'static) -> io::Result<Self> {
        Self::start_with(dirs, wake, Ops::default(), Crew { fill: Fill::Never, ..FULL })
    }

    /// As [`Writer::start`], with every file operation shown to `probe` first, and one committer and one
    /// streamer, and a file for each batch, so that it is certain what shares a file. For tests.
    #[doc(hidden)]
    pub fn start_probed(
        dirs: WriterDirs,
        wake: impl Fn() + Send + Sync + 'static,
        probe: Probe,
    ) -> io::Result<Self> {
        Self::start_with(dirs, wake, Ops { probe: Some(probe) }, SINGLE)
    }

    /// As [`Writer::start_probed`], but each batch is a part of one file, until that is full or the writer is dropped.
    #[doc(hidden)]
    pub fn start_probed_keeping(
        dirs: WriterDirs,
        wake: impl Fn() + Send + Sync + 'static,
        probe: Probe,
    ) -> io::Result<Self> {
        Self::start_with(dirs, wake, Ops { probe: Some(probe) }, Crew { keep: Some(FOREVER), ..SINGLE })
    }

    /// As [`Writer::start_probed_keeping`], and files are filled in advance on any file system.
    #[doc(hidden)]
    pub fn start_probed_filling(
        dirs: WriterDirs,
        wake: impl Fn() + Send + Sync + 'static,
        probe: Probe,
    ) -> io::Result<Self> {
        Self::start_with(
            dirs,
            wake,
            Ops { probe: Some(probe) },
            Crew { keep: Some(FOREVER), fill: Fill::Always, ..SINGLE },
        )
    }

    /// As [`Writer::start_probed`], with all threads.
    #[doc(hidden)]
    pub fn start_probed_in_full(
        dirs: WriterDirs,
        wake: impl Fn() + Send + Sync + 'static,
        probe: Probe,
    ) -> io::Result<Self> {
        Self::start_with(dirs, wake, Ops { probe: Some(probe) }, FULL)
    }

    fn start_with(
        dirs: WriterDirs,
        wake: impl Fn() + Send + Sync + 'static,
        ops: Ops,
        crew: Crew,
    ) -> io::Result<Self> {
        let Crew { committers, streamers, blanks, fill, keep } = crew;
        let shared = Arc::new(Shared {
            small: Mutex::default(),
            small_ready: Condvar::new(),
            small_full: Condvar::new(),
            streamers: (0..streamers).map(|_| Streamer::default()).collect(),
            blanks: Blanks::new(blanks, fill.on(&dirs.tmp)?),
            finished: Mutex::default(),
            wake: Box::new(wake),
        });
        let dirs = Arc::new(dirs);
        let mut writer =
            Self { shared, streams: HashMap::new(), last_serial: 0, threads: Vec::new(), maker: None };
        let thread = |name: &str, run: Box<Run>| {
            let (shared, dirs, ops) = (writer.shared.clone(), dirs.clone(), ops.clone());
            let builder = std::thread::Builder::new().name(name.to_owned());
            builder.spawn(move || run(&shared, &dirs, &ops))
        };
        let maker = thread(
            "blanks",
            Box::new(|shared, dirs, ops| shared.blanks.run(ops, &labelled(&dirs.tmp, "tmp"))),
        )?;
        let committers = (0..committers).map(|n| {
            let keep = keep.filter(|_| n == 0);
            thread(
                "committer",
                Box::new(move |shared, dirs, ops| commit::run(shared, dirs, ops, n == 0, keep)),
            )
        });
        let streamers = (0..streamers).map(|n| {
            thread("streamer", Box::new(move |shared, dirs, ops| stream::run(shared, dirs, ops, n)))
        });
        let threads: Vec<io::Result<_>> = committers.chain(streamers).collect();
        // From here on dropping the writer ends those that did start.
        writer.maker = Some(maker);
        for thread in threads {
            writer.threads.push(thread?);
        }
        Ok(writer)
    }

    /// Hands over a small message, whole.
    pub fn submit(&mut self, token: u64, message: NewMessage) {
        let octets = commit::footprint(&message);
        let mut small = self.shared.small();
        small.octets += octets;
        small.waiting.push_back(Submitted { token, message, octets });
        // A committer that is writing looks for itself when it is done: one wake a batch.
        let (first, full) = (small.waiting.len() == 1, commit::is_full(&small));
        drop(small);
        if first {
            self.shared.small_ready.notify_one();
        }
        if full {
            self.shared.small_full.notify_one();
        }
    }

    /// Begins a large message. A stream that `token` already named is aborted.
    pub fn open_stream(&mut self, token: u64, id: QueueId) {
        self.abort_stream(token);
        self.last_serial += 1;
        let (serial, unwritten) = (self.last_serial, Arc::new(AtomicUsize::new(0)));
        self.streams.insert(token, Open { serial, unwritten: unwritten.clone() });
        self.shared.command(Command::Open { serial, token, id, unwritten });
    }

    /// Hands over the next octets of a large message. Without effect when the stream is gone.
    pub fn append(&mut self, token: u64, chunk: Vec<u8>) {
        if let Some(Open { serial, unwritten }) = self.streams.get(&token) {
            unwritten.fetch_add(chunk.len(), Ordering::Relaxed);
            self.shared.command(Command::Append { serial: *serial, chunk });
        }
    }

    /// Octets handed over and not yet written: stop reading the client above 256 KiB. There is a wake-up
    /// when they fall below [`STREAM_ABOVE`] again.
    pub fn unwritten(&self, token: u64) -> usize {
        self.streams.get(&token).map_or(0, |stream| stream.unwritten.load(Ordering::Relaxed))
    }

    /// Ends a large message; its completion follows.
    pub fn finish_stream(&mut self, token: u64, envelope: Envelope, prepend: Vec<u8>) {
        if let Some(Open { serial, .. }) = self.streams.get(&token) {
            let envelope = Box::new(envelope);
            self.shared.command(Command::Finish { serial: *serial, envelope, prepend });
        }
    }

    /// Gives up a large message. No completion follows, not even of a failure that was under way; but
    /// what was finished before may stay accepted.
    pub fn abort_stream(&mut self, token: u64) {
        if let Some(Open { serial, .. }) = self.streams.remove(&token) {
            self.shared.command(Command::Abort { serial });
        }
    }

    /// What was completed since the last call; also streams that failed before they were finished, which
    /// are then gone.
    pub fn completions(&mut self) -> Vec<Completion> {
        let finished = std::mem::take(&mut *lock(&self.shared.finished));
        finished.into_iter().filter_map(|finished| self.completion(finished)).collect()
    }

    /// None when the stream was aborted meanwhile.
    fn completion(&mut self, finished: Finished) -> Option<Completion> {
        let Finished { token, id, stream, result } = finished;
        if let Some(serial) = stream {
            self.streams.get(&token).filter(|open| open.serial == serial)?;
            self.streams.remove(&token);
        }
        Some(Completion { token, id, result })
    }
}

impl Drop for Writer {
    /// Waits until what was submitted is written; open streams are unlinked.
    fn drop(&mut self) {
        self.shared.small().closed = true;
        self.shared.small_ready.notify_all();
        self.shared.small_full.notify_all();
        for streamer in &self.shared.streamers {
            lock(&streamer.commands).closed = true;
            streamer.ready.notify_one();
        }
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so; there is nobody left to tell.
            let _ = thread.join();
        }
        self.shared.blanks.close();
        let _ = self.maker.take().map(JoinHandle::join);
    }
}

impl Shared {
    pub(crate) fn small(&self) -> MutexGuard<'_, Small> {
        lock(&self.small)
    }

    /// Waits for a message, or for a full file, and not longer than that.
    pub(crate) fn wait_small<'a>(
        &self,
        guard: MutexGuard<'a, Small>,
        for_any: bool,
        longest: Option<Duration>,
    ) -> MutexGuard<'a, Small> {
        let event = if for_any { &self.small_ready } else { &self.small_full };
        match longest {
            Some(longest) => event.wait_timeout(guard, longest).unwrap_or_else(PoisonError::into_inner).0,
            None => event.wait(guard).unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Wakes a committer that waits for a full file.
    pub(crate) fn call_small(&self) {
        self.small_full.notify_one();
    }

    /// All commands of one stream go to one streamer, in their order.
    fn command(&self, command: Command) {
        let n = command.serial() as usize % self.streamers.len().max(1);
        let Some(streamer) = self.streamers.get(n) else { return };
        let mut commands = lock(&streamer.commands);
        commands.waiting.push(command);
        let first = commands.waiting.len() == 1;
        drop(commands);
        if first {
            streamer.ready.notify_one();
        }
    }

    /// Waits for commands to streamer `n` and takes all of them. None when the writer is gone.
    pub(crate) fn next_commands(&self, n: usize) -> Option<Vec<Command>> {
        let streamer = self.streamers.get(n)?;
        let mut commands = lock(&streamer.commands);
        while commands.waiting.is_empty() {
            if commands.closed {
                return None;
            }
            commands = streamer.ready.wait(commands).unwrap_or_else(PoisonError::into_inner);
        }
        Some(std::mem::take(&mut commands.waiting))
    }

    pub(crate) fn report(&self, finished: impl IntoIterator<Item = Finished>) {
        lock(&self.finished).extend(finished);
        self.wake();
    }

    pub(crate) fn wake(&self) {
        (self.wake)();
    }
}

/// A thread that panicked while it held a lock left plain data behind, which is still whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
