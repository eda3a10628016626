//! One attempt at a message: from its recipients to their ends.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use postern_address::Mailbox;
use postern_event::Status;
use postern_ipc::queue_agent::{Destination, Outcome, Report};
use postern_ipc::queue_lookup;
use postern_smtp::parameters::ByMode;
use postern_smtp::{EnhancedCode, Reply};
use postern_spool::{DoneStatus, LogEntry, QueueId, Success, Timestamp};

use super::destination::{Class, Group};
use super::dispatch::ours;
use super::message::{
    Active, Delivery, DeliveryState, DomainBits, Late, Loaded, Owed, Recipient, State, Wish, Wishes,
};
use super::{
    Action, BounceOrder, EXPANDED_MAX, Failure, Limits, QUESTIONS_MAX, ReportKey, ReportKind, Scheduler, Told,
};

impl Scheduler {
    /// What [`Action::Load`] asked for.
    pub fn loaded(&mut self, id: QueueId, loaded: Loaded, now: Timestamp) {
        let Some(active) = self.active_mut(id) else { return };
        (active.arrival, active.scheduled, active.null_sender) = (loaded.arrival, now, loaded.null_sender);
        active.born = loaded.arrival.max(loaded.not_before.unwrap_or_default());
        (active.deadline, active.delay_told) = (loaded.deadline, loaded.delay_told);
        active.recipients = loaded.recipients.into_iter().map(Recipient::new).collect();
        let loaded_recipients = active.recipients.len();
        let overdue = active.is_overdue(now);
        for recipient in &mut active.recipients {
            // A report is not reported on (RFC 3461 §6.1).
            recipient.wishes.success &= !loaded.null_sender;
            if overdue && !recipient.complete {
                recipient.deliveries.push(too_late(recipient.address.clone()));
            }
        }
        let waits = |recipient: &Recipient| !recipient.complete && !overdue;
        let asking = active.recipients.iter().zip(0u32..).filter(|(recipient, _)| waits(recipient));
        let asking: Vec<u32> = asking.map(|(_, r)| r).collect();
        active.asking = asking.len();
        self.recipients += loaded_recipients;
        if let Some(until) = loaded.not_before.filter(|until| *until > now) {
            return self.schedule(id, until);
        }
        self.lookup.waiting.extend(asking.into_iter().map(|r| (id, r)));
        self.end_if_quiet(id, now);
    }

    /// From active back to waiting for the time its sender set.
    fn schedule(&mut self, id: QueueId, until: Timestamp) {
        let attempts = self.messages.get(&id).map_or(0, |entry| entry.attempts);
        self.defer(id, attempts, until);
        if let Some(entry) = self.messages.get_mut(&id) {
            self.wake.remove(&(until, id));
            entry.state = State::Scheduled(until);
            self.scheduled.insert((until, id));
        }
    }

    /// The file could not be read now: the message waits as after a failed attempt.
    pub fn load_failed(&mut self, id: QueueId, now: Timestamp) {
        if self.active_mut(id).is_some() {
            let attempts = self.messages.get(&id).map_or(0, |entry| entry.attempts).saturating_add(1);
            let until = Timestamp(now.0.saturating_add(self.delay(attempts)));
            self.defer(id, attempts, until);
        }
    }

    /// Lookup is there.
    pub fn lookup_linked(&mut self) {
        self.lookup.linked = true;
    }

    /// Lookup is gone: what it was asked is asked again when it is back.
    pub fn lookup_lost(&mut self) {
        self.lookup.linked = false;
        let asked = std::mem::take(&mut self.lookup.asked);
        for (_, question) in asked {
            self.lookup.waiting.push_front(question);
        }
    }

    /// The next question.
    pub(super) fn ask(&mut self) -> Option<Action> {
        if !self.lookup.linked || self.lookup.asked.len() >= QUESTIONS_MAX {
            return None;
        }
        if self.expanded < EXPANDED_MAX {
            self.lookup.waiting.extend(self.lookup.aside.drain(..));
        }
        loop {
            let (id, r) = self.lookup.waiting.pop_front()?;
            if self.is_too_much(id) {
                self.lookup.aside.push((id, r));
                continue;
            }
            let Some(recipient) = self.active_mut(id).and_then(|a| a.recipients.get(r as usize)) else {
                continue;
            };
            let recipient = recipient.address.clone();
            self.lookup.last += 1;
            let question = self.lookup.last;
            self.lookup.asked.insert(question, (id, r));
            return Some(Action::Ask { question, recipient });
        }
    }

    /// A message that has begun is asked for to its end.
    fn go_on(&mut self, id: QueueId) {
        let its = self.lookup.aside.extract_if(.., |(message, _)| *message == id);
        self.lookup.waiting.extend(its);
    }

    /// There are many deliveries in memory, and none of this message. One that has some goes on, or it would keep
    /// them for ever; and so does one that is to be held or removed.
    fn is_too_much(&mut self, id: QueueId) -> bool {
        self.expanded >= EXPANDED_MAX
            && self.active_mut(id).is_some_and(|active| !active.has_begun() && active.wish.is_none())
    }

    /// Lookup answers. False when it was not asked that.
    pub fn answer(
        &mut self,
        question: u64,
        answer: Result<Vec<queue_lookup::Delivery>, String>,
        now: Timestamp,
    ) -> bool {
        let Some((id, r)) = self.lookup.asked.remove(&question) else { return false };
        if answer.as_ref().is_ok_and(|deliveries| deliveries.len() > 1) && self.is_too_much(id) {
            self.lookup.aside.push((id, r));
            return true;
        }
        let Some(active) = self.active_mut(id) else { return true };
        active.asking = active.asking.saturating_sub(1);
        let (arrival, scheduled) = (active.arrival, active.scheduled);
        let (all_answered, wish, null_sender) = (active.asking == 0, active.wish, active.null_sender);
        let Some(recipient) = active.recipients.get_mut(r as usize) else { return true };
        let mut told = Vec::new();
        let mut log = Vec::new();
        resolve(recipient, answer, null_sender, &mut log, &mut |address, original, status, reply| {
            told.push(Told { id, address, original, arrival, scheduled, status, reply });
        });
        let expanded = recipient.expanded();
        self.expanded += expanded;
        self.go_on(id);
        self.counts.deferred += told.iter().filter(|t| t.status == Status::Deferred).count() as u64;
        self.counts.delivered += told.iter().filter(|t| t.status == Status::Sent).count() as u64;
        self.out.extend(told.into_iter().map(Action::Tell));
        self.record(id, log);
        if all_answered && wish.is_none() {
            self.distribute(id, now);
        }
        self.end_if_quiet(id, now);
        true
    }

    /// Queues what resolved: recipients of one destination and owner together.
    fn distribute(&mut self, id: QueueId, now: Timestamp) {
        let Some(active) = self.active_mut(id) else { return };
        let class = if active.fresh.is_some() { Class::Fresh } else { Class::Old };
        let (priority, forced) = (active.priority, active.forced);
        type Key = (Destination, Option<Mailbox>);
        let mut groups: BTreeMap<Key, Vec<(u32, u32)>> = BTreeMap::new();
        let mut seen: HashMap<(Destination, String), (u32, u32)> = HashMap::new();
        let several = active.recipients.len() > 1;
        for (r, recipient) in (0u32..).zip(&mut active.recipients) {
            for (d, delivery) in (0u32..).zip(&mut recipient.deliveries) {
                if let Some(destination) = delivery.destination.take() {
                    // Recipients that lead to the same mailbox get one copy, and share what becomes of it.
                    if several {
                        let key = (destination.clone(), delivery.same(&destination));
                        let first = *seen.entry(key).or_insert((r, d));
                        if first != (r, d) {
                            active.twins.entry(first).or_default().push((r, d));
                            continue;
                        }
                    }
                    groups.entry((destination, delivery.owner.clone())).or_default().push((r, d));
                }
            }
        }
        // Counted before any is queued: a destination that is down decides at once.
        active.open = groups.values().map(Vec::len).sum();
        for ((destination, owner), members) in groups {
            let group = Group { message: id, owner, members, class, priority, forced, losses: 0 };
            self.enqueue(&destination, group, now);
        }
    }

    /// Ends the attempt when nothing of it is under way: reports what failed, then settles the rest.
    pub(super) fn end_if_quiet(&mut self, id: QueueId, now: Timestamp) {
        let limits = self.limits;
        let Some(active) = self.active_mut(id).filter(|active| active.is_quiet()) else { return };
        if active.wish == Some(Wish::Remove) {
            return self.finish(id);
        }
        let lifetime = if active.null_sender { limits.bounce_lifetime } else { limits.lifetime };
        let end = Timestamp(active.born.0.saturating_add(lifetime));
        let mut told = Vec::new();
        if active.wish.is_none() && active.is_overdue(now) {
            told = expire(id, active, Late::Deadline);
        } else if active.wish.is_none() && now >= end {
            told = expire(id, active, Late::Lifetime);
        }
        self.out.extend(told.into_iter().map(Action::Tell));
        for (owner, failures) in self.failures(id) {
            self.report(id, ReportKey { kind: ReportKind::Failure, owner }, failures, Vec::new(), end);
        }
        let (delays, owed) = match self.active_mut(id) {
            Some(active) if !active.null_sender => (delays(active, &limits, now), owed(active)),
            _ => (Vec::new(), Vec::new()),
        };
        let key = |kind| ReportKey { kind, owner: None };
        if !delays.is_empty() {
            self.report(id, key(ReportKind::Delay), delays, Vec::new(), end);
        }
        if !owed.is_empty() {
            self.report(id, key(ReportKind::Success), Vec::new(), owed, end);
        }
        if self.active_mut(id).is_some_and(|active| active.bouncing == 0) {
            self.settle(id, now);
        }
    }

    /// Who failed and is to be told of, by who is told. The rest is finished without a word.
    fn failures(&mut self, id: QueueId) -> BTreeMap<Option<Mailbox>, Vec<Failure>> {
        let Some(active) = self.active_mut(id) else { return BTreeMap::new() };
        let (null_sender, all) = (active.null_sender, failures(active));
        let unheard = |recipient: &mut Recipient, d: usize, log: &mut Vec<LogEntry>| {
            let owned = recipient.deliveries.get(d).is_some_and(|delivery| delivery.owner.is_some());
            if owned || (recipient.wishes.failure && !null_sender) {
                return false;
            }
            recipient.finish(d, DoneStatus::Failed, log);
            true
        };
        let (mut log, mut silent) = (Vec::new(), 0);
        for recipient in &mut active.recipients {
            for d in 0..recipient.deliveries.len() {
                let failed = recipient.deliveries.get(d).map(|delivery| &delivery.state);
                if matches!(failed, Some(DeliveryState::Failed { .. })) {
                    silent += u64::from(unheard(recipient, d, &mut log));
                }
            }
        }
        let wanted: BTreeMap<u32, bool> =
            active.recipients.iter().map(|r| (r.index, r.wishes.failure && !null_sender)).collect();
        if silent > 0 {
            self.counts.bounced += silent;
            let null = "the reverse-path is null: nobody is to be told";
            let why = if null_sender { null } else { "the sender asked not to be told (NOTIFY)" };
            self.out.push_back(Action::DropBounce(id, why));
            self.record(id, log);
        }
        let mut reports = BTreeMap::new();
        for (owner, mut failures) in all {
            failures.retain(|failure| owner.is_some() || wanted.get(&failure.recipient) == Some(&true));
            if !failures.is_empty() {
                reports.insert(owner, failures);
            }
        }
        reports
    }

    fn report(
        &mut self,
        id: QueueId,
        key: ReportKey,
        failures: Vec<Failure>,
        owed: Vec<(u32, Mailbox, Owed)>,
        tried_until: Timestamp,
    ) {
        if let Some(active) = self.active_mut(id) {
            active.bouncing += 1;
        }
        self.bouncing += 1;
        self.out.push_back(Action::Bounce(BounceOrder { id, key, failures, owed, tried_until }));
    }

    /// A report is on disk, or could not be written: then recipients that failed are tried again later, fail
    /// again and are reported then, and what else is to be told is told at the end of the next attempt.
    /// Nothing is recorded before the report is durable.
    pub fn bounced(&mut self, id: QueueId, key: &ReportKey, written: bool, now: Timestamp) {
        self.bouncing = self.bouncing.saturating_sub(1);
        let owner = key.owner.as_ref();
        match (key.kind, written) {
            (ReportKind::Failure, true) => self.finish_failed(id, owner),
            (ReportKind::Delay, true) => {
                if let Some(active) = self.active_mut(id) {
                    active.delay_told = true;
                }
                self.record(id, vec![LogEntry::DelaySent]);
            }
            (ReportKind::Success, true) => {
                let mut log = Vec::new();
                let recipients = self.active_mut(id).into_iter().flat_map(|active| &mut active.recipients);
                recipients.for_each(|recipient| recipient.settle_debt(&mut log));
                self.record(id, log);
            }
            (_, false) => {}
        }
        let Some(active) = self.active_mut(id) else { return };
        if !written && key.kind == ReportKind::Failure {
            for recipient in &mut active.recipients {
                for delivery in recipient.deliveries.iter_mut().filter(|d| d.owner.as_ref() == owner) {
                    if let DeliveryState::Failed { report, .. } = &delivery.state {
                        let report = report.clone();
                        delivery.state = DeliveryState::Deferred { report, not_before: None };
                    }
                }
            }
        }
        active.bouncing = active.bouncing.saturating_sub(1);
        if active.bouncing == 0 {
            if active.wish == Some(Wish::Remove) {
                return self.finish(id);
            }
            self.settle(id, now);
        }
    }

    fn finish_failed(&mut self, id: QueueId, owner: Option<&Mailbox>) {
        let Some(active) = self.active_mut(id) else { return };
        let (mut log, mut failed) = (Vec::new(), 0);
        for recipient in &mut active.recipients {
            for d in 0..recipient.deliveries.len() {
                let Some(delivery) = recipient.deliveries.get(d) else { continue };
                if matches!(delivery.state, DeliveryState::Failed { .. }) && delivery.owner.as_ref() == owner
                {
                    recipient.finish(d, DoneStatus::Failed, &mut log);
                    failed += 1;
                }
            }
        }
        log.push(LogEntry::BounceSent);
        self.counts.bounced += failed;
        self.record(id, log);
    }

    /// Nothing is under way and nothing to be reported: the message is finished, held, or waits.
    fn settle(&mut self, id: QueueId, now: Timestamp) {
        let limits = self.limits;
        let attempts = self.messages.get(&id).map_or(0, |entry| entry.attempts);
        let delay = self.delay(attempts.saturating_add(1));
        let spread = self.random.below(limits.retry_first / 8 + 1);
        let Some(active) = self.active_mut(id) else { return };
        if active.recipients.iter().all(|recipient| recipient.finished) {
            self.counts.removed += 1;
            return self.finish(id);
        }
        let lifetime = if active.null_sender { limits.bounce_lifetime } else { limits.lifetime };
        // The last attempt is made when the lifetime ends, not some time after.
        let latest = active.born.0.saturating_add(lifetime).max(now.0.saturating_add(limits.retry_first));
        // Nor later than the sender's deadline, while that lies ahead.
        let deadline = active.deadline.map(|(at, _)| at.0).filter(|at| *at > now.0);
        let latest = deadline.map_or(latest, |deadline| latest.min(deadline));
        let (mut next, mut tried, mut log) = (u64::MAX, false, Vec::new());
        for recipient in &active.recipients {
            if recipient.complete && !recipient.finished {
                // The report that is owed could not be written.
                (next, tried) = (next.min(now.0.saturating_add(delay)), true);
            } else if recipient.deliveries.is_empty() && !recipient.finished {
                next = now.0; // Never asked for, since the message was withdrawn.
            }
            for delivery in &recipient.deliveries {
                let until = match &delivery.state {
                    DeliveryState::Pending => now.0,
                    DeliveryState::Deferred { not_before: Some(at), .. } => at.0.saturating_add(spread),
                    DeliveryState::Deferred { .. } => now.0.saturating_add(delay),
                    DeliveryState::Finished | DeliveryState::Failed { .. } => continue,
                };
                let until = until.min(latest);
                next = next.min(until);
                if let DeliveryState::Deferred { report, not_before } = &delivery.state {
                    tried |= not_before.is_none();
                    log.push(LogEntry::Deferred {
                        recipient: recipient.index,
                        address: recipient.logged_address(delivery),
                        until: Timestamp(until),
                        reply: report.reply.to_string(),
                    });
                }
            }
        }
        let hold = active.wish == Some(Wish::Hold);
        let domains =
            DomainBits::of_all(active.recipients.iter().filter(|r| !r.finished).map(|r| &r.address));
        if hold {
            log.push(LogEntry::Held);
        }
        self.record(id, log);
        self.defer(id, attempts.saturating_add(u8::from(tried)), Timestamp(next));
        if let Some(entry) = self.messages.get_mut(&id) {
            entry.domains = domains;
        }
        if hold && let Some(entry) = self.messages.get_mut(&id) {
            entry.state = State::Held;
            self.wake.remove(&(Timestamp(next), id));
            self.held += 1;
        }
    }

    /// From active to deferred.
    fn defer(&mut self, id: QueueId, attempts: u8, until: Timestamp) {
        let Some(entry) = self.messages.get_mut(&id) else { return };
        let before = std::mem::replace(&mut entry.state, State::Deferred(until));
        entry.attempts = attempts;
        self.wake.insert((until, id));
        if let State::Active(active) = before {
            self.leave(&active);
        }
    }

    /// No delay is longer than this.
    pub(super) fn longest(&self) -> u64 {
        let Limits { retry_first, retry_most, .. } = self.limits;
        let most = retry_first.max(retry_most);
        most.saturating_add(most / 2)
    }

    /// The delay after the `attempt`-th deferral, from 1: doubling, give or take an eighth so that what
    /// failed together does not come back together.
    pub(super) fn delay(&mut self, attempt: u8) -> u64 {
        let doublings = u32::from(attempt.saturating_sub(1)).min(40);
        let delay = self.limits.retry_first.saturating_mul(1 << doublings).min(self.limits.retry_most).max(1);
        delay - delay / 8 + self.random.below(delay / 4 + 1)
    }

    pub(super) fn active_mut(&mut self, id: QueueId) -> Option<&mut Active> {
        match &mut self.messages.get_mut(&id)?.state {
            State::Active(active) => Some(active),
            _ => None,
        }
    }
}

/// Takes lookup's answer into a recipient.
fn resolve(
    recipient: &mut Recipient,
    answer: Result<Vec<queue_lookup::Delivery>, String>,
    null_sender: bool,
    log: &mut Vec<LogEntry>,
    tell: &mut dyn FnMut(Mailbox, Option<Mailbox>, Status, Reply),
) {
    let deliveries = match answer {
        Ok(deliveries) => deliveries,
        Err(why) => {
            let report = ours(451, EnhancedCode::new(4, 3, 0), &format!("address lookup: {why}"));
            tell(recipient.address.clone(), None, Status::Deferred, report.reply.clone());
            recipient.deliveries = vec![Delivery {
                address: recipient.address.clone(),
                owner: None,
                destination: None,
                state: DeliveryState::Deferred { report, not_before: None },
            }];
            return;
        }
    };
    recipient.resolved = true;
    // What a list takes is the list's from here on (RFC 3461 §5.2.7.1); of an alias of several, the sender hears
    // that it is one (§5.2.7.3).
    let first_time = recipient.done.is_empty();
    let list = deliveries.iter().any(|delivery| delivery.reverse_path.is_some());
    if first_time && list {
        let words = "250 2.1.5 taken by the mailing list".to_owned();
        recipient.owe(None, Success::Delivered, None, words, log);
    } else if first_time && deliveries.len() > 1 {
        let words = format!("250 2.1.5 expanded to {} addresses", deliveries.len());
        recipient.owe(None, Success::Expanded, None, words, log);
    }
    let mut discarded = Vec::new();
    // The log knows a delivery by its address: one address, one delivery.
    let mut known: BTreeSet<&Mailbox> = recipient.done.iter().collect();
    let new: Vec<bool> = deliveries.iter().map(|delivery| known.insert(&delivery.recipient)).collect();
    for (delivery, _) in deliveries.into_iter().zip(new).filter(|(_, new)| *new) {
        let queue_lookup::Delivery { recipient: address, reverse_path: owner, action } = delivery;
        // A report stays one that nobody is told of (RFC 5321 §4.5.5): with an owner put in, the owner of an
        // alias that fails would be told of the failure to tell him, for ever.
        let owner = owner.filter(|_| !null_sender);
        let original = (address != recipient.address).then(|| recipient.address.clone());
        let (destination, state) = match action {
            queue_lookup::Action::Deliver(destination) => (Some(destination), DeliveryState::Pending),
            queue_lookup::Action::Discard => {
                let reply = Reply::new(250, EnhancedCode::new(2, 0, 0), "discarded by a route");
                tell(address.clone(), original, Status::Sent, reply.clone());
                discarded.push((recipient.deliveries.len(), reply));
                (None, DeliveryState::Pending)
            }
            queue_lookup::Action::Fail(reply) => {
                let status = if reply.is_transient() { Status::Deferred } else { Status::Bounced };
                tell(address.clone(), original, status, reply.clone());
                let transient = reply.is_transient();
                let report = Report { relay: None, reply, remote: false, destination_down: false };
                let failed = DeliveryState::Failed { report: report.clone(), expired: None };
                let deferred = DeliveryState::Deferred { report, not_before: None };
                (None, if transient { deferred } else { failed })
            }
        };
        recipient.deliveries.push(Delivery { address, owner, destination, state });
    }
    for (d, reply) in discarded {
        let report = Report { relay: None, reply, remote: false, destination_down: false };
        recipient.deliver(d, &Outcome::Delivered(report), log);
    }
    recipient.finish_whole(DoneStatus::Delivered, log);
}

/// Gives up what is still deferred.
fn expire(id: QueueId, active: &mut Active, late: Late) -> Vec<Told> {
    let mut told = Vec::new();
    for recipient in &mut active.recipients {
        let envelope = recipient.address.clone();
        for delivery in &mut recipient.deliveries {
            let DeliveryState::Deferred { report, .. } = &delivery.state else { continue };
            let what = match late {
                Late::Lifetime => "delivery time expired",
                Late::Deadline => "the sender's deadline passed",
            };
            let text = format!("{what}; the last attempt said: {}", report.reply);
            told.push(Told {
                id,
                address: delivery.address.clone(),
                original: (delivery.address != envelope).then(|| envelope.clone()),
                arrival: active.arrival,
                scheduled: active.scheduled,
                status: Status::Bounced,
                reply: Reply::new(554, EnhancedCode::new(5, 4, 7), text),
            });
            delivery.state = DeliveryState::Failed { report: report.clone(), expired: Some(late) };
        }
    }
    told
}

/// A delivery that is not even tried, since its deadline has passed (RFC 2852 §4.1).
fn too_late(address: Mailbox) -> Delivery {
    let report = ours(550, EnhancedCode::new(5, 4, 7), "the sender's deadline had passed");
    let state = DeliveryState::Failed { report, expired: Some(Late::Deadline) };
    Delivery { address, owner: None, destination: None, state }
}

/// Who is late, and whose sender is to hear of it now: once a message.
fn delays(active: &Active, limits: &Limits, now: Timestamp) -> Vec<Failure> {
    if active.delay_told {
        return Vec::new();
    }
    let late = |after: u64| now.0 >= active.born.0.saturating_add(after);
    let missed = matches!(active.deadline, Some((at, ByMode::Notify)) if now >= at);
    let unasked = limits.delay_warning_unasked.is_some_and(late);
    let due = |wishes: Wishes| match wishes.delay {
        Some(false) => false,
        Some(true) => missed || late(limits.delay_warning),
        None => missed || unasked,
    };
    let mut delays = Vec::new();
    for recipient in active.recipients.iter().filter(|recipient| due(recipient.wishes)) {
        for delivery in recipient.deliveries.iter().filter(|delivery| delivery.owner.is_none()) {
            if let DeliveryState::Deferred { report, .. } = &delivery.state {
                delays.push(Failure {
                    recipient: recipient.index,
                    address: delivery.address.clone(),
                    original: recipient.original(delivery),
                    report: report.clone(),
                    expired: None,
                });
            }
        }
    }
    delays
}

/// What senders are to hear of success.
fn owed(active: &Active) -> Vec<(u32, Mailbox, Owed)> {
    let of = |recipient: &Recipient| {
        let (index, address) = (recipient.index, recipient.address.clone());
        recipient.owed.clone().into_iter().map(move |owed| (index, address.clone(), owed))
    };
    active.recipients.iter().flat_map(of).collect()
}

fn failures(active: &Active) -> BTreeMap<Option<Mailbox>, Vec<Failure>> {
    let mut by_owner: BTreeMap<Option<Mailbox>, Vec<Failure>> = BTreeMap::new();
    for recipient in &active.recipients {
        for delivery in &recipient.deliveries {
            if let DeliveryState::Failed { report, expired } = &delivery.state {
                by_owner.entry(delivery.owner.clone()).or_default().push(Failure {
                    recipient: recipient.index,
                    address: delivery.address.clone(),
                    original: recipient.original(delivery),
                    report: report.clone(),
                    expired: *expired,
                });
            }
        }
    }
    by_owner
}
