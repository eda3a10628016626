//! Mail for users of this host: aliases, Maildir and mbox, delivered with the user's own rights.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::{MetadataExt, chown};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::unistd::{User, geteuid};
use postern_tests::{Answer, Builder, Sink, System, maildir, message};

/// How long a changed file may go unheeded before the test has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// The account that gets the mail: `nobody` under root, the caller otherwise.
fn account() -> User {
    let user = if geteuid().is_root() { User::from_name("nobody") } else { User::from_uid(geteuid()) };
    user.unwrap().unwrap()
}

fn with_local(mailbox: &str) -> Builder {
    System::builder()
        .set("local", "domains", "[\"l.test\"]")
        .set("local", "mailbox", &format!("\"{mailbox}\""))
        .set("local", "aliases", "\"{directory}/aliases\"")
}

/// A place in the test's directory where the account may make its mailbox.
fn start(builder: Builder, aliases: &str) -> (System, PathBuf) {
    let mut system = builder.prepare();
    let home = system.directory().join("homes").join(account().name);
    std::fs::create_dir_all(&home).unwrap();
    chown(&home, Some(account().uid.as_raw()), Some(account().gid.as_raw())).unwrap();
    std::fs::write(system.directory().join("aliases"), aliases).unwrap();
    system.start_again();
    (system, home)
}

#[test]
fn into_the_users_maildir_with_his_rights() {
    let (system, home) = start(with_local("maildir:{directory}/homes/{user}/Maildir"), "");
    let to = format!("{}@l.test", account().name);
    let id = system.smtp().send("a@x.test", &[&to], &message("mine")).unwrap();
    system.finished(&id);
    let mails = maildir(&home.join("Maildir"));
    assert_eq!(mails.len(), 1);
    assert_eq!(mails[0].header("Delivered-To").unwrap(), to);
    let metadata = std::fs::metadata(&mails[0].path).unwrap();
    assert_eq!(metadata.uid(), account().uid.as_raw());
    assert_eq!(metadata.mode() & 0o077, 0, "nobody else reads it");
}

#[test]
fn into_the_users_mbox() {
    let (system, home) = start(with_local("mbox:{directory}/homes/{user}/mbox"), "");
    let to = format!("{}@l.test", account().name);
    let content = b"Subject: quoted\r\n\r\nFrom the beginning\r\n>From again\r\n";
    let mut client = system.smtp();
    for content in [content.as_slice(), &message("second")] {
        let id = client.send("a@x.test", &[&to], content).unwrap();
        system.finished(&id);
    }
    let mbox = std::fs::read_to_string(home.join("mbox")).unwrap();
    let begins: Vec<_> = mbox.lines().filter(|line| line.starts_with("From ")).collect();
    assert_eq!(begins.len(), 2, "{mbox}");
    assert!(begins.iter().all(|line| line.starts_with("From a@x.test ")), "{mbox}");
    assert!(mbox.contains("\n>From the beginning\n>>From again\n"), "{mbox}");
    assert!(mbox.ends_with("This is second.\n\n"), "{mbox}");
    assert_eq!(std::fs::metadata(home.join("mbox")).unwrap().uid(), account().uid.as_raw());
}

#[test]
fn aliases_are_followed() {
    let name = account().name;
    let aliases = format!(
        "postmaster: root\nroot: {name}\n# a list\ncrew: {name}, u@v.test,\n\tw@v.test\n\
         owner-crew: boss@v.test\nround: about\nabout: round\n"
    );
    let (system, home) = start(with_local("maildir:{directory}/homes/{user}/Maildir"), &aliases);
    let mut client = system.smtp();
    let id = client.send("a@x.test", &["crew@l.test"], &message("to all")).unwrap();
    system.finished(&id);
    assert_eq!(maildir(&home.join("Maildir")).len(), 1);
    assert_eq!(system.maildir("u@v.test").len(), 1);
    assert_eq!(system.maildir("w@v.test").len(), 1);
    let event = system.wait("delivery", |e| e["id"] == *id && e["to"] == "u@v.test");
    assert_eq!(event["orig_to"], "crew@l.test");
    assert_eq!(system.maildir("u@v.test")[0].header("Return-Path").unwrap(), "<owner-crew@l.test>");

    // RFC 5321 §4.5.1: postmaster is always taken, without a domain too.
    let id = client.send("a@x.test", &["postmaster@l.test"], &message("to the postmaster")).unwrap();
    system.finished(&id);
    assert_eq!(maildir(&home.join("Maildir")).len(), 2);

    client.says("MAIL FROM:<a@x.test>", "250");
    client.says("RCPT TO:<no-such-user@l.test>", "550 5.1.1");
    client.says("RSET", "250");
    // Aliases that lead round in a circle lead nowhere; the sender is told now or later, and nothing hangs.
    match client.send("a@v.test", &["round@l.test"], &message("round")) {
        Err(refused) => assert!(refused.code >= 400, "{refused}"),
        Ok(id) => drop(system.wait("delivery", |e| e["id"] == *id && e["status"] != "sent")),
    }
}

/// More than fits into one frame of lookup's answer: each has it once, also those who are deferred at first.
#[test]
fn a_list_of_thousands() {
    const MEMBERS: usize = 5000;
    let sink = Sink::start();
    sink.behave(|command| match command.starts_with("RCPT") && command.contains("9@") {
        true => Answer::Say("451 4.2.0 not now".into()),
        false => Answer::Usual,
    });
    let builder = with_local("maildir:{directory}/homes/{user}/Maildir");
    let builder = builder.route("far.test", &sink.via()).fast_retries();
    let (system, _home) = start(builder, "");
    let members: Vec<String> = (0..MEMBERS).map(|n| format!("member{n}@far.test")).collect();
    let list = system.directory().join("members");
    std::fs::write(&list, members.join("\n")).unwrap();
    let aliases = format!("all: :include:{}\nowner-all: boss@v.test\n", list.display());
    std::fs::write(system.directory().join("aliases"), aliases).unwrap();
    assert!(system.postern(&["reload"]).status.success());
    let id = system.smtp().send("a@x.test", &["all@l.test"], &message("to thousands")).unwrap();
    system.attempted(&id, "deferred");
    sink.behave_well();
    system.wait("removed", |event| event["id"] == *id);
    let taken = sink.stop();
    let mut reached: Vec<&str> = taken.iter().flat_map(|taken| &taken.rcpt).map(String::as_str).collect();
    reached.sort_unstable();
    let mut wanted: Vec<String> = members.iter().map(|member| format!("RCPT TO:<{member}>")).collect();
    wanted.sort_unstable();
    assert_eq!(reached.len(), MEMBERS);
    assert!(reached == wanted);
}

/// A corrected alias repairs mail that was accepted before.
#[test]
fn an_alias_that_changes_is_heeded_at_once() {
    let (system, _home) = start(with_local("maildir:{directory}/homes/{user}/Maildir"), "one: u@v.test\n");
    let mut client = system.smtp();
    let id = client.send("a@x.test", &["one@l.test"], &message("first")).unwrap();
    system.finished(&id);
    std::fs::write(system.directory().join("aliases"), "one: w@v.test\ntwo: w@v.test\n").unwrap();
    assert!(system.postern(&["reload"]).status.success());
    for to in ["one@l.test", "two@l.test"] {
        let id = client.send("a@x.test", &[to], &message("second")).unwrap();
        system.finished(&id);
    }
    assert_eq!((system.maildir("u@v.test").len(), system.maildir("w@v.test").len()), (1, 2));
}

/// Without a reload, and though mail for the same recipients comes all the time.
#[test]
fn an_alias_file_that_is_written_is_read() {
    let (system, _home) = start(with_local("maildir:{directory}/homes/{user}/Maildir"), "one: u@v.test\n");
    let mut client = system.smtp();
    let mut send = |to: &str| client.send("a@x.test", &[to], &message("again"));
    let begun = Instant::now();
    system.finished(&send("one@l.test").unwrap());
    std::fs::write(system.directory().join("aliases"), "two: w@v.test\n").unwrap();
    while let Ok(id) = send("one@l.test") {
        system.finished(&id);
        assert!(begun.elapsed() < PATIENCE, "the name that is gone is still taken");
    }
    let id = send("two@l.test").unwrap();
    system.finished(&id);
    assert_eq!(system.maildir("w@v.test").len(), 1);
    std::fs::write(system.directory().join("aliases"), "two: x@v.test\n").unwrap();
    while system.maildir("x@v.test").is_empty() {
        let id = send("two@l.test").unwrap();
        system.finished(&id);
        assert!(begun.elapsed() < PATIENCE, "the mail still goes where it went");
    }
}

/// A mailbox that cannot be written keeps the mail waiting, and is delivered when it can.
#[test]
fn a_mailbox_out_of_order() {
    let builder = with_local("maildir:{directory}/homes/{user}/Maildir").fast_retries();
    let (system, home) = start(builder, "");
    let to = format!("{}@l.test", account().name);
    std::fs::write(home.join("Maildir"), "a file where the directory should be").unwrap();
    let id = system.smtp().send("a@x.test", &[&to], &message("waits")).unwrap();
    let deferred = system.attempted(&id, "deferred");
    assert!(deferred["dsn"].as_str().unwrap().starts_with("4."), "{deferred}");
    std::fs::remove_file(home.join("Maildir")).unwrap();
    system.finished(&id);
    assert_eq!(maildir(&home.join("Maildir")).len(), 1);
}
