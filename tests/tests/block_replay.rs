//! Whatever the disk made of the writes between two flushes when the power went: what was accepted arrives.
//!
//! The whole system runs on an ext4 whose disk logs every write and every flush. Each 250 is noted with the
//! length of the log at that moment. Then the power goes, afterwards: the disk is put together as it was at
//! some entry of the log, with everything up to the last flush, and of the later writes some, in any order,
//! torn into sectors. The file system recovers, the system starts on it, and every message whose 250 was
//! heard before that entry arrives, octet for octet. What else arrives is whole.
//!
//! `POSTERN_REPLAYS` says how many such disks. A run that fails keeps its log and says where:
//! `POSTERN_RECORDING` and `POSTERN_SEED` make the same disks of it again.
//!
//! BUGS
//!     A write that was finished while a flush was under way counts as flushed: the log cannot tell. On ext4
//!     a new file's own sync brings its name to the disk as well, so a missing sync of the directory alone is
//!     not seen here; the spool's own `tests/power.rs` sees it.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use postern_spool::SpoolFile;
use postern_tests::{
    Address, Answer, BlockLog, Fate, Ledger, LoggedDisk, LoopFs, Process, Random, Sink, Smtp, System,
    attachment, from_line, have, have_root, scale, until, with_lf,
};

const CLIENTS: usize = 6;
const MESSAGES: usize = 300;

/// Where the messages end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    /// At a sink that refuses for now while the log is written: all of them are in the spool.
    Sink,
    /// In mailboxes on the same disk: each is in the spool or there.
    Mailboxes,
}

/// A 250 that was heard.
#[derive(Clone, Copy, Debug)]
struct Accepted {
    number: usize,
    position: u64,
}

#[test]
fn every_disk_that_a_power_cut_may_leave_has_the_queue() {
    let Some(mut run) = Run::record(Goal::Sink, &[]) else { return };
    let lost = run.replay(scale("POSTERN_REPLAYS", 10));
    assert!(lost.is_empty(), "accepted and lost: {lost:?}");
}

#[test]
fn every_disk_that_a_power_cut_may_leave_has_the_queue_or_the_mailbox() {
    let Some(mut run) = Run::record(Goal::Mailboxes, &[]) else { return };
    let lost = run.replay(scale("POSTERN_REPLAYS", 10));
    assert!(lost.is_empty(), "accepted and lost: {lost:?}");
}

/// The check can fail: when smtpd's syncs say Ok and do nothing, it finds what is lost.
#[test]
fn a_sync_that_does_nothing_is_found_out() {
    let calls = ["fsync", "fdatasync"];
    let Some(mut run) = Run::record(Goal::Sink, &calls) else { return };
    let lost = run.replay(3);
    println!("without syncs: {} losses", lost.len());
    assert!(!lost.is_empty(), "without syncs nothing was lost: this test proves nothing");
}

/// A load that is over and its log. The order of the fields is the order in which they end.
struct Run {
    system: System,
    directory: PathBuf,
    sink: Sink,
    goal: Goal,
    log: BlockLog,
    accepted: Vec<Accepted>,
    /// How long the log was when the load was over.
    end: u64,
    random: Random,
    _address: Address,
    _alone: MutexGuard<'static, ()>,
}

impl Run {
    /// Makes the load, or reads a log that was kept. These system calls of smtpd do nothing meanwhile. None
    /// when the machine cannot do it, or what was kept is of another test.
    fn record(goal: Goal, without: &[&str]) -> Option<Run> {
        // FUSE is no program, but may be missing as well.
        if !have_root() || !have(&["qemu-storage-daemon", "mkfs.ext4", "strace", "/dev/fuse"]) {
            return None;
        }
        let kept = std::env::var_os("POSTERN_RECORDING").map(PathBuf::from);
        let file = |name: &str| kept.as_ref().map(|kept| kept.join(name));
        if file("goal").is_some_and(|file| std::fs::read_to_string(file).unwrap() != name(goal, without)) {
            return None;
        }
        let alone = one_at_a_time();
        let random = Random::start();
        LoopFs::enter_own_namespace();
        let address = Address::claim();
        let sink = Sink::start();
        let mut system = System::builder()
            .at(address.port(2525))
            .set("relay", "networks", &format!("[\"{}\", \"127.0.0.0/8\"]", address.ip))
            .set("virtual", "mailbox", "\"maildir:{directory}/spool/mail/{domain}/{local}\"")
            .set("queue", "min-free", "\"0 B\"")
            .route("sink.test", &sink.via())
            .fast_retries()
            .prepare();
        let directory = system.directory().to_owned();
        match &kept {
            Some(kept) => ["image", "block.log", "accepted"].into_iter().for_each(|name| {
                copy(&kept.join(name), &directory.join(name));
            }),
            None => load(goal, without, &mut system, &sink, address.port(2525)),
        }
        let log = BlockLog::parse(std::fs::read(directory.join("block.log")).unwrap()).unwrap();
        let noted = std::fs::read_to_string(directory.join("accepted")).unwrap();
        let mut accepted: Vec<_> = noted.lines().map(Accepted::of_line).collect();
        let end = accepted.pop().unwrap().position;
        let entries = log.before(end);
        let flushes = (1..=entries).filter(|n| log.certain(*n) == *n).count();
        println!("{goal:?}: {} accepted, {entries} entries, {flushes} flushes", accepted.len());
        let (_address, _alone) = (address, alone);
        std::fs::write(directory.join("goal"), name(goal, without)).unwrap();
        Some(Run { system, directory, sink, goal, log, accepted, end, random, _address, _alone })
    }

    /// Cuts the power that often. What was lost, with the entry of the log at which it was.
    fn replay(&mut self, count: usize) -> Vec<(usize, Vec<usize>)> {
        let begin = Instant::now();
        let (first, last) = (self.log.before(self.accepted[0].position), self.log.before(self.end));
        let mut cuts: Vec<usize> = (0..count)
            .map(|n| {
                let heard = self.accepted[self.random.below(self.accepted.len() as u64) as usize];
                let heard = self.log.before(heard.position);
                match n % 3 {
                    // The instant behind a 250, when the disk was told the least.
                    0 => heard,
                    // The instant before the next flush, when the most is open.
                    1 => (heard..last).find(|n| self.log.certain(n + 1) > heard).unwrap_or(last),
                    _ => first + self.random.below((last - first) as u64 + 1) as usize,
                }
            })
            .collect();
        cuts.sort_unstable();
        copy(&self.directory.join("image"), &self.directory.join("certain"));
        let certain = OpenOptions::new().write(true).open(self.directory.join("certain")).unwrap();
        let (mut applied, mut lost) = (0, Vec::new());
        for (n, cut) in cuts.into_iter().enumerate() {
            let flushed = self.log.certain(cut);
            self.log.apply(&certain, applied..flushed).unwrap();
            applied = flushed;
            let fate = Fate::ALL[self.random.below(Fate::ALL.len() as u64) as usize];
            let replayed = self.directory.join("replayed");
            copy(&self.directory.join("certain"), &replayed);
            let image = OpenOptions::new().write(true).open(&replayed).unwrap();
            let (written, all) =
                self.log.apply_by_chance(&image, flushed..cut, fate, &mut self.random).unwrap();
            drop(image);
            let position = self.log.entries().get(cut).map_or(u64::MAX, |entry| entry.position);
            let due = self.accepted.iter().filter(|accepted| accepted.position <= position);
            let due: BTreeSet<usize> = due.map(|accepted| accepted.number).collect();
            let missing = self.start_on(&replayed, &due);
            println!(
                "cut {n} at {cut}: {} due, {} lost; {fate:?}: {written} of {all} sectors behind the flush",
                due.len(),
                missing.len()
            );
            if !missing.is_empty() {
                lost.push((cut, missing));
            }
        }
        println!("{:?}: {count} cuts in {:?}", self.goal, begin.elapsed());
        lost
    }

    /// Starts the system on a disk, and says which of these messages it does not have.
    fn start_on(&mut self, image: &Path, due: &BTreeSet<usize>) -> Vec<usize> {
        let mounted = LoopFs::existing(image, &self.directory.join("spool"));
        let before = self.sink.taken().len();
        let begin = Instant::now();
        self.system.start_again();
        let missing = loop {
            let arrived = self.arrived(before);
            let missing: Vec<_> = due.difference(&arrived).copied().collect();
            let quiet = self.quiet();
            if missing.is_empty() && quiet {
                break missing;
            }
            // Adoption of what is in tmp/, and the retry that is due, take two seconds each.
            if quiet && begin.elapsed() > Duration::from_secs(6) {
                break due.difference(&self.arrived(before)).copied().collect();
            }
            assert!(begin.elapsed() < Duration::from_secs(60), "the queue does not become empty");
            std::thread::sleep(Duration::from_millis(50));
        };
        self.system.stop();
        mounted.unmount();
        missing
    }

    /// Which messages arrived. Each is whole.
    fn arrived(&self, before: usize) -> BTreeSet<usize> {
        let contents: Vec<Vec<u8>> = match self.goal {
            Goal::Sink => self.sink.taken().into_iter().skip(before).map(|taken| taken.content).collect(),
            Goal::Mailboxes => {
                let mail = self.directory.join("spool/mail/v.test/u");
                postern_tests::maildir(&mail).into_iter().map(|mail| mail.bytes).collect()
            }
        };
        let number = |content: &[u8]| {
            let content = from_line(content, b"X-Number: ");
            let line = content.split(|octet| *octet == b'\n').next().unwrap();
            let number = String::from_utf8_lossy(line).trim()["X-Number: ".len()..].parse().unwrap();
            let sent = match self.goal {
                Goal::Sink => content_of(number),
                Goal::Mailboxes => with_lf(&content_of(number)),
            };
            assert!(
                content == sent,
                "message {number} is not what was sent: {}",
                String::from_utf8_lossy(content)
            );
            number
        };
        contents.iter().map(|content| number(content)).collect()
    }

    /// Nothing is left to do: no message is queued, in `new/`, or whole in `tmp/`. What is there and not whole
    /// was never accepted and stays for a day.
    fn quiet(&self) -> bool {
        let whole = |name: &String| {
            let tmp = File::open(self.system.spool_path().join("tmp")).unwrap();
            SpoolFile::open_unfinished(tmp.as_fd(), name).is_ok()
        };
        self.system.spool("new").is_empty()
            && !self.system.spool("tmp").iter().any(whole)
            && self.system.postern_json(&["queue", "list"]).is_empty()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let kept = std::env::temp_dir().join(format!("postern-recording-{}", std::process::id()));
            std::fs::create_dir_all(&kept).unwrap();
            for name in ["image", "block.log", "accepted", "goal"] {
                copy(&self.directory.join(name), &kept.join(name));
            }
            eprintln!("to repeat it: POSTERN_RECORDING={} and the POSTERN_SEED above", kept.display());
        }
    }
}

impl Accepted {
    fn of_line(line: &str) -> Self {
        let (number, position) = line.split_once(' ').unwrap();
        Self { number: number.parse().unwrap(), position: position.parse().unwrap() }
    }
}

/// What a recording is of.
fn name(goal: Goal, without: &[&str]) -> String {
    format!("{goal:?} {without:?}")
}

/// The load, in the system's directory: `image` is the disk before it, `block.log` what it was told, and
/// `accepted` each number with its position, and the end's position as the last.
fn load(goal: Goal, without: &[&str], system: &mut System, sink: &Sink, address: SocketAddr) {
    let directory = system.directory().to_owned();
    let (image, written) = (directory.join("image"), directory.join("written"));
    make_file_system(&image);
    let mounted = LoopFs::existing(&image, &directory.join("spool"));
    let mail = directory.join("spool/mail");
    std::fs::create_dir(&mail).unwrap();
    let owner = nix::unistd::User::from_name("postern-mail").unwrap().expect("system users: run etc/users");
    std::os::unix::fs::chown(&mail, Some(owner.uid.as_raw()), Some(owner.gid.as_raw())).unwrap();
    mounted.unmount();
    drop(mounted);
    copy(&image, &written);

    let disk = LoggedDisk::start(&directory, &written);
    let mounted = LoopFs::existing(disk.path(), &directory.join("spool"));
    sink.behave(|line| match line.starts_with("RCPT") {
        true => Answer::Say("450 4.2.0 Not now".into()),
        false => Answer::Usual,
    });
    system.start_again();
    let liar = (!without.is_empty()).then(|| make_believe(system, without));
    let (ledger, accepted) = (Ledger::default(), Mutex::default());
    std::thread::scope(|threads| {
        for _ in 0..CLIENTS {
            threads.spawn(|| send(&ledger, address, goal, &disk, &accepted));
        }
    });
    let end = Accepted { number: 0, position: disk.position() };
    system.kill_all();
    drop(liar);
    mounted.unmount();
    drop(mounted);
    disk.stop();
    sink.behave_well();
    let mut accepted = accepted.into_inner().unwrap();
    accepted.sort_by_key(|accepted: &Accepted| accepted.position);
    accepted.push(end);
    let lines = accepted.iter().map(|accepted| format!("{} {}\n", accepted.number, accepted.position));
    std::fs::write(directory.join("accepted"), lines.collect::<String>()).unwrap();
}

/// One client: sends, and notes each 250 with the length of the log.
fn send(ledger: &Ledger, server: SocketAddr, goal: Goal, disk: &LoggedDisk, accepted: &Mutex<Vec<Accepted>>) {
    let mut client = Smtp::connect(server);
    loop {
        let number = ledger.number();
        if number >= MESSAGES {
            return;
        }
        let to = match goal {
            Goal::Sink => "b@sink.test",
            Goal::Mailboxes => "u@v.test",
        };
        client.send("a@x.test", &[to], &content_of(number)).unwrap();
        let position = disk.position();
        accepted.lock().unwrap().push(Accepted { number, position });
    }
}

/// The message of a number: most are small, some large enough to be streamed.
fn content_of(number: usize) -> Vec<u8> {
    let mut content = format!("X-Number: {number}\r\n").into_bytes();
    content.extend(attachment(match number % 30 {
        29 => 150_000 + number,
        n if n % 5 == 4 => 9_000 + number,
        _ => 300 + number,
    }));
    content
}

/// These system calls of every smtpd say Ok and do nothing, as long as this process lives.
fn make_believe(system: &System, calls: &[&str]) -> Process {
    let pids: BTreeMap<_, _> = system.pids().into_iter().filter(|(name, _)| name.contains("smtpd")).collect();
    assert!(!pids.is_empty(), "no smtpd: {:?}", system.pids());
    let calls = calls.join(",");
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={calls}")]);
    command.args(["-e", &format!("inject={calls}:retval=0")]);
    for pid in pids.values() {
        command.args(["-p", &pid.to_string()]);
    }
    let tracer = Process::start(&mut command);
    let traced = |pid: &u32| {
        std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().all(|task| {
            let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap_or_default();
            !status.contains("TracerPid:\t0\n")
        })
    };
    until("strace holds every smtpd", Duration::from_secs(20), || pids.values().all(traced).then_some(()));
    tracer
}

fn make_file_system(image: &Path) {
    File::create(image).unwrap().set_len(96 << 20).unwrap();
    // Everything is written now: what the kernel would zero later is no part of what is tried.
    let options = "lazy_itable_init=0,lazy_journal_init=0,nodiscard";
    let made =
        Command::new("mkfs.ext4").args(["-q", "-b", "4096", "-E", options]).arg(image).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// Copies an image without its holes.
fn copy(from: &Path, to: &Path) {
    let copied =
        Command::new("cp").args(["--reflink=auto", "--sparse=always"]).arg(from).arg(to).output().unwrap();
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
}

/// Two loads at a time on one machine say less than one.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
