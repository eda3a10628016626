//! The pure cores cost what they cost before: instructions, counted by callgrind, against `figures.txt`. Where
//! a change is meant, `POSTERN_COUNT=write` writes new figures.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use postern_tests::have;

/// What a figure may differ by.
const TOLERANCE: f64 = 0.05;

/// A core, how often it does its work before counting and how often in all: what is between is counted.
const CORES: [(&str, u32, u32); 4] =
    [("session", 20, 120), ("schedule", 100, 600), ("spool", 10, 60), ("frame", 20, 120)];

#[test]
fn no_core_got_dearer() {
    if !have(&["valgrind"]) {
        return;
    }
    let compiler = compiler();
    let counted: BTreeMap<String, u64> = CORES
        .iter()
        .map(|(core, few, many)| {
            let between = instructions(core, *many) - instructions(core, *few);
            ((*core).to_owned(), between / u64::from(many - few))
        })
        .collect();
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("figures.txt");
    if std::env::var("POSTERN_COUNT").is_ok_and(|word| word == "write") {
        let lines: String = counted.iter().map(|(core, count)| format!("{core} {count}\n")).collect();
        std::fs::write(&path, format!("{compiler}\n{lines}")).unwrap();
        return;
    }
    let text = std::fs::read_to_string(&path).unwrap();
    let mut lines = text.lines();
    let of = lines.next().unwrap();
    if of != compiler {
        // Another compiler, other instructions: there is nothing to compare with.
        eprintln!("NOT COMPARED: the figures are of {of}, this is {compiler}: {counted:?}");
        return;
    }
    let mut wrong = Vec::new();
    for line in lines {
        let (core, figure) = line.split_once(' ').unwrap();
        let (count, figure) = (counted[core] as f64, figure.parse::<f64>().unwrap());
        if (count / figure - 1.0).abs() > TOLERANCE {
            wrong.push(format!("{core}: {count} instructions, {:+.1} %", (count / figure - 1.0) * 100.0));
        }
    }
    assert!(
        wrong.is_empty(),
        "{wrong:?}. Where that is meant, or better: POSTERN_COUNT=write cargo test -p postern-instructions"
    );
}

/// What a run executes, that of its start included.
fn instructions(core: &str, times: u32) -> u64 {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    command.arg(env!("CARGO_BIN_EXE_postern-instructions")).args([core, &times.to_string()]);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{core}: {said}");
    let collected = said.lines().find_map(|line| line.split("Collected : ").nth(1));
    collected.unwrap_or_else(|| panic!("{core}: {said}")).trim().parse().unwrap()
}

fn compiler() -> String {
    let rustc = std::env::var("RUSTC").unwrap_or("rustc".into());
    let output = Command::new(rustc).arg("--version").output().unwrap();
    let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
    format!("{} {profile}", String::from_utf8_lossy(&output.stdout).trim())
}
