//! Servers that offer CHUNKING: whole messages leave before those ahead of them are answered.

use std::net::TcpStream;
use std::time::Instant;

use super::following::{all_relayed, listen, one_connection, send};
use super::*;
use crate::agent::connections::RESTED;

type Stream = BufReader<TcpStream>;

fn say(stream: &mut Stream, replies: &str) -> Option<()> {
    stream.get_mut().write_all(replies.as_bytes()).ok()
}

fn line(stream: &mut Stream) -> Option<String> {
    let mut line = String::new();
    stream.read_line(&mut line).ok().filter(|length| *length > 0)?;
    Some(line.trim_end().to_owned())
}

/// The dialogue up to the first message.
fn greet(stream: &mut Stream) -> Option<()> {
    say(stream, "220 mx.test\r\n")?;
    line(stream)?;
    say(stream, "250-mx.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 CHUNKING\r\n")
}

/// One whole message, to which nothing is said yet: its commands, and its content.
fn whole(stream: &mut Stream) -> Option<(Vec<String>, Vec<u8>)> {
    let mut commands = Vec::new();
    loop {
        let command = line(stream)?;
        commands.push(command.clone());
        if let Some(length) = command.strip_prefix("BDAT ").and_then(|rest| rest.strip_suffix(" LAST")) {
            let mut content = vec![0; length.parse().ok()?];
            stream.read_exact(&mut content).ok()?;
            return Some((commands, content));
        }
        if command == "DATA" || command == "QUIT" {
            return Some((commands, Vec::new()));
        }
    }
}

/// Answers such a message well: by as many replies as it has commands, or by DATA.
fn answer(stream: &mut Stream, (commands, _): &(Vec<String>, Vec<u8>)) -> Option<()> {
    let replies = commands.len() - 1;
    say(stream, &"250 2.0.0 Ok\r\n".repeat(replies))?;
    match commands.last()?.as_str() {
        "QUIT" => return say(stream, "221 bye\r\n"),
        "DATA" => {
            say(stream, "354 go\r\n")?;
            while line(stream)? != "." {}
        }
        _ => {}
    }
    say(stream, "250 2.0.0 Ok\r\n")
}

fn well(stream: &mut Stream) -> Option<()> {
    loop {
        let message = whole(stream)?;
        answer(stream, &message)?;
    }
}

/// From here on messages come one by one, and by DATA.
fn one_by_one(stream: &mut Stream) -> Option<()> {
    loop {
        let message = whole(stream)?;
        assert!(["DATA", "QUIT"].contains(&message.0.last()?.as_str()), "{message:?}");
        assert!(stream.buffer().is_empty(), "something came behind it");
        answer(stream, &message)?;
    }
}

/// The content of what [`job`] makes: its dot is not stuffed.
const CONTENT: &[u8] = b"Subject: x\r\n\r\n.dot\r\n";

#[test]
fn two_have_left_before_a_word_is_said_of_the_first() {
    let address = listen(|stream, _| {
        greet(stream)?;
        let (first, second) = (whole(stream)?, whole(stream)?);
        assert!(first.1 == CONTENT && second.1 == CONTENT);
        assert_eq!(
            (first.0[0].as_str(), second.0[0].as_str()),
            ("MAIL FROM:<from@a.test> BODY=8BITMIME", "RSET")
        );
        answer(stream, &first)?;
        // Another leaves for the one that was answered.
        let third = whole(stream)?;
        answer(stream, &second)?;
        answer(stream, &third)?;
        well(stream)
    });
    let mut rig = one_connection();
    all_relayed(&mut rig, address, 5);
    assert_eq!((rig.counter("connections"), rig.counter("connections_reused")), (1, 4));
}

/// It was not there yet when the message before it left.
#[test]
fn a_job_that_comes_later_need_not_wait() {
    static SEEN: AtomicU32 = AtomicU32::new(0);
    let address = listen(|stream, _| {
        greet(stream)?;
        let first = whole(stream)?;
        SEEN.store(1, Ordering::SeqCst);
        let second = whole(stream)?;
        answer(stream, &first)?;
        answer(stream, &second)?;
        well(stream)
    });
    let mut rig = one_connection();
    rig.send(job(1, smtp(address), &["a@b.test"]), None);
    rig.until(|_| (SEEN.load(Ordering::SeqCst) == 1).then_some(()));
    rig.send(job(2, smtp(address), &["a@b.test"]), None);
    for number in [1, 2] {
        assert!(matches!(rig.results(number)[..], [Outcome::Relayed(_)]));
    }
}

#[test]
fn a_refused_recipient_between_two() {
    let address = listen(|stream, _| {
        greet(stream)?;
        let (first, _) = (whole(stream)?, whole(stream)?);
        say(stream, "250 Ok\r\n250 Ok\r\n250 first\r\n")?;
        let third = whole(stream)?;
        assert_eq!(first.0.len(), 3);
        say(stream, "250 Ok\r\n250 Ok\r\n550 5.1.1 who?\r\n503 5.5.1 for nobody\r\n")?;
        answer(stream, &third)?;
        well(stream)
    });
    let mut rig = one_connection();
    rig.send(job(1, smtp(address), &["a@b.test"]), None);
    rig.send(job(2, smtp(address), &["no@b.test"]), None);
    rig.send(job(3, smtp(address), &["a@b.test"]), None);
    assert!(matches!(rig.results(1)[..], [Outcome::Relayed(_)]));
    let second = rig.results(2);
    assert!(matches!(&second[..], [Outcome::Failed(report)] if report.reply.to_string() == "550 5.1.1 who?"));
    assert!(matches!(rig.results(3)[..], [Outcome::Relayed(_)]));
    assert_eq!(rig.counter("connections"), 1);
}

/// What the server says of our way of saying it is no end of a message: it goes again, and alone.
#[test]
fn a_server_that_does_not_follow_bounces_nothing() {
    let address = listen(|stream, _| {
        greet(stream)?;
        let (first, _) = (whole(stream)?, whole(stream)?);
        answer(stream, &first)?;
        say(stream, "250 Ok\r\n503 5.5.1 one at a time\r\n503 5.5.1 hm\r\n503 5.5.1 hm\r\n")?;
        one_by_one(stream)
    });
    let mut rig = one_connection();
    all_relayed(&mut rig, address, 5);
    assert_eq!(rig.counter("connections"), 1);
}

/// A server that offers CHUNKING and has never heard of BDAT.
#[test]
fn a_server_without_bdat_gets_it_by_data() {
    let address = listen(|stream, n| {
        greet(stream)?;
        if n == 0 {
            let _ = whole(stream)?;
            say(stream, "250 Ok\r\n250 Ok\r\n500 5.5.2 what is BDAT?\r\n")?;
            return line(stream).map(drop);
        }
        one_by_one(stream)
    });
    let mut rig = one_connection();
    rig.send(job(1, smtp(address), &["a@b.test"]), None);
    assert!(matches!(rig.results(1)[..], [Outcome::Relayed(_)]));
    assert_eq!(rig.counter("connections"), 2);
}

#[test]
fn a_session_that_ends_after_one_message_loses_nothing() {
    let address = listen(|stream, _| {
        greet(stream)?;
        let first = whole(stream)?;
        answer(stream, &first)?;
        say(stream, "421 4.3.2 one is enough\r\n")?;
        // Until the other side has closed: a reset would overtake what was said.
        while line(stream).is_some() {}
        Some(())
    });
    let mut rig = one_connection();
    all_relayed(&mut rig, address, 5);
    assert_eq!(rig.counter("connections"), 5);
}

/// What had left and was not answered may be there: it is not sent again at once, and the next ones do not share
/// its fate.
#[test]
fn a_connection_that_breaks_doubles_nothing_at_once() {
    let address = listen(|stream, n| {
        greet(stream)?;
        if n == 0 {
            let (first, _) = (whole(stream)?, whole(stream)?);
            return answer(stream, &first);
        }
        one_by_one(stream)
    });
    let mut rig = one_connection();
    send(&mut rig, address, 4);
    assert!(matches!(rig.results(1)[..], [Outcome::Relayed(_)]));
    assert!(matches!(&rig.results(2)[..], [Outcome::Deferred(report)] if !report.destination_down));
    // The third may have left when the first was answered, and shares the second's end then.
    assert!(matches!(rig.results(3)[..], [Outcome::Relayed(_) | Outcome::Deferred(_)]));
    assert!(matches!(rig.results(4)[..], [Outcome::Relayed(_)]));
}

/// Something on the way that lets nothing of BDAT through: the next attempt is by DATA, also when nothing was sent
/// meanwhile.
#[test]
fn a_way_that_breaks_by_it_is_gone_in_the_plain_way() {
    let address = listen(|stream, n| {
        greet(stream)?;
        if n == 0 {
            let message = whole(stream)?;
            assert!(message.0.last()?.starts_with("BDAT"), "{message:?}");
            return None;
        }
        one_by_one(stream)
    });
    let mut rig = one_connection();
    rig.send(job(1, smtp(address), &["a@b.test"]), None);
    assert!(matches!(rig.results(1)[..], [Outcome::Deferred(_)]));
    rig.until(|rig| (rig.counter("connections_now") == 0).then_some(()));
    rig.send(job(2, smtp(address), &["a@b.test"]), None);
    assert!(matches!(rig.results(2)[..], [Outcome::Relayed(_)]));
}

/// A server may have closed a connection that rested: what leaves first is what can be sent again at once.
#[test]
fn a_connection_that_rested_is_not_trusted_with_a_message() {
    let address = listen(|stream, n| {
        greet(stream)?;
        if n == 0 {
            let first = whole(stream)?;
            answer(stream, &first)?;
            let second = whole(stream)?;
            assert_eq!(second.0.last().map(String::as_str), Some("DATA"), "{second:?}");
            return None;
        }
        well(stream)
    });
    let mut rig = one_connection();
    for number in [1, 2] {
        rig.send(job(number, smtp(address), &["a@b.test"]), None);
        assert!(matches!(rig.results(number)[..], [Outcome::Relayed(_)]));
        let done = Instant::now();
        rig.until(|_| (done.elapsed() > RESTED).then_some(()));
    }
    assert_eq!(rig.counter("connections"), 2);
}

/// A server that throws away what comes behind a chunk.
#[test]
fn a_server_that_does_not_hear_it_is_not_sent_more_so() {
    let address = listen(|stream, n| {
        greet(stream)?;
        if n == 0 {
            let (first, _) = (whole(stream)?, whole(stream)?);
            answer(stream, &first)?;
            while line(stream).is_some() {}
            return Some(());
        }
        well(stream)
    });
    let mut rig = one_connection();
    send(&mut rig, address, 2);
    assert!(matches!(rig.results(1)[..], [Outcome::Relayed(_)]));
    let second = rig.results(2);
    assert!(
        matches!(&second[..], [Outcome::Deferred(report)] if report.reply.to_string().contains("timed out"))
    );
}

#[test]
fn the_administrator_s_word_counts() {
    let address = listen(|stream, _| {
        greet(stream)?;
        one_by_one(stream)
    });
    let mut rig = Rig::new(Protocol::Smtp, |delivery| {
        delivery.without = vec![postern_smtp::server::Extension::Chunking];
    });
    all_relayed(&mut rig, address, 1);
    assert_eq!(rig.counter("connections"), 1);
}
