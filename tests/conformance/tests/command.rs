//! The command: exit statuses, reports, lists of gaps; against a server of a few lines that does almost nothing
//! right.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

#[test]
fn what_is_met_and_what_is_not() {
    let place = Place::new();
    let server = poor_server();
    let good = place.run(&server, &["--only", "5321-3.1-greeting"]);
    assert_eq!(good.status.code(), Some(0), "{}", text(&good));
    let bad = place.run(&server, &["--only", "5321-4.1.1.10-quit", "--jobs", "1"]);
    assert_eq!(bad.status.code(), Some(1), "{}", text(&bad));
    assert!(text(&bad).contains("expected 221, got 500 what?"), "{}", text(&bad));
    let json = place.run(&server, &["--only", "5321-3.1-greeting", "--only", "quit-first", "--json"]);
    assert_eq!(json.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((&report["pass"], &report["fail"], &report["good"]), (&1.into(), &1.into(), &false.into()));
    let skipped = place.run(&server, &["--only", "unknown-recipient"]);
    assert!(text(&skipped).contains("the profile has no `unknown`"), "{}", text(&skipped));
}

#[test]
fn lists_of_gaps_are_held_to() {
    let place = Place::new();
    let server = poor_server();
    let reason = "it was written in an afternoon";
    for (listed, only, status, says) in [
        ("5321-4.1.1.10-quit-first", "quit-first", Some(0), "gap"),
        ("5321-3.1-greeting", "5321-3.1-greeting", Some(1), "take it off the list"),
        ("5321-0-nonsense", "greeting", Some(2), "no requirement of the suite"),
    ] {
        let gaps = place.file("gaps.toml", &format!("[gaps]\n\"{listed}\" = \"{reason}\"\n"));
        let output = place.run(&server, &["--only", only, "--gaps", gaps.to_str().unwrap()]);
        assert_eq!(output.status.code(), status, "{listed}: {}", text(&output));
        assert!(text(&output).contains(says), "{listed}: {}", text(&output));
    }
}

#[test]
fn what_cannot_be_run() {
    let place = Place::new();
    // Nobody listens on the port of tcpmux.
    let nobody: SocketAddr = "127.0.0.1:1".parse().unwrap();
    assert_eq!(place.run(&nobody, &["--only", "greeting"]).status.code(), Some(1), "no server meets nothing");
    assert_eq!(place.run(&nobody, &["--only", "no-such-id"]).status.code(), Some(2));
    let suite = place.file("suite/a.txt", "[x-1] MUST RFC 1\nSays something.\nNONSENSE\n");
    let output = place.run(&nobody, &["--suite", suite.parent().unwrap().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("line 3"), "{}", text(&output));
    let listed = Command::new(env!("CARGO_BIN_EXE_postern-conformance")).arg("--list").output().unwrap();
    assert!(listed.status.success() && text(&listed).contains("5321-4.1.1.4-data-needs-rcpt"));
}

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        place.file("profile.toml", "recipient = \"u@v.test\"\npatience = 30\n");
        place
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    fn run(&self, at: &SocketAddr, arguments: &[&str]) -> Output {
        let profile: &Path = &self.0.path().join("profile.toml");
        let mut command = Command::new(env!("CARGO_BIN_EXE_postern-conformance"));
        command.arg(at.to_string()).arg("--profile").arg(profile).args(arguments).output().unwrap()
    }
}

/// Greets, and answers everything with 500. It ends with the test.
fn poor_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let serve = |mut stream: TcpStream| -> std::io::Result<()> {
        stream.write_all(b"220 poor.test ready\r\n")?;
        let mut lines = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        while lines.read_line(&mut line)? > 0 {
            stream.write_all(b"500 what?\r\n")?;
            line.clear();
        }
        Ok(())
    };
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || drop(serve(stream)));
        }
    });
    at
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}
