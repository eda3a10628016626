//! What a client may ask for beside addresses: the parameters of MAIL and RCPT, parsed and checked. They
//! travel with the envelope, so a server parses them once and a client writes them again for the next hop.

use serde::{Deserialize, Serialize};

/// Parameters of MAIL.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MailParameters {
    /// SIZE= (RFC 1870 §6): octets the client means to send.
    pub size: Option<u64>,
    /// BODY= (RFC 6152 §3, RFC 3030 §3).
    pub body: Body,
    /// SMTPUTF8 (RFC 6531 §3.4).
    pub smtputf8: bool,
    /// RET= (RFC 3461 §4.3).
    pub ret: Option<Ret>,
    /// ENVID= (RFC 3461 §4.4), decoded: at most 100 printable octets of US-ASCII.
    pub envid: Option<String>,
    /// BY= (RFC 2852 §4).
    pub by: Option<DeliverBy>,
    /// HOLDFOR= or HOLDUNTIL= (RFC 4865 §4).
    pub hold: Option<Hold>,
    /// MT-PRIORITY= (RFC 6710 §4.1): -9 to 9.
    pub priority: Option<i8>,
}

/// Parameters of RCPT.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RcptParameters {
    /// NOTIFY= (RFC 3461 §4.1). None: failure, and delay as the server sees fit.
    pub notify: Option<Notify>,
    /// ORCPT= (RFC 3461 §4.2).
    pub orcpt: Option<OriginalRecipient>,
}

impl RcptParameters {
    /// Nothing was asked for.
    pub fn is_empty(&self) -> bool {
        self.notify.is_none() && self.orcpt.is_none()
    }
}

/// Which octets content may hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// 7BIT: octets 1 to 127 in lines.
    #[default]
    SevenBit,
    /// 8BITMIME: octets 1 to 255 in lines.
    EightBit,
    /// BINARYMIME: anything, by BDAT alone.
    Binary,
}

/// How much of a failed message its report brings back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ret {
    /// FULL
    Full,
    /// HDRS
    Headers,
}

/// When the message is to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliverBy {
    /// Seconds from now: negative or zero for a deadline that passed, which mode `N` alone may have.
    pub seconds: i64,
    /// What follows when it is not.
    pub mode: ByMode,
    /// `T`: each relay tells of itself.
    pub trace: bool,
}

/// What becomes of a message that is late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ByMode {
    /// `N`: the sender is told, delivery goes on.
    Notify,
    /// `R`: it is returned.
    Return,
}

/// Not to be delivered before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hold {
    /// HOLDFOR=: so many seconds from now.
    For(u64),
    /// HOLDUNTIL=: milliseconds since 1970, UTC.
    Until(u64),
}

/// Of what a recipient's sender wants to hear. All false is NEVER.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notify {
    /// SUCCESS
    pub success: bool,
    /// FAILURE
    pub failure: bool,
    /// DELAY
    pub delay: bool,
}

/// The recipient as its sender wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginalRecipient {
    /// `rfc822`, `utf-8`, …: an atom (RFC 3461 §4.2).
    pub kind: String,
    /// Decoded from xtext (or utf-8-addr-xtext, RFC 6533 §3).
    pub address: String,
}
