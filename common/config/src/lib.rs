//! NAME
//!     postern-config: the one configuration file
//!
//! WHAT IT DOES
//!     [`load`] reads a TOML file into a [`Config`] in which every value is in place, or says everything
//!     that is wrong with it, each with file, line, column and what was meant. [`Config::explain`] tells in
//!     plain words what a configuration does. The parts that the programs are given are made here too
//!     ([`SmtpdPart`] and its like): a program sees its own and nothing else. [`KEYS`] is the one list of
//!     keys; `docs/configuration.md` is held to it by a test.
//!
//! TRUST
//!     The file is the operator's and is believed, not obeyed blindly: what would make an open relay,
//!     mix mailboxes or leave a listener without its key is refused here, before anything starts.
//!
//! FAILURE
//!     No configuration is half taken: any mistake refuses the whole, and a running system goes on with
//!     the one it has.
//!
//! BUGS
//!     Files and users that are named are not looked at here; that is done by who uses them.
//!     Addresses that overlap (`[::]:25` and `0.0.0.0:25`) are found out by the kernel at the bind.

#![forbid(unsafe_code)]

use std::io::Read;
use std::path::Path;

mod abuse;
mod error;
mod explain;
mod keys;
mod parts;
mod read;
mod read_rules;
mod routes;
mod rules;
mod shape;
mod types;
mod value;

pub use abuse::{Greylist, Limit, Limits, List};
pub use error::{ConfigError, Place, Problem};
pub use keys::{KEYS, Key};
pub use parts::{
    AuthPart, KeysPart, LmtpPart, LocalPart, LookupPart, QueuePart, RemotePart, ResolverPart, SmtpdPart,
    VerifyPart,
};
pub use routes::RouteIndex;
pub use rules::{
    AddressPattern, Condition, HeaderPattern, NamePattern, PolicyServer, Rule, RuleAction, RuleReply, Stage,
    TableKey, Test,
};
pub use types::{
    BareNewline, Config, Delivery, EnhancedStatus, Listen, LmtpServer, Local, LogTarget, MailboxTemplate,
    Nexthop, QueueLimits, Relay, Reserve, Route, RoutePattern, Service, SmtpLimits, Table, Tls, UserSet, Via,
    Virtual, default_workers,
};

/// Largest file, octets: a list of users can be long, a log file taken for a configuration is longer.
const MAX_FILE: u64 = 8 << 20;

/// Reads and checks a configuration file.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let file = path.display().to_string();
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|f| f.take(MAX_FILE + 1).read_to_end(&mut bytes));
    if let Err(error) = read {
        let help = "`--config FILE` names another file";
        return Err(ConfigError::whole(&file, format!("cannot read the configuration: {error}"), help));
    }
    if bytes.len() as u64 > MAX_FILE {
        let help = "put long lists of users into a table: users = \"text:/path\"";
        return Err(ConfigError::whole(&file, "the file is longer than 8 MiB".to_owned(), help));
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) => parse(text, &file),
        Err(error) => {
            let line = bytes.iter().take(error.valid_up_to()).filter(|b| **b == b'\n').count() + 1;
            let message = format!("line {line} is not UTF-8");
            Err(ConfigError::whole(&file, message, "save the file in UTF-8"))
        }
    }
}

/// Checks a configuration's text; `file` names it in errors.
pub fn parse(text: &str, file: &str) -> Result<Config, ConfigError> {
    read::read(text, file)
}
