//! What this program and its workers say to each other.

use postern_address::{Mailbox, ReversePath};
use postern_ipc::Link;
use postern_ipc::queue_agent::{Content, MailboxKind};
use postern_smtp::Reply;
use serde::{Deserialize, Serialize};

/// The parent's end.
pub type ParentLink = Link<Deliver, FromWorker>;
/// The worker's end.
pub type WorkerLink = Link<FromWorker, Deliver>;

/// Deliver this. One descriptor beside it when the content is a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Deliver {
    /// Names the job between the two.
    pub serial: u64,
    /// For Return-Path and the From_ line.
    pub reverse_path: ReversePath,
    /// A copy for each.
    pub recipients: Vec<(u32, Mailbox)>,
    /// Which mailbox: matters to a worker of many, which keeps to its base.
    pub mailbox: MailboxKind,
    /// The message, with CRLF line ends.
    pub content: Content,
}

/// The worker speaks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FromWorker {
    /// What became of a job: of each recipient, durably delivered, or why not now.
    Done {
        /// Which job.
        serial: u64,
        /// By the recipient's index.
        results: Vec<(u32, Result<(), Reply>)>,
    },
    /// The worker ends. What it has not answered it has not begun.
    Leaving,
}
