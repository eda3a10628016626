use super::bench::*;
use super::*;
use crate::parameters::{Hold, Notify, Ret};
use crate::server::{Extension, Extensions};

fn with(change: impl FnOnce(&mut Settings)) -> Bench {
    let mut settings = settings(Protocol::Smtp);
    settings.errors = 100;
    change(&mut settings);
    let mut bench = Bench::with(settings);
    assert_eq!(bench.codes("EHLO c\r\n"), [220, 250]);
    bench
}

#[test]
fn what_is_offered_can_be_switched_off_each_by_itself() {
    for extension in Extension::ALL {
        let mut settings = settings(Protocol::Smtp);
        settings.asks = Asks { vrfy: true, expn: true, etrn: true, ..Asks::default() };
        let line = |bench: &mut Bench| {
            let reply = bench.say("EHLO c\r\n");
            reply.lines().any(|line| line[4..].split(' ').next() == Some(extension.keyword()))
        };
        assert!(line(&mut Bench::with(settings.clone())), "{extension:?}");
        settings.extensions = Extensions::all().without(extension);
        assert!(!line(&mut Bench::with(settings)), "{extension:?}");
        assert_eq!(Extension::parse(&extension.keyword().to_ascii_lowercase()), Some(extension));
    }
    let plain = Extensions::all().without(Extension::EightBitMime);
    assert!(
        !plain.has(Extension::BinaryMime)
            && !plain.has(Extension::SmtpUtf8)
            && plain.has(Extension::Chunking)
    );
    assert!(!Extensions::all().without(Extension::Chunking).has(Extension::BinaryMime));
}

#[test]
fn without_enhanced_codes_there_are_none() {
    let mut bench =
        with(|settings| settings.extensions = settings.extensions.without(Extension::EnhancedStatusCodes));
    let said = bench.say("NOOP\r\nFOO\r\nMAIL FROM:<>\r\nRCPT TO:<x@t>\r\nQUIT\r\n");
    assert_eq!(
        said,
        "250 Ok\r\n500 Error: command not recognized\r\n250 Ok\r\n550 no such user\r\n221 Bye\r\n"
    );
}

#[test]
fn utf8_takes_its_parameter() {
    let mut bench = greeted();
    assert_eq!(bench.codes("MAIL FROM:<jös@x>\r\n"), [553]);
    assert_eq!(
        bench.codes("MAIL FROM:<a@x>\r\nRCPT TO:<jös@x>\r\nRCPT TO:<u@ö.test>\r\nRSET\r\n"),
        [250, 553, 553, 250]
    );
    let batch = "MAIL FROM:<jös@x> SMTPUTF8\r\nRCPT TO:<jós@ö.test>\r\nDATA\r\n.\r\n";
    assert_eq!(bench.codes(batch), [250, 250, 354, 250]);
    let message = &bench.finished[0];
    assert!(message.parameters.smtputf8);
    assert_eq!(message.recipients[0].as_str(), "jós@xn--nda.test");
    assert_eq!(bench.session.trace_name(true), "UTF8SMTP");
    assert_eq!(bench.session.trace_name(false), "ESMTP");
    bench.session.set_identity(Identity::User("u".into()));
    assert_eq!(bench.session.trace_name(true), "UTF8SMTPA");
    assert_eq!(Bench::new(Protocol::Lmtp).session.trace_name(true), "UTF8LMTP");
    let mut settings = settings(Protocol::Smtp);
    settings.secure = true;
    assert_eq!(Bench::with(settings).session.trace_name(true), "UTF8SMTPS");
}

#[test]
fn names_in_utf8_take_the_parameter_too() {
    let mut bench = with(|settings| settings.asks = Asks { vrfy: true, expn: true, ..Asks::default() });
    // What is answered here is the argument.
    assert_eq!(bench.say("VRFY jös smtputf8\r\n"), "250 2.1.5 jös\r\n");
    assert_eq!(bench.say("EXPN list SMTPUTF8\r\n"), "250 2.1.5 list\r\n");
    assert_eq!(bench.codes("VRFY jös\r\nEXPN jös\r\n"), [553, 553]);
    bench.feed(b"VRFY u\r\n");
    let (ticket, mut out) = (bench.asked.pop_front().unwrap().0, Output::default());
    bench.session.answer(ticket, Answer::Say(Reply::new(250, None, "<jös@x>")), &mut out);
    assert!(out.wire.starts_with(b"252 2.6.8 "));
    // And so does every text of a refusal.
    for (parameter, text) in [(" SMTPUTF8", "550 5.7.1 Nö\r\n"), ("", "550 5.7.1 N?\r\n")] {
        bench.codes(&format!("RSET\r\nMAIL FROM:<>{parameter}\r\n"));
        bench.feed(b"RCPT TO:<u@t>\r\n");
        let (ticket, mut out) = (bench.asked.pop_front().unwrap().0, Output::default());
        bench.session.answer(ticket, Answer::Refused(Reply::coded(550, (5, 7, 1), "Nö")), &mut out);
        assert_eq!(String::from_utf8(out.wire).unwrap(), text);
    }
}

#[test]
fn what_was_asked_for_comes_with_the_message() {
    let mut bench = greeted();
    let batch = "MAIL FROM:<a@x> RET=HDRS ENVID=e+2B1\r\nRCPT TO:<u@t>\r\nRCPT TO:<v@t> NOTIFY=NEVER\r\n\
                 RCPT TO:<v@t> NOTIFY=SUCCESS\r\nDATA\r\n.\r\n";
    assert_eq!(bench.codes(batch), [250, 250, 250, 250, 354, 250]);
    let message = &bench.finished[0];
    assert_eq!(
        (message.parameters.ret, message.parameters.envid.as_deref()),
        (Some(Ret::Headers), Some("e+1"))
    );
    assert_eq!(message.recipients.len(), 2);
    assert_eq!(message.recipient_parameters.len(), 1);
    assert_eq!(message.recipient_parameters[0].0, 1);
    assert_eq!(message.recipient_parameters[0].1.notify, Some(Notify::default()));
}

#[test]
fn held_and_in_time_within_limits() {
    let mut bench = greeted();
    bench.session.set_time(1_795_331_616_000);
    assert!(bench.say("EHLO c\r\n").contains("250-FUTURERELEASE 2592000 2026-12-22T07:13:36Z\r\n"));
    for (parameter, code) in [
        ("HOLDFOR=2592000", 250),
        ("HOLDFOR=2592001", 501),
        ("HOLDUNTIL=2026-12-22T07:13:36Z", 250),
        ("HOLDUNTIL=2026-12-22T07:13:37Z", 501),
        ("HOLDUNTIL=2020-01-01T00:00:00Z", 250),
        ("BY=60;R", 250),
        ("BY=59;R", 555),
        ("BY=59;N", 250),
        ("BY=-59;N", 250),
    ] {
        let mut bench = greeted();
        bench.session.set_time(1_795_331_616_000);
        assert_eq!(bench.codes(&format!("MAIL FROM:<a@x> {parameter}\r\n")), [code], "{parameter}");
    }
    let mut bench = greeted();
    bench.codes("MAIL FROM:<a@x> HOLDFOR=5\r\n");
    assert_eq!(bench.session.transaction().unwrap().1.hold, Some(Hold::For(5)));
}

#[test]
fn a_reply_for_each_recipient() {
    let mut bench = greeted();
    let batch = "MAIL FROM:<a@x> PRDR\r\nRCPT TO:<u@t>\r\nRCPT TO:<x@t>\r\nRCPT TO:<v@t>\r\nDATA\r\n.\r\n";
    assert_eq!(bench.codes(batch), [250, 250, 550, 250, 354, 353, 250, 250, 250]);
    // For one there is nothing to tell apart, and of a refusal neither.
    assert_eq!(bench.codes("MAIL FROM:<a@x> PRDR\r\nRCPT TO:<u@t>\r\nDATA\r\n.\r\n"), [250, 250, 354, 250]);
    bench.feed(b"MAIL FROM:<a@x> PRDR\r\nRCPT TO:<u@t>\r\nRCPT TO:<v@t>\r\n");
    assert_eq!(bench.codes("BDAT 0\r\n"), [250, 250, 250, 250]);
    bench.feed(b"BDAT 0 LAST\r\n");
    let mut out = Output::default();
    bench.session.settle(Reply::coded(451, (4, 3, 0), "later"), &mut out);
    assert_eq!(out.wire, b"451 4.3.0 later\r\n");
}

#[test]
fn limits_are_told_and_kept() {
    let mut bench = with(|settings| {
        settings.transactions = Some(2);
        settings.recipient_domains = Some(2);
    });
    assert!(bench.say("EHLO c\r\n").contains("250-LIMITS MAILMAX=2 RCPTMAX=4 RCPTDOMAINMAX=2\r\n"));
    let batch = "MAIL FROM:<>\r\nRCPT TO:<u@a>\r\nRCPT TO:<v@a>\r\nRCPT TO:<x@b>\r\nRCPT TO:<u@b>\r\nRCPT TO:<u@c>\r\n";
    assert_eq!(bench.codes(batch), [250, 250, 250, 550, 250, 452]);
    assert_eq!(bench.codes("RSET\r\nMAIL FROM:<>\r\nRSET\r\nMAIL FROM:<>\r\nNOOP\r\n"), [250, 250, 250, 421]);
    assert_eq!(bench.closed, Some("too many messages"));
}

#[test]
fn questions_at_every_stage() {
    let asks = Asks { client: true, helo: true, mail: true, data: true, vrfy: true, expn: true, etrn: true };
    let mut settings = settings(Protocol::Smtp);
    (settings.asks, settings.errors) = (asks, 100);
    let mut bench = Bench::with(settings.clone());
    assert_eq!((bench.session.phase(), bench.wire.as_str()), (Phase::Asking, ""));
    assert!(bench.session.is_greeting());
    // What is said before the greeting waits.
    bench.feed(b"EHLO x\r\n");
    assert_eq!(bench.input, b"EHLO x\r\n");
    assert_eq!(bench.codes("MAIL FROM:<>\r\n"), [220, 550, 503]);
    assert_eq!(bench.codes("HELO c\r\nEHLO y\r\n"), [250, 451]);
    // The name stayed what it was.
    assert_eq!(bench.session.helo(), Some("c"));
    assert_eq!(
        bench.codes("MAIL FROM:<x@x>\r\nMAIL FROM:<a@x>\r\nEHLO x\r\nRCPT TO:<u@t>\r\n"),
        [550, 250, 550, 250]
    );
    assert_eq!(bench.say("VRFY u\r\nEXPN l\r\nETRN t\r\n"), "250 2.1.5 u\r\n250 2.1.5 l\r\n250 2.1.5 t\r\n");
    assert_eq!(bench.codes("DATA\r\n.\r\n"), [354, 250]);
    assert_eq!(bench.codes("XCLIENT NAME=c\r\nMAIL FROM:<z@x>\r\nNOOP\r\n"), [502, 421]);
    assert_eq!(bench.closed, Some("refused"));
    // A client that is refused may say QUIT.
    let mut bench = Bench::with(settings);
    let ticket = bench.asked.pop_front().unwrap().0;
    let mut out = Output::default();
    bench.session.answer(ticket, Answer::Refused(Reply::coded(554, (5, 7, 1), "no")), &mut out);
    bench.take(out);
    assert_eq!(bench.codes("EHLO c\r\nBDAT 6\r\nQUIT\r\nFOO\r\nQUIT\r\n"), [554, 503, 503, 503, 221]);
}

#[test]
fn xclient_begins_anew() {
    let mut bench = greeted();
    bench.session.offer(&["XCLIENT NAME ADDR", "XFORWARD NAME"]);
    assert!(bench.say("EHLO c\r\n").ends_with("250-XCLIENT NAME ADDR\r\n250 XFORWARD NAME\r\n"));
    assert_eq!(bench.codes("MAIL FROM:<>\r\nXCLIENT NAME=a\r\nRSET\r\n"), [250, 503, 250]);
    assert_eq!(
        bench.codes("XFORWARD NAME=a\r\nXCLIENT xbad\r\nXCLIENT NAME=a\r\nMAIL FROM:<>\r\n"),
        [250, 550, 220, 503]
    );
}

#[test]
fn who_does_not_wait_is_counted() {
    let mut bench = Bench::new(Protocol::Smtp);
    bench.codes("EHLO c\r\n");
    bench.codes("MAIL FROM:<>\r\nRCPT TO:<u@t>\r\nDATA\r\n");
    bench.codes(".\r\n");
    assert_eq!(bench.session.talked_early(), 0);
    bench.codes("MAIL FROM:<>\r\nRCPT TO:<u@t>\r\nDATA\r\n.\r\nNOOP\r\nQUIT\r\n");
    assert_eq!(bench.session.talked_early(), 2);
    let mut bench = Bench::new(Protocol::Smtp);
    bench.codes("HELO c\r\nMAIL FROM:<>\r\nRSET\r\n");
    assert_eq!(bench.session.talked_early(), 2);
}
