//! postern-lookup: see the library.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    postern_daemon::run::<postern_lookup::Lookup>()
}
