//! NAME
//!     postern-fuzz: what hostile octets go through, each as a function of them
//!
//! WHAT IT DOES
//!     A target ([`TARGETS`]) panics when something is wrong: a panic of the code under test, or a promise
//!     that it broke (the same octets cut otherwise say something else, a bare line end leaves us, a
//!     recipient is told of twice). Three things call them. `make fuzz SECONDS=n` builds the binary beside
//!     this with libFuzzer's instrumentation and lets it look for trouble, so many seconds a target, starting
//!     from `corpus/TARGET/` and keeping what it finds in `target/fuzz/corpus/TARGET/`. `postern-fuzz TARGET
//!     FILE…`, built as everything else, runs single inputs. And `cargo test` runs the committed corpora,
//!     cut and changed at random by a fixed seed, so that each push has a small share of it.
//!
//! BUGS
//!     The spool reader is given a file for each input, which is slow.

#![forbid(unsafe_code)]
// A target's way to fail is to panic.
#![allow(clippy::unwrap_used)]

mod address;
mod command;
mod content;
mod material;
mod message;
mod proxy;
mod replies;
mod session;
mod spool;

pub use material::Random;

/// A target: its name, and what takes the octets.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 8] = [
    ("address", address::run),
    ("command", command::run),
    ("content", content::run),
    ("message", message::run),
    ("proxy", proxy::run),
    ("replies", replies::run),
    ("session", session::run),
    ("spool", spool::run),
];

/// The target of that name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.0 == name)
}
