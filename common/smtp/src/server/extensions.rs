//! Service extensions (RFC 5321 §2.2) as a set: what a listener offers in EHLO, and thereby which commands
//! and parameters it takes. What is not offered is answered as if we had never heard of it.

use serde::{Deserialize, Serialize};

/// An extension that can be offered, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum Extension {
    /// RFC 2920
    Pipelining,
    /// RFC 1870
    Size,
    /// RFC 6152
    EightBitMime,
    /// RFC 2034
    EnhancedStatusCodes,
    /// RFC 3030 §2
    Chunking,
    /// RFC 3030 §3; there is none without the two others it takes.
    BinaryMime,
    /// RFC 6531; it takes 8BITMIME.
    SmtpUtf8,
    /// RFC 3461
    Dsn,
    /// RFC 2852
    DeliverBy,
    /// RFC 4865: for submission.
    FutureRelease,
    /// RFC 6710: for submission.
    MtPriority,
    /// RFC 9422
    Limits,
    /// draft-hall-prdr: a reply for each recipient after the content.
    Prdr,
    /// RFC 1985; offered when somebody is there to ask.
    Etrn,
    /// RFC 5321 §4.1.1.6: the same.
    Vrfy,
    /// RFC 5321 §4.1.1.7: the same.
    Expn,
    /// RFC 5321 §4.1.1.8
    Help,
}

/// Which extensions are offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extensions(u32);

impl Extension {
    /// All, in the order of the EHLO reply.
    pub const ALL: [Self; 17] = [
        Self::Pipelining,
        Self::Size,
        Self::EightBitMime,
        Self::EnhancedStatusCodes,
        Self::Chunking,
        Self::BinaryMime,
        Self::SmtpUtf8,
        Self::Dsn,
        Self::DeliverBy,
        Self::FutureRelease,
        Self::MtPriority,
        Self::Limits,
        Self::Prdr,
        Self::Etrn,
        Self::Vrfy,
        Self::Expn,
        Self::Help,
    ];

    /// Those that our client makes use of where a server offers them.
    pub const USED: [Self; 9] = [
        Self::Pipelining,
        Self::Size,
        Self::EightBitMime,
        Self::Chunking,
        Self::BinaryMime,
        Self::SmtpUtf8,
        Self::Dsn,
        Self::DeliverBy,
        Self::MtPriority,
    ];

    /// The extension of that EHLO keyword, in any case.
    pub fn parse(keyword: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|extension| extension.keyword().eq_ignore_ascii_case(keyword))
    }

    /// The EHLO keyword.
    pub const fn keyword(self) -> &'static str {
        match self {
            Self::Pipelining => "PIPELINING",
            Self::Size => "SIZE",
            Self::EightBitMime => "8BITMIME",
            Self::EnhancedStatusCodes => "ENHANCEDSTATUSCODES",
            Self::Chunking => "CHUNKING",
            Self::BinaryMime => "BINARYMIME",
            Self::SmtpUtf8 => "SMTPUTF8",
            Self::Dsn => "DSN",
            Self::DeliverBy => "DELIVERBY",
            Self::FutureRelease => "FUTURERELEASE",
            Self::MtPriority => "MT-PRIORITY",
            Self::Limits => "LIMITS",
            Self::Prdr => "PRDR",
            Self::Etrn => "ETRN",
            Self::Vrfy => "VRFY",
            Self::Expn => "EXPN",
            Self::Help => "HELP",
        }
    }
}

impl Extensions {
    /// None at all.
    pub const NONE: Self = Self(0);

    /// What the machine does by itself, asking nothing of who keeps the message.
    pub const BASIC: Self = Self::NONE
        .with(Extension::Pipelining)
        .with(Extension::Size)
        .with(Extension::EightBitMime)
        .with(Extension::EnhancedStatusCodes)
        .with(Extension::Help);

    /// Every one.
    pub fn all() -> Self {
        Extension::ALL.into_iter().fold(Self::NONE, Self::with)
    }

    /// These and `extension`.
    pub const fn with(self, extension: Extension) -> Self {
        Self(self.0 | 1 << extension as u8)
    }

    /// These but `extension`, and what cannot be without it.
    pub const fn without(self, extension: Extension) -> Self {
        let rest = Self(self.0 & !(1 << extension as u8));
        match extension {
            Extension::Chunking | Extension::EightBitMime if rest.has(Extension::BinaryMime) => {
                rest.without(Extension::BinaryMime).without(extension)
            }
            Extension::EightBitMime if rest.has(Extension::SmtpUtf8) => {
                rest.without(Extension::SmtpUtf8).without(extension)
            }
            _ => rest,
        }
    }

    /// Whether `extension` is offered.
    pub const fn has(self, extension: Extension) -> bool {
        self.0 & (1 << extension as u8) != 0
    }
}
