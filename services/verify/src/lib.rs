//! NAME
//!     postern-verify: judges clients
//!
//! WHAT IT DOES
//!     Finds the name of a client: the PTR records of its address, of which one must have that address
//!     in turn (forward-confirmed). A client on a loopback address has no name. Asks the lists about it
//!     (RFC 5782). Counts what the clients of all workers do, and leases what they may do. Keeps the
//!     greylist. Asks the policy servers of the rules, in Postfix's delegation protocol ([`delegation`]).
//!
//! TALKS TO
//!     The workers of smtpd ([`postern_ipc::smtpd_verify`]) and resolver ([`postern_ipc::resolve`]). The
//!     greylist's file, in a directory that master hands it. Policy servers, which the configuration names;
//!     the sandbox lets it reach no others.
//!
//! TRUST
//!     Neither clients nor the DNS: a name counts only when confirmed, at most 5 names are tried, and the
//!     number of clients being named, of those counted (a million, in 50 MiB) and of those greylisted
//!     (400,000, in 13 MiB) is bounded. Whoever does least is forgotten first, and never one with sessions.
//!     A policy server is the operator's; its answer is bounded, and one line.
//!
//! FAILURE
//!     A policy server that fails is asked once more and has 25 s in all; then smtpd hears that it says nothing.
//!     A client is answered within 5 s: its name is unavailable when the DNS or the resolver fails, and a
//!     list that does not answer counts nothing. The name is for trace headers, the log and rules; no mail
//!     is refused for the lack of it. When this program dies its counts begin anew; sessions under way are
//!     not counted in them. A disk that fails costs the greylist its memory over a restart.
//!
//! BUGS
//!     Judges no content yet: SPF, DKIM, DMARC and milters are to come here. Whoever commands more than a
//!     million networks can make it forget the rates of others (not their sessions).

#![forbid(unsafe_code)]

mod clients;
pub mod delegation;
pub mod greylist;
mod inquiries;
pub mod leases;
pub mod listing;
pub mod naming;
pub mod store;
pub mod table;
mod waiting;

use std::os::fd::OwnedFd;
use std::time::Instant;

use mio::Token;
use postern_config::{PolicyServer, VerifyPart};
use postern_daemon::{Endpoint, Handles, Host, Port, Ports, Program, StartError};
use postern_event::Level;
use postern_ipc::smtpd_verify::{Answer, Ask, ClientFacts, Question, Say};
use postern_ipc::supervise::Handle;
use postern_ipc::{Peer, RequestId, Role, resolve};

use crate::clients::Seen;
use crate::delegation::Delegation;
use crate::leases::Leases;
use crate::listing::Listing;
use crate::naming::Naming;
use crate::waiting::Waiting;

/// The program.
#[derive(Debug)]
pub struct Verify {
    askers: Ports<Answer, Question>,
    resolver: Port<resolve::Question, resolve::Answer>,
    naming: Naming<Asker>,
    listing: Listing<Asker>,
    waiting: Waiting<Asker>,
    leases: Leases<Asker>,
    seen: Seen,
    policy: Delegation<Asker>,
    /// Those that the sandbox lets us reach.
    reachable: Vec<PolicyServer>,
    /// Seconds are counted from here, for the leases.
    begun: Instant,
    stopping: bool,
    asked: u64,
}

/// Which port, and which of its requests.
type Asker = (usize, RequestId);

/// The ids of the listing's questions to the resolver are above this, those of the naming below.
const LISTING_IDS: RequestId = 1 << 63;

impl Program for Verify {
    const ROLE: Role = Role::Verify;
    type Config = VerifyPart;

    /// The policy servers alone.
    fn reachable(config: &VerifyPart) -> Vec<Endpoint> {
        let endpoint = |server: &PolicyServer| match server {
            PolicyServer::Inet(address) => Endpoint::Tcp(address.port()),
            PolicyServer::Unix(path) => Endpoint::Unix(path.clone()),
        };
        config.servers.iter().map(endpoint).collect()
    }

    fn start(host: &mut Host, config: VerifyPart, handles: Handles) -> Result<Self, StartError> {
        let resolver = Port::new(host, Peer::only(Role::Resolver));
        let mut program = Self {
            askers: Ports::new(),
            resolver,
            naming: Naming::new(),
            listing: Listing::new(config.lists, LISTING_IDS),
            waiting: Waiting::new(),
            leases: Leases::new(config.limits),
            seen: Seen::new(config.greylist),
            policy: Delegation::new(host, &config.servers),
            reachable: config.servers,
            begun: host.now(),
            stopping: false,
            asked: 0,
        };
        let mut links = Vec::new();
        for (handle, descriptor) in handles {
            match handle {
                Handle::Link(peer) => links.push((peer, descriptor)),
                Handle::Greylist => program.seen.open(host, descriptor),
                _ => {}
            }
        }
        links.into_iter().for_each(|(peer, socket)| program.linked(host, peer, socket));
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
        } else if self.policy.ready(host, token) {
            self.tell_policy(host);
        }
    }

    fn turn(&mut self, host: &mut Host) -> Option<Instant> {
        let late = self.naming.pass(host.now());
        self.named(host, late);
        let late = self.listing.pass(host.now());
        self.listed(host, late);
        self.miss_resolver(host);
        while let Some(place) = self.askers.next_lost() {
            self.forget(host, place);
        }
        self.policy.pass(host);
        self.tell_policy(host);
        self.seen.write(host);
        if self.stopping && self.naming.is_empty() && self.listing.is_empty() && self.policy.is_idle() {
            host.finish();
        }
        [self.naming.deadline(), self.listing.deadline(), self.policy.deadline()].into_iter().flatten().min()
    }

    fn flush(&mut self, host: &mut Host) {
        self.resolver.flush(host);
        self.askers.flush(host);
    }

    fn prepare(&mut self, _host: &mut Host, config: &VerifyPart) -> Result<(), String> {
        match config.servers.iter().find(|server| !self.reachable.contains(server)) {
            Some(server) => Err(format!("the sandbox does not let verify reach {server}: restart Postern")),
            None => Ok(()),
        }
    }

    fn reload(&mut self, host: &mut Host, config: VerifyPart) {
        self.leases.set_limits(config.limits);
        let early = self.listing.set_lists(config.lists);
        self.listed(host, early);
        self.seen.set(config.greylist);
        self.policy.replace(host, &config.servers);
    }

    fn stop(&mut self, _host: &mut Host) {
        self.stopping = true;
    }

    fn counters(&self) -> Vec<(String, u64)> {
        [
            ("clients", self.asked),
            ("under way", self.waiting.len() as u64),
            ("sessions counted", self.leases.sessions() as u64),
            ("networks counted", self.leases.clients() as u64),
            ("greylist", self.seen.len() as u64),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }
}

impl Verify {
    fn hear(&mut self, host: &mut Host, place: usize) {
        self.forget_lost(host, place);
        while let Some(question) = self.askers.receive(host, place) {
            self.answer(host, (place, question.id), question.ask);
        }
        self.forget_lost(host, place);
    }

    fn answer(&mut self, host: &mut Host, asker: Asker, ask: Ask) {
        let (place, at) = (asker.0, host.now().saturating_duration_since(self.begun).as_secs());
        match ask {
            Ask::Begin { client, listener, counted, listed } => {
                self.asked += 1;
                if counted {
                    let lease = self.leases.begin(asker, client, listener, at);
                    let refused = lease.is_err();
                    self.say(host, asker, Say::Lease(lease));
                    if refused {
                        return;
                    }
                }
                let listed = listed && self.listing.has_lists();
                self.waiting.begin(asker, listed);
                let actions = self.naming.begin(asker, client, host.now());
                self.named(host, actions);
                if listed {
                    let actions = self.listing.begin(asker, client, host.now());
                    self.listed(host, actions);
                }
            }
            Ask::More { session, of } => {
                let lease = self.leases.more((place, session), of, at);
                self.say(host, asker, Say::Lease(lease));
            }
            Ask::User { session, user, left } => {
                let lease = self.leases.user((place, session), &user, left, at);
                self.say(host, asker, Say::Lease(lease));
            }
            Ask::AuthFailed { session, user } => self.leases.auth_failed((place, session), &user, at),
            Ask::End { session, left } => self.leases.end((place, session), left, at),
            Ask::Greylist { client, from, to } => {
                let greylisted = self.seen.ask(client, &from, &to, host.wall());
                self.say(host, asker, Say::Greylist(greylisted));
            }
            Ask::Delegate { server, attributes } => {
                self.policy.ask(host, asker, &server, &attributes);
                self.tell_policy(host);
            }
        }
    }

    fn hear_resolver(&mut self, host: &mut Host) {
        // What was asked of its predecessor comes to nothing; ids never repeat, so the order is free.
        self.miss_resolver(host);
        while let Some((answer, _)) = self.resolver.receive(host) {
            self.resolved(host, answer.id, answer.result);
        }
    }

    fn resolved(
        &mut self,
        host: &mut Host,
        id: RequestId,
        result: Result<resolve::Records, resolve::DnsError>,
    ) {
        if id > LISTING_IDS {
            let actions = self.listing.heard(id, result, host.now());
            self.listed(host, actions);
        } else {
            let actions = self.naming.heard(id, result);
            self.named(host, actions);
        }
    }

    fn miss_resolver(&mut self, host: &mut Host) {
        if self.resolver.take_lost() {
            let lost = self.naming.resolver_lost();
            self.named(host, lost);
            let lost = self.listing.resolver_lost();
            self.listed(host, lost);
        }
    }

    fn forget_lost(&mut self, host: &mut Host, place: usize) {
        if self.askers.take_lost(place) {
            self.forget(host, place);
        }
    }

    fn forget(&mut self, host: &Host, place: usize) {
        let gone = |(asker, _): &Asker| *asker == place;
        self.naming.forget(gone);
        self.listing.forget(gone);
        self.waiting.forget(gone);
        self.policy.forget(gone);
        self.leases.forget(host.now().saturating_duration_since(self.begun).as_secs(), gone);
    }

    fn named(&mut self, host: &mut Host, actions: Vec<naming::Action<Asker>>) {
        for action in actions {
            match action {
                naming::Action::Ask(id, query) => self.ask(host, id, query),
                naming::Action::Answer(asker, name) => {
                    let facts = self.waiting.named(&asker, name);
                    self.known(host, asker, facts);
                }
            }
        }
    }

    fn listed(&mut self, host: &mut Host, actions: Vec<listing::Action<Asker>>) {
        for action in actions {
            match action {
                listing::Action::Ask(id, query) => self.ask(host, id, query),
                listing::Action::Answer(asker, score, lists) => {
                    let facts = self.waiting.listed(&asker, score, lists);
                    self.known(host, asker, facts);
                }
                listing::Action::Complain(list, why) => {
                    host.note(Level::Warning, &format!("the list {list} counts nothing now: {why}"));
                }
            }
        }
    }

    fn ask(&mut self, host: &mut Host, id: RequestId, query: resolve::Query) {
        let said =
            !self.resolver.is_congested() && self.resolver.send(host, &resolve::Question { id, query });
        if !said {
            let why = resolve::DnsError::Temporary("the resolver is not there".into());
            self.resolved(host, id, Err(why));
        }
    }

    fn known(&mut self, host: &mut Host, asker: Asker, facts: Option<ClientFacts>) {
        if let Some(facts) = facts {
            self.say(host, asker, Say::Client(facts));
        }
    }

    /// What policy servers answered goes to those who asked.
    fn tell_policy(&mut self, host: &mut Host) {
        for (asker, said) in self.policy.take_done() {
            if let Err(why) = &said {
                host.note(Level::Warning, &format!("a policy server: {why}"));
            }
            self.say(host, asker, Say::Delegated(said));
        }
    }

    /// An asker that is gone needs no answer.
    fn say(&mut self, host: &mut Host, (place, id): Asker, say: Say) {
        let _ = self.askers.send(host, place, &Answer { id, say });
    }
}
