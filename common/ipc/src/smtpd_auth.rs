//! smtpd asks auth whether a client is who it says (RFC 4954).

use serde::{Deserialize, Serialize};

use crate::link::RequestId;

/// smtpd asks.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Comes back in the answer.
    pub id: RequestId,
    /// The authentication identity.
    pub user: String,
    /// The password as given. Never logged: there is no `Debug`.
    pub password: String,
}

/// auth answers, in any order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Of the question.
    pub id: RequestId,
    /// What is known.
    pub verdict: Verdict,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It is the password.
    Authenticated,
    /// It is not, or there is no such user; which of the two is not said.
    Refused,
    /// The table could not be read: 454 4.7.0.
    Unavailable,
}
