//! The system's JSON log, read as it grows.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A JSON log, one event a line.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    read: Mutex<Lines>,
}

/// What was read so far.
#[derive(Debug, Default)]
struct Lines {
    file: Option<File>,
    partial: Vec<u8>,
    events: Vec<Value>,
}

impl Log {
    /// The log at a path, which need not exist yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), read: Mutex::default() }
    }

    /// All events so far.
    pub fn events(&self) -> Vec<Value> {
        self.up_to_date().events.clone()
    }

    /// How many events there are: a place to look from.
    pub fn mark(&self) -> usize {
        self.up_to_date().events.len()
    }

    /// The first event of that name that fits, from the beginning or still to come.
    pub fn wait_for(&self, event: &str, fits: impl Fn(&Value) -> bool, patience: Duration) -> Value {
        self.wait_from(0, event, fits, patience)
    }

    /// The first event of that name that fits, from a mark on.
    pub fn wait_from(
        &self,
        mark: usize,
        event: &str,
        fits: impl Fn(&Value) -> bool,
        patience: Duration,
    ) -> Value {
        self.try_wait_from(mark, event, fits, patience)
            .unwrap_or_else(|| panic!("no event {event} that fits within {patience:?}"))
    }

    /// As [`Log::wait_from`], and none when there is none in time.
    pub fn try_wait_from(
        &self,
        mark: usize,
        event: &str,
        fits: impl Fn(&Value) -> bool,
        patience: Duration,
    ) -> Option<Value> {
        let deadline = Instant::now() + patience;
        let mut next = mark;
        loop {
            let lines = self.up_to_date();
            let found = lines.events.iter().skip(next).find(|e| e["event"] == event && fits(e)).cloned();
            next = next.max(lines.events.len());
            drop(lines);
            if found.is_some() || Instant::now() >= deadline {
                return found;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The log as text, for a human.
    pub fn text(&self) -> String {
        std::fs::read_to_string(&self.path).unwrap_or_default()
    }

    fn up_to_date(&self) -> MutexGuard<'_, Lines> {
        let mut lines = self.read.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if lines.file.is_none() {
            lines.file = File::open(&self.path).ok();
        }
        let mut fresh = Vec::new();
        if let Some(file) = &mut lines.file {
            file.read_to_end(&mut fresh).unwrap();
        }
        let mut bytes = std::mem::take(&mut lines.partial);
        bytes.extend(fresh);
        let whole = bytes.iter().rposition(|octet| *octet == b'\n').map_or(0, |at| at + 1);
        for line in bytes[..whole].split(|octet| *octet == b'\n').filter(|line| !line.is_empty()) {
            let event = serde_json::from_slice(line)
                .unwrap_or_else(|e| panic!("no JSON in the log: {e}: {}", String::from_utf8_lossy(line)));
            lines.events.push(event);
        }
        lines.partial = bytes[whole..].to_vec();
        lines
    }
}
