//! NAME
//!     postern-sandbox: what each program may not do
//!
//! WHAT IT DOES
//!     [`enter`] takes a program from what master started to what it may be: resource limits, its system
//!     user, no capabilities but the named ones, no new privileges, not traceable, Landlock rules for
//!     the file system and TCP, and a seccomp list of the calls it makes. What each program gets is one
//!     table, [`profile`]. [`attempt`](attempt()) tries from inside what must fail, for `postern status`'s probe
//!     and the tests.
//!     The workers of delivery-local go two steps further: [`become_user`], then [`confine_worker`].
//!
//! TRUST
//!     Called by each program before its first untrusted byte, while it has one thread. What is open by
//!     then (sockets, spool directories, the log) stays usable: a program is exactly its descriptors.
//!
//! FAILURE
//!     Every step that fails is an error and the program must not go on, with one exception: a kernel
//!     without Landlock, or with an older one, enforces what it can. [`Report::landlock`] says how much.
//!
//! BUGS
//!     Landlock does not cover UDP, nor `stat`: a program may learn that a file exists.
//!     A rule for a file follows the file, not its name: a table that is replaced by rename can be read
//!     again only beneath `/etc` (by `lookup` always, by the others when they have a system user of
//!     their own); elsewhere write it in place, or restart.
//!     The log is one open file that all share. seccomp cannot tell it from a program's own files: smtpd,
//!     taken over, could cut it (`ftruncate`), and any program could write over earlier lines of it. Syslog
//!     has no such weakness.
//!     Accounts must come from files or from NSS modules that need no socket: `sssd` and `nscd` are not
//!     reached from inside.
//!     The call lists are for x86-64 and AArch64; elsewhere a program refuses to start.

#![forbid(unsafe_code)]

mod attempt;
mod landlock;
mod privileges;
pub mod profile;
mod seccomp;
mod worker;

use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use postern_ipc::Role;
use postern_ipc::supervise::{Handle, Identity};

pub use attempt::attempt;
pub use worker::{Grant, become_user, confine_worker};

/// What to enter.
#[derive(Clone, Debug)]
pub struct Confinement<'a> {
    /// Whose profile.
    pub role: Role,
    /// The user to become, when master was started by root.
    pub identity: Option<Identity>,
    /// Files and directories it may read beyond its profile, from its configuration.
    pub readable: Vec<PathBuf>,
    /// Directories it may work in beyond its handles, from its configuration (delivery-local alone).
    pub writable: Vec<PathBuf>,
    /// Servers it may connect to, from its configuration (verify alone).
    pub reachable: Vec<Endpoint>,
    /// The directories among its handles, by which spool rules are made.
    pub directories: Vec<(Handle, BorrowedFd<'a>)>,
}

/// A server of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// This port, at any address: the kernel knows rules for ports alone.
    Tcp(u16),
    /// The Unix socket of this path. A server that is started anew makes another one: so any in its
    /// directory.
    Unix(PathBuf),
}

/// How far the confinement is in force, in words, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// `enforced (ABI 7)`, `absent`, …
    pub landlock: String,
    /// `enforced`
    pub seccomp: String,
    /// The user it now is.
    pub user: String,
}

/// Why a program could not be confined: it must not go on.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// What was tried, and what the kernel said.
    #[error("{0}: {1}")]
    Step(&'static str, String),
}

/// Becomes the user, drops every privilege and enters the role's profile, for good. Call it in a program
/// of one thread, before its first untrusted byte.
pub fn enter(confinement: &Confinement<'_>) -> Result<Report, SandboxError> {
    let profile = profile::of(confinement.role)
        .ok_or_else(|| SandboxError::Step("profile", format!("{} runs unconfined", confinement.role)))?;
    privileges::limit_resources(&profile)?;
    let user = privileges::drop_privileges(&profile, confinement.identity.as_ref())?;
    let landlock = landlock::restrict(&profile, confinement)?;
    seccomp::restrict(&profile, &confinement.reachable)?;
    Ok(Report { landlock, seccomp: "enforced".into(), user })
}

/// Makes an error of one step out of whatever the step's crate reports.
fn step<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> SandboxError {
    move |error| SandboxError::Step(what, error.to_string())
}
