//! Service extensions (RFC 5321 §2.2) as a set: what a listener offers in EHLO, and thereby which commands
//! and parameters it takes. What is not offered is answered as if we had never heard of it.

/// An extension that can be offered, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// RFC 5321 §4.1.1.8
    Help,
}

/// Which extensions are offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extensions(u32);

impl Extension {
    /// All, in the order of the EHLO reply.
    pub const ALL: [Self; 7] = [
        Self::Pipelining,
        Self::Size,
        Self::EightBitMime,
        Self::EnhancedStatusCodes,
        Self::Chunking,
        Self::BinaryMime,
        Self::Help,
    ];

    /// The EHLO keyword.
    pub const fn keyword(self) -> &'static str {
        match self {
            Self::Pipelining => "PIPELINING",
            Self::Size => "SIZE",
            Self::EightBitMime => "8BITMIME",
            Self::EnhancedStatusCodes => "ENHANCEDSTATUSCODES",
            Self::Chunking => "CHUNKING",
            Self::BinaryMime => "BINARYMIME",
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
                rest.without(Extension::BinaryMime)
            }
            _ => rest,
        }
    }

    /// Whether `extension` is offered.
    pub const fn has(self, extension: Extension) -> bool {
        self.0 & (1 << extension as u8) != 0
    }
}
