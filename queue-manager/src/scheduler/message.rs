//! One message in the scheduler's memory: a few words while it waits, its recipients while it is active.

use std::collections::BTreeMap;

use postern_address::Mailbox;
use postern_event::Status;
use postern_ipc::queue_agent::{Destination, Outcome, Report};
use postern_smtp::Reply;
use postern_smtp::parameters::{ByMode, Notify};
use postern_spool::{DoneStatus, LogEntry, QueueId, Success, Timestamp};

use super::{Passing, Told};

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
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// When the message arrived: its lifetime counts from here, or from `not_before`.
    pub arrival: Timestamp,
    /// Its sender wants it delivered no sooner (RFC 4865).
    pub not_before: Option<Timestamp>,
    /// When it is to be there, and what follows when it is not (RFC 2852).
    pub deadline: Option<(Timestamp, ByMode)>,
    /// The sender was told that it is late.
    pub delay_told: bool,
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
    /// Of what its sender wants to hear.
    pub wishes: Wishes,
    /// Reports of success that are not yet in the spool.
    pub owed: Vec<Owed>,
    /// Nothing but such a report is left to do.
    pub complete: bool,
    /// Such a report is in the spool.
    pub told: bool,
}

/// Of what a sender wants to hear (RFC 3461 §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// That it was delivered.
    pub success: bool,
    /// That it failed.
    pub failure: bool,
    /// That it is late: none when nothing was said.
    pub delay: Option<bool>,
}

impl From<Option<Notify>> for Wishes {
    fn from(notify: Option<Notify>) -> Self {
        match notify {
            None => Self { success: false, failure: true, delay: None },
            Some(Notify { success, failure, delay }) => Self { success, failure, delay: Some(delay) },
        }
    }
}

/// A report of success that is owed to the sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owed {
    /// The final address; none for the recipient as a whole.
    pub address: Option<Mailbox>,
    /// What is to be told.
    pub action: Success,
    /// Which server took it.
    pub relay: Option<String>,
    /// In whose words.
    pub reply: String,
}

impl Unfinished {
    /// A recipient of which nothing was said and to whom nothing happened yet.
    pub fn new(index: u32, address: Mailbox) -> Self {
        let (done, owed) = (Vec::new(), Vec::new());
        Self { index, address, done, wishes: Wishes::from(None), owed, complete: false, told: false }
    }
}

/// A message in memory. A million of these must fit: no strings, no vectors.
#[derive(Debug)]
pub(super) struct Entry {
    // A `Place` taken apart: whole, its padding would cost eight octets a message.
    file: QueueId,
    number: u16,
    /// Attempts that ended in a deferral, for the next delay.
    pub(super) attempts: u8,
    /// Which of those that wait goes first.
    pub(super) priority: i8,
    /// Whose mail this is, by a few bits of the domains of its recipients.
    pub(super) domains: DomainBits,
    pub(super) state: State,
}

impl Entry {
    pub(super) fn new(place: Place, summary: Summary, attempts: u8, state: State) -> Self {
        let Summary { priority, domains } = summary;
        Self { file: place.file, number: place.number, attempts, priority, domains, state }
    }

    /// Where the message lies.
    pub(super) fn place(&self) -> Place {
        Place { file: self.file, number: self.number }
    }
}

const _: () = assert!(size_of::<Entry>() <= 32);

/// What is kept in memory of a message that waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Which of those that wait goes first: -9 to 9.
    pub priority: i8,
    /// The domains of its unfinished recipients.
    pub domains: DomainBits,
}

/// A set of domains in 32 bits, two for each: it may take a domain for one of its own that is none, and never
/// the other way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DomainBits(u32);

impl DomainBits {
    /// A domain alone.
    pub fn of(domain: &str) -> Self {
        // FNV-1a: nothing secret hangs on it.
        let step =
            |hash: u32, byte: u8| (hash ^ u32::from(byte.to_ascii_lowercase())).wrapping_mul(0x0100_0193);
        let hash = domain.bytes().fold(0x811c_9dc5, step);
        Self(1 << (hash & 31) | 1 << (hash >> 16 & 31))
    }

    /// The domains of these.
    pub fn of_all<'a>(mailboxes: impl IntoIterator<Item = &'a Mailbox>) -> Self {
        let domain = |mailbox: &Mailbox| mailbox.as_str().rsplit_once('@').map_or(0, |(_, d)| Self::of(d).0);
        Self(mailboxes.into_iter().fold(0, |bits, mailbox| bits | domain(mailbox)))
    }

    /// Whether mail for this domain may be among it.
    pub fn may_hold(self, domain: Self) -> bool {
        self.0 & domain.0 == domain.0
    }
}

#[derive(Debug)]
pub(super) enum State {
    /// In the queue of new or of due messages, waits to be loaded.
    Queued,
    /// Waits for its time.
    Deferred(Timestamp),
    /// Waits for the time its sender set.
    Scheduled(Timestamp),
    /// Waits for an operator.
    Held,
    /// An attempt is under way.
    Active(Box<Active>),
}

/// An attempt at one message.
#[derive(Debug)]
pub(super) struct Active {
    /// Never deferred before: it goes first. For which domains.
    pub(super) fresh: Option<DomainBits>,
    /// Destinations that are down are tried all the same.
    pub(super) forced: bool,
    pub(super) priority: i8,
    /// The lifetime counts from here.
    pub(super) born: Timestamp,
    pub(super) deadline: Option<(Timestamp, ByMode)>,
    pub(super) delay_told: bool,
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
    /// `Complete` was recorded: `finished` follows the report that is owed.
    pub(super) complete: bool,
    pub(super) wishes: Wishes,
    pub(super) owed: Vec<Owed>,
    /// A report of success is in the spool.
    pub(super) told: bool,
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
    Failed { report: Report, expired: Option<Late> },
}

/// In which way a message was too late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Late {
    /// It was tried for as long as the configuration says.
    Lifetime,
    /// Until the sender's own deadline.
    Deadline,
}

impl Active {
    pub(super) fn loading(fresh: Option<DomainBits>, forced: bool, priority: i8) -> Self {
        Self {
            fresh,
            forced,
            priority,
            born: Timestamp(0),
            deadline: None,
            delay_told: false,
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

    /// It is to be returned when it is late, and it is.
    pub(super) fn is_overdue(&self, now: Timestamp) -> bool {
        matches!(self.deadline, Some((at, ByMode::Return)) if now >= at)
    }

    /// Deliveries that aliases made of the recipients, beside one for each.
    pub(super) fn expanded(&self) -> usize {
        self.recipients.iter().map(Recipient::expanded).sum()
    }

    /// Some recipient's deliveries are known.
    pub(super) fn has_begun(&self) -> bool {
        self.recipients.iter().any(|recipient| recipient.resolved)
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
        let Unfinished { index, address, done, wishes, owed, complete, told } = unfinished;
        let (resolved, finished, deliveries) = (complete, false, Vec::new());
        Self { index, address, done, resolved, finished, complete, wishes, owed, told, deliveries }
    }

    /// The final address as the log has it: none when the delivery is the recipient as a whole.
    pub(super) fn logged_address(&self, delivery: &Delivery) -> Option<Mailbox> {
        let alone = self.deliveries.len() == 1 && self.done.is_empty() && delivery.address == self.address;
        // Where lookup could not answer, the one delivery stands for all that it would have named.
        let whole = alone || !self.resolved;
        (!whole).then(|| delivery.address.clone())
    }

    /// What the next hop is told of its sender's wishes.
    pub(super) fn passing(&self, delivery: &Delivery) -> Passing {
        match delivery.owner {
            Some(_) => Passing::Nothing,
            None if self.deliveries.len() > 1 || !self.done.is_empty() => Passing::NoSuccess,
            None => Passing::Everything,
        }
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

    pub(super) fn expanded(&self) -> usize {
        self.deliveries.len().saturating_sub(1)
    }

    /// Marks one delivery done and says what the log must say: the delivery, and the recipient as a whole
    /// with its last one.
    pub(super) fn finish(&mut self, d: usize, status: DoneStatus, log: &mut Vec<LogEntry>) {
        let Some(delivery) = self.deliveries.get(d) else { return };
        let address = self.logged_address(delivery);
        if let Some(delivery) = self.deliveries.get_mut(d) {
            delivery.state = DeliveryState::Finished;
        }
        match address {
            None => self.end(status, log),
            address => {
                log.push(LogEntry::Done { recipient: self.index, address, status });
                self.finish_whole(status, log);
            }
        }
    }

    /// Marks one delivery done that another took on, and notes what its sender is owed for it.
    pub(super) fn deliver(&mut self, d: usize, outcome: &Outcome, log: &mut Vec<LogEntry>) {
        let action = match outcome {
            Outcome::Delivered(_) => Some(Success::Delivered),
            Outcome::Relayed(_) => Some(Success::Relayed),
            // The next host tells the sender.
            _ => None,
        };
        let alone = self.deliveries.len() == 1 && self.done.is_empty();
        let ours = alone && self.deliveries.iter().all(|delivery| delivery.owner.is_none());
        // Of several, the sender was told that there are several; a list has taken it by being asked.
        if let (Some(action), true, Some(delivery)) = (action, ours, self.deliveries.get(d)) {
            let report = outcome.report();
            let address = (delivery.address != self.address).then(|| delivery.address.clone());
            self.owe(address, action, report.relay.clone(), report.reply.to_string(), log);
        }
        self.finish(d, DoneStatus::Delivered, log);
    }

    /// Notes a report of success, if the sender wants one.
    pub(super) fn owe(
        &mut self,
        address: Option<Mailbox>,
        action: Success,
        relay: Option<String>,
        reply: String,
        log: &mut Vec<LogEntry>,
    ) {
        if !self.wishes.success || self.told || !self.owed.is_empty() {
            return;
        }
        let owed = Owed { address, action, relay, reply };
        let Owed { address, action, relay, reply } = owed.clone();
        log.push(LogEntry::Owed { recipient: self.index, address, action, relay, reply });
        self.owed.push(owed);
    }

    /// Everything of the recipient is done; it is recorded when nothing is owed for it.
    fn end(&mut self, status: DoneStatus, log: &mut Vec<LogEntry>) {
        if self.owed.is_empty() {
            self.finished = true;
            log.push(LogEntry::Done { recipient: self.index, address: None, status });
        } else if !self.complete {
            self.complete = true;
            log.push(LogEntry::Complete { recipient: self.index });
        }
    }

    /// What is owed for it is in the spool.
    pub(super) fn settle_debt(&mut self, log: &mut Vec<LogEntry>) {
        if self.owed.is_empty() {
            return;
        }
        self.owed.clear();
        self.told = true;
        if self.complete {
            self.end(DoneStatus::Delivered, log);
        } else {
            log.push(LogEntry::Told { recipient: self.index });
        }
    }

    /// Records the recipient as a whole when nothing of it is left.
    pub(super) fn finish_whole(&mut self, status: DoneStatus, log: &mut Vec<LogEntry>) {
        let all = self.deliveries.iter().all(|d| matches!(d.state, DeliveryState::Finished));
        if all && self.resolved && !self.finished {
            self.end(status, log);
        }
    }
}
