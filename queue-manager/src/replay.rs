//! What a spool file's log means: who of a message is left, when to try next, and why not yet.

use std::collections::BTreeMap;

use postern_address::{Mailbox, ReversePath};
use postern_spool::{DoneStatus, LogEntry, LogRecord, Stored, Timestamp};

use crate::scheduler::{Loaded, Unfinished};

/// One message, read from its envelope and its log.
#[derive(Debug, Default)]
pub struct Replay {
    /// How each recipient that is finished as a whole ended.
    pub finished: BTreeMap<u32, DoneStatus>,
    /// Final addresses of the others that are done.
    done: BTreeMap<u32, Vec<Mailbox>>,
    /// The last deferral of each recipient: until when, and why.
    pub deferred: BTreeMap<u32, (Timestamp, String)>,
    /// Deferrals of the recipient that has most of them.
    pub attempts: u8,
    /// An operator holds it.
    pub held: bool,
}

impl Replay {
    /// Reads the records of message `number`.
    pub fn new(log: &[LogRecord], number: u16) -> Self {
        let mut replay = Self::default();
        let mut counts: BTreeMap<(u32, Option<&Mailbox>), u8> = BTreeMap::new();
        for record in log.iter().filter(|record| record.message == number) {
            match &record.what {
                LogEntry::Done { recipient, address: None, status } => {
                    replay.finished.insert(*recipient, *status);
                    replay.deferred.remove(recipient);
                }
                LogEntry::Done { recipient, address: Some(address), .. } => {
                    replay.done.entry(*recipient).or_default().push(address.clone());
                }
                LogEntry::Deferred { recipient, address, until, reply } => {
                    let count = counts.entry((*recipient, address.as_ref())).or_default();
                    *count = count.saturating_add(1);
                    replay.attempts = replay.attempts.max(*count);
                    replay.deferred.insert(*recipient, (*until, reply.clone()));
                }
                LogEntry::Held => replay.held = true,
                LogEntry::Released => replay.held = false,
                LogEntry::BounceSent => {}
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
        let until = |n| self.deferred.get(&n).map_or(Timestamp(0), |(until, _)| *until);
        self.unfinished(stored).map(|(n, _)| until(n)).min().unwrap_or_default()
    }

    /// For an attempt.
    pub fn loaded(&self, stored: &Stored) -> Loaded {
        let recipients = self.unfinished(stored).map(|(index, address)| Unfinished {
            index,
            address: address.clone(),
            done: self.done.get(&index).cloned().unwrap_or_default(),
        });
        Loaded {
            arrival: stored.envelope.arrival,
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
        let replay = Replay::new(&log, 0);
        assert!(replay.held && replay.attempts == 2);
        assert_eq!(replay.next(&stored), Timestamp(80));
        let loaded = replay.loaded(&stored);
        assert!(loaded.null_sender);
        assert_eq!(
            loaded.recipients,
            [
                Unfinished { index: 1, address: mailbox("b@x"), done: vec![mailbox("b1@x")] },
                Unfinished { index: 2, address: mailbox("c@x"), done: vec![] },
            ]
        );
        assert_eq!(Replay::new(&log[..1], 0).next(&stored), Timestamp(0));
    }
}
