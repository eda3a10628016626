//! What a test needs of the machine.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Every program is there. Otherwise the test is to return: it is an error with `POSTERN_CI=1`, and else said
/// loudly and counted by `make test`.
pub fn have(programs: &[&str]) -> bool {
    let missing: Vec<_> = programs.iter().copied().filter(|name| find(name).is_none()).collect();
    missing.is_empty() || skip(&format!("not installed: {} (tests/install-packages)", missing.join(", ")))
}

/// The test runs as root.
pub fn have_root() -> bool {
    nix::unistd::geteuid().is_root() || skip("needs root")
}

/// A file of public test vectors: in `POSTERN_VECTORS`, or in `../shared/vectors` beside the project. They are
/// no part of it and no package brings them, so without them the test is to return, and with `POSTERN_CI=1` too it
/// is skipped and counted.
pub fn vectors(name: &str) -> Option<Vec<u8>> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors");
    let directory = std::env::var_os("POSTERN_VECTORS").map_or(beside, PathBuf::from);
    if !directory.exists() {
        note_skipped(&skipped(&format!("no test vectors in {}", directory.display())));
        return None;
    }
    let path = directory.join(name);
    Some(std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
}

/// Runs a script by Debian's Python and returns what it printed. Panics when it fails.
pub fn python(script: &str, arguments: &[&str]) -> String {
    let interpreter = find("python3").unwrap();
    let output = Command::new(interpreter).arg("-c").arg(script).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "python3: {}\n{errors}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Where a program is. Debian's own places first: what is in somebody's home only he can run.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let places = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    places.iter().map(|place| Path::new(place).join(program)).find(|path| path.exists())
}

/// Says loudly that the test is skipped, which is an error with `POSTERN_CI=1`. Returns false.
pub fn skip(why: &str) -> bool {
    let line = skipped(why);
    assert!(std::env::var_os("POSTERN_CI").is_none_or(|v| v != "1"), "{line}");
    note_skipped(&line);
    false
}

fn skipped(why: &str) -> String {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let binary = std::env::current_exe().unwrap();
    let file = binary.file_stem().unwrap().to_string_lossy();
    let file = file.rsplit_once('-').map_or(&*file, |(name, _)| name);
    format!("SKIPPED {file} {test}: {why}\n")
}

fn note_skipped(line: &str) {
    // Not by eprintln, which the test harness swallows when the test passes.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(list) = std::env::var_os("POSTERN_SKIPPED") {
        let mut list = OpenOptions::new().append(true).create(true).open(list).unwrap();
        list.write_all(line.as_bytes()).unwrap();
    }
}
