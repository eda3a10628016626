//! Every event in both forms, and the page that explains them.

use std::collections::BTreeSet;

use postern_address::{Mailbox, ReversePath};
use postern_smtp::{EnhancedCode, Reply};
use postern_spool::QueueId;

use crate::event::{Attempt, Client, Event, Level, SessionId, Status};
use crate::{json, text};

const ID: &str = "0123456789ABC";

/// What events borrow from.
struct Things {
    from: ReversePath,
    to: Mailbox,
    original: Mailbox,
    sent: Reply,
    refused: Reply,
}

fn things() -> Things {
    let refused = "<x@example.org>: Recipient address rejected: user unknown";
    Things {
        from: ReversePath::parse("<a@example.net>").unwrap(),
        to: Mailbox::parse("u@example.org").unwrap(),
        original: Mailbox::parse("list@example.org").unwrap(),
        sent: Reply::new(250, EnhancedCode::new(2, 0, 0), "Ok: queued as 4XyZ"),
        refused: Reply::new(550, EnhancedCode::new(5, 1, 1), refused),
    }
}

/// Every event with every field, and its line of text.
fn samples(things: &Things) -> Vec<(Event<'_>, &'static str)> {
    let id = QueueId::parse(ID).unwrap();
    let session = SessionId(0x1_0000_002a);
    let client = Client { name: Some("mail.example.net"), address: "192.0.2.7".parse().unwrap() };
    let forwarded = Box::leak(Box::new(postern_smtp::xclient::Forwarded {
        name: Some("far.example".into()),
        address: Some("198.51.100.7".parse().unwrap()),
        ident: Some("4Qx".into()),
        helo: Some("far".into()),
        protocol: Some("ESMTP".into()),
        ..Default::default()
    }));
    let (from, why) = (&things.from, "timeout after RCPT");
    vec![
        (
            Event::Started { version: "0.1.0", configuration: "/etc/postern/postern.toml" },
            "daemon started -- version 0.1.0, configuration /etc/postern/postern.toml",
        ),
        (
            Event::Listening { address: "[::]:25".parse().unwrap(), service: "smtp" },
            "listening on [::]:25 for smtp",
        ),
        (Event::Ready { milliseconds: 120 }, "ready after 0.12 s"),
        (Event::ProgramStarted { program: "smtpd/0", pid: 7 }, "program smtpd/0 pid 7 started"),
        (
            Event::ProgramDied { program: "smtpd/0", pid: 7, how: "killed by SIGSEGV", restart_in_ms: 100 },
            "warning: program smtpd/0 pid 7 killed by SIGSEGV, started again in 0.1 s",
        ),
        (Event::Reloaded { outcome: Ok(()) }, "reload: the new configuration is in force"),
        (Event::Reloaded { outcome: Err("no\nway") }, "error: reload: the old configuration stays: no\\nway"),
        (Event::Stopping, "stopping"),
        (Event::Stopped, "stopped"),
        (
            Event::Sandboxed { landlock: "enforced (ABI 7)", seccomp: "enforced", user: "postern-smtpd" },
            "sandbox: user=postern-smtpd, landlock=enforced (ABI 7), seccomp=enforced",
        ),
        (
            Event::LinkLost { peer: "lookup", why: "the other end is gone" },
            "warning: link to lookup lost: the other end is gone",
        ),
        (
            Event::Connect { session, client, proxy: None },
            "00010000002a: connect from mail.example.net[192.0.2.7]",
        ),
        (
            Event::Connect { session, client, proxy: Some(std::net::Ipv4Addr::new(10, 0, 0, 1).into()) },
            "00010000002a: connect from mail.example.net[192.0.2.7] by way of [10.0.0.1]",
        ),
        (
            Event::Disconnect { session, client, messages: 1, commands: 6, milliseconds: 3140, why },
            "00010000002a: disconnect from mail.example.net[192.0.2.7] messages=1 commands=6 seconds=3.1 \
             (timeout after RCPT)",
        ),
        (
            Event::Reject {
                session,
                client,
                stage: "RCPT",
                reply: &things.refused,
                from: Some(from),
                to: Some("x@example.org"),
                helo: Some("mail.example.net"),
                proto: "ESMTP",
            },
            "NOQUEUE: reject: RCPT from mail.example.net[192.0.2.7]: 550 5.1.1 <x@example.org>: Recipient \
             address rejected: user unknown; from=<a@example.net> to=<x@example.org> proto=ESMTP \
             helo=<mail.example.net> session=00010000002a",
        ),
        (
            Event::Policy {
                session,
                client,
                stage: "rcpt",
                action: "redirect",
                rule: 3,
                line: 41,
                text: "to <trap@example.org>",
                from: Some(from),
                to: Some("x@example.org"),
                helo: Some("mail.example.net"),
                proto: "ESMTP",
            },
            "NOQUEUE: redirect: RCPT from mail.example.net[192.0.2.7]: rule 3 (line 41): to \
             <trap@example.org>; from=<a@example.net> to=<x@example.org> proto=ESMTP \
             helo=<mail.example.net> session=00010000002a",
        ),
        (
            Event::Accepted {
                id,
                session,
                client,
                from,
                size: 812,
                nrcpt: 2,
                message_id: Some("<m@x>"),
                forwarded: None,
            },
            "0123456789ABC: client=mail.example.net[192.0.2.7], session=00010000002a, \
             from=<a@example.net>, size=812, nrcpt=2, message-id=<m@x>",
        ),
        (
            Event::Accepted {
                id,
                session,
                client,
                from,
                size: 812,
                nrcpt: 2,
                message_id: None,
                forwarded: Some(forwarded),
            },
            "0123456789ABC: client=mail.example.net[192.0.2.7], orig_queue_id=4Qx, \
             orig_client=far.example[198.51.100.7], session=00010000002a, \
             from=<a@example.net>, size=812, nrcpt=2, message-id=<>",
        ),
        (
            Event::SpoolRefused { session, id, error: "no space left" },
            "0123456789ABC: warning: spool: no space left, session=00010000002a",
        ),
        (
            Event::LimitExceeded {
                session,
                client,
                measure: "Connection concurrency",
                scope: "client",
                count: 51,
                limit: 50,
            },
            "warning: Connection concurrency limit exceeded: 51 from mail.example.net[192.0.2.7]; limit=50 \
             per=client session=00010000002a",
        ),
        (
            Event::Overload { begins: true, sessions: 80, most: 100 },
            "warning: overload: 80 sessions of 100: timeouts are shorter, fewer errors are borne",
        ),
        (Event::Overload { begins: false, sessions: 69, most: 100 }, "overload is over: 69 sessions of 100"),
        (
            Event::Active { id, from, size: 812, nrcpt: 2 },
            "0123456789ABC: from=<a@example.net>, size=812, nrcpt=2 (queue active)",
        ),
        (Event::PickedUp { id, uid: 1000, from: &ReversePath::Null }, "0123456789ABC: uid=1000 from=<>"),
        (
            Event::BounceQueued { id, bounce: QueueId::parse("0123456789ABD").unwrap(), told: "failure" },
            "0123456789ABC: sender non-delivery notification: 0123456789ABD",
        ),
        (
            Event::BounceQueued { id, bounce: QueueId::parse("0123456789ABD").unwrap(), told: "success" },
            "0123456789ABC: sender delivery status notification: 0123456789ABD",
        ),
        (
            Event::BounceDropped { id, why: "it is a bounce itself" },
            "0123456789ABC: no sender non-delivery notification: it is a bounce itself",
        ),
        (Event::Removed { id }, "0123456789ABC: removed"),
        (Event::Operator { id: Some(id), action: "held" }, "0123456789ABC: operator: held"),
        (
            Event::Corrupt { file: "0123456789ABC", why: "no foot" },
            "error: saving corrupt file 0123456789ABC: no foot",
        ),
        (
            Event::Recovered { files: 2, messages: 9, swept: 1, milliseconds: 40 },
            "recovered files=2, messages=9, swept=1, seconds=0.04",
        ),
        (
            Event::Delivery(Attempt {
                id,
                to: &things.to,
                orig_to: Some(&things.original),
                relay: Some("mx.example.org[192.0.2.1]:25"),
                delays: [10, 0, 52, 61],
                status: Status::Sent,
                reply: &things.sent,
            }),
            "0123456789ABC: to=<u@example.org>, orig_to=<list@example.org>, \
             relay=mx.example.org[192.0.2.1]:25, delay=0.12, delays=0.01/0/0.05/0.06, dsn=2.0.0, \
             status=sent (250 2.0.0 Ok: queued as 4XyZ)",
        ),
        (
            Event::Note { level: Level::Fatal, id: Some(ID), text: "what\rnow" },
            "0123456789ABC: fatal: what\\rnow",
        ),
    ]
}

fn object(event: &Event<'_>) -> serde_json::Map<String, serde_json::Value> {
    let mut line = Vec::new();
    json::write(&mut line, "2026-11-22T04:18:27.123Z", "smtpd", 42, event);
    assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1, "one line");
    serde_json::from_slice(&line).unwrap()
}

/// The keys behind those that every event has.
fn own_keys(event: &Event<'_>) -> Vec<String> {
    let mut common = vec!["time", "program", "level", "event"];
    if !matches!(event, Event::ProgramStarted { .. } | Event::ProgramDied { .. }) {
        common.push("pid");
    }
    object(event).into_iter().map(|(key, _)| key).filter(|key| !common.contains(&key.as_str())).collect()
}

#[test]
fn as_text() {
    for (event, line) in samples(&things()) {
        assert_eq!(text::line(&event), line);
    }
}

/// What is not known is left out, or in Postfix's words: `unknown`, `none`, an empty id.
#[test]
fn as_text_with_little_known() {
    let things = things();
    let id = QueueId::parse(ID).unwrap();
    let client = Client { name: None, address: "2001:db8::1".parse().unwrap() };
    let plain = Reply::new(451, None, "busy");
    let reject = Event::Reject {
        session: SessionId(1),
        client,
        stage: "CONNECT",
        reply: &plain,
        from: None,
        to: None,
        helo: None,
        proto: "SMTP",
    };
    let line =
        "NOQUEUE: reject: CONNECT from unknown[2001:db8::1]: 451 busy; proto=SMTP session=000000000001";
    assert_eq!(text::line(&reject), line);
    let attempt = Attempt {
        id,
        to: &things.to,
        orig_to: None,
        relay: None,
        delays: [86_400_000, 4, 10_000, 0],
        status: Status::Deferred,
        reply: &plain,
    };
    let line = "0123456789ABC: to=<u@example.org>, relay=none, delay=86410, delays=86400/0/10/0, dsn=4.0.0, \
                status=deferred (451 busy)";
    assert_eq!(text::line(&Event::Delivery(attempt)), line);
    assert_eq!(text::line(&Event::Operator { id: None, action: "flushed" }), "operator: flushed");
    let note = Event::Note { level: Level::Info, id: None, text: "so" };
    assert_eq!((text::line(&note), object(&note).contains_key("id")), ("so".to_owned(), false));
}

#[test]
fn as_json() {
    let things = things();
    for (event, _) in samples(&things) {
        let object = object(&event);
        assert_eq!(object["event"], event.name());
        assert_eq!(object["level"], event.level().name());
        assert_eq!(object["program"], "smtpd");
        assert_eq!(object["time"], "2026-11-22T04:18:27.123Z");
        let tells_of_another = matches!(event, Event::ProgramStarted { .. } | Event::ProgramDied { .. });
        assert_eq!(object["pid"], if tells_of_another { 7 } else { 42 });
    }
    let delivery = samples(&things).into_iter().find(|(e, _)| e.name() == "delivery").unwrap().0;
    let object = object(&delivery);
    assert_eq!(object["delays"], serde_json::json!([0.01, 0.0, 0.052, 0.061]));
    assert_eq!(object["delay"], 0.123);
    assert_eq!((&object["to"], &object["dsn"]), (&"u@example.org".into(), &"2.0.0".into()));
}

/// A stranger's words stay within their field, in both forms.
#[test]
fn hostile_words() {
    let words = "a\r\n2026-11-22T04:18:27Z postern/smtpd[1]: forged\u{1b}[2J\u{9b}\"\\\u{7f}\u{0}";
    let helo = Event::Note { level: Level::Info, id: None, text: words };
    assert!(!text::line(&helo).chars().any(char::is_control));
    let mut line = Vec::new();
    json::write(&mut line, "t", "smtpd", 1, &helo);
    let line = String::from_utf8(line).unwrap();
    assert!(!line.trim_end_matches('\n').chars().any(char::is_control), "{line:?}");
    assert_eq!(object(&helo)["text"], words, "nothing is lost");
    let long = "x".repeat(1 << 20);
    let note = Event::Note { level: Level::Info, id: None, text: &long };
    assert!(text::line(&note).len() < 5000 && object(&note)["text"].as_str().unwrap().len() < 5000);
}

/// `docs/events.md` has a heading for every event, and its list of keys is what the event prints.
#[test]
fn the_page_of_events_is_complete() {
    let page = include_str!("../../../docs/events.md");
    let mut explained = BTreeSet::new();
    let things = things();
    for section in page.split("\n### `").skip(1) {
        let name = section.split('`').next().unwrap();
        explained.insert(name.to_owned());
        let rows = section.lines().take_while(|line| !line.starts_with("## "));
        let keys = rows.filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        let keys: BTreeSet<_> = keys.map(str::to_owned).collect();
        let samples: Vec<_> =
            samples(&things).into_iter().filter(|(event, _)| event.name() == name).collect();
        let printed: BTreeSet<_> = samples.iter().flat_map(|(event, _)| own_keys(event)).collect();
        assert_eq!(keys, printed, "{name}");
        for (event, line) in &samples {
            assert!(section.contains(&format!("Level: {}", event.level().name())), "{name}: its level");
            // The lines that log tools read stand there word for word.
            assert!(name == "note" || name == "reloaded" || section.contains(line), "{name}: {line}");
        }
    }
    let sampled: BTreeSet<_> = samples(&things).iter().map(|(event, _)| event.name().to_owned()).collect();
    let known: BTreeSet<_> = crate::event::NAMES.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(explained, known);
    assert_eq!(sampled, known);
}
