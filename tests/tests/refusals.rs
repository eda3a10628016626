//! What is refused, in which words, and that nothing comes of it.
#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::net::TcpStream;

use postern_tests::{Smtp, System, message};

#[test]
fn a_recipient_that_is_not_there() {
    let system = System::builder().users(&["u@v.test"]).start();
    let mut client = system.smtp();
    client.ehlo();
    client.dialogue(&[
        ("MAIL FROM:<a@x.test>", "250"),
        ("RCPT TO:<nobody@v.test>", "550 5.1.1"),
        ("DATA", "554 5.5.1"),
        ("RCPT TO:<u@v.test>", "250"),
        ("RSET", "250"),
    ]);
    let event = system.wait("reject", |e| e["to"] == "nobody@v.test");
    assert_eq!(event["stage"], "RCPT");
    let id = client.send("a@x.test", &["U@V.Test"], &message("other case")).unwrap();
    system.finished(&id);
}

#[test]
fn nobody_relays_here() {
    let system = System::start();
    let mut client = system.smtp();
    client.ehlo();
    client.says("MAIL FROM:<a@v.test>", "250");
    // Nothing of this is a way round: no percent hack, no source route, no bang path.
    for recipient in
        ["b@y.test", "b%y.test@x.test", "\"b@y.test\"@x.test", "@v.test:b@y.test", "b@[127.0.0.1]"]
    {
        client.says(&format!("RCPT TO:<{recipient}>"), "554 5.7.1");
    }
    // Ours, and a local part like any other: it is not taken apart.
    client.says("RCPT TO:<b%y.test@v.test>", "250");
    client.says("RCPT TO:<y.test!b@v.test>", "250");
}

#[test]
fn relaying_is_for_the_networks_that_may() {
    let system = System::builder().relay().start();
    let mut client = Smtp::connect_from([127, 0, 0, 2].into(), system.address());
    client.ehlo();
    client.dialogue(&[("MAIL FROM:<a@x.test>", "250"), ("RCPT TO:<b@y.test>", "554 5.7.1")]);
    let mut client = system.smtp();
    client.ehlo();
    client.dialogue(&[("MAIL FROM:<a@x.test>", "250"), ("RCPT TO:<b@y.test>", "250")]);
}

#[test]
fn too_big() {
    let system = System::builder().set("smtp", "message-size", "\"64 KiB\"").start();
    let mut client = system.smtp();
    let offer = client.ehlo();
    assert!(offer.lines.contains(&"SIZE 65536".to_owned()), "{offer}");
    client.says("MAIL FROM:<a@x.test> SIZE=65537", "552 5.3.4");
    let mut big = message("big");
    big.extend(b"0123456789abcdef0123456789abcdef\r\n".repeat(4096));
    let refused = client.send("a@x.test", &["u@v.test"], &big).unwrap_err();
    assert!(refused.is("552 5.3.4"), "{refused}");
    // The session goes on, and nothing of the refused message is left anywhere.
    let id = client.send("a@x.test", &["u@v.test"], &message("small")).unwrap();
    system.finished(&id);
    assert_eq!(system.maildir("u@v.test").len(), 1);
    assert_eq!(system.spool("tmp"), [""; 0]);
}

#[test]
fn lines_that_are_too_long() {
    let system = System::builder().set("smtp", "line-length", "\"2 KiB\"").start();
    let mut client = system.smtp();
    client.ehlo();
    client.line(&format!("NOOP {}", "x".repeat(100_000)));
    client.expect("500 5.5.2");
    let mut long = message("long");
    long.extend("y".repeat(3000).bytes());
    let refused = client.send("a@x.test", &["u@v.test"], &long).unwrap_err();
    assert!(refused.is("554 5.6.0"), "{refused}");
    let mut allowed = message("allowed");
    allowed.extend("z".repeat(2000).bytes());
    let id = client.send("a@x.test", &["u@v.test"], &allowed).unwrap();
    system.finished(&id);
    assert_eq!(system.maildir("u@v.test").len(), 1);
}

#[test]
fn commands_that_make_no_sense() {
    let system = System::start();
    let mut client = system.smtp();
    client.dialogue(&[
        ("MAIL FROM:<a@x.test>", "503 5.5.1"),
        ("EHLO", "501"),
        ("EHLO client.test", "250"),
        ("RCPT TO:<u@v.test>", "503 5.5.1"),
        ("DATA", "503 5.5.1"),
        ("MAIL FROM:a@x.test", "501 5.5.4"),
        ("MAIL FROM:<a@>", "501"),
        ("MAIL FROM:<a@x.test> COLOUR=blue", "555"),
        ("STARTLTS", "500"),
        ("EXPN staff", "252"),
        ("VRFY u", "252"),
        ("NOOP", "250"),
        ("HELP", "214"),
    ]);
    client.quit();
}

#[test]
fn who_errs_too_often_is_shown_the_door() {
    let system = System::builder().set("smtp", "errors", "5").start();
    let mut client = system.smtp();
    client.ehlo();
    (0..5).for_each(|_| drop(client.says("NONSENSE", "500")));
    client.expect("421 4.7.0");
    client.closed();
}

#[test]
fn too_many_recipients() {
    let system = System::builder().set("smtp", "recipients", "3").start();
    let mut client = system.smtp();
    client.ehlo();
    client.says("MAIL FROM:<a@x.test>", "250");
    (0..3).for_each(|n| drop(client.says(&format!("RCPT TO:<u{n}@v.test>"), "250")));
    client.says("RCPT TO:<u3@v.test>", "452 4.5.3");
    client.says("DATA", "354");
    client.bytes(&message("three"));
    let id = client.says(".", "250").queue_id().unwrap();
    system.finished(&id);
    assert_eq!(system.maildir("u3@v.test").len(), 0);
    (0..3).for_each(|n| assert_eq!(system.maildir(&format!("u{n}@v.test")).len(), 1));
}

#[test]
fn a_pipelined_batch_is_answered_in_order() {
    let system = System::builder().users(&["u@v.test"]).start();
    let mut client = system.smtp();
    client.bytes(
        b"EHLO client.test\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<no@v.test>\r\nRCPT TO:<u@v.test>\r\n\
          RCPT TO:<b@y.test>\r\nDATA\r\n",
    );
    for expected in ["250", "250 2.1.0", "550 5.1.1", "250 2.1.5", "554 5.7.1", "354"] {
        client.expect(expected);
    }
    client.bytes(b"Subject: batch\r\n\r\nbatch\r\n.\r\nQUIT\r\n");
    let id = client.expect("250 2.0.0").queue_id().unwrap();
    client.expect("221");
    system.finished(&id);
}

/// What hides a second message behind something like the end of the first: none of it ends the first.
#[test]
fn nothing_is_smuggled() {
    let sequences: [&[u8]; 14] = [
        b"\n.\n",
        b"\n.\r",
        b"\r.\n",
        b"\r.\r",
        b"\n.\r\n",
        b"\r.\r\n",
        b"\r\n.\n",
        b"\r\n.\r",
        b"\r\n\0.\r\n",
        b"\r\n.\0\r\n",
        b"\r\n.\r\r\n",
        b"\r\r\n.\r\r\n",
        b"\r\n..\r\n",
        b"\r\n. \r\n",
    ];
    let hidden =
        b"MAIL FROM:<evil@x.test>\r\nRCPT TO:<smuggled@v.test>\r\nDATA\r\nSubject: evil\r\n\r\nevil\r\n.\r\n";
    for split in [false, true] {
        let system = System::start();
        for sequence in sequences {
            let mut client = system.smtp();
            client.ehlo();
            client.dialogue(&[
                ("MAIL FROM:<a@x.test>", "250"),
                ("RCPT TO:<u@v.test>", "250"),
                ("DATA", "354"),
            ]);
            let content = [b"Subject: outer\r\n\r\nouter", sequence, hidden, b"QUIT\r\n"].concat();
            if split {
                // The server may have hung up already: then there is nobody left to fool.
                let _ = content.iter().try_for_each(|octet| client.try_bytes(&[*octet]));
            } else {
                let _ = client.try_bytes(&content);
            }
            // One message at most: taken whole, with what looked like a second one in its text, or refused.
            let mut queued = Vec::new();
            while let Ok(reply) = client.try_reply() {
                assert!(!reply.is("354"), "{sequence:?} began a second message");
                queued.extend(reply.queue_id());
            }
            assert!(queued.len() <= 1, "{sequence:?}: {queued:?}");
            queued.iter().for_each(|id| system.finished(id));
        }
        // The session of a last, honest message is behind all others in every queue.
        let id = system.smtp().send("a@x.test", &["last@v.test"], &message("last")).unwrap();
        system.finished(&id);
        assert_eq!(system.maildir("smuggled@v.test"), []);
        let outer = system.maildir("u@v.test");
        assert!(outer.iter().all(|mail| mail.header("Return-Path").unwrap() == "<a@x.test>"));
        assert!(outer.iter().all(|mail| !mail.bytes.contains(&b'\r')), "no bare CR comes through");
    }
}

#[test]
fn dots_come_through() {
    let system = System::start();
    let content = b"Subject: dots\r\n\r\n.\r\n..\r\n...x\r\n. \r\nend.\r\n.\r\n";
    let id = system.smtp().send("a@x.test", &["u@v.test"], content).unwrap();
    system.finished(&id);
    let mails = system.maildir("u@v.test");
    assert!(mails[0].bytes.ends_with(b"\n\n.\n..\n...x\n. \nend.\n.\n"));
}

#[test]
fn a_client_that_waits_too_long() {
    let system = System::builder().set("smtp", "command-timeout", "\"1 s\"").start();
    let mut client = system.smtp();
    client.expect("421 4.4.2");
    client.closed();
    // One that vanishes in the middle of its content leaves nothing.
    let mut client = system.smtp();
    client.ehlo();
    client.dialogue(&[("MAIL FROM:<a@x.test>", "250"), ("RCPT TO:<u@v.test>", "250"), ("DATA", "354")]);
    client.bytes(b"Subject: half\r\n\r\nha");
    drop(client);
    system.wait("disconnect", |e| e["messages"] == 0 && e["commands"] == 4);
    assert_eq!(system.spool("tmp"), [""; 0]);
    assert_eq!(system.maildir("u@v.test"), []);
}

#[test]
fn a_worker_takes_so_many_sessions() {
    let system = System::builder().set("smtp", "workers", "1").set("smtp", "sessions", "2").start();
    let (_one, two) = (system.smtp(), system.smtp());
    let mut third = TcpStream::connect(system.address()).unwrap();
    let mut said = String::new();
    third.read_to_string(&mut said).unwrap();
    assert!(said.starts_with("421 4."), "{said:?}");
    two.quit();
    let mut fourth = postern_tests::until("a free place", std::time::Duration::from_secs(10), || {
        Smtp::try_connect(system.address()).ok().filter(|client| client.greeting().code == 220)
    });
    fourth.ehlo();
}
