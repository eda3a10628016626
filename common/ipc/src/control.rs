//! The control binary and the running system, over the control socket: one request a connection, then
//! replies until [`Reply::End`]. Peer credentials decide who may ask what: root and the user that master
//! runs as may change things; others may look only at `Status`.

use postern_address::{Mailbox, ReversePath};
use postern_spool::{BodyType, Options, QueueId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::explain::{ExplainRequest, Explained};
use crate::supervise::Attempt;

/// The control binary asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// What runs.
    Status,
    /// Read the configuration anew.
    Reload,
    /// Stop the system; the connection closes when it is down.
    Stop,
    /// Let every program try what it must not be able to do.
    Probe(Vec<Attempt>),
    /// Master passes the connection to the queue-manager.
    Queue(QueueRequest),
    /// Master passes the connection to a worker of smtpd.
    Explain(Box<ExplainRequest>),
}

/// What the queue-manager is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum QueueRequest {
    /// Every message, oldest first.
    List,
    /// One message, its recipients and its header section.
    Show(QueueId),
    /// Try deferred messages now: all of them, or one.
    Flush(Option<QueueId>),
    /// Keep a message without delivering it.
    Hold(QueueId),
    /// Deliver it after all.
    Release(QueueId),
    /// Drop it without a bounce.
    Remove(QueueId),
}

/// The answer, in one or more frames.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Some of the programs that run.
    Programs(Vec<ProgramStatus>),
    /// Some of the messages of the queue.
    Messages(Vec<MessageSummary>),
    /// One message.
    Message(Box<MessageDetail>),
    /// What the probes of one program came to.
    Probed {
        /// `smtpd/0`.
        program: String,
        /// `Ok` is a hole in the sandbox, `Err` the errno that closed it.
        attempts: Vec<(Attempt, Result<(), i32>)>,
    },
    /// One step of what the rules do.
    Explained(Box<Explained>),
    /// It was done; a line for the human.
    Done(String),
    /// It was not: why.
    Refused(String),
    /// No more frames.
    End,
}

/// One running program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramStatus {
    /// `smtpd/0`.
    pub program: String,
    /// Its process id; none while it waits to be restarted.
    pub pid: Option<u32>,
    /// When it was last started.
    pub started: Timestamp,
    /// How often it had to be restarted.
    pub restarts: u32,
    /// Its counters.
    pub counters: Vec<(String, u64)>,
}

/// One message of the queue, as listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageSummary {
    /// Its id.
    pub id: QueueId,
    /// Where it stands.
    pub state: MessageState,
    /// When it arrived.
    pub arrival: Timestamp,
    /// Octets.
    pub size: u64,
    /// The envelope's reverse-path.
    pub reverse_path: ReversePath,
    /// Unfinished recipients, and why the last attempt failed. At most 20 here.
    pub recipients: Vec<(Mailbox, Option<String>)>,
    /// Unfinished recipients in all.
    pub recipient_count: u32,
}

/// Where a message stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MessageState {
    /// Being delivered, or about to be.
    Active,
    /// Waits until this time.
    Deferred(Timestamp),
    /// Its sender wants it delivered no sooner (RFC 4865).
    Scheduled(Timestamp),
    /// Held by an operator, or for one by a rule.
    Held,
}

/// One message, whole but for its body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageDetail {
    /// As in the list.
    pub summary: MessageSummary,
    /// Every recipient and what became of it, in words.
    pub recipients: Vec<(Mailbox, String)>,
    /// The header section, at most 16 KiB of it.
    pub header: Vec<u8>,
    /// Which octets its content may hold.
    pub body: BodyType,
    /// What its sender asked for; of recipients, those that are shown.
    pub options: Options,
}
