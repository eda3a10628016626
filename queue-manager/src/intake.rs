//! How messages come in: told by the kernel, found by scans, recovered at the start. What may wait for a
//! disk runs in threads of its own, so that new mail is served at once whatever lies in the queue.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use postern_spool::{ADOPT_AFTER, QueueId, ReadError, Rescued, SpoolFile, Timestamp};

use crate::pickup::{COPY_PREFIX, own_copies};
use crate::replay::Replay;
use crate::scheduler::{DomainBits, Summary};

/// How often `tmp/` is looked through for what its writer left behind.
const RESCUE_EVERY: Duration = Duration::from_secs(5);
/// At our own start younger files are adopted too: a writer that lives has moved them by then.
const RESCUE_AT_START: Duration = Duration::from_secs(2);
/// How often `drop/` is swept of what local programs left half written.
const SWEEP_EVERY: Duration = Duration::from_secs(3600);
/// Files that recovery may be ahead of the loop.
const AHEAD: usize = 256;

/// Told by the kernel of files that come into `new/` and `drop/`.
#[derive(Debug)]
pub struct Watcher {
    inotify: Inotify,
    new: WatchDescriptor,
    drop: WatchDescriptor,
}

/// What the kernel told.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Into `new/`.
    pub new: Vec<QueueId>,
    /// Into `drop/`.
    pub dropped: Vec<QueueId>,
    /// It told less than all: scan.
    pub overflow: bool,
}

impl Watcher {
    /// Watches both directories, through the handles we were given: their paths are not ours to open.
    pub fn new(new: BorrowedFd<'_>, drop: BorrowedFd<'_>) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let watch = |directory: BorrowedFd<'_>| {
            let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
            inotify.add_watch(path.as_str(), AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR)
        };
        let (new, drop) = (watch(new)?, watch(drop)?);
        Ok(Self { inotify, new, drop })
    }

    /// What was told since the last call.
    pub fn read(&self) -> Seen {
        let mut seen = Seen::default();
        loop {
            let events = match self.inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return seen,
                // Whatever it is, a scan finds what was not told.
                Err(_) => {
                    seen.overflow = true;
                    return seen;
                }
            };
            for event in events {
                seen.overflow |= event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
                // Other names are temporary ones, or a stranger's: the scans know what to do.
                let Some(id) = event.name.as_deref().and_then(|name| canonical(name.to_str()?)) else {
                    continue;
                };
                if event.wd == self.new {
                    seen.new.push(id);
                } else if event.wd == self.drop {
                    seen.dropped.push(id);
                }
            }
        }
    }
}

impl AsFd for Watcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

fn canonical(name: &str) -> Option<QueueId> {
    QueueId::parse(name).filter(|id| id.to_string() == name)
}

/// A file of `cur/`, read at the start.
#[derive(Debug)]
pub struct Found {
    /// Its name.
    pub file: QueueId,
    /// Its messages, or why there are none.
    pub messages: Result<Vec<FoundMessage>, ReadError>,
}

/// One message of it.
#[derive(Debug)]
pub struct FoundMessage {
    /// Its id.
    pub id: QueueId,
    /// Which of the file's.
    pub number: u16,
    /// Every recipient is done.
    pub finished: bool,
    /// When it arrived.
    pub arrival: Timestamp,
    /// It was tried before.
    pub was_deferred: bool,
    /// When it is due.
    pub until: Timestamp,
    /// It is held.
    pub held: bool,
    /// Its sender wants it delivered no sooner.
    pub not_before: Option<Timestamp>,
    /// What the schedule keeps of it.
    pub summary: Summary,
}

/// What recovery says, in order; `Done` is the last.
#[derive(Debug)]
pub enum Recovery {
    /// A file.
    Found(Found),
    /// The directory could not be read: nothing of it is known.
    Failed(io::Error),
    /// All was said.
    Done {
        /// Left-overs that were removed.
        swept: u64,
        /// How long it took.
        milliseconds: u64,
    },
}

/// Reads `cur/` in a thread of its own. The channel is short, so that a large queue waits on the disk and
/// not in memory.
pub fn recover(cur: OwnedFd, wake: impl Fn() + Send + 'static) -> io::Result<Receiver<Recovery>> {
    let (found, receiver) = sync_channel(AHEAD);
    std::thread::Builder::new().name("recovery".into()).spawn(move || {
        // An error is the loop gone.
        let _ = recover_all(&cur, &found, &wake);
        wake();
    })?;
    Ok(receiver)
}

fn recover_all(
    cur: &OwnedFd,
    found: &SyncSender<Recovery>,
    wake: &dyn Fn(),
) -> Result<(), std::sync::mpsc::SendError<Recovery>> {
    let begun = Instant::now();
    let listing = match postern_spool::list(cur.as_fd()) {
        Ok(listing) => listing,
        Err(error) => return found.send(Recovery::Failed(error)),
    };
    let mut swept = 0;
    let own = own_copies();
    let left_behind = |name: &&String| name.starts_with(COPY_PREFIX) && !name.starts_with(&own);
    for name in listing.others.iter().filter(left_behind) {
        // The copy of a file that is still in drop/ itself.
        swept += u64::from(postern_spool::remove(cur.as_fd(), name).is_ok());
    }
    for (n, file) in listing.files.into_iter().enumerate() {
        let messages = SpoolFile::open(cur.as_fd(), &file.to_string()).map(|file| read(&file));
        if let Err(ReadError::Io(error)) = &messages
            && error.kind() == io::ErrorKind::NotFound
        {
            continue; // Came and went meanwhile.
        }
        found.send(Recovery::Found(Found { file, messages }))?;
        if n % (AHEAD / 4) == 0 {
            wake();
        }
    }
    let milliseconds = begun.elapsed().as_millis() as u64;
    found.send(Recovery::Done { swept, milliseconds })
}

/// What stands in a file.
pub fn read(file: &SpoolFile) -> Vec<FoundMessage> {
    let message = |(number, stored): (u16, &postern_spool::Stored)| {
        let replay = Replay::new(file.log(), number, stored);
        FoundMessage {
            id: stored.id,
            number,
            finished: replay.unfinished(stored).next().is_none(),
            arrival: stored.envelope.arrival,
            was_deferred: replay.was_deferred(),
            until: replay.next(stored),
            held: replay.held,
            not_before: stored.envelope.options.hold_until,
            summary: Summary {
                priority: stored.envelope.options.priority,
                domains: DomainBits::of_all(replay.unfinished(stored).map(|(_, address)| address)),
            },
        }
    };
    (0u16..).zip(file.messages()).map(message).collect()
}

/// Looks through `tmp/` and `drop/` for what was left behind, in a thread of its own.
#[derive(Debug)]
pub struct Janitor {
    stop: Option<Sender<()>>,
    rescued: Receiver<io::Result<Rescued>>,
    thread: Option<JoinHandle<()>>,
}

/// The directories it looks through and moves to.
#[derive(Debug)]
pub struct JanitorDirs {
    /// `tmp/`
    pub tmp: OwnedFd,
    /// `new/`
    pub new: OwnedFd,
    /// `corrupt/`
    pub corrupt: OwnedFd,
    /// `drop/`
    pub drop: OwnedFd,
}

impl Janitor {
    /// Starts it; `wake` is called when there is something to tell.
    pub fn start(dirs: JanitorDirs, wake: impl Fn() + Send + 'static) -> io::Result<Self> {
        let (stop, stopped) = channel();
        let (tell, rescued) = channel();
        let thread = std::thread::Builder::new().name("janitor".into()).spawn(move || {
            // What lay there at our start is old enough by the second look at the latest.
            let (mut adopt_after, mut wait) = (RESCUE_AT_START, RESCUE_AT_START);
            let mut looks = 0;
            let mut swept = Instant::now();
            loop {
                let (tmp, new, corrupt) = (dirs.tmp.as_fd(), dirs.new.as_fd(), dirs.corrupt.as_fd());
                let now = SystemTime::now();
                let mut outcome = postern_spool::rescue(tmp, new, corrupt, adopt_after, now);
                if swept.elapsed() >= SWEEP_EVERY {
                    swept = Instant::now();
                    let names = postern_spool::sweep_temporary(dirs.drop.as_fd(), now);
                    outcome = outcome.and_then(|mut rescued| {
                        rescued.swept.extend(names?);
                        Ok(rescued)
                    });
                }
                if !outcome.as_ref().is_ok_and(|rescued| *rescued == Rescued::default()) {
                    if tell.send(outcome).is_err() {
                        return;
                    }
                    wake();
                }
                looks += 1;
                if looks == 2 {
                    (adopt_after, wait) = (ADOPT_AFTER, RESCUE_EVERY);
                }
                if stopped.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        })?;
        Ok(Self { stop: Some(stop), rescued, thread: Some(thread) })
    }

    /// What it has to tell.
    pub fn told(&self) -> Option<io::Result<Rescued>> {
        self.rescued.try_recv().ok()
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// Files that could not be read or moved, so that each trouble is told once and not at every scan.
#[derive(Debug, Default)]
pub struct Troubles(BTreeMap<String, String>);

impl Troubles {
    /// True when this is new.
    pub fn is_news(&mut self, file: &str, why: &str) -> bool {
        if self.0.len() > 1000 {
            self.0.clear();
        }
        self.0.insert(file.to_owned(), why.to_owned()).as_deref() != Some(why)
    }

    /// It is over.
    pub fn forget(&mut self, file: &str) {
        self.0.remove(file);
    }
}

#[cfg(test)]
mod tests;
