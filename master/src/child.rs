//! One program: its process, its control socket, its deaths.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child as Process, Command, Stdio};
use std::time::Instant;

use postern_config::Config;
use postern_ipc::supervise::{FromChild, ToChild};
use postern_ipc::{FrameError, Link, Peer, Role, blocking, encode_config};
use postern_spool::Timestamp;

use crate::backoff::Backoff;

/// A program's place: running, or waiting to be started again.
pub(crate) struct Child {
    /// Which one.
    pub(crate) peer: Peer,
    /// Its process, while it lives.
    pub(crate) running: Option<Running>,
    /// When to start it again.
    pub(crate) restart_at: Option<Instant>,
    /// How often it was started again.
    pub(crate) restarts: u32,
    pub(crate) backoff: Backoff,
}

/// A living process.
pub(crate) struct Running {
    pub(crate) process: Process,
    pub(crate) link: Link<ToChild, FromChild>,
    pub(crate) started: Instant,
    pub(crate) started_at: Timestamp,
    /// It has said that it serves.
    pub(crate) ready: bool,
    /// Answers that it owes.
    pub(crate) owed: u32,
    /// How often it asked for another log.
    pub(crate) logs: u32,
}

impl Child {
    /// A place for `peer`, to be filled at once.
    pub(crate) fn new(peer: Peer, now: Instant) -> Self {
        Self { peer, running: None, restart_at: Some(now), restarts: 0, backoff: Backoff::default() }
    }

    /// Its process id, while it lives.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(|running| running.process.id())
    }
}

impl Running {
    /// Executes the program of `role` that lies in `directory`. It waits for `Start`.
    pub(crate) fn execute(directory: &Path, role: Role) -> io::Result<Self> {
        let (ours, theirs) = blocking::pair()?;
        let mut command = Command::new(directory.join(format!("postern-{role}")));
        // Nothing of our environment is the program's business, but for what a panic may show.
        command.env_clear().envs(std::env::var_os("RUST_BACKTRACE").map(|v| ("RUST_BACKTRACE", v)));
        command.envs(std::env::var_os("TZ").map(|v| ("TZ", v)));
        // A group of its own: the interrupt key is for us, who stop the programs in order.
        command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        let process = postern_sys::spawn(command, theirs)?;
        let (started, started_at) = (Instant::now(), Timestamp::now());
        Ok(Self { process, link: Link::new(ours), started, started_at, ready: false, owed: 0, logs: 0 })
    }
}

/// The programs of a configuration, in the order they are started.
pub(crate) fn peers(config: &Config) -> impl Iterator<Item = Peer> + use<> {
    let workers = config.smtp.workers();
    Role::CHILDREN.into_iter().flat_map(move |role| {
        let instances = if role == Role::Smtpd { workers } else { 1 };
        (0..instances).map(move |instance| Peer { role, instance })
    })
}

/// A program's own part of the configuration, in a sealed memory file.
pub(crate) fn part(config: &Config, role: Role) -> io::Result<OwnedFd> {
    let encoded: Result<Vec<u8>, FrameError> = match role {
        Role::Master => return Err(io::Error::other("master has the whole")),
        Role::Smtpd => encode_config(&config.smtpd()),
        Role::QueueManager => encode_config(&config.queue_manager()),
        Role::DeliveryRemote => encode_config(&config.delivery_remote()),
        Role::DeliveryLocal => encode_config(&config.delivery_local()),
        Role::Lmtp => encode_config(&config.lmtp()),
        Role::Lookup => encode_config(&config.lookup()),
        Role::Auth => encode_config(&config.auth()),
        Role::Keys => encode_config(&config.keys()),
        Role::Resolver => encode_config(&config.resolver()),
        Role::Verify => encode_config(&config.verify()),
    };
    postern_sys::sealed_file(role.name(), &encoded.map_err(io::Error::other)?)
}
