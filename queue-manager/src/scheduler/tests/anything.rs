//! Lookup, agents, operators and the clock do anything at any time: nothing is lost, and it comes to an end.

use super::*;

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
