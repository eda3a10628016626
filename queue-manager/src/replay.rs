//! What a spool file's log means: who of a message is left, when to try next, and why not yet.

use std::collections::{BTreeMap, BTreeSet};

use postern_address::{Mailbox, ReversePath};
use postern_smtp::parameters::RcptParameters;
use postern_spool::{DoneStatus, LogEntry, LogRecord, Stored, Timestamp};

use crate::scheduler::{Loaded, Owed, Unfinished};

/// One message, read from its envelope and its log.
#[derive(Debug, Default)]
pub struct Replay {
    /// How each recipient that is finished as a whole ended.
    pub finished: BTreeMap<u32, DoneStatus>,
    /// Final addresses of the others that are done.
    done: BTreeMap<u32, Vec<Mailbox>>,
    /// The last deferral of each delivery that is not done: until when, and why.
    deferred: BTreeMap<(u32, Option<Mailbox>), (Timestamp, String)>,
    /// An operator holds it, or a rule did and no operator has released it.
    pub held: bool,
    /// The sender was told that it is late.
    delay_told: bool,
    /// Reports of success that are not yet in the spool.
    owed: BTreeMap<u32, Vec<Owed>>,
    /// Recipients of whom such a report is in the spool.
    told: BTreeSet<u32>,
    /// Recipients of whom nothing but such a report is left.
    complete: BTreeSet<u32>,
}

impl Replay {
    /// Reads the records of message `number`.
    pub fn new<'r>(log: impl IntoIterator<Item = &'r LogRecord>, number: u16, stored: &Stored) -> Self {
        let mut replay = Self { held: stored.envelope.options.held, ..Self::default() };
        for record in log.into_iter().filter(|record| record.message == number) {
            match &record.what {
                LogEntry::Done { recipient, address: None, status } => {
                    replay.finished.insert(*recipient, *status);
                }
                LogEntry::Done { recipient, address: Some(address), .. } => {
                    replay.deferred.remove(&(*recipient, Some(address.clone())));
                    replay.done.entry(*recipient).or_default().push(address.clone());
                }
                LogEntry::Deferred { recipient, address, until, reply } => {
                    replay.deferred.insert((*recipient, address.clone()), (*until, reply.clone()));
                }
                LogEntry::Held => replay.held = true,
                LogEntry::Released => replay.held = false,
                LogEntry::BounceSent => {}
                LogEntry::DelaySent => replay.delay_told = true,
                LogEntry::Owed { recipient, address, action, relay, reply } => {
                    let (address, action) = (address.clone(), *action);
                    let owed = Owed { address, action, relay: relay.clone(), reply: reply.clone() };
                    replay.owed.entry(*recipient).or_default().push(owed);
                }
                LogEntry::Complete { recipient } => drop(replay.complete.insert(*recipient)),
                LogEntry::Told { recipient } => {
                    replay.owed.remove(recipient);
                    replay.told.insert(*recipient);
                }
            }
        }
        replay
    }

    /// The recipients with something left to do.
    pub fn unfinished<'a>(&'a self, stored: &'a Stored) -> impl Iterator<Item = (u32, &'a Mailbox)> {
        (0u32..).zip(&stored.envelope.recipients).filter(|(n, _)| !self.finished.contains_key(n))
    }

    /// When to try next: at once where a recipient was never deferred.
    pub fn next(&self, stored: &Stored) -> Timestamp {
        let until = |n| self.deferrals(n).map(|(until, _)| *until).min().unwrap_or_default();
        self.unfinished(stored).map(|(n, _)| until(n)).min().unwrap_or_default()
    }

    /// The message was tried before.
    pub fn was_deferred(&self) -> bool {
        !self.deferred.is_empty()
    }

    /// Why a recipient does not have it yet, as far as it was tried.
    pub fn why(&self, recipient: u32) -> Option<&str> {
        self.deferrals(recipient).max_by_key(|(until, _)| *until).map(|(_, why)| why.as_str())
    }

    fn deferrals(&self, recipient: u32) -> impl Iterator<Item = &(Timestamp, String)> {
        let of = self.deferred.range((recipient, None)..).take_while(move |((n, _), _)| *n == recipient);
        of.map(|(_, deferral)| deferral)
    }

    /// For an attempt.
    pub fn loaded(&self, stored: &Stored) -> Loaded {
        let options = &stored.envelope.options;
        let said: BTreeMap<u32, &RcptParameters> = options.recipients.iter().map(|(n, s)| (*n, s)).collect();
        let recipients = self.unfinished(stored).map(|(index, address)| Unfinished {
            index,
            address: address.clone(),
            done: self.done.get(&index).cloned().unwrap_or_default(),
            wishes: said.get(&index).and_then(|said| said.notify).into(),
            owed: self.owed.get(&index).cloned().unwrap_or_default(),
            complete: self.complete.contains(&index),
            told: self.told.contains(&index),
        });
        Loaded {
            arrival: stored.envelope.arrival,
            not_before: options.hold_until,
            deadline: options.deliver_by.map(|deadline| (deadline.at, deadline.mode)),
            delay_told: self.delay_told,
            null_sender: stored.envelope.reverse_path == ReversePath::Null,
            recipients: recipients.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use postern_spool::{BodyType, Envelope, Origin, QueueId};

    use super::*;

    #[test]
    fn what_is_left() {
        let mailbox = |text| Mailbox::parse(text).unwrap();
        let stored = Stored {
            id: QueueId::from_u64(1),
            envelope: Envelope {
                reverse_path: ReversePath::Null,
                recipients: vec![mailbox("a@x"), mailbox("b@x"), mailbox("c@x")],
                arrival: Timestamp(5),
                body: BodyType::SevenBit,
                origin: Origin::Internal,
                options: postern_spool::Options::default(),
            },
            prepend: Vec::new(),
            offset: 0,
            length: 0,
            crc: 0,
        };
        let done = |recipient, address| LogEntry::Done { recipient, address, status: DoneStatus::Delivered };
        let later = |recipient, until| LogEntry::Deferred {
            recipient,
            address: None,
            until: Timestamp(until),
            reply: "450".into(),
        };
        let log = [
            (0, done(0, None)),
            (0, done(1, Some(mailbox("b1@x")))),
            (0, later(1, 70)),
            (0, later(1, 90)),
            (0, later(2, 80)),
            (1, done(2, None)),
            (0, LogEntry::Held),
        ];
        let log = log.map(|(message, what)| LogRecord { message, what });
        let replay = Replay::new(&log, 0, &stored);
        assert!(replay.held && replay.was_deferred());
        assert_eq!((replay.why(0), replay.why(2)), (None, Some("450")));
        assert_eq!(replay.next(&stored), Timestamp(80));
        let loaded = replay.loaded(&stored);
        assert!(loaded.null_sender);
        assert_eq!(
            loaded.recipients,
            [
                Unfinished { done: vec![mailbox("b1@x")], ..Unfinished::new(1, mailbox("b@x")) },
                Unfinished::new(2, mailbox("c@x")),
            ]
        );
        assert_eq!(Replay::new(&log[..1], 0, &stored).next(&stored), Timestamp(0));
    }
}
