//! What came out: `target/bench/results.json`, and tables.

mod json;
mod table;

use crate::machine::project;
use crate::options::Options;
use crate::rounds::Results;

const BEGIN: &str = "<!-- bench: begin -->";
const END: &str = "<!-- bench: end -->";

pub(crate) fn write(options: &Options, results: &Results) {
    let directory = project("target/bench");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("results.json"), format!("{:#}\n", json::all(options, results))).unwrap();
    let text = table::all(options, results);
    println!("{text}");
    if options.document {
        document(&text);
    }
}

/// Puts the text between the marks.
fn document(text: &str) {
    let path = project("docs/performance.md");
    let old = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = old.split_once(BEGIN).expect("docs/performance.md has the mark of the table");
    let (_, after) = rest.split_once(END).expect("docs/performance.md has the mark of the table's end");
    std::fs::write(&path, format!("{before}{BEGIN}\n{text}{END}{after}")).unwrap();
}
