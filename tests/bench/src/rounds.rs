//! Rounds by turns: every system does a cell before the next cell begins, and who is first changes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::cell::Cell;
use crate::figures::{self, Figures, Spread};
use crate::limits::Limits;
use crate::options::Options;
use crate::peers::Name;
use crate::{isolate, machine, plan};

/// The longest that a round may take.
const PATIENCE: Duration = Duration::from_secs(180);

/// Everything that was measured.
pub(crate) struct Results {
    pub(crate) date: String,
    pub(crate) load: [String; 2],
    /// In the order of the plan.
    pub(crate) cells: Vec<Measured>,
    pub(crate) limits: Limits,
    /// What did not come to its end, in words.
    pub(crate) failures: Vec<String>,
}

/// One cell.
pub(crate) struct Measured {
    pub(crate) cell: Cell,
    pub(crate) systems: BTreeMap<Name, Vec<Figures>>,
}

impl Measured {
    pub(crate) fn spread(&self, name: Name, figure: &str) -> Option<Spread> {
        figures::spread(self.systems.get(&name)?, figure)
    }

    pub(crate) fn median(&self, name: Name, figure: &str) -> Option<f64> {
        self.spread(name, figure).map(|spread| spread.median)
    }
}

pub(crate) fn run(options: &Options, cells: Vec<Cell>) -> Results {
    let (begin, date, load) = (Instant::now(), machine::now(), machine::load_average());
    let mut failures = Vec::new();
    let mut limits = Limits::of(&cells);
    let mut cells: Vec<_> =
        cells.into_iter().map(|cell| Measured { cell, systems: BTreeMap::new() }).collect();
    for round in 0..options.rounds {
        if round == 0 || !options.quick {
            limits.measure(&mut failures);
        }
        for measured in &mut cells {
            for name in by_turns(options, round, measured.cell) {
                one(options, Some(round), measured, name, &mut failures);
            }
        }
    }
    for measured in cells.iter_mut().filter(|measured| options.trace && plan::traced(measured.cell)) {
        for name in by_turns(options, 0, measured.cell) {
            one(options, None, measured, name, &mut failures);
        }
    }
    eprintln!("{:.0} s in all", begin.elapsed().as_secs_f64());
    Results { date, load: [load, machine::load_average()], cells, limits, failures }
}

/// Who can do a cell; who is first changes from round to round.
fn by_turns(options: &Options, round: usize, cell: Cell) -> impl Iterator<Item = Name> {
    let count = options.systems.len();
    (0..count).map(move |n| options.systems[(n + round) % count]).filter(move |name| name.does(cell))
}

/// A round of a system; none is that in which system calls are counted.
fn one(
    options: &Options,
    round: Option<usize>,
    measured: &mut Measured,
    name: Name,
    failures: &mut Vec<String>,
) {
    let (begin, cell) = (Instant::now(), measured.cell);
    let done = measured.systems.entry(name).or_default();
    // How many messages a second the system took in the round before: so many come in the next.
    let rate = done.iter().rev().find_map(figures::rate).unwrap_or(0.0);
    let trace = round.is_none();
    let task = [
        name.to_string(),
        cell.to_string(),
        rate.to_string(),
        options.seconds.to_string(),
        trace.to_string(),
    ];
    let said = isolate::run(&task, PATIENCE)
        .and_then(|said| figures::from_json(&said).ok_or_else(|| format!("no figures: {said}")));
    let line = format!("{} {name:9} {cell}", round.map_or("traced ".into(), |n| format!("round {}", n + 1)));
    match said {
        Ok(figures) => {
            let words: Vec<_> = figures.iter().map(|(name, n)| format!("{name} {n:.2}")).collect();
            eprintln!("{line}: {} [{:.1} s]", words.join(", "), begin.elapsed().as_secs_f64());
            done.push(figures);
        }
        Err(why) => {
            eprintln!("{line}: FAILED: {why}");
            failures.push(format!("{line}: {why}"));
        }
    }
}
