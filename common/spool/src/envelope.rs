//! What travels beside a message's bytes (RFC 5321 §2.3.1) and where it came from.

use std::net::IpAddr;

use postern_address::{Mailbox, ReversePath};
use serde::{Deserialize, Serialize};

/// Milliseconds since 1970, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The system clock's time. The pure parts never call this: time is an argument.
    pub fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self(since.map(|d| d.as_millis() as u64).unwrap_or(0))
    }
}

/// The envelope of one message and what we know of its origin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Where bounces go.
    pub reverse_path: ReversePath,
    /// At least one; a recipient is named by its place in this list for the message's whole life.
    pub recipients: Vec<Mailbox>,
    /// When it was accepted.
    pub arrival: Timestamp,
    /// Which octets its content may hold.
    pub body: BodyType,
    /// Who handed it to us.
    pub origin: Origin,
}

/// BODY= of RFC 6152.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum BodyType {
    /// Octets 1 to 127 (the default of RFC 5321).
    #[default]
    SevenBit,
    /// 8BITMIME.
    EightBit,
}

/// Who handed a message to us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// A client of smtpd.
    Smtp {
        /// The address the connection came from.
        address: IpAddr,
        /// Its verified reverse name, if it has one.
        name: Option<String>,
        /// What it called itself.
        helo: String,
    },
    /// A local program, through `drop/`.
    Local {
        /// The user who ran it.
        uid: u32,
    },
    /// Made here: a bounce.
    Internal,
}
