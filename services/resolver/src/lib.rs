//! NAME
//!     postern-resolver: asks the DNS for everybody
//!
//! WHAT IT DOES
//!     Answers questions about MX, A and AAAA, PTR, TXT and TLSA records from one cache for the whole
//!     system. An event loop of mio talks to the neighbours and owns the cache; one thread with a
//!     current-thread tokio runtime and hickory talks to the DNS servers. Equal questions under way are
//!     asked once.
//!
//! SERVERS
//!     The servers are those of `[dns] servers`, else those of `/etc/resolv.conf`. They must be recursive
//!     resolvers. An answer counts as secure when a server on a loopback address says so by the AD bit:
//!     run a validating resolver (unbound, knot-resolver) there, if you want DANE.
//!
//! TALKS TO
//!     delivery-remote, lmtp, verify ([`postern_ipc::resolve`]); DNS servers by UDP and TCP.
//!
//! TRUST
//!     Neither the DNS nor the askers. Names that are no host names are left out; the number of kept
//!     answers, of questions under way and of those who wait is bounded.
//!
//! FAILURE
//!     A question is answered within about 10 s, at worst as a temporary failure in words. When this
//!     program dies, master starts it anew with an empty cache.
//!
//! BUGS
//!     Validates no DNSSEC itself: hickory 0.26.3 calls some good names bogus. When `/etc/resolv.conf` is
//!     replaced and Postern runs without root, a reload cannot read the new file (the sandbox knows the
//!     old one) and keeps the servers; a restart reads it.

#![forbid(unsafe_code)]

pub mod cache;
pub mod chain;
pub mod upstream;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::TryRecvError;
use std::time::Instant;

use mio::Token;
use postern_config::ResolverPart;
use postern_daemon::{Handles, Host, Port, Program, StartError};
use postern_event::Level;
use postern_ipc::resolve::{Answer, DnsError, Question, Records};
use postern_ipc::supervise::Handle;
use postern_ipc::{Peer, RequestId, Role, topology};

use crate::cache::{Asked, Cache, Limits};
use crate::upstream::Upstream;

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The program.
#[derive(Debug)]
pub struct Resolver {
    ports: Vec<Port<Answer, Question>>,
    cache: Cache<Waiter>,
    upstream: Upstream,
    stopping: bool,
    asked: u64,
    known: u64,
}

/// Who waits: which port, and for which of its requests.
type Waiter = (usize, RequestId);

impl Program for Resolver {
    const ROLE: Role = Role::Resolver;
    type Config = ResolverPart;

    fn readable(config: &ResolverPart) -> Vec<PathBuf> {
        if config.servers.is_empty() { vec![RESOLV_CONF.into()] } else { Vec::new() }
    }

    fn start(host: &mut Host, config: ResolverPart, handles: Handles) -> Result<Self, StartError> {
        let servers = servers(&config).map_err(StartError)?;
        let upstream = Upstream::start(servers, host.waker())
            .map_err(|error| StartError(format!("cannot start the DNS client: {error}")))?;
        let ports = topology::neighbours(Role::Resolver).map(|role| Port::new(host, Peer::only(role)));
        let mut program = Self {
            ports: ports.collect(),
            cache: Cache::new(Limits::default()),
            upstream,
            stopping: false,
            asked: 0,
            known: 0,
        };
        for (handle, socket) in handles {
            if let Handle::Link(peer) = handle {
                program.linked(host, peer, socket);
            }
        }
        Ok(program)
    }

    fn linked(&mut self, host: &mut Host, peer: Peer, socket: OwnedFd) {
        let Some(n) = self.ports.iter().position(|port| port.peer() == peer) else {
            host.note(Level::Warning, &format!("no place for a link to {peer}"));
            return;
        };
        self.port(n, |port| port.connect(host, socket));
        // Those who waited are gone with their link; ids of the new one may be the same.
        self.hear(host, n);
    }

    fn ready(&mut self, host: &mut Host, token: Token, _event: &mio::event::Event) {
        if let Some(n) = self.ports.iter().position(|port| port.token() == token) {
            self.port(n, |port| port.flush(host));
            self.hear(host, n);
        }
    }

    fn turn(&mut self, host: &mut Host) -> Option<Instant> {
        loop {
            match self.upstream.answers.try_recv() {
                Ok((query, outcome)) => {
                    for (n, id) in self.cache.settle(&query, &outcome, host.now()) {
                        self.answer(host, n, id, outcome.result.clone());
                    }
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    host.note(Level::Error, "the DNS thread is gone: ending, to be started anew");
                    host.finish();
                    break;
                }
            }
        }
        if self.stopping && self.cache.pending() == 0 {
            host.finish();
        }
        None
    }

    fn flush(&mut self, host: &mut Host) {
        for n in 0..self.ports.len() {
            self.port(n, |port| port.flush(host));
        }
    }

    fn reload(&mut self, host: &mut Host, config: ResolverPart) {
        match servers(&config) {
            Ok(servers) => {
                self.cache.clear();
                self.upstream.use_servers(servers);
            }
            // No reason to refuse everybody else the new configuration.
            Err(error) => host.note(Level::Error, &format!("the DNS servers stay as they were: {error}")),
        }
    }

    fn stop(&mut self, _host: &mut Host) {
        self.stopping = true;
    }

    fn counters(&self) -> Vec<(String, u64)> {
        vec![
            ("questions".into(), self.asked),
            ("answered from cache".into(), self.known),
            ("under way".into(), self.cache.pending() as u64),
            ("kept".into(), self.cache.len() as u64),
        ]
    }
}

impl Resolver {
    /// Hears what the neighbour asks, unless it does not read our answers.
    fn hear(&mut self, host: &mut Host, n: usize) {
        while let Some(question) = self.port(n, |port| match port.is_congested() {
            true => None,
            false => port.receive(host),
        }) {
            self.ask(host, n, question.0);
        }
    }

    fn ask(&mut self, host: &mut Host, n: usize, Question { id, query }: Question) {
        self.asked += 1;
        match self.cache.ask(&query, (n, id), host.now()) {
            Asked::Known(result) => {
                self.known += 1;
                self.answer(host, n, id, result);
            }
            Asked::Begin => {
                if !self.upstream.ask(query) {
                    self.answer(host, n, id, temporary("the DNS thread is gone"));
                }
            }
            Asked::Joined => {}
            Asked::Full => self.answer(host, n, id, temporary("the resolver is busy")),
        }
    }

    fn answer(&mut self, host: &mut Host, n: usize, id: RequestId, result: Result<Records, DnsError>) {
        self.port(n, |port| {
            // An asker that is gone waits for nothing. One that is there gets an answer in any case: the
            // records of a name may be more than a frame holds.
            if !port.send(host, &Answer { id, result }) && port.is_connected() {
                let _ = port.send(host, &Answer { id, result: temporary("the answer is too large") });
            }
        });
    }

    /// Does something with a port; when its neighbour went away, nobody there waits any more.
    fn port<T: Default>(&mut self, n: usize, act: impl FnOnce(&mut Port<Answer, Question>) -> T) -> T {
        let Some(port) = self.ports.get_mut(n) else { return T::default() };
        let outcome = act(port);
        if port.take_lost() {
            self.cache.forget(|(waiting, _)| *waiting == n);
        }
        outcome
    }
}

fn temporary(why: &str) -> Result<Records, DnsError> {
    Err(DnsError::Temporary(why.into()))
}

fn servers(config: &ResolverPart) -> Result<Vec<SocketAddr>, String> {
    if !config.servers.is_empty() {
        return Ok(config.servers.clone());
    }
    let path = Path::new(RESOLV_CONF);
    match std::fs::read(path) {
        Ok(text) => upstream::system_servers(&text).map_err(|error| format!("{RESOLV_CONF}: {error}")),
        // As for the C library: without the file it is this host's own server.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => upstream::system_servers(b""),
        Err(error) => Err(format!("{RESOLV_CONF}: {error}")),
    }
}
