//! What each program is given: its own part of the configuration and nothing else.

use std::net::SocketAddr;
use std::path::PathBuf;

use postern_address::Domain;
use serde::{Deserialize, Serialize};

use crate::abuse::{Greylist, Limits, List};
use crate::rules::{PolicyServer, Rule};
use crate::types::{
    Config, Delivery, Listen, Local, QueueLimits, Relay, Reserve, Route, SmtpLimits, Table, Virtual,
};

/// For smtpd.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SmtpdPart {
    /// Our name.
    pub hostname: Domain,
    /// The listeners, in the order of their handles.
    pub listen: Vec<Listen>,
    /// What a worker takes.
    pub limits: SmtpLimits,
    /// What it leaves free in the spool.
    pub reserve: Reserve,
    /// A certificate is configured.
    pub tls: bool,
    /// What clients may do.
    pub clients: Limits,
    /// There are lists to be asked about them.
    pub lists: bool,
    /// Mail is greylisted.
    pub greylist: bool,
    /// `[[rule]]`
    pub rules: Vec<Rule>,
}

/// For queue-manager.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueuePart {
    /// Our name.
    pub hostname: Domain,
    /// Retries and lifetimes.
    pub limits: QueueLimits,
    /// Connections to one destination at once.
    pub connections: u32,
    /// Received lines until a message counts as looping.
    pub hops: u32,
    /// Most octets of a message from a local program.
    pub message_size: u64,
}

/// For delivery-remote.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RemotePart {
    /// Our name in EHLO.
    pub hostname: Domain,
    /// Connections and timeouts.
    pub delivery: Delivery,
}

/// For lmtp.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LmtpPart {
    /// Our name in LHLO.
    pub hostname: Domain,
    /// Connections and timeouts.
    pub delivery: Delivery,
}

/// For delivery-local.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LocalPart {
    /// Our name, for the names of Maildir files and for Delivered-To.
    pub hostname: Domain,
    /// The system user who owns the virtual mailboxes, when there are any.
    pub virtual_owner: Option<String>,
    /// The part of the virtual mailbox template before its first variable: every virtual mailbox lies
    /// below it, and [`crate::types::Virtual`] paths are given relative to it.
    pub virtual_base: Option<PathBuf>,
    /// Where the mailboxes of system users lie, as far as it is one place: `~/` for their homes. None when
    /// there are none, or an LMTP server has them.
    pub local_base: Option<PathBuf>,
    /// Jobs at once.
    pub jobs: u32,
}

/// For lookup.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LookupPart {
    /// Our name; `postmaster` without a domain is at it.
    pub hostname: Domain,
    /// `[local]`
    pub local: Option<Local>,
    /// `[virtual]`
    pub virtual_: Option<Virtual>,
    /// `[relay]`
    pub relay: Relay,
    /// `[[route]]`
    pub routes: Vec<Route>,
    /// The tables that rules ask, each once.
    pub tables: Vec<Table>,
}

/// For auth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuthPart {
    /// The file of names and password hashes.
    pub users: Option<PathBuf>,
}

/// For keys: the key itself comes as a descriptor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeysPart {}

/// For resolver.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResolverPart {
    /// Servers to ask; empty for those of `/etc/resolv.conf`.
    pub servers: Vec<SocketAddr>,
}

/// For verify.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VerifyPart {
    /// Our name.
    pub hostname: Domain,
    /// What clients may do.
    pub limits: Limits,
    /// `[[list]]`
    pub lists: Vec<List>,
    /// `[greylist]`
    pub greylist: Greylist,
    /// The policy servers that rules ask, each once.
    pub servers: Vec<PolicyServer>,
}

impl Config {
    /// smtpd's part.
    pub fn smtpd(&self) -> SmtpdPart {
        SmtpdPart {
            hostname: self.hostname.clone(),
            listen: self.listen.clone(),
            limits: self.smtp.clone(),
            reserve: self.reserve,
            tls: self.tls.is_some(),
            clients: self.limits.clone(),
            lists: !self.lists.is_empty(),
            greylist: self.greylist.enabled,
            rules: self.rules.clone(),
        }
    }

    /// queue-manager's part.
    pub fn queue_manager(&self) -> QueuePart {
        QueuePart {
            hostname: self.hostname.clone(),
            limits: self.queue.clone(),
            connections: self.delivery.connections,
            hops: self.smtp.hops,
            message_size: self.smtp.message_size,
        }
    }

    /// delivery-remote's part.
    pub fn delivery_remote(&self) -> RemotePart {
        RemotePart { hostname: self.hostname.clone(), delivery: self.delivery.clone() }
    }

    /// lmtp's part.
    pub fn lmtp(&self) -> LmtpPart {
        LmtpPart { hostname: self.hostname.clone(), delivery: self.delivery.clone() }
    }

    /// delivery-local's part.
    pub fn delivery_local(&self) -> LocalPart {
        let virtual_ = self.virtual_.as_ref();
        LocalPart {
            hostname: self.hostname.clone(),
            virtual_owner: virtual_.map(|v| v.owner.clone()),
            virtual_base: virtual_.and_then(|v| v.mailbox.base()),
            local_base: self.local.as_ref().and_then(|l| l.mailbox.base()),
            jobs: self.delivery.jobs,
        }
    }

    /// lookup's part.
    pub fn lookup(&self) -> LookupPart {
        LookupPart {
            hostname: self.hostname.clone(),
            local: self.local.clone(),
            virtual_: self.virtual_.clone(),
            relay: self.relay.clone(),
            routes: self.routes.clone(),
            tables: each_once(self.rules.iter().flat_map(Rule::tables)),
        }
    }

    /// auth's part.
    pub fn auth(&self) -> AuthPart {
        AuthPart { users: self.auth_users.clone() }
    }

    /// keys' part.
    pub fn keys(&self) -> KeysPart {
        KeysPart {}
    }

    /// resolver's part.
    pub fn resolver(&self) -> ResolverPart {
        ResolverPart { servers: self.dns_servers.clone() }
    }

    /// verify's part.
    pub fn verify(&self) -> VerifyPart {
        VerifyPart {
            hostname: self.hostname.clone(),
            limits: self.limits.clone(),
            lists: self.lists.clone(),
            greylist: self.greylist.clone(),
            servers: each_once(self.rules.iter().flat_map(Rule::servers)),
        }
    }
}

fn each_once<'a, T: Clone + PartialEq + 'a>(items: impl Iterator<Item = &'a T>) -> Vec<T> {
    let mut once = Vec::new();
    for item in items {
        if !once.contains(item) {
            once.push(item.clone());
        }
    }
    once
}
