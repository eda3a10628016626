//! The events: one variant for each thing that an operator may want to know.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use postern_address::{Mailbox, ReversePath};
use postern_smtp::Reply;
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

/// What happened. The session or queue id comes first in each line that has one.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    // The house.
    /// The system started: `version`, `configuration`.
    Started { version: &'a str, configuration: &'a str },
    /// A port is bound: the address that the kernel chose where 0 was asked for.
    Listening { address: SocketAddr, service: &'a str },
    /// All programs serve.
    Ready { milliseconds: u64 },
    /// Master started a program.
    ProgramStarted { program: &'a str, pid: u32 },
    /// A program ended without being told to; it is started again after `restart_in`.
    ProgramDied { program: &'a str, pid: u32, how: &'a str, restart_in_ms: u64 },
    /// The configuration was read anew, or why it was not.
    Reloaded { outcome: Result<(), &'a str> },
    /// The system is going down.
    Stopping,
    /// The system is down.
    Stopped,
    /// How far the sandbox of this program is in force: `landlock` and `seccomp` in words.
    Sandboxed { landlock: &'a str, seccomp: &'a str, user: &'a str },
    /// A neighbour went away; requests to it wait or get 4xx until master links a new one.
    LinkLost { peer: &'a str, why: &'a str },

    // smtpd.
    /// A client connected.
    Connect { session: SessionId, client: Client<'a> },
    /// A client went, with what it did: accepted messages, commands, milliseconds, and why it ended.
    Disconnect {
        session: SessionId,
        client: Client<'a>,
        messages: u32,
        commands: u32,
        milliseconds: u64,
        why: &'a str,
    },
    /// A command was refused: `NOQUEUE: reject: RCPT from name[ip]: 550 …; from=<…> to=<…> proto=ESMTP helo=<…>`.
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
    },
    /// The spool refused a message: the client got 451 or 452.
    SpoolRefused { session: SessionId, id: QueueId, error: &'a str },

    // queue-manager.
    /// A message was taken into the queue: `ID: from=<…>, size=…, nrcpt=… (queue active)`.
    Active { id: QueueId, from: &'a ReversePath, size: u64, nrcpt: usize },
    /// A message came from a local program through `drop/`: `ID: uid=… from=<…>`.
    PickedUp { id: QueueId, uid: u32, from: &'a ReversePath },
    /// A bounce was queued for a message: `ID: sender non-delivery notification: BOUNCE`.
    BounceQueued { id: QueueId, bounce: QueueId },
    /// No bounce was sent because the message is one, or has the null reverse-path.
    BounceDropped { id: QueueId, why: &'a str },
    /// Every recipient is finished and the message is gone: `ID: removed`.
    Removed { id: QueueId },
    /// An operator held, released, flushed or removed it.
    Operator { id: Option<QueueId>, action: &'a str },
    /// A spool file was set aside for a human.
    Corrupt { file: &'a str, why: &'a str },
    /// What recovery found at start.
    Recovered { files: u64, messages: u64, swept: u64, milliseconds: u64 },

    // The agents.
    /// One recipient of one attempt.
    Delivery(Attempt<'a>),

    // Everything else.
    /// Something a human should read: what was tried, on what, and what to do about it.
    Note { level: Level, id: Option<&'a str>, text: &'a str },
}
