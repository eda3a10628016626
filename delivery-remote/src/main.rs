//! postern-delivery-remote: see the library.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use postern_delivery_remote::{Courier, Remote};

fn main() -> ExitCode {
    postern_daemon::run::<Courier<Remote>>()
}
