//! Text tables: a key, blanks, a value, one a line; `#` begins a comment line.

use std::collections::HashMap;

use crate::aliases::LineError;

/// A table's keys in lower case with their values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextTable {
    entries: HashMap<String, String>,
}

impl TextTable {
    /// Parses a file. A key that stands there twice is told, and its first line counts.
    pub fn parse(text: &str) -> (Self, Vec<LineError>) {
        let (mut table, mut errors) = (Self::default(), Vec::new());
        for (n, line) in text.lines().enumerate() {
            let content = line.trim();
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            let (key, value) = content.split_once([' ', '\t']).unwrap_or((content, ""));
            let key = key.to_lowercase();
            if table.entries.contains_key(&key) {
                let message = format!("`{key}` stands here again: only its first line counts");
                errors.push(LineError { line: n + 1, message });
                continue;
            }
            table.entries.insert(key, value.trim().to_owned());
        }
        (table, errors)
    }

    /// The value of a key, whatever its case.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.entries.get(&key.to_lowercase()).map(String::as_str)
    }

    /// How many keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// No keys at all.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values() {
        let (table, errors) = TextTable::parse("# users\nU@v.test\t yes  please \n\nv@v.test\nu@v.test no\n");
        assert_eq!(table.get("u@V.test"), Some("yes  please"));
        assert_eq!(table.get("v@v.test"), Some(""));
        assert_eq!((table.get("w@v.test"), table.len()), (None, 2));
        assert_eq!(errors.iter().map(|e| e.line).collect::<Vec<_>>(), [5]);
    }
}
