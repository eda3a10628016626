//! What travels beside a message's bytes (RFC 5321 §2.3.1) and where it came from.

use std::net::IpAddr;

use postern_address::{Mailbox, ReversePath};
use postern_smtp::parameters::{ByMode, RcptParameters, Ret};
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
    /// What else the client asked for.
    pub options: Options,
}

/// What a client asked for beside addresses and body type; most ask for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// The envelope or the header section holds UTF-8 (RFC 6531): the next hop must offer it.
    pub smtputf8: bool,
    /// How much of the message a report brings back (RFC 3461 §4.3).
    pub ret: Option<Ret>,
    /// The sender's own name for the envelope (RFC 3461 §4.4), decoded.
    pub envid: Option<String>,
    /// When it is to be delivered at the latest (RFC 2852).
    pub deliver_by: Option<Deadline>,
    /// When it may be delivered at the earliest (RFC 4865).
    pub hold_until: Option<Timestamp>,
    /// -9 to 9 (RFC 6710); 0 when nothing was said.
    pub priority: i8,
    /// A rule says that an operator is to look at it first.
    pub held: bool,
    /// By place in `recipients`, those of whom something was said (RFC 3461).
    pub recipients: Vec<(u32, RcptParameters)>,
}

/// BY= of RFC 2852, as a time of our clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadline {
    /// Until when.
    pub at: Timestamp,
    /// What follows.
    pub mode: ByMode,
    /// Each relay tells of itself.
    pub trace: bool,
}

/// BODY= of RFC 6152.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum BodyType {
    /// Octets 1 to 127 (the default of RFC 5321).
    #[default]
    SevenBit,
    /// 8BITMIME.
    EightBit,
    /// BINARYMIME (RFC 3030): anything, and perhaps not in lines.
    Binary,
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
