//! What is known of one client, and what waits for verify to say more. Pure; time is an argument.

use std::time::{Duration, Instant};

use postern_address::Mailbox;
use postern_ipc::smtpd_verify::{ClientFacts, Lease, Measure};

/// What is the same for all clients of a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rules {
    /// Sessions are counted, and messages and the rest are leased.
    pub(crate) counted: bool,
    /// Lists are asked about clients.
    pub(crate) listed: bool,
    /// A client with this score is refused; 0 for none.
    pub(crate) list_score: i32,
    /// Mail is greylisted.
    pub(crate) greylisted: bool,
    /// How long the greeting waits.
    pub(crate) greet_pause: Duration,
}

/// One client.
#[derive(Debug)]
pub(crate) struct Guard {
    rules: Rules,
    /// Nothing of this is for it.
    exempt: bool,
    /// What it may do; none as long as verify has not said it, or will not.
    lease: Option<Lease>,
    /// It was told that it may not: nothing was counted.
    refused: bool,
    /// What verify says of it, when it has.
    pub(crate) facts: Option<Box<ClientFacts>>,
    /// Nobody will say more.
    lost: bool,
    /// The session waits for these.
    waiting: Vec<Waiting>,
    /// The recipients of the questions that are open, where they are needed once more.
    named: Vec<(u16, Mailbox)>,
    /// The greeting waits until then.
    pause: Option<Instant>,
    /// Replies wait until then.
    held: Option<Instant>,
}

/// What waits, and for which question of the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// The greeting: for the lease, and for the end of the pause.
    Greeting(u16),
    /// A command, for more of the lease.
    Lease(u16, Measure),
    /// A recipient, for what lists say.
    Lists(u16),
    /// A recipient, for the greylist.
    Greylist(u16),
}

/// Whether something may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Yes.
    Go,
    /// Not before verify, or the clock, says so.
    Wait,
    /// Ask verify for more first.
    AskMore,
}

impl Default for Guard {
    /// Nothing is for it.
    fn default() -> Self {
        Self::new(Rules::default(), true)
    }
}

impl Guard {
    /// A client came.
    pub(crate) fn new(rules: Rules, exempt: bool) -> Self {
        Self {
            rules,
            exempt,
            lease: None,
            refused: false,
            facts: None,
            lost: false,
            waiting: Vec::new(),
            named: Vec::new(),
            pause: None,
            held: None,
        }
    }

    /// What it goes by.
    pub(crate) fn rules(&self) -> Rules {
        self.rules
    }

    /// Nothing of this is for it.
    pub(crate) fn is_exempt(&self) -> bool {
        self.exempt
    }

    /// It is to be counted.
    pub(crate) fn is_counted(&self) -> bool {
        self.rules.counted && !self.exempt
    }

    /// Lists are to be asked about it.
    pub(crate) fn is_listed(&self) -> bool {
        self.rules.listed && !self.exempt
    }

    /// verify counts it: it has to be told of its end, and of what is left.
    pub(crate) fn to_give_back(&self) -> Option<Lease> {
        self.lease.filter(|_| self.is_counted() && !self.lost)
    }

    /// What it may do is asked anew: what is left of what it had. (When verify has not counted it yet, that
    /// comes first.)
    pub(crate) fn start_anew(&mut self) -> Lease {
        self.lease.as_mut().map_or(Lease::NONE, |lease| std::mem::replace(lease, Lease::NONE))
    }

    /// The session wants to greet it.
    pub(crate) fn greet(&mut self, ticket: u16, now: Instant) -> Step {
        if !self.exempt && !self.rules.greet_pause.is_zero() {
            self.pause = Some(now + self.rules.greet_pause);
        }
        if self.may_greet(now) {
            return Step::Go;
        }
        self.waiting.push(Waiting::Greeting(ticket));
        Step::Wait
    }

    /// When the greeting's pause is over, if it waits for it.
    pub(crate) fn pause(&self) -> Option<Instant> {
        self.pause
    }

    /// The greeting that may be said now, if one waits.
    pub(crate) fn take_greeting(&mut self, now: Instant) -> Option<u16> {
        if !self.may_greet(now) {
            return None;
        }
        let at = self.waiting.iter().position(|waiting| matches!(waiting, Waiting::Greeting(_)))?;
        self.pause = None;
        match self.waiting.remove(at) {
            Waiting::Greeting(ticket) => Some(ticket),
            _ => None,
        }
    }

    /// A command uses one of what is measured.
    pub(crate) fn take(&mut self, ticket: u16, measure: Measure) -> Step {
        if !self.is_counted() || self.lost {
            return Step::Go;
        }
        if self.lease.as_mut().is_none_or(|lease| lease.take(measure)) {
            return Step::Go;
        }
        self.waiting.push(Waiting::Lease(ticket, measure));
        Step::AskMore
    }

    /// One error more: verify is to be told where errors are leased.
    pub(crate) fn err(&mut self) -> Step {
        if !self.is_counted() || self.lost {
            return Step::Go;
        }
        match self.lease.as_mut().is_none_or(|lease| lease.take(Measure::Errors)) {
            true => Step::Go,
            false => Step::AskMore,
        }
    }

    /// verify leases so much.
    pub(crate) fn leased(&mut self, lease: Lease) {
        match &mut self.lease {
            Some(before) => before.add(lease),
            None => self.lease = Some(lease),
        }
    }

    /// verify leases so much instead.
    pub(crate) fn replace(&mut self, lease: Lease) {
        self.lease = Some(lease);
    }

    /// verify has something to say on a lease for the first time.
    pub(crate) fn is_new(&self) -> bool {
        self.lease.is_none() && !self.refused
    }

    /// verify refuses the whole session.
    pub(crate) fn refuse(&mut self) {
        self.refused = true;
    }

    /// What waited for this answer of verify.
    pub(crate) fn take_waiting(&mut self, answered: impl Fn(&Waiting) -> bool) -> Option<Waiting> {
        let at = self.waiting.iter().position(answered)?;
        Some(self.waiting.remove(at))
    }

    /// Everything that waits for verify, which is gone: nobody waits for it any more.
    pub(crate) fn lose(&mut self) -> Vec<Waiting> {
        self.lost = true;
        let (stay, go) = self.waiting.drain(..).partition(|waiting| matches!(waiting, Waiting::Greeting(_)));
        self.waiting = stay;
        go
    }

    /// A recipient is to be judged by lists.
    pub(crate) fn judge(&mut self, ticket: u16) -> Step {
        if !self.is_listed() || self.rules.list_score <= 0 || self.facts.is_some() || self.lost {
            return Step::Go;
        }
        self.waiting.push(Waiting::Lists(ticket));
        Step::Wait
    }

    /// Lists have it, and that is enough.
    pub(crate) fn denied(&self) -> Option<&ClientFacts> {
        let enough = |facts: &&ClientFacts| facts.list_score >= self.rules.list_score;
        self.facts.as_deref().filter(|_| self.is_listed() && self.rules.list_score > 0).filter(enough)
    }

    /// A recipient is to be greylisted.
    pub(crate) fn greylist(&mut self, ticket: u16) -> Step {
        let allowed = self.facts.as_ref().is_some_and(|facts| facts.list_score < 0);
        if !self.rules.greylisted || self.exempt || self.lost || allowed {
            return Step::Go;
        }
        self.waiting.push(Waiting::Greylist(ticket));
        Step::AskMore
    }

    /// A question is about this recipient, who may be needed again before it is answered.
    pub(crate) fn name(&mut self, ticket: u16, recipient: &Mailbox) {
        if self.exempt || !(self.rules.counted || self.rules.greylisted) {
            return;
        }
        // Those of a batch are open together, at most 64.
        if self.named.len() >= 64 {
            self.named.remove(0);
        }
        self.named.retain(|(of, _)| *of != ticket);
        self.named.push((ticket, recipient.clone()));
    }

    /// Whom a question is about.
    pub(crate) fn named(&self, ticket: u16) -> Option<Mailbox> {
        self.named.iter().find(|(of, _)| *of == ticket).map(|(_, recipient)| recipient.clone())
    }

    /// verify has to answer before the session goes on.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// No question is open any more.
    pub(crate) fn clear(&mut self) {
        (self.waiting, self.named) = (Vec::new(), Vec::new());
    }

    /// When the clock has something to say.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.pause.into_iter().chain(self.held).min()
    }

    /// Replies wait until then.
    pub(crate) fn hold(&mut self, until: Instant) {
        if self.held.is_none_or(|held| held < until) {
            self.held = Some(until);
        }
    }

    /// Replies wait.
    pub(crate) fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Time passed: true when replies wait no more.
    pub(crate) fn release(&mut self, now: Instant) -> bool {
        let over = self.held.is_some_and(|until| until <= now);
        if over {
            self.held = None;
        }
        over
    }

    fn may_greet(&self, now: Instant) -> bool {
        let known = !self.is_counted() || self.lost || self.lease.is_some();
        known && self.pause.is_none_or(|until| until <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Rules = Rules {
        counted: true,
        listed: true,
        list_score: 2,
        greylisted: true,
        greet_pause: Duration::from_secs(6),
    };

    fn facts(list_score: i32) -> Option<Box<ClientFacts>> {
        Some(Box::new(ClientFacts { list_score, ..ClientFacts::UNKNOWN }))
    }

    #[test]
    fn exempt_clients_wait_for_nothing() {
        for (rules, exempt) in [(ALL, true), (Rules::default(), false)] {
            let mut guard = Guard::new(rules, exempt);
            assert_eq!(guard.greet(1, Instant::now()), Step::Go);
            assert_eq!(guard.take(2, Measure::Messages), Step::Go);
            assert_eq!((guard.err(), guard.judge(3), guard.greylist(4)), (Step::Go, Step::Go, Step::Go));
            assert_eq!(guard.to_give_back(), None);
            guard.facts = facts(9);
            assert!(guard.denied().is_none());
        }
    }

    #[test]
    fn the_greeting_waits_for_both() {
        let (mut guard, now) = (Guard::new(ALL, false), Instant::now());
        let over = now + Duration::from_secs(6);
        assert_eq!(guard.greet(7, now), Step::Wait);
        assert_eq!(guard.take_greeting(over), None, "nobody said that it may");
        assert!(guard.is_new());
        guard.leased(Lease::UNLIMITED);
        assert!(!guard.is_new());
        assert_eq!(guard.take_greeting(now), None);
        assert_eq!((guard.take_greeting(over), guard.take_greeting(over)), (Some(7), None));
        assert_eq!(guard.to_give_back(), Some(Lease::UNLIMITED));
        // Without verify.
        let mut guard = Guard::new(Rules { greet_pause: Duration::ZERO, ..ALL }, false);
        assert_eq!(guard.greet(7, now), Step::Wait);
        assert_eq!(guard.lose(), []);
        assert_eq!((guard.take_greeting(now), guard.to_give_back()), (Some(7), None));
    }

    #[test]
    fn leases_are_used_up() {
        let mut guard = Guard::new(ALL, false);
        guard.leased(Lease { messages: 1, recipients: 0, errors: Lease::FREE });
        assert_eq!(guard.take(1, Measure::Messages), Step::Go);
        assert_eq!(guard.take(2, Measure::Messages), Step::AskMore);
        assert_eq!(guard.err(), Step::Go);
        guard.leased(Lease { messages: 5, ..Lease::NONE });
        assert_eq!(
            guard.take_waiting(|waiting| matches!(waiting, Waiting::Lease(2, _))),
            Some(Waiting::Lease(2, Measure::Messages))
        );
        assert_eq!(guard.take(2, Measure::Messages), Step::Go);
        assert_eq!(guard.to_give_back().unwrap().messages, 4);
        assert_eq!(guard.take(3, Measure::Recipients), Step::AskMore);
        assert_eq!(guard.lose(), [Waiting::Lease(3, Measure::Recipients)]);
        assert_eq!(guard.take(4, Measure::Recipients), Step::Go);
    }

    #[test]
    fn recipients_wait_for_the_lists() {
        let mut guard = Guard::new(ALL, false);
        assert_eq!(guard.judge(1), Step::Wait);
        guard.facts = facts(1);
        assert!(guard.take_waiting(|waiting| *waiting == Waiting::Lists(1)).is_some());
        assert_eq!((guard.judge(2), guard.denied()), (Step::Go, None));
        assert_eq!(guard.greylist(2), Step::AskMore);
        guard.facts = facts(2);
        assert!(guard.denied().is_some());
        guard.facts = facts(-1);
        assert_eq!(guard.greylist(3), Step::Go, "an allowed one is not greylisted");
    }

    #[test]
    fn replies_are_held_and_released() {
        let (mut guard, now) = (Guard::new(ALL, false), Instant::now());
        guard.hold(now + Duration::from_secs(2));
        guard.hold(now + Duration::from_secs(1));
        assert!(!guard.release(now + Duration::from_secs(1)) && guard.is_held());
        assert!(guard.release(now + Duration::from_secs(2)) && !guard.is_held());
    }
}
