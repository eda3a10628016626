//! What the machine itself allows: the disk, and the generator straight into the sink.

use std::collections::BTreeMap;
use std::fs::{File, rename};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::beside::{self, Sink};
use crate::cell::{Cell, Workload};
use crate::figures::{self, Figures};
use crate::isolate;
use crate::workload::source;

/// The task's name.
pub(crate) const TASK: &str = "limits";

/// Files a second: create, write 4 KiB, fsync, rename.
pub(crate) const FILES: &str = "files_per_second";
/// The same with an fsync of the directory after the rename.
pub(crate) const FILES_AND_DIRECTORY: &str = "files_and_directory_per_second";
/// smtp-source -d into smtp-sink, 4 KiB.
pub(crate) const SINK: &str = "sink_per_second";

/// The limits by the number of threads or sessions, in each round (of a quick run, in the first): a disk does not
/// always do the same either.
pub(crate) struct Limits(BTreeMap<usize, Vec<Figures>>);

impl Limits {
    /// At each number of sessions in the cells; nothing is measured yet.
    pub(crate) fn of(cells: &[Cell]) -> Self {
        let sessions = cells.iter().map(|cell| cell.sessions).filter(|n| *n <= 200);
        Self(sessions.map(|sessions| (sessions, Vec::new())).collect())
    }

    /// One round of all.
    pub(crate) fn measure(&mut self, failures: &mut Vec<String>) {
        for (sessions, rounds) in &mut self.0 {
            let task = [TASK.to_owned(), sessions.to_string()];
            let said = isolate::run(&task, Duration::from_secs(60));
            match said.and_then(|said| figures::from_json(&said).ok_or(said)) {
                Ok(limit) => {
                    eprintln!("limits at {sessions}: {limit:?}");
                    rounds.push(limit);
                }
                Err(why) => failures.push(format!("limits at {sessions}: {why}")),
            }
        }
    }

    /// By the number of sessions.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &[Figures])> {
        self.0.iter().map(|(sessions, rounds)| (*sessions, &rounds[..]))
    }
}

/// Inside.
pub(crate) fn measure(sessions: usize) -> Value {
    let sink = Sink::start(beside::SINK, &[]);
    let cell = Cell::new(Workload::Relay, sessions, 4);
    let count = 8_000 / sessions * sessions;
    let begin = Instant::now();
    source(beside::SINK, cell, count, "u@relay.test");
    let sunk = count as f64 / begin.elapsed().as_secs_f64();
    assert!(sink.count() > 0);
    json!({FILES: disk(sessions, false), FILES_AND_DIRECTORY: disk(sessions, true), SINK: sunk})
}

fn disk(threads: usize, sync_directory: bool) -> f64 {
    let directory = tempfile::Builder::new().prefix("disk-").tempdir().unwrap();
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let begin = Instant::now();
    let threads: Vec<_> = (0..threads)
        .map(|thread| {
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            let base = directory.path().to_owned();
            std::thread::spawn(move || {
                let content = vec![b'x'; 4096];
                let parent = File::open(&base).unwrap();
                for n in 0u64.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let (from, to) =
                        (base.join(format!("t{thread}-{n}")), base.join(format!("n{thread}-{n}")));
                    let mut file = File::create(&from).unwrap();
                    file.write_all(&content).unwrap();
                    file.sync_all().unwrap();
                    rename(&from, &to).unwrap();
                    if sync_directory {
                        parent.sync_all().unwrap();
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    std::thread::sleep(Duration::from_secs(1));
    stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    done.load(Ordering::Relaxed) as f64 / begin.elapsed().as_secs_f64()
}
