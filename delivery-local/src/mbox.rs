//! mbox: all messages in one file, under locks, with `From ` lines between them (RFC 4155).
//!
//! A line of a message that would look like one between messages is quoted, and so is a quoted one
//! (`mboxrd`): what is read back can be told apart again.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, FcntlArg, OFlag, fcntl, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mknodat};
use nix::unistd::{Uid, UnlinkatFlags, unlinkat};
use postern_address::ReversePath;
use postern_smtp::Reply;

use crate::disk::Blocks;
use crate::trouble::{deferred, unavailable};

/// How long a lock of another program is waited for.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is tried.
const PAUSE: Duration = Duration::from_millis(200);
/// A dot-lock of this age was left behind by a crash (liblockfile's measure).
const STALE: Duration = Duration::from_secs(5 * 60);

/// An open mbox file, not locked.
#[derive(Debug)]
pub struct Mbox {
    directory: OwnedFd,
    name: OsString,
    file: File,
}

/// Why nothing was delivered.
#[derive(Debug)]
pub enum MboxError {
    /// The file was replaced or removed since it was opened: open it anew.
    Replaced,
    /// Not now.
    Deferred(Reply),
}

impl Mbox {
    /// Opens the file, and makes it when it is missing. A symbolic link, anything that is not a plain
    /// file, another user's and one with a second name are refused.
    pub fn open(directory: OwnedFd, name: &OsStr) -> io::Result<Self> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = File::from(openat(&directory, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("the mailbox is not a plain file"));
        }
        // The mail group may open everybody's in /var/mail. An old account's, whose number may be another's
        // by now, would be read by him.
        if metadata.uid() != Uid::effective().as_raw() {
            let text = format!("the mailbox belongs to user id {} and not to its user", metadata.uid());
            return Err(io::Error::other(text));
        }
        if metadata.nlink() > 1 {
            return Err(io::Error::other("the mailbox has another name (a hard link)"));
        }
        nix::unistd::fsync(&directory)?;
        Ok(Self { directory, name: name.to_owned(), file })
    }

    /// Where the dot-lock is made.
    pub fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    /// Appends messages, each written by its function (LF line ends), under one lock and with one sync.
    /// On a failure the file is as before.
    pub fn deliver<W>(
        &mut self,
        messages: Vec<(String, W)>,
        patience: Duration,
    ) -> Result<Vec<Result<(), Reply>>, MboxError>
    where
        W: FnOnce(&mut dyn Write) -> io::Result<()>,
    {
        let dot_lock = self.lock(patience)?;
        let results = self.append_all(messages);
        self.unlock(&dot_lock);
        results.map_err(|error| MboxError::Deferred(deferred("cannot write to the mailbox", &error)))
    }

    fn append_all<W>(&mut self, messages: Vec<(String, W)>) -> io::Result<Vec<Result<(), Reply>>>
    where
        W: FnOnce(&mut dyn Write) -> io::Result<()>,
    {
        let before = self.file.seek(SeekFrom::End(0))?;
        let mut results = Vec::with_capacity(messages.len());
        for (from_line, write) in messages {
            let begin = self.file.seek(SeekFrom::End(0))?;
            let outcome = self.append(begin, &from_line, write);
            if outcome.is_err() {
                self.file.set_len(begin)?;
            }
            results.push(outcome.map_err(|error| deferred("cannot write to the mailbox", &error)));
        }
        if let Err(error) = self.file.sync_all() {
            self.file.set_len(before)?;
            return Err(error);
        }
        Ok(results)
    }

    fn append<W>(&self, begin: u64, from_line: &str, write: W) -> io::Result<()>
    where
        W: FnOnce(&mut dyn Write) -> io::Result<()>,
    {
        let mut out = Blocks::new(&self.file, begin);
        // Somebody else left a line unfinished: ours must begin one.
        let mut last = [b'\n'];
        if begin > 0 {
            self.file.read_exact_at(&mut last, begin - 1)?;
        }
        if last != *b"\n" {
            out.write_all(b"\n")?;
        }
        out.write_all(from_line.as_bytes())?;
        let mut quoter = Quoter::new(&mut out);
        write(&mut quoter)?;
        quoter.finish()?;
        out.finish().map(drop)
    }

    /// First fcntl, then the dot-lock (Debian policy §11.6), both without waiting in the kernel: between
    /// attempts nothing is held.
    fn lock(&self, patience: Duration) -> Result<OsString, MboxError> {
        let until = Instant::now() + patience;
        let mut dot_lock = self.name.clone();
        dot_lock.push(".lock");
        loop {
            if self.try_lock(&dot_lock)? {
                return match self.is_in_place() {
                    true => Ok(dot_lock),
                    false => {
                        self.unlock(&dot_lock);
                        Err(MboxError::Replaced)
                    }
                };
            }
            if Instant::now() >= until {
                let text = format!("the mailbox was locked for {} s", patience.as_secs());
                return Err(MboxError::Deferred(unavailable(text)));
            }
            // A lock's end is no event that one could wait for.
            std::thread::sleep(PAUSE.min(until.saturating_duration_since(Instant::now())));
        }
    }

    fn try_lock(&self, dot_lock: &OsStr) -> Result<bool, MboxError> {
        match self.set_lock(libc::F_WRLCK) {
            Ok(()) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => return Ok(false),
            Err(error) => return Err(no_lock(error)),
        }
        // Made by mknod: it takes no right to open anything in that directory.
        match mknodat(&self.directory, dot_lock, SFlag::S_IFREG, Mode::S_IRUSR | Mode::S_IWUSR, 0) {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST) => {
                self.remove_if_stale(dot_lock);
                let _ = self.set_lock(libc::F_UNLCK);
                Ok(false)
            }
            Err(error) => {
                let _ = self.set_lock(libc::F_UNLCK);
                Err(no_lock(error))
            }
        }
    }

    fn set_lock(&self, kind: libc::c_int) -> Result<(), Errno> {
        let whole = libc::flock {
            l_type: kind as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        fcntl(&self.file, FcntlArg::F_SETLK(&whole)).map(drop)
    }

    fn remove_if_stale(&self, dot_lock: &OsStr) {
        let Ok(stat) = fstatat(&self.directory, dot_lock, AtFlags::AT_SYMLINK_NOFOLLOW) else { return };
        let made = SystemTime::UNIX_EPOCH + Duration::from_secs(stat.st_mtime.try_into().unwrap_or(0));
        if made.elapsed().is_ok_and(|age| age > STALE) {
            let _ = unlinkat(&self.directory, dot_lock, UnlinkatFlags::NoRemoveDir);
        }
    }

    fn unlock(&self, dot_lock: &OsStr) {
        // A lock that cannot be removed grows stale, and every program knows what that means.
        let _ = unlinkat(&self.directory, dot_lock, UnlinkatFlags::NoRemoveDir);
        let _ = self.set_lock(libc::F_UNLCK);
    }

    /// The name still means the file we opened.
    fn is_in_place(&self) -> bool {
        let same = |a: FileStat, b: FileStat| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino);
        match (
            fstat(self.file.as_fd()),
            fstatat(&self.directory, self.name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW),
        ) {
            (Ok(ours), Ok(named)) => same(ours, named),
            _ => false,
        }
    }
}

fn no_lock(error: Errno) -> MboxError {
    MboxError::Deferred(deferred("cannot lock the mailbox", &error.into()))
}

/// The line between messages: `From sender Sun Nov 22 04:18:27 2026`, in UTC as RFC 4155 wants it.
pub fn from_line(reverse_path: &ReversePath, unix_seconds: i64) -> String {
    let sender = match reverse_path.as_str() {
        "" => "MAILER-DAEMON".to_owned(),
        // A quoted local part may hold blanks, which would end the sender here.
        text => text.replace(char::is_whitespace, "-"),
    };
    let at = jiff::Timestamp::from_second(unix_seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    format!("From {sender} {}\n", at.to_zoned(jiff::tz::TimeZone::UTC).strftime("%a %b %e %H:%M:%S %Y"))
}

/// Quotes `From ` lines, and ends the message with a line end and an empty line.
pub struct Quoter<W> {
    out: W,
    /// `>` at the beginning of this line, not yet written.
    quotes: usize,
    /// Octets of `From ` that matched behind them, not yet written; none past them.
    matched: Option<usize>,
    ended: bool,
}

const FROM: &[u8] = b"From ";

impl<W: Write> Quoter<W> {
    /// At the beginning of a message.
    pub fn new(out: W) -> Self {
        Self { out, quotes: 0, matched: Some(0), ended: true }
    }

    /// The end of the message.
    pub fn finish(mut self) -> io::Result<()> {
        self.release(false)?;
        self.out.write_all(if self.ended { b"\n" } else { b"\n\n" })
    }

    fn octet(&mut self, octet: u8) -> io::Result<()> {
        let Some(matched) = self.matched else { return Ok(()) };
        if matched == 0 && octet == b'>' {
            self.quotes += 1;
            return Ok(());
        }
        if FROM.get(matched) == Some(&octet) {
            self.matched = Some(matched + 1);
            return match matched + 1 == FROM.len() {
                true => self.release(true),
                false => Ok(()),
            };
        }
        self.release(false)?;
        self.out.write_all(&[octet])
    }

    fn release(&mut self, quote: bool) -> io::Result<()> {
        let Some(matched) = self.matched.take() else { return Ok(()) };
        for _ in 0..self.quotes + usize::from(quote) {
            self.out.write_all(b">")?;
        }
        self.quotes = 0;
        self.out.write_all(FROM.get(..matched).unwrap_or_default())
    }
}

impl<W: Write> Write for Quoter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        while let Some((&first, behind)) = rest.split_first() {
            if self.matched.is_some() {
                self.octet(first)?;
                rest = behind;
                self.ended = first == b'\n';
            } else {
                let end = rest.iter().position(|b| *b == b'\n').map_or(rest.len(), |at| at + 1);
                let (run, behind) = rest.split_at(end);
                self.out.write_all(run)?;
                self.ended = run.last() == Some(&b'\n');
                rest = behind;
            }
            if self.ended {
                self.matched = Some(0);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::place::directory;

    type Writing = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()>>;

    fn text(text: &'static str) -> Writing {
        Box::new(move |out| out.write_all(text.as_bytes()))
    }

    fn open(path: &Path) -> Mbox {
        Mbox::open(directory(path).unwrap(), OsStr::new("mbox")).unwrap()
    }

    fn quoted(message: &str, cut: usize) -> String {
        let mut out = Vec::new();
        let mut quoter = Quoter::new(&mut out);
        let (a, b) = message.as_bytes().split_at(cut.min(message.len()));
        quoter.write_all(a).unwrap();
        quoter.write_all(b).unwrap();
        quoter.finish().unwrap();
        String::from_utf8(out).unwrap()
    }

    /// What a reader of mboxrd does.
    fn unquoted(stored: &str) -> String {
        let line = |line: &str| match line.strip_prefix('>') {
            Some(rest) if rest.trim_start_matches('>').starts_with("From ") => rest.to_owned(),
            _ => line.to_owned(),
        };
        stored.split_inclusive('\n').map(line).collect()
    }

    #[test]
    fn from_lines() {
        assert_eq!(from_line(&ReversePath::Null, 0), "From MAILER-DAEMON Thu Jan  1 00:00:00 1970\n");
        let sender = ReversePath::parse("<\"a b\"@example.org>").unwrap();
        let line = from_line(&sender, 1_795_321_107);
        assert!(line.starts_with("From \"a-b\"@example.org "), "{line}");
    }

    #[test]
    fn appended_under_locks() {
        let temp = tempfile::tempdir().unwrap();
        let mut mbox = open(temp.path());
        let failing: Writing = Box::new(|out| {
            out.write_all(&[b'x'; 200_000])?;
            Err(io::Error::from_raw_os_error(libc::EDQUOT))
        });
        let batch = vec![
            ("From a\n".to_owned(), text("A: b\n\nFrom here\nend")),
            ("From f\n".to_owned(), failing),
            ("From c\n".to_owned(), text("C: d\n\n")),
        ];
        let results = mbox.deliver(batch, PATIENCE).unwrap();
        assert_eq!(results.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
        let stored = fs::read_to_string(temp.path().join("mbox")).unwrap();
        assert_eq!(stored, "From a\nA: b\n\n>From here\nend\n\nFrom c\nC: d\n\n\n");
        assert!(!temp.path().join("mbox.lock").exists());
    }

    #[test]
    fn locked_replaced_linked() {
        let temp = tempfile::tempdir().unwrap();
        let mut mbox = open(temp.path());
        fs::write(temp.path().join("mbox.lock"), "").unwrap();
        let deferred = mbox.deliver(vec![("From a\n".to_owned(), text("x"))], Duration::ZERO);
        assert!(matches!(deferred, Err(MboxError::Deferred(reply)) if reply.code == 450));
        fs::remove_file(temp.path().join("mbox.lock")).unwrap();
        fs::rename(temp.path().join("mbox"), temp.path().join("old")).unwrap();
        let replaced = mbox.deliver(vec![("From a\n".to_owned(), text("x"))], PATIENCE);
        assert!(matches!(replaced, Err(MboxError::Replaced)));
        assert!(!temp.path().join("mbox.lock").exists());
        std::os::unix::fs::symlink("old", temp.path().join("mbox")).unwrap();
        assert!(Mbox::open(directory(temp.path()).unwrap(), OsStr::new("mbox")).is_err());
    }

    #[test]
    fn a_reader_with_the_file_locked_is_left_alone() {
        let temp = tempfile::tempdir().unwrap();
        let mut mbox = open(temp.path());
        // A lock of an open file, not of the process: it stands for another program's.
        let reader = File::options().read(true).write(true).open(temp.path().join("mbox")).unwrap();
        let whole = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        fcntl(&reader, FcntlArg::F_OFD_SETLK(&whole)).unwrap();
        let deferred = mbox.deliver(vec![("From a\n".to_owned(), text("x"))], Duration::ZERO);
        assert!(matches!(deferred, Err(MboxError::Deferred(reply)) if reply.code == 450));
        assert_eq!(reader.metadata().unwrap().len(), 0);
        assert!(!temp.path().join("mbox.lock").exists());
        drop(reader);
        assert!(mbox.deliver(vec![("From a\n".to_owned(), text("x"))], PATIENCE).unwrap()[0].is_ok());
    }

    #[test]
    fn a_stale_dot_lock_is_broken() {
        let temp = tempfile::tempdir().unwrap();
        let mut mbox = open(temp.path());
        let lock = File::create(temp.path().join("mbox.lock")).unwrap();
        lock.set_modified(SystemTime::now() - 2 * STALE).unwrap();
        let results = mbox.deliver(vec![("From a\n".to_owned(), text("x"))], PATIENCE).unwrap();
        assert!(results[0].is_ok());
    }

    /// A mailbox of somebody who had the name before, or a second name of somebody else's: whoever owns the
    /// file reads what is written to it.
    #[test]
    fn a_file_that_is_not_the_user_s_alone_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let open = |name: &str| Mbox::open(directory(temp.path()).unwrap(), OsStr::new(name));
        fs::write(temp.path().join("one"), "").unwrap();
        fs::hard_link(temp.path().join("one"), temp.path().join("two")).unwrap();
        assert!(open("two").unwrap_err().to_string().contains("another name"));
        fs::remove_file(temp.path().join("one")).unwrap();
        assert!(open("two").is_ok());
        // Only root can make a file of somebody else's.
        if nix::unistd::Uid::effective().is_root() {
            nix::unistd::chown(&temp.path().join("two"), Some(1.into()), None).unwrap();
            assert!(open("two").unwrap_err().to_string().contains("belongs to user id 1"));
        }
    }

    proptest! {
        #[test]
        fn quoting_reads_back(
            message in "(>{0,3}From |>{0,2}Fro|From|>|a|\n){0,20}",
            cut in 0usize..60,
        ) {
            let stored = quoted(&message, cut);
            prop_assert!(stored.lines().all(|line| !line.starts_with("From ")));
            prop_assert!(stored.ends_with('\n'));
            let end = if message.is_empty() || message.ends_with('\n') { "\n" } else { "\n\n" };
            prop_assert_eq!(unquoted(&stored), format!("{message}{end}"));
        }
    }
}
