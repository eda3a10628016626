//! NAME
//!     postern-verify: judges clients
//!
//! WHAT IT DOES
//!     Finds the name of a client: the PTR records of its address, of which one must have that address
//!     in turn (forward-confirmed). A client on a loopback address has no name.
//!
//! TALKS TO
//!     The workers of smtpd ([`postern_ipc::smtpd_verify`]) and resolver ([`postern_ipc::resolve`]).
//!
//! TRUST
//!     Neither clients nor the DNS: a name counts only when confirmed, at most 5 names are tried, and the
//!     number of clients being named is bounded.
//!
//! FAILURE
//!     A client is answered within 5 s, as unavailable when the DNS or the resolver fails. The name is for
//!     trace headers, the log and rules; no mail is refused for the lack of it.
//!
//! BUGS
//!     Judges no content yet: SPF, DKIM, DMARC, lists and milters are to come here.

#![forbid(unsafe_code)]

pub mod naming;

use std::os::fd::OwnedFd;
use std::time::Instant;

use mio::Token;
use postern_config::VerifyPart;
use postern_daemon::{Handles, Host, Port, Ports, Program, StartError};
use postern_event::Level;
use postern_ipc::supervise::Handle;
use postern_ipc::{Peer, RequestId, Role, resolve, smtpd_verify};

use crate::naming::{Action, Naming};

/// The program.
#[derive(Debug)]
pub struct Verify {
    askers: Ports<smtpd_verify::Answer, smtpd_verify::Question>,
    resolver: Port<resolve::Question, resolve::Answer>,
    naming: Naming<Asker>,
    stopping: bool,
    asked: u64,
}

/// Which port, and which of its requests.
type Asker = (usize, RequestId);

impl Program for Verify {
    const ROLE: Role = Role::Verify;
    type Config = VerifyPart;

    fn start(host: &mut Host, _config: VerifyPart, handles: Handles) -> Result<Self, StartError> {
        let resolver = Port::new(host, Peer::only(Role::Resolver));
        let mut program =
            Self { askers: Ports::new(), resolver, naming: Naming::new(), stopping: false, asked: 0 };
        for (handle, socket) in handles {
            if let Handle::Link(peer) = handle {
                program.linked(host, peer, socket);
            }
        }
        Ok(program)
    }

    fn linked(&mut self, host: &mut Host, peer: Peer, socket: OwnedFd) {
        match peer.role {
            Role::Resolver => {
                self.resolver.connect(host, socket);
                self.hear_resolver(host);
            }
            Role::Smtpd => {
                let place = self.askers.connect(host, peer, socket);
                self.hear(host, place);
            }
            _ => host.note(Level::Warning, &format!("no place for a link to {peer}")),
        }
    }

    fn ready(&mut self, host: &mut Host, token: Token, _event: &mio::event::Event) {
        if token == self.resolver.token() {
            self.resolver.flush(host);
            self.hear_resolver(host);
        } else if let Some(place) = self.askers.ready(host, token) {
            self.hear(host, place);
        }
    }

    fn turn(&mut self, host: &mut Host) -> Option<Instant> {
        let late = self.naming.pass(host.now());
        self.act(host, late);
        if self.resolver.take_lost() {
            let lost = self.naming.resolver_lost();
            self.act(host, lost);
        }
        while let Some(place) = self.askers.next_lost() {
            self.naming.forget(|(asker, _)| *asker == place);
        }
        if self.stopping && self.naming.is_empty() {
            host.finish();
        }
        self.naming.deadline()
    }

    fn reload(&mut self, _host: &mut Host, _config: VerifyPart) {}

    fn stop(&mut self, _host: &mut Host) {
        self.stopping = true;
    }

    fn counters(&self) -> Vec<(String, u64)> {
        vec![("clients".into(), self.asked), ("under way".into(), self.naming.len() as u64)]
    }
}

impl Verify {
    fn hear(&mut self, host: &mut Host, place: usize) {
        self.forget_lost(place);
        while let Some(question) = self.askers.receive(host, place) {
            self.asked += 1;
            let smtpd_verify::Ask::Begin { client, .. } = question.ask else { continue };
            let actions = self.naming.begin((place, question.id), client, host.now());
            self.act(host, actions);
        }
        self.forget_lost(place);
    }

    fn hear_resolver(&mut self, host: &mut Host) {
        // What was asked of its predecessor comes to nothing; ids never repeat, so the order is free.
        if self.resolver.take_lost() {
            let lost = self.naming.resolver_lost();
            self.act(host, lost);
        }
        while let Some((answer, _)) = self.resolver.receive(host) {
            let actions = self.naming.heard(answer.id, answer.result);
            self.act(host, actions);
        }
    }

    fn forget_lost(&mut self, place: usize) {
        if self.askers.take_lost(place) {
            self.naming.forget(|(asker, _)| *asker == place);
        }
    }

    fn act(&mut self, host: &mut Host, actions: Vec<Action<Asker>>) {
        for action in actions {
            match action {
                Action::Ask(id, query) => {
                    let said = !self.resolver.is_congested()
                        && self.resolver.send(host, &resolve::Question { id, query });
                    if !said {
                        let failed = resolve::DnsError::Temporary("the resolver is not there".into());
                        let then = self.naming.heard(id, Err(failed));
                        self.act(host, then);
                    }
                }
                // An asker that is gone needs no answer.
                Action::Answer((place, id), name) => {
                    let facts = smtpd_verify::ClientFacts { name, ..smtpd_verify::ClientFacts::UNKNOWN };
                    let say = smtpd_verify::Say::Client(facts);
                    let _ = self.askers.send(host, place, &smtpd_verify::Answer { id, say });
                }
            }
        }
    }
}
