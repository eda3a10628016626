//! The agent, its event loop, and everybody it talks to.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token, Waker};
use postern_address::{Domain, Mailbox, ReversePath};
use postern_config::Delivery;
use postern_daemon::Host;
use postern_event::{Log, LogKind};
use postern_ipc::queue_agent::*;
use postern_ipc::resolve::{Answer, DnsError, Query, Question, RecordData, Records};
use postern_ipc::supervise::Handle;
use postern_ipc::{Link, Peer, Role, blocking};
use postern_smtp::client::Protocol;
use postern_spool::{BodyType, QueueId, Timestamp};

use crate::agent::{Agent, Settings};

pub(super) const QUEUE: Token = Token(2);
const RESOLVER: Token = Token(3);

/// The agent, its event loop and its neighbours.
pub(super) struct Rig {
    poll: Poll,
    pub(super) host: Host,
    pub(super) agent: Agent,
    pub(super) queue: Link<ToAgent, FromAgent>,
    pub(super) resolver: Link<Answer, Question>,
    pub(super) heard: Vec<FromAgent>,
    pub(super) questions: Vec<Question>,
    pub(super) log: std::fs::File,
}

impl Rig {
    pub(super) fn new(protocol: Protocol, change: impl FnOnce(&mut Delivery)) -> Self {
        let poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), Token(1)).unwrap());
        let log = tempfile::tempfile().unwrap();
        let output = Log::new(log.try_clone().unwrap().into(), LogKind::Text, "test");
        let registry = poll.registry().try_clone().unwrap();
        let mut host = Host::new(Peer::only(Role::DeliveryRemote), output, false, registry, waker);
        let mut delivery = Delivery {
            connections: 20,
            jobs: 7,
            connect_timeout: Duration::from_secs(10),
            reply_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(10),
            without: Vec::new(),
        };
        change(&mut delivery);
        let settings = Settings { protocol, hostname: domain("us.test"), delivery };
        let ((ours, theirs), (answers, asks)) = (blocking::pair().unwrap(), blocking::pair().unwrap());
        let handles = vec![
            (Handle::Link(Peer::only(Role::QueueManager)), theirs),
            (Handle::Link(Peer::only(Role::Resolver)), asks),
        ];
        let agent = Agent::start(&mut host, settings, handles);
        let (queue, resolver) = (Link::new(ours), Link::new(answers));
        host.watch(&queue, QUEUE).unwrap();
        host.watch(&resolver, RESOLVER).unwrap();
        let mut rig = Self { poll, host, agent, queue, resolver, heard: vec![], questions: vec![], log };
        rig.until(|rig| rig.heard.first().cloned().filter(|first| *first == FromAgent::Ready { jobs: 7 }));
        rig.heard.clear();
        rig
    }

    /// One turn of the event loop.
    pub(super) fn turn(&mut self) {
        let deadline = self.agent.turn(&mut self.host);
        self.agent.flush(&mut self.host);
        while let Ok(Some((message, _))) = self.queue.receive() {
            self.heard.push(message);
        }
        while let Ok(Some((question, _))) = self.resolver.receive() {
            self.questions.push(question);
        }
        self.host.log.flush();
        let patience =
            deadline.map_or(Duration::from_secs(1), |at| at.saturating_duration_since(Instant::now()));
        let mut events = Events::with_capacity(64);
        // Turned once more than needed at times: the condition of `until` is looked at between turns.
        self.poll.poll(&mut events, Some(patience.min(Duration::from_millis(100)))).unwrap();
        self.host.tick();
        for event in events.iter().filter(|event| event.token().0 >= 16) {
            self.agent.ready(&mut self.host, event.token(), event);
        }
    }

    pub(super) fn until<T>(&mut self, mut what: impl FnMut(&mut Self) -> Option<T>) -> T {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(found) = what(self) {
                return found;
            }
            assert!(Instant::now() < end, "waited in vain; heard {:?}", self.heard);
            self.turn();
        }
    }

    pub(super) fn send(&mut self, job: Job, descriptor: Option<OwnedFd>) {
        self.queue.send_with(&ToAgent::Job(job), descriptor.into_iter().collect()).unwrap();
    }

    /// Waits for the end of a job: what became of each recipient, by index.
    pub(super) fn results(&mut self, number: u64) -> Vec<Outcome> {
        self.until(|rig| rig.heard.contains(&FromAgent::Done { job: number }).then_some(()));
        let mut all = Vec::new();
        self.heard.retain(|message| match message {
            FromAgent::Results { job, results } if *job == number => {
                all.extend(results.clone());
                false
            }
            FromAgent::Done { job } => *job != number,
            _ => true,
        });
        all.sort_by_key(|(index, _)| *index);
        let indices: Vec<u32> = all.iter().map(|(index, _)| *index).collect();
        assert_eq!(indices, (0..all.len() as u32).collect::<Vec<_>>(), "not one result each");
        all.into_iter().map(|(_, outcome)| outcome).collect()
    }

    pub(super) fn counter(&self, name: &str) -> u64 {
        self.agent.counters().iter().find(|(counter, _)| counter == name).unwrap().1
    }

    pub(super) fn answer(&mut self, result: Result<RecordData, DnsError>) -> Query {
        let question = self.until(|rig| rig.questions.pop());
        let result = result.map(|data| Records { data, secure: false, ttl: 1 });
        self.resolver.send(&Answer { id: question.id, result }).unwrap();
        question.query
    }
}

pub(super) fn domain(text: &str) -> Domain {
    Domain::parse(text).unwrap()
}

pub(super) fn job(number: u64, destination: Destination, recipients: &[&str]) -> Job {
    let target = |(n, text): (usize, &&str)| Target {
        index: n as u32,
        recipient: Mailbox::parse(text).unwrap(),
        original: None,
        parameters: Default::default(),
    };
    Job {
        job: number,
        queue_id: QueueId::from_u64(number << 20),
        arrival: Timestamp::now(),
        scheduled: Timestamp::now(),
        reverse_path: ReversePath::parse("<from@a.test>").unwrap(),
        recipients: recipients.iter().enumerate().map(target).collect(),
        destination,
        body: BodyType::EightBit,
        options: Default::default(),
        content: Content::Inline(b"Subject: x\r\n\r\n.dot\r\n".to_vec()),
    }
}

pub(super) fn smtp(address: SocketAddr) -> Destination {
    Destination::Smtp(Nexthop::Address(address))
}

/// What a server saw.
#[derive(Debug, PartialEq)]
pub(super) enum Seen {
    Connected,
    Line(String),
    Content(Vec<u8>),
    Gone,
}

/// How a server answers: the reply to a line; none to close the connection.
pub(super) type Script = fn(&str) -> Option<String>;

pub(super) fn usual(line: &str) -> Option<String> {
    Some(match line.split([' ', ':']).next().unwrap_or_default() {
        "GREET" => "220 mx.test\r\n".into(),
        "EHLO" | "LHLO" => "250-mx.test\r\n250-PIPELINING\r\n250 8BITMIME\r\n".into(),
        "DATA" => "354 go\r\n".into(),
        "RCPT" if line.contains("<no") => "550 5.1.1 who?\r\n".into(),
        "RCPT" if line.contains("<later") => "450 not now\r\n".into(),
        "QUIT" => "221 bye\r\n".into(),
        _ => "250 2.0.0 Ok\r\n".into(),
    })
}

/// Serves one connection by the script, as LMTP when it is greeted so.
pub(super) fn serve<S: Read + Write>(
    stream: S,
    script: Script,
    tell: &std::sync::mpsc::Sender<Seen>,
) -> Option<()> {
    let mut stream = BufReader::new(stream);
    let say = |stream: &mut BufReader<S>, line: &str| -> Option<String> {
        let reply = script(line)?;
        stream.get_mut().write_all(reply.as_bytes()).ok()?;
        Some(reply)
    };
    tell.send(Seen::Connected).ok()?;
    say(&mut stream, "GREET")?;
    let (mut lmtp, mut accepted) = (false, Vec::new());
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end().to_owned();
        tell.send(Seen::Line(line.clone())).ok()?;
        lmtp |= line.starts_with("LHLO");
        let reply = say(&mut stream, &line)?;
        if line.starts_with("RCPT") && reply.starts_with("250") {
            accepted.push(line);
        } else if reply.starts_with("354") {
            let mut content = Vec::new();
            while !content.ends_with(b"\r\n.\r\n") && content != b".\r\n" {
                if stream.read_until(b'\n', &mut content).ok()? == 0 {
                    return None;
                }
            }
            content.truncate(content.len() - 3);
            tell.send(Seen::Content(content)).ok()?;
            let ends = std::mem::take(&mut accepted);
            for end in if lmtp { &ends[..] } else { &ends[..1] } {
                say(&mut stream, &end.replace("RCPT TO", "END"))?;
            }
        }
    }
}

/// A TCP server for `connections` connections, each served to its end before the next.
pub(super) fn server(connections: usize, script: Script) -> (SocketAddr, Receiver<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, (tell, seen)) = (listener.local_addr().unwrap(), channel());
    std::thread::spawn(move || {
        for _ in 0..connections {
            let Ok((stream, _)) = listener.accept() else { return };
            serve(stream, script, &tell);
            if tell.send(Seen::Gone).is_err() {
                return;
            }
        }
    });
    (address, seen)
}

/// An address where nobody listens, and nobody else can while the descriptor is held.
pub(super) fn nobody() -> (SocketAddr, OwnedFd) {
    use nix::sys::socket::*;
    let held = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(held.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    let port = getsockname::<SockaddrIn>(held.as_raw_fd()).unwrap().port();
    (SocketAddr::from(([127, 0, 0, 1], port)), held)
}

pub(super) fn lines(seen: &Receiver<Seen>) -> Vec<String> {
    seen.try_iter().filter_map(|seen| if let Seen::Line(line) = seen { Some(line) } else { None }).collect()
}
