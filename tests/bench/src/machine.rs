//! The machine, and the project's place on it.

use std::path::PathBuf;
use std::process::Command;

/// A path in the project.
pub(crate) fn project(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join(path)
}

/// Processor, kernel, file system of the temporary directory.
pub(crate) fn describe() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown processor");
    let cores = std::thread::available_parallelism().unwrap();
    let kernel = said("uname", &["-r"]);
    let directory = std::env::temp_dir();
    let system = said("findmnt", &["-n", "-o", "FSTYPE", "-T", &directory.display().to_string()]);
    format!("{cores} cores of {}, Linux {kernel}, {system}", model.trim_matches([':', ' ', '\t']))
}

pub(crate) fn load_average() -> String {
    std::fs::read_to_string("/proc/loadavg").unwrap().trim().to_owned()
}

pub(crate) fn now() -> String {
    said("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"])
}

/// What a program prints.
pub(crate) fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
