//! queue-manager asks lookup where a recipient's mail goes. Asked at delivery, never stored, so that a
//! corrected route or alias repairs queued mail. And lookup, unasked, passes on that a client said ETRN.

use std::collections::HashMap;

use postern_address::{Domain, Mailbox};
use serde::{Deserialize, Serialize};

use crate::frame::{MAX_FRAME, encode};
use crate::link::RequestId;
use crate::queue_agent::Destination;

/// An answer's deliveries in one frame, octets.
const ROOM: usize = MAX_FRAME - 64;

/// More deliveries than lookup makes of one recipient.
const DELIVERIES_MAX: usize = 50_000;

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
    /// That is not all: the next answer of this id goes on.
    pub more: bool,
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

impl Answer {
    /// As many answers as it takes: a list of thousands does not fit into a frame.
    pub fn in_frames(id: RequestId, deliveries: Result<Vec<Delivery>, String>) -> Vec<Self> {
        let all = match deliveries {
            Ok(all) if all.len() > 1 => all,
            // Nearly every answer: it is not measured before it is sent.
            whole => return vec![Self { id, deliveries: whole, more: false }],
        };
        let (mut answers, mut next, mut octets) = (Vec::new(), Vec::new(), 0);
        for delivery in all {
            // One that is longer than a frame stands alone, and is found out when it is sent.
            let length = encode(&delivery).map_or(ROOM, |frame| frame.len());
            octets += length;
            if octets > ROOM && !next.is_empty() {
                answers.push(Self { id, deliveries: Ok(std::mem::take(&mut next)), more: true });
                octets = length;
            }
            next.push(delivery);
        }
        answers.push(Self { id, deliveries: Ok(next), more: false });
        answers
    }
}

/// Answers of which not all is there yet.
#[derive(Debug, Default)]
pub struct Answers {
    begun: HashMap<RequestId, Vec<Delivery>>,
}

impl Answers {
    /// Takes the next answer. What it said with those before, when that is all.
    pub fn join(&mut self, answer: Answer) -> Option<(RequestId, Result<Vec<Delivery>, String>)> {
        let Answer { id, deliveries, more } = answer;
        if !more && self.begun.is_empty() {
            return Some((id, deliveries));
        }
        let mut begun = self.begun.remove(&id).unwrap_or_default();
        let deliveries = deliveries.and_then(|next| {
            begun.extend(next);
            match begun.len() > DELIVERIES_MAX {
                true => Err(format!("more than {DELIVERIES_MAX} deliveries for one recipient")),
                false => Ok(begun),
            }
        });
        match deliveries {
            Ok(begun) if more => {
                self.begun.insert(id, begun);
                None
            }
            all => Some((id, all)),
        }
    }

    /// Nothing more comes of what was begun.
    pub fn forget(&mut self) {
        self.begun.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame::decode;

    fn delivery(n: usize, length: usize) -> Delivery {
        let recipient = Mailbox::parse(&format!("u{n}@{}.test", "x".repeat(1 + length % 60))).unwrap();
        Delivery { recipient, reverse_path: None, action: Action::Discard }
    }

    proptest! {
        /// Whatever their number, in frames that fit, and as they were; two at once do not mix.
        #[test]
        fn long_answers_come_in_frames(lengths in proptest::collection::vec(0usize..60, 1..6000)) {
            let deliveries: Vec<_> = (0..).zip(&lengths).map(|(n, length)| delivery(n, *length)).collect();
            let frames = Answer::in_frames(7, Ok(deliveries.clone()));
            for frame in &frames {
                let said = Say::Answer(frame.clone());
                prop_assert_eq!(decode::<Say>(&encode(&said).unwrap()).unwrap(), said);
            }
            let mut answers = Answers::default();
            let last = frames.len() - 1;
            for (n, frame) in frames.into_iter().enumerate() {
                let other = Answer { id: 8, deliveries: Err("not now".into()), more: false };
                prop_assert_eq!(answers.join(other), Some((8, Err("not now".into()))));
                let joined = answers.join(frame);
                prop_assert_eq!(joined, (n == last).then(|| (7, Ok(deliveries.clone()))));
            }
            prop_assert!(answers.begun.is_empty());
        }
    }

    #[test]
    fn too_many_are_refused() {
        let mut answers = Answers::default();
        let half: Vec<_> = (0..DELIVERIES_MAX / 2 + 1).map(|n| delivery(n, 0)).collect();
        let answer = Answer { id: 1, deliveries: Ok(half), more: true };
        assert_eq!(answers.join(answer.clone()), None);
        assert!(matches!(answers.join(answer), Some((1, Err(_)))));
        let rest = Answer { id: 1, deliveries: Ok(vec![delivery(1, 0)]), more: false };
        assert!(answers.join(rest).is_some(), "of a question that has its answer: nobody asks for it");
    }
}
