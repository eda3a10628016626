//! NAME
//!     postern-master: starts the other programs and keeps them running
//!
//! WHAT IT DOES
//!     Reads the configuration, binds the ports, opens the spool's directories, the log and the keys,
//!     starts every program beside it and hands each exactly what it may have. Neighbours in
//!     [`postern_ipc::topology`] are connected with each other, others never. A program that dies is
//!     started again with back-off and its neighbours get new links. Answers the control socket.
//!
//! TALKS TO
//!     Its children ([`postern_ipc::supervise`]) and the control binary ([`postern_ipc::control`]); the
//!     queue-manager answers queue commands itself, on the connection passed to it.
//!
//! TRUST
//!     Root, where it is started by root, and so it reads nothing from the network and no message. From
//!     children it takes five kinds of frames; from the control socket one request a connection, and the
//!     kernel's word who is asking.
//!
//! FAILURE
//!     A program that dies before the system was ready ends the start: the reason is in the log. Later
//!     deaths are repaired. When master dies, every child sees its control socket close and ends.
//!
//! BUGS
//!     A reload cannot change listeners, workers, `spool`, `runtime` or `[virtual] mailbox`: it says so.

#![forbid(unsafe_code)]

mod backoff;
mod child;
mod control_socket;
mod gather;
mod identity;
mod notify;
mod resources;
mod supervisor;

use std::path::Path;
use std::process::ExitCode;

pub use supervisor::VERSION;

/// Runs the system until it is told to stop.
pub fn run(path: &Path) -> ExitCode {
    let config = match postern_config::load(path) {
        Ok(config) => config,
        Err(error) => {
            tell(error);
            return ExitCode::from(78);
        }
    };
    match supervisor::Supervisor::start(path, config).and_then(supervisor::Supervisor::supervise) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(format_args!("postern: {error}\n"));
            ExitCode::FAILURE
        }
    }
}

/// Says something to whoever started us, if he still listens: `postern start` does so until we serve.
fn tell(text: impl std::fmt::Display) {
    use std::io::Write;
    let _ = write!(std::io::stderr(), "{text}");
}

/// Why the system cannot run: a sentence with what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Fatal(pub(crate) String);

impl Fatal {
    /// `what: error`
    pub(crate) fn because(what: impl std::fmt::Display, error: impl std::fmt::Display) -> Self {
        Self(format!("{what}: {error}"))
    }
}
