use super::bench::*;
use super::*;
use crate::parameters::Body;
use crate::server::{Extension, Extensions};

fn open(parameters: &str) -> Bench {
    let mut bench = greeted();
    let batch = format!("MAIL FROM:<a@b>{parameters}\r\nRCPT TO:<u@t>\r\n");
    assert_eq!(bench.codes(&batch), [250, 250]);
    bench
}

#[test]
fn a_message_in_chunks() {
    let mut bench = open(" BODY=8BITMIME");
    assert_eq!(bench.say("BDAT 12\r\nSubject: x\r\n"), "250 2.0.0 Ok: 12 octets\r\n");
    assert_eq!(bench.session.phase(), Phase::Command);
    assert_eq!(bench.say("NOOP\r\nBDAT 0\r\n"), "250 2.0.0 Ok\r\n250 2.0.0 Ok: 0 octets\r\n");
    assert_eq!(bench.say("BDAT 12 LAST\r\n\r\n.\r\nQUIT\r\n?"), "250 2.0.0 Ok: queued\r\n");
    let message = bench.finished.pop().unwrap();
    assert_eq!(message.content, b"Subject: x\r\n\r\n.\r\nQUIT\r\n?\r\n");
    assert_eq!((message.size, message.parameters.body), (26, Body::EightBit));
    // RFC 3030 §2: there is nothing left that a BDAT could belong to.
    assert_eq!(bench.codes("BDAT 4 LAST\r\nRSETNOOP\r\n"), [503, 250]);
}

#[test]
fn all_at_once() {
    let mut bench = greeted();
    let batch = "MAIL FROM:<a@b>\r\nRCPT TO:<u@t>\r\nRCPT TO:<x@t>\r\nBDAT 3\r\nabcBDAT 3 LAST\r\ndefRSET\r\nQUIT\r\n";
    bench.feed(batch.as_bytes());
    // The chunk waits until its recipients are known.
    assert_eq!((codes(&bench.wire), bench.session.phase()), (vec![250], Phase::Asking));
    assert_eq!(bench.codes(""), [250, 250, 550, 250, 250, 250, 221]);
    assert_eq!(bench.finished[0].content, b"abcdef\r\n");
}

#[test]
fn what_is_refused_is_read_all_the_same() {
    let mut bench = greeted();
    assert_eq!(bench.codes("BDAT 6 LAST\r\nRSET\r\nNOOP\r\n"), [503, 250]);
    assert_eq!(bench.codes("MAIL FROM:<a@b>\r\nBDAT 6\r\nQUIT\r\nRCPT TO:<u@t>\r\n"), [250, 554, 250]);
    // RFC 5321 §4.1.4: the state stayed.
    assert_eq!(bench.codes("BDAT 0 LAST\r\n"), [250]);
    assert_eq!(bench.finished[0].content, b"");
}

#[test]
fn too_big_is_told_before_it_is_there() {
    let mut bench = open("");
    assert_eq!(bench.codes(&format!("BDAT 900\r\n{}", "x\r\n".repeat(300))), [250]);
    bench.feed(b"BDAT 102 LAST\r\nRSET\r\n");
    assert_eq!((bench.session.phase(), bench.dropped), (Phase::Content, 1));
    assert_eq!(bench.codes(&"RSET\r\n".repeat(16)), [552]);
    assert_eq!(bench.codes("MAIL FROM:<a@b>\r\n"), [250]);
    assert!(bench.finished.is_empty());
}

#[test]
fn a_failed_chunk_fails_the_message() {
    for (chunk, code) in
        [("a\nb", 554), ("a\rb", 554), ("\0", 554), (&"x".repeat(101), 554), (&"x\r\n".repeat(334), 552)]
    {
        let mut bench = open("");
        let batch = format!("BDAT {}\r\n{chunk}BDAT 3 LAST\r\nabcNOOP\r\n", chunk.len());
        assert_eq!(bench.codes(&batch), [code, 503, 250], "{chunk:?}");
        assert_eq!((bench.finished.len(), bench.closed), (0, None));
    }
    // Cut between the two, and at the end.
    let mut bench = open("");
    assert_eq!(bench.codes("BDAT 2\r\na\rBDAT 2 LAST\r\n\nb"), [250, 250]);
    let mut bench = open("");
    assert_eq!(bench.codes("BDAT 2\r\na\rBDAT 1 LAST\r\nb"), [250, 554]);
    let mut bench = open("");
    assert_eq!(bench.codes("BDAT 2 LAST\r\na\r"), [554]);
}

#[test]
fn binary_may_hold_anything_and_takes_no_data() {
    let mut bench = open(" BODY=BINARYMIME");
    assert_eq!(bench.say("DATA\r\n"), "503 5.5.1 Error: BODY=BINARYMIME is for BDAT\r\n");
    let content = ["\0\r\n.\r\n\n\r", &"x".repeat(200)].concat();
    assert_eq!(bench.codes(&format!("BDAT {} LAST\r\n{content}", content.len())), [250]);
    assert_eq!(bench.finished[0].content, content.as_bytes());
}

#[test]
fn not_mixed_and_dropped_by_rset() {
    let mut bench = open("");
    let batch = "BDAT 3\r\nabcDATA\r\nRCPT TO:<v@t>\r\nMAIL FROM:<>\r\nRSET\r\nBDAT 3 LAST\r\nabc";
    assert_eq!(bench.codes(batch), [250, 503, 503, 503, 250, 503]);
    assert_eq!((bench.dropped, bench.finished.len()), (1, 0));
    let mut bench = open("");
    assert_eq!(bench.codes("BDAT 3\r\nabcEHLO c\r\nBDAT 3 LAST\r\nabc"), [250, 250, 503]);
    let mut bench = open("");
    assert_eq!(bench.codes("BDAT 3\r\nabcQUIT\r\n"), [250, 221]);
    assert_eq!((bench.dropped, bench.closed), (1, Some("quit")));
}

#[test]
fn without_a_size_nothing_is_certain() {
    let long = format!("BDAT {}\r\n", "1".repeat(3000));
    for line in ["BDAT\r\n", "BDAT x\r\n", "BDAT 5 FIRST\r\n", "bdat -5\r\n", &long] {
        let mut bench = open("");
        assert_eq!(bench.codes(&format!("{line}QUIT\r\n")), [521], "{line:.20}");
        assert_eq!(bench.closed, Some("chunk of unknown size"));
    }
}

#[test]
fn nobody_waits_for_a_chunk_without_end() {
    for size in ["1099511627777", "18446744073709551615", "99999999999999999999"] {
        let mut bench = open("");
        assert_eq!(bench.codes(&format!("BDAT {size} LAST\r\nQUIT\r\n")), [552]);
        assert_eq!(bench.closed, Some("chunk without end"));
    }
}

#[test]
fn switched_off() {
    let mut settings = settings(Protocol::Smtp);
    settings.extensions = Extensions::all().without(Extension::Chunking);
    let mut bench = Bench::with(settings);
    let offered = bench.say("EHLO c\r\n");
    assert!(!offered.contains("CHUNKING") && !offered.contains("BINARYMIME"), "{offered}");
    assert_eq!(
        bench.codes("MAIL FROM:<> BODY=BINARYMIME\r\nMAIL FROM:<>\r\nRCPT TO:<u@t>\r\n"),
        [501, 250, 250]
    );
    assert_eq!(bench.codes("BDAT 6 LAST\r\nQUIT\r\nDATA\r\n.\r\n"), [502, 354, 250]);
}

#[test]
fn lmtp() {
    let mut bench = Bench::new(Protocol::Lmtp);
    let batch =
        "LHLO c\r\nMAIL FROM:<>\r\nBDAT 1\r\naRCPT TO:<a@t>\r\nRCPT TO:<b@t>\r\nBDAT 1\r\naBDAT 1 LAST\r\nb";
    assert_eq!(bench.codes(batch), [220, 250, 250, 503, 250, 250, 250, 250, 250]);
    assert_eq!(bench.finished[0].recipients.len(), 2);
}

#[test]
fn the_first_chunk_is_asked_about() {
    let mut settings = settings(Protocol::Smtp);
    settings.asks.data = true;
    let mut bench = Bench::with(settings);
    assert_eq!(bench.codes("EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<u@t>\r\n"), [220, 250, 250, 250]);
    bench.feed(b"BDAT 3\r\nabcBDAT 3\r\ndef");
    assert_eq!((bench.session.phase(), bench.asked.len()), (Phase::Asking, 1));
    let refused = Answer::Refused(Reply::coded(554, (5, 7, 1), "no"));
    let ticket = bench.asked.pop_front().unwrap().0;
    let mut out = Output::default();
    bench.session.answer(ticket, refused, &mut out);
    bench.take(out);
    assert_eq!(bench.codes(""), [554, 503]);
}
