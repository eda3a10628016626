//! What the machine itself allows: the disk, and the generator straight into the sink.

use std::fs::{File, rename};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::Point;
use crate::load::{self, Workload};
use crate::peers::Sink;

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

pub(crate) fn measure(sessions: &[usize]) -> Vec<Limit> {
    let mut sink = Sink::start();
    sessions
        .iter()
        .map(|&sessions| {
            let point = Point { workload: Workload::Relay, long: true, sessions, size: 4096 };
            let count = 20_000 / sessions * sessions;
            let begin = Instant::now();
            load::source(&sink.address.to_string(), point, count, "u@relay.test");
            let sunk = count as f64 / begin.elapsed().as_secs_f64();
            let limit = Limit {
                sessions,
                files: disk(sessions, false),
                files_and_directory: disk(sessions, true),
                sink: sunk,
            };
            eprintln!("{limit:?}");
            assert!(sink.count() > 0);
            limit
        })
        .collect()
}

fn disk(threads: usize, sync_directory: bool) -> f64 {
    let directory = tempfile::Builder::new().prefix("postern-bench-disk-").tempdir().unwrap();
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
