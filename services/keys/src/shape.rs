//! Which bytes TLS signs. A taken-over smtpd can ask for signatures; it must not get one over anything
//! else (a certificate request, a DKIM header, a client's CertificateVerify). Pure.

/// Which version's handshake a message belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// TLS 1.2's ServerKeyExchange.
    Tls12,
    /// TLS 1.3's CertificateVerify.
    Tls13,
}

/// What stands before the hash (RFC 8446 §4.4.3).
const CONTEXT: &[u8] = b"TLS 1.3, server CertificateVerify\0";

/// The random octets of both sides (RFC 5246 §7.4.3).
const RANDOMS: usize = 64;

/// Says which handshake signs this, or none.
pub fn shape(message: &[u8]) -> Option<Shape> {
    if is_tls13(message) {
        return Some(Shape::Tls13);
    }
    is_tls12(message).then_some(Shape::Tls12)
}

/// RFC 8446 §4.4.3: 64 spaces, the context, one zero octet, the transcript's SHA-256 or SHA-384.
fn is_tls13(message: &[u8]) -> bool {
    let hash = message
        .split_at_checked(64)
        .filter(|(spaces, _)| spaces.iter().all(|octet| *octet == b' '))
        .and_then(|(_, rest)| rest.strip_prefix(CONTEXT));
    hash.is_some_and(|hash| matches!(hash.len(), 32 | 48))
}

/// RFC 8422 §5.4: both randoms, then ECParameters of a named curve and a point of that curve's size. The
/// two shapes exclude each other: behind 64 octets this one has a 3, the other a `T`.
fn is_tls12(message: &[u8]) -> bool {
    const NAMED_CURVE: u8 = 3;
    let Some([NAMED_CURVE, high, low, length, point @ ..]) = message.get(RANDOMS..) else { return false };
    let uncompressed = point.first() == Some(&4);
    let fits = match u16::from_be_bytes([*high, *low]) {
        23 => point.len() == 65 && uncompressed,  // secp256r1
        24 => point.len() == 97 && uncompressed,  // secp384r1
        25 => point.len() == 133 && uncompressed, // secp521r1
        29 => point.len() == 32,                  // x25519
        30 => point.len() == 56,                  // x448
        _ => false,
    };
    fits && usize::from(*length) == point.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tls13(hash: usize) -> Vec<u8> {
        [&[b' '; 64][..], CONTEXT, &vec![7; hash]].concat()
    }

    fn tls12(curve: u16, point: &[u8]) -> Vec<u8> {
        let [high, low] = curve.to_be_bytes();
        [&[9; 64][..], &[3, high, low, point.len() as u8], point].concat()
    }

    #[test]
    fn taken() {
        assert_eq!(shape(&tls13(32)), Some(Shape::Tls13));
        assert_eq!(shape(&tls13(48)), Some(Shape::Tls13));
        assert_eq!(shape(&tls12(29, &[0; 32])), Some(Shape::Tls12));
        assert_eq!(shape(&tls12(23, &[4; 65])), Some(Shape::Tls12));
    }

    #[test]
    fn refused() {
        let client = [&[b' '; 64][..], b"TLS 1.3, client CertificateVerify\0", &[7; 32]].concat();
        let mut trailing = tls12(29, &[0; 32]);
        trailing.push(0);
        for message in [
            Vec::new(),
            vec![b' '; 64],
            client,
            tls13(31),
            tls13(64),
            tls12(29, &[0; 33]),
            tls12(23, &[2; 65]),
            tls12(23, &[4; 64]),
            tls12(0x11ec, &[0; 200]),
            trailing,
            b"hello".to_vec(),
            vec![0; 200],
        ] {
            assert_eq!(shape(&message), None, "{message:?}");
        }
    }

    proptest! {
        #[test]
        fn one_changed_octet_of_the_frame_is_refused(at in 0..98usize, octet: u8) {
            let mut message = tls13(32);
            prop_assume!(message[at] != octet);
            message[at] = octet;
            prop_assert_eq!(shape(&message), None);
        }

        #[test]
        fn never_panics(message in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = shape(&message);
        }
    }
}
