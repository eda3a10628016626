//! Two threads that hash, behind a short queue: hashing is slow on purpose and must not hold up the event
//! loop.

use std::io;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use mio::Waker;

use crate::users::Hash;

/// Threads. More would let a password guesser take the machine.
const THREADS: usize = 2;

/// Jobs waiting: about a second's worth. Past that, clients are told to come back.
const QUEUE: usize = 128;

/// One password to be checked; `T` comes back with the result.
struct Job<T> {
    ticket: T,
    hash: Arc<Hash>,
    /// The hash is the user's, not a decoy.
    counts: bool,
    password: Vec<u8>,
}

/// The threads.
#[derive(Debug)]
pub(crate) struct Workers<T> {
    jobs: SyncSender<Job<T>>,
    /// Tickets and whether the password was right; exactly one for each job taken.
    pub(crate) results: Receiver<(T, bool)>,
}

impl<T: Send + 'static> Workers<T> {
    /// Starts them. Each result wakes `waker`.
    pub(crate) fn start(waker: Arc<Waker>) -> io::Result<Self> {
        let (jobs, queue) = mpsc::sync_channel(QUEUE);
        let (done, results) = mpsc::channel();
        let queue = Arc::new(Mutex::new(queue));
        for n in 0..THREADS {
            let (queue, done, waker) = (Arc::clone(&queue), done.clone(), Arc::clone(&waker));
            thread::Builder::new().name(format!("hash-{n}")).spawn(move || work(&queue, &done, &waker))?;
        }
        Ok(Self { jobs, results })
    }

    /// Takes a job. False when too many wait.
    #[must_use]
    pub(crate) fn check(&self, ticket: T, hash: Arc<Hash>, counts: bool, password: String) -> bool {
        let job = Job { ticket, hash, counts, password: password.into_bytes() };
        match self.jobs.try_send(job) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }
}

fn work<T>(queue: &Mutex<Receiver<Job<T>>>, done: &Sender<(T, bool)>, waker: &Waker) {
    loop {
        // The lock is held while waiting: whoever has it takes the next job.
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(mut job) = next else { return };
        let right = job.hash.verify(&job.password) && job.counts;
        job.password.fill(0);
        std::hint::black_box(&job.password);
        // Without a receiver or an event loop the program is ending.
        let _ = done.send((job.ticket, right));
        let _ = waker.wake();
    }
}
