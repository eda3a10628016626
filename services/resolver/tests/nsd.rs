//! The DNS side against a real server: nsd with a zone of every shape that mail meets.

#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token, Waker};
use postern_address::Domain;
use postern_config::ResolverPart;
use postern_daemon::{Host, Program};
use postern_event::{Log, LogKind};
use postern_ipc::resolve::{Answer, DnsError, Query, Question, RecordData, Records};
use postern_ipc::supervise::Handle;
use postern_ipc::{Link, Peer, Role, blocking};
use postern_resolver::Resolver;
use postern_resolver::cache::Outcome;
use postern_resolver::upstream::Upstream;

const ZONE: &str = r#"
$ORIGIN test.
$TTL 300
@        IN SOA ns.test. root.test. 1 3600 600 86400 60
@        IN NS  ns.test.
ns       IN A   127.0.0.1
mx       IN MX  20 Backup.mx.test.
mx       IN MX  10 a.mx.test.
mx       IN MX  10 b.mx.test.
a.mx     IN A    192.0.2.1
a.mx     IN AAAA 2001:db8::1
b.mx     IN AAAA 2001:db8::2
backup.mx IN A   192.0.2.3
nomail   IN MX  0 .
alias    IN CNAME alias2.test.
alias2   60 IN CNAME a.mx.test.
dead     IN CNAME nowhere.test.
loop     IN CNAME pool.test.
pool     IN CNAME loop.test.
away     IN CNAME host.elsewhere.test.
notype   IN TXT "here"
odd      IN MX  10 not\ a\ host.test.
long     IN TXT ( "LONG1" "LONG2" "LONG3" "LONG4" "LONG5" )
_25._tcp.a.mx IN TLSA 3 1 1 00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff
"#;

const ELSEWHERE: &str = r#"
$ORIGIN elsewhere.test.
$TTL 300
@        IN SOA ns.test. root.test. 1 3600 600 86400 60
@        IN NS  ns.test.
host     IN A   192.0.2.77
"#;

const REVERSE: &str = r#"
$ORIGIN 2.0.192.in-addr.arpa.
$TTL 300
@        IN SOA ns.test. root.test. 1 3600 600 86400 60
@        IN NS  ns.test.
1        IN PTR a.mx.test.
2        IN CNAME 2.0-31
2.0-31   IN PTR b.mx.test.
3        IN PTR not\ a\ host.test.
"#;

/// A running nsd; it ends with the test.
struct Nsd {
    child: Child,
    address: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Drop for Nsd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Nsd {
    /// None when nsd is not installed, said loudly.
    fn start() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().display().to_string();
        // A port free for both protocols now; nsd cannot choose one itself.
        let tcp = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = tcp.local_addr().unwrap();
        drop(tcp);
        let long: String =
            (1..=5).fold(ZONE.to_owned(), |zone, n| zone.replace(&format!("LONG{n}"), &long_string(n)));
        for (file, text) in [("test", &*long), ("elsewhere", ELSEWHERE), ("reverse", REVERSE)] {
            std::fs::write(directory.path().join(file), text).unwrap();
        }
        let port = address.port();
        let config = format!(
            "server:\n ip-address: 127.0.0.1@{port}\n server-count: 1\n username: \"\"\n chroot: \"\"\n \
             zonesdir: {path}\n database: \"\"\n pidfile: {path}/nsd.pid\n xfrdfile: {path}/xfrd\n \
             xfrdir: {path}\n zonelistfile: {path}/zl\n logfile: {path}/nsd.log\n\
             remote-control:\n control-enable: no\n\
             zone:\n name: test.\n zonefile: test\n\
             zone:\n name: elsewhere.test.\n zonefile: elsewhere\n\
             zone:\n name: 2.0.192.in-addr.arpa.\n zonefile: reverse\n"
        );
        let file = directory.path().join("nsd.conf");
        std::fs::write(&file, config).unwrap();
        let spawned = ["nsd", "/usr/sbin/nsd"].iter().find_map(|program| {
            let child = Command::new(program).arg("-d").arg("-c").arg(&file).stdout(Stdio::null()).spawn();
            match child {
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                child => Some(child.unwrap()),
            }
        });
        let Some(child) = spawned else {
            eprintln!("SKIPPED: nsd not installed");
            return None;
        };
        let nsd = Self { child, address, _directory: directory };
        nsd.wait_until_it_answers();
        Some(nsd)
    }

    fn wait_until_it_answers(&self) {
        let probe = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        probe.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let query = b"\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04test\x00\x00\x06\x00\x01";
        for _ in 0..200 {
            probe.send_to(query, self.address).unwrap();
            if probe.recv(&mut [0; 512]).is_ok() {
                return;
            }
        }
        panic!("nsd does not answer on {}", self.address);
    }
}

fn long_string(n: usize) -> String {
    char::from(b'a' + n as u8).to_string().repeat(250)
}

/// The DNS thread as the program drives it.
struct Asker {
    upstream: Upstream,
    poll: Poll,
}

impl Asker {
    fn new(servers: Vec<SocketAddr>) -> Self {
        let poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), Token(0)).unwrap());
        Self { upstream: Upstream::start(servers, waker).unwrap(), poll }
    }

    fn ask(&mut self, query: Query) -> Outcome {
        assert!(self.upstream.ask(query.clone()));
        let mut events = Events::with_capacity(8);
        loop {
            if let Ok((answered, outcome)) = self.upstream.answers.try_recv() {
                assert_eq!(answered, query);
                return outcome;
            }
            self.poll.poll(&mut events, Some(Duration::from_secs(30))).unwrap();
            assert!(!events.is_empty(), "no answer to {query:?}");
        }
    }

    fn data(&mut self, query: Query) -> RecordData {
        let Outcome { result, .. } = self.ask(query.clone());
        result.unwrap_or_else(|error| panic!("{query:?}: {error:?}")).data
    }
}

fn domain(text: &str) -> Domain {
    Domain::parse(text).unwrap()
}

#[test]
fn every_shape_that_mail_meets() {
    let Some(nsd) = Nsd::start() else { return };
    let mut dns = Asker::new(vec![nsd.address]);

    let hosts = |names: &[(u16, &str)]| {
        RecordData::Mx(names.iter().map(|(preference, name)| (*preference, Some(domain(name)))).collect())
    };
    let by_preference = hosts(&[(10, "a.mx.test"), (10, "b.mx.test"), (20, "backup.mx.test")]);
    assert_eq!(dns.data(Query::Mx(domain("mx.test"))), by_preference);
    assert_eq!(dns.data(Query::Mx(domain("nomail.test"))), RecordData::Mx(vec![(0, None)]));
    let odd = dns.ask(Query::Mx(domain("odd.test"))).result;
    assert!(matches!(odd, Err(DnsError::Temporary(_))), "{odd:?}");

    let addresses =
        |all: &[&str]| RecordData::Addresses(all.iter().map(|text| text.parse().unwrap()).collect());
    let both = addresses(&["2001:db8::1", "192.0.2.1"]);
    assert_eq!(dns.data(Query::Addresses(domain("a.mx.test"))), both);
    assert_eq!(dns.data(Query::Addresses(domain("b.mx.test"))), addresses(&["2001:db8::2"]));
    let Outcome { result, keep } = dns.ask(Query::Addresses(domain("alias.test")));
    assert_eq!(result, Ok(Records { data: both, secure: false, ttl: 60 }));
    assert_eq!(keep, 60);
    assert_eq!(dns.data(Query::Addresses(domain("away.test"))), addresses(&["192.0.2.77"]));

    let text = dns.data(Query::Txt(domain("long.test")));
    assert_eq!(text, RecordData::Txt(vec![(1..=5).map(long_string).collect::<String>().into_bytes()]));

    let name = |text: &str| RecordData::Ptr(vec![domain(text)]);
    assert_eq!(dns.data(Query::Ptr("192.0.2.1".parse().unwrap())), name("a.mx.test"));
    assert_eq!(dns.data(Query::Ptr("192.0.2.2".parse().unwrap())), name("b.mx.test"));
    assert_eq!(dns.ask(Query::Ptr("192.0.2.3".parse().unwrap())).result, Err(DnsError::NoRecords));

    let RecordData::Tlsa(tlsa) = dns.data(Query::Tlsa { host: domain("a.mx.test"), port: 25 }) else {
        panic!("no TLSA");
    };
    assert_eq!(tlsa.len(), 1);
    assert_eq!((tlsa[0].0, tlsa[0].1, tlsa[0].2, tlsa[0].3.len()), (3, 1, 1, 32));

    // Absences, kept for as long as the SOA record says (60 s).
    let absent = |why| Outcome { result: Err(why), keep: 60 };
    assert_eq!(dns.ask(Query::Mx(domain("missing.test"))), absent(DnsError::NoSuchName));
    assert_eq!(dns.ask(Query::Addresses(domain("missing.test"))), absent(DnsError::NoSuchName));
    assert_eq!(dns.ask(Query::Mx(domain("notype.test"))), absent(DnsError::NoRecords));
    assert_eq!(dns.ask(Query::Addresses(domain("notype.test"))), absent(DnsError::NoRecords));
    assert_eq!(dns.ask(Query::Addresses(domain("dead.test"))).result, Err(DnsError::NoSuchName));
    let looping = dns.ask(Query::Addresses(domain("loop.test"))).result;
    assert!(matches!(looping, Err(DnsError::Temporary(_))), "{looping:?}");
    // Not this server's: REFUSED is no answer.
    let refused = dns.ask(Query::Mx(domain("example.org"))).result;
    assert!(
        matches!(&refused, Err(DnsError::Temporary(why)) if why.contains("refused") || why.contains("Refused")),
        "{refused:?}"
    );
    // A name of 255 characters fits a Domain but no DNS message.
    let too_long = domain(&["x".repeat(63), "x".repeat(63), "x".repeat(63), "x".repeat(63)].join("."));
    assert_eq!(dns.ask(Query::Txt(too_long)).result, Err(DnsError::NoSuchName));
}

#[test]
fn a_dead_server_is_passed_over() {
    let Some(nsd) = Nsd::start() else { return };
    // Bound and never read: silence, the worst case.
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut dns = Asker::new(vec![silent.local_addr().unwrap(), nsd.address]);
    let exchangers = dns.data(Query::Mx(domain("nomail.test")));
    assert_eq!(exchangers, RecordData::Mx(vec![(0, None)]));
    dns.upstream.use_servers(vec![silent.local_addr().unwrap()]);
    let begun = Instant::now();
    let outcome = dns.ask(Query::Mx(domain("mx.test")));
    assert!(matches!(outcome.result, Err(DnsError::Temporary(_))), "{outcome:?}");
    assert!(begun.elapsed() < Duration::from_secs(12));
    assert_eq!(outcome.keep, 0);
}

/// The whole program, with neighbours but without master and sandbox.
struct Rig {
    poll: Poll,
    host: Host,
    program: Resolver,
}

impl Rig {
    fn new(servers: Vec<SocketAddr>, askers: &[Role]) -> (Self, Vec<Link<Question, Answer>>) {
        let poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), Token(1)).unwrap());
        let log = Log::new(std::fs::File::create("/dev/null").unwrap().into(), LogKind::Text, "resolver");
        let registry = poll.registry().try_clone().unwrap();
        let mut host = Host::new(Peer::only(Role::Resolver), log, false, registry, waker);
        let (mut links, mut handles) = (Vec::new(), Vec::new());
        for role in askers {
            let (ours, theirs) = blocking::pair().unwrap();
            links.push(Link::new(ours));
            handles.push((Handle::Link(Peer::only(*role)), theirs));
        }
        let program = Resolver::start(&mut host, ResolverPart { servers }, handles).unwrap();
        (Self { poll, host, program }, links)
    }

    fn turn(&mut self) {
        let mut events = Events::with_capacity(64);
        self.poll.poll(&mut events, Some(Duration::from_secs(30))).unwrap();
        assert!(!events.is_empty(), "nothing happens");
        self.host.tick();
        for event in events.iter().filter(|event| event.token() != Token(1)) {
            self.program.ready(&mut self.host, event.token(), event);
        }
        let _ = self.program.turn(&mut self.host);
        self.program.flush(&mut self.host);
    }

    fn hear(&mut self, link: &mut Link<Question, Answer>, count: usize) -> Vec<Answer> {
        let mut answers = Vec::new();
        while answers.len() < count {
            self.turn();
            link.flush().unwrap();
            while let Some((answer, _)) = link.receive().unwrap() {
                answers.push(answer);
            }
        }
        answers
    }

    fn counter(&self, name: &str) -> u64 {
        self.program.counters().into_iter().find(|(key, _)| key == name).unwrap().1
    }
}

#[test]
fn one_cache_for_all_who_ask() {
    let Some(nsd) = Nsd::start() else { return };
    let (mut rig, mut links) = Rig::new(vec![nsd.address], &[Role::DeliveryRemote, Role::Verify]);
    let mx = Query::Mx(domain("mx.test"));
    for id in 0..500 {
        links[0].send(&Question { id, query: mx.clone() }).unwrap();
    }
    let mut answers = rig.hear(&mut links[0], 500);
    answers.sort_by_key(|answer| answer.id);
    assert!(answers.iter().map(|answer| answer.id).eq(0..500));
    assert!(answers.iter().all(|answer| answer.result.is_ok()));
    links[1].send(&Question { id: 7, query: mx }).unwrap();
    assert_eq!(rig.hear(&mut links[1], 1)[0].id, 7);
    links[1].send(&Question { id: 8, query: Query::Mx(domain("missing.test")) }).unwrap();
    assert_eq!(rig.hear(&mut links[1], 1)[0].result, Err(DnsError::NoSuchName));
    assert_eq!((rig.counter("questions"), rig.counter("kept")), (502, 2));
    // Other servers, other answers.
    rig.program.reload(&mut rig.host, ResolverPart { servers: vec![nsd.address] });
    assert_eq!(rig.counter("kept"), 0);
}

#[test]
fn a_successor_hears_nothing_of_its_predecessor() {
    // Nobody answers, so the first question is under way for long.
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (mut rig, mut links) = Rig::new(vec![silent.local_addr().unwrap()], &[Role::DeliveryRemote]);
    links[0].send(&Question { id: 1, query: Query::Mx(domain("mx.test")) }).unwrap();
    rig.turn();
    assert_eq!(rig.counter("under way"), 1);
    let (ours, theirs) = blocking::pair().unwrap();
    let mut successor = Link::<Question, Answer>::new(ours);
    rig.program.linked(&mut rig.host, Peer::only(Role::DeliveryRemote), theirs);
    // Asked to stop, it waits for what is under way; the answer is for nobody.
    rig.program.stop(&mut rig.host);
    while !rig.host.is_finished() {
        rig.turn();
    }
    assert!(successor.receive().unwrap().is_none());
}
