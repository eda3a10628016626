//! Postern, as the system tests start it.

mod fill;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use postern_tests::System;

use crate::beside::{self, Beside, destination};
use crate::cell::Workload;
use crate::peers::{ADDRESS, Peer, files};

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
            .route("hold.test", &via("smtp", beside::SILENT))
            .route("relay.test", &via("smtp", beside::SINK))
            .route("far.test", &via("smtp", beside::FAR))
            .route("flaky.test", &via("smtp", beside::FLAKY))
            .route("lmtp.test", &via("lmtp", beside::LMTP))
            .route("dovecot.test", &via("lmtp", beside.dovecot()));
        for n in 0..workload.destinations() {
            builder = builder.route(&format!("d{n}.dest.test"), &via("smtp", destination(n)));
        }
        if workload == Workload::Flaky {
            builder = builder.fast_retries();
        }
        let mut system = builder.prepare();
        if workload.backlog() > 0 {
            // It makes its spool.
            system.start_again();
            system.stop();
            fill::fill(&system.spool_path(), workload.backlog());
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
        let directories = ["tmp", "new", "drop", "cur"];
        let some = if moving { &directories[..3] } else { &directories[..] };
        some.iter().map(|directory| files(&self.system.spool_path().join(directory))).sum()
    }

    fn sendmail(&self) -> Command {
        let mut command = self.system.command("sendmail");
        command.arg("-C").arg(self.system.config());
        command
    }
}
