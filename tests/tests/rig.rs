//! The rig itself: that its servers and its client do what the other tests believe of them.
#![allow(clippy::unwrap_used)]

use std::net::UdpSocket;
use std::time::Duration;

use postern_tests::{Answer, Dovecot, Nsd, Sink, Smtp, SmtpSink, from_line, have, have_root, message};

#[test]
fn the_sink_takes_what_the_client_sends() {
    let sink = Sink::start();
    let content = b"Subject: dots\r\n\r\n.\r\n..\r\nbare\nlf and bare\rcr\r\n.end\r\n";
    let mut client = Smtp::connect(sink.address());
    client.ehlo();
    client.dialogue(&[("MAIL FROM:<a@x.test>", "250"), ("RCPT TO:<b@y.test>", "250"), ("DATA", "354")]);
    client.bytes(b"Subject: dots\r\n\r\n..\r\n...\r\nbare\nlf and bare\rcr\r\n..end\r\n.\r\n");
    client.expect("250");
    client.quit();
    let taken = sink.wait(1);
    assert_eq!(taken[0].content, content);
    assert_eq!(taken[0].mail, "MAIL FROM:<a@x.test>");
    assert_eq!(taken[0].rcpt, ["RCPT TO:<b@y.test>"]);
}

#[test]
fn the_sink_shows_faults() {
    let sink = Sink::start();
    sink.behave(|command| match command {
        "RCPT TO:<later@y.test>" => Answer::Say("450 4.2.0 Later".into()),
        "." => Answer::Drop,
        _ => Answer::Usual,
    });
    let mut client = Smtp::connect(sink.address());
    let refused = client.send("a@x.test", &["later@y.test"], &message("one")).unwrap_err();
    assert!(refused.is("450 4.2.0"), "{refused}");
    assert!(client.try_send("a@x.test", &["now@y.test"], &message("two")).is_err());
    assert_eq!(sink.stop(), []);
}

#[test]
fn smtp_sink_writes_messages() {
    if !have(&["smtp-sink"]) {
        return;
    }
    let sink = SmtpSink::start(&[]);
    let address = sink.via().replace("smtp:[", "").replace(']', "").parse().unwrap();
    let mut client = Smtp::connect(address);
    let content = b"Subject: one\r\n\r\n.dot\r\n\r\n";
    // smtp-sink has its own words for the 250.
    let reply = client.send("a@x.test", &["b@y.test"], content).unwrap_err();
    assert!(reply.is("250"), "{reply}");
    client.quit();
    let messages = sink.wait(1, Duration::from_secs(10));
    assert_eq!(from_line(&messages[0], b"Subject: one"), b"Subject: one\n\n.dot\n\n");
}

#[test]
fn dovecot_takes_by_lmtp_and_shows_by_imap() {
    if !have(&["dovecot", "python3"]) {
        return;
    }
    let dovecot = Dovecot::start(&["u@d.test"]);
    assert!(dovecot.lmtp_socket().exists());
    let mut client = Smtp::connect(dovecot.lmtp_address());
    client.dialogue(&[("LHLO client.test", "250"), ("MAIL FROM:<a@x.test>", "250")]);
    client.dialogue(&[
        ("RCPT TO:<nobody@d.test>", "550 5.1.1"),
        ("RCPT TO:<u@d.test>", "250"),
        ("DATA", "354"),
    ]);
    client.bytes(&message("lmtp"));
    client.says(".", "250");
    client.quit();
    let inbox = dovecot.inbox("u@d.test");
    assert_eq!(inbox.len(), 1);
    assert_eq!(from_line(&inbox[0], b"From: "), message("lmtp"));
}

#[test]
fn nsd_answers() {
    if !have(&["nsd"]) || !have_root() {
        return;
    }
    let nsd = Nsd::start("y IN MX 10 mx.y\nmx.y IN A 127.0.0.1");
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01y\x04test\0\0\x0f\0\x01";
    socket.send_to(query, nsd.address()).unwrap();
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).unwrap();
    assert_eq!((answer[3] & 15, answer[7]), (0, 1), "no error, one answer: {:?}", &answer[..length]);
}
