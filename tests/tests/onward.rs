//! What goes on to the next host: parameters it offers to hear, content in octets it takes.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use postern_smtp::parameters::ByMode;
use postern_spool::{Deadline, Options, Timestamp};
use postern_tests::{
    Answer, Builder, Postfix, Sink, Smtp, SmtpSink, System, from_line, have, have_root, maildir, put, python,
    until,
};

/// A sink that offers these keywords and nothing else.
fn offering(keywords: &str) -> Sink {
    let sink = Sink::start();
    let ehlo = format!("250-sink.test\r\n250 {}", keywords.replace(", ", "\r\n250-"));
    let lines: Vec<&str> = ehlo.split("\r\n").collect();
    let (last, others) = lines.split_last().unwrap();
    let others: Vec<String> = others.iter().map(|line| line.replacen(' ', "-", 1)).collect();
    let ehlo = [others, vec![last.replacen('-', " ", 1)]].concat().join("\r\n");
    sink.behave(move |command| match command.starts_with("EHLO") {
        true => Answer::Say(ehlo.clone()),
        false => Answer::Usual,
    });
    sink
}

fn relaying(via: &str) -> Builder {
    System::builder().relay().route("sink.test", via)
}

/// One message by DATA, with these parameters of MAIL.
fn submit(client: &mut Smtp, mail: &str, to: &str, content: &[u8]) -> String {
    client.ehlo();
    client.says(&format!("MAIL FROM:<sender@v.test>{mail}"), "250");
    client.says(&format!("RCPT TO:<{to}>"), "250");
    client.says("DATA", "354");
    for line in content.split_inclusive(|octet| *octet == b'\n') {
        let dot: &[u8] = if line.starts_with(b".") { b"." } else { b"" };
        client.bytes(&[dot, line].concat());
    }
    client.bytes(b".\r\n");
    client.expect("250").queue_id().unwrap()
}

/// One message by BDAT, in two chunks.
fn submit_binary(client: &mut Smtp, to: &str, content: &[u8]) -> String {
    client.ehlo();
    client.says("MAIL FROM:<sender@v.test> BODY=BINARYMIME", "250");
    client.says(&format!("RCPT TO:<{to}>"), "250");
    let (first, last) = content.split_at(content.len() / 2);
    client.bytes(format!("BDAT {}\r\n", first.len()).as_bytes());
    client.bytes(first);
    client.expect("250");
    client.bytes(format!("BDAT {} LAST\r\n", last.len()).as_bytes());
    client.bytes(last);
    client.expect("250").queue_id().unwrap()
}

const MIXED: &str = "Subject: mixed\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=\"b b\"\r\n\
    Content-Transfer-Encoding: 8bit\r\n\r\n--b b\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Transfer-Encoding: 8bit\r\n\r\nGrüße, = und \r\n.\r\n--b b\r\nContent-Type: message/rfc822\r\n\
    Content-Transfer-Encoding: 8bit\r\n\r\nSubject: inner\r\nMIME-Version: 1.0\r\n\
    Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\nПривет\r\n--b b--\r\n";

/// Prints what Python's email package makes of the leaves of a message, and whether it found defects.
const LEAVES: &str = r#"
import email, email.policy, sys
data = open(sys.argv[1], 'rb').read()
m = email.message_from_bytes(data, policy=email.policy.SMTP)
print(all(b < 128 for b in data), sum((len(p.defects) for p in m.walk()), 0))
for p in m.walk():
    if not p.is_multipart():
        print(p.get_content_type(), p.get_payload(decode=True))
"#;

fn leaves(system: &System, name: &str, content: &[u8]) -> String {
    let file = system.directory().join(name);
    std::fs::write(&file, content).unwrap();
    python(LEAVES, &[file.to_str().unwrap()])
}

#[test]
fn a_host_without_8bitmime_gets_seven_bits_that_mean_the_same() {
    if !have(&["python3", "smtp-sink"]) {
        return;
    }
    let (ours, theirs) = (offering("SIZE"), SmtpSink::start(&["-8"]));
    let (wide, with) = (Sink::start(), relaying(&ours.via()).route("theirs.test", &theirs.via()));
    let system = with.route("wide.test", &wide.via()).start();
    let mut client = system.smtp();
    let mail = " BODY=8BITMIME";
    for to in ["a@sink.test", "a@theirs.test", "a@wide.test"] {
        let id = submit(&mut client, mail, to, MIXED.as_bytes());
        system.finished(&id);
    }
    assert!(!ours.taken()[0].mail.contains("BODY="), "{}", ours.taken()[0].mail);
    let unchanged = &wide.taken()[0].content;
    assert!(unchanged.ends_with(MIXED.as_bytes()), "a host with 8BITMIME gets it as it is");
    let meant = leaves(&system, "meant", MIXED.as_bytes());
    let converted = leaves(&system, "converted", from_line(&ours.taken()[0].content, b"Subject: "));
    assert!(meant.starts_with("False 0") && converted.starts_with("True 0"), "{meant}{converted}");
    assert_eq!(meant.lines().skip(1).collect::<Vec<_>>(), converted.lines().skip(1).collect::<Vec<_>>());
    let stranger = theirs.wait(1, Duration::from_secs(60));
    assert!(stranger[0].is_ascii());
}

#[test]
fn what_is_no_mime_goes_as_it_is() {
    let sink = offering("SIZE");
    let system = relaying(&sink.via()).start();
    let content = "Subject: plain\r\n\r\nGrüße\r\n";
    let id = submit(&mut system.smtp(), " BODY=8BITMIME", "a@sink.test", content.as_bytes());
    system.finished(&id);
    assert!(sink.taken()[0].content.ends_with(content.as_bytes()));
}

#[test]
fn utf8_goes_where_it_is_taken() {
    let (plain, knows) = (Sink::start(), offering("8BITMIME, SMTPUTF8"));
    let system = relaying(&plain.via()).route("knows.test", &knows.via()).start();
    let mut client = system.smtp();
    let mail = " SMTPUTF8 BODY=8BITMIME";
    let header = "Subject: Grüße\r\n\r\nx\r\n".as_bytes();
    let refused = submit(&mut client, mail, "a@sink.test", header);
    assert_eq!(system.attempted(&refused, "bounced")["dsn"], "5.6.7");
    // Said and not used: every host can have it (RFC 6531 §3.2).
    let unused = submit(&mut client, mail, "a@sink.test", b"Subject: x\r\n\r\nx\r\n");
    system.finished(&unused);
    assert_eq!(plain.taken().len(), 1);
    let taken = submit(&mut client, mail, "ä@knows.test", header);
    system.finished(&taken);
    assert!(knows.taken()[0].mail.ends_with(" BODY=8BITMIME SMTPUTF8"), "{}", knows.taken()[0].mail);
    assert_eq!(knows.taken()[0].rcpt, ["RCPT TO:<ä@knows.test>"]);
}

#[test]
fn deadlines_and_priorities_go_on() {
    let sink = offering("DELIVERBY, MT-PRIORITY");
    let system = relaying(&sink.via()).start();
    let at = Timestamp(Timestamp::now().0 + 600_000);
    let deliver_by = Some(Deadline { at, mode: ByMode::Return, trace: true });
    put(&system, "a@sink.test", Options { deliver_by, priority: -4, ..Options::default() });
    let mail = sink.wait(1)[0].mail.clone();
    let (_, by) = mail.split_once(" BY=").unwrap();
    let seconds: u64 = by.split(';').next().unwrap().parse().unwrap();
    assert!((400..600).contains(&seconds), "less the time spent: {mail}");
    assert!(mail.ends_with(";RT MT-PRIORITY=-4"), "{mail}");
    // Nobody sees to the deadline at a host that does not know of it.
    let plain = Sink::start();
    let system = relaying(&plain.via()).start();
    let id = put(&system, "a@sink.test", Options { deliver_by, ..Options::default() });
    assert_eq!(system.attempted(&id, "bounced")["dsn"], "5.3.3");
    let notify = Deadline { at, mode: ByMode::Notify, trace: false };
    let id = put(&system, "a@sink.test", Options { deliver_by: Some(notify), ..Options::default() });
    system.finished(&id);
    assert_eq!(plain.taken().len(), 1);
}

#[test]
fn binary_mail_goes_in_chunks_or_is_converted_or_comes_back() {
    if !have(&["python3"]) {
        return;
    }
    let next = System::builder().start();
    let plain = Sink::start();
    let system = relaying(&plain.via()).route("v.test", &next.via()).virtual_domain("w.test").start();
    let binary: Vec<u8> = (0..70_000u32).map(|n| (n * 7 % 256) as u8).collect();
    let head = b"Subject: binary\r\nMIME-Version: 1.0\r\nContent-Type: application/octet-stream\r\n\
        Content-Transfer-Encoding: binary\r\n\r\n";
    let content = [&head[..], &binary].concat();
    let mut client = system.smtp();
    // By BDAT to a host that takes it.
    let id = submit_binary(&mut client, "b@v.test", &content);
    system.finished(&id);
    let accepted = next.wait("accepted", |_| true);
    assert!(accepted["size"].as_u64().unwrap() > content.len() as u64, "{accepted}");
    // Converted for one that does not.
    let id = submit_binary(&mut client, "b@sink.test", &content);
    system.finished(&id);
    let converted = &plain.taken()[0];
    assert!(!converted.mail.contains("BODY=") && converted.content.is_ascii());
    let read = leaves(&system, "converted", from_line(&converted.content, b"Subject: "));
    let meant = leaves(&system, "meant", &content);
    assert_eq!(read.lines().nth(1).map(str::len), meant.lines().nth(1).map(str::len));
    assert_eq!(read.lines().nth(1), meant.lines().nth(1));
    // What no reader could put together again comes back.
    let id = submit_binary(&mut client, "b@sink.test", b"Subject: none\r\n\r\n\0\n\r");
    assert_eq!(system.attempted(&id, "bounced")["dsn"], "5.6.3");
}

/// Debian's Postfix as the next hop: it offers 8BITMIME, DSN, SMTPUTF8 and CHUNKING, and no BINARYMIME.
#[test]
fn postfix_takes_all_of_it() {
    if !have(&["postfix", "python3"]) || !have_root() {
        return;
    }
    let postfix = Postfix::start("normalize", false);
    let system = System::builder().relay().virtual_domain("w.test").route("v.test", &postfix.via()).start();
    let mut client = system.smtp();
    let ids = [
        submit(&mut client, " BODY=8BITMIME RET=FULL ENVID=a+3Db", "u1@v.test", MIXED.as_bytes()),
        submit(&mut client, " BODY=8BITMIME SMTPUTF8", "u1@v.test", "Subject: Grüße\r\n\r\nx\r\n".as_bytes()),
        submit_binary(
            &mut client,
            "u1@v.test",
            b"MIME-Version: 1.0\r\nContent-Transfer-Encoding: binary\r\n\r\n\0\x01\r\n",
        ),
    ];
    ids.iter().for_each(|id| drop(system.attempted(id, "sent")));
    let inbox = postfix.mail().join("u1");
    until("three messages", Duration::from_secs(60), || (maildir(&inbox).len() == 3).then_some(()));
    let mails = maildir(&inbox);
    assert!(mails.iter().any(|mail| mail.header("Subject").as_deref() == Some("Grüße")));
    let encoding = |mail: &postern_tests::Mail| mail.header("Content-Transfer-Encoding");
    assert!(mails.iter().any(|mail| encoding(mail).as_deref() == Some("base64")));
}
