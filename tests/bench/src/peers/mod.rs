//! The systems, as a load sees them.

mod postern;
mod postfix;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::str::FromStr;

use crate::cell::Workload;

/// Which system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Name {
    Postern,
    Postfix,
}

/// A running system, until the round's process ends. It takes mail at [`ADDRESS`], has the users [`users`] of v.test, and relays the domains of
/// [`crate::beside`] where these say.
pub(crate) trait Peer {
    /// Its first process.
    fn root(&self) -> u32;

    /// The Maildir of a user of v.test.
    fn maildir(&self, user: &str) -> PathBuf;

    /// Nothing is queued, on the disk either.
    fn is_empty(&self) -> bool;

    /// Everything that was accepted is where it stays while it is on hold.
    fn is_held(&self) -> bool {
        true
    }

    /// Its sendmail(1).
    fn sendmail(&self) -> Command;
}

/// Where a system takes mail. Its network is its own.
pub(crate) const ADDRESS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 2525);

/// Users of v.test, for systems that need a list of them: a few loads have one each, or a thousand, or a
/// hundred.
pub(crate) fn users() -> impl Iterator<Item = String> {
    (1..5).flat_map(|load| {
        let many = (0..1000).map(move |n| format!("u{load}n{n}"));
        std::iter::once(format!("u{load}")).chain(many)
    })
}

pub(crate) fn start(name: Name, workload: Workload) -> Box<dyn Peer> {
    match name {
        Name::Postern => Box::new(postern::Postern::start(workload)),
        Name::Postfix => Box::new(postfix::Postfix::start(workload)),
    }
}

impl Name {
    /// Ours first.
    pub(crate) const ALL: [Self; 2] = [Self::Postern, Self::Postfix];

    /// How it is called.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Postern => "Postern",
            Self::Postfix => "Postfix",
        }
    }

    /// Whether the workload can be given to it.
    pub(crate) fn does(self, _workload: Workload) -> bool {
        true
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.title().to_ascii_lowercase())
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|name| name.to_string() == word);
        found.ok_or_else(|| format!("no system {word}"))
    }
}
