//! What a tree of processes uses, from /proc.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// What a tree used.
#[derive(Debug)]
pub(crate) struct Used {
    pub(crate) seconds: f64,
    pub(crate) peak_kib: u64,
}

/// A tree of processes, watched from a thread.
#[derive(Debug)]
pub(crate) struct Tree {
    root: u32,
    before: f64,
    stop: Arc<AtomicBool>,
    watcher: Option<JoinHandle<u64>>,
}

impl Tree {
    pub(crate) fn watch(root: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let watcher = std::thread::spawn(move || {
            let mut peak = 0;
            while !told.load(Ordering::Relaxed) {
                peak = peak.max(resident(root));
                std::thread::sleep(Duration::from_millis(100));
            }
            peak.max(resident(root))
        });
        Self { root, before: seconds(root), stop, watcher: Some(watcher) }
    }

    pub(crate) fn end(&mut self) -> Used {
        self.stop.store(true, Ordering::Relaxed);
        let peak_kib = self.watcher.take().map_or(0, |watcher| watcher.join().unwrap());
        Used { seconds: seconds(self.root) - self.before, peak_kib }
    }
}

/// CPU seconds of a tree, those of children that ended and were waited for included.
fn seconds(root: u32) -> f64 {
    let ticks: u64 = tree(root).iter().map(|process| process.ticks).sum();
    let a_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).unwrap().unwrap();
    ticks as f64 / a_second as f64
}

fn resident(root: u32) -> u64 {
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).unwrap().unwrap() as u64;
    tree(root).iter().map(|process| process.pages * page / 1024).sum()
}

#[derive(Clone, Copy)]
struct Process {
    parent: u32,
    ticks: u64,
    pages: u64,
}

fn tree(root: u32) -> Vec<Process> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        // A process may end while we look.
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        let fields: Vec<u64> = rest.split(' ').map(|field| field.parse().unwrap_or(0)).collect();
        // From field 3 (state) on: 4 parent, 14-17 times, 24 resident pages.
        let ticks = fields[11..=14].iter().sum();
        all.insert(pid, Process { parent: fields[1] as u32, ticks, pages: fields[21] });
    }
    let within = |mut pid: u32| {
        for _ in 0..64 {
            if pid == root {
                return true;
            }
            let Some(process) = all.get(&pid) else { return false };
            pid = process.parent;
        }
        false
    };
    all.iter().filter(|(pid, _)| within(**pid)).map(|(_, process)| *process).collect()
}
