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
    /// One message to a thousand Maildirs.
    Fanout,
    /// `sendmail` run again and again, to one Maildir.
    Sendmail,
}

/// A workload, its name in tables and its name on the command line.
const NAMES: [(Workload, &str, &str); 5] = [
    (Workload::Hold, "accept and hold", "hold"),
    (Workload::Relay, "relay", "relay"),
    (Workload::Maildir, "Maildir, 1 user", "maildir"),
    (Workload::Fanout, "1 message to 1000 recipients", "fanout"),
    (Workload::Sendmail, "sendmail", "sendmail"),
];

impl Cell {
    pub(crate) fn new(workload: Workload, sessions: usize, kib: usize) -> Self {
        Self { workload, long: true, sessions, size: kib * 1024 }
    }

    pub(crate) fn short(self) -> Self {
        Self { long: false, ..self }
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
