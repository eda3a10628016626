//! Domain names (RFC 5321 §4.1.2, RFC 1035 §2.3.4, RFC 5890).

use std::fmt;

use serde::{Deserialize, Serialize};

/// A host or mail domain: 1 to 255 octets, labels of 1 to 63 octets of letters, digits, hyphens
/// (and underscores inside, which exist in the field), lower-cased, U-labels converted to A-labels.
/// Never empty, never with a trailing dot.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Domain(Box<str>);

/// Why a text is not a domain name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DomainError {
    /// Nothing, or nothing between two dots.
    #[error("empty domain name or label")]
    Empty,
    /// More than 255 octets, or a label of more than 63.
    #[error("domain name or label too long")]
    TooLong,
    /// A character that cannot stand in a domain name, or an invalid U-label.
    #[error("invalid character in domain name")]
    Character,
}

impl Domain {
    /// Parses a domain name; one trailing dot is taken and dropped.
    pub fn parse(text: &str) -> Result<Self, DomainError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        let name = if text.is_ascii() {
            text.to_ascii_lowercase()
        } else {
            idna::domain_to_ascii(text).map_err(|_| DomainError::Character)?
        };
        if name.len() > 255 {
            return Err(DomainError::TooLong);
        }
        name.split('.').try_for_each(check_label)?;
        Ok(Self(name.into()))
    }

    /// The canonical text: lower-case A-labels, no trailing dot.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True when `self` is `parent` or a name below it.
    pub fn is_within(&self, parent: &Domain) -> bool {
        self == parent
            || (self.0.len() > parent.0.len()
                && self.0.ends_with(&*parent.0)
                && self.0.as_bytes()[self.0.len() - parent.0.len() - 1] == b'.')
    }
}

fn check_label(label: &str) -> Result<(), DomainError> {
    if label.is_empty() {
        return Err(DomainError::Empty);
    }
    if label.len() > 63 {
        return Err(DomainError::TooLong);
    }
    let ok = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if !label.bytes().all(ok) || label.starts_with('-') || label.ends_with('-') {
        return Err(DomainError::Character);
    }
    Ok(())
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Domain({})", self.0)
    }
}

impl TryFrom<String> for Domain {
    type Error = DomainError;

    fn try_from(text: String) -> Result<Self, DomainError> {
        Self::parse(&text)
    }
}

impl From<Domain> for String {
    fn from(domain: Domain) -> String {
        domain.0.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_form() {
        assert_eq!(Domain::parse("EXAMPLE.Org.").unwrap().as_str(), "example.org");
        assert_eq!(Domain::parse("Пример.РФ").unwrap().as_str(), "xn--e1afmkfd.xn--p1ai");
    }

    #[test]
    fn refused() {
        for text in ["", ".", "a..b", "-a.b", "a-.b", "a b", "a\r\nb", &"x".repeat(64), &"a.".repeat(200)] {
            assert!(Domain::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn within() {
        let parent = Domain::parse("b.c").unwrap();
        assert!(Domain::parse("a.b.c").unwrap().is_within(&parent));
        assert!(parent.is_within(&parent));
        assert!(!Domain::parse("ab.c").unwrap().is_within(&parent));
    }
}
