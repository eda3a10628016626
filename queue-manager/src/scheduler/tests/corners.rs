//! Corners that events at random do not reach.

use super::*;

#[test]
fn recipients_that_lead_to_one_mailbox_get_one_copy() {
    let mut world = World::new();
    let (a, b, c) = (mailbox("a@x.test"), mailbox("abuse@x.test"), mailbox("A@x.test"));
    let here = || Destination::Virtual { mailbox: MailboxKind::Maildir("x.test/a".into()) };
    world.grant(AgentKind::Local, 5);
    for (envelope, address) in [(&a, &a), (&b, &a), (&c, &c)] {
        world.routes.insert(envelope.clone(), vec![to(address, here())]);
    }
    let id = world.arrive(&[a.clone(), b.clone(), c], false);
    world.turn();
    world.answer_all();
    assert_eq!(world.jobs.values().map(|(order, _)| order.targets.len()).collect::<Vec<_>>(), [1]);
    world.finish(1, deferred);
    assert_eq!(world.told.len(), 2, "the agent tells of its target alone");
    assert_eq!(world.told[0].original, Some(b));
    assert_eq!(world.scheduler.counts().deferred, 3);
    world.pass(1200);
    world.answer_all();
    world.lose(AgentKind::Local);
    world.grant(AgentKind::Local, 5);
    world.turn();
    world.finish(3, sent);
    assert!(world.gone.contains(&id));
    let wholes = world.stored[&id].done.iter().filter(|(_, address, _)| address.is_none());
    assert_eq!(wholes.map(|(r, ..)| *r).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(world.made.len(), 1);
}

#[test]
fn of_twins_that_fail_each_is_reported() {
    let mut world = World::new();
    let (a, b) = (mailbox("a@x.test"), mailbox("b@x.test"));
    world.routes.insert(b.clone(), vec![to(&a, smtp(1))]);
    let id = world.arrive(&[a, b], false);
    world.turn();
    world.answer_all();
    world.finish(1, failed);
    assert_eq!(world.bounces[0].failures.iter().map(|f| f.recipient).collect::<Vec<_>>(), [0, 1]);
    world.write_bounces(true);
    assert!(world.gone.contains(&id));
}

#[test]
fn elsewhere_case_makes_two_mailboxes() {
    let mut world = World::new();
    world.arrive(&[mailbox("a@x.test"), mailbox("A@x.test")], false);
    world.turn();
    world.answer_all();
    assert_eq!(world.jobs[&1].0.targets.len(), 2);
}

/// `owner-list: list` makes the list's owner the owner of its own reports: each would make another.
#[test]
fn an_owner_is_not_told_of_a_report_that_fails() {
    let mut world = World::new();
    let (owner, member) = (mailbox("owner-list@x.test"), mailbox("gone@y.test"));
    let mut delivery = to(&member, smtp(1));
    delivery.reverse_path = Some(owner.clone());
    world.routes.insert(owner.clone(), vec![delivery]);
    let id = world.arrive(&[owner], true);
    world.turn();
    world.answer_all();
    assert_eq!(world.jobs[&1].0.owner, None, "it goes out as a report");
    world.finish(1, failed);
    assert_eq!((world.bounces.len(), world.dropped.as_slice()), (0, &[id][..]));
    assert!(world.gone.contains(&id));
}

#[test]
fn recipients_in_memory_are_bounded() {
    let mut world = World::new();
    for m in 0..40 {
        let many: Vec<Mailbox> = (0..10_000).map(|n| mailbox(&format!("u{n}@m{m}.test"))).collect();
        world.arrive(&many, false);
    }
    world.turn();
    let active = |world: &World| {
        world.scheduler.messages.values().filter(|entry| matches!(entry.state, State::Active(_))).count()
    };
    assert_eq!(active(&world), RECIPIENTS_MAX / 10_000);
    // The next begins when one ends.
    let first = QueueId::from_u64(1);
    world.scheduler.lookup_lost();
    world.asked.clear();
    world.scheduler.remove(first, world.now);
    world.turn();
    assert!(world.gone.contains(&first));
    assert_eq!(active(&world), RECIPIENTS_MAX / 10_000);
}

#[test]
fn a_clock_set_back_keeps_nobody_waiting() {
    let mut world = World::new();
    let ten_years = 10 * 365 * 86_400_000;
    world.now.0 += ten_years;
    let id = world.arrive(&[mailbox("a@x.test")], false);
    world.turn();
    world.answer_all();
    world.finish(1, down);
    world.now.0 -= ten_years;
    world.turn();
    let until = world.scheduler.deadline().unwrap();
    assert!(until.0 - world.now.0 <= LIMITS.retry_most, "{until:?}");
    world.pass(LIMITS.retry_most);
    world.answer_all();
    world.finish(2, sent);
    assert!(world.gone.contains(&id));
}

#[test]
fn a_hold_taken_back_leaves_nobody_behind() {
    let mut world = World::new();
    let many: Vec<Mailbox> = (0..300).map(|n| mailbox(&format!("u{n}@x.test"))).collect();
    let id = world.arrive(&many, false);
    world.turn();
    // 256 are asked for, the others withdrawn.
    assert!(world.scheduler.hold(id, world.now) && world.scheduler.release(id));
    world.turn();
    world.answer_all();
    while !world.jobs.is_empty() {
        world.finish_all(&deferred);
    }
    assert_eq!(world.asked.len(), 256, "those that were never asked for are due at once");
}

#[test]
fn a_held_message_is_not_flushed_and_that_is_said() {
    let mut world = World::new();
    let id = world.arrive(&[mailbox("a@x.test")], false);
    assert!(world.scheduler.hold(id, world.now));
    assert!(!world.scheduler.flush(Some(id)));
    assert!(world.scheduler.release(id) && world.scheduler.flush(Some(id)));
}

/// New mail for a slow host fills its share of what is under way, and no more.
#[test]
fn a_flood_for_one_host_leaves_room_for_others() {
    let mut world = World::new();
    let other = mailbox("b@other.example");
    world.routes.insert(other.clone(), vec![to(&other, smtp(2))]);
    let flood: Vec<QueueId> =
        (0..ACTIVE_MAX + 100).map(|_| world.arrive(&[mailbox("a@x.test")], false)).collect();
    world.arrive(&[other], false);
    world.turn();
    while !world.asked.is_empty() {
        world.answer_all();
    }
    assert!(world.jobs.values().any(|(order, _)| order.destination == smtp(2)), "it waits for the flood");
    assert_eq!(world.scheduler.active, ACTIVE_SHARE + 1);
    // One that was set aside goes all the same; and all get through in their turn.
    let last = *flood.last().unwrap();
    assert!(world.scheduler.remove(last, world.now));
    while !world.jobs.is_empty() {
        world.finish_all(&sent);
        while !world.asked.is_empty() {
            world.answer_all();
        }
    }
    assert_eq!(world.gone.len(), flood.len() + 1);
    assert!(world.scheduler.crowds.is_empty() && world.scheduler.thinned.is_empty());
}

/// A list of five members, each of its own.
fn list(world: &mut World, name: &str) -> Mailbox {
    let list = mailbox(&format!("{name}@l.test"));
    let members = (0..5).map(|n| to(&mailbox(&format!("{name}{n}@x.test")), smtp(1)));
    world.routes.insert(list.clone(), members.collect());
    list
}

/// Lists make many deliveries of one recipient: others wait for them, and have their turn.
#[test]
fn lists_do_not_fill_the_memory() {
    let mut world = World::new();
    let lists: Vec<Mailbox> = (0..10).map(|n| list(&mut world, &format!("list{n}"))).collect();
    for (one, other) in lists.iter().zip(lists.iter().rev()) {
        world.arrive(&[one.clone(), other.clone()], false);
    }
    world.turn();
    for _ in 0..30 {
        world.answer_all();
        let most = EXPANDED_MAX + 2 * 5;
        assert!(world.scheduler.expanded <= most, "{} deliveries", world.scheduler.expanded);
        world.finish_all(&sent);
    }
    assert_eq!((world.gone.len(), world.scheduler.expanded), (10, 0));
}

/// One that was put off, and begins before its other recipient is asked for again, does not wait for itself.
#[test]
fn a_message_that_has_begun_goes_on() {
    let mut world = World::new();
    let [a, b, c] = ["a", "b", "c"].map(|name| list(&mut world, name));
    world.arrive(std::slice::from_ref(&a), false);
    world.arrive(&[b.clone(), c.clone()], false);
    world.turn();
    let asked = std::mem::take(&mut world.asked);
    let answer = |world: &mut World, list: &Mailbox| {
        let (question, _) = asked.iter().find(|(_, recipient)| recipient == list).unwrap();
        let members = world.routes[list].clone();
        assert!(world.scheduler.answer(*question, Ok(members), world.now));
    };
    answer(&mut world, &a);
    world.turn();
    answer(&mut world, &c);
    let (job, (_, open)) = world.jobs.pop_first().unwrap();
    for target in open {
        assert!(world.scheduler.result(job, target, sent(target), world.now));
    }
    assert!(world.scheduler.done(job, world.now));
    answer(&mut world, &b);
    world.turn();
    assert_eq!(world.asked.iter().map(|(_, recipient)| recipient).collect::<Vec<_>>(), [&c]);
    world.answer_all();
    world.finish_all(&sent);
    assert_eq!(world.gone.len(), 2);
}
