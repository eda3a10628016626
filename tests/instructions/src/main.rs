//! NAME
//!     postern-instructions: the pure cores, each doing the same thing so many times
//!
//! WHAT IT DOES
//!     `postern-instructions CORE N` lets one of the cores do its work N times, without a network, a clock or
//!     a thread. The test beside it counts the instructions with callgrind, since times are noise on
//!     a machine that others use, and holds them to `figures.txt`. The cores: `session`, a client's dialogue
//!     with one message of 4 KiB, commands in lines of their own; `schedule`, a message's way through the
//!     schedule, to one of ten destinations; `spool`, a message of 4 KiB written into a spool file, and read
//!     back; `frame`, the job that a message of 4 KiB is, as a frame between programs, there and back; `lookup`, a
//!     recipient of one of 1,000 virtual domains let in and found, and one of one of 1,000 routes.
//!
//! FAILURE
//!     It panics.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use postern_address::{Domain, Mailbox, ReversePath};
use postern_config::parse;
use postern_ipc::queue_agent::{Content, Destination, Job, Nexthop, Outcome, Report, Target};
use postern_ipc::queue_lookup::{self, Delivery};
use postern_ipc::smtpd_lookup::{Incoming, Verdict};
use postern_lookup::accounts::{Account, Accounts};
use postern_lookup::routing::Tables;
use postern_queue_manager::scheduler::{
    Action as Do, AgentKind, Limits, Loaded, Place, Scheduler, Summary, Unfinished,
};
use postern_smtp::Reply;
use postern_smtp::parameters::RcptParameters;
use postern_smtp::server::{Action, Answer, Asks, Extensions, Output, Protocol, Session, Settings};
use postern_spool::{
    BodyType, Envelope, IdAllocator, NewMessage, Options, Origin, QueueId, Slot, SpoolFile, Timestamp,
    write_one,
};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [core, times] = &*words else { panic!("usage: postern-instructions CORE N") };
    let times = times.parse().unwrap();
    match &**core {
        "session" => session(times),
        "schedule" => schedule(times),
        "spool" => spool(times),
        "frame" => frame(times),
        "lookup" => lookup(times),
        _ => panic!("no core {core}"),
    }
}

fn session(times: usize) {
    let settings = Arc::new(Settings {
        hostname: Domain::parse("mx.test").unwrap(),
        protocol: Protocol::Smtp,
        secure: false,
        extensions: Extensions::all(),
        asks: Asks::default(),
        message_size: 50 << 20,
        recipients: 1000,
        transactions: None,
        recipient_domains: None,
        line_length: 64 << 10,
        errors: 20,
        normalise: false,
    });
    let content = [&message()[..], b".\r\n"].concat();
    let pieces: [&[u8]; 6] = [
        b"EHLO client.test\r\n",
        b"MAIL FROM:<a@x.test> BODY=8BITMIME\r\n",
        b"RCPT TO:<u@v.test>\r\n",
        b"DATA\r\n",
        &content,
        b"QUIT\r\n",
    ];
    for _ in 0..times {
        let mut out = Output::default();
        let mut session = Session::new(Arc::clone(&settings), &mut out);
        let mut finished = 0;
        for piece in pieces {
            assert_eq!(session.receive(piece, &mut out), piece.len());
            while !out.actions.is_empty() {
                for action in std::mem::take(&mut out.actions) {
                    match action {
                        Action::Ask { ticket, .. } => session.answer(ticket, Answer::Accepted, &mut out),
                        Action::Finished(message) => {
                            assert_eq!(message.content.len(), content.len() - 3);
                            session.settle(Reply::new(250, None, "Ok"), &mut out);
                            finished += 1;
                        }
                        _ => {}
                    }
                }
            }
            out.wire.clear();
        }
        assert_eq!(finished, 1);
    }
}

fn schedule(times: usize) {
    const DAY: u64 = 86_400_000;
    let limits = Limits {
        retry_first: 300_000,
        retry_most: 4_000_000,
        lifetime: 5 * DAY,
        bounce_lifetime: 5 * DAY,
        connections: 20,
        delay_warning: DAY,
        delay_warning_unasked: None,
    };
    let now = Timestamp(1_000_000);
    let mut scheduler = Scheduler::new(limits, 1);
    scheduler.lookup_linked();
    scheduler.agent_ready(AgentKind::Remote, 50);
    let mut finished = 0;
    for n in 0..times as u64 {
        let id = QueueId::from_u64(n + 1);
        assert!(scheduler.arrive(id, Place { file: id, number: 0 }, Summary::default()));
        while let Some(action) = scheduler.next(now) {
            match action {
                Do::Load(id) => {
                    let recipients = vec![Unfinished::new(0, mailbox("u@relay.test"))];
                    let loaded = Loaded {
                        arrival: now,
                        not_before: None,
                        deadline: None,
                        delay_told: false,
                        null_sender: false,
                        recipients,
                    };
                    scheduler.loaded(id, loaded, now);
                }
                Do::Ask { question, recipient } => {
                    let address = ([127, 0, 0, 1], 2500 + (question % 10) as u16).into();
                    let action = queue_lookup::Action::Deliver(Destination::Smtp(Nexthop::Address(address)));
                    let delivery = Delivery { recipient, reverse_path: None, action };
                    assert!(scheduler.answer(question, Ok(vec![delivery]), now));
                }
                Do::Start(order) => {
                    let reply = Reply::new(250, None, "Ok");
                    let report = Report { relay: None, reply, remote: true, destination_down: false };
                    assert!(scheduler.result(order.job, 0, Outcome::Relayed(report), now));
                    assert!(scheduler.done(order.job, now));
                }
                Do::Finished(..) => finished += 1,
                _ => {}
            }
        }
    }
    assert_eq!(finished, times);
}

fn spool(times: usize) {
    let directory = tempfile::tempdir().unwrap();
    let opened = std::fs::File::open(directory.path()).unwrap();
    let mut ids = IdAllocator::new(Slot::QUEUE_MANAGER);
    for n in 0..times as u64 {
        let id = ids.next(1_000_000 + n);
        let envelope = Envelope {
            reverse_path: ReversePath::Mailbox(mailbox("a@x.test")),
            recipients: vec![mailbox("u@v.test")],
            arrival: Timestamp(1_000_000),
            body: BodyType::SevenBit,
            origin: Origin::Internal,
            options: Options::default(),
        };
        let prepend = b"Received: from client.test ([127.0.0.1]) by mx.test with ESMTP\r\n".to_vec();
        write_one(opened.as_fd(), &NewMessage { id, envelope, prepend, body: message() }).unwrap();
        let file = SpoolFile::open(opened.as_fd(), &id.to_string()).unwrap();
        assert_eq!(file.read_body(0).unwrap().len(), message().len());
        nix::unistd::unlinkat(opened.as_fd(), &*id.to_string(), nix::unistd::UnlinkatFlags::NoRemoveDir)
            .unwrap();
    }
}

fn frame(times: usize) {
    let job = Job {
        job: 1,
        queue_id: QueueId::from_u64(1),
        arrival: Timestamp(1_000_000),
        scheduled: Timestamp(1_000_000),
        reverse_path: ReversePath::Mailbox(mailbox("a@x.test")),
        recipients: vec![Target {
            index: 0,
            recipient: mailbox("u@relay.test"),
            original: None,
            parameters: RcptParameters::default(),
        }],
        destination: Destination::Smtp(Nexthop::Address(([127, 0, 0, 1], 2526).into())),
        body: BodyType::SevenBit,
        options: Box::default(),
        content: Content::Inline(message()),
    };
    for _ in 0..times {
        let frame = postern_ipc::encode(&job).unwrap();
        assert_eq!(postern_ipc::decode::<Job>(&frame).unwrap(), job);
    }
}

fn lookup(times: usize) {
    let domains: Vec<String> = (0..1000).map(|n| format!("\"v{n}.test\"")).collect();
    let routes = (0..1000).map(|n| format!("[[route]]\ndomain = \"r{n}.test\"\nvia = \"smtp:[mx.test]\"\n"));
    let config = format!(
        "hostname = \"mx.test\"\n[virtual]\nmailbox = \"maildir:/m/{{domain}}/{{local}}\"\nusers = \"*\"\n\
         domains = [{}]\n[relay]\nnetworks = [\"10.0.0.0/8\"]\n{}",
        domains.join(","),
        routes.collect::<String>()
    );
    let tables = Tables::new(parse(&config, "test").unwrap().lookup(), None);
    let client = [10, 0, 0, 1].into();
    let mut include = |_: &Path| Err("none".to_owned());
    for _ in 0..times {
        for (recipient, verdict) in [("u@v500.test", Verdict::Local), ("u@r500.test", Verdict::Relay)] {
            let recipient = mailbox(recipient);
            let question = Incoming { client, authenticated: false, recipient: recipient.clone() };
            assert_eq!(tables.smtpd_lookup(&question, &mut Nobody), verdict);
            let deliveries = tables.queue_lookup(&recipient, &mut Nobody, &mut include).unwrap();
            assert!(matches!(&*deliveries, [Delivery { action: queue_lookup::Action::Deliver(_), .. }]));
        }
    }
}

/// A host without accounts.
struct Nobody;

impl Accounts for Nobody {
    fn find(&mut self, _: &str) -> Result<Option<Account>, String> {
        Ok(None)
    }
}

fn mailbox(text: &str) -> Mailbox {
    Mailbox::parse(text).unwrap()
}

/// About 4 KiB.
fn message() -> Vec<u8> {
    let mut message = b"From: <a@x.test>\r\nTo: <u@v.test>\r\nSubject: load\r\n\r\n".to_vec();
    while message.len() < 4096 {
        message.extend_from_slice(b"La de da de da. La de da de da. La de da de da. La de da de da.\r\n");
    }
    message
}
