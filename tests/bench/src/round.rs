//! What a round does, inside its namespaces: one system, one cell.

use serde_json::Value;

use crate::limits;
use crate::workload::{self, Task};

/// What a task gives, to be printed.
pub(crate) fn perform(words: &[String]) -> Value {
    match words {
        [limits, sessions] if limits == limits::TASK => limits::measure(sessions.parse().unwrap()),
        [name, cell, rate, seconds, trace] => {
            let task = Task {
                rate: rate.parse().unwrap(),
                seconds: seconds.parse().unwrap(),
                trace: trace.parse().unwrap(),
            };
            let figures = workload::measure(name.parse().unwrap(), cell.parse().unwrap(), &task);
            Value::Object(figures.into_iter().map(|(name, n)| (name, n.into())).collect())
        }
        _ => panic!("no task: {words:?}"),
    }
}
