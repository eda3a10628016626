//! What came out: `target/bench/results.json`, tables, charts.

mod charts;
mod json;
mod table;

use crate::cgroup;
use crate::machine::{self, project};
use crate::options::Options;
use crate::peers::Name;
use crate::rounds::Results;

const BEGIN: &str = "<!-- bench: begin -->";
const END: &str = "<!-- bench: end -->";

pub(crate) fn write(options: &Options, results: &Results) {
    let directory = project("target/bench");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("results.json"), format!("{:#}\n", json::all(options, results))).unwrap();
    let tables = table::all(options, results);
    println!("{}\n{tables}", head(options, results));
    if options.document {
        let charts = charts::write(results, &options.systems);
        document(&format!("{}\n{}\n{charts}{tables}", head(options, results), promises(&options.systems)));
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

/// Puts the text between the marks.
fn document(text: &str) {
    let path = project("docs/performance.md");
    let old = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = old.split_once(BEGIN).expect("docs/performance.md has the mark of the table");
    let (_, after) = rest.split_once(END).expect("docs/performance.md has the mark of the table's end");
    std::fs::write(&path, format!("{before}{BEGIN}\n{text}{END}{after}")).unwrap();
}
