//! NAME
//!     postern-bench: Postern and Postfix side by side, in one run
//!
//! WHAT IT DOES
//!     Starts Debian's Postfix as an instance of its own and Postern as the tests start it, gives both the
//!     same load by turns (A B A B), and writes what came out to `target/bench/results.json` and, between two
//!     marks, into `docs/performance.md`. `make bench-quick` takes some minutes, `make bench` some more.
//!
//!     postern-bench [--quick] [--rounds N] [--only WORKLOAD] [--sessions N,N] [--no-document]
//!
//! TALKS TO
//!     127.0.0.1 alone. The load is smtp-source's and the sink is smtp-sink, both Postfix's; the generator of
//!     our own ([`generator`]) is for what these do not tell: how long the last reply takes.
//!
//! TRUST
//!     Postfix has to be started by root. Postern then has its system users.
//!
//! FAILURE
//!     It panics: a benchmark that goes on after an error lies. A system that loses a message, or does not
//!     deliver for two minutes, is such an error.
//!
//! BUGS
//!     The load generator shares the machine's cores with what it measures. Other peers than Postfix are not
//!     started yet.

#![forbid(unsafe_code)]
// A benchmark's way to fail is to panic.
#![allow(clippy::unwrap_used)]

mod generator;
mod limits;
mod load;
mod measure;
mod peers;
mod postfix;
mod report;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::load::Workload;
use crate::measure::Figures;
use crate::peers::Peer;

/// What is measured in one place of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    workload: Workload,
    /// Many messages in one connection; otherwise one.
    long: bool,
    sessions: usize,
    size: usize,
}

/// What is asked for on the command line.
#[derive(Debug)]
struct Options {
    quick: bool,
    rounds: usize,
    only: Option<String>,
    sessions: Vec<usize>,
    document: bool,
    /// How long a load should take.
    seconds: f64,
}

fn main() {
    let options = Options::from_words(std::env::args().skip(1));
    let load_before = std::fs::read_to_string("/proc/loadavg").unwrap();
    let points = points(&options);
    let limits = limits::measure(&options.sessions);
    let mut results: BTreeMap<Point, [Vec<Figures>; 2]> = BTreeMap::new();
    // How many messages a second a system took in the round before: so many come in the next.
    let mut rates: BTreeMap<(usize, Point), f64> = BTreeMap::new();
    for round in 0..options.rounds {
        for workload in Workload::ALL {
            let of: Vec<_> = points.iter().copied().filter(|point| point.workload == workload).collect();
            if of.is_empty() {
                continue;
            }
            for (n, mut peer) in Peer::both(round).into_iter().map(|(n, start)| (n, start())) {
                for point in &of {
                    let rate = *rates.entry((n, *point)).or_insert_with(|| load::pilot(&mut peer, *point));
                    let figures = load::run(&mut peer, *point, rate, options.seconds);
                    eprintln!("round {round} {:8} {point:?}: {figures}", peer.name());
                    rates.insert((n, *point), figures.accepted);
                    results.entry(*point).or_default()[n].push(figures);
                }
                peer.stop();
                std::thread::sleep(Duration::from_millis(200));
            }
        }
    }
    let load_after = std::fs::read_to_string("/proc/loadavg").unwrap();
    report::write(&options, &results, &limits, [&load_before, &load_after]);
}

/// The table's places.
fn points(options: &Options) -> Vec<Point> {
    let mut points = Vec::new();
    for workload in Workload::ALL {
        if options.only.as_deref().is_some_and(|only| only != workload.name()) {
            continue;
        }
        if matches!(workload, Workload::Fanout | Workload::Sendmail) {
            points.push(Point { workload, long: false, sessions: 1, size: 4096 });
            continue;
        }
        for &sessions in &options.sessions {
            points.push(Point { workload, long: true, sessions, size: 4096 });
            if !options.quick {
                points.push(Point { workload, long: false, sessions, size: 4096 });
                if sessions == 10 {
                    points.push(Point { workload, long: true, sessions, size: 1024 });
                    points.push(Point { workload, long: true, sessions, size: 65536 });
                }
            }
        }
    }
    points
}

impl Options {
    fn from_words(mut words: impl Iterator<Item = String>) -> Self {
        let mut options = Self {
            quick: false,
            rounds: 5,
            only: None,
            sessions: vec![1, 10, 50],
            document: true,
            seconds: 2.0,
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap_or_else(|| panic!("{word} needs a value"));
            match word.as_str() {
                "--quick" => (options.quick, options.rounds, options.seconds) = (true, 3, 1.0),
                "--rounds" => options.rounds = value().parse().unwrap(),
                "--only" => options.only = Some(value()),
                "--sessions" => {
                    options.sessions = value().split(',').map(|n| n.parse().unwrap()).collect();
                }
                "--no-document" => options.document = false,
                _ => panic!("unknown option {word}"),
            }
        }
        options
    }
}
