//! fdatasync in a thread of its own: a disk may take a second over it, and the loop must not.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use postern_spool::QueueId;

/// What is to be put on stable storage: logs of files in `cur/`, and the directory, of which names went.
#[derive(Debug, Default)]
pub struct Batch {
    /// Files, by name.
    pub files: Vec<QueueId>,
    /// The directory as well.
    pub directory: bool,
    /// `drop/`, of which names went.
    pub drop: bool,
}

/// A batch that was synced, or what of it could not be.
#[derive(Debug)]
pub struct Synced {
    /// Its files whose log is on stable storage, or that are gone.
    pub files: Vec<QueueId>,
    /// What could not be synced, and why.
    pub failed: Vec<(String, io::Error)>,
}

/// The thread, as the event loop sees it.
#[derive(Debug)]
pub struct Syncer {
    batches: Option<Sender<Batch>>,
    synced: Receiver<Synced>,
    thread: Option<JoinHandle<()>>,
}

impl Syncer {
    /// Starts the thread over the directories `cur` and `drop`; `wake` is called after each batch.
    pub fn start(cur: OwnedFd, drop: OwnedFd, wake: impl Fn() + Send + 'static) -> io::Result<Self> {
        let (batches, work) = channel::<Batch>();
        let (done, synced) = channel();
        let thread = std::thread::Builder::new().name("syncer".into()).spawn(move || {
            for batch in work {
                if done.send(sync(&cur, &drop, batch)).is_err() {
                    return;
                }
                wake();
            }
        })?;
        Ok(Self { batches: Some(batches), synced, thread: Some(thread) })
    }

    /// Hands over a batch.
    pub fn submit(&self, batch: Batch) {
        if let Some(batches) = &self.batches {
            // The thread ends only after us.
            let _ = batches.send(batch);
        }
    }

    /// The next batch that is done.
    pub fn completion(&self) -> Option<Synced> {
        self.synced.try_recv().ok()
    }
}

impl Drop for Syncer {
    /// Waits until what was handed over is synced.
    fn drop(&mut self) {
        self.batches = None;
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

fn sync(cur: &OwnedFd, drop: &OwnedFd, batch: Batch) -> Synced {
    let mut synced = Synced { files: Vec::new(), failed: Vec::new() };
    for id in batch.files {
        // Any descriptor of the file will do: what is synced is the inode.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(cur, id.to_string().as_str(), flags, Mode::empty());
        match file.map_err(io::Error::from).and_then(|fd| std::fs::File::from(fd).sync_data()) {
            Ok(()) => synced.files.push(id),
            // Unlinked meanwhile: every recipient was done.
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => synced.files.push(id),
            Err(error) => synced.failed.push((id.to_string(), error)),
        }
    }
    for (name, directory, due) in [("cur", cur, batch.directory), ("drop", drop, batch.drop)] {
        if due && let Err(error) = nix::unistd::fsync(directory) {
            synced.failed.push((name.into(), error.into()));
        }
    }
    synced
}
