//! NAME
//!     postern-delivery-local: delivers to mailboxes on this host
//!
//! WHAT IT DOES
//!     Takes jobs from the queue-manager, finds out whose mailbox it is, and hands each to a worker: a
//!     process for one user and one mailbox, which has become that user for good before it reads the
//!     first byte of a job ([`worker`]). Workers gather what waits, up to 64 messages, and sync once.
//!     Five idle seconds end a worker. Mailboxes are Maildirs ([`maildir`]) or mbox files ([`mbox`]);
//!     line ends are stored as LF, `Return-Path` and `Delivered-To` come first (RFC 5321 §4.4).
//!     Which user, and what is refused, is [`plan`]; which worker does what is [`pool`].
//!
//! TALKS TO
//!     queue-manager (`queue_agent`), and its workers ([`talk`]).
//!
//! TRUST
//!     Started by root it keeps the two capabilities that become another user, opens files as nobody,
//!     and cannot become root again. It parses nothing of a message; the worker does, as the user.
//!     Without root there is one user, the caller: others' mailboxes are deferred.
//!
//! FAILURE
//!     Whatever cannot be done now is deferred: a full disk, a mailbox locked for half a minute, a home
//!     that is not there. Nothing stays behind in `tmp/`, and an mbox is cut back to its old length. A
//!     worker that dies defers the jobs it had begun; those may then arrive twice.
//!
//! BUGS
//!     Mail for root is deferred until the aliases name a person.
//!     Homes must lie where homes do: not beneath /etc, /usr, /run, /root and the like, and in a directory
//!     that was there when this program started.
//!     Who may write to /var/mail may, while being root's group mail, remove a lock there that is not his.
//!     No program deliveries, no `.forward`.

#![forbid(unsafe_code)]

pub mod accounts;
pub mod disk;
pub mod maildir;
pub mod mbox;
pub mod place;
pub mod plan;
pub mod pool;
mod program;
pub mod stored;
pub mod talk;
pub mod trees;
pub mod trouble;
pub mod worker;

pub use program::Local;
