//! The log at the end of a spool file: what became of each recipient.
//!
//! A record is `length: u32, crc32c: u32, payload`. The checksum covers the file's id, the record's place
//! in the file, the length and the payload: neither zeros, nor a tail that was half written, nor a block
//! that once was another file's log pass for one. The payload is `tag: u16, message: u16` and what the
//! tag says.

use postern_address::Mailbox;

use crate::envelope::Timestamp;
use crate::format::decode_mailbox;
use crate::id::QueueId;
use crate::record::{FormatError, OPTIONAL, text, u16_at, u32_at, u64_at, unknown};

/// Octets before a record's payload.
const HEADER_LEN: usize = 8;
/// Longest payload; what is longer is damage.
const PAYLOAD_MAX: usize = 16 * 1024;
/// Longest reply text that is kept, octets.
const REPLY_MAX: usize = 8 * 1024;
/// Longest address or name of a server, octets: far above what their parsers let through.
const SHORT_MAX: usize = 2 * 1024;

mod tag {
    pub(super) const DONE: u16 = 1;
    pub(super) const DEFERRED: u16 = 2;
    pub(super) const HELD: u16 = 3;
    pub(super) const RELEASED: u16 = 4;
    pub(super) const BOUNCE_SENT: u16 = 5;
    // A reader without these delivers as well, and reports less.
    pub(super) const DELAY_SENT: u16 = super::OPTIONAL | 6;
    pub(super) const OWED: u16 = super::OPTIONAL | 7;
    pub(super) const COMPLETE: u16 = super::OPTIONAL | 8;
    pub(super) const TOLD: u16 = super::OPTIONAL | 9;
}

const CUT_SHORT: &str = "a log record is cut short";

/// One thing that happened to one message of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRecord {
    /// Which message, counted from 0.
    pub message: u16,
    /// What happened.
    pub what: LogEntry,
}

/// What happened. `recipient` is the place in the envelope; `address` names one alias-expanded delivery
/// of that recipient, and is `None` for the recipient as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogEntry {
    /// Nothing more is to be done for it.
    Done {
        /// Place in the envelope.
        recipient: u32,
        /// One delivery of it.
        address: Option<Mailbox>,
        /// In which way.
        status: DoneStatus,
    },
    /// To be tried again.
    Deferred {
        /// Place in the envelope.
        recipient: u32,
        /// One delivery of it.
        address: Option<Mailbox>,
        /// Not before.
        until: Timestamp,
        /// Why; cut at 8 KiB.
        reply: String,
    },
    /// An operator holds the message.
    Held,
    /// It is no longer held.
    Released,
    /// The report to the sender is itself in the spool.
    BounceSent,
    /// A report that the message is late is in the spool: there is one for each message.
    DelaySent,
    /// It succeeded, and the sender is to be told: the recipient is done when that is in the spool.
    Owed {
        /// Place in the envelope.
        recipient: u32,
        /// One delivery of it.
        address: Option<Mailbox>,
        /// What is to be told.
        action: Success,
        /// Which server took it.
        relay: Option<String>,
        /// In whose words; cut at 8 KiB.
        reply: String,
    },
    /// Nothing but a report is owed for this recipient.
    Complete {
        /// Place in the envelope.
        recipient: u32,
    },
    /// What was owed for this recipient is in the spool; something of it is left to deliver.
    Told {
        /// Place in the envelope.
        recipient: u32,
    },
}

/// What a report of success says (RFC 3464 §2.3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Success {
    /// It is in the mailbox.
    Delivered,
    /// The next host has it, and makes no such reports.
    Relayed,
    /// It goes to several, of whom no more is told.
    Expanded,
}

/// How a recipient was finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DoneStatus {
    /// Delivered or relayed.
    Delivered,
    /// Permanently failed; to be reported to the sender.
    Failed,
    /// An operator took it out.
    Removed,
}

/// What stands at the beginning of some bytes of a log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A record of so many octets; `None` when it may be skipped.
    Record(Option<LogRecord>, usize),
    /// Perhaps the beginning of a record: so many octets would tell.
    NeedMore(usize),
    /// No record: the log ends before this.
    End,
}

/// Appends one record to `out`, which begins at `base` of the file `id`.
pub(crate) fn encode(out: &mut Vec<u8>, record: &LogRecord, id: QueueId, base: u64) {
    let at = out.len();
    out.extend_from_slice(&[0; HEADER_LEN]);
    let tag = match &record.what {
        LogEntry::Done { .. } => tag::DONE,
        LogEntry::Deferred { .. } => tag::DEFERRED,
        LogEntry::Held => tag::HELD,
        LogEntry::Released => tag::RELEASED,
        LogEntry::BounceSent => tag::BOUNCE_SENT,
        LogEntry::DelaySent => tag::DELAY_SENT,
        LogEntry::Owed { .. } => tag::OWED,
        LogEntry::Complete { .. } => tag::COMPLETE,
        LogEntry::Told { .. } => tag::TOLD,
    };
    out.extend_from_slice(&tag.to_le_bytes());
    out.extend_from_slice(&record.message.to_le_bytes());
    encode_entry(out, &record.what);
    let length = ((out.len() - at - HEADER_LEN) as u32).to_le_bytes();
    let crc = checksum(id, base + at as u64, length, out.get(at + HEADER_LEN..).unwrap_or(&[]));
    if let Some(header) = out.get_mut(at..at + HEADER_LEN) {
        header[..4].copy_from_slice(&length);
        header[4..].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Looks at the beginning of `bytes`, which is at `at` of the file `id`. An error is a record that is whole
/// and not understood.
pub(crate) fn decode(bytes: &[u8], id: QueueId, at: u64) -> Result<Step, FormatError> {
    let (Some(length), Some(crc)) = (u32_at(bytes, 0), u32_at(bytes, 4)) else {
        return Ok(Step::NeedMore(HEADER_LEN));
    };
    let size = length as usize;
    if size > PAYLOAD_MAX {
        return Ok(Step::End);
    }
    let Some(payload) = bytes.get(HEADER_LEN..HEADER_LEN + size) else {
        return Ok(Step::NeedMore(HEADER_LEN + size));
    };
    if checksum(id, at, length.to_le_bytes(), payload) != crc {
        return Ok(Step::End);
    }
    decode_payload(payload).map(|record| Step::Record(record, HEADER_LEN + size))
}

fn checksum(id: QueueId, at: u64, length: [u8; 4], payload: &[u8]) -> u32 {
    let place = crc32c::crc32c_append(crc32c::crc32c(&id.as_u64().to_le_bytes()), &at.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(place, &length), payload)
}

fn encode_entry(out: &mut Vec<u8>, entry: &LogEntry) {
    let mailbox = |address: &Option<Mailbox>| address.as_ref().map_or("", |a| a.as_str()).to_owned();
    match entry {
        LogEntry::Done { recipient, address, status } => {
            let status = match status {
                DoneStatus::Delivered => 1,
                DoneStatus::Failed => 2,
                DoneStatus::Removed => 3,
            };
            out.extend_from_slice(&recipient.to_le_bytes());
            out.push(status);
            out.extend_from_slice(mailbox(address).as_bytes());
        }
        LogEntry::Deferred { recipient, address, until, reply } => {
            let address = mailbox(address);
            out.extend_from_slice(&recipient.to_le_bytes());
            out.extend_from_slice(&until.0.to_le_bytes());
            short(out, &address);
            out.extend_from_slice(cut(reply, REPLY_MAX).as_bytes());
        }
        LogEntry::Owed { recipient, address, action, relay, reply } => {
            let action = match action {
                Success::Delivered => 1,
                Success::Relayed => 2,
                Success::Expanded => 3,
            };
            out.extend_from_slice(&recipient.to_le_bytes());
            out.push(action);
            short(out, &mailbox(address));
            short(out, relay.as_deref().unwrap_or_default());
            out.extend_from_slice(cut(reply, REPLY_MAX).as_bytes());
        }
        LogEntry::Complete { recipient } | LogEntry::Told { recipient } => {
            out.extend_from_slice(&recipient.to_le_bytes())
        }
        LogEntry::Held | LogEntry::Released | LogEntry::BounceSent | LogEntry::DelaySent => {}
    }
}

/// Text that others stand behind: a mailbox or the name of a server.
fn short(out: &mut Vec<u8>, text: &str) {
    let text = cut(text, SHORT_MAX);
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn cut(text: &str, most: usize) -> &str {
    text.get(..text.floor_char_boundary(most)).unwrap_or(text)
}

fn decode_payload(payload: &[u8]) -> Result<Option<LogRecord>, FormatError> {
    const BAD: FormatError = FormatError::Corrupt("a log record that says nothing");
    let (tag, message) = (u16_at(payload, 0).ok_or(BAD)?, u16_at(payload, 2).ok_or(BAD)?);
    let rest = payload.get(4..).ok_or(BAD)?;
    let what = match tag {
        tag::DONE => decode_done(rest)?,
        tag::DEFERRED => decode_deferred(rest)?,
        tag::HELD => LogEntry::Held,
        tag::RELEASED => LogEntry::Released,
        tag::BOUNCE_SENT => LogEntry::BounceSent,
        tag::DELAY_SENT => LogEntry::DelaySent,
        tag::OWED => decode_owed(rest)?,
        tag::COMPLETE => {
            LogEntry::Complete { recipient: u32_at(rest, 0).ok_or(FormatError::Corrupt(CUT_SHORT))? }
        }
        tag::TOLD => LogEntry::Told { recipient: u32_at(rest, 0).ok_or(FormatError::Corrupt(CUT_SHORT))? },
        other => return unknown(other).map(|()| None),
    };
    Ok(Some(LogRecord { message, what }))
}

fn decode_done(rest: &[u8]) -> Result<LogEntry, FormatError> {
    let status = match rest.get(4) {
        Some(1) => DoneStatus::Delivered,
        Some(2) => DoneStatus::Failed,
        Some(3) => DoneStatus::Removed,
        Some(_) => return Err(FormatError::Newer(crate::format::VERSION)),
        None => return Err(FormatError::Corrupt(CUT_SHORT)),
    };
    let recipient = u32_at(rest, 0).unwrap_or_default();
    Ok(LogEntry::Done { recipient, address: optional_mailbox(rest.get(5..).unwrap_or(&[]))?, status })
}

fn decode_deferred(rest: &[u8]) -> Result<LogEntry, FormatError> {
    const BAD: FormatError = FormatError::Corrupt(CUT_SHORT);
    let recipient = u32_at(rest, 0).ok_or(BAD)?;
    let until = Timestamp(u64_at(rest, 4).ok_or(BAD)?);
    let (address, reply) = rest.get(12..).and_then(split_short).ok_or(BAD)?;
    Ok(LogEntry::Deferred {
        recipient,
        address: optional_mailbox(address)?,
        until,
        reply: text(reply)?.to_owned(),
    })
}

fn decode_owed(rest: &[u8]) -> Result<LogEntry, FormatError> {
    const BAD: FormatError = FormatError::Corrupt(CUT_SHORT);
    let recipient = u32_at(rest, 0).ok_or(BAD)?;
    let action = match rest.get(4) {
        Some(1) => Success::Delivered,
        Some(2) => Success::Relayed,
        Some(3) => Success::Expanded,
        Some(_) => return Err(FormatError::Newer(crate::format::VERSION)),
        None => return Err(BAD),
    };
    let (address, rest) = rest.get(5..).and_then(split_short).ok_or(BAD)?;
    let (relay, reply) = split_short(rest).ok_or(BAD)?;
    let relay = Some(text(relay)?.to_owned()).filter(|relay| !relay.is_empty());
    let address = optional_mailbox(address)?;
    Ok(LogEntry::Owed { recipient, address, action, relay, reply: text(reply)?.to_owned() })
}

/// What [`short`] wrote, and what stands behind it.
fn split_short(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = usize::from(u16_at(bytes, 0)?);
    bytes.get(2..)?.split_at_checked(length)
}

fn optional_mailbox(bytes: &[u8]) -> Result<Option<Mailbox>, FormatError> {
    if bytes.is_empty() { Ok(None) } else { decode_mailbox(bytes).map(Some) }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::record::OPTIONAL;
    use crate::samples;

    const FILE: QueueId = QueueId::from_u64(7);
    const BASE: u64 = 1000;

    /// Every record up to the end, as a reader takes them.
    fn read(bytes: &[u8]) -> Vec<LogRecord> {
        let (mut records, mut at) = (Vec::new(), 0);
        while let Ok(Step::Record(record, length)) = decode(&bytes[at..], FILE, BASE + at as u64) {
            records.extend(record);
            at += length;
        }
        records
    }

    fn decode_first(bytes: &[u8]) -> Result<Step, FormatError> {
        decode(bytes, FILE, BASE)
    }

    fn encoded(payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_le_bytes();
        let crc = checksum(FILE, BASE, length, payload).to_le_bytes();
        [&length, &crc, payload].concat()
    }

    proptest! {
        #[test]
        fn round_trip(records in vec(samples::log_record(), 0..6)) {
            let mut bytes = Vec::new();
            records.iter().for_each(|record| encode(&mut bytes, record, FILE, BASE));
            prop_assert_eq!(read(&bytes), records);
        }

        /// A log that is cut anywhere, with anything behind it, reads as a beginning of what was written.
        #[test]
        fn torn(records in vec(samples::log_record(), 1..6), cut: prop::sample::Index, rest in vec(0u8..2, 0..40)) {
            let mut bytes = Vec::new();
            records.iter().for_each(|record| encode(&mut bytes, record, FILE, BASE));
            bytes.truncate(cut.index(bytes.len()));
            bytes.extend(rest);
            let found = read(&bytes);
            prop_assert_eq!(&found[..], &records[..found.len().min(records.len())]);
        }

        #[test]
        fn flipped(records in vec(samples::log_record(), 1..6), bit: prop::sample::Index) {
            let mut bytes = Vec::new();
            let mut ends = vec![];
            records.iter().for_each(|record| { encode(&mut bytes, record, FILE, BASE); ends.push(bytes.len()); });
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let before = ends.iter().filter(|end| **end <= bit / 8).count();
            prop_assert_eq!(&read(&bytes)[..], &records[..before]);
        }

        #[test]
        fn hostile(bytes: Vec<u8>) {
            let _ = decode_first(&bytes);
            let _ = decode_first(&encoded(&bytes));
            for tag in 0..20u8 {
                let _ = decode_first(&encoded(&[&[tag / 2, (tag % 2) << 7], &bytes[..]].concat()));
            }
        }
    }

    /// What another file's log left in a block, or our own at another place, is not ours here.
    #[test]
    fn strange_records_are_none() {
        let mut bytes = Vec::new();
        encode(&mut bytes, &LogRecord { message: 0, what: LogEntry::Held }, FILE, BASE);
        assert!(matches!(decode(&bytes, FILE, BASE), Ok(Step::Record(Some(_), _))));
        assert_eq!(decode(&bytes, QueueId::from_u64(8), BASE), Ok(Step::End));
        assert_eq!(decode(&bytes, FILE, BASE + 1), Ok(Step::End));
    }

    #[test]
    fn zeros_are_no_record() {
        assert_eq!(decode_first(&[0; 64]), Ok(Step::End));
        assert_eq!(decode_first(&[0; 7]), Ok(Step::NeedMore(8)));
        assert_eq!(decode_first(&[0xff; 64]), Ok(Step::End));
    }

    #[test]
    fn unknown_entries() {
        let optional = encoded(&[&(OPTIONAL | 99).to_le_bytes()[..], &[0, 0, 1, 2, 3]].concat());
        assert_eq!(decode_first(&optional), Ok(Step::Record(None, optional.len())));
        assert!(matches!(decode_first(&encoded(&[9, 0, 0, 0])), Err(FormatError::Newer(_))));
        assert!(matches!(decode_first(&encoded(&[1, 0, 0, 0, 0, 0, 0, 0, 4])), Err(FormatError::Newer(_))));
    }

    #[test]
    fn long_replies_are_cut_between_characters() {
        let what =
            |reply: String| LogEntry::Deferred { recipient: 0, address: None, until: Timestamp(1), reply };
        let mut bytes = Vec::new();
        encode(&mut bytes, &LogRecord { message: 0, what: what("aж".repeat(6000)) }, FILE, BASE);
        let kept = &read(&bytes)[0].what;
        let LogEntry::Deferred { reply, .. } = kept else { panic!("{kept:?}") };
        assert!(reply.len() > REPLY_MAX - 4 && reply.len() <= REPLY_MAX);
    }
}
