//! What came out: `target/bench/results.json`, tables, charts.

mod charts;
mod json;
mod table;

use crate::cgroup;
use crate::machine::{self, project};
use crate::options::Options;
use crate::peers::Name;
use crate::rounds::Results;

pub(crate) fn write(options: &Options, results: &Results) {
    let directory = project("target/bench");
    std::fs::create_dir_all(&directory).unwrap();
    // A run beside others has a file and a place in the document of its own.
    let which = if options.guests() { "-others" } else { "" };
    std::fs::write(
        directory.join(format!("results{which}.json")),
        format!("{:#}\n", json::all(options, results)),
    )
    .unwrap();
    let tables = table::all(options, results);
    println!("{}\n{tables}", head(options, results));
    if options.document {
        let charts = if options.guests() { String::new() } else { charts::write(results, &options.systems) };
        let promises = promises(&options.systems);
        document(which, &format!("{}\n{promises}\n{charts}{tables}", head(options, results)));
    }
}

/// When and where it was.
fn head(options: &Options, results: &Results) -> String {
    let versions: Vec<_> = options.systems.iter().map(|name| name.version()).collect();
    format!(
        "{}, {}; {}; {} rounds by turns{}; load average before {}, after {}; CPU seconds of {}.\n",
        results.date,
        machine::describe(),
        versions.join(", "),
        options.rounds,
        if options.quick { ", quick" } else { "" },
        results.load[0],
        results.load[1],
        counted(),
    )
}

/// What CPU seconds are of.
fn counted() -> &'static str {
    if cgroup::counts() {
        "a control group"
    } else {
        "processes that are waited for (no cgroup v2: those of others are lost)"
    }
}

/// What a system has on the disk when it says 250, and when it has delivered: no figure means anything
/// without.
fn promises(systems: &[Name]) -> String {
    let mut text =
        "| | on the disk before the 250 | in a Maildir | relayed |\n| --- | --- | --- | --- |\n".to_owned();
    for name in systems {
        text.push_str(&format!("| {} | {} |\n", name.title(), name.promises().join(" | ")));
    }
    text
}

/// Puts the text between the marks: `<!-- bench: begin -->` and `<!-- bench: end -->`.
fn document(which: &str, text: &str) {
    let (begin, end) = (format!("<!-- bench{which}: begin -->"), format!("<!-- bench{which}: end -->"));
    let path = project("docs/performance.md");
    let old = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = old.split_once(&begin).expect("docs/performance.md has the mark of the table");
    let (_, after) = rest.split_once(&end).expect("docs/performance.md has the mark of the table's end");
    std::fs::write(&path, format!("{before}{begin}\n{text}{end}{after}")).unwrap();
}
