//! What senders hear of their mail: reports of failure, delay and success (RFC 3461, 3464, 6522), as Python's
//! email package reads them.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::time::Duration;

use postern_smtp::parameters::ByMode;
use postern_spool::{Deadline, Options, Timestamp};
use postern_tests::{
    Address, Answer, Builder, Mail, Postfix, Sink, Smtp, System, have, have_root, maildir, message, put,
    python, until, vectors,
};
use serde_json::Value;

const READ: &str = r#"
import email, email.policy, json, sys
m = email.message_from_binary_file(open(sys.argv[1], 'rb'), policy=email.policy.default)
assert m.get_content_type() == 'multipart/report' and not m.defects, m.defects
assert m.get_param('report-type') == 'delivery-status'
words, status, returned = m.iter_parts()
assert words.get_content_type() == 'text/plain' and status.get_content_type() == 'message/delivery-status'
groups = [{k.lower(): str(v) for k, v in g.items()} for g in status.get_payload()]
print(json.dumps({'subject': str(m['subject']), 'words': words.get_content(), 'message': groups[0],
    'recipients': groups[1:], 'kind': returned.get_content_type(), 'returned': returned.as_string()}))
"#;

/// A report as a reader takes it.
fn read(mail: &Mail) -> Value {
    assert_eq!(mail.header("Return-Path").unwrap(), "<>");
    serde_json::from_str(&python(READ, &[mail.path.to_str().unwrap()])).unwrap()
}

/// The first report that the sender gets.
fn report(system: &System) -> Value {
    read(&system.wait_maildir("sender@v.test", 1)[0])
}

fn submit(client: &mut Smtp, mail: &str, rcpt: &[&str], content: &[u8]) -> String {
    client.ehlo();
    client.says(&format!("MAIL FROM:<sender@v.test>{mail}"), "250");
    rcpt.iter().for_each(|rcpt| drop(client.says(&format!("RCPT TO:{rcpt}"), "250")));
    client.says("DATA", "354");
    client.bytes(content);
    client.bytes(b".\r\n");
    client.expect("250").queue_id().unwrap()
}

fn relaying(sink: &Sink) -> Builder {
    System::builder().relay().route("sink.test", &sink.via())
}

/// A sink that offers DSN, or more.
fn offering(keywords: &'static str) -> Sink {
    let sink = Sink::start();
    sink.behave(move |command| match command.starts_with("EHLO") {
        true => Answer::Say(format!("250-sink.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 {keywords}")),
        false => Answer::Usual,
    });
    sink
}

#[test]
fn success_is_told_to_whom_asked() {
    if !have(&["python3"]) {
        return;
    }
    let system = System::start();
    let rcpt = ["<u@v.test> NOTIFY=SUCCESS ORCPT=rfc822;Some+2BOne@v.test", "<w@v.test>"];
    let id = submit(&mut system.smtp(), " RET=FULL ENVID=QQ+2B314", &rcpt, &message("to be confirmed"));
    let report = report(&system);
    assert_eq!(report["subject"], "Successful Mail Delivery Report");
    assert_eq!(report["message"]["original-envelope-id"], "QQ+314");
    assert_eq!(report["message"]["reporting-mta"], "dns; mx.test");
    let recipients = report["recipients"].as_array().unwrap();
    assert_eq!(recipients.len(), 1, "the other did not ask: {report}");
    assert_eq!(recipients[0]["original-recipient"], "rfc822; Some+One@v.test");
    assert_eq!(recipients[0]["final-recipient"], "rfc822; u@v.test");
    assert_eq!(recipients[0]["action"], "delivered");
    assert!(recipients[0]["status"].as_str().unwrap().starts_with("2."), "{report}");
    // The message itself comes back when it failed, and only then (RFC 3461 §4.3).
    assert_eq!(report["kind"], "text/rfc822-headers");
    system.finished(&id);
    assert_eq!(system.spool("cur"), [""; 0]);
}

#[test]
fn failure_is_told_as_it_was_asked_for() {
    if !have(&["python3"]) {
        return;
    }
    let sink = Sink::start();
    sink.behave(|command| match command.starts_with("RCPT") {
        true => Answer::Say("550 5.1.1 Nobody".into()),
        false => Answer::Usual,
    });
    let system = relaying(&sink).start();
    let mut client = system.smtp();
    let never = ["<never@sink.test> NOTIFY=NEVER", "<quiet@sink.test> NOTIFY=SUCCESS,DELAY"];
    let silent = submit(&mut client, "", &never, &message("silent"));
    system.finished(&silent);
    system.wait("bounce-dropped", |e| e["id"] == *silent);
    let rcpt = ["<a@sink.test> NOTIFY=FAILURE ORCPT=x400;C+3Dde+2BO", "<never@sink.test> NOTIFY=NEVER"];
    submit(&mut client, " RET=HDRS ENVID=e1", &rcpt, &message("loud"));
    let report = report(&system);
    assert_eq!(system.maildir("sender@v.test").len(), 1, "the first was silent");
    assert_eq!(report["subject"], "Undelivered Mail Returned to Sender");
    assert_eq!(report["message"]["original-envelope-id"], "e1");
    let recipients = report["recipients"].as_array().unwrap();
    assert_eq!(recipients.len(), 1, "{report}");
    assert_eq!(recipients[0]["original-recipient"], "x400; C=de+O");
    assert_eq!((&recipients[0]["action"], &recipients[0]["status"]), (&"failed".into(), &"5.1.1".into()));
    assert_eq!(recipients[0]["diagnostic-code"], "smtp; 550 5.1.1 Nobody");
    assert_eq!(report["kind"], "text/rfc822-headers", "RET=HDRS");
    assert!(report["returned"].as_str().unwrap().contains("Subject: loud"));
}

#[test]
fn relayed_to_a_host_without_dsn_and_passed_on_to_one_with() {
    if !have(&["python3"]) {
        return;
    }
    let (plain, knows) = (Sink::start(), offering("DSN"));
    let system =
        System::builder().relay().route("plain.test", &plain.via()).route("knows.test", &knows.via()).start();
    let rcpt =
        ["<a@plain.test> NOTIFY=SUCCESS,FAILURE", "<b@knows.test> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;o@x"];
    let id = submit(&mut system.smtp(), " RET=HDRS ENVID=here", &rcpt, &message("two ways"));
    let report = report(&system);
    let recipients = report["recipients"].as_array().unwrap();
    assert_eq!(recipients.len(), 1, "{report}");
    assert_eq!(recipients[0]["final-recipient"], "rfc822; a@plain.test");
    assert_eq!(recipients[0]["action"], "relayed");
    system.finished(&id);
    assert!(!plain.taken()[0].mail.contains("RET="));
    let passed = &knows.taken()[0];
    assert!(passed.mail.ends_with(" RET=HDRS ENVID=here"), "{}", passed.mail);
    assert_eq!(passed.rcpt, ["RCPT TO:<b@knows.test> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;o@x"]);
}

#[test]
fn of_an_alias_of_several_the_sender_hears_that_it_is_one() {
    if !have(&["python3"]) {
        return;
    }
    let knows = offering("DSN");
    let builder = System::builder().relay().route("knows.test", &knows.via());
    let system =
        builder.set("local", "domains", "[\"l.test\"]").set("local", "aliases", "\"{directory}/aliases\"");
    let mut system = system.prepare();
    let aliases =
        "several: a@knows.test, w@v.test\none: b@knows.test\nlist: c@knows.test\nowner-list: o@v.test\n";
    std::fs::write(system.directory().join("aliases"), aliases).unwrap();
    system.start_again();
    let mut client = system.smtp();
    let asks = |name: &str| format!("<{name}@l.test> NOTIFY=SUCCESS,FAILURE");
    submit(&mut client, " ENVID=e", &[&asks("several")], &message("several"));
    let expanded = report(&system);
    assert_eq!(expanded["recipients"][0]["action"], "expanded");
    assert_eq!(expanded["recipients"][0]["final-recipient"], "rfc822; several@l.test");
    submit(&mut client, " ENVID=e", &[&asks("list")], &message("list"));
    let reports = system.wait_maildir("sender@v.test", 2);
    let of_list =
        reports.iter().map(read).find(|r| r["recipients"][0]["final-recipient"] == "rfc822; list@l.test");
    assert_eq!(of_list.unwrap()["recipients"][0]["action"], "delivered");
    submit(&mut client, " ENVID=e", &[&asks("one")], &message("one"));
    let taken = knows.wait(3);
    let rcpt = |address: &str| {
        let found = taken.iter().find(|taken| taken.rcpt[0].contains(address)).unwrap();
        (found.mail.clone(), found.rcpt[0].clone())
    };
    let orcpt = |name: &str| format!("ORCPT=rfc822;{name}@l.test");
    let (mail, several) = rcpt("<a@knows.test>");
    assert!(mail.ends_with(" ENVID=e"), "{mail}");
    assert_eq!(several, format!("RCPT TO:<a@knows.test> NOTIFY=FAILURE {}", orcpt("several")));
    assert_eq!(rcpt("<b@").1, format!("RCPT TO:<b@knows.test> NOTIFY=SUCCESS,FAILURE {}", orcpt("one")));
    // A list's mail is the list's.
    let (mail, list) = rcpt("<c@");
    assert!(mail.starts_with("MAIL FROM:<owner-list@l.test>") && !mail.contains("ENVID"), "{mail}");
    assert_eq!(list, "RCPT TO:<c@knows.test>");
}

#[test]
fn delay_is_told_once() {
    if !have(&["python3"]) {
        return;
    }
    let absent = Address::claim();
    let via = format!("smtp:[{}]:2600", absent.ip);
    let builder = System::builder().relay().fast_retries().route("sink.test", &via);
    let system = builder.set("queue", "delay-warning", "\"2 s\"").start();
    let rcpt = ["<a@sink.test>", "<b@sink.test> NOTIFY=FAILURE", "<c@sink.test> NOTIFY=DELAY"];
    let id = submit(&mut system.smtp(), "", &rcpt, &message("slow"));
    let report = report(&system);
    assert_eq!(report["subject"], "Delayed Mail (still being retried)");
    let recipients = report["recipients"].as_array().unwrap();
    let told: Vec<_> = recipients.iter().map(|r| r["final-recipient"].as_str().unwrap()).collect();
    assert_eq!(told, ["rfc822; a@sink.test", "rfc822; c@sink.test"]);
    assert!(recipients.iter().all(|r| r["action"] == "delayed" && r["will-retry-until"].is_string()));
    assert!(recipients[0]["status"].as_str().unwrap().starts_with("4."));
    let mark = system.log.mark();
    for _ in 0..3 {
        let again = |e: &Value| e["id"] == *id && e["status"] == "deferred" && e["to"] == "a@sink.test";
        system.log.wait_from(mark, "delivery", again, Duration::from_secs(60));
    }
    assert_eq!(system.maildir("sender@v.test").len(), 1, "once");
    let _there = Sink::start_at(absent.port(2600));
    system.finished(&id);
}

#[test]
fn returned_when_it_is_late_and_told_when_it_is() {
    if !have(&["python3"]) {
        return;
    }
    let absent = Address::claim();
    let via = format!("smtp:[{}]:2600", absent.ip);
    let builder = System::builder().relay().route("sink.test", &via);
    // The retries are much later than the deadline.
    let system = builder.set("queue", "retry-first", "\"1 h\"").set("queue", "retry-most", "\"2 h\"").start();
    // By SMTP a minute is the least (RFC 2852 §3), too long for a test.
    let deadline = Deadline { at: Timestamp(Timestamp::now().0 + 2000), mode: ByMode::Return, trace: false };
    let id = put(&system, "a@sink.test", Options { deliver_by: Some(deadline), ..Options::default() });
    let returned = report(&system);
    assert_eq!(returned["recipients"][0]["status"], "5.4.7");
    assert_eq!(returned["kind"], "message/rfc822");
    system.finished(&id);
    let mut client = system.smtp();
    submit(&mut client, " BY=2;N", &["<a@sink.test>"], &message("please hurry"));
    let reports = system.wait_maildir("sender@v.test", 2);
    let late = reports.iter().map(read).find(|r| r["recipients"][0]["action"] == "delayed");
    assert!(late.is_some());
    assert_eq!(system.postern_json(&["queue", "list"]).len(), 1, "it is tried on");
}

#[test]
fn reports_of_mail_in_utf8() {
    if !have(&["python3"]) {
        return;
    }
    let sink = Sink::start();
    sink.behave(|command| match () {
        () if command.starts_with("EHLO") => {
            Answer::Say("250-sink.test\r\n250-8BITMIME\r\n250 SMTPUTF8".into())
        }
        () if command.starts_with("RCPT") => Answer::Say("550 5.1.1 Niemand".into()),
        () => Answer::Usual,
    });
    let system = relaying(&sink).start();
    let content = "Subject: Grüße\r\n\r\nHällo\r\n".as_bytes();
    let rcpt = ["<jürgen@sink.test> ORCPT=utf-8;j\\x{FC}rgen@sink.test"];
    submit(&mut system.smtp(), " SMTPUTF8 BODY=8BITMIME", &rcpt, content);
    let report = report(&system);
    assert_eq!(report["recipients"][0]["final-recipient"], "utf-8; j\\x{FC}rgen@sink.test");
    assert_eq!(report["recipients"][0]["original-recipient"], "utf-8; j\\x{FC}rgen@sink.test");
    assert_eq!(report["kind"], "message/global");
}

/// A restart between the delivery and its report: the report comes all the same, and no second delivery.
#[test]
fn a_report_that_is_owed_survives_a_kill() {
    if !have(&["python3"]) {
        return;
    }
    let mut system = System::start();
    let mut client = system.smtp();
    let ids: Vec<String> = (0..20)
        .map(|n| {
            let rcpt = format!("<u{n}@v.test> NOTIFY=SUCCESS");
            submit(&mut client, "", &[&rcpt], &message("survives"))
        })
        .collect();
    system.kill_all();
    system.start_again();
    assert_eq!(ids.len(), 20);
    // What was delivered in the last second may be delivered, and told of, once more.
    until("a report for each", Duration::from_secs(60), || {
        let told: BTreeSet<String> = system
            .maildir("sender@v.test")
            .iter()
            .map(|mail| read(mail)["recipients"][0]["final-recipient"].as_str().unwrap().to_owned())
            .collect();
        (told.len() == 20).then_some(())
    });
}

/// Postfix judges too: it takes what we pass on, and its own reports come back through us.
#[test]
fn postfix_takes_over() {
    if !have(&["postfix", "python3"]) || !have_root() {
        return;
    }
    let postfix = Postfix::start("normalize", false);
    let system = System::builder().relay().virtual_domain("w.test").route("v.test", &postfix.via()).start();
    let mut client = system.smtp();
    client.ehlo();
    client.says("MAIL FROM:<s@w.test> RET=HDRS ENVID=through+2Bpostfix", "250");
    client.says("RCPT TO:<u1@v.test> NOTIFY=SUCCESS ORCPT=rfc822;u1@v.test", "250");
    client.says("DATA", "354");
    client.bytes(&message("for Postfix"));
    client.bytes(b".\r\n");
    let id = client.expect("250").queue_id().unwrap();
    system.finished(&id);
    assert!(system.maildir("s@w.test").is_empty(), "Postfix tells of it, not we");
    until("its mail", Duration::from_secs(60), || {
        (maildir(&postfix.mail().join("u1")).len() == 1).then_some(())
    });
}

/// The reports of other systems are laid out as ours: field for field, what readers of reports look for is there.
#[test]
fn our_reports_have_what_postfix_s_have() {
    if !have(&["python3"]) {
        return;
    }
    let Some(theirs) = vectors("dsn/sisimai/lhost-postfix-01.eml") else { return };
    let sink = Sink::start();
    sink.behave(|command| match command.starts_with("RCPT") {
        true => Answer::Say("550 5.1.1 Nobody".into()),
        false => Answer::Usual,
    });
    let system = relaying(&sink).start();
    submit(&mut system.smtp(), "", &["<a@sink.test>"], &message("compared"));
    let ours = report(&system);
    let file = system.directory().join("theirs.eml");
    std::fs::write(&file, theirs).unwrap();
    let fields = r#"
import email, json, sys
m = email.message_from_binary_file(open(sys.argv[1], 'rb'))
status = [p for p in m.walk() if p.get_content_type() == 'message/delivery-status'][0]
print(json.dumps([sorted(k.lower() for k in g.keys()) for g in status.get_payload()]))
"#;
    let theirs: Vec<Vec<String>> = serde_json::from_str(&python(fields, &[file.to_str().unwrap()])).unwrap();
    for (group, theirs) in [(&ours["message"], &theirs[0]), (&ours["recipients"][0], &theirs[1])] {
        let standard = theirs.iter().filter(|field| !field.starts_with("x-"));
        for field in standard.filter(|field| *field != "original-recipient") {
            assert!(group.get(field).is_some(), "no {field} in {group}");
        }
    }
}

/// HOLDUNTIL over a restart, and what an operator sees of it.
#[test]
fn mail_waits_for_its_sender_s_time() {
    let sink = Sink::start();
    let mut system = relaying(&sink).start();
    let until_then = Timestamp(Timestamp::now().0 + 8000);
    let id = put(
        &system,
        "a@sink.test",
        Options { hold_until: Some(until_then), priority: 4, ..Options::default() },
    );
    let listed = |system: &System| system.postern_json(&["queue", "list"]);
    let state = |system: &System| listed(system).first().map(|m| m["state"].clone());
    let scheduled = |system: &System| (state(system) == Some("scheduled".into())).then_some(());
    until("it is scheduled", Duration::from_secs(60), || scheduled(&system));
    let shown = &system.postern_json(&["queue", "show", &id])[0];
    assert_eq!(shown["options"]["priority"], 4);
    assert!(shown["options"]["hold_until"].is_string(), "{shown}");
    system.postern_json(&["queue", "flush"]);
    system.kill_all();
    system.start_again();
    if Timestamp::now().0 + 2000 < until_then.0 {
        until("it is scheduled again", Duration::from_secs(60), || {
            (Timestamp::now() >= until_then).then_some(()).or_else(|| scheduled(&system))
        });
    }
    sink.wait(1);
    assert!(Timestamp::now() >= until_then, "too early");
    system.finished(&id);
}

/// Held by a rule: nothing happens until an operator releases it, over restarts.
#[test]
fn held_until_an_operator_releases_it() {
    let sink = Sink::start();
    let mut system = relaying(&sink).start();
    let id = put(&system, "a@sink.test", Options { held: true, ..Options::default() });
    let held = |system: &System| {
        let listed = system.postern_json(&["queue", "list"]);
        listed.first().filter(|m| m["state"] == "held").map(|_| ())
    };
    until("it is held", Duration::from_secs(60), || held(&system));
    system.kill_all();
    system.start_again();
    until("it is held again", Duration::from_secs(60), || held(&system));
    assert!(sink.taken().is_empty());
    system.postern_json(&["queue", "release", &id]);
    sink.wait(1);
    system.finished(&id);
}
