//! What is wrong with a configuration is said with file, line, column and what was meant; nothing starts.
#![allow(clippy::unwrap_used)]

use std::process::Output;

use postern_tests::System;

fn check(text: &str) -> (Output, String) {
    let system = System::builder().prepare();
    std::fs::write(system.config(), text).unwrap();
    let output = system.postern(&["check"]);
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    (output, said.replace(&system.config().display().to_string(), "FILE"))
}

#[test]
fn a_misspelt_key_and_the_nearest_one() {
    let (output, said) = check("hostnmae = \"mx.test\"\n");
    assert_eq!(output.status.code(), Some(78));
    assert!(said.contains("FILE:1:1") && said.contains("hostnmae") && said.contains("`hostname`"), "{said}");
}

#[test]
fn every_mistake_is_told_at_once() {
    let text = "hostname = \"mx.test\"\nlog = \"json:relative\"\n\n[[listen]]\naddress = \"127.0.0.1\"\nservice = \
                \"stmp\"\n\n[smtp]\nmessage-size = \"5 potatoes\"\n";
    let (output, said) = check(text);
    assert_eq!(output.status.code(), Some(78));
    for place in ["FILE:2:", "FILE:5:", "FILE:6:", "FILE:9:"] {
        assert!(said.contains(place), "{place} is not in\n{said}");
    }
    assert!(said.contains("`smtp`") || said.contains("\"smtp\""), "{said}");
}

#[test]
fn what_is_no_toml() {
    let (output, said) = check("hostname = \"mx.test\"\nspool = /var/spool\n");
    assert_eq!(output.status.code(), Some(78));
    assert!(said.contains("FILE:2:9"), "{said}");
}

#[test]
fn a_right_one_is_explained() {
    let system = System::builder().route("y.test", "smtp:[127.0.0.1]:2600").prepare();
    let output = system.postern(&["check"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    for part in ["mx.test", "v.test", "y.test"] {
        assert!(said.contains(part), "{part} is not in\n{said}");
    }
}

#[test]
fn nothing_starts_with_a_wrong_one() {
    let system = System::builder().prepare();
    std::fs::write(system.config(), "hostname = 5\n").unwrap();
    let output = system.postern(&["run"]);
    assert_eq!(output.status.code(), Some(78), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!system.spool_path().exists() && !system.runtime().exists());
    // Nor with none.
    std::fs::remove_file(system.config()).unwrap();
    let output = system.postern(&["run"]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("postern.toml"));
}

#[test]
fn a_port_that_is_taken() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let system = System::builder().at(address).prepare();
    let output = system.postern(&["run"]);
    let said = format!("{}{}", String::from_utf8_lossy(&output.stderr), system.log.text());
    assert!(!output.status.success());
    assert!(said.contains(&address.to_string()), "{said}");
}

/// A second system on the same spool would deliver everything twice.
#[test]
fn two_systems_do_not_share_a_spool() {
    let system = System::start();
    let text = std::fs::read_to_string(system.config()).unwrap();
    let second = system.directory().join("second.toml");
    std::fs::write(&second, text.replace("/run\"", "/run2\"").replace("/log\"", "/log2\"")).unwrap();
    let output = system.command("postern").arg("run").arg("--config").arg(&second).output().unwrap();
    assert!(!output.status.success());
    let log = std::fs::read_to_string(system.directory().join("log2")).unwrap_or_default();
    let said = format!("{}{log}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("spool"), "{said}");
    assert!(system.postern(&["status"]).status.success());
}
