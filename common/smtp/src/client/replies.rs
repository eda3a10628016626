//! Replies as a server sends them (RFC 5321 §4.2), bounded.

use crate::reply::{EnhancedCode, Reply};

/// Longest line taken, CRLF included. RFC 5321 §4.5.3.1.5 allows servers 512 octets; the field sends more.
const LINE_MAX: usize = 2048;

/// Most lines of one reply.
const LINES_MAX: usize = 100;

/// Why what a server sent is not a reply. Nothing after it can be understood: close.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// Over 2048 octets.
    #[error("reply line too long")]
    LineTooLong,
    /// Over 100 lines.
    #[error("reply of too many lines")]
    TooManyLines,
    /// Not three digits from 200 to 599 and a blank, a hyphen or nothing behind them.
    #[error("malformed reply line")]
    Malformed,
    /// A CR or LF alone: whoever takes it for a line end sees other replies than we do.
    #[error("bare CR or LF in a reply")]
    BareLineEnd,
    /// The lines of one reply differ in their codes (RFC 5321 §4.2.1).
    #[error("reply of several codes")]
    CodesDiffer,
}

/// Takes a server's octets apart into replies.
#[derive(Debug, Default)]
pub struct ReplyParser {
    line: Vec<u8>,
    reply: Option<Reply>,
}

impl ReplyParser {
    /// Takes octets off the front of `input` until a reply is whole, or all of them. Call it until none.
    pub fn push(&mut self, input: &mut &[u8]) -> Result<Option<Reply>, ReplyError> {
        while !input.is_empty() {
            let end = memchr::memchr(b'\n', input).map(|at| at + 1);
            let (part, rest) = input.split_at(end.unwrap_or(input.len()));
            *input = rest;
            if self.line.len() + part.len() > LINE_MAX {
                return Err(ReplyError::LineTooLong);
            }
            self.line.extend_from_slice(part);
            if end.is_none() {
                break;
            }
            let line = std::mem::take(&mut self.line);
            if let Some(reply) = self.line(&line)? {
                return Ok(Some(reply));
            }
        }
        Ok(None)
    }

    /// Nothing of a reply has come yet.
    pub fn is_empty(&self) -> bool {
        self.line.is_empty() && self.reply.is_none()
    }

    fn line(&mut self, line: &[u8]) -> Result<Option<Reply>, ReplyError> {
        let line = line.strip_suffix(b"\r\n").ok_or(ReplyError::BareLineEnd)?;
        if line.contains(&b'\r') {
            return Err(ReplyError::BareLineEnd);
        }
        let (code, more, text) = parse_line(line).ok_or(ReplyError::Malformed)?;
        let reply = match self.reply.take() {
            None => first_line(code, text),
            Some(reply) if reply.code != code => return Err(ReplyError::CodesDiffer),
            Some(reply) if reply.lines.len() == LINES_MAX => return Err(ReplyError::TooManyLines),
            Some(mut reply) => {
                let (enhanced, rest) = split_enhanced(code, &text);
                let repeated = enhanced.is_some() && enhanced == reply.enhanced;
                let text = if repeated { rest.to_owned() } else { text };
                reply.lines.push(text);
                reply
            }
        };
        if more {
            self.reply = Some(reply);
            return Ok(None);
        }
        Ok(Some(reply))
    }
}

/// The code, whether more lines follow, and the text. The blank behind the code may be missing when no
/// text follows (RFC 5321 §4.2).
fn parse_line(line: &[u8]) -> Option<(u16, bool, String)> {
    let (digits, rest) = line.split_at_checked(3)?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let code = digits.iter().fold(0, |code, d| code * 10 + u16::from(d - b'0'));
    // 1yz is not used by SMTP (RFC 5321 §4.2.1). The field has codes such as 571 and 590 that §4.2.1 has not.
    if !(200..600).contains(&code) {
        return None;
    }
    let (more, text) = match rest.split_first() {
        None => (false, rest),
        Some((b' ', text)) => (false, text),
        Some((b'-', text)) => (true, text),
        Some(_) => return None,
    };
    Some((code, more, printable(text)))
}

/// Text fit for logs and bounces, whatever came.
fn printable(text: &[u8]) -> String {
    let clean = |c: char| match c {
        '\t' => ' ',
        c if c.is_control() => '?',
        c => c,
    };
    String::from_utf8_lossy(text).chars().map(clean).collect()
}

fn first_line(code: u16, text: String) -> Reply {
    let (enhanced, rest) = split_enhanced(code, &text);
    let rest = rest.to_owned();
    Reply { code, enhanced, lines: vec![if enhanced.is_some() { rest } else { text }] }
}

/// The enhanced code before the text, which counts only when it is of the reply's class (RFC 2034 §4).
fn split_enhanced(code: u16, text: &str) -> (Option<EnhancedCode>, &str) {
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    match EnhancedCode::parse(word) {
        Some(enhanced) if u16::from(enhanced.class()) == code / 100 => (Some(enhanced), rest.trim_start()),
        _ => (None, text),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(input: &[u8]) -> Result<Vec<Reply>, ReplyError> {
        let (mut parser, mut input, mut replies) = (ReplyParser::default(), input, Vec::new());
        while let Some(reply) = parser.push(&mut input)? {
            replies.push(reply);
        }
        Ok(replies)
    }

    #[test]
    fn replies() {
        let replies =
            all(b"220 hi\r\n250-2.1.0 a\r\n250 2.1.0 b\r\n354\r\n550 4.1.1 odd\r\n571 5.7.1\r\n").unwrap();
        assert_eq!(replies[0], Reply::new(220, None, "hi"));
        assert_eq!(replies[1].enhanced, EnhancedCode::parse("2.1.0"));
        assert_eq!(replies[1].lines, ["a", "b"]);
        assert_eq!(replies[2], Reply::new(354, None, ""));
        assert_eq!(replies[3], Reply::new(550, None, "4.1.1 odd"));
        assert_eq!(replies[4], Reply::new(571, EnhancedCode::parse("5.7.1"), ""));
        assert_eq!(all(b"250 a\tb\x1b[0m\xff\r\n").unwrap()[0].lines, ["a b?[0m\u{fffd}"]);
    }

    #[test]
    fn refused() {
        for (input, error) in [
            (&b"250 a\n"[..], ReplyError::BareLineEnd),
            (b"250 a\rb\r\n", ReplyError::BareLineEnd),
            (b"250-a\r\n550 b\r\n", ReplyError::CodesDiffer),
            (b"hello\r\n", ReplyError::Malformed),
            (b"25\r\n", ReplyError::Malformed),
            (b"150 a\r\n", ReplyError::Malformed),
            (b"600 a\r\n", ReplyError::Malformed),
            (b"2500 a\r\n", ReplyError::Malformed),
            (b"\r\n", ReplyError::Malformed),
        ] {
            assert_eq!(all(input), Err(error), "{:?}", String::from_utf8_lossy(input));
        }
        assert_eq!(all(&[b'2'; LINE_MAX + 1]), Err(ReplyError::LineTooLong));
        let endless = b"250-x\r\n".repeat(LINES_MAX + 1);
        assert_eq!(all(&endless), Err(ReplyError::TooManyLines));
    }

    proptest! {
        #[test]
        fn any_octets_in_any_pieces_come_to_the_same(
            input in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..120),
                "((2|5)50[- ](5\\.1\\.1 )?[a-c]{0,3}(\r\n|\n|\r)){0,8}".prop_map(String::into_bytes),
            ],
            piece in 1usize..9,
        ) {
            let (mut parser, mut replies, mut error) = (ReplyParser::default(), Vec::new(), None);
            'pieces: for mut part in input.chunks(piece) {
                loop {
                    match parser.push(&mut part) {
                        Ok(Some(reply)) => replies.push(reply),
                        Ok(None) => break,
                        Err(e) => { error = Some(e); break 'pieces; }
                    }
                }
            }
            match all(&input) {
                Ok(whole) => { prop_assert_eq!(whole, replies); prop_assert_eq!(error, None); }
                Err(e) => prop_assert_eq!(error, Some(e)),
            }
        }
    }
}
