//! Debian's Postfix as an instance of its own.

use std::net::SocketAddr;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::unistd::User;
use postern_tests::until;
use tempfile::TempDir;

use crate::peers::{project, scratch};

/// It runs until it is dropped.
pub(crate) struct Postfix {
    directory: TempDir,
    master: u32,
}

impl Postfix {
    /// Takes mail at `address`, relays relay.test to `sink`.
    pub(crate) fn start(address: SocketAddr, sink: SocketAddr) -> Self {
        let directory = scratch("postfix");
        let d = directory.path();
        for name in ["etc", "queue", "data", "mail"] {
            std::fs::create_dir(d.join(name)).unwrap();
        }
        let postfix = User::from_name("postfix").unwrap().expect("Debian's postfix is installed");
        let nobody = User::from_name("nobody").unwrap().unwrap();
        chown(d.join("data"), Some(postfix.uid.as_raw()), None).unwrap();
        chown(d.join("mail"), Some(nobody.uid.as_raw()), Some(nobody.gid.as_raw())).unwrap();
        for name in ["main.cf", "master.cf"] {
            let text = std::fs::read_to_string(project("tests/bench/postfix").join(name)).unwrap();
            let text = text
                .replace("@DIRECTORY@", &d.display().to_string())
                .replace("@LISTEN@", &address.to_string())
                .replace("@SINK@", &format!("[{}]:{}", sink.ip(), sink.port()))
                .replace("@UID@", &nobody.uid.to_string())
                .replace("@GID@", &nobody.gid.to_string());
            std::fs::write(d.join("etc").join(name), text).unwrap();
        }
        std::fs::write(d.join("etc/users"), "/^(u[0-9n]+)@v\\.test$/ v.test/$1/\n").unwrap();
        std::fs::write(d.join("etc/hold"), "/@hold\\.test$/ HOLD\n").unwrap();
        let mut this = Self { directory, master: 0 };
        this.postfix("start");
        let pid = this.directory.path().join("queue/pid/master.pid");
        this.master = until("Postfix's master", Duration::from_secs(10), || {
            std::fs::read_to_string(&pid).ok()?.trim().parse().ok()
        });
        until("Postfix's smtpd", Duration::from_secs(10), || std::net::TcpStream::connect(address).ok());
        this
    }

    pub(crate) fn master(&self) -> u32 {
        self.master
    }

    pub(crate) fn mail(&self) -> PathBuf {
        self.directory.path().join("mail")
    }

    /// Nothing is queued.
    pub(crate) fn is_empty(&self) -> bool {
        let queue = self.directory.path().join("queue");
        ["maildrop", "incoming", "active", "deferred"].iter().all(|name| {
            std::fs::read_dir(queue.join(name)).unwrap().all(|entry| entry.unwrap().path().is_dir())
        })
    }

    pub(crate) fn sendmail(&self) -> Command {
        let mut command = Command::new("/usr/sbin/sendmail");
        command.env("MAIL_CONFIG", self.directory.path().join("etc"));
        command
    }

    fn postfix(&self, what: &str) {
        let mut command = Command::new("/usr/sbin/postfix");
        command.arg("-c").arg(self.directory.path().join("etc")).arg(what);
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "postfix {what}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.postfix("stop");
        } else {
            // What it said helps more than a second panic.
            let log = std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            eprintln!("{}", lines[lines.len().saturating_sub(30)..].join("\n"));
            let _ = Command::new("/usr/sbin/postfix")
                .arg("-c")
                .arg(self.directory.path().join("etc"))
                .arg("stop")
                .status();
        }
    }
}
