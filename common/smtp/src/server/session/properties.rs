//! What holds whatever is said, in whatever pieces, and however slow the answers are.

use proptest::prelude::*;

use super::bench::*;
use super::*;

/// Pieces of dialogues; with `chunks`, BDAT among them and wherever else its octets fall.
fn dialogue(chunks: bool) -> impl Strategy<Value = Vec<u8>> {
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
    let asked = prop_oneof![
        Just("EHLO x\r\n"),
        Just("EHLO z\r\n"),
        Just("MAIL FROM:<x@b>\r\n"),
        Just("MAIL FROM:<y@b>\r\n"),
        Just("MAIL FROM:<z@b>\r\n"),
        Just("RCPT TO:<z@t>\r\n"),
        Just("VRFY u\r\n"),
        Just("EXPN u\r\n"),
        Just("ETRN t\r\n"),
        Just("XCLIENT NAME=a\r\n"),
        Just("xclient\r\n"),
    ];
    let chunk = prop_oneof![
        4 => Just("BDAT 3\r\nabc"),
        4 => Just("BDAT 5 LAST\r\nabc\r\n"),
        2 => Just("BDAT 0 LAST\r\n"),
        1 => Just("BDAT 0\r\n"),
        1 => Just("BDAT 6\r\nRSET\r\n"),
        1 => Just("BDAT 2 LAST\r\na\n"),
        1 => Just("BDAT 2\r\na\r"),
        1 => Just("BDAT 2\r\n\n."),
        1 => Just("BDAT 2000\r\n"),
        1 => Just("BDAT 20\r\n"),
        1 => Just("BDAT\r\n"),
        2 => Just("MAIL FROM:<a@b> BODY=BINARYMIME\r\n"),
    ];
    let over_long = format!("RCPT TO:<{}@t>\r\n", "u".repeat(2100));
    let chunks = u32::from(chunks);
    let piece = prop_oneof![
        30 => piece.prop_map(str::to_owned),
        6 * chunks => asked.prop_map(str::to_owned),
        20 * chunks => chunk.prop_map(str::to_owned),
        1 => Just(over_long),
    ];
    proptest::collection::vec(piece, 0..40).prop_map(|parts| parts.concat().into_bytes())
}

/// Settings of which `bits` decides what is asked.
fn asking(bits: u8, normalise: bool, errors: u32) -> Settings {
    let bit = |n: u8| bits >> n & 1 == 1;
    let asks = Asks {
        client: bit(0),
        helo: bit(1),
        mail: bit(2),
        data: bit(3),
        vrfy: bit(4),
        expn: bit(5),
        etrn: bit(6),
    };
    Settings { asks, normalise, errors, ..settings(if bit(7) { Protocol::Lmtp } else { Protocol::Smtp }) }
}

/// A session of a client that may say XCLIENT.
fn bench(settings: &Settings) -> Bench {
    let mut bench = Bench::with(settings.clone());
    bench.session.offer(&["XCLIENT NAME"]);
    let hello = if settings.protocol == Protocol::Lmtp { "LHLO" } else { "EHLO" };
    bench.codes(&format!("{hello} c\r\n"));
    bench
}

proptest! {
    #[test]
    fn cuts_and_slow_answers_change_nothing(
        input in dialogue(true),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..20),
        order in proptest::collection::vec(0..5usize, 0..60),
        asks in any::<u8>(),
        normalise in prop::bool::weighted(0.2),
    ) {
        let settings = asking(asks, normalise, 5);
        let mut prompt = bench(&settings);
        for byte in &input {
            prompt.feed(&[*byte]);
            while prompt.answer(0) {}
        }
        let mut slow = bench(&settings);
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
        prop_assert_eq!(prompt.session.phase(), slow.session.phase());
        prop_assert_eq!(prompt.input, slow.input);
        codes(&prompt.wire);
    }

    #[test]
    fn content_needs_mail_and_an_accepted_recipient(input in dialogue(false)) {
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

    /// A peer in step: each command gets exactly one reply, also when it fails, and content begins behind a
    /// yes alone. (That the recipients of every message were accepted is asserted in [`Bench::take`].)
    #[test]
    fn every_command_has_its_reply(
        commands in proptest::collection::vec(command(), 0..30),
        order in proptest::collection::vec(0..5usize, 1..60),
        asks in 0..128u8,
    ) {
        let mut bench = bench(&asking(asks, false, u32::MAX));
        bench.wire.clear();
        let mut due = 0;
        for (command, chunk) in &commands {
            bench.feed(command.as_bytes());
            bench.feed(chunk);
            due += 1;
        }
        let mut order = order.into_iter().cycle();
        while bench.answer(order.next().unwrap_or(0)) {}
        let codes = codes(&bench.wire);
        prop_assert_eq!(codes.len(), due);
        prop_assert!(bench.input.is_empty() && bench.session.phase() == Phase::Command);
        let (mut mail, mut recipient) = (false, false);
        for ((command, _), code) in commands.iter().zip(codes) {
            let yes = code == 250;
            match &command[..4] {
                "MAIL" if yes => (mail, recipient) = (true, false),
                "RCPT" if yes => {
                    prop_assert!(mail);
                    recipient = true;
                }
                "BDAT" if yes => {
                    prop_assert!(recipient);
                    (mail, recipient) = (!command.contains("LAST"), !command.contains("LAST"));
                }
                "RSET" | "EHLO" => (mail, recipient) = (false, false),
                _ => {}
            }
        }
    }
}

/// A command that a client which never goes wrong in counting may say, and the chunk behind it.
fn command() -> impl Strategy<Value = (String, Vec<u8>)> {
    let line = prop_oneof![
        1 => Just("EHLO c\r\n"),
        6 => Just("MAIL FROM:<a@b>\r\n"),
        1 => Just("MAIL FROM:<y@b>\r\n"),
        4 => Just("RCPT TO:<u@t>\r\n"),
        2 => Just("RCPT TO:<y@t>\r\n"),
        1 => Just("RSET\r\n"),
        1 => Just("NOOP\r\n"),
        1 => Just("VRFY u\r\n"),
    ];
    let chunk =
        (proptest::collection::vec(prop::sample::select(b"\r\n.RSETQUIT\0".to_vec()), 0..12), any::<bool>());
    prop_oneof![
        2 => line.prop_map(|line| (line.to_owned(), Vec::new())),
        1 => chunk.prop_map(|(chunk, last)| {
            (format!("BDAT {}{}\r\n", chunk.len(), if last { " LAST" } else { "" }), chunk)
        }),
    ]
}

#[test]
fn an_idle_session_is_small() {
    // Ten thousand of them wait on one worker.
    let size = size_of::<Session>();
    assert!(size <= 320, "{size} octets");
}
