//! postern-queue-manager: see the library's page.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    postern_daemon::run::<postern_queue_manager::QueueManager>()
}
