//! NAME
//!     postern-queue-manager: owns the spool and the schedule
//!
//! WHAT IT DOES
//!     Takes each file of `new/` into `cur/` and each message of a local program out of `drop/`; asks lookup
//!     at every attempt where a recipient's mail goes; hands jobs to the agents; appends their results to the
//!     message's file; tries again with a growing delay; reports what failed to the sender; and removes
//!     a message when every recipient is finished. [`scheduler`] decides, without I/O; [`store`] says in
//!     which order things reach the disk; the rest is hands.
//!
//! TALKS TO
//!     lookup (`queue_lookup`), delivery-remote, delivery-local and lmtp (`queue_agent`), operators
//!     (`control`, over connections that master passes). Never the network.
//!
//! TRUST
//!     Files of `new/` come from smtpd, whose content is a stranger's: they are parsed with checks, and a
//!     damaged one is set aside. Files of `drop/` come from any local user: see [`pickup`]. An agent
//!     that was taken over can lie about its own jobs, and not about others'.
//!
//! FAILURE
//!     A damaged file goes to `corrupt/`, a damaged body is held. A disk that is full defers reports and
//!     leaves `drop/` as it is. An agent or lookup that died gets its work again when master has
//!     restarted it. Killed at any instant, this program loses nothing, and repeats at most what was delivered
//!     in the last second.
//!
//! BUGS
//!     Two recipients of a message that resolve to the same mailbox get it twice where they are resolved in
//!     different attempts. A second job for a message of a shared file copies its body into memory again.
//!     Whether a destination is down is forgotten at a restart. Times are the wall clock's: set forward by a
//!     week, queued mail is returned as too old.

#![forbid(unsafe_code)]

mod arrive;
mod bounces;
pub mod content;
pub mod copier;
mod deliver;
pub mod intake;
mod operator;
mod passing;
pub mod pickup;
mod queue;
pub mod replay;
pub mod scheduler;
pub mod store;
pub mod syncer;

pub use queue::QueueManager;
