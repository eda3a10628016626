//! postern-master: see the library.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match (arguments.next(), arguments.next(), arguments.next()) {
        (Some(flag), Some(path), None) if flag == "--config" => postern_master::run(path.as_ref()),
        _ => {
            eprintln!("usage: postern-master --config FILE    (`postern run` starts it)");
            ExitCode::from(64)
        }
    }
}
