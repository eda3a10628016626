//! Where content ends, and what of it is kept (RFC 5321 §4.1.1.4, §4.5.2).
//!
//! Only CRLF.CRLF ends content, and CRLF is the only line end in it. A bare CR or LF is refused instead
//! of repaired: what a sender that writes one means by `LF.LF` and what the next server makes of it is
//! the stuff of SMTP smuggling (CVE-2023-51764 and its kin). A NUL is no text (RFC 2045 §2.8), and some
//! programs on the way end a line at it or leave it out; it makes no difference to where this content ends,
//! so the message is refused and the dialogue goes on.

use super::normalise::Normaliser;

/// A sequence that no honest client sends. The message is refused and the connection closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// CR without LF.
    BareCr,
    /// LF without CR.
    BareLf,
}

/// Why content is refused at its end, though it was read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// More octets than we take.
    TooBig,
    /// A line over the limit.
    LineTooLong,
    /// A NUL.
    Nul,
}

/// How far the content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All input is used; more is to come.
    More,
    /// That was the end, `used` octets of input with it.
    End {
        /// Octets up to and including the last line end.
        used: usize,
    },
    /// The dialogue cannot be trusted any more.
    Violation(Violation),
}

/// Decodes the content of one message, in pieces cut anywhere.
#[derive(Clone, Debug)]
pub struct Decoder {
    state: State,
    line: u64,
    size: u64,
    line_too_long: bool,
    nul: bool,
    size_max: u64,
    line_max: u64,
    normaliser: Option<Normaliser>,
}

/// What the next octet means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    LineStart,
    Line,
    /// A CR, already kept: LF must follow, or nothing of the message is.
    Cr,
    /// A dot at the beginning of a line, not kept.
    Dot,
    /// Dot and CR, not kept.
    DotCr,
}

impl Decoder {
    /// For content of at most `size_max` octets in lines of at most `line_max`, line ends not counted.
    pub fn new(size_max: u64, line_max: u64) -> Self {
        Self {
            state: State::LineStart,
            line: 0,
            size: 0,
            line_too_long: false,
            nul: false,
            size_max,
            line_max,
            normaliser: None,
        }
    }

    /// Content that breaks the rules about line ends is rewritten ([`super::normalise`]) instead of refused.
    pub fn normalising(mut self, yes: bool) -> Self {
        self.normaliser = yes.then(Normaliser::default);
        self
    }

    /// Takes the next piece of input and appends what is content to `kept`. After a [`Fault`] nothing is
    /// kept any more.
    pub fn decode(&mut self, input: &[u8], kept: &mut Vec<u8>) -> Progress {
        let Some(normaliser) = &mut self.normaliser else { return self.decode_strict(input, kept) };
        let mut strict = Vec::new();
        let used = normaliser.rewrite(input, &mut strict);
        match self.decode_strict(&strict, kept) {
            Progress::End { .. } => Progress::End { used },
            other => other,
        }
    }

    /// Octets of content so far, stuffed dots not counted; not exact after a fault.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Why the message will be refused at its end. Of several faults it is at the end always the same one,
    /// wherever the input was cut.
    pub fn fault(&self) -> Option<Fault> {
        match () {
            () if self.size > self.size_max => Some(Fault::TooBig),
            () if self.line_too_long => Some(Fault::LineTooLong),
            () if self.nul => Some(Fault::Nul),
            () => None,
        }
    }

    /// The search for line ends is memchr's, and what lies between dots is copied at once.
    fn decode_strict(&mut self, input: &[u8], kept: &mut Vec<u8>) -> Progress {
        let mut run = 0; // input[run..at] is content and not yet copied
        let mut at = 0;
        loop {
            match (self.state, input.get(at)) {
                (_, None) => break,
                (State::Line, Some(_)) => match memchr::memchr3(b'\r', b'\n', 0, &input[at..]) {
                    None => {
                        self.lengthen(input.len() - at);
                        at = input.len();
                    }
                    Some(length) => {
                        self.lengthen(length);
                        at += length;
                        match input[at..] {
                            // Nearly every line end: what follows is of the next line, and of no interest yet.
                            [b'\r', b'\n', next, ..] if next != b'.' => {
                                self.line = 0;
                                at += 1;
                            }
                            [b'\n', ..] => return Progress::Violation(Violation::BareLf),
                            [b'\r', ..] => self.state = State::Cr,
                            _ => {
                                self.lengthen(1);
                                self.nul = true;
                            }
                        }
                        at += 1;
                    }
                },
                (State::Cr, Some(b'\n')) => {
                    self.line = 0;
                    self.state = State::LineStart;
                    at += 1;
                }
                (State::LineStart, Some(b'.')) => {
                    self.keep(&input[run..at], kept);
                    at += 1;
                    run = at;
                    self.state = State::Dot;
                }
                (State::Dot, Some(b'\r')) => {
                    at += 1;
                    run = at;
                    self.state = State::DotCr;
                }
                (State::DotCr, Some(b'\n')) => return Progress::End { used: at + 1 },
                (State::Cr | State::DotCr, Some(_)) => return Progress::Violation(Violation::BareCr),
                (State::LineStart | State::Dot, Some(_)) => self.state = State::Line,
            }
        }
        self.keep(&input[run..at], kept);
        Progress::More
    }

    fn lengthen(&mut self, octets: usize) {
        self.line += octets as u64;
        self.line_too_long |= self.line > self.line_max;
    }

    fn keep(&mut self, run: &[u8], kept: &mut Vec<u8>) {
        self.size += run.len() as u64;
        if self.fault().is_none() {
            kept.extend_from_slice(run);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All at once: what was kept, how it ended, and the fault.
    fn whole(input: &[u8]) -> (Vec<u8>, Progress, Option<Fault>) {
        let (mut decoder, mut kept) = (Decoder::new(1000, 50), Vec::new());
        let progress = decoder.decode(input, &mut kept);
        (kept, progress, decoder.fault())
    }

    #[test]
    fn unstuffed() {
        for (input, content) in [
            (&b".\r\n"[..], &b""[..]),
            (b"a\r\n.\r\n", b"a\r\n"),
            (b"..\r\n.\r\n", b".\r\n"),
            (b"..a\r\n...\r\n.\r\n", b".a\r\n..\r\n"),
            (b".a\r\n\r\n.\r\n", b"a\r\n\r\n"),
            (b"a.\r\n.\r\n", b"a.\r\n"),
            (b"\x01\xff\r\n.\r\n", b"\x01\xff\r\n"),
        ] {
            let end = Progress::End { used: input.len() };
            assert_eq!(whole(input), (content.to_vec(), end, None), "{input:?}");
            let mut followed = input.to_vec();
            followed.extend(b"QUIT\r\n");
            assert_eq!(whole(&followed).1, end);
        }
    }

    #[test]
    fn smuggling_is_no_end() {
        use Violation::*;
        for (input, violation) in [
            (&b"a\n.\n"[..], BareLf),
            (b"a\n.\r\n", BareLf),
            (b"a\r\n.\n", BareLf),
            (b"a\r\n.\rX", BareCr),
            (b"a\r.\r\n", BareCr),
            (b"a\r\r\n", BareCr),
            (b"\n", BareLf),
            (b".\n", BareLf),
            (b".\r\r\n", BareCr),
        ] {
            assert_eq!(whole(input).1, Progress::Violation(violation), "{input:?}");
        }
    }

    #[test]
    fn a_nul_is_no_text_and_no_end() {
        for input in [&b"a\r\n\0.\r\n.\r\n"[..], b".\0\r\n.\r\n", b"a\0b\r\n.\r\n", b"\0\r\n.\r\n"] {
            let (_, progress, fault) = whole(input);
            assert_eq!(
                (progress, fault),
                (Progress::End { used: input.len() }, Some(Fault::Nul)),
                "{input:?}"
            );
        }
    }

    #[test]
    fn normalised() {
        let (mut decoder, mut kept) = (Decoder::new(1000, 50).normalising(true), Vec::new());
        assert_eq!(decoder.decode(b"a\n.\nb\rc\r\n.", &mut kept), Progress::More);
        assert_eq!(decoder.decode(b"\r\nQUIT\r\n", &mut kept), Progress::End { used: 2 });
        assert_eq!((&kept[..], decoder.size(), decoder.fault()), (&b"a\r\n.\r\nb c\r\n"[..], 11, None));
    }

    #[test]
    fn limits_end_with_the_message() {
        let line = [&[b'x'; 50][..], b"\r\n"].concat();
        assert_eq!(whole(&[&line[..], b".\r\n"].concat()).2, None);
        assert_eq!(
            whole(&[&line.repeat(3)[..], b".\r\n"].concat()).2,
            None,
            "each line is counted by itself"
        );
        assert_eq!(whole(&[b"x", &line[..], b".\r\n"].concat()).2, Some(Fault::LineTooLong));
        assert_eq!(whole(&[&line[..], b"x", &line[..], b".\r\n"].concat()).2, Some(Fault::LineTooLong));
        let big = [line.repeat(20), b".\r\n".to_vec()].concat();
        let (kept, progress, fault) = whole(&big);
        assert_eq!((progress, fault), (Progress::End { used: big.len() }, Some(Fault::TooBig)));
        assert!(kept.len() <= 1000);
    }

    /// The grammar by the letter, octet by octet: slow and plain.
    fn reference(input: &[u8]) -> (Vec<u8>, Progress) {
        let (mut kept, mut at) = (Vec::new(), 0);
        loop {
            let line_start = at;
            loop {
                match (input.get(at), input.get(at + 1)) {
                    (None, _) => break,
                    (Some(b'\n'), _) => return (kept, Progress::Violation(Violation::BareLf)),
                    (Some(b'\r'), Some(b'\n') | None) => break,
                    (Some(b'\r'), _) => return (kept, Progress::Violation(Violation::BareCr)),
                    _ => at += 1,
                }
            }
            let text = &input[line_start..at];
            if at + 2 > input.len() {
                kept.extend(text.strip_prefix(b".").unwrap_or(text));
                if at < input.len() && text != b"." {
                    kept.push(b'\r');
                }
                return (kept, Progress::More);
            }
            at += 2;
            if text == b"." {
                return (kept, Progress::End { used: at });
            }
            kept.extend(text.strip_prefix(b".").unwrap_or(text));
            kept.extend(b"\r\n");
        }
    }

    proptest! {
        #[test]
        fn splits_do_not_matter(
            parts in proptest::collection::vec("[a.\r\n]{0,4}|\r\n|\r\n\\.|\r\n\\.\r\n", 0..12),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let input = parts.concat().into_bytes();
            let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(input.len() + 1)).collect();
            cuts.extend([0, input.len()]);
            cuts.sort_unstable();
            let (mut decoder, mut kept) = (Decoder::new(u64::MAX, u64::MAX), Vec::new());
            let mut outcome = Progress::More;
            for pair in cuts.windows(2) {
                outcome = match decoder.decode(&input[pair[0]..pair[1]], &mut kept) {
                    Progress::End { used } => Progress::End { used: pair[0] + used },
                    other => other,
                };
                if outcome != Progress::More {
                    break;
                }
            }
            let (expected, progress) = reference(&input);
            prop_assert_eq!(outcome, progress);
            if !matches!(progress, Progress::Violation(_)) {
                prop_assert_eq!(&kept, &expected);
                prop_assert_eq!(decoder.size(), kept.len() as u64);
            }
        }
    }
}
