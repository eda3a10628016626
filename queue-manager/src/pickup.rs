//! Mail from local programs, out of `drop/`.
//!
//! Any user may put any bytes there. So nothing of a dropped file is taken as it is: it is opened without
//! following links, must be a regular file with one name and of bounded size, and is copied to where its owner
//! cannot reach; the copy is checked, its content must be lines that end in CRLF, and the message is written
//! anew with an id, an origin and a Received field of our making. Who sent it is the file's owner by the
//! kernel's word.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use postern_address::ReversePath;
use postern_message::{date, fields};
use postern_smtp::parameters::RcptParameters;
use postern_spool::{
    BodyType, Envelope, Found, NewMessage, Options, Origin, QueueId, ReadError, STREAM_ABOVE, SpoolFile,
    Timestamp, Writer,
};

/// Copies in `cur/` begin with this; no queue id does.
pub const COPY_PREFIX: &str = "drop-";
/// Most octets of a dropped file beside its message: ten thousand recipients and the frame.
const BESIDE_MAX: u64 = 8 * 1024 * 1024;
/// Most recipients of a dropped message.
const RECIPIENTS_MAX: usize = 10_000;
/// Longest ENVID, type and address of ORCPT, octets.
const ENVID_MAX: usize = 100;
const ORCPT_KIND_MAX: usize = 40;
const ORCPT_ADDRESS_MAX: usize = 500;
/// Octets read from the copy at once.
const PIECE: usize = 64 * 1024;
/// The disk is slower than we: wait.
const UNWRITTEN_MAX: usize = 512 * 1024;
/// As much of a large message is looked at for its header fields.
const HEADER_READ: usize = 128 * 1024;

/// Why a file is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It is not there any more.
    #[error("gone")]
    Gone,
    /// Not now: try again at the next scan.
    #[error("{0}")]
    Later(io::Error),
    /// Never: for `corrupt/`.
    #[error("{0}")]
    Unfit(String),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::NotFound { Self::Gone } else { Self::Later(error) }
    }
}

impl From<ReadError> for Refusal {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Io(error) => Self::Later(error),
            error => Self::Unfit(error.to_string()),
        }
    }
}

impl From<Errno> for Refusal {
    fn from(error: Errno) -> Self {
        io::Error::from(error).into()
    }
}

/// A dropped message on its way into the spool.
#[derive(Debug)]
pub struct Pickup {
    /// Its name in `drop/`.
    pub name: QueueId,
    /// Who dropped it.
    pub uid: u32,
    /// Its new id.
    pub id: QueueId,
    envelope: Envelope,
    prepend: Vec<u8>,
    copy: SpoolFile,
    /// Octets of its body that are handed over.
    taken: u64,
    lines: Lines,
}

/// Copies a dropped file and checks it. The copy has no name when this returns: its descriptor is enough.
pub fn open(
    drop: BorrowedFd<'_>,
    cur: BorrowedFd<'_>,
    name: QueueId,
    id: QueueId,
    hostname: &str,
    message_size: u64,
    now: Timestamp,
) -> Result<Pickup, Refusal> {
    let name_text = name.to_string();
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let source = match openat(drop, name_text.as_str(), flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(Errno::ELOOP | Errno::ENXIO | Errno::ENODEV) => return Err(unfit("not a regular file")),
        Err(Errno::EACCES | Errno::EPERM) => return Err(unfit("not readable")),
        Err(error) => return Err(error.into()),
    };
    let metadata = source.metadata()?;
    if !metadata.is_file() {
        return Err(unfit("not a regular file"));
    }
    if metadata.nlink() != 1 {
        return Err(unfit("has another name"));
    }
    let length = metadata.len();
    if length > message_size.saturating_add(BESIDE_MAX) {
        return Err(too_large(message_size));
    }
    let copy = match length <= STREAM_ABOVE as u64 {
        true => copy_to_memory(source, length)?,
        false => copy_to_disk(source, length, cur, &format!("{}{name_text}", own_copies()))?,
    };
    Pickup::new(check(copy, message_size)?, name, id, metadata.uid(), hostname, now)
}

/// What our own copies begin with: recovery, in its thread, sweeps those of our predecessors.
pub fn own_copies() -> String {
    format!("{COPY_PREFIX}{}-", std::process::id())
}

fn unfit(why: &str) -> Refusal {
    Refusal::Unfit(why.to_owned())
}

fn too_large(message_size: u64) -> Refusal {
    Refusal::Unfit(format!("too large: [smtp] message-size is {message_size} octets"))
}

/// A small message needs no file: to make one is most of what a copy costs.
fn copy_to_memory(source: File, length: u64) -> Result<File, Refusal> {
    let mut bytes = Vec::with_capacity(length as usize);
    source.take(length).read_to_end(&mut bytes)?;
    Ok(postern_sys::sealed_file("dropped", &bytes)?.into())
}

fn copy_to_disk(source: File, length: u64, cur: BorrowedFd<'_>, name: &str) -> Result<File, Refusal> {
    postern_spool::remove(cur, name)?;
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut target = File::from(openat(cur, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
    postern_spool::remove(cur, name)?;
    // The owner may write while we copy: no more than was there.
    io::copy(&mut source.take(length), &mut target)?;
    Ok(target)
}

/// What its owner may have put behind the foot is not looked at.
fn check(copy: File, message_size: u64) -> Result<SpoolFile, Refusal> {
    let file = match postern_spool::classify_dropped(copy)? {
        (Found::Whole, Some(file)) => file,
        (Found::Damaged(why), _) => return Err(Refusal::Unfit(why)),
        (Found::Newer(version), _) => return Err(Refusal::Unfit(format!("of a newer format ({version})"))),
        (Found::Whole | Found::Unfinished, _) => return Err(unfit("no spool file")),
    };
    match file.messages() {
        [one] if one.envelope.recipients.is_empty() => Err(unfit("no recipients")),
        [one] if one.envelope.recipients.len() > RECIPIENTS_MAX => Err(unfit("too many recipients")),
        [one] if one.length > message_size => Err(too_large(message_size)),
        [_] => Ok(file),
        _ => Err(unfit("more than one message")),
    }
}

impl Pickup {
    fn new(
        copy: SpoolFile,
        name: QueueId,
        id: QueueId,
        uid: u32,
        hostname: &str,
        now: Timestamp,
    ) -> Result<Self, Refusal> {
        let Some(stored) = copy.messages().first() else { return Err(unfit("no message")) };
        let mut beginning = stored.prepend.clone();
        let mut piece = vec![0; stored.length.min(HEADER_READ as u64) as usize];
        copy.read_body_at(0, 0, &mut piece)?;
        beginning.extend(piece);
        let mut lines = Lines::default();
        let crlf = lines.take(&stored.prepend) && lines.at_start();
        if !crlf {
            return Err(unfit("its header lines do not end in CRLF"));
        }
        let reverse_path = stored.envelope.reverse_path.clone();
        let mut prepend = header(&beginning, &reverse_path, uid, id, hostname, now);
        prepend.extend_from_slice(&stored.prepend);
        // The recipients are kept in their order, each once, with what was said first of each.
        let mut seen = std::collections::BTreeSet::new();
        let kept = (0..).zip(&stored.envelope.recipients).filter(|(_, recipient)| seen.insert(*recipient));
        let (places, recipients): (Vec<u32>, Vec<_>) = kept.map(|(n, r)| (n, r.clone())).unzip();
        let options = options(&stored.envelope.options, &places);
        let envelope = Envelope {
            reverse_path,
            recipients,
            arrival: now,
            body: BodyType::SevenBit,
            origin: Origin::Local { uid },
            options,
        };
        Ok(Self { name, uid, id, envelope, prepend, copy, taken: 0, lines })
    }

    /// Who it says it is from.
    pub fn reverse_path(&self) -> &ReversePath {
        &self.envelope.reverse_path
    }

    /// It goes through the writer in pieces.
    pub fn is_large(&self) -> bool {
        self.length() > STREAM_ABOVE as u64
    }

    fn length(&self) -> u64 {
        self.copy.messages().first().map_or(0, |stored| stored.length)
    }

    /// Hands a small message over, whole.
    pub fn submit(&mut self, writer: &mut Writer, token: u64) -> Result<(), Refusal> {
        let body = self.copy.read_body(0)?;
        self.take(&body)?;
        self.end()?;
        let (envelope, prepend) = (self.envelope.clone(), std::mem::take(&mut self.prepend));
        writer.submit(token, NewMessage { id: self.id, envelope, prepend, body });
        Ok(())
    }

    /// Begins to hand a large message over.
    pub fn open_stream(&self, writer: &mut Writer, token: u64) {
        writer.open_stream(token, self.id);
    }

    /// Hands over more of a large message, as far as the writer keeps up. True when all is handed over. After an
    /// error the caller aborts the stream.
    pub fn stream(&mut self, writer: &mut Writer, token: u64) -> Result<bool, Refusal> {
        while writer.unwritten(token) < UNWRITTEN_MAX {
            let left = self.length() - self.taken;
            if left == 0 {
                self.end()?;
                writer.finish_stream(token, self.envelope.clone(), std::mem::take(&mut self.prepend));
                return Ok(true);
            }
            let mut piece = vec![0; left.min(PIECE as u64) as usize];
            self.copy.read_body_at(0, self.taken, &mut piece)?;
            self.taken += piece.len() as u64;
            self.take(&piece)?;
            writer.append(token, piece);
        }
        Ok(false)
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        if !self.lines.take(bytes) {
            return Err(unfit("holds a line end that is not CRLF"));
        }
        if self.lines.eight_bit {
            self.envelope.body = BodyType::EightBit;
        }
        Ok(())
    }

    fn end(&self) -> Result<(), Refusal> {
        if self.lines.at_start() { Ok(()) } else { Err(unfit("its last line does not end in CRLF")) }
    }
}

/// Of what a local program asked for, what it may ask for: reports. What it wrote there is looked at as if it
/// came by SMTP (RFC 3461 §4.2, §4.4).
fn options(dropped: &Options, places: &[u32]) -> Options {
    let fits = |text: &str, most: usize| text.len() <= most && !text.chars().any(char::is_control);
    let envid = dropped.envid.clone().filter(|envid| envid.is_ascii() && fits(envid, ENVID_MAX));
    let said: BTreeMap<u32, &RcptParameters> =
        dropped.recipients.iter().map(|(n, said)| (*n, said)).collect();
    let recipient = |(n, place): (u32, &u32)| {
        let mut said = RcptParameters::clone(said.get(place)?);
        said.orcpt = said.orcpt.filter(|orcpt| {
            let atom = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
            orcpt.kind.len() <= ORCPT_KIND_MAX
                && orcpt.kind.bytes().all(atom)
                && fits(&orcpt.address, ORCPT_ADDRESS_MAX)
        });
        (!said.is_empty()).then_some((n, said))
    };
    let recipients = (0..).zip(places).filter_map(recipient).collect();
    Options { ret: dropped.ret, envid, recipients, ..Options::default() }
}

/// The lines we add: Received, and what the message must have and has not (RFC 6409 §8).
fn header(
    beginning: &[u8],
    reverse_path: &ReversePath,
    uid: u32,
    id: QueueId,
    hostname: &str,
    now: Timestamp,
) -> Vec<u8> {
    let date = date(now.0);
    let mut out =
        format!("Received: by {hostname} (Postern, from userid {uid})\r\n\tid {id};\r\n\t{date}\r\n");
    let has = |name: &str| fields(beginning).any(|field| field.is(name));
    if !has("date") {
        out.push_str(&format!("Date: {date}\r\n"));
    }
    if !has("message-id") {
        out.push_str(&format!("Message-ID: <{id}@{hostname}>\r\n"));
    }
    if !has("from") {
        let from = match reverse_path {
            ReversePath::Mailbox(mailbox) => mailbox.to_string(),
            ReversePath::Null => format!("MAILER-DAEMON@{hostname}"),
        };
        out.push_str(&format!("From: <{from}>\r\n"));
    }
    if fields(beginning).next().is_none() && !beginning.starts_with(b"\r\n") {
        out.push_str("\r\n"); // No header section: all of it is body.
    }
    out.into_bytes()
}

/// Whether only CRLF ends a line, over any number of pieces.
#[derive(Debug, Default)]
struct Lines {
    after_cr: bool,
    begun: bool,
    eight_bit: bool,
}

impl Lines {
    /// False at a CR or LF alone.
    fn take(&mut self, bytes: &[u8]) -> bool {
        for &b in bytes {
            if (b == b'\n') != self.after_cr {
                return false;
            }
            self.begun = b != b'\n';
            self.after_cr = b == b'\r';
            self.eight_bit |= b >= 0x80;
        }
        true
    }

    fn at_start(&self) -> bool {
        !self.begun
    }
}

/// Sets a dropped file aside for a human; what is not even a file goes. Says what was done.
pub fn refuse(drop: BorrowedFd<'_>, name: &str, corrupt: BorrowedFd<'_>) -> io::Result<&'static str> {
    let stat = nix::sys::stat::fstatat(drop, name, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)?;
    match stat.st_mode & nix::libc::S_IFMT {
        nix::libc::S_IFREG => postern_spool::set_aside(drop, name, corrupt).map(|_| "set aside"),
        nix::libc::S_IFDIR => {
            nix::unistd::unlinkat(drop, name, nix::unistd::UnlinkatFlags::RemoveDir)?;
            Ok("removed")
        }
        _ => postern_spool::remove(drop, name).map(|()| "removed"),
    }
}

/// Unlinks a dropped file that is in the spool now.
pub fn taken(drop: &impl AsFd, name: QueueId) -> io::Result<()> {
    postern_spool::remove(drop.as_fd(), &name.to_string())
}

#[cfg(test)]
mod tests;
