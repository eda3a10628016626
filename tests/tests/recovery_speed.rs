//! How long a large queue keeps new mail waiting after a start, and what it takes of memory. A release's
//! business: `make recovery`. `POSTERN_QUEUED` says how many messages are queued.
#![allow(clippy::unwrap_used)]
#![cfg(not(debug_assertions))]

use std::process::Command;
use std::time::{Duration, Instant};

use postern_tests::{Address, LoopFs, Smtp, System, backlog, have_root, message, scale};

/// Every how many messages one is written alone, in a file of its own.
const SINGLE: usize = 10;

/// How many messages are handed to the writer at a time: the most that share a file.
const BATCH: usize = 256;

#[test]
fn a_large_queue_keeps_nobody_waiting() {
    if !have_root() {
        return;
    }
    let queued = scale("POSTERN_QUEUED", 100_000);
    LoopFs::enter_own_namespace();
    let address = Address::claim();
    let mut system = System::builder().at(address.port(2525)).prepare();
    // Cached is what is measured: the spool lies in memory.
    std::fs::create_dir(system.spool_path()).unwrap();
    let _umount = Unmount(system.spool_path());
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=12g", "tmpfs"]).arg(system.spool_path());
    assert!(mount.status().unwrap().success());
    system.start_again();
    let id = system.smtp().send("a@x.test", &["u@v.test"], &message("before")).unwrap();
    system.finished(&id);
    let empty = memory(system.pids()["queue-manager"]);
    system.stop();
    let begin = Instant::now();
    // Nine of ten in files that they share, the tenth alone.
    let files = (0..queued).step_by(BATCH).flat_map(|first| {
        let batch = BATCH.min(queued - first);
        if (first / BATCH).is_multiple_of(SINGLE) { vec![1; batch] } else { vec![batch] }
    });
    backlog(&system.spool_path(), files, &message("queued"), |n| {
        format!("user{n}@domain{}.example", n % 1000)
    });
    println!("{queued} messages in {} files, written in {:?}", system.spool("cur").len(), begin.elapsed());

    let mark = system.log.mark();
    let begin = Instant::now();
    system.start_again();
    let ready = begin.elapsed();
    let id = Smtp::connect(address.port(2525)).send("a@x.test", &["u@v.test"], &message("new")).unwrap();
    system.log.wait_from(mark, "removed", |e| e["id"] == *id, Duration::from_secs(120));
    let delivered = begin.elapsed();
    let recovered = system.log.wait_from(mark, "recovered", |_| true, Duration::from_secs(600));
    let all = begin.elapsed();
    let milliseconds = recovered["milliseconds"].as_u64().unwrap();
    let rate = queued as f64 * 1000.0 / milliseconds.max(1) as f64;
    let full = memory(system.pids()["queue-manager"]);
    let each = full.saturating_sub(empty) * 1024 / queued as u64;
    println!("ready after {ready:?}, new mail delivered after {delivered:?}");
    println!("all scheduled after {all:?}: {rate:.0} messages/s");
    println!("queue-manager: {empty} KiB empty, {full} KiB full: {each} octets a message");
    assert_eq!(recovered["messages"].as_u64().unwrap(), queued as u64);
    assert!(delivered < Duration::from_secs(1), "new mail was delivered after {delivered:?}");
    assert!(rate >= 50_000.0, "{rate:.0} messages/s");
    assert!(each <= 128, "{each} octets a message");
    system.stop();
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        // The namespace ends with the test in any case.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
