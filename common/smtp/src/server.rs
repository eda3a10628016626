//! The server side: framing, commands, content, the session (RFC 5321, RFC 2033).
//!
//! [`Session`] is one client's dialogue: bytes in, replies and [`Action`]s out. It asks its owner about
//! recipients, collects content and hands over each finished message; it opens nothing, waits for
//! nothing and knows no time. Below it, each readable alone: [`framing`] (what a command line is),
//! [`command`] (what it says), [`data`] (where content ends).

pub mod command;
pub mod data;
pub mod framing;
mod session;
mod transaction;

pub use session::{Action, Answer, Output, Phase, Protocol, Rejected, Session, Settings};
pub use transaction::Finished;
