//! NAME
//!     postern-address: mailboxes, domains and paths as types made only by their parsers
//!
//! WHAT IT DOES
//!     Parses the address grammar of RFC 5321 §4.1.2 and keeps what it parsed in one canonical form:
//!     the domain in lower case as A-labels (RFC 5890), the local part as written, quoted only where
//!     it must be. Two mailboxes are the same when their canonical forms are the same bytes.
//!
//! TRUST
//!     Input is hostile. Nothing here panics, allocates more than the input, or accepts a control
//!     character, so a parsed address can be put into a log line, a header or a command as it is.

#![forbid(unsafe_code)]

mod domain;
mod mailbox;
mod path;

pub use domain::{Domain, DomainError};
pub use mailbox::{Charset, Mailbox, MailboxError};
pub use path::{ForwardPath, ReversePath};
