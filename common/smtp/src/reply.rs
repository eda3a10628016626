//! Replies (RFC 5321 §4.2) and enhanced status codes (RFC 3463, RFC 2034).

use std::fmt;

use serde::{Deserialize, Serialize};

/// `class.subject.detail` (RFC 3463 §2): class 2, 4 or 5, the others 0 to 999.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EnhancedCode(u8, u16, u16);

impl EnhancedCode {
    /// A code known at compile time; a class that does not exist is a build error where it is a const.
    pub const fn new(class: u8, subject: u16, detail: u16) -> Self {
        assert!(matches!(class, 2 | 4 | 5) && subject < 1000 && detail < 1000);
        Self(class, subject, detail)
    }

    /// Parses `5.1.1`, which must be the whole text.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.').map(|part| {
            let ok = !part.is_empty() && part.len() <= 3 && part.bytes().all(|b| b.is_ascii_digit());
            ok.then(|| part.parse::<u16>().ok()).flatten()
        });
        let (class, subject, detail) = (parts.next()??, parts.next()??, parts.next()??);
        (parts.next().is_none() && matches!(class, 2 | 4 | 5)).then_some(Self(class as u8, subject, detail))
    }

    /// 2, 4 or 5.
    pub const fn class(self) -> u8 {
        self.0
    }

    /// What it is about (RFC 3463 §3); 5 is the protocol.
    pub const fn subject(self) -> u16 {
        self.1
    }
}

impl fmt::Display for EnhancedCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// A reply: three digits, perhaps an enhanced code, one or more lines of text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// 200 to 559.
    pub code: u16,
    /// Sent before the text of each line (RFC 2034 §4).
    pub enhanced: Option<EnhancedCode>,
    /// Lines without line ends, no control characters; at least one, which may be empty.
    pub lines: Vec<String>,
}

impl Reply {
    /// A reply of one line.
    pub fn new(code: u16, enhanced: impl Into<Option<EnhancedCode>>, text: impl Into<String>) -> Self {
        Self { code, enhanced: enhanced.into(), lines: vec![text.into()] }
    }

    /// A reply of one line whose enhanced code is known when it is written down; one that does not exist panics.
    pub fn coded(code: u16, (class, subject, detail): (u8, u16, u16), text: impl Into<String>) -> Self {
        Self::new(code, EnhancedCode::new(class, subject, detail), text)
    }

    /// 4yz: try again.
    pub fn is_transient(&self) -> bool {
        self.code / 100 == 4
    }

    /// 5yz: never again.
    pub fn is_permanent(&self) -> bool {
        self.code / 100 == 5
    }

    /// Appends the reply as it goes over the wire. Control characters in the text become `?`, so no
    /// text can end a line.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        let last = self.lines.len().saturating_sub(1);
        for (n, line) in self.lines.iter().enumerate() {
            out.extend_from_slice(format!("{:03}", self.code).as_bytes());
            out.push(if n == last { b' ' } else { b'-' });
            if let Some(enhanced) = self.enhanced {
                out.extend_from_slice(format!("{enhanced} ").as_bytes());
            }
            out.extend(line.bytes().map(|b| if b.is_ascii_control() { b'?' } else { b }));
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// One line, for logs and bounces: `550 5.1.1 No such user`.
impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:03}", self.code)?;
        if let Some(enhanced) = self.enhanced {
            write!(f, " {enhanced}")?;
        }
        self.lines.iter().filter(|line| !line.is_empty()).try_for_each(|line| write!(f, " {line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_form() {
        let mut out = Vec::new();
        let reply = Reply {
            code: 550,
            enhanced: EnhancedCode::parse("5.1.1"),
            lines: vec!["No\r\nsuch".into(), "user".into()],
        };
        reply.write_to(&mut out);
        assert_eq!(out, b"550-5.1.1 No??such\r\n550 5.1.1 user\r\n");
        assert_eq!(Reply::new(250, None, "Ok").to_string(), "250 Ok");
    }

    #[test]
    fn enhanced_codes() {
        for text in ["5.1.1", "2.0.0", "4.999.0"] {
            assert_eq!(EnhancedCode::parse(text).unwrap().to_string(), text);
        }
        for text in ["", "5.1", "3.1.1", "5.1.1.1", "5.+1.1", "5.1.1000", "51.1.1"] {
            assert_eq!(EnhancedCode::parse(text), None, "{text:?}");
        }
    }
}
