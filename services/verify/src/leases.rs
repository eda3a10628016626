//! Who may do how much: sessions of all workers are counted here, by client network, user and listener,
//! and each gets a lease, so that a worker asks again only when it is used up. Pure; time is an argument.
//!
//! A session begins with nothing of what is limited, and asks when it needs some. What is leased counts as
//! done when it is leased, and what is left of it is given back when the session ends. A lease is at most
//! a sixteenth of what its limits still allow, and at least one, so that the sessions of one client never
//! hold much that they do not use, and the last ones are exact. Errors are leased one by one: who is let
//! in must not depend on errors that nobody made.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;

use postern_config::{Limit, Limits};
use postern_ipc::smtpd_verify::{Exceeded, Lease, Measure, Scope};

use crate::table::Table;

/// Clients counted at once.
pub const CLIENTS_MOST: usize = 1 << 20;

/// Users counted at once.
const USERS_MOST: usize = 1 << 17;

/// Listeners: as many as there can be.
const LISTENERS_MOST: usize = 1 << 10;

/// Sessions of one asker at once; a worker has fewer descriptors.
const SESSIONS_MOST: usize = 1 << 20;

/// A lease is this part of what is left.
const SHARE: u32 = 16;

/// Most of one lease.
const LEASE_MOST: u32 = 1000;

/// Every session that is counted; `A` names it.
#[derive(Debug)]
pub struct Leases<A> {
    limits: Limits,
    clients: Table,
    users: Table,
    listeners: Table,
    sessions: HashMap<A, Session>,
    hasher: RandomState,
}

/// Whom a session counts for.
#[derive(Clone, Copy, Debug)]
struct Session {
    client: u64,
    listener: u64,
    user: Option<u64>,
}

impl<A: Copy + Eq + Hash> Leases<A> {
    /// Nobody has a lease.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            clients: Table::new(CLIENTS_MOST),
            users: Table::new(USERS_MOST),
            listeners: Table::new(LISTENERS_MOST),
            sessions: HashMap::new(),
            hasher: RandomState::new(),
        }
    }

    /// Other limits from now on. What was counted stays.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// A session begins, at second `at` of any clock that does not go back.
    pub fn begin(&mut self, name: A, client: IpAddr, listener: u16, at: u64) -> Result<Lease, Exceeded> {
        let session = Session { client: network(client), listener: u64::from(listener), user: None };
        if self.sessions.len() >= SESSIONS_MOST {
            // No worker of ours asks for so much. To refuse would serve whoever does.
            return Ok(Lease::UNLIMITED);
        }
        // A refused connection counts as one, so that nobody gets in by trying fast.
        let places = self.places(&session);
        for (scope, key) in places {
            self.count(scope, key, Measure::Connections, 1, at);
        }
        for (scope, key) in places {
            self.may_begin(scope, key, at)?;
        }
        for (scope, key) in places {
            // A full table counts no further session.
            let _ = self.table_mut(scope).begin(key, at);
        }
        self.end(name, Lease::NONE, at);
        self.sessions.insert(name, session);
        Ok(self.first(&session))
    }

    /// A session needs more of something. A session that is not known (of the time before our start) may
    /// do what it likes.
    pub fn more(&mut self, name: A, of: Measure, at: u64) -> Result<Lease, Exceeded> {
        let Some(session) = self.sessions.get(&name).copied() else { return Ok(Lease::UNLIMITED) };
        let count = self.grant(&session, of, at)?;
        let mut lease = Lease::NONE;
        if let Some(of) = lease.of_mut(of) {
            *of = count;
        }
        Ok(lease)
    }

    /// A session has a user from now on. What it has `left` it gives back, and what it gets instead counts
    /// for both.
    pub fn user(&mut self, name: A, user: &str, left: Lease, at: u64) -> Result<Lease, Exceeded> {
        let key = self.user_key(user);
        let Some(mut session) = self.sessions.get(&name).copied() else { return Ok(Lease::UNLIMITED) };
        self.give_back(&session, left, at);
        if session.user.is_none() {
            self.count(Scope::User, key, Measure::Connections, 1, at);
            self.may_begin(Scope::User, key, at)?;
            let _ = self.users.begin(key, at);
            session.user = Some(key);
            self.sessions.insert(name, session);
        }
        Ok(self.first(&session))
    }

    /// A password was wrong.
    pub fn auth_failed(&mut self, name: A, user: &str, at: u64) {
        let Some(session) = self.sessions.get(&name).copied() else { return };
        let user = self.user_key(user);
        for (scope, key) in self.places(&session).into_iter().chain([(Scope::User, user)]) {
            self.count(scope, key, Measure::AuthFailures, 1, at);
        }
    }

    /// A session ends; `left` is what it did not use.
    pub fn end(&mut self, name: A, left: Lease, at: u64) {
        let Some(session) = self.sessions.remove(&name) else { return };
        self.give_back(&session, left, at);
        for (scope, key) in self.all_places(&session) {
            self.table_mut(scope).end(key);
        }
    }

    /// These sessions' worker is gone.
    pub fn forget(&mut self, at: u64, gone: impl Fn(&A) -> bool) {
        let names: Vec<A> = self.sessions.keys().filter(|name| gone(name)).copied().collect();
        names.into_iter().for_each(|name| self.end(name, Lease::NONE, at));
    }

    /// Sessions under way.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Clients that are counted.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// Whether another session may begin, by what is counted.
    fn may_begin(&self, scope: Scope, key: u64, at: u64) -> Result<(), Exceeded> {
        let (limit, table) = (self.limit(scope), self.table(scope));
        let within = |measure: Measure, count: u32, past: bool| {
            let limit = limit.of(measure);
            let reached = if past { count > limit } else { count >= limit };
            match limit > 0 && reached {
                true => Err(Exceeded { measure, scope, count, limit }),
                false => Ok(()),
            }
        };
        within(Measure::Sessions, table.sessions(key).saturating_add(1), true)?;
        within(Measure::Connections, table.rate(key, rate(Measure::Connections), at), true)?;
        // Who reached these does not begin anew.
        for measure in [Measure::Errors, Measure::AuthFailures] {
            within(measure, table.rate(key, rate(measure), at), false)?;
        }
        Ok(())
    }

    /// What a session has before it asks: nothing of what is limited.
    fn first(&self, session: &Session) -> Lease {
        let mut lease = Lease::NONE;
        for measure in LEASED {
            let free = self.all_places(session).all(|(scope, _)| self.limit(scope).of(measure) == 0);
            if let (true, Some(of)) = (free, lease.of_mut(measure)) {
                *of = Lease::FREE;
            }
        }
        lease
    }

    fn give_back(&mut self, session: &Session, mut left: Lease, at: u64) {
        for (scope, key) in self.all_places(session) {
            for measure in LEASED {
                let Some(&mut rest) = left.of_mut(measure) else { continue };
                if self.limit(scope).of(measure) > 0 && rest != Lease::FREE && rest > 0 {
                    self.table_mut(scope).uncount(key, rate(measure), rest, at);
                }
            }
        }
    }

    /// Leases as much as every scope allows; one that has nothing left is the answer.
    fn grant(&mut self, session: &Session, measure: Measure, at: u64) -> Result<u32, Exceeded> {
        let mut least = Lease::FREE;
        for (scope, key) in self.all_places(session) {
            let limit = self.limit(scope).of(measure);
            if limit == 0 {
                continue;
            }
            let count = self.table(scope).rate(key, rate(measure), at);
            if count >= limit {
                return Err(Exceeded { measure, scope, count: count.saturating_add(1), limit });
            }
            let share = if measure == Measure::Errors { 1 } else { (limit - count) / SHARE };
            least = least.min(share.clamp(1, LEASE_MOST));
        }
        if least != Lease::FREE {
            for (scope, key) in self.all_places(session) {
                self.count(scope, key, measure, least, at);
            }
        }
        Ok(least)
    }

    /// Counts, where there is a limit to count for.
    fn count(&mut self, scope: Scope, key: u64, measure: Measure, count: u32, at: u64) {
        if self.limit(scope).of(measure) > 0 {
            self.table_mut(scope).count(key, rate(measure), count, at);
        }
    }

    fn places(&self, session: &Session) -> [(Scope, u64); 2] {
        [(Scope::Client, session.client), (Scope::Listener, session.listener)]
    }

    fn all_places(&self, session: &Session) -> impl Iterator<Item = (Scope, u64)> + use<A> {
        self.places(session).into_iter().chain(session.user.map(|user| (Scope::User, user)))
    }

    fn user_key(&self, user: &str) -> u64 {
        self.hasher.hash_one(user)
    }

    fn limit(&self, scope: Scope) -> &Limit {
        match scope {
            Scope::Client => &self.limits.client,
            Scope::User => &self.limits.user,
            Scope::Listener => &self.limits.listener,
        }
    }

    fn table(&self, scope: Scope) -> &Table {
        match scope {
            Scope::Client => &self.clients,
            Scope::User => &self.users,
            Scope::Listener => &self.listeners,
        }
    }

    fn table_mut(&mut self, scope: Scope) -> &mut Table {
        match scope {
            Scope::Client => &mut self.clients,
            Scope::User => &mut self.users,
            Scope::Listener => &mut self.listeners,
        }
    }
}

/// What a lease is of.
const LEASED: [Measure; 3] = [Measure::Messages, Measure::Recipients, Measure::Errors];

/// The limit for one measure; 0 is none.
trait Of {
    fn of(&self, measure: Measure) -> u32;
}

impl Of for Limit {
    fn of(&self, measure: Measure) -> u32 {
        match measure {
            Measure::Sessions => self.sessions,
            Measure::Connections => self.connections,
            Measure::Messages => self.messages,
            Measure::Recipients => self.recipients,
            Measure::Errors => self.errors,
            Measure::AuthFailures => self.auth_failures,
        }
    }
}

/// Where a measure is in the table.
fn rate(measure: Measure) -> usize {
    match measure {
        Measure::Connections | Measure::Sessions => 0,
        Measure::Messages => 1,
        Measure::Recipients => 2,
        Measure::Errors => 3,
        Measure::AuthFailures => 4,
    }
}

/// The network that a client counts for: its address, or its /64, which is what one customer has. IPv4
/// lies where no IPv6 network is (::/8 is reserved, RFC 4291 §2.4).
fn network(client: IpAddr) -> u64 {
    match client.to_canonical() {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        IpAddr::V6(address) => (address.to_bits() >> 64) as u64,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn limits(client: Limit) -> Limits {
        Limits { client, user: Limit::OFF, listener: Limit::OFF, exempt: Vec::new(), list_score: 0 }
    }

    fn exceeded(measure: Measure, count: u32, limit: u32) -> Result<Lease, Exceeded> {
        Err(Exceeded { measure, scope: Scope::Client, count, limit })
    }

    #[test]
    fn sessions_at_once() {
        let mut leases = Leases::new(limits(Limit { sessions: 2, ..Limit::OFF }));
        let client = ip("2001:db8::1");
        assert_eq!(leases.begin(1, client, 0, 0), Ok(Lease::UNLIMITED));
        assert_eq!(leases.begin(2, ip("2001:db8::ffff"), 0, 0), Ok(Lease::UNLIMITED), "the same /64");
        assert_eq!(leases.begin(3, client, 0, 0), exceeded(Measure::Sessions, 3, 2));
        assert!(leases.begin(4, ip("2001:db8:0:1::1"), 0, 0).is_ok(), "another");
        leases.end(1, Lease::UNLIMITED, 0);
        assert!(leases.begin(5, client, 0, 0).is_ok());
        assert_eq!(leases.begin(6, client, 0, 0), exceeded(Measure::Sessions, 3, 2));
        // A worker dies.
        leases.forget(0, |name| *name != 4);
        assert_eq!(leases.sessions(), 1);
        assert!(leases.begin(7, client, 0, 0).is_ok() && leases.begin(8, client, 0, 0).is_ok());
    }

    #[test]
    fn connections_a_minute() {
        let mut leases = Leases::new(limits(Limit { connections: 3, ..Limit::OFF }));
        let client = ip("192.0.2.1");
        for name in 0..3 {
            assert!(leases.begin(name, client, 0, 0).is_ok());
            leases.end(name, Lease::UNLIMITED, 0);
        }
        assert_eq!(leases.begin(3, client, 0, 1), exceeded(Measure::Connections, 4, 3));
        assert!(leases.begin(4, ip("192.0.2.2"), 0, 1).is_ok());
        assert!(leases.begin(5, client, 0, 120).is_ok());
    }

    #[test]
    fn messages_are_leased_and_given_back() {
        let mut leases = Leases::new(limits(Limit { messages: 160, ..Limit::OFF }));
        let client = ip("192.0.2.1");
        let some = |messages| Ok(Lease { messages, ..Lease::NONE });
        assert_eq!(leases.begin(1, client, 0, 0), Ok(Lease { messages: 0, ..Lease::UNLIMITED }));
        assert!(leases.begin(2, client, 0, 0).is_ok());
        assert_eq!(leases.more(1, Measure::Messages, 0), some(10));
        assert_eq!(leases.more(2, Measure::Messages, 0), some(9));
        leases.end(1, Lease { messages: 10, ..Lease::UNLIMITED }, 0);
        assert!(leases.begin(1, client, 0, 0).is_ok());
        assert_eq!(leases.more(1, Measure::Messages, 0), some(9));
        let mut all = 18;
        while let Ok(more) = leases.more(1, Measure::Messages, 0) {
            all += more.messages;
        }
        assert_eq!(all, 160, "exact to the last");
        assert_eq!(leases.more(1, Measure::Messages, 0), exceeded(Measure::Messages, 161, 160));
        assert_eq!(leases.more(1, Measure::Messages, 130), some(10), "two minutes later");
    }

    #[test]
    fn the_narrowest_scope_decides() {
        let mut all = limits(Limit { recipients: 1000, ..Limit::OFF });
        all.listener = Limit { recipients: 2, ..Limit::OFF };
        all.user = Limit { messages: 1, sessions: 1, ..Limit::OFF };
        let mut leases = Leases::new(all);
        for (name, listener) in [(1, 7), (2, 7), (3, 8)] {
            assert!(leases.begin(name, ip(&format!("192.0.2.{name}")), listener, 0).is_ok());
        }
        assert_eq!(leases.more(1, Measure::Recipients, 0).unwrap().recipients, 1);
        assert_eq!(leases.more(2, Measure::Recipients, 0).unwrap().recipients, 1);
        let refused = leases.more(2, Measure::Recipients, 0).unwrap_err();
        assert_eq!((refused.scope, refused.limit), (Scope::Listener, 2));
        assert!(leases.more(3, Measure::Recipients, 0).is_ok(), "another listener");
        let left = Lease { recipients: 0, ..Lease::UNLIMITED };
        assert_eq!(leases.user(1, "u", left, 0), Ok(Lease { errors: Lease::FREE, ..Lease::NONE }));
        assert_eq!(leases.user(2, "u", left, 0).unwrap_err().scope, Scope::User);
        assert!(leases.user(2, "v", left, 0).is_ok());
        assert_eq!(leases.more(1, Measure::Messages, 0).unwrap().messages, 1);
        assert_eq!(leases.more(1, Measure::Messages, 0).unwrap_err().scope, Scope::User);
        leases.end(1, Lease { messages: 1, ..Lease::NONE }, 0);
        assert!(leases.user(3, "u", left, 0).is_ok());
        assert_eq!(leases.more(3, Measure::Messages, 0).unwrap().messages, 1, "given back");
    }

    #[test]
    fn who_errs_too_often_stays_out() {
        let mut leases = Leases::new(limits(Limit { errors: 2, auth_failures: 2, ..Limit::OFF }));
        let (one, other) = (ip("192.0.2.1"), ip("192.0.2.2"));
        for name in 0..9 {
            assert_eq!(leases.begin(name, one, 0, 0).unwrap().errors, 0);
        }
        assert_eq!(leases.more(1, Measure::Errors, 0).unwrap().errors, 1);
        assert_eq!(leases.more(2, Measure::Errors, 0).unwrap().errors, 1);
        assert_eq!(leases.more(1, Measure::Errors, 0), exceeded(Measure::Errors, 3, 2));
        assert_eq!(leases.begin(9, one, 0, 0), exceeded(Measure::Errors, 2, 2));
        leases.begin(10, other, 0, 0).unwrap();
        leases.auth_failed(10, "u", 0);
        leases.auth_failed(10, "v", 0);
        assert_eq!(leases.begin(11, other, 0, 0), exceeded(Measure::AuthFailures, 2, 2));
    }

    #[test]
    fn who_is_not_known_is_let_be() {
        let mut leases = Leases::new(limits(Limit { messages: 1, sessions: 1, ..Limit::OFF }));
        assert_eq!(leases.more(1, Measure::Messages, 0), Ok(Lease::UNLIMITED));
        leases.end(1, Lease::UNLIMITED, 0);
        assert_eq!(leases.sessions(), 0);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Begin(u8, u8),
        More(u8),
        End(u8),
        Forget(u8),
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..12u8, 0..3u8).prop_map(|(name, client)| Step::Begin(name, client)),
            (0..12u8).prop_map(Step::More),
            (0..12u8).prop_map(Step::End),
            (0..3u8).prop_map(Step::Forget),
            (0..40u64).prop_map(Step::Pass),
        ]
    }

    proptest! {
        /// Whatever happens, nobody has more sessions than the limit, nor more messages in a fixed minute;
        /// and when all sessions have ended, none is counted.
        #[test]
        fn limits_hold(steps in proptest::collection::vec(step(), 0..200)) {
            let mut leases = Leases::new(limits(Limit { sessions: 3, messages: 40, ..Limit::OFF }));
            let mut at = 0;
            let (mut open, mut granted) = (HashMap::<u8, u8>::new(), HashMap::<(u8, u64), u32>::new());
            let client = |n: u8| IpAddr::from([192, 0, 2, n]);
            for step in steps {
                match step {
                    Step::Begin(name, n) if !open.contains_key(&name) => {
                        if let Ok(lease) = leases.begin(name, client(n), 0, at) {
                            open.insert(name, n);
                            *granted.entry((n, at / 60)).or_default() += lease.messages;
                        }
                    }
                    Step::Begin(..) => {}
                    Step::More(name) => {
                        let answer = leases.more(name, Measure::Messages, at);
                        match (open.get(&name), answer) {
                            (Some(n), Ok(lease)) => *granted.entry((*n, at / 60)).or_default() += lease.messages,
                            (Some(_), Err(_)) => {}
                            (None, answer) => prop_assert_eq!(answer, Ok(Lease::UNLIMITED)),
                        }
                    }
                    Step::End(name) => {
                        leases.end(name, Lease::NONE, at);
                        open.remove(&name);
                    }
                    Step::Forget(third) => {
                        leases.forget(at, |name| name % 3 == third);
                        open.retain(|name, _| name % 3 != third);
                    }
                    Step::Pass(seconds) => at += seconds,
                }
                prop_assert_eq!(leases.sessions(), open.len());
                for n in 0..3 {
                    let count = open.values().filter(|c| **c == n).count() as u32;
                    prop_assert!(count <= 3);
                    prop_assert_eq!(leases.clients.sessions(network(client(n))), count);
                }
                prop_assert!(granted.values().all(|count| *count <= 40), "{granted:?}");
            }
            leases.forget(at, |_| true);
            prop_assert!((0..3).all(|n| leases.clients.sessions(network(client(n))) == 0));
        }
    }
}
