//! The table: what each program may do. Everything that is not here is refused.

use caps::Capability;
use postern_ipc::Role;

/// One program's line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    /// Capabilities kept when master was started by root. Everybody else keeps none.
    pub capabilities: &'static [Capability],
    /// Holds a descriptor for each client, server or job: its limit is raised as far as it goes.
    pub many_descriptors: bool,
    /// Paths it may read, with everything beneath them; those that do not exist are left out.
    pub read: &'static [&'static str],
    /// What it may do in the spool directories it was handed.
    pub spool: Spool,
    /// Which sockets it may make.
    pub network: Network,
    /// Groups of calls beyond those of every program.
    pub calls: &'static [Calls],
}

/// Rights in the spool directories among a program's handles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spool {
    /// It has none.
    None,
    /// Create, write and remove files in `tmp`, and move them to `new`, where it can neither replace nor
    /// remove one. Not read or list: another message is none of its business.
    Write,
    /// Everything a queue does.
    Manage,
}

/// Which sockets a program may make. Those it was handed it may use in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// None at all.
    None,
    /// Internet sockets, to connect by TCP.
    Connect,
    /// The same, and Unix sockets by path.
    ConnectUnix,
    /// Sockets for the servers that its configuration names, and none when it names none: TCP to their
    /// ports, Unix sockets in their directories.
    Named,
    /// Internet sockets for UDP and TCP; it may bind UDP ports to receive answers.
    Dns,
}

/// A group of system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calls {
    /// Take connections from a listener.
    Accept,
    /// Open files for writing, create, rename, remove, sync.
    WriteFiles,
    /// Watch directories.
    Watch,
    /// Memory files, to hand on part of a file.
    MemoryFiles,
    /// Map memory executable: name service modules are loaded while running.
    LoadLibraries,
    /// Fork, wait, become another user than root, confine the child.
    Workers,
}

/// What every program may read: the time zone, and the devices that libraries open.
pub const READ_BY_ALL: &[&str] = &["/etc/localtime", "/usr/share/zoneinfo", "/dev/urandom", "/dev/null"];

/// Accounts: `/etc` as a directory, since `useradd` and editors replace the files in it, and a rule for a
/// file follows the file. What in it is secret, ownership guards. The libraries are name service modules.
const ACCOUNTS: &[&str] = &["/etc", "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib"];

const NOTHING: Profile = Profile {
    capabilities: &[],
    many_descriptors: false,
    read: &[],
    spool: Spool::None,
    network: Network::None,
    calls: &[],
};

/// The profile of a program; none for master, which is not confined by itself.
pub fn of(role: Role) -> Option<Profile> {
    Some(match role {
        Role::Master => return None,
        Role::Smtpd => Profile {
            many_descriptors: true,
            spool: Spool::Write,
            calls: &[Calls::Accept, Calls::WriteFiles],
            ..NOTHING
        },
        Role::QueueManager => Profile {
            many_descriptors: true,
            spool: Spool::Manage,
            calls: &[Calls::WriteFiles, Calls::Watch, Calls::MemoryFiles],
            ..NOTHING
        },
        Role::DeliveryRemote => Profile { many_descriptors: true, network: Network::Connect, ..NOTHING },
        Role::Lmtp => Profile { many_descriptors: true, network: Network::ConnectUnix, ..NOTHING },
        // Its workers inherit its rules and can only narrow them, so it holds what they need together.
        // The capabilities are the two that become a user: that user makes and locks his own mailbox, so
        // no CAP_CHOWN and no CAP_DAC_OVERRIDE. (For an mbox in a directory of group mail the worker is
        // given that group.)
        Role::DeliveryLocal => Profile {
            capabilities: &[Capability::CAP_SETUID, Capability::CAP_SETGID],
            many_descriptors: true,
            read: ACCOUNTS,
            calls: &[Calls::WriteFiles, Calls::LoadLibraries, Calls::Workers],
            ..NOTHING
        },
        Role::Lookup => Profile { read: ACCOUNTS, calls: &[Calls::LoadLibraries], ..NOTHING },
        Role::Auth | Role::Keys => NOTHING,
        // The greylist's file, in the directory it was handed.
        Role::Verify => Profile { calls: &[Calls::WriteFiles], network: Network::Named, ..NOTHING },
        // The directory behind /etc/resolv.conf, since it is rewritten by rename too.
        Role::Resolver => Profile {
            many_descriptors: true,
            read: &["/etc/resolv.conf", "/etc/hosts", "/run/systemd/resolve", "/run/resolvconf"],
            network: Network::Dns,
            ..NOTHING
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> impl Iterator<Item = (Role, Profile)> {
        Role::CHILDREN.into_iter().map(|role| (role, of(role).expect("every child has a profile")))
    }

    #[test]
    fn one_program_has_capabilities() {
        let with: Vec<Role> =
            all().filter(|(_, p)| !p.capabilities.is_empty()).map(|(role, _)| role).collect();
        assert_eq!(with, [Role::DeliveryLocal]);
    }

    /// Promise 2 of the design: who reaches the network reaches no file.
    #[test]
    fn no_program_has_both_network_and_files() {
        // Named servers are the operator's own, and not the network.
        for (role, profile) in all().filter(|(_, p)| !matches!(p.network, Network::None | Network::Named)) {
            assert_eq!((profile.spool, profile.calls), (Spool::None, &[][..]), "{role}");
        }
    }

    #[test]
    fn only_those_who_keep_accounts_load_code() {
        for (role, profile) in all().filter(|(_, p)| p.calls.contains(&Calls::LoadLibraries)) {
            assert!(matches!(role, Role::Lookup | Role::DeliveryLocal), "{role}");
            assert_eq!(profile.network, Network::None);
        }
    }
}
