//! Listening sockets.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::Token;
use mio::net::{TcpListener, TcpStream};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use postern_config::Listen;
use postern_daemon::Host;
use postern_event::Level;
use postern_smtp::server::Settings;

/// How long a listener rests when the kernel has nothing left for another connection. Without it, a
/// full descriptor table would make us spin: the listener stays readable.
const REST: Duration = Duration::from_millis(100);

/// Clients that are gone already, one behind the other, before a listener rests: an error that we take for
/// the client's and that stays would be a spin too.
const LOST_MAX: usize = 64;

/// Clients taken before the other workers are woken first: the kernel wakes the one that has waited longest,
/// and sessions that stay would all be with one.
const STEP_BACK: u32 = 8;

/// How often that is told.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// One listening socket, shared with the other workers.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: TcpListener,
    pub(crate) token: Token,
    /// Its section of the configuration.
    pub(crate) listen: Listen,
    /// For new sessions.
    pub(crate) settings: Arc<Settings>,
    ready: bool,
    /// The kernel tells when clients wait.
    watched: bool,
    /// Clients taken since others were let first.
    taken: u32,
    rest_until: Option<Instant>,
    told: Option<Instant>,
}

impl Listener {
    /// Watches a listening socket.
    pub(crate) fn new(
        host: &mut Host,
        socket: OwnedFd,
        listen: Listen,
        settings: Arc<Settings>,
    ) -> io::Result<Self> {
        // Accepted sockets inherit it, which saves a call for each. Replies are written once a turn: a second
        // one must not wait for the client's acknowledgement of the first. A socket that refuses is slower,
        // and that is all.
        let _ = setsockopt(&socket, sockopt::TcpNoDelay, &true);
        let socket = std::net::TcpListener::from(socket);
        socket.set_nonblocking(true)?;
        let socket = TcpListener::from_std(socket);
        let token = host.token();
        host.watch_shared(&socket, token)?;
        let listener = Self {
            socket,
            token,
            listen,
            settings,
            ready: true,
            watched: true,
            taken: 0,
            rest_until: None,
            told: None,
        };
        Ok(listener)
    }

    /// Clients may be waiting.
    pub(crate) fn set_ready(&mut self) {
        self.ready = true;
    }

    /// The next client; none when there is none now, or the listener has to rest.
    pub(crate) fn accept(&mut self, host: &mut Host) -> Option<(TcpStream, IpAddr)> {
        if self.rest_until.is_some_and(|until| host.now() < until) || !self.ready {
            return None;
        }
        self.rest_until = None;
        if !self.watched && !self.watch(host) {
            return None;
        }
        for _ in 0..LOST_MAX {
            match self.socket.accept() {
                // A dual-stack listener shows IPv4 clients as ::ffff:a.b.c.d.
                Ok((stream, from)) => {
                    self.taken += 1;
                    if self.taken >= STEP_BACK {
                        self.step_back(host);
                    }
                    return Some((stream, from.ip().to_canonical()));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.ready = false;
                    return None;
                }
                Err(e) if is_of_that_client(&e) => {}
                Err(e) => {
                    self.rest(host, &e);
                    return None;
                }
            }
        }
        self.rest(host, &io::Error::other("clients are gone before they are taken"));
        None
    }

    /// Stops listening. Other workers have the same socket open, so closing our descriptor alone would
    /// leave its events with us.
    pub(crate) fn close(self, host: &Host) {
        host.unwatch(&self.socket);
    }

    /// When to call [`Listener::accept`] without being told to.
    pub(crate) fn next(&self, now: Instant) -> Option<Instant> {
        self.ready.then(|| self.rest_until.unwrap_or(now))
    }

    /// Goes to the end of those who wait to be woken.
    fn step_back(&mut self, host: &mut Host) {
        self.taken = 0;
        host.unwatch(&self.socket);
        self.watched = false;
        self.watch(host);
    }

    /// Who is waiting already is told at once.
    fn watch(&mut self, host: &mut Host) -> bool {
        match host.watch_shared(&self.socket, self.token) {
            Ok(()) => self.watched = true,
            Err(error) => self.rest(host, &error),
        }
        self.watched
    }

    fn rest(&mut self, host: &mut Host, error: &io::Error) {
        let now = host.now();
        self.rest_until = Some(now + REST);
        if self.told.is_none_or(|told| now >= told + TELL_EVERY) {
            self.told = Some(now);
            host.note(Level::Error, &format!("cannot accept a connection, clients wait: {error}"));
        }
    }
}

/// Errors of accept(2) that are about one client who is gone already: the next one may be fine.
fn is_of_that_client(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(
            Errno::EINTR
                | Errno::ECONNABORTED
                | Errno::EPROTO
                | Errno::ENETDOWN
                | Errno::ENETUNREACH
                | Errno::EHOSTDOWN
                | Errno::EHOSTUNREACH
                | Errno::ENOPROTOOPT
        )
    )
}
