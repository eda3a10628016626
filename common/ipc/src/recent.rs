//! What was answered a moment ago, so that the same is not asked again at once.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use crate::link::RequestId;

/// How long an answer is good for, from the moment that it was asked for. Mail comes in rushes in which the same
/// recipients come again; and who changes a table does not see it sooner, since tables are looked at as often.
const KEEP: Duration = Duration::from_secs(1);

/// Most answers kept: strangers choose what is asked.
const MOST: usize = 4_096;

/// Questions of type `K` that are under way, and answers of type `V` to those of the last second. Which answers may be
/// given twice is the asker's to say: never that nobody knows, since somebody may be waiting for that to change.
#[derive(Debug)]
pub struct Recent<K, V> {
    asked: HashMap<RequestId, (Instant, K)>,
    known: HashMap<K, (Instant, V)>,
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Self { asked: HashMap::new(), known: HashMap::new() }
    }
}

impl<K: Eq + Hash, V> Recent<K, V> {
    /// What was answered, if it was asked within the last second.
    pub fn get(&self, key: &K, now: Instant) -> Option<&V> {
        let (asked, answer) = self.known.get(key)?;
        (now.saturating_duration_since(*asked) < KEEP).then_some(answer)
    }

    /// It is asked now.
    pub fn asked(&mut self, id: RequestId, key: K, now: Instant) {
        self.asked.insert(id, (now, key));
    }

    /// It was answered; none when that is not to be given twice.
    pub fn answered(&mut self, id: RequestId, answer: Option<V>) {
        let (Some((asked, key)), Some(answer)) = (self.asked.remove(&id), answer) else { return };
        if self.known.len() >= MOST {
            self.known.clear();
        }
        self.known.insert(key, (asked, answer));
    }

    /// Everything is asked anew, and what is under way is not remembered: it may be answered by what was before.
    pub fn forget(&mut self) {
        self.asked.clear();
        self.known.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_good_for_a_second_from_its_question() {
        let (mut recent, start) = (Recent::default(), Instant::now());
        recent.asked(1, "ann", start);
        assert_eq!(recent.get(&"ann", start), None, "not answered yet");
        recent.answered(1, Some("here"));
        assert_eq!(recent.get(&"ann", start + KEEP - Duration::from_nanos(1)), Some(&"here"));
        assert_eq!(recent.get(&"ann", start + KEEP), None);
        assert_eq!(recent.get(&"bob", start), None);
    }

    #[test]
    fn what_is_not_to_be_given_twice_is_not() {
        let (mut recent, start) = (Recent::<_, ()>::default(), Instant::now());
        recent.asked(1, "ann", start);
        recent.answered(1, None);
        recent.answered(2, Some(()));
        assert_eq!(recent.get(&"ann", start), None);
        assert!(recent.asked.is_empty() && recent.known.is_empty());
    }

    #[test]
    fn what_was_asked_before_everything_was_forgotten_is_not_remembered() {
        let (mut recent, start) = (Recent::default(), Instant::now());
        recent.asked(1, "ann", start);
        recent.asked(2, "bob", start);
        recent.answered(1, Some(1));
        recent.forget();
        recent.answered(2, Some(2));
        assert_eq!((recent.get(&"ann", start), recent.get(&"bob", start)), (None, None));
    }

    #[test]
    fn strangers_cannot_fill_it() {
        let (mut recent, start) = (Recent::default(), Instant::now());
        for id in 0..3 * MOST as u64 {
            recent.asked(id, id, start);
            recent.answered(id, Some(()));
            assert!(recent.known.len() <= MOST);
            assert_eq!(recent.get(&id, start), Some(&()));
        }
    }
}
