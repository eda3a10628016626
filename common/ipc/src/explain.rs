//! `postern explain`: what the rules would do with a client and its mail, asked of one worker of smtpd.

use std::net::{IpAddr, SocketAddr};

use postern_address::{Mailbox, ReversePath};
use serde::{Deserialize, Serialize};

/// What would become of this?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainRequest {
    /// Who connects.
    pub client: IpAddr,
    /// To which listener, as in `[[listen]]`; the first that is not for users if none is named.
    pub listener: Option<SocketAddr>,
    /// What it calls itself.
    pub helo: String,
    /// As whom it logs in.
    pub user: Option<String>,
    /// MAIL
    pub from: ReversePath,
    /// RCPT
    pub to: Mailbox,
}

/// The answer, step by step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Explained {
    /// What is known about the client.
    Client {
        /// Its confirmed name.
        name: Option<String>,
        /// Why it has none, or from whom the score is.
        words: String,
        /// What the lists say.
        score: i32,
    },
    /// A rule was tried.
    Tried(Tried),
    /// A stage is over.
    Stage {
        /// `client`, `helo`, …
        stage: String,
        /// `accept`, `pass`, `reject 550 …`, `discard`: what the client would hear of it.
        verdict: String,
        /// What became of the message besides: `hold`, `redirect …`, `tag …`.
        effects: Vec<String>,
    },
    /// What lookup says of the recipient.
    Recipient {
        /// `local`, `relay`, or the refusal.
        verdict: String,
    },
    /// The end.
    Outcome {
        /// What the client hears in the end: `accepted`, or the refusal.
        verdict: String,
        /// What becomes of the message besides.
        effects: Vec<String>,
    },
}

/// One rule, and how far its conditions were looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    /// `client`, `helo`, …
    pub stage: String,
    /// Its place among all rules, from 1.
    pub rule: u32,
    /// Its line in the configuration.
    pub line: u32,
    /// In the order in which they were looked at, up to the first that does not hold.
    pub conditions: Vec<Looked>,
    /// What it did; none when it did not match.
    pub action: Option<String>,
}

/// A condition that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Looked {
    /// As the configuration says it.
    pub condition: String,
    /// Whether it holds; none when that cannot be known.
    pub holds: Option<bool>,
    /// Why.
    pub because: String,
}
