//! Debian's Postfix as an instance of its own.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use nix::unistd::User;
use postern_tests::{Smtp, until};

use crate::beside::{self, Beside, destination};
use crate::cell::Workload;
use crate::generator;
use crate::machine::project;
use crate::peers::{self, ADDRESS, Peer, files};

const PATIENCE: Duration = Duration::from_secs(10);

pub(super) const PROMISES: [&str; 3] = [
    "the message: fsync of its queue file; the name is left to the file system",
    "fsync of the file before it is linked into `new/`",
    "the queue file is removed, without a sync",
];

pub(crate) struct Postfix {
    directory: PathBuf,
    master: u32,
}

impl Postfix {
    pub(crate) fn start(workload: Workload, beside: &Beside) -> (Box<dyn Peer>, Instant) {
        let directory = peers::directory("postfix");
        configure(&directory, workload, beside);
        let mut this = Self { directory, master: 0 };
        if workload.backlog() > 0 {
            // One message is deferred, and taken for all.
            this.begin();
            let body = generator::message(4096);
            Smtp::connect(ADDRESS).send("a@x.test", &["user000000@d000.dead.test"], &body).unwrap();
            let deferred = this.directory.join("queue/deferred");
            until("one is deferred", PATIENCE, || {
                (files(&deferred) > 0 && this.queued(true) == 0).then_some(())
            });
            this.postfix("stop");
            fill(&deferred, workload.backlog());
        }
        let begin = Instant::now();
        this.begin();
        (Box::new(this), begin)
    }

    fn begin(&mut self) {
        self.postfix("start");
        let pid = self.directory.join("queue/pid/master.pid");
        self.master =
            until("Postfix's master", PATIENCE, || std::fs::read_to_string(&pid).ok()?.trim().parse().ok());
        until("Postfix's smtpd", PATIENCE, || TcpStream::connect(ADDRESS).ok());
    }

    fn postfix(&self, what: &str) {
        let mut command = Command::new("/usr/sbin/postfix");
        command.arg("-c").arg(self.directory.join("etc")).arg(what);
        // Its daemons keep what they inherit.
        let said = self.directory.join("stderr");
        let errors = std::fs::File::create(&said).unwrap();
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).status().unwrap();
        let said = std::fs::read_to_string(said).unwrap();
        assert!(status.success(), "postfix {what}: {said}");
    }
}

impl Peer for Postfix {
    fn root(&self) -> u32 {
        self.master
    }

    fn maildir(&self, user: &str) -> PathBuf {
        self.directory.join("mail/v.test").join(user)
    }

    fn queued(&self, moving: bool) -> usize {
        let queue = self.directory.join("queue");
        let directories = ["maildrop", "incoming", "active", "deferred", "hold"];
        let some = if moving { &directories[..3] } else { &directories[..] };
        some.iter().map(|name| files(&queue.join(name))).sum()
    }

    fn sendmail(&self) -> Command {
        let mut command = Command::new("/usr/sbin/sendmail");
        command.env("MAIL_CONFIG", self.directory.join("etc"));
        command
    }
}

fn configure(d: &Path, workload: Workload, beside: &Beside) {
    for name in ["etc", "queue", "data", "mail"] {
        std::fs::create_dir(d.join(name)).unwrap();
    }
    let postfix = User::from_name("postfix").unwrap().expect("Debian's postfix is installed");
    let nobody = User::from_name("nobody").unwrap().unwrap();
    chown(d.join("data"), Some(postfix.uid.as_raw()), None).unwrap();
    chown(d.join("mail"), Some(nobody.uid.as_raw()), Some(nobody.gid.as_raw())).unwrap();
    let hop = |address: SocketAddr| format!("[{}]:{}", address.ip(), address.port());
    for name in ["main.cf", "master.cf"] {
        let text = std::fs::read_to_string(project("tests/bench/postfix").join(name)).unwrap();
        let mut text = text
            .replace("@DIRECTORY@", &d.display().to_string())
            .replace("@LISTEN@", &ADDRESS.to_string())
            .replace("@UID@", &nobody.uid.to_string())
            .replace("@GID@", &nobody.gid.to_string());
        if name == "main.cf" {
            text.push_str(match workload {
                // As Postern does it in this workload.
                Workload::Flaky => {
                    "minimal_backoff_time = 1\nmaximal_backoff_time = 1\nqueue_run_delay = 1\n"
                }
                // A process for each client.
                Workload::Idle => "default_process_limit = 1100\n",
                _ => "",
            });
        }
        std::fs::write(d.join("etc").join(name), text).unwrap();
    }
    let mut transport = String::new();
    for (domain, protocol, address) in [
        ("relay", "smtp", beside::SINK),
        ("far", "smtp", beside::FAR),
        ("far-chunks", "smtp", beside::FAR_CHUNKS),
        ("flaky", "smtp", beside::FLAKY),
        ("dead", "smtp", beside::DEAD),
        (".dead", "smtp", beside::DEAD),
        ("lmtp", "lmtp", beside::LMTP),
        ("dovecot", "lmtp", beside.dovecot()),
    ] {
        let inet = if protocol == "lmtp" { "inet:" } else { "" };
        writeln!(transport, "{domain}.test {protocol}:{inet}{}", hop(address)).unwrap();
    }
    for n in 0..workload.destinations() {
        writeln!(transport, "d{n}.dest.test smtp:{}", hop(destination(n))).unwrap();
    }
    table(d, "transport", &transport);
    let users = peers::users(workload).map(|user| format!("{user}@v.test v.test/{user}/\n"));
    table(d, "users", &users.collect::<String>());
    std::fs::write(d.join("etc/hold"), "/@hold\\.test$/ HOLD\n").unwrap();
}

/// An indexed table, as the manual wants it for everything that is not small.
fn table(d: &Path, name: &str, text: &str) {
    let path = d.join("etc").join(name);
    std::fs::write(&path, text).unwrap();
    let mut postmap = Command::new("/usr/sbin/postmap");
    // Each entry is synced; here nothing is to be kept.
    postmap.arg("-c").arg(d.join("etc")).arg(format!("hash:{}", path.display()));
    assert!(postmap.status().unwrap().success(), "postmap {name}");
}

/// As many copies of the one deferred message, each with a recipient of its own, none to be tried before
/// tomorrow. A queue file's name ends in its inode's number.
fn fill(deferred: &Path, count: usize) {
    let mut directories = std::fs::read_dir(deferred).unwrap().flatten();
    let original = directories.find_map(|d| std::fs::read_dir(d.path()).ok()?.flatten().next()).unwrap();
    let content = std::fs::read(original.path()).unwrap();
    let metadata = original.metadata().unwrap();
    let pattern = b"user000000@d000.dead.test";
    let places: Vec<_> =
        (0..content.len() - pattern.len()).filter(|n| content[*n..].starts_with(pattern)).collect();
    let tomorrow = SystemTime::now() + Duration::from_secs(24 * 60 * 60);
    for n in 1..count {
        let mut copy = content.clone();
        for place in &places {
            let recipient = format!("user{n:06}@d{:03}.dead.test", n % 1000);
            copy[*place..place + pattern.len()].copy_from_slice(recipient.as_bytes());
        }
        let made = deferred.join("new");
        std::fs::write(&made, copy).unwrap();
        let file = std::fs::File::open(&made).unwrap();
        file.set_modified(tomorrow).unwrap();
        file.set_permissions(metadata.permissions()).unwrap();
        chown(&made, Some(metadata.uid()), Some(metadata.gid())).unwrap();
        let name = format!("{:05X}{:X}", n % 0xfffff, file.metadata().unwrap().ino());
        let directory = deferred.join(&name[..1]);
        if n < 100_000 && !directory.exists() {
            std::fs::create_dir(&directory).unwrap();
            chown(&directory, Some(metadata.uid()), Some(metadata.gid())).unwrap();
        }
        std::fs::rename(made, directory.join(name)).unwrap();
    }
    std::fs::File::open(original.path()).unwrap().set_modified(tomorrow).unwrap();
}
