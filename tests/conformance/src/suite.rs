//! The suite itself: the scripts of `suite/`.

use std::collections::BTreeSet;
use std::path::Path;

use crate::script::{Requirement, parse};

const FILES: &[(&str, &str)] = &[
    ("5321-session", include_str!("../suite/5321-session.txt")),
    ("5321-transaction", include_str!("../suite/5321-transaction.txt")),
    ("1870-size", include_str!("../suite/1870-size.txt")),
    ("1985-etrn", include_str!("../suite/1985-etrn.txt")),
    ("2034-enhanced", include_str!("../suite/2034-enhanced.txt")),
    ("2852-deliverby", include_str!("../suite/2852-deliverby.txt")),
    ("2920-pipelining", include_str!("../suite/2920-pipelining.txt")),
    ("3030-chunking", include_str!("../suite/3030-chunking.txt")),
    ("3207-starttls", include_str!("../suite/3207-starttls.txt")),
    ("3461-dsn", include_str!("../suite/3461-dsn.txt")),
    ("4865-futurerelease", include_str!("../suite/4865-futurerelease.txt")),
    ("4954-auth", include_str!("../suite/4954-auth.txt")),
    ("6152-8bitmime", include_str!("../suite/6152-8bitmime.txt")),
    ("6531-smtputf8", include_str!("../suite/6531-smtputf8.txt")),
    ("6710-priority", include_str!("../suite/6710-priority.txt")),
    ("9422-limits", include_str!("../suite/9422-limits.txt")),
    ("smuggling", include_str!("../suite/smuggling.txt")),
];

/// Every requirement, in the order of the files. An error is one of the suite's own.
pub fn requirements() -> Result<Vec<Requirement>, String> {
    requirements_of(FILES.iter().map(|(name, text)| (format!("suite/{name}.txt"), (*text).to_owned())))
}

/// The requirements in the files of a directory, instead of those that are built in.
pub fn requirements_in(directory: &Path) -> Result<Vec<Requirement>, String> {
    let wrong = |e: std::io::Error| format!("{}: {e}", directory.display());
    let mut paths: Vec<_> =
        std::fs::read_dir(directory).map_err(wrong)?.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let mut files = Vec::new();
    for path in paths {
        files.push((path.display().to_string(), std::fs::read_to_string(&path).map_err(wrong)?));
    }
    requirements_of(files.into_iter())
}

fn requirements_of(files: impl Iterator<Item = (String, String)>) -> Result<Vec<Requirement>, String> {
    let mut all = Vec::new();
    for (name, text) in files {
        all.extend(parse(&text).map_err(|e| format!("{name}: {e}"))?);
    }
    let mut ids = BTreeSet::new();
    match all.iter().find(|requirement| !ids.insert(&requirement.id)) {
        Some(twice) => Err(format!("the id {} is used twice", twice.id)),
        None => Ok(all),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suite_is_sound() {
        let all = requirements().unwrap();
        assert!(all.len() >= 120, "{} requirements", all.len());
        for requirement in &all {
            let id = &requirement.id;
            assert!(!requirement.says.contains('{'), "{id}");
            assert!(requirement.says.ends_with('.'), "{id}: {:?} is no sentence", requirement.says);
            assert!(requirement.reference.contains(char::is_numeric), "{id}: {}", requirement.reference);
            let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-');
            assert!(id.chars().all(letters), "{id}");
        }
    }
}
