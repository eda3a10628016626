//! NAME
//!     postern-sys: the only unsafe code of the house
//!
//! WHAT IT DOES
//!     Wraps the few kernel interfaces that no crate offers safely: taking descriptors out of a socket's
//!     control messages, taking an inherited descriptor, starting a child with chosen descriptors, fork
//!     in a program of one thread, beginning to write a file back. Every block says why it is sound.

mod descriptors;
mod process;

/// The number of XFS (statfs(2)), for which nix has no name with every libc.
pub const XFS_SUPER_MAGIC: nix::sys::statfs::FsType = nix::sys::statfs::FsType(0x5846_5342);

pub use descriptors::{accept, inherited, receive, sealed_file, send, start_writeback};
pub use process::{
    ForkError, Forked, execute_attempt, fork_single_threaded, fork_worker, spawn, trace_attempt,
};
