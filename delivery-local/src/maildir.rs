//! Maildir: one file a message, complete in `tmp/` and on the disk before it is seen in `new/`.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, RenameFlags, openat, renameat, renameat2};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use postern_smtp::Reply;

use crate::disk::{Blocks, Disk};
use crate::place::{Links, Way, make, open_in};
use crate::trouble::deferred;

/// An open Maildir.
#[derive(Debug)]
pub struct Maildir {
    tmp: OwnedFd,
    new: OwnedFd,
}

/// Makes the names of one process: `TIME.MµsPpidQn.host`. The pid and the count make them unique on this
/// host, the host's name between hosts that share a mailbox.
#[derive(Debug)]
pub struct Names {
    pid: u32,
    host: String,
    count: u64,
}

/// The Maildir is no more: it must be opened, that is made, anew.
#[derive(Debug)]
pub struct Gone;

/// What became of messages for one Maildir, in their order: delivered durably, or not and nothing is left of it.
pub type Delivered = Result<Vec<Result<(), Reply>>, Gone>;

/// Delivers messages into Maildirs, each written by its function. `way` leads to those that were not delivered to
/// before. What can be synced together is.
pub fn deliver<W>(mail: Vec<(&Maildir, Vec<(String, W)>)>, way: &mut Way, disk: &mut Disk) -> Vec<Delivered>
where
    W: FnOnce(&mut dyn Write) -> io::Result<()>,
{
    // All are written before the first is synced: the disk then has them at once.
    let mut batches: Vec<Batch<'_>> =
        mail.into_iter().map(|(maildir, messages)| (maildir, maildir.write_all(messages))).collect();
    // And all are synced before the first is moved: a move in between would be one more commit of the file
    // system's journal for each.
    sync_files(&mut batches, disk);
    for (maildir, copies) in &mut batches {
        copies.iter_mut().flatten().for_each(|copy| maildir.publish(copy));
    }
    sync_directories(&mut batches, way, disk);
    batches.into_iter().map(|(_, copies)| Ok(copies?.into_iter().map(|copy| copy.result).collect())).collect()
}

/// Whoever is not on the disk is not delivered.
fn sync_files(batches: &mut [Batch<'_>], disk: &mut Disk) {
    let copies = batches.iter_mut().flat_map(|(_, copies)| copies.iter_mut().flatten());
    let (mut written, files): (Vec<&mut Written>, Vec<File>) =
        copies.filter_map(|copy| copy.file.take().map(|file| (copy, file))).unzip();
    let results = disk.sync(&files.iter().map(AsFd::as_fd).collect::<Vec<_>>());
    for (copy, result) in written.iter_mut().zip(results) {
        copy.result = result.map_err(|error| deferred("cannot sync the message", &error));
    }
}

/// What was moved is delivered when the directories are on the disk.
fn sync_directories(batches: &mut [Batch<'_>], way: &mut Way, disk: &mut Disk) {
    let mut moved: Vec<(&Maildir, &mut Vec<Written>)> = batches
        .iter_mut()
        .filter_map(|(maildir, copies)| copies.as_mut().ok().map(|copies| (*maildir, copies)))
        .filter(|(_, copies)| copies.iter().any(|copy| copy.result.is_ok()))
        .collect();
    let new = moved.iter().map(|(maildir, _)| maildir.new.as_fd());
    let mut results = disk.sync(&way.directories().chain(new).collect::<Vec<_>>()).into_iter();
    let led: io::Result<()> = results.by_ref().take(way.directories().count()).collect();
    let led = led.map_err(|error| deferred("cannot sync the way to the mailbox", &error));
    for ((maildir, copies), result) in moved.iter_mut().zip(results) {
        let synced = result.map_err(|error| deferred("cannot sync the mailbox", &error));
        if let Err(reply) = led.clone().and(synced) {
            maildir.take_back(copies, &reply);
        }
    }
    if led.is_ok() {
        way.synced();
    }
}

/// A Maildir and what is written into it.
type Batch<'m> = (&'m Maildir, Result<Vec<Written>, Gone>);

/// A message on its way into a Maildir.
struct Written {
    name: String,
    /// Until it is synced.
    file: Option<File>,
    /// What became of it so far.
    result: Result<(), Reply>,
}

impl Names {
    /// For this process, on a host of this name.
    pub fn new(pid: u32, host: &str) -> Self {
        // What has a meaning in a Maildir's names is written as its convention says.
        Self { pid, host: host.replace('/', "\\057").replace(':', "\\072"), count: 0 }
    }

    /// The next name, at a time in microseconds since 1970.
    pub fn next(&mut self, now_micros: u64) -> String {
        self.count += 1;
        let (seconds, micros) = (now_micros / 1_000_000, now_micros % 1_000_000);
        format!("{seconds}.M{micros}P{}Q{}.{}", self.pid, self.count, self.host)
    }
}

impl Maildir {
    /// Opens the Maildir that `directory` is, and makes its parts when they are missing. A way to it leads through
    /// the directory.
    pub fn open(directory: BorrowedFd<'_>, links: Links) -> io::Result<Self> {
        let [cur, tmp, new] = ["cur", "tmp", "new"].map(OsStr::new);
        for name in [cur, tmp, new] {
            make(directory, name)?;
        }
        Ok(Self { tmp: open_in(directory, tmp, links)?, new: open_in(directory, new, links)? })
    }

    fn write_all<W>(&self, messages: Vec<(String, W)>) -> Result<Vec<Written>, Gone>
    where
        W: FnOnce(&mut dyn Write) -> io::Result<()>,
    {
        let mut copies: Vec<Written> = Vec::with_capacity(messages.len());
        for (name, write) in messages {
            let (file, result) = match self.write(&name, write) {
                Ok(file) => (Some(file), Ok(())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    copies.iter().for_each(|copy| self.remove(&self.tmp, &copy.name));
                    return Err(Gone);
                }
                Err(error) => (None, Err(deferred("cannot write to the mailbox", &error))),
            };
            copies.push(Written { name, file, result });
        }
        Ok(copies)
    }

    fn write<W>(&self, name: &str, write: W) -> io::Result<File>
    where
        W: FnOnce(&mut dyn Write) -> io::Result<()>,
    {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let mut out = Blocks::new(File::from(openat(&self.tmp, name, flags, mode)?), 0);
        let outcome = write(&mut out).and_then(|()| out.finish());
        if outcome.is_err() {
            self.remove(&self.tmp, name);
        }
        // A missing directory is told by opening alone: whatever else is "not found" is not that.
        outcome.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => io::Error::other(error.to_string()),
            _ => error,
        })
    }

    fn publish(&self, copy: &mut Written) {
        if copy.result.is_ok()
            && let Err(error) = self.rename(&copy.name)
        {
            copy.result = Err(deferred("cannot move the message to new", &error));
        }
        if copy.result.is_err() {
            self.remove(&self.tmp, &copy.name);
        }
    }

    /// Nothing is left of what was moved.
    fn take_back(&self, copies: &mut [Written], reply: &Reply) {
        for copy in copies.iter_mut().filter(|copy| copy.result.is_ok()) {
            self.remove(&self.new, &copy.name);
            copy.result = Err(reply.clone());
        }
    }

    fn rename(&self, name: &str) -> io::Result<()> {
        match renameat2(&self.tmp, name, &self.new, name, RenameFlags::RENAME_NOREPLACE) {
            // Some file systems cannot promise it; the name is unique anyhow.
            Err(Errno::EINVAL | Errno::ENOSYS) => Ok(renameat(&self.tmp, name, &self.new, name)?),
            outcome => Ok(outcome?),
        }
    }

    fn remove(&self, directory: &OwnedFd, name: &str) {
        // What stays in tmp/ is swept by every reader of Maildirs after 36 hours.
        let _ = unlinkat(directory.as_fd(), name, UnlinkatFlags::NoRemoveDir);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::place::directory;

    type Writing = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()>>;

    fn text(text: &'static str) -> Writing {
        Box::new(move |out| out.write_all(text.as_bytes()))
    }

    fn opened(path: &std::path::Path) -> Maildir {
        Maildir::open(directory(path).unwrap().as_fd(), Links::Follow).unwrap()
    }

    fn into(maildir: &Maildir, messages: Vec<(String, Writing)>) -> Delivered {
        deliver(vec![(maildir, messages)], &mut Way::default(), &mut Disk::one_by_one()).remove(0)
    }

    fn files(path: &std::path::Path) -> usize {
        fs::read_dir(path).unwrap().count()
    }

    #[test]
    fn delivered_or_nothing_left() {
        let temp = tempfile::tempdir().unwrap();
        let maildir = opened(temp.path());
        let mut names = Names::new(7, "mx.test");
        let failing: Writing = Box::new(|_| Err(io::Error::from_raw_os_error(libc::ENOSPC)));
        let batch = [text("one"), failing, text("two")].map(|write| (names.next(1_000_001), write));
        let results = into(&maildir, Vec::from(batch)).unwrap();
        assert_eq!(results.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
        assert_eq!(results[1].as_ref().unwrap_err().code, 452);
        assert_eq!((files(&temp.path().join("new")), files(&temp.path().join("tmp"))), (2, 0));
        assert_eq!(fs::read(temp.path().join("new/1.M1P7Q1.mx.test")).unwrap(), b"one");
        assert!(temp.path().join("cur").is_dir());
    }

    #[test]
    fn a_large_message_is_whole() {
        let temp = tempfile::tempdir().unwrap();
        let maildir = opened(temp.path());
        let content: Vec<u8> =
            (0..2 * Blocks::<File>::AT_ONCE as u32 + 12_345).map(|n| (n % 251) as u8).collect();
        let pieces = content.clone();
        let writing: Writing =
            Box::new(move |out| pieces.chunks(100_003).try_for_each(|piece| out.write_all(piece)));
        assert!(into(&maildir, vec![("large".into(), writing)]).unwrap()[0].is_ok());
        assert!(fs::read(temp.path().join("new/large")).unwrap() == content);
    }

    #[test]
    fn a_name_that_exists_is_not_replaced() {
        let temp = tempfile::tempdir().unwrap();
        let maildir = opened(temp.path());
        let deliver = |content| into(&maildir, vec![("name".into(), text(content))]).unwrap().remove(0);
        assert!(deliver("first").is_ok());
        assert_eq!(deliver("second").unwrap_err().code, 450);
        assert_eq!(fs::read(temp.path().join("new/name")).unwrap(), b"first");
        assert_eq!(files(&temp.path().join("tmp")), 0);
    }

    #[test]
    fn a_removed_maildir_is_told() {
        let temp = tempfile::tempdir().unwrap();
        let maildir = opened(temp.path());
        fs::remove_dir_all(temp.path().join("tmp")).unwrap();
        let there = tempfile::tempdir().unwrap();
        let (gone, there_too) = (vec![("name".into(), text("x"))], opened(there.path()));
        let mail = vec![(&maildir, gone), (&there_too, vec![("name".into(), text("y"))])];
        let results = deliver(mail, &mut Way::default(), &mut Disk::one_by_one());
        assert!(results[0].is_err());
        assert!(results[1].as_ref().unwrap()[0].is_ok(), "the others have theirs");
    }

    proptest! {
        #[test]
        fn names_are_unique(clock in proptest::collection::vec(0u64..5, 1..200)) {
            let (mut one, mut other) = (Names::new(1, "h/:"), Names::new(2, "h/:"));
            let names: BTreeSet<String> = clock.iter().flat_map(|at| [one.next(*at), other.next(*at)]).collect();
            prop_assert_eq!(names.len(), clock.len() * 2);
            prop_assert!(names.iter().all(|n| !n.contains(['/', ':'])));
        }
    }
}
