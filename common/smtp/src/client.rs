//! The client side: greeting to QUIT, for SMTP (RFC 5321) and LMTP (RFC 2033).
//!
//! [`Client`] is one connection's state: octets that came go into [`Client::input`], octets to be sent
//! are in [`Client::output`], content is pulled in pieces while [`Client::wants_content`], and what
//! became of each recipient falls out of [`Client::event`], exactly once for each. Time is an input too
//! ([`Client::timed_out`]); how long to wait depends on [`Client::waiting`].
//!
//! A transaction may be handed over behind another ([`Client::follow`]), and leave as a whole ([`Transaction::whole`])
//! before a word is said of it. A permanent refusal that may be due to that ends no message: [`Event::Again`].
//!
//! The server is not trusted: its replies are bounded ([`ReplyParser`]), and anything that could mean that
//! replies and commands no longer pair up (a malformed reply, a reply to a command that has not left yet,
//! a multi-line reply of several codes) ends the connection with a deferral.
//!
//! BUGS
//!     A server that leaves out a reply to a command of a group gets all that come after it taken for others.
//!     MAIL is sent with SIZE of the content as it is, also where it is converted on the way.

mod extensions;
mod machine;
mod outcome;
mod parameters;
mod replies;
mod stuffing;
#[cfg(test)]
mod tests;
mod transaction;

pub use extensions::Extensions;
pub use machine::{Client, Event, Protocol, Waiting};
pub use outcome::{Outcome, Verdict, enhanced_for};
pub use replies::{ReplyError, ReplyParser};
pub use stuffing::Stuffer;
pub use transaction::{Form, Transaction, WHOLE_MAX};
