//! NAME
//!     postern-spool: the queue on disk
//!
//! WHAT IT DOES
//!     One file holds one or several messages, in one or several parts, and everything about them: bodies,
//!     envelopes, and a log of what became of each recipient. Producers write such files through a [`Writer`], which lives in an
//!     event loop and commits in groups, or through [`write_one`], which waits. A producer may say 250
//!     when a completion says Ok: then the file and its directory entry are on stable storage. The
//!     queue-manager reads files as [`SpoolFile`]s, appends to their logs, and puts in order what a crash
//!     left ([`rescue`]). `docs/spool.md` has the states of a file and the layout of its bytes.
//!
//! TALKS TO
//!     The file system, by descriptors of the spool's directories. All file operations of the writer are
//!     in `ops.rs`, where a test can see them and make them fail; all knowledge of the bytes is in
//!     `format.rs`, `log.rs` and `record.rs`, which do no I/O.
//!
//! TRUST
//!     Nothing that is read is trusted: checksums find damage, and the decoders bear any bytes, since a
//!     file in `drop/` was written by a local user. Its envelope is his claim; [`SpoolFile::owner`] says
//!     who he is. He may still be writing to it: copy it before anything is promised on it.
//!
//! FAILURE
//!     A failed write or sync is reported for every message of its part, the file is unlinked or the part cut
//!     off, and the sync is not tried again. Damage is [`ReadError::Corrupt`], and a later format
//!     [`ReadError::Newer`]: such a file is left alone, not thrown away. What could not be unlinked or
//!     moved stays in `tmp/` for recovery; nothing that was accepted depends on it.
//!
//! BUGS
//!     Streams share a few threads: while a large message is synced its neighbours wait in memory, each
//!     client being stopped at 256 KiB. A part that failed and cannot be cut off may be delivered although
//!     its clients were told 451. What a writer accepted in the last 5 ms is not delivered while it is stopped
//!     (SIGSTOP), nor while its sync of a further part hangs. The file system must know `renameat2` with
//!     RENAME_NOREPLACE (ext4, XFS, btrfs, tmpfs and ZFS from 2.2 do). Addresses are parsed again on reading: a
//!     stricter parser would refuse an old file.

#![forbid(unsafe_code)]

mod blanks;
mod commit;
mod envelope;
mod format;
mod id;
mod layout;
mod log;
mod ops;
mod options;
mod reader;
mod record;
mod recover;
#[cfg(test)]
mod samples;
mod stream;
mod verify;
mod writer;

pub use commit::{write_one, write_one_probed};
pub use envelope::{BodyType, Deadline, Envelope, Options, Origin, Timestamp};
pub use format::Stored;
pub use id::{IdAllocator, QUEUE_ID_LEN, QueueId, Slot};
pub use log::{DoneStatus, LogEntry, LogRecord, Success};
pub use ops::{Operation, Probe, rename_between};
pub use reader::{ReadError, SpoolFile};
pub use recover::{
    ADOPT_AFTER, DIRECTORIES, Found, Listing, Rescued, SWEEP_AFTER, age, classify, classify_dropped,
    create_directories, is_blank, list, remove, rescue, set_aside, space, sweep_temporary, sync_directory,
};
pub use verify::{LogTail, RecipientState, Verified, verify};
pub use writer::{Completion, NewMessage, STREAM_ABOVE, WriteError, Writer, WriterDirs};
