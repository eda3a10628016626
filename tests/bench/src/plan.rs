//! Which cells are measured.

use crate::cell::{Cell, Workload};
use crate::options::Options;

pub(crate) fn cells(options: &Options) -> Vec<Cell> {
    if options.workloads.is_empty() {
        return if options.quick { quick() } else { full() };
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

fn full() -> Vec<Cell> {
    let mut cells = quick();
    cells.push(Cell::new(Workload::Fanout, 1, 4));
    cells.push(Cell::new(Workload::Sendmail, 1, 4));
    cells
}
