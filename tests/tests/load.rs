//! Many at once.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use postern_tests::{Smtp, System, message, scale};

/// One worker, and room for what a test wants of it.
fn one_worker() -> System {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let system = System::builder().set("smtp", "workers", "1").set("smtp", "sessions", "20000").start();
    // What is made once is made by now.
    let id = system.smtp().send("a@x.test", &["first@v.test"], &message("first")).unwrap();
    system.finished(&id);
    system
}

/// So many clients, greeted, from a few hundred addresses.
fn clients(address: SocketAddr, count: usize) -> Vec<Smtp> {
    let from = |n: usize| IpAddr::from(Ipv4Addr::new(127, 1, (n % 16) as u8, 1 + (n / 16 % 16) as u8));
    (0..count).map(|n| Smtp::connect_from(from(n), address)).collect()
}

/// Each session that has said EHLO and waits costs little. `make load` does it with 10,000 and a release.
#[test]
fn idle_sessions_are_cheap() {
    let sessions = scale("POSTERN_IDLE", 2000);
    let system = one_worker();
    let worker = system.pids()["smtpd/0"];
    let before = memory(worker, "VmRSS:");
    let mut idle = clients(system.address(), sessions);
    idle.iter_mut().for_each(|client| client.line("EHLO client.test"));
    idle.iter_mut().for_each(|client| drop(client.expect("250")));
    let after = memory(worker, "VmRSS:");
    let each = (after - before) as f64 / sessions as f64;
    println!("idle: {sessions} sessions, {before} KiB before, {after} KiB with them: {each:.2} KiB each");
    assert!(each <= 12.0, "{each:.2} KiB each");
    // They are alive, and one more is served like the first.
    let id = system.smtp().send("a@x.test", &["u@v.test"], &message("between")).unwrap();
    system.finished(&id);
    idle.iter_mut().for_each(|client| client.line("NOOP"));
    idle.iter_mut().for_each(|client| drop(client.expect("250")));
    idle.into_iter().for_each(Smtp::quit);
}

/// All are connected at the same time, all stand in the same place of the dialogue, and one worker serves
/// them. `make load` does it with 5,000.
#[test]
fn active_sessions_send_a_message_each() {
    let sessions = scale("POSTERN_ACTIVE", 2000);
    let system = one_worker();
    let worker = system.pids()["smtpd/0"];
    let idle = memory(worker, "VmRSS:");
    let begin = Instant::now();
    let mut clients = clients(system.address(), sessions);
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
    let took = begin.elapsed();

    let peak = memory(worker, "VmHWM:");
    let each = (peak - idle) as f64 / sessions as f64;
    assert!(each <= 24.0, "one worker took {peak} KiB at its peak: {each:.2} KiB each");
    clients.into_iter().for_each(Smtp::quit);
    let last = ids.iter().max().unwrap();
    system.finished(last);
    system.wait_empty(Duration::from_secs(120));
    let mails = system.maildir("u@v.test");
    let mut subjects: Vec<_> = mails.iter().map(|mail| mail.header("Subject").unwrap()).collect();
    subjects.sort();
    subjects.dedup();
    assert_eq!((mails.len(), subjects.len()), (sessions, sessions));
    println!(
        "active: {sessions} sessions with a message each in {took:?}; {idle} KiB before, {peak} KiB at the peak: \
         {each:.2} KiB each"
    );
}

/// Clients that send an octet a second, half of them in a command and half in content, keep nobody else from
/// being served, and are served in the end. `make load` does it with 1,000, for longer, and measures.
#[test]
fn who_trickles_keeps_nobody_waiting() {
    let trickling = scale("POSTERN_TRICKLING", 200);
    let least = Duration::from_secs(scale("POSTERN_TRICKLE_SECONDS", 2) as u64);
    let system = one_worker();
    let worker = system.pids()["smtpd/0"];
    let alone = served(&system, 50, Duration::ZERO);
    let mut slow = clients(system.address(), trickling);
    for (n, client) in slow.iter_mut().enumerate() {
        client.ehlo();
        if n % 2 == 0 {
            client.bytes(b"NOOP ");
        } else {
            client.says("MAIL FROM:<a@x.test>", "250");
            client.says("RCPT TO:<slow@v.test>", "250");
            client.says("DATA", "354");
            client.bytes(b"Subject: slow\r\n\r\n");
        }
    }
    let done = AtomicBool::new(false);
    let (beside, used) = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                let begin = Instant::now();
                slow.iter_mut().for_each(|client| client.bytes(b"x"));
                std::thread::sleep(Duration::from_secs(1).saturating_sub(begin.elapsed()));
            }
        });
        let before = cpu(worker);
        let begin = Instant::now();
        let beside = served(&system, 50, least);
        let used = (cpu(worker) - before) as f64 / begin.elapsed().as_secs_f64();
        done.store(true, Ordering::SeqCst);
        (beside, used)
    });
    let shown = |times: &[Duration]| {
        let at = |share: usize| times[(times.len() - 1) * share / 100];
        format!("{} messages, median {:?}, 99% within {:?}", times.len(), at(50), at(99))
    };
    println!("alone: {}", shown(&alone));
    println!("beside {trickling} that trickle: {}; {used:.1}% of a processor", shown(&beside));
    if cfg!(not(debug_assertions)) {
        assert!(beside[beside.len() - 1] < Duration::from_secs(1), "{}", shown(&beside));
    }
    for (n, client) in slow.iter_mut().enumerate() {
        if n % 2 == 0 {
            client.says("", "250");
        } else {
            client.bytes(b"\r\n.\r\n");
            client.expect("250 2.0.0");
        }
    }
}

/// How long sessions took from connecting to the reply for their message, shortest first: so many at least, and
/// for that long.
fn served(system: &System, count: usize, least: Duration) -> Vec<Duration> {
    let all = Instant::now();
    let mut times = Vec::new();
    while times.len() < count || all.elapsed() < least {
        let begin = Instant::now();
        let mut client = system.smtp();
        client.send("a@x.test", &["quick@v.test"], &message("quick")).unwrap();
        times.push(begin.elapsed());
        client.quit();
    }
    times.sort();
    times
}

/// A client that sends without end and one that never reads do not fill the memory of a worker.
#[test]
fn a_large_message_takes_little_memory() {
    let system = System::builder().set("smtp", "workers", "1").start();
    let worker = system.pids()["smtpd/0"];
    let before = memory(worker, "VmHWM:");
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
    let peak = memory(worker, "VmHWM:");
    assert!(peak < before + (16 << 10), "4 messages of 27 MB: {before} KiB before, {peak} KiB at the peak");
    ids.iter().for_each(|id| system.finished(id));
    assert_eq!(system.maildir("u@v.test").len(), 4);
}

/// Memory of a process in KiB: `VmRSS:` now, `VmHWM:` at its most.
fn memory(pid: u32, of: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(of)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Processor time in hundredths of a second.
fn cpu(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
