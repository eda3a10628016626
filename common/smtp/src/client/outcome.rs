//! What became of a recipient, and in whose words.

use crate::reply::{EnhancedCode, Reply};

/// One recipient's end in one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What it comes to.
    pub verdict: Verdict,
    /// The reply that decided; it always has an enhanced code, derived when the server gave none.
    pub reply: Reply,
    /// The reply is the server's own words.
    pub remote: bool,
}

/// What a reply comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The server took it.
    Delivered,
    /// Try again later.
    Deferred,
    /// Never.
    Failed,
}

impl Outcome {
    /// The server's words decide. A 3yz is no outcome; callers have dealt with it.
    pub(super) fn remote(reply: Reply) -> Self {
        let verdict = match reply.code / 100 {
            2 => Verdict::Delivered,
            5 => Verdict::Failed,
            _ => Verdict::Deferred,
        };
        Self { verdict, reply: with_enhanced(reply), remote: true }
    }

    /// Our own words.
    pub(super) fn local(reply: Reply) -> Self {
        Self { remote: false, ..Self::remote(reply) }
    }

    /// Deferred, whatever the reply says.
    pub(super) fn deferred(reply: Reply, remote: bool) -> Self {
        Self { verdict: Verdict::Deferred, reply: with_enhanced(reply), remote }
    }
}

pub(super) fn with_enhanced(mut reply: Reply) -> Reply {
    reply.enhanced = reply.enhanced.or_else(|| Some(enhanced_for(reply.code)));
    reply
}

/// The enhanced code for a reply that has none (RFC 3463; pairs as registered by RFC 5248). Where a code
/// has been used for too many things (450, 550, 554) it says no more than the class.
pub fn enhanced_for(code: u16) -> EnhancedCode {
    let (class, subject, detail) = match code {
        421 => (4, 3, 2),
        451 => (4, 3, 0),
        452 => (4, 3, 1),
        500 => (5, 5, 2),
        501 | 504 | 555 => (5, 5, 4),
        502 | 503 => (5, 5, 1),
        521 => (5, 3, 2),
        530 => (5, 7, 0),
        551 => (5, 1, 6),
        552 => (5, 3, 4),
        553 => (5, 1, 3),
        556 => (5, 1, 10),
        code => (
            match code / 100 {
                2 => 2,
                5 => 5,
                _ => 4,
            },
            0,
            0,
        ),
    };
    EnhancedCode::new(class, subject, detail)
}
