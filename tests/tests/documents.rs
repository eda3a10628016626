//! What the documents claim and a program can check.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(project().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

#[test]
fn every_dependency_has_its_reason() {
    let manifest = read("Cargo.toml");
    let table = manifest.split("[workspace.dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
    let crates =
        table.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(" = "));
    let reasons = read("docs/dependencies.md");
    let named: Vec<_> = reasons
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" |").next())
        .flat_map(|cell| cell.split(", "))
        .collect();
    let used: Vec<_> =
        crates.map(|(name, _)| name.trim()).filter(|name| !name.starts_with("postern-")).collect();
    assert!(used.len() > 20);
    for name in &used {
        assert!(named.contains(name), "{name} has no line in docs/dependencies.md");
    }
    for name in named.iter().filter(|name| !["crate", "---"].contains(name)) {
        assert!(used.contains(name), "{name} is in docs/dependencies.md and is no dependency");
    }
}

#[test]
fn the_tests_that_standards_are_shown_by_exist() {
    let mut tests = String::new();
    for entry in std::fs::read_dir(project().join("tests/tests")).unwrap() {
        tests += &std::fs::read_to_string(entry.unwrap().path()).unwrap();
    }
    let standards = read("docs/standards.md");
    let mut checked = 0;
    for name in standards.split('`').skip(1).step_by(2) {
        if name.ends_with(".rs") || name.contains('/') {
            let found = ["", "tests/tests/"].iter().any(|place| project().join(place).join(name).exists());
            assert!(found, "{name} does not exist");
        } else if name.contains('_') {
            assert!(tests.contains(&format!("fn {name}()")), "no test {name}");
            checked += 1;
        }
    }
    assert!(checked > 5);
}

#[test]
fn links_lead_somewhere() {
    for document in
        ["README.md", "CHANGELOG.md", "docs/architecture.md", "docs/standards.md", "docs/spool.md"]
    {
        let text = read(document);
        let folder = project().join(document).parent().unwrap().to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap();
            assert!(link.contains("://") || folder.join(file).exists(), "{document}: {link}");
        }
    }
}
