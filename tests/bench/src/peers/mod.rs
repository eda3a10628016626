//! The systems, as a load sees them.

mod chasquid;
mod exim;
mod guest;
mod opensmtpd;
mod postern;
mod postfix;

use std::fmt;
use std::fs::DirEntry;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::time::Instant;

use crate::beside::Beside;
use crate::cell::{Cell, Workload};
use crate::machine::said;

/// Which system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Name {
    Postern,
    Postfix,
    Exim,
    OpenSmtpd,
    Chasquid,
}

/// A running system, until the round's process ends. It takes mail at [`ADDRESS`], has the users [`users`] of v.test, and relays the domains of
/// [`crate::beside`] where these say.
pub(crate) trait Peer {
    /// Its first process.
    fn root(&self) -> u32;

    /// The Maildir of a user of v.test.
    fn maildir(&self, user: &str) -> PathBuf;

    /// Files in the queue, those included of mail that was just taken; `moving` leaves out what rests:
    /// deferred or held.
    fn queued(&self, moving: bool) -> usize;

    /// Its sendmail(1).
    fn sendmail(&self) -> Command;

    /// Whether its reply to QUIT comes late, long after everything is done. Mail systems do not wait for that
    /// reply (Postfix: `smtp_skip_quit_response`), so a load should not be made of waiting for it.
    fn quits_late(&self) -> bool {
        false
    }

    /// How many messages its queue takes; it refuses more.
    fn holds(&self) -> usize {
        usize::MAX
    }
}

/// Where a system takes mail. Its network is its own.
pub(crate) const ADDRESS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 2525);

/// Users of v.test, for systems that need a list of them: a few loads have one each, or a thousand, or a
/// hundred.
pub(crate) fn users(workload: Workload) -> impl Iterator<Item = String> {
    let many = match workload {
        Workload::Fanout => 1000,
        Workload::Maildirs => 100,
        _ => 0,
    };
    (1..5).flat_map(move |load| {
        let many = (0..many).map(move |n| format!("u{load}n{n}"));
        std::iter::once(format!("u{load}")).chain(many)
    })
}

/// A directory that all users may go through; it is removed with the round's.
pub(crate) fn directory(name: &str) -> PathBuf {
    let directory = std::env::temp_dir().join(name);
    std::fs::create_dir(&directory).unwrap();
    std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o755)).unwrap();
    directory
}

/// How many files lie in a directory, those of its directories included.
pub(crate) fn files(directory: &Path) -> usize {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let count = |entry: DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => files(&entry.path()),
        _ => 1,
    };
    entries.map(count).sum()
}

/// Starts a system, its queue as full as the workload wants it, and says when: the time of its start, not of
/// what was prepared before.
pub(crate) fn start(name: Name, workload: Workload, beside: &Beside) -> (Box<dyn Peer>, Instant) {
    match name {
        Name::Postern => postern::Postern::start(workload, beside),
        Name::Postfix => postfix::Postfix::start(workload, beside),
        Name::Exim => exim::Exim::start(workload, beside),
        Name::OpenSmtpd => opensmtpd::OpenSmtpd::start(workload, beside),
        Name::Chasquid => chasquid::Chasquid::start(workload, beside),
    }
}

impl Name {
    /// Ours first.
    pub(crate) const ALL: [Self; 5] =
        [Self::Postern, Self::Postfix, Self::Exim, Self::OpenSmtpd, Self::Chasquid];

    /// How it is called.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Postern => "Postern",
            Self::Postfix => "Postfix",
            Self::Exim => "Exim",
            Self::OpenSmtpd => "OpenSMTPD",
            Self::Chasquid => "chasquid",
        }
    }

    pub(crate) fn version(self) -> String {
        match self {
            Self::Postern => format!("Postern {}", env!("CARGO_PKG_VERSION")),
            Self::Postfix => format!("Postfix {}", said("postconf", &["-dh", "mail_version"])),
            Self::Exim => guest::version(self.title(), "exim4-daemon-light"),
            Self::OpenSmtpd => guest::version(self.title(), "opensmtpd"),
            Self::Chasquid => guest::version(self.title(), "chasquid"),
        }
    }

    /// What is on the disk: before the 250, in a Maildir, of a relayed message.
    pub(crate) fn promises(self) -> [&'static str; 3] {
        match self {
            Self::Postern => postern::PROMISES,
            Self::Postfix => postfix::PROMISES,
            Self::Exim => exim::PROMISES,
            Self::OpenSmtpd => opensmtpd::PROMISES,
            Self::Chasquid => chasquid::PROMISES,
        }
    }

    /// Whether it asks the DNS, and nothing keeps it from that.
    pub(crate) fn asks_dns(self) -> bool {
        self == Self::Chasquid
    }

    /// Whether a message is on the disk, somehow, when it says 250: see [`Self::promises`].
    pub(crate) fn syncs(self) -> bool {
        !matches!(self, Self::Chasquid | Self::OpenSmtpd)
    }

    /// Whether the workload can be given to it.
    pub(crate) fn does(self, cell: Cell) -> bool {
        use Workload::*;
        match self {
            Self::Postern => true,
            // A process for each client: there is no memory for 5,000.
            Self::Postfix => cell.workload != Idle || cell.sessions <= 1000,
            // It does not take commands ahead of its replies, as the load of this workload gives them.
            Self::OpenSmtpd if cell.workload == Fanout => false,
            Self::Exim | Self::OpenSmtpd => match cell.workload {
                Hold | Relay | Maildir | Maildirs | LmtpSink | LmtpDovecot | Far | Fanout | Sendmail => true,
                Idle => cell.sessions <= 1000,
                _ => false,
            },
            // It delivers at once or not before a minute, has no more than 200 messages in its queue, and no
            // sendmail(1).
            Self::Chasquid => matches!(cell.workload, Relay | Maildir | LmtpSink | LmtpDovecot),
        }
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
