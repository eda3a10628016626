//! Whether the spool has room for more mail than what is needed to get rid of it.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use postern_config::Reserve;
use postern_daemon::Host;
use postern_event::Level;

/// Between two looks at the file system.
const PAUSE: Duration = Duration::from_secs(1);

/// The spool's free space.
pub(crate) struct Room {
    pub(crate) reserve: Reserve,
    tmp: OwnedFd,
    looked: Option<Instant>,
    full: bool,
}

impl Room {
    /// `tmp` is a directory of the spool.
    pub(crate) fn new(tmp: OwnedFd, reserve: Reserve) -> Self {
        Self { reserve, tmp, looked: None, full: false }
    }

    /// Whether new mail is not to be taken.
    pub(crate) fn is_full(&mut self, host: &mut Host) -> bool {
        let now = host.now();
        if self.looked.is_none_or(|at| now.saturating_duration_since(at) >= PAUSE) {
            self.looked = Some(now);
            self.look(host);
        }
        self.full
    }

    /// A file system that does not say how much it has is asked by writing: the writer says when it is full.
    fn look(&mut self, host: &mut Host) {
        let Ok(space) = postern_spool::space(self.tmp.as_fd()) else { return };
        let full = is_below(space, self.reserve);
        if full != self.full {
            let (octets, inodes) = space;
            let (level, what) = match full {
                true => (Level::Warning, "nearly full: new mail is deferred"),
                false => (Level::Info, "no longer nearly full"),
            };
            host.note(level, &format!("the spool is {what} ({octets} octets and {inodes} files are free)"));
        }
        self.full = full;
    }
}

fn is_below((octets, inodes): (u64, u64), reserve: Reserve) -> bool {
    octets < reserve.octets || inodes < reserve.inodes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_is_enough_to_be_full() {
        let reserve = Reserve { octets: 100, inodes: 10 };
        assert_eq!(
            [(100, 10), (99, 10), (100, 9)].map(|space| is_below(space, reserve)),
            [false, true, true]
        );
        assert!(!is_below((0, 0), Reserve { octets: 0, inodes: 0 }));
    }
}
