//! What the machine itself allows: the disk, and the generator straight into the sink.

use std::fs::{File, rename};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::beside::{self, Sink};
use crate::cell::{Cell, Workload};
use crate::isolate;
use crate::workload::source;

/// The task's name.
pub(crate) const TASK: &str = "limits";

/// Limits at a number of threads or sessions.
#[derive(Clone, Debug)]
pub(crate) struct Limit {
    pub(crate) sessions: usize,
    /// Files a second: create, write 4 KiB, fsync, rename.
    pub(crate) files: f64,
    /// The same with an fsync of the directory after the rename.
    pub(crate) files_and_directory: f64,
    /// smtp-source -d into smtp-sink, 4 KiB.
    pub(crate) sink: f64,
}

/// The limits at each number of sessions in the cells.
pub(crate) fn of(cells: &[Cell], failures: &mut Vec<String>) -> Vec<Limit> {
    let mut sessions: Vec<_> = cells.iter().map(|cell| cell.sessions).filter(|n| *n <= 200).collect();
    sessions.sort_unstable();
    sessions.dedup();
    let mut limits = Vec::new();
    for sessions in sessions {
        let task = [TASK.to_owned(), sessions.to_string()];
        let said = isolate::run(&task, Duration::from_secs(60));
        match said.and_then(|said| from_json(sessions, &said).ok_or(said)) {
            Ok(limit) => {
                eprintln!("{limit:?}");
                limits.push(limit);
            }
            Err(why) => failures.push(format!("limits at {sessions}: {why}")),
        }
    }
    limits
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
    json!({"files": disk(sessions, false), "files_and_directory": disk(sessions, true), "sink": sunk})
}

fn from_json(sessions: usize, said: &str) -> Option<Limit> {
    let figures = crate::figures::from_json(said)?;
    Some(Limit {
        sessions,
        files: *figures.get("files")?,
        files_and_directory: *figures.get("files_and_directory")?,
        sink: *figures.get("sink")?,
    })
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
