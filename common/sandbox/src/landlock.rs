//! The file system and TCP, by Landlock.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use ::landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, PathBeneath, PathFd,
    RestrictionStatus, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus,
    Scope,
};
use postern_ipc::supervise::Handle;

use crate::profile::{Network, Profile, READ_BY_ALL, Spool};
use crate::{Confinement, Endpoint, Grant, SandboxError, step};

/// The newest rules we know and have tested: older kernels enforce what they know of them.
const NEWEST: ABI = ABI::V9;

pub(crate) fn restrict(profile: &Profile, confinement: &Confinement<'_>) -> Result<String, SandboxError> {
    let rules = Rules::new(profile.network).map_err(step("landlock"))?;
    add_all(rules, profile, confinement)
        .and_then(Rules::enforce)
        .map(|status| words(&status))
        .map_err(step("landlock"))
}

/// For a worker of delivery-local: nothing but these.
pub(crate) fn restrict_worker(grants: &[(BorrowedFd<'_>, Grant)]) -> Result<String, SandboxError> {
    let all = || -> Result<RestrictionStatus, RulesetError> {
        let mut rules = Rules::new(Network::None)?;
        for path in READ_BY_ALL {
            rules = rules.path(Path::new(path), reading())?;
        }
        for (directory, grant) in grants {
            rules = rules.beneath(directory, worker_rights(*grant))?;
        }
        rules.enforce()
    };
    all().map(|status| words(&status)).map_err(step("landlock"))
}

fn add_all(
    mut rules: Rules,
    profile: &Profile,
    confinement: &Confinement<'_>,
) -> Result<Rules, RulesetError> {
    for path in READ_BY_ALL.iter().chain(profile.read) {
        rules = rules.path(Path::new(path), reading())?;
    }
    for path in &confinement.readable {
        rules = rules.path(path, reading())?;
        // Files are edited by replacing them. Where the system keeps its settings, and under a system
        // user of its own, the program may follow: ownership guards the neighbours. Elsewhere a
        // directory may hold anything, even the spool: there it is this file alone.
        let directory = path.parent().filter(|parent| parent.starts_with("/etc"));
        if let (Some(_), Some(directory), true) = (&confinement.identity, directory, path.is_file()) {
            rules = rules.path(directory, reading())?;
        }
    }
    for path in &confinement.writable {
        rules = rules.path(path, working())?;
    }
    for (handle, directory) in &confinement.directories {
        rules = match (handle, profile.spool) {
            (Handle::SpoolDirectory(name), Spool::Write) if name == "new" => {
                rules.beneath(directory, accepting())?
            }
            (Handle::SpoolDirectory(_), Spool::Write) => rules.beneath(directory, writing())?,
            (Handle::SpoolDirectory(_), Spool::Manage) => rules.beneath(directory, working())?,
            (Handle::MailboxBase | Handle::Greylist, _) => rules.beneath(directory, working())?,
            _ => rules,
        };
    }
    if profile.network == Network::ConnectUnix {
        // Which sockets is known only when a job comes: any, where the user it runs as may connect.
        rules = rules.path(Path::new("/"), AccessFs::ResolveUnix.into())?;
    }
    if profile.network == Network::Named {
        for server in &confinement.reachable {
            rules = match server {
                Endpoint::Tcp(port) => rules.port(*port)?,
                Endpoint::Unix(path) => match path.parent() {
                    Some(directory) => rules.path(directory, AccessFs::ResolveUnix.into())?,
                    None => rules,
                },
            };
        }
    }
    Ok(rules)
}

fn reading() -> BitFlags<AccessFs> {
    AccessFs::ReadFile | AccessFs::ReadDir
}

fn writing() -> BitFlags<AccessFs> {
    AccessFs::WriteFile | AccessFs::Truncate | AccessFs::MakeReg | AccessFs::RemoveFile | AccessFs::Refer
}

/// Files may be moved in, and nothing else: what lies there is not to be replaced or removed.
fn accepting() -> BitFlags<AccessFs> {
    AccessFs::MakeReg | AccessFs::Refer
}

fn working() -> BitFlags<AccessFs> {
    writing() | reading() | AccessFs::MakeDir | AccessFs::RemoveDir
}

fn worker_rights(grant: Grant) -> BitFlags<AccessFs> {
    match grant {
        Grant::Tree => working(),
        // The dot-lock is made by mknod, not by opening: no right to any content in there.
        Grant::DotLocks => AccessFs::MakeReg | AccessFs::RemoveFile,
    }
}

fn words(status: &RestrictionStatus) -> String {
    match (&status.ruleset, &status.landlock) {
        (RulesetStatus::NotEnforced, _) => "absent".into(),
        (_, LandlockStatus::Available { effective_abi, .. }) => {
            format!("enforced (ABI {})", *effective_abi as i32)
        }
        // Enforced by a kernel that does not have it: cannot be, and if it is, let it be seen.
        (_, status) => format!("{status:?}"),
    }
}

/// A set of rules in the making.
struct Rules(RulesetCreated);

impl Rules {
    fn new(network: Network) -> Result<Self, RulesetError> {
        let net = match network {
            Network::None | Network::Named => AccessNet::from_all(NEWEST),
            // Which ports is known only when a job comes.
            Network::Connect | Network::ConnectUnix | Network::Dns => AccessNet::BindTcp.into(),
        };
        Ruleset::default()
            .handle_access(AccessFs::from_all(NEWEST))?
            .handle_access(net)?
            .scope(Scope::from_all(NEWEST))?
            .create()
            .map(Self)
    }

    fn port(self, port: u16) -> Result<Self, RulesetError> {
        self.0.add_rule(NetPort::new(port, AccessNet::ConnectTcp)).map(Self)
    }

    /// What does not exist, or cannot even be looked at, needs no rule.
    fn path(self, path: &Path, rights: BitFlags<AccessFs>) -> Result<Self, RulesetError> {
        match PathFd::new(path) {
            Ok(opened) => self.beneath(&opened, rights),
            Err(_) => Ok(self),
        }
    }

    fn beneath(self, opened: &impl AsFd, rights: BitFlags<AccessFs>) -> Result<Self, RulesetError> {
        let is_directory = nix::sys::stat::fstat(opened.as_fd())
            .is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR);
        // Rights that make no sense for a file would count as only partly enforced.
        let rights = if is_directory { rights } else { rights & AccessFs::from_file(NEWEST) };
        self.0.add_rule(PathBeneath::new(opened.as_fd(), rights)).map(Self)
    }

    fn enforce(self) -> Result<RestrictionStatus, RulesetError> {
        self.0.restrict_self()
    }
}
