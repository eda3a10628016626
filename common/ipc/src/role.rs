//! The programs' names.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A program of the house.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// The supervisor.
    Master,
    /// Receives by SMTP; several workers.
    Smtpd,
    /// Owns the spool and the schedule.
    QueueManager,
    /// Relays by SMTP.
    DeliveryRemote,
    /// Delivers to mailboxes on this host.
    DeliveryLocal,
    /// Hands over by LMTP.
    Lmtp,
    /// Knows domains, users, aliases, routes.
    Lookup,
    /// Knows passwords.
    Auth,
    /// Holds private keys.
    Keys,
    /// Asks the DNS.
    Resolver,
    /// Judges clients and content.
    Verify,
}

impl Role {
    /// Every program that master starts, in the order it starts them.
    pub const CHILDREN: [Role; 10] = [
        Role::Resolver,
        Role::Lookup,
        Role::Auth,
        Role::Keys,
        Role::Verify,
        Role::DeliveryRemote,
        Role::DeliveryLocal,
        Role::Lmtp,
        Role::QueueManager,
        Role::Smtpd,
    ];

    /// The name in logs, commands and the file name `postern-NAME`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Smtpd => "smtpd",
            Self::QueueManager => "queue-manager",
            Self::DeliveryRemote => "delivery-remote",
            Self::DeliveryLocal => "delivery-local",
            Self::Lmtp => "lmtp",
            Self::Lookup => "lookup",
            Self::Auth => "auth",
            Self::Keys => "keys",
            Self::Resolver => "resolver",
            Self::Verify => "verify",
        }
    }

    /// The system user it runs as when master was started by root. delivery-local stays root, with the
    /// capabilities to become its target users and no others.
    pub const fn system_user(self) -> &'static str {
        match self {
            Self::Master | Self::DeliveryLocal => "root",
            Self::Smtpd => "postern-smtpd",
            Self::QueueManager => "postern-queue",
            Self::DeliveryRemote => "postern-remote",
            Self::Lmtp => "postern-lmtp",
            Self::Lookup => "postern-lookup",
            Self::Auth => "postern-auth",
            Self::Keys => "postern-keys",
            Self::Resolver => "postern-resolver",
            Self::Verify => "postern-verify",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One running instance of a program: smtpd has several workers, the others instance 0 alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Peer {
    /// Which program.
    pub role: Role,
    /// Which of its instances, from 0.
    pub instance: u16,
}

impl Peer {
    /// The only instance of a program.
    pub const fn only(role: Role) -> Self {
        Self { role, instance: 0 }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.role {
            Role::Smtpd => write!(f, "{}/{}", self.role, self.instance),
            role => role.fmt(f),
        }
    }
}
