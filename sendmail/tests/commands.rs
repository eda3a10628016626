//! The built commands, with a spool and no Postern beside it.

#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use postern_address::ReversePath;
use postern_ipc::control::{MessageState, MessageSummary, QueueRequest, Reply, Request};
use postern_ipc::{Link, blocking};
use postern_spool::{BodyType, Origin, QueueId, SpoolFile, Stored, Timestamp};

/// A configuration and an empty spool.
struct Desk {
    directory: tempfile::TempDir,
}

/// A message as it lies in `drop/`.
struct Dropped {
    stored: Stored,
    text: String,
}

impl Desk {
    fn new() -> Self {
        let desk = Self { directory: tempfile::tempdir().unwrap() };
        postern_spool::create_directories(&desk.path("spool")).unwrap();
        std::fs::create_dir(desk.path("run")).unwrap();
        let config = format!(
            "hostname = \"mx.test\"\nspool = \"{}\"\nruntime = \"{}\"\n\
             [virtual]\ndomains = [\"v.test\"]\nmailbox = \"maildir:/nowhere/{{domain}}/{{local}}\"\nusers = \"*\"\n\
             [smtp]\nmessage-size = \"100 KiB\"\n",
            desk.path("spool").display(),
            desk.path("run").display()
        );
        std::fs::write(desk.path("postern.toml"), config).unwrap();
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn run(&self, program: &str, arguments: &[&str], input: &str) -> Output {
        let mut child = Command::new(program)
            .args(arguments)
            .env("POSTERN_CONFIG", self.path("postern.toml"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that does not want its input may be gone already.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    fn sendmail(&self, arguments: &[&str], input: &str) -> Output {
        self.run(env!("CARGO_BIN_EXE_sendmail"), arguments, input)
    }

    /// Submits and expects success.
    fn submit(&self, arguments: &[&str], input: &str) -> Dropped {
        let before = self.names().len();
        let output = self.sendmail(arguments, input);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        let names = self.names();
        assert_eq!(names.len(), before + 1);
        self.read(names.last().unwrap())
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path("spool/drop")).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn read(&self, name: &str) -> Dropped {
        let directory = File::open(self.path("spool/drop")).unwrap();
        let file = SpoolFile::open(directory.as_fd(), name).unwrap();
        let [stored] = file.messages() else { panic!("one message") };
        assert_eq!(stored.id, QueueId::parse(name).unwrap());
        let mode = std::fs::metadata(self.path("spool/drop").join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        let text = [stored.prepend.clone(), file.read_body(0).unwrap()].concat();
        Dropped { stored: stored.clone(), text: String::from_utf8(text).unwrap() }
    }
}

impl Dropped {
    fn recipients(&self) -> Vec<&str> {
        self.stored.envelope.recipients.iter().map(|mailbox| mailbox.as_str()).collect()
    }

    fn sender(&self) -> &str {
        self.stored.envelope.reverse_path.as_str()
    }
}

fn own_name() -> String {
    let uid = nix::unistd::getuid();
    nix::unistd::User::from_uid(uid).unwrap().map_or_else(|| uid.to_string(), |user| user.name)
}

#[test]
fn a_message_waits_in_drop() {
    let desk = Desk::new();
    let dropped = desk.submit(
        &["-i", "ann@v.test", "root, Bob <bob@v.test>, ann@v.test"],
        "Subject: hi\n\nhello\n.\nend\n",
    );
    assert_eq!(dropped.recipients(), ["ann@v.test", "root@mx.test", "bob@v.test"]);
    assert_eq!(dropped.sender(), format!("{}@mx.test", own_name()));
    let uid = nix::unistd::getuid().as_raw();
    assert_eq!(dropped.stored.envelope.origin, Origin::Local { uid });
    assert_eq!(dropped.stored.envelope.body, BodyType::SevenBit);
    assert!(dropped.text.ends_with("Subject: hi\r\n\r\nhello\r\n.\r\nend\r\n"), "{}", dropped.text);
    for field in ["Date: ", "Message-ID: <", "From: "] {
        assert!(dropped.text.contains(field), "{}", dropped.text);
    }
}

#[test]
fn as_cron_and_php_and_git_call_it() {
    let desk = Desk::new();
    let cron = ["-FCronDaemon", "-i", "-B8BITMIME", "-oem", "root"];
    let cron = desk.submit(&cron, "From: root (Cron Daemon)\nTo: root\nSubject: Cron\n\nd\u{e9}j\u{e0}\n");
    assert_eq!(cron.recipients(), ["root@mx.test"]);
    assert_eq!(cron.stored.envelope.body, BodyType::EightBit);
    assert!(cron.text.contains("From: root (Cron Daemon)\r\n"));
    let php = desk
        .submit(&["-t", "-i", "-fwww@v.test"], "To: a@v.test\r\nBcc: b@v.test\r\nSubject: x\r\n\r\nx\r\n");
    assert_eq!((php.sender(), php.recipients()), ("www@v.test", vec!["a@v.test", "b@v.test"]));
    assert!(!php.text.contains("b@v.test") && php.text.contains("From: www@v.test\r\n"), "{}", php.text);
    let git = desk.submit(&["-f", "", "-i", "a@v.test"], "From: A <a@v.test>\nTo: a@v.test\n\n[PATCH]\n");
    assert_eq!(git.stored.envelope.reverse_path, ReversePath::Null);
    let named = desk.submit(&["-F", "J\u{fc}rgen", "a@v.test"], "\nx\n");
    assert!(named.text.contains("From: =?UTF-8?Q?J=C3=BCrgen?= <"), "{}", named.text);
}

#[test]
fn what_is_refused_leaves_nothing() {
    let desk = Desk::new();
    let large = format!("Subject: x\n\n{}", "x".repeat(101 * 1024));
    for (arguments, input, status) in [
        (&["-Z"][..], "", 64),
        (&[], "x\n", 64),
        (&["-bt"], "", 64),
        (&["-f", "not good", "a@v.test"], "x\n", 64),
        (&["a@v.test", "not good"], "x\n", 65),
        (&["-t"], "Subject: nobody\n\nx\n", 65),
        (&["-t"], "To: (open\n\nx\n", 65),
        (&["a@v.test"], &large, 65),
        (&["-q"], "", 69),
        (&["-bp"], "", 69),
        (&["-C", "/nonexistent/postern.toml", "a@v.test"], "x\n", 78),
        (&["-bv", "a@v.test"], "", 0),
        (&["-bv", "a b"], "", 65),
        (&["-bi"], "", 0),
    ] {
        let output = desk.sendmail(arguments, input);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
        assert_eq!(said.is_empty(), status == 0, "{arguments:?}: {said}");
    }
    assert_eq!(desk.names(), [""; 0]);
    std::fs::remove_dir(desk.path("spool/drop")).unwrap();
    let output = desk.sendmail(&["a@v.test"], "x\n");
    assert_eq!(output.status.code(), Some(75));
    assert!(String::from_utf8_lossy(&output.stderr).contains("drop"));
}

#[test]
fn a_dialogue() {
    let desk = Desk::new();
    let said = "EHLO me\nMAIL FROM:<a@v.test>\nRCPT TO:<b@v.test>\r\nRCPT TO:<c@far.test>\nDATA\n\
                Subject: x\n\n..dot\n.\nMAIL FROM:<>\nRCPT TO:<b@v.test>\nRSET\nQUIT\nNOOP\n";
    let output = desk.sendmail(&["-bs"], said);
    assert!(output.status.success());
    let replies = String::from_utf8(output.stdout).unwrap();
    let codes: Vec<&str> = replies.lines().filter(|l| l.as_bytes()[3] == b' ').map(|l| &l[..3]).collect();
    assert_eq!(
        codes,
        ["220", "250", "250", "250", "250", "354", "250", "250", "250", "250", "221"],
        "{replies}"
    );
    let names = desk.names();
    assert_eq!(names.len(), 1);
    assert!(replies.contains(&names[0]));
    let dropped = desk.read(&names[0]);
    assert_eq!(dropped.recipients(), ["b@v.test", "c@far.test"]);
    assert_eq!(dropped.text, "Subject: x\r\n\r\n.dot\r\n");
}

/// Somebody in master's place who answers one request.
fn master(runtime: &Path, expected: Request, replies: Vec<Reply>) -> std::thread::JoinHandle<()> {
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(listener.as_raw_fd(), &UnixAddr::new(&runtime.join("control")).unwrap()).unwrap();
    listen(&listener, Backlog::new(1).unwrap()).unwrap();
    std::thread::spawn(move || {
        let connection = postern_sys::accept(&listener).unwrap();
        let mut link = Link::<Reply, Request>::new(connection);
        let (request, _) = blocking::receive(&mut link, None).unwrap();
        assert_eq!(request, expected);
        replies.iter().chain([&Reply::End]).for_each(|reply| link.send(reply).unwrap());
        blocking::flush(&mut link, None).unwrap();
    })
}

#[test]
fn the_running_system_is_asked() {
    let summary = MessageSummary {
        id: QueueId::from_u64(99),
        state: MessageState::Held,
        arrival: Timestamp(0),
        size: 2048,
        reverse_path: ReversePath::parse("<a@v.test>").unwrap(),
        recipients: Vec::new(),
        recipient_count: 0,
    };
    let list = Request::Queue(QueueRequest::List);
    for (program, arguments, request, replies, status, said) in [
        (
            env!("CARGO_BIN_EXE_mailq"),
            &[][..],
            list.clone(),
            vec![Reply::Messages(vec![summary])],
            0,
            "-- 2 Kbytes in 1 Request.",
        ),
        (env!("CARGO_BIN_EXE_sendmail"), &["-bp"], list.clone(), vec![], 0, "Mail queue is empty"),
        (env!("CARGO_BIN_EXE_mailq"), &[], list, vec![Reply::Refused("not you".into())], 77, "not you"),
        (env!("CARGO_BIN_EXE_newaliases"), &[], Request::Reload, vec![Reply::Done("reloaded".into())], 0, ""),
        (
            env!("CARGO_BIN_EXE_sendmail"),
            &["-q", "-v"],
            Request::Queue(QueueRequest::Flush(None)),
            vec![Reply::Done("3 messages".into())],
            0,
            "3 messages",
        ),
    ] {
        let desk = Desk::new();
        let thread = master(&desk.path("run"), request, replies);
        let output = desk.run(program, arguments, "");
        let all = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_eq!(output.status.code(), Some(status), "{all}");
        assert!(all.contains(said), "{all}");
        thread.join().unwrap();
    }
}
