//! What a client asked for, as records of a message: most messages have none of these.
//!
//! A plain tag says what a reader that does not know it must not overlook: held mail must not go out, nor a
//! report that the sender does not want. What changes a report's wording or the order alone is marked as one
//! that may be skipped.

use std::collections::BTreeMap;

use postern_smtp::parameters::{ByMode, Notify, OriginalRecipient, RcptParameters, Ret};

use crate::envelope::{Deadline, Options, Timestamp};
use crate::record::{FormatError, OPTIONAL, Records, nest, put, text, u64_at, unknown, whole_u64};

/// Records of a message.
mod tag {
    use super::OPTIONAL;

    /// About the recipient before it.
    pub(super) const RECIPIENT: u16 = 11;
    pub(super) const SMTPUTF8: u16 = 12;
    pub(super) const HOLD_UNTIL: u16 = 13;
    pub(super) const DELIVER_BY: u16 = 14;
    pub(super) const HELD: u16 = 15;
    pub(super) const RET: u16 = OPTIONAL | 16;
    pub(super) const ENVID: u16 = OPTIONAL | 17;
    pub(super) const PRIORITY: u16 = OPTIONAL | 18;
}

/// Records of [`tag::RECIPIENT`].
mod recipient_tag {
    pub(super) const NOTIFY: u16 = 1;
    pub(super) const ORCPT_KIND: u16 = 2;
    pub(super) const ORCPT_ADDRESS: u16 = 3;
}

/// Bits of [`recipient_tag::NOTIFY`]; none is NEVER.
const SUCCESS: u8 = 1;
const FAILURE: u8 = 2;
const DELAY: u8 = 4;

/// What was said of each recipient, by its place.
pub(crate) fn by_recipient(options: &Options) -> BTreeMap<u32, &RcptParameters> {
    options.recipients.iter().filter(|(_, said)| !said.is_empty()).map(|(n, said)| (*n, said)).collect()
}

/// Appends what was said of the recipient whose record is the last.
pub(crate) fn encode_recipient(out: &mut Vec<u8>, said: &RcptParameters) {
    nest(out, tag::RECIPIENT, |out| {
        if let Some(Notify { success, failure, delay }) = said.notify {
            let bit = |set, bit| if set { bit } else { 0 };
            let bits = bit(success, SUCCESS) | bit(failure, FAILURE) | bit(delay, DELAY);
            put(out, recipient_tag::NOTIFY, &[bits]);
        }
        if let Some(OriginalRecipient { kind, address }) = &said.orcpt {
            put(out, recipient_tag::ORCPT_KIND, kind.as_bytes());
            put(out, recipient_tag::ORCPT_ADDRESS, address.as_bytes());
        }
    });
}

/// Appends everything but what was said of recipients.
pub(crate) fn encode(out: &mut Vec<u8>, options: &Options) {
    if options.smtputf8 {
        put(out, tag::SMTPUTF8, &[]);
    }
    if let Some(until) = options.hold_until {
        put(out, tag::HOLD_UNTIL, &until.0.to_le_bytes());
    }
    if let Some(Deadline { at, mode, trace }) = options.deliver_by {
        let mode = match mode {
            ByMode::Notify => 1,
            ByMode::Return => 2,
        };
        nest(out, tag::DELIVER_BY, |out| {
            out.extend_from_slice(&at.0.to_le_bytes());
            out.extend_from_slice(&[mode, u8::from(trace)]);
        });
    }
    if options.held {
        put(out, tag::HELD, &[]);
    }
    if let Some(ret) = options.ret {
        let ret = match ret {
            Ret::Full => 1,
            Ret::Headers => 2,
        };
        put(out, tag::RET, &[ret]);
    }
    if let Some(envid) = &options.envid {
        put(out, tag::ENVID, envid.as_bytes());
    }
    if options.priority != 0 {
        put(out, tag::PRIORITY, &options.priority.to_le_bytes());
    }
}

/// Options as their records come by.
#[derive(Default)]
pub(crate) struct Reading {
    options: Options,
    seen: Vec<u16>,
}

impl Reading {
    /// Takes one record that stands behind `recipients` of them.
    pub(crate) fn take(&mut self, tag: u16, payload: &[u8], recipients: usize) -> Result<(), FormatError> {
        let options = &mut self.options;
        match tag {
            tag::RECIPIENT => return take_recipient(&mut options.recipients, payload, recipients),
            tag::SMTPUTF8 => options.smtputf8 = empty(payload)?,
            tag::HOLD_UNTIL => options.hold_until = Some(Timestamp(whole_u64(payload)?)),
            tag::DELIVER_BY => options.deliver_by = Some(deadline(payload)?),
            tag::HELD => options.held = empty(payload)?,
            tag::RET => options.ret = Some(ret(payload)?),
            tag::ENVID => options.envid = Some(text(payload)?.to_owned()),
            tag::PRIORITY => options.priority = priority(payload)?,
            other => return unknown(other),
        }
        if self.seen.contains(&tag) {
            return Err(FormatError::Corrupt("a record came twice"));
        }
        self.seen.push(tag);
        Ok(())
    }

    /// What was read.
    pub(crate) fn finish(self) -> Options {
        self.options
    }
}

fn take_recipient(
    all: &mut Vec<(u32, RcptParameters)>,
    payload: &[u8],
    recipients: usize,
) -> Result<(), FormatError> {
    const NOBODY: FormatError = FormatError::Corrupt("parameters of no recipient");
    let place = recipients.checked_sub(1).and_then(|n| u32::try_from(n).ok()).ok_or(NOBODY)?;
    if all.last().is_some_and(|(last, _)| *last == place) {
        return Err(FormatError::Corrupt("a record came twice"));
    }
    let (mut said, mut kind, mut address) = (RcptParameters::default(), None, None);
    for record in Records(payload) {
        match record? {
            (recipient_tag::NOTIFY, &[bits]) if bits <= SUCCESS | FAILURE | DELAY => {
                let has = |bit| bits & bit != 0;
                said.notify =
                    Some(Notify { success: has(SUCCESS), failure: has(FAILURE), delay: has(DELAY) });
            }
            // A value that came later, as a record with an unknown tag would be.
            (recipient_tag::NOTIFY, _) => return unknown(recipient_tag::NOTIFY),
            (recipient_tag::ORCPT_KIND, payload) => kind = Some(text(payload)?.to_owned()),
            (recipient_tag::ORCPT_ADDRESS, payload) => address = Some(text(payload)?.to_owned()),
            (other, _) => unknown(other)?,
        }
    }
    said.orcpt = match (kind, address) {
        (Some(kind), Some(address)) => Some(OriginalRecipient { kind, address }),
        (None, None) => None,
        _ => return Err(FormatError::Corrupt("half an original recipient")),
    };
    if !said.is_empty() {
        all.push((place, said));
    }
    Ok(())
}

fn empty(payload: &[u8]) -> Result<bool, FormatError> {
    if payload.is_empty() { Ok(true) } else { Err(FormatError::Corrupt("a mark of another size")) }
}

fn deadline(payload: &[u8]) -> Result<Deadline, FormatError> {
    let at = u64_at(payload, 0).map(Timestamp);
    let (mode, trace) = match payload.get(8..) {
        Some(&[mode @ (1 | 2), trace @ (0 | 1)]) => (mode, trace == 1),
        Some([_, _]) => return Err(unknown_value()),
        _ => return Err(FormatError::Corrupt("a deadline of another size")),
    };
    let mode = if mode == 1 { ByMode::Notify } else { ByMode::Return };
    Ok(Deadline { at: at.ok_or(FormatError::Corrupt("a deadline of another size"))?, mode, trace })
}

fn ret(payload: &[u8]) -> Result<Ret, FormatError> {
    match payload {
        [1] => Ok(Ret::Full),
        [2] => Ok(Ret::Headers),
        _ => Err(unknown_value()),
    }
}

fn priority(payload: &[u8]) -> Result<i8, FormatError> {
    match <[u8; 1]>::try_from(payload).map(i8::from_le_bytes) {
        Ok(priority @ -9..=9) => Ok(priority),
        _ => Err(FormatError::Corrupt("a priority that is none")),
    }
}

/// A value that came later, as a record with an unknown tag would be.
fn unknown_value() -> FormatError {
    FormatError::Newer(crate::format::VERSION)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(records: &[(u16, &[u8])], recipients: usize) -> Result<Options, FormatError> {
        let mut reading = Reading::default();
        records.iter().try_for_each(|(tag, payload)| reading.take(*tag, payload, recipients))?;
        Ok(reading.finish())
    }

    #[test]
    fn what_must_not_be_overlooked_has_a_plain_tag() {
        for plain in [tag::RECIPIENT, tag::SMTPUTF8, tag::HOLD_UNTIL, tag::DELIVER_BY, tag::HELD] {
            assert_eq!(plain & OPTIONAL, 0);
        }
    }

    #[test]
    fn hostile_values() {
        let corrupt = |records: &[(u16, &[u8])]| {
            let read = read(records, 1);
            assert!(matches!(read, Err(FormatError::Corrupt(_))), "{records:?}: {read:?}");
        };
        corrupt(&[(tag::HELD, b""), (tag::HELD, b"")]);
        corrupt(&[(tag::HELD, b"x")]);
        corrupt(&[(tag::HOLD_UNTIL, b"x")]);
        corrupt(&[(tag::DELIVER_BY, b"12345678")]);
        corrupt(&[(tag::PRIORITY, &[10])]);
        corrupt(&[(tag::PRIORITY, &[0xf6])]);
        corrupt(&[(tag::ENVID, b"\xff")]);
        corrupt(&[(tag::RECIPIENT, b""), (tag::RECIPIENT, b"\x01")]);
        let mut kind_alone = Vec::new();
        put(&mut kind_alone, recipient_tag::ORCPT_KIND, b"rfc822");
        corrupt(&[(tag::RECIPIENT, &kind_alone)]);
        assert!(read(&[(tag::RECIPIENT, b"")], 0).is_err(), "of no recipient");
        let newer = Err(FormatError::Newer(crate::format::VERSION));
        assert_eq!(read(&[(tag::RET, &[3])], 1), newer);
        assert_eq!(read(&[(tag::DELIVER_BY, b"12345678\x03\0")], 1), newer);
        let mut notify = Vec::new();
        put(&mut notify, recipient_tag::NOTIFY, &[8]);
        assert_eq!(read(&[(tag::RECIPIENT, &notify)], 1), newer);
    }
}
