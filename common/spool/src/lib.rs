//! NAME
//!     postern-spool: the queue on disk

#![forbid(unsafe_code)]

mod envelope;
mod id;

pub use envelope::{BodyType, Envelope, Origin, Timestamp};
pub use id::{IdAllocator, QUEUE_ID_LEN, QueueId, Slot};
