//! The scheduler against a small world: lookup, agents and a clock that do anything at any time.

use std::collections::{BTreeMap, HashMap, HashSet};

use postern_address::Mailbox;
use postern_event::Status;
use postern_ipc::queue_agent::{Destination, LmtpServer, MailboxKind, Nexthop, Outcome, Report};
use postern_ipc::queue_lookup::{Action as Route, Delivery};
use postern_smtp::Reply;
use postern_smtp::parameters::{ByMode, Notify};
use postern_spool::{DoneStatus, Success};
use proptest::prelude::*;

use super::destination::{JOBS_A_CONNECTION, MAILBOX_JOBS};
use super::*;

mod anything;
mod corners;
mod wishes;

const LIMITS: Limits = Limits {
    retry_first: 1000,
    retry_most: 8000,
    lifetime: 60_000,
    bounce_lifetime: 20_000,
    // Two jobs.
    connections: 1,
    delay_warning: 10_000,
    delay_warning_unasked: None,
};

fn mailbox(text: &str) -> Mailbox {
    Mailbox::parse(text).unwrap()
}

fn smtp(n: u16) -> Destination {
    Destination::Smtp(Nexthop::Address(([127, 0, 0, 1], n).into()))
}

fn report(code: u16, down: bool) -> Report {
    Report { relay: None, reply: Reply::new(code, None, "words"), remote: true, destination_down: down }
}

/// What the spool would hold of one message.
#[derive(Clone, Debug)]
struct Stored {
    arrival: Timestamp,
    null_sender: bool,
    recipients: Vec<Mailbox>,
    done: Vec<(u32, Option<Mailbox>, DoneStatus)>,
    asked: Asked,
    owed: BTreeMap<u32, Vec<Owed>>,
    complete: HashSet<u32>,
    told: HashSet<u32>,
    delay_told: bool,
}

impl Stored {
    fn new(arrival: Timestamp, null_sender: bool, recipients: Vec<Mailbox>, asked: Asked) -> Self {
        Self {
            arrival,
            null_sender,
            recipients,
            done: Vec::new(),
            asked,
            owed: BTreeMap::new(),
            complete: HashSet::new(),
            told: HashSet::new(),
            delay_told: false,
        }
    }
}

/// What a sender asked for.
#[derive(Clone, Debug, Default)]
struct Asked {
    /// For every recipient.
    notify: Option<Notify>,
    not_before: Option<Timestamp>,
    deadline: Option<(Timestamp, ByMode)>,
    priority: i8,
}

struct World {
    scheduler: Scheduler,
    now: Timestamp,
    stored: BTreeMap<QueueId, Stored>,
    gone: HashSet<QueueId>,
    /// Deliveries of an address; others go to `smtp(1)`.
    routes: HashMap<Mailbox, Vec<Delivery>>,
    asked: Vec<(u64, Mailbox)>,
    /// Jobs under way, with what was not reported yet.
    jobs: BTreeMap<u64, (Order, Vec<u32>)>,
    bounces: Vec<BounceOrder>,
    bounced: Vec<BounceOrder>,
    dropped: Vec<QueueId>,
    told: Vec<Told>,
    granted: [u32; 3],
    /// Deliveries that the agents really made: at least one for each recorded.
    made: Vec<(QueueId, Mailbox)>,
    last_id: u64,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            scheduler: Scheduler::new(LIMITS, 1),
            now: Timestamp(1_000_000),
            stored: BTreeMap::new(),
            gone: HashSet::new(),
            routes: HashMap::new(),
            asked: Vec::new(),
            jobs: BTreeMap::new(),
            bounces: Vec::new(),
            bounced: Vec::new(),
            dropped: Vec::new(),
            told: Vec::new(),
            granted: [0; 3],
            made: Vec::new(),
            last_id: 0,
        };
        world.scheduler.lookup_linked();
        world.grant(AgentKind::Remote, 5);
        world
    }

    fn grant(&mut self, agent: AgentKind, jobs: u32) {
        self.granted[agent as usize] = jobs;
        self.scheduler.agent_ready(agent, jobs);
    }

    fn arrive(&mut self, recipients: &[Mailbox], null_sender: bool) -> QueueId {
        self.arrive_asking(recipients, null_sender, Asked::default())
    }

    fn arrive_asking(&mut self, recipients: &[Mailbox], null_sender: bool, asked: Asked) -> QueueId {
        self.last_id += 1;
        let id = QueueId::from_u64(self.last_id);
        let (arrival, recipients) = (self.now, recipients.to_vec());
        let summary = Summary { priority: asked.priority, domains: DomainBits::of_all(&recipients) };
        let stored = Stored::new(arrival, null_sender, recipients, asked);
        let (place, not_before) = (Place { file: id, number: 0 }, stored.asked.not_before);
        self.stored.insert(id, stored);
        let known = match not_before.filter(|at| *at > self.now) {
            None => self.scheduler.arrive(id, place, summary),
            Some(until) => self.scheduler.recover(id, place, summary, 0, Standing::Scheduled(until)),
        };
        assert!(known);
        id
    }

    /// Does what the scheduler says until it says nothing more.
    fn turn(&mut self) {
        while let Some(action) = self.scheduler.next(self.now) {
            match action {
                Action::Load(id) => {
                    let loaded = self.load(id);
                    self.scheduler.loaded(id, loaded, self.now);
                }
                Action::Ask { question, recipient } => self.asked.push((question, recipient)),
                Action::Start(order) => self.start(order),
                Action::Record(id, _, log) => self.record(id, log),
                Action::Tell(told) => self.told.push(told),
                Action::Bounce(order) => self.bounces.push(order),
                Action::DropBounce(id, _) => self.dropped.push(id),
                Action::Finished(id, _) => {
                    assert!(self.gone.insert(id), "finished twice");
                    assert!(self.scheduler.place(id).is_none());
                }
            }
        }
        for agent in AgentKind::ALL {
            let running = self.jobs.values().filter(|(order, _)| order.agent == agent).count();
            assert_eq!(running, self.scheduler.running(agent) as usize);
        }
    }

    fn load(&self, id: QueueId) -> Loaded {
        let stored = &self.stored[&id];
        let recipients = (0u32..)
            .zip(&stored.recipients)
            .filter(|(n, _)| !stored.done.iter().any(|(r, address, _)| r == n && address.is_none()))
            .map(|(index, address)| {
                let done = stored.done.iter().filter(|(r, ..)| *r == index).filter_map(|(_, a, _)| a.clone());
                Unfinished {
                    done: done.collect(),
                    wishes: stored.asked.notify.into(),
                    owed: stored.owed.get(&index).cloned().unwrap_or_default(),
                    complete: stored.complete.contains(&index),
                    told: stored.told.contains(&index),
                    ..Unfinished::new(index, address.clone())
                }
            });
        let recipients = recipients.collect();
        let Stored { arrival, null_sender, delay_told, .. } = *stored;
        let Asked { not_before, deadline, .. } = stored.asked;
        Loaded { arrival, not_before, deadline, delay_told, null_sender, recipients }
    }

    fn start(&mut self, order: Order) {
        assert!(!order.targets.is_empty() && order.targets.len() <= 50);
        let same = self.jobs.values().filter(|(o, _)| o.destination == order.destination).count();
        let most = match order.destination {
            Destination::Local { .. } | Destination::Virtual { .. } => MAILBOX_JOBS,
            Destination::Smtp(_) | Destination::Lmtp(_) => JOBS_A_CONNECTION * LIMITS.connections,
        };
        assert!(same < most as usize, "destination over its limit");
        let running = self.jobs.values().filter(|(o, _)| o.agent == order.agent).count();
        assert!(running < self.granted[order.agent as usize] as usize, "agent over its grant");
        let asked = &self.stored[&order.id].asked;
        assert!(asked.not_before.is_none_or(|at| at <= self.now), "too early");
        let overdue = matches!(asked.deadline, Some((at, ByMode::Return)) if at <= self.now);
        assert!(!overdue, "too late");
        for (address, _) in &order.targets {
            let stored = &self.stored[&order.id];
            assert!(!stored.done.iter().any(|(_, done, _)| done.as_ref() == Some(address)), "done before");
            let twice = self.jobs.values().filter(|(o, _)| o.id == order.id);
            assert!(
                twice
                    .flat_map(|(o, open)| open.iter().map(|n| &o.targets[*n as usize].0))
                    .all(|a| a != address),
                "in two jobs at once"
            );
        }
        let open = (0..order.targets.len() as u32).collect();
        self.jobs.insert(order.job, (order, open));
    }

    fn record(&mut self, id: QueueId, log: Vec<LogEntry>) {
        assert!(!self.gone.contains(&id), "a record after the end");
        let stored = self.stored.get_mut(&id).unwrap();
        for entry in log {
            match entry {
                LogEntry::Done { recipient, address, status } => {
                    let same = |a: &Option<Mailbox>| *a == address || a.is_none();
                    assert!(
                        !stored.done.iter().any(|(r, a, _)| *r == recipient && same(a)),
                        "recorded twice"
                    );
                    stored.done.push((recipient, address, status));
                }
                LogEntry::Owed { recipient, address, action, relay, reply } => {
                    let owed = stored.owed.entry(recipient).or_default();
                    owed.push(Owed { address, action, relay, reply });
                    assert_eq!(owed.len(), 1, "owed twice");
                    assert!(!stored.told.contains(&recipient), "told already");
                }
                LogEntry::Complete { recipient } => assert!(stored.complete.insert(recipient)),
                LogEntry::Told { recipient } => {
                    stored.owed.remove(&recipient);
                    assert!(stored.told.insert(recipient));
                }
                LogEntry::DelaySent => {
                    assert!(!std::mem::replace(&mut stored.delay_told, true), "delay told twice");
                }
                _ => {}
            }
        }
    }

    fn answer_all(&mut self) {
        for (question, address) in std::mem::take(&mut self.asked) {
            let deliveries =
                self.routes.get(&address).cloned().unwrap_or_else(|| vec![to(&address, smtp(1))]);
            assert!(self.scheduler.answer(question, Ok(deliveries), self.now));
        }
        self.turn();
    }

    fn finish(&mut self, job: u64, outcome: impl Fn(u32) -> Outcome) {
        let (order, open) = self.jobs.remove(&job).unwrap();
        for target in open {
            let outcome = outcome(target);
            if matches!(outcome, Outcome::Delivered(_)) {
                self.made.push((order.id, order.targets[target as usize].0.clone()));
            }
            assert!(self.scheduler.result(job, target, outcome.clone(), self.now));
            assert!(!self.scheduler.result(job, target, outcome, self.now), "a result counts once");
        }
        assert!(self.scheduler.done(job, self.now));
        assert!(!self.scheduler.done(job, self.now));
        self.turn();
    }

    fn finish_all(&mut self, outcome: &dyn Fn(u32) -> Outcome) {
        for job in self.jobs.keys().copied().collect::<Vec<_>>() {
            self.finish(job, outcome);
        }
    }

    fn write_bounces(&mut self, written: bool) {
        for order in std::mem::take(&mut self.bounces) {
            self.scheduler.bounced(order.id, &order.key, written, self.now);
            if written {
                self.bounced.push(order);
            }
        }
        self.turn();
    }

    fn pass(&mut self, milliseconds: u64) {
        self.now.0 += milliseconds;
        self.turn();
    }

    fn lose(&mut self, agent: AgentKind) {
        self.jobs.retain(|_, (order, _)| order.agent != agent);
        self.granted[agent as usize] = 0;
        self.scheduler.agent_lost(agent, self.now);
        self.turn();
    }
}

fn to(address: &Mailbox, destination: Destination) -> Delivery {
    Delivery { recipient: address.clone(), reverse_path: None, action: Route::Deliver(destination) }
}

fn sent(_: u32) -> Outcome {
    Outcome::Delivered(report(250, false))
}

fn deferred(_: u32) -> Outcome {
    Outcome::Deferred(report(450, false))
}

fn down(_: u32) -> Outcome {
    Outcome::Deferred(report(421, true))
}

fn failed(_: u32) -> Outcome {
    Outcome::Failed(report(550, false))
}

#[test]
fn recipients_of_one_destination_travel_together() {
    let mut world = World::new();
    let many: Vec<Mailbox> = (0..120).map(|n| mailbox(&format!("u{n}@x.test"))).collect();
    let id = world.arrive(&many, false);
    world.turn();
    world.answer_all();
    let sizes: Vec<usize> = world.jobs.values().map(|(order, _)| order.targets.len()).collect();
    assert_eq!(sizes, [50, 50], "the third waits for the limit of the destination");
    world.finish_all(&sent);
    world.finish_all(&sent);
    assert!(world.gone.contains(&id));
    assert_eq!(world.stored[&id].done.len(), 120);
    assert!(world.stored[&id].done.iter().all(|(_, address, _)| address.is_none()));
}

#[test]
fn an_alias_is_done_when_all_its_deliveries_are() {
    let mut world = World::new();
    let (list, a, b) = (mailbox("list@x.test"), mailbox("a@x.test"), mailbox("b@y.test"));
    let owner = mailbox("owner-list@x.test");
    let mut deliveries = vec![to(&a, smtp(1)), to(&b, smtp(2)), to(&b, smtp(3))];
    deliveries[1].reverse_path = Some(owner.clone());
    world.routes.insert(list.clone(), deliveries);
    let id = world.arrive(std::slice::from_ref(&list), false);
    world.turn();
    world.answer_all();
    let jobs: Vec<_> = world.jobs.values().map(|(o, _)| (o.destination.clone(), o.owner.clone())).collect();
    assert_eq!(jobs, [(smtp(1), None), (smtp(2), Some(owner.clone()))]);
    assert!(world.jobs.values().all(|(o, _)| o.targets[0].1 == Some(list.clone())));
    world.finish(1, sent);
    world.finish(2, deferred);
    assert_eq!(world.stored[&id].done, [(0, Some(a), DoneStatus::Delivered)]);
    world.pass(1200);
    world.answer_all();
    // Only the one left, and its failure goes to the owner.
    assert_eq!(world.jobs.len(), 1);
    world.finish(3, failed);
    assert_eq!(world.bounces[0].key.owner, Some(owner));
    assert!(!world.gone.contains(&id), "not before the bounce is durable");
    world.write_bounces(true);
    assert!(world.gone.contains(&id));
    let last = world.stored[&id].done.last().cloned();
    assert_eq!(last, Some((0, None, DoneStatus::Failed)));
}

#[test]
fn a_bounce_that_cannot_be_written_is_made_again() {
    let mut world = World::new();
    let id = world.arrive(&[mailbox("a@x.test"), mailbox("b@x.test")], false);
    world.turn();
    world.answer_all();
    world.finish(1, |n| if n == 0 { failed(n) } else { sent(n) });
    world.write_bounces(false);
    assert_eq!(world.stored[&id].done, [(1, None, DoneStatus::Delivered)]);
    world.pass(1200);
    world.answer_all();
    world.finish(2, failed);
    assert_eq!(world.bounces[0].failures.len(), 1);
    world.write_bounces(true);
    assert!(world.gone.contains(&id));
}

#[test]
fn a_bounce_is_never_bounced() {
    let mut world = World::new();
    let id = world.arrive(&[mailbox("a@x.test")], true);
    world.turn();
    world.answer_all();
    world.finish(1, failed);
    assert_eq!((world.bounces.len(), world.dropped.clone()), (0, vec![id]));
    assert!(world.gone.contains(&id));
}

#[test]
fn delays_grow_and_the_lifetime_ends() {
    let mut world = World::new();
    let id = world.arrive(&[mailbox("a@x.test")], false);
    world.turn();
    let mut delays = Vec::new();
    while world.bounces.is_empty() {
        world.answer_all();
        world.finish_all(&deferred);
        if let Some(until) = world.scheduler.deadline() {
            delays.push(until.0 - world.now.0);
            world.pass(until.0 - world.now.0);
        }
    }
    for (delay, base) in delays.iter().zip([1000, 2000, 4000, 8000, 8000]) {
        assert!((base - base / 8..=base + base / 8).contains(delay), "{delays:?}");
    }
    assert_eq!(world.now.0 - world.stored[&id].arrival.0, LIMITS.lifetime);
    assert_eq!(world.bounces[0].failures[0].expired, Some(Late::Lifetime));
    assert_eq!(world.told.last().map(|t| t.status), Some(Status::Bounced));
    world.write_bounces(true);
    assert!(world.gone.contains(&id));
}

#[test]
fn a_destination_that_is_down_is_not_tried_by_every_message() {
    let mut world = World::new();
    for n in 0..30 {
        world.arrive(&[mailbox(&format!("u{n}@x.test"))], false);
    }
    world.turn();
    world.answer_all();
    assert_eq!(world.jobs.len(), 2);
    world.finish(1, down);
    assert_eq!(world.told.len(), 28, "those not tried are told deferred");
    world.finish(2, down);
    assert_eq!(world.scheduler.sizes(), (30, 30, 0, 0));
    // More for it are not tried either.
    world.arrive(&[mailbox("late@x.test")], false);
    world.turn();
    world.answer_all();
    assert!(world.jobs.is_empty());
    // When the time comes one job finds out; with its success all go.
    world.pass(1400);
    world.answer_all();
    assert_eq!(world.jobs.len(), 1);
    while world.gone.len() < 31 {
        world.finish_all(&sent);
        if world.jobs.is_empty() {
            world.pass(500);
            world.answer_all();
        }
    }
}

#[test]
fn a_dead_agent_s_jobs_are_tried_again_but_not_for_ever() {
    let mut world = World::new();
    let id = world.arrive(&[mailbox("a@x.test"), mailbox("b@x.test")], false);
    world.turn();
    world.answer_all();
    assert!(world.scheduler.result(1, 0, sent(0), world.now));
    for job in 1..=3 {
        assert_eq!(world.jobs.keys().copied().collect::<Vec<_>>(), [job]);
        world.lose(AgentKind::Remote);
        assert!(!world.scheduler.result(job, 1, sent(1), world.now), "nothing more from a dead agent");
        world.grant(AgentKind::Remote, 5);
        world.turn();
    }
    assert_eq!(world.scheduler.standing(id).map(|s| s != Standing::Active), Some(true));
    assert_eq!(world.stored[&id].done, [(0, None, DoneStatus::Delivered)]);
}

#[test]
fn lookup_is_asked_again_when_it_is_back() {
    let mut world = World::new();
    let id = world.arrive(&[mailbox("a@x.test")], false);
    world.turn();
    let old = world.asked.pop().unwrap();
    world.scheduler.lookup_lost();
    world.turn();
    assert!(world.asked.is_empty());
    assert!(!world.scheduler.answer(old.0, Ok(vec![to(&old.1, smtp(1))]), world.now));
    world.scheduler.lookup_linked();
    world.turn();
    world.answer_all();
    world.finish(1, sent);
    assert!(world.gone.contains(&id));
}

#[test]
fn routes_discard_and_refuse() {
    let mut world = World::new();
    let (a, b, c) = (mailbox("a@x.test"), mailbox("b@x.test"), mailbox("c@x.test"));
    let route =
        |address: &Mailbox, action| vec![Delivery { recipient: address.clone(), reverse_path: None, action }];
    world.routes.insert(a.clone(), route(&a, Route::Discard));
    world.routes.insert(b.clone(), route(&b, Route::Fail(Reply::new(550, None, "no"))));
    world.routes.insert(c.clone(), route(&c, Route::Fail(Reply::new(450, None, "later"))));
    let id = world.arrive(&[a, b, c], false);
    world.turn();
    world.answer_all();
    assert_eq!(
        world.told.iter().map(|t| t.status).collect::<Vec<_>>(),
        [Status::Sent, Status::Bounced, Status::Deferred]
    );
    world.write_bounces(true);
    assert_eq!(world.bounced[0].failures.len(), 1);
    assert_eq!(world.stored[&id].done.len(), 2);
    assert!(matches!(world.scheduler.standing(id), Some(Standing::Deferred(_))));
}

#[test]
fn operators_hold_release_flush_and_remove() {
    let mut world = World::new();
    let ids: Vec<QueueId> =
        (0..4).map(|n| world.arrive(&[mailbox(&format!("u{n}@x.test"))], false)).collect();
    world.turn();
    world.answer_all();
    // 0 and 1 run, 2 and 3 wait.
    let now = world.now;
    ids[..3].iter().for_each(|id| assert!(world.scheduler.hold(*id, now)));
    assert!(world.scheduler.remove(ids[3], now));
    world.turn();
    assert_eq!(world.scheduler.standing(ids[2]), Some(Standing::Held));
    assert!(world.gone.contains(&ids[3]));
    world.finish(1, deferred);
    world.finish(2, sent);
    assert_eq!(world.scheduler.standing(ids[0]), Some(Standing::Held));
    assert!(world.gone.contains(&ids[1]), "what ran has ended");
    world.pass(100_000);
    assert!(world.asked.is_empty());
    assert!(world.scheduler.release(ids[0]) && !world.scheduler.release(ids[0]));
    world.turn();
    world.answer_all();
    world.finish_all(&deferred);
    world.write_bounces(true);
    assert!(world.gone.contains(&ids[0]), "its lifetime was over");
    assert!(world.scheduler.remove(ids[2], now));
    world.turn();
    assert_eq!(world.scheduler.sizes(), (0, 0, 0, 0));
}

#[test]
fn new_mail_goes_before_old() {
    let mut world = World::new();
    for n in 0..100u16 {
        world.last_id += 1;
        let id = QueueId::from_u64(world.last_id);
        let address = mailbox(&format!("old{n}@x.test"));
        world.routes.insert(address.clone(), vec![to(&address, smtp(100 + n))]);
        let (arrival, recipients) = (world.now, vec![address]);
        world.stored.insert(id, Stored::new(arrival, false, recipients, Asked::default()));
        let waits = Standing::Deferred(world.now);
        assert!(world.scheduler.recover(id, Place { file: id, number: 0 }, Summary::default(), 1, waits));
    }
    world.turn();
    world.answer_all();
    assert_eq!(world.jobs.len(), 4, "the retries leave a part of the grant to new mail");
    let id = world.arrive(&[mailbox("new@x.test")], false);
    world.turn();
    world.answer_all();
    assert!(world.jobs.values().any(|(order, _)| order.id == id));
}

#[test]
fn destinations_take_turns() {
    let mut world = World::new();
    world.grant(AgentKind::Remote, 1);
    for n in 0..40 {
        let address = mailbox(&format!("u{n}@x.test"));
        // Thirty for one destination come first, then ten for another.
        world.routes.insert(address.clone(), vec![to(&address, smtp(if n < 30 { 1 } else { 2 }))]);
        world.arrive(&[address], false);
    }
    world.turn();
    world.answer_all();
    let mut first_twenty = Vec::new();
    for _ in 0..20 {
        let (&job, (order, _)) = world.jobs.first_key_value().unwrap();
        first_twenty.push(order.destination.clone());
        world.finish(job, sent);
    }
    assert_eq!(first_twenty.iter().filter(|d| **d == smtp(2)).count(), 10);
}

#[test]
fn stopping_begins_nothing() {
    let mut world = World::new();
    let ids: Vec<_> = (0..3).map(|n| world.arrive(&[mailbox(&format!("u{n}@x.test"))], false)).collect();
    world.turn();
    world.answer_all();
    world.scheduler.stop();
    assert!(!world.scheduler.is_quiet());
    world.finish_all(&sent);
    assert!(world.jobs.is_empty() && world.scheduler.is_quiet());
    assert!(world.gone.contains(&ids[0]) && !world.gone.contains(&ids[2]));
}

#[test]
fn a_waiting_message_is_small() {
    // And about half as much again in the trees.
    let entry = size_of::<(QueueId, message::Entry)>() + size_of::<(Timestamp, QueueId)>();
    assert!(entry <= 80, "{entry}");
}
