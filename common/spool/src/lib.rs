//! NAME
//!     postern-spool: the queue on disk

#![forbid(unsafe_code)]

mod commit;
mod envelope;
mod format;
mod id;
mod log;
mod ops;
mod reader;
mod record;
mod recover;
#[cfg(test)]
mod samples;
mod stream;
mod writer;

pub use commit::{write_one, write_one_probed};
pub use envelope::{BodyType, Envelope, Origin, Timestamp};
pub use format::Stored;
pub use id::{IdAllocator, QUEUE_ID_LEN, QueueId, Slot};
pub use log::{DoneStatus, LogEntry, LogRecord};
pub use ops::{Operation, Probe, rename_between};
pub use reader::{ReadError, SpoolFile};
pub use recover::{
    ADOPT_AFTER, DIRECTORIES, Found, Listing, Rescued, SWEEP_AFTER, age, classify, create_directories, list,
    remove, rescue, set_aside, sweep_temporary, sync_directory,
};
pub use writer::{Completion, NewMessage, STREAM_ABOVE, WriteError, Writer, WriterDirs};
