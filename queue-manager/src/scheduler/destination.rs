//! Destinations: their queues, how many jobs each may have, and whether they are known to be down.

use std::collections::BTreeMap;

use postern_address::Mailbox;
use postern_ipc::queue_agent::{Destination, Report};
use postern_spool::{QueueId, Timestamp};
use slab::Slab;

use super::ranked::Ranked;

/// Deliveries of one message to one destination that make one job.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) message: QueueId,
    /// The reverse-path in place of the envelope's.
    pub(super) owner: Option<Mailbox>,
    /// Recipient and delivery, by their places in the active message.
    pub(super) members: Vec<(u32, u32)>,
    /// New mail, or a retry.
    pub(super) class: Class,
    /// Which of those that wait goes first.
    pub(super) priority: i8,
    /// It is tried though its destination is down.
    pub(super) forced: bool,
    /// How often an agent died over it.
    pub(super) losses: u8,
}

/// How many jobs one mailbox may have. None of them takes a connection: its worker writes all that came, and syncs
/// their directory once, while the next ones gather.
pub(super) const MAILBOX_JOBS: u32 = 100;

/// One under way, and one whose envelope leaves with its content. The agent sees to it that there are no more
/// connections than are allowed.
pub(super) const JOBS_A_CONNECTION: u32 = 2;

/// New mail is preferred over deferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Fresh = 0,
    Old = 1,
}

#[derive(Debug)]
pub(super) struct Place {
    pub(super) destination: Destination,
    pub(super) queues: [Ranked<Group>; 2],
    /// Whether it stands in its agent's ring, by class.
    pub(super) listed: [bool; 2],
    pub(super) running: u32,
    /// How often in a row it was found down.
    pub(super) failures: u8,
    /// Nothing is tried before this.
    pub(super) down_until: Timestamp,
    /// Why.
    pub(super) why: Option<Report>,
}

impl Place {
    /// How many jobs it may have. One that was down gets a single one, to find out.
    pub(super) fn limit(&self, connections: u32) -> u32 {
        match &self.destination {
            _ if self.failures > 0 => 1,
            Destination::Local { .. } | Destination::Virtual { .. } => MAILBOX_JOBS,
            Destination::Smtp(_) | Destination::Lmtp(_) => JOBS_A_CONNECTION * connections.max(1),
        }
    }

    /// Down for now. No verdict holds for longer than `longest`: the clock may have been set back since.
    pub(super) fn is_down(&self, now: Timestamp, longest: u64) -> bool {
        now < self.down_until && self.down_until.0 - now.0 <= longest
    }

    fn is_idle(&self) -> bool {
        self.running == 0 && self.queues.iter().all(Ranked::is_empty) && self.listed == [false; 2]
    }
}

/// Every destination something is queued for, runs to, or that is down.
#[derive(Debug, Default)]
pub(super) struct Destinations {
    places: Slab<Place>,
    keys: BTreeMap<Destination, usize>,
    /// With so many, those that were down and may be forgotten are looked for.
    crowded: usize,
}

/// Destinations kept in memory before those that were down long ago are forgotten.
const KEPT: usize = 10_000;

impl Destinations {
    pub(super) fn key(&mut self, destination: &Destination) -> usize {
        if let Some(&key) = self.keys.get(destination) {
            return key;
        }
        let key = self.places.insert(Place {
            destination: destination.clone(),
            queues: Default::default(),
            listed: [false; 2],
            running: 0,
            failures: 0,
            down_until: Timestamp(0),
            why: None,
        });
        self.keys.insert(destination.clone(), key);
        key
    }

    pub(super) fn get(&mut self, key: usize) -> Option<&mut Place> {
        self.places.get_mut(key)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut Place)> {
        self.places.iter_mut()
    }

    /// Forgets a destination that nothing needs any more.
    pub(super) fn tidy(&mut self, key: usize) {
        if self.places.get(key).is_some_and(|place| place.is_idle() && place.failures == 0) {
            let place = self.places.remove(key);
            self.keys.remove(&place.destination);
        }
    }

    /// When there are many, forgets those that nothing is queued for and that were down until `before`.
    pub(super) fn forget_down(&mut self, before: Timestamp) {
        if self.places.len() <= self.crowded.max(KEPT) {
            return;
        }
        let old: Vec<usize> = self
            .places
            .iter()
            .filter(|(_, place)| place.is_idle() && place.down_until < before)
            .map(|(key, _)| key)
            .collect();
        for key in old {
            let place = self.places.remove(key);
            self.keys.remove(&place.destination);
        }
        // Looked for again when there are twice as many: not each time.
        self.crowded = self.places.len().saturating_mul(2);
    }
}
