//! The real program, started as master starts it, with the test in the place of master and queue-manager.
//! As root it is tried under root, with real users to become, and as an ordinary user.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User, chown};
use postern_address::{Domain, Mailbox, ReversePath};
use postern_config::LocalPart;
use postern_ipc::queue_agent::{Content, Destination, FromAgent, Job, MailboxKind, Outcome, Target, ToAgent};
use postern_ipc::supervise::{Attempt, FromChild, Handle, Identity, LogKind, ToChild};
use postern_ipc::{Link, Peer, Role, blocking, encode_config};
use postern_spool::{BodyType, QueueId, Timestamp};

const PATIENCE: Option<Duration> = Some(Duration::from_secs(40));
const NOBODY: u32 = 65_534;

/// The user that deliveries under root go to: on every Debian, and nobody's real mailbox.
const USER: &str = "daemon";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// As root, becoming users.
    Rooted,
    /// As an ordinary user: the caller, or nobody when the test is root's.
    Caller,
}

fn modes() -> Vec<Mode> {
    if Uid::effective().is_root() {
        return vec![Mode::Rooted, Mode::Caller];
    }
    eprintln!("SKIPPED: not root, so no worker became another user");
    vec![Mode::Caller]
}

struct House {
    mode: Mode,
    directory: tempfile::TempDir,
    child: Child,
    control: Link<ToChild, FromChild>,
    queue: Link<ToAgent, FromAgent>,
    next_job: u64,
    /// Whose mailboxes are tried: the caller, or [`USER`].
    user: User,
}

impl House {
    fn start(mode: Mode) -> Self {
        let directory =
            tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir().unwrap();
        let user = match mode {
            Mode::Rooted => User::from_name(USER).unwrap().unwrap(),
            Mode::Caller if Uid::effective().is_root() => {
                User::from_uid(Uid::from_raw(NOBODY)).unwrap().unwrap()
            }
            Mode::Caller => User::from_uid(Uid::effective()).unwrap().unwrap(),
        };
        for sub in ["base", "local", "local/user"] {
            fs::create_dir(directory.path().join(sub)).unwrap();
        }
        let owner = (Some(user.uid), Some(user.gid));
        chown(&directory.path().join("base"), owner.0, owner.1).unwrap();
        chown(&directory.path().join("local/user"), owner.0, owner.1).unwrap();
        fs::write(directory.path().join("secret"), "s").unwrap();
        // Where an ordinary user can start it from. Copied by another process: a descriptor of ours, open
        // for writing, could be inherited by another test's child just then, and the file be busy.
        let program = directory.path().join("postern-delivery-local");
        let copy = [Path::new(env!("CARGO_BIN_EXE_postern-delivery-local")), &program];
        assert!(Command::new("cp").args(copy).status().unwrap().success());
        let mut command = Command::new(&program);
        if mode == Mode::Caller && Uid::effective().is_root() {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        let (ours, theirs) = blocking::pair().unwrap();
        let child = postern_sys::spawn(command, theirs).unwrap();
        let (queue, its_queue) = blocking::pair().unwrap();
        let mut house = Self {
            mode,
            child,
            control: Link::new(ours),
            queue: Link::new(queue),
            next_job: 0,
            user,
            directory,
        };
        house.say_start(its_queue);
        house
    }

    fn say_start(&mut self, queue: OwnedFd) {
        let identity = (self.mode == Mode::Rooted).then(|| Identity { uid: 0, gid: 0, groups: vec![0] });
        let config = self.config();
        let start = ToChild::Start {
            me: Peer::only(Role::DeliveryLocal),
            handles: vec![Handle::Link(Peer::only(Role::QueueManager)), Handle::MailboxBase],
            identity,
            log: LogKind::Json,
        };
        let log = File::create(self.path("log")).unwrap();
        let descriptors = vec![
            postern_sys::sealed_file("config", &encode_config(&config).unwrap()).unwrap(),
            log.into(),
            queue,
            File::open(self.path("base")).unwrap().into(),
        ];
        self.control.send_with(&start, descriptors).unwrap();
        let ready = blocking::receive(&mut self.control, PATIENCE).unwrap().0;
        assert!(matches!(ready, FromChild::Ready), "{ready:?}");
        let granted = blocking::receive(&mut self.queue, PATIENCE).unwrap().0;
        assert_eq!(granted, FromAgent::Ready { jobs: 100 });
    }

    fn config(&self) -> LocalPart {
        LocalPart {
            hostname: Domain::parse("mx.test").unwrap(),
            virtual_owner: Some(self.user.name.clone()),
            virtual_base: Some(self.path("base/")),
            local_base: Some(self.path("local/")),
            jobs: 100,
        }
    }

    fn prepare(&mut self, config: &LocalPart) -> Result<(), String> {
        let file = postern_sys::sealed_file("config", &encode_config(config).unwrap()).unwrap();
        self.control.send_with(&ToChild::Prepare, vec![file]).unwrap();
        match blocking::receive(&mut self.control, PATIENCE).unwrap().0 {
            FromChild::Prepared(outcome) => outcome,
            other => panic!("{other:?}"),
        }
    }

    fn path(&self, sub: &str) -> PathBuf {
        self.directory.path().join(sub)
    }

    fn local(&self, mailbox: MailboxKind) -> Destination {
        Destination::Local { user: self.user.name.clone(), mailbox }
    }

    fn own_maildir(&self) -> Destination {
        self.local(MailboxKind::Maildir(self.path("local/user/Maildir").display().to_string()))
    }

    fn own_mbox(&self) -> Destination {
        self.local(MailboxKind::Mbox(self.path("local/user/mbox").display().to_string()))
    }

    fn send(&mut self, destination: &Destination, content: Content, file: Option<OwnedFd>) -> u64 {
        self.next_job += 1;
        let target = |index, text: &str| Target {
            index,
            recipient: Mailbox::parse(text).unwrap(),
            original: None,
            parameters: Default::default(),
        };
        let job = Job {
            job: self.next_job,
            queue_id: QueueId::from_u64(self.next_job),
            arrival: Timestamp::now(),
            scheduled: Timestamp::now(),
            reverse_path: ReversePath::parse("<sender@remote.test>").unwrap(),
            recipients: vec![target(3, "a@mx.test"), target(9, "b@mx.test")],
            destination: destination.clone(),
            body: BodyType::SevenBit,
            options: Default::default(),
            content,
        };
        self.queue.send_with(&ToAgent::Job(job), file.into_iter().collect()).unwrap();
        self.next_job
    }

    /// The results of the next job that is done: its number, and of each recipient the outcome.
    fn result(&mut self) -> (u64, Vec<(u32, Outcome)>) {
        blocking::flush(&mut self.queue, PATIENCE).unwrap();
        let said = blocking::receive(&mut self.queue, PATIENCE).unwrap().0;
        let FromAgent::Results { job, results } = said else { panic!("{said:?}") };
        let done = blocking::receive(&mut self.queue, PATIENCE).unwrap().0;
        assert_eq!(done, FromAgent::Done { job });
        let mut indices: Vec<u32> = results.iter().map(|(index, _)| *index).collect();
        indices.sort_unstable();
        assert_eq!(indices, [3, 9], "every recipient once");
        (job, results)
    }

    /// Delivers one message and returns what became of it, the same for both recipients.
    fn deliver(&mut self, destination: &Destination, message: &str) -> String {
        self.deliver_content(destination, Content::Inline(message.into()), None)
    }

    fn deliver_content(
        &mut self,
        destination: &Destination,
        content: Content,
        file: Option<OwnedFd>,
    ) -> String {
        let job = self.send(destination, content, file);
        let (done, results) = self.result();
        assert_eq!(done, job);
        let words: Vec<String> = results
            .iter()
            .map(|(_, outcome)| {
                let word = match outcome {
                    Outcome::Delivered(_) => "delivered",
                    Outcome::Relayed(_) | Outcome::Passed(_) => "relayed",
                    Outcome::Deferred(_) => "deferred",
                    Outcome::Failed(_) => "failed",
                };
                format!("{word} {}", outcome.report().reply)
            })
            .collect();
        assert_eq!(words[0], words[1]);
        words[0].clone()
    }

    fn workers(&self) -> Vec<Pid> {
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap())).collect()
    }

    fn stop(mut self) -> String {
        self.control.send(&ToChild::Stop).unwrap();
        assert!(self.child.wait().unwrap().success());
        fs::read_to_string(self.path("log")).unwrap()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        // After a failed assertion; after stop() it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn virtual_maildir(path: &str) -> Destination {
    Destination::Virtual { mailbox: MailboxKind::Maildir(path.into()) }
}

/// The messages of a Maildir, in the order of their names.
fn messages(maildir: &Path) -> Vec<String> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(maildir.join("new")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| fs::read_to_string(file).unwrap()).collect()
}

fn nothing_in_tmp(maildir: &Path) {
    assert_eq!(fs::read_dir(maildir.join("tmp")).unwrap().count(), 0);
}

const MESSAGE: &str = "Return-Path: <liar@x>\r\nSubject: s\r\n\r\nFrom here\r\n.\r\n";

#[test]
fn maildirs() {
    for mode in modes() {
        let mut house = House::start(mode);
        for (destination, path) in
            [(virtual_maildir("v.test/u"), "base/v.test/u"), (house.own_maildir(), "local/user/Maildir")]
        {
            assert!(house.deliver(&destination, MESSAGE).starts_with("delivered 250 2.0.0"), "{mode:?}");
            let maildir = house.path(path);
            let mut stored = messages(&maildir);
            stored.sort();
            let expected = |to| {
                format!("Return-Path: <sender@remote.test>\nDelivered-To: {to}\nSubject: s\n\nFrom here\n.\n")
            };
            assert_eq!(stored, [expected("a@mx.test"), expected("b@mx.test")]);
            nothing_in_tmp(&maildir);
            let whose = fs::metadata(maildir.join("new")).unwrap();
            assert_eq!((whose.uid(), whose.mode() & 0o777), (house.user.uid.as_raw(), 0o700));
            for file in fs::read_dir(maildir.join("new")).unwrap() {
                let file = file.unwrap().metadata().unwrap();
                assert_eq!((file.uid(), file.mode() & 0o777), (house.user.uid.as_raw(), 0o600));
            }
            // A removed mailbox is made anew.
            fs::remove_dir_all(&maildir).unwrap();
            assert!(house.deliver(&destination, MESSAGE).starts_with("delivered"));
            assert_eq!(messages(&maildir).len(), 2);
        }
        let log = house.stop();
        assert!(log.contains("a@mx.test") && log.contains("virtual") && log.contains("enforced"), "{log}");
    }
}

#[test]
fn mboxes() {
    for mode in modes() {
        let mut house = House::start(mode);
        let path = house.path("local/user/mbox");
        let destination = house.own_mbox();
        assert!(house.deliver(&destination, MESSAGE).starts_with("delivered"));
        let stored = fs::read_to_string(&path).unwrap();
        assert_eq!(stored.matches("\nDelivered-To: ").count(), 2);
        assert_eq!(stored.lines().filter(|line| line.starts_with("From sender@remote.test ")).count(), 2);
        assert_eq!(stored.lines().filter(|line| *line == ">From here").count(), 2);
        assert_eq!(fs::metadata(&path).unwrap().uid(), house.user.uid.as_raw());
        assert!(!house.path("local/user/mbox.lock").exists());
        // A mail reader that rewrites the file: the worker, confined to the old one, is replaced.
        fs::rename(&path, house.path("local/user/old")).unwrap();
        assert!(house.deliver(&destination, MESSAGE).starts_with("delivered"));
        assert_eq!(fs::read_to_string(&path).unwrap().matches("\nDelivered-To: ").count(), 2);
        assert_eq!(fs::read_to_string(house.path("local/user/old")).unwrap(), stored);
        let virtual_ = Destination::Virtual { mailbox: MailboxKind::Mbox("v.test/box".into()) };
        assert!(house.deliver(&virtual_, MESSAGE).starts_with("delivered"));
        assert!(fs::read_to_string(house.path("base/v.test/box")).unwrap().contains("\n\nFrom sender@"));
        house.stop();
    }
}

#[test]
fn mailboxes_do_not_move_without_a_restart() {
    let mut house = House::start(Mode::Caller);
    let config = house.config();
    assert_eq!(house.prepare(&LocalPart { jobs: 7, ..config.clone() }), Ok(()));
    let moved = LocalPart { virtual_base: Some("/elsewhere/".into()), ..config };
    assert!(house.prepare(&moved).unwrap_err().contains("restart"));
    house.stop();
}

/// As in /var/mail: the directory is the mail group's, the mailboxes are their users'.
#[test]
fn a_mail_directory_of_the_mail_group() {
    let Some(mail) = nix::unistd::Group::from_name("mail").unwrap() else {
        return eprintln!("SKIPPED: no group mail");
    };
    if !modes().contains(&Mode::Rooted) {
        return;
    }
    let mut house = House::start(Mode::Rooted);
    let directory = house.path("local/mail");
    fs::create_dir(&directory).unwrap();
    chown(&directory, None, Some(mail.gid)).unwrap();
    fs::set_permissions(&directory, Permissions::from_mode(0o2775)).unwrap();
    let mbox = directory.join("box");
    let destination = house.local(MailboxKind::Mbox(mbox.display().to_string()));
    assert!(house.deliver(&destination, MESSAGE).starts_with("delivered"));
    let made = fs::metadata(&mbox).unwrap();
    assert_eq!((made.uid(), made.gid()), (house.user.uid.as_raw(), mail.gid.as_raw()));
    assert!(!directory.join("box.lock").exists());
    house.stop();
}

#[test]
fn refusals() {
    for mode in modes() {
        let mut house = House::start(mode);
        let to = |user: &str, path: &str| Destination::Local {
            user: user.into(),
            mailbox: MailboxKind::Maildir(path.into()),
        };
        assert!(house.deliver(&to("no-such-user", "~/Maildir"), MESSAGE).starts_with("failed 550 5.1.1"));
        let root = house.deliver(&to("root", "~/Maildir"), MESSAGE);
        let wanted = if mode == Mode::Rooted { "deferred 450 4.2.0" } else { "deferred 451 4.3.0" };
        assert!(root.starts_with(wanted), "{root}");
        if house.user.name == "nobody" {
            let missing = house.deliver(&to("nobody", "~/Maildir"), MESSAGE);
            assert!(missing.starts_with("deferred 450 4.2.0 cannot open the mailbox: "), "{missing}");
        }
        // Not writable by the user.
        let elsewhere = to(&house.user.name.clone(), &house.path("local/other").display().to_string());
        assert!(house.deliver(&elsewhere, MESSAGE).starts_with("deferred 450 4.2.0"));
        for path in ["../escaped", "/tmp/escaped", "v.test/../../escaped"] {
            assert!(house.deliver(&virtual_maildir(path), MESSAGE).starts_with("deferred"), "{path}");
        }
        symlink(house.path("local/user"), house.path("base/link")).unwrap();
        assert!(house.deliver(&virtual_maildir("link/x"), MESSAGE).starts_with("deferred 4"));
        assert!(!house.path("escaped").exists() && !house.path("local/user/x").exists());
        // And it still delivers.
        assert!(house.deliver(&virtual_maildir("v.test/u"), MESSAGE).starts_with("delivered"));
        house.stop();
    }
}

#[test]
fn large_files_arrive_whole() {
    for mode in modes() {
        let mut house = House::start(mode);
        let lines: String =
            (0..50_000).map(|n| format!("line {n} of a large message, {:x}\r\n", n * 7919)).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"another message before it").unwrap();
        file.write_all(format!("Subject: l\r\n\r\n{lines}").as_bytes()).unwrap();
        let content = Content::File {
            prepend: b"Received: by mx.test\r\n".to_vec(),
            offset: 25,
            length: 14 + lines.len() as u64,
        };
        let outcome = house.deliver_content(&virtual_maildir("v.test/u"), content, Some(file.into()));
        assert!(outcome.starts_with("delivered"), "{outcome}");
        let stored = messages(&house.path("base/v.test/u"));
        let expected = format!("\nReceived: by mx.test\nSubject: l\n\n{}", lines.replace("\r\n", "\n"));
        assert!(stored.iter().all(|message| message.ends_with(&expected)));
        // A job that promises more than its file holds leaves nothing behind.
        let mut short = tempfile::tempfile().unwrap();
        short.write_all(b"short").unwrap();
        let content = Content::File { prepend: vec![], offset: 0, length: 500 };
        let outcome = house.deliver_content(&virtual_maildir("v.test/u"), content, Some(short.into()));
        assert!(outcome.starts_with("deferred 451 4.3.0"), "{outcome}");
        nothing_in_tmp(&house.path("base/v.test/u"));
        assert_eq!(messages(&house.path("base/v.test/u")).len(), 2);
        house.stop();
    }
}

#[test]
fn many_jobs_each_once() {
    for mode in modes() {
        let mut house = House::start(mode);
        let own = house.own_maildir();
        for n in 0..90 {
            let destination =
                if n % 3 == 0 { own.clone() } else { virtual_maildir(&format!("v.test/u{}", n % 7)) };
            house.send(&destination, Content::Inline(format!("Subject: {n}\r\n\r\n").into()), None);
        }
        let mut done: Vec<u64> = (0..90)
            .map(|_| {
                let (job, results) = house.result();
                assert!(results.iter().all(|(_, outcome)| matches!(outcome, Outcome::Delivered(_))));
                job
            })
            .collect();
        done.sort_unstable();
        assert_eq!(done, (1..=90).collect::<Vec<_>>());
        let mut stored = messages(&house.path("local/user/Maildir"));
        (0..7).for_each(|n| stored.extend(messages(&house.path(&format!("base/v.test/u{n}")))));
        assert_eq!(stored.len(), 180);
        stored.sort();
        stored.dedup();
        assert_eq!(stored.len(), 180);
        house.stop();
    }
}

#[test]
fn a_killed_worker_defers_what_it_had() {
    for mode in modes() {
        let mut house = House::start(mode);
        let (own, lock) = (house.own_mbox(), house.path("local/user/mbox.lock"));
        fs::write(&lock, "").unwrap();
        house.send(&own, Content::Inline(MESSAGE.into()), None);
        blocking::flush(&mut house.queue, PATIENCE).unwrap();
        // The parent answers a ping after it has forked.
        while house.workers().is_empty() {
            house.control.send(&ToChild::Ping).unwrap();
            blocking::receive(&mut house.control, PATIENCE).unwrap();
        }
        house.workers().into_iter().for_each(|pid| kill(pid, Signal::SIGKILL).unwrap());
        let (_, results) = house.result();
        assert!(results.iter().all(|(_, o)| matches!(o, Outcome::Deferred(r) if r.reply.code == 451)));
        fs::remove_file(&lock).unwrap();
        assert!(house.deliver(&own, MESSAGE).starts_with("delivered"));
        house.stop();
    }
}

#[test]
fn a_new_queue_manager_is_served() {
    for mode in modes() {
        let mut house = House::start(mode);
        assert!(house.deliver(&virtual_maildir("v.test/u"), MESSAGE).starts_with("delivered"));
        let (ours, theirs) = blocking::pair().unwrap();
        house.queue = Link::new(ours);
        house.control.send_with(&ToChild::Linked(Peer::only(Role::QueueManager)), vec![theirs]).unwrap();
        let granted = blocking::receive(&mut house.queue, PATIENCE).unwrap().0;
        assert_eq!(granted, FromAgent::Ready { jobs: 100 });
        assert!(house.deliver(&virtual_maildir("v.test/u"), MESSAGE).starts_with("delivered"));
        assert_eq!(messages(&house.path("base/v.test/u")).len(), 4);
        house.stop();
    }
}

#[test]
fn a_full_disk_defers_and_leaves_nothing() {
    if !modes().contains(&Mode::Rooted) {
        return;
    }
    let mut house = House::start(Mode::Rooted);
    // The program has its base open already: a disk of its own must lie beneath it.
    let small = house.path("local/user/Maildir");
    fs::create_dir(&small).unwrap();
    let options = format!("size=256k,uid={},gid={},mode=700", house.user.uid, house.user.gid);
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("none"), &small, Some("tmpfs"), flags, Some(options.as_str())).unwrap();
    let (maildir, mbox) =
        (house.own_maildir(), house.local(MailboxKind::Mbox(small.join("mbox").display().to_string())));
    let large: String = "Subject: l\r\n\r\n".to_owned() + &"0123456789abcdef\r\n".repeat(1_000);
    let mut file = tempfile::tempfile().unwrap();
    (0..40).for_each(|_| file.write_all(large.as_bytes()).unwrap());
    let content = Content::File { prepend: vec![], offset: 0, length: 40 * large.len() as u64 };
    let outcomes: Vec<String> = [&maildir, &mbox]
        .map(|to| {
            house.deliver_content(to, content.clone(), Some(file.as_fd().try_clone_to_owned().unwrap()))
        })
        .into();
    let fits = house.deliver(&mbox, MESSAGE);
    let left =
        (fs::read_dir(small.join("tmp")).unwrap().count(), fs::read_dir(small.join("new")).unwrap().count());
    let size = fs::metadata(small.join("mbox")).unwrap().len();
    // Workers hold it open: detached, it goes with the last of them.
    nix::mount::umount2(&small, nix::mount::MntFlags::MNT_DETACH).unwrap();
    assert!(outcomes.iter().all(|o| o.starts_with("deferred 452 4.3.1")), "{outcomes:?}");
    assert!(fits.starts_with("delivered"), "{fits}");
    assert_eq!(left, (0, 0));
    assert!(size < 1_000, "{size}");
    house.stop();
}

#[test]
fn the_sandbox_holds() {
    for mode in modes() {
        let mut house = House::start(mode);
        let attempts = vec![
            Attempt::Read("/etc/shadow".into()),
            Attempt::Read(house.path("secret").display().to_string()),
            Attempt::Create(house.path("hole").display().to_string()),
            Attempt::Execute("/bin/true".into()),
            Attempt::BecomeRoot,
            Attempt::InternetSocket,
            Attempt::Connect("127.0.0.1:1".parse().unwrap()),
            Attempt::Trace(std::process::id() as i32),
        ];
        house.control.send(&ToChild::Probe(attempts.clone())).unwrap();
        let said = blocking::receive(&mut house.control, PATIENCE).unwrap().0;
        let FromChild::Probed(outcome) = said else { panic!("{said:?}") };
        assert_eq!(outcome.len(), attempts.len());
        assert!(outcome.iter().all(|(_, o)| matches!(o, Err(1 | 13))), "{mode:?}: {outcome:?}");
        // A worker is the user, with nothing more, and cannot be looked into.
        house.deliver(&virtual_maildir("v.test/u"), MESSAGE);
        let worker = house.workers()[0];
        let status = fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
        let uid = house.user.uid;
        for line in [
            format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}"),
            "CapPrm:\t0000000000000000".into(),
            "CapEff:\t0000000000000000".into(),
            "NoNewPrivs:\t1".into(),
            "Seccomp:\t2".into(),
        ] {
            assert!(status.contains(&line), "{line} in {status}");
        }
        house.stop();
    }
}
