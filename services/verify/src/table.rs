//! Counters by a number: who has how many sessions, and what it did in the last minute. Pure; of bounded
//! size: when it is full, somebody who has no session and did least is forgotten.
//!
//! An entry is 40 octets and its place in the index 4 to 16, so that a million clients stay below 64 MiB. A
//! rate is that of a sliding minute, from two fixed ones: what the minute before did counts for the part of
//! it that the last 60 seconds still cover.

use std::hash::{BuildHasher, RandomState};

/// Rates that are kept.
pub const RATES: usize = 5;

/// Most of one rate in a minute; more is not told apart.
pub const RATE_MOST: u32 = u16::MAX as u32;

/// Entries looked at when one has to go.
const LOOKED_AT: usize = 32;

/// What is not in the index.
const FREE: u32 = u32::MAX;

/// Seconds of a window.
const MINUTE: u64 = 60;

/// Counters of many.
#[derive(Debug)]
pub struct Table {
    entries: Vec<Entry>,
    /// Places in `entries`, by hash, probed one after the other; a power of two, at most half full.
    index: Vec<u32>,
    most: usize,
    /// Where the search for somebody to forget goes on.
    hand: usize,
    hasher: RandomState,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    key: u64,
    sessions: u32,
    /// The minute that `now` counts.
    minute: u32,
    now: [u16; RATES],
    before: [u16; RATES],
}

impl Table {
    /// Nobody is counted; at most `most` will be at once.
    pub fn new(most: usize) -> Self {
        let most = most.clamp(1, FREE as usize / 4);
        Self { entries: Vec::new(), index: vec![FREE; 16], most, hand: 0, hasher: RandomState::new() }
    }

    /// Sessions of `key` now.
    pub fn sessions(&self, key: u64) -> u32 {
        self.find(key).map_or(0, |entry| entry.sessions)
    }

    /// How often `rate` happened in the minute before `at` (seconds from any fixed time).
    pub fn rate(&self, key: u64, rate: usize, at: u64) -> u32 {
        self.find(key).map_or(0, |entry| entry.rate(rate, at))
    }

    /// A session begins. False when there is no place for another key, all others having sessions.
    pub fn begin(&mut self, key: u64, at: u64) -> bool {
        let Some(entry) = self.entry(key, at) else { return false };
        entry.sessions = entry.sessions.saturating_add(1);
        true
    }

    /// A session ends.
    pub fn end(&mut self, key: u64) {
        if let Some(entry) = self.find_mut(key) {
            entry.sessions = entry.sessions.saturating_sub(1);
        }
    }

    /// Something happened `count` times.
    pub fn count(&mut self, key: u64, rate: usize, count: u32, at: u64) {
        if let Some(entry) = self.entry(key, at)
            && let Some(now) = entry.now.get_mut(rate)
        {
            *now = u32::from(*now).saturating_add(count).min(RATE_MOST) as u16;
        }
    }

    /// Something that was counted did not happen after all. What is not known any more is left.
    pub fn uncount(&mut self, key: u64, rate: usize, count: u32, at: u64) {
        let Some(entry) = self.find_mut(key) else { return };
        entry.turn(at);
        if let (Some(now), Some(before)) = (entry.now.get_mut(rate), entry.before.get_mut(rate)) {
            let rest = count.saturating_sub(u32::from(*now));
            *now = u32::from(*now).saturating_sub(count) as u16;
            *before = u32::from(*before).saturating_sub(rest) as u16;
        }
    }

    /// Keys that are counted.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Nobody is counted.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Octets that it holds.
    pub fn octets(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>() + self.index.capacity() * size_of::<u32>()
    }

    fn find(&self, key: u64) -> Option<&Entry> {
        self.entries.get(self.place(key)?)
    }

    fn find_mut(&mut self, key: u64) -> Option<&mut Entry> {
        let place = self.place(key)?;
        self.entries.get_mut(place)
    }

    /// The entry of `key` in the minute of `at`, made if need be.
    fn entry(&mut self, key: u64, at: u64) -> Option<&mut Entry> {
        let place = match self.place(key) {
            Some(place) => place,
            None => self.make(key, at)?,
        };
        let entry = self.entries.get_mut(place)?;
        entry.turn(at);
        Some(entry)
    }

    fn place(&self, key: u64) -> Option<usize> {
        self.index.get(self.slot(key)).filter(|place| **place != FREE).map(|place| *place as usize)
    }

    /// Where `key` is in the index, or would be.
    fn slot(&self, key: u64) -> usize {
        let mask = self.index.len() - 1;
        let mut slot = self.home(key);
        while let Some(&place) = self.index.get(slot) {
            if place == FREE || self.entries.get(place as usize).is_some_and(|entry| entry.key == key) {
                break;
            }
            slot = (slot + 1) & mask;
        }
        slot
    }

    /// Keyed: nobody can choose addresses that fall together.
    fn home(&self, key: u64) -> usize {
        self.hasher.hash_one(key) as usize & (self.index.len() - 1)
    }

    fn make(&mut self, key: u64, at: u64) -> Option<usize> {
        let entry = Entry { key, sessions: 0, minute: minute(at), now: [0; RATES], before: [0; RATES] };
        let place = if self.entries.len() < self.most {
            if (self.entries.len() + 1) * 2 > self.index.len() {
                self.grow();
            }
            if self.entries.len() == self.entries.capacity() {
                // Not doubled: at a million a doubling would be most of what may be held.
                let more = (self.entries.len() / 8).max(64).min(self.most - self.entries.len());
                self.entries.reserve_exact(more);
            }
            self.entries.push(entry);
            self.entries.len() - 1
        } else {
            let place = self.dispensable(at)?;
            let old = self.entries.get(place)?.key;
            self.unindex(old);
            *self.entries.get_mut(place)? = entry;
            place
        };
        let slot = self.slot_for_new(key);
        *self.index.get_mut(slot)? = place as u32;
        Some(place)
    }

    /// The first free place from `key`'s own.
    fn slot_for_new(&self, key: u64) -> usize {
        let mask = self.index.len() - 1;
        let mut slot = self.home(key);
        while self.index.get(slot).is_some_and(|place| *place != FREE) {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn grow(&mut self) {
        self.index = vec![FREE; self.index.len() * 2];
        for place in 0..self.entries.len() {
            let slot = self.slot_for_new(self.entries[place].key);
            self.index[slot] = place as u32;
        }
    }

    /// Somebody without a session: of those next to be looked at, the one that did least. Looks further
    /// only as long as all have sessions.
    fn dispensable(&mut self, at: u64) -> Option<usize> {
        let mut found: Option<(u32, usize)> = None;
        for looked in 0..self.entries.len() {
            if looked >= LOOKED_AT && found.is_some() {
                break;
            }
            let place = self.hand;
            self.hand = (self.hand + 1) % self.entries.len();
            let entry = self.entries.get(place).filter(|entry| entry.sessions == 0);
            let Some(weight) = entry.map(|entry| entry.weight(at)) else { continue };
            if found.is_none_or(|(least, _)| weight < least) {
                found = Some((weight, place));
            }
            if weight == 0 {
                break;
            }
        }
        found.map(|(_, place)| place)
    }

    /// Takes a key out of the index, and moves up those behind it that would not be found any more.
    fn unindex(&mut self, key: u64) {
        let mask = self.index.len() - 1;
        let mut free = self.slot(key);
        self.index[free] = FREE;
        let mut slot = (free + 1) & mask;
        while self.index[slot] != FREE {
            let home = self.home(self.entries[self.index[slot] as usize].key);
            // Its way from home to here leads over the free place.
            if (slot.wrapping_sub(home) & mask) >= (slot.wrapping_sub(free) & mask) {
                self.index[free] = self.index[slot];
                self.index[slot] = FREE;
                free = slot;
            }
            slot = (slot + 1) & mask;
        }
    }
}

impl Entry {
    fn rate(&self, rate: usize, at: u64) -> u32 {
        let of = |counts: &[u16; RATES]| counts.get(rate).copied().map_or(0, u32::from);
        let covered = (MINUTE - at % MINUTE) as u32;
        let part = |count: u32| (count * covered).div_ceil(MINUTE as u32);
        match minute(at).saturating_sub(self.minute) {
            0 => of(&self.now) + part(of(&self.before)),
            1 => part(of(&self.now)),
            _ => 0,
        }
    }

    /// Makes `now` count the minute of `at`.
    fn turn(&mut self, at: u64) {
        match minute(at).saturating_sub(self.minute) {
            0 => return,
            1 => self.before = self.now,
            _ => self.before = [0; RATES],
        }
        self.now = [0; RATES];
        self.minute = minute(at);
    }

    fn weight(&self, at: u64) -> u32 {
        (0..RATES).map(|rate| self.rate(rate, at)).sum()
    }
}

fn minute(at: u64) -> u32 {
    (at / MINUTE) as u32
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_million_clients_in_64_mib() {
        const CLIENTS: u64 = 1_000_000;
        let mut table = Table::new(1 << 20);
        for client in 0..CLIENTS {
            table.count(client, 0, 1 + (client % 7) as u32, 1000);
        }
        assert_eq!(table.len() as u64, CLIENTS);
        assert!((0..CLIENTS).all(|client| table.rate(client, 0, 1000) == 1 + (client % 7) as u32));
        assert!(table.octets() <= 64 << 20, "{} octets", table.octets());
        // And not more, whoever comes.
        for client in CLIENTS..CLIENTS + 100_000 {
            table.count(client, 0, 1, 1000);
        }
        assert_eq!(table.len(), 1 << 20);
        assert!(table.octets() <= 64 << 20, "{} octets", table.octets());
    }

    #[test]
    fn a_sliding_minute() {
        let mut table = Table::new(10);
        table.count(1, 0, 60, 59);
        assert_eq!(table.rate(1, 0, 59), 60);
        // As if they had come evenly over the minute before.
        assert_eq!(table.rate(1, 0, 60), 60);
        assert_eq!(table.rate(1, 0, 90), 30);
        table.count(1, 0, 5, 90);
        assert_eq!(table.rate(1, 0, 119), 6);
        assert_eq!((table.rate(1, 0, 120), table.rate(1, 0, 180)), (5, 0));
        table.count(1, 1, 100_000, 200);
        assert_eq!(table.rate(1, 1, 200), RATE_MOST);
        table.uncount(1, 1, 65_530, 200);
        assert_eq!(table.rate(1, 1, 200), 5);
    }

    #[test]
    fn who_has_sessions_is_not_forgotten() {
        let mut table = Table::new(100);
        for key in 0..99 {
            assert!(table.begin(key, 0));
        }
        for key in 1000..2000 {
            assert!(table.begin(key, 0));
            table.end(key);
        }
        assert!((0..99).all(|key| table.sessions(key) == 1));
        assert!(table.begin(99, 0));
        assert!(!table.begin(100, 0), "all have sessions");
        table.end(50);
        assert!(table.begin(100, 0));
        assert_eq!((table.sessions(50), table.len()), (0, 100));
    }

    #[test]
    fn of_those_looked_at_the_quietest_goes() {
        let mut table = Table::new(8);
        for key in 0..8 {
            table.count(key, 0, if key == 5 { 1 } else { 9 }, 0);
        }
        table.count(8, 0, 1, 0);
        assert_eq!(table.rate(5, 0, 0), 0);
        assert!((0..9).filter(|key| *key != 5).all(|key| table.rate(key, 0, 0) > 0));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Begin(u64),
        End(u64),
        Count(u64, u32),
        Uncount(u64, u32),
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..40u64).prop_map(Step::Begin),
            (0..40u64).prop_map(Step::End),
            (0..40u64, 0..9u32).prop_map(|(key, n)| Step::Count(key, n)),
            (0..40u64, 0..9u32).prop_map(|(key, n)| Step::Uncount(key, n)),
            (0..50u64).prop_map(Step::Pass),
        ]
    }

    proptest! {
        /// With room for all it counts as a map would; a rate is never below what came in its own minute,
        /// nor above what came in two.
        #[test]
        fn as_a_map(steps in proptest::collection::vec(step(), 0..300)) {
            let mut table = Table::new(64);
            let (mut at, mut sessions) = (0, HashMap::<u64, u32>::new());
            let mut counts = HashMap::<(u64, u64), u32>::new();
            for step in steps {
                match step {
                    Step::Begin(key) => {
                        prop_assert!(table.begin(key, at));
                        *sessions.entry(key).or_default() += 1;
                    }
                    Step::End(key) => {
                        table.end(key);
                        let count = sessions.entry(key).or_default();
                        *count = count.saturating_sub(1);
                    }
                    Step::Count(key, n) => {
                        table.count(key, 2, n, at);
                        *counts.entry((key, at / 60)).or_default() += n;
                    }
                    Step::Uncount(key, n) => {
                        table.uncount(key, 2, n, at);
                        let now = counts.entry((key, at / 60)).or_default();
                        let rest = n.saturating_sub(*now);
                        *now = now.saturating_sub(n);
                        if at >= 60 {
                            let before = counts.entry((key, at / 60 - 1)).or_default();
                            *before = before.saturating_sub(rest);
                        }
                    }
                    Step::Pass(seconds) => at += seconds,
                }
                for key in 0..40 {
                    prop_assert_eq!(table.sessions(key), sessions.get(&key).copied().unwrap_or(0));
                    let of = |minute| counts.get(&(key, minute)).copied().unwrap_or(0);
                    let (now, before) = (of(at / 60), if at >= 60 { of(at / 60 - 1) } else { 0 });
                    let rate = table.rate(key, 2, at);
                    prop_assert!(rate >= now && rate <= now + before, "{} of {} and {}", rate, now, before);
                }
            }
        }

        /// However full it was, every key in it is found, once.
        #[test]
        fn the_index_holds(keys in proptest::collection::vec(0..500u64, 0..400), most in 1..40usize) {
            let mut table = Table::new(most);
            for (n, key) in keys.iter().enumerate() {
                table.count(*key, 0, 1, n as u64);
                prop_assert!(table.rate(*key, 0, n as u64) >= 1);
                prop_assert!(table.len() <= most);
                for (place, entry) in table.entries.iter().enumerate() {
                    prop_assert_eq!(table.place(entry.key), Some(place));
                }
                let indexed = table.index.iter().filter(|place| **place != FREE).count();
                prop_assert_eq!(indexed, table.len());
            }
        }
    }
}
