//! Octets as one piece: serde takes a `Vec<u8>` octet by octet, which for a message's content is most of
//! what a frame costs. On the wire both are the same: a length and the octets.

use std::fmt;

use serde::de::Visitor;
use serde::{Deserializer, Serializer};

/// For `#[serde(with = "…")]`.
pub(crate) fn serialize<S: Serializer>(octets: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(octets)
}

/// For `#[serde(with = "…")]`.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    deserializer.deserialize_byte_buf(Octets)
}

struct Octets;

impl<'de> Visitor<'de> for Octets {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("octets")
    }

    fn visit_bytes<E>(self, octets: &[u8]) -> Result<Vec<u8>, E> {
        Ok(octets.to_vec())
    }

    fn visit_byte_buf<E>(self, octets: Vec<u8>) -> Result<Vec<u8>, E> {
        Ok(octets)
    }
}

#[cfg(test)]
mod tests {
    use crate::queue_agent::Content;
    use crate::{decode, encode};

    #[test]
    fn on_the_wire_nothing_changes() {
        let octets: Vec<u8> = (0..=255).cycle().take(20_000).collect();
        let content = Content::Inline(octets.clone());
        let frame = encode(&content).unwrap();
        assert_eq!(decode::<Content>(&frame).unwrap(), content);
        // The first variant, and what serde makes of a sequence of octets.
        let sequence = encode(&(0u32, octets)).unwrap();
        assert_eq!(frame, sequence);
        // A length that lies.
        assert!(decode::<Content>(&[frame[0], 0, 253, 0, 0, 0, 0, 0, 1, 0, 0]).is_err());
    }
}
