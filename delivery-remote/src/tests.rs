//! The program over real sockets: the queue-manager and the resolver are played by the test, servers are
//! threads.

mod following;
mod rig;
mod whole;

use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use postern_ipc::queue_agent::*;
use postern_ipc::resolve::{DnsError, Query, RecordData};
use postern_ipc::{Link, Peer, Role, blocking};
use postern_smtp::client::Protocol;
use rig::*;

#[test]
fn an_address_that_did_not_answer_is_tried_last_for_a_while() {
    let (address, _seen) = server(3, usual);
    let mut rig = Rig::new(Protocol::Smtp, |delivery| delivery.idle_timeout = Duration::from_millis(1));
    let host = |name| Destination::Smtp(Nexthop::Host { host: domain(name), port: address.port() });
    let addresses =
        || Ok(RecordData::Addresses(["127.0.0.2", "127.0.0.1"].map(|a| a.parse().unwrap()).to_vec()));
    // Counted: every connection begun, that to nobody included.
    for (number, name, flush, connections) in
        [(1, "a.test", false, 2), (2, "b.test", false, 1), (3, "c.test", true, 2)]
    {
        let before = rig.counter("connections");
        if flush {
            rig.queue.send(&ToAgent::Flush).unwrap();
        }
        rig.send(job(number, host(name), &["a@b.test"]), None);
        rig.answer(addresses());
        assert!(matches!(rig.results(number)[..], [Outcome::Relayed(_)]));
        assert_eq!(rig.counter("connections") - before, connections, "{name}");
        // The server serves one connection after the other.
        rig.until(|rig| (rig.counter("connections_now") == 0).then_some(()));
    }
}

#[test]
fn one_connection_serves_several_messages() {
    let (address, seen) = server(1, usual);
    let mut rig = Rig::new(Protocol::Smtp, |delivery| delivery.idle_timeout = Duration::from_millis(300));
    rig.send(job(1, smtp(address), &["yes@b.test", "no@b.test", "later@b.test"]), None);
    let results = rig.results(1);
    assert!(matches!(&results[0], Outcome::Relayed(report) if report.remote));
    assert!(matches!(&results[1], Outcome::Failed(report) if report.reply.to_string() == "550 5.1.1 who?"));
    assert!(
        matches!(&results[2], Outcome::Deferred(report) if report.reply.to_string() == "450 4.0.0 not now")
    );
    let relay = format!("127.0.0.1[127.0.0.1]:{}", address.port());
    assert_eq!(results[0].report().relay.as_deref(), Some(&*relay));
    rig.send(job(2, smtp(address), &["yes@b.test"]), None);
    assert!(matches!(rig.results(2)[..], [Outcome::Relayed(_)]));
    assert_eq!((rig.counter("connections"), rig.counter("connections_reused")), (1, 1));
    // Nothing more comes: it says good-bye.
    rig.until(|rig| (rig.counter("connections_now") == 0).then_some(()));
    let (mut said, mut contents) = (Vec::new(), Vec::new());
    for seen in seen.iter().take_while(|seen| *seen != Seen::Gone) {
        match seen {
            Seen::Line(line) => said.push(line),
            Seen::Content(content) => contents.push(content),
            _ => {}
        }
    }
    assert_eq!(said[..2], ["EHLO us.test", "MAIL FROM:<from@a.test> BODY=8BITMIME"]);
    assert_eq!(said.last().map(String::as_str), Some("QUIT"));
    assert_eq!(contents, [b"Subject: x\r\n\r\n..dot\r\n"; 2]);
}

#[test]
fn a_kept_connection_that_went_stale_is_replaced() {
    let (address, _seen) = server(2, |line| match line {
        line if line.starts_with("END") => None,
        line => usual(line),
    });
    let mut rig = Rig::new(Protocol::Smtp, |_| {});
    // The server closes instead of the last reply: it may have taken the message.
    rig.send(job(1, smtp(address), &["yes@b.test"]), None);
    let results = rig.results(1);
    assert_eq!(results[0].report().reply.enhanced.unwrap().to_string(), "4.4.2");
    assert!(matches!(&results[0], Outcome::Deferred(report) if !report.destination_down));
    // Answers one message, then hangs up at the next MAIL.
    let (address, seen) = server(2, |line| {
        static MAILS: AtomicU32 = AtomicU32::new(0);
        let second = || MAILS.fetch_add(1, Ordering::SeqCst) == 1;
        if line.starts_with("MAIL") && second() { None } else { usual(line) }
    });
    for number in [2, 3] {
        rig.send(job(number, smtp(address), &["yes@b.test"]), None);
        assert!(matches!(rig.results(number)[..], [Outcome::Relayed(_)]));
    }
    assert_eq!(lines(&seen).iter().filter(|line| line.starts_with("EHLO")).count(), 2);
}

/// Many domains have their mail at one provider.
#[test]
fn a_server_of_two_destinations_is_connected_to_once() {
    let (address, seen) = server(2, |line| {
        static MAILS: AtomicU32 = AtomicU32::new(0);
        let fourth = || MAILS.fetch_add(1, Ordering::SeqCst) == 3;
        if line.starts_with("MAIL") && fourth() { None } else { usual(line) }
    });
    let mut rig = Rig::new(Protocol::Smtp, |delivery| delivery.connections = 1);
    let host = |name| Destination::Smtp(Nexthop::Host { host: domain(name), port: address.port() });
    // At the fourth it hangs up: the same server is asked once more, over another connection.
    for (number, name, connections) in
        [(1, "a.test", 1), (2, "b.test", 1), (3, "a.test", 1), (4, "b.test", 2), (5, "b.test", 2)]
    {
        rig.send(job(number, host(name), &["yes@b.test"]), None);
        // Whose own connection is idle need not ask for the address.
        if number < 5 {
            rig.answer(Ok(RecordData::Addresses(vec!["127.0.0.1".parse().unwrap()])));
        }
        let results = rig.results(number);
        assert!(matches!(results[..], [Outcome::Relayed(_)]), "{results:?}");
        let relay = format!("{name}[127.0.0.1]:{}", address.port());
        assert_eq!(results[0].report().relay.as_deref(), Some(&*relay));
        assert_eq!(
            (rig.counter("connections"), rig.counter("connections_now")),
            (connections, 1),
            "{number}"
        );
    }
    assert_eq!(lines(&seen).iter().filter(|line| line.starts_with("MAIL")).count(), 6);
}

/// A server that went away leaves as many stale connections as there were: a job tries one of them.
#[test]
fn a_job_takes_over_one_connection_at_most() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, (tell, _seen)) = (listener.local_addr().unwrap(), channel());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let tell = tell.clone();
            std::thread::spawn(move || {
                let third = |line: &str| {
                    static MAILS: AtomicU32 = AtomicU32::new(0);
                    let third = line.starts_with("MAIL") && MAILS.fetch_add(1, Ordering::SeqCst) == 2;
                    if third { None } else { usual(line) }
                };
                serve(stream, third, &tell);
            });
        }
    });
    let mut rig = Rig::new(Protocol::Smtp, |_| {});
    let host = |name| Destination::Smtp(Nexthop::Host { host: domain(name), port: address.port() });
    let addresses = || Ok(RecordData::Addresses(vec!["127.0.0.1".parse().unwrap()]));
    for (number, name) in [(1, "a.test"), (2, "b.test")] {
        rig.send(job(number, host(name), &["yes@b.test"]), None);
    }
    for _ in 0..2 {
        rig.answer(addresses());
    }
    for number in [1, 2] {
        assert!(matches!(rig.results(number)[..], [Outcome::Relayed(_)]));
    }
    assert_eq!(rig.counter("connections"), 2);
    rig.send(job(3, host("c.test"), &["yes@b.test"]), None);
    rig.answer(addresses());
    assert!(matches!(rig.results(3)[..], [Outcome::Relayed(_)]));
    assert_eq!((rig.counter("connections"), rig.counter("connections_reused")), (3, 1));
}

#[test]
fn unreachable_servers() {
    let mut rig = Rig::new(Protocol::Smtp, |delivery| delivery.reply_timeout = Duration::from_millis(200));
    let (address, _held) = nobody();
    rig.send(job(1, smtp(address), &["a@b.test", "b@b.test"]), None);
    for outcome in rig.results(1) {
        let expected =
            format!("451 4.4.1 connect to 127.0.0.1[127.0.0.1]:{}: Connection refused", address.port());
        assert!(matches!(&outcome, Outcome::Deferred(report) if report.destination_down), "{outcome:?}");
        assert_eq!(outcome.report().reply.to_string(), expected);
    }
    // Silent, and refusing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    rig.send(job(2, smtp(silent.local_addr().unwrap()), &["a@b.test"]), None);
    let text = rig.results(2)[0].report().reply.to_string();
    assert_eq!(text, "451 4.4.2 conversation timed out while receiving the initial greeting");
    let (busy, seen) =
        server(1, |line| if line == "GREET" { Some("554 go away\r\n".into()) } else { usual(line) });
    rig.send(job(3, smtp(busy), &["a@b.test"]), None);
    let results = rig.results(3);
    let text = "451 4.0.0 the server refused to talk to us: 554 5.0.0 go away";
    assert!(matches!(&results[0], Outcome::Deferred(report) if report.destination_down));
    assert_eq!(results[0].report().reply.to_string(), text);
    rig.until(|rig| (rig.counter("connections_now") == 0).then_some(()));
    seen.iter().find(|seen| *seen == Seen::Gone).unwrap();
}

#[test]
fn a_connection_that_is_never_made() {
    use nix::sys::socket::*;
    let mut rig = Rig::new(Protocol::Smtp, |delivery| delivery.connect_timeout = Duration::from_millis(200));
    // A full queue of connections: the kernel answers no more of them.
    let (address, held) = nobody();
    listen(&held, Backlog::new(0).unwrap()).unwrap();
    let _first = std::net::TcpStream::connect(address).unwrap();
    rig.send(job(1, smtp(address), &["a@b.test"]), None);
    let text = rig.results(1)[0].report().reply.to_string();
    assert!(text.ends_with(": Connection timed out"), "{text}");
    assert_eq!(rig.counter("connections_now"), 0);
}

#[test]
fn the_next_address_is_tried() {
    let (address, _seen) = server(1, usual);
    let mut rig = Rig::new(Protocol::Smtp, |_| {});
    let host = Nexthop::Host { host: domain("mx.test"), port: address.port() };
    rig.send(job(1, Destination::Smtp(host), &["a@b.test"]), None);
    // Nobody listens at the first two.
    let addresses = ["::1", "127.0.0.2", "127.0.0.1"].map(|a| a.parse().unwrap()).to_vec();
    let query = rig.answer(Ok(RecordData::Addresses(addresses)));
    assert_eq!(query, Query::Addresses(domain("mx.test")));
    let results = rig.results(1);
    let relay = format!("mx.test[127.0.0.1]:{}", address.port());
    assert_eq!(results[0].report().relay.as_deref(), Some(&*relay));
    assert!(matches!(results[0], Outcome::Relayed(_)));
}

#[test]
fn what_the_resolver_says() {
    let mut rig = Rig::new(Protocol::Smtp, |_| {});
    let by_mx = Destination::Smtp(Nexthop::Mx(domain("b.test")));
    rig.send(job(1, by_mx.clone(), &["a@b.test"]), None);
    assert_eq!(rig.answer(Ok(RecordData::Mx(vec![(0, None)]))), Query::Mx(domain("b.test")));
    let results = rig.results(1);
    assert!(matches!(&results[0], Outcome::Failed(report) if report.reply.code == 556));
    rig.send(job(2, by_mx.clone(), &["a@b.test"]), None);
    rig.answer(Err(DnsError::NoRecords));
    let query = rig.answer(Err(DnsError::Temporary("SERVFAIL".into())));
    assert_eq!(query, Query::Addresses(domain("b.test")));
    let text = rig.results(2)[0].report().reply.to_string();
    assert_eq!(text, "451 4.4.3 name service error for name=b.test type=A: SERVFAIL");
    // It goes away with a question unanswered, and is not there for the next.
    rig.send(job(3, by_mx.clone(), &["a@b.test"]), None);
    rig.until(|rig| rig.questions.pop());
    let (gone, _) = blocking::pair().unwrap();
    drop(std::mem::replace(&mut rig.resolver, Link::new(gone)));
    assert!(rig.results(3)[0].report().reply.to_string().ends_with("the resolver went away"));
    rig.send(job(4, by_mx, &["a@b.test"]), None);
    assert!(rig.results(4)[0].report().reply.to_string().ends_with("the resolver does not run"));
}

#[test]
fn lmtp_over_a_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lmtp");
    let destination = Destination::Lmtp(LmtpServer::Unix(path.to_str().unwrap().into()));
    let mut rig = Rig::new(Protocol::Lmtp, |_| {});
    rig.send(job(1, destination.clone(), &["a@b.test"]), None);
    let results = rig.results(1);
    assert!(matches!(&results[0], Outcome::Deferred(report) if report.destination_down));
    let expected = format!("451 4.4.1 connect to {}: No such file or directory", path.display());
    assert_eq!(results[0].report().reply.to_string(), expected);
    let listener = UnixListener::bind(&path).unwrap();
    let (tell, seen) = channel();
    std::thread::spawn(move || {
        let Ok((stream, _)) = listener.accept() else { return };
        serve(
            stream,
            |line| if line.contains("END:<full") { Some("452 4.2.2 full\r\n".into()) } else { usual(line) },
            &tell,
        );
    });
    rig.send(job(2, destination, &["full@b.test", "no@b.test", "yes@b.test"]), None);
    let results = rig.results(2);
    assert!(
        matches!(&results[0], Outcome::Deferred(report) if report.reply.code == 452 && !report.destination_down)
    );
    assert!(matches!(&results[1], Outcome::Failed(_)));
    assert!(matches!(&results[2], Outcome::Delivered(_)));
    assert_eq!(results[2].report().relay, Some(format!("us.test[{}]", path.display())));
    assert_eq!(lines(&seen)[0], "LHLO us.test");
}

#[test]
fn a_large_file_arrives_as_it_is() {
    let (address, seen) = server(1, usual);
    let mut rig = Rig::new(Protocol::Smtp, |_| {});
    let mut body: Vec<u8> = (0..6 * 1024 * 1024u32).map(|n| b"abc.\xfc"[(n % 5) as usize]).collect();
    body.chunks_mut(77).filter(|line| line.len() == 77).for_each(|line| line[75..].copy_from_slice(b"\r\n"));
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"before").unwrap();
    file.write_all(&body).unwrap();
    file.write_all(b"behind").unwrap();
    let content = Content::File { prepend: b"Trace: x\r\n".to_vec(), offset: 6, length: body.len() as u64 };
    let job = Job { content, ..job(1, smtp(address), &["a@b.test"]) };
    rig.send(job.clone(), Some(file.try_clone().unwrap().into()));
    assert!(matches!(rig.results(1)[..], [Outcome::Relayed(_)]));
    let content =
        seen.iter().find_map(|seen| if let Seen::Content(content) = seen { Some(content) } else { None });
    let content = content.unwrap();
    let mut expected = b"Trace: x\r\n".to_vec();
    for line in body.split_inclusive(|b| *b == b'\n') {
        expected.extend(line.starts_with(b".").then_some(b'.'));
        expected.extend(line);
    }
    expected.extend(b"\r\n");
    assert!(content == expected, "{} octets came, {} expected", content.len(), expected.len());
    // A file that is shorter than was said is not sent cut.
    let content = Content::File { prepend: Vec::new(), offset: 6, length: body.len() as u64 + 7 };
    rig.send(Job { job: 2, content, ..job.clone() }, Some(file.into()));
    assert!(matches!(rig.results(2)[..], [Outcome::Deferred(_)]));
    assert!(!seen.iter().any(|seen| matches!(seen, Seen::Content(_))));
    rig.send(Job { job: 3, ..job }, None);
    assert!(matches!(rig.results(3)[..], [Outcome::Deferred(_)]));
}

#[test]
fn a_new_queue_manager_begins_anew() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut rig = Rig::new(Protocol::Smtp, |_| {});
    rig.send(job(1, smtp(silent.local_addr().unwrap()), &["a@b.test"]), None);
    let (mut connection, _) =
        rig.until(|rig| (rig.counter("connections_now") == 1).then(|| silent.accept().unwrap()));
    let (ours, theirs) = blocking::pair().unwrap();
    rig.queue = Link::new(ours);
    rig.host.watch(&rig.queue, QUEUE).unwrap();
    rig.until(|rig| (rig.counter("jobs_now") == 0).then_some(()));
    assert_eq!(connection.read(&mut [0; 10]).unwrap_or(0), 0, "the old job's connection is closed");
    rig.agent.linked(&mut rig.host, Peer::only(Role::QueueManager), theirs);
    let (address, _seen) = server(1, usual);
    // The new one counts from 1 again.
    rig.send(job(1, smtp(address), &["a@b.test"]), None);
    assert!(matches!(rig.results(1)[..], [Outcome::Relayed(_)]));
    assert_eq!(rig.heard, [FromAgent::Ready { jobs: 7 }]);
}

#[test]
fn stopping_finishes_what_is_under_way() {
    let (idle, idle_seen) = server(1, usual);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let gate = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut rig = Rig::new(Protocol::Smtp, |_| {});
    rig.send(job(1, smtp(idle), &["a@b.test"]), None);
    rig.results(1);
    rig.send(job(2, smtp(silent.local_addr().unwrap()), &["a@b.test"]), None);
    rig.send(job(3, smtp(gate.local_addr().unwrap()), &["a@b.test"]), None);
    let (tell, seen) = channel();
    let (open, opened) = channel::<()>();
    std::thread::spawn(move || {
        let (mut stream, _) = gate.accept().ok()?;
        stream.write_all(b"220 hi\r\n").ok()?;
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        stream.write_all(b"250 hi\r\n").ok()?;
        line.clear();
        reader.read_line(&mut line).ok()?;
        tell.send(Seen::Line(line)).ok()?;
        opened.recv().ok()?;
        stream.write_all(b"250 Ok\r\n").ok()?;
        for reply in [&b"250 Ok\r\n"[..], b"354 go\r\n"] {
            reader.read_line(&mut String::new()).ok()?;
            stream.write_all(reply).ok()?;
        }
        let mut line = String::new();
        while line != ".\r\n" {
            line.clear();
            reader.read_line(&mut line).ok()?;
        }
        stream.write_all(b"250 Ok\r\n").ok()
    });
    rig.until(|_| seen.try_recv().ok());
    rig.agent.stop(&mut rig.host);
    let results = rig.results(2);
    assert!(
        matches!(&results[0], Outcome::Deferred(report) if report.reply.to_string().contains("going down"))
    );
    // Nobody waits for the server that was silent, nor for the one that is told QUIT.
    rig.until(|rig| (rig.counter("connections_now") == 1).then_some(()));
    // What comes too late is answered, not lost.
    rig.send(job(4, smtp(idle), &["a@b.test"]), None);
    assert!(matches!(rig.results(4)[..], [Outcome::Deferred(_)]));
    assert!(!rig.host.is_finished());
    open.send(()).unwrap();
    assert!(matches!(rig.results(3)[..], [Outcome::Relayed(_)]));
    rig.until(|rig| rig.host.is_finished().then_some(()));
    assert_eq!(idle_seen.iter().filter(|seen| *seen == Seen::Line("QUIT".into())).count(), 1);
}

#[test]
fn jobs_that_make_no_sense_are_answered() {
    let mut rig = Rig::new(Protocol::Lmtp, |_| {});
    rig.send(job(1, smtp(nobody().0), &["a@b.test"]), None);
    assert!(matches!(&rig.results(1)[..], [Outcome::Deferred(report)] if !report.destination_down));
    rig.send(job(2, Destination::Lmtp(LmtpServer::Unix("relative\0path".into())), &["a@b.test"]), None);
    assert!(matches!(rig.results(2)[..], [Outcome::Deferred(_)]));
    rig.send(job(3, Destination::Lmtp(LmtpServer::Unix("/x".repeat(200))), &["a@b.test"]), None);
    assert!(matches!(rig.results(3)[..], [Outcome::Deferred(_)]));
    rig.send(job(4, smtp(nobody().0), &[]), None);
    assert!(rig.results(4).is_empty());
}

/// Servers that answer anything, in seven jobs at once: each job ends, each recipient has one result, and
/// the grants come back.
#[test]
fn in_chaos_every_job_ends_once() {
    fn any(line: &str) -> Option<String> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        // Every answer in turn, but 7 and the lines of a session have no common beat.
        match NEXT.fetch_add(1, Ordering::SeqCst).wrapping_mul(2_654_435_761) >> 27 {
            0 => None,
            1 => Some("nonsense\r\n".into()),
            2 => Some("421 4.3.2 later\r\n".into()),
            3 => Some("550 5.7.1 no\r\n".into()),
            4 => Some("450 4.2.0 not yet\r\n".into()),
            5 => Some("250 a\r\n250 b\r\n".into()),
            _ => usual(line),
        }
    }
    let (address, _seen) = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, (tell, seen)) = (listener.local_addr().unwrap(), channel());
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let tell = tell.clone();
                std::thread::spawn(move || serve(stream, any, &tell));
            }
        });
        (address, seen)
    };
    // With few connections envelopes leave with the content before them.
    let mut rig = Rig::new(Protocol::Smtp, |delivery| {
        (delivery.reply_timeout, delivery.connections) = (Duration::from_millis(500), 3);
    });
    let recipients = ["a@b.test", "no@b.test", "later@b.test", "d@b.test"];
    let mut kinds = [0; 3];
    for round in 0..30 {
        let numbers = round * 7..round * 7 + 7;
        // Of some nobody is accepted.
        let to = |number| if number % 3 == 0 { &recipients[1..3] } else { &recipients[..] };
        numbers.clone().for_each(|number| rig.send(job(number, smtp(address), to(number)), None));
        for number in numbers {
            let results = rig.results(number);
            assert_eq!(results.len(), to(number).len());
            for outcome in results {
                match outcome {
                    Outcome::Delivered(_) | Outcome::Relayed(_) | Outcome::Passed(_) => kinds[0] += 1,
                    Outcome::Deferred(_) => kinds[1] += 1,
                    Outcome::Failed(_) => kinds[2] += 1,
                }
            }
        }
    }
    assert!(rig.heard.is_empty() && rig.counter("jobs_now") == 0, "{:?}", rig.heard);
    assert!(kinds.iter().all(|kind| *kind > 10), "not much of a chaos: {kinds:?}");
}

#[test]
fn each_result_is_a_line_in_the_log() {
    let (address, _seen) = server(1, usual);
    let mut rig = Rig::new(Protocol::Smtp, |_| {});
    rig.send(job(1, smtp(address), &["yes@b.test", "no@b.test"]), None);
    rig.results(1);
    rig.turn();
    let mut text = String::new();
    let mut log = rig.log.try_clone().unwrap();
    log.rewind().unwrap();
    log.read_to_string(&mut text).unwrap();
    let line =
        |to: &str| text.lines().find(|line| line.contains(to)).unwrap_or_else(|| panic!("{to} in {text:?}"));
    assert!(line("yes@b.test").contains("status=sent") && line("no@b.test").contains("dsn=5.1.1"));
    assert!(line("yes@b.test").contains(&format!("relay=127.0.0.1[127.0.0.1]:{}", address.port())));
}
