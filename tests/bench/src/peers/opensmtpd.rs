//! Debian's OpenSMTPD, unpacked.

use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use postern_tests::{Process, until};

use crate::beside::Beside;
use crate::cell::Workload;
use crate::machine::project;
use crate::peers::{self, ADDRESS, Peer, files, guest};

pub(super) const PROMISES: [&str; 3] = [
    "**nothing** that strace sees: message and envelope are written and moved, without a sync",
    "fsync of the file before it is moved into `new/`",
    "the files are removed, without a sync",
];

/// Users that no system has.
const USERS: [(&str, u32); 2] = [("opensmtpd", 64_102), ("opensmtpq", 64_103)];

pub(crate) struct OpenSmtpd {
    directory: PathBuf,
    process: Process,
}

impl OpenSmtpd {
    pub(crate) fn start(workload: Workload, beside: &Beside) -> (Box<dyn Peer>, Instant) {
        let d = peers::directory("opensmtpd");
        guest::set_gid("opensmtpd", "usr/sbin/smtpctl", USERS[1].1);
        guest::show("opensmtpd", &d, &USERS, &["spool/smtpd", "lib/opensmtpd/empty"], beside.name_server());
        std::fs::create_dir_all(d.join("mail/v.test")).unwrap();
        chown(d.join("mail/v.test"), Some(65_534), Some(65_534)).unwrap();
        let text = std::fs::read_to_string(project("tests/bench/opensmtpd/smtpd.conf")).unwrap();
        let text = text
            .replace("@DIRECTORY@", &d.display().to_string())
            .replace("@DOVECOT@", &beside.dovecot().to_string());
        let config = d.join("smtpd.conf");
        std::fs::write(&config, text).unwrap();
        std::fs::set_permissions(&config, PermissionsExt::from_mode(0o644)).unwrap();
        let begin = Instant::now();
        let process = guest::start(&d, &["/usr/sbin/smtpd", "-d", "-f", &config.display().to_string()]);
        until("OpenSMTPD", Duration::from_secs(10), || TcpStream::connect(ADDRESS).ok());
        if workload == Workload::Hold {
            let status = Command::new("/usr/sbin/smtpctl").args(["pause", "mta"]).output().unwrap();
            assert!(status.status.success(), "smtpctl: {}", String::from_utf8_lossy(&status.stderr));
        }
        (Box::new(Self { directory: d, process }), begin)
    }
}

impl Peer for OpenSmtpd {
    fn root(&self) -> u32 {
        self.process.pid()
    }

    fn maildir(&self, user: &str) -> PathBuf {
        self.directory.join("mail/v.test").join(user)
    }

    fn queued(&self, moving: bool) -> usize {
        let spool = self.directory.join("spool-smtpd");
        let names = ["incoming", "queue"];
        let some = if moving { &names[..1] } else { &names[..] };
        some.iter().map(|name| files(&spool.join(name))).sum()
    }

    fn sendmail(&self) -> Command {
        let mut command = Command::new("/usr/sbin/smtpctl");
        command.arg0("sendmail").arg("-i");
        command
    }
}
