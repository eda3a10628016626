//! The server side: framing, commands, content, the session (RFC 5321, RFC 2033).
//!
//! [`Session`] is one client's dialogue: bytes in, replies and [`Action`]s out. It asks its owner
//! [`Question`]s, collects content and hands over each finished message; it opens nothing, waits for
//! nothing and knows no time. Below it, each readable alone: [`framing`] (what a command line is),
//! [`command`] (what it says), [`data`] (where content ends), [`chunks`] (content in chunks), [`normalise`] (what lenient listeners rewrite).

mod arguments;
pub mod chunks;
pub mod command;
pub mod data;
pub mod extensions;
pub mod framing;
pub mod normalise;
mod question;
mod session;
mod transaction;

pub use extensions::{Extension, Extensions};
pub use question::{Answer, Asks, Question};
pub use session::{
    Action, BY_MIN, HOLD_MAX, Identity, Output, Phase, Protocol, Rejected, Security, Session, Settings,
};
pub use transaction::Finished;
