//! Replies, as RFC 5321 §4.2 writes them.

use std::fmt;

use crate::script::{One, Pattern};

/// A whole reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Its code.
    pub code: u16,
    /// The text of its lines, without codes.
    pub lines: Vec<String>,
    /// Octets of its longest line, CRLF included.
    pub longest: usize,
}

/// What stands at the front of the server's octets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// A reply of so many octets.
    Reply(Reply, usize),
    /// The beginning of one.
    More,
    /// Nothing that RFC 5321 §4.2 calls a reply, and why.
    Malformed(String),
}

/// Octets without a line end that are no reply any more.
const LINE_MAX: usize = 64 * 1024;

impl Reply {
    /// Reads one reply.
    pub fn read(input: &[u8]) -> Read {
        let (mut at, mut lines, mut code, mut longest) = (0, Vec::new(), None, 0);
        loop {
            let rest = &input[at..];
            let Some(end) = rest.iter().position(|octet| *octet == b'\n') else {
                let long = rest.len() > LINE_MAX;
                return if long { Read::Malformed("a line without an end".into()) } else { Read::More };
            };
            let wrong = |why: &str| Read::Malformed(format!("{why}: {:?}", lossy(&rest[..=end])));
            let Some(line) = rest[..end].strip_suffix(b"\r") else { return wrong("LF without CR") };
            if line.contains(&b'\r') {
                return wrong("CR without LF");
            }
            let [a @ b'2'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9', text @ ..] = line else {
                return wrong("no code");
            };
            let this = u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0');
            if *code.get_or_insert(this) != this {
                return wrong("another code than on the first line");
            }
            at += end + 1;
            longest = longest.max(end + 1);
            match text {
                [] => lines.push(String::new()),
                [b' ' | b'-', text @ ..] => lines.push(lossy(text)),
                _ => return wrong("no blank and no hyphen behind the code"),
            }
            if text.first() != Some(&b'-') {
                return Read::Reply(Self { code: this, lines, longest }, at);
            }
        }
    }

    /// The enhanced code of the first line (RFC 2034 §4).
    pub fn enhanced(&self) -> Option<&str> {
        enhanced(self.lines.first()?)
    }

    /// Whether it is what the pattern says. Variables in the pattern's text must be filled in before.
    pub fn fits(&self, pattern: &Pattern) -> bool {
        let code = self.code.to_string();
        let any = pattern.any.iter().any(|one| match one {
            One::Close => false,
            One::Code(wanted, enhanced) => {
                wanted.bytes().zip(code.bytes()).all(|(w, c)| w == b'x' || w == c)
                    && enhanced
                        .as_deref()
                        .is_none_or(|wanted| self.enhanced().is_some_and(|is| like(is, wanted)))
            }
        });
        let text = self.lines.join("\n").to_ascii_lowercase();
        any && pattern.text.as_deref().is_none_or(|wanted| text.contains(&wanted.to_ascii_lowercase()))
    }

    /// The parameters of a keyword in the reply to EHLO; none when it is not offered (RFC 5321 §4.1.1.1).
    pub fn offer(&self, keyword: &str) -> Option<Vec<&str>> {
        self.lines.iter().skip(1).find_map(|line| {
            let mut words = line.split(' ');
            words.next()?.eq_ignore_ascii_case(keyword).then(|| words.collect())
        })
    }
}

/// The enhanced code at the front of a line's text: class 2, 4 or 5, subject and detail of up to three digits
/// (RFC 3463 §2).
pub fn enhanced(text: &str) -> Option<&str> {
    let word = text.split(' ').next()?;
    let parts: Vec<_> = word.split('.').collect();
    let number = |part: &str| matches!(part.len(), 1..=3) && part.bytes().all(|c| c.is_ascii_digit());
    let [class, subject, detail] = parts[..] else { return None };
    (matches!(class, "2" | "4" | "5") && number(subject) && number(detail)).then_some(word)
}

fn like(is: &str, wanted: &str) -> bool {
    is.split('.').zip(wanted.split('.')).all(|(is, wanted)| wanted == "x" || is == wanted)
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code, self.lines.join(" / "))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::script::pattern;

    #[test]
    fn replies() {
        let Read::Reply(reply, used) = Reply::read(b"250-a\r\n250-SIZE 5\r\n250 b\r\n221 ") else { panic!() };
        assert_eq!((reply.to_string().as_str(), used), ("250 a / SIZE 5 / b", 26));
        assert_eq!((reply.offer("size"), reply.offer("a")), (Some(vec!["5"]), None));
        assert_eq!(Reply::read(b"250-a\r\n250"), Read::More);
        for wrong in
            ["250 a\n", "250-a\r\n251 b\r\n", "hello\r\n", "25 a\r\n", "250a\r\n", "650 a\r\n", "\r\n"]
        {
            assert!(matches!(Reply::read(wrong.as_bytes()), Read::Malformed(_)), "{wrong:?}");
        }
    }

    #[test]
    fn patterns() {
        let Read::Reply(reply, _) = Reply::read(b"550 5.1.1 Nobody here\r\n") else { panic!() };
        for (text, fits) in [
            ("550", true),
            ("5xx 5.1.x", true),
            ("250|550 5.x.x", true),
            ("55x ~ NOBODY", true),
            ("550 5.7.1", false),
            ("4xx|close", false),
            ("550 ~ somebody", false),
        ] {
            assert_eq!(reply.fits(&pattern(text).unwrap()), fits, "{text}");
        }
        assert_eq!(enhanced("5.1.1234 x"), None);
        assert_eq!(enhanced("3.1.1 x"), None);
    }

    proptest! {
        #[test]
        fn never_panics(input in "([2-6]5?0[- ]?|[a-z]{0,3}|\r\n|\r|\n){0,8}") {
            if let Read::Reply(_, used) = Reply::read(input.as_bytes()) {
                prop_assert!(used <= input.len());
            }
        }
    }
}
