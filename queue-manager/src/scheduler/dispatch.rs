//! Jobs: which destination is next, within the limits of destinations and agents.

use std::collections::VecDeque;

use postern_event::Status;
use postern_ipc::Role;
use postern_ipc::queue_agent::{Destination, Outcome, RECIPIENTS_MAX, Report};
use postern_smtp::{EnhancedCode, Reply};
use postern_spool::{QueueId, Timestamp};

use super::destination::{Class, Group};
use super::message::{DeliveryState, State};
use super::ranked::Ranked;
use super::{Action, LOSSES_MAX, Order, Scheduler};

/// Of each agent's grant, new mail alone may use one in this many jobs.
const RESERVED_SHARE: u32 = 4;
/// While new mail keeps coming, one job in this many is a retry.
const OLD_TURN: u32 = 4;

/// Who delivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AgentKind {
    /// delivery-remote
    Remote = 0,
    /// delivery-local
    Local = 1,
    /// lmtp
    Lmtp = 2,
}

/// An agent's grant and the destinations that wait for it.
#[derive(Debug, Default)]
pub(super) struct Agent {
    /// None until it said `Ready`.
    granted: Option<u32>,
    /// The socket to it is full.
    congested: bool,
    running: u32,
    running_old: u32,
    turn: u32,
    /// Destinations with something to do, by class: round-robin.
    rings: [VecDeque<usize>; 2],
}

/// A job under way.
#[derive(Debug)]
pub(super) struct Job {
    agent: AgentKind,
    place: usize,
    group: Group,
    reported: Vec<bool>,
}

impl AgentKind {
    /// Every agent.
    pub const ALL: [Self; 3] = [Self::Remote, Self::Local, Self::Lmtp];

    /// The program.
    pub const fn role(self) -> Role {
        match self {
            Self::Remote => Role::DeliveryRemote,
            Self::Local => Role::DeliveryLocal,
            Self::Lmtp => Role::Lmtp,
        }
    }

    /// Who delivers to a destination.
    pub const fn of(destination: &Destination) -> Self {
        match destination {
            Destination::Smtp(_) => Self::Remote,
            Destination::Lmtp(_) => Self::Lmtp,
            Destination::Local { .. } | Destination::Virtual { .. } => Self::Local,
        }
    }
}

impl Scheduler {
    /// An agent is there and takes so many jobs at once.
    pub fn agent_ready(&mut self, agent: AgentKind, jobs: u32) {
        self.agents[agent as usize].granted = Some(jobs);
        self.agents[agent as usize].congested = false;
    }

    /// The socket to an agent is full, or has room again.
    pub fn agent_congested(&mut self, agent: AgentKind, congested: bool) {
        self.agents[agent as usize].congested = congested;
    }

    /// An agent is gone. What it had and did not report goes back to the front of its queue: whether the
    /// mail went out is not known, and twice is better than never.
    pub fn agent_lost(&mut self, agent: AgentKind, now: Timestamp) {
        self.agents[agent as usize].granted = None;
        let lost: Vec<u64> = self.jobs.iter().filter(|(_, j)| j.agent == agent).map(|(n, _)| *n).collect();
        // From the newest, so that the oldest ends at the front.
        for number in lost.into_iter().rev() {
            let Some(job) = self.end_job(number) else { continue };
            let Job { place, mut group, reported, .. } = job;
            let mut keep = reported.iter();
            group.members.retain(|_| keep.next() == Some(&false));
            group.losses = group.losses.saturating_add(1);
            if group.members.is_empty() {
                self.end_if_quiet(group.message, now);
            } else if group.losses >= LOSSES_MAX || self.wish(group.message) {
                let report = ours(451, EnhancedCode::new(4, 3, 0), "the delivery program ended over this");
                self.defer_group(group, &report, None, now);
            } else if let Some(at) = self.destinations.get(place) {
                at.queues[group.class as usize].push_front(group.priority, group);
            }
            self.enlist_or_forget(place);
        }
    }

    /// A result for one target of a job. False when there is no such job, or it was told before.
    pub fn result(&mut self, number: u64, target: u32, outcome: Outcome, now: Timestamp) -> bool {
        let Some(job) = self.jobs.get_mut(&number) else { return false };
        match job.reported.get_mut(target as usize) {
            Some(reported) if !*reported => *reported = true,
            _ => return false,
        }
        let Some(&member) = job.group.members.get(target as usize) else { return false };
        let (id, place) = (job.group.message, job.place);
        self.learn(place, &outcome, now);
        self.decide(id, member, outcome);
        true
    }

    /// A job is over. What it did not report is deferred. False when there is no such job.
    pub fn done(&mut self, number: u64, now: Timestamp) -> bool {
        let Some(job) = self.end_job(number) else { return false };
        let Job { mut group, reported, place, .. } = job;
        self.enlist_or_forget(place);
        let mut keep = reported.iter();
        group.members.retain(|_| keep.next() == Some(&false));
        let report =
            ours(451, EnhancedCode::new(4, 3, 0), "the delivery program said nothing about this recipient");
        let id = group.message;
        self.defer_group(group, &report, None, now);
        self.end_if_quiet(id, now);
        true
    }

    /// Queues the deliveries of one message to one destination.
    pub(super) fn enqueue(&mut self, destination: &Destination, group: Group, now: Timestamp) {
        self.destinations.forget_down(now);
        let longest = self.longest();
        let key = self.destinations.key(destination);
        let Some(place) = self.destinations.get(key) else { return };
        if group.forced {
            // One job finds out; what it says is believed again.
            place.down_until = Timestamp(0);
        }
        if place.is_down(now, longest) {
            let (report, until) = (place.why.clone(), place.down_until);
            let report =
                report.unwrap_or_else(|| ours(451, EnhancedCode::new(4, 4, 0), "destination is down"));
            return self.defer_group(group, &report, Some(until), now);
        }
        for members in group.members.chunks(RECIPIENTS_MAX) {
            let part = Group { members: members.to_vec(), ..group.clone() };
            place.queues[group.class as usize].push_back(group.priority, part);
        }
        self.enlist(key);
    }

    /// The next job that limits allow.
    pub(super) fn start(&mut self, now: Timestamp) -> Option<Action> {
        AgentKind::ALL.into_iter().find_map(|agent| self.start_for(agent, now))
    }

    fn start_for(&mut self, kind: AgentKind, now: Timestamp) -> Option<Action> {
        let longest = self.longest();
        loop {
            let connections = self.limits.connections;
            let agent = &mut self.agents[kind as usize];
            let class = agent.choose()?;
            let key = agent.rings[class as usize].pop_front()?;
            let Some(place) = self.destinations.get(key) else { continue };
            place.listed[class as usize] = false;
            if place.running >= place.limit(connections) {
                continue; // The end of one of its jobs lists it again.
            }
            let Some(group) = place.queues[class as usize].pop_front() else {
                self.destinations.tidy(key);
                continue;
            };
            if place.is_down(now, longest) {
                // It came back from an agent that died, after the destination was found down.
                let (why, until) = (place.why.clone(), place.down_until);
                let why = why.unwrap_or_else(|| ours(451, EnhancedCode::new(4, 4, 0), "destination is down"));
                self.defer_group(group, &why, Some(until), now);
                self.enlist(key);
                continue;
            }
            if self.is_overdue(group.message, now) {
                let late = ours(550, EnhancedCode::new(5, 4, 7), "its time has passed in the queue");
                self.defer_group(group, &late, None, now);
                self.enlist(key);
                continue;
            }
            let Some(place) = self.destinations.get(key) else { continue };
            let destination = place.destination.clone();
            let Some(order) = self.order(self.last_job + 1, kind, destination, &group) else {
                self.enlist(key); // Its message is gone; what waits behind it goes on.
                continue;
            };
            if let Some(place) = self.destinations.get(key) {
                place.running += 1;
            }
            self.enlist(key);
            let agent = &mut self.agents[kind as usize];
            agent.running += 1;
            agent.running_old += u32::from(class == Class::Old);
            agent.turn = agent.turn.wrapping_add(1);
            self.last_job += 1;
            let reported = vec![false; group.members.len()];
            self.jobs.insert(order.job, Job { agent: kind, place: key, group, reported });
            return Some(Action::Start(order));
        }
    }

    fn order(
        &mut self,
        job: u64,
        agent: AgentKind,
        destination: Destination,
        group: &Group,
    ) -> Option<Order> {
        let State::Active(active) = &mut self.messages.get_mut(&group.message)?.state else { return None };
        let targets = group.members.iter().filter_map(|&(r, d)| {
            let recipient = active.recipients.get(r as usize)?;
            let delivery = recipient.deliveries.get(d as usize)?;
            let target = (delivery.address.clone(), recipient.original(delivery));
            Some((target, (recipient.index, recipient.passing(delivery))))
        });
        let (targets, recipients) = targets.unzip();
        let (id, owner, scheduled) = (group.message, group.owner.clone(), active.scheduled);
        Some(Order { job, agent, id, destination, owner, targets, recipients, scheduled })
    }

    /// Takes a job out of the books: its grant and its destination's place are free. The caller calls
    /// `enlist_or_forget` when it has put back what it wants to put back.
    fn end_job(&mut self, number: u64) -> Option<Job> {
        let job = self.jobs.remove(&number)?;
        let agent = &mut self.agents[job.agent as usize];
        agent.running -= 1;
        agent.running_old -= u32::from(job.group.class == Class::Old);
        if let Some(place) = self.destinations.get(job.place) {
            place.running -= 1;
        }
        Some(job)
    }

    /// What a result says of its destination.
    fn learn(&mut self, key: usize, outcome: &Outcome, now: Timestamp) {
        let down = matches!(outcome, Outcome::Deferred(report) if report.destination_down);
        let longest = self.longest();
        let Some(place) = self.destinations.get(key) else { return };
        if !down {
            if place.failures > 0 {
                (place.failures, place.down_until, place.why) = (0, Timestamp(0), None);
                self.enlist(key);
            }
            return;
        }
        if place.is_down(now, longest) {
            return; // One of many connections that broke together counts once.
        }
        place.failures = place.failures.saturating_add(1);
        let failures = place.failures;
        place.why = Some(outcome.report().clone());
        let until = Timestamp(now.0.saturating_add(self.delay(failures)));
        let Some(place) = self.destinations.get(key) else { return };
        place.down_until = until;
        let waiting: Vec<Group> = place.queues.iter_mut().flat_map(Ranked::drain).collect();
        for group in waiting {
            self.defer_group(group, outcome.report(), Some(until), now);
        }
    }

    /// What a result says of its delivery. The end of the attempt is looked for at the end of the job.
    fn decide(&mut self, id: QueueId, member: (u32, u32), outcome: Outcome) {
        let Some(State::Active(active)) = self.messages.get_mut(&id).map(|entry| &mut entry.state) else {
            return;
        };
        active.open = active.open.saturating_sub(1);
        let twins = active.twins.remove(&member).unwrap_or_default();
        let status = match outcome {
            Outcome::Delivered(_) | Outcome::Relayed(_) | Outcome::Passed(_) => Status::Sent,
            Outcome::Deferred(_) => Status::Deferred,
            Outcome::Failed(_) => Status::Bounced,
        };
        // The agent logs its own target alone.
        let told = twins.iter().filter_map(|twin| active.told(id, *twin, status, &outcome.report().reply));
        self.out.extend(told.map(Action::Tell));
        let mut log = Vec::new();
        for (r, d) in std::iter::once(member).chain(twins) {
            let Some(recipient) = active.recipients.get_mut(r as usize) else { continue };
            match &outcome {
                Outcome::Delivered(_) | Outcome::Relayed(_) | Outcome::Passed(_) => {
                    self.counts.delivered += 1;
                    recipient.deliver(d as usize, &outcome, &mut log);
                }
                Outcome::Deferred(report) => {
                    self.counts.deferred += 1;
                    let state = DeliveryState::Deferred { report: report.clone(), not_before: None };
                    recipient.set(d, state);
                }
                Outcome::Failed(report) => {
                    recipient.set(d, DeliveryState::Failed { report: report.clone(), expired: None });
                }
            }
        }
        self.record(id, log);
    }

    /// Puts off deliveries that no agent tried, and says so.
    fn defer_group(&mut self, group: Group, report: &Report, until: Option<Timestamp>, now: Timestamp) {
        let id = group.message;
        let Some(State::Active(active)) = self.messages.get_mut(&id).map(|entry| &mut entry.state) else {
            return;
        };
        for member in group.members {
            active.open = active.open.saturating_sub(1);
            let twins = active.twins.remove(&member).unwrap_or_default();
            for (r, d) in std::iter::once(member).chain(twins) {
                self.counts.deferred += 1;
                let told = active.told(id, (r, d), Status::Deferred, &report.reply);
                self.out.extend(told.map(Action::Tell));
                if let Some(recipient) = active.recipients.get_mut(r as usize) {
                    let state = DeliveryState::Deferred { report: report.clone(), not_before: until };
                    recipient.set(d, state);
                }
            }
        }
        self.end_if_quiet(id, now);
    }

    /// Takes what is queued of a message out of the queues, and what is not yet asked out of the
    /// questions: an operator wants it to stop.
    pub(super) fn withdraw(&mut self, id: QueueId) {
        let mut taken = 0;
        for (_, place) in self.destinations.iter_mut() {
            for queue in &mut place.queues {
                queue.retain(|group| {
                    let other = group.message != id;
                    taken += if other { 0 } else { group.members.len() };
                    other
                });
            }
        }
        let before = self.lookup.waiting.len();
        self.lookup.waiting.retain(|&(message, _)| message != id);
        let aside = self.lookup.aside.extract_if(.., |(message, _)| *message == id).count();
        let unasked = before - self.lookup.waiting.len() + aside;
        if let Some(State::Active(active)) = self.messages.get_mut(&id).map(|entry| &mut entry.state) {
            active.open = active.open.saturating_sub(taken);
            active.asking = active.asking.saturating_sub(unasked);
        }
    }

    fn is_overdue(&self, id: QueueId, now: Timestamp) -> bool {
        matches!(self.messages.get(&id).map(|e| &e.state), Some(State::Active(a)) if a.is_overdue(now))
    }

    fn wish(&self, id: QueueId) -> bool {
        matches!(self.messages.get(&id).map(|e| &e.state), Some(State::Active(a)) if a.wish.is_some())
    }

    /// Puts a destination into its agent's rings as far as it has something to do and may.
    fn enlist(&mut self, key: usize) {
        let connections = self.limits.connections;
        let Some(place) = self.destinations.get(key) else { return };
        let kind = AgentKind::of(&place.destination);
        for class in [Class::Fresh, Class::Old] {
            let n = class as usize;
            if !place.listed[n] && !place.queues[n].is_empty() && place.running < place.limit(connections) {
                place.listed[n] = true;
                self.agents[kind as usize].rings[n].push_back(key);
            }
        }
    }

    fn enlist_or_forget(&mut self, key: usize) {
        self.enlist(key);
        self.destinations.tidy(key);
    }

    pub(super) fn enlist_all(&mut self) {
        let keys: Vec<usize> = self.destinations.iter_mut().map(|(key, _)| key).collect();
        keys.into_iter().for_each(|key| self.enlist(key));
    }

    /// How many jobs are under way, by agent: for tests and counters.
    pub fn running(&self, agent: AgentKind) -> u32 {
        self.agents[agent as usize].running
    }
}

impl Agent {
    /// New mail or a retry, whichever is next and has something; none when nothing may start.
    fn choose(&self) -> Option<Class> {
        let granted = self.granted.filter(|_| !self.congested)?;
        if self.running >= granted {
            return None;
        }
        let reserved = granted / RESERVED_SHARE;
        let old = !self.rings[1].is_empty() && self.running_old < (granted - reserved).max(1);
        let fresh = !self.rings[0].is_empty();
        match (fresh, old) {
            (true, true) if self.turn % OLD_TURN == OLD_TURN - 1 => Some(Class::Old),
            (true, _) => Some(Class::Fresh),
            (false, true) => Some(Class::Old),
            (false, false) => None,
        }
    }
}

/// Words of our own.
pub(super) fn ours(code: u16, enhanced: EnhancedCode, text: &str) -> Report {
    Report { relay: None, reply: Reply::new(code, enhanced, text), remote: false, destination_down: false }
}
