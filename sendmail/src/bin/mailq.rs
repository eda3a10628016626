//! mailq: sendmail by another name.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    postern_sendmail::main("mailq")
}
