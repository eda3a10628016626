use std::collections::VecDeque;

use proptest::prelude::*;

use super::replies::error;
use super::*;
use crate::parameters::Body;
use crate::reply::EnhancedCode;

/// A client, a lookup and a spool in one: refuses recipients whose local part begins with `x`, and
/// defers those with `y`.
struct Bench {
    session: Session,
    wire: String,
    asked: VecDeque<(u16, Question)>,
    finished: Vec<Finished>,
    rejected: Vec<(&'static str, u16)>,
    closed: Option<&'static str>,
    input: Vec<u8>,
}

impl Bench {
    fn new(protocol: Protocol) -> Self {
        let settings = Settings {
            hostname: Domain::parse("mx.test").unwrap(),
            protocol,
            secure: false,
            extensions: Extensions::all(),
            asks: Asks::default(),
            message_size: 1000,
            recipients: 4,
            line_length: 100,
            errors: 5,
            normalise: false,
        };
        let mut out = Output::default();
        let session = Session::new(Arc::new(settings), &mut out);
        let mut bench = Self {
            session,
            wire: String::new(),
            asked: VecDeque::new(),
            finished: Vec::new(),
            rejected: Vec::new(),
            closed: None,
            input: Vec::new(),
        };
        bench.take(out);
        bench
    }

    /// On a lenient listener.
    fn normalising() -> Self {
        let mut bench = Self::new(Protocol::Smtp);
        let mut settings = bench.session.settings().clone();
        settings.normalise = true;
        bench.session = Session::new(Arc::new(settings), &mut Output::default());
        bench
    }

    fn take(&mut self, out: Output) {
        self.wire.push_str(std::str::from_utf8(&out.wire).unwrap());
        for action in out.actions {
            assert!(self.closed.is_none(), "{action:?} after Close");
            match action {
                Action::Ask { ticket, question } => self.asked.push_back((ticket, question)),
                Action::Finished(finished) => self.finished.push(*finished),
                Action::Dropped => {}
                Action::Rejected(rejected) => self.rejected.push((rejected.stage, rejected.reply.code)),
                Action::Close(why) => self.closed = Some(why),
            }
        }
    }

    /// Input, as far as it is understood without answers.
    fn feed(&mut self, input: &[u8]) {
        self.input.extend_from_slice(input);
        loop {
            let mut out = Output::default();
            let used = self.session.receive(&self.input, &mut out);
            self.input.drain(..used);
            self.take(out);
            if used == 0 {
                return;
            }
        }
    }

    /// Answers the n-th open question, or settles a finished message. False when nothing is open.
    fn answer(&mut self, n: usize) -> bool {
        let mut out = Output::default();
        if self.session.phase() == Phase::Settling {
            self.session.settle(error250(), &mut out);
        } else {
            let open = self.asked.len();
            if open == 0 {
                return false;
            }
            let (ticket, question) = self.asked.remove(n % open).unwrap();
            let answer = oracle(&question);
            self.session.answer(ticket, answer, &mut out);
        }
        self.take(out);
        self.feed(b"");
        true
    }

    /// Input with every answer at once: what came back since the last call.
    fn say(&mut self, input: &str) -> String {
        self.feed(input.as_bytes());
        while self.answer(0) {}
        std::mem::take(&mut self.wire)
    }

    fn codes(&mut self, input: &str) -> Vec<u16> {
        codes(&self.say(input))
    }
}

/// What is answered depends on the question alone: names that begin with `x` are refused, with `y`
/// deferred, with `z` shown the door.
fn oracle(question: &Question) -> Answer {
    let name = match question {
        Question::Client => "c",
        Question::Data => "d",
        Question::Helo(name) => name,
        Question::Mail { path, .. } => path.as_str(),
        Question::Rcpt { recipient, .. } => recipient.as_str(),
        Question::Vrfy(text) | Question::Expn(text) | Question::Etrn(text) => {
            return Answer::Say(Reply::new(250, EnhancedCode::new(2, 1, 5), text.clone()));
        }
        Question::Xclient(text) | Question::Xforward(text) => text,
    };
    match name.as_bytes().first() {
        Some(b'x') => Answer::Refused(error(550, (5, 1, 1), "no such user")),
        Some(b'y') => Answer::Refused(error(451, (4, 3, 0), "later")),
        Some(b'z') => Answer::Closed(error(421, (4, 7, 0), "go away")),
        _ => Answer::Accepted,
    }
}

fn error250() -> Reply {
    Reply::new(250, EnhancedCode::new(2, 0, 0), "Ok: queued")
}

/// The codes of the replies, one for each.
fn codes(wire: &str) -> Vec<u16> {
    assert!(wire.is_empty() || wire.ends_with("\r\n"), "{wire:?}");
    let lines = wire.split_terminator("\r\n");
    lines.filter(|line| line.as_bytes()[3] == b' ').map(|line| line[..3].parse().unwrap()).collect()
}

fn greeted() -> Bench {
    let mut bench = Bench::new(Protocol::Smtp);
    assert_eq!(bench.codes("EHLO c.test\r\n"), [220, 250]);
    bench
}

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
    assert_eq!(
        bench.say("EHLO c.test\r\n"),
        "250-mx.test\r\n250-PIPELINING\r\n250-SIZE 1000\r\n250-8BITMIME\r\n250-ENHANCEDSTATUSCODES\r\n250 HELP\r\n"
    );
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
    bench.session.close(error(421, (4, 4, 2), "timeout"), "timeout", &mut out);
    assert_eq!(out.actions, [Action::Dropped, Action::Close("timeout")]);
    assert_eq!(bench.session.receive(b"d\r\n.\r\n", &mut out), 6);
    assert_eq!(out.actions.len(), 2);
}

fn dialogue() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => Just("EHLO c\r\n"),
        6 => Just("MAIL FROM:<a@b>\r\n"),
        4 => Just("RCPT TO:<u@t>\r\n"),
        4 => Just("RCPT TO:<v@t>\r\n"),
        2 => Just("RCPT TO:<x@t>\r\n"),
        2 => Just("RCPT TO:<y@t>\r\n"),
        1 => Just("RCPT TO:bad\r\n"),
        6 => Just("DATA\r\n"),
        4 => Just(".\r\n"),
        2 => Just("text\r\n..\r\n"),
        1 => Just("RSET\r\n"),
        1 => Just("NOOP\r\n"),
        1 => Just("QUIT\r\n"),
        1 => Just("RSET\n"),
        1 => Just("\r"),
        1 => Just("\0"),
    ];
    let over_long = format!("RCPT TO:<{}@t>\r\n", "u".repeat(2100));
    let piece = prop_oneof![30 => piece.prop_map(str::to_owned), 1 => Just(over_long)];
    proptest::collection::vec(piece, 0..40).prop_map(|parts| parts.concat().into_bytes())
}

proptest! {
    #[test]
    fn cuts_and_slow_answers_change_nothing(
        input in dialogue(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..20),
        order in proptest::collection::vec(0..5usize, 0..60),
    ) {
        let mut prompt = greeted();
        for byte in &input {
            prompt.feed(&[*byte]);
            while prompt.answer(0) {}
        }
        let mut slow = greeted();
        let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(input.len() + 1)).collect();
        cuts.extend([0, input.len()]);
        cuts.sort_unstable();
        let mut order = order.into_iter().cycle();
        for pair in cuts.windows(2) {
            slow.feed(&input[pair[0]..pair[1]]);
            // 0 is "no answer comes now".
            if let Some(n @ 1..) = order.next() {
                slow.answer(n);
            }
        }
        while slow.answer(order.next().unwrap_or(0)) {}
        prop_assert_eq!(&prompt.wire, &slow.wire);
        prop_assert_eq!(&prompt.finished, &slow.finished);
        prop_assert_eq!(&prompt.rejected, &slow.rejected);
        prop_assert_eq!(prompt.closed, slow.closed);
        codes(&prompt.wire);
    }

    #[test]
    fn content_needs_mail_and_an_accepted_recipient(input in dialogue()) {
        let mut bench = greeted();
        let (mut mail, mut accepted) = (false, Vec::new());
        for line in input.split_inclusive(|b| *b == b'\n') {
            let line = std::str::from_utf8(line).unwrap();
            let in_content = bench.session.phase() == Phase::Content;
            let before = bench.finished.len();
            let codes = bench.codes(line);
            let said = |code| codes.contains(&code);
            if in_content {
                if bench.finished.len() > before {
                    prop_assert!(mail && !accepted.is_empty());
                    prop_assert_eq!(&bench.finished[before].recipients, &accepted);
                }
                if bench.session.phase() != Phase::Content {
                    (mail, accepted) = (false, Vec::new());
                }
            } else if line.starts_with("EHLO") || line == "RSET\r\n" {
                (mail, accepted) = (false, Vec::new());
            } else if line.starts_with("MAIL") && said(250) {
                mail = true;
            } else if line.starts_with("RCPT") && said(250) {
                prop_assert!(mail);
                let text = line["RCPT TO:<".len()..].trim_end().trim_end_matches('>');
                let recipient = Mailbox::parse(text).unwrap();
                if !accepted.contains(&recipient) {
                    accepted.push(recipient);
                }
            } else if said(354) {
                prop_assert!(mail && !accepted.is_empty());
            }
        }
    }

    #[test]
    fn hostile_bytes(input in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut bench = greeted();
        bench.feed(&input);
        while bench.answer(1) {}
        codes(&bench.wire);
    }
}
