//! Postern, as the system tests start it.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use postern_tests::{System, backlog};

use crate::beside::{self, Beside, destination};
use crate::cell::Workload;
use crate::generator;
use crate::peers::{ADDRESS, Peer, files};

/// The most messages that share a file.
const BATCH: usize = 256;

pub(super) const PROMISES: [&str; 3] = [
    "the message and its name: fsync of its part of a spool file, shared by all that came meanwhile; the file's \
     directory entry was synced before",
    "sync of the file before it is moved into `new/`, then sync of the directory; one syncfs for a batch of four or more",
    "what was done is recorded within a second",
];

pub(crate) struct Postern {
    system: System,
}

impl Postern {
    pub(crate) fn start(workload: Workload, beside: &Beside) -> (Box<dyn Peer>, Instant) {
        let via =
            |protocol: &str, address: SocketAddr| format!("{protocol}:[{}]:{}", address.ip(), address.port());
        let mut builder = System::builder()
            .relay()
            .at(ADDRESS)
            // Clients are not limited, as with the others: they all have one address here.
            .set("limits", "sessions", "0")
            // As it is without being told; tests have two.
            .set("smtp", "workers", &postern_config::default_workers().to_string())
            .route("relay.test", &via("smtp", beside::SINK))
            .route("far.test", &via("smtp", beside::FAR))
            .route("far-chunks.test", &via("smtp", beside::FAR_CHUNKS))
            .route("flaky.test", &via("smtp", beside::FLAKY))
            .route("lmtp.test", &via("lmtp", beside::LMTP))
            .route("dovecot.test", &via("lmtp", beside.dovecot()));
        for n in 0..workload.destinations() {
            builder = builder.route(&format!("d{n}.dest.test"), &via("smtp", destination(n)));
        }
        if workload == Workload::Flaky {
            // Each second, as Postfix there: how the pauses grow is a policy, and not what is measured.
            builder = builder.set("queue", "retry-first", "\"1 s\"").set("queue", "retry-most", "\"1 s\"");
        }
        let mut system = builder.prepare();
        if workload == Workload::Hold {
            // Last in the file, as any table of a list may be.
            let mut config = OpenOptions::new().append(true).open(system.config()).unwrap();
            write!(config, "\n[[rule]]\nstage = \"rcpt\"\nto = [\"@hold.test\"]\naction = \"hold\"\n")
                .unwrap();
        }
        if workload.backlog() > 0 {
            // It makes its spool.
            system.start_again();
            system.stop();
            let files = (0..workload.backlog()).step_by(BATCH).map(|n| BATCH.min(workload.backlog() - n));
            let body = generator::message(4096);
            backlog(&system.spool_path(), files, &body, |n| format!("user{n}@domain{}.dead.test", n % 1000));
        }
        let begin = Instant::now();
        system.start_again();
        (Box::new(Self { system }), begin)
    }
}

impl Peer for Postern {
    fn root(&self) -> u32 {
        self.system.master()
    }

    fn maildir(&self, user: &str) -> PathBuf {
        self.system.directory().join("mail/v.test").join(user)
    }

    fn queued(&self, moving: bool) -> usize {
        let spool = self.system.spool_path();
        let directories = ["new", "drop", "cur"];
        let some = if moving { &directories[..2] } else { &directories[..] };
        let named: usize = some.iter().map(|directory| files(&spool.join(directory))).sum();
        // Others in tmp/ are ready for messages to come.
        let written = std::fs::read_dir(spool.join("tmp")).unwrap().flatten();
        named
            + written.filter(|entry| postern_spool::is_blank(&entry.path()).is_ok_and(|blank| !blank)).count()
    }

    fn sendmail(&self) -> Command {
        let mut command = self.system.command("sendmail");
        command.arg("-C").arg(self.system.config());
        command
    }
}
