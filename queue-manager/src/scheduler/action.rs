//! What the schedule wants done, as values.

use postern_address::Mailbox;
use postern_event::Status;
use postern_ipc::queue_agent::{Destination, Report};
use postern_smtp::Reply;
use postern_spool::{LogEntry, QueueId, Timestamp};

use super::{AgentKind, Late, Owed, Place};

/// What the shell is to do.
#[derive(Clone, Debug)]
pub enum Action {
    /// Read the message's unfinished recipients and call [`super::Scheduler::loaded`].
    Load(QueueId),
    /// Ask lookup, and call [`super::Scheduler::answer`].
    Ask {
        /// Comes back in the answer.
        question: u64,
        /// The envelope's recipient.
        recipient: Mailbox,
    },
    /// Hand a job to an agent; its grant is taken.
    Start(Order),
    /// Append to the message's log.
    Record(QueueId, Place, Vec<LogEntry>),
    /// Log a result that no agent logs, since none was asked.
    Tell(Told),
    /// Write a report to the sender, and call [`super::Scheduler::bounced`] when it is on disk or cannot be.
    Bounce(BounceOrder),
    /// Recipients failed and nobody is told: why.
    DropBounce(QueueId, &'static str),
    /// Every recipient is recorded as done, or an operator removed the message: it goes.
    Finished(QueueId, Place),
}

/// A job, but for the message's bytes.
#[derive(Clone, Debug)]
pub struct Order {
    /// Its number: never used again.
    pub job: u64,
    /// Whose it is.
    pub agent: AgentKind,
    /// The message.
    pub id: QueueId,
    /// Where to.
    pub destination: Destination,
    /// The reverse-path in place of the envelope's.
    pub owner: Option<Mailbox>,
    /// Final address and, where an alias changed it, the envelope's; results name their places here.
    pub targets: Vec<(Mailbox, Option<Mailbox>)>,
    /// Of each target, its recipient's place in the envelope and what the next hop is told of it.
    pub recipients: Vec<(u32, Passing)>,
    /// When the message was taken up for this attempt.
    pub scheduled: Timestamp,
}

/// What of a sender's wishes goes on with a delivery (RFC 3461 §5.2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passing {
    /// All of it.
    Everything,
    /// All but that it wants to hear of success: it was told that the recipient is several.
    NoSuccess,
    /// Nothing: the mail is a list's from here on.
    Nothing,
}

/// A result for the log of events.
#[derive(Clone, Debug)]
pub struct Told {
    /// The message.
    pub id: QueueId,
    /// Final address.
    pub address: Mailbox,
    /// The envelope's, where an alias changed it.
    pub original: Option<Mailbox>,
    /// When the message arrived.
    pub arrival: Timestamp,
    /// When it was taken up.
    pub scheduled: Timestamp,
    /// What became of it.
    pub status: Status,
    /// In whose words.
    pub reply: Reply,
}

/// A report to be written.
#[derive(Clone, Debug)]
pub struct BounceOrder {
    /// The message.
    pub id: QueueId,
    /// For whom it is, and of what.
    pub key: ReportKey,
    /// Which recipients failed or are late, and why.
    pub failures: Vec<Failure>,
    /// Which succeeded: the place in the envelope, its address there, what is told.
    pub owed: Vec<(u32, Mailbox, Owed)>,
    /// Until when those that are late are tried.
    pub tried_until: Timestamp,
}

/// Names a report on a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportKey {
    /// What it tells.
    pub kind: ReportKind,
    /// `owner-LIST`; none for the envelope's reverse-path.
    pub owner: Option<Mailbox>,
}

/// What a report tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportKind {
    /// These will not be reached.
    Failure,
    /// These were not reached yet.
    Delay,
    /// These were reached.
    Success,
}

/// A recipient that will not be reached, or was not yet.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Its place in the envelope.
    pub recipient: u32,
    /// Final address.
    pub address: Mailbox,
    /// The envelope's, where an alias changed it.
    pub original: Option<Mailbox>,
    /// The last words about it.
    pub report: Report,
    /// It was given up for its age.
    pub expired: Option<Late>,
}
