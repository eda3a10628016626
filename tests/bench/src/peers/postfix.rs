//! Debian's Postfix as an instance of its own.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::unistd::User;
use postern_tests::until;
use tempfile::TempDir;

use crate::beside;
use crate::cell::Workload;
use crate::machine::project;
use crate::peers::{self, ADDRESS, Peer};

pub(crate) struct Postfix {
    directory: TempDir,
    master: u32,
}

impl Postfix {
    pub(crate) fn start(_workload: Workload) -> Self {
        let directory = tempfile::Builder::new().prefix("postfix-").tempdir().unwrap();
        let d = directory.path();
        std::fs::set_permissions(d, PermissionsExt::from_mode(0o755)).unwrap();
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
            let text = text
                .replace("@DIRECTORY@", &d.display().to_string())
                .replace("@LISTEN@", &ADDRESS.to_string())
                .replace("@SINK@", &hop(beside::SINK))
                .replace("@UID@", &nobody.uid.to_string())
                .replace("@GID@", &nobody.gid.to_string());
            std::fs::write(d.join("etc").join(name), text).unwrap();
        }
        // virtual(8) takes no patterns with parts of the address in them, so there is a table.
        let users: String = peers::users().map(|user| format!("{user}@v.test v.test/{user}/\n")).collect();
        std::fs::write(d.join("etc/users"), users).unwrap();
        let mut postmap = Command::new("/usr/sbin/postmap");
        postmap.arg("-c").arg(d.join("etc")).arg(format!("hash:{}", d.join("etc/users").display()));
        assert!(postmap.status().unwrap().success(), "postmap");
        std::fs::write(d.join("etc/hold"), "/@hold\\.test$/ HOLD\n").unwrap();
        let mut this = Self { directory, master: 0 };
        this.postfix("start");
        let pid = this.directory.path().join("queue/pid/master.pid");
        this.master = until("Postfix's master", Duration::from_secs(10), || {
            std::fs::read_to_string(&pid).ok()?.trim().parse().ok()
        });
        until("Postfix's smtpd", Duration::from_secs(10), || TcpStream::connect(ADDRESS).ok());
        this
    }

    fn postfix(&self, what: &str) {
        let mut command = Command::new("/usr/sbin/postfix");
        command.arg("-c").arg(self.directory.path().join("etc")).arg(what);
        // Its daemons keep what they inherit.
        let said = self.directory.path().join("stderr");
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
        self.directory.path().join("mail/v.test").join(user)
    }

    fn is_empty(&self) -> bool {
        let queue = self.directory.path().join("queue");
        ["maildrop", "incoming", "active", "deferred"].iter().all(|name| {
            std::fs::read_dir(queue.join(name)).unwrap().all(|entry| entry.unwrap().path().is_dir())
        })
    }

    fn sendmail(&self) -> Command {
        let mut command = Command::new("/usr/sbin/sendmail");
        command.env("MAIL_CONFIG", self.directory.path().join("etc"));
        command
    }
}
