//! Everything, for programs.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::cgroup;
use crate::figures::{Figures, spread};
use crate::machine;
use crate::options::Options;
use crate::peers::Name;
use crate::rounds::{Measured, Results};

pub(crate) fn all(options: &Options, results: &Results) -> Value {
    let limit = |(sessions, rounds)| {
        let mut object = of_rounds(rounds);
        object.insert("sessions".into(), json!(sessions));
        Value::Object(object)
    };
    let limits: Vec<_> = results.limits.iter().map(limit).collect();
    json!({
        "date": results.date, "machine": machine::describe(), "rounds": options.rounds,
        "quick": options.quick, "load_average": results.load, "failures": results.failures,
        "cpu_of_cgroup": cgroup::counts(), "limits": limits, "workloads": results.cells.iter().map(workload).collect::<Vec<_>>(),
    })
}

fn workload(measured: &Measured) -> Value {
    let cell = measured.cell;
    let mut object = Map::new();
    object.insert("name".into(), cell.workload.name().into());
    object.insert("sessions".into(), cell.sessions.into());
    object.insert("size".into(), cell.size.into());
    object.insert("messages_per_session".into(), if cell.long { "many" } else { "one" }.into());
    for (name, rounds) in &measured.systems {
        object.insert(name.to_string(), Value::Object(of_rounds(rounds)));
    }
    if let (Some(ours), Some(theirs)) =
        (measured.systems.get(&Name::Postern), measured.systems.get(&Name::Postfix))
    {
        let ratios = names(ours).into_iter().filter_map(|name| {
            let ratio = spread(ours, &name)?.median / spread(theirs, &name)?.median;
            Some((name, json!(ratio)))
        });
        object.insert("ratio_to_postfix".into(), Value::Object(ratios.collect()));
    }
    Value::Object(object)
}

fn of_rounds(rounds: &[Figures]) -> Map<String, Value> {
    let figures = names(rounds).into_iter().filter_map(|name| {
        let s = spread(rounds, &name)?;
        Some((name, json!({"median": s.median, "min": s.least, "max": s.most})))
    });
    figures.collect()
}

fn names(rounds: &[Figures]) -> BTreeSet<String> {
    rounds.iter().flat_map(Figures::keys).cloned().collect()
}
