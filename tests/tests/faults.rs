//! The disk and the kernel refuse: what cannot be kept is not promised, what was promised waits.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use postern_tests::{Fault, LoopFs, System, have, have_root, message, until};

#[test]
fn a_failing_sync_is_451_and_never_250() {
    refused("fsync,fdatasync", "EIO", "451 4.3.0");
}

/// The writer has sixteen empty files ready and one in use, each of which takes up to sixteen messages that come
/// quickly; then it says so.
#[test]
fn files_that_cannot_be_made_are_451() {
    if !have_root() || !have(&["strace"]) {
        return;
    }
    let system = System::builder().set("smtp", "workers", "1").start();
    let mut client = system.smtp();
    client.send("a@x.test", &["u@v.test"], &message("before")).unwrap();
    let fault = Fault::inject(system.pids()["smtpd/0"], "openat", "EIO");
    let mut accepted = 1;
    let refused = loop {
        match client.send("a@x.test", &["u@v.test"], &message("during")) {
            Ok(_) => accepted += 1,
            Err(refused) => break refused,
        }
        assert!(accepted < 17 * 16 + 2, "openat fails and nobody notices");
    };
    assert!(refused.is("451 4.3.0"), "{refused}");
    system.wait("spool-refused", |_| true);
    drop(fault);
    client.send("a@x.test", &["u@v.test"], &message("after")).unwrap();
    system.wait_empty(Duration::from_secs(60));
    assert_eq!(system.maildir("u@v.test").len(), accepted + 1);
}

#[test]
fn no_space_is_452() {
    refused("pwritev,pwrite64,pwritev2", "ENOSPC", "452 4.3.1");
}

#[test]
fn no_quota_is_452() {
    refused("pwritev,pwrite64,pwritev2", "EDQUOT", "452 4.3.1");
}

/// While smtpd's system calls fail every message is refused so, and none arrives; afterwards all is well.
fn refused(calls: &str, error: &str, expected: &str) {
    if !have_root() || !have(&["strace"]) {
        return;
    }
    let system = System::builder().set("smtp", "workers", "1").start();
    let mut client = system.smtp();
    client.send("a@x.test", &["u@v.test"], &message("before")).unwrap();
    let fault = Fault::inject(system.pids()["smtpd/0"], calls, error);
    for n in 0..5 {
        let refused = client.send("a@x.test", &["u@v.test"], &message(&format!("refused-{n}")));
        let refused = refused.expect_err("a 250 that is worth nothing");
        assert!(refused.is(expected), "{calls} {error}: {refused}");
    }
    system.wait("spool-refused", |_| true);
    drop(fault);
    let id = client.send("a@x.test", &["u@v.test"], &message("after")).unwrap();
    system.finished(&id);
    let subjects: Vec<_> =
        system.maildir("u@v.test").iter().map(|mail| mail.header("Subject").unwrap()).collect();
    assert_eq!(subjects.len(), 2, "what was refused does not arrive: {subjects:?}");
    assert!(system.spool("tmp").is_empty(), "{:?}", system.spool("tmp"));
}

/// The 250 is due before the rename, and stands: recovery moves the file.
#[test]
fn a_failing_rename_delays_what_is_promised() {
    if !have_root() || !have(&["strace"]) {
        return;
    }
    let system = System::builder().set("smtp", "workers", "1").start();
    let fault = Fault::inject(system.pids()["smtpd/0"], "renameat2,renameat,rename", "EIO");
    let id = system.smtp().send("a@x.test", &["u@v.test"], &message("promised")).unwrap();
    system.finished(&id);
    drop(fault);
    assert_eq!(system.maildir("u@v.test").len(), 1);
}

/// Each system call of the queue-manager on its way from new/ to the end, in turn.
#[test]
fn the_queue_manager_waits_until_the_disk_is_back() {
    if !have_root() || !have(&["strace"]) {
        return;
    }
    let system = System::builder().fast_retries().start();
    let mut client = system.smtp();
    for (n, calls) in
        ["renameat2", "openat", "fdatasync,fsync", "pwrite64,pwritev", "unlinkat"].iter().enumerate()
    {
        let pid = system.pids()["queue-manager"];
        let fault = Fault::inject(pid, calls, "EIO");
        let subject = format!("message-{n}");
        let id = client.send("a@x.test", &["u@v.test"], &message(&subject)).unwrap();
        // A second message passes smtpd meanwhile, and the program lives.
        let second = client.send("a@x.test", &["u@v.test"], &message(&subject)).unwrap();
        if *calls == "unlinkat" {
            until("it was met", Duration::from_secs(60), || {
                system.log.text().contains("finished, but its file cannot be removed").then_some(())
            });
        }
        drop(fault);
        // A program that gave up is started anew, and its successor finds what was promised.
        for id in [&id, &second] {
            let removed =
                system.log.try_wait_from(0, "removed", |e| e["id"] == **id, Duration::from_secs(60));
            assert!(removed.is_some(), "{calls}: {id} is never finished");
        }
        let came = system
            .maildir("u@v.test")
            .iter()
            .filter(|mail| mail.header("Subject").unwrap() == subject)
            .count();
        assert!(came >= 2, "{calls}: {came}");
    }
}

/// The mailbox's disk refuses: the message waits in the queue, whole.
#[test]
fn a_mailbox_that_cannot_be_synced_is_tried_again() {
    if !have_root() || !have(&["strace"]) {
        return;
    }
    let system = System::builder().fast_retries().start();
    for (n, calls) in
        ["fsync,fdatasync", "link,linkat,rename,renameat,renameat2", "openat"].iter().enumerate()
    {
        let fault = Fault::inject(system.pids()["delivery-local"], calls, "EIO");
        // Nobody delivered to this user yet: his worker is a child to come.
        let to = format!("user{n}@v.test");
        let id = system.smtp().send("a@x.test", &[&to], &message("kept")).unwrap();
        system.attempted(&id, "deferred");
        drop(fault);
        // The worker has it still, if it is strace's child no more.
        system.finished(&id);
        assert_eq!(system.maildir(&to).len(), 1, "{calls}");
    }
}

/// Out of descriptors: those who come wait, nothing spins, and then all of them are served.
#[test]
fn without_descriptors_it_waits_and_does_not_spin() {
    if !have_root() || !have(&["prlimit", "setpriv"]) {
        return;
    }
    let system = System::builder().set("smtp", "workers", "1").start();
    let worker = system.pids()["smtpd/0"];
    let used = std::fs::read_dir(format!("/proc/{worker}/fd")).unwrap().count();
    let limit = |soft: usize| {
        // As the worker's user: another's limits need a right that not every root has.
        let mut prlimit = Command::new("setpriv");
        let id = |of: &str| status(worker, of).split_whitespace().next().unwrap().to_owned();
        prlimit.arg(format!("--reuid={}", id("Uid:"))).arg(format!("--regid={}", id("Gid:")));
        prlimit
            .args(["--clear-groups", "prlimit"])
            .arg(format!("--pid={worker}"))
            .arg(format!("--nofile={soft}:"));
        assert!(prlimit.status().unwrap().success());
    };
    // There may be holes in the table below the limit: then some are served.
    limit(used);
    let clients: Vec<_> = (0..40).map(|_| TcpStream::connect(system.address()).unwrap()).collect();
    system.wait("note", |e| e.to_string().contains("cannot accept a connection"));
    let slices = slices(worker);
    let before = cpu(worker);
    // The time is what is measured here.
    std::thread::sleep(Duration::from_secs(2));
    let (used, turns) = (cpu(worker) - before, self::slices(worker) - slices);
    // It tries again ten times a second. A spin is thousands of times, also on a machine with other work.
    assert!(used < 20 && turns < 200, "{used} hundredths of a second, {turns} turns in two seconds");
    limit(4096);
    are_greeted(clients, "descriptors are back");
    let id = system.smtp().send("a@x.test", &["u@v.test"], &message("after")).unwrap();
    system.finished(&id);
}

fn are_greeted(clients: Vec<TcpStream>, when: &str) {
    for client in clients {
        client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut greeting = String::new();
        BufReader::new(client).read_line(&mut greeting).unwrap();
        assert!(greeting.starts_with("220 "), "{when}: {greeting:?}");
    }
}

/// Whatever accept(2) fails with, and for as long as it does: ten times a second is tried, not more, and then
/// all goes on.
#[test]
fn accept_may_fail_as_it_likes() {
    if !have_root() || !have(&["strace"]) {
        return;
    }
    let system = System::builder().set("smtp", "workers", "1").start();
    let worker = system.pids()["smtpd/0"];
    for error in ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "ECONNABORTED", "EPERM", "EINVAL", "ENETDOWN"] {
        let fault = Fault::inject(worker, "accept4,accept", error);
        let clients: Vec<_> = (0..5).map(|_| TcpStream::connect(system.address()).unwrap()).collect();
        let before = cpu(worker);
        std::thread::sleep(Duration::from_millis(500));
        let used = cpu(worker) - before;
        assert!(used < 15, "{error}: {used} hundredths of a second in half a second");
        drop(fault);
        are_greeted(clients, error);
    }
}

/// How often the process gave the processor away or lost it: each turn of an event loop does.
fn slices(pid: u32) -> u64 {
    let number = |of: &str| status(pid, of).trim().parse::<u64>().unwrap();
    number("voluntary_ctxt_switches:") + number("nonvoluntary_ctxt_switches:")
}

/// A line of what the kernel says of a process.
fn status(pid: u32, of: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix(of)).unwrap().to_owned()
}

/// Processor time in hundredths of a second.
fn cpu(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// As ext4 does by itself when it meets an error: refused while it lasts, and nothing is lost by it.
#[test]
fn a_file_system_that_turns_read_only() {
    if !have_root() || !have(&["mkfs.ext4"]) {
        return;
    }
    LoopFs::enter_own_namespace();
    let mut system = System::builder().fast_retries().prepare();
    let d = system.directory().to_owned();
    let disk = LoopFs::create("ext4", &d.join("spool.image"), &d.join("spool"));
    system.start_again();
    let mut client = system.smtp();
    let id = client.send("a@x.test", &["u@v.test"], &message("before")).unwrap();
    system.finished(&id);
    assert!(disk.remount("errors=remount-ro,abort"));
    for _ in 0..3 {
        let refused =
            client.send("a@x.test", &["u@v.test"], &message("refused")).expect_err("a worthless 250");
        assert!(refused.is("451 4.3.0"), "{refused}");
    }
    system.stop();
    disk.unmount();
    disk.mount();
    system.start_again();
    let id = system.smtp().send("a@x.test", &["u@v.test"], &message("after")).unwrap();
    system.finished(&id);
    // What was refused may have reached the disk whole all the same; its sender sends it again. And what was
    // delivered in the last second may be delivered twice.
    let mut subjects: Vec<_> =
        system.maildir("u@v.test").iter().map(|mail| mail.header("Subject").unwrap()).collect();
    subjects.retain(|subject| subject != "refused");
    subjects.sort();
    subjects.dedup();
    assert_eq!(subjects, ["after", "before"]);
    system.stop();
}

/// What is damaged is set aside with one event that says why; the rest goes on.
#[test]
fn damaged_files_are_set_aside() {
    let mut system =
        System::builder().fast_retries().route("sink.test", "smtp:[127.0.0.1]:9").relay().start();
    let id = system.smtp().send("a@v.test", &["b@sink.test"], &message("pattern")).unwrap();
    system.attempted(&id, "deferred");
    system.stop();
    let good = std::fs::read(system.spool_path().join("cur").join(&id)).unwrap();
    let foot = good.windows(8).position(|window| window == b"\nPOSTEND").unwrap();
    let mut flipped = good.clone();
    flipped[foot - 9] ^= 4;
    let mut newer = good.clone();
    newer[8] = 9;
    let damages = [good[..foot].to_vec(), flipped, newer, Vec::new(), b"rubbish".to_vec()];
    // Names of our kind that sort behind.
    let names: Vec<_> = (0..2 * damages.len()).map(|n| format!("{}{n:02}", &id[..11])).collect();
    for (n, name) in names.iter().enumerate() {
        let directory = if n < damages.len() { "new" } else { "cur" };
        std::fs::write(system.spool_path().join(directory).join(name), &damages[n % damages.len()]).unwrap();
    }
    system.start_again();
    until("all are set aside", Duration::from_secs(30), || {
        (system.spool("corrupt").len() == names.len()).then_some(())
    });
    for name in &names {
        let told = system
            .log
            .events()
            .iter()
            .filter(|e| e["event"] == "corrupt" && e.to_string().contains(name))
            .count();
        assert_eq!(told, 1, "{name} is told once");
    }
    let id = system.smtp().send("a@v.test", &["u@v.test"], &message("after")).unwrap();
    system.finished(&id);
    assert_eq!(system.postern_json(&["queue", "list"]).len(), 1, "the good one still waits");
}
