//! smtpd asks lookup at RCPT: may this mail come in?

use std::net::IpAddr;

use postern_address::Mailbox;
use serde::{Deserialize, Serialize};

use crate::link::RequestId;

/// smtpd asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Comes back in the answer.
    pub id: RequestId,
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
    /// What is to be done.
    pub verdict: Verdict,
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
