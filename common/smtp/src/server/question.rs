//! What the session asks its owner, and what it is told. RCPT is always asked about; the other stages only
//! when [`Asks`] says so, so that a listener without rules for them pays nothing.

use postern_address::{Mailbox, ReversePath};

use super::command::Mail;
use crate::parameters::{MailParameters, RcptParameters};
use crate::reply::Reply;

/// What the session needs to know before the client gets its reply. Until the answer is there, nothing
/// behind the command is understood; only RCPTs of one batch are asked about together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// A client is there and has not been greeted. Accepted: 220. Refused: the reply takes the greeting's
    /// place, and every command but QUIT is 503 (RFC 5321 §3.1). What the client says before the answer
    /// lies unused in the input.
    Client,
    /// EHLO, HELO or LHLO with this name.
    Helo(String),
    /// A transaction begins.
    Mail {
        /// Where bounces go.
        path: ReversePath,
        /// What the client asks for.
        parameters: MailParameters,
    },
    /// A recipient. Always asked.
    Rcpt {
        /// Who.
        recipient: Mailbox,
        /// What the client asks for.
        parameters: RcptParameters,
    },
    /// DATA, or the first BDAT, with at least one recipient. Refused drops the transaction.
    Data,
    /// VRFY and its argument, without the SMTPUTF8 that may stand behind it: Say.
    Vrfy(String),
    /// EXPN and its argument: Say.
    Expn(String),
    /// ETRN and its argument: Say.
    Etrn(String),
    /// XCLIENT and its attributes. Accepted begins the session anew with a greeting.
    Xclient(String),
    /// XFORWARD and its attributes.
    Xforward(String),
}

/// The answer to a [`Question`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Go on, with the reply that this takes.
    Accepted,
    /// Not taken, and why: 4yz or 5yz. It counts as an error of the client when it is for good.
    Refused(Reply),
    /// Say this and close.
    Closed(Reply),
    /// Say this, and nothing else changes: VRFY, EXPN, ETRN.
    Say(Reply),
}

/// Which stages are asked about, beside RCPT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asks {
    /// [`Question::Client`]
    pub client: bool,
    /// [`Question::Helo`]
    pub helo: bool,
    /// [`Question::Mail`]
    pub mail: bool,
    /// [`Question::Data`]
    pub data: bool,
    /// [`Question::Vrfy`]; otherwise 252. For this and the two below, their extension must be in the set too.
    pub vrfy: bool,
    /// [`Question::Expn`]; otherwise 502.
    pub expn: bool,
    /// [`Question::Etrn`]; otherwise 502.
    pub etrn: bool,
}

/// A question whose reply is not written yet: the client must get the replies in order.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) ticket: u16,
    pub(super) pending: Pending,
    pub(super) answer: Option<Answer>,
}

/// What an answer is applied to.
#[derive(Debug)]
pub(super) enum Pending {
    Client,
    Greeting {
        name: Box<str>,
        extended: bool,
    },
    Mail(Box<Mail>),
    Rcpt(Box<(Mailbox, RcptParameters)>),
    /// A RCPT refused without a question, behind others that are open.
    BadRcpt,
    Data,
    /// The first BDAT: its octets wait for the answer.
    Chunk {
        size: u64,
        last: bool,
    },
    /// VRFY, EXPN, ETRN, XFORWARD: nothing of ours changes.
    Word {
        verb: &'static str,
        /// The reply may hold UTF-8 (RFC 6531 §3.7.4).
        utf8: bool,
    },
    Xclient,
}

impl Pending {
    /// For the log.
    pub(super) fn stage(&self) -> &'static str {
        match self {
            Self::Client => "CONNECT",
            Self::Greeting { .. } => "HELO",
            Self::Mail(_) => "MAIL",
            Self::Rcpt(_) | Self::BadRcpt => "RCPT",
            Self::Data => "DATA",
            Self::Chunk { .. } => "BDAT",
            Self::Word { verb, .. } => verb,
            Self::Xclient => "XCLIENT",
        }
    }
}
