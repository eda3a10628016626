//! Debian's chasquid, unpacked. What it lacks is given to it by its own means: mail that comes by SMTP is only for its own
//! domains, so an alias brings it to the sink, which it looks up in the DNS; and mailboxes are another program's.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use postern_tests::{Process, until};

use crate::beside::{self, Beside};
use crate::cell::Workload;
use crate::machine::project;
use crate::peers::{self, ADDRESS, Peer, files, guest};

pub(super) const PROMISES: [&str; 3] = [
    "**nothing**: its queue file is written and moved, without a sync (1.17 has one)",
    "by dovecot-lda: fsync of the file before it is moved into `new/`, then of `new/`",
    "the queue file is removed, without a sync",
];

/// A user that no system has.
const USER: (&str, u32) = ("chasquid", 64_104);

pub(crate) struct Chasquid {
    directory: PathBuf,
    process: Process,
}

impl Chasquid {
    pub(crate) fn start(workload: Workload, beside: &Beside) -> (Box<dyn Peer>, Instant) {
        let d = peers::directory("chasquid");
        guest::show("chasquid", &d, &[USER], &[], beside.name_server());
        for name in ["data", "mail", "mail/v.test"] {
            std::fs::create_dir(d.join(name)).unwrap();
            chown(d.join(name), Some(USER.1), Some(USER.1)).unwrap();
        }
        chown(&d, Some(USER.1), Some(USER.1)).unwrap();
        configure(&d, workload, beside);
        let begin = Instant::now();
        let home = format!("HOME={}", d.display());
        let config = format!("--config_dir={}", d.join("config").display());
        let port = format!("--testing__outgoing_smtp_port={}", beside::SINK.port());
        let words = ["setpriv", "--reuid", USER.0, "--regid", USER.0, "--clear-groups", "env", &home];
        let process = guest::start(&d, &[&words[..], &["/usr/bin/chasquid", &config, &port]].concat());
        until("chasquid", Duration::from_secs(10), || TcpStream::connect(ADDRESS).ok());
        (Box::new(Self { directory: d, process }), begin)
    }
}

impl Peer for Chasquid {
    fn root(&self) -> u32 {
        self.process.pid()
    }

    fn maildir(&self, user: &str) -> PathBuf {
        self.directory.join("mail/v.test").join(user)
    }

    fn queued(&self, _moving: bool) -> usize {
        files(&self.directory.join("data/queue"))
    }

    fn sendmail(&self) -> Command {
        panic!("chasquid has no sendmail(1), and is not asked for it: Name::does")
    }

    fn holds(&self) -> usize {
        200
    }
}

fn configure(d: &Path, workload: Workload, beside: &Beside) {
    let config = d.join("config");
    for domain in ["v.test", "relay.test", "lmtp.test", "dovecot.test"] {
        std::fs::create_dir_all(config.join("domains").join(domain)).unwrap();
    }
    let place = d.display().to_string();
    let lmtp = |address: SocketAddr| {
        let address = address.to_string();
        ("/usr/bin/mda-lmtp", ["--addr_network".to_owned(), "tcp".into(), "--addr".into(), address])
    };
    let (agent, arguments) = match workload {
        Workload::LmtpSink => lmtp(beside::LMTP),
        Workload::LmtpDovecot => lmtp(beside.dovecot()),
        _ => {
            let mailbox = format!("mail_location=maildir:{place}/mail/v.test/%to_user%");
            (
                "/usr/lib/dovecot/dovecot-lda",
                ["-c".into(), format!("{place}/dovecot.conf"), "-o".into(), mailbox],
            )
        }
    };
    let copy = |name: &str, to: &Path, further: &str| {
        let text = std::fs::read_to_string(project("tests/bench/chasquid").join(name)).unwrap();
        let text = text.replace("@DIRECTORY@", &place).replace("@AGENT@", agent) + further;
        std::fs::write(to.join(name), text).unwrap();
    };
    let recipient = match workload {
        Workload::LmtpSink | Workload::LmtpDovecot => ["-d", "%to%"].map(str::to_owned).to_vec(),
        _ => Vec::new(),
    };
    let sender = ["-f", "%from%"].map(str::to_owned);
    let arguments = [&arguments[..], &sender, &recipient].concat();
    let lines: Vec<_> =
        arguments.iter().map(|word| format!("mail_delivery_agent_args: \"{word}\"\n")).collect();
    copy("chasquid.conf", &config, &lines.concat());
    copy("dovecot.conf", d, "");
    std::fs::write(config.join("domains/relay.test/aliases"), "u: u@sink.test\n").unwrap();
    // It starts with a certificate only.
    let certificate = config.join("certs/mx.test");
    std::fs::create_dir_all(&certificate).unwrap();
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
    openssl.args(["-subj", "/CN=mx.test", "-keyout", "privkey.pem", "-out", "fullchain.pem"]);
    succeed(openssl.current_dir(&certificate));
    let users: Vec<_> = match workload {
        Workload::LmtpSink => vec!["u@lmtp.test".to_owned()],
        Workload::LmtpDovecot => peers::users(workload).map(|user| format!("{user}@dovecot.test")).collect(),
        Workload::Maildir => peers::users(workload).map(|user| format!("{user}@v.test")).collect(),
        _ => Vec::new(),
    };
    for user in users {
        let mut util = Command::new("/usr/bin/chasquid-util");
        util.arg(format!("-C={}", config.display())).args(["user-add", &user, "--password=secret"]);
        succeed(&mut util);
    }
    // It reads them as its own user.
    succeed(Command::new("chown").args(["-R", USER.0]).arg(&config));
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
