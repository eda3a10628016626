//! The command that other programs call: sendmail, mailq, newaliases.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use nix::unistd::Group;
use postern_tests::{System, have, have_root, until};

/// The command under its three names, where everybody can run it.
fn installed(system: &System) -> PathBuf {
    let path = system.directory().join("sendmail");
    if !path.exists() {
        // By another process: a file that this one has open for writing, if only for a moment and in a
        // fork of another thread, cannot be executed.
        let copied = Command::new("cp").arg(System::program("sendmail")).arg(&path).status().unwrap();
        assert!(copied.success());
        symlink("sendmail", system.directory().join("mailq")).unwrap();
        symlink("sendmail", system.directory().join("newaliases")).unwrap();
    }
    path
}

/// Runs it as an ordinary user: `nobody` when the test is root.
fn command(system: &System, name: &str) -> Command {
    installed(system);
    let mut command = Command::new(system.directory().join(name));
    as_ordinary_user(command.env("POSTERN_CONFIG", system.config()).current_dir("/"));
    command
}

/// An ordinary user with the group postern-drop: what the set-gid bit of an installed sendmail gives. (With
/// that bit it would heed no other configuration than the host's.)
fn as_ordinary_user(command: &mut Command) {
    if nix::unistd::geteuid().is_root() {
        command.uid(65534).gid(drop_group());
    }
}

fn drop_group() -> u32 {
    Group::from_name("postern-drop").unwrap().expect("system users: run etc/users").gid.as_raw()
}

fn run(command: &mut Command, input: &[u8]) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It may refuse before it has read everything.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn send(system: &System, arguments: &[&str], input: &[u8]) -> Output {
    run(command(system, "sendmail").args(arguments), input)
}

fn accepted(output: &Output) {
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_message_on_its_standard_input() {
    let system = System::start();
    let content = b"Subject: by sendmail\n\nHello\n.\nand more\n";
    accepted(&send(&system, &["-i", "-f", "s@x.test", "u@v.test"], content));
    let mail = &system.wait_maildir("u@v.test", 1)[0];
    assert_eq!(mail.header("Return-Path").unwrap(), "<s@x.test>");
    assert_eq!(mail.header("Subject").unwrap(), "by sendmail");
    for name in ["Date", "Message-ID", "From", "Received"] {
        assert!(mail.header(name).is_some(), "no {name}: {}", String::from_utf8_lossy(&mail.bytes));
    }
    assert!(mail.bytes.ends_with(b"\n\nHello\n.\nand more\n"));
    let picked = system.wait("picked-up", |_| true);
    assert_eq!(picked["from"], "s@x.test");
    // Without -i a lone dot is the end.
    accepted(&send(&system, &["-f", "s@x.test", "w@v.test"], content));
    assert!(system.wait_maildir("w@v.test", 1)[0].bytes.ends_with(b"\n\nHello\n"));
}

#[test]
fn recipients_from_the_header() {
    let system = System::start();
    let content = b"From: s@x.test\nTo: U <u@v.test>,\n w@v.test\nCc: \"C, c\" <c@v.test>\nBcc: b@v.test\nSubject: all\n\nx\n";
    accepted(&send(&system, &["-t", "-oi", "-oem"], content));
    for to in ["u@v.test", "w@v.test", "c@v.test", "b@v.test"] {
        let mail = &system.wait_maildir(to, 1)[0];
        assert_eq!(mail.header("Bcc"), None, "{to} does not learn of the others");
        assert_eq!(mail.header("From").unwrap(), "s@x.test");
    }
}

#[test]
fn exit_statuses_of_sysexits() {
    let system = System::start();
    for (arguments, status) in [(&["-Z"][..], 64), (&["-t"], 65), (&[], 64), (&["-f"], 64)] {
        let output = send(&system, arguments, b"Subject: nobody\n\n");
        let code = output.status.code().unwrap();
        // sysexits(3): 64 usage, 65 data; what is said tells which.
        assert!(code == status || [64, 65].contains(&code), "{arguments:?}: {code}");
        assert!(!output.stderr.is_empty(), "{arguments:?} says why");
    }
    assert_eq!(system.spool("drop"), [""; 0]);
}

/// Mail waits in drop/ while nothing runs.
#[test]
fn while_postern_is_stopped() {
    let mut system = System::start();
    installed(&system);
    system.stop();
    accepted(&send(&system, &["-f", "s@x.test", "u@v.test"], b"Subject: early\n\nx\n"));
    assert_eq!(system.spool("drop").len(), 1);
    system.start_again();
    assert_eq!(system.wait_maildir("u@v.test", 1)[0].header("Subject").unwrap(), "early");
    assert_eq!(system.spool("drop"), [""; 0]);
}

#[test]
fn smtp_on_the_standard_input() {
    let system = System::start();
    let dialogue = b"EHLO x\r\nMAIL FROM:<s@x.test>\r\nRCPT TO:<u@v.test>\r\nDATA\r\nSubject: bs\r\n\r\nx\r\n.\r\nQUIT\r\n";
    let output = send(&system, &["-bs"], dialogue);
    accepted(&output);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.starts_with("220 ") && said.contains("\r\n354 ") && said.contains("\r\n221 "), "{said}");
    assert_eq!(system.wait_maildir("u@v.test", 1)[0].header("Subject").unwrap(), "bs");
}

#[test]
fn mailq_and_newaliases() {
    let system = System::builder().unprivileged().start();
    accepted(&run(command(&system, "mailq").stdin(Stdio::null()), b""));
    let output = run(&mut command(&system, "newaliases"), b"");
    accepted(&output);
}

/// Another user's mail in drop/ is out of reach, and so is the directory's list.
#[test]
fn drop_is_for_dropping() {
    if !have_root() {
        return;
    }
    let mut system = System::start();
    installed(&system);
    system.stop();
    accepted(&send(&system, &["-f", "s@x.test", "u@v.test"], b"Subject: mine\n\nx\n"));
    // Without the group that the set-gid bit gives: no list, no file, no message.
    let drop = system.spool_path().join("drop");
    let waiting = drop.join(&system.spool("drop")[0]);
    for (program, path) in [("ls", drop.clone()), ("touch", drop.join("planted")), ("cat", waiting)] {
        let output = run(Command::new(program).arg(path).uid(65534).gid(65534), b"");
        assert!(!output.status.success(), "{program} in drop/: {}", String::from_utf8_lossy(&output.stdout));
    }
    // What one user dropped another, who uses the same command, does not remove.
    let other = run(
        Command::new("rm").arg("-f").arg(drop.join(&system.spool("drop")[0])).uid(1).gid(drop_group()),
        b"",
    );
    assert!(!other.status.success());
    system.start_again();
    system.wait_maildir("u@v.test", 1);
}

#[test]
fn mail_1() {
    if !have(&["bsd-mailx"]) {
        return;
    }
    let system = System::start();
    let sendmail = installed(&system);
    let mut mail = Command::new("/usr/bin/bsd-mailx");
    let settings = system.directory().join("mailrc");
    std::fs::write(&settings, format!("set sendmail={}\n", sendmail.display())).unwrap();
    mail.env("POSTERN_CONFIG", system.config()).env("MAILRC", settings).env("HOME", "/").current_dir("/");
    mail.args(["-s", "by mail(1)", "u@v.test"]);
    as_ordinary_user(&mut mail);
    accepted(&run(&mut mail, b"Hello\n"));
    let mail = &system.wait_maildir("u@v.test", 1)[0];
    assert_eq!(mail.header("Subject").unwrap(), "by mail(1)");
    assert_eq!(mail.header("To").unwrap(), "u@v.test");
}

#[test]
fn git_send_email() {
    if !have(&["git"]) || !std::path::Path::new("/usr/lib/git-core/git-send-email").exists() {
        return;
    }
    let system = System::start();
    let sendmail = installed(&system);
    let directory = tempfile::tempdir().unwrap();
    let patch = directory.path().join("0001-one.patch");
    let content = "From 0123456789012345678901234567890123456789 Mon Sep 17 00:00:00 2001\nFrom: S <s@x.test>\n\
                   Date: Mon, 1 Jan 2024 00:00:00 +0000\nSubject: [PATCH] One\n\nText.\n---\n f | 1 +\n\n-- \n2.0\n";
    std::fs::write(&patch, content).unwrap();
    let mut git = Command::new("/usr/bin/git");
    git.env("POSTERN_CONFIG", system.config()).env("HOME", directory.path()).current_dir(directory.path());
    for who in ["AUTHOR", "COMMITTER"] {
        git.env(format!("GIT_{who}_NAME"), "S").env(format!("GIT_{who}_EMAIL"), "s@x.test");
    }
    git.env("GIT_CONFIG_NOSYSTEM", "1").args([
        "send-email",
        "--confirm=never",
        "--quiet",
        "--suppress-cc=all",
        "--envelope-sender",
        "s@x.test",
        "--from",
        "s@x.test",
    ]);
    git.arg(format!("--sendmail-cmd={}", sendmail.display())).args(["--to", "u@v.test"]).arg(&patch);
    accepted(&run(&mut git, b""));
    let mail = &system.wait_maildir("u@v.test", 1)[0];
    assert_eq!(mail.header("Subject").unwrap(), "[PATCH] One");
    assert_eq!(mail.header("Return-Path").unwrap(), "<s@x.test>");
    assert!(String::from_utf8_lossy(&mail.bytes).contains("\n\nText.\n---\n"));
}

/// What the command line asks for goes with the message; large ones take another way in, one after the other,
/// and small ones do not wait for them.
#[test]
fn reports_asked_for_on_the_command_line() {
    let system = System::start();
    let large =
        [b"Subject: large\n\n".to_vec(), b"a line of text of a large message\n".repeat(100_000)].concat();
    for (n, input) in [&large[..], &large, b"Subject: small\n\nx\n"].iter().enumerate() {
        let id = format!("mine-{n}");
        let arguments = ["-f", "sender@v.test", "-N", "success,failure", "-R", "hdrs", "-V", &id, "u@v.test"];
        accepted(&send(&system, &arguments, input));
    }
    let reports = system.wait_maildir("sender@v.test", 3);
    assert_eq!(system.wait_maildir("u@v.test", 3).len(), 3);
    for report in &reports {
        let text = String::from_utf8_lossy(&report.bytes).replace("\r\n", "\n");
        assert!(
            text.contains("\nOriginal-Envelope-Id: mine-") && text.contains("\nAction: delivered\n"),
            "{text}"
        );
    }
    let refused = send(&system, &["-N", "sometimes", "u@v.test"], b"x\n");
    assert_eq!(refused.status.code(), Some(64));
    let empty = || system.spool("cur").is_empty().then_some(());
    until("no copies are left", std::time::Duration::from_secs(60), empty);
}
