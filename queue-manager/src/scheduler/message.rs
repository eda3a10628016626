//! One message in the scheduler's memory: a few words while it waits, its recipients while it is active.

use std::collections::BTreeMap;

use postern_address::Mailbox;
use postern_event::Status;
use postern_ipc::queue_agent::{Destination, Report};
use postern_smtp::Reply;
use postern_spool::{DoneStatus, LogEntry, QueueId, Timestamp};

use super::Told;

/// Where a message lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The spool file, named after its first message.
    pub file: QueueId,
    /// Which of the file's messages.
    pub number: u16,
}

/// What the scheduler must know to make an attempt; read from the spool file each time, so that a waiting
/// message costs no memory.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// When the message arrived: its lifetime counts from here.
    pub arrival: Timestamp,
    /// It has the null reverse-path: it is never bounced (RFC 5321 §6.1), and lives shorter.
    pub null_sender: bool,
    /// The recipients that are not finished.
    pub recipients: Vec<Unfinished>,
}

/// A recipient with something left to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// Its place in the envelope.
    pub index: u32,
    /// As the envelope has it.
    pub address: Mailbox,
    /// Final addresses of it that earlier attempts finished: an alias of three may be done for two.
    pub done: Vec<Mailbox>,
}

/// A message in memory. A million of these must fit: no strings, no vectors.
#[derive(Debug)]
pub(super) struct Entry {
    // A `Place` taken apart: whole, its padding would cost eight octets a message.
    file: QueueId,
    number: u16,
    /// Attempts that ended in a deferral, for the next delay.
    pub(super) attempts: u8,
    pub(super) state: State,
}

impl Entry {
    pub(super) fn new(place: Place, attempts: u8, state: State) -> Self {
        Self { file: place.file, number: place.number, attempts, state }
    }

    /// Where the message lies.
    pub(super) fn place(&self) -> Place {
        Place { file: self.file, number: self.number }
    }
}

const _: () = assert!(size_of::<Entry>() <= 32);

#[derive(Debug)]
pub(super) enum State {
    /// In the queue of new or of due messages, waits to be loaded.
    Queued,
    /// Waits for its time.
    Deferred(Timestamp),
    /// Waits for an operator.
    Held,
    /// An attempt is under way.
    Active(Box<Active>),
}

/// An attempt at one message.
#[derive(Debug)]
pub(super) struct Active {
    /// Never deferred before: it goes first.
    pub(super) fresh: bool,
    pub(super) arrival: Timestamp,
    pub(super) scheduled: Timestamp,
    pub(super) null_sender: bool,
    pub(super) recipients: Vec<Recipient>,
    /// Deliveries that come of another's copy: none of them is queued.
    pub(super) twins: BTreeMap<(u32, u32), Vec<(u32, u32)>>,
    /// Recipients whose resolution is awaited.
    pub(super) asking: usize,
    /// Deliveries in a destination's queue or in a job.
    pub(super) open: usize,
    /// Bounces handed out and not yet on disk.
    pub(super) bouncing: usize,
    /// What an operator wants, as soon as nothing is under way.
    pub(super) wish: Option<Wish>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Hold,
    Remove,
}

#[derive(Debug)]
pub(super) struct Recipient {
    pub(super) index: u32,
    pub(super) address: Mailbox,
    pub(super) done: Vec<Mailbox>,
    pub(super) resolved: bool,
    /// `Done` was recorded for the recipient as a whole.
    pub(super) finished: bool,
    pub(super) deliveries: Vec<Delivery>,
}

#[derive(Debug)]
pub(super) struct Delivery {
    /// The final address.
    pub(super) address: Mailbox,
    /// `owner-LIST`, who gets the bounce in place of the sender.
    pub(super) owner: Option<Mailbox>,
    /// Where to, until it is queued there.
    pub(super) destination: Option<Destination>,
    pub(super) state: DeliveryState,
}

#[derive(Debug)]
pub(super) enum DeliveryState {
    /// Not yet tried, in a queue or in a job.
    Pending,
    /// Recorded as done.
    Finished,
    /// Try again. `not_before` when it was not tried because its destination is down.
    Deferred { report: Report, not_before: Option<Timestamp> },
    /// Never; a bounce is due.
    Failed { report: Report, expired: bool },
}

impl Active {
    pub(super) fn loading(fresh: bool) -> Self {
        Self {
            fresh,
            arrival: Timestamp(0),
            scheduled: Timestamp(0),
            null_sender: false,
            recipients: Vec::new(),
            twins: BTreeMap::new(),
            asking: 0,
            open: 0,
            bouncing: 0,
            wish: None,
        }
    }

    /// Nothing is under way any more.
    pub(super) fn is_quiet(&self) -> bool {
        self.asking == 0 && self.open == 0 && self.bouncing == 0
    }

    /// For the log of events: what became of one delivery.
    pub(super) fn told(
        &self,
        id: QueueId,
        (r, d): (u32, u32),
        status: Status,
        reply: &Reply,
    ) -> Option<Told> {
        let recipient = self.recipients.get(r as usize)?;
        let delivery = recipient.deliveries.get(d as usize)?;
        Some(Told {
            id,
            address: delivery.address.clone(),
            original: recipient.original(delivery),
            arrival: self.arrival,
            scheduled: self.scheduled,
            status,
            reply: reply.clone(),
        })
    }
}

impl Delivery {
    /// Its address, written so that two that are one mailbox at a destination are equal: on this host
    /// lookup has decided whose it is, elsewhere case may matter (RFC 5321 §2.4).
    pub(super) fn same(&self, destination: &Destination) -> String {
        match destination {
            Destination::Local { .. } | Destination::Virtual { .. } => self.address.as_str().to_lowercase(),
            Destination::Smtp(_) | Destination::Lmtp(_) => self.address.as_str().to_owned(),
        }
    }
}

impl Recipient {
    pub(super) fn new(unfinished: Unfinished) -> Self {
        let Unfinished { index, address, done } = unfinished;
        Self { index, address, done, resolved: false, finished: false, deliveries: Vec::new() }
    }

    /// The final address as the log has it: none when the delivery is the recipient as a whole.
    pub(super) fn logged_address(&self, delivery: &Delivery) -> Option<Mailbox> {
        let alone = self.deliveries.len() == 1 && self.done.is_empty() && delivery.address == self.address;
        // Where lookup could not answer, the one delivery stands for all that it would have named.
        let whole = alone || !self.resolved;
        (!whole).then(|| delivery.address.clone())
    }

    /// The envelope's address, where an alias changed it.
    pub(super) fn original(&self, delivery: &Delivery) -> Option<Mailbox> {
        (delivery.address != self.address).then(|| self.address.clone())
    }

    pub(super) fn set(&mut self, d: u32, state: DeliveryState) {
        if let Some(delivery) = self.deliveries.get_mut(d as usize) {
            delivery.state = state;
        }
    }

    /// Marks one delivery done and says what the log must say: the delivery, and the recipient as a whole
    /// with its last one.
    pub(super) fn finish(&mut self, d: usize, status: DoneStatus, log: &mut Vec<LogEntry>) {
        let Some(delivery) = self.deliveries.get(d) else { return };
        let address = self.logged_address(delivery);
        let whole = address.is_none();
        log.push(LogEntry::Done { recipient: self.index, address, status });
        if let Some(delivery) = self.deliveries.get_mut(d) {
            delivery.state = DeliveryState::Finished;
        }
        if whole {
            self.finished = true;
        } else {
            self.finish_whole(status, log);
        }
    }

    /// Records the recipient as a whole when nothing of it is left.
    pub(super) fn finish_whole(&mut self, status: DoneStatus, log: &mut Vec<LogEntry>) {
        let all = self.deliveries.iter().all(|d| matches!(d.state, DeliveryState::Finished));
        if all && self.resolved && !self.finished {
            self.finished = true;
            log.push(LogEntry::Done { recipient: self.index, address: None, status });
        }
    }
}
