//! The tables that rules ask (access(5)): text tables, read again when they change.

use std::path::Path;
use std::time::Instant;

use postern_config::Table;

use crate::routing::Source;
use crate::sources::Watched;
use crate::table::TextTable;

/// Longest value that is told: it becomes a reply or a header line.
const VALUE_MAX: usize = 1000;

/// Key and value, when one of the keys is there; or why that cannot be said.
pub type Found = Result<Option<(String, String)>, String>;

/// All of them.
#[derive(Debug, Default)]
pub struct Ruled {
    tables: Vec<Ruling>,
}

#[derive(Debug)]
struct Ruling {
    name: Table,
    file: Watched,
    table: Source<TextTable>,
}

impl Ruled {
    /// For the tables of the configuration, not read yet.
    pub fn new(tables: &[Table]) -> Self {
        let mut ruled = Self::default();
        ruled.replace(tables);
        ruled
    }

    /// The configuration names others now. A table that stays keeps what was read, should its file be
    /// unreadable just now.
    pub fn replace(&mut self, tables: &[Table]) {
        let mut old = std::mem::take(&mut self.tables);
        for name in tables {
            let mut ruling = match old.iter().position(|ruling| ruling.name == *name) {
                Some(at) => old.swap_remove(at),
                None => Ruling { name: name.clone(), file: Watched::new(path(name)), table: Source::Absent },
            };
            ruling.file.look_again();
            self.tables.push(ruling);
        }
    }

    /// The first of these keys that a table has, and its value. Beside it, what is to be logged.
    pub fn find(&mut self, name: &Table, keys: &[String], now: Instant) -> (Found, Vec<String>) {
        let Some(ruling) = self.tables.iter_mut().find(|ruling| ruling.name == *name) else {
            return (Err(format!("{name} is not a table of the rules")), Vec::new());
        };
        let errors = ruling.file.refresh(now, &mut ruling.table, TextTable::parse).errors;
        let found = match &ruling.table {
            Source::Ready(table) => {
                let value = |key: &String| Some((key.clone(), table.get(key)?));
                let found = keys.iter().find_map(value);
                Ok(found.map(|(key, value)| (key, value.chars().take(VALUE_MAX).collect())))
            }
            Source::Unavailable(why) => Err(why.clone()),
            Source::Absent => Err(format!("{name} was not read")),
        };
        (found, errors)
    }
}

fn path(table: &Table) -> &Path {
    match table {
        Table::Text(path) => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_key_that_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("access");
        std::fs::write(&file, "x.test REJECT no\na@X.test  OK\nb@x.test\n").unwrap();
        let (table, now) = (Table::Text(file.clone()), Instant::now());
        let mut ruled = Ruled::new(std::slice::from_ref(&table));
        let keys = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
        let found = ruled.find(&table, &keys(&["a@x.test", "x.test"]), now);
        assert_eq!(found, (Ok(Some(("a@x.test".into(), "OK".into()))), vec![]));
        let found = ruled.find(&table, &keys(&["c@x.test", "x.test"]), now).0;
        assert_eq!(found, Ok(Some(("x.test".into(), "REJECT no".into()))));
        assert_eq!(
            ruled.find(&table, &keys(&["b@x.test"]), now).0,
            Ok(Some(("b@x.test".into(), String::new())))
        );
        assert_eq!(ruled.find(&table, &keys(&["y.test"]), now).0, Ok(None));
        // Another file than those of the rules is none of smtpd's business.
        assert!(ruled.find(&Table::Text("/etc/passwd".into()), &keys(&["root"]), now).0.is_err());
        // A file that was never there says why.
        let missing = Table::Text(directory.path().join("missing"));
        ruled.replace(&[missing.clone(), table.clone()]);
        let (found, errors) = ruled.find(&missing, &keys(&["x"]), now);
        assert!(found.is_err_and(|why| why.contains("No such file")) && errors.len() == 1);
        assert!(ruled.find(&table, &keys(&["a@x.test"]), now).0.is_ok());
    }
}
