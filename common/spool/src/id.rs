//! Queue ids: unique, ordered by time, 13 characters, 8 bytes in memory.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Crockford's base 32: no I, L, O, U, so an id survives being read over the telephone.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// Characters of an id: 11 for microseconds since 1970 (55 bits), 2 for the producer's slot (10 bits).
pub const QUEUE_ID_LEN: usize = 13;

/// Names one message for its whole life in the queue. Ids of one producer grow strictly; producers
/// differ in their slot, so no two are the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct QueueId(u64);

/// Which producer made an id: 0 the queue-manager, 1 to 511 smtpd workers, 512 to 1023 local programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot(u16);

/// Makes the ids of one producer.
#[derive(Debug)]
pub struct IdAllocator {
    slot: Slot,
    last_micros: u64,
}

impl QueueId {
    /// Parses 13 characters of the alphabet, in either case.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != QUEUE_ID_LEN {
            return None;
        }
        text.bytes()
            .try_fold(0u64, |id, c| {
                let digit = ALPHABET.iter().position(|a| *a == c.to_ascii_uppercase())? as u64;
                id.checked_mul(32)?.checked_add(digit)
            })
            .map(Self)
    }

    /// The number behind the id, for compact tables.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The inverse of [`QueueId::as_u64`].
    pub const fn from_u64(id: u64) -> Self {
        Self(id)
    }

    /// When the id was made, microseconds since 1970.
    pub const fn micros(self) -> u64 {
        self.0 >> 10
    }
}

impl Slot {
    /// The queue-manager's own messages: bounces, and what it took from `drop/`.
    pub const QUEUE_MANAGER: Self = Self(0);

    /// The slot of smtpd worker `n`, counted from 0; workers past the 510th share.
    pub const fn worker(n: u16) -> Self {
        Self(1 + n % 511)
    }

    /// A slot for a local program, from a random number: several may run at once.
    pub const fn local(random: u16) -> Self {
        Self(512 + random % 512)
    }
}

impl IdAllocator {
    /// An allocator for one producer.
    pub const fn new(slot: Slot) -> Self {
        Self { slot, last_micros: 0 }
    }

    /// The next id at `now_micros` since 1970. A clock that stands or steps back does not repeat one.
    pub fn next(&mut self, now_micros: u64) -> QueueId {
        self.last_micros = now_micros.max(self.last_micros + 1);
        QueueId(((self.last_micros & ((1 << 54) - 1)) << 10) | u64::from(self.slot.0))
    }
}

impl fmt::Display for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; QUEUE_ID_LEN];
        for (n, c) in text.iter_mut().enumerate() {
            *c = ALPHABET[(self.0 >> (5 * (QUEUE_ID_LEN - 1 - n))) as usize & 31];
        }
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QueueId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_grow_and_read_back() {
        let mut ids = IdAllocator::new(Slot::worker(7));
        let first = ids.next(1_790_000_000_000_000);
        let same_instant = ids.next(1_790_000_000_000_000);
        let clock_went_back = ids.next(1);
        assert!(first < same_instant && same_instant < clock_went_back);
        assert_eq!(QueueId::parse(&first.to_string()), Some(first));
        assert_eq!(QueueId::parse(&first.to_string().to_lowercase()), Some(first));
        assert_eq!(first.micros(), 1_790_000_000_000_000);
    }

    #[test]
    fn refused() {
        for text in ["", "0", "000000000000U", "ZZZZZZZZZZZZZ", "00000000000000", "0000000000/00"] {
            assert_eq!(QueueId::parse(text), None, "{text:?}");
        }
    }
}
