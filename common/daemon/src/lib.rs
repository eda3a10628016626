//! NAME
//!     postern-daemon: the skeleton every program is built on
//!
//! WHAT IT DOES
//!     [`run`] is the whole of a program's `main`: it takes the control socket that master left as
//!     descriptor 3, waits for [`postern_ipc::supervise::ToChild::Start`], enters the sandbox, starts the
//!     [`Program`] and turns its event loop until master says stop or is gone. A program is the callbacks.
//!
//! TRUST
//!     Master is trusted, neighbours are not. The sandbox is entered before the program sees its first
//!     handle.
//!
//! FAILURE
//!     A program that cannot start says why in the log and exits with status 1; master restarts it with
//!     back-off. When master dies, every program ends with it.

#![forbid(unsafe_code)]

mod host;
mod port;
mod ports;
mod program;
mod readiness;

pub use host::Host;
pub use port::Port;
pub use ports::Ports;
pub use postern_sandbox::Endpoint;
pub use program::{Handles, Program, StartError, run};
pub use readiness::Readiness;
