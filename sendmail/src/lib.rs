//! NAME
//!     sendmail, mailq, newaliases: hand a message to the mail system
//!
//! WHAT IT DOES
//!     Reads a message on standard input, completes it (Date, Message-ID, From) and writes it into the
//!     spool's `drop/`, where the queue-manager finds it: now, or when Postern is started. It returns 0
//!     when the message is on stable storage and not before. `-bs` speaks SMTP instead. As mailq (`-bp`) it
//!     shows the queue, as newaliases (`-bi`) it has the aliases read anew, `-q` tries deferred messages.
//!
//! TALKS TO
//!     `drop/` alone for messages; for the rest the control socket of the running system.
//!
//! TRUST
//!     Installed set-gid postern-drop, so that any user may create files in `drop/`, and nothing else. Run
//!     so, it takes its configuration from its fixed place: the environment is not heeded, and `-C` costs the
//!     privilege. What a user writes is believed as far as it is his own; who he is, the kernel says.
//!
//! FAILURE
//!     Statuses of sysexits(3): 64 wrong command line, 65 bad message or address, 69 the system is down (for
//!     mailq and -q), 71 and 74 the system's or input's failure, 75 the spool cannot be written: try later,
//!     77 not allowed, 78 wrong configuration. A message with one bad recipient is refused whole, so nobody
//!     gets it twice.
//!
//! BUGS
//!     `-N`, `-R` and `-V` (DSN) are taken and have no effect yet; neither has `-e`: errors go to standard
//!     error always. `-bv` looks at the syntax alone. A message is held in memory while it is read.

#![forbid(unsafe_code)]

pub mod arguments;
mod caller;
pub mod content;
mod dialogue;
mod failure;
pub mod header;
pub mod list;
mod running;
mod submit;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use nix::sys::stat::{Mode as FileMode, umask};

use crate::arguments::{Arguments, Mode, Usage};
use crate::caller::Caller;
use crate::failure::{Failure, status};

/// The whole program; `built_as` is its name unless it is called by another.
pub fn main(built_as: &str) -> ExitCode {
    let mut words = std::env::args_os();
    let called = words.next().and_then(|name| Some(Path::new(&name).file_name()?.to_str()?.to_owned()));
    let name = match called.as_deref() {
        Some(name @ ("sendmail" | "mailq" | "newaliases")) => name,
        _ => built_as,
    };
    let words: Result<Vec<String>, _> = words.map(std::ffi::OsString::into_string).collect();
    let outcome = words
        .map_err(|_| Usage("an argument is not UTF-8".into()).into())
        .and_then(|words| Ok(arguments::parse(name, &words)?))
        .and_then(|arguments| obey(&arguments));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Without standard error the status has to do.
            let _ = writeln!(io::stderr(), "{name}: {}", failure.text.trim_end());
            ExitCode::from(failure.status)
        }
    }
}

fn obey(arguments: &Arguments) -> Result<(), Failure> {
    // Whatever the caller's is: the queue-manager, in the file's group, must be able to read.
    umask(FileMode::S_IWGRP | FileMode::S_IRWXO);
    let (path, config) = caller::configuration(arguments)?;
    match arguments.mode {
        Mode::Submit => {
            let id = submit::submit(arguments, &config, &Caller::get(), &mut io::stdin().lock())?;
            if arguments.verbose {
                let _ = writeln!(io::stdout(), "queued as {id}");
            }
            Ok(())
        }
        Mode::Dialogue => {
            dialogue::speak(&config, &Caller::get(), &mut io::stdin().lock(), &mut io::stdout().lock())
        }
        Mode::List => running::list(&config, &mut io::stdout().lock()),
        Mode::Aliases => running::aliases(&config),
        Mode::Flush(id) => running::flush(&config, id, arguments.verbose),
        Mode::Verify => {
            let recipients = submit::operands(arguments, &config)?;
            if recipients.is_empty() {
                return Err(Failure::new(status::USAGE, "-bv: no addresses"));
            }
            for recipient in recipients {
                let _ =
                    writeln!(io::stdout(), "{recipient}: well-formed (whether it exists is not looked up)");
            }
            Ok(())
        }
        Mode::Start => Err(running::start("start", &path)),
        Mode::Run => Err(running::start("run", &path)),
    }
}
