//! Reading a spool file, and writing its log.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate, openat};
use nix::sys::stat::Mode;
use postern_address::Mailbox;

use crate::format::{self, BLOCK, FOOT_LEN, Foot, HEAD_LEN, Head, LOG_HEAD_LEN, MESSAGES_MAX, Stored};
use crate::id::QueueId;
use crate::log::{self, LogEntry, LogRecord, Step};
use crate::record::FormatError;
use crate::verify::LogTail;

/// How much of the end of a file is read at once: of a small message, index, foot and log.
const WINDOW: u64 = 16 * 1024;
/// How far behind the end of a log records are looked for.
const TORN_MAX: u64 = 64 * 1024;

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The kernel said no.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Not what was written: for `corrupt/`.
    #[error("spool file is damaged: {0}")]
    Corrupt(String),
    /// Whole, and written by a newer Postern (this format, or a record this one does not know): leave it.
    #[error("spool file of a newer format ({0})")]
    Newer(u32),
}

/// An open spool file.
#[derive(Debug)]
pub struct SpoolFile {
    file: File,
    /// The directory and the name it was opened by; none when only its descriptor is known.
    place: Option<(OwnedFd, String)>,
    id: QueueId,
    contents: Contents,
    log: Log,
    /// Where the next log record goes.
    log_end: u64,
    /// Something may stand behind `log_end`: a record half written.
    torn: bool,
    /// What goes before the first record, when it is not there yet.
    log_head: Option<[u8; LOG_HEAD_LEN]>,
}

/// What stands in a file but its log.
#[derive(Debug, Default)]
struct Contents {
    messages: Vec<Stored>,
    parts: Vec<Part>,
}

/// Messages that were committed together.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// How many messages stand in this part and those before it.
    messages: usize,
    /// Where its index begins.
    index: u64,
    /// Behind its foot.
    end: u64,
}

/// How much is expected of a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// Its writer is done with it: all of its parts are whole, and a log may follow.
    Queued,
    /// A local user wrote it, in one part, and may have put anything behind that.
    Dropped,
    /// Its writer died: the last part may be half written, and then it was promised to nobody.
    Unfinished,
}

impl SpoolFile {
    /// Opens a file and reads the foot and the index of each part, and its log; not its bodies. A log that ends in
    /// the middle of a record is read up to there.
    pub fn open(directory: BorrowedFd<'_>, name: &str) -> Result<Self, ReadError> {
        Self::open_with(directory, name, Reading::Queued)
    }

    /// Opens a file of `tmp/` whose writer is dead: as [`SpoolFile::open`], but up to the first part that has no valid
    /// foot.
    pub fn open_unfinished(directory: BorrowedFd<'_>, name: &str) -> Result<Self, ReadError> {
        Self::open_with(directory, name, Reading::Unfinished)
    }

    /// Opens a file of `drop/`: as [`SpoolFile::open`], but what stands behind the foot is not looked at.
    /// The one who wrote it may hold it open for writing still, and may have put anything there.
    pub fn open_dropped(directory: BorrowedFd<'_>, name: &str) -> Result<Self, ReadError> {
        Self::open_with(directory, name, Reading::Dropped)
    }

    /// As [`SpoolFile::open_dropped`], over a copy that nobody else can change: a file, perhaps in memory.
    pub(crate) fn from_dropped(copy: File) -> Result<Self, ReadError> {
        let size = copy.metadata()?.len();
        Self::read(copy, size, None, Reading::Dropped)
    }

    fn open_with(directory: BorrowedFd<'_>, name: &str, reading: Reading) -> Result<Self, ReadError> {
        let (file, size) = open_regular(directory, name)?;
        let place = (directory.try_clone_to_owned()?, name.to_owned());
        Self::read(file, size, Some(place), reading)
    }

    fn read(
        file: File,
        size: u64,
        place: Option<(OwnedFd, String)>,
        reading: Reading,
    ) -> Result<Self, ReadError> {
        let mut head = [0; HEAD_LEN];
        read_exact(&file, &mut head, 0, "no head")?;
        let head = format::decode_head(&head)?;
        if head.part.is_some_and(|part| part > 0) {
            return Err(ReadError::Corrupt("it begins with a later part".into()));
        }
        let mut tail = Tail { file: &file, size, base: 0, bytes: Vec::new() };
        let mut contents = Contents::default();
        contents.add(&mut tail, 0, head)?;
        let (mut end, mut log_head) = (contents.end(), None);
        if head.part.is_some() && reading != Reading::Dropped {
            contents.add_the_others(&mut tail, head.id, reading)?;
            end = contents.end().next_multiple_of(BLOCK);
            let expected = format::encode_log_head(head.id, contents.parts.len() as u32);
            if tail.begins_with(end, &expected)? {
                end += LOG_HEAD_LEN as u64;
            } else {
                if reading == Reading::Queued && size > end && has_foot_behind(&file, end, head.id)? {
                    return Err(ReadError::Corrupt("a part is without its head".into()));
                }
                log_head = Some(expected);
            }
        }
        let (log, log_end) = match reading {
            Reading::Queued if log_head.is_none() => {
                read_log(&mut tail, head.id, end, contents.messages.len())?
            }
            _ => (Log::default(), end),
        };
        Ok(Self { place, id: head.id, contents, log, log_end, torn: log_end < size, log_head, file })
    }

    /// The messages of the file.
    pub fn messages(&self) -> &[Stored] {
        &self.contents.messages
    }

    /// The user who owns the file: of a file of `drop/`, the one who really sent it.
    pub fn owner(&self) -> io::Result<u32> {
        Ok(std::os::unix::fs::MetadataExt::uid(&self.file.metadata()?))
    }

    /// The log: as it stood when the file was opened, and what was appended by this handle since. Of several
    /// deferrals of one delivery only the last is kept, in the place of the first: a message to many that waits
    /// for days has a long log.
    pub fn log(&self) -> &[LogRecord] {
        &self.log.records
    }

    /// Reads one body, and checks it.
    pub fn read_body(&self, n: usize) -> Result<Vec<u8>, ReadError> {
        let stored = self.stored(n)?;
        // Open has checked that this lies within the file, so the length is not a stranger's wish.
        let length = usize::try_from(stored.length).map_err(io::Error::other)?;
        let mut body = vec![0; length];
        read_exact(&self.file, &mut body, stored.offset, "a body is cut short")?;
        if crc32c::crc32c(&body) != stored.crc {
            return Err(ReadError::Corrupt(format!("the body of {} is damaged", stored.id)));
        }
        Ok(body)
    }

    /// Reads one body as it stands, right or not: for a human who has nothing better.
    pub fn read_damaged_body(&self, n: usize) -> Result<Vec<u8>, ReadError> {
        let stored = self.stored(n)?;
        let mut body = vec![0; usize::try_from(stored.length).map_err(io::Error::other)?];
        read_exact(&self.file, &mut body, stored.offset, "a body is cut short")?;
        Ok(body)
    }

    /// Reads a piece of one body from a place in it. It is not checked.
    pub fn read_body_at(&self, n: usize, at: u64, piece: &mut [u8]) -> Result<(), ReadError> {
        let stored = self.stored(n)?;
        if at.checked_add(piece.len() as u64).is_none_or(|end| end > stored.length) {
            return Err(ReadError::Corrupt("a body is shorter".into()));
        }
        read_exact(&self.file, piece, stored.offset + at, "a body is cut short")
    }

    /// Reads one body in pieces and checks it.
    pub(crate) fn check_body(&self, n: usize) -> Result<(), ReadError> {
        let stored = self.stored(n)?;
        let mut piece = vec![0; stored.length.min(256 * 1024) as usize];
        let (mut at, end, mut crc) = (stored.offset, stored.offset + stored.length, 0);
        while at < end {
            let length = (end - at).min(piece.len() as u64) as usize;
            let piece = piece.get_mut(..length).unwrap_or(&mut []);
            read_exact(&self.file, piece, at, "a body is cut short")?;
            crc = crc32c::crc32c_append(crc, piece);
            at += length as u64;
        }
        if crc == stored.crc {
            Ok(())
        } else {
            Err(ReadError::Corrupt(format!("the body of {} is damaged", stored.id)))
        }
    }

    /// A read-only descriptor on which one body stands at an offset, and no other message: the file
    /// itself when it holds one, else a sealed file in memory (the body checked).
    pub fn content_descriptor(&self, n: usize) -> io::Result<(OwnedFd, u64)> {
        let stored = self.stored(n)?;
        if let (Some((directory, name)), [_]) = (&self.place, self.messages()) {
            // Opened once more, since ours can write. Its name is the one it was opened by: a file that
            // was renamed meanwhile is NotFound.
            let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
            return Ok((openat(directory, name.as_str(), flags, Mode::empty())?, stored.offset));
        }
        let body = self.read_body(n).map_err(io::Error::other)?;
        Ok((postern_sys::sealed_file("message", &body)?, 0))
    }

    /// Appends to the log; [`SpoolFile::sync`] makes it last. On failure the log is as before.
    pub fn append(&mut self, records: &[LogRecord]) -> io::Result<()> {
        if self.torn {
            // What stands there must go first: behind a shorter record its rest might be read again.
            self.file.set_len(self.log_end)?;
            self.torn = false;
        }
        let mut bytes = Vec::with_capacity(LOG_HEAD_LEN + records.len() * 64);
        bytes.extend(self.log_head.iter().flatten());
        records.iter().for_each(|record| log::encode(&mut bytes, record, self.id, self.log_end));
        if let Err(error) = self.file.write_all_at(&bytes, self.log_end) {
            self.torn = true;
            return Err(error);
        }
        self.log_end += bytes.len() as u64;
        self.log_head = None;
        records.iter().for_each(|record| self.log.keep(record.clone()));
        Ok(())
    }

    /// What stands behind the log's last record.
    pub fn log_tail(&self) -> io::Result<LogTail> {
        let size = self.file.metadata()?.len();
        let rest = size.saturating_sub(self.log_end);
        if rest == 0 {
            return Ok(LogTail::Clean);
        }
        let mut tail = Tail { file: &self.file, size, base: 0, bytes: Vec::new() };
        tail.load(self.log_end, rest.min(TORN_MAX))?;
        // A record is valid at its own place only: one that is found here was written here.
        let found = (0..tail.bytes.len()).any(|at| {
            let bytes = tail.bytes.get(at..).unwrap_or(&[]);
            matches!(log::decode(bytes, self.id, self.log_end + at as u64), Ok(Step::Record(..)))
        });
        Ok(if found { LogTail::Damaged(rest) } else { LogTail::Torn(rest) })
    }

    /// Cuts off what stands behind the log's last record, and syncs.
    pub fn cut_log(&mut self) -> io::Result<()> {
        self.file.set_len(self.log_end)?;
        self.torn = false;
        self.file.sync_all()
    }

    /// Whether a message stands in the last of several parts: the one that may be half written when a writer died.
    pub(crate) fn is_in_last_part(&self, n: usize) -> bool {
        matches!(self.contents.parts.as_slice(), [.., before, _] if n >= before.messages)
    }

    /// Forgets the last of several parts. [`SpoolFile::cut_to_parts`] makes the file so.
    pub(crate) fn forget_last_part(&mut self) {
        if let [.., before, _] = *self.contents.parts.as_slice() {
            self.contents.parts.pop();
            self.contents.messages.truncate(before.messages);
        }
    }

    /// Cuts off what stands behind the last part.
    pub(crate) fn cut_to_parts(&mut self) -> io::Result<()> {
        let end = self.contents.end();
        if end < self.file.metadata()?.len() { self.file.set_len(end) } else { Ok(()) }
    }

    /// Whether this is the name the writer gave it.
    pub(crate) fn is_named(&self, name: &str) -> bool {
        self.id.to_string() == name
    }

    /// Puts the log on stable storage: fdatasync.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Gives the blocks of one body back to the file system; its body cannot be read any more. A file
    /// system that cannot is no error.
    pub fn give_back(&self, n: usize) -> io::Result<()> {
        let stored = self.stored(n)?;
        let start = stored.offset.next_multiple_of(BLOCK);
        // Up to what comes next: what is between is padding.
        let index = self.contents.parts.iter().find(|part| n < part.messages).map_or(0, |part| part.index);
        let limit = self.messages().get(n + 1).map_or(index, |next| next.offset.min(index));
        let end = (stored.offset + stored.length).next_multiple_of(BLOCK).min(limit / BLOCK * BLOCK);
        if end <= start {
            return Ok(());
        }
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match fallocate(&self.file, flags, start as i64, (end - start) as i64) {
            Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Puts the whole file on stable storage.
    pub(crate) fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn stored(&self, n: usize) -> io::Result<&Stored> {
        self.messages().get(n).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no such message"))
    }
}

impl From<FormatError> for ReadError {
    fn from(error: FormatError) -> Self {
        match error {
            FormatError::Corrupt(why) => Self::Corrupt(why.into()),
            FormatError::Newer(version) => Self::Newer(version),
        }
    }
}

/// Whether a file has a head and a foot that belong together. Errors are the kernel's, or a newer format.
pub(crate) fn has_foot(directory: BorrowedFd<'_>, name: &str) -> Result<bool, ReadError> {
    open_has_foot(&open_regular(directory, name)?.0)
}

/// As [`has_foot`], of a file that is open.
pub(crate) fn open_has_foot(file: &File) -> Result<bool, ReadError> {
    let (mut head, mut foot) = ([0; HEAD_LEN], [0; FOOT_LEN]);
    let found = read_exact(file, &mut head, 0, "no head").and_then(|()| {
        let head = format::decode_head(&head)?;
        read_exact(file, &mut foot, head.foot, "no valid foot")?;
        Ok(format::decode_foot(&foot, head).map(|_| ())?)
    });
    match found {
        Err(ReadError::Corrupt(_)) => Ok(false),
        other => other.map(|()| true),
    }
}

/// Whether a foot of this file stands anywhere behind a place. Where neither a part nor a log begins there may be
/// what a crash left of the log, or a part that lost its head, whose messages must not be overlooked.
fn has_foot_behind(file: &File, mut at: u64, id: QueueId) -> io::Result<bool> {
    let mut piece = vec![0; 256 * 1024];
    loop {
        let length = read_up_to(file, &mut piece, at)?;
        if format::has_foot_of(piece.get(..length).unwrap_or(&[]), id) {
            return Ok(true);
        }
        if length < FOOT_LEN {
            return Ok(false);
        }
        // A foot may stand across the end of the piece.
        at += (length - FOOT_LEN + 1) as u64;
    }
}

/// A file and its size. Opens for reading and writing, or for reading where that is all we may. A fifo or a link that
/// somebody put into `drop/` must neither hang nor lead us elsewhere.
fn open_regular(directory: BorrowedFd<'_>, name: &str) -> Result<(File, u64), ReadError> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    let fd = match openat(directory, name, flags | OFlag::O_RDWR, Mode::empty()) {
        Err(Errno::EACCES | Errno::EPERM | Errno::EROFS) => {
            openat(directory, name, flags | OFlag::O_RDONLY, Mode::empty())
        }
        opened => opened,
    };
    let file = match fd {
        Ok(fd) => File::from(fd),
        Err(Errno::ELOOP | Errno::EISDIR | Errno::ENXIO | Errno::ENODEV) => return Err(not_regular()),
        Err(error) => return Err(io::Error::from(error).into()),
    };
    let metadata = file.metadata()?;
    if metadata.is_file() { Ok((file, metadata.len())) } else { Err(not_regular()) }
}

fn not_regular() -> ReadError {
    ReadError::Corrupt("not a regular file".into())
}

impl Contents {
    /// Adds the part that `head` begins at `from`. On failure there are as many as before.
    fn add(&mut self, tail: &mut Tail<'_>, from: u64, head: Head) -> Result<(), ReadError> {
        let end = head.foot.checked_add(FOOT_LEN as u64).filter(|end| *end <= tail.size);
        let end = end.ok_or(ReadError::Corrupt("no valid foot".into()))?;
        tail.around(head.foot)?;
        let foot = format::decode_foot(tail.get(head.foot, FOOT_LEN)?, head)?;
        let read = read_index(tail, from, &foot)?;
        if self.messages.len() + read.len() > MESSAGES_MAX {
            return Err(ReadError::Corrupt("too many messages".into()));
        }
        if self.messages.is_empty() {
            // Most files are one part: its list as it is.
            self.messages = read;
        } else {
            self.messages.extend(read);
        }
        self.parts.push(Part { messages: self.messages.len(), index: foot.index, end });
        Ok(())
    }

    /// Adds the parts behind the first.
    fn add_the_others(
        &mut self,
        tail: &mut Tail<'_>,
        id: QueueId,
        reading: Reading,
    ) -> Result<(), ReadError> {
        loop {
            let at = self.end().next_multiple_of(BLOCK);
            if at.saturating_add(HEAD_LEN as u64) > tail.size {
                return Ok(());
            }
            // No head, or one that another file left in this block: the end of the parts.
            let Ok(head) = format::decode_head(tail.get(at, HEAD_LEN)?) else { return Ok(()) };
            if head.id != id || head.part != Some(self.parts.len() as u32) {
                return Ok(());
            }
            match self.add(tail, at, head) {
                Err(ReadError::Corrupt(_)) if reading == Reading::Unfinished => return Ok(()),
                added => added?,
            }
        }
    }

    /// Behind the last part.
    fn end(&self) -> u64 {
        self.parts.last().map_or(0, |part| part.end)
    }
}

fn read_index(tail: &mut Tail<'_>, from: u64, foot: &Foot) -> Result<Vec<Stored>, ReadError> {
    // decode_foot has bounded the length and put its end at the foot.
    let length = usize::try_from(foot.index_length).map_err(io::Error::other)?;
    if foot.index >= tail.base {
        return Ok(format::decode_index(tail.get(foot.index, length)?, from, foot)?);
    }
    let mut index = vec![0; length];
    read_exact(tail.file, &mut index, foot.index, "the index is cut short")?;
    Ok(format::decode_index(&index, from, foot)?)
}

/// The valid records from `at` on, and where they end.
fn read_log(tail: &mut Tail<'_>, id: QueueId, mut at: u64, messages: usize) -> Result<(Log, u64), ReadError> {
    let mut log = Log::default();
    while at < tail.size {
        match log::decode(tail.from(at)?, id, at)? {
            Step::Record(record, length) => {
                if record.as_ref().is_some_and(|r| usize::from(r.message) >= messages) {
                    return Err(ReadError::Corrupt("the log names a message that is not there".into()));
                }
                if let Some(record) = record {
                    log.keep(record);
                }
                at += length as u64;
            }
            Step::NeedMore(length) if at + length as u64 <= tail.size => {
                tail.get(at, length)?;
            }
            Step::NeedMore(_) | Step::End => break,
        }
    }
    Ok((log, at))
}

/// What of a log is kept in memory.
#[derive(Debug, Default)]
struct Log {
    records: Vec<LogRecord>,
    /// Which delivery was deferred, and where in the list that stands.
    deferred: HashMap<(u16, u32, Option<Mailbox>), usize>,
}

impl Log {
    /// Adds a record, or puts it in the place of one that it supersedes.
    fn keep(&mut self, record: LogRecord) {
        if let LogEntry::Deferred { recipient, address, .. } = &record.what {
            let next = self.records.len();
            let place = *self.deferred.entry((record.message, *recipient, address.clone())).or_insert(next);
            if let Some(superseded) = self.records.get_mut(place) {
                *superseded = record;
                return;
            }
        }
        self.records.push(record);
    }
}

/// A piece of the file in memory, moved along as needed.
struct Tail<'a> {
    file: &'a File,
    size: u64,
    base: u64,
    bytes: Vec<u8>,
}

impl Tail<'_> {
    /// Moves to the piece in which a foot stands, with some of what is before it.
    fn around(&mut self, foot: u64) -> io::Result<()> {
        if self.holds(foot, FOOT_LEN) { Ok(()) } else { self.load(foot.saturating_sub(WINDOW / 4), 0) }
    }

    fn holds(&self, at: u64, length: usize) -> bool {
        self.base <= at && at + length as u64 <= self.base + self.bytes.len() as u64
    }

    /// Whether these octets stand at a place.
    fn begins_with(&mut self, at: u64, expected: &[u8]) -> Result<bool, ReadError> {
        if at.saturating_add(expected.len() as u64) > self.size {
            return Ok(false);
        }
        Ok(self.get(at, expected.len())? == expected)
    }

    /// So many octets at `at`, which must lie within the file.
    fn get(&mut self, at: u64, length: usize) -> Result<&[u8], ReadError> {
        if !self.holds(at, length) {
            self.load(at, length as u64)?;
        }
        let start = (at - self.base) as usize;
        self.bytes
            .get(start..start + length)
            .ok_or_else(|| ReadError::Corrupt("the file shrank while it was read".into()))
    }

    /// What is in memory from `at` on, at least one octet unless the file ends there.
    fn from(&mut self, at: u64) -> Result<&[u8], ReadError> {
        self.get(at, 1)?;
        Ok(self.bytes.get((at - self.base) as usize..).unwrap_or(&[]))
    }

    fn load(&mut self, at: u64, least: u64) -> io::Result<()> {
        let length = least.max(WINDOW).min(self.size.saturating_sub(at));
        self.base = at;
        self.bytes.resize(usize::try_from(length).map_err(io::Error::other)?, 0);
        let filled = read_up_to(self.file, &mut self.bytes, at)?;
        self.bytes.truncate(filled);
        Ok(())
    }
}

/// Fills `buffer` as far as the file goes; how far.
fn read_up_to(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn read_exact(file: &File, buffer: &mut [u8], at: u64, short: &str) -> Result<(), ReadError> {
    if i64::try_from(at).is_err() {
        return Err(ReadError::Corrupt(short.into()));
    }
    file.read_exact_at(buffer, at).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => ReadError::Corrupt(short.into()),
        _ => ReadError::Io(error),
    })
}

impl AsFd for SpoolFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
