//! When to look at which connection again. Coarse and lazy: an entry says "look", not "time out", so a
//! connection that was active moves nothing here; it is looked at, found alive, and entered anew.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Entries fall together in ticks, so that thousands of connections wake us a few times a second.
const TICK: Duration = Duration::from_millis(250);

/// No entry lies further ahead, so that those of connections that are gone do not pile up.
const HORIZON: Duration = Duration::from_secs(16);

/// Connections by the tick they are to be looked at.
#[derive(Debug)]
pub(crate) struct Deadlines<K> {
    start: Instant,
    ticks: BTreeMap<u64, Vec<K>>,
}

impl<K> Deadlines<K> {
    pub(crate) fn new(start: Instant) -> Self {
        Self { start, ticks: BTreeMap::new() }
    }

    /// Looks at `key` at `due`, or earlier; not before `now`.
    pub(crate) fn enter(&mut self, now: Instant, due: Instant, key: K) {
        let at = due.clamp(now, now + HORIZON).saturating_duration_since(self.start);
        let tick = at.as_millis().div_ceil(TICK.as_millis()) as u64;
        self.ticks.entry(tick).or_default().push(key);
    }

    /// Those to be looked at now; each entry is gone with it.
    pub(crate) fn take(&mut self, now: Instant) -> Vec<K> {
        let mut due = Vec::new();
        while let Some(entry) = self.ticks.first_entry() {
            if self.start + tick_length(*entry.key()) > now {
                break;
            }
            due.extend(entry.remove());
        }
        due
    }

    /// When there is something to look at.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.ticks.keys().next().map(|tick| self.start + tick_length(*tick))
    }
}

fn tick_length(ticks: u64) -> Duration {
    Duration::from_millis(ticks.saturating_mul(TICK.as_millis() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_early_never_lost() {
        let start = Instant::now();
        let mut deadlines = Deadlines::new(start);
        assert_eq!(deadlines.next(), None);
        deadlines.enter(start, start + Duration::from_millis(300), 'a');
        deadlines.enter(start, start + Duration::from_secs(3600), 'b');
        assert!(deadlines.take(start + Duration::from_millis(300)).is_empty());
        let next = deadlines.next().unwrap();
        assert!(next >= start + Duration::from_millis(300) && next <= start + Duration::from_millis(550));
        assert_eq!(deadlines.take(next), ['a']);
        let next = deadlines.next().unwrap();
        assert!(next <= start + HORIZON + TICK);
        assert_eq!(deadlines.take(next), ['b']);
        // Due in the past is due at the next tick.
        deadlines.enter(next, start, 'c');
        assert_eq!(deadlines.take(next + TICK), ['c']);
        assert_eq!(deadlines.next(), None);
    }
}
