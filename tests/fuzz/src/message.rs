//! The header section, and the conversion for hosts without 8BITMIME.

use postern_message::{SevenBit, body_offset, fields, message_id};

use crate::material::{Random, front, is_strict, pieces};

pub(crate) fn run(data: &[u8]) {
    let (options, message): ([u8; 3], _) = front(data);
    let header: Vec<u8> = fields(message).flat_map(|field| field.raw.to_vec()).collect();
    let body = body_offset(message);
    assert!(message.starts_with(&header));
    assert!(body == header.len() || (body == header.len() + 2 && message[..body].ends_with(b"\r\n")));
    for field in fields(message) {
        assert!(!field.name.is_empty() && field.name.bytes().all(|b| b.is_ascii_graphic()));
        assert!(!field.value().chars().any(char::is_control), "{field:?}");
    }
    assert!(message_id(message).is_none_or(|id| id.chars().count() <= 250));
    let whole = converted(&[message]);
    assert_eq!(whole, converted(&pieces(message, &mut Random::of(&options))));
    assert!(whole.len() <= 4 * message.len() + 1024, "{} octets of {}", whole.len(), message.len());
    assert!(is_strict(&whole) || !is_strict(message), "a bare line end is made");
}

fn converted(cut: &[&[u8]]) -> Vec<u8> {
    let (mut seven_bit, mut out) = (SevenBit::default(), Vec::new());
    cut.iter().for_each(|piece| seven_bit.push(piece, &mut out));
    seven_bit.finish(&mut out);
    out
}
