//! The events: one variant for each thing that an operator may want to know.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use postern_address::{Mailbox, ReversePath};
use postern_smtp::Reply;
use postern_smtp::xclient::Forwarded;
use postern_spool::QueueId;

/// Names one connection of one smtpd worker: `n` of worker `w` prints as `w-n` in base 16, with a start
/// stamp so that it does not repeat after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionId(pub u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012x}", self.0)
    }
}

/// A client as log lines show it: `name[address]`, the name `unknown` when there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client<'a> {
    /// Its verified reverse name.
    pub name: Option<&'a str>,
    /// Its address.
    pub address: IpAddr,
}

/// How bad it is. Fatal: this program ends. Error: something asked for was not done. Warning: somebody
/// should look. Info: all is well. Debug: not shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Details of a session.
    Debug,
    /// The normal course.
    Info,
    /// Somebody should look.
    Warning,
    /// Something was not done.
    Error,
    /// The program ends.
    Fatal,
}

/// `status=` of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Delivered.
    Sent,
    /// Will be tried again.
    Deferred,
    /// Will not.
    Bounced,
}

/// One attempt at one recipient: Postfix's line, `ID: to=<…>, relay=…, delay=…, delays=a/b/c/d,
/// dsn=2.0.0, status=sent (…)`.
#[derive(Clone, Debug)]
pub struct Attempt<'a> {
    /// The message.
    pub id: QueueId,
    /// The final recipient.
    pub to: &'a Mailbox,
    /// The envelope's recipient, where an alias changed it.
    pub orig_to: Option<&'a Mailbox>,
    /// Who took it or refused it: `name[address]:port`, `local`, `virtual`; `none` without.
    pub relay: Option<&'a str>,
    /// Milliseconds: before the queue-manager took it up, in the queue-manager, connecting, transmitting.
    pub delays: [u64; 4],
    /// What became of it.
    pub status: Status,
    /// In whose words.
    pub reply: &'a Reply,
}

/// The names of all events, for the test that keeps `docs/events.md` complete: add a new variant's here.
#[cfg(test)]
pub(crate) const NAMES: [&str; 28] = [
    "started",
    "listening",
    "ready",
    "program-started",
    "program-died",
    "reloaded",
    "stopping",
    "stopped",
    "sandboxed",
    "link-lost",
    "connect",
    "disconnect",
    "reject",
    "policy",
    "accepted",
    "spool-refused",
    "limit-exceeded",
    "overload",
    "active",
    "picked-up",
    "bounce-queued",
    "bounce-dropped",
    "removed",
    "operator",
    "corrupt",
    "recovered",
    "delivery",
    "note",
];

/// What happened. The session or queue id comes first in each line that has one.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    // The house.
    /// The system started.
    Started {
        /// Of Postern.
        version: &'a str,
        /// The file's path.
        configuration: &'a str,
    },
    /// A port is bound.
    Listening {
        /// The port that the kernel chose where 0 was asked for.
        address: SocketAddr,
        /// `smtp`, `submission`, `submissions`, `lmtp`.
        service: &'a str,
    },
    /// All programs serve.
    Ready {
        /// Since master began.
        milliseconds: u64,
    },
    /// Master started a program.
    ProgramStarted {
        /// `smtpd/0`
        program: &'a str,
        /// Its process.
        pid: u32,
    },
    /// A program ended without being told to.
    ProgramDied {
        /// `smtpd/0`
        program: &'a str,
        /// Its process.
        pid: u32,
        /// `exited with status 1`, `killed by SIGSEGV`
        how: &'a str,
        /// When it is started again.
        restart_in_ms: u64,
    },
    /// The configuration was read anew, or why it was not.
    Reloaded {
        /// Why not.
        outcome: Result<(), &'a str>,
    },
    /// The system is going down.
    Stopping,
    /// The system is down.
    Stopped,
    /// How far the sandbox of this program is in force, in words.
    Sandboxed {
        /// `enforced (ABI 7)`, `absent`
        landlock: &'a str,
        /// `enforced`, `absent`
        seccomp: &'a str,
        /// Who it runs as.
        user: &'a str,
    },
    /// A link broke though the neighbour lives: a frame that makes no sense, or the kernel says so.
    LinkLost {
        /// Which one.
        peer: &'a str,
        /// What happened to the link.
        why: &'a str,
    },

    // smtpd.
    /// A client connected.
    Connect {
        /// From now on its name.
        session: SessionId,
        /// Who.
        client: Client<'a>,
        /// The proxy whose PROXY header says so.
        proxy: Option<IpAddr>,
    },
    /// A client went.
    Disconnect {
        /// The session.
        session: SessionId,
        /// Who.
        client: Client<'a>,
        /// Messages accepted.
        messages: u32,
        /// Commands heard.
        commands: u32,
        /// How long it was here.
        milliseconds: u64,
        /// `quit`, `lost connection after DATA`, `timeout after RCPT`, …
        why: &'a str,
    },
    /// A command was refused: `NOQUEUE: reject: RCPT from name[ip]: 550 …; from=<…> to=<…> proto=ESMTP
    /// helo=<…> session=…`.
    Reject {
        /// The session.
        session: SessionId,
        /// Who.
        client: Client<'a>,
        /// `CONNECT`, `MAIL`, `RCPT`, `DATA`, `END-OF-MESSAGE`, or the command.
        stage: &'a str,
        /// What was answered.
        reply: &'a Reply,
        /// As far as known.
        from: Option<&'a ReversePath>,
        /// As far as known.
        to: Option<&'a str>,
        /// As far as known.
        helo: Option<&'a str>,
        /// `SMTP`, `ESMTP`, …
        proto: &'a str,
    },
    /// A rule did something: `NOQUEUE: hold: RCPT from name[ip]: rule 3 (line 41): text; from=<…> to=<…>
    /// proto=ESMTP helo=<…> session=…`; of a refusal or an acceptance `session: policy: reject: …`, since a
    /// refusal has a line of its own too.
    Policy {
        /// The session.
        session: SessionId,
        /// Who.
        client: Client<'a>,
        /// `client`, `helo`, `from`, `rcpt`, `data`.
        stage: &'a str,
        /// `accept`, `reject`, `defer`, `hold`, `redirect`, `tag`, `discard`, `warn`.
        action: &'a str,
        /// Its place among the rules, from 1.
        rule: u32,
        /// Its line in the configuration.
        line: u32,
        /// What exactly.
        text: &'a str,
        /// Reverse-path, when it is known.
        from: Option<&'a ReversePath>,
        /// The recipient it is about.
        to: Option<&'a str>,
        /// What the client calls itself.
        helo: Option<&'a str>,
        /// `SMTP`, `ESMTP`, `ESMTPS`, …
        proto: &'a str,
    },
    /// A message is on stable storage and its 250 on the way: `ID: client=…, session=…, from=<…>, size=…, nrcpt=…, message-id=<…>`.
    Accepted {
        /// The message.
        id: QueueId,
        /// The session.
        session: SessionId,
        /// Who sent it.
        client: Client<'a>,
        /// Reverse-path.
        from: &'a ReversePath,
        /// Octets.
        size: u64,
        /// Recipients.
        nrcpt: usize,
        /// Its Message-ID header, if it has one.
        message_id: Option<&'a str>,
        /// Where it came from before the client, by the client's word (XFORWARD).
        forwarded: Option<&'a Forwarded>,
    },
    /// The spool refused a message: the client got 451 or 452.
    SpoolRefused {
        /// Whose message.
        session: SessionId,
        /// The id it would have had.
        id: QueueId,
        /// What the kernel said.
        error: &'a str,
    },

    /// A client reached a limit: `warning: Connection concurrency limit exceeded: 51 from name[ip] …`.
    LimitExceeded {
        /// The session.
        session: SessionId,
        /// Who.
        client: Client<'a>,
        /// `Connection concurrency`, `Connection rate`, `Message delivery request rate`, …
        measure: &'a str,
        /// Whose limit: `client`, `user`, `listener`.
        scope: &'a str,
        /// How many there would be.
        count: u32,
        /// How many there may be.
        limit: u32,
    },
    /// A worker has nearly as many sessions as it may have, or no longer: its timeouts are shorter meanwhile.
    Overload {
        /// Or ends.
        begins: bool,
        /// Sessions now.
        sessions: u64,
        /// Sessions that there may be.
        most: u64,
    },

    // queue-manager.
    /// A message was taken into the queue: `ID: from=<…>, size=…, nrcpt=… (queue active)`.
    Active {
        /// The message.
        id: QueueId,
        /// Reverse-path.
        from: &'a ReversePath,
        /// Octets.
        size: u64,
        /// Recipients.
        nrcpt: usize,
    },
    /// A message came from a local program through `drop/`: `ID: uid=… from=<…>`.
    PickedUp {
        /// The message.
        id: QueueId,
        /// Who ran the program.
        uid: u32,
        /// Reverse-path.
        from: &'a ReversePath,
    },
    /// A report to the sender was queued: `ID: sender non-delivery notification: BOUNCE`, or `delay` or `delivery
    /// status` for `non-delivery`.
    BounceQueued {
        /// The message that it is about.
        id: QueueId,
        /// The message that tells of it.
        bounce: QueueId,
        /// `failure`, `delay` or `success`.
        told: &'a str,
    },
    /// No bounce was sent because the message is one, or has the null reverse-path.
    BounceDropped {
        /// The message that failed.
        id: QueueId,
        /// Why nobody is told.
        why: &'a str,
    },
    /// Every recipient is finished and the message is gone: `ID: removed`.
    Removed {
        /// The message.
        id: QueueId,
    },
    /// An operator held, released, flushed or removed it.
    Operator {
        /// The message; none for the whole queue.
        id: Option<QueueId>,
        /// What was done, in a word.
        action: &'a str,
    },
    /// A spool file was set aside for a human.
    Corrupt {
        /// Its name in `corrupt/`.
        file: &'a str,
        /// What is wrong with it.
        why: &'a str,
    },
    /// What recovery found at start.
    Recovered {
        /// Spool files.
        files: u64,
        /// Messages in them.
        messages: u64,
        /// Files in `tmp/` that were never accepted, removed.
        swept: u64,
        /// How long it took.
        milliseconds: u64,
    },

    // The agents.
    /// One recipient of one attempt.
    Delivery(Attempt<'a>),

    // Everything else.
    /// Something a human should read: what was tried, on what, and what to do about it.
    Note {
        /// How bad it is.
        level: Level,
        /// A queue or session id, when it is about one.
        id: Option<&'a str>,
        /// The sentence.
        text: &'a str,
    },
}

impl fmt::Display for Client<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.name.unwrap_or("unknown"), self.address)
    }
}

impl Level {
    /// The word in a log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Fatal => "fatal",
        }
    }
}

impl Status {
    /// The word in a log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Deferred => "deferred",
            Self::Bounced => "bounced",
        }
    }
}

impl Attempt<'_> {
    /// `dsn=`: the reply's enhanced code (RFC 3463), or the general one of its class where it has none.
    pub fn dsn(&self) -> String {
        match (self.reply.enhanced, self.status) {
            (Some(code), _) => code.to_string(),
            (None, Status::Sent) => "2.0.0".to_owned(),
            (None, Status::Deferred) => "4.0.0".to_owned(),
            (None, Status::Bounced) => "5.0.0".to_owned(),
        }
    }
}

impl Event<'_> {
    /// The event's name: `event` in JSON.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Started { .. } => "started",
            Self::Listening { .. } => "listening",
            Self::Ready { .. } => "ready",
            Self::ProgramStarted { .. } => "program-started",
            Self::ProgramDied { .. } => "program-died",
            Self::Reloaded { .. } => "reloaded",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Sandboxed { .. } => "sandboxed",
            Self::LinkLost { .. } => "link-lost",
            Self::Connect { .. } => "connect",
            Self::Disconnect { .. } => "disconnect",
            Self::Reject { .. } => "reject",
            Self::Policy { .. } => "policy",
            Self::Accepted { .. } => "accepted",
            Self::SpoolRefused { .. } => "spool-refused",
            Self::LimitExceeded { .. } => "limit-exceeded",
            Self::Overload { .. } => "overload",
            Self::Active { .. } => "active",
            Self::PickedUp { .. } => "picked-up",
            Self::BounceQueued { .. } => "bounce-queued",
            Self::BounceDropped { .. } => "bounce-dropped",
            Self::Removed { .. } => "removed",
            Self::Operator { .. } => "operator",
            Self::Corrupt { .. } => "corrupt",
            Self::Recovered { .. } => "recovered",
            Self::Delivery(_) => "delivery",
            Self::Note { .. } => "note",
        }
    }

    /// How bad it is.
    pub const fn level(&self) -> Level {
        match self {
            Self::Note { level, .. } => *level,
            Self::Corrupt { .. } | Self::Reloaded { outcome: Err(_) } => Level::Error,
            Self::ProgramDied { .. } | Self::LinkLost { .. } | Self::SpoolRefused { .. } => Level::Warning,
            Self::LimitExceeded { .. } | Self::Overload { begins: true, .. } => Level::Warning,
            _ => Level::Info,
        }
    }
}
