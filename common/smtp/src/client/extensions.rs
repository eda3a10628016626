//! What a server offers in its reply to EHLO or LHLO (RFC 5321 §4.1.1.1).

use crate::reply::Reply;
use crate::server::Extension;

/// The extensions we make use of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// PIPELINING (RFC 2920).
    pub pipelining: bool,
    /// SIZE (RFC 1870).
    pub size: bool,
    /// The greatest message taken, octets; none when the server does not say.
    pub size_limit: Option<u64>,
    /// 8BITMIME (RFC 6152).
    pub eight_bit: bool,
    /// ENHANCEDSTATUSCODES (RFC 2034). Codes are understood without it, too.
    pub enhanced_codes: bool,
    /// SMTPUTF8 (RFC 6531).
    pub utf8: bool,
    /// DSN (RFC 3461).
    pub dsn: bool,
    /// CHUNKING (RFC 3030).
    pub chunking: bool,
    /// BINARYMIME (RFC 3030).
    pub binary: bool,
    /// DELIVERBY (RFC 2852): the shortest time taken, seconds; 0 when the server does not say.
    pub deliver_by: Option<i64>,
    /// MT-PRIORITY (RFC 6710).
    pub priority: bool,
}

impl Extensions {
    /// Reads the keywords: every line but the first. Unknown ones are no concern of ours.
    pub fn from_reply(reply: &Reply) -> Self {
        let mut found = Self::default();
        for line in reply.lines.iter().skip(1) {
            let mut words = line.split_ascii_whitespace();
            let keyword = words.next().unwrap_or_default().to_ascii_uppercase();
            match keyword.as_str() {
                "PIPELINING" => found.pipelining = true,
                "8BITMIME" => found.eight_bit = true,
                "ENHANCEDSTATUSCODES" => found.enhanced_codes = true,
                "SMTPUTF8" => found.utf8 = true,
                "DSN" => found.dsn = true,
                "CHUNKING" => found.chunking = true,
                "BINARYMIME" => found.binary = true,
                "MT-PRIORITY" => found.priority = true,
                "DELIVERBY" => {
                    found.deliver_by = Some(words.next().and_then(|n| n.parse().ok()).unwrap_or(0).max(0));
                }
                "SIZE" => {
                    found.size = true;
                    // 0 is no fixed limit (RFC 1870).
                    found.size_limit = words.next().and_then(|n| n.parse().ok()).filter(|&n| n > 0);
                }
                _ => {}
            }
        }
        found
    }

    /// As if the server did not offer these.
    pub fn without(mut self, extensions: &[Extension]) -> Self {
        for extension in extensions {
            match extension {
                Extension::Pipelining => self.pipelining = false,
                Extension::Size => (self.size, self.size_limit) = (false, None),
                Extension::EightBitMime => self.eight_bit = false,
                Extension::SmtpUtf8 => self.utf8 = false,
                Extension::Dsn => self.dsn = false,
                Extension::Chunking => self.chunking = false,
                Extension::BinaryMime => self.binary = false,
                Extension::DeliverBy => self.deliver_by = None,
                Extension::MtPriority => self.priority = false,
                // What we make no use of anyway.
                Extension::EnhancedStatusCodes
                | Extension::FutureRelease
                | Extension::Limits
                | Extension::Prdr
                | Extension::Etrn
                | Extension::Vrfy
                | Extension::Expn
                | Extension::Help => {}
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keywords() {
        let lines = ["mx SIZE 1", "pipelining", "SIZE 1000", "8bitmime", "X-SOMETHING", "", "SmtpUtf8"];
        let reply = Reply { code: 250, enhanced: None, lines: lines.map(String::from).to_vec() };
        let found = Extensions::from_reply(&reply);
        assert!(found.pipelining && found.eight_bit && found.utf8 && !found.enhanced_codes);
        assert_eq!((found.size, found.size_limit), (true, Some(1000)));
        let lines = ["mx", "DSN", "chunking", "BINARYMIME", "DELIVERBY 240", "MT-PRIORITY MIXER"];
        let reply = Reply { lines: lines.map(String::from).to_vec(), ..reply };
        let found = Extensions::from_reply(&reply);
        assert!(found.dsn && found.chunking && found.binary && found.priority);
        assert_eq!(found.deliver_by, Some(240));
        let fewer = found.without(&[Extension::Chunking, Extension::DeliverBy, Extension::Help]);
        assert_eq!(fewer, Extensions { chunking: false, deliver_by: None, ..found });
        assert_eq!(found.without(&Extension::ALL), Extensions::default());
        let reply = Reply { lines: vec!["mx".into(), "SIZE 0".into()], ..reply };
        assert_eq!(Extensions::from_reply(&reply).size_limit, None);
    }
}
