//! Master and a child, over the child's control socket (descriptor 3).

pub use postern_event::LogKind;
use serde::{Deserialize, Serialize};

use crate::role::Peer;

/// Master speaks. Descriptors that come beside a message are named in its comment, in their order.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToChild {
    /// The first message. Descriptors: the configuration (a sealed memory file holding
    /// [`crate::encode_config`] of the program's own part), the log, then one for each of `handles`.
    Start {
        /// Who the child is.
        me: Peer,
        /// What the further descriptors are.
        handles: Vec<Handle>,
        /// The system user to become; none when master was not started by root.
        identity: Option<Identity>,
        /// What the log descriptor is.
        log: LogKind,
    },
    /// A neighbour is reachable by the descriptor beside this. It replaces an earlier one.
    Linked(Peer),
    /// Check the configuration in the descriptor beside this and answer [`FromChild::Prepared`]. For keys,
    /// where `[tls]` is configured, the key and the certificate follow, opened anew.
    Prepare,
    /// Take the configuration last prepared. Descriptor: the log, opened anew.
    Commit,
    /// Forget the configuration last prepared.
    Abort,
    /// Finish what is under way, take nothing new, and exit with status 0.
    Stop,
    /// Try what this program must not be able to do, and answer [`FromChild::Probed`].
    Probe(Vec<Attempt>),
    /// A command for the queue-manager, from whoever is at the other end of the descriptor beside this:
    /// answer there ([`crate::control`]).
    Control {
        /// The caller may change things, not only look.
        may_change: bool,
        /// What was asked.
        request: crate::control::QueueRequest,
    },
    /// A question to a worker of smtpd from whoever is at the other end of the descriptor beside this:
    /// answer there ([`crate::control`]).
    Explain(Box<crate::explain::ExplainRequest>),
    /// Answer [`FromChild::Alive`].
    Ping,
    /// The log, opened anew: the answer to [`FromChild::LogBroken`].
    Log,
}

/// The child speaks.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromChild {
    /// Sandboxed and serving.
    Ready,
    /// Whether the prepared configuration can be taken.
    Prepared(Result<(), String>),
    /// What became of each attempt: `Ok` is a hole in the sandbox.
    Probed(Vec<(Attempt, Result<(), i32>)>),
    /// The log descriptor no longer takes lines: please open it anew.
    LogBroken,
    /// Counters for `postern status`, name and value.
    Alive(Vec<(String, u64)>),
}

/// A descriptor handed to a child at its start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Handle {
    /// A connected socket to a neighbour.
    Link(Peer),
    /// A listening TCP socket: the n-th `[[listen]]` of the configuration.
    Listener(u16),
    /// The spool directory `tmp`, `new`, `cur`, `corrupt` or `drop`, opened to work in.
    SpoolDirectory(String),
    /// The base directory of the virtual mailboxes.
    MailboxBase,
    /// The private key file, opened for reading.
    PrivateKey,
    /// The certificate chain, opened for reading.
    Certificate,
    /// The directory of the greylist, opened to work in.
    Greylist,
}

/// The user a child becomes for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
}

/// Something a sandboxed program must not be able to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Attempt {
    /// Open a path for reading.
    Read(String),
    /// Create a file.
    Create(String),
    /// Connect by TCP to an address and port.
    Connect(std::net::SocketAddr),
    /// Execute a program.
    Execute(String),
    /// Become root.
    BecomeRoot,
    /// Make a socket of the internet family.
    InternetSocket,
    /// Trace another process.
    Trace(i32),
}
