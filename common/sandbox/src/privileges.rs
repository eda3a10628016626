//! Limits, users, capabilities.

use caps::{CapSet, CapsHashSet};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, User, setfsuid, setgroups, setresgid, setresuid};
use postern_ipc::supervise::Identity;

use crate::profile::Profile;
use crate::{SandboxError, step};

/// Descriptors of a program that serves many peers: master starts as root mostly, and may raise.
const MANY: u64 = 65_536;
/// Descriptors of the others.
const FEW: u64 = 1024;

/// Who may open files of nobody's: the overflow user and group of every Linux.
const NOBODY: u32 = 65_534;

/// No core dumps (they hold mail and keys), and as many descriptors as the work needs.
pub(crate) fn limit_resources(profile: &Profile) -> Result<(), SandboxError> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(step("limit core files"))?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(step("read descriptor limit"))?;
    if !profile.many_descriptors {
        let few = hard.min(FEW);
        return setrlimit(Resource::RLIMIT_NOFILE, few, few).map_err(step("limit descriptors"));
    }
    // Refused without privilege: then the limit we have is the limit.
    if hard < MANY && setrlimit(Resource::RLIMIT_NOFILE, MANY, MANY).is_ok() {
        return Ok(());
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(step("raise descriptor limit"))
}

/// Becomes the identity, if there is one, with the profile's capabilities and no others. Without an
/// identity nothing is kept, not even by root. Returns the name of the user it now is.
pub(crate) fn drop_privileges(
    profile: &Profile,
    identity: Option<&Identity>,
) -> Result<String, SandboxError> {
    let uid = identity.map_or_else(Uid::effective, |i| Uid::from_raw(i.uid));
    // Asked before the name service is out of reach.
    let user = User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name);
    let parting = prctl::get_pdeathsig().map_err(step("read death signal"))?;
    let kept: CapsHashSet = match identity {
        Some(identity) => change_user(profile, identity)?,
        None => CapsHashSet::new(),
    };
    keep_only(&kept)?;
    prctl::set_no_new_privs().map_err(step("no new privileges"))?;
    prctl::set_dumpable(false).map_err(step("not dumpable"))?;
    // A change of credentials clears it: without this, the program would outlive a killed master.
    prctl::set_pdeathsig(parting).map_err(step("set death signal"))?;
    Ok(user)
}

fn change_user(profile: &Profile, identity: &Identity) -> Result<CapsHashSet, SandboxError> {
    let kept: CapsHashSet = profile.capabilities.iter().copied().collect();
    for capability in caps::runtime::thread_all_supported().difference(&kept) {
        caps::drop(None, CapSet::Bounding, *capability).map_err(step("drop bounding capability"))?;
    }
    let uid = Uid::from_raw(identity.uid);
    let keeps_root = uid.is_root();
    if keeps_root && kept.is_empty() {
        return Err(SandboxError::Step("change user", "this program must not run as root".into()));
    }
    let gid = Gid::from_raw(if keeps_root { NOBODY } else { identity.gid });
    let groups: Vec<Gid> = match keeps_root {
        true => Vec::new(),
        false => identity.groups.iter().copied().map(Gid::from_raw).collect(),
    };
    caps::securebits::set_keepcaps(!kept.is_empty()).map_err(step("keep capabilities"))?;
    setgroups(&groups).map_err(step("set groups"))?;
    setresgid(gid, gid, gid).map_err(step("set group"))?;
    setresuid(uid, uid, uid).map_err(step("set user"))?;
    if keeps_root {
        // delivery-local. Root by name, so that no other user may signal it, but files are opened as
        // nobody: even without capabilities root owns /etc/shadow and most of the system. It cannot
        // go back: seccomp knows no setfsuid, and no setresuid to 0.
        setfsuid(Uid::from_raw(NOBODY));
        if setfsuid(Uid::from_raw(NOBODY)).as_raw() != NOBODY {
            return Err(SandboxError::Step("set file system user", "refused".into()));
        }
    }
    caps::securebits::set_keepcaps(false).map_err(step("keep capabilities"))?;
    Ok(kept)
}

/// Leaves `kept` in the permitted and effective sets, and nothing in the others.
pub(crate) fn keep_only(kept: &CapsHashSet) -> Result<(), SandboxError> {
    caps::set(None, CapSet::Effective, kept).map_err(step("set effective capabilities"))?;
    caps::set(None, CapSet::Permitted, kept).map_err(step("set permitted capabilities"))?;
    caps::clear(None, CapSet::Inheritable).map_err(step("clear inheritable capabilities"))?;
    if caps::runtime::ambient_set_supported().is_ok() {
        caps::clear(None, CapSet::Ambient).map_err(step("clear ambient capabilities"))?;
    }
    Ok(())
}
