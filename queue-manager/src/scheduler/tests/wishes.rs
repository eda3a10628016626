//! What senders ask for: when, how urgently, and what they want to hear.

use super::*;

fn notify(success: bool, failure: bool, delay: bool) -> Option<Notify> {
    Some(Notify { success, failure, delay })
}

fn asking(notify: Option<Notify>) -> Asked {
    Asked { notify, ..Asked::default() }
}

/// One message from arrival to its job.
fn one(world: &mut World, asked: Asked) -> QueueId {
    let id = world.arrive_asking(&[mailbox("a@x.test")], false, asked);
    world.turn();
    world.answer_all();
    id
}

fn relayed(_: u32) -> Outcome {
    Outcome::Relayed(report(250, false))
}

fn passed(_: u32) -> Outcome {
    Outcome::Passed(report(250, false))
}

#[test]
fn a_message_waits_for_its_sender_s_time_and_lives_from_then_on() {
    let mut world = World::new();
    // Far beyond the longest delay of a retry.
    let until = Timestamp(world.now.0 + 500_000);
    let id = one(&mut world, Asked { not_before: Some(until), ..Asked::default() });
    assert_eq!(world.scheduler.standing(id), Some(Standing::Scheduled(until)));
    assert_eq!(world.scheduler.sizes(), (1, 0, 1, 0));
    assert_eq!(world.scheduler.deadline(), Some(until));
    world.pass(400_000);
    assert!(!world.scheduler.flush(Some(id)), "its sender's time stays");
    world.scheduler.flush(None);
    assert!(world.asked.is_empty());
    world.pass(100_000);
    world.answer_all();
    assert_eq!(world.jobs.len(), 1);
    world.finish_all(&deferred);
    assert!(world.bounces.is_empty(), "its lifetime has only begun");
    world.pass(60_000);
    world.answer_all();
    world.finish_all(&deferred);
    assert_eq!(world.bounces.len(), 1);
}

#[test]
fn released_too_early_it_waits_on() {
    let mut world = World::new();
    let until = Timestamp(world.now.0 + 50_000);
    let id = one(&mut world, Asked { not_before: Some(until), ..Asked::default() });
    assert!(world.scheduler.hold(id, world.now));
    assert_eq!(world.scheduler.sizes(), (1, 0, 0, 1));
    assert!(world.scheduler.release(id));
    world.turn();
    assert_eq!(world.scheduler.standing(id), Some(Standing::Scheduled(until)));
    assert!(world.scheduler.remove(id, world.now));
    world.turn();
    assert!(world.gone.contains(&id));
    assert_eq!(world.scheduler.sizes(), (0, 0, 0, 0));
}

#[test]
fn late_by_the_sender_s_deadline_it_is_returned() {
    let mut world = World::new();
    let at = Timestamp(world.now.0 + 1500);
    let id = one(&mut world, Asked { deadline: Some((at, ByMode::Return)), ..Asked::default() });
    world.finish_all(&deferred);
    assert!(world.bounces.is_empty());
    world.pass(500);
    assert!(world.scheduler.deadline().is_some_and(|wakes| wakes <= at), "it wakes for its deadline");
    world.pass(1000);
    assert_eq!(world.bounces.len(), 1);
    assert_eq!(world.bounces[0].failures[0].expired, Some(Late::Deadline));
    world.write_bounces(true);
    assert!(world.gone.contains(&id));
}

#[test]
fn late_by_a_softer_deadline_the_sender_is_told_once() {
    let mut world = World::new();
    let at = Timestamp(world.now.0 + 3000);
    one(&mut world, Asked { deadline: Some((at, ByMode::Notify)), ..Asked::default() });
    for _ in 0..10 {
        world.finish_all(&deferred);
        world.write_bounces(true);
        world.pass(1500);
        world.answer_all();
    }
    let kinds: Vec<_> = world.bounced.iter().map(|order| order.key.kind).collect();
    assert_eq!(kinds, [ReportKind::Delay]);
    assert_eq!(world.bounced[0].failures.len(), 1);
    world.pass(9000);
    world.answer_all();
    world.finish_all(&sent);
    assert_eq!(world.gone.len(), 1);
}

#[test]
fn delay_is_told_to_those_who_asked_and_once() {
    for (wish, reports) in [(None, 0), (notify(false, true, false), 0), (notify(false, true, true), 1)] {
        let mut world = World::new();
        one(&mut world, asking(wish));
        for _ in 0..12 {
            world.finish_all(&deferred);
            world.write_bounces(true);
            world.pass(2000);
            world.answer_all();
        }
        let delays = world.bounced.iter().filter(|order| order.key.kind == ReportKind::Delay).count();
        assert_eq!(delays, reports, "{wish:?}");
    }
}

#[test]
fn who_said_nothing_is_told_of_delay_where_that_is_configured() {
    let mut world = World::new();
    world.scheduler.set_limits(Limits { delay_warning_unasked: Some(5000), ..LIMITS });
    one(&mut world, Asked::default());
    for _ in 0..6 {
        world.finish_all(&deferred);
        world.write_bounces(true);
        world.pass(2000);
        world.answer_all();
    }
    assert_eq!(world.bounced.len(), 1);
}

#[test]
fn success_is_told_before_the_message_goes() {
    for (outcome, action) in [(sent as fn(u32) -> Outcome, Success::Delivered), (relayed, Success::Relayed)] {
        let mut world = World::new();
        let id = one(&mut world, asking(notify(true, true, false)));
        world.finish_all(&outcome);
        assert!(world.stored[&id].complete.contains(&0), "nobody is asked again where it goes");
        assert!(world.stored[&id].done.is_empty() && !world.gone.contains(&id));
        assert_eq!(world.bounces[0].owed[0].2.action, action);
        // It cannot be written: later, and without another delivery.
        world.write_bounces(false);
        assert!(world.bounces.is_empty() && !world.gone.contains(&id));
        world.pass(1500);
        assert!(world.asked.is_empty() && world.jobs.is_empty());
        assert_eq!(world.bounces.len(), 1);
        world.write_bounces(true);
        assert!(world.gone.contains(&id));
        assert_eq!(world.stored[&id].done, [(0, None, DoneStatus::Delivered)]);
    }
    // The next host tells it.
    let mut world = World::new();
    let id = one(&mut world, asking(notify(true, true, false)));
    world.finish_all(&passed);
    assert!(world.bounces.is_empty() && world.gone.contains(&id));
}

#[test]
fn of_several_behind_an_alias_the_sender_hears_once() {
    let mut world = World::new();
    let (list, a, b) = (mailbox("list@x.test"), mailbox("a@x.test"), mailbox("b@y.test"));
    world.routes.insert(list.clone(), vec![to(&a, smtp(1)), to(&b, smtp(2))]);
    let id = world.arrive_asking(&[list], false, asking(notify(true, true, true)));
    world.turn();
    world.answer_all();
    let passing = world.jobs.values().map(|(order, _)| order.recipients[0].1);
    assert!(passing.into_iter().all(|passing| passing == Passing::NoSuccess));
    world.finish(1, sent);
    world.finish(2, deferred);
    assert_eq!(world.bounces.len(), 1);
    assert_eq!(world.bounces[0].owed[0].2.action, Success::Expanded);
    world.write_bounces(true);
    assert!(world.stored[&id].told.contains(&0));
    world.pass(1500);
    world.answer_all();
    world.finish_all(&sent);
    assert!(world.bounces.is_empty() && world.gone.contains(&id));
}

#[test]
fn a_list_takes_over() {
    let mut world = World::new();
    let (list, a) = (mailbox("list@x.test"), mailbox("a@x.test"));
    let mut delivery = to(&a, smtp(1));
    delivery.reverse_path = Some(mailbox("owner-list@x.test"));
    world.routes.insert(list.clone(), vec![delivery]);
    world.arrive_asking(&[list], false, asking(notify(true, false, false)));
    world.turn();
    world.answer_all();
    assert_eq!(world.jobs.values().next().unwrap().0.recipients[0].1, Passing::Nothing);
    world.finish_all(&failed);
    let kinds: Vec<_> =
        world.bounces.iter().map(|order| (order.key.kind, order.key.owner.is_some())).collect();
    assert_eq!(kinds, [(ReportKind::Failure, true), (ReportKind::Success, false)]);
}

#[test]
fn never_is_never() {
    let mut world = World::new();
    let id = one(&mut world, asking(notify(false, false, false)));
    world.finish_all(&failed);
    assert!(world.bounces.is_empty());
    assert_eq!(world.dropped, [id]);
    assert_eq!(world.stored[&id].done, [(0, None, DoneStatus::Failed)]);
    assert!(world.gone.contains(&id));
}

#[test]
fn urgent_mail_goes_first_and_the_rest_gets_on() {
    let mut world = World::new();
    world.grant(AgentKind::Remote, 1);
    let priorities = [0, 0, 0, 0, 0, 0, 9, 9, 9, 9, 9, 9];
    let ids: Vec<QueueId> = priorities
        .iter()
        .map(|priority| {
            let asked = Asked { priority: *priority, ..Asked::default() };
            world.arrive_asking(&[mailbox("a@x.test")], false, asked)
        })
        .collect();
    world.turn();
    world.answer_all();
    let mut order = Vec::new();
    while let Some((&job, (what, _))) = world.jobs.first_key_value() {
        order.push(priorities[ids.iter().position(|id| *id == what.id).unwrap()]);
        world.finish(job, sent);
    }
    assert_eq!(order.len(), 12);
    let urgent = order[..8].iter().filter(|priority| **priority == 9).count();
    assert_eq!(urgent, 6, "{order:?}");
    assert_eq!(order[..4].iter().filter(|priority| **priority == 0).count(), 1, "{order:?}");
}

#[test]
fn mail_for_a_domain_is_tried_when_it_is_asked_for() {
    let mut world = World::new();
    let other = mailbox("b@other.example");
    world.routes.insert(other.clone(), vec![to(&other, smtp(2))]);
    world.arrive(&[mailbox("a@x.test")], false);
    world.arrive(&[other], false);
    world.turn();
    world.answer_all();
    world.finish_all(&down);
    assert_eq!(world.scheduler.sizes(), (2, 2, 0, 0));
    assert_eq!(world.scheduler.flush_destination(&Domain::parse("X.Test").unwrap()), 1);
    world.turn();
    world.answer_all();
    let tried: Vec<_> = world.jobs.values().map(|(order, _)| order.destination.clone()).collect();
    assert_eq!(tried, [smtp(1)], "though it was down, and no other");
    world.finish_all(&sent);
    assert_eq!(world.gone.len(), 1);
    assert_eq!(world.scheduler.flush_destination(&Domain::parse("x.test").unwrap()), 0);
}
