//! smtpd asks verify who a client is. (What its content is worth comes to this conversation later.)

use std::net::IpAddr;

use postern_address::Domain;
use serde::{Deserialize, Serialize};

use crate::link::RequestId;

/// smtpd asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Comes back in the answer.
    pub id: RequestId,
    /// Who connected.
    pub client: IpAddr,
}

/// verify answers, in any order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Of the question.
    pub id: RequestId,
    /// The client's name.
    pub name: ClientName,
}

/// A client's reverse name, confirmed forward (FCrDNS).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientName {
    /// A PTR record names it, and that name has the client's address.
    Confirmed(Domain),
    /// No name, or one that does not lead back.
    Unknown,
    /// The DNS did not answer in time.
    Unavailable,
}
