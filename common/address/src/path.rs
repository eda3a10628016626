//! Reverse-paths and forward-paths (RFC 5321 §4.1.2): mailboxes in angle brackets, or none.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::domain::Domain;
use crate::mailbox::{Charset, Mailbox, MailboxError};

/// The argument of MAIL: a mailbox, or the null reverse-path `<>` of bounces (RFC 5321 §4.5.5).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ReversePath {
    /// `<>`
    Null,
    /// `<local@domain>`
    Mailbox(Mailbox),
}

/// The argument of RCPT.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ForwardPath {
    /// `<postmaster>` without a domain, in any case (RFC 5321 §4.5.1).
    Postmaster,
    /// `<local@domain>`
    Mailbox(Mailbox),
}

impl ReversePath {
    /// As [`ReversePath::parse_in`], in UTF-8.
    pub fn parse(text: &str) -> Result<Self, MailboxError> {
        Self::parse_in(Charset::Utf8, text)
    }

    /// Parses a path with its brackets, a source route ignored (RFC 5321 appendix C).
    pub fn parse_in(charset: Charset, text: &str) -> Result<Self, MailboxError> {
        match inside(charset, text)? {
            "" => Ok(Self::Null),
            inner => Mailbox::parse_in(charset, inner).map(Self::Mailbox),
        }
    }

    /// The text between the brackets: empty for the null reverse-path.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Null => "",
            Self::Mailbox(mailbox) => mailbox.as_str(),
        }
    }
}

impl ForwardPath {
    /// As [`ForwardPath::parse_in`], in UTF-8.
    pub fn parse(text: &str) -> Result<Self, MailboxError> {
        Self::parse_in(Charset::Utf8, text)
    }

    /// Parses a path with its brackets, a source route ignored (RFC 5321 appendix C).
    pub fn parse_in(charset: Charset, text: &str) -> Result<Self, MailboxError> {
        let inner = inside(charset, text)?;
        if inner.eq_ignore_ascii_case("postmaster") {
            return Ok(Self::Postmaster);
        }
        Mailbox::parse_in(charset, inner).map(Self::Mailbox)
    }
}

/// What is within the brackets, less its source route: `A-d-l ":"`, domains with an `@` each, and commas.
fn inside(charset: Charset, text: &str) -> Result<&str, MailboxError> {
    let inner = text.strip_prefix('<').and_then(|t| t.strip_suffix('>')).ok_or(MailboxError::NoDomain)?;
    if !inner.starts_with('@') {
        return Ok(inner);
    }
    let (route, mailbox) = inner.split_once(':').ok_or(MailboxError::LocalPart)?;
    for hop in route.split(',') {
        let host =
            hop.strip_prefix('@').filter(|host| !host.ends_with('.')).ok_or(MailboxError::LocalPart)?;
        Domain::parse(host)?;
    }
    if charset == Charset::Ascii && !route.is_ascii() {
        return Err(MailboxError::NeedsSmtputf8);
    }
    // A route leads to somebody.
    if mailbox.is_empty() { Err(MailboxError::LocalPart) } else { Ok(mailbox) }
}

impl fmt::Display for ReversePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}>", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        assert_eq!(ReversePath::parse("<>"), Ok(ReversePath::Null));
        assert_eq!(ReversePath::parse("<@a.b,@c.d:j@x.org>").unwrap().as_str(), "j@x.org");
        assert_eq!(ForwardPath::parse("<PostMaster>"), Ok(ForwardPath::Postmaster));
        let utf8 = "<@пример.рф:j@x.org>";
        assert_eq!(ReversePath::parse(utf8).unwrap().as_str(), "j@x.org");
        assert_eq!(ReversePath::parse_in(Charset::Ascii, utf8), Err(MailboxError::NeedsSmtputf8));
        for text in [
            "",
            "a@b",
            "<a@b",
            "a@b>",
            "<<a@b>>",
            "<@a.b>",
            "<@a.b:>",
            "<@:j@x.org>",
            "<@a.b,:j@x.org>",
            "<@a.b,c.d:j@x.org>",
            "<@a b:j@x.org>",
            "<@a.b.:j@x.org>",
            "<:j@x.org>",
            "< >",
        ] {
            assert!(ReversePath::parse(text).is_err(), "{text:?}");
        }
    }
}
