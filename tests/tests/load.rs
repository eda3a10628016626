//! Many at once.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use postern_tests::{Smtp, System, message};

const SESSIONS: usize = 2000;

/// All are connected at the same time, all stand in the same place of the dialogue, and one worker serves
/// them.
#[test]
fn two_thousand_sessions_send_a_message_each() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let system = System::builder().set("smtp", "workers", "1").start();
    let worker = system.pids()["smtpd/0"];
    let idle = memory(worker);

    let mut clients: Vec<_> = (0..SESSIONS).map(|_| system.smtp()).collect();
    let mut all = |line: &str, expected: &str| {
        clients.iter_mut().for_each(|client| client.line(line));
        clients.iter_mut().for_each(|client| drop(client.expect(expected)));
    };
    all("EHLO client.test", "250");
    all("MAIL FROM:<a@x.test>", "250");
    all("RCPT TO:<u@v.test>", "250");
    all("DATA", "354");
    clients.iter_mut().enumerate().for_each(|(n, client)| client.bytes(&message(&format!("session-{n}"))));
    clients.iter_mut().for_each(|client| client.line("."));
    let ids: Vec<_> =
        clients.iter_mut().map(|client| client.expect("250 2.0.0").queue_id().unwrap()).collect();

    let peak = memory(worker);
    assert!(peak < 64 << 10, "one worker took {peak} KiB at its peak");
    clients.into_iter().for_each(Smtp::quit);
    let last = ids.iter().max().unwrap();
    system.finished(last);
    system.wait_empty(Duration::from_secs(60));
    let mails = system.maildir("u@v.test");
    let mut subjects: Vec<_> = mails.iter().map(|mail| mail.header("Subject").unwrap()).collect();
    subjects.sort();
    subjects.dedup();
    assert_eq!((mails.len(), subjects.len()), (SESSIONS, SESSIONS));
    println!("one smtpd worker: {idle} KiB idle, {peak} KiB at the peak of {SESSIONS} sessions");
}

/// A client that sends without end and one that never reads do not fill the memory of a worker.
#[test]
fn a_large_message_takes_little_memory() {
    let system = System::builder().set("smtp", "workers", "1").start();
    let worker = system.pids()["smtpd/0"];
    let before = memory(worker);
    let senders: Vec<_> = (0..4)
        .map(|n| {
            let mut client = system.smtp();
            std::thread::spawn(move || {
                let content = postern_tests::attachment(20_000_000 + n);
                client.send("a@x.test", &["u@v.test"], &content).unwrap()
            })
        })
        .collect();
    let ids: Vec<_> = senders.into_iter().map(|sender| sender.join().unwrap()).collect();
    let peak = memory(worker);
    assert!(peak < before + (16 << 10), "4 messages of 27 MB: {before} KiB before, {peak} KiB at the peak");
    ids.iter().for_each(|id| system.finished(id));
    assert_eq!(system.maildir("u@v.test").len(), 4);
}

/// The most memory that a process ever had, in KiB.
fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
