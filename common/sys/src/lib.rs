//! NAME
//!     postern-sys: the only unsafe code of the house
//!
//! WHAT IT DOES
//!     Wraps the few kernel interfaces that no crate offers safely: taking descriptors out of a socket's
//!     control messages, taking an inherited descriptor, starting a child with chosen descriptors, fork
//!     in a program of one thread, beginning to write a file back. Every block says why it is sound.

mod descriptors;
mod process;

pub use descriptors::{accept, inherited, receive, sealed_file, send, start_writeback};
pub use process::{
    ForkError, Forked, execute_attempt, fork_single_threaded, fork_worker, spawn, trace_attempt,
};
