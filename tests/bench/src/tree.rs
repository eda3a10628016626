//! What a tree of processes uses, from /proc; its CPU seconds from its control group where there is one.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::Signal;
use postern_tests::{Process, until};

use crate::cgroup::Group;

/// What a tree used.
#[derive(Debug)]
pub(crate) struct Used {
    pub(crate) seconds: f64,
    pub(crate) peak_kib: u64,
}

/// A tree of processes, watched from a thread.
pub(crate) struct Tree {
    root: u32,
    group: Option<Group>,
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
        let group = Group::of_this_round();
        let before = seconds(root, group.as_ref());
        Self { root, group, before, stop, watcher: Some(watcher) }
    }

    pub(crate) fn end(mut self) -> Used {
        self.stop.store(true, Ordering::Relaxed);
        let peak_kib = self.watcher.take().map_or(0, |watcher| watcher.join().unwrap());
        Used { seconds: seconds(self.root, self.group.as_ref()) - self.before, peak_kib }
    }
}

/// System calls of a tree, counted by strace(1).
pub(crate) struct Trace {
    process: Process,
    summary: PathBuf,
}

/// What it counted.
pub(crate) struct Calls {
    /// Those that wait for the disk.
    pub(crate) syncs: u64,
    pub(crate) others: u64,
}

impl Trace {
    pub(crate) fn begin(root: u32) -> Self {
        let summary = std::env::temp_dir().join("strace");
        let errors = std::env::temp_dir().join("strace-says");
        let mut command = Command::new("strace");
        command.args(["-f", "-c", "-U", "calls,name", "-o"]).arg(&summary);
        let pids: Vec<_> = tree(root).into_keys().collect();
        for pid in &pids {
            command.args(["-p", &pid.to_string()]);
        }
        command.stdout(Stdio::null()).stderr(File::create(&errors).unwrap());
        let process = Process::start(&mut command);
        until("strace watches", Duration::from_secs(20), || {
            let said = std::fs::read_to_string(&errors).unwrap_or_default();
            (said.matches(" attached").count() >= pids.len()).then_some(())
        });
        Self { process, summary }
    }

    pub(crate) fn end(mut self) -> Calls {
        self.process.signal(Signal::SIGINT);
        self.process.wait(Duration::from_secs(20)).expect("strace ends");
        let text = std::fs::read_to_string(&self.summary).unwrap();
        let mut calls = Calls { syncs: 0, others: 0 };
        for line in text.lines() {
            let [count, name] = *line.split_whitespace().collect::<Vec<_>>() else { continue };
            let Ok(count) = count.parse::<u64>() else { continue };
            match name {
                "total" => {}
                "fsync" | "fdatasync" | "sync_file_range" | "syncfs" | "sync" | "msync" => {
                    calls.syncs += count
                }
                _ => calls.others += count,
            }
        }
        // For people who look at what is left behind by a failed round.
        eprintln!("{text}");
        calls
    }
}

/// Context switches of all threads of a tree that live.
pub(crate) fn switches(root: u32) -> u64 {
    let of = |pid: u32| {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let switches = |status: String| -> u64 {
            let lines = status.lines().filter(|line| line.contains("ctxt_switches:"));
            lines.filter_map(|line| line.split_whitespace().last()?.parse::<u64>().ok()).sum()
        };
        // A thread may end while we look.
        threads
            .filter_map(|t| std::fs::read_to_string(t.path().join("status")).ok())
            .map(switches)
            .sum::<u64>()
    };
    tree(root).into_keys().map(of).sum()
}

/// Resident memory in KiB: as each process sees it, and with shared pages counted once.
pub(crate) fn memory(root: u32) -> (u64, u64) {
    let pss = |pid: u32| {
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or_default().to_owned();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0)
    };
    (resident(root), tree(root).into_keys().map(pss).sum())
}

/// CPU seconds of a tree. Without a group the times of children that ended are lost if nobody waited for them.
fn seconds(root: u32, group: Option<&Group>) -> f64 {
    if let Some(group) = group {
        return group.seconds().expect("the group is there as long as the round");
    }
    let ticks: u64 = tree(root).values().map(|stat| stat.ticks).sum();
    let a_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).unwrap().unwrap();
    ticks as f64 / a_second as f64
}

fn resident(root: u32) -> u64 {
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).unwrap().unwrap() as u64;
    tree(root).values().map(|stat| stat.pages * page / 1024).sum()
}

#[derive(Clone, Copy)]
struct Stat {
    parent: u32,
    ticks: u64,
    pages: u64,
}

/// Every process below one, and it, by process id.
fn tree(root: u32) -> BTreeMap<u32, Stat> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        // A process may end while we look.
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        let fields: Vec<u64> = rest.split(' ').map(|field| field.parse().unwrap_or(0)).collect();
        // From field 3 (state) on: 4 parent, 14-17 times, 24 resident pages.
        let ticks = fields[11..=14].iter().sum();
        all.insert(pid, Stat { parent: fields[1] as u32, ticks, pages: fields[21] });
    }
    let within = |all: &BTreeMap<u32, Stat>, mut pid: u32| {
        for _ in 0..64 {
            if pid == root {
                return true;
            }
            let Some(stat) = all.get(&pid) else { return false };
            pid = stat.parent;
        }
        false
    };
    all.iter().filter(|(pid, _)| within(&all, **pid)).map(|(pid, stat)| (*pid, *stat)).collect()
}
