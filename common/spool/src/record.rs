//! Tagged, length-framed records: the letters in which the index and the log are written.
//!
//! A record is `tag: u16, length: u32, payload`, all little-endian. A tag with [`OPTIONAL`] set may be
//! skipped by a reader that does not know it; any other unknown tag makes the reader refuse, because
//! something was said that must not be ignored. Tags are never given a second meaning.

/// A reader may skip a record with this bit in its tag.
pub(crate) const OPTIONAL: u16 = 0x8000;

/// Octets before a record's payload.
const HEADER_LEN: usize = 6;

/// Why bytes were not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FormatError {
    /// Not what was written.
    Corrupt(&'static str),
    /// Whole, but written by a newer Postern: its format version.
    Newer(u32),
}

/// Appends one record.
pub(crate) fn put(out: &mut Vec<u8>, tag: u16, payload: &[u8]) {
    nest(out, tag, |out| out.extend_from_slice(payload));
}

/// Appends one record whose payload `fill` writes.
pub(crate) fn nest(out: &mut Vec<u8>, tag: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(&tag.to_le_bytes());
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    fill(out);
    // A payload over 4 GiB cannot come up: the writer refuses an index far below (`INDEX_MAX`).
    let length = u32::try_from(out.len() - at - 4).unwrap_or(u32::MAX);
    if let Some(place) = out.get_mut(at..at + 4) {
        place.copy_from_slice(&length.to_le_bytes());
    }
}

/// The records of `bytes`, in order; an error ends them.
pub(crate) struct Records<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Result<(u16, &'a [u8]), FormatError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let record = split(self.0);
        self.0 = record.map_or(&[], |(_, _, rest)| rest);
        Some(
            record.map(|(tag, payload, _)| (tag, payload)).ok_or(FormatError::Corrupt("record is cut short")),
        )
    }
}

fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let tag = u16_at(bytes, 0)?;
    let length = usize::try_from(u32_at(bytes, 2)?).ok()?;
    let (payload, rest) = bytes.get(HEADER_LEN..)?.split_at_checked(length)?;
    Some((tag, payload, rest))
}

/// What to do with a tag that no arm knows.
pub(crate) fn unknown(tag: u16) -> Result<(), FormatError> {
    if tag & OPTIONAL != 0 { Ok(()) } else { Err(FormatError::Newer(crate::format::VERSION)) }
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array_at(bytes, at).map(u16::from_le_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array_at(bytes, at).map(u32::from_le_bytes)
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array_at(bytes, at).map(u64::from_le_bytes)
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// A payload that is exactly a number.
pub(crate) fn whole_u64(payload: &[u8]) -> Result<u64, FormatError> {
    payload.try_into().map(u64::from_le_bytes).map_err(|_| FormatError::Corrupt("number of another size"))
}

/// A payload that is exactly a number.
pub(crate) fn whole_u32(payload: &[u8]) -> Result<u32, FormatError> {
    payload.try_into().map(u32::from_le_bytes).map_err(|_| FormatError::Corrupt("number of another size"))
}

/// A payload that is text.
pub(crate) fn text(payload: &[u8]) -> Result<&str, FormatError> {
    std::str::from_utf8(payload).map_err(|_| FormatError::Corrupt("text is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn round_trip(records in proptest::collection::vec((any::<u16>(), any::<Vec<u8>>()), 0..8)) {
            let mut bytes = Vec::new();
            for (tag, payload) in &records {
                put(&mut bytes, *tag, payload);
            }
            let read: Result<Vec<_>, _> = Records(&bytes).map(|r| r.map(|(t, p)| (t, p.to_vec()))).collect();
            prop_assert_eq!(read, Ok(records));
        }

        #[test]
        fn hostile(bytes: Vec<u8>) {
            prop_assert!(Records(&bytes).count() <= bytes.len());
        }
    }
}
