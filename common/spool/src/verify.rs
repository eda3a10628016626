//! A file looked at as a whole, for people: is all of it right, and what became of each recipient?

use std::io;
use std::os::fd::BorrowedFd;

use crate::envelope::Timestamp;
use crate::log::{DoneStatus, LogEntry};
use crate::reader::{ReadError, SpoolFile, has_foot};
use crate::recover::Found;

/// What [`verify`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Foot, index and bodies. Bodies of finished messages are not looked at: their blocks may have been
    /// given back.
    pub found: Found,
    /// Messages with a recipient that is not finished.
    pub waiting: usize,
    /// Those among them whose body is right.
    pub whole: usize,
    /// Messages of which nothing is left to do.
    pub finished: usize,
    /// How the log ends.
    pub log: LogTail,
}

/// What stands behind the last record of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogTail {
    /// Nothing.
    Clean,
    /// So many octets that are no record: what a crash leaves of an append. The next append cuts it off.
    Torn(u64),
    /// So many octets, with whole records among them: a record before those is damaged, and what they say
    /// is lost. Their recipients will get the message once more.
    Damaged(u64),
}

/// What a log says of one recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecipientState {
    /// Not tried, or nothing recorded.
    Waiting,
    /// To be tried again.
    Deferred {
        /// Not before.
        until: Timestamp,
        /// Why.
        reply: String,
    },
    /// Finished.
    Done(DoneStatus),
}

/// Reads all of a file. NotFound and the like are errors.
pub fn verify(directory: BorrowedFd<'_>, name: &str) -> io::Result<Verified> {
    let mut verified =
        Verified { found: Found::Whole, waiting: 0, whole: 0, finished: 0, log: LogTail::Clean };
    match SpoolFile::open(directory, name) {
        Ok(file) => look_into(&mut verified, &file, name)?,
        Err(ReadError::Io(error)) => return Err(error),
        Err(ReadError::Newer(version)) => verified.found = Found::Newer(version),
        Err(ReadError::Corrupt(why)) => {
            verified.found = match has_foot(directory, name) {
                Err(ReadError::Io(error)) => return Err(error),
                Ok(true) => Found::Damaged(why),
                _ => Found::Unfinished,
            }
        }
    }
    Ok(verified)
}

impl SpoolFile {
    /// What the log says of each recipient of a message, in the envelope's order.
    pub fn recipient_states(&self, n: usize) -> Vec<RecipientState> {
        let count = self.messages().get(n).map_or(0, |stored| stored.envelope.recipients.len());
        let mut states = vec![RecipientState::Waiting; count];
        for record in self.log().iter().filter(|record| usize::from(record.message) == n) {
            let (recipient, state) = match &record.what {
                LogEntry::Done { recipient, address: None, status } => {
                    (*recipient, RecipientState::Done(*status))
                }
                LogEntry::Deferred { recipient, until, reply, .. } => {
                    (*recipient, RecipientState::Deferred { until: *until, reply: reply.clone() })
                }
                _ => continue,
            };
            if let Some(place) = states.get_mut(recipient as usize)
                && !matches!(place, RecipientState::Done(_))
            {
                *place = state;
            }
        }
        states
    }

    /// Whether nothing is left to do for a message. Its body may be gone.
    pub fn is_finished(&self, n: usize) -> bool {
        self.recipient_states(n).iter().all(|state| matches!(state, RecipientState::Done(_)))
    }

    /// Whether an operator holds a message, or a rule did and no operator has released it.
    pub fn is_held(&self, n: usize) -> bool {
        let first = self.messages().get(n).is_some_and(|stored| stored.envelope.options.held);
        let of_this = self.log().iter().filter(|record| usize::from(record.message) == n);
        of_this.fold(first, |held, record| match record.what {
            LogEntry::Held => true,
            LogEntry::Released => false,
            _ => held,
        })
    }
}

fn look_into(verified: &mut Verified, file: &SpoolFile, name: &str) -> io::Result<()> {
    let mut why = (!file.is_named(name)).then(|| "its name is not the id of its first message".to_owned());
    for n in 0..file.messages().len() {
        if file.is_finished(n) {
            verified.finished += 1;
            continue;
        }
        verified.waiting += 1;
        match file.check_body(n) {
            Ok(()) => verified.whole += 1,
            Err(ReadError::Io(error)) => return Err(error),
            Err(error) => why = Some(error.to_string()),
        }
    }
    verified.log = file.log_tail()?;
    if let Some(why) = why {
        verified.found = Found::Damaged(why);
    }
    Ok(())
}
