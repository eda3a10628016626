//! NAME
//!     postern-lookup: knows domains, users, aliases and routes
//!
//! WHAT IT DOES
//!     Answers three questions: whether a recipient is taken (at RCPT, with who may relay), what a table of
//!     the rules says, and where a recipient's mail goes (at delivery, so that a corrected alias or route repairs queued mail). Tables
//!     are the configuration, the aliases file, text tables, and the system's users by the name service.
//!     Files are read again when they change, at most once a second they are looked at; no newaliases, no
//!     reload is needed. Those who ask keep a yes, and a way, for a second more.
//!
//! TALKS TO
//!     The workers of smtpd ([`postern_ipc::smtpd_lookup`]) and queue-manager
//!     ([`postern_ipc::queue_lookup`]), who ask. It asks nobody.
//!
//! TRUST
//!     The tables are the operator's; included lists may be a user's, so they can name addresses and nothing
//!     else. Commands and files as values of aliases are refused. Recipients come from the network: only
//!     clean login names reach the name service, only one component of a path a virtual mailbox.
//!
//! FAILURE
//!     A table that cannot be read makes temporary failures, never unknown users. A broken new version of a
//!     file leaves the old one in force, and the log says so. Answers lost with this program are asked again.
//!
//! BUGS
//!     The name service may block (LDAP): all wait meanwhile, though each name only once in 30 s. Files that
//!     come to be included while it runs must lie where others are included already, beside the aliases or
//!     below /etc: the sandbox is made at the start. An alias may lead to as many addresses as fit one
//!     answer, about a thousand. The extension of an address is not passed on by an alias.

#![forbid(unsafe_code)]

pub mod accounts;
pub mod aliases;
mod expansion;
pub mod named;
pub mod routing;
pub mod ruled;
pub mod sources;
pub mod table;
pub mod turns;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use mio::Token;
use postern_config::{LookupPart, Table, UserSet};
use postern_daemon::{Handles, Host, Ports, Program, StartError};
use postern_event::Level;
use postern_ipc::smtpd_lookup::{Incoming, Known, Say, Turned};
use postern_ipc::supervise::Handle;
use postern_ipc::{Peer, Role, queue_lookup, smtpd_lookup};

use crate::accounts::System;
use crate::aliases::{Aliases, Target, parse_include};
use crate::routing::Tables;
use crate::ruled::Ruled;
use crate::sources::{Watched, read_text};
use crate::table::TextTable;
use crate::turns::Turns;

/// The program.
#[derive(Debug)]
pub struct Lookup {
    workers: Ports<smtpd_lookup::Answer, smtpd_lookup::Question>,
    queue: Ports<queue_lookup::Say, queue_lookup::Question>,
    /// Where the queue-manager is in `queue`.
    queue_at: Option<usize>,
    turns: Turns,
    tables: Tables,
    aliases: Option<Watched>,
    users: Option<Watched>,
    ruled: Ruled,
    system: System,
    /// Directories that the sandbox lets us read.
    readable: Vec<PathBuf>,
    asked_by_smtpd: u64,
    asked_by_queue: u64,
    unavailable: u64,
}

impl Program for Lookup {
    const ROLE: Role = Role::Lookup;
    type Config = LookupPart;

    /// The directories of the table files, since editors replace a file by renaming; and those of included
    /// files, which is why the aliases are read here once.
    fn readable(config: &LookupPart) -> Vec<PathBuf> {
        let mut files = table_files(config);
        if let Some(path) = aliases_file(config)
            && let Ok(text) = read_text(path)
        {
            files.extend(Aliases::parse(&text).0.includes());
        }
        directories(&files)
    }

    fn start(host: &mut Host, config: LookupPart, handles: Handles) -> Result<Self, StartError> {
        let mut program = Self::new(host, config);
        for (handle, socket) in handles {
            if let Handle::Link(peer) = handle {
                program.linked(host, peer, socket);
            }
        }
        Ok(program)
    }

    fn linked(&mut self, host: &mut Host, peer: Peer, socket: OwnedFd) {
        match peer.role {
            Role::Smtpd => {
                let place = self.workers.connect(host, peer, socket);
                self.hear_worker(host, place);
            }
            Role::QueueManager => {
                let place = self.queue.connect(host, peer, socket);
                self.queue_at = Some(place);
                self.hear_queue(host, place);
            }
            _ => host.note(Level::Warning, &format!("no place for a link to {peer}")),
        }
    }

    fn ready(&mut self, host: &mut Host, token: Token, _event: &mio::event::Event) {
        if let Some(place) = self.workers.ready(host, token) {
            self.hear_worker(host, place);
        } else if let Some(place) = self.queue.ready(host, token) {
            self.hear_queue(host, place);
        }
    }

    fn turn(&mut self, _host: &mut Host) -> Option<Instant> {
        // Every question was answered when it was heard: nothing is lost with a link.
        while self.workers.next_lost().is_some() || self.queue.next_lost().is_some() {}
        None
    }

    fn flush(&mut self, host: &mut Host) {
        self.workers.flush(host);
        self.queue.flush(host);
    }

    fn prepare(&mut self, _host: &mut Host, config: &LookupPart) -> Result<(), String> {
        let beyond = |file: &&PathBuf| !self.readable.iter().any(|directory| file.starts_with(directory));
        match table_files(config).iter().find(beyond) {
            Some(file) => {
                Err(format!("{} lies beyond what lookup may read: restart Postern", file.display()))
            }
            None => Ok(()),
        }
    }

    fn reload(&mut self, host: &mut Host, config: LookupPart) {
        let caller = self.tables.caller.take();
        let mut tables = Tables::new(config, caller);
        // A file that stays keeps its table, should it be unreadable just now.
        if aliases_file(&tables.config) == aliases_file(&self.tables.config) {
            std::mem::swap(&mut tables.aliases, &mut self.tables.aliases);
        } else {
            self.aliases = aliases_file(&tables.config).map(Watched::new);
        }
        if users_file(&tables.config) == users_file(&self.tables.config) {
            std::mem::swap(&mut tables.users, &mut self.tables.users);
        } else {
            self.users = users_file(&tables.config).map(Watched::new);
        }
        self.ruled.replace(&tables.config.tables);
        self.tables = tables;
        self.system.forget();
        [&mut self.aliases, &mut self.users].into_iter().flatten().for_each(Watched::look_again);
        self.refresh(host);
    }

    fn stop(&mut self, host: &mut Host) {
        host.finish();
    }

    fn counters(&self) -> Vec<(String, u64)> {
        vec![
            ("asked by smtpd".into(), self.asked_by_smtpd),
            ("asked by queue-manager".into(), self.asked_by_queue),
            ("unavailable".into(), self.unavailable),
        ]
    }
}

impl Lookup {
    fn new(host: &mut Host, config: LookupPart) -> Self {
        let caller = (!host.rooted).then(System::caller);
        let mut readable = directories(&table_files(&config));
        readable.push("/etc".into()); // the profile of this program has it
        let mut program = Self {
            workers: Ports::new(),
            queue: Ports::new(),
            queue_at: None,
            turns: Turns::default(),
            aliases: aliases_file(&config).map(Watched::new),
            users: users_file(&config).map(Watched::new),
            ruled: Ruled::new(&config.tables),
            tables: Tables::new(config, caller),
            system: System::default(),
            readable,
            asked_by_smtpd: 0,
            asked_by_queue: 0,
            unavailable: 0,
        };
        program.refresh(host);
        if program.aliases.is_none() {
            program.warn(host);
        }
        program
    }

    fn hear_worker(&mut self, host: &mut Host, place: usize) {
        while let Some(smtpd_lookup::Question { id, ask }) = self.workers.receive(host, place) {
            self.refresh(host);
            self.asked_by_smtpd += 1;
            let say = match ask {
                smtpd_lookup::Ask::Recipient(incoming) => Say::Recipient(self.verdict(host, &incoming)),
                smtpd_lookup::Ask::Table { table, keys } => {
                    let (found, errors) = self.ruled.find(&table, &keys, host.now());
                    errors.iter().for_each(|error| host.note(Level::Error, error));
                    self.unavailable += u64::from(found.is_err());
                    Say::Table(found)
                }
                smtpd_lookup::Ask::Vrfy(named) => {
                    let accounts = self.system.at(host.now());
                    let known = self.tables.vrfy(&named, accounts, &mut read_include);
                    Say::Vrfy(self.told(host, known))
                }
                smtpd_lookup::Ask::Expn(named) => {
                    let accounts = self.system.at(host.now());
                    let known = self.tables.expn(&named, accounts, &mut read_include);
                    Say::Expn(self.told(host, known))
                }
                smtpd_lookup::Ask::Etrn(node) => Say::Turned(self.turn_for(host, &node)),
            };
            // A worker that is gone asks again when it is back.
            let _ = self.workers.send(host, place, &smtpd_lookup::Answer { id, say });
        }
    }

    fn verdict(&mut self, host: &mut Host, incoming: &Incoming) -> smtpd_lookup::Verdict {
        let verdict = self.tables.smtpd_lookup(incoming, self.system.at(host.now()));
        if let smtpd_lookup::Verdict::Unavailable(why) = &verdict {
            self.unavailable += 1;
            let text = format!("cannot say whether {} exists: {why}", incoming.recipient);
            host.note(Level::Warning, &text);
        }
        verdict
    }

    fn told(&mut self, host: &mut Host, known: Known) -> Known {
        if let Known::Unavailable(why) = &known {
            self.unavailable += 1;
            host.note(Level::Warning, &format!("cannot say who a name is: {why}"));
        }
        known
    }

    /// ETRN: what the configuration lets pass goes on to the queue-manager.
    fn turn_for(&mut self, host: &mut Host, node: &str) -> Turned {
        let domains = match self.tables.turn(node) {
            Ok(domains) => domains,
            Err(why) => return why,
        };
        let Some(place) = self.queue_at.filter(|place| self.queue.is_connected(*place)) else {
            return Turned::Unavailable;
        };
        let now = host.now();
        let due: Vec<_> = domains.into_iter().filter(|domain| self.turns.may(domain, now)).collect();
        if due.is_empty() {
            return Turned::TooOften;
        }
        let sent = due.into_iter().all(|one| self.queue.send(host, place, &queue_lookup::Say::Turn(one)));
        if sent { Turned::Started } else { Turned::Unavailable }
    }

    fn hear_queue(&mut self, host: &mut Host, place: usize) {
        while let Some(queue_lookup::Question { id, recipient }) = self.queue.receive(host, place) {
            self.refresh(host);
            self.asked_by_queue += 1;
            let accounts = self.system.at(host.now());
            let deliveries = self.tables.queue_lookup(&recipient, accounts, &mut read_include);
            self.unavailable += u64::from(deliveries.is_err());
            for answer in queue_lookup::Answer::in_frames(id, deliveries) {
                let sent = self.queue.send(host, place, &queue_lookup::Say::Answer(answer));
                if !sent && self.queue.is_connected(place) {
                    // One that is never heard would leave its message waiting for ever.
                    let deliveries = Err("a delivery does not fit into a frame".to_owned());
                    let answer = queue_lookup::Answer { id, deliveries, more: false };
                    let _ = self.queue.send(host, place, &queue_lookup::Say::Answer(answer));
                    break;
                }
            }
        }
    }

    fn refresh(&mut self, host: &mut Host) {
        let now = host.now();
        let mut taken = false;
        let mut errors = Vec::new();
        if let Some(file) = &mut self.aliases {
            let report = file.refresh(now, &mut self.tables.aliases, Aliases::parse);
            (taken, errors) = (report.taken, report.errors);
        }
        if let Some(file) = &mut self.users {
            errors.extend(file.refresh(now, &mut self.tables.users, TextTable::parse).errors);
        }
        for error in errors {
            host.note(Level::Error, &error);
        }
        if taken {
            self.warn(host);
        }
    }

    fn warn(&mut self, host: &mut Host) {
        for warning in self.tables.warnings(self.system.at(host.now())) {
            host.note(Level::Warning, &warning);
        }
    }
}

fn read_include(path: &Path) -> Result<Vec<Target>, String> {
    parse_include(&read_text(path)?).map_err(|e| format!("{}:{}: {}", path.display(), e.line, e.message))
}

fn aliases_file(config: &LookupPart) -> Option<&Path> {
    config.local.as_ref()?.aliases.as_deref()
}

fn users_file(config: &LookupPart) -> Option<&Path> {
    match &config.virtual_.as_ref()?.users {
        UserSet::Table(Table::Text(path)) => Some(path),
        UserSet::All | UserSet::Listed(_) => None,
    }
}

fn table_files(config: &LookupPart) -> Vec<PathBuf> {
    let named = [aliases_file(config), users_file(config)].into_iter().flatten().map(Path::to_owned);
    let ruled = config.tables.iter().map(|Table::Text(path)| path.clone());
    named.chain(ruled).collect()
}

fn directories(files: &[PathBuf]) -> Vec<PathBuf> {
    let mut directories: Vec<_> = files.iter().filter_map(|file| file.parent()).map(Path::to_owned).collect();
    directories.sort();
    directories.dedup();
    directories
}
