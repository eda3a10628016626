//! NAME
//!     postern-auth: knows passwords
//!
//! WHAT IT DOES
//!     Says whether a password is a user's, by the hashes in the file `[auth] users`: `name:hash` lines
//!     with `$6$` or `$5$` hashes as `openssl passwd -6` makes them. The file is read again when it changed.
//!
//! TALKS TO
//!     The workers of smtpd ([`postern_ipc::smtpd_auth`]).
//!
//! TRUST
//!     Neither clients nor smtpd: a password is at most 256 octets, hashing is done by two threads behind a
//!     bounded queue, and a name that does not exist costs the same time as one that does. smtpd learns yes
//!     or no and never sees a hash.
//!
//! FAILURE
//!     When the file cannot be read or the queue is full, clients are told to come back (454). A line that
//!     is not understood is left out, with a warning that names it. When a file outside the sandbox's reach
//!     replaced the one we know, the program ends and is started anew with it.
//!
//! BUGS
//!     No yescrypt, no PAM, no Dovecot yet. Passwords are compared as octets, without SASLprep (RFC 4013).
//!     Wrong guesses are answered as fast as right ones: slowing a guesser down is smtpd's to do.

#![forbid(unsafe_code)]

pub mod users;
mod workers;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mio::Token;
use postern_config::AuthPart;
use postern_daemon::{Handles, Host, Ports, Program, StartError};
use postern_event::Level;
use postern_ipc::smtpd_auth::{Answer, Question, Verdict};
use postern_ipc::supervise::Handle;
use postern_ipc::{Peer, RequestId, Role};

use crate::users::{Complaint, Users};
use crate::workers::Workers;

/// Longest file of users, octets: a hundred thousand of them.
const FILE_MOST: u64 = 16 * 1024 * 1024;

/// How often the file is looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Warnings about one reading of the file, at most.
const COMPLAINTS_MOST: usize = 20;

/// The program.
pub struct Auth {
    askers: Ports<Answer, Question>,
    /// By place, how often its neighbour was lost.
    losses: HashMap<usize, u64>,
    workers: Workers<Ticket>,
    path: Option<PathBuf>,
    /// None while the file cannot be read.
    users: Option<Users>,
    stamp: Option<Stamp>,
    looked: Option<Instant>,
    open: usize,
    stopping: bool,
    right: u64,
    wrong: u64,
    unavailable: u64,
}

/// Who asked.
#[derive(Clone, Copy, Debug)]
struct Ticket {
    place: usize,
    /// How often the place's neighbour had been lost: its successor uses the same ids for other questions,
    /// and must not get this one's answer.
    losses: u64,
    id: RequestId,
}

/// What a file looks like from outside: when it changes, the file is read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    size: u64,
    modified: (i64, i64),
}

impl Program for Auth {
    const ROLE: Role = Role::Auth;
    type Config = AuthPart;

    fn readable(config: &AuthPart) -> Vec<PathBuf> {
        config.users.iter().cloned().collect()
    }

    fn start(host: &mut Host, config: AuthPart, handles: Handles) -> Result<Self, StartError> {
        let workers = Workers::start(host.waker())
            .map_err(|error| StartError(format!("cannot start the hashing threads: {error}")))?;
        let mut program = Self {
            askers: Ports::new(),
            losses: HashMap::new(),
            workers,
            path: config.users,
            users: None,
            stamp: None,
            looked: None,
            open: 0,
            stopping: false,
            right: 0,
            wrong: 0,
            unavailable: 0,
        };
        program.look(host);
        for (handle, socket) in handles {
            if let Handle::Link(peer) = handle {
                program.linked(host, peer, socket);
            }
        }
        Ok(program)
    }

    fn linked(&mut self, host: &mut Host, peer: Peer, socket: OwnedFd) {
        if peer.role != Role::Smtpd {
            host.note(Level::Warning, &format!("no place for a link to {peer}"));
            return;
        }
        let place = self.askers.connect(host, peer, socket);
        self.hear(host, place);
    }

    fn ready(&mut self, host: &mut Host, token: Token, _event: &mio::event::Event) {
        if let Some(place) = self.askers.ready(host, token) {
            self.hear(host, place);
        }
    }

    fn turn(&mut self, host: &mut Host) -> Option<Instant> {
        while let Ok((ticket, right)) = self.workers.results.try_recv() {
            self.open -= 1;
            *(if right { &mut self.right } else { &mut self.wrong }) += 1;
            let verdict = if right { Verdict::Authenticated } else { Verdict::Refused };
            self.answer(host, ticket, verdict);
        }
        if self.stopping && self.open == 0 {
            host.finish();
        }
        None
    }

    fn flush(&mut self, host: &mut Host) {
        self.askers.flush(host);
    }

    fn reload(&mut self, host: &mut Host, config: AuthPart) {
        if self.path != config.users {
            (self.path, self.users) = (config.users, None);
        }
        (self.stamp, self.looked) = (None, None);
        self.look(host);
    }

    fn stop(&mut self, _host: &mut Host) {
        self.stopping = true;
    }

    fn counters(&self) -> Vec<(String, u64)> {
        vec![
            ("users".into(), self.users.as_ref().map_or(0, Users::len) as u64),
            ("authenticated".into(), self.right),
            ("refused".into(), self.wrong),
            ("unavailable".into(), self.unavailable),
        ]
    }
}

impl Auth {
    fn hear(&mut self, host: &mut Host, place: usize) {
        if self.askers.take_lost(place) {
            *self.losses.entry(place).or_default() += 1;
        }
        let losses = self.losses.get(&place).copied().unwrap_or(0);
        while let Some(question) = self.askers.receive(host, place) {
            self.look(host);
            let ticket = Ticket { place, losses, id: question.id };
            let Some(users) = &self.users else {
                self.unavailable(host, ticket);
                continue;
            };
            let (hash, counts) = users.find(&question.user);
            if self.workers.check(ticket, hash, counts, question.password) {
                self.open += 1;
            } else {
                self.unavailable(host, ticket);
            }
        }
    }

    fn unavailable(&mut self, host: &mut Host, ticket: Ticket) {
        self.unavailable += 1;
        self.answer(host, ticket, Verdict::Unavailable);
    }

    fn answer(&mut self, host: &mut Host, ticket: Ticket, verdict: Verdict) {
        if self.askers.take_lost(ticket.place) {
            *self.losses.entry(ticket.place).or_default() += 1;
        }
        if self.losses.get(&ticket.place).copied().unwrap_or(0) == ticket.losses {
            // A worker that is gone needs no answer.
            let _ = self.askers.send(host, ticket.place, &Answer { id: ticket.id, verdict });
        }
    }

    /// Looks whether the file changed, and reads it if so.
    fn look(&mut self, host: &mut Host) {
        if self.looked.is_some_and(|at| host.now() < at + LOOK_EVERY) {
            return;
        }
        self.looked = Some(host.now());
        let Some(path) = self.path.clone() else { return };
        let stamp = stamp(&path).ok();
        if stamp == self.stamp && self.users.is_some() {
            return;
        }
        let first_failure = self.stamp != stamp || self.stamp.is_none();
        match read(&path) {
            Ok((text, stamp)) => {
                let (users, complaints) = Users::parse(&text);
                report(host, &path, &users, &complaints);
                (self.users, self.stamp) = (Some(users), Some(stamp));
            }
            // A new file in the place of ours, which the sandbox does not let us open.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && self.users.is_some() => {
                let text = format!("{}: was replaced: ending, to be started anew with it", path.display());
                host.note(Level::Warning, &text);
                (self.users, self.stamp) = (None, stamp);
                host.finish();
            }
            Err(error) => {
                if first_failure {
                    let text =
                        format!("{}: cannot read it, so nobody can authenticate: {error}", path.display());
                    host.note(Level::Error, &text);
                }
                (self.users, self.stamp) = (None, stamp);
            }
        }
    }
}

fn report(host: &mut Host, path: &Path, users: &Users, complaints: &[Complaint]) {
    for complaint in complaints.iter().take(COMPLAINTS_MOST) {
        let text = format!("{}, line {}: {}", path.display(), complaint.line, complaint.why);
        host.note(Level::Warning, &text);
    }
    let left_out = complaints.len();
    host.note(Level::Info, &format!("{}: {} users, {left_out} lines left out", path.display(), users.len()));
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    std::fs::metadata(path).map(|metadata| Stamp::of(&metadata))
}

impl Stamp {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            inode: (metadata.dev(), metadata.ino()),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// The text and the stamp of the file it was read from.
fn read(path: &Path) -> io::Result<(String, Stamp)> {
    let file = File::open(path)?;
    let stamp = Stamp::of(&file.metadata()?);
    let mut text = String::new();
    file.take(FILE_MOST).read_to_string(&mut text)?;
    Ok((text, stamp))
}
