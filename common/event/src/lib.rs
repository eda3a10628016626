//! NAME
//!     postern-event: what an operator reads
//!
//! WHAT IT DOES
//!     [`Event`] has one variant for each thing that an operator may want to know. [`Log`] prints it as one
//!     line of text, in the words and keys that the world's log tools know from Postfix, or as one JSON
//!     object with the same keys, or hands it to syslog (RFC 3164, facility mail, tag `postern/PROGRAM`).
//!     Every event and its keys: `docs/events.md`.
//!
//! TRUST
//!     Fields come from the network. No field can end a line or carry a control character, and each is
//!     cut at 4 KiB; a text may still hold words that look like a key, so programs should read the JSON.
//!
//! FAILURE
//!     A log that takes nothing stops no mail: up to 256 KiB wait for it, more is dropped, counted, and the
//!     count told in the next line it takes. A syslog that went away is reported to master, which alone
//!     can open it anew.
//!
//! BUGS
//!     Time stamps to syslog are UTC (the syslog crate's); rsyslog and journald put their own instead. A
//!     standard error that is a full pipe blocks until it is read. A log file that is replaced while half
//!     a line waits for room on its disk gets the other half into the new file.

#![forbid(unsafe_code)]

mod event;
mod json;
mod log;
#[cfg(test)]
mod tests;
mod text;

pub use event::{Attempt, Client, Event, Level, SessionId, Status};
pub use log::{Log, LogKind};
