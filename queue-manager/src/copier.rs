//! Large messages of local programs, copied and checked in a thread of its own: what takes longer than a turn of
//! the loop is a message of many megabytes, and others' mail must not wait for it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};

use postern_spool::{QueueId, STREAM_ABOVE, Timestamp};

use crate::pickup::{self, Pickup, Refusal};

/// One message of `drop/`, and what [`pickup::open`] needs for it.
#[derive(Debug)]
pub struct Request {
    /// Its name.
    pub name: QueueId,
    /// Its new id.
    pub id: QueueId,
    /// Ours.
    pub hostname: String,
    /// Largest message.
    pub message_size: u64,
    /// When it is taken.
    pub now: Timestamp,
}

/// The thread, as the event loop sees it. It has one message at a time.
#[derive(Debug)]
pub struct Copier {
    requests: Sender<Request>,
    done: Receiver<Result<Pickup, Refusal>>,
    busy: Option<QueueId>,
}

impl Copier {
    /// Starts the thread over the directories `drop` and `cur`; `wake` is called after each message. Whoever ends
    /// the program does not wait for it: what it has copied by then is swept at the next start.
    pub fn start(drop: OwnedFd, cur: OwnedFd, wake: impl Fn() + Send + 'static) -> io::Result<Self> {
        let (requests, work) = channel::<Request>();
        let (tell, done) = channel();
        std::thread::Builder::new().name("copier".into()).spawn(move || {
            for Request { name, id, hostname, message_size, now } in work {
                let (drop, cur) = (drop.as_fd(), cur.as_fd());
                if tell.send(pickup::open(drop, cur, name, id, &hostname, message_size, now)).is_err() {
                    return;
                }
                wake();
            }
        })?;
        Ok(Self { requests, done, busy: None })
    }

    /// What it has now.
    pub fn busy(&self) -> Option<QueueId> {
        self.busy
    }

    /// Hands over the next message.
    pub fn begin(&mut self, request: Request) {
        self.busy = Some(request.name);
        // The thread ends only after us.
        let _ = self.requests.send(request);
    }

    /// What became of its message.
    pub fn finished(&mut self) -> Option<(QueueId, Result<Pickup, Refusal>)> {
        let name = self.busy?;
        let result = self.done.try_recv().ok()?;
        self.busy = None;
        Some((name, result))
    }
}

/// Whether a message of `drop/` is one for the thread. Its owner may make it grow behind our back; then it is
/// copied in the loop, as far as a message may be long.
pub fn is_large(drop: &impl AsFd, name: QueueId) -> bool {
    let flags = nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW;
    let stat = nix::sys::stat::fstatat(drop.as_fd(), name.to_string().as_str(), flags);
    stat.is_ok_and(|stat| stat.st_size > STREAM_ABOVE as i64)
}
