//! smtpd asks lookup at RCPT whether this mail may come in, and for its rules what a table says.

use std::net::IpAddr;

use postern_address::Mailbox;
use postern_config::Table;
use serde::{Deserialize, Serialize};

use crate::link::RequestId;

/// smtpd asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Comes back in the answer.
    pub id: RequestId,
    /// What is asked.
    pub ask: Ask,
}

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// May this mail come in? [`Say::Recipient`].
    Recipient(Incoming),
    /// The first of these keys that a table of the rules has: [`Say::Table`].
    Table {
        /// One that the configuration names in a rule; others are not read.
        table: Table,
        /// The most specific first.
        keys: Vec<String>,
    },
}

/// Mail for one recipient.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incoming {
    /// Who wants to send.
    pub client: IpAddr,
    /// The client proved who it is, so it may relay.
    pub authenticated: bool,
    /// To whom.
    pub recipient: Mailbox,
}

/// lookup answers, in any order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Of the question.
    pub id: RequestId,
    /// What is answered.
    pub say: Say,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Say {
    /// What is to be done.
    Recipient(Verdict),
    /// The key that was found and its value; or why the table cannot be asked, for the log.
    Table(Result<Option<(String, String)>, String>),
}

/// Whether a recipient is taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Ours and exists.
    Local,
    /// Not ours; the client may relay, or we are a backup MX for the domain.
    Relay,
    /// Not ours, and the client may not relay: 554 5.7.1.
    RelayDenied,
    /// Ours and does not exist: 550 5.1.1.
    UnknownUser,
    /// A route says `error:`.
    Rejected(postern_smtp::Reply),
    /// A table could not be asked: 451 4.3.0. The text is for the log, not for the client.
    Unavailable(String),
}
