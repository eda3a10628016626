//! The pure cores cost what they cost before: instructions, counted by callgrind, against `figures.txt`. Where
//! a change is meant, `POSTERN_COUNT=write` writes new figures.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use postern_tests::have;

/// How much more it may be.
const TOLERANCE: f64 = 0.05;

/// A core, how often it does its work before counting and how often in all: what is between is counted.
const CORES: [(&str, u32, u32); 4] =
    [("session", 20, 120), ("schedule", 100, 600), ("spool", 10, 60), ("frame", 20, 120)];

#[test]
fn no_core_got_dearer() {
    if !have(&["valgrind"]) {
        return;
    }
    let build = build();
    let counted: BTreeMap<String, u64> = CORES
        .iter()
        .map(|(core, few, many)| {
            let between = instructions(core, *many) - instructions(core, *few);
            ((*core).to_owned(), between / u64::from(many - few))
        })
        .collect();
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("figures.txt");
    // Of each kind of build: a line that names it, then its figures.
    let mut figures: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    let mut of = String::new();
    for line in std::fs::read_to_string(&path).unwrap().lines() {
        match line.strip_prefix("= ") {
            Some(build) => of = build.to_owned(),
            None => {
                let (core, figure) = line.split_once(' ').unwrap();
                figures.entry(of.clone()).or_default().insert(core.to_owned(), figure.parse().unwrap());
            }
        }
    }
    if std::env::var("POSTERN_COUNT").is_ok_and(|word| word == "write") {
        figures.insert(build, counted);
        let core = |(core, count): (&String, &u64)| format!("{core} {count}\n");
        let text = |(build, counted): (&String, &BTreeMap<String, u64>)| {
            format!("= {build}\n{}", counted.iter().map(core).collect::<String>())
        };
        std::fs::write(&path, figures.iter().map(text).collect::<String>()).unwrap();
        return;
    }
    let Some(figures) = figures.get(&build) else {
        // Another compiler, other instructions: there is nothing to compare with.
        eprintln!("NOT COMPARED: there are no figures of {build}: {counted:?}");
        return;
    };
    let dearer =
        |(core, figure): &(&String, &u64)| counted[*core] as f64 > **figure as f64 * (1.0 + TOLERANCE);
    let wrong: Vec<_> = figures.iter().filter(dearer).collect();
    assert!(
        wrong.is_empty(),
        "{wrong:?} are {counted:?} now. Where that is meant: POSTERN_COUNT=write cargo test -p postern-instructions"
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

/// The compiler, and how it was called: an incremental build is cut into other pieces, and inlines less.
fn build() -> String {
    let rustc = std::env::var("RUSTC").unwrap_or("rustc".into());
    let output = Command::new(rustc).arg("--version").output().unwrap();
    let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
    let whole = std::env::var("CARGO_INCREMENTAL").is_ok_and(|value| value == "0");
    let incremental = if whole { "" } else { " incremental" };
    format!("{} {profile}{incremental}", String::from_utf8_lossy(&output.stdout).trim())
}
