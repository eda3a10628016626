//! Requirements that a server is known not to meet.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

/// The known gaps of a server: id and reason.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gaps {
    /// By id.
    #[serde(default)]
    pub gaps: BTreeMap<String, String>,
}

impl Gaps {
    /// Reads a list. Every reason must say something, and every id must be one of the suite.
    pub fn read(path: &Path, known: &[&str]) -> Result<Self, String> {
        let wrong = |what: String| format!("{}: {what}", path.display());
        let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        let all: Self = toml::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        for (id, reason) in &all.gaps {
            if !known.contains(&id.as_str()) {
                return Err(wrong(format!("{id} is no requirement of the suite")));
            }
            if reason.trim().len() < 10 {
                return Err(wrong(format!("{id} has no reason")));
            }
        }
        Ok(all)
    }
}
