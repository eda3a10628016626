//! Frames: a version byte and one bincode value, or several of them. The only place that knows bincode.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest frame, octets. Well below the kernel's default socket buffer, so a frame always fits.
pub const MAX_FRAME: usize = 64 * 1024;

/// Largest configuration, octets: it travels in a file descriptor, not in a frame.
pub const MAX_CONFIG: usize = 16 * 1024 * 1024;

/// The decoder counts a number as it is in memory, not as the octet that it may have been: whatever was encoded within
/// a limit stays below so many times that when it is decoded.
const WIDEST: usize = 16;

/// What a frame may come to, and a configuration.
const DECODED_FRAME: usize = WIDEST * MAX_FRAME;
const DECODED_CONFIG: usize = WIDEST * MAX_CONFIG;

/// Most frames are shorter.
const ORDINARY: usize = 256;

/// Both ends are of one build: master starts what lies beside it. The byte catches a mixed upgrade.
const VERSION: u8 = 1;

/// Why bytes are not a frame, or a value does not fit one.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Over [`MAX_FRAME`].
    #[error("frame of {0} octets is over the limit")]
    TooLong(usize),
    /// The other end runs another version of Postern.
    #[error("frame version {0:?}, expected {VERSION}: programs of different versions are running")]
    Version(Option<u8>),
    /// Not the expected value, or more than it.
    #[error("malformed frame: {0}")]
    Malformed(String),
}

/// Encodes one value as a frame.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, FrameError> {
    encode_limited(value, MAX_FRAME)
}

/// Puts one more value behind those of a frame. False when it would be longer than `most` octets then: it is as it was.
pub(crate) fn add<T: Serialize>(frame: &mut Vec<u8>, value: &T, most: usize) -> Result<bool, FrameError> {
    let before = frame.len();
    let added = append(frame, value).map(|()| frame.len() <= most);
    if !matches!(added, Ok(true)) {
        frame.truncate(before);
    }
    added
}

/// Decodes the first value of a frame, or of what [`decode_next`] left of it, and says where the next begins.
pub(crate) fn decode_next<T: DeserializeOwned>(frame: &[u8], at: usize) -> Result<(T, usize), FrameError> {
    let at = if at == 0 { body(frame)? } else { at };
    let (value, used) = decode_value::<T, DECODED_FRAME>(frame.get(at..).unwrap_or_default())?;
    Ok((value, at + used))
}

/// Decodes a frame, which must be the whole of `bytes`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    decode_limited::<T, DECODED_FRAME>(bytes, MAX_FRAME)
}

/// As [`encode`], up to [`MAX_CONFIG`].
pub fn encode_config<T: Serialize>(value: &T) -> Result<Vec<u8>, FrameError> {
    encode_limited(value, MAX_CONFIG)
}

/// As [`decode`], up to [`MAX_CONFIG`].
pub fn decode_config<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    decode_limited::<T, DECODED_CONFIG>(bytes, MAX_CONFIG)
}

fn encode_limited<T: Serialize>(value: &T, limit: usize) -> Result<Vec<u8>, FrameError> {
    let mut bytes = Vec::with_capacity(ORDINARY);
    bytes.push(VERSION);
    append(&mut bytes, value)?;
    if bytes.len() > limit { Err(FrameError::TooLong(bytes.len())) } else { Ok(bytes) }
}

/// A limit would be heeded in decoding only.
fn append<T: Serialize>(bytes: &mut Vec<u8>, value: &T) -> Result<(), FrameError> {
    bincode::serde::encode_into_std_write(value, bytes, bincode::config::standard())
        .map_err(|e| FrameError::Malformed(e.to_string()))?;
    Ok(())
}

fn decode_limited<T: DeserializeOwned, const DECODED: usize>(
    bytes: &[u8],
    limit: usize,
) -> Result<T, FrameError> {
    let body = &bytes[body(bytes)?..];
    if bytes.len() > limit {
        return Err(FrameError::TooLong(bytes.len()));
    }
    let (value, used) = decode_value::<T, DECODED>(body)?;
    if used != body.len() {
        return Err(FrameError::Malformed(format!("{} octets behind the value", body.len() - used)));
    }
    Ok(value)
}

/// Where the values of a frame begin, if it is of our version.
fn body(frame: &[u8]) -> Result<usize, FrameError> {
    match frame.first() {
        Some(&VERSION) => Ok(1),
        other => Err(FrameError::Version(other.copied())),
    }
}

fn decode_value<T: DeserializeOwned, const DECODED: usize>(bytes: &[u8]) -> Result<(T, usize), FrameError> {
    bincode::serde::decode_from_slice(bytes, bincode::config::standard().with_limit::<DECODED>())
        .map_err(|e| FrameError::Malformed(e.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn limits() {
        assert!(matches!(encode(&vec![1u8; MAX_FRAME]), Err(FrameError::TooLong(_))));
        let mut bytes = encode(&(1u32, "x".to_owned())).unwrap();
        assert_eq!(decode::<(u32, String)>(&bytes).unwrap(), (1, "x".to_owned()));
        bytes.push(0);
        assert!(matches!(decode::<(u32, String)>(&bytes), Err(FrameError::Malformed(_))));
        bytes[0] = 9;
        assert!(matches!(decode::<(u32, String)>(&bytes), Err(FrameError::Version(Some(9)))));
        // As many numbers as there can be, each an octet long.
        let numbers = vec![1u128; MAX_FRAME - 8];
        assert_eq!(decode::<Vec<u128>>(&encode(&numbers).unwrap()).unwrap(), numbers);
        // A length that lies: an unlimited decoder would try to allocate it.
        assert!(decode::<Vec<u8>>(&[VERSION, 253, 0, 0, 0, 0, 0, 1, 0, 0]).is_err());
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_refused_or_decoded(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<crate::queue_agent::ToAgent>(&bytes);
            let _ = decode::<crate::supervise::ToChild>(&bytes);
            let _ = decode::<crate::smtpd_lookup::Question>(&bytes);
        }
    }
}
