//! When a worker has nearly as many sessions as it may have, those who hold them for nothing have to go sooner:
//! timeouts shorten and fewer errors are borne, by themselves, before anybody is refused. (Postfix does the same
//! by starting other processes, `stress=yes`.)

use std::time::Duration;

/// Where it begins, in hundredths of the limit.
const BEGINS: usize = 80;

/// Where it ends: lower, so that it does not come and go with each session.
const ENDS: usize = 70;

/// What becomes of times and numbers: 300 s of a command become 10 s, 180 s of content 10 s, 20 errors 2.
const COMMAND_PART: u32 = 30;
const DATA_PART: u32 = 18;
const ERRORS_PART: u32 = 10;

/// No time becomes shorter.
const SHORTEST: Duration = Duration::from_secs(1);

/// Whether there are nearly too many sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Overload {
    on: bool,
}

impl Overload {
    /// There are so many sessions now, of so many that there may be. Says what has changed, if something has.
    pub(crate) fn update(&mut self, sessions: usize, most: usize) -> Option<bool> {
        let part = if self.on { ENDS } else { BEGINS };
        let on = sessions.saturating_mul(100) >= most.saturating_mul(part).max(1);
        if on == self.on {
            return None;
        }
        self.on = on;
        Some(on)
    }

    /// It is so now.
    pub(crate) fn is_on(self) -> bool {
        self.on
    }

    /// How long a command may take.
    pub(crate) fn command(self, usual: Duration) -> Duration {
        self.shorter(usual, COMMAND_PART)
    }

    /// How long a piece of content may take.
    pub(crate) fn data(self, usual: Duration) -> Duration {
        self.shorter(usual, DATA_PART)
    }

    /// How many errors are borne.
    pub(crate) fn errors(self, usual: u32) -> u32 {
        if self.on { (usual / ERRORS_PART).max(1) } else { usual }
    }

    fn shorter(self, usual: Duration, part: u32) -> Duration {
        if self.on { (usual / part).max(SHORTEST).min(usual) } else { usual }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn begins_at_80_and_ends_below_70() {
        let mut overload = Overload::default();
        assert_eq!(overload.update(79, 100), None);
        assert_eq!(overload.update(80, 100), Some(true));
        let (command, data) = (Duration::from_secs(300), Duration::from_secs(180));
        assert_eq!((overload.command(command), overload.data(data)), (10 * SHORTEST, 10 * SHORTEST));
        assert_eq!((overload.errors(20), overload.errors(3)), (2, 1));
        assert_eq!((overload.update(100, 100), overload.update(70, 100)), (None, None));
        assert_eq!(overload.update(69, 100), Some(false));
        assert_eq!((overload.command(command), overload.errors(20)), (command, 20));
    }

    proptest! {
        #[test]
        fn never_longer_never_more(
            counts in proptest::collection::vec(0..200usize, 1..50),
            most in 1..150usize,
            ms in 0..1_000_000u64,
            errors in 1..100u32,
        ) {
            let (mut overload, mut was) = (Overload::default(), false);
            let usual = Duration::from_millis(ms);
            for count in counts {
                if let Some(on) = overload.update(count, most) {
                    prop_assert_ne!(on, was);
                    was = on;
                }
                prop_assert!(count * 100 < most * 80 || was, "on from 80 %");
                prop_assert!(count > 0 || !was, "an empty worker is not overloaded");
                prop_assert!(overload.command(usual) <= usual && overload.data(usual) <= usual);
                prop_assert!((1..=errors).contains(&overload.errors(errors)));
            }
        }
    }
}
