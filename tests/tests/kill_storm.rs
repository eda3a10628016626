//! Programs die by the dozen while mail comes in by SMTP, sendmail and bounces and goes out to Maildir, LMTP
//! and remote: what was accepted arrives.
//!
//! `POSTERN_KILLS` and `POSTERN_MESSAGES` say how often and during how many; `POSTERN_SEED` repeats the choice.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Group, Pid};
use postern_tests::{Address, Answer, Ledger, Random, Sink, System, scale, settled};

const CLIENTS: usize = 6;

/// Jobs that one agent may have under way: what is repeated when something is killed.
const JOBS: usize = 20;

/// Two to each kind of place, and one that is refused there: its sender is told, and lives here.
const TO: [&str; 4] = ["u@v.test", "b@sink.test", "c@lmtp.test", "no@sink.test"];

#[test]
fn nothing_accepted_is_lost_in_a_storm_of_kills() {
    let (kills, messages) = (scale("POSTERN_KILLS", 100), scale("POSTERN_MESSAGES", 5000));
    let mut random = Random::start();
    let address = Address::claim();
    let (remote, lmtp) = (Sink::start(), Sink::start());
    remote.behave(|command| match command.to_ascii_lowercase().contains("rcpt to:<no@") {
        true => Answer::Say("550 5.1.1 Nobody".into()),
        false => Answer::Usual,
    });
    let mut system = System::builder()
        .at(address.port(2525))
        .set("relay", "networks", &format!("[\"{}\", \"127.0.0.0/8\"]", address.ip))
        .route("sink.test", &remote.via())
        .route("lmtp.test", &lmtp.via().replace("smtp:", "lmtp:"))
        .set("delivery", "jobs", &JOBS.to_string())
        .fast_retries()
        .start();
    let (sendmail, config) = (system.directory().join("sendmail"), system.config());
    // By another process: a file that this one has open for writing, if only for a moment and in a fork of
    // another thread, cannot be executed.
    assert!(Command::new("cp").arg(System::program("sendmail")).arg(&sendmail).status().unwrap().success());
    let ledger = Ledger::default();
    let begin = Instant::now();
    let left = || Duration::from_secs(900).saturating_sub(begin.elapsed());
    let mut deaths = 0;
    std::thread::scope(|threads| {
        let _end = End(&ledger);
        for _ in 0..CLIENTS {
            threads.spawn(|| ledger.send(address.port(2525), "s@v.test", &TO, messages));
        }
        threads.spawn(|| {
            while !ledger.has_ended() && ledger.count() < messages {
                let subject = format!("message-{}", ledger.number());
                let mut command = Command::new(&sendmail);
                command.env("POSTERN_CONFIG", &config).args(["-i", "-f", "s@v.test", "w@v.test"]);
                if drop_off(&mut command, &subject) {
                    ledger.note(subject);
                }
            }
        });
        // A program that dies again and again is given time to think: its next turn comes by itself.
        while deaths < kills {
            let due = messages * (deaths + 1) / (kills + 1);
            assert!(ledger.reaches(due.min(messages), left()), "nothing is accepted any more");
            let mut pids: Vec<_> = system.pids().into_values().collect();
            if random.below(10) == 0 {
                // Everything at once, master first; deaths enough that nobody need think.
                system.kill_all();
                system.start_again();
                deaths += 1;
                continue;
            }
            pids.sort_unstable();
            let victim = pids[random.below(pids.len() as u64) as usize];
            if kill(Pid::from_raw(victim as i32), Signal::SIGKILL).is_ok() {
                deaths += 1;
                let died = |event: &serde_json::Value| event["pid"] == victim;
                system.log.wait_for("program-died", died, Duration::from_secs(30));
            }
        }
        assert!(ledger.reaches(messages, left()), "nothing is accepted any more");
    });
    settled(&system, Duration::from_secs(120));
    let took = begin.elapsed();

    let local = system.maildir("u@v.test").into_iter().chain(system.maildir("w@v.test"));
    let taken = remote.taken().into_iter().chain(lmtp.taken()).map(|taken| taken.content);
    // A bounce says who: the message that could not be delivered is within, with its subject.
    let bounces: Vec<_> = system.maildir("s@v.test").into_iter().map(|mail| returned(&mail.bytes)).collect();
    let bounced = bounces.len();
    let copies = ledger.check(local.map(|mail| mail.bytes).chain(taken).chain(bounces));
    println!(
        "{} accepted, {deaths} kills, {bounced} bounces, {copies} second copies, {took:?}",
        ledger.count()
    );
    // Twice is only what was under way at an agent at the moment of a death.
    let most = 3 * JOBS * deaths;
    assert!(copies <= most, "{copies} second copies, {most} could have been under way");
    assert!(system.spool("corrupt").is_empty(), "{:?}", system.spool("corrupt"));
}

/// Sends by the local command; true when it promised delivery. It is the kill of others that is tried: the
/// command itself writes into `drop/`, whoever lives.
fn drop_off(command: &mut Command, subject: &str) -> bool {
    if nix::unistd::geteuid().is_root() {
        let group = Group::from_name("postern-drop").unwrap().expect("system users: run etc/users");
        command.uid(65534).gid(group.gid.as_raw()).current_dir("/");
    }
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let content = format!("Subject: {subject}\n\nThis is {subject}.\n");
    // It may have refused before it read anything.
    let _ = child.stdin.take().unwrap().write_all(content.as_bytes());
    child.wait().unwrap().success()
}

/// The message that a bounce brings back; a header alone is completed by the line that the body was.
fn returned(bounce: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(bounce);
    let subject = text.lines().filter_map(|line| line.strip_prefix("Subject: message-")).next_back();
    let subject = subject.unwrap_or_else(|| panic!("a bounce of what? {text}"));
    format!("Subject: message-{subject}\n\nThis is message-{subject}.\n").into_bytes()
}

/// However the scope is left, the senders end.
struct End<'a>(&'a Ledger);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}
