//! Which servers to try, in which order (RFC 5321 §5.1, RFC 7505). Decisions only: the shell asks the
//! resolver and connects as [`Route::step`] says, and tells what came of it.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use postern_address::Domain;
use postern_ipc::queue_agent::{LmtpServer, Nexthop};
use postern_ipc::resolve::{DnsError, RecordData, Records};
use postern_smtp::{EnhancedCode, Reply};

/// Most exchangers of one domain that one attempt looks at.
const HOSTS_MAX: usize = 5;

/// Most addresses that one attempt tries.
const ADDRESSES_MAX: usize = 10;

/// Most addresses of one exchanger, so that its neighbours are tried too.
const ADDRESSES_OF_ONE: usize = 5;

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask for the domain's MX records and say what came to [`Route::answered`].
    AskMx(Domain),
    /// Ask for the host's addresses, likewise.
    AskAddresses(Domain),
    /// Connect; if that fails or the server does not want us, say so to [`Route::failed`].
    Connect(Candidate),
    /// Nothing is left to try.
    GiveUp(Refusal),
}

/// A server to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its name, or its address where there is none.
    pub name: String,
    /// Where it listens.
    pub endpoint: Endpoint,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// By TCP.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(String),
}

/// Why nobody took the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Never try again.
    pub permanent: bool,
    /// Why.
    pub reply: Reply,
    /// In the server's words.
    pub remote: bool,
    /// The destination as a whole is at fault, at least for now.
    pub destination_down: bool,
    /// `relay=`: the server that was tried last.
    pub relay: Option<String>,
}

/// The way to one destination, for one attempt.
#[derive(Clone, Debug)]
pub struct Route {
    ourselves: Domain,
    /// The domain whose MX records lead the way.
    by_mx: Option<Domain>,
    seed: u64,
    port: u16,
    ask: Ask,
    hosts: VecDeque<Domain>,
    candidates: VecDeque<Candidate>,
    postponed: VecDeque<Candidate>,
    tried: usize,
    /// What is said when nothing is left, and how much it weighs.
    reason: Option<(Weight, Refusal)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Ask {
    Nothing,
    Mx(Domain),
    Addresses(Domain),
}

/// Of several reasons the one that gives most hope decides, so that nothing bounces which may yet arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Weight {
    Permanent,
    Dns,
    Server,
}

impl Candidate {
    /// `relay=` in the log: `name[address]:port`, `name[/path]`.
    pub fn relay(&self) -> String {
        match &self.endpoint {
            Endpoint::Tcp(address) => format!("{}[{}]:{}", self.name, address.ip(), address.port()),
            Endpoint::Unix(path) => format!("{}[{path}]", self.name),
        }
    }

    /// The server's address, if it is reached by TCP.
    pub fn server(&self) -> Option<SocketAddr> {
        match self.endpoint {
            Endpoint::Tcp(address) => Some(address),
            Endpoint::Unix(_) => None,
        }
    }

    /// As in `connect to …`: a Unix socket's path says all.
    pub fn describe(&self) -> String {
        match &self.endpoint {
            Endpoint::Tcp(_) => self.relay(),
            Endpoint::Unix(path) => path.clone(),
        }
    }
}

impl Route {
    /// The way to an SMTP server. `seed` orders exchangers of one preference.
    pub fn smtp(nexthop: &Nexthop, ourselves: &Domain, seed: u64) -> Self {
        let mut route = Self::empty(ourselves, seed);
        match nexthop {
            Nexthop::Mx(domain) => {
                route.by_mx = Some(domain.clone());
                route.ask = Ask::Mx(domain.clone());
            }
            Nexthop::Host { host, port } => route.host(host, *port),
            Nexthop::Address(address) => route.address(*address),
        }
        route
    }

    /// The way to an LMTP server: MX records have no say.
    pub fn lmtp(server: &LmtpServer, ourselves: &Domain, seed: u64) -> Self {
        let mut route = Self::empty(ourselves, seed);
        match server {
            LmtpServer::Unix(path) => {
                let name = ourselves.as_str().to_owned();
                route.candidates.push_back(Candidate { name, endpoint: Endpoint::Unix(path.clone()) });
            }
            LmtpServer::Tcp(Nexthop::Mx(host)) => route.host(host, 24),
            LmtpServer::Tcp(Nexthop::Host { host, port }) => route.host(host, *port),
            LmtpServer::Tcp(Nexthop::Address(address)) => route.address(*address),
        }
        route
    }

    /// What to do now.
    pub fn step(&mut self) -> Step {
        match &self.ask {
            Ask::Mx(domain) => return Step::AskMx(domain.clone()),
            Ask::Addresses(host) => return Step::AskAddresses(host.clone()),
            Ask::Nothing => {}
        }
        if self.tried < ADDRESSES_MAX {
            if let Some(candidate) = self.candidates.pop_front() {
                self.tried += 1;
                return Step::Connect(candidate);
            }
            if let Some(host) = self.hosts.pop_front() {
                self.ask = Ask::Addresses(host.clone());
                return Step::AskAddresses(host);
            }
            if let Some(candidate) = self.postponed.pop_front() {
                self.tried += 1;
                return Step::Connect(candidate);
            }
        }
        let reason = self.reason.clone().map(|(_, refusal)| refusal);
        Step::GiveUp(reason.unwrap_or_else(|| unroutable("no server to try")))
    }

    /// Puts a candidate that [`Route::step`] gave behind all others, because it is likely not to answer:
    /// waiting for one dead server of two would make every message slow. Given back when there is
    /// nothing else to try.
    pub fn postpone(&mut self, candidate: Candidate) -> Result<(), Candidate> {
        if self.candidates.is_empty() && self.hosts.is_empty() {
            return Err(candidate);
        }
        self.tried -= 1;
        self.postponed.push_back(candidate);
        Ok(())
    }

    /// A candidate that [`Route::step`] gave was not tried: it is the next one again.
    pub fn put_back(&mut self, candidate: Candidate) {
        self.tried -= 1;
        self.candidates.push_front(candidate);
    }

    /// The resolver's answer to what was asked.
    pub fn answered(&mut self, answer: Result<Records, DnsError>) {
        match std::mem::replace(&mut self.ask, Ask::Nothing) {
            Ask::Mx(domain) => self.exchangers(domain, answer),
            Ask::Addresses(host) => self.addresses(host, answer),
            Ask::Nothing => {}
        }
    }

    /// The candidate could not be reached, or would not have us (whatever it said: the next may).
    pub fn failed(&mut self, candidate: &Candidate, reply: Reply, remote: bool) {
        // 521: this host never takes mail (RFC 7504), 556 likewise. Any other refusal to talk may pass.
        let permanent = remote && matches!(reply.code, 521 | 556);
        let weight = if permanent { Weight::Permanent } else { Weight::Server };
        let relay = Some(candidate.relay());
        // What is tried again must not be logged and bounced as if it were final.
        let (reply, remote) = match reply.is_permanent() && !permanent {
            true => (not_talking(&reply), false),
            false => (reply, remote),
        };
        self.because(weight, Refusal { permanent, reply, remote, destination_down: true, relay });
    }

    /// The candidate calls itself by our name: what an MX record names is ourselves, under another name or
    /// at an address of ours. What is behind it is no better (RFC 5321 §5.1). Only routes by MX records
    /// are held to this: a route to a host is the operator's word.
    pub fn is_ourselves(&mut self, candidate: &Candidate, its_name: &str) -> bool {
        let Some(domain) = self.by_mx.clone().filter(|_| is_name(its_name, &self.ourselves)) else {
            return false;
        };
        self.hosts.clear();
        self.candidates.clear();
        self.postponed.clear();
        self.looping(&domain);
        if let Some((Weight::Permanent, refusal)) = &mut self.reason {
            refusal.relay = Some(candidate.relay());
        }
        true
    }

    fn empty(ourselves: &Domain, seed: u64) -> Self {
        Self {
            ourselves: ourselves.clone(),
            by_mx: None,
            seed,
            port: 25,
            ask: Ask::Nothing,
            hosts: VecDeque::new(),
            candidates: VecDeque::new(),
            postponed: VecDeque::new(),
            tried: 0,
            reason: None,
        }
    }

    fn host(&mut self, host: &Domain, port: u16) {
        (self.port, self.ask) = (port, Ask::Addresses(host.clone()));
    }

    fn address(&mut self, address: SocketAddr) {
        let candidate = Candidate { name: address.ip().to_string(), endpoint: Endpoint::Tcp(address) };
        self.candidates.push_back(candidate);
    }

    fn because(&mut self, weight: Weight, refusal: Refusal) {
        if self.reason.as_ref().is_none_or(|(before, _)| *before <= weight) {
            self.reason = Some((weight, refusal));
        }
    }

    fn exchangers(&mut self, domain: Domain, answer: Result<Records, DnsError>) {
        let mut records = match answer.map(|records| records.data) {
            Ok(RecordData::Mx(records)) => records,
            Ok(_) => return self.temporary(&domain, "MX", "the answer is of another kind"),
            Err(DnsError::Temporary(why)) => return self.temporary(&domain, "MX", &why),
            Err(DnsError::NoSuchName) => return self.because(Weight::Permanent, no_such_domain(&domain)),
            // The domain is its own exchanger (RFC 5321 §5.1).
            Err(DnsError::NoRecords) if domain == self.ourselves => return self.looping(&domain),
            Err(DnsError::NoRecords) => return self.hosts.push_back(domain),
        };
        if records.iter().all(|(_, host)| host.is_none()) {
            return self.because(Weight::Permanent, takes_no_mail(&domain));
        }
        self.shuffle(&mut records);
        records.sort_by_key(|(preference, _)| *preference);
        // We are an exchanger ourselves: only better ones come into question, or mail would go in circles
        // (RFC 5321 §5.1).
        let us = records.iter().find(|(_, host)| host.as_ref() == Some(&self.ourselves));
        let worse = us.map_or(u32::MAX, |(preference, _)| u32::from(*preference));
        let mut hosts: Vec<Domain> = Vec::new();
        for (_, host) in records.into_iter().filter(|(preference, _)| u32::from(*preference) < worse) {
            hosts.extend(host.filter(|host| !hosts.contains(host)));
        }
        if hosts.is_empty() {
            return self.looping(&domain);
        }
        hosts.truncate(HOSTS_MAX);
        self.hosts = hosts.into();
    }

    fn addresses(&mut self, host: Domain, answer: Result<Records, DnsError>) {
        let addresses = match answer.map(|records| records.data) {
            Ok(RecordData::Addresses(addresses)) => addresses,
            Ok(_) => return self.temporary(&host, "A", "the answer is of another kind"),
            Err(DnsError::Temporary(why)) => return self.temporary(&host, "A", &why),
            Err(DnsError::NoSuchName) => {
                let text = format!("host {host} does not exist");
                return self.because(Weight::Permanent, unroutable(&text));
            }
            Err(DnsError::NoRecords) => {
                let text = format!("host {host} has no address");
                return self.because(Weight::Permanent, unroutable(&text));
            }
        };
        let most = if self.hosts.is_empty() { ADDRESSES_MAX } else { ADDRESSES_OF_ONE };
        for address in alternating(addresses).into_iter().take(most) {
            let endpoint = Endpoint::Tcp(SocketAddr::new(address, self.port));
            self.candidates.push_back(Candidate { name: host.as_str().to_owned(), endpoint });
        }
    }

    fn temporary(&mut self, name: &Domain, kind: &str, why: &str) {
        let text = format!("name service error for name={name} type={kind}: {why}");
        let refusal = Refusal {
            permanent: false,
            reply: Reply::new(451, EnhancedCode::new(4, 4, 3), text),
            remote: false,
            destination_down: true,
            relay: None,
        };
        self.because(Weight::Dns, refusal);
    }

    fn looping(&mut self, domain: &Domain) {
        let reply =
            Reply::new(554, EnhancedCode::new(5, 4, 6), format!("mail for {domain} loops back to myself"));
        self.because(Weight::Permanent, permanent(reply));
    }

    /// Spreads load over exchangers of one preference (RFC 5321 §5.1).
    fn shuffle<T>(&mut self, items: &mut [T]) {
        for n in (1..items.len()).rev() {
            // splitmix64: enough to spread load, no secret.
            self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.seed;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            items.swap(n, ((z ^ (z >> 31)) % (n as u64 + 1)) as usize);
        }
    }
}

fn is_name(text: &str, domain: &Domain) -> bool {
    text.strip_suffix('.').unwrap_or(text).eq_ignore_ascii_case(domain.as_str())
}

/// IPv6 and IPv4 in turn: a family that leads nowhere costs every second try, not all of them.
fn alternating(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let (six, four): (Vec<IpAddr>, Vec<IpAddr>) = addresses.into_iter().partition(IpAddr::is_ipv6);
    let (mut six, mut four) = (six.into_iter(), four.into_iter());
    let mut mixed = Vec::new();
    loop {
        let before = mixed.len();
        mixed.extend(six.next().into_iter().chain(four.next()));
        if mixed.len() == before {
            return mixed;
        }
    }
}

/// A refusal before any recipient was named, made one that passes: the subject stays.
fn not_talking(reply: &Reply) -> Reply {
    let subject = reply.enhanced.map(|code| code.to_string());
    let enhanced = subject.and_then(|code| EnhancedCode::parse(&format!("4{}", code.get(1..)?)));
    let text = format!("the server refused to talk to us: {reply}");
    Reply::new(451, enhanced.unwrap_or(EnhancedCode::new(4, 3, 0)), text)
}

fn permanent(reply: Reply) -> Refusal {
    Refusal { permanent: true, reply, remote: false, destination_down: false, relay: None }
}

fn unroutable(text: &str) -> Refusal {
    permanent(Reply::new(550, EnhancedCode::new(5, 4, 4), text))
}

fn no_such_domain(domain: &Domain) -> Refusal {
    permanent(Reply::new(550, EnhancedCode::new(5, 1, 2), format!("domain {domain} does not exist")))
}

/// RFC 7505.
fn takes_no_mail(domain: &Domain) -> Refusal {
    let text = format!("domain {domain} does not accept mail (null MX)");
    permanent(Reply::new(556, EnhancedCode::new(5, 1, 10), text))
}

#[cfg(test)]
mod tests;
