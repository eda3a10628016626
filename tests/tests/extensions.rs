//! Each service extension: what it does on the running system, and that it can be switched off.
#![allow(clippy::unwrap_used)]

use postern_smtp::parameters::{ByMode, Notify, OriginalRecipient, RcptParameters, Ret};
use postern_spool::{BodyType, Envelope};
use postern_tests::{Builder, Exim, Reply, Smtp, System, have, have_root, message, python, skip};

/// A port where nobody is: what goes there stays in the queue.
const NOWHERE: &str = "smtp:[127.0.0.1]:1";

/// A second `smtp` port, without these.
fn without(builder: Builder, service: &str, extensions: &[&str]) -> Builder {
    let names: Vec<_> = extensions.iter().map(|name| format!("\"{name}\"")).collect();
    builder.toml(&format!(
        "[[listen]]\naddress = \"127.0.0.1:0\"\nservice = \"{service}\"\nwithout = [{}]",
        names.join(", ")
    ))
}

fn offers(reply: &Reply, keyword: &str) -> bool {
    reply.lines.iter().any(|line| line.split(' ').next() == Some(keyword))
}

/// The envelope of the only message that waits in the queue, and its body.
fn queued(system: &System, id: &str) -> (Envelope, Vec<u8>) {
    system.attempted(id, "deferred");
    let files = system.spool_files("cur");
    for file in &files {
        if let Some(n) = file.messages().iter().position(|message| message.id.to_string() == id) {
            return (file.messages()[n].envelope.clone(), file.read_body(n).unwrap());
        }
    }
    panic!("{id} is not in the queue");
}

#[test]
fn offered_where_they_fit_and_not_where_they_are_switched_off() {
    let all = ["PIPELINING", "SIZE", "8BITMIME", "ENHANCEDSTATUSCODES", "CHUNKING", "BINARYMIME", "SMTPUTF8"];
    let all = [&all[..], &["DSN", "DELIVERBY", "LIMITS", "PRDR", "ETRN", "VRFY", "EXPN", "HELP"]].concat();
    let users = ["FUTURERELEASE", "MT-PRIORITY"];
    let builder = System::builder().listen("127.0.0.1:0", "submission").listen("127.0.0.1:0", "lmtp");
    let system = without(builder, "submission", &[&all[..], &users].concat()).start();
    let smtp = system.smtp().ehlo();
    let submission = system.addresses("submission").into_iter().map(|at| Smtp::connect(at).ehlo());
    let submission: Vec<_> = submission.collect();
    for name in &all {
        assert!(offers(&smtp, name), "{name}: {smtp}");
    }
    for name in users {
        assert!(!offers(&smtp, name), "{name}: {smtp}");
    }
    for name in [&all[..], &users].concat() {
        assert!(submission.iter().any(|reply| offers(reply, name)), "{name}: {submission:?}");
    }
    assert!(submission.iter().any(|reply| reply.lines == ["mx.test"]), "{submission:?}");
    let mut lmtp = Smtp::connect(system.addresses("lmtp")[0]);
    let lmtp = lmtp.says("LHLO client.test", "250");
    assert!(offers(&lmtp, "CHUNKING") && !offers(&lmtp, "PRDR") && !offers(&lmtp, "FUTURERELEASE"), "{lmtp}");
}

#[test]
fn what_is_switched_off_is_not_taken() {
    let extensions = ["CHUNKING", "SMTPUTF8", "DSN", "DELIVERBY", "PRDR", "ENHANCEDSTATUSCODES", "LIMITS"];
    let system = without(System::builder(), "smtp", &extensions).start();
    let address = system.addresses("smtp").into_iter().find(|at| *at != system.address()).unwrap();
    let mut client = Smtp::connect(address);
    client.ehlo();
    for parameter in ["SMTPUTF8", "RET=FULL", "ENVID=x", "BY=100;R", "PRDR", "HOLDFOR=5", "MT-PRIORITY=3"] {
        client.says(&format!("MAIL FROM:<a@x.test> {parameter}"), "555 Unsupported");
    }
    client.dialogue(&[
        ("MAIL FROM:<a@x.test> BODY=BINARYMIME", "501 Bad"),
        ("MAIL FROM:<a@x.test>", "250 Ok"),
        ("RCPT TO:<u@v.test> NOTIFY=NEVER", "555 Unsupported"),
        ("RCPT TO:<u@v.test>", "250 Ok"),
    ]);
    // The chunk's octets are no commands, whether we like chunks or not.
    client.bytes(b"BDAT 6 LAST\r\nQUIT\r\n");
    client.expect("502 Error");
    client.says("DATA", "354");
    client.bytes(&message("without"));
    client.line(".");
    client.expect("250 Ok: queued");
}

#[test]
fn a_message_in_chunks() {
    let system = System::start();
    let mut client = system.smtp();
    client.ehlo();
    // All in one piece, with what would end it, or be a command, within.
    let text = b"Subject: chunks\r\n\r\n.\r\n..\r\nQUIT\r\n.no end";
    let (first, second) = text.split_at(21);
    let mut batch = b"MAIL FROM:<a@x.test> BODY=8BITMIME\r\nRCPT TO:<u@v.test>\r\n".to_vec();
    batch.extend(format!("BDAT {}\r\n", first.len()).bytes().chain(first.iter().copied()));
    batch.extend(format!("BDAT {} LAST\r\n", second.len()).bytes().chain(second.iter().copied()));
    batch.extend(b"NOOP\r\n");
    client.bytes(&batch);
    for expected in
        ["250 2.1.0", "250 2.1.5", "250 2.0.0 Ok: 21 octets", "250 2.0.0 Ok: queued", "250 2.0.0 Ok"]
    {
        client.expect(expected);
    }
    let mails = system.wait_maildir("u@v.test", 1);
    let bytes = String::from_utf8_lossy(&mails[0].bytes).replace("\r\n", "\n");
    assert!(bytes.ends_with("Subject: chunks\n\n.\n..\nQUIT\n.no end\n"), "{bytes}");
}

#[test]
fn large_chunks_are_streamed() {
    let system = System::start();
    let mut client = system.smtp();
    client.ehlo();
    let line = b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\r\n";
    let chunk = line.repeat(8192); // 512 KiB
    let header = b"Subject: large\r\n\r\n";
    client.dialogue(&[("MAIL FROM:<a@x.test>", "250"), ("RCPT TO:<u@v.test>", "250")]);
    let send = |client: &mut Smtp, chunk: &[u8], last: &str| {
        client.line(&format!("BDAT {}{last}", chunk.len()));
        client.bytes(chunk);
        client.reply()
    };
    assert!(send(&mut client, header, "").is("250"));
    for _ in 0..3 {
        assert!(send(&mut client, &chunk, "").is("250 2.0.0 Ok: 524288"));
    }
    // It is on the disk, not with us; and gone with RSET.
    assert_eq!(system.spool("tmp").len(), 1);
    client.says("RSET", "250");
    postern_tests::until("the file to go", std::time::Duration::from_secs(30), || {
        system.spool("tmp").is_empty().then_some(())
    });
    assert!(send(&mut client, b"abc", " LAST").is("503 5.5.1"));
    client.dialogue(&[("MAIL FROM:<a@x.test>", "250"), ("RCPT TO:<u@v.test>", "250")]);
    assert!(send(&mut client, header, "").is("250"));
    for last in ["", "", "", " LAST"] {
        assert!(send(&mut client, &chunk, last).is("250"));
    }
    let mails = system.wait_maildir("u@v.test", 1);
    let text = String::from_utf8(mails[0].bytes.clone()).unwrap().replace("\r\n", "\n");
    assert_eq!(text.matches("\n0123456789abcdef").count(), 4 * 8192);
    assert!(mails[0].header("Subject").unwrap().contains("large"));
}

#[test]
fn chunks_that_fail() {
    let system = System::builder().set("smtp", "message-size", "\"64 KiB\"").start();
    let mut client = system.smtp();
    client.ehlo();
    let begin = |client: &mut Smtp| {
        client.dialogue(&[("MAIL FROM:<a@x.test>", "250"), ("RCPT TO:<u@v.test>", "250")]);
    };
    client.bytes(b"BDAT 6 LAST\r\nRSET\r\n");
    client.expect("503 5.5.1");
    for (text, reply) in
        [("a\nb", "554 5.6.0"), ("a\r.\r\n", "554 5.6.0"), ("\r\n.\n", "554 5.6.0"), ("\0", "554 5.6.0")]
    {
        begin(&mut client);
        client.bytes(format!("BDAT {}\r\n{text}BDAT 6 LAST\r\nRSET\r\nNOOP\r\n", text.len()).as_bytes());
        client.expect(reply);
        client.expect("503 5.5.1");
        client.expect("250");
    }
    // Too large: told when it is known, read to its end.
    begin(&mut client);
    client.bytes(
        format!("BDAT 65537 LAST\r\n{}NOOP\r\n", "QUIT\r\n ".repeat(65537 / 7 + 1).split_at(65537).0)
            .as_bytes(),
    );
    client.expect("552 5.3.4");
    client.expect("250");
    // Not mixed with DATA.
    begin(&mut client);
    client.bytes(b"BDAT 3\r\nabcDATA\r\nRSET\r\n");
    client.expect("250");
    client.expect("503 5.5.1");
    client.expect("250");
    // Whoever does not say how much follows is not trusted further.
    client.line("BDAT much LAST");
    client.expect("521 5.5.4");
    client.closed();
    assert_eq!(system.spool("tmp"), [""; 0]);
    assert_eq!(system.maildir("u@v.test").len(), 0);
}

#[test]
fn binary_is_kept_as_it_is() {
    let system = System::builder().relay().route("*", NOWHERE).start();
    let mut client = system.smtp();
    client.ehlo();
    client.dialogue(&[
        ("MAIL FROM:<a@x.test> BODY=BINARYMIME", "250"),
        ("RCPT TO:<u@y.test>", "250"),
        ("DATA", "503 5.5.1"),
    ]);
    let mut text =
        b"Subject: binary\r\nMIME-Version: 1.0\r\nContent-Transfer-Encoding: binary\r\n\r\n".to_vec();
    text.extend((0..=255u8).chain(*b"\n\r.\r\n\r"));
    client.line(&format!("BDAT {} LAST", text.len()));
    client.bytes(&text);
    let id = client.expect("250").queue_id().unwrap();
    let (envelope, body) = queued(&system, &id);
    assert_eq!((envelope.body, body), (BodyType::Binary, text));
}

#[test]
fn addresses_in_utf8() {
    if !have(&["python3"]) {
        return;
    }
    let system = System::builder().users(&["jös@v.test", "u@v.test"]).start();
    let mut client = system.smtp();
    client.ehlo();
    client.dialogue(&[
        ("MAIL FROM:<jös@x.test>", "553 5.6.7"),
        ("MAIL FROM:<a@ö.test>", "553 5.6.7"),
        ("MAIL FROM:<a@x.test>", "250"),
        ("RCPT TO:<jös@v.test>", "553 5.6.7"),
        ("RSET", "250"),
        ("MAIL FROM:<a@x.test> SMTPUTF8 BODY=8BITMIME", "250"),
        ("RCPT TO:<nö@v.test>", "550 5.1.1"),
        ("RCPT TO:<jös@v.test>", "250"),
    ]);
    let script = "import smtplib, sys\n\
        from email.message import EmailMessage\n\
        from email.policy import SMTPUTF8\n\
        m = EmailMessage(policy=SMTPUTF8)\n\
        m['From'], m['To'], m['Subject'] = 'Jös <jös@x.test>', 'jös@v.test', 'Grüße'\n\
        m.set_content('Grüße\\n')\n\
        with smtplib.SMTP('127.0.0.1', int(sys.argv[1])) as s:\n\
        \x20   s.ehlo()\n\
        \x20   assert s.has_extn('smtputf8')\n\
        \x20   assert s.send_message(m) == {}\n\
        \x20   assert s.sendmail('a@x.test', ['u@v.test'], b'Subject: plain\\r\\n\\r\\nx\\r\\n') == {}\n";
    python(script, &[&system.address().port().to_string()]);
    // RFC 6531 §4.3: the trace says so.
    let mails = system.wait_maildir("jös@v.test", 1);
    let received = &mails[0].headers("Received")[0];
    assert!(received.contains("with UTF8SMTP id ") && received.contains("<jös@v.test>"), "{received}");
    assert!(String::from_utf8_lossy(&mails[0].bytes).contains("Subject: Grüße"));
    let mails = system.wait_maildir("u@v.test", 1);
    assert!(mails[0].headers("Received")[0].contains("with ESMTP id "));
}

#[test]
fn who_says_smtputf8_may_do_without() {
    let system = System::builder().relay().route("*", NOWHERE).start();
    for (header, recipient, needed) in [
        ("Subject: x", "u@y.test", false),
        ("Subject: ü", "u@y.test", true),
        ("Subject: x", "ü@y.test", true),
    ] {
        let mut client = system.smtp();
        client.ehlo();
        client.dialogue(&[
            ("MAIL FROM:<a@x.test> BODY=8BITMIME SMTPUTF8", "250"),
            (&format!("RCPT TO:<{recipient}>"), "250"),
            ("DATA", "354"),
        ]);
        client.bytes(format!("{header}\r\n\r\nGrüße\r\n.\r\n").as_bytes());
        let id = client.expect("250").queue_id().unwrap();
        let (envelope, _) = queued(&system, &id);
        assert_eq!((envelope.options.smtputf8, envelope.body), (needed, BodyType::EightBit), "{header}");
    }
}

#[test]
fn what_is_to_be_reported() {
    let system = System::builder().relay().route("*", NOWHERE).start();
    let mut client = system.smtp();
    client.ehlo();
    client.dialogue(&[
        ("MAIL FROM:<a@x.test> RET=ALL", "501 5.5.4"),
        ("MAIL FROM:<a@x.test> RET=FULL RET=FULL", "501 5.5.4"),
        ("MAIL FROM:<a@x.test> ENVID=a=b", "501 5.5.4"),
        ("MAIL FROM:<a@x.test> ENVID=+0d", "501 5.5.4"),
        ("MAIL FROM:<a@x.test> NOTIFY=NEVER", "555 5.5.4"),
        ("MAIL FROM:<a@x.test> RET=HDRS ENVID=QQ+2B314159", "250"),
        ("RCPT TO:<n@y.test> NOTIFY=NEVER,DELAY", "501 5.5.4"),
        ("RCPT TO:<n@y.test> NOTIFY=SUCCESS NOTIFY=DELAY", "501 5.5.4"),
        ("RCPT TO:<n@y.test> ORCPT=n@y.test", "501 5.5.4"),
        ("RCPT TO:<n@y.test> ORCPT=rfc822;n+4y.test", "501 5.5.4"),
        ("RCPT TO:<plain@y.test>", "250"),
        ("RCPT TO:<n@y.test> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;N+2Bn@z.test", "250"),
        ("RCPT TO:<m@y.test> NOTIFY=NEVER", "250"),
        ("DATA", "354"),
    ]);
    client.bytes(&message("dsn"));
    client.line(".");
    let id = client.expect("250").queue_id().unwrap();
    let options = queued(&system, &id).0.options;
    assert_eq!((options.ret, options.envid.as_deref()), (Some(Ret::Headers), Some("QQ+314159")));
    let both = Notify { success: true, failure: true, delay: false };
    let orcpt = OriginalRecipient { kind: "rfc822".into(), address: "N+n@z.test".into() };
    assert_eq!(
        options.recipients,
        [
            (1, RcptParameters { notify: Some(both), orcpt: Some(orcpt) }),
            (2, RcptParameters { notify: Some(Notify::default()), orcpt: None }),
        ]
    );
}

#[test]
fn when_it_is_to_be_there() {
    let system = System::builder().relay().route("*", NOWHERE).start();
    let mut client = system.smtp();
    let offered = client.ehlo();
    assert!(offered.lines.contains(&"DELIVERBY 60".to_owned()), "{offered}");
    client.dialogue(&[
        ("MAIL FROM:<a@x.test> BY=0;R", "501 5.5.4"),
        ("MAIL FROM:<a@x.test> BY=1;R", "555 5.5.4"),
        ("MAIL FROM:<a@x.test> BY=100", "501 5.5.4"),
        ("MAIL FROM:<a@x.test> BY=7200;RT", "250"),
        ("RCPT TO:<u@y.test>", "250"),
        ("DATA", "354"),
    ]);
    client.bytes(&message("by"));
    client.line(".");
    let id = client.expect("250").queue_id().unwrap();
    let envelope = queued(&system, &id).0;
    let by = envelope.options.deliver_by.unwrap();
    assert_eq!((by.at.0, by.mode, by.trace), (envelope.arrival.0 + 7_200_000, ByMode::Return, true));
}

#[test]
fn held_and_hurried_on_submission_alone() {
    let system = System::builder().listen("127.0.0.1:0", "submission").start();
    let mut stranger = system.smtp();
    stranger.ehlo();
    stranger.says("MAIL FROM:<a@x.test> HOLDFOR=60", "555 5.5.4");
    stranger.says("MAIL FROM:<a@x.test> MT-PRIORITY=3", "555 5.5.4");
    let mut client = Smtp::connect(system.addresses("submission")[0]);
    let offered = client.ehlo();
    let line = offered.lines.iter().find_map(|line| line.strip_prefix("FUTURERELEASE ")).unwrap().to_owned();
    let (interval, until) = line.split_once(' ').unwrap();
    assert_eq!(interval, "2592000");
    client.dialogue(&[
        ("MAIL FROM:<a@x.test> HOLDFOR=0", "501 5.5.4"),
        ("MAIL FROM:<a@x.test> HOLDFOR=2592001", "501 5.5.4"),
        ("MAIL FROM:<a@x.test> HOLDFOR=60 HOLDUNTIL=2030-01-01T00:00:00Z", "501 5.5.4"),
        ("MAIL FROM:<a@x.test> HOLDUNTIL=9999-01-01T00:00:00Z", "501 5.5.4"),
        ("MAIL FROM:<a@x.test> HOLDUNTIL=tomorrow", "501 5.5.4"),
        ("MAIL FROM:<a@x.test> MT-PRIORITY=10", "501 5.5.4"),
        ("MAIL FROM:<a@x.test> MT-PRIORITY=+1", "501 5.5.4"),
        (&format!("MAIL FROM:<a@x.test> HOLDUNTIL={until}"), "250"),
        ("RSET", "250"),
        ("MAIL FROM:<a@x.test> HOLDFOR=3600 MT-PRIORITY=-4", "250"),
        ("RCPT TO:<u@v.test>", "250"),
        ("DATA", "354"),
    ]);
    client.bytes(&message("held"));
    client.line(".");
    let id = client.expect("250").queue_id().unwrap();
    let files = postern_tests::until("it to be in the queue", std::time::Duration::from_secs(30), || {
        Some(system.spool_files("cur")).filter(|files| !files.is_empty())
    });
    let stored = &files[0].messages()[0];
    assert_eq!(stored.id.to_string(), id);
    let options = &stored.envelope.options;
    assert_eq!(options.hold_until.unwrap().0, stored.envelope.arrival.0 + 3_600_000);
    assert_eq!(options.priority, -4);
}

#[test]
fn limits_are_announced_and_kept() {
    let system = System::builder()
        .set("smtp", "messages", "2")
        .set("smtp", "recipients", "3")
        .set("smtp", "recipient-domains", "1")
        .relay()
        .route("*", NOWHERE)
        .start();
    let mut client = system.smtp();
    let offered = client.ehlo();
    assert!(offered.lines.contains(&"LIMITS MAILMAX=2 RCPTMAX=3 RCPTDOMAINMAX=1".to_owned()), "{offered}");
    client.dialogue(&[
        ("MAIL FROM:<a@x.test>", "250"),
        ("RCPT TO:<a@y.test>", "250"),
        ("RCPT TO:<a@z.test>", "452 4.5.3"),
        ("RCPT TO:<b@y.test>", "250"),
        ("RCPT TO:<c@y.test>", "250"),
        ("RCPT TO:<d@y.test>", "452 4.5.3"),
        ("RSET", "250"),
        ("MAIL FROM:<a@x.test>", "250"),
        ("RSET", "250"),
        ("MAIL FROM:<a@x.test>", "421 4.3.2"),
    ]);
    client.closed();
}

#[test]
fn a_reply_for_each_recipient() {
    let system = System::builder().users(&["u@v.test", "w@v.test"]).start();
    let mut client = system.smtp();
    client.ehlo();
    client.dialogue(&[
        ("MAIL FROM:<a@x.test> PRDR", "250"),
        ("RCPT TO:<u@v.test>", "250"),
        ("RCPT TO:<no@v.test>", "550"),
        ("RCPT TO:<w@v.test>", "250"),
        ("DATA", "354"),
    ]);
    client.bytes(&message("prdr"));
    client.line(".");
    client.expect("353");
    let replies = [client.expect("250 2.0.0"), client.expect("250 2.0.0"), client.expect("250 2.0.0")];
    let id = replies[2].queue_id().unwrap();
    assert!(replies.iter().all(|reply| reply.queue_id().as_ref() == Some(&id)), "{replies:?}");
    client.says("NOOP", "250");
    system.finished(&id);
}

#[test]
fn in_chunks_from_exim() {
    if !have_root() || !(Exim::is_there() || skip("Exim is not unpacked (tests/install-packages)")) {
        return;
    }
    let system = System::builder().users(&["u@v.test", "w@v.test"]).start();
    let text = b"From: a@x.test\nTo: u@v.test\nSubject: from Exim\n\n.\n..\nend\n".to_vec();
    let log = Exim::sends(system.address(), "a@x.test", &["u@v.test", "w@v.test"], &text);
    // `K`: by BDAT; `PRDR`: with a reply for each.
    let sent: Vec<_> = log.lines().filter(|line| line.contains(" => ") || line.contains(" -> ")).collect();
    assert!(
        sent.len() == 2 && sent.iter().all(|line| line.contains(" K ") && line.contains(" PRDR ")),
        "{log}"
    );
    for to in ["u@v.test", "w@v.test"] {
        let mails = system.wait_maildir(to, 1);
        let bytes = String::from_utf8_lossy(&mails[0].bytes).into_owned();
        assert!(bytes.ends_with("\n\n.\n..\nend\n"), "{bytes}");
    }
}

#[test]
fn with_a_client_of_the_field() {
    if !have(&["swaks"]) {
        return;
    }
    let system = System::start();
    let mut swaks = std::process::Command::new("swaks");
    swaks.args(["--server", "127.0.0.1", "--port", &system.address().port().to_string(), "--pipeline"]);
    swaks.args(["--from", "a@x.test", "--to", "u@v.test,w@v.test", "--prdr", "--helo", "client.test"]);
    let output = swaks.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("MAIL FROM:<a@x.test> PRDR") && said.contains("353"), "{said}");
    system.wait_maildir("u@v.test", 1);
    system.wait_maildir("w@v.test", 1);
}
