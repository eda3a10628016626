//! NAME
//!     postern-differential: the same octets to two mail systems, and what each makes of them
//!
//! WHAT IT DOES
//!     Plays dialogues (`dialogue.rs`: the corpus in `corpus/`, or made by `generator.rs` from a seed) to two
//!     servers, compares their replies command by command, and the delivered messages octet by octet without
//!     the lines that each puts before them. Every difference must be on the list `differences.toml`, with the
//!     reason why ours is right (`compare.rs`).
//!
//! TALKS TO
//!     The two servers (`player.rs`). Which they are is the matter of `tests/against_postfix.rs`.
//!
//! FAILURE
//!     A difference that is not listed, and a listed one that the corpus does not show any more.
//!
//! BUGS
//!     Behind a difference that leaves the two in different states nothing is compared until RSET, EHLO or
//!     HELO brings them together again.

#![forbid(unsafe_code)]

mod compare;
mod dialogue;
mod generator;
mod player;

pub use compare::{Difference, Known, compare};
pub use dialogue::{Dialogue, Turn, parse};
pub use generator::Generator;
pub use player::{Said, play};
