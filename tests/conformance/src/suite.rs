//! The suite itself: the scripts of `suite/`.

use std::collections::BTreeSet;

use crate::script::{Requirement, parse};

const FILES: &[(&str, &str)] = &[("5321-session", include_str!("../suite/5321-session.txt"))];

/// Every requirement, in the order of the files. An error is one of the suite's own.
pub fn requirements() -> Result<Vec<Requirement>, String> {
    let mut all = Vec::new();
    for (name, text) in FILES {
        all.extend(parse(text).map_err(|e| format!("suite/{name}.txt: {e}"))?);
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
            assert!(requirement.says.ends_with('.'), "{id}: {:?} is no sentence", requirement.says);
            assert!(requirement.reference.contains(char::is_numeric), "{id}: {}", requirement.reference);
            let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-');
            assert!(id.chars().all(letters), "{id}");
        }
    }
}
