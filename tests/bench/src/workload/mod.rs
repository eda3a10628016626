//! What is measured on one system in one round.

mod idle;
mod load;
mod restart;

use std::time::{Duration, Instant};

use crate::beside::Beside;
use crate::cell::{Cell, Workload};
use crate::cgroup::Group;
use crate::figures::Figures;
use crate::peers::{self, Name, Peer};
pub(crate) use load::source;

/// The longest that a system may go on without delivering anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a round is to do beside its cell.
pub(crate) struct Task {
    /// Messages a second that the system took the last time; 0 when that is not known.
    pub(crate) rate: f64,
    /// How long a load should take.
    pub(crate) seconds: f64,
    /// System calls and context switches are counted, and not time.
    pub(crate) trace: bool,
}

/// A running system, what is beside it, and what is to be done.
struct Run {
    peer: Box<dyn Peer>,
    beside: Beside,
    cell: Cell,
    /// Loads so far: each has users of its own.
    loads: usize,
    /// Files that were in the queue before.
    resting: usize,
}

/// The whole round. What was started goes on until this process ends.
pub(crate) fn measure(name: Name, cell: Cell, task: &Task) -> Figures {
    let beside = Beside::start(name, cell.workload);
    let start = || peers::start(name, cell.workload, &beside);
    // What is beside the system is not in its group, and the load is not.
    let (peer, begin) = match Group::of_this_round() {
        Some(group) => group.within(start),
        None => start(),
    };
    let resting = if cell.workload.backlog() > 0 { peer.queued(false) } else { 0 };
    let mut run = Run { peer, beside, cell, loads: 0, resting };
    let figures = match cell.workload {
        Workload::Idle => idle::measure(&run),
        Workload::Restart => restart::measure(&run, begin),
        _ if task.trace => run.trace(),
        _ => run.measure(task.rate, task.seconds),
    };
    // With connections that last no system stops at once, and this process ends now.
    std::mem::forget(run);
    figures
}

/// Waits until so many are there. Looking costs the system's time, so it is done seldom when it is long.
fn wait(what: &str, expected: usize, mut there: impl FnMut() -> usize) {
    let (mut last, mut since) = (0, Instant::now());
    loop {
        let begin = Instant::now();
        let now = there();
        if now >= expected {
            return;
        }
        if now > last {
            (last, since) = (now, begin);
        }
        assert!(since.elapsed() < PATIENCE, "{what}: {now} of {expected}, none more in {PATIENCE:?}");
        std::thread::sleep((begin.elapsed() * 9).max(Duration::from_millis(2)));
    }
}
