//! The second thread: one tokio runtime that asks the servers, hickory below.
//!
//! One pool for each server, because hickory's pool of several does not say which of them answered, and
//! the AD bit counts only from a server we trust; and because it takes one server's SERVFAIL for final.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::Sender;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::xfer::{DnsHandle, FirstAnswer};
use hickory_resolver::net::{DnsError as HickoryError, NetError};
use hickory_resolver::proto::op::{DnsRequestOptions, DnsResponse, Query as DnsQuery, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::{NameServerPool, PoolContext, TlsConfig};
use mio::Waker;
use postern_address::Domain;
use postern_ipc::resolve::{DnsError, Query, RecordData, Records};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use crate::cache::Outcome;
use crate::chain::{self, Chain, Step};

/// Longest that a question may take, aliases and further servers included.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longest that one server may take; hickory repeats a lost UDP packet within it.
const SERVER_PATIENCE: Duration = Duration::from_secs(2);

/// How often the list of servers is gone through.
const ROUNDS: usize = 2;

/// Records merged of which one half failed: the other half may be back soon.
const HALF_TTL: u32 = 30;

/// The way to the thread. Dropping it ends the thread.
#[derive(Debug)]
pub struct Upstream {
    orders: UnboundedSender<Order>,
    /// What the DNS said, in any order; exactly one for each question.
    pub answers: mpsc::Receiver<(Query, Outcome)>,
}

enum Order {
    Ask(Query),
    Servers(Vec<SocketAddr>),
}

impl Upstream {
    /// Starts the thread. Each answer wakes `waker`.
    pub fn start(servers: Vec<SocketAddr>, waker: Arc<Waker>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let (orders, queue) = tokio::sync::mpsc::unbounded_channel();
        let (said, answers) = mpsc::channel();
        thread::Builder::new()
            .name("dns".into())
            .spawn(move || runtime.block_on(serve(servers, queue, said, waker)))?;
        Ok(Self { orders, answers })
    }

    /// Asks. False when the thread is gone.
    #[must_use]
    pub fn ask(&self, query: Query) -> bool {
        self.orders.send(Order::Ask(query)).is_ok()
    }

    /// Asks others from now on.
    pub fn use_servers(&self, servers: Vec<SocketAddr>) {
        // A thread that is gone shows at the next question.
        let _ = self.orders.send(Order::Servers(servers));
    }
}

async fn serve(
    servers: Vec<SocketAddr>,
    mut queue: UnboundedReceiver<Order>,
    said: Sender<(Query, Outcome)>,
    waker: Arc<Waker>,
) {
    let mut servers = Arc::new(Servers::new(&servers));
    while let Some(order) = queue.recv().await {
        let query = match order {
            Order::Servers(list) => {
                servers = Arc::new(Servers::new(&list));
                continue;
            }
            Order::Ask(query) => query,
        };
        let (servers, said, waker) = (Arc::clone(&servers), said.clone(), Arc::clone(&waker));
        tokio::spawn(async move {
            let outcome = match tokio::time::timeout(PATIENCE, servers.resolve(&query)).await {
                Ok(outcome) => outcome,
                Err(_) => failure(format!("no answer within {} s", PATIENCE.as_secs())),
            };
            // Without a receiver or an event loop the program is ending.
            let _ = said.send((query, outcome));
            let _ = waker.wake();
        });
    }
}

struct Server {
    address: SocketAddr,
    pool: NameServerPool<TokioRuntimeProvider>,
    /// Its AD bit counts: nobody sits between us and it.
    trusted: bool,
}

struct Servers(Result<Vec<Server>, String>);

/// One type of records of one name.
struct Found {
    records: Vec<RData>,
    ttl: u32,
    secure: bool,
}

/// Why there are none, and for how long that holds.
struct Lack {
    why: DnsError,
    keep: u32,
}

impl Servers {
    fn new(addresses: &[SocketAddr]) -> Self {
        let mut options = ResolverOpts::default();
        options.timeout = SERVER_PATIENCE;
        options.max_active_requests = 1024; // of one TCP connection; the default of 32 stalls under load
        options.case_randomization = true;
        let tls = match TlsConfig::new() {
            Ok(tls) => tls,
            Err(error) => return Self(Err(format!("cannot set up the DNS client: {error}"))),
        };
        let context = Arc::new(PoolContext::new(options, tls));
        let server = |address: &SocketAddr| {
            let (mut udp, mut tcp) = (ConnectionConfig::udp(), ConnectionConfig::tcp());
            (udp.port, tcp.port) = (address.port(), address.port());
            let config = NameServerConfig::new(address.ip(), true, vec![udp, tcp]);
            let pool =
                NameServerPool::from_config([config], Arc::clone(&context), TokioRuntimeProvider::default());
            Server { address: *address, pool, trusted: address.ip().is_loopback() }
        };
        Self(Ok(addresses.iter().map(server).collect()))
    }

    async fn resolve(&self, query: &Query) -> Outcome {
        match query {
            Query::Mx(domain) => self.one(domain_name(domain), RecordType::MX, chain::mx).await,
            Query::Addresses(host) => self.addresses(host).await,
            Query::Ipv4(name) => self.one(domain_name(name), RecordType::A, chain::ipv4).await,
            Query::Ptr(address) => self.one(Some(Name::from(*address)), RecordType::PTR, chain::ptr).await,
            Query::Txt(domain) => self.one(domain_name(domain), RecordType::TXT, chain::txt).await,
            Query::Tlsa { host, port } => {
                let name = Name::from_ascii(format!("_{port}._tcp.{host}.")).ok();
                self.one(name, RecordType::TLSA, chain::tlsa).await
            }
        }
    }

    async fn one(
        &self,
        name: Option<Name>,
        kind: RecordType,
        read: fn(Vec<RData>) -> Result<RecordData, DnsError>,
    ) -> Outcome {
        match self.walk(name, kind).await {
            Ok(Found { records, ttl, secure }) => {
                let result = read(records).map(|data| Records { data, secure, ttl });
                Outcome { result, keep: ttl }
            }
            Err(Lack { why, keep }) => Outcome { result: Err(why), keep },
        }
    }

    /// Both families at once; IPv6 first, as a host with both would choose (RFC 6724).
    async fn addresses(&self, host: &Domain) -> Outcome {
        let name = domain_name(host);
        let (v6, v4) =
            tokio::join!(self.walk(name.clone(), RecordType::AAAA), self.walk(name, RecordType::A));
        merge(v6, v4)
    }

    /// Follows the name to its records.
    async fn walk(&self, name: Option<Name>, kind: RecordType) -> Result<Found, Lack> {
        // A name over DNS's 255 octets cannot exist.
        let Some(name) = name else { return Err(Lack { why: DnsError::NoSuchName, keep: 0 }) };
        let mut chain = Chain::new(name, kind);
        loop {
            let (response, secure) = self.ask(&chain.name, kind).await?;
            let why = match chain.walk(&response.answers, secure) {
                Step::Found(records) => {
                    return Ok(Found { records, ttl: chain.ttl, secure: chain.secure });
                }
                Step::TooLong => return Err(temporary("too many aliases")),
                Step::Alias | Step::Nothing if response.metadata.response_code == ResponseCode::NXDomain => {
                    DnsError::NoSuchName
                }
                // The server followed the alias for us and found its end without such records.
                Step::Alias if response.negative_ttl().is_some() => DnsError::NoRecords,
                Step::Alias => continue,
                Step::Nothing => DnsError::NoRecords,
            };
            // RFC 2308 §5: for as long as the SOA record says, and not at all without one.
            let keep = response.negative_ttl().map_or(0, |ttl| ttl.min(chain.ttl));
            return Err(Lack { why, keep });
        }
    }

    /// Asks one server after the other for one name. The flag is its AD bit, if that counts.
    async fn ask(&self, name: &Name, kind: RecordType) -> Result<(DnsResponse, bool), Lack> {
        let servers = self.0.as_ref().map_err(|why| temporary(why.clone()))?;
        let mut last = temporary("no DNS server is configured");
        for server in (0..ROUNDS).flat_map(|_| servers) {
            let mut options = DnsRequestOptions::default();
            options.use_edns = true;
            options.edns_payload_len = 1232; // RFC 9715 §3.1
            options.edns_set_dnssec_ok = server.trusted; // only then the answer is worth its signatures
            let query = DnsQuery::query(name.clone(), kind);
            match server.pool.lookup(query, options).first_answer().await {
                Ok(response) => {
                    let secure = server.trusted && response.metadata.authentic_data;
                    return Ok((response, secure));
                }
                Err(error) => match lack(&error) {
                    Ok(lack) => return Err(lack),
                    Err(why) => last = temporary(format!("{}: {why}", server.address)),
                },
            }
        }
        Err(last)
    }
}

/// Merges two families: what one has is good even when the other cannot be had.
fn merge(first: Result<Found, Lack>, second: Result<Found, Lack>) -> Outcome {
    let (mut records, mut ttl, mut secure) = (Vec::new(), u32::MAX, true);
    let mut lacks = Vec::new();
    for half in [first, second] {
        match half {
            Ok(found) => {
                records.extend(found.records);
                ttl = ttl.min(found.ttl);
                secure &= found.secure;
            }
            Err(lack) => {
                let temporary = matches!(lack.why, DnsError::Temporary(_));
                ttl = if temporary { ttl.min(HALF_TTL) } else { ttl };
                lacks.push(lack);
            }
        }
    }
    let addresses = chain::addresses(records);
    if !addresses.is_empty() {
        let data = RecordData::Addresses(addresses);
        return Outcome { result: Ok(Records { data, secure, ttl }), keep: ttl };
    }
    let keep = lacks.iter().map(|lack| lack.keep).min().unwrap_or(0);
    let all_say_no_name = lacks.iter().all(|lack| lack.why == DnsError::NoSuchName);
    let failed = lacks.into_iter().find(|lack| matches!(lack.why, DnsError::Temporary(_)));
    let why = match failed {
        Some(lack) => lack.why,
        None if all_say_no_name => DnsError::NoSuchName,
        None => DnsError::NoRecords,
    };
    Outcome { result: Err(why), keep }
}

/// An absence is an answer; everything else is a failure, in words.
fn lack(error: &NetError) -> Result<Lack, String> {
    let NetError::Dns(HickoryError::NoRecordsFound(none)) = error else {
        return Err(match error {
            NetError::Timeout => "no answer in time".into(),
            NetError::Dns(HickoryError::ResponseCode(code)) => format!("answered {code}"),
            other => other.to_string(),
        });
    };
    let why = match none.response_code {
        ResponseCode::NXDomain => DnsError::NoSuchName,
        ResponseCode::NoError if none.soa.is_none() && none.ns.is_some() => {
            return Err("refers us to other servers: it does not resolve for us".into());
        }
        ResponseCode::NoError => DnsError::NoRecords,
        code => return Err(format!("answered {code}")),
    };
    Ok(Lack { why, keep: none.negative_ttl.unwrap_or(0) })
}

fn domain_name(domain: &Domain) -> Option<Name> {
    // With the final dot, or search domains would take part.
    Name::from_ascii(format!("{domain}.")).ok()
}

fn temporary(why: impl Into<String>) -> Lack {
    Lack { why: DnsError::Temporary(why.into()), keep: 0 }
}

fn failure(why: String) -> Outcome {
    Outcome { result: Err(DnsError::Temporary(why)), keep: 0 }
}

/// The servers of `/etc/resolv.conf`: port 53 always. Without a usable line it is this host's own server,
/// as for the C library.
pub fn system_servers(text: &[u8]) -> Result<Vec<SocketAddr>, String> {
    let config = resolv_conf::Config::parse(text).map_err(|error| error.to_string())?;
    let mut servers: Vec<SocketAddr> =
        config.nameservers.iter().map(|server| SocketAddr::new(IpAddr::from(server), 53)).collect();
    servers.truncate(3); // MAXNS of resolv.conf(5)
    if servers.is_empty() {
        servers.push(SocketAddr::from(([127, 0, 0, 1], 53)));
    }
    Ok(servers)
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::rr::rdata::{A, AAAA};

    use super::*;

    fn found(record: RData, ttl: u32, secure: bool) -> Result<Found, Lack> {
        Ok(Found { records: vec![record], ttl, secure })
    }

    fn lacking(why: DnsError) -> Result<Found, Lack> {
        Err(Lack { why, keep: 77 })
    }

    #[test]
    fn families_are_merged() {
        let (v6, v4) =
            (RData::AAAA(AAAA::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), RData::A(A::new(192, 0, 2, 1)));
        let both = merge(found(v6, 100, true), found(v4.clone(), 60, false));
        let addresses = vec!["2001:db8::1".parse().unwrap(), "192.0.2.1".parse().unwrap()];
        let records = Records { data: RecordData::Addresses(addresses), secure: false, ttl: 60 };
        assert_eq!(both, Outcome { result: Ok(records), keep: 60 });
        let half = merge(lacking(DnsError::Temporary("x".into())), found(v4.clone(), 600, true));
        assert_eq!(half.keep, HALF_TTL);
        assert!(half.result.is_ok_and(|records| records.secure));
        let one = merge(lacking(DnsError::NoRecords), found(v4, 600, true));
        assert_eq!(one.keep, 600);
        let failed = merge(lacking(DnsError::NoSuchName), lacking(DnsError::Temporary("x".into())));
        assert_eq!(failed.result, Err(DnsError::Temporary("x".into())));
        let none = merge(lacking(DnsError::NoSuchName), lacking(DnsError::NoSuchName));
        assert_eq!(none, Outcome { result: Err(DnsError::NoSuchName), keep: 77 });
        let empty = merge(lacking(DnsError::NoRecords), lacking(DnsError::NoSuchName));
        assert_eq!(empty.result, Err(DnsError::NoRecords));
    }

    #[test]
    fn resolv_conf() {
        let text = b"# x\nsearch a.b\nnameserver 192.0.2.1\nnameserver ::1\noptions edns0\n";
        let servers: Vec<String> = system_servers(text).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.0.2.1:53", "[::1]:53"]);
        assert_eq!(system_servers(b"").unwrap(), ["127.0.0.1:53".parse().unwrap()]);
    }
}
