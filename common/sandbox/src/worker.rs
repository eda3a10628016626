//! The two further steps of delivery-local's workers.

use std::os::fd::BorrowedFd;

use caps::CapsHashSet;
use nix::unistd::{Gid, Uid, getresuid, setgroups, setresgid, setresuid};
use postern_ipc::supervise::Identity;

use crate::{Report, SandboxError, landlock, privileges, seccomp, step};

/// What a worker may do beneath a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// Everything files and directories need: a Maildir.
    Tree,
    /// Make and remove files, none of which it can open: the dot-lock beside an mbox, which itself must
    /// be open by then.
    DotLocks,
}

/// Becomes a user for good, with no capability left. Root is refused. Call it in the child of a fork,
/// before the first byte of what is done for that user.
pub fn become_user(identity: &Identity) -> Result<(), SandboxError> {
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    if uid.is_root() {
        return Err(SandboxError::Step("become user", "a worker does not run as root".into()));
    }
    let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups).map_err(step("set groups"))?;
    setresgid(gid, gid, gid).map_err(step("set group"))?;
    setresuid(uid, uid, uid).map_err(step("set user"))?;
    privileges::keep_only(&CapsHashSet::new())?;
    let now = getresuid().map_err(step("read user"))?;
    if [now.real, now.effective, now.saved] != [uid; 3] {
        return Err(SandboxError::Step("become user", "the kernel did not change the user".into()));
    }
    Ok(())
}

/// Narrows a worker to its mailbox: nothing of the file system but `grants` and what is open, no
/// sockets, no forks, no exec, no change of user.
pub fn confine_worker(grants: &[(BorrowedFd<'_>, Grant)]) -> Result<Report, SandboxError> {
    nix::sys::prctl::set_dumpable(false).map_err(step("not dumpable"))?;
    let landlock = landlock::restrict_worker(grants)?;
    seccomp::restrict_worker()?;
    Ok(Report { landlock, seccomp: "enforced".into(), user: Uid::effective().to_string() })
}
