//! The pure cores cost what they cost before: instructions, counted by callgrind, against `figures.txt`. Where
//! a change is meant, `POSTERN_COUNT=write` writes new figures.
//!
//! What is counted is built for it, with the profile `counted`: in an ordinary debug build a core's instructions
//! depend on which other crate happened to need the same generic function.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use postern_tests::have;

/// How much more it may be.
const TOLERANCE: f64 = 0.05;

/// A core, how often it does its work before counting and how often in all: what is between is counted.
const CORES: [(&str, u32, u32); 5] = [
    ("session", 20, 120),
    ("schedule", 100, 600),
    ("spool", 10, 60),
    ("frame", 20, 120),
    ("lookup", 20, 120),
];

#[test]
fn no_core_got_dearer() {
    if !have(&["valgrind"]) {
        return;
    }
    let program = built();
    let counted: BTreeMap<&str, u64> = CORES
        .iter()
        .map(|&(core, few, many)| {
            let between = instructions(&program, core, many) - instructions(&program, core, few);
            (core, between / u64::from(many - few))
        })
        .collect();
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("figures.txt");
    if std::env::var("POSTERN_COUNT").is_ok_and(|word| word == "write") {
        let lines: String = counted.iter().map(|(core, count)| format!("{core} {count}\n")).collect();
        std::fs::write(&path, format!("{}\n{lines}", compiler())).unwrap();
        return;
    }
    let figures = std::fs::read_to_string(&path).unwrap();
    let (of, figures) = figures.split_once('\n').unwrap();
    if of != compiler() {
        // Another compiler, other instructions: there is nothing to compare with.
        eprintln!("NOT COMPARED: the figures are of {of}: {counted:?}");
        return;
    }
    let dearer = |line: &&str| {
        let (core, figure) = line.split_once(' ').unwrap();
        counted[core] as f64 > figure.parse::<f64>().unwrap() * (1.0 + TOLERANCE)
    };
    let wrong: Vec<&str> = figures.lines().filter(dearer).collect();
    assert!(
        wrong.is_empty(),
        "{wrong:?} are {counted:?} now. Where that is meant: POSTERN_COUNT=write cargo test -p postern-instructions"
    );
}

/// The program with the cores, as it is counted.
fn built() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let mut cargo = Command::new(std::env::var("CARGO").unwrap_or("cargo".into()));
    cargo.args(["build", "--quiet", "--locked", "--profile", "counted", "--package", "postern-instructions"]);
    cargo.arg("--manifest-path").arg(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
    cargo.arg("--target-dir").arg(target);
    assert!(cargo.status().unwrap().success());
    target.join("counted/postern-instructions")
}

/// What a run executes, that of its start included.
fn instructions(program: &Path, core: &str, times: u32) -> u64 {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    command.arg(program).args([core, &times.to_string()]);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{core}: {said}");
    let collected = said.lines().find_map(|line| line.split("Collected : ").nth(1));
    collected.unwrap_or_else(|| panic!("{core}: {said}")).trim().parse().unwrap()
}

fn compiler() -> String {
    let rustc = std::env::var("RUSTC").unwrap_or("rustc".into());
    let output = Command::new(rustc).arg("--version").output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
