//! Reverse-paths and forward-paths (RFC 5321 §4.1.2): mailboxes in angle brackets, or none.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::mailbox::{Mailbox, MailboxError};

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
    /// Parses a path with its brackets, a source route ignored (RFC 5321 appendix C).
    pub fn parse(text: &str) -> Result<Self, MailboxError> {
        match inside(text)? {
            "" => Ok(Self::Null),
            inner => Mailbox::parse(inner).map(Self::Mailbox),
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
    /// Parses a path with its brackets, a source route ignored (RFC 5321 appendix C).
    pub fn parse(text: &str) -> Result<Self, MailboxError> {
        let inner = inside(text)?;
        if inner.eq_ignore_ascii_case("postmaster") {
            return Ok(Self::Postmaster);
        }
        Mailbox::parse(inner).map(Self::Mailbox)
    }
}

fn inside(text: &str) -> Result<&str, MailboxError> {
    let inner = text.strip_prefix('<').and_then(|t| t.strip_suffix('>')).ok_or(MailboxError::NoDomain)?;
    if !inner.starts_with('@') {
        return Ok(inner);
    }
    let (_route, mailbox) = inner.split_once(':').ok_or(MailboxError::LocalPart)?;
    Ok(mailbox)
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
        for text in ["", "a@b", "<a@b", "a@b>", "<<a@b>>", "<@a.b>"] {
            assert!(ReversePath::parse(text).is_err(), "{text:?}");
        }
    }
}
