//! What is done for clients that cannot write CRLF, on listeners that say so: octets are rewritten before
//! anything else looks at them.
//!
//! A bare LF ends a line like CRLF; a bare CR and a NUL are blanks. One thing is never lenient: content ends
//! at CRLF.CRLF as it came over the wire, and at nothing that merely looks so after the rewriting (this is
//! what Postfix calls `smtpd_forbid_bare_newline = normalize`). A server before us that takes `LF . LF` for
//! text has not stuffed that dot: were it an end here, its client could put a whole second message behind it
//! (SMTP smuggling, CVE-2023-51764 and its kin). Such a line is text of one dot, and is sent on stuffed. A
//! client that ends its content by `LF . LF` on purpose therefore waits until its time is over.

use super::framing::{COMMAND_LINE_MAX, Split};

/// As [`super::framing::split`], where a bare LF ends a line as well. A bare CR or a NUL within a line is
/// left for the command's grammar to refuse.
pub fn split(input: &[u8], skipping: bool) -> Split<'_> {
    let hopeless = |text: usize| skipping || text + 2 > COMMAND_LINE_MAX;
    let Some(at) = memchr::memchr(b'\n', input) else {
        // A CR at the end may be half of a line end.
        let text = input.len() - usize::from(input.last() == Some(&b'\r'));
        return if hopeless(text) { Split::Skip { consumed: text } } else { Split::Incomplete };
    };
    let consumed = at + 1;
    let text = &input[..at];
    let line = text.strip_suffix(b"\r").unwrap_or(text);
    if hopeless(line.len()) { Split::TooLong { consumed } } else { Split::Line { line, consumed } }
}

/// Rewrites the content of one message, in pieces cut anywhere, stuffed dots and the final dot included.
/// What comes out has no CR or LF but in pairs, and no NUL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Normaliser {
    state: State,
    /// The last line end was a whole one.
    whole: bool,
}

/// What was the last octet, as far as it matters. What is not said to be written is still held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    LineStart,
    Line,
    /// Held: a CR.
    Cr,
    /// Held: a dot at the beginning of a line.
    Dot,
    /// Held: such a dot, and a CR.
    DotCr,
}

impl Default for Normaliser {
    fn default() -> Self {
        Self { state: State::LineStart, whole: true }
    }
}

impl Normaliser {
    /// Appends what becomes of `input` to `out` and returns how much of it was used: all of it, or up to
    /// the end of content and with it.
    pub fn rewrite(&mut self, input: &[u8], out: &mut Vec<u8>) -> usize {
        out.reserve(input.len());
        let mut at = 0;
        while let Some(&octet) = input.get(at) {
            match (self.state, octet) {
                (State::Line, _) => {
                    let rest = &input[at..];
                    let text = memchr::memchr3(b'\r', b'\n', 0, rest).unwrap_or(rest.len());
                    out.extend_from_slice(&rest[..text]);
                    at += text;
                    match rest.get(text) {
                        None => continue,
                        Some(b'\r') => self.state = State::Cr,
                        Some(b'\n') => self.end_line(false, out),
                        Some(_) => out.push(b' '),
                    }
                }
                (State::LineStart, b'.') => self.state = State::Dot,
                (State::Cr, b'\n') => self.end_line(true, out),
                (State::Dot, b'\r') => self.state = State::DotCr,
                (State::DotCr, b'\n') if self.whole => {
                    out.extend_from_slice(b".\r\n");
                    *self = Self::default();
                    return at + 1;
                }
                (State::Dot | State::DotCr, b'\n') => {
                    out.extend_from_slice(b"..");
                    self.end_line(self.state == State::DotCr, out);
                }
                // The octet is looked at again, as one within a line.
                (State::LineStart | State::Cr | State::Dot | State::DotCr, _) => {
                    self.write_held(out);
                    self.state = State::Line;
                    continue;
                }
            }
            at += 1;
        }
        at
    }

    fn end_line(&mut self, whole: bool, out: &mut Vec<u8>) {
        out.extend_from_slice(b"\r\n");
        *self = Self { state: State::LineStart, whole };
    }

    fn write_held(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(match self.state {
            State::LineStart | State::Line => b"",
            State::Cr => b" ",
            State::Dot => b".",
            State::DotCr => b". ",
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What becomes of content that comes in these pieces, and how much of it was used.
    fn rewritten(pieces: &[&[u8]]) -> (Vec<u8>, usize) {
        let (mut normaliser, mut out, mut used) = (Normaliser::default(), Vec::new(), 0);
        for piece in pieces {
            let step = normaliser.rewrite(piece, &mut out);
            used += step;
            if step < piece.len() || out == b".\r\n" || out.ends_with(b"\r\n.\r\n") {
                break;
            }
        }
        (out, used)
    }

    #[test]
    fn content() {
        for (wire, strict) in [
            (&b"a\r\n..b\r\n.\r\n"[..], &b"a\r\n..b\r\n.\r\n"[..]),
            (b".\r\n", b".\r\n"),
            (b"a\nb\n\n", b"a\r\nb\r\n\r\n"),
            (b"a\rb\r\r\nc\0d", b"a b \r\nc d"),
            (b"a\r", b"a"),
            // Not ends, but lines of a dot.
            (b"a\n.\nb", b"a\r\n..\r\nb"),
            (b"a\n.\r\nb", b"a\r\n..\r\nb"),
            (b"a\r\n.\nb", b"a\r\n..\r\nb"),
            (b"a\r\n.\n.\r\nb", b"a\r\n..\r\n..\r\nb"),
            (b"a\n.\r\n.\r\nb", b"a\r\n..\r\n.\r\n"),
            (b"a\r.\rb", b"a . b"),
            (b"a\r\n.\rb", b"a\r\n. b"),
            (b"a\r\n.\r\r\nb", b"a\r\n. \r\nb"),
            (b"a\r\n\0.\r\nb", b"a\r\n .\r\nb"),
            (b"a\r\n.\0\r\nb", b"a\r\n. \r\nb"),
            // A stuffed one stays what it was.
            (b"a\n..\nb", b"a\r\n..\r\nb"),
            (b"a\n.b\n", b"a\r\n.b\r\n"),
        ] {
            assert_eq!(rewritten(&[wire]).0, strict, "{:?}", String::from_utf8_lossy(wire));
        }
    }

    #[test]
    fn lines() {
        let line = |line, consumed| Split::Line { line, consumed };
        assert_eq!(split(b"NOOP\nQUIT\r\n", false), line(b"NOOP", 5));
        assert_eq!(split(b"NOOP\r\nQUIT\r\n", false), line(b"NOOP", 6));
        assert_eq!(split(b"NO\rOP\0\r\r\n", false), line(b"NO\rOP\0\r", 9));
        assert_eq!(split(b"\n", false), line(b"", 1));
        for text in [&b""[..], b"NOOP", b"NOOP\r", b"\r"] {
            assert_eq!(split(text, false), Split::Incomplete, "{text:?}");
        }
        let long = [b'x'; COMMAND_LINE_MAX - 1];
        assert_eq!(split(&long, false), Split::Skip { consumed: long.len() });
        assert_eq!(split(&[&long[..], b"\n"].concat(), false), Split::TooLong { consumed: COMMAND_LINE_MAX });
        assert_eq!(split(&[&long[1..], b"\r"].concat(), false), Split::Incomplete);
        assert!(matches!(split(&[&long[1..], b"\r\n"].concat(), false), Split::Line { .. }));
        assert_eq!(split(b"\r", true), Split::Skip { consumed: 0 });
        assert_eq!(split(b"x\ny", true), Split::TooLong { consumed: 2 });
    }

    proptest! {
        #[test]
        fn splits_do_not_matter_and_the_outcome_is_strict(
            parts in proptest::collection::vec("[a.\r\n\0]{0,4}|\r\n|\n|\r\n\\.|\r\n\\.\r\n", 0..12),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let input = parts.concat().into_bytes();
            let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(input.len() + 1)).collect();
            cuts.extend([0, input.len()]);
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|pair| &input[pair[0]..pair[1]]).collect();
            let (whole, used) = rewritten(&[&input]);
            prop_assert_eq!(rewritten(&pieces), (whole.clone(), used));
            let text = String::from_utf8(whole.clone()).unwrap();
            let bare = text.replace("\r\n", "");
            prop_assert!(!bare.contains(['\r', '\n', '\0']), "{:?}", text);
            // It ends where a strict server would say so, or not at all.
            let end = [b"\r\n", &input[..]].concat().windows(5).position(|w| w == b"\r\n.\r\n");
            let expected = end.map_or(input.len(), |at| at + 3);
            prop_assert_eq!(used, expected);
            prop_assert_eq!(format!("\r\n{text}").find("\r\n.\r\n").is_some(), end.is_some());
            // What is strict already is left alone, a line end that is not there yet excepted.
            if !text.ends_with('.') {
                prop_assert_eq!(rewritten(&[&whole]).0, whole);
            }
        }
    }
}
