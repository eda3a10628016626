//! Command lines, and the attributes of XCLIENT and XFORWARD.

use postern_smtp::server::command;
use postern_smtp::server::framing::{self, Split};
use postern_smtp::server::{Extension, Extensions, normalise};
use postern_smtp::xclient::{Xclient, Xforward};

use crate::material::front;

pub(crate) fn run(data: &[u8]) {
    let ([offered], rest) = front(data);
    split(rest);
    let offered = Extension::ALL.into_iter().enumerate().filter(|(bit, _)| offered & 1 << (bit % 8) != 0);
    let offered = offered.fold(Extensions::all(), |all, (_, extension)| all.without(extension));
    for line in rest.split(|octet| *octet == b'\n') {
        if let Err(refused) = command::parse(line, offered) {
            assert!((400..600).contains(&refused.reply.code), "{refused:?}");
            let mut wire = Vec::new();
            refused.reply.write_to(&mut wire);
            assert!(crate::material::is_strict(&wire) && !wire.contains(&0), "{refused:?}");
        }
        if let Ok(text) = std::str::from_utf8(line) {
            // What they make of it is told by types; that they make something of it is the matter here.
            let _ = (Xclient::parse(text), Xforward::parse(text));
        }
    }
}

/// Every line is found by both splitters, and what they use is there.
fn split(input: &[u8]) {
    for split in [framing::split, normalise::split] {
        let (mut rest, mut skipping) = (input, false);
        loop {
            let consumed = match split(rest, skipping) {
                Split::Line { line, consumed } => {
                    assert!(line.len() < consumed && consumed <= framing::COMMAND_LINE_MAX && !skipping);
                    assert!(!line.contains(&b'\n'));
                    consumed
                }
                Split::TooLong { consumed } => {
                    skipping = false;
                    assert!(consumed > 0);
                    consumed
                }
                Split::Skip { consumed } => {
                    skipping = true;
                    consumed
                }
                Split::Incomplete => {
                    assert!(rest.len() < framing::COMMAND_LINE_MAX);
                    break;
                }
                Split::Violation => break,
            };
            if consumed == 0 {
                break;
            }
            rest = &rest[consumed..];
        }
    }
}
