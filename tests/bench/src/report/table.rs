//! Tables in Markdown, for people.

use std::fmt::Write as _;

use crate::cell::Cell;
use crate::figures::{ACCEPTED, CPU, DELIVERED, Figures, MOST, P50, P99, RSS, spread};
use crate::machine;
use crate::options::Options;
use crate::peers::Name;
use crate::rounds::{Measured, Results};

pub(crate) fn all(options: &Options, results: &Results) -> String {
    let mut text = format!(
        "{}, {}; {} rounds by turns{}; load average before {}, after {}.\n\n",
        results.date,
        machine::describe(),
        options.rounds,
        if options.quick { ", quick" } else { "" },
        results.load[0],
        results.load[1],
    );
    rates(&mut text, results, &options.systems);
    costs(&mut text, results, &options.systems);
    limits(&mut text, results);
    for failure in &results.failures {
        writeln!(text, "\nFailed: {failure}").unwrap();
    }
    text
}

fn rates(text: &mut String, results: &Results, systems: &[Name]) {
    text.push_str("Messages a second, median (least–most):\n\n| workload |");
    for name in systems {
        write!(text, " accepted: {} |", name.title()).unwrap();
    }
    text.push_str(" ratio |");
    for name in systems {
        write!(text, " until the last is delivered: {} |", name.title()).unwrap();
    }
    text.push_str(" ratio |\n| --- |");
    text.push_str(&" ---: |".repeat(systems.len() * 2 + 2));
    text.push('\n');
    for measured in &results.cells {
        write!(text, "| {} |", title(measured.cell)).unwrap();
        for figure in [ACCEPTED, DELIVERED] {
            for name in systems {
                let shown = of(measured, *name)
                    .and_then(|rounds| spread(rounds, figure))
                    .map(|s| format!("{} ({}–{})", number(s.median), number(s.least), number(s.most)));
                write!(text, " {} |", shown.unwrap_or("–".into())).unwrap();
            }
            write!(text, " {} |", ratio(measured, figure)).unwrap();
        }
        text.push('\n');
    }
}

fn costs(text: &mut String, results: &Results, systems: &[Name]) {
    text.push_str("\nWhat they cost, medians:\n\n| workload |");
    for name in systems {
        write!(text, " final reply ms, p50 / p99 / most: {} |", name.title()).unwrap();
    }
    for name in systems {
        write!(text, " CPU s per 1000: {} |", name.title()).unwrap();
    }
    text.push_str(" ratio |");
    for name in systems {
        write!(text, " RSS MiB: {} |", name.title()).unwrap();
    }
    text.push_str("\n| --- |");
    text.push_str(&" ---: |".repeat(systems.len() * 3 + 1));
    text.push('\n');
    for measured in &results.cells {
        write!(text, "| {} |", title(measured.cell)).unwrap();
        let median = |name: &Name, figure| {
            of(measured, *name)
                .and_then(|rounds| spread(rounds, figure))
                .map_or("–".into(), |s| number(s.median))
        };
        for name in systems {
            let [p50, p99, most] = [P50, P99, MOST].map(|figure| median(name, figure));
            write!(text, " {p50} / {p99} / {most} |").unwrap();
        }
        for name in systems {
            write!(text, " {} |", median(name, CPU)).unwrap();
        }
        write!(text, " {} |", ratio(measured, CPU)).unwrap();
        for name in systems {
            write!(text, " {} |", median(name, RSS)).unwrap();
        }
        text.push('\n');
    }
}

fn limits(text: &mut String, results: &Results) {
    text.push_str(
        "\nWhat the machine allows, in the same run:\n\n\
         | at once | files/s: create, write 4 KiB, fsync, rename | with fsync of the directory | \
         smtp-source straight into smtp-sink, messages/s |\n| ---: | ---: | ---: | ---: |\n",
    );
    for l in &results.limits {
        writeln!(text, "| {} | {:.0} | {:.0} | {:.0} |", l.sessions, l.files, l.files_and_directory, l.sink)
            .unwrap();
    }
}

/// Our median by Postfix's.
fn ratio(measured: &Measured, figure: &str) -> String {
    let median = |name| of(measured, name).and_then(|rounds| spread(rounds, figure)).map(|s| s.median);
    match (median(Name::Postern), median(Name::Postfix)) {
        (Some(ours), Some(theirs)) => format!("**{:.2}**", ours / theirs),
        _ => "–".into(),
    }
}

fn of(measured: &Measured, name: Name) -> Option<&[Figures]> {
    measured.systems.get(&name).map(Vec::as_slice)
}

fn title(cell: Cell) -> String {
    let sessions = match cell.sessions {
        1 => "1 session".into(),
        n => format!("{n} sessions"),
    };
    let short = if cell.long { "" } else { ", a session a message" };
    let size = if cell.size < 1 << 20 {
        format!("{} KiB", cell.size >> 10)
    } else {
        format!("{} MiB", cell.size >> 20)
    };
    format!("{}, {sessions}, {size}{short}", cell.workload.name())
}

/// With as many digits as it deserves.
fn number(value: f64) -> String {
    match value {
        value if value >= 20.0 => format!("{value:.0}"),
        value if value >= 3.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}
