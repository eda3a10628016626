//! Frames: a version byte and one bincode value. The only place that knows bincode.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest frame, octets. Well below the kernel's default socket buffer, so a frame always fits.
pub const MAX_FRAME: usize = 64 * 1024;

/// Largest configuration, octets: it travels in a file descriptor, not in a frame.
pub const MAX_CONFIG: usize = 16 * 1024 * 1024;

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

fn config<const LIMIT: usize>() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<LIMIT>()
}

/// Encodes one value as a frame.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, FrameError> {
    encode_limited::<T, MAX_FRAME>(value)
}

/// Decodes a frame, which must be the whole of `bytes`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    decode_limited::<T, MAX_FRAME>(bytes)
}

/// As [`encode`], up to [`MAX_CONFIG`].
pub fn encode_config<T: Serialize>(value: &T) -> Result<Vec<u8>, FrameError> {
    encode_limited::<T, MAX_CONFIG>(value)
}

/// As [`decode`], up to [`MAX_CONFIG`].
pub fn decode_config<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    decode_limited::<T, MAX_CONFIG>(bytes)
}

fn encode_limited<T: Serialize, const LIMIT: usize>(value: &T) -> Result<Vec<u8>, FrameError> {
    let mut bytes = vec![VERSION];
    let config = config::<LIMIT>();
    bincode::serde::encode_into_std_write(value, &mut bytes, config)
        .map_err(|e| FrameError::Malformed(e.to_string()))?;
    // bincode applies its limit to decoding only.
    if bytes.len() > LIMIT { Err(FrameError::TooLong(bytes.len())) } else { Ok(bytes) }
}

fn decode_limited<T: DeserializeOwned, const LIMIT: usize>(bytes: &[u8]) -> Result<T, FrameError> {
    let (version, body) = match bytes.split_first() {
        Some((&VERSION, body)) => (VERSION, body),
        other => return Err(FrameError::Version(other.map(|(v, _)| *v))),
    };
    debug_assert_eq!(version, VERSION);
    if bytes.len() > LIMIT {
        return Err(FrameError::TooLong(bytes.len()));
    }
    let (value, used) = bincode::serde::decode_from_slice(body, config::<LIMIT>())
        .map_err(|e| FrameError::Malformed(e.to_string()))?;
    if used != body.len() {
        return Err(FrameError::Malformed(format!("{} octets behind the value", body.len() - used)));
    }
    Ok(value)
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
