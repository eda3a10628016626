//! What is measured in one place of the table.

use std::fmt;
use std::str::FromStr;

/// One place of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cell {
    pub(crate) workload: Workload,
    /// Many messages in one connection; otherwise one.
    pub(crate) long: bool,
    /// Clients at once.
    pub(crate) sessions: usize,
    /// Octets of a message.
    pub(crate) size: usize,
}

/// What is done with the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Workload {
    /// Accepted, and nothing delivered.
    Hold,
    /// Relayed to smtp-sink.
    Relay,
    /// Delivered to one Maildir.
    Maildir,
    /// Delivered to a hundred Maildirs by turns.
    Maildirs,
    /// Handed to smtp-sink by LMTP.
    LmtpSink,
    /// Handed to Dovecot by LMTP.
    LmtpDovecot,
    /// Relayed to a sink that refuses every fifth recipient for now.
    Flaky,
    /// Relayed to smtp-sink, 50 ms away.
    Far,
    /// Relayed to a sink that offers CHUNKING, 50 ms away.
    FarChunks,
    /// One message to a thousand Maildirs.
    Fanout,
    /// `sendmail` run again and again, to one Maildir.
    Sendmail,
    /// Clients that do nothing.
    Idle,
    /// New mail after a start with 100,000 deferred messages.
    Restart,
    /// Relayed, with 10,000 deferred messages in the queue.
    Backlog10k,
    /// With 100,000.
    Backlog100k,
    /// Relayed to 1, 100 and 10,000 destinations by turns.
    Destination,
    Destinations100,
    Destinations10k,
}

/// A workload, its name in tables and its name on the command line.
const NAMES: [(Workload, &str, &str); 18] = [
    (Workload::Hold, "accept and hold", "hold"),
    (Workload::Relay, "relay", "relay"),
    (Workload::Maildir, "Maildir, 1 user", "maildir"),
    (Workload::Maildirs, "Maildir, 100 users", "maildirs"),
    (Workload::LmtpSink, "LMTP to a sink", "lmtp"),
    (Workload::LmtpDovecot, "LMTP to Dovecot", "dovecot"),
    (Workload::Flaky, "relay, 20 % deferred", "flaky"),
    (Workload::Far, "relay, 50 ms away", "far"),
    (Workload::FarChunks, "relay, CHUNKING, 50 ms away", "far-chunks"),
    (Workload::Fanout, "1 message to 1000 Maildirs", "fanout"),
    (Workload::Sendmail, "sendmail to a Maildir", "sendmail"),
    (Workload::Idle, "idle clients", "idle"),
    (Workload::Restart, "start with 100,000 deferred", "restart"),
    (Workload::Backlog10k, "relay beside 10,000 deferred", "backlog-10k"),
    (Workload::Backlog100k, "relay beside 100,000 deferred", "backlog-100k"),
    (Workload::Destination, "relay to 1 destination", "destinations-1"),
    (Workload::Destinations100, "relay to 100 destinations", "destinations-100"),
    (Workload::Destinations10k, "relay to 10,000 destinations", "destinations-10k"),
];

impl Cell {
    pub(crate) fn new(workload: Workload, sessions: usize, kib: usize) -> Self {
        Self { workload, long: true, sessions, size: kib * 1024 }
    }

    pub(crate) fn short(self) -> Self {
        Self { long: false, ..self }
    }

    /// As it is called in tables.
    pub(crate) fn title(self) -> String {
        let sessions = match self.sessions {
            1 => "1 session".into(),
            n => format!("{n} sessions"),
        };
        let size = match self.size {
            octets if octets < 1 << 20 => format!("{} KiB", octets >> 10),
            octets => format!("{} MiB", octets >> 20),
        };
        let short = if self.long { "" } else { ", a session a message" };
        format!("{}, {sessions}, {size}{short}", self.workload.name())
    }
}

impl Workload {
    pub(crate) fn name(self) -> &'static str {
        NAMES.iter().find(|(workload, _, _)| *workload == self).map_or("", |(_, name, _)| name)
    }

    fn word(self) -> &'static str {
        NAMES.iter().find(|(workload, _, _)| *workload == self).map_or("", |(_, _, word)| word)
    }
}

impl Workload {
    /// Mail goes to smtp-sink by SMTP.
    pub(crate) fn relays(self) -> bool {
        matches!(self, Self::Relay | Self::Far) || self.destinations() > 0 || self.backlog() > 0
    }

    /// How many destinations are there beside the usual, each with an address of its own.
    pub(crate) fn destinations(self) -> usize {
        match self {
            Self::Destination => 1,
            Self::Destinations100 => 100,
            Self::Destinations10k => 10_000,
            _ => 0,
        }
    }

    /// Messages in the queue that are deferred for a day.
    pub(crate) fn backlog(self) -> usize {
        match self {
            Self::Backlog10k => 10_000,
            Self::Backlog100k | Self::Restart => 100_000,
            _ => 0,
        }
    }

    /// How many recipients of how many messages: see [`Self::Fanout`].
    pub(crate) fn recipients(self) -> usize {
        if self == Self::Fanout { 1000 } else { 1 }
    }
}

impl FromStr for Workload {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let found = NAMES.iter().find(|(_, _, known)| *known == word);
        found.map(|(workload, _, _)| *workload).ok_or_else(|| {
            let known: Vec<_> = NAMES.iter().map(|(_, _, word)| *word).collect();
            format!("no workload {word}: there are {}", known.join(", "))
        })
    }
}

/// As one word: `relay:long:10:4096`.
impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length = if self.long { "long" } else { "short" };
        write!(f, "{}:{length}:{}:{}", self.workload.word(), self.sessions, self.size)
    }
}

impl FromStr for Cell {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let [workload, length, sessions, size] = *word.split(':').collect::<Vec<_>>() else {
            return Err(format!("no cell: {word}"));
        };
        let number = |word: &str| word.parse().map_err(|e| format!("{word}: {e}"));
        Ok(Self {
            workload: workload.parse()?,
            long: length == "long",
            sessions: number(sessions)?,
            size: number(size)?,
        })
    }
}
