//! One cache for every asker: answers by their TTL, and who waits for which question. Pure: time is an
//! argument.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use postern_ipc::resolve::{DnsError, Query, RecordData, Records};

/// Longest that records are kept, seconds: a day. A TTL of a week is a mistake more often than a wish.
pub const POSITIVE_MOST: u32 = 86_400;

/// Longest that an absence is kept, seconds: an hour (RFC 2308 §5 finds one to three hours to work well).
pub const NEGATIVE_MOST: u32 = 3_600;

/// What the cache may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Answers kept.
    pub entries: usize,
    /// Octets of kept answers, about.
    pub octets: usize,
    /// Different questions under way at once.
    pub pending: usize,
    /// Askers waiting for them in all.
    pub waiting: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 10_000, octets: 4 * 1024 * 1024, pending: 1_000, waiting: 20_000 }
    }
}

/// What the DNS said, and for how many seconds that holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// For the asker.
    pub result: Result<Records, DnsError>,
    /// Seconds; 0 is not kept. For an absence it comes from the SOA record (RFC 2308 §5); an absence
    /// without one is not kept, and neither is a failure: whoever asks again wants to know anew.
    pub keep: u32,
}

/// What becomes of a question.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// The answer is known.
    Known(Result<Records, DnsError>),
    /// Nobody has asked: ask the DNS and say what it said by [`Cache::settle`].
    Begin,
    /// It is under way; the asker waits with the others.
    Joined,
    /// Too much is under way.
    Full,
}

/// The cache; `W` names an asker who waits.
#[derive(Debug)]
pub struct Cache<W> {
    limits: Limits,
    entries: HashMap<Query, Entry>,
    by_use: BTreeMap<u64, Query>,
    octets: usize,
    clock: u64,
    pending: HashMap<Query, Vec<W>>,
    waiting: usize,
}

#[derive(Debug)]
struct Entry {
    result: Result<Records, DnsError>,
    expires: Instant,
    used: u64,
    octets: usize,
}

impl<W> Cache<W> {
    /// An empty cache.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            entries: HashMap::new(),
            by_use: BTreeMap::new(),
            octets: 0,
            clock: 0,
            pending: HashMap::new(),
            waiting: 0,
        }
    }

    /// `waiter` asks.
    pub fn ask(&mut self, query: &Query, waiter: W, now: Instant) -> Asked {
        if let Some(result) = self.known(query, now) {
            return Asked::Known(result);
        }
        if self.waiting >= self.limits.waiting {
            return Asked::Full;
        }
        if let Some(waiters) = self.pending.get_mut(query) {
            waiters.push(waiter);
            self.waiting += 1;
            return Asked::Joined;
        }
        if self.pending.len() >= self.limits.pending {
            return Asked::Full;
        }
        self.pending.insert(query.clone(), vec![waiter]);
        self.waiting += 1;
        Asked::Begin
    }

    /// The DNS answered: keeps what may be kept and returns those who waited.
    pub fn settle(&mut self, query: &Query, outcome: &Outcome, now: Instant) -> Vec<W> {
        let waiters = self.pending.remove(query).unwrap_or_default();
        self.waiting -= waiters.len();
        self.drop_entry(query);
        let most = if outcome.result.is_ok() { POSITIVE_MOST } else { NEGATIVE_MOST };
        let keep = outcome.keep.min(most);
        if keep > 0 && !matches!(outcome.result, Err(DnsError::Temporary(_))) {
            self.keep(query, outcome.result.clone(), now + Duration::from_secs(keep.into()));
        }
        waiters
    }

    /// Forgets askers who are gone. Their questions go on: the answers serve others.
    pub fn forget(&mut self, gone: impl Fn(&W) -> bool) {
        for waiters in self.pending.values_mut() {
            waiters.retain(|waiter| !gone(waiter));
        }
        self.waiting = self.pending.values().map(Vec::len).sum();
    }

    /// Forgets every answer: other servers are asked from now on.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.by_use.clear();
        self.octets = 0;
    }

    /// Answers kept, some of them expired.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Different questions under way.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Octets of kept answers, about.
    pub fn octets(&self) -> usize {
        self.octets
    }

    fn known(&mut self, query: &Query, now: Instant) -> Option<Result<Records, DnsError>> {
        let entry = self.entries.get_mut(query)?;
        let left = entry.expires.saturating_duration_since(now).as_secs();
        if entry.expires <= now {
            self.drop_entry(query);
            return None;
        }
        let mut result = entry.result.clone();
        if let Ok(records) = &mut result {
            // What is left of it, so an asker with a cache of its own does not add the two.
            records.ttl = left as u32;
        }
        self.clock += 1;
        if let Some(query) = self.by_use.remove(&entry.used) {
            self.by_use.insert(self.clock, query);
        }
        entry.used = self.clock;
        Some(result)
    }

    fn keep(&mut self, query: &Query, result: Result<Records, DnsError>, expires: Instant) {
        let octets = weight(&result);
        if octets > self.limits.octets || self.limits.entries == 0 {
            return;
        }
        while self.entries.len() >= self.limits.entries || self.octets + octets > self.limits.octets {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            self.drop_entry(&oldest);
        }
        self.clock += 1;
        self.octets += octets;
        self.by_use.insert(self.clock, query.clone());
        self.entries.insert(query.clone(), Entry { result, expires, used: self.clock, octets });
    }

    fn drop_entry(&mut self, query: &Query) {
        if let Some(entry) = self.entries.remove(query) {
            self.by_use.remove(&entry.used);
            self.octets -= entry.octets;
        }
    }
}

/// About what an answer takes in memory, its key, its places in two maps and its allocations included.
fn weight(result: &Result<Records, DnsError>) -> usize {
    const FIXED: usize = 512;
    const EACH: usize = 32;
    let Ok(records) = result else { return FIXED };
    FIXED
        + match &records.data {
            RecordData::Mx(all) => all.iter().map(|(_, host)| EACH + name_len(host.as_ref())).sum::<usize>(),
            RecordData::Addresses(all) => all.len() * EACH,
            RecordData::Ptr(all) => all.iter().map(|host| EACH + name_len(Some(host))).sum(),
            RecordData::Txt(all) => all.iter().map(|text| EACH + text.len()).sum(),
            RecordData::Tlsa(all) => all.iter().map(|(_, _, _, data)| EACH + data.len()).sum(),
        }
}

fn name_len(name: Option<&postern_address::Domain>) -> usize {
    name.map_or(0, |name| name.as_str().len())
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::*;

    use super::*;

    fn query(n: u32) -> Query {
        Query::Ptr(IpAddr::V4(Ipv4Addr::from(n)))
    }

    fn found(keep: u32, size: usize) -> Outcome {
        let data = RecordData::Txt(vec![vec![b'x'; size]]);
        Outcome { result: Ok(Records { data, secure: false, ttl: keep }), keep }
    }

    fn absent(keep: u32) -> Outcome {
        Outcome { result: Err(DnsError::NoSuchName), keep }
    }

    #[test]
    fn one_question_serves_all_who_ask() {
        let (mut cache, now) = (Cache::new(Limits::default()), Instant::now());
        assert_eq!(cache.ask(&query(1), 'a', now), Asked::Begin);
        assert_eq!(cache.ask(&query(1), 'b', now), Asked::Joined);
        assert_eq!(cache.ask(&query(2), 'c', now), Asked::Begin);
        cache.forget(|waiter| *waiter == 'a');
        assert_eq!(cache.settle(&query(1), &found(60, 1), now), ['b']);
        assert_eq!(cache.pending(), 1);
        let later = now + Duration::from_secs(20);
        let Asked::Known(Ok(records)) = cache.ask(&query(1), 'd', later) else { panic!("not kept") };
        assert_eq!(records.ttl, 40);
        assert_eq!(cache.ask(&query(1), 'd', now + Duration::from_secs(60)), Asked::Begin);
    }

    #[test]
    fn times_are_bounded_and_failures_are_not_kept() {
        let (mut cache, now) = (Cache::<()>::new(Limits::default()), Instant::now());
        let after = |seconds: u32| now + Duration::from_secs(u64::from(seconds));
        cache.settle(&query(1), &found(u32::MAX, 1), now);
        cache.settle(&query(2), &absent(u32::MAX), now);
        cache.settle(&query(3), &absent(0), now);
        let failure = Outcome { result: Err(DnsError::Temporary("SERVFAIL".into())), keep: 60 };
        cache.settle(&query(4), &failure, now);
        assert_eq!(cache.len(), 2);
        assert!(matches!(cache.ask(&query(2), (), after(NEGATIVE_MOST - 1)), Asked::Known(Err(_))));
        assert_eq!(cache.ask(&query(2), (), after(NEGATIVE_MOST)), Asked::Begin);
        assert!(matches!(cache.ask(&query(1), (), after(POSITIVE_MOST - 1)), Asked::Known(Ok(_))));
        assert_eq!(cache.ask(&query(1), (), after(POSITIVE_MOST)), Asked::Begin);
    }

    #[test]
    fn the_least_used_goes_first() {
        let limits = Limits { entries: 2, ..Limits::default() };
        let (mut cache, now) = (Cache::new(limits), Instant::now());
        cache.settle(&query(1), &found(60, 1), now);
        cache.settle(&query(2), &found(60, 1), now);
        assert!(matches!(cache.ask(&query(1), (), now), Asked::Known(_)));
        cache.settle(&query(3), &found(60, 1), now);
        assert!(matches!(cache.ask(&query(1), (), now), Asked::Known(_)));
        assert_eq!(cache.ask(&query(2), (), now), Asked::Begin);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Ask(u32, u8),
        Settle(u32, u32, usize),
        Absent(u32, u32),
        Forget(u8),
        Pass(u64),
        Clear,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..20u32, 0..4u8).prop_map(|(q, w)| Step::Ask(q, w)),
            4 => (0..20u32, 0..200u32, 0..3000usize).prop_map(|(q, t, s)| Step::Settle(q, t, s)),
            2 => (0..20u32, 0..200u32).prop_map(|(q, t)| Step::Absent(q, t)),
            1 => (0..4u8).prop_map(Step::Forget),
            1 => (0..100u64).prop_map(Step::Pass),
            1 => Just(Step::Clear),
        ]
    }

    proptest! {
        #[test]
        fn bounds_hold_and_nobody_is_lost(steps in proptest::collection::vec(step(), 0..200)) {
            let limits = Limits { entries: 8, octets: 9_000, pending: 4, waiting: 10 };
            let mut cache = Cache::new(limits);
            let mut now = Instant::now();
            // The model: who waits for what, and until when an answer may be given without asking.
            let mut waiting: Vec<(u32, u8)> = Vec::new();
            let mut fresh: HashMap<u32, Instant> = HashMap::new();
            for step in steps {
                match step {
                    Step::Ask(q, w) => match cache.ask(&query(q), w, now) {
                        Asked::Known(_) => prop_assert!(fresh.get(&q).is_some_and(|until| *until > now)),
                        Asked::Begin | Asked::Joined => waiting.push((q, w)),
                        Asked::Full => prop_assert!(cache.pending() == 4 || waiting.len() == 10),
                    },
                    Step::Settle(q, _, _) | Step::Absent(q, _) => {
                        let outcome = match step {
                            Step::Settle(_, ttl, size) => found(ttl, size),
                            Step::Absent(_, ttl) => absent(ttl),
                            _ => unreachable!(),
                        };
                        fresh.insert(q, now + Duration::from_secs(outcome.keep.into()));
                        let got = cache.settle(&query(q), &outcome, now);
                        let expected: Vec<u8> =
                            waiting.iter().filter(|(at, _)| *at == q).map(|(_, w)| *w).collect();
                        prop_assert_eq!(got, expected);
                        waiting.retain(|(at, _)| *at != q);
                    }
                    Step::Forget(w) => {
                        cache.forget(|waiter| *waiter == w);
                        waiting.retain(|(_, waiter)| *waiter != w);
                    }
                    Step::Pass(seconds) => now += Duration::from_secs(seconds),
                    Step::Clear => {
                        cache.clear();
                        fresh.clear();
                    }
                }
                prop_assert!(cache.len() <= 8 && cache.octets() <= 9_000 && cache.pending() <= 4);
                prop_assert_eq!(cache.waiting, waiting.len());
                prop_assert_eq!(cache.by_use.len(), cache.entries.len());
                prop_assert_eq!(cache.octets(), cache.entries.values().map(|e| e.octets).sum::<usize>());
            }
        }
    }
}
