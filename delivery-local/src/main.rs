//! postern-delivery-local: delivers to mailboxes on this host.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    postern_daemon::run::<postern_delivery_local::Local>()
}
