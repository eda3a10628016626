//! Taking a message: from standard input to `drop/`.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use postern_address::{Mailbox, ReversePath};
use postern_config::Config;
use postern_smtp::parameters::RcptParameters;
use postern_spool::{
    BodyType, Envelope, IdAllocator, NewMessage, Options, Origin, QueueId, Slot, Timestamp, WriteError,
    write_one,
};

use crate::arguments::Arguments;
use crate::caller::Caller;
use crate::content::{Lines, without_mbox_line};
use crate::failure::{Failure, status};
use crate::header::{self, Author};
use crate::list;

/// Most recipients of one message: the queue-manager takes no more out of `drop/`.
const RECIPIENTS_MOST: usize = 10_000;

/// Takes a message and returns its id when it is on stable storage.
pub(crate) fn submit(
    arguments: &Arguments,
    config: &Config,
    caller: &Caller,
    input: &mut impl Read,
) -> Result<QueueId, Failure> {
    let home = &config.hostname;
    let own = caller.address(home)?;
    let sender = match &arguments.sender {
        None => ReversePath::Mailbox(own.clone()),
        // Any user may name any sender, as with every sendmail: who it was, the trace line says by uid.
        Some(given) => header::reverse_path(given, home)
            .map_err(|error| Failure::new(status::USAGE, format!("-f {}: {}", error.address, error.why)))?,
    };
    let mut recipients = operands(arguments, config)?;
    if recipients.is_empty() && !arguments.from_header {
        let text = "no recipients: name them, or let -t take them from the header section";
        return Err(Failure::new(status::USAGE, text));
    }
    // Before the message is read: whoever types it should not learn in the end that it was in vain.
    let drop = Drop::open(config)?;
    let message = read(input, arguments.ignore_dots, config.smtp.message_size)?;
    if arguments.from_header {
        recipients.extend(header::recipients(&message, home)?);
    }
    let author_is_caller = matches!(&sender, ReversePath::Mailbox(mailbox) if *mailbox == own);
    let address = match &sender {
        ReversePath::Mailbox(mailbox) => mailbox,
        ReversePath::Null => &own,
    };
    let persons_name = caller.full_name.as_deref().filter(|_| author_is_caller);
    let (id, now) = (drop.fresh_id()?, Timestamp::now());
    let author = Author {
        address,
        full_name: arguments.full_name.as_deref().or(persons_name),
        date: &postern_message::date(now.0),
        id: &id.to_string(),
        hostname: home,
    };
    let header::Prepared { prepend, body } = header::prepare(&message, &author);
    let mut envelope = envelope(sender, recipients, caller, now, &body)?;
    envelope.options = options(arguments, &envelope);
    drop.put(NewMessage { id, envelope, prepend, body }).map_err(|error| drop.failure(&error))?;
    Ok(id)
}

/// The recipients named on the command line. Each operand may be a list.
pub(crate) fn operands(arguments: &Arguments, config: &Config) -> Result<Vec<Mailbox>, Failure> {
    let lists = arguments.operands.iter().map(|operand| list::mailboxes(operand, &config.hostname));
    Ok(lists.collect::<Result<Vec<_>, _>>()?.concat())
}

/// What travels with the message; each recipient once.
pub(crate) fn envelope(
    reverse_path: ReversePath,
    recipients: Vec<Mailbox>,
    caller: &Caller,
    arrival: Timestamp,
    body: &[u8],
) -> Result<Envelope, Failure> {
    let mut seen = std::collections::HashSet::new();
    let recipients: Vec<Mailbox> = recipients.into_iter().filter(|one| seen.insert(one.clone())).collect();
    if recipients.is_empty() {
        return Err(Failure::new(status::DATA, "no recipients in the header section"));
    }
    if recipients.len() > RECIPIENTS_MOST {
        return Err(Failure::new(status::DATA, format!("more than {RECIPIENTS_MOST} recipients")));
    }
    let body = if body.is_ascii() { BodyType::SevenBit } else { BodyType::EightBit };
    Ok(Envelope {
        reverse_path,
        recipients,
        arrival,
        body,
        origin: Origin::Local { uid: caller.uid },
        options: Options::default(),
    })
}

/// What the command line asks for: of every recipient the same.
fn options(arguments: &Arguments, envelope: &Envelope) -> Options {
    let said = |n| (n, RcptParameters { notify: arguments.notify, orcpt: None });
    let places = 0..envelope.recipients.len() as u32;
    Options {
        ret: arguments.ret,
        envid: arguments.envid.clone(),
        recipients: arguments.notify.map(|_| places.map(said).collect()).unwrap_or_default(),
        ..Options::default()
    }
}

fn read(input: &mut impl Read, ignore_dots: bool, most: u64) -> Result<Vec<u8>, Failure> {
    let mut lines = Lines::new(ignore_dots);
    // No larger: most messages are small, and every page of it is one that the kernel must find for each run.
    let mut piece = [0; 8 * 1024];
    loop {
        match input.read(&mut piece) {
            Ok(0) => break,
            Ok(length) if !lines.take(piece.get(..length).unwrap_or_default()) => break,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Failure::new(status::IO, format!("cannot read the message: {error}"))),
        }
        if lines.len() as u64 > most {
            return Err(Failure::new(status::DATA, format!("the message has more than {most} octets")));
        }
    }
    Ok(without_mbox_line(lines.finish()))
}

/// The directory where local programs leave their mail.
pub(crate) struct Drop {
    path: PathBuf,
    directory: OwnedFd,
}

impl Drop {
    pub(crate) fn open(config: &Config) -> Result<Self, Failure> {
        let path = config.spool.join("drop");
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let opened = open(&path, flags, Mode::empty());
        let directory = opened.map_err(|error| {
            let hint = match error {
                Errno::ENOENT | Errno::ENOTDIR => ": Postern has never been started here",
                Errno::EACCES => ": sendmail is not installed set-gid, or for another user's Postern",
                _ => "",
            };
            Failure::new(status::TRY_LATER, format!("{}: {error}{hint}", path.display()))
        })?;
        Ok(Self { path, directory })
    }

    /// An id that no other program makes at this moment.
    pub(crate) fn fresh_id(&self) -> Result<QueueId, Failure> {
        let random = getrandom::u32()
            .map_err(|error| Failure::new(status::OS, format!("no random numbers: {error}")))?;
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Ok(IdAllocator::new(Slot::local(random as u16)).next(since.as_micros() as u64))
    }

    /// Writes a message; when this returns, it is on stable storage.
    pub(crate) fn put(&self, message: NewMessage) -> Result<(), WriteError> {
        write_one(self.directory.as_fd(), &message)
    }

    pub(crate) fn failure(&self, error: &WriteError) -> Failure {
        Failure::new(
            status::TRY_LATER,
            format!("{}: {error}: the message was not taken", self.path.display()),
        )
    }

    /// How many messages wait here; none when we may not look.
    pub(crate) fn waiting(&self) -> Option<usize> {
        let entries = std::fs::read_dir(&self.path).ok()?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Some(names.filter(|name| QueueId::parse(name).is_some()).count())
    }
}
