//! The schedule: which message is tried when, and which job goes to which agent next. No I/O, no clock, no
//! threads: events and the time go in, [`Action`]s come out.
//!
//! A message in memory is queued, scheduled, deferred, held or active. An attempt begins with [`Action::Load`], asks
//! lookup for every unfinished recipient, groups what comes back by destination and owner, queues the
//! groups at their destinations, and ends when nothing of it is asked, queued or in a job. Only then is the
//! message deferred, bounced from or finished.
//!
//! Invariants, which the tests check under random events:
//! - a delivery is at one place: in a destination's queue, in one job, or decided;
//! - a recipient is recorded as done once, and only when every delivery of it is;
//! - a destination never has more jobs than its limit, an agent never more than it granted;
//! - a message leaves only by [`Action::Finished`], which follows the records of all its recipients.

mod action;
mod attempt;
mod destination;
mod dispatch;
mod message;
mod ranked;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use postern_address::Domain;
use postern_config::QueueLimits;
use postern_spool::{LogEntry, QueueId, Timestamp};

pub use action::{Action, BounceOrder, Failure, Order, Passing, ReportKey, ReportKind, Told};
pub use dispatch::AgentKind;
pub use message::{DomainBits, Late, Loaded, Owed, Place, Summary, Unfinished, Wishes};

use destination::Destinations;
use message::{Active, Entry, State, Wish};
use ranked::Ranked;

/// Messages with an attempt under way at once. Each costs its recipients in memory.
const ACTIVE_MAX: usize = 5000;
/// How many of them may be new mail for the same domains: one slow host does not hold up the others.
const ACTIVE_SHARE: usize = ACTIVE_MAX / 4;
/// How many of them may be retries: new mail always finds room.
const ACTIVE_OLD_MAX: usize = ACTIVE_MAX / 2;
/// Recipients of such messages in memory: above this no further message is begun, above half of it no retry.
const RECIPIENTS_MAX: usize = 200_000;
/// Deliveries that aliases made of their recipients beside one for each: above this nothing further is resolved but what
/// a message has begun with. A few in tests, which then meet it.
const EXPANDED_MAX: usize = if cfg!(test) { 3 } else { 200_000 };
/// Questions at lookup at once.
const QUESTIONS_MAX: usize = 256;
/// Who asked to be told of delay is told after so long, where nothing is configured.
const DELAY_WARNING: Duration = Duration::from_secs(4 * 3600);
/// A job that outlived this many deaths of its agent may be what kills it: it waits like any deferred one.
const LOSSES_MAX: u8 = 3;

/// Numbers from the configuration, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The first delay; each further one doubles.
    pub retry_first: u64,
    /// No delay is longer.
    pub retry_most: u64,
    /// A message older than this is returned.
    pub lifetime: u64,
    /// The same for a message with the null reverse-path.
    pub bounce_lifetime: u64,
    /// Connections to one destination at once: it has twice as many jobs.
    pub connections: u32,
    /// The sender is told that a message is late when it is so old, if it asked for that.
    pub delay_warning: u64,
    /// The same if it said nothing of it: never when none.
    pub delay_warning_unasked: Option<u64>,
}

/// What was done so far, for `postern status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Deliveries that succeeded.
    pub delivered: u64,
    /// Deliveries that were put off.
    pub deferred: u64,
    /// Deliveries that failed for good.
    pub bounced: u64,
    /// Messages that left.
    pub removed: u64,
}

/// The schedule.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    messages: BTreeMap<QueueId, Entry>,
    fresh: Ranked<QueueId>,
    due: Ranked<QueueId>,
    wake: BTreeSet<(Timestamp, QueueId)>,
    /// Those that wait for the time their senders set.
    scheduled: BTreeSet<(Timestamp, QueueId)>,
    /// New mail under way and set aside, by the domains it is for.
    crowds: HashMap<DomainBits, Crowd>,
    /// Of these some that were set aside may begin.
    thinned: VecDeque<DomainBits>,
    /// To be tried though their destinations are down.
    forced: HashSet<QueueId>,
    active: usize,
    active_old: usize,
    /// Recipients of the active messages.
    recipients: usize,
    /// More deliveries of theirs.
    expanded: usize,
    held: usize,
    destinations: Destinations,
    agents: [dispatch::Agent; 3],
    jobs: BTreeMap<u64, dispatch::Job>,
    last_job: u64,
    lookup: Lookup,
    out: VecDeque<Action>,
    random: Random,
    /// Reports being written.
    bouncing: usize,
    stopping: bool,
    counts: Counts,
}

/// New mail for the same domains.
#[derive(Debug, Default)]
struct Crowd {
    active: usize,
    aside: Ranked<QueueId>,
}

/// Questions to lookup.
#[derive(Debug, Default)]
struct Lookup {
    linked: bool,
    waiting: VecDeque<(QueueId, u32)>,
    /// They wait until there are fewer deliveries.
    aside: Vec<(QueueId, u32)>,
    asked: HashMap<u64, (QueueId, u32)>,
    last: u64,
}

/// Where a message stands, for the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Being tried, or about to be.
    Active,
    /// Waits until then.
    Deferred(Timestamp),
    /// Waits until then, as its sender wants.
    Scheduled(Timestamp),
    /// Held.
    Held,
}

impl From<(&QueueLimits, u32)> for Limits {
    fn from((limits, connections): (&QueueLimits, u32)) -> Self {
        let milliseconds = |d: std::time::Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        Self {
            retry_first: milliseconds(limits.retry_first).max(1),
            retry_most: milliseconds(limits.retry_most).max(1),
            lifetime: milliseconds(limits.lifetime),
            bounce_lifetime: milliseconds(limits.bounce_lifetime),
            connections,
            delay_warning: milliseconds(limits.delay_warning.unwrap_or(DELAY_WARNING)),
            delay_warning_unasked: limits.delay_warning.map(milliseconds),
        }
    }
}

impl Scheduler {
    /// An empty schedule. `seed` makes the jitter: the same seed and events give the same actions.
    pub fn new(limits: Limits, seed: u64) -> Self {
        Self {
            limits,
            messages: BTreeMap::new(),
            fresh: Ranked::default(),
            due: Ranked::default(),
            wake: BTreeSet::new(),
            scheduled: BTreeSet::new(),
            crowds: HashMap::new(),
            thinned: VecDeque::new(),
            forced: HashSet::new(),
            active: 0,
            active_old: 0,
            recipients: 0,
            expanded: 0,
            held: 0,
            destinations: Destinations::default(),
            agents: Default::default(),
            jobs: BTreeMap::new(),
            last_job: 0,
            lookup: Lookup::default(),
            out: VecDeque::new(),
            random: Random(seed),
            bouncing: 0,
            stopping: false,
            counts: Counts::default(),
        }
    }

    /// Takes other limits from now on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
        self.enlist_all();
    }

    /// A new message. False when the id is known already.
    pub fn arrive(&mut self, id: QueueId, place: Place, summary: Summary) -> bool {
        if self.messages.contains_key(&id) {
            return false;
        }
        self.messages.insert(id, Entry::new(place, summary, 0, State::Queued));
        self.fresh.push_back(summary.priority, id);
        true
    }

    /// A message that is not to be tried at once: tried before (`attempts`), to be tried at a time, or held.
    /// False when the id is known already.
    pub fn recover(
        &mut self,
        id: QueueId,
        place: Place,
        summary: Summary,
        attempts: u8,
        waits: Standing,
    ) -> bool {
        if self.messages.contains_key(&id) {
            return false;
        }
        let state = match waits {
            Standing::Held => {
                self.held += 1;
                State::Held
            }
            Standing::Scheduled(until) => {
                self.scheduled.insert((until, id));
                State::Scheduled(until)
            }
            Standing::Deferred(until) => {
                self.wake.insert((until, id));
                State::Deferred(until)
            }
            Standing::Active => {
                self.due.push_back(summary.priority, id);
                State::Queued
            }
        };
        self.messages.insert(id, Entry::new(place, summary, attempts, state));
        true
    }

    /// The next thing to do at `now`; call it until none. Nothing that needs lookup or an agent comes while
    /// it is not there or has no room.
    pub fn next(&mut self, now: Timestamp) -> Option<Action> {
        if let Some(action) = self.out.pop_front() {
            return Some(action);
        }
        if self.stopping {
            return None;
        }
        self.wake_due(now);
        let action = self.start(now).or_else(|| self.ask()).or_else(|| self.load());
        // Starting a job may have found that there is nothing to start, and said so.
        action.or_else(|| self.out.pop_front())
    }

    /// When [`Scheduler::next`] has something to do though nothing happens.
    pub fn deadline(&self) -> Option<Timestamp> {
        let next = [&self.wake, &self.scheduled].into_iter().filter_map(|set| set.first());
        next.map(|&(at, _)| at).min().filter(|_| !self.stopping)
    }

    /// Nothing new is begun from now on.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// No job is under way and no report is being written.
    pub fn is_quiet(&self) -> bool {
        self.jobs.is_empty() && self.out.is_empty() && self.bouncing == 0
    }

    /// Where a message lies.
    pub fn place(&self, id: QueueId) -> Option<Place> {
        self.messages.get(&id).map(Entry::place)
    }

    /// Where a message stands.
    pub fn standing(&self, id: QueueId) -> Option<Standing> {
        self.messages.get(&id).map(standing)
    }

    /// The messages behind `after`, oldest first.
    pub fn list(&self, after: Option<QueueId>) -> impl Iterator<Item = (QueueId, Place, Standing)> + use<'_> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        self.messages.range((from, Unbounded)).map(|(id, entry)| (*id, entry.place(), standing(entry)))
    }

    /// Messages in all, those deferred, those scheduled and those held.
    pub fn sizes(&self) -> (usize, usize, usize, usize) {
        (self.messages.len(), self.wake.len(), self.scheduled.len(), self.held)
    }

    /// What was done so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Tries a deferred message now, or all of them; destinations that were down get another chance. A time
    /// that a sender set stays. False when there is no such message, or it is held or waits for such a time.
    pub fn flush(&mut self, id: Option<QueueId>) -> bool {
        self.destinations.iter_mut().for_each(|(_, place)| {
            (place.failures, place.down_until) = (0, Timestamp(0));
        });
        self.enlist_all();
        match id {
            None => {
                for (_, id) in std::mem::take(&mut self.wake) {
                    self.make_due(id);
                }
                true
            }
            Some(id) => match self.messages.get(&id).map(|entry| &entry.state) {
                None => false,
                Some(&State::Deferred(until)) => {
                    self.wake.remove(&(until, id));
                    self.make_due(id);
                    true
                }
                Some(State::Held | State::Scheduled(_)) => false,
                Some(_) => true,
            },
        }
    }

    /// Tries every deferred message for a domain now, though its destination was found down (ETRN, RFC 1985).
    /// A few for other domains may be among them. How many there are.
    pub fn flush_destination(&mut self, domain: &Domain) -> usize {
        let bits = DomainBits::of(domain.as_str());
        let holds = |id: &QueueId| self.messages.get(id).is_some_and(|entry| entry.domains.may_hold(bits));
        let found: Vec<(Timestamp, QueueId)> =
            self.wake.iter().filter(|(_, id)| holds(id)).copied().collect();
        for key in &found {
            self.wake.remove(key);
            self.forced.insert(key.1);
            self.make_due(key.1);
        }
        found.len()
    }

    /// Keeps a message from being tried; what is in a job already ends first. False when there is none.
    pub fn hold(&mut self, id: QueueId, now: Timestamp) -> bool {
        let Some(entry) = self.messages.get_mut(&id) else { return false };
        match &mut entry.state {
            State::Active(active) => {
                active.wish = Some(Wish::Hold);
                self.withdraw(id);
                self.end_if_quiet(id, now);
            }
            State::Held => {}
            State::Queued | State::Deferred(_) | State::Scheduled(_) => {
                match entry.state {
                    State::Deferred(until) => drop(self.wake.remove(&(until, id))),
                    State::Scheduled(until) => drop(self.scheduled.remove(&(until, id))),
                    _ => {}
                }
                entry.state = State::Held;
                self.held += 1;
                self.record(id, vec![LogEntry::Held]);
            }
        }
        true
    }

    /// Tries a held message again, at once. False when it is not held.
    pub fn release(&mut self, id: QueueId) -> bool {
        let Some(entry) = self.messages.get_mut(&id) else { return false };
        match &mut entry.state {
            State::Held => {
                self.held -= 1;
                self.record(id, vec![LogEntry::Released]);
                self.make_due(id);
                true
            }
            State::Active(active) if active.wish == Some(Wish::Hold) => {
                // Withdrawn deliveries are tried again with the next attempt.
                active.wish = None;
                true
            }
            _ => false,
        }
    }

    /// Drops a message without a word to its sender; what is in a job already ends first. A message that
    /// is not active is loaded for it, to know whom to record. False when there is none.
    pub fn remove(&mut self, id: QueueId, now: Timestamp) -> bool {
        let Some(entry) = self.messages.get_mut(&id) else { return false };
        match &mut entry.state {
            State::Active(active) => {
                active.wish = Some(Wish::Remove);
                self.withdraw(id);
                self.end_if_quiet(id, now);
            }
            State::Queued | State::Deferred(_) | State::Scheduled(_) | State::Held => {
                match entry.state {
                    State::Deferred(until) => drop(self.wake.remove(&(until, id))),
                    State::Scheduled(until) => drop(self.scheduled.remove(&(until, id))),
                    State::Held => self.held -= 1,
                    _ => {}
                }
                entry.state = State::Queued;
                self.finish(id);
            }
        }
        true
    }

    /// Drops a message from memory alone: its file was set aside.
    pub fn forget(&mut self, id: QueueId) {
        self.forced.remove(&id);
        match self.messages.remove(&id).map(|entry| entry.state) {
            Some(State::Deferred(until)) => drop(self.wake.remove(&(until, id))),
            Some(State::Scheduled(until)) => drop(self.scheduled.remove(&(until, id))),
            Some(State::Active(active)) => self.leave(&active),
            _ => {}
        }
    }

    /// An attempt is over.
    fn leave(&mut self, active: &Active) {
        self.active -= 1;
        self.active_old -= usize::from(active.fresh.is_none());
        self.recipients -= active.recipients.len();
        self.expanded -= active.expanded();
        let Some(bits) = active.fresh else { return };
        let Some(crowd) = self.crowds.get_mut(&bits) else { return };
        crowd.active = crowd.active.saturating_sub(1);
        if !crowd.aside.is_empty() {
            self.thinned.push_back(bits);
        } else if crowd.active == 0 {
            self.crowds.remove(&bits);
        }
    }

    /// The next new message whose domains have room: of those without, the ones behind go first.
    fn next_fresh(&mut self) -> Option<QueueId> {
        while let Some(&bits) = self.thinned.front() {
            let crowd = self.crowds.get_mut(&bits).filter(|crowd| crowd.active < ACTIVE_SHARE);
            if let Some(id) = crowd.and_then(|crowd| crowd.aside.pop_front()) {
                return Some(id);
            }
            self.thinned.pop_front();
        }
        loop {
            let id = self.fresh.pop_front()?;
            let Some(entry) = self.messages.get(&id) else { continue };
            match self.crowds.get_mut(&entry.domains) {
                Some(crowd) if crowd.active >= ACTIVE_SHARE => crowd.aside.push_back(entry.priority, id),
                _ => return Some(id),
            }
        }
    }

    fn finish(&mut self, id: QueueId) {
        let place = self.place(id);
        self.forget(id);
        self.out.extend(place.map(|place| Action::Finished(id, place)));
    }

    fn record(&mut self, id: QueueId, log: Vec<LogEntry>) {
        let place = self.place(id).filter(|_| !log.is_empty());
        self.out.extend(place.map(|place| Action::Record(id, place, log)));
    }

    fn make_due(&mut self, id: QueueId) {
        if let Some(entry) = self.messages.get_mut(&id) {
            entry.state = State::Queued;
            self.due.push_back(entry.priority, id);
        }
    }

    fn wake_due(&mut self, now: Timestamp) {
        // The clock was set back, or a delay was made shorter: nobody waits longer than he would have to now.
        let most = Timestamp(now.0.saturating_add(self.longest()));
        while let Some(&(at, id)) = self.wake.last().filter(|(at, _)| *at > most) {
            self.wake.remove(&(at, id));
            let until = Timestamp(now.0.saturating_add(self.random.below(self.limits.retry_most)));
            if let Some(entry) = self.messages.get_mut(&id) {
                entry.state = State::Deferred(until);
                self.wake.insert((until, id));
            }
        }
        while let Some((_, id)) =
            pop_until(&mut self.wake, now).or_else(|| pop_until(&mut self.scheduled, now))
        {
            self.make_due(id);
        }
    }

    /// The next message to make an attempt at: new ones first.
    fn load(&mut self) -> Option<Action> {
        while self.active < ACTIVE_MAX && self.recipients < RECIPIENTS_MAX {
            let fresh = self.next_fresh();
            let old = self.active_old < ACTIVE_OLD_MAX && self.recipients < RECIPIENTS_MAX / 2;
            let id = match fresh {
                Some(id) => id,
                None if old => self.due.pop_front()?,
                None => return None,
            };
            // Held or removed meanwhile.
            let Some(entry) = self.messages.get_mut(&id) else { continue };
            if !matches!(entry.state, State::Queued) {
                continue;
            }
            let fresh = fresh.is_some();
            self.active += 1;
            self.active_old += usize::from(!fresh);
            let fresh = fresh.then_some(entry.domains);
            if let Some(bits) = fresh {
                self.crowds.entry(bits).or_default().active += 1;
            }
            let forced = self.forced.remove(&id);
            entry.state = State::Active(Box::new(Active::loading(fresh, forced, entry.priority)));
            return Some(Action::Load(id));
        }
        None
    }
}

/// The first of those whose time has come.
fn pop_until(waiting: &mut BTreeSet<(Timestamp, QueueId)>, now: Timestamp) -> Option<(Timestamp, QueueId)> {
    waiting.first().filter(|(at, _)| *at <= now)?;
    waiting.pop_first()
}

fn standing(entry: &Entry) -> Standing {
    match entry.state {
        State::Queued | State::Active(_) => Standing::Active,
        State::Deferred(until) => Standing::Deferred(until),
        State::Scheduled(until) => Standing::Scheduled(until),
        State::Held => Standing::Held,
    }
}

/// SplitMix64: spreads retries; nothing secret hangs on it.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound.max(1)
    }
}
