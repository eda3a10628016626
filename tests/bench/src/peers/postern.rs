//! Postern, as the system tests start it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use postern_tests::System;

use crate::beside;
use crate::cell::Workload;
use crate::peers::{ADDRESS, Peer};

pub(crate) struct Postern {
    system: System,
}

impl Postern {
    pub(crate) fn start(_workload: Workload) -> Self {
        let via = |address: SocketAddr| format!("smtp:[{}]:{}", address.ip(), address.port());
        let system = System::builder()
            .relay()
            .at(ADDRESS)
            .route("hold.test", &via(beside::SILENT))
            .route("relay.test", &via(beside::SINK))
            .start();
        Self { system }
    }
}

impl Peer for Postern {
    fn root(&self) -> u32 {
        self.system.master()
    }

    fn maildir(&self, user: &str) -> PathBuf {
        self.system.directory().join("mail/v.test").join(user)
    }

    fn is_empty(&self) -> bool {
        ["tmp", "new", "cur", "drop"].iter().all(|directory| self.system.spool(directory).is_empty())
    }

    fn is_held(&self) -> bool {
        ["tmp", "new"].iter().all(|directory| self.system.spool(directory).is_empty())
    }

    fn sendmail(&self) -> Command {
        let mut command = self.system.command("sendmail");
        command.arg("-C").arg(self.system.config());
        command
    }
}
