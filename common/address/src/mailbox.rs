//! Mailboxes: `Local-part "@" ( Domain / address-literal )` (RFC 5321 §4.1.2, §4.1.3).

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::domain::{Domain, DomainError};

/// Longest mailbox, octets: a path has at most 256 with its brackets (RFC 5321 §4.5.3.1.3). A local part of
/// more than the 64 of §4.5.3.1.1 is taken: that is the least that everybody must take, and the senders of
/// mailing lists, which have the recipient's address in them, go beyond it every day.
const MAILBOX_MAX: usize = 254;

/// A mailbox in canonical form. The local part is kept case-sensitive and as written, with quotes only
/// where it needs them (`"a b"@x`, never `"ab"@x`); the domain is canonical ([`Domain`]), or an address
/// literal `[192.0.2.1]`, `[IPv6:2001:db8::1]`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mailbox {
    text: Box<str>,
    at: u16,
}

/// Why a text is not a mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MailboxError {
    /// No `@`, or nothing behind it.
    #[error("no domain in address")]
    NoDomain,
    /// The local part is empty, or not of the grammar.
    #[error("malformed local part")]
    LocalPart,
    /// More than a path can hold.
    #[error("address too long")]
    TooLong,
    /// It is an address, but only where SMTPUTF8 (RFC 6531) is in force.
    #[error("address needs SMTPUTF8")]
    NeedsSmtputf8,
    /// Not a domain name.
    #[error(transparent)]
    Domain(#[from] DomainError),
    /// A bracketed address that is none.
    #[error("malformed address literal")]
    Literal,
}

/// What an address may be written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charset {
    /// ASCII alone: what SMTP has without SMTPUTF8.
    Ascii,
    /// UTF-8, in local parts and domains (RFC 6531 §3.3).
    Utf8,
}

impl Mailbox {
    /// Parses `local@domain` without angle brackets, in UTF-8: for what is not a dialogue's to forbid.
    pub fn parse(text: &str) -> Result<Self, MailboxError> {
        Self::parse_in(Charset::Utf8, text)
    }

    /// Parses `local@domain` without angle brackets. What is malformed in any case is told first.
    pub fn parse_in(charset: Charset, text: &str) -> Result<Self, MailboxError> {
        let mailbox = Self::parse_utf8(text)?;
        // Also a domain that has an A-label form may not come as anything else (RFC 6531 §3.2).
        if charset == Charset::Ascii && !text.is_ascii() {
            return Err(MailboxError::NeedsSmtputf8);
        }
        Ok(mailbox)
    }

    fn parse_utf8(text: &str) -> Result<Self, MailboxError> {
        let (local, rest) = split_local(text)?;
        let host = rest.strip_prefix('@').filter(|h| !h.is_empty()).ok_or(MailboxError::NoDomain)?;
        let host = match host.strip_prefix('[') {
            Some(inner) => parse_literal(inner.strip_suffix(']').ok_or(MailboxError::Literal)?)?,
            // The dot that ends a name in DNS has no place in mail (RFC 5321 §2.3.5).
            None if host.ends_with('.') => return Err(DomainError::Empty.into()),
            None => Domain::parse(host)?.into(),
        };
        Self::joined(&local, &host)
    }

    fn joined(local: &str, host: &str) -> Result<Self, MailboxError> {
        let local = requote(local);
        let text = format!("{local}@{host}");
        let at = u16::try_from(local.len()).map_err(|_| MailboxError::TooLong)?;
        if text.len() > MAILBOX_MAX {
            return Err(MailboxError::TooLong);
        }
        Ok(Self { text: text.into(), at })
    }

    /// Builds a mailbox from an unquoted local part, quoting it as needed.
    pub fn new(local: &str, domain: &Domain) -> Result<Self, MailboxError> {
        if local.is_empty() || local.chars().any(is_forbidden) {
            return Err(MailboxError::LocalPart);
        }
        Self::joined(local, domain.as_str())
    }

    /// The whole mailbox, canonical.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The local part as it stands in the mailbox, quotes included.
    pub fn local_part(&self) -> &str {
        &self.text[..usize::from(self.at)]
    }

    /// The local part with its quoting removed: the name to look up.
    pub fn local_name(&self) -> String {
        unquote(self.local_part())
    }

    /// The text behind the `@`: a domain or an address literal with its brackets.
    pub fn host(&self) -> &str {
        &self.text[usize::from(self.at) + 1..]
    }

    /// The domain, unless it is an address literal.
    pub fn domain(&self) -> Option<Domain> {
        Domain::parse(self.host()).ok()
    }

    /// The address of an address literal.
    pub fn literal(&self) -> Option<IpAddr> {
        let inner = self.host().strip_prefix('[')?.strip_suffix(']')?;
        match inner.strip_prefix("IPv6:") {
            Some(v6) => v6.parse().ok().map(IpAddr::V6),
            None => inner.parse().ok().map(IpAddr::V4),
        }
    }

    /// False when it can travel only under SMTPUTF8.
    pub fn is_ascii(&self) -> bool {
        self.text.is_ascii()
    }
}

/// Splits off the local part, unquoted. What remains begins at the `@`.
fn split_local(text: &str) -> Result<(String, &str), MailboxError> {
    let (local, rest) = if text.starts_with('"') {
        let end = quoted_end(text).ok_or(MailboxError::LocalPart)?;
        (unquote(&text[..end]), &text[end..])
    } else {
        let end = text.find('@').ok_or(MailboxError::NoDomain)?;
        if !is_dot_string(&text[..end]) {
            return Err(MailboxError::LocalPart);
        }
        (text[..end].to_owned(), &text[end..])
    };
    // The grammar has `""` as well; it would be the name of nobody, and of a directory's self.
    if local.is_empty() {
        return Err(MailboxError::LocalPart);
    }
    Ok((local, rest))
}

/// The index behind the closing quote of a Quoted-string (RFC 5321 §4.1.2), which is at its front.
fn quoted_end(text: &str) -> Option<usize> {
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some(at + 1),
            '\\' => {
                chars.next().filter(|(_, c)| (' '..='~').contains(c))?;
            }
            c if is_forbidden(c) => return None,
            _ => {}
        }
    }
    None
}

fn unquote(text: &str) -> String {
    let Some(inner) = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')) else {
        return text.to_owned();
    };
    let mut out = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        out.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    out
}

fn requote(local: &str) -> String {
    if is_dot_string(local) {
        return local.to_owned();
    }
    let mut out = String::with_capacity(local.len() + 2);
    out.push('"');
    for c in local.chars() {
        if c == '"' || c == '\\' {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
    out
}

/// Dot-string (RFC 5321 §4.1.2), with UTF-8 as atext (RFC 6531 §3.3).
fn is_dot_string(text: &str) -> bool {
    let atext = |c: char| {
        c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c) || (!c.is_ascii() && !is_forbidden(c))
    };
    text.split('.').all(|atom| !atom.is_empty() && atom.chars().all(atext))
}

/// Controls, and Unicode's two line ends: an address is one line wherever it is shown.
fn is_forbidden(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
}

/// The inside of an address literal; general literals (other tags) are not taken.
fn parse_literal(inner: &str) -> Result<String, MailboxError> {
    if inner.len() > 5 && inner.is_char_boundary(5) && inner[..5].eq_ignore_ascii_case("IPv6:") {
        let v6: std::net::Ipv6Addr = inner[5..].parse().map_err(|_| MailboxError::Literal)?;
        return Ok(format!("[IPv6:{v6}]"));
    }
    let v4: std::net::Ipv4Addr = inner.parse().map_err(|_| MailboxError::Literal)?;
    Ok(format!("[{v4}]"))
}

impl fmt::Display for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mailbox({})", self.text)
    }
}

impl TryFrom<String> for Mailbox {
    type Error = MailboxError;

    fn try_from(text: String) -> Result<Self, MailboxError> {
        Self::parse(&text)
    }
}

impl From<Mailbox> for String {
    fn from(mailbox: Mailbox) -> String {
        mailbox.text.into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn canonical_form() {
        for (text, canonical) in [
            ("Joe@EXAMPLE.org", "Joe@example.org"),
            ("\"joe\"@x.org", "joe@x.org"),
            ("\"a b\"@x.org", "\"a b\"@x.org"),
            ("\"a\\\"b\"@x.org", "\"a\\\"b\"@x.org"),
            ("\"a@b\"@x.org", "\"a@b\"@x.org"),
            ("u@[192.0.2.1]", "u@[192.0.2.1]"),
            ("u@[ipv6:2001:DB8::1]", "u@[IPv6:2001:db8::1]"),
            ("дмитрий@Пример.РФ", "дмитрий@xn--e1afmkfd.xn--p1ai"),
        ] {
            assert_eq!(Mailbox::parse(text).map(String::from).as_deref(), Ok(canonical));
        }
    }

    #[test]
    fn refused() {
        for text in [
            "",
            "@",
            "a@",
            "@b",
            "a",
            ".a@b",
            "a.@b",
            "a..b@c",
            "a b@c",
            "\"a@b",
            "\"a\"b@c",
            "a@[1.2.3]",
            "a@[",
            "\"\"@b",
            "a@b.",
            "a@例え。",
            "a\u{2028}b@c",
            "\"a\u{2028}b\"@c",
            "\"a\tb\"@c",
            "\"a\\\u{e9}\"@c",
            "a@[192.0.02.1]",
            "a@[IPv6:192.0.2.1]",
            "a@[2001:db8::1]",
            "a@[IPv6:fe80::1%eth0]",
            "a@[tag:text]",
            "a@[192.0.2.1]x",
        ] {
            assert!(Mailbox::parse(text).is_err(), "{text:?}");
        }
        assert_eq!(Mailbox::parse(&format!("{}@b", "x".repeat(253))), Err(MailboxError::TooLong));
        assert!(Mailbox::parse(&format!("{}@b", "x".repeat(252))).is_ok());
    }

    #[test]
    fn utf8_only_where_it_is_allowed() {
        for text in ["дмитрий@x.org", "u@пример.рф", "\"ю з\"@x.org"] {
            assert!(Mailbox::parse_in(Charset::Utf8, text).is_ok(), "{text}");
            assert_eq!(Mailbox::parse_in(Charset::Ascii, text), Err(MailboxError::NeedsSmtputf8), "{text}");
        }
        assert!(Mailbox::parse_in(Charset::Ascii, "u@xn--e1afmkfd.xn--p1ai").is_ok());
        assert_eq!(Mailbox::parse_in(Charset::Ascii, "ю..з@x.org"), Err(MailboxError::LocalPart));
    }

    #[test]
    fn the_same_mailbox() {
        let same = |a, b| Mailbox::parse(a).unwrap() == Mailbox::parse(b).unwrap();
        assert!(same("u@Пример.РФ", "u@XN--E1AFMKFD.xn--p1ai"));
        assert!(same("u@пример。рф", "u@пример.рф"));
        assert!(same("u@faß.test", "u@xn--fa-hia.test"));
        assert!(same("\"u\\v\"@x.org", "uv@x.org"));
        assert!(same("u@[IPv6:2001:db8:0:0:0:0:0:1]", "u@[ipv6:2001:DB8::1]"));
        // Local parts belong to their host: case, and composed or decomposed letters, are its to judge.
        assert!(!same("Юзер@x.org", "юзер@x.org"));
        assert!(!same("jos\u{e9}@x.org", "jose\u{301}@x.org"));
        assert!(!same("u@faß.test", "u@fass.test"));
    }

    proptest! {
        #[test]
        fn whatever_parses_is_stable_and_clean(text in "\\PC{0,40}@\\PC{0,20}|[\"\\\\ a-c@.]{0,20}") {
            if let Ok(mailbox) = Mailbox::parse(&text) {
                prop_assert!(!mailbox.as_str().chars().any(|c| c.is_control()));
                prop_assert_eq!(Mailbox::parse(mailbox.as_str()), Ok(mailbox.clone()));
            }
        }

        #[test]
        fn ascii_is_a_part_of_utf8(text in "\\PC{0,10}@\\PC{0,10}|[\"\\\\ a-cю@.]{0,20}") {
            let ascii = Mailbox::parse_in(Charset::Ascii, &text);
            if text.is_ascii() {
                prop_assert_eq!(ascii, Mailbox::parse(&text));
            } else {
                prop_assert!(ascii.is_err());
            }
        }

        #[test]
        fn never_panics(text in "(?s).{0,80}") {
            let _ = Mailbox::parse(&text);
        }
    }
}
