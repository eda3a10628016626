//! Format 1 of a spool file, as bytes: no I/O here. `docs/spool.md` has the offsets as a table.

use std::net::IpAddr;

use postern_address::{Mailbox, ReversePath};

use crate::envelope::{BodyType, Envelope, Origin, Timestamp};
use crate::id::QueueId;
use crate::options::{self, Reading};
use crate::record::{FormatError, Records, nest, put, text, u32_at, u64_at, unknown, whole_u32, whole_u64};

/// The format that is written.
pub(crate) const VERSION: u32 = 1;
/// Octets of the head; this, the magic, and the places of version and checksum hold for every version.
pub(crate) const HEAD_LEN: usize = 64;
/// Octets of the foot.
pub(crate) const FOOT_LEN: usize = 48;
/// In a file of several messages every body begins at a multiple of this, so that its blocks can be
/// given back; and every part, so that no block that was synced is written again.
pub(crate) const BLOCK: u64 = 4096;
/// Octets of what stands before the log of a file that may have several parts.
pub(crate) const LOG_HEAD_LEN: usize = 24;
/// Longest index, octets: written and read. It holds some 250,000 recipients; a file from a local user
/// must not fill our memory.
pub(crate) const INDEX_MAX: usize = 16 << 20;
/// Most messages of one file; the log names them by 16 bits.
pub(crate) const MESSAGES_MAX: usize = 1 << 16;

const HEAD_MAGIC: &[u8; 8] = b"POSTERN\n";
const FOOT_MAGIC: &[u8; 8] = b"\nPOSTEND";
const LOG_MAGIC: &[u8; 8] = b"\nPOSTLOG";

/// A feature that a reader must know: further parts may follow.
const PARTS: u32 = 1;

/// Records of the index.
mod tag {
    pub(super) const MESSAGE: u16 = 1;
}

/// Records of a message.
mod message_tag {
    pub(super) const ID: u16 = 1;
    pub(super) const EXTENT: u16 = 2;
    pub(super) const PREPEND: u16 = 3;
    pub(super) const ARRIVAL: u16 = 4;
    pub(super) const REVERSE_PATH: u16 = 5;
    /// One for each recipient, in their order. What was said of it (`options`) comes behind it.
    pub(super) const RECIPIENT: u16 = 6;
    pub(super) const BODY_TYPE: u16 = 7;
    pub(super) const ORIGIN_SMTP: u16 = 8;
    pub(super) const ORIGIN_LOCAL: u16 = 9;
    pub(super) const ORIGIN_INTERNAL: u16 = 10;
    // From 11 on: `options`.
}

/// Records of an SMTP origin.
mod origin_tag {
    pub(super) const ADDRESS: u16 = 1;
    pub(super) const NAME: u16 = 2;
    pub(super) const HELO: u16 = 3;
}

/// What the index says of one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its queue id.
    pub id: QueueId,
    /// Its envelope.
    pub envelope: Envelope,
    /// Trace lines that come before the body, with CRLF.
    pub prepend: Vec<u8>,
    /// Where its body begins in the file.
    pub offset: u64,
    /// Octets of its body.
    pub length: u64,
    /// CRC-32C of its body.
    pub crc: u32,
}

/// The head's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Id of the file's first message: the file's name.
    pub(crate) id: QueueId,
    /// Where the foot begins.
    pub(crate) foot: u64,
    /// Which part of its file it begins, from 0. `None` where there is but one, and the log is right behind it.
    pub(crate) part: Option<u32>,
}

/// The foot's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Foot {
    pub(crate) id: QueueId,
    pub(crate) index: u64,
    pub(crate) index_length: u64,
    pub(crate) index_crc: u32,
    pub(crate) messages: u32,
    /// As the head's; 0 in a file of one.
    pub(crate) part: u32,
}

/// Writes a head.
pub(crate) fn encode_head(head: Head) -> [u8; HEAD_LEN] {
    let mut out = [0; HEAD_LEN];
    fill(
        &mut out,
        &[
            (0, HEAD_MAGIC),
            (8, &VERSION.to_le_bytes()),
            (12, &head.part.map_or(0, |_| PARTS).to_le_bytes()),
            (16, &head.id.as_u64().to_le_bytes()),
            (24, &head.foot.to_le_bytes()),
            (32, &head.part.unwrap_or(0).to_le_bytes()),
        ],
    );
    let crc = crc32c::crc32c(&out[..HEAD_LEN - 4]);
    fill(&mut out, &[(HEAD_LEN - 4, &crc.to_le_bytes())]);
    out
}

/// Reads a head. The checksum is looked at before the version: a flipped bit is not a newer Postern.
pub(crate) fn decode_head(bytes: &[u8]) -> Result<Head, FormatError> {
    const BAD: FormatError = FormatError::Corrupt("the head is damaged");
    let covered = bytes.get(..HEAD_LEN - 4).ok_or(BAD)?;
    if !covered.starts_with(HEAD_MAGIC) || u32_at(bytes, HEAD_LEN - 4) != Some(crc32c::crc32c(covered)) {
        return Err(BAD);
    }
    let part = match (u32_at(bytes, 8), u32_at(bytes, 12)) {
        (Some(VERSION), Some(0)) => None,
        (Some(VERSION), Some(PARTS)) => Some(u32_at(bytes, 32).ok_or(BAD)?),
        (Some(version), _) => return Err(FormatError::Newer(version)),
        (None, _) => return Err(BAD),
    };
    let id = QueueId::from_u64(u64_at(bytes, 16).ok_or(BAD)?);
    Ok(Head { id, foot: u64_at(bytes, 24).ok_or(BAD)?, part })
}

/// Writes the foot that follows `index`, which begins at `at`.
pub(crate) fn encode_foot(id: QueueId, at: u64, index: &[u8], messages: u32, part: u32) -> [u8; FOOT_LEN] {
    let mut out = [0; FOOT_LEN];
    fill(
        &mut out,
        &[
            (0, FOOT_MAGIC),
            (8, &at.to_le_bytes()),
            (16, &(index.len() as u64).to_le_bytes()),
            (24, &crc32c::crc32c(index).to_le_bytes()),
            (28, &messages.to_le_bytes()),
            (32, &id.as_u64().to_le_bytes()),
            (40, &part.to_le_bytes()),
        ],
    );
    let crc = crc32c::crc32c(&out[..FOOT_LEN - 4]);
    fill(&mut out, &[(FOOT_LEN - 4, &crc.to_le_bytes())]);
    out
}

/// Reads a foot that stands at `head.foot`, and checks that it belongs to this head.
pub(crate) fn decode_foot(bytes: &[u8], head: Head) -> Result<Foot, FormatError> {
    let foot = any_foot(bytes).ok_or(FormatError::Corrupt("no valid foot"))?;
    let fits = foot.index >= HEAD_LEN as u64
        && foot.index_length <= INDEX_MAX as u64
        && foot.index.checked_add(foot.index_length) == Some(head.foot);
    if fits && foot.id == head.id && foot.part == head.part.unwrap_or(0) {
        Ok(foot)
    } else {
        Err(FormatError::Corrupt("the foot is of another file"))
    }
}

/// Whether a foot of the file `id` stands anywhere in these bytes: what is left of a part whose head is lost.
pub(crate) fn has_foot_of(bytes: &[u8], id: QueueId) -> bool {
    bytes.windows(FOOT_LEN).any(|place| any_foot(place).is_some_and(|foot| foot.id == id))
}

fn any_foot(bytes: &[u8]) -> Option<Foot> {
    let covered = bytes.get(..FOOT_LEN - 4)?;
    if !covered.starts_with(FOOT_MAGIC) || u32_at(bytes, FOOT_LEN - 4) != Some(crc32c::crc32c(covered)) {
        return None;
    }
    Some(Foot {
        id: QueueId::from_u64(u64_at(bytes, 32)?),
        index: u64_at(bytes, 8)?,
        index_length: u64_at(bytes, 16)?,
        index_crc: u32_at(bytes, 24)?,
        messages: u32_at(bytes, 28)?,
        part: u32_at(bytes, 40)?,
    })
}

/// Writes what stands before the log of a file of so many parts.
pub(crate) fn encode_log_head(id: QueueId, parts: u32) -> [u8; LOG_HEAD_LEN] {
    let mut out = [0; LOG_HEAD_LEN];
    fill(&mut out, &[(0, LOG_MAGIC), (8, &id.as_u64().to_le_bytes()), (16, &parts.to_le_bytes())]);
    let crc = crc32c::crc32c(&out[..LOG_HEAD_LEN - 4]);
    fill(&mut out, &[(LOG_HEAD_LEN - 4, &crc.to_le_bytes())]);
    out
}

/// Appends one message to an index.
pub(crate) fn encode_message(out: &mut Vec<u8>, message: &StoredRef<'_>) {
    nest(out, tag::MESSAGE, |out| {
        put(out, message_tag::ID, &message.id.as_u64().to_le_bytes());
        nest(out, message_tag::EXTENT, |out| {
            out.extend_from_slice(&message.offset.to_le_bytes());
            out.extend_from_slice(&message.length.to_le_bytes());
            out.extend_from_slice(&message.crc.to_le_bytes());
        });
        put(out, message_tag::PREPEND, message.prepend);
        encode_envelope(out, message.envelope);
    });
}

/// [`Stored`], borrowed: what the writer has in hand.
pub(crate) struct StoredRef<'a> {
    pub(crate) id: QueueId,
    pub(crate) envelope: &'a Envelope,
    pub(crate) prepend: &'a [u8],
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) crc: u32,
}

/// Reads the index of a part that begins at `from`, and checks that its messages lie one behind the other
/// between head and index.
pub(crate) fn decode_index(bytes: &[u8], from: u64, foot: &Foot) -> Result<Vec<Stored>, FormatError> {
    if crc32c::crc32c(bytes) != foot.index_crc {
        return Err(FormatError::Corrupt("the index is damaged"));
    }
    let mut messages: Vec<Stored> = Vec::new();
    let mut free_from = from.saturating_add(HEAD_LEN as u64);
    for record in Records(bytes) {
        match record? {
            (tag::MESSAGE, payload) => {
                let message = decode_message(payload)?;
                let end = message.offset.checked_add(message.length).filter(|end| *end <= foot.index);
                if message.offset < free_from || messages.len() == MESSAGES_MAX {
                    return Err(FormatError::Corrupt("messages overlap or are too many"));
                }
                free_from = end.ok_or(FormatError::Corrupt("a message lies outside of the file"))?;
                messages.push(message);
            }
            (other, _) => unknown(other)?,
        }
    }
    let first = messages.first().is_some_and(|m| m.id == foot.id);
    if !(first || foot.part > 0) || messages.len() != foot.messages as usize {
        return Err(FormatError::Corrupt("the index is of another file"));
    }
    Ok(messages)
}

fn encode_envelope(out: &mut Vec<u8>, envelope: &Envelope) {
    put(out, message_tag::ARRIVAL, &envelope.arrival.0.to_le_bytes());
    put(out, message_tag::REVERSE_PATH, envelope.reverse_path.as_str().as_bytes());
    let said = options::by_recipient(&envelope.options);
    for (n, recipient) in (0..).zip(&envelope.recipients) {
        put(out, message_tag::RECIPIENT, recipient.as_str().as_bytes());
        if let Some(said) = said.get(&n) {
            options::encode_recipient(out, said);
        }
    }
    let body: u8 = match envelope.body {
        BodyType::SevenBit => 7,
        BodyType::EightBit => 8,
        BodyType::Binary => 9,
    };
    put(out, message_tag::BODY_TYPE, &[body]);
    match &envelope.origin {
        Origin::Smtp { address, name, helo } => nest(out, message_tag::ORIGIN_SMTP, |out| {
            match address {
                IpAddr::V4(v4) => put(out, origin_tag::ADDRESS, &v4.octets()),
                IpAddr::V6(v6) => put(out, origin_tag::ADDRESS, &v6.octets()),
            }
            if let Some(name) = name {
                put(out, origin_tag::NAME, name.as_bytes());
            }
            put(out, origin_tag::HELO, helo.as_bytes());
        }),
        Origin::Local { uid } => put(out, message_tag::ORIGIN_LOCAL, &uid.to_le_bytes()),
        Origin::Internal => put(out, message_tag::ORIGIN_INTERNAL, &[]),
    }
    options::encode(out, &envelope.options);
}

fn decode_message(payload: &[u8]) -> Result<Stored, FormatError> {
    let (mut id, mut extent, mut prepend, mut arrival) = (None, None, None, None);
    let (mut reverse_path, mut recipients, mut body, mut origin) = (None, Vec::new(), None, None);
    let mut options = Reading::default();
    for record in Records(payload) {
        let (tag, payload) = record?;
        match tag {
            message_tag::ID => once(&mut id, QueueId::from_u64(whole_u64(payload)?))?,
            message_tag::EXTENT => once(&mut extent, decode_extent(payload)?)?,
            message_tag::PREPEND => once(&mut prepend, payload.to_vec())?,
            message_tag::ARRIVAL => once(&mut arrival, Timestamp(whole_u64(payload)?))?,
            message_tag::REVERSE_PATH => once(&mut reverse_path, decode_reverse_path(payload)?)?,
            message_tag::RECIPIENT => recipients.push(decode_mailbox(payload)?),
            message_tag::BODY_TYPE => once(&mut body, decode_body_type(payload)?)?,
            message_tag::ORIGIN_SMTP => once(&mut origin, decode_smtp_origin(payload)?)?,
            message_tag::ORIGIN_LOCAL => once(&mut origin, Origin::Local { uid: whole_u32(payload)? })?,
            message_tag::ORIGIN_INTERNAL => once(&mut origin, Origin::Internal)?,
            other => options.take(other, payload, recipients.len())?,
        }
    }
    const MISSING: FormatError = FormatError::Corrupt("a message without one of its records");
    let (offset, length, crc) = extent.ok_or(MISSING)?;
    let envelope = Envelope {
        reverse_path: reverse_path.ok_or(MISSING)?,
        recipients,
        arrival: arrival.ok_or(MISSING)?,
        body: body.ok_or(MISSING)?,
        origin: origin.ok_or(MISSING)?,
        options: options.finish(),
    };
    let (id, prepend) = (id.ok_or(MISSING)?, prepend.ok_or(MISSING)?);
    Ok(Stored { id, envelope, prepend, offset, length, crc })
}

fn once<T>(place: &mut Option<T>, value: T) -> Result<(), FormatError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(FormatError::Corrupt("a record came twice")),
    }
}

fn decode_extent(payload: &[u8]) -> Result<(u64, u64, u32), FormatError> {
    let extent = (u64_at(payload, 0), u64_at(payload, 8), u32_at(payload, 16));
    match extent {
        (Some(offset), Some(length), Some(crc)) if payload.len() == 20 => Ok((offset, length, crc)),
        _ => Err(FormatError::Corrupt("extent of another size")),
    }
}

pub(crate) fn decode_mailbox(payload: &[u8]) -> Result<Mailbox, FormatError> {
    Mailbox::parse(text(payload)?).map_err(|_| FormatError::Corrupt("an address that is none"))
}

fn decode_reverse_path(payload: &[u8]) -> Result<ReversePath, FormatError> {
    if payload.is_empty() {
        return Ok(ReversePath::Null);
    }
    decode_mailbox(payload).map(ReversePath::Mailbox)
}

fn decode_body_type(payload: &[u8]) -> Result<BodyType, FormatError> {
    match payload {
        [7] => Ok(BodyType::SevenBit),
        [8] => Ok(BodyType::EightBit),
        [9] => Ok(BodyType::Binary),
        // A value that came later, as a record with an unknown tag would be.
        _ => Err(FormatError::Newer(VERSION)),
    }
}

fn decode_smtp_origin(payload: &[u8]) -> Result<Origin, FormatError> {
    let (mut address, mut name, mut helo) = (None, None, None);
    for record in Records(payload) {
        let (tag, payload) = record?;
        match tag {
            origin_tag::ADDRESS => once(&mut address, decode_address(payload)?)?,
            origin_tag::NAME => once(&mut name, text(payload)?.to_owned())?,
            origin_tag::HELO => once(&mut helo, text(payload)?.to_owned())?,
            other => unknown(other)?,
        }
    }
    let (Some(address), Some(helo)) = (address, helo) else {
        return Err(FormatError::Corrupt("an origin without address or name"));
    };
    Ok(Origin::Smtp { address, name, helo })
}

fn decode_address(payload: &[u8]) -> Result<IpAddr, FormatError> {
    let v4 = <[u8; 4]>::try_from(payload).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(payload).map(IpAddr::from))
        .map_err(|_| FormatError::Corrupt("an address of another size"))
}

/// Puts fixed fields at their places.
fn fill(out: &mut [u8], fields: &[(usize, &[u8])]) {
    for (at, field) in fields {
        if let Some(place) = out.get_mut(*at..at + field.len()) {
            place.copy_from_slice(field);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::record::OPTIONAL;
    use crate::samples;

    /// One index and its foot, of messages whose bodies have these lengths.
    fn build(parts: &[(QueueId, Envelope, Vec<u8>, u16)]) -> (Vec<Stored>, Vec<u8>, Foot, Head) {
        let (mut index, mut stored, mut at) = (Vec::new(), Vec::new(), HEAD_LEN as u64);
        for (id, envelope, prepend, length) in parts {
            let (id, length, crc) = (*id, u64::from(*length), at as u32);
            encode_message(&mut index, &StoredRef { id, envelope, prepend, offset: at, length, crc });
            let (envelope, prepend) = (envelope.clone(), prepend.clone());
            stored.push(Stored { id, envelope, prepend, offset: at, length, crc });
            at += length;
        }
        let head = Head { id: parts[0].0, foot: at + index.len() as u64, part: None };
        let foot = decode_foot(&encode_foot(head.id, at, &index, parts.len() as u32, 0), head).unwrap();
        (stored, index, foot, head)
    }

    fn parts() -> impl Strategy<Value = Vec<(QueueId, Envelope, Vec<u8>, u16)>> {
        vec((samples::id(), samples::envelope(), any::<Vec<u8>>(), any::<u16>()), 1..4)
    }

    /// The foot that makes `index` pass for intact, so that what is behind the checksum is tried.
    fn sealed(index: &[u8], at: u64, messages: u32) -> Foot {
        let (index_length, index_crc) = (index.len() as u64, crc32c::crc32c(index));
        Foot { id: QueueId::from_u64(1), index: at, index_length, index_crc, messages, part: 0 }
    }

    proptest! {
        #[test]
        fn index_round_trip(parts in parts()) {
            let (stored, index, foot, _) = build(&parts);
            prop_assert_eq!(decode_index(&index, 0, &foot), Ok(stored));
        }

        #[test]
        fn head_and_foot_round_trip(
            id in samples::id(), at in HEAD_LEN as u64..u64::MAX / 2, index: Vec<u8>, part: Option<u32>,
        ) {
            let head = Head { id, foot: at + index.len() as u64, part };
            prop_assert_eq!(decode_head(&encode_head(head)), Ok(head));
            let part = part.unwrap_or(0);
            let bytes = encode_foot(id, at, &index, 3, part);
            let (index_length, index_crc) = (index.len() as u64, crc32c::crc32c(&index));
            let foot = Foot { id, index: at, index_length, index_crc, messages: 3, part };
            prop_assert_eq!(decode_foot(&bytes, head), Ok(foot));
            let other = Head { part: Some(part.wrapping_add(1)), ..head };
            prop_assert!(decode_foot(&bytes, other).is_err(), "of another part");
            prop_assert!(has_foot_of(&[&index[..], &bytes, b"x"].concat(), id));
            prop_assert!(!has_foot_of(&bytes, QueueId::from_u64(!id.as_u64())));
            prop_assert!(!has_foot_of(&bytes[..FOOT_LEN - 1], id));
        }

        #[test]
        fn every_flipped_bit_is_seen(parts in parts(), bit: prop::sample::Index) {
            let (_, mut index, foot, head) = build(&parts);
            let flip = |bytes: &mut [u8]| {
                let bit = bit.index(bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
            };
            let mut foot_bytes = encode_foot(head.id, foot.index, &index, foot.messages, foot.part);
            let mut head_bytes = encode_head(head);
            flip(&mut head_bytes);
            flip(&mut foot_bytes);
            flip(&mut index);
            prop_assert!(matches!(decode_head(&head_bytes), Err(FormatError::Corrupt(_))));
            prop_assert!(matches!(decode_foot(&foot_bytes, head), Err(FormatError::Corrupt(_))));
            prop_assert!(matches!(decode_index(&index, 0, &foot), Err(FormatError::Corrupt(_))));
        }

        #[test]
        fn hostile_bytes(bytes: Vec<u8>, at: u64, messages in 0u32..3) {
            let _ = decode_head(&bytes);
            let _ = decode_foot(&bytes, Head { id: QueueId::from_u64(at), foot: at, part: None });
            let _ = decode_index(&bytes, 0, &sealed(&bytes, at, messages));
        }

        /// Valid indices with some bytes changed and the checksum made right again: whatever comes out
        /// lies within the file.
        #[test]
        fn hostile_index(parts in parts(), changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
            let (_, mut index, foot, _) = build(&parts);
            for (place, byte) in changes {
                let place = place.index(index.len());
                index[place] = byte;
            }
            let foot = Foot { index_crc: crc32c::crc32c(&index), ..foot };
            for message in decode_index(&index, 0, &foot).unwrap_or_default() {
                prop_assert!(message.offset >= HEAD_LEN as u64);
                prop_assert!(message.offset + message.length <= foot.index);
            }
        }

        #[test]
        fn cut_short(parts in parts(), keep: prop::sample::Index) {
            let (_, index, foot, _) = build(&parts);
            let index = &index[..keep.index(index.len())];
            let foot = Foot { index_crc: crc32c::crc32c(index), ..foot };
            prop_assert!(decode_index(index, 0, &foot).is_err());
        }
    }

    /// A record this version does not know, within a message and beside it.
    #[test]
    fn unknown_records() {
        let inner = |tag: u16| {
            let mut index = Vec::new();
            nest(&mut index, tag::MESSAGE, |out| {
                put(out, message_tag::ID, &1u64.to_le_bytes());
                put(out, message_tag::EXTENT, &[&64u64.to_le_bytes()[..], &[0; 12]].concat());
                put(out, message_tag::PREPEND, b"");
                put(out, message_tag::ARRIVAL, &[0; 8]);
                put(out, message_tag::REVERSE_PATH, b"");
                put(out, message_tag::BODY_TYPE, &[7]);
                put(out, message_tag::ORIGIN_INTERNAL, b"");
                put(out, tag, b"news");
            });
            decode_index(&index, 0, &sealed(&index, 64, 1)).map(|messages| messages.len())
        };
        assert_eq!(inner(OPTIONAL | 77), Ok(1));
        assert_eq!(inner(77), Err(FormatError::Newer(VERSION)));
        assert_eq!(inner(message_tag::ID), Err(FormatError::Corrupt("number of another size")));
        assert_eq!(inner(message_tag::PREPEND), Err(FormatError::Corrupt("a record came twice")));
    }

    #[test]
    fn a_newer_format_is_not_damage() {
        let mut head = encode_head(Head { id: QueueId::from_u64(1), foot: 100, part: None });
        head[8] = 2;
        assert!(matches!(decode_head(&head), Err(FormatError::Corrupt(_))), "the checksum comes first");
        let crc = crc32c::crc32c(&head[..60]).to_le_bytes();
        head[60..].copy_from_slice(&crc);
        assert_eq!(decode_head(&head), Err(FormatError::Newer(2)));
        // A feature that came later.
        head[8..16].copy_from_slice(&[1, 0, 0, 0, 2, 0, 0, 0]);
        let crc = crc32c::crc32c(&head[..60]).to_le_bytes();
        head[60..].copy_from_slice(&crc);
        assert_eq!(decode_head(&head), Err(FormatError::Newer(1)));
    }

    #[test]
    fn messages_may_not_overlap() {
        let envelope = Envelope {
            reverse_path: ReversePath::Null,
            recipients: vec![],
            arrival: Timestamp(0),
            body: BodyType::SevenBit,
            origin: Origin::Internal,
            options: crate::Options::default(),
        };
        let index_of = |extents: &[(u64, u64)]| {
            let mut index = Vec::new();
            for &(offset, length) in extents {
                let id = QueueId::from_u64(1);
                let prepend = b"";
                encode_message(
                    &mut index,
                    &StoredRef { id, envelope: &envelope, prepend, offset, length, crc: 0 },
                );
            }
            decode_index(&index, 0, &sealed(&index, 1000, extents.len() as u32))
        };
        assert!(index_of(&[(64, 10), (74, 926)]).is_ok());
        for bad in
            [&[(63, 1)][..], &[(64, 937)], &[(64, 10), (73, 1)], &[(100, 10), (64, 1)], &[(u64::MAX, 2)]]
        {
            assert!(index_of(bad).is_err(), "{bad:?}");
        }
    }
}
