//! NAME
//!     postern-message: header fields, trace fields and bounces
//!
//! WHAT IT DOES
//!     Reads the header section of a message (RFC 5322 §2.2) without changing it, and writes the lines
//!     that an MTA adds (RFC 5321 §4.4).
//!
//! TRUST
//!     Messages are hostile. Nothing here panics on them or takes more than linear time. What is written
//!     holds no control character that came from outside.

#![forbid(unsafe_code)]

pub mod bounce;
mod header;
mod seven_bit;
mod trace;

pub use header::{Field, Fields, body_offset, fields, message_id};
pub use seven_bit::{SevenBit, is_mime};
pub use trace::{Received, date};
