//! What is delivered is what was sent, octet for octet, whichever way it goes: into a Maildir, by LMTP to
//! Dovecot and out by IMAP, to another Postern, to Postfix's smtp-sink.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use postern_tests::{Dovecot, Sink, SmtpSink, System, attachment, from_line, have, with_lf};

/// From nothing to 25 MiB, over every border on the way: one read, the inline frame, the streamed file.
const SIZES: [usize; 9] = [0, 1, 1000, 30_000, 24_000, 96_000, 100_000, 1_000_000, 25 << 20];

#[test]
fn into_a_maildir() {
    let system = System::start();
    let mut client = system.smtp();
    for size in SIZES {
        let sent = attachment(size);
        let id = client.send("a@x.test", &[&format!("u{size}@v.test")], &sent).unwrap();
        system.finished(&id);
        let mails = system.maildir(&format!("u{size}@v.test"));
        assert_eq!(mails.len(), 1);
        assert!(from_line(&mails[0].bytes, b"From: ") == with_lf(&sent), "{size} octets came back changed");
    }
}

#[test]
fn by_lmtp_and_imap() {
    if !have(&["dovecot", "python3"]) {
        return;
    }
    let dovecot = Dovecot::start(&["u@d.test"]);
    let unix = format!("lmtp:unix:{}", dovecot.lmtp_socket().display());
    let tcp = format!("lmtp:[{}]:{}", dovecot.lmtp_address().ip(), dovecot.lmtp_address().port());
    for via in [unix, tcp] {
        let system = System::builder().relay().route("d.test", &via).start();
        let mut client = system.smtp();
        let before = dovecot.inbox("u@d.test").len();
        let ids: Vec<_> = SIZES
            .iter()
            .map(|size| client.send("a@x.test", &["u@d.test"], &attachment(*size)).unwrap())
            .collect();
        ids.iter().for_each(|id| system.finished(id));
        let inbox = dovecot.inbox("u@d.test").split_off(before);
        assert_eq!(inbox.len(), SIZES.len());
        for size in SIZES {
            let sent = attachment(size);
            let came = inbox.iter().filter(|mail| from_line(mail, b"From: ") == sent).count();
            assert_eq!(came, 1, "{size} octets, {via}");
        }
        assert!(
            inbox.iter().all(|mail| mail.starts_with(b"Return-Path: <a@x.test>\r\n")),
            "Dovecot's own line"
        );
    }
}

#[test]
fn to_a_second_postern() {
    let second = System::builder().hostname("second.test").virtual_domain("w.test").start();
    let first = System::builder().relay().route("w.test", &second.via()).start();
    let mut client = first.smtp();
    for size in SIZES {
        let (sent, to) = (attachment(size), format!("u{size}@w.test"));
        let id = client.send("a@x.test", &[&to], &sent).unwrap();
        first.finished(&id);
        let mails = second.wait_maildir(&to, 1);
        assert!(from_line(&mails[0].bytes, b"From: ") == with_lf(&sent), "{size} octets came back changed");
    }
}

#[test]
fn to_smtp_sink() {
    if !have(&["smtp-sink"]) {
        return;
    }
    let sink = SmtpSink::start(&[]);
    let system = System::builder().relay().route("sink.test", &sink.via()).start();
    let mut client = system.smtp();
    let ids: Vec<_> = SIZES
        .iter()
        .map(|size| client.send("a@x.test", &["b@sink.test"], &attachment(*size)).unwrap())
        .collect();
    ids.iter().for_each(|id| system.finished(id));
    let messages = sink.wait(SIZES.len(), Duration::from_secs(10));
    assert_eq!(messages.len(), SIZES.len());
    for size in SIZES {
        let sent = with_lf(&attachment(size));
        let came = messages.iter().filter(|message| from_line(message, b"From: ") == sent).count();
        assert_eq!(came, 1, "{size} octets");
    }
}

/// Octets above 127, very long lines, no header, no body, no empty line: none of it is touched.
#[test]
fn odd_messages_stay_as_they_are() {
    let sink = Sink::start();
    let system = System::builder().relay().route("sink.test", &sink.via()).start();
    let long = [b"Subject: long\r\n\r\n".as_slice(), &[b'x'; 60_000], b"\r\n"].concat();
    let latin =
        [b"Subject: gr\xfc\xdfe\r\n\r\n".as_slice(), &(128..=255).collect::<Vec<u8>>(), b"\r\n"].concat();
    let odd: [&[u8]; 8] = [
        &long,
        &latin,
        b"",
        b"\r\n",
        b"\r\n\r\n\r\n",
        b"no header at all\r\n",
        b"Subject: only a header\r\n",
        b"Subject: folded\r\n\tline\r\n  and more\r\nBroken line\r\n\r\n\x01\x7f\r\n",
    ];
    let mut client = system.smtp();
    client.ehlo();
    for (n, content) in odd.iter().enumerate() {
        client.says("MAIL FROM:<a@x.test> BODY=8BITMIME", "250");
        client.dialogue(&[("RCPT TO:<b@sink.test>", "250"), ("DATA", "354")]);
        client.bytes(content);
        let id = client.says(".", "250").queue_id().unwrap();
        system.finished(&id);
        let taken = &sink.taken()[n];
        assert!(taken.content.ends_with(content), "message {n}: {taken:?}");
        let before = &taken.content[..taken.content.len() - content.len()];
        assert!(before.starts_with(b"Received: ") && before.ends_with(b"\r\n"), "message {n}: {taken:?}");
        assert_eq!(
            before.windows(2).filter(|two| two[0] == b'\n' && two[1].is_ascii_alphabetic()).count(),
            0
        );
    }
}

/// Several messages in one spool file must not be mixed up, nor several recipients.
#[test]
fn messages_of_one_batch_stay_apart() {
    let system = System::start();
    let clients: Vec<_> = (0..8)
        .map(|n| {
            let address = system.address();
            std::thread::spawn(move || {
                let mut client = postern_tests::Smtp::connect(address);
                (0..10)
                    .map(|m| {
                        let content = attachment(1000 + 100 * n + m);
                        let to = format!("u{n}@v.test");
                        client.send("a@x.test", &[&to, "all@v.test"], &content).unwrap()
                    })
                    .collect::<Vec<_>>()
            })
        })
        .collect();
    let ids: Vec<_> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
    ids.iter().for_each(|id| system.finished(id));
    let all = system.maildir("all@v.test");
    assert_eq!(all.len(), 80);
    for n in 0..8 {
        let mine = system.maildir(&format!("u{n}@v.test"));
        assert_eq!(mine.len(), 10);
        for m in 0..10 {
            let sent = with_lf(&attachment(1000 + 100 * n + m));
            let fits = |mail: &&postern_tests::Mail| from_line(&mail.bytes, b"From: ") == sent;
            assert_eq!((mine.iter().filter(fits).count(), all.iter().filter(fits).count()), (1, 1));
        }
    }
}
