//! The program over its links: a worker asks, a resolver in the test's hands answers.

#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mio::{Events, Poll, Token, Waker};
use postern_address::Domain;
use postern_config::{Greylist, Limits, List, VerifyPart};
use postern_daemon::{Host, Program};
use postern_event::{Log, LogKind};
use postern_ipc::resolve::{self, Query, RecordData, Records};
use postern_ipc::smtpd_verify::{Answer, Ask, ClientName, Greylisted, Lease, Measure, Question, Say};
use postern_ipc::supervise::Handle;
use postern_ipc::{Link, Peer, Role, blocking};
use postern_verify::Verify;

const WORKER: Peer = Peer { role: Role::Smtpd, instance: 3 };

struct Rig {
    poll: Poll,
    host: Host,
    program: Verify,
    worker: Link<Question, Answer>,
    resolver: Link<resolve::Answer, resolve::Question>,
}

impl Rig {
    fn new() -> Self {
        Self::with(Vec::new(), Greylist::default(), None)
    }

    fn with(lists: Vec<List>, greylist: Greylist, directory: Option<&Path>) -> Self {
        let poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), Token(1)).unwrap());
        let log = Log::new(std::fs::File::create("/dev/null").unwrap().into(), LogKind::Text, "verify");
        let registry = poll.registry().try_clone().unwrap();
        let mut host = Host::new(Peer::only(Role::Verify), log, false, registry, waker);
        let (worker, its_end) = blocking::pair().unwrap();
        let (resolver, end) = blocking::pair().unwrap();
        let mut handles =
            vec![(Handle::Link(WORKER), its_end), (Handle::Link(Peer::only(Role::Resolver)), end)];
        if let Some(directory) = directory {
            handles.push((Handle::Greylist, std::fs::File::open(directory).unwrap().into()));
        }
        let config = VerifyPart {
            hostname: Domain::parse("mx.test").unwrap(),
            limits: Limits::default(),
            lists,
            greylist,
            servers: Vec::new(),
        };
        let program = Verify::start(&mut host, config, handles).unwrap();
        Self { poll, host, program, worker: Link::new(worker), resolver: Link::new(resolver) }
    }

    fn ask(&mut self, id: u64, client: &str) {
        let client = client.parse().unwrap();
        let ask = Ask::Begin { client, listener: 0, counted: false, listed: false };
        self.worker.send(&Question { id, ask }).unwrap();
    }

    fn say_to(&mut self, id: u64, ask: Ask) {
        self.worker.send(&Question { id, ask }).unwrap();
    }

    /// The next answer, whatever it is.
    fn heard(&mut self) -> Answer {
        loop {
            if let Some((answer, _)) = self.worker.receive().unwrap() {
                return answer;
            }
            self.turn();
        }
    }

    fn turn(&mut self) {
        let mut events = Events::with_capacity(64);
        self.poll.poll(&mut events, Some(Duration::from_secs(30))).unwrap();
        assert!(!events.is_empty(), "nothing happens");
        self.host.tick();
        for event in &events {
            self.program.ready(&mut self.host, event.token(), event);
        }
        let _ = self.program.turn(&mut self.host);
        self.program.flush(&mut self.host);
    }

    fn question(&mut self) -> resolve::Question {
        loop {
            if let Some((question, _)) = self.resolver.receive().unwrap() {
                return question;
            }
            self.turn();
        }
    }

    fn say(&mut self, id: u64, data: RecordData) {
        let result = Ok(Records { data, secure: false, ttl: 60 });
        self.resolver.send(&resolve::Answer { id, result }).unwrap();
    }

    fn answer(&mut self) -> (u64, ClientName) {
        loop {
            if let Some((answer, _)) = self.worker.receive().unwrap() {
                let Say::Client(facts) = answer.say else { panic!("{answer:?}") };
                return (answer.id, facts.name);
            }
            self.turn();
        }
    }
}

#[test]
fn a_name_is_found_and_confirmed() {
    let mut rig = Rig::new();
    let name = Domain::parse("client.test").unwrap();
    rig.ask(9, "192.0.2.1");
    let ptr = rig.question();
    assert_eq!(ptr.query, Query::Ptr("192.0.2.1".parse().unwrap()));
    rig.say(ptr.id, RecordData::Ptr(vec![name.clone()]));
    let addresses = rig.question();
    assert_eq!(addresses.query, Query::Addresses(name.clone()));
    rig.say(addresses.id, RecordData::Addresses(vec!["192.0.2.1".parse().unwrap()]));
    assert_eq!(rig.answer(), (9, ClientName::Confirmed(name)));
    rig.ask(10, "127.0.0.1");
    assert_eq!(rig.answer(), (10, ClientName::Unknown));
}

#[test]
fn without_a_resolver_nobody_waits() {
    let mut rig = Rig::new();
    rig.ask(1, "192.0.2.1");
    let _ = rig.question();
    let (ours, theirs) = blocking::pair().unwrap();
    drop(std::mem::replace(&mut rig.resolver, Link::new(ours)));
    assert_eq!(rig.answer(), (1, ClientName::Unavailable));
    // None is there yet, and then its successor is.
    rig.ask(2, "192.0.2.1");
    assert_eq!(rig.answer(), (2, ClientName::Unavailable));
    rig.program.linked(&mut rig.host, Peer::only(Role::Resolver), theirs);
    rig.ask(3, "192.0.2.1");
    let ptr = rig.question();
    rig.say(ptr.id, RecordData::Ptr(Vec::new()));
    assert_eq!(rig.answer(), (3, ClientName::Unknown));
}

#[test]
fn a_new_worker_gets_no_answer_of_the_old_one() {
    let mut rig = Rig::new();
    rig.ask(1, "192.0.2.1");
    let ptr = rig.question();
    let (ours, theirs) = blocking::pair().unwrap();
    rig.worker = Link::new(ours);
    rig.program.linked(&mut rig.host, WORKER, theirs);
    rig.say(ptr.id, RecordData::Ptr(vec![Domain::parse("client.test").unwrap()]));
    rig.ask(1, "127.0.0.1");
    assert_eq!(rig.answer(), (1, ClientName::Unknown));
    assert!(rig.worker.receive().unwrap().is_none());
}

/// A session that is counted, of a client on a loopback address: its lease, then what is known of it.
fn begin(rig: &mut Rig, id: u64) -> Say {
    let client = "127.0.0.9".parse().unwrap();
    rig.say_to(id, Ask::Begin { client, listener: 0, counted: true, listed: false });
    let answer = rig.heard();
    assert_eq!(answer.id, id);
    if matches!(answer.say, Say::Lease(Ok(_))) {
        assert!(matches!(rig.heard().say, Say::Client(_)));
    }
    answer.say
}

#[test]
fn sessions_end_with_their_worker() {
    let mut rig = Rig::new();
    for id in 0..50 {
        assert_eq!(begin(&mut rig, id), Say::Lease(Ok(Lease::UNLIMITED)));
    }
    let Say::Lease(Err(exceeded)) = begin(&mut rig, 50) else { panic!("51 sessions") };
    assert_eq!((exceeded.measure, exceeded.count, exceeded.limit), (Measure::Sessions, 51, 50));
    rig.say_to(7, Ask::End { session: 7, left: Lease::UNLIMITED });
    assert_eq!(begin(&mut rig, 51), Say::Lease(Ok(Lease::UNLIMITED)));
    assert!(matches!(begin(&mut rig, 52), Say::Lease(Err(_))));
    // Its successor has none.
    let (ours, theirs) = blocking::pair().unwrap();
    rig.worker = Link::new(ours);
    rig.program.linked(&mut rig.host, WORKER, theirs);
    for id in 0..50 {
        assert_eq!(begin(&mut rig, id), Say::Lease(Ok(Lease::UNLIMITED)));
    }
    assert!(matches!(begin(&mut rig, 50), Say::Lease(Err(_))));
}

#[test]
fn name_and_lists_are_told_together() {
    let list = List { name: Domain::parse("zen.test").unwrap(), weight: 3, replies: None };
    let mut rig = Rig::with(vec![list], Greylist::default(), None);
    let client = "192.0.2.1".parse().unwrap();
    rig.say_to(4, Ask::Begin { client, listener: 0, counted: false, listed: true });
    let (ptr, listed) = (rig.question(), rig.question());
    assert_eq!(listed.query, Query::Ipv4(Domain::parse("1.2.0.192.zen.test").unwrap()));
    rig.say(listed.id, RecordData::Addresses(vec!["127.0.0.2".parse().unwrap()]));
    let text = rig.question();
    rig.say(text.id, RecordData::Txt(vec![b"because".to_vec()]));
    rig.say(ptr.id, RecordData::Ptr(Vec::new()));
    let answer = rig.heard();
    let Say::Client(facts) = answer.say else { panic!("{answer:?}") };
    assert_eq!((facts.name, facts.list_score), (ClientName::Unknown, 3));
    assert_eq!(facts.lists[0].text.as_deref(), Some("because"));
}

#[test]
fn the_greylist_outlives_the_program() {
    let directory = tempfile::tempdir().unwrap();
    let greylist = Greylist { enabled: true, delay: Duration::from_secs(1), ..Greylist::default() };
    let ask = || Ask::Greylist {
        client: "192.0.2.1".parse().unwrap(),
        from: postern_address::ReversePath::Null,
        to: postern_address::Mailbox::parse("u@v.test").unwrap(),
    };
    let mut rig = Rig::with(Vec::new(), greylist.clone(), Some(directory.path()));
    rig.say_to(1, ask());
    assert_eq!(rig.heard().say, Say::Greylist(Greylisted::Later(1)));
    let begun = std::time::Instant::now();
    loop {
        rig.say_to(2, ask());
        match rig.heard().say {
            Say::Greylist(Greylisted::Returned(_)) => break,
            say => assert_eq!(say, Say::Greylist(Greylisted::Later(1))),
        }
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
    let _ = rig.program.turn(&mut rig.host);
    drop(rig);
    let mut rig = Rig::with(Vec::new(), greylist, Some(directory.path()));
    rig.say_to(3, ask());
    assert_eq!(rig.heard().say, Say::Greylist(Greylisted::Pass));
}
