//! NAME
//!     postern-delivery-remote: hands mail to other hosts by SMTP
//!
//! WHAT IT DOES
//!     Takes jobs from the queue-manager (one message, one destination, up to fifty recipients), finds the
//!     destination's servers ([`routing`]: MX records by preference, null MX, addresses where there is no
//!     MX, address literals and `[host]:port` routes), connects, sends, and reports every recipient
//!     exactly once: delivered, deferred or failed. A connection that served a message is kept for a few
//!     seconds for the next one to the same destination, or to another of which its server is an exchanger
//!     as well; for a hundred messages at most. Where more jobs come than there may be connections they
//!     wait, and the envelope of one that waits leaves with the content of the one before it, which halves
//!     the time of a message to a far host. Where a server offers CHUNKING, messages of up to 64 KiB leave
//!     whole, envelope and content, and one that waits leaves before the one ahead of it is answered. Each
//!     result is one `Delivery` line in the log. The program is [`Courier`], which is generic over the
//!     protocol: postern-lmtp is the same with LMTP.
//!
//! TALKS TO
//!     queue-manager (`queue_agent`: jobs come, results go), resolver (`resolve`), and servers by TCP;
//!     for LMTP also by Unix sockets.
//!
//! TRUST
//!     Servers are hostile: what they say is bounded and decides about their own recipients only. It
//!     sees the message it delivers, as bytes or as a read-only descriptor, and nothing of the spool.
//!
//! FAILURE
//!     A server that cannot be reached, greets with a refusal, or breaks off before content makes room
//!     for the next address, then the next exchanger; when all failed the job is deferred, and the
//!     destination reported as down. After content was begun a loss defers the recipients: the message
//!     may have been taken, so a second copy is possible, as RFC 5321 §6.1 has it. A job whose envelope had
//!     left with that content goes another way. Two messages that had left whole are both deferred then. Where a
//!     server does not answer what was sent ahead, refuses it for that, or breaks off, nothing is sent so to its
//!     destination for six hours; what it refused so goes again, alone and by DATA. When the
//!     queue-manager goes away its jobs are dropped, connections and all: it queues them again. Told to
//!     stop, it finishes transactions under way for ten seconds and defers the rest.
//!
//! BUGS
//!     No TLS yet. An address that was not reached comes last for a minute, whatever its preference. A
//!     recipient deferred by one exchanger is not tried at the next within the same attempt. A server
//!     may take content as slowly as 16 KiB in each reply timeout. Reading a message's descriptor may
//!     wait for the disk.

#![forbid(unsafe_code)]

mod agent;
mod attempt;
mod connection;
mod content;
mod courier;
mod lanes;
pub mod routing;
#[cfg(test)]
mod tests;

pub use agent::Settings;
pub use courier::{Courier, Kind, Remote};
