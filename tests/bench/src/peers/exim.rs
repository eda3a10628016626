//! Debian's Exim, unpacked.

use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use postern_tests::{Process, until};

use crate::beside::Beside;
use crate::cell::Workload;
use crate::machine::project;
use crate::peers::{self, ADDRESS, Peer, files, guest};

pub(super) const PROMISES: [&str; 3] = [
    "the message and its names: fsync of its data file, of its header file and of their directory",
    "fsync of the file before it is moved into `new/`",
    "fsync of a journal that says so; then the files are removed, without a sync",
];

/// A user that no system has.
const USER: (&str, u32) = ("Debian-exim", 64_101);

pub(crate) struct Exim {
    directory: PathBuf,
    process: Process,
}

impl Exim {
    pub(crate) fn start(workload: Workload, beside: &Beside) -> (Box<dyn Peer>, Instant) {
        let d = peers::directory("exim");
        guest::show("exim4", &d, &[USER], &[], beside.name_server());
        for name in ["spool", "log", "mail", "etc/exim4"] {
            std::fs::create_dir_all(d.join(name)).unwrap();
            chown(d.join(name), Some(USER.1), Some(USER.1)).unwrap();
        }
        let users: String = peers::users(workload).map(|user| format!("{user}: {user}\n")).collect();
        std::fs::write(d.join("users"), users).unwrap();
        let text = std::fs::read_to_string(project("tests/bench/exim/exim4.conf")).unwrap();
        let text = text
            .replace("@DIRECTORY@", &d.display().to_string())
            .replace("@DOVECOT_IP@", &beside.dovecot().ip().to_string())
            .replace("@DOVECOT_PORT@", &beside.dovecot().port().to_string());
        std::fs::write(d.join("etc/exim4/exim4.conf"), text).unwrap();
        let begin = Instant::now();
        let process = guest::start(&d, &["/usr/sbin/exim4", "-bdf"]);
        until("Exim", Duration::from_secs(10), || TcpStream::connect(ADDRESS).ok());
        (Box::new(Self { directory: d, process }), begin)
    }
}

impl Peer for Exim {
    fn root(&self) -> u32 {
        self.process.pid()
    }

    fn maildir(&self, user: &str) -> PathBuf {
        self.directory.join("mail/v.test").join(user)
    }

    fn queued(&self, moving: bool) -> usize {
        // What is on hold lies where everything lies.
        if moving { 0 } else { files(&self.directory.join("spool/input")) }
    }

    fn sendmail(&self) -> Command {
        let mut command = Command::new("/usr/sbin/exim4");
        command.arg("-i");
        command
    }

    fn quits_late(&self) -> bool {
        // It hopes that the client closes first, and waits 200 ms for that; but until 4.99 its reply is sent after
        // the wait only, so a client that waits for the reply waits as long.
        true
    }
}
