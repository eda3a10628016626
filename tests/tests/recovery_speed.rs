//! How long a large queue keeps new mail waiting after a start, and what it takes of memory. A release's
//! business: `make recovery`. `POSTERN_QUEUED` says how many messages are queued.
#![allow(clippy::unwrap_used)]
#![cfg(not(debug_assertions))]

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use postern_address::{Mailbox, ReversePath};
use postern_spool::{
    BodyType, Envelope, IdAllocator, LogEntry, LogRecord, NewMessage, Origin, Slot, SpoolFile, Timestamp,
    Writer, WriterDirs, rename_between,
};
use postern_tests::{Address, LoopFs, Smtp, System, have_root, message, scale};

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
    fill(&system.spool_path(), queued);
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

/// Queues messages that were deferred for a day: nine of ten in files that they share, the tenth alone.
fn fill(spool: &Path, count: usize) {
    let open = |directory: &str| File::open(spool.join(directory)).unwrap();
    let (new, cur) = (open("new"), open("cur"));
    let dirs = WriterDirs { tmp: open("tmp").into(), new: open("new").into() };
    let (wake, woken) = channel();
    let mut writer = Writer::start(dirs, move || drop(wake.send(()))).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let mut ids = IdAllocator::new(Slot::QUEUE_MANAGER);
    let mut written = 0;
    while written < count {
        // A message that is submitted alone is written alone.
        let left = count - written;
        let alone = (written / BATCH) % SINGLE == 0;
        let share = if alone { 1 } else { BATCH };
        let mut submitted = 0;
        while submitted < BATCH.min(left) {
            let together = share.min(left - submitted);
            for n in 0..together {
                let id = ids.next(now.as_micros() as u64);
                let number = written + submitted + n;
                let to = format!("user{}@domain{}.example", number, number % 1000);
                let envelope = Envelope {
                    reverse_path: ReversePath::Mailbox(Mailbox::parse("a@x.test").unwrap()),
                    recipients: vec![Mailbox::parse(&to).unwrap()],
                    arrival: Timestamp(now.as_millis() as u64),
                    body: BodyType::SevenBit,
                    origin: Origin::Internal,
                    options: postern_spool::Options::default(),
                };
                let body = message("queued");
                writer.submit(number as u64, NewMessage { id, envelope, prepend: Vec::new(), body });
            }
            let mut done = 0;
            while done < together {
                woken.recv().unwrap();
                for completion in writer.completions() {
                    completion.result.unwrap();
                    done += 1;
                }
            }
            submitted += together;
        }
        written += submitted;
    }
    drop(writer);
    let until = Timestamp(now.as_millis() as u64 + 24 * 60 * 60 * 1000);
    for id in postern_spool::list(new.as_fd()).unwrap().files {
        let name = id.to_string();
        rename_between(new.as_fd(), &name, cur.as_fd(), &name).unwrap();
        let mut file = SpoolFile::open(cur.as_fd(), &name).unwrap();
        let reply = "451 4.2.0 Later".to_owned();
        let deferred = LogEntry::Deferred { recipient: 0, address: None, until, reply };
        let records: Vec<_> = (0..file.messages().len() as u16)
            .map(|message| LogRecord { message, what: deferred.clone() })
            .collect();
        file.append(&records).unwrap();
    }
}

fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
