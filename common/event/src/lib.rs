//! NAME
//!     postern-event: what an operator reads

#![forbid(unsafe_code)]

mod event;
mod log;

pub use event::{Attempt, Client, Event, Level, SessionId, Status};
pub use log::{Log, LogKind};
