//! What a tree of processes uses, from /proc.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// What one load on one system gave.
#[derive(Clone, Debug)]
pub(crate) struct Figures {
    /// Messages a second until the generator had its last reply.
    pub(crate) accepted: f64,
    /// Messages (or recipients) a second until the last was delivered.
    pub(crate) delivered: f64,
    /// CPU seconds for 1,000 messages.
    pub(crate) cpu: f64,
    /// Most resident memory of all processes together, in MiB; pages that are shared count in each.
    pub(crate) rss: f64,
    /// The final reply, in milliseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) most: f64,
    /// Messages a second that our own generator got accepted.
    pub(crate) own_rate: f64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { accepted, delivered, cpu, rss, p50, p99, own_rate, .. } = self;
        write!(
            f,
            "{accepted:.0}/s accepted ({own_rate:.0}/s own), {delivered:.0}/s delivered, {cpu:.2} s CPU/1000, \
             {rss:.0} MiB, final reply {p50:.2} ms p99 {p99:.2}"
        )
    }
}

/// The value below which that part of the sorted values lies; 0 when there are none.
pub(crate) fn median(sorted: &[f64], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * part).round() as usize).copied().unwrap_or(0.0)
}

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
