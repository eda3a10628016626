//! queue-manager and the agents that deliver: delivery-remote, lmtp, delivery-local.
//!
//! The queue-manager never has more jobs under way at an agent than the agent's `Ready { jobs }` grants;
//! a `Done` gives the grant back. Agents open no spool file: the message comes in the job.

use postern_address::{Mailbox, ReversePath};
pub use postern_config::{LmtpServer, Nexthop};
use postern_smtp::Reply;
use postern_smtp::parameters::RcptParameters;
use postern_spool::{BodyType, Options, QueueId, Timestamp};
use serde::{Deserialize, Serialize};

/// Content up to this many octets (prepended lines included) travels in the frame.
pub const INLINE_MAX: usize = 32 * 1024;

/// Most recipients in one job: with addresses of the greatest length the frame still fits.
pub const RECIPIENTS_MAX: usize = 50;

/// queue-manager speaks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToAgent {
    /// Deliver this. One descriptor beside it when `content` is [`Content::File`].
    Job(Job),
    /// Forget deferred connections and back-off: an operator said `queue flush`.
    Flush,
}

/// The agent speaks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromAgent {
    /// The first message: how many jobs may be under way at once.
    Ready {
        /// The grant.
        jobs: u32,
    },
    /// Results of one job, as they fall; a recipient is reported exactly once.
    Results {
        /// Which job.
        job: u64,
        /// Recipient index (as in the job) and what became of it.
        results: Vec<(u32, Outcome)>,
    },
    /// Every recipient of the job was reported; its grant is free.
    Done {
        /// Which job.
        job: u64,
    },
}

/// One message to one destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Names the job on this link.
    pub job: u64,
    /// For log lines.
    pub queue_id: QueueId,
    /// When the message arrived, for `delay=` and `delays=`.
    pub arrival: Timestamp,
    /// When the queue-manager took it up for this attempt.
    pub scheduled: Timestamp,
    /// The envelope's reverse-path.
    pub reverse_path: ReversePath,
    /// Index in the envelope and address; at most [`RECIPIENTS_MAX`].
    pub recipients: Vec<Target>,
    /// Where to.
    pub destination: Destination,
    /// For BODY=.
    pub body: BodyType,
    /// What the sender asked for, as far as the next hop is to know; of recipients, see [`Target`].
    pub options: Box<Options>,
    /// The message, trace lines included, with CRLF line ends and no dot-stuffing.
    pub content: Content,
}

/// A recipient of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Names the recipient in results.
    pub index: u32,
    /// Where to.
    pub recipient: Mailbox,
    /// What the envelope said, where an alias changed it: `orig_to=` in the log.
    pub original: Option<Mailbox>,
    /// What the next hop is to be asked for it.
    pub parameters: RcptParameters,
}

/// Where a message's bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// Here.
    Inline(#[serde(with = "crate::octets")] Vec<u8>),
    /// `prepend`, then `length` octets at `offset` of the read-only descriptor beside the job, which
    /// holds no other message.
    File {
        /// Lines that come before what is in the file.
        #[serde(with = "crate::octets")]
        prepend: Vec<u8>,
        /// Where the message begins in the file.
        offset: u64,
        /// How long it is there.
        length: u64,
    },
}

/// A destination: jobs of the same destination share connections, batches and concurrency.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Destination {
    /// SMTP to another host.
    Smtp(Nexthop),
    /// LMTP to a server.
    Lmtp(LmtpServer),
    /// A mailbox of a system user.
    Local {
        /// The login name.
        user: String,
        /// Which kind of mailbox, where.
        mailbox: MailboxKind,
    },
    /// A mailbox below the virtual base, owned by the one virtual user.
    Virtual {
        /// Which kind of mailbox, where; the path is relative to the base and holds no `..`.
        mailbox: MailboxKind,
    },
}

/// A mailbox on this host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum MailboxKind {
    /// A Maildir: its directory, which is made when missing.
    Maildir(String),
    /// An mbox file.
    Mbox(String),
}

/// What became of one recipient in one attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Durably in the mailbox.
    Delivered(Report),
    /// The other server took it, and will not tell the sender of success (RFC 3461 §5.2.2).
    Relayed(Report),
    /// The other server took it, and what the sender asked to be told with it (RFC 3461 §5.2.1).
    Passed(Report),
    /// Try again later.
    Deferred(Report),
    /// Never: bounce.
    Failed(Report),
}

/// The words beside an outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The remote server as `name[address]:port`, or `local`, `virtual`: `relay=` in the log.
    pub relay: Option<String>,
    /// The reply, ours or the remote server's; its enhanced code is `dsn=`.
    pub reply: Reply,
    /// The reply is the remote server's own words (Diagnostic-Code, RFC 3464 §2.3.6).
    pub remote: bool,
    /// The destination as a whole is at fault (no connection, greeting refused): others for it need
    /// not be tried now.
    pub destination_down: bool,
}

impl Outcome {
    /// The words, whatever the outcome.
    pub fn report(&self) -> &Report {
        match self {
            Self::Delivered(report)
            | Self::Relayed(report)
            | Self::Passed(report)
            | Self::Deferred(report)
            | Self::Failed(report) => report,
        }
    }
}
