//! `postern spool …`: the queue's files, without the system.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use postern_config::Config;
use postern_spool::{
    BodyType, DIRECTORIES, DoneStatus, Found, LogTail, Origin, ReadError, RecipientState, SpoolFile, Stored,
    is_blank,
};
use serde_json::{Value, json};

use crate::arguments::SpoolCommand;
use crate::table::{self, visible};
use crate::{Failure, queue};

/// Directories whose every file must be right.
const CHECKED: [&str; 2] = ["new", "cur"];

/// Does one of the commands on the configured spool.
pub(crate) fn spool(config: &Config, command: &SpoolCommand, as_json: bool) -> Result<(), Failure> {
    let spool = Spool::open(&config.spool)?;
    let (report, trouble) = match command {
        SpoolCommand::Check => check(&spool)?,
        SpoolCommand::Repair => repair(&spool)?,
        SpoolCommand::Export { directory } => export(&spool, directory)?,
    };
    report.print(as_json);
    if trouble { Err(Failure { text: String::new(), status: 1 }) } else { Ok(()) }
}

/// The spool's directories.
struct Spool {
    path: PathBuf,
    directories: Vec<(&'static str, File)>,
}

/// What was found and done, to be printed.
#[derive(Default)]
struct Report {
    /// A line a directory.
    counts: Vec<(&'static str, Counts)>,
    /// Directory, file, and what is to be said of it.
    remarks: Vec<(String, String, String)>,
    /// The last line.
    summary: String,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    files: usize,
    /// Of no queue id.
    others: usize,
    /// Messages with something left to do.
    waiting: usize,
    finished: usize,
    damaged: usize,
}

/// Reads every file of `new/` and `cur/`, counts the others. True when something is wrong.
fn check(spool: &Spool) -> Result<(Report, bool), Failure> {
    let mut report = Report::default();
    for (label, directory) in &spool.directories {
        let listing = postern_spool::list(directory.as_fd()).map_err(|e| spool.failed(label, e))?;
        let mut counts =
            Counts { files: listing.files.len(), others: listing.others.len(), ..Counts::default() };
        for id in listing.files.iter().filter(|_| CHECKED.contains(label)) {
            let name = id.to_string();
            let verified = match postern_spool::verify(directory.as_fd(), &name) {
                // The system runs, and was faster.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    counts.damaged += 1;
                    report.remark(label, &name, &format!("cannot be read: {error}"));
                    continue;
                }
                Ok(verified) => verified,
            };
            counts.waiting += verified.waiting;
            counts.finished += verified.finished;
            let wrong = trouble(&verified.found);
            if let Some(why) = &wrong {
                report.remark(label, &name, why);
            }
            match verified.log {
                LogTail::Clean => {}
                LogTail::Torn(octets) => report.remark(
                    label,
                    &name,
                    &format!("{octets} octets behind the log are no record, as after a crash: no damage"),
                ),
                LogTail::Damaged(_) => {
                    report.remark(label, &name, "the log is damaged: some recipients will get it once more")
                }
            }
            counts.damaged += usize::from(wrong.is_some() || matches!(verified.log, LogTail::Damaged(_)));
        }
        report.counts.push((label, counts));
    }
    let damaged: usize = report.counts.iter().map(|(_, counts)| counts.damaged).sum();
    report.summary = match damaged {
        0 => "No damage.".into(),
        n => format!("{n} damaged: with the system stopped, `postern spool repair` sets them aside."),
    };
    Ok((report, damaged > 0))
}

/// Sets damaged files of `new/` and `cur/` aside, cuts damaged logs, and takes in what is whole in
/// `tmp/`. True when something is left that is not right.
fn repair(spool: &Spool) -> Result<(Report, bool), Failure> {
    let _lock = spool.lock()?;
    let [tmp, new, corrupt] = ["tmp", "new", "corrupt"].map(|label| spool.directory(label));
    let (tmp, new, corrupt) = (tmp?, new?, corrupt?);
    let (mut report, mut left, mut done) = (Report::default(), 0, 0);
    let rescued =
        postern_spool::rescue(tmp.as_fd(), new.as_fd(), corrupt.as_fd(), Duration::ZERO, SystemTime::now())
            .map_err(|e| spool.failed("tmp", e))?;
    for id in &rescued.adopted {
        report.remark("tmp", &id.to_string(), "whole: moved to new/");
    }
    for name in &rescued.swept {
        report.remark("tmp", name, "holds nothing, or was not finished for a day: removed");
    }
    for (name, why) in &rescued.set_aside {
        report.remark("tmp", name, &format!("{why}: moved to corrupt/"));
    }
    for (name, why) in &rescued.failed {
        report.remark("tmp", name, &format!("left: {why}"));
    }
    done += rescued.adopted.len() + rescued.swept.len() + rescued.set_aside.len();
    left += rescued.failed.len();
    for label in CHECKED {
        let directory = spool.directory(label)?;
        let listing = postern_spool::list(directory.as_fd()).map_err(|e| spool.failed(label, e))?;
        for name in listing.files.iter().map(ToString::to_string) {
            match repair_one(directory, &name, corrupt) {
                Ok(None) => {}
                Ok(Some((right, what))) => {
                    done += usize::from(right);
                    left += usize::from(!right);
                    report.remark(label, &name, &what);
                }
                Err(error) => {
                    left += 1;
                    report.remark(label, &name, &format!("left: {error}"));
                }
            }
        }
        postern_spool::sync_directory(directory.as_fd()).map_err(|e| spool.failed(label, e))?;
    }
    postern_spool::sync_directory(corrupt.as_fd()).map_err(|e| spool.failed("corrupt", e))?;
    report.summary = match (done, left) {
        (0, 0) => "Nothing to repair.".into(),
        (done, 0) => format!("{done} put right."),
        (done, left) => format!("{done} put right, {left} left."),
    };
    Ok((report, left > 0))
}

/// None when nothing was wrong; else whether it is right now, and what was done.
fn repair_one(directory: &File, name: &str, corrupt: &File) -> io::Result<Option<(bool, String)>> {
    let verified = postern_spool::verify(directory.as_fd(), name)?;
    match trouble(&verified.found) {
        Some(why) if matches!(verified.found, Found::Newer(_)) => Ok(Some((false, format!("left: {why}")))),
        // One bad block must not take the other messages of the file out of the queue.
        Some(why) if verified.whole > 0 => Ok(Some((
            false,
            format!(
                "{why}: left, since {} of its {} messages are whole and will be delivered",
                verified.whole, verified.waiting
            ),
        ))),
        Some(why) => {
            let there = postern_spool::set_aside(directory.as_fd(), name, corrupt.as_fd())?;
            Ok(Some((true, format!("{why}: moved to corrupt/{there}"))))
        }
        None if verified.log != LogTail::Clean => {
            let mut file = SpoolFile::open(directory.as_fd(), name).map_err(io::Error::other)?;
            file.cut_log()?;
            Ok(Some((true, "the log is cut behind its last whole record".into())))
        }
        None => Ok(None),
    }
}

fn trouble(found: &Found) -> Option<String> {
    match found {
        Found::Whole => None,
        Found::Unfinished => Some("has no valid foot".into()),
        Found::Damaged(why) => Some(why.clone()),
        Found::Newer(version) => Some(format!("of a newer Postern's format ({version})")),
    }
}

/// Writes every message that is not finished, of every directory, to `to`. True when one could not be
/// written as it was accepted.
fn export(spool: &Spool, to: &Path) -> Result<(Report, bool), Failure> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(to)
        .map_err(|e| Failure::new(1, format!("{}: {e}", to.display())))?;
    let (mut report, mut troubled) = (Report::default(), false);
    for (label, directory) in &spool.directories {
        let listing = postern_spool::list(directory.as_fd()).map_err(|e| spool.failed(label, e))?;
        let mut counts =
            Counts { files: listing.files.len(), others: listing.others.len(), ..Counts::default() };
        let names = listing.files.iter().map(ToString::to_string).chain(listing.others);
        for name in names {
            // Made ready for a message that did not come.
            if *label == "tmp" && is_blank(&spool.path.join(label).join(&name)).unwrap_or(false) {
                continue;
            }
            // What is behind the foot of a file in `drop/` is its owner's to invent.
            let opened = match *label {
                "drop" => SpoolFile::open_dropped(directory.as_fd(), &name),
                "tmp" => SpoolFile::open_unfinished(directory.as_fd(), &name),
                _ => SpoolFile::open(directory.as_fd(), &name),
            };
            let exported = opened
                .map_err(|error| error.to_string())
                .and_then(|file| export_file(&file, label, to, &mut counts));
            match exported {
                Ok(remarks) => {
                    troubled |= !remarks.is_empty();
                    remarks.iter().for_each(|remark| report.remark(label, &name, remark));
                }
                // Nobody was told that these were accepted.
                Err(why) if matches!(*label, "tmp" | "drop") => report.remark(label, &name, &why),
                Err(why) => {
                    troubled = true;
                    counts.damaged += 1;
                    report.remark(label, &name, &format!("not exported: {why}"));
                }
            }
        }
        report.counts.push((label, counts));
    }
    let written: usize = report.counts.iter().map(|(_, counts)| counts.waiting).sum();
    report.summary = format!("{written} written to {}.", to.display());
    Ok((report, troubled))
}

/// What is wrong with some of its messages, unless none can be written.
fn export_file(file: &SpoolFile, label: &str, to: &Path, counts: &mut Counts) -> Result<Vec<String>, String> {
    let mut remarks = Vec::new();
    for (n, stored) in file.messages().iter().enumerate() {
        if file.is_finished(n) {
            counts.finished += 1;
            continue;
        }
        let (body, damaged) = match file.read_body(n) {
            Ok(body) => (body, false),
            Err(ReadError::Corrupt(why)) => {
                remarks.push(format!("{why}: written as {}.damaged.eml", stored.id));
                (file.read_damaged_body(n).map_err(|e| e.to_string())?, true)
            }
            Err(error) => return Err(error.to_string()),
        };
        counts.damaged += usize::from(damaged);
        let name = |end: &str| to.join(format!("{}{end}", stored.id));
        let envelope = envelope(file, n, stored, label);
        let content = name(if damaged { ".damaged.eml" } else { ".eml" });
        write(&content, &[&stored.prepend, &body])
            .and_then(|()| write(&name(".envelope.json"), &[format!("{envelope:#}\n").as_bytes()]))
            .map_err(|e| format!("{}: {e}", content.display()))?;
        counts.waiting += 1;
    }
    Ok(remarks)
}

/// Never over another file: an export into a directory that holds one already would mix two spools.
fn write(path: &Path, pieces: &[&[u8]]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    pieces.iter().try_for_each(|piece| file.write_all(piece))
}

fn envelope(file: &SpoolFile, n: usize, stored: &Stored, label: &str) -> Value {
    let states = file.recipient_states(n);
    let options = &stored.envelope.options;
    let recipients: Vec<Value> = (0..)
        .zip(stored.envelope.recipients.iter().zip(&states))
        .map(|(place, pair)| {
            let mut value = recipient(pair);
            let (notify, orcpt) = queue::recipient_options(options, place);
            (value["notify"], value["orcpt"]) = (json!(notify), json!(orcpt));
            value
        })
        .collect();
    json!({
        "id": stored.id.to_string(),
        "sender": stored.envelope.reverse_path.as_str(),
        "recipients": recipients,
        "arrival": queue::time(stored.envelope.arrival),
        "body": match stored.envelope.body { BodyType::SevenBit => "7BIT", BodyType::EightBit => "8BITMIME", BodyType::Binary => "BINARYMIME" },
        "origin": origin(&stored.envelope.origin),
        "held": file.is_held(n),
        "options": queue::options(options, BodyType::SevenBit),
        "directory": label,
    })
}

fn recipient((address, state): (&postern_address::Mailbox, &RecipientState)) -> Value {
    let address = address.as_str();
    match state {
        RecipientState::Waiting => json!({ "address": address, "state": "waiting" }),
        RecipientState::Deferred { until, reply } => json!({
            "address": address, "state": "deferred", "next_try": queue::time(*until), "reason": reply,
        }),
        RecipientState::Done(how) => {
            let state = match how {
                DoneStatus::Delivered => "delivered",
                DoneStatus::Failed => "failed",
                DoneStatus::Removed => "removed",
            };
            json!({ "address": address, "state": state })
        }
    }
}

fn origin(origin: &Origin) -> Value {
    match origin {
        Origin::Smtp { address, name, helo } => {
            json!({ "smtp": { "address": address.to_string(), "name": name, "helo": helo } })
        }
        Origin::Local { uid } => json!({ "local": { "uid": uid } }),
        Origin::Internal => json!("internal"),
    }
}

impl Spool {
    fn open(path: &Path) -> Result<Self, Failure> {
        let mut spool = Self { path: path.to_owned(), directories: Vec::new() };
        for label in DIRECTORIES {
            let directory = File::open(path.join(label)).map_err(|e| spool.failed(label, e))?;
            spool.directories.push((label, directory));
        }
        Ok(spool)
    }

    fn directory(&self, label: &str) -> Result<&File, Failure> {
        let found = self.directories.iter().find(|(other, _)| *other == label);
        found.map(|(_, file)| file).ok_or_else(|| self.failed(label, io::ErrorKind::NotFound.into()))
    }

    /// The lock by which a running system keeps others from its spool.
    fn lock(&self) -> Result<&File, Failure> {
        let cur = self.directory("cur")?;
        match cur.try_lock() {
            Ok(()) => Ok(cur),
            Err(TryLockError::WouldBlock) => {
                Err(Failure::new(1, "the system runs on this spool: stop it first, `postern stop`"))
            }
            Err(TryLockError::Error(error)) => Err(self.failed("cur", error)),
        }
    }

    fn failed(&self, label: &str, error: io::Error) -> Failure {
        Failure::new(1, format!("{}: {error}", self.path.join(label).display()))
    }
}

impl Report {
    fn remark(&mut self, label: &str, name: &str, what: &str) {
        self.remarks.push((label.to_owned(), name.to_owned(), what.to_owned()));
    }

    fn print(&self, as_json: bool) {
        if as_json {
            return table::print_json(&self.json());
        }
        let rows: Vec<Vec<String>> = self.counts.iter().map(|(label, counts)| counts.row(label)).collect();
        if !rows.is_empty() {
            table::print(
                &["directory", "files", "other files", "messages waiting", "finished", "damaged"],
                &rows,
            );
        }
        for (label, name, what) in &self.remarks {
            table::out(&format!("{label}/{}: {}", visible(name), visible(what)));
        }
        table::out(&self.summary);
    }

    fn json(&self) -> Value {
        let counts: serde_json::Map<String, Value> =
            self.counts.iter().map(|(label, counts)| ((*label).to_owned(), counts.json())).collect();
        let remarks: Vec<Value> = self
            .remarks
            .iter()
            .map(|(label, name, what)| json!({ "directory": label, "file": name, "what": what }))
            .collect();
        json!({ "directories": counts, "remarks": remarks, "summary": self.summary })
    }
}

impl Counts {
    fn row(&self, label: &str) -> Vec<String> {
        let numbers = [self.files, self.others, self.waiting, self.finished, self.damaged];
        std::iter::once(label.to_owned()).chain(numbers.iter().map(ToString::to_string)).collect()
    }

    fn json(&self) -> Value {
        let Self { files, others, waiting, finished, damaged } = self;
        json!({ "files": files, "others": others, "waiting": waiting, "finished": finished, "damaged": damaged })
    }
}

#[cfg(test)]
mod tests;
