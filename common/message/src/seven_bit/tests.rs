//! What comes out is read again by the dullest means, and by Python's email package in the system tests.

use proptest::prelude::*;

use super::*;

fn convert(message: &[u8], piece: usize) -> Vec<u8> {
    let (mut seven_bit, mut out) = (SevenBit::default(), Vec::new());
    message.chunks(piece.max(1)).for_each(|piece| seven_bit.push(piece, &mut out));
    seven_bit.finish(&mut out);
    out
}

fn text(message: &[u8]) -> String {
    String::from_utf8(convert(message, 1000)).unwrap()
}

fn unquoted(text: &[u8]) -> Vec<u8> {
    let text = String::from_utf8(text.to_vec()).unwrap().replace("=\r\n", "");
    let (mut out, mut octets) = (Vec::new(), text.bytes());
    while let Some(octet) = octets.next() {
        if octet == b'=' {
            let digits = [octets.next().unwrap(), octets.next().unwrap()];
            out.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
        } else {
            out.push(octet);
        }
    }
    out
}

fn unbased(text: &[u8]) -> Vec<u8> {
    const DIGITS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits: Vec<u8> = text.iter().copied().filter(|b| !b"\r\n".contains(b)).collect();
    assert_eq!(digits.len() % 4, 0);
    let mut out = Vec::new();
    for group in digits.chunks(4) {
        let value = |b: &u8| DIGITS.find(char::from(*b)).unwrap_or(0) as u32;
        let bits = group.iter().fold(0, |bits, b| bits << 6 | value(b));
        let padding = group.iter().filter(|b| **b == b'=').count();
        out.extend_from_slice(&bits.to_be_bytes()[1..4 - padding]);
    }
    out
}

#[test]
fn what_is_seven_bit_stays() {
    for message in [
        &b""[..],
        b"Subject: x\r\n",
        b"Subject: x\r\n\r\nbody\r\n",
        b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nx\r\n--b--\r\nend",
        // Without MIME nobody would know what the encoded text is.
        b"Subject: x\r\n\r\n\xe9\r\n",
        b"no header at all",
        b"A: b\r\n\r\nlast line without an end",
        b"A: b\r\n\r\n\r\n\r\n",
    ] {
        assert_eq!(convert(message, 7), message, "{:?}", String::from_utf8_lossy(message));
    }
}

#[test]
fn eight_bit_text_is_quoted() {
    let message = "MIME-Version: 1.0\r\nContent-Transfer-Encoding: 8bit\r\nX: y\r\n\r\né=é \r\n.\r\n-x\r\n";
    assert_eq!(
        text(message.as_bytes()),
        "MIME-Version: 1.0\r\nContent-Transfer-Encoding: quoted-printable\r\nX: y\r\n\r\n\
         =C3=A9=3D=C3=A9=20\r\n=2E\r\n=2Dx\r\n"
    );
}

#[test]
fn multiparts_and_messages_are_gone_through() {
    let message = "Content-Type: multipart/mixed; x=\"a;b\";\r\n\tboundary=\"o\\ut\"\r\n\
         Content-Transfer-Encoding: 8BIT (yes)\r\n\r\n\
         preamble\r\n--out\r\nContent-Type: message/rfc822\r\nContent-Transfer-Encoding: 8bit\r\n\r\n\
         Subject: inner\r\nContent-Type: multipart/alternative; boundary=in\r\nContent-Transfer-Encoding: 8bit\r\n\r\n\
         --in\r\nContent-Transfer-Encoding: 8bit\r\n\r\né\r\n--in  \r\n\r\nascii\r\n\
         --out\r\nContent-Transfer-Encoding: binary\r\n\r\nab\0\nc\r\n--out--\r\nepilogue\r\n";
    assert_eq!(
        text(message.as_bytes()),
        "Content-Type: multipart/mixed; x=\"a;b\";\r\n\tboundary=\"o\\ut\"\r\n\
         Content-Transfer-Encoding: 7bit\r\n\r\n\
         preamble\r\n--out\r\nContent-Type: message/rfc822\r\nContent-Transfer-Encoding: 7bit\r\n\r\n\
         Subject: inner\r\nContent-Type: multipart/alternative; boundary=in\r\nContent-Transfer-Encoding: 7bit\r\n\r\n\
         --in\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n=C3=A9\r\n--in  \r\n\r\nascii\r\n\
         --out\r\nContent-Transfer-Encoding: base64\r\n\r\nYWIACmM=\r\n--out--\r\nepilogue\r\n"
    );
}

#[test]
fn parts_that_end_early() {
    // A header section that a boundary ends, and a multipart without its end.
    let message = "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Transfer-Encoding: 8bit\r\n\
         --b\r\nContent-Transfer-Encoding: 8bit\r\n\r\né";
    let expected = "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Transfer-Encoding: 8bit\r\n\
         --b\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n=C3=A9";
    assert_eq!(text(message.as_bytes()), expected);
}

#[test]
fn is_it_mime() {
    assert!(is_mime(b"A: b\r\nMime-Version: 1.0\r\n\r\n"));
    assert!(!is_mime(b"A: b\r\n\r\nMime-Version: 1.0\r\n"));
}

#[test]
fn a_long_header_section_passes() {
    let long = "x".repeat(HEADER_MAX + 10);
    let message = format!("A: {long}\r\nContent-Transfer-Encoding: 8bit\r\n\r\né\r\n");
    assert_eq!(convert(message.as_bytes(), 4096), message.as_bytes());
}

fn lines() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        "[ -~]{0,90}".prop_map(String::into_bytes),
        proptest::collection::vec(any::<u8>(), 0..120),
        Just(b"--inner".to_vec()),
        Just(b"--".to_vec()),
        Just(vec![b'-'; 700]),
    ];
    proptest::collection::vec(line, 0..8).prop_map(|lines| {
        let clean =
            |line: &Vec<u8>| line.iter().map(|b| if b"\r\n".contains(b) { b'?' } else { *b }).collect();
        lines.iter().map(clean).collect::<Vec<Vec<u8>>>().join(&b"\r\n"[..])
    })
}

proptest! {
    /// Pieces of any size come to the same.
    #[test]
    fn pieces(body in lines(), piece in 1usize..40, kind in 0usize..3) {
        let encoding = ["7bit", "8bit", "binary"][kind];
        let part = format!("Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\
            Content-Transfer-Encoding: {encoding}\r\n\r\n");
        let message = [part.as_bytes(), &body, b"\r\n--b--\r\n"].concat();
        prop_assert_eq!(convert(&message, piece), convert(&message, usize::MAX));
    }

    /// A declared part comes out in seven bits, in short lines, and means what it meant.
    #[test]
    fn a_part_means_what_it_meant(body in lines(), binary: bool, raw in proptest::collection::vec(any::<u8>(), 0..200)) {
        let encoding = if binary { "binary" } else { "8bit" };
        let body = if binary { raw } else { body };
        let head = format!("MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=unheard-of\r\n\r\n\
            --unheard-of\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n");
        let message = [head.as_bytes(), &body, b"\r\n--unheard-of--\r\n"].concat();
        let out = convert(&message, 13);
        prop_assert!(out.is_ascii());
        for line in out.split(|b| *b == b'\n') {
            prop_assert!(line.len() <= LINE_MAX + 1, "{:?}", String::from_utf8_lossy(line));
        }
        let out = out.strip_suffix(b"--unheard-of--\r\n").unwrap();
        let part = out[memchr::memmem::find(out, b"--unheard-of\r\n").unwrap()..].to_vec();
        let content = &part[memchr::memmem::find(&part, b"\r\n\r\n").unwrap() + 4..];
        let meant = if binary {
            unbased(content)
        } else {
            unquoted(content.strip_suffix(b"\r\n").unwrap())
        };
        prop_assert_eq!(meant, body);
    }

    /// The whole message as one part: its last line end is its own.
    #[test]
    fn a_message_of_one_part(body in lines(), binary: bool) {
        let encoding = if binary { "binary" } else { "8bit" };
        let head = format!("Content-Transfer-Encoding: {encoding}\r\n\r\n");
        let body = [&body[..], b"\r\n"].concat();
        let out = convert(&[head.as_bytes(), &body].concat(), 5);
        let content = &out[memchr::memmem::find(&out, b"\r\n\r\n").unwrap() + 4..];
        prop_assert_eq!(if binary { unbased(content) } else { unquoted(content) }, body);
    }

    #[test]
    fn hostile(message in prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..300),
        "(--b|--b--|\r\n|Content-Type: multipart/x; boundary=b|Content-Type: message/rfc822|Content-Transfer-Encoding: (8bit|binary)|x| |\r|\n){0,40}".prop_map(String::into_bytes),
    ], piece in 1usize..20) {
        let out = convert(&message, piece);
        prop_assert!(out.len() <= message.len() * 5 + 100);
        // What was converted needs no second conversion.
        prop_assert_eq!(convert(&out, 1000), out);
    }
}
