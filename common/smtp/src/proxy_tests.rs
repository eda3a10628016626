use proptest::prelude::*;

use super::*;

/// A header of version 2, with its length.
fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    header.extend([command, family]);
    header.extend((block.len() as u16).to_be_bytes());
    header.extend(block);
    header
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    let mut tlv = vec![kind];
    tlv.extend((value.len() as u16).to_be_bytes());
    tlv.extend(value);
    tlv
}

fn addresses(source: SocketAddr, destination: SocketAddr) -> (u8, Vec<u8>) {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let mut block = octets(source.ip());
    block.extend(octets(destination.ip()));
    block.extend(source.port().to_be_bytes());
    block.extend(destination.port().to_be_bytes());
    (if source.is_ipv4() { 0x11 } else { 0x21 }, block)
}

/// Fills in the checksum whose four octets begin at `at`.
fn sign(header: &mut [u8], at: usize) {
    let sum = crc32c::crc32c(header);
    header[at..at + 4].copy_from_slice(&sum.to_be_bytes());
}

fn own(used: usize) -> Parsed {
    Parsed::Whole(Header::Own, used)
}

fn from(source: &str, destination: &str, used: usize) -> Parsed {
    let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
    Parsed::Whole(Header::Client { source, destination }, used)
}

#[test]
fn version_1_lines() {
    let line = b"PROXY TCP4 192.0.2.1 198.51.100.2 40000 25\r\nEHLO x\r\n";
    assert_eq!(parse(line), from("192.0.2.1:40000", "198.51.100.2:25", 44));
    let line = b"PROXY TCP6 2001:db8::1 2001:db8::2 0 65535\r\n";
    assert_eq!(parse(line), from("[2001:db8::1]:0", "[2001:db8::2]:65535", line.len()));
    // The longest there is (§2.1).
    let group = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    let line = format!("PROXY UNKNOWN {group} {group} 65535 65535\r\n");
    assert_eq!((line.len(), parse(line.as_bytes())), (107, own(107)));
    assert_eq!(parse(b"PROXY UNKNOWN\r\n"), own(15));
    // An IPv4 client of an IPv6 proxy.
    let mapped = b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n";
    assert_eq!(parse(mapped), from("192.0.2.1:1", "[::1]:2", mapped.len()));
}

#[test]
fn lines_that_are_none() {
    for text in [
        "EHLO x\r\n",
        "proxy TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
        " PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
        "PROXYTCP4 1.2.3.4 1.2.3.4 1 2\r\n",
        "\r\n\r\nEHLO",
    ] {
        assert_eq!(parse(text.as_bytes()), Parsed::Not(Fault::Absent), "{text:?}");
    }
    for text in [
        "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n",
        "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\rX",
        "PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n",
        "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n",
        "PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
        "PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
        "PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n",
        "PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n",
        "PROXY TCP4 1.2.3.04 1.2.3.4 1 2\r\n",
        "PROXY TCP4 ::1 ::1 1 2\r\n",
        "PROXY TCP6 1.2.3.4 ::1 1 2\r\n",
        "PROXY TCP6 fe80::1%1 ::1 1 2\r\n",
        "PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n",
        "PROXY UNKNOWNX\r\n",
        "PROXY \r\n",
        "PROXY TCP4 h\u{e9} 1.2.3.4 1 2\r\n",
    ] {
        assert_eq!(parse(text.as_bytes()), Parsed::Not(Fault::Line), "{text:?}");
    }
    // One octet more than 107, and an end that never comes.
    let group = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    let long = format!("PROXY UNKNOWN {group} {group} 65535 655350\r\n");
    assert_eq!(parse(long.as_bytes()), Parsed::Not(Fault::Line));
    assert_eq!(parse(&long.as_bytes()[..107]), Parsed::Not(Fault::Line));
    assert_eq!(parse(&long.as_bytes()[..106]), Parsed::More);
}

#[test]
fn version_2_headers() {
    let (family, block) = addresses("192.0.2.1:40000".parse().unwrap(), "198.51.100.2:25".parse().unwrap());
    let header = v2(0x21, family, &block);
    assert_eq!(parse(&header), from("192.0.2.1:40000", "198.51.100.2:25", 28));
    // LOCAL: the proxy's own, whatever else it says.
    for family in [family, 0x00, 0x77, 0xff] {
        assert_eq!(parse(&v2(0x20, family, &block)), own(28));
        assert_eq!(parse(&v2(0x20, family, b"")), own(16));
    }
    // What has no address for us: UNSPEC, Unix sockets, datagrams.
    assert_eq!(parse(&v2(0x21, 0x00, b"")), own(16));
    for family in [0x31, 0x32] {
        assert_eq!(parse(&v2(0x21, family, &[b'/'; 216])), own(232));
        assert_eq!(parse(&v2(0x21, family, &[b'/'; 215])), Parsed::Not(Fault::Length));
    }
    assert_eq!(parse(&v2(0x21, 0x12, &block)), own(28));
    assert_eq!(parse(&v2(0x21, 0x22, &[0; 36])), own(52));
    // What does not exist.
    for command in [0x00, 0x01, 0x11, 0x22, 0x31, 0xff] {
        assert_eq!(parse(&v2(command, family, &block)), Parsed::Not(Fault::Command), "{command:x}");
    }
    for family in [0x01, 0x10, 0x13, 0x41, 0xff] {
        assert_eq!(parse(&v2(0x21, family, &[0; 300])), Parsed::Not(Fault::Family), "{family:x}");
    }
    for (family, length) in [(0x11, 11), (0x11, 0), (0x21, 12), (0x21, 35)] {
        assert_eq!(parse(&v2(0x21, family, &vec![0; length])), Parsed::Not(Fault::Length));
    }
    // A length beyond what we take is known from the first 16 octets.
    let long = v2(0x21, 0x00, &vec![0; HEADER_MAX - 15]);
    assert_eq!(parse(&long[..16]), Parsed::Not(Fault::TooLong));
    assert_eq!(parse(&long[..15]), Parsed::More);
}

#[test]
fn values_are_skipped_and_checksums_are_not() {
    let (source, destination) = ("192.0.2.1:1".parse().unwrap(), "192.0.2.2:25".parse().unwrap());
    let (family, mut block) = addresses(source, destination);
    block.extend(tlv(0x02, b"mail.example")); // authority
    block.extend(tlv(0x04, &[0; 40])); // nothing
    block.extend(tlv(0xea, b""));
    assert_eq!(parse(&v2(0x21, family, &block)), from("192.0.2.1:1", "192.0.2.2:25", 16 + block.len()));
    let sum_at = 16 + block.len() + 3;
    block.extend(tlv(TYPE_CRC32C, &[0; 4]));
    block.extend(tlv(0x05, b"unique"));
    let mut header = v2(0x21, family, &block);
    sign(&mut header, sum_at);
    assert_eq!(parse(&header), from("192.0.2.1:1", "192.0.2.2:25", header.len()));
    // Every octet counts, but for the one that makes it a checksum.
    for at in (16..header.len()).filter(|at| *at != sum_at - 3) {
        let mut broken = header.clone();
        broken[at] ^= 0x20;
        assert!(matches!(parse(&broken), Parsed::Not(Fault::Checksum | Fault::Length)), "octet {at}");
    }
    // One octet of a value too few, half a value's head, a checksum of the wrong size.
    let (family, block) = addresses(source, destination);
    for values in [&[0x04, 0, 2, 0][..], &[0x04, 0], &[0x04], &tlv(TYPE_CRC32C, &[0; 5])] {
        let block = [&block[..], values].concat();
        assert_eq!(parse(&v2(0x21, family, &block)), Parsed::Not(Fault::Length), "{values:?}");
    }
}

fn endpoint() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
    let v4 = (any::<[u8; 4]>(), any::<[u8; 4]>()).prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b)));
    let v6 = (any::<[u8; 16]>(), any::<[u8; 16]>()).prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b)));
    (prop_oneof![v4, v6], any::<(u16, u16)>())
        .prop_map(|((a, b), (p, q))| (SocketAddr::new(a, p), SocketAddr::new(b, q)))
}

/// A whole header of either version, with what it says.
fn header() -> impl Strategy<Value = (Vec<u8>, Header)> {
    let values =
        proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<u8>(), 0..40)), 0..4);
    (endpoint(), values, 0..5u8).prop_map(|((source, destination), values, kind)| {
        let said = client(source, destination);
        let (family, mut block) = addresses(source, destination);
        for (kind, value) in values.iter().filter(|(kind, _)| *kind != TYPE_CRC32C) {
            block.extend(tlv(*kind, value));
        }
        match kind {
            0 => {
                let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
                let line = format!(
                    "PROXY {family} {} {} {} {}\r\n",
                    source.ip(),
                    destination.ip(),
                    source.port(),
                    destination.port()
                );
                (line.into_bytes(), said)
            }
            1 => (b"PROXY UNKNOWN\r\n".to_vec(), Header::Own),
            2 => (v2(0x20, family, &block), Header::Own),
            3 => (v2(0x21, family, &block), said),
            _ => {
                let at = 16 + block.len() + 3;
                block.extend(tlv(TYPE_CRC32C, &[0; 4]));
                let mut header = v2(0x21, family, &block);
                sign(&mut header, at);
                (header, said)
            }
        }
    })
}

proptest! {
    /// However a header is cut, nothing is decided before its last octet, and then always the same; what
    /// follows is not looked at.
    #[test]
    fn split_anywhere((header, said) in header(), behind in proptest::collection::vec(any::<u8>(), 0..64)) {
        for cut in 0..header.len() {
            prop_assert_eq!(parse(&header[..cut]), Parsed::More);
        }
        prop_assert_eq!(parse(&header), Parsed::Whole(said, header.len()));
        let more = [&header[..], &behind].concat();
        prop_assert_eq!(parse(&more), Parsed::Whole(said, header.len()));
    }

    /// No input makes it panic, wait for more than the limit, or use more than there is; and what is not a
    /// header does not become one by what follows.
    #[test]
    fn anything_at_all(
        start in prop_oneof![Just(&b""[..]), Just(WORD), Just(&SIGNATURE[..]), Just(&b"\r\n\r\n\0\r\nQUIT\n\x21\x11"[..])],
        rest in proptest::collection::vec(any::<u8>(), 0..300),
        behind in proptest::collection::vec(any::<u8>(), 0..20),
    ) {
        let input = [start, &rest].concat();
        let more = [&input[..], &behind].concat();
        match parse(&input) {
            Parsed::More => prop_assert!(input.len() < HEADER_MAX),
            Parsed::Whole(header, used) => {
                prop_assert!(used <= input.len());
                prop_assert_eq!(parse(&more), Parsed::Whole(header, used));
            }
            Parsed::Not(fault) => prop_assert_eq!(parse(&more), Parsed::Not(fault)),
        }
    }
}
