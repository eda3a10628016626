//! Tables in Markdown, for people.

use std::fmt::Write as _;

use crate::figures::{
    ACCEPTED, CPU, DELIVERED, GREETED, MOST, P50, P99, PSS, RSS, STARTED, STARTED_DELIVERED, SWITCHES, SYNCS,
    SYSCALLS, Spread, spread,
};
use crate::limits::{FILES, FILES_AND_DIRECTORY, SINK};
use crate::options::Options;
use crate::peers::Name;
use crate::rounds::{Measured, Results};

/// One table: what it is of, and what stands in a place of it.
struct Table {
    title: &'static str,
    /// A row is there when this was measured.
    figure: &'static str,
    show: fn(&Measured, Name) -> Option<String>,
    /// Another column has ours by Postfix's, in this figure.
    ratio: Option<&'static str>,
}

const TABLES: [Table; 8] = [
    Table {
        title: "Accepted: messages a second, median (least–most)",
        figure: ACCEPTED,
        show: |measured, name| rate(measured, name, ACCEPTED),
        ratio: Some(ACCEPTED),
    },
    Table {
        title: "Until the last was delivered: recipients a second, median (least–most)",
        figure: DELIVERED,
        show: |measured, name| rate(measured, name, DELIVERED),
        ratio: Some(DELIVERED),
    },
    Table {
        title: "The final reply: milliseconds, p50 / p99 / longest, medians of the rounds; the ratio is of p99",
        figure: P99,
        show: |measured, name| several(measured, name, &[P50, P99, MOST]),
        ratio: Some(P99),
    },
    Table {
        title: "CPU seconds of the whole process tree for 1,000 deliveries, median",
        figure: CPU,
        show: |measured, name| several(measured, name, &[CPU]),
        ratio: Some(CPU),
    },
    Table {
        title: "Memory of the whole process tree under load: the most of RSS, MiB (a shared page counts in each \
                process)",
        figure: CPU,
        show: |measured, name| several(measured, name, &[RSS]),
        ratio: Some(RSS),
    },
    Table {
        title: "For each message: calls that wait for the disk (fsync and its like) / other system calls / \
                context switches, in a round of its own under strace",
        figure: SYNCS,
        show: |measured, name| several(measured, name, &[SYNCS, SYSCALLS, SWITCHES]),
        ratio: None,
    },
    Table {
        title: "Clients that have said EHLO and wait: greeted a second / RSS MiB / PSS MiB (a shared page counts \
                once); the ratio is of PSS",
        figure: GREETED,
        show: |measured, name| several(measured, name, &[GREETED, RSS, PSS]),
        ratio: Some(PSS),
    },
    Table {
        title: "Seconds from the start of the system until new mail was accepted / delivered",
        figure: STARTED,
        show: |measured, name| several(measured, name, &[STARTED, STARTED_DELIVERED]),
        ratio: Some(STARTED_DELIVERED),
    },
];

pub(crate) fn all(options: &Options, results: &Results) -> String {
    let mut text = String::new();
    for table in TABLES {
        one(&mut text, &table, results, &options.systems);
    }
    limits(&mut text, results);
    for failure in &results.failures {
        writeln!(text, "\nFailed: {failure}").unwrap();
    }
    text
}

fn one(text: &mut String, table: &Table, results: &Results, systems: &[Name]) {
    let any = |measured: &Measured| systems.iter().any(|name| measured.median(*name, table.figure).is_some());
    let rows: Vec<_> = results.cells.iter().filter(|measured| any(measured)).collect();
    if rows.is_empty() {
        return;
    }
    let ratio = table.ratio.filter(|_| systems.contains(&Name::Postfix));
    write!(text, "\n**{}**\n\n| workload |", table.title).unwrap();
    systems.iter().for_each(|name| write!(text, " {} |", heading(*name)).unwrap());
    text.push_str(if ratio.is_some() { " ours / Postfix |\n" } else { "\n" });
    text.push_str("| --- |");
    text.push_str(&" ---: |".repeat(systems.len() + usize::from(ratio.is_some())));
    for measured in rows {
        write!(text, "\n| {} |", measured.cell.title()).unwrap();
        for name in systems {
            write!(text, " {} |", (table.show)(measured, *name).unwrap_or("–".into())).unwrap();
        }
        if let Some(figure) = ratio {
            let both = (measured.median(Name::Postern, figure), measured.median(Name::Postfix, figure));
            let shown = match both {
                (Some(ours), Some(theirs)) => format!("**{:.2}**", ours / theirs),
                _ => "–".into(),
            };
            write!(text, " {shown} |").unwrap();
        }
    }
    text.push('\n');
}

/// A 250 that promises nothing is not set beside others without a word.
fn heading(name: Name) -> String {
    let warning = if name.syncs() { "" } else { " (no sync before its 250)" };
    format!("{}{warning}", name.title())
}

fn rate(measured: &Measured, name: Name, figure: &str) -> Option<String> {
    let s = measured.spread(name, figure)?;
    Some(median(&s))
}

fn median(s: &Spread) -> String {
    format!("{} ({}–{})", number(s.median), number(s.least), number(s.most))
}

fn several(measured: &Measured, name: Name, figures: &[&str]) -> Option<String> {
    let shown: Option<Vec<_>> =
        figures.iter().map(|figure| measured.median(name, figure).map(number)).collect();
    Some(shown?.join(" / "))
}

fn limits(text: &mut String, results: &Results) {
    text.push_str(
        "\n**What the machine allows, in the same run: median (least–most)**\n\n\
         | at once | files/s: create, write 4 KiB, fsync, rename | with fsync of the directory | \
         smtp-source straight into smtp-sink, messages/s |\n| ---: | ---: | ---: | ---: |\n",
    );
    for (sessions, rounds) in results.limits.iter() {
        let shown = [FILES, FILES_AND_DIRECTORY, SINK]
            .map(|figure| spread(rounds, figure).map_or("–".to_owned(), |s| median(&s)));
        writeln!(text, "| {sessions} | {} |", shown.join(" | ")).unwrap();
    }
}

/// With as many digits as it deserves.
fn number(value: f64) -> String {
    match value {
        value if value >= 20.0 => format!("{value:.0}"),
        value if value >= 3.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}
