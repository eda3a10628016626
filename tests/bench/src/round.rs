//! What a round does, inside its namespaces: one system, one cell.

use serde_json::Value;

use crate::cell::Cell;
use crate::figures::Figures;
use crate::{limits, peers, workload};

/// What a task gives, to be printed.
pub(crate) fn perform(task: &[String]) -> Value {
    match task {
        [limits, sessions] if limits == limits::TASK => limits::measure(sessions.parse().unwrap()),
        [name, cell, rate, seconds] => {
            let cell: Cell = cell.parse().unwrap();
            let figures = system(name, cell, rate.parse().unwrap(), seconds.parse().unwrap());
            Value::Object(figures.into_iter().map(|(name, n)| (name, n.into())).collect())
        }
        _ => panic!("no task: {task:?}"),
    }
}

fn system(name: &str, cell: Cell, rate: f64, seconds: f64) -> Figures {
    let mut run = workload::Run::prepare(peers::start(name.parse().unwrap(), cell.workload), cell);
    let figures = run.measure(rate, seconds);
    // It is not stopped: with connections that last no system stops at once, and this process ends now.
    std::mem::forget(run);
    figures
}
