//! One real worker, sandboxed, with the test as its master, its lookup and its verify.

#![forbid(unsafe_code)]

mod rig;

use std::io::{Read, Write};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use postern_config::{Service, SmtpLimits};
use postern_ipc::supervise::ToChild;
use postern_ipc::{Peer, Role, blocking};
use rig::{Rig, limits, start, start_with};

const ENVELOPE: &str = "MAIL FROM:<a@x.test>\r\nRCPT TO:<u@v.test>\r\nDATA\r\n";

fn plain() -> Rig {
    start(Service::Smtp, limits())
}

#[test]
fn a_message_is_in_the_spool_when_it_is_queued() {
    let rig = plain();
    let mut client = rig.greeted();
    client.say("MAIL FROM:<a@x.test> BODY=8BITMIME\r\n");
    client.say("RCPT TO:<u@v.test>\r\n");
    client.say("DATA\r\n");
    client.send(b"Message-ID: <1@x>\r\n\r\n..dot\r\n\xc3\xbc\r\n.\r\n");
    let id = client.queued();
    let (stored, body) = rig.messages(std::slice::from_ref(&id)).remove(&id).unwrap();
    assert_eq!(body, b"Message-ID: <1@x>\r\n\r\n.dot\r\n\xc3\xbc\r\n");
    let trace = String::from_utf8(stored.prepend).unwrap();
    let beginning = format!(
        "Received: from client.test (client.test [127.0.0.1])\r\n\tby mx.test (Postern) with ESMTP id {id}\r\n\tfor <u@v.test>;\r\n\t"
    );
    assert!(trace.starts_with(&beginning), "{trace}");
    assert_eq!(stored.envelope.reverse_path.as_str(), "a@x.test");
    assert_eq!(client.say("QUIT\r\n"), ["221 2.0.0 Bye"]);
    client.closed();
}

#[test]
fn a_pipelined_batch() {
    let rig = plain();
    let mut client = rig.greeted();
    client.send(
        b"MAIL FROM:<>\r\nRCPT TO:<u@v.test>\r\nRCPT TO:<x@v.test>\r\nRCPT TO:<r@v.test>\r\nRCPT TO:<w@v.test>\r\nDATA\r\n",
    );
    for code in ["250 2.1.0", "250 2.1.5", "550 5.1.1", "554 5.7.1", "250 2.1.5", "354"] {
        client.expect(code);
    }
    client.send(b".\r\nRSET\r\nQUIT\r\n");
    let id = client.queued();
    client.expect("250");
    client.expect("221");
    let stored = &rig.messages(std::slice::from_ref(&id))[&id].0;
    assert_eq!(stored.envelope.recipients.len(), 2);
    assert!(!String::from_utf8_lossy(&stored.prepend).contains("for <"));
}

#[test]
fn large_messages_are_streamed() {
    let rig = plain();
    let mut client = rig.greeted();
    let line = [&[b'x'; 998][..], b"\r\n"].concat();
    for _ in 0..2 {
        client.send(ENVELOPE.as_bytes());
        (0..3).for_each(|_| drop(client.reply()));
        let body = line.repeat(25_000);
        client.send(&body);
        client.send(b".\r\n");
        let id = client.queued();
        let (stored, found) = rig.messages(std::slice::from_ref(&id)).remove(&id).unwrap();
        assert!(found == body, "{} octets of {}", found.len(), body.len());
        assert_eq!(stored.length, body.len() as u64);
    }
    // Of a message given up half-way, nothing stays.
    client.send(ENVELOPE.as_bytes());
    (0..3).for_each(|_| drop(client.reply()));
    client.send(&line.repeat(1000));
    while rig.unfinished() == 0 {
        std::thread::yield_now();
    }
    drop(client);
    while rig.unfinished() > 0 {
        std::thread::yield_now();
    }
    assert!(rig.memory("VmHWM") < 64 << 10, "{} kB", rig.memory("VmHWM"));
}

#[test]
fn limits_of_size_and_hops() {
    let rig = start(Service::Smtp, SmtpLimits { message_size: 300_000, ..limits() });
    let mut client = rig.greeted();
    for (content, reply) in [
        ("Received: x\r\n".repeat(11), "554 5.4.6"),
        ("Received: x\r\n".repeat(11) + "\r\n" + &"y\r\n".repeat(60_000), "554 5.4.6"),
        ("y\r\n".repeat(110_000), "552 5.3.4"),
        ("Received: x\r\n".repeat(10), "250 2.0.0"),
    ] {
        client.send(ENVELOPE.as_bytes());
        (0..3).for_each(|_| drop(client.reply()));
        client.send(content.as_bytes());
        client.send(b".\r\n");
        client.expect(reply);
    }
    while rig.unfinished() > 0 {
        std::thread::yield_now();
    }
}

#[test]
fn smuggling_ends_the_connection_and_its_reply_arrives() {
    let rig = plain();
    let mut client = rig.greeted();
    client.send(ENVELOPE.as_bytes());
    (0..3).for_each(|_| drop(client.reply()));
    client.send(b"a\r\n.\nMAIL FROM:<b@x.test>\r\n");
    client.send(&b"RCPT TO:<c@x.test>\r\n".repeat(5_000));
    client.expect("554 5.5.2");
    client.closed();
    assert!(rig.messages(&[]).is_empty());
}

#[test]
fn lookup_silent_or_gone_is_a_451_and_a_new_one_is_asked() {
    let mut rig = plain();
    let mut client = rig.greeted();
    client.say("MAIL FROM:<a@x.test>\r\n");
    client.send(b"RCPT TO:<s@v.test>\r\nRCPT TO:<u@v.test>\r\n");
    while rig.silent.lock().unwrap().is_empty() {
        std::thread::yield_now();
    }
    // Master replaces lookup by one that is gone at once.
    let (ours, theirs) = blocking::pair().unwrap();
    drop(ours);
    rig.control.send_with(&ToChild::Linked(Peer::only(Role::Lookup)), vec![theirs]).unwrap();
    client.expect("451 4.3.0");
    client.reply();
    assert_eq!(client.say("RCPT TO:<u@v.test>\r\n")[0][..9], *"451 4.3.0");
    let fresh = rig::lookup(rig.silent.clone());
    rig.control.send_with(&ToChild::Linked(Peer::only(Role::Lookup)), vec![fresh]).unwrap();
    let begun = Instant::now();
    while client.say("RCPT TO:<u@v.test>\r\n")[0] != "250 2.1.5 Ok" {
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
}

#[test]
fn what_lookup_said_is_remembered_for_a_moment() {
    let rig = plain();
    let mut client = rig.greeted();
    client.say("MAIL FROM:<a@x.test>\r\n");
    let begun = Instant::now();
    assert_eq!(client.say("RCPT TO:<c@v.test>\r\n")[0], "250 2.1.5 Ok");
    let mut again = 0;
    while client.say("RCPT TO:<c@v.test>\r\n")[0] == "250 2.1.5 Ok" {
        again += 1;
        client.say("RSET\r\n");
        client.say("MAIL FROM:<a@x.test>\r\n");
        assert!(begun.elapsed() < Duration::from_secs(30), "{again} times, and not asked again");
    }
    assert_eq!(rig::CHANGING.load(Ordering::Relaxed), 2, "asked at first and when the second was over");
    assert!(begun.elapsed() >= Duration::from_secs(1));
    // What was refused is asked each time.
    for asked in 3..6 {
        client.say("RCPT TO:<c@v.test>\r\n");
        assert_eq!(rig::CHANGING.load(Ordering::Relaxed), asked);
    }
}

#[test]
fn timeouts() {
    let brief = Duration::from_millis(300);
    let rig = start(Service::Smtp, SmtpLimits { command_timeout: brief, data_timeout: brief, ..limits() });
    let mut client = rig.greeted();
    client.expect("421 4.4.2");
    client.closed();
    let mut client = rig.greeted();
    client.send(ENVELOPE.as_bytes());
    (0..3).for_each(|_| drop(client.reply()));
    client.send(b"half a li");
    client.expect("421 4.4.2");
    client.closed();
}

#[test]
fn one_session_too_many() {
    let rig = start(Service::Smtp, SmtpLimits { sessions: 2, ..limits() });
    let (mut first, _second) = (rig.greeted(), rig.greeted());
    let mut third = rig.connect();
    third.expect("421 4.3.2");
    third.closed();
    first.say("QUIT\r\n");
    first.closed();
    let begun = Instant::now();
    while !rig.connect().reply()[0].starts_with("220") {
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
}

#[test]
fn stop_ends_idle_sessions_and_finishes_messages() {
    let mut rig = plain();
    let (mut idle, mut busy) = (rig.greeted(), rig.greeted());
    busy.send(ENVELOPE.as_bytes());
    (0..3).for_each(|_| drop(busy.reply()));
    busy.send(b"a\r\n");
    rig.control.send(&ToChild::Stop).unwrap();
    idle.expect("421 4.3.2");
    idle.closed();
    busy.send(b".\r\n");
    let id = busy.queued();
    busy.expect("421 4.3.2");
    assert!(rig.child.wait().unwrap().success());
    rig.messages(&[id]);
}

#[test]
fn submissions_is_never_spoken_in_clear() {
    let rig = start(Service::Submissions, limits());
    rig.connect().closed();
    rig.wait_log("without [tls]");
    let (keys, _) = rig::keys();
    let rig = start_with(Service::Submissions, limits(), vec![(Peer::only(Role::Keys), keys)]);
    let mut client = rig.connect();
    client.send(b"EHLO client.test\r\n");
    let mut alert = Vec::new();
    let _ = client.reader.read_to_end(&mut alert);
    assert_eq!(alert[0], 21, "{alert:?}");
}

#[test]
fn submissions_within_tls() {
    let (keys, certificate) = rig::keys();
    let rig = start_with(Service::Submissions, limits(), vec![(Peer::only(Role::Keys), keys)]);
    let mut client = rig.connect_tls(&certificate);
    client.expect("220 mx.test ESMTP Postern");
    assert!(client.say("EHLO client.test\r\n").len() > 6);
    let line = [&[b'x'; 998][..], b"\r\n"].concat();
    for lines in [1, 3_000] {
        client.send(ENVELOPE.as_bytes());
        (0..3).for_each(|_| drop(client.reply()));
        let body = line.repeat(lines);
        client.send(&body);
        client.send(b".\r\n");
        let id = client.queued();
        let (stored, found) = rig.messages(std::slice::from_ref(&id)).remove(&id).unwrap();
        assert!(found == body);
        assert!(String::from_utf8_lossy(&stored.prepend).contains(" with ESMTPS id "));
    }
    client.send(b"QUIT\r\n");
    client.expect("221");
    // close_notify came: rustls would report its lack as an error.
    assert_eq!(client.reader.read_to_end(&mut Vec::new()).unwrap(), 0);
}

#[test]
fn lmtp() {
    let rig = start(Service::Lmtp, limits());
    let mut client = rig.connect();
    client.expect("220 mx.test LMTP Postern");
    client.say("LHLO client.test\r\n");
    client.send(b"MAIL FROM:<>\r\nRCPT TO:<u@v.test>\r\nRCPT TO:<w@v.test>\r\nDATA\r\n");
    (0..4).for_each(|_| drop(client.reply()));
    client.send(b"x\r\n.\r\n");
    assert_eq!(client.queued(), client.queued());
}

#[test]
fn a_client_that_says_all_and_leaves_is_heard() {
    let rig = plain();
    let mut client = rig.connect();
    client.send(b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<u@v.test>\r\nDATA\r\n");
    client.reader.get_mut().flush().unwrap();
    (0..5).for_each(|_| drop(client.reply()));
    client.send(b"x\r\n.\r\n");
    client.reader.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    client.queued();
    client.closed();
}

#[test]
fn two_thousand_sessions_at_once() {
    let rig = plain();
    let mut clients: Vec<_> = (0..2_000).map(|_| rig.connect()).collect();
    let idle = rig.memory("VmRSS");
    for client in &mut clients {
        client.expect("220");
        client.send(b"EHLO c\r\n");
    }
    for client in &mut clients {
        client.reply();
        client.send(ENVELOPE.as_bytes());
    }
    let body = [b"x".repeat(70), b"\r\n".to_vec()].concat().repeat(60);
    for client in &mut clients {
        (0..3).for_each(|_| drop(client.reply()));
        client.send(&body);
    }
    for client in &mut clients {
        client.send(b".\r\n");
    }
    let mut ids: Vec<_> = clients.iter_mut().map(|client| client.queued()).collect();
    let messages = rig.messages(&ids);
    assert!(messages.values().all(|(_, found)| *found == body));
    ids.sort_unstable();
    ids.dedup();
    assert_eq!((ids.len(), messages.len()), (2_000, 2_000));
    let most = rig.memory("VmHWM");
    println!("idle {idle} kB, most {most} kB");
    assert!(most < 64 << 10, "{most} kB");
}

#[test]
fn a_spool_that_fails_is_a_451_and_the_session_goes_on() {
    let mut rig = rig::start_without_disk();
    let mut client = rig.greeted();
    for lines in [1, 2_000] {
        client.send(ENVELOPE.as_bytes());
        (0..3).for_each(|_| drop(client.reply()));
        client.send(&[&[b'x'; 998][..], b"\r\n"].concat().repeat(lines));
        client.send(b".\r\n");
        client.expect("451 4.3.0");
    }
    assert_eq!(client.say("NOOP\r\n"), ["250 2.0.0 Ok"]);
    assert_eq!(rig.counter("spool-refused"), 2);
}

/// Clients that say anything, in any pieces, and leave at any time.
#[test]
fn hostile_clients_leave_nothing_behind() {
    let mut rig = plain();
    let pieces: [&[u8]; 14] = [
        b"EHLO c\r\n",
        b"MAIL FROM:<a@b>\r\n",
        b"RCPT TO:<u@v.test>\r\n",
        b"RCPT TO:<x@v.test>\r\nRCPT TO:<u@v.test>\r\n",
        b"DATA\r\n",
        b"text\r\n",
        b"\r\n.\r\n",
        b"RSET\r\n",
        b"\n",
        b"\0\xff",
        b"NOOP",
        b"QUIT\r\n",
        &[b'x'; 9_000],
        &[b'\n'; 200],
    ];
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as usize % below
    };
    for _ in 0..300 {
        let mut client = rig.connect();
        let mut said = b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<u@v.test>\r\nDATA\r\n".to_vec();
        said.truncate(random(60));
        (0..random(30)).for_each(|_| said.extend(pieces[random(pieces.len())]));
        let mut rest = &said[..];
        while !rest.is_empty() {
            let (piece, later) = rest.split_at(rest.len().min(1 + random(600)));
            rest = later;
            if client.reader.get_mut().write_all(piece).is_err() {
                break;
            }
        }
        match random(3) {
            0 => drop(client),
            1 => drop(client.reader.get_ref().shutdown(std::net::Shutdown::Write)),
            _ => drop(client.reply()),
        }
    }
    let begun = Instant::now();
    while rig.counter("sessions") > 0 {
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", rig.log());
    }
    // A file is renamed after its clients were told, and removed by the writer's threads.
    while rig.unfinished() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "{}", rig.log());
        std::thread::yield_now();
    }
    rig.greeted();
}

#[test]
fn out_of_descriptors_clients_wait() {
    let rig = rig::start_narrow(40);
    let mut clients: Vec<_> = (0..80).map(|_| rig.connect()).collect();
    // The last one hears from us when those before it have gone.
    for mut client in clients.drain(..79) {
        client.expect("220");
        client.say("QUIT\r\n");
        client.closed();
    }
    clients[0].expect("220");
    rig.wait_log("cannot accept");
    let log = rig.log();
    assert_eq!(log.matches("cannot accept").count(), 1, "{log}");
}

#[test]
fn a_reload_is_for_new_sessions() {
    let mut rig = plain();
    let mut old = rig.greeted();
    assert!(rig.reload(rig.address, SmtpLimits { message_size: 1000, ..limits() }));
    let mut new = rig.connect();
    new.expect("220");
    assert!(new.say("EHLO c\r\n").contains(&"250-SIZE 1000".to_owned()));
    assert!(old.say("EHLO c\r\n").contains(&"250-SIZE 52428800".to_owned()));
    assert!(!rig.reload(([127, 0, 0, 1], 1).into(), limits()));
}

#[test]
fn idle_sessions_are_cheap() {
    let rig = start(Service::Smtp, SmtpLimits { sessions: 20_000, ..limits() });
    drop(rig.greeted());
    let before = rig.memory("VmRSS");
    let mut clients: Vec<_> = (0..5_000).map(|_| rig.connect()).collect();
    for client in &mut clients {
        client.expect("220");
        client.say("EHLO c\r\n");
        client.say("NOOP\r\n");
    }
    let each = (rig.memory("VmRSS") - before) * 1024 / 5_000;
    println!("{each} octets each");
    assert!(each < 12 * 1024, "{each} octets each");
}

/// Not a test but a measurement: `cargo test --release -p postern-smtpd --test worker -- --ignored --nocapture`,
/// with Postfix's smtp-source installed.
#[test]
#[ignore = "a measurement"]
fn throughput() {
    let rig = plain();
    for (sessions, messages, length, keep) in [
        (1, 2_000, 4_096, false),
        (50, 20_000, 4_096, false),
        (200, 20_000, 4_096, false),
        (200, 20_000, 4_096, true),
        (20, 400, 2_000_000, true),
    ] {
        let ticks = |rig: &Rig| {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", rig.child.id())).unwrap();
            let field = |n: usize| stat.split_whitespace().nth(n).unwrap().parse::<u64>().unwrap();
            (field(13), field(14))
        };
        let (before, begun) = (ticks(&rig), Instant::now());
        let status = std::process::Command::new("/usr/sbin/smtp-source")
            .args(["-s", &sessions.to_string(), "-m", &messages.to_string(), "-l", &length.to_string()])
            .args(keep.then_some("-d"))
            .args(["-N", "-f", "a@x.test", "-t", "u@v.test", &format!("inet:{}", rig.address)])
            .status()
            .unwrap();
        assert!(status.success());
        let (took, after) = (begun.elapsed(), ticks(&rig));
        println!(
            "{sessions} sessions, kept {keep}, {messages} messages of {length}: {:.0}/s, user {} ms, system {} ms, {} kB",
            f64::from(messages) / took.as_secs_f64(),
            (after.0 - before.0) * 10,
            (after.1 - before.1) * 10,
            rig.memory("VmHWM"),
        );
    }
}
