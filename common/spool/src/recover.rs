//! What the queue-manager does with the spool's directories: list, adopt, sweep, set aside.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstatat};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::id::QueueId;
use crate::ops::rename_between;
use crate::reader::{ReadError, SpoolFile, has_foot, open_has_foot};

/// The directories of a spool, all in one file system.
pub const DIRECTORIES: [&str; 5] = ["tmp", "new", "cur", "drop", "corrupt"];

/// Files in `tmp/` and temporary names in `drop/` without a valid foot are removed at this age.
pub const SWEEP_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// Files with a valid foot in `tmp/` that no writer has locked are adopted at this age, when the system runs.
pub const ADOPT_AFTER: Duration = Duration::from_secs(10);

/// What a directory holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Spool files by their names, oldest first.
    pub files: Vec<QueueId>,
    /// Regular files of any other name (a writer's temporary names, a stranger's).
    pub others: Vec<String>,
}

/// What a file turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Foot, index and every body are right.
    Whole,
    /// No valid foot: nobody was told that it was accepted.
    Unfinished,
    /// The foot is valid and something before it is not. Either a power cut before the sync returned,
    /// and nobody was told that it was accepted; or the disk lost what was.
    Damaged(String),
    /// Of a newer Postern.
    Newer(u32),
}

/// What [`rescue`] did, for the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rescued {
    /// Moved from `tmp/` to `new/`.
    pub adopted: Vec<QueueId>,
    /// Unlinked, being old and unfinished.
    pub swept: Vec<String>,
    /// Moved to `corrupt/`: name there, and why.
    pub set_aside: Vec<(String, String)>,
    /// Could not be read or moved now: name, and why.
    pub failed: Vec<(String, String)>,
}

/// Creates the spool and its directories where they are missing, for the caller alone. What exists keeps
/// its owner and mode.
pub fn create_directories(spool: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(spool)?;
    for name in DIRECTORIES {
        match DirBuilder::new().mode(0o700).create(spool.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
    }
    Ok(())
}

/// What is left of a spool's file system for one who is not root: octets and files. A file system that
/// does not count its files has any number of them.
pub fn space(directory: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let stat = fstatvfs(directory)?;
    let files = if stat.files() == 0 { u64::MAX } else { stat.files_available() };
    Ok((stat.blocks_available().saturating_mul(stat.fragment_size()), files))
}

/// Whether a file holds nothing: no octets, or zeros alone.
pub fn is_blank(path: &Path) -> io::Result<bool> {
    holds_nothing(&File::open(path)?)
}

/// Lists a directory; oldest files first, since ids are ordered by time.
pub fn list(directory: BorrowedFd<'_>) -> io::Result<Listing> {
    let mut listing = Listing::default();
    // Opened once more: the position in a directory belongs to the descriptor.
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    for entry in Dir::openat(directory, ".", flags, Mode::empty())?.iter() {
        let entry = entry?;
        if !matches!(entry.file_type(), None | Some(Type::File)) {
            continue;
        }
        // A name that is not UTF-8 is none of ours.
        let Ok(name) = entry.file_name().to_str() else { continue };
        match QueueId::parse(name).filter(|id| id.to_string() == name) {
            Some(id) => listing.files.push(id),
            None => listing.others.push(name.to_owned()),
        }
    }
    listing.files.sort_unstable();
    Ok(listing)
}

/// Reads all of a file but its log and says what it is. NotFound and the like are errors.
pub fn classify(directory: BorrowedFd<'_>, name: &str) -> io::Result<Found> {
    let opened = SpoolFile::open(directory, name);
    classified(opened, || has_foot(directory, name)).map(|(found, _)| found)
}

/// As [`classify`], of a copy of a file of `drop/`; with the file when it is whole.
pub fn classify_dropped(copy: File) -> io::Result<(Found, Option<SpoolFile>)> {
    let again = copy.try_clone()?;
    let (found, file) = classified(SpoolFile::from_dropped(copy), || open_has_foot(&again))?;
    let file = file.filter(|_| found == Found::Whole);
    Ok((found, file))
}

/// The time since a file was last written, by `now`; none when that lies ahead.
pub fn age(directory: BorrowedFd<'_>, name: &str, now: SystemTime) -> io::Result<Duration> {
    let stat = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let written = Duration::new(stat.st_mtime.max(0) as u64, stat.st_mtime_nsec.clamp(0, 999_999_999) as u32);
    Ok(now.duration_since(SystemTime::UNIX_EPOCH + written).unwrap_or(Duration::ZERO))
}

/// Looks through `tmp/`: what is whole and at least `adopt_after` old goes to `new/`, what is damaged to
/// `corrupt/`, what is unfinished goes when nothing is in it or it is a day old. What a living writer has locked is left
/// alone, so at its own start the queue-manager need not wait: `adopt_after` may be zero.
///
/// Of a file of several parts the last may be half written. It is cut off, since nobody was told that it was accepted:
/// the parts before it are whole. One that was written and whose bodies are not right leaves a copy of the file in
/// `corrupt/`, as it may also be the disk that lost what was.
///
/// An adopted file is synced before it is moved: its writer may have died between the write and the sync.
pub fn rescue(
    tmp: BorrowedFd<'_>,
    new: BorrowedFd<'_>,
    corrupt: BorrowedFd<'_>,
    adopt_after: Duration,
    now: SystemTime,
) -> io::Result<Rescued> {
    let mut rescued = Rescued::default();
    let listing = list(tmp)?;
    let names = listing.files.iter().map(|id| id.to_string()).chain(listing.others);
    for name in names {
        if let Err(error) = rescue_one(&mut rescued, tmp, new, corrupt, &name, adopt_after, now) {
            // Its writer has moved or removed it meanwhile.
            if error.kind() != io::ErrorKind::NotFound {
                rescued.failed.push((name, error.to_string()));
            }
        }
    }
    if !rescued.adopted.is_empty() {
        sync_directory(new)?;
        sync_directory(tmp)?;
    }
    Ok(rescued)
}

/// Removes files of no queue id that are a day old from a directory: what a local program that was
/// killed left in `drop/`. Their names, for the log.
pub fn sweep_temporary(directory: BorrowedFd<'_>, now: SystemTime) -> io::Result<Vec<String>> {
    let mut swept = Vec::new();
    for name in list(directory)?.others {
        if age(directory, &name, now).is_ok_and(|age| age >= SWEEP_AFTER) {
            remove(directory, &name)?;
            swept.push(name);
        }
    }
    Ok(swept)
}

/// Moves a file to `corrupt/` for a human, under its own name or one made unique by a number; says which.
pub fn set_aside(from: BorrowedFd<'_>, name: &str, corrupt: BorrowedFd<'_>) -> io::Result<String> {
    let ((), unique) = under_a_free_name(name, |unique| rename_between(from, name, corrupt, unique))?;
    Ok(unique)
}

/// Unlinks a file; one that is not there is no error.
pub fn remove(directory: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Puts a directory's entries on stable storage.
pub fn sync_directory(directory: BorrowedFd<'_>) -> io::Result<()> {
    Ok(nix::unistd::fsync(directory)?)
}

fn rescue_one(
    rescued: &mut Rescued,
    tmp: BorrowedFd<'_>,
    new: BorrowedFd<'_>,
    corrupt: BorrowedFd<'_>,
    name: &str,
    adopt_after: Duration,
    now: SystemTime,
) -> io::Result<()> {
    let age = age(tmp, name, now)?;
    if age < adopt_after {
        return Ok(());
    }
    // Held until the file is where it belongs.
    let Some(locked) = lock(tmp, name)? else { return Ok(()) };
    match classified(SpoolFile::open_unfinished(tmp, name), || has_foot(tmp, name))? {
        (Found::Whole, Some(file)) => adopt(rescued, tmp, new, name, file)?,
        (Found::Whole, None) => {}
        (Found::Unfinished, _) => {
            // A dead writer's blanks need not lie there for a day.
            let blank = name.starts_with('.') && holds_nothing(&locked)?;
            if blank || age >= SWEEP_AFTER {
                remove(tmp, name)?;
                rescued.swept.push(name.to_owned());
            }
        }
        (Found::Damaged(why), Some(mut file)) => {
            let copy = copy_aside(tmp, name, corrupt)?;
            file.forget_last_part();
            if let Err(error) = file.cut_to_parts() {
                // The next look finds it as it was, and would make another.
                remove(corrupt, &copy)?;
                return Err(error);
            }
            let why = format!("{why}; what was written before it is whole, and delivered");
            rescued.set_aside.push((copy, why));
            adopt(rescued, tmp, new, name, file)?;
        }
        (Found::Damaged(why), None) => {
            rescued.set_aside.push((set_aside(tmp, name, corrupt)?, why));
        }
        (Found::Newer(version), _) => {
            rescued.failed.push((name.to_owned(), format!("format {version} of a newer Postern")));
        }
    }
    Ok(())
}

fn adopt(
    rescued: &mut Rescued,
    tmp: BorrowedFd<'_>,
    new: BorrowedFd<'_>,
    name: &str,
    mut file: SpoolFile,
) -> io::Result<()> {
    // It was written into a blank, whose name says nothing.
    let Some(id) = file.messages().first().map(|message| message.id) else { return Ok(()) };
    file.cut_to_parts()?;
    file.sync_all()?;
    rename_between(tmp, name, new, &id.to_string())?;
    rescued.adopted.push(id);
    Ok(())
}

/// As [`set_aside`], and leaves the file where it is. On failure there is no copy.
fn copy_aside(from: BorrowedFd<'_>, name: &str, corrupt: BorrowedFd<'_>) -> io::Result<String> {
    let create = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    let (copy, unique) = under_a_free_name(name, |unique| Ok(openat(corrupt, unique, create, mode)?))?;
    let mut copy = File::from(copy);
    let read = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let copied = openat(from, name, read, Mode::empty())
        .map_err(io::Error::from)
        .and_then(|file| io::copy(&mut File::from(file), &mut copy))
        .and_then(|_| copy.sync_all());
    if let Err(error) = copied {
        remove(corrupt, &unique)?;
        return Err(error);
    }
    Ok(unique)
}

/// Makes something under this name or, while there is such a thing, the name with a number; and which it was.
fn under_a_free_name<T>(name: &str, mut make: impl FnMut(&str) -> io::Result<T>) -> io::Result<(T, String)> {
    let mut unique = name.to_owned();
    for n in 1.. {
        match make(&unique) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => unique = format!("{name}.{n}"),
            made => return made.map(|made| (made, unique)),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Locks a file. None while the writer that made it lives and holds its lock, which it may for days.
fn lock(tmp: BorrowedFd<'_>, name: &str) -> io::Result<Option<File>> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = File::from(openat(tmp, name, flags, Mode::empty())?);
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn holds_nothing(mut file: &File) -> io::Result<bool> {
    let mut piece = [0; 4096];
    loop {
        let length = file.read(&mut piece)?;
        if length == 0 {
            return Ok(true);
        }
        if piece.iter().take(length).any(|octet| *octet != 0) {
            return Ok(false);
        }
    }
}

/// With the file, when it is whole, or would be without its last part. What is behind the parts is not looked at:
/// in `tmp/` and `drop/` nothing of ours is there yet.
fn classified(
    opened: Result<SpoolFile, ReadError>,
    has_foot: impl FnOnce() -> Result<bool, ReadError>,
) -> io::Result<(Found, Option<SpoolFile>)> {
    let why = match opened {
        Ok(file) => match first_damaged(&file)? {
            None => return Ok((Found::Whole, Some(file))),
            Some((n, why)) => {
                return Ok((Found::Damaged(why), Some(file).filter(|file| file.is_in_last_part(n))));
            }
        },
        Err(ReadError::Io(error)) => return Err(error),
        Err(ReadError::Newer(version)) => return Ok((Found::Newer(version), None)),
        Err(ReadError::Corrupt(why)) => why,
    };
    match has_foot() {
        Ok(true) => Ok((Found::Damaged(why), None)),
        Err(ReadError::Io(error)) => Err(error),
        _ => Ok((Found::Unfinished, None)),
    }
}

/// The first message whose body is not right.
fn first_damaged(file: &SpoolFile) -> io::Result<Option<(usize, String)>> {
    for n in 0..file.messages().len() {
        match file.check_body(n) {
            Ok(()) => {}
            Err(ReadError::Io(error)) => return Err(error),
            Err(error) => return Ok(Some((n, error.to_string()))),
        }
    }
    Ok(None)
}
