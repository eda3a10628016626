//! NAME
//!     postern-smtp: SMTP and LMTP as pure state machines
//!
//! WHAT IT DOES
//!     Bytes and time in, actions out: no sockets, no clock, no threads. The server side ([`server`],
//!     used by smtpd) and the client side ([`client`], used by delivery-remote and lmtp) share replies
//!     and enhanced codes, nothing else.
//!
//! TRUST
//!     Input is hostile on both sides: clients and the servers we relay to. Nothing here panics on it.

#![forbid(unsafe_code)]

pub mod client;
pub mod date_time;
pub mod parameters;
pub mod proxy;
pub mod reply;
pub mod server;
pub mod xclient;
pub mod xtext;

pub use reply::{EnhancedCode, Reply};
