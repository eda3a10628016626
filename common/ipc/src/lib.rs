//! NAME
//!     postern-ipc: what the programs say to each other
//!
//! WHAT IT DOES
//!     A [`Link`] is one end of a connected `SOCK_SEQPACKET` socket that carries one kind of message in
//!     each direction: one frame of one or several bincode values a packet, descriptors beside it by SCM_RIGHTS. Each
//!     conversation is a module of its own that holds both sides' messages, so it is read on one screen.
//!     [`Role`] names the programs and [`topology`] the edges between them; what is not an edge there
//!     does not exist.
//!
//! TRUST
//!     The other end may have been taken over. Frames are length-capped on decoding, must be consumed
//!     whole, and hold no recursive types; addresses are parsed again on arrival. A bad frame closes the
//!     link, never the program.
//!
//! BUGS
//!     bincode is unmaintained. It is used in `frame.rs` and nowhere else; nothing on disk is in it.

#![forbid(unsafe_code)]

mod caller;
pub mod control;
pub mod explain;
mod frame;
mod link;
mod octets;
pub mod queue_agent;
pub mod queue_lookup;
mod recent;
pub mod resolve;
mod role;
pub mod smtpd_auth;
pub mod smtpd_keys;
pub mod smtpd_lookup;
pub mod smtpd_verify;
pub mod supervise;
pub mod topology;

pub use caller::{AskError, ask};
pub use frame::{FrameError, MAX_CONFIG, MAX_FRAME, decode, decode_config, encode, encode_config};
pub use link::{Link, LinkError, RequestId, blocking};
pub use recent::Recent;
pub use role::{Peer, Role};
