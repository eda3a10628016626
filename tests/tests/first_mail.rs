//! A first message, from clients that nobody here wrote, through every program into a Maildir.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postern_tests::{Address, Smtp, System, from_line, have, maildir, message, python, until, with_lf};

#[test]
fn a_message_is_in_the_maildir_within_a_second() {
    let system = System::start();
    let mut client = system.smtp();
    client.ehlo();
    let begin = Instant::now();
    let id = client.send("a@x.test", &["u@v.test"], &message("first")).unwrap();
    let mails = system.wait_maildir("u@v.test", 1);
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());

    let mail = &mails[0];
    assert_eq!(from_line(&mail.bytes, b"From: "), with_lf(&message("first")));
    let lines: Vec<_> = mail.bytes.split(|octet| *octet == b'\n').collect();
    assert!(lines[0].starts_with(b"Return-Path: <a@x.test>"), "{:?}", String::from_utf8_lossy(&mail.bytes));
    assert_eq!(mail.header("Delivered-To").unwrap(), "u@v.test");
    let received = mail.header("Received").unwrap();
    for part in ["from client.test", "[127.0.0.1]", "by mx.test", &format!("id {id}"), "for <u@v.test>"] {
        assert!(received.contains(part), "{part:?} is not in {received:?}");
    }
    client.quit();
    system.finished(&id);
    assert_eq!(system.spool("cur"), [""; 0], "the queue is empty again");
    assert_eq!(system.spool("new"), [""; 0]);
}

#[test]
fn the_log_follows_a_message_by_its_id() {
    let system = System::start();
    let id = system.smtp().send("a@x.test", &["u@v.test", "w@v.test"], &message("followed")).unwrap();
    // Each program writes its own lines, so those of one moment may stand in any order; their times do not lie.
    let removed = system.wait("removed", |e| e["id"] == *id);
    for to in ["u@v.test", "w@v.test"] {
        system.wait("delivery", |e| e["id"] == *id && e["to"] == to);
    }
    let accepted = system.wait("accepted", |e| e["id"] == *id);
    system.wait("active", |e| e["id"] == *id);
    system.wait("connect", |e| e["session"] == accepted["session"]);
    let mut events = system.log.events();
    events.retain(|e| e["id"] == *id);
    for event in &events {
        assert!(event["time"].as_str() <= removed["time"].as_str(), "{event} behind {removed}");
    }
    let mut to: Vec<_> =
        events.iter().filter(|e| e["event"] == "delivery").map(|e| e["to"].as_str().unwrap()).collect();
    to.sort_unstable();
    assert_eq!(to, ["u@v.test", "w@v.test"]);
}

#[test]
fn swaks_and_smtplib() {
    if !have(&["swaks", "python3"]) {
        return;
    }
    let system = System::start();
    let server = system.address();
    let output = Command::new("swaks")
        .args(["-s", &server.ip().to_string(), "-p", &server.port().to_string(), "--pipeline"])
        .args(["--helo", "swaks.test", "-f", "s@x.test", "-t", "u@v.test,w@v.test"])
        .args(["--header", "Subject: by swaks", "--body", "One.\n.Two\n"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let script = "import smtplib, sys\n\
        from email.message import EmailMessage\n\
        m = EmailMessage()\n\
        m['From'], m['To'], m['Subject'] = 'p@x.test', 'u@v.test', 'by smtplib'\n\
        m.set_content('Grüße.\\n.\\nLast line\\n')\n\
        with smtplib.SMTP(sys.argv[1], int(sys.argv[2])) as s:\n\
        \x20   assert s.send_message(m) == {}\n";
    python(script, &[&server.ip().to_string(), &server.port().to_string()]);

    let mails = system.wait_maildir("u@v.test", 2);
    let mut subjects: Vec<_> = mails.iter().map(|mail| mail.header("Subject").unwrap()).collect();
    subjects.sort();
    assert_eq!(subjects, ["by smtplib", "by swaks"]);
    let swaks = mails.iter().find(|mail| mail.header("Subject").unwrap() == "by swaks").unwrap();
    let text = String::from_utf8_lossy(&swaks.bytes).into_owned();
    assert!(text.contains("\nOne.\n.Two\n") || text.contains("\r\nOne.\r\n.Two\r\n"), "{text}");
    assert_eq!(system.wait_maildir("w@v.test", 1).len(), 1);
}

#[test]
fn an_ordinary_user_runs_the_whole_system() {
    let system = System::builder().unprivileged().start();
    let id = system.smtp().send("a@x.test", &["u@v.test"], &message("ordinary")).unwrap();
    system.finished(&id);
    assert_eq!(system.maildir("u@v.test").len(), 1);
    if nix::unistd::geteuid().is_root() {
        for (program, pid) in system.pids() {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let uids = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
            assert!(uids.split_whitespace().skip(1).all(|uid| uid == "65534"), "{program}: {uids}");
        }
    }
}

/// `make run` runs etc/desk: what it prints to send a message must send one.
#[test]
fn the_desk_prints_a_command_that_works() {
    let directory = tempfile::Builder::new().prefix("postern-desk-").tempdir().unwrap();
    let address = Address::claim();
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let programs = System::program("postern").parent().unwrap().to_owned();
    let mut desk = Command::new(project.join("etc/desk"));
    desk.arg(directory.path()).env("HOST", address.ip.to_string()).env("PORT", "2525").env("BIN", programs);
    desk.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
    let mut desk = desk.spawn().unwrap();
    let lines = BufReader::new(desk.stdout.take().unwrap()).lines();
    let send =
        lines.map(Result::unwrap).find_map(|line| Some(line.strip_prefix("  send ")?.trim().to_owned()));
    let send = send.expect("a line that says how to send");
    until("220", Duration::from_secs(20), || Smtp::try_connect(address.port(2525)).ok()).quit();

    let sent = Command::new("bash").arg("-c").arg(&send).output().unwrap();
    assert!(sent.status.success(), "{send}: {}", String::from_utf8_lossy(&sent.stderr));
    let mails = until("the first message", Duration::from_secs(1), || {
        let mails = maildir(&directory.path().join("mail/v.test/you"));
        (!mails.is_empty()).then_some(mails)
    });
    assert_eq!(mails[0].header("Subject").unwrap(), "hello");

    kill(Pid::from_raw(desk.id() as i32), Signal::SIGTERM).unwrap();
    assert!(desk.wait().unwrap().success(), "the system ends cleanly");
}
