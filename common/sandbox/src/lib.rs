//! NAME
//!     postern-sandbox: what each program may not do

#![forbid(unsafe_code)]

use std::path::PathBuf;

use postern_ipc::Role;
use postern_ipc::supervise::{Attempt, Identity};

/// What to enter.
#[derive(Clone, Debug)]
pub struct Confinement {
    /// Whose profile.
    pub role: Role,
    /// The user to become, when master was started by root.
    pub identity: Option<Identity>,
    /// Files and directories it may read beyond its profile, from its configuration.
    pub readable: Vec<PathBuf>,
}

/// How far the confinement is in force, in words, for the log.
#[derive(Clone, Debug)]
pub struct Report {
    /// `enforced (ABI 7)`, `absent`, …
    pub landlock: String,
    /// `enforced`, `absent`
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
pub fn enter(confinement: &Confinement) -> Result<Report, SandboxError> {
    let _ = confinement;
    Err(SandboxError::Step("enter", "not written".into()))
}

/// Tries what must fail; `Ok` is a hole, `Err` the errno that closed it.
pub fn attempt(attempt: &Attempt) -> Result<(), i32> {
    let _ = attempt;
    Ok(())
}
