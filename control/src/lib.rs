//! NAME
//!     postern: runs, checks, asks and stops the mail system
//!
//! WHAT IT DOES
//!     The one command an administrator types. `run` and `start` execute postern-master; everything else
//!     asks the running system at its control socket, which the configuration's `runtime` names; but
//!     `spool` reads the queue's files itself, with or without a system. Tables
//!     for people, `--json` for programs.
//!
//! TRUST
//!     It has no privilege of its own: the control socket's listener asks the kernel who is calling.
//!
//! FAILURE
//!     Exit status 0 when it was done, 1 when it was refused, 64 on a wrong command line, 69 when the
//!     system does not run, 78 when the configuration is wrong.

#![forbid(unsafe_code)]

mod arguments;
mod explain;
mod queue;
mod spool;
mod start;
mod status;
mod table;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use postern_config::Config;
use postern_ipc::control::{Reply, Request};
use postern_ipc::{AskError, ask};

use arguments::{Arguments, Command};

/// The whole program.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // `--help` and `--version` come here too.
            let status = if error.use_stderr() { 64 } else { 0 };
            let _ = error.print();
            return ExitCode::from(status);
        }
    };
    match obey(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprint!("{}", failure.text);
            ExitCode::from(failure.status)
        }
    }
}

/// Why a command was not done: what to print, and the exit status.
struct Failure {
    text: String,
    status: u8,
}

impl Failure {
    fn new(status: u8, text: impl std::fmt::Display) -> Self {
        Self { text: format!("postern: {text}\n"), status }
    }
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Self {
        let status = if matches!(error, AskError::NotRunning(_)) { 69 } else { 1 };
        Self::new(status, error)
    }
}

fn obey(arguments: &Arguments) -> Result<(), Failure> {
    let path = &arguments.config;
    match &arguments.command {
        Command::Run => Err(start::run(path)),
        Command::Start => start::start(path, &load(path)?),
        Command::Check => check(path, arguments.json),
        Command::Status => status::status(&load(path)?, arguments.json),
        Command::Probe => status::probe(&load(path)?, arguments.json),
        Command::Queue(command) => queue::queue(&load(path)?, command, arguments.json),
        Command::Spool(command) => spool::spool(&load(path)?, command, arguments.json),
        Command::Explain(arguments_of) => explain::explain(&load(path)?, arguments_of, arguments.json),
        Command::Reload => simple(&load(path)?, &Request::Reload, arguments.json),
        Command::Stop => {
            simple(&load(path)?, &Request::Stop, arguments.json)?;
            table::say(arguments.json, "stopped");
            Ok(())
        }
    }
}

fn load(path: &Path) -> Result<Config, Failure> {
    postern_config::load(path).map_err(|error| Failure { text: error.to_string(), status: 78 })
}

fn check(path: &Path, json: bool) -> Result<(), Failure> {
    let config = load(path)?;
    if json {
        table::print_json(&config);
    } else {
        println!("{}", config.explain().trim_end());
    }
    Ok(())
}

/// A request whose answer is a sentence.
fn simple(config: &Config, request: &Request, json: bool) -> Result<(), Failure> {
    let mut refused = None;
    ask(&config.runtime, request, |reply| match reply {
        Reply::Done(text) => table::say(json, &text),
        Reply::Refused(why) => refused = Some(Failure::new(1, why.trim_end())),
        _ => {}
    })?;
    refused.map_or(Ok(()), Err)
}
