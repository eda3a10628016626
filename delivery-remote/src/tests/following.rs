//! More jobs than connections: the envelope of one that waits leaves with the content of the one before.

use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::Receiver;

use super::*;

/// A server that serves each connection with `each`, one after the other.
pub(super) fn listen(each: fn(&mut BufReader<TcpStream>, usize) -> Option<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for n in 0.. {
            let Ok((stream, _)) = listener.accept() else { return };
            // A connection ends as it likes.
            let _ = each(&mut BufReader::new(stream), n);
        }
    });
    address
}

/// Everything up to the end of the first message's content, to which nothing is said yet.
fn first_message(stream: &mut BufReader<TcpStream>) -> Option<()> {
    stream.get_mut().write_all(usual("GREET")?.as_bytes()).ok()?;
    until_content(stream)?;
    read_until(stream, ".\r\n")
}

fn until_content(stream: &mut BufReader<TcpStream>) -> Option<()> {
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok().filter(|length| *length > 0)?;
        stream.get_mut().write_all(usual(line.trim_end())?.as_bytes()).ok()?;
        if line == "DATA\r\n" {
            return Some(());
        }
    }
}

fn read_until(stream: &mut BufReader<TcpStream>, last: &str) -> Option<()> {
    let mut line = String::new();
    while line != last {
        line.clear();
        stream.read_line(&mut line).ok().filter(|length| *length > 0)?;
    }
    Some(())
}

pub(super) fn one_connection() -> Rig {
    Rig::new(Protocol::Smtp, |delivery| {
        (delivery.connections, delivery.reply_timeout) = (1, Duration::from_millis(500));
    })
}

/// So many jobs, numbered from one.
pub(super) fn send(rig: &mut Rig, to: SocketAddr, count: u64) {
    (1..=count).for_each(|number| rig.send(job(number, smtp(to), &["a@b.test"]), None));
}

/// Sends so many jobs, each of which must be relayed.
pub(super) fn all_relayed(rig: &mut Rig, to: SocketAddr, count: u64) {
    send(rig, to, count);
    for number in 1..=count {
        assert!(matches!(rig.results(number)[..], [Outcome::Relayed(_)]), "job {number}");
    }
}

#[test]
fn the_envelope_is_there_before_the_message_before_it_is_answered() {
    let address = listen(|stream, _| {
        first_message(stream)?;
        // Nothing is said to it until the next envelope has come.
        read_until(stream, "DATA\r\n")?;
        stream.get_mut().write_all(b"250 first\r\n250 Ok\r\n250 Ok\r\n550 5.1.1 who?\r\n354 go\r\n").ok()?;
        read_until(stream, ".\r\n")?;
        stream.get_mut().write_all(b"250 second\r\n").ok()?;
        until_content(stream)
    });
    let mut rig = one_connection();
    rig.send(job(1, smtp(address), &["a@b.test"]), None);
    rig.send(job(2, smtp(address), &["b@b.test", "no@b.test"]), None);
    let first = rig.results(1);
    assert_eq!(first[0].report().reply.to_string(), "250 2.0.0 first");
    let second = rig.results(2);
    assert!(matches!(&second[..], [Outcome::Relayed(_), Outcome::Failed(_)]), "{second:?}");
    assert_eq!(second[0].report().reply.to_string(), "250 2.0.0 second");
    assert_eq!((rig.counter("connections"), rig.counter("connections_reused")), (1, 1));
}

/// All that is said of the second message comes with the answer to the first: it is not taken for the third's.
#[test]
fn answers_that_come_together_are_told_apart() {
    let address = listen(|stream, _| {
        first_message(stream)?;
        read_until(stream, "DATA\r\n")?;
        stream.get_mut().write_all(b"250 first\r\n250 Ok\r\n451 4.3.0 not now\r\n554 nobody\r\n").ok()?;
        until_content(stream)?;
        read_until(stream, ".\r\n")?;
        stream.get_mut().write_all(b"250 third\r\n").ok()?;
        until_content(stream)
    });
    let mut rig = one_connection();
    send(&mut rig, address, 3);
    let replies = [1, 2, 3].map(|number| rig.results(number)[0].report().reply.to_string());
    assert_eq!(replies, ["250 2.0.0 first", "451 4.3.0 not now", "250 2.0.0 third"]);
    assert_eq!(rig.counter("connections"), 1);
}

#[test]
fn a_session_that_ends_after_one_message_loses_nothing() {
    let address = listen(|stream, _| {
        first_message(stream)?;
        stream.get_mut().write_all(b"250 Ok\r\n421 4.3.2 one is enough\r\n").ok()
    });
    let mut rig = one_connection();
    all_relayed(&mut rig, address, 5);
    assert_eq!(rig.counter("connections"), 5);
}

/// A server that throws away what comes behind the end of content, though it offers PIPELINING.
#[test]
fn a_server_that_does_not_hear_it_is_not_asked_so_again() {
    let address = listen(|stream, n| {
        first_message(stream)?;
        if n == 0 {
            read_until(stream, "DATA\r\n")?;
            stream.get_mut().write_all(b"250 Ok\r\n").ok()?;
            return read_until(stream, "never");
        }
        loop {
            assert!(stream.buffer().is_empty(), "an envelope came with the content");
            stream.get_mut().write_all(b"250 Ok\r\n").ok()?;
            until_content(stream)?;
            read_until(stream, ".\r\n")?;
        }
    });
    let mut rig = one_connection();
    // What waits while the first connection is given up keeps what is known of the server.
    all_relayed(&mut rig, address, 4);
    assert_eq!(rig.counter("connections"), 2);
}

#[test]
fn no_more_connections_than_are_allowed() {
    let (tell, seen) = channel();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let tell = tell.clone();
            std::thread::spawn(move || serve(stream, usual, &tell));
        }
    });
    let mut rig = Rig::new(Protocol::Smtp, |delivery| delivery.connections = 2);
    send(&mut rig, address, 40);
    rig.until(|rig| {
        assert!(rig.counter("connections_now") <= 2);
        (rig.heard.iter().filter(|heard| matches!(heard, FromAgent::Done { .. })).count() == 40).then_some(())
    });
    assert_eq!((rig.counter("delivered"), rig.counter("connections")), (40, 2));
    let arrived =
        |seen: &Receiver<Seen>| seen.try_iter().filter(|seen| matches!(seen, Seen::Content(_))).count();
    assert_eq!(arrived(&seen), 40);
}

/// Where nobody listens, those that wait are told as those that tried.
#[test]
fn who_waits_is_told_when_there_is_nobody() {
    let (address, _held) = nobody();
    let mut rig = one_connection();
    send(&mut rig, address, 6);
    for number in 1..=6 {
        assert!(matches!(&rig.results(number)[..], [Outcome::Deferred(report)] if report.destination_down));
    }
    assert_eq!((rig.counter("jobs_now"), rig.counter("connections_now")), (0, 0));
}

#[test]
fn stopping_defers_who_waits() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let mut rig = one_connection();
    send(&mut rig, address, 3);
    rig.until(|rig| (rig.counter("jobs_now") == 3).then_some(()));
    rig.agent.stop(&mut rig.host);
    for number in 1..=3 {
        assert!(matches!(rig.results(number)[..], [Outcome::Deferred(_)]));
    }
    rig.until(|rig| rig.host.is_finished().then_some(()));
}
