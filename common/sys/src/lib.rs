//! NAME
//!     postern-sys: the only unsafe code of the house
//!
//! WHAT IT DOES
//!     Wraps the few kernel interfaces that no crate offers safely: taking descriptors out of a socket's
//!     control messages, taking an inherited descriptor, starting a child with chosen descriptors, fork
//!     in a program of one thread, beginning to write a file back. Every block says why it is sound.

mod descriptors;
mod process;

/// Long files are best written in blocks of so many octets, each where one begins. The kernel keeps what is written at
/// once in one piece of memory if it lies as that piece would, and has pieces up to this size at hand: 10 MiB take a
/// quarter less CPU than in writes of 64 KiB that begin anywhere. Larger pieces are cheaper still, but not in a virtual
/// machine whose host takes back what is free: there they cost three times as much.
pub const WRITE_BLOCK: usize = 32 * 1024;

/// The number of XFS (statfs(2)), for which nix has no name with every libc.
pub const XFS_SUPER_MAGIC: nix::sys::statfs::FsType = nix::sys::statfs::FsType(0x5846_5342);

pub use descriptors::{accept, inherited, receive, sealed_file, send, start_writeback};
pub use process::{
    ForkError, Forked, execute_attempt, fork_single_threaded, fork_worker, spawn, trace_attempt,
};
