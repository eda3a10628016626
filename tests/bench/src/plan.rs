//! Which cells are measured.

use crate::cell::{Cell, Workload};
use crate::options::Options;

pub(crate) fn cells(options: &Options) -> Vec<Cell> {
    if options.workloads.is_empty() {
        return match options.quick {
            true => quick(),
            false if options.guests() => others(),
            false => full(),
        };
    }
    let mut cells = Vec::new();
    for &workload in &options.workloads {
        for &sessions in &options.sessions {
            for &kib in &options.kib {
                let cell = Cell::new(workload, sessions, kib);
                cells.push(if options.short { cell.short() } else { cell });
            }
        }
    }
    cells
}

fn quick() -> Vec<Cell> {
    let three = [Workload::Hold, Workload::Relay, Workload::Maildir];
    three.into_iter().flat_map(|workload| [1, 10, 50].map(|n| Cell::new(workload, n, 4))).collect()
}

/// Not every workload with every number of sessions and every size, but what tells something.
fn full() -> Vec<Cell> {
    use Workload::*;
    let mut cells = Vec::new();
    for workload in [Hold, Relay, Maildir] {
        cells.extend([1, 10, 50, 200].map(|sessions| Cell::new(workload, sessions, 4)));
        cells.extend([1, 64, 10 * 1024].map(|kib| Cell::new(workload, 10, kib)));
        cells.push(Cell::new(workload, 10, 4).short());
    }
    for workload in [Maildirs, LmtpSink, LmtpDovecot] {
        cells.extend([1, 10, 50].map(|sessions| Cell::new(workload, sessions, 4)));
    }
    let rest =
        [Flaky, Far, FarChunks, Backlog10k, Backlog100k, Destination, Destinations100, Destinations10k];
    cells.extend(rest.map(|workload| Cell::new(workload, 10, 4)));
    cells.extend([Fanout, Sendmail, Restart].map(|workload| Cell::new(workload, 1, 4)));
    cells.extend([1000, 5000].map(|sessions| Cell::new(Idle, sessions, 4)));
    cells
}

/// With systems that need many times as long for each.
fn others() -> Vec<Cell> {
    let four = [Workload::Hold, Workload::Relay, Workload::Maildir, Workload::LmtpSink];
    four.into_iter().flat_map(|workload| [1, 10, 50].map(|n| Cell::new(workload, n, 4))).collect()
}

/// System calls are counted where they differ.
pub(crate) fn traced(cell: Cell) -> bool {
    use Workload::*;
    let usual =
        matches!(cell.workload, Hold | Relay | Maildir | LmtpSink) && cell.sessions == 10 && cell.long;
    usual && cell.size == 4096 || matches!(cell.workload, Fanout | Sendmail)
}
