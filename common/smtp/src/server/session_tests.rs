use super::bench::*;
use super::*;
use crate::parameters::Body;

#[test]
fn without_room_mail_is_deferred_and_what_is_under_way_goes_on() {
    let mut bench = Bench::new(Protocol::Smtp);
    bench.say("EHLO x\r\n");
    bench.session.set_full(true);
    assert!(bench.say("MAIL FROM:<a@b>\r\n").starts_with("452 4.3.1 "));
    assert_eq!(bench.rejected, [("MAIL", 452)]);
    bench.session.set_full(false);
    assert!(bench.say("MAIL FROM:<a@b>\r\n").starts_with("250 "));
    bench.session.set_full(true);
    assert!(bench.say("RCPT TO:<u@t>\r\n").starts_with("250 "));
}

#[test]
fn a_message() {
    let mut bench = Bench::new(Protocol::Smtp);
    assert_eq!(bench.say(""), "220 mx.test ESMTP Postern\r\n");
    let offered = bench.say("EHLO c.test\r\n");
    assert!(
        offered.starts_with("250-mx.test\r\n250-PIPELINING\r\n250-SIZE 1000\r\n250-8BITMIME\r\n"),
        "{offered}"
    );
    assert!(offered.ends_with("\r\n250 HELP\r\n"), "{offered}");
    assert_eq!(bench.say("MAIL FROM:<a@b> BODY=8BITMIME\r\n"), "250 2.1.0 Ok\r\n");
    assert_eq!(bench.say("RCPT TO:<u@v.test>\r\n"), "250 2.1.5 Ok\r\n");
    assert_eq!(bench.codes("DATA\r\n"), [354]);
    assert_eq!(bench.session.phase(), Phase::Content);
    assert_eq!(bench.say("Subject: x\r\n\r\n..\r\n.\r\n"), "250 2.0.0 Ok: queued\r\n");
    let message = bench.finished.pop().unwrap();
    assert_eq!(message.content, b"Subject: x\r\n\r\n.\r\n");
    assert_eq!((message.size, message.parameters.body), (17, Body::EightBit));
    assert_eq!(message.recipients, [Mailbox::parse("u@v.test").unwrap()]);
    assert_eq!(bench.session.protocol_name(), "ESMTP");
    assert_eq!(bench.codes("QUIT\r\nNOOP\r\n"), [221]);
    assert_eq!((bench.closed, bench.session.messages(), bench.session.commands()), (Some("quit"), 1, 5));
}

#[test]
fn a_pipelined_batch_asks_at_once_and_answers_in_order() {
    let mut bench = greeted();
    bench.feed(b"MAIL FROM:<>\r\nRCPT TO:<a@t>\r\nRCPT TO:<x@t>\r\nRCPT TO:bad\r\nRCPT TO:<c@t>\r\nDATA\r\n");
    assert_eq!(codes(&bench.wire), [250]);
    assert_eq!((bench.asked.len(), bench.session.phase()), (3, Phase::Asking));
    bench.answer(2);
    assert_eq!(codes(&bench.wire), [250]);
    bench.answer(1);
    bench.answer(0);
    assert_eq!(codes(&bench.wire), [250, 250, 550, 501, 250, 354]);
    assert_eq!(bench.rejected, [("RCPT", 550), ("RCPT", 501)]);
}

#[test]
fn order() {
    let mut bench = Bench::new(Protocol::Smtp);
    assert_eq!(bench.codes("MAIL FROM:<a@b>\r\nRCPT TO:<a@b>\r\nDATA\r\n"), [220, 503, 503, 503]);
    let mut bench = greeted();
    assert_eq!(bench.codes("MAIL FROM:<a@b>\r\nMAIL FROM:<c@d>\r\n"), [250, 503]);
    // RFC 5321 §4.1.4: the state stayed.
    assert_eq!(bench.codes("DATA\r\nRCPT TO:<u@t>\r\nRSET\r\nDATA\r\n"), [554, 250, 250, 503]);
    assert_eq!(bench.codes("MAIL FROM:<a@b>\r\nRCPT TO:<u@t>\r\nEHLO x\r\nDATA\r\n"), [250, 250, 250, 503]);
}

#[test]
fn limits() {
    let mut bench = greeted();
    assert_eq!(bench.codes("MAIL FROM:<a@b> SIZE=1001\r\nMAIL FROM:<a@b> SIZE=1000\r\n"), [552, 250]);
    let five: String = (0..5).map(|n| format!("RCPT TO:<u{n}@t>\r\n")).collect();
    assert_eq!(bench.codes(&five), [250, 250, 250, 250, 452]);
    assert_eq!(bench.codes(&format!("DATA\r\n{}.\r\n", "x\r\n".repeat(400))), [354, 552]);
    assert!(bench.finished.is_empty());
    let long = format!("MAIL FROM:<a@b>\r\nRCPT TO:<u@t>\r\nDATA\r\n{}\r\n.\r\n", "x".repeat(101));
    assert_eq!(bench.codes(&long), [250, 250, 354, 554]);
    assert_eq!(bench.codes(&format!("NOOP {}\r\nNOOP\r\n", "x".repeat(5000))), [500, 250]);
    assert_eq!(bench.codes("FOO\r\nFOO\r\n"), [500, 421]);
    assert_eq!(bench.closed, Some("too many errors"));
}

#[test]
fn an_accepted_message_clears_the_errors() {
    let mut bench = greeted();
    for _ in 0..3 {
        let codes = bench.codes("F\r\nF\r\nF\r\nF\r\nMAIL FROM:<>\r\nRCPT TO:<u@t>\r\nDATA\r\n.\r\n");
        assert_eq!(codes, [500, 500, 500, 500, 250, 250, 354, 250]);
    }
}

#[test]
fn line_ends() {
    for input in ["NOOP\nNOOP\r\n", "NOOP\r\rNOOP\r\n", "NO\0OP\r\n"] {
        let mut bench = greeted();
        assert_eq!((bench.codes(input), bench.closed), (vec![500], Some("line end violation")));
    }
    for input in ["a\n.\r\n", "a\r\n.\nMAIL FROM:<x@y>\r\n", "a\r.\r\n"] {
        let mut bench = greeted();
        assert_eq!(bench.codes("MAIL FROM:<>\r\nRCPT TO:<u@t>\r\nDATA\r\n"), [250, 250, 354]);
        assert_eq!((bench.codes(input), bench.closed), (vec![554], Some("line end violation")));
        assert!(bench.finished.is_empty());
    }
}

#[test]
fn a_nul_in_content_is_refused_and_the_dialogue_goes_on() {
    let mut bench = greeted();
    assert_eq!(bench.codes("MAIL FROM:<>\r\nRCPT TO:<u@t>\r\nDATA\r\n"), [250, 250, 354]);
    assert_eq!(bench.say("a\r\n.\0\r\n.\r\n"), "554 5.5.2 Error: NUL in the message\r\n");
    assert_eq!((bench.codes("NOOP\r\n"), bench.finished.len()), (vec![250], 0));
}

#[test]
fn line_ends_normalised() {
    let mut bench = Bench::normalising();
    assert_eq!(bench.codes("EHLO c\nNOOP\r\nNO\rOP\nNOOP\0\r\n"), [220, 250, 250, 500, 500]);
    assert_eq!(
        bench.codes("MAIL FROM:<>\nRCPT TO:<u@t>\nDATA\na\n.\nb\rc\r\n.\r\nQUIT\n"),
        [250, 250, 354, 250, 221]
    );
    assert_eq!(bench.finished[0].content, b"a\r\n.\r\nb c\r\n");
}

#[test]
fn postmaster_without_a_domain() {
    let mut bench = greeted();
    assert_eq!(bench.codes("MAIL FROM:<>\r\nRCPT TO:<Postmaster>\r\nDATA\r\n.\r\n"), [250, 250, 354, 250]);
    assert_eq!(bench.finished[0].recipients[0].as_str(), "postmaster@mx.test");
}

#[test]
fn lmtp_replies_for_each_recipient() {
    let mut bench = Bench::new(Protocol::Lmtp);
    assert_eq!(bench.codes("EHLO c\r\nLHLO c\r\n"), [220, 503, 250]);
    assert_eq!(bench.codes("MAIL FROM:<>\r\nDATA\r\n"), [250, 503]);
    let batch = "RCPT TO:<a@t>\r\nRCPT TO:<x@t>\r\nRCPT TO:<b@t>\r\nRCPT TO:<b@t>\r\nDATA\r\n.\r\n";
    assert_eq!(bench.codes(batch), [250, 550, 250, 250, 354, 250, 250, 250]);
    assert_eq!(bench.finished[0].recipients.len(), 2);
}

#[test]
fn who_does_not_read_is_not_read() {
    let mut bench = greeted();
    let mut out = Output::default();
    let flood = b"EHLO x\r\n".repeat(1000);
    let used = bench.session.receive(&flood, &mut out);
    assert!(used < flood.len() && out.wire.len() < WIRE_FULL + 200);
}

#[test]
fn closing_drops_what_is_under_way() {
    let mut bench = greeted();
    bench.say("MAIL FROM:<>\r\nRCPT TO:<u@t>\r\nDATA\r\nabc\r\n");
    let mut out = Output::default();
    bench.session.close(Reply::coded(421, (4, 4, 2), "timeout"), "timeout", &mut out);
    assert_eq!(out.actions, [Action::Dropped, Action::Close("timeout")]);
    assert_eq!(bench.session.receive(b"d\r\n.\r\n", &mut out), 6);
    assert_eq!(out.actions.len(), 2);
}
