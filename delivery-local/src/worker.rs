//! A worker: one process for one user and one mailbox (or one shard of the virtual ones).
//!
//! It becomes the user, opens the mailbox, and confines itself to it; then it reads its first job. It may
//! block: it has one thing to do.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::sys::stat::{Mode, umask};
use postern_address::Mailbox;
use postern_ipc::queue_agent::MailboxKind;
use postern_ipc::{LinkError, blocking};
use postern_sandbox::{Grant, SandboxError, become_user, confine_worker};
use postern_smtp::Reply;

use crate::maildir::{Gone, Maildir, Names};
use crate::mbox::{Mbox, MboxError, PATIENCE, from_line};
use crate::place::{self, Links};
use crate::plan::{Place, Post};
use crate::stored;
use crate::talk::{Deliver, FromWorker, WorkerLink};
use crate::trouble::deferred;

/// Most jobs of one batch: one sync of the mailbox is for all of them.
const BATCH: usize = 64;

/// Virtual mailboxes kept open: two descriptors each.
const OPEN_MAX: usize = 100;

/// The whole life of a worker; its exit status.
pub fn run(post: &Post, host: &str, socket: OwnedFd, base: Option<OwnedFd>) -> i32 {
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
    let desk = match settle(post, base) {
        Ok(desk) => desk,
        Err(error) => {
            // Nobody has given it anything yet: the parent defers what it was for, and this says why.
            eprintln!("postern-delivery-local worker: {error}");
            return 1;
        }
    };
    let worker = Worker { desk, link: WorkerLink::new(socket), names: Names::new(std::process::id(), host) };
    match worker.serve() {
        Ok(()) | Err(LinkError::Closed) => 0,
        Err(error) => {
            eprintln!("postern-delivery-local worker: {error}");
            1
        }
    }
}

/// The mailbox, opened with the user's own rights.
enum Desk {
    Maildir(Maildir),
    Mbox(Mbox),
    Base {
        base: OwnedFd,
        open: HashMap<String, Maildir>,
    },
    /// It cannot be opened: what every job is answered.
    Closed(Reply),
}

fn settle(post: &Post, base: Option<OwnedFd>) -> Result<Desk, SandboxError> {
    if let Some(identity) = &post.identity {
        become_user(identity)?;
    }
    let (desk, tree) = match open(post, base) {
        Ok((desk, tree)) => (desk, tree),
        Err(error) => (Desk::Closed(deferred("cannot open the mailbox", &error)), None),
    };
    let mut grants = Vec::new();
    match &desk {
        Desk::Mbox(mbox) => grants.push((mbox.directory().as_fd(), Grant::DotLocks)),
        Desk::Base { base, .. } => grants.push((base.as_fd(), Grant::Tree)),
        Desk::Maildir(_) | Desk::Closed(_) => {}
    }
    grants.extend(tree.iter().map(|tree| (tree.as_fd(), Grant::Tree)));
    confine_worker(&grants)?;
    Ok(desk)
}

/// The mailbox, and the directory that the sandbox is to leave open for it.
fn open(post: &Post, base: Option<OwnedFd>) -> io::Result<(Desk, Option<OwnedFd>)> {
    match &post.place {
        Place::Maildir { within, path } => {
            let rest = path.strip_prefix(within).unwrap_or(path);
            let directory = place::beneath(place::directory(within)?.as_fd(), rest, Links::Follow)?;
            let maildir = Maildir::open(directory.as_fd(), Links::Follow)?;
            Ok((Desk::Maildir(maildir), Some(directory)))
        }
        Place::Mbox { path } => {
            let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
            let directory = place::directory(path.parent().unwrap_or(Path::new("/")))?;
            Ok((Desk::Mbox(Mbox::open(directory, name)?), None))
        }
        Place::Virtual { .. } => {
            let base = base.ok_or_else(|| io::Error::other("no base of virtual mailboxes"))?;
            Ok((Desk::Base { base, open: HashMap::new() }, None))
        }
    }
}

struct Worker {
    desk: Desk,
    link: WorkerLink,
    names: Names,
}

/// A job and its file.
struct Job {
    deliver: Deliver,
    file: Option<File>,
    results: Vec<(u32, Result<(), Reply>)>,
}

/// The mailbox must be opened anew, by a worker that is not yet confined.
struct Renew;

impl Worker {
    fn serve(mut self) -> Result<(), LinkError> {
        loop {
            let mut jobs = self.batch()?;
            let outcome = self.deliver(&mut jobs);
            let whole = |job: &Job| job.results.len() == job.deliver.recipients.len();
            for job in jobs.into_iter().filter(whole) {
                self.link.say(
                    &FromWorker::Done { serial: job.deliver.serial, results: job.results },
                    Vec::new(),
                )?;
            }
            if outcome.is_err() || matches!(self.desk, Desk::Closed(_)) {
                self.link.send(&FromWorker::Leaving)?;
                return blocking::flush(&mut self.link, None);
            }
            blocking::flush(&mut self.link, None)?;
        }
    }

    /// Waits for a job, and takes those that wait behind it.
    fn batch(&mut self) -> Result<Vec<Job>, LinkError> {
        let job = |(deliver, descriptors): (Deliver, Vec<OwnedFd>)| Job {
            deliver,
            file: descriptors.into_iter().next().map(File::from),
            results: Vec::new(),
        };
        let mut jobs = vec![job(blocking::receive(&mut self.link, None)?)];
        while jobs.len() < BATCH
            && let Some(received) = self.link.receive()?
        {
            jobs.push(job(received));
        }
        Ok(jobs)
    }

    fn deliver(&mut self, jobs: &mut [Job]) -> Result<(), Renew> {
        let names = &mut self.names;
        match &mut self.desk {
            Desk::Closed(reply) => {
                answer_all(jobs, reply);
                Ok(())
            }
            Desk::Maildir(maildir) => into_maildir(maildir, names, jobs).map_err(|Gone| Renew),
            Desk::Mbox(mbox) => into_mbox(mbox, jobs),
            Desk::Base { base, open } => {
                for (mailbox, mut jobs) in by_mailbox(jobs) {
                    into_base(base, open, names, &mailbox, &mut jobs);
                }
                Ok(())
            }
        }
    }
}

fn by_mailbox(jobs: &mut [Job]) -> BTreeMap<MailboxKind, Vec<&mut Job>> {
    let mut groups: BTreeMap<MailboxKind, Vec<&mut Job>> = BTreeMap::new();
    for job in jobs {
        groups.entry(job.deliver.mailbox.clone()).or_default().push(job);
    }
    groups
}

/// Everything that takes a batch, alone or by reference.
trait Batch {
    fn jobs(&mut self) -> impl Iterator<Item = &mut Job>;
}

impl Batch for [Job] {
    fn jobs(&mut self) -> impl Iterator<Item = &mut Job> {
        self.iter_mut()
    }
}

impl Batch for [&mut Job] {
    fn jobs(&mut self) -> impl Iterator<Item = &mut Job> {
        self.iter_mut().map(|job| &mut **job)
    }
}

fn answer_all(batch: &mut (impl Batch + ?Sized), reply: &Reply) {
    for job in batch.jobs() {
        job.results = job.deliver.recipients.iter().map(|(index, _)| (*index, Err(reply.clone()))).collect();
    }
}

/// The results of a batch's copies come in their order: jobs first, then recipients.
fn distribute(batch: &mut (impl Batch + ?Sized), results: Vec<Result<(), Reply>>) {
    let mut results = results.into_iter();
    for job in batch.jobs() {
        job.results = job.deliver.recipients.iter().map(|(index, _)| *index).zip(results.by_ref()).collect();
    }
}

/// One copy for each recipient, with a name of its own.
fn copies<'a, N: FnMut(&Job) -> String>(
    batch: impl Iterator<Item = &'a mut Job>,
    mut name: N,
) -> Vec<(String, impl FnOnce(&mut dyn Write) -> io::Result<()>)> {
    let mut copies = Vec::new();
    for job in batch {
        let job: &'a Job = job;
        for (_, recipient) in &job.deliver.recipients {
            copies.push((name(job), move |out: &mut dyn Write| write_copy(job, recipient, out)));
        }
    }
    copies
}

fn write_copy(job: &Job, recipient: &Mailbox, mut out: &mut dyn Write) -> io::Result<()> {
    let Deliver { reverse_path, content, .. } = &job.deliver;
    stored::write(&mut out, reverse_path, recipient, content, job.file.as_ref())
}

fn into_maildir(maildir: &Maildir, names: &mut Names, batch: &mut (impl Batch + ?Sized)) -> Result<(), Gone> {
    let results = maildir.deliver(copies(batch.jobs(), |_| names.next(now().as_micros() as u64)))?;
    distribute(batch, results);
    Ok(())
}

fn into_mbox(mbox: &mut Mbox, batch: &mut (impl Batch + ?Sized)) -> Result<(), Renew> {
    let seconds = now().as_secs() as i64;
    let copies = copies(batch.jobs(), |job| from_line(&job.deliver.reverse_path, seconds));
    match mbox.deliver(copies, PATIENCE) {
        Ok(results) => distribute(batch, results),
        Err(MboxError::Deferred(reply)) => answer_all(batch, &reply),
        Err(MboxError::Replaced) => return Err(Renew),
    }
    Ok(())
}

/// A virtual mailbox: opened anew once when it is not there any more.
fn into_base(
    base: &OwnedFd,
    open: &mut HashMap<String, Maildir>,
    names: &mut Names,
    mailbox: &MailboxKind,
    batch: &mut [&mut Job],
) {
    for _ in 0..2 {
        let outcome = match mailbox {
            MailboxKind::Maildir(path) => try_maildir(base, open, names, path, batch),
            MailboxKind::Mbox(path) => try_mbox(base, path, batch),
        };
        match outcome {
            Ok(Ok(())) => return,
            Ok(Err(Renew)) => {}
            Err(error) => return answer_all(batch, &deferred("cannot open the mailbox", &error)),
        }
    }
    let error = io::Error::from_raw_os_error(libc::ENOENT);
    answer_all(batch, &deferred("the mailbox is being removed", &error));
}

fn try_maildir(
    base: &OwnedFd,
    open: &mut HashMap<String, Maildir>,
    names: &mut Names,
    path: &str,
    batch: &mut [&mut Job],
) -> io::Result<Result<(), Renew>> {
    let maildir = match open.remove(path) {
        Some(maildir) => maildir,
        None => {
            let directory = place::beneath(base.as_fd(), Path::new(path), Links::Refuse)?;
            Maildir::open(directory.as_fd(), Links::Refuse)?
        }
    };
    let outcome = into_maildir(&maildir, names, batch).map_err(|Gone| Renew);
    if outcome.is_ok() {
        if open.len() >= OPEN_MAX {
            open.clear();
        }
        open.insert(path.to_owned(), maildir);
    }
    Ok(outcome)
}

fn try_mbox(base: &OwnedFd, path: &str, batch: &mut [&mut Job]) -> io::Result<Result<(), Renew>> {
    let (directory, name) = place::parent_beneath(base.as_fd(), Path::new(path), Links::Refuse)?;
    Ok(into_mbox(&mut Mbox::open(directory, name)?, batch))
}

fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
