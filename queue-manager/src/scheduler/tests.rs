//! The scheduler against a small world: lookup, agents and a clock that do anything at any time.

use std::collections::{BTreeMap, HashMap, HashSet};

use postern_ipc::queue_agent::{LmtpServer, MailboxKind, Nexthop, Outcome};
use postern_ipc::queue_lookup::{Action as Route, Delivery};
use postern_smtp::parameters::{ByMode, Notify};
use postern_spool::{DoneStatus, Success};
use proptest::prelude::*;

use super::*;

mod corners;
mod wishes;

const LIMITS: Limits = Limits {
    retry_first: 1000,
    retry_most: 8000,
    lifetime: 60_000,
    bounce_lifetime: 20_000,
    connections: 2,
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
        assert!(same < LIMITS.connections as usize, "destination over its limit");
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

#[derive(Clone, Debug)]
enum Do {
    Arrive(Vec<u8>, bool, Wanted),
    Answer(bool),
    Finish(u8, u8),
    Partial(u8, u8),
    Bounces(bool),
    Pass(u16),
    LoseAgent(u8),
    GrantAgent(u8, u8),
    LoseLookup,
    LinkLookup,
    Hold(u8),
    Release(u8),
    Flush(Option<u8>),
    FlushDomain,
    Remove(u8),
}

/// What a sender asks for: NOTIFY in three bits, seconds to wait, seconds until the deadline and its mode.
#[derive(Clone, Debug)]
struct Wanted(Option<u8>, Option<u8>, Option<(u8, bool)>, i8);

fn any_wanted() -> impl Strategy<Value = Wanted> {
    let deadline = (0u8..40, any::<bool>());
    let parts = (
        proptest::option::of(0u8..8),
        proptest::option::weighted(0.2, 0u8..20),
        proptest::option::weighted(0.3, deadline),
        -9i8..=9,
    );
    parts.prop_map(|(notify, hold, deadline, priority)| Wanted(notify, hold, deadline, priority))
}

fn any_do() -> impl Strategy<Value = Do> {
    prop_oneof![
        4 => (proptest::collection::vec(0u8..12, 1..6), proptest::bool::weighted(0.2), any_wanted()).prop_map(|(r, n, w)| Do::Arrive(r, n, w)),
        6 => any::<bool>().prop_map(Do::Answer),
        6 => (any::<u8>(), 0u8..4).prop_map(|(j, o)| Do::Finish(j, o)),
        2 => (any::<u8>(), 0u8..4).prop_map(|(j, o)| Do::Partial(j, o)),
        3 => any::<bool>().prop_map(Do::Bounces),
        4 => (0u16..9000).prop_map(Do::Pass),
        1 => (0u8..3).prop_map(Do::LoseAgent),
        3 => (0u8..3, 0u8..6).prop_map(|(a, n)| Do::GrantAgent(a, n)),
        1 => Just(Do::LoseLookup),
        2 => Just(Do::LinkLookup),
        1 => any::<u8>().prop_map(Do::Hold),
        2 => any::<u8>().prop_map(Do::Release),
        1 => proptest::option::of(any::<u8>()).prop_map(Do::Flush),
        1 => Just(Do::FlushDomain),
        1 => any::<u8>().prop_map(Do::Remove),
    ]
}

/// Addresses of a world with every kind of route.
fn address(world: &mut World, n: u8) -> Mailbox {
    let address = mailbox(&format!("u{n}@x.test"));
    let other = mailbox(&format!("final{n}@y.test"));
    let kind = MailboxKind::Maildir(format!("m{n}"));
    let deliveries = match n {
        0..3 => vec![to(&address, smtp(1))],
        3..5 => vec![to(&address, smtp(2))],
        5 => vec![to(&address, Destination::Lmtp(LmtpServer::Unix("/l".into())))],
        6 | 7 => vec![to(&address, Destination::Virtual { mailbox: kind })],
        8 => vec![to(&address, smtp(1)), to(&other, smtp(2)), to(&mailbox("third@y.test"), smtp(3))],
        9 => {
            let mut to = to(&other, smtp(2));
            to.reverse_path = Some(mailbox("owner@x.test"));
            vec![to]
        }
        10 => vec![Delivery { recipient: address.clone(), reverse_path: None, action: Route::Discard }],
        _ => {
            let action = Route::Fail(Reply::new(550, None, "no"));
            vec![Delivery { recipient: address.clone(), reverse_path: None, action }]
        }
    };
    world.routes.insert(address.clone(), deliveries);
    address
}

fn outcome(kind: u8) -> fn(u32) -> Outcome {
    [sent, deferred, down, failed][usize::from(kind % 4)]
}

fn apply(world: &mut World, what: Do, removed: &mut HashSet<QueueId>) {
    let pick = |world: &World, n: u8| {
        let ids: Vec<QueueId> = world.stored.keys().copied().filter(|id| !world.gone.contains(id)).collect();
        (!ids.is_empty()).then(|| ids[usize::from(n) % ids.len()])
    };
    let agent = |n: u8| AgentKind::ALL[usize::from(n)];
    let now = world.now;
    match what {
        Do::Arrive(recipients, null_sender, Wanted(notify, hold, deadline, priority)) => {
            // The envelope has no recipient twice: smtpd sees to that.
            let unique: std::collections::BTreeSet<u8> = recipients.into_iter().collect();
            let recipients: Vec<Mailbox> = unique.into_iter().map(|n| address(world, n)).collect();
            let later = |seconds: u8| Timestamp(now.0 + 1000 * u64::from(seconds));
            let mode = |returned| if returned { ByMode::Return } else { ByMode::Notify };
            let asked = Asked {
                notify: notify.map(|bits| Notify {
                    success: bits & 1 != 0,
                    failure: bits & 2 != 0,
                    delay: bits & 4 != 0,
                }),
                not_before: hold.map(later),
                deadline: deadline.map(|(seconds, returned)| (later(seconds), mode(returned))),
                priority,
            };
            world.arrive_asking(&recipients, null_sender, asked);
        }
        Do::Answer(true) => world.answer_all(),
        Do::Answer(false) => {
            for (question, _) in std::mem::take(&mut world.asked) {
                world.scheduler.answer(question, Err("no table".into()), now);
            }
        }
        Do::Finish(n, kind) => {
            let jobs: Vec<u64> = world.jobs.keys().copied().collect();
            if !jobs.is_empty() {
                world.finish(jobs[usize::from(n) % jobs.len()], outcome(kind));
            }
        }
        Do::Partial(n, kind) => {
            let jobs: Vec<u64> = world.jobs.keys().copied().collect();
            if let Some(job) = jobs.get(usize::from(n) % jobs.len().max(1)) {
                let (order, open) = world.jobs.get_mut(job).unwrap();
                if let Some(target) = open.pop() {
                    if kind % 4 == 0 {
                        world.made.push((order.id, order.targets[target as usize].0.clone()));
                    }
                    assert!(world.scheduler.result(*job, target, outcome(kind)(target), now));
                }
            }
        }
        Do::Bounces(written) => world.write_bounces(written),
        Do::Pass(milliseconds) => world.pass(milliseconds.into()),
        Do::LoseAgent(n) => world.lose(agent(n)),
        Do::GrantAgent(n, jobs) => {
            // A program says so once, at its start.
            if world.granted[usize::from(n)] == 0 && world.scheduler.running(agent(n)) == 0 {
                world.grant(agent(n), jobs.into());
            }
        }
        Do::LoseLookup => {
            world.asked.clear();
            world.scheduler.lookup_lost();
        }
        Do::LinkLookup => world.scheduler.lookup_linked(),
        Do::Hold(n) => drop(pick(world, n).map(|id| world.scheduler.hold(id, now))),
        Do::Release(n) => drop(pick(world, n).map(|id| world.scheduler.release(id))),
        Do::Flush(n) => drop(world.scheduler.flush(n.and_then(|n| pick(world, n)))),
        Do::FlushDomain => {
            world.scheduler.flush_destination(&Domain::parse("x.test").unwrap());
        }
        Do::Remove(n) => {
            if let Some(id) = pick(world, n) {
                removed.insert(id);
                world.scheduler.remove(id, now);
            }
        }
    }
    world.turn();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn nobody_is_lost_or_told_twice(events in proptest::collection::vec(any_do(), 1..120)) {
        let mut world = World::new();
        let mut removed = HashSet::new();
        for event in events {
            apply(&mut world, event, &mut removed);
        }
        // The world becomes kind: everything must end, within the lifetime.
        world.scheduler.lookup_linked();
        for id in world.stored.keys() {
            world.scheduler.release(*id);
        }
        for agent in AgentKind::ALL {
            if world.granted[agent as usize] == 0 {
                world.grant(agent, 3);
            }
        }
        for _ in 0..400 {
            world.turn();
            world.answer_all();
            world.finish_all(&sent);
            world.write_bounces(true);
            world.pass(1000);
        }
        prop_assert_eq!(world.scheduler.sizes(), (0, 0, 0, 0));
        prop_assert!(world.scheduler.is_quiet());
        prop_assert!(world.jobs.is_empty());
        for (id, stored) in &world.stored {
            prop_assert!(world.gone.contains(id), "{} is lost", id);
            if removed.contains(id) {
                continue;
            }
            for n in 0..stored.recipients.len() as u32 {
                let whole: Vec<_> = stored.done.iter().filter(|(r, a, _)| *r == n && a.is_none()).collect();
                prop_assert_eq!(whole.len(), 1, "recipient {} of {}: {:?}", n, id, &stored.done);
            }
            // What is recorded as delivered was delivered, or discarded by the route.
            for (r, address, status) in &stored.done {
                let envelope = &stored.recipients[*r as usize];
                if address.is_none() && world.routes[envelope].len() > 1 {
                    continue; // The sum of several.
                }
                let route = world.routes[envelope].first().map(|d| &d.action);
                let address = address.as_ref().unwrap_or(envelope);
                let plain = world.routes[envelope].iter().any(|d| &d.recipient == address);
                if *status == DoneStatus::Delivered && plain && route != Some(&Route::Discard) {
                    prop_assert!(world.made.contains(&(*id, address.clone())), "{} {}", id, address);
                }
                // A failure was reported to somebody, unless nobody is to be told.
                let notify = stored.asked.notify;
                let unheard = notify.is_some_and(|notify| !notify.failure);
                let told = |kind: ReportKind| world.bounced.iter().filter(move |b| b.id == *id && b.key.kind == kind);
                if *status == DoneStatus::Failed && plain && !stored.null_sender && !unheard {
                    let told = told(ReportKind::Failure);
                    let told = told.flat_map(|b| &b.failures).filter(|f| &f.address == address).count();
                    prop_assert!(told >= 1, "nobody was told of {} {}", id, address);
                }
                if unheard {
                    prop_assert!(told(ReportKind::Failure).all(|b| b.key.owner.is_some()));
                }
                // Success is told once, to whom asked for it.
                let successes = told(ReportKind::Success).flat_map(|b| &b.owed).filter(|(n, ..)| n == r).count();
                let wanted = notify.is_some_and(|notify| notify.success) && !stored.null_sender;
                prop_assert!(successes <= usize::from(wanted), "{} reports for {} of {}", successes, r, id);
                if wanted && *status == DoneStatus::Delivered && address == envelope {
                    prop_assert_eq!(successes, 1, "nobody was told that {} has {}", address, id);
                }
                if notify.is_some_and(|notify| !notify.delay) || stored.null_sender {
                    prop_assert_eq!(told(ReportKind::Delay).count(), 0);
                }
            }
        }
    }
}
