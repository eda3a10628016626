//! The power goes while mail comes in and goes out: whatever was accepted arrives.
//!
//! The whole system runs on file systems in image files, which the shutdown ioctl stops at random moments:
//! what the kernel had not written is gone, as at a power cut. `POSTERN_CUTS` says how often, `POSTERN_SEED`
//! repeats the moments.
#![allow(clippy::unwrap_used)]

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postern_tests::{Address, Ledger, LoopFs, Random, Sink, System, have, have_root, scale, settled};

const CLIENTS: usize = 6;

/// Jobs that each of the three agents may have under way: what may be delivered and not yet said.
const JOBS: usize = 20;
const TO: [&str; 3] = ["u@v.test", "b@sink.test", "w@v.test"];

#[test]
fn ext4_mailboxes_on_another_file_system() {
    cuts("ext4", false);
}

#[test]
fn ext4_mailboxes_on_the_same_file_system() {
    cuts("ext4", true);
}

#[test]
fn xfs_mailboxes_on_another_file_system() {
    cuts("xfs", false);
}

#[test]
fn xfs_mailboxes_on_the_same_file_system() {
    cuts("xfs", true);
}

fn cuts(kind: &str, same: bool) {
    if !have_root() || !have(&["python3", &format!("mkfs.{kind}")]) {
        return;
    }
    let _alone = one_at_a_time();
    let mut random = Random::start();
    let cuts = scale("POSTERN_CUTS", 8);
    LoopFs::enter_own_namespace();
    let address = Address::claim();
    let sink = Sink::start();
    let mailbox = match same {
        true => "\"maildir:{directory}/spool/mail/{domain}/{local}\"",
        false => "\"maildir:{directory}/mail/{domain}/{local}\"",
    };
    let mut system = System::builder()
        .at(address.port(2525))
        .set("relay", "networks", &format!("[\"{}\", \"127.0.0.0/8\"]", address.ip))
        .set("virtual", "mailbox", mailbox)
        .route("sink.test", &sink.via())
        .set("delivery", "jobs", &JOBS.to_string())
        .fast_retries()
        .prepare();
    let d = system.directory().to_owned();
    let mut disks = vec![LoopFs::create(kind, &d.join("spool.image"), &d.join("spool"))];
    let mail = if same { d.join("spool/mail") } else { d.join("mail") };
    if same {
        std::fs::create_dir(&mail).unwrap();
    } else {
        disks.push(LoopFs::create(kind, &d.join("mail.image"), &mail));
    }
    give_to_mail_owner(&mail);
    // What the administrator made is not what is tried here.
    nix::unistd::sync();

    let ledger = Ledger::default();
    let begin = Instant::now();
    let mut fresh = 0;
    std::thread::scope(|threads| {
        let _end = End(&ledger);
        for _ in 0..CLIENTS {
            threads.spawn(|| ledger.send(address.port(2525), "a@x.test", &TO, usize::MAX));
        }
        system.start_again();
        for cut in 0..cuts {
            let some = ledger.reaches(ledger.count() + 20, Duration::from_secs(30));
            assert!(some, "nothing is accepted after cut {cut}");
            // No event to wait for: the moment is the thing that is tried.
            std::thread::sleep(Duration::from_millis(random.below(150)));
            if random.below(2) == 0 {
                disks.reverse();
            }
            let mark = system.log.mark();
            let frozen = freeze(system.master());
            LoopFs::cut(&disks.iter().collect::<Vec<_>>());
            // Those of another parent than master first: they are stopped and hear of nothing.
            for pid in frozen {
                // It may have ended.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            system.kill_all();
            fresh += delivered_shortly_before(&system, mark) + 3 * JOBS;
            disks.iter().for_each(LoopFs::unmount);
            disks.iter().for_each(LoopFs::mount);
            system.start_again();
        }
    });
    settled(&system, Duration::from_secs(60));
    let took = begin.elapsed();

    let taken = sink.taken().into_iter().map(|taken| taken.content);
    let local = ["u", "w"].iter().flat_map(|user| postern_tests::maildir(&mail.join("v.test").join(user)));
    let copies = ledger.check(taken.chain(local.map(|mail| mail.bytes)));
    let count = ledger.count();
    assert!(system.spool("corrupt").is_empty(), "{:?}", system.spool("corrupt"));
    println!(
        "{kind}, mailboxes on the same: {same}: {count} accepted, {cuts} cuts, {copies} second copies, {took:?}"
    );
    // Twice is only what was delivered in the second before a cut, and not yet on disk as delivered.
    assert!(copies <= fresh, "{copies} second copies, {fresh} could have been");
    system.stop();
}

/// Stops a process and all that come from it where they stand, as a power cut does. Otherwise somebody could
/// act upon what the kernel says of a file system that is being shut down: XFS may answer Ok to an fsync whose
/// transaction the shutdown has just thrown away.
fn freeze(master: u32) -> Vec<i32> {
    let mut frozen = vec![master as i32];
    let mut done = 0;
    while let Some(&pid) = frozen.get(done) {
        // It may have ended.
        let _ = kill(Pid::from_raw(pid), Signal::SIGSTOP);
        frozen.extend(children(pid));
        done += 1;
    }
    frozen
}

fn children(of: i32) -> Vec<i32> {
    let processes =
        std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let is_child = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        parent == Some(of)
    };
    processes.filter_map(|name| name.parse().ok()).filter(is_child).collect()
}

/// How many deliveries the log has of the second before an event, and after it. Half a second is for what
/// says them and what syncs them.
fn delivered_shortly_before(system: &System, mark: usize) -> usize {
    let events = system.log.events();
    let Some(last) = events.get(mark.saturating_sub(1)).map(milliseconds) else { return 0 };
    let fresh = |event: &&serde_json::Value| {
        event["status"] == "sent" && (milliseconds(event) + DAY - last + 1500) % DAY < 10_000
    };
    events.iter().filter(fresh).count()
}

const DAY: u64 = 24 * 60 * 60 * 1000;

/// The time of the day of an event.
fn milliseconds(event: &serde_json::Value) -> u64 {
    let time = &event["time"].as_str().unwrap()[11..23];
    let digits = |range: std::ops::Range<usize>| time[range].parse::<u64>().unwrap();
    ((digits(0..2) * 60 + digits(3..5)) * 60 + digits(6..8)) * 1000 + digits(9..12)
}

/// However the scope is left, the senders end.
struct End<'a>(&'a Ledger);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

fn give_to_mail_owner(mail: &std::path::Path) {
    let owner = nix::unistd::User::from_name("postern-mail").unwrap().expect("system users: run etc/users");
    std::os::unix::fs::chown(mail, Some(owner.uid.as_raw()), Some(owner.gid.as_raw())).unwrap();
}

/// Two loads at a time on one machine say less than one.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
