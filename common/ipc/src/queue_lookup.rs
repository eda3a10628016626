//! queue-manager asks lookup where a recipient's mail goes. Asked at delivery, never stored, so that a
//! corrected route or alias repairs queued mail. And lookup, unasked, passes on that a client said ETRN.

use postern_address::{Domain, Mailbox};
use serde::{Deserialize, Serialize};

use crate::link::RequestId;
use crate::queue_agent::Destination;

/// queue-manager asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Comes back in the answer.
    pub id: RequestId,
    /// The envelope's recipient.
    pub recipient: Mailbox,
}

/// lookup speaks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Say {
    /// An answer.
    Answer(Answer),
    /// Try the deferred mail for this domain now (ETRN, RFC 1985). All that comes of it from the network is
    /// the choice of a domain that the configuration lets pass.
    Turn(Domain),
}

/// lookup answers, in any order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Of the question.
    pub id: RequestId,
    /// Where to, after aliases: never empty when `Ok`. `Err` says why it cannot be said now (the
    /// message is deferred).
    pub deliveries: Result<Vec<Delivery>, String>,
}

/// One delivery that a recipient resolved to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// The final address: another than the envelope's when an alias named it.
    pub recipient: Mailbox,
    /// `owner-LIST` exists for the alias: bounces of this delivery go there.
    pub reverse_path: Option<Mailbox>,
    /// How.
    pub action: Action,
}

/// What to do for a recipient.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Hand it to an agent.
    Deliver(Destination),
    /// A route says so: count it delivered.
    Discard,
    /// A route says so, or the user does not exist any more: bounce with this.
    Fail(postern_smtp::Reply),
}
