//! What the skeleton offers a program while it runs.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Instant;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token, Waker};
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use postern_event::{Event, Level, Log};
use postern_ipc::Peer;
use postern_spool::Timestamp;

/// Tokens below this are the skeleton's own.
const FIRST_TOKEN: usize = 16;

/// The program's surroundings: event loop, log, clock.
#[derive(Debug)]
pub struct Host {
    /// Who this program is.
    pub me: Peer,
    /// The log.
    pub log: Log,
    /// Every program runs as its own system user.
    pub rooted: bool,
    pub(crate) registry: Registry,
    pub(crate) waker: Arc<Waker>,
    pub(crate) now: Instant,
    pub(crate) wall: Timestamp,
    pub(crate) finished: bool,
    /// Another turn is due, whatever the kernel has to tell: a neighbour was lost.
    pub(crate) again: bool,
    next_token: usize,
}

impl Host {
    /// Surroundings over an event loop. [`crate::run`] makes them for a program; tests of a program's
    /// callbacks make their own.
    pub fn new(me: Peer, log: Log, rooted: bool, registry: Registry, waker: Arc<Waker>) -> Self {
        let (now, wall) = (Instant::now(), Timestamp::now());
        Self {
            me,
            log,
            rooted,
            registry,
            waker,
            now,
            wall,
            finished: false,
            again: false,
            next_token: FIRST_TOKEN,
        }
    }

    /// A turn of the loop begins: takes the time for it. For whoever turns the loop.
    pub fn tick(&mut self) {
        (self.now, self.wall) = (Instant::now(), Timestamp::now());
    }

    /// [`Host::finish`] was called. For whoever turns the loop.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// The event loop's registry, for mio's own sources.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Wakes the loop from another thread: [`crate::Program::turn`] is called.
    pub fn waker(&self) -> Arc<Waker> {
        Arc::clone(&self.waker)
    }

    /// When this turn of the loop began, for deadlines.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// When this turn of the loop began, by the wall clock.
    pub fn wall(&self) -> Timestamp {
        self.wall
    }

    /// A token that nobody has.
    pub fn token(&mut self) -> Token {
        self.next_token += 1;
        Token(self.next_token - 1)
    }

    /// A block of `count` tokens that nobody has: its first.
    pub fn tokens(&mut self, count: usize) -> Token {
        let first = self.next_token;
        self.next_token += count;
        Token(first)
    }

    /// Watches any descriptor for reading and writing, edge-triggered: act until `WouldBlock`.
    pub fn watch(&self, descriptor: &impl AsRawFd, token: Token) -> std::io::Result<()> {
        let both = Interest::READABLE | Interest::WRITABLE;
        self.registry.register(&mut SourceFd(&descriptor.as_raw_fd()), token, both)
    }

    /// Watches a socket that other processes watch too, for reading, edge-triggered: what comes wakes one of them
    /// that has nothing to do, and not all.
    pub fn watch_shared(&self, descriptor: impl AsFd, token: Token) -> std::io::Result<()> {
        // mio has no word for it, so its epoll is told directly; its tokens are epoll's data.
        let epoll = Epoll(self.registry.as_fd().try_clone_to_owned()?);
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET | EpollFlags::EPOLLEXCLUSIVE;
        Ok(epoll.add(descriptor, EpollEvent::new(flags, token.0 as u64))?)
    }

    /// Stops watching. (Closing a descriptor does so too, when no copy of it is open.)
    pub fn unwatch(&self, descriptor: &impl AsRawFd) {
        // Not registered is what we want.
        let _ = self.registry.deregister(&mut SourceFd(&descriptor.as_raw_fd()));
    }

    /// Logs an event.
    pub fn emit(&mut self, event: &Event<'_>) {
        self.log.emit(event);
    }

    /// Logs something that has no event of its own.
    pub fn note(&mut self, level: Level, text: &str) {
        self.log.note(level, None, text);
    }

    /// Everything is finished: end the program with status 0 after this turn.
    pub fn finish(&mut self) {
        self.finished = true;
    }
}
