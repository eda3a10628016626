//! What the server delivered.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::profile::{Delivered, Lines};

/// The header line that marks a message as ours.
pub(crate) const MARK: &str = "X-Conformance: ";

/// Delivered messages, found by their mark. Each file is read once.
#[derive(Debug)]
pub(crate) struct Mailboxes {
    place: Option<Delivered>,
    read: Mutex<HashMap<PathBuf, Vec<u8>>>,
}

impl Mailboxes {
    /// Where to look; nothing is ever found where the profile does not say.
    pub(crate) fn new(place: Option<Delivered>) -> Self {
        Self { place, read: Mutex::default() }
    }

    /// Lines of what is found end with LF.
    pub(crate) fn lf(&self) -> bool {
        self.place.as_ref().is_none_or(|place| place.lines == Lines::Lf)
    }

    /// The messages with that mark.
    pub(crate) fn find(&self, mark: &str) -> Vec<Vec<u8>> {
        let Some(place) = &self.place else { return Vec::new() };
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        for directory in &place.directories {
            take(directory, &mut read);
        }
        let mut found: Vec<_> = read.values().filter(|message| marked(message, mark)).cloned().collect();
        if let [program, arguments @ ..] = &place.command[..] {
            let output = Command::new(program).args(arguments).arg(mark).output();
            found.extend(output.ok().map(|output| output.stdout).filter(|message| marked(message, mark)));
        }
        found
    }
}

fn marked(message: &[u8], mark: &str) -> bool {
    let mut lines =
        message.split(|octet| *octet == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    // The first one is the message's own; others may be in its text.
    lines.find_map(|line| line.strip_prefix(MARK.as_bytes())) == Some(mark.as_bytes())
}

/// A file that goes or grows meanwhile is looked at again the next time: Maildirs rename what is whole.
fn take(directory: &Path, read: &mut HashMap<PathBuf, Vec<u8>>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            if !path.ends_with("tmp") {
                take(&path, read);
            }
        } else if !read.contains_key(&path)
            && let Ok(message) = std::fs::read(&path)
            && !message.is_empty()
        {
            read.insert(path, message);
        }
    }
}
