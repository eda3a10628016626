//! NAME
//!     postern-smtpd: receives mail by SMTP and LMTP
//!
//! WHAT IT DOES
//!     Accepts connections on the listeners that master gave it, holds the dialogues
//!     ([`postern_smtp::server`]), asks lookup about each recipient, and writes each accepted message to
//!     the spool through [`postern_spool::Writer`]. The client gets `250 2.0.0 Ok: queued as ID` when the
//!     message and its directory entry are on stable storage, and not before. The rules of the
//!     configuration are tried at each stage; `postern explain` is answered by them too. One thread turns one event
//!     loop; the two threads of the writer do the waiting for the disk. Several workers run side by side
//!     and share nothing but the listening sockets.
//!
//! TALKS TO
//!     Clients; lookup (each RCPT, and the tables of rules), verify (the client's name, what it may do and what
//!     lists say of it, once a connection; more of its lease; the greylist), keys (the certificate, and a
//!     signature for each TLS handshake on a `submissions` listener), the spool's `tmp/` and `new/`.
//!     It is linked to auth and does not ask it yet.
//!
//! TRUST
//!     Clients are hostile. What they make us hold is bounded: a command line, 64 KiB of input that waits
//!     for an answer, 128 KiB of content that is not streamed yet, 256 KiB that the disk has not taken,
//!     16 KiB of replies they do not read. lookup and verify may be taken over: their answers are matched
//!     to questions of living sessions and otherwise ignored.
//!
//! FAILURE
//!     keys gone, or no certificate: connections to `submissions` are closed at once, and the log says why.
//!     lookup gone or silent: 451 4.3.0 to RCPT and from rules that ask a table. A policy server that does
//!     not answer: 451 4.3.5. verify gone or silent: the client's name is unknown,
//!     nobody is counted, lists and greylist are not asked; it is waited for 10 s at most. A
//!     spool that is full: 452 4.3.1; that fails: 451 4.3.0. No descriptors left: new clients wait in the
//!     kernel's queue. Killed: every message that got its 250 is in the spool, every other client tries
//!     again.
//!
//! BUGS
//!     No STARTTLS and no AUTH yet: `submission` and `submissions` know their users by their network
//!     alone. A handshake's signature blocks the event loop, and so does the question for the certificate.
//!     Received lines are counted in the first 128 KiB of a message. A change of `[[listen]]` needs a
//!     restart.

#![forbid(unsafe_code)]

mod abuse;
mod accept;
mod ask;
mod connection;
mod deadlines;
mod identity;
mod message;
mod offers;
mod policy;
mod program;
mod proxied;
mod refusal;
mod room;
mod secure;
mod worker;

pub use program::Smtpd;
