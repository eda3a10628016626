//! Mail that waits: why, until when, and what an operator can do about it.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use postern_tests::{Address, Answer, Builder, Sink, System, message, python, until};

/// A system whose mail for `sink.test` goes to a host that is not there yet.
fn with_absent_sink() -> (Builder, Address) {
    let address = Address::claim();
    let via = format!("smtp:[{}]:2600", address.ip);
    (System::builder().relay().route("sink.test", &via), address)
}

#[test]
fn what_cannot_go_waits_and_goes_later() {
    let (builder, address) = with_absent_sink();
    let system = builder.fast_retries().start();
    let id = system.smtp().send("a@x.test", &["b@sink.test"], &message("waits")).unwrap();
    let deferred = system.attempted(&id, "deferred");
    assert!(deferred["dsn"].as_str().unwrap().starts_with("4.4."), "{deferred}");
    assert_eq!(system.spool("cur").len(), 1);
    let sink = Sink::start_at(address.port(2600));
    system.finished(&id);
    assert_eq!(sink.taken().len(), 1);
    assert_eq!(system.spool("cur"), [""; 0]);
}

#[test]
fn the_operator_looks_flushes_holds_releases_removes() {
    let (builder, address) = with_absent_sink();
    // Nothing is tried again by itself while this test lasts.
    let system = builder.set("queue", "retry-first", "\"1 h\"").set("queue", "retry-most", "\"2 h\"").start();
    assert_eq!(system.postern_json(&["queue", "list"]).len(), 0);
    let mut client = system.smtp();
    let ids: Vec<_> = ["one", "two", "three"]
        .iter()
        .map(|name| client.send("a@x.test", &["b@sink.test"], &message(name)).unwrap())
        .collect();
    ids.iter().for_each(|id| drop(system.attempted(id, "deferred")));
    let states = || -> Vec<(String, String)> {
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        system.postern_json(&["queue", "list"]).iter().map(|m| (text(&m["id"]), text(&m["state"]))).collect()
    };
    let all = |state: &str| ids.iter().map(|id| (id.clone(), state.to_owned())).collect::<Vec<_>>();
    until("all are deferred", Duration::from_secs(10), || (states() == all("deferred")).then_some(()));

    let shown = &system.postern_json(&["queue", "show", &ids[0]])[0];
    assert_eq!((&shown["from"], &shown["recipients"][0]["to"]), (&"a@x.test".into(), &"b@sink.test".into()));
    assert!(shown["header"].as_str().unwrap().contains("Subject: one"), "{shown}");
    let table = system.postern(&["queue", "list"]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(ids.iter().all(|id| table.contains(id.as_str())) && table.contains("3 messages"), "{table}");

    // Hold one, remove one, flush all: only the third is tried, and goes, since the sink is there now.
    system.postern_json(&["queue", "hold", &ids[0]]);
    system.postern_json(&["queue", "remove", &ids[1]]);
    system.wait("removed", |e| e["id"] == *ids[1]);
    assert_eq!(states(), [(ids[0].clone(), "held".to_owned()), (ids[2].clone(), "deferred".to_owned())]);
    let sink = Sink::start_at(address.port(2600));
    system.postern_json(&["queue", "flush"]);
    system.finished(&ids[2]);
    assert_eq!(sink.taken().len(), 1);

    // Held is held, over a restart too.
    let mut system = system;
    system.stop();
    system.start_again();
    let held = &system.postern_json(&["queue", "list"]);
    assert_eq!((held.len(), &held[0]["state"]), (1, &"held".into()));
    system.postern_json(&["queue", "release", &ids[0]]);
    system.finished(&ids[0]);
    let taken = sink.taken();
    assert_eq!(taken.len(), 2);
    assert!(taken[1].content.ends_with(&message("one")));

    // What is not there is refused, with status 1 and a word about it.
    let output = system.postern(&["queue", "show", &ids[1]]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!output.stderr.is_empty());
}

#[test]
fn at_the_end_of_its_lifetime_mail_bounces() {
    let (builder, _address) = with_absent_sink();
    let system = builder.fast_retries().set("queue", "lifetime", "\"3 s\"").start();
    let id = system.smtp().send("a@v.test", &["b@sink.test"], &message("too late")).unwrap();
    system.attempted(&id, "deferred");
    let queued = system.wait("bounce-queued", |e| e["id"] == *id);
    system.finished(&id);
    system.finished(queued["bounce"].as_str().unwrap());
    let report = &system.maildir("a@v.test")[0];
    let fields = report_of(&report.bytes);
    assert!(
        fields.contains("action=failed") && fields.contains("final-recipient=rfc822; b@sink.test"),
        "{fields}"
    );
}

/// RFC 3464, by Python's email parser; the null reverse-path, and the sender as its recipient.
#[test]
fn a_bounce_is_a_report() {
    let sink = Sink::start();
    sink.behave(|command| match command {
        "RCPT TO:<never@sink.test>" => Answer::Say("550 5.7.13 Not \"here\", says sink".into()),
        _ => Answer::Usual,
    });
    let system = System::builder().relay().route("sink.test", &sink.via()).start();
    let to = ["now@sink.test", "never@sink.test"];
    let id = system.smtp().send("a@v.test", &to, &message("half")).unwrap();
    system.finished(&id);
    let mails = system.wait_maildir("a@v.test", 1);
    let report = &mails[0];
    assert_eq!(report.header("Return-Path").unwrap(), "<>");
    assert_eq!(report.header("To").unwrap().trim_matches(['<', '>']), "a@v.test");
    assert!(report.header("From").unwrap().to_ascii_lowercase().contains("mailer-daemon@mx.test"));
    assert!(report.header("Auto-Submitted").unwrap().starts_with("auto-"), "RFC 3834 §5");
    for name in ["Date", "Message-ID", "Subject", "MIME-Version"] {
        assert!(report.header(name).is_some(), "no {name}");
    }
    let fields = report_of(&report.bytes);
    for part in [
        "type=multipart/report",
        "report-type=delivery-status",
        "parts=text/plain message/delivery-status",
        "reporting-mta=dns; mx.test",
        "final-recipient=rfc822; never@sink.test",
        "action=failed",
        "status=5.7.13",
        "diagnostic-code=smtp; 550 5.7.13 Not \"here\", says sink",
        "original-subject=half",
        "defects=[]",
    ] {
        assert!(fields.contains(part), "{part:?} is not in\n{fields}");
    }
    assert!(!fields.contains("now@sink.test"), "delivered recipients are not in it:\n{fields}");
}

#[test]
fn a_bounce_does_not_bounce() {
    let sink = Sink::start();
    sink.behave(|command| match command.starts_with("RCPT") {
        true => Answer::Say("550 5.1.1 Nobody".into()),
        false => Answer::Usual,
    });
    let system = System::builder().relay().route("sink.test", &sink.via()).start();
    let mut client = system.smtp();
    // The bounce goes to the sink, which refuses it, and that is the end.
    let id = client.send("sender@sink.test", &["b@sink.test"], &message("bounces")).unwrap();
    let queued = system.wait("bounce-queued", |e| e["id"] == *id);
    let bounce = queued["bounce"].as_str().unwrap();
    system.wait("bounce-dropped", |e| e["id"] == *bounce);
    system.finished(bounce);
    // A message that came with the null reverse-path makes none at all.
    let id = client.send("", &["b@sink.test"], &message("no sender")).unwrap();
    system.wait("bounce-dropped", |e| e["id"] == *id);
    system.finished(&id);
    assert_eq!(system.spool("cur"), [""; 0]);
    let bounces = system.log.events().iter().filter(|e| e["event"] == "bounce-queued").count();
    assert_eq!(bounces, 1);
}

#[test]
fn a_loop_ends() {
    let system = System::builder().set("smtp", "hops", "20").start();
    let received = "Received: from a by b; Mon, 1 Jan 2024 00:00:00 +0000\r\n".repeat(21);
    let content = [received.as_bytes(), &message("round")].concat();
    let mut client = system.smtp();
    match client.send("a@v.test", &["u@v.test"], &content) {
        Err(refused) => assert!(refused.is("554 5.4.6"), "{refused}"),
        Ok(id) => assert_eq!(system.attempted(&id, "bounced")["dsn"], "5.4.6"),
    }
    assert_eq!(system.maildir("u@v.test"), []);
    // To a mailbox that it was delivered to already.
    let content = [b"Delivered-To: u@v.test\r\n".as_slice(), &message("again")].concat();
    let id = client.send("a@v.test", &["u@v.test"], &content).unwrap();
    assert_eq!(system.attempted(&id, "bounced")["dsn"], "5.4.6");
    system.finished(&id);
    assert_eq!(system.maildir("u@v.test"), []);
}

#[test]
fn a_connection_that_breaks_at_any_moment_loses_nothing() {
    for moment in ["CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "."] {
        let sink = Sink::start();
        let system = System::builder().relay().fast_retries().route("sink.test", &sink.via()).start();
        sink.behave(move |command| if command.starts_with(moment) { Answer::Drop } else { Answer::Usual });
        let id = system.smtp().send("a@x.test", &["b@sink.test"], &message(moment)).unwrap();
        let deferred = system.attempted(&id, "deferred");
        assert!(deferred["dsn"].as_str().unwrap().starts_with("4."), "{moment}: {deferred}");
        assert_eq!(sink.taken(), []);
        sink.behave_well();
        system.finished(&id);
        assert_eq!(sink.taken().len(), 1, "{moment}");
    }
}

#[test]
fn replies_of_a_next_hop_that_mean_later() {
    for (moment, reply) in [
        ("CONNECT", "421 4.3.2 Full"),
        ("CONNECT", "554 No service here"),
        ("MAIL", "451 4.7.1 Try again"),
        ("DATA", "451 4.3.0 Try again"),
        (".", "452 4.3.1 Disk full"),
    ] {
        let sink = Sink::start();
        let system = System::builder().relay().fast_retries().route("sink.test", &sink.via()).start();
        sink.behave(
            move |command| {
                if command.starts_with(moment) { Answer::Say(reply.into()) } else { Answer::Usual }
            },
        );
        let id = system.smtp().send("a@x.test", &["b@sink.test"], &message(moment)).unwrap();
        let deferred = system.attempted(&id, "deferred");
        assert!(deferred["reply"].as_str().unwrap().contains(&reply[4..]), "{moment}: {deferred}");
        sink.behave_well();
        system.finished(&id);
        assert_eq!(sink.taken().len(), 1, "{moment}");
    }
}

#[test]
fn replies_of_a_next_hop_that_mean_never() {
    for (moment, reply) in [
        ("MAIL", "550 5.7.1 Not from you"),
        ("DATA", "554 5.7.1 No content, please"),
        (".", "554 5.6.0 I do not like it"),
    ] {
        let sink = Sink::start();
        let system = System::builder().relay().route("sink.test", &sink.via()).start();
        sink.behave(
            move |command| {
                if command.starts_with(moment) { Answer::Say(reply.into()) } else { Answer::Usual }
            },
        );
        let id = system.smtp().send("a@v.test", &["b@sink.test"], &message(moment)).unwrap();
        let bounced = system.attempted(&id, "bounced");
        assert_eq!(bounced["dsn"], reply[4..9], "{moment}: {bounced}");
        system.finished(&id);
        assert_eq!(system.wait_maildir("a@v.test", 1).len(), 1, "{moment}: a bounce");
    }
}

#[test]
fn without_its_lmtp_server_mail_waits() {
    let address = Address::claim();
    let via = format!("lmtp:[{}]:2600", address.ip);
    let system = System::builder().relay().fast_retries().route("d.test", &via).start();
    let id = system.smtp().send("a@x.test", &["u@d.test", "w@d.test"], &message("lmtp")).unwrap();
    system.attempted(&id, "deferred");
    // By LMTP each recipient has a reply of its own after the content (RFC 2033 §4.2).
    let sink = Sink::start_at(address.port(2600));
    sink.behave(|command| match command {
        ". RCPT TO:<w@d.test>" => Answer::Say("452 4.2.2 Full".into()),
        _ => Answer::Usual,
    });
    system.wait("delivery", |e| e["id"] == *id && e["to"] == "u@d.test" && e["status"] == "sent");
    system.wait("delivery", |e| e["id"] == *id && e["to"] == "w@d.test" && e["dsn"] == "4.2.2");
    sink.behave_well();
    system.finished(&id);
    let last = sink.taken().pop().unwrap();
    assert_eq!(last.rcpt, ["RCPT TO:<w@d.test>"], "the delivered one is not tried again");
}

/// What Python makes of a bounce: `key=value` lines.
fn report_of(bytes: &[u8]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("report");
    std::fs::write(&path, bytes).unwrap();
    let script = "import email, email.policy, sys\n\
        m = email.message_from_binary_file(open(sys.argv[1], 'rb'), policy=email.policy.default)\n\
        print('type=' + m.get_content_type())\n\
        print('report-type=' + m.get_param('report-type', ''))\n\
        parts = list(m.iter_parts())\n\
        print('parts=' + ' '.join(p.get_content_type() for p in parts))\n\
        for block in parts[1].get_payload():\n\
        \x20   for name, value in block.items():\n\
        \x20       print(name.lower() + '=' + ' '.join(str(value).split()))\n\
        last = parts[2]\n\
        o = last.get_payload(0) if last.get_content_type() == 'message/rfc822' else \
        email.message_from_string(last.get_payload())\n\
        print('original-subject=' + o['Subject'])\n\
        print('defects=' + str(m.defects + [d for p in m.walk() for d in p.defects]))\n";
    python(script, &[path.to_str().unwrap()])
}
