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
    /// Whose mailbox is it? [`Say::Vrfy`], told to those who may relay.
    Vrfy(Named),
    /// Who gets its mail? [`Say::Expn`], told to those who may relay.
    Expn(Named),
    /// Try this domain's waiting mail now, as ETRN's argument stands there (RFC 1985): [`Say::Turned`].
    Etrn(String),
}

/// A name that a client asks about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// Who asks.
    pub client: IpAddr,
    /// It proved who it is.
    pub authenticated: bool,
    /// The argument of VRFY or EXPN.
    pub name: String,
}

/// Mail for one recipient.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
    /// What a name stands for, to VRFY.
    Vrfy(Known),
    /// And to EXPN.
    Expn(Known),
    /// What became of ETRN.
    Turned(Turned),
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Known {
    /// That is not for this client to know.
    Untold,
    /// It is another host's to say; mail for it would be taken.
    Elsewhere,
    /// A mailbox of ours.
    Mailbox(Mailbox),
    /// Ours, and its mail goes to this other address alone.
    Forwards(Mailbox),
    /// Who gets its mail: never empty.
    Members(Vec<Mailbox>),
    /// So many that no reply could hold them.
    TooMany(usize),
    /// A name of several domains of ours.
    Ambiguous(Vec<Mailbox>),
    /// Ours, and nobody.
    Unknown,
    /// No name and no address.
    Malformed,
    /// A table could not be asked. The text is for the log, not for the client.
    Unavailable(String),
}

/// What became of ETRN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Turned {
    /// The queue-manager was told.
    Started,
    /// It was told a moment ago.
    TooOften,
    /// We queue for other domains, or for none.
    NotOurs,
    /// `#`: queues have no names here.
    NoSuchQueue,
    /// No domain.
    Malformed,
    /// The queue-manager is not there.
    Unavailable,
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
