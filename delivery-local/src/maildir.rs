//! Maildir: one file a message, complete in `tmp/` and on the disk before it is seen in `new/`.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, RenameFlags, openat, renameat, renameat2};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, fsync, unlinkat};
use postern_smtp::Reply;

use crate::place::{Links, enter};
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
    /// Opens the Maildir that `directory` is, and makes its parts when they are missing.
    pub fn open(directory: BorrowedFd<'_>, links: Links) -> io::Result<Self> {
        enter(directory, OsStr::new("cur"), links)?;
        Ok(Self {
            tmp: enter(directory, OsStr::new("tmp"), links)?,
            new: enter(directory, OsStr::new("new"), links)?,
        })
    }

    /// Delivers messages, each written by its function, with one sync of the directory for all. The
    /// results are in the messages' order: delivered durably, or not and nothing is left of it.
    pub fn deliver<W>(&self, messages: Vec<(String, W)>) -> Result<Vec<Result<(), Reply>>, Gone>
    where
        W: FnOnce(&mut dyn Write) -> io::Result<()>,
    {
        // All are written before the first is synced: the disk then has them at once.
        let mut written: Vec<(String, io::Result<File>)> = Vec::with_capacity(messages.len());
        for (name, write) in messages {
            let file = self.write(&name, write);
            if let Err(error) = &file
                && error.kind() == io::ErrorKind::NotFound
            {
                written.iter().for_each(|(name, _)| self.remove(&self.tmp, name));
                return Err(Gone);
            }
            written.push((name, file));
        }
        // And all are synced before the first is moved: a move in between would be one more commit of the
        // file system's journal for each.
        let synced: Vec<(String, Result<(), Reply>)> =
            written.into_iter().map(|(name, file)| (name, sync(file))).collect();
        let mut results: Vec<(String, Result<(), Reply>)> = synced
            .into_iter()
            .map(|(name, synced)| {
                let published = self.publish(&name, synced);
                (name, published)
            })
            .collect();
        if results.iter().any(|(_, result)| result.is_ok())
            && let Err(error) = fsync(&self.new)
        {
            let reply = deferred("cannot sync the mailbox", &error.into());
            for (name, result) in results.iter_mut().filter(|(_, result)| result.is_ok()) {
                self.remove(&self.new, name);
                *result = Err(reply.clone());
            }
        }
        Ok(results.into_iter().map(|(_, result)| result).collect())
    }

    fn write<W>(&self, name: &str, write: W) -> io::Result<File>
    where
        W: FnOnce(&mut dyn Write) -> io::Result<()>,
    {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let mut out = BufWriter::with_capacity(64 * 1024, File::from(openat(&self.tmp, name, flags, mode)?));
        let outcome = write(&mut out).and_then(|()| out.into_inner().map_err(|e| e.into_error()));
        if let Ok(file) = &outcome {
            // So that it gets its blocks now, together with the others of the batch. Only a hint: what
            // counts is the sync.
            let _ = postern_sys::start_writeback(file.as_fd(), 0, 0);
        }
        if outcome.is_err() {
            self.remove(&self.tmp, name);
        }
        // A missing directory is told by opening alone: whatever else is "not found" is not that.
        outcome.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => io::Error::other(error.to_string()),
            _ => error,
        })
    }

    fn publish(&self, name: &str, synced: Result<(), Reply>) -> Result<(), Reply> {
        let moved = synced.and_then(|()| {
            self.rename(name).map_err(|error| deferred("cannot move the message to new", &error))
        });
        if moved.is_err() {
            self.remove(&self.tmp, name);
        }
        moved
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

fn sync(file: io::Result<File>) -> Result<(), Reply> {
    let file = file.map_err(|error| deferred("cannot write to the mailbox", &error))?;
    file.sync_all().map_err(|error| deferred("cannot sync the message", &error))
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

    fn files(path: &std::path::Path) -> usize {
        fs::read_dir(path).unwrap().count()
    }

    #[test]
    fn delivered_or_nothing_left() {
        let temp = tempfile::tempdir().unwrap();
        let maildir = Maildir::open(directory(temp.path()).unwrap().as_fd(), Links::Follow).unwrap();
        let mut names = Names::new(7, "mx.test");
        let failing: Writing = Box::new(|_| Err(io::Error::from_raw_os_error(libc::ENOSPC)));
        let batch = [text("one"), failing, text("two")].map(|write| (names.next(1_000_001), write));
        let results = maildir.deliver(Vec::from(batch)).unwrap();
        assert_eq!(results.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
        assert_eq!(results[1].as_ref().unwrap_err().code, 452);
        assert_eq!((files(&temp.path().join("new")), files(&temp.path().join("tmp"))), (2, 0));
        assert_eq!(fs::read(temp.path().join("new/1.M1P7Q1.mx.test")).unwrap(), b"one");
        assert!(temp.path().join("cur").is_dir());
    }

    #[test]
    fn a_name_that_exists_is_not_replaced() {
        let temp = tempfile::tempdir().unwrap();
        let maildir = Maildir::open(directory(temp.path()).unwrap().as_fd(), Links::Follow).unwrap();
        let deliver = |content| maildir.deliver(vec![("name".into(), text(content))]).unwrap().remove(0);
        assert!(deliver("first").is_ok());
        assert_eq!(deliver("second").unwrap_err().code, 450);
        assert_eq!(fs::read(temp.path().join("new/name")).unwrap(), b"first");
        assert_eq!(files(&temp.path().join("tmp")), 0);
    }

    #[test]
    fn a_removed_maildir_is_told() {
        let temp = tempfile::tempdir().unwrap();
        let maildir = Maildir::open(directory(temp.path()).unwrap().as_fd(), Links::Follow).unwrap();
        fs::remove_dir_all(temp.path().join("tmp")).unwrap();
        assert!(maildir.deliver(vec![("name".into(), text("x"))]).is_err());
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
