//! How long to wait before a dead program is started again.

use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_millis(50);
const MOST: Duration = Duration::from_secs(30);

/// A program that ran this long had started well: the next death counts as its first.
const SETTLED: Duration = Duration::from_secs(10);

/// One program's deaths.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The program started at `started` died at `now`: how long to wait. 50 ms, doubling to 30 s.
    pub(crate) fn died(&mut self, started: Instant, now: Instant) -> Duration {
        if now.saturating_duration_since(started) >= SETTLED {
            self.failures = 0;
        }
        let wait = FIRST.saturating_mul(1u32 << self.failures.min(16)).min(MOST);
        self.failures += 1;
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_and_settles() {
        let (mut backoff, start) = (Backoff::default(), Instant::now());
        let waits: Vec<_> = (0..12).map(|_| backoff.died(start, start).as_millis()).collect();
        assert_eq!(waits[..4], [50, 100, 200, 400]);
        assert_eq!(waits[11], 30_000);
        assert_eq!(backoff.died(start, start + SETTLED), FIRST);
    }
}
