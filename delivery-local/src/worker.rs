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

use crate::disk::Disk;
use crate::maildir::{self, Delivered, Gone, Maildir, Names};
use crate::mbox::{Mbox, MboxError, PATIENCE, from_line};
use crate::place::{self, Links, Way};
use crate::plan::{Place, Post};
use crate::stored;
use crate::talk::{Deliver, FromWorker, WorkerLink};
use crate::trouble::deferred;

/// Most jobs of one batch: one sync of the mailbox is for all of them.
const BATCH: usize = 64;

/// Virtual mailboxes kept open: two descriptors each.
const OPEN_MAX: usize = 200;

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
    Maildir(Maildir, Way, Disk),
    Mbox(Mbox),
    Base(Base),
    /// It cannot be opened: what every job is answered.
    Closed(Reply),
}

/// The base of virtual mailboxes.
struct Base {
    directory: OwnedFd,
    open: HashMap<String, Maildir>,
    /// To those of them that were not delivered to yet.
    way: Way,
    disk: Disk,
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
        Desk::Base(base) => grants.push((base.directory.as_fd(), Grant::Tree)),
        Desk::Maildir(..) | Desk::Closed(_) => {}
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
            let mut way = Way::default();
            let directory = place::beneath(place::directory(within)?.as_fd(), rest, Links::Follow, &mut way)?;
            let maildir = Maildir::open(directory.as_fd(), Links::Follow)?;
            let disk = Disk::of(directory.as_fd())?;
            way.through(rest, directory.try_clone()?);
            Ok((Desk::Maildir(maildir, way, disk), Some(directory)))
        }
        Place::Mbox { path } => {
            let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
            let directory = place::directory(path.parent().unwrap_or(Path::new("/")))?;
            Ok((Desk::Mbox(Mbox::open(directory, name)?), None))
        }
        Place::Virtual { .. } => {
            let directory = base.ok_or_else(|| io::Error::other("no base of virtual mailboxes"))?;
            let disk = Disk::of(directory.as_fd())?;
            Ok((Desk::Base(Base { directory, open: HashMap::new(), way: Way::default(), disk }), None))
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
            Desk::Maildir(maildir, way, disk) => {
                let copies = copies(jobs.iter_mut(), |_| names.next(now().as_micros() as u64));
                for results in maildir::deliver(vec![(maildir, copies)], way, disk) {
                    distribute(jobs, results.map_err(|Gone| Renew)?);
                }
                Ok(())
            }
            Desk::Mbox(mbox) => into_mbox(mbox, jobs),
            Desk::Base(base) => {
                base.deliver(names, jobs);
                Ok(())
            }
        }
    }
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

/// Writes one copy.
type Writing<'a> = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + 'a>;

/// One copy for each recipient, with a name of its own.
fn copies<'a>(
    batch: impl Iterator<Item = &'a mut Job>,
    mut name: impl FnMut(&Job) -> String,
) -> Vec<(String, Writing<'a>)> {
    let mut copies: Vec<(String, Writing<'a>)> = Vec::new();
    for job in batch {
        let job: &'a Job = job;
        for (_, recipient) in &job.deliver.recipients {
            copies.push((name(job), Box::new(move |out| write_copy(job, recipient, out))));
        }
    }
    copies
}

fn write_copy(job: &Job, recipient: &Mailbox, mut out: &mut dyn Write) -> io::Result<()> {
    let Deliver { reverse_path, content, .. } = &job.deliver;
    stored::write(&mut out, reverse_path, recipient, content, job.file.as_ref())
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

impl Base {
    /// Mailboxes share what can be shared: the syncs, but for each one's own.
    fn deliver(&mut self, names: &mut Names, jobs: &mut [Job]) {
        let mut maildirs = Vec::new();
        for (mailbox, mut jobs) in by_mailbox(jobs) {
            match mailbox {
                MailboxKind::Maildir(path) => maildirs.push((path, jobs)),
                MailboxKind::Mbox(path) => self.fill_mbox(&path, &mut jobs),
            }
        }
        // Those that are not there any more are opened anew once.
        let gone = self.fill_maildirs(names, maildirs);
        for (_, mut jobs) in self.fill_maildirs(names, gone) {
            answer_all(&mut *jobs, &being_removed());
        }
    }

    /// Returns the jobs whose Maildirs are gone.
    fn fill_maildirs<'a>(&mut self, names: &mut Names, batches: Batches<'a>) -> Batches<'a> {
        if self.open.len() + batches.len() > OPEN_MAX {
            self.open.clear();
        }
        let mut ready: Batches<'a> = Vec::new();
        for (path, mut jobs) in batches {
            match self.open_maildir(&path) {
                Ok(()) => ready.push((path, jobs)),
                Err(error) => answer_all(&mut *jobs, &deferred("cannot open the mailbox", &error)),
            }
        }
        let mut mail = Vec::new();
        for (path, jobs) in &mut ready {
            if let Some(maildir) = self.open.get(path) {
                let jobs = jobs.iter_mut().map(|job| &mut **job);
                mail.push((maildir, copies(jobs, |_| names.next(now().as_micros() as u64))));
            }
        }
        let results: Vec<Delivered> = maildir::deliver(mail, &mut self.way, &mut self.disk);
        let mut gone = Vec::new();
        for ((path, mut jobs), results) in ready.into_iter().zip(results) {
            match results {
                Ok(results) => distribute(&mut *jobs, results),
                Err(Gone) => {
                    self.open.remove(&path);
                    gone.push((path, jobs));
                }
            }
        }
        gone
    }

    fn open_maildir(&mut self, path: &str) -> io::Result<()> {
        if self.open.contains_key(path) {
            return Ok(());
        }
        let at = Path::new(path);
        let (directory, maildir) = self.find_maildir(at).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                self.way.lose();
                self.find_maildir(at)
            }
            _ => Err(error),
        })?;
        self.way.through(at, directory);
        self.open.insert(path.to_owned(), maildir);
        Ok(())
    }

    fn find_maildir(&mut self, path: &Path) -> io::Result<(OwnedFd, Maildir)> {
        let directory = place::beneath(self.directory.as_fd(), path, Links::Refuse, &mut self.way)?;
        let maildir = Maildir::open(directory.as_fd(), Links::Refuse)?;
        Ok((directory, maildir))
    }

    fn fill_mbox(&mut self, path: &str, jobs: &mut [&mut Job]) {
        for _ in 0..2 {
            match self.try_mbox(path, jobs) {
                Ok(Ok(())) => return,
                Ok(Err(Renew)) => {}
                Err(error) => return answer_all(jobs, &deferred("cannot open the mailbox", &error)),
            }
        }
        answer_all(jobs, &being_removed());
    }

    fn try_mbox(&mut self, path: &str, jobs: &mut [&mut Job]) -> io::Result<Result<(), Renew>> {
        let within = self.directory.as_fd();
        let (directory, name) = place::parent_beneath(within, Path::new(path), Links::Refuse, &mut self.way)?;
        self.way.sync(&mut self.disk)?;
        Ok(into_mbox(&mut Mbox::open(directory, name)?, jobs))
    }
}

/// It was opened anew, and is gone again.
fn being_removed() -> Reply {
    deferred("the mailbox is being removed", &io::Error::from_raw_os_error(libc::ENOENT))
}

/// Virtual Maildirs, and the jobs for each.
type Batches<'a> = Vec<(String, Vec<&'a mut Job>)>;

fn by_mailbox(jobs: &mut [Job]) -> BTreeMap<MailboxKind, Vec<&mut Job>> {
    let mut groups: BTreeMap<MailboxKind, Vec<&mut Job>> = BTreeMap::new();
    for job in jobs {
        groups.entry(job.deliver.mailbox.clone()).or_default().push(job);
    }
    groups
}

fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
