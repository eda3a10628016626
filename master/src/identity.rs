//! The system users the programs become.

use nix::unistd::{Group, Uid, User};
use postern_ipc::Role;
use postern_ipc::supervise::Identity;

use crate::Fatal;

/// The group whose members may put files into `drop/`: the set-gid sendmail program.
pub(crate) const DROP_GROUP: &str = "postern-drop";

/// Whether each program becomes a user of its own.
pub(crate) fn rooted() -> bool {
    Uid::effective().is_root()
}

/// The user a program becomes; none when master was not started by root.
pub(crate) fn of(role: Role) -> Result<Option<Identity>, Fatal> {
    if !rooted() {
        return Ok(None);
    }
    if role.system_user() == "root" {
        return Ok(Some(Identity { uid: 0, gid: 0, groups: Vec::new() }));
    }
    let user = user(role.system_user())?;
    let groups = if role == Role::QueueManager { vec![drop_group()?] } else { Vec::new() };
    Ok(Some(Identity { uid: user.uid.as_raw(), gid: user.gid.as_raw(), groups }))
}

/// A system user by name, or what to do about its absence.
pub(crate) fn user(name: &str) -> Result<User, Fatal> {
    match User::from_name(name) {
        Ok(Some(user)) => Ok(user),
        Ok(None) => Err(Fatal(format!(
            "there is no system user {name}: make Postern's users with `make users` or systemd-sysusers \
             (etc/postern.sysusers), or start Postern as an ordinary user"
        ))),
        Err(error) => Err(Fatal::because(format!("looking up system user {name}"), error)),
    }
}

/// The id of [`DROP_GROUP`].
pub(crate) fn drop_group() -> Result<u32, Fatal> {
    match Group::from_name(DROP_GROUP) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err(Fatal(format!("there is no system group {DROP_GROUP}: make it with `make users`"))),
        Err(error) => Err(Fatal::because(format!("looking up system group {DROP_GROUP}"), error)),
    }
}
