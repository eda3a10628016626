//! The server side: framing, commands, content, the session (RFC 5321, RFC 2033).
//!
//! [`Session`] is one client's dialogue: bytes in, replies and [`Action`]s out. It asks its owner
//! [`Question`]s, collects content and hands over each finished message; it opens nothing, waits for
//! nothing and knows no time. Below it, each readable alone: [`framing`] (what a command line is),
//! [`command`] (what it says), [`data`] (where content ends), [`chunks`] (content in chunks), [`normalise`] (what lenient listeners rewrite).
//!
//! A session is where it is, and what it holds moves with it; no step can be reached but by the one before:
//!
//! ```text
//! greeting ─► greeted ─► Transaction ──DATA──► Receiving ─┐
//!  (or       (EHLO; the   (MAIL; RCPTs           (octets)  ├─► Finished ─► settled: 250, or why not
//!  barred)   value that    collect)   ──BDAT──► Chunked ──┘
//!            MAIL takes)                         (counted octets)
//! ```
//!
//! Each arrow consumes the value on its left. RSET, EHLO, QUIT and every failure drop it, and with it all that
//! belonged to the transaction. [`Security`] and [`Identity`] are properties of the session, beside this way.

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
