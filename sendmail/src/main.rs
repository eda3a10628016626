//! sendmail: see the library.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    postern_sendmail::main("sendmail")
}
