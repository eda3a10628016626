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
use crate::record::{FormatError, text, u16_at, u32_at, u64_at, unknown};

/// Octets before a record's payload.
const HEADER_LEN: usize = 8;
/// Longest payload; what is longer is damage.
const PAYLOAD_MAX: usize = 16 * 1024;
/// Longest reply text that is kept, octets.
const REPLY_MAX: usize = 8 * 1024;

mod tag {
    pub(super) const DONE: u16 = 1;
    pub(super) const DEFERRED: u16 = 2;
    pub(super) const HELD: u16 = 3;
    pub(super) const RELEASED: u16 = 4;
    pub(super) const BOUNCE_SENT: u16 = 5;
}

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
            // A mailbox has at most a few hundred octets.
            out.extend_from_slice(&(address.len() as u16).to_le_bytes());
            out.extend_from_slice(address.as_bytes());
            let cut = reply.floor_char_boundary(REPLY_MAX);
            out.extend_from_slice(reply.get(..cut).unwrap_or(reply).as_bytes());
        }
        LogEntry::Held | LogEntry::Released | LogEntry::BounceSent => {}
    }
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
        None => return Err(FormatError::Corrupt("a log record is cut short")),
    };
    let recipient = u32_at(rest, 0).unwrap_or_default();
    Ok(LogEntry::Done { recipient, address: optional_mailbox(rest.get(5..).unwrap_or(&[]))?, status })
}

fn decode_deferred(rest: &[u8]) -> Result<LogEntry, FormatError> {
    const BAD: FormatError = FormatError::Corrupt("a log record is cut short");
    let recipient = u32_at(rest, 0).ok_or(BAD)?;
    let until = Timestamp(u64_at(rest, 4).ok_or(BAD)?);
    let length = usize::from(u16_at(rest, 12).ok_or(BAD)?);
    let (address, reply) = rest.get(14..).and_then(|r| r.split_at_checked(length)).ok_or(BAD)?;
    Ok(LogEntry::Deferred {
        recipient,
        address: optional_mailbox(address)?,
        until,
        reply: text(reply)?.to_owned(),
    })
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
            for tag in 0..6u8 {
                let _ = decode_first(&encoded(&[&[tag, 0], &bytes[..]].concat()));
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
        let optional = encoded(&[&(OPTIONAL | 9).to_le_bytes()[..], &[0, 0, 1, 2, 3]].concat());
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
