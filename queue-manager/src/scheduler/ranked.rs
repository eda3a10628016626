//! A queue with priorities in which nobody starves.

use std::collections::{BTreeMap, VecDeque};

/// One turn in this many is the oldest's, whatever its priority.
const OLDEST_TURN: u32 = 4;

/// What waits, by priority (RFC 6710). The first of the highest priority goes next; every fourth turn goes to the
/// one that waits longest, so that however much comes in above it, it gets on at a quarter of the pace at least.
#[derive(Clone, Debug)]
pub(super) struct Ranked<T> {
    levels: BTreeMap<i8, VecDeque<(i64, T)>>,
    length: usize,
    /// Numbers for the ends: what waits longest has the lowest.
    front: i64,
    back: i64,
    turn: u32,
}

impl<T> Default for Ranked<T> {
    fn default() -> Self {
        Self { levels: BTreeMap::new(), length: 0, front: 0, back: 0, turn: 0 }
    }
}

impl<T> Ranked<T> {
    pub(super) fn push_back(&mut self, priority: i8, item: T) {
        self.levels.entry(priority).or_default().push_back((self.back, item));
        self.back += 1;
        self.length += 1;
    }

    /// Back to where it was taken from: before all others of its priority, as the oldest.
    pub(super) fn push_front(&mut self, priority: i8, item: T) {
        self.front -= 1;
        self.levels.entry(priority).or_default().push_front((self.front, item));
        self.length += 1;
    }

    pub(super) fn pop_front(&mut self) -> Option<T> {
        self.turn = self.turn.wrapping_add(1);
        let highest = *self.levels.last_key_value()?.0;
        let level = if self.levels.len() > 1 && self.turn.is_multiple_of(OLDEST_TURN) {
            let oldest = self.levels.iter().min_by_key(|(_, queue)| queue.front().map(|(number, _)| *number));
            oldest.map_or(highest, |(priority, _)| *priority)
        } else {
            highest
        };
        let queue = self.levels.get_mut(&level)?;
        let item = queue.pop_front();
        if queue.is_empty() {
            self.levels.remove(&level);
        }
        self.length -= usize::from(item.is_some());
        item.map(|(_, item)| item)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub(super) fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.levels.retain(|_, queue| {
            queue.retain(|(_, item)| keep(item));
            !queue.is_empty()
        });
        self.length = self.levels.values().map(VecDeque::len).sum();
    }

    /// Everything, the highest priority first.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = T> + use<T> {
        self.length = 0;
        std::mem::take(&mut self.levels).into_values().rev().flatten().map(|(_, item)| item)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_highest_first_and_the_oldest_in_between() {
        let mut queue = Ranked::default();
        for (priority, item) in [(0, 'a'), (0, 'b'), (9, 'c'), (-3, 'd'), (9, 'e'), (9, 'f'), (9, 'g')] {
            queue.push_back(priority, item);
        }
        let order: String = std::iter::from_fn(|| queue.pop_front()).collect();
        assert_eq!(order, "cefagbd");
    }

    #[test]
    fn without_priorities_it_is_a_queue() {
        let mut queue = Ranked::default();
        (0..20).for_each(|n| queue.push_back(0, n));
        queue.push_front(0, 99);
        let order: Vec<i32> = std::iter::from_fn(|| queue.pop_front()).collect();
        assert_eq!(order, [[99].to_vec(), (0..20).collect()].concat());
    }

    proptest! {
        /// Whatever keeps coming in above it, what waits is served: after n turns for each that waits.
        #[test]
        fn nobody_starves(before in proptest::collection::vec(-9i8..=9, 1..20), above in 0i8..=9) {
            let mut queue = Ranked::default();
            before.iter().for_each(|priority| queue.push_back(*priority, true));
            let mut left = before.len();
            for _ in 0..before.len() as u32 * OLDEST_TURN {
                queue.push_back(above, false);
                left -= usize::from(queue.pop_front() == Some(true));
            }
            prop_assert_eq!(left, 0);
        }

        #[test]
        fn nothing_is_lost(items in proptest::collection::vec((-9i8..=9, any::<bool>()), 0..40), keep in 0usize..5) {
            let mut queue = Ranked::default();
            for (n, (priority, front)) in items.iter().enumerate() {
                if *front { queue.push_front(*priority, n) } else { queue.push_back(*priority, n) }
            }
            prop_assert_eq!(queue.length, items.len());
            queue.retain(|n| n % 5 != keep);
            let mut left: Vec<usize> = queue.clone().drain().collect();
            let mut popped: Vec<usize> = std::iter::from_fn(|| queue.pop_front()).collect();
            prop_assert!(queue.is_empty());
            left.sort_unstable();
            popped.sort_unstable();
            let expected: Vec<usize> = (0..items.len()).filter(|n| n % 5 != keep).collect();
            prop_assert_eq!(&left, &expected);
            prop_assert_eq!(popped, expected);
        }
    }
}
