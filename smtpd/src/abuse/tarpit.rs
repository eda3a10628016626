//! Whoever errs again and again waits for each reply, longer each time: no thread, no sleep, the reply is
//! written later.

use std::time::Duration;

/// No wait is longer than so many steps.
const STEPS_MOST: u32 = 10;

/// How long the reply to this error waits: nothing up to half of the errors that end the session, then one
/// step more with each.
pub(crate) fn delay(errors: u32, most: u32, step: Duration) -> Duration {
    step * errors.saturating_sub(most / 2).min(STEPS_MOST)
}

/// How long content may take in all: the silence that is allowed, and the time that a slow line needs
/// (Postfix's `smtpd_min_data_rate`). Who trickles an octet a minute holds no session for hours.
pub(crate) fn content_time(silence: Duration, octets: u64) -> Duration {
    const OCTETS_A_SECOND: u64 = 500;
    silence.saturating_add(Duration::from_secs(octets / OCTETS_A_SECOND))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_and_ends() {
        let step = Duration::from_secs(1);
        let waits: Vec<u64> = (0..24).map(|errors| delay(errors, 20, step).as_secs()).collect();
        assert_eq!(waits[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(waits[12..], [2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 10, 10]);
        assert_eq!(delay(u32::MAX, 1, Duration::ZERO), Duration::ZERO);
        assert_eq!(delay(1, 1, step), step);
    }

    #[test]
    fn content_has_the_time_it_needs() {
        let silence = Duration::from_secs(180);
        assert_eq!(content_time(silence, 0), silence);
        assert_eq!(content_time(silence, 50_000), Duration::from_secs(280));
        assert_eq!(content_time(Duration::MAX, u64::MAX), Duration::MAX);
    }
}
