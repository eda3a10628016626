//! Content: by DATA, by BDAT, rewritten, and on its way out again.

use postern_smtp::client::Stuffer;
use postern_smtp::server::chunks::Chunks;
use postern_smtp::server::data::{Decoder, Progress};

use crate::material::{Random, front, is_strict, pieces};

pub(crate) fn run(data: &[u8]) {
    let (options, input): ([u8; 3], _) = front(data);
    let size_max = if options[0] & 1 == 0 { u64::MAX } else { 64 + u64::from(options[1]) };
    let line_max = if options[0] & 2 == 0 { u64::MAX } else { 1 + u64::from(options[1]) };
    let mut random = Random::of(&options);
    let cut = pieces(input, &mut random);
    for normalise in [false, true] {
        let whole = decode(&[input], size_max, line_max, normalise);
        let parts = decode(&cut, size_max, line_max, normalise);
        assert_eq!(whole.0, parts.0, "how it ends");
        if let Outcome::Message(size) = whole.0 {
            assert_eq!(whole.1, parts.1);
            let content = &whole.1;
            assert!(size == content.len() as u64 && size <= size_max);
            assert!(is_strict(content) && !content.contains(&0));
            assert_eq!(Some(&content[..]), resent(content, &mut random).as_deref());
        }
        assert!(!normalise || whole.0 != Outcome::Violation);
    }
    for binary in [false, true] {
        let whole = chunked(&[input], binary, size_max, line_max);
        assert_eq!(whole, chunked(&cut, binary, size_max, line_max));
        if let Some(content) = whole {
            assert!(binary || (is_strict(&content) && !content.contains(&0)));
            // Were binary content to leave us by DATA after all, it would be text with one kind of line end.
            assert!(resent(&content, &mut random).is_some());
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Of so many octets.
    Message(u64),
    Fault,
    Violation,
    Unfinished,
}

/// How it ends, what is kept, and how much of the input that was.
fn decode(cut: &[&[u8]], size_max: u64, line_max: u64, normalise: bool) -> (Outcome, Vec<u8>) {
    let mut decoder = Decoder::new(size_max, line_max).normalising(normalise);
    let mut kept = Vec::new();
    for piece in cut {
        match decoder.decode(piece, &mut kept) {
            Progress::More => {}
            Progress::Violation(_) => return (Outcome::Violation, kept),
            Progress::End { used } => {
                assert!(used > 0 && piece[..used].ends_with(b"\n"));
                let fault = decoder.fault().is_some();
                return (if fault { Outcome::Fault } else { Outcome::Message(decoder.size()) }, kept);
            }
        }
    }
    (Outcome::Unfinished, kept)
}

fn chunked(cut: &[&[u8]], binary: bool, size_max: u64, line_max: u64) -> Option<Vec<u8>> {
    let (mut chunks, mut kept) = (Chunks::new(binary, size_max, line_max), Vec::new());
    cut.iter().for_each(|piece| chunks.take(piece, &mut kept));
    chunks.end(&mut kept).ok().map(|size| {
        assert_eq!(size, kept.len() as u64);
        kept
    })
}

/// What a strict server gets of what our client sends: none if it would close the connection.
fn resent(content: &[u8], random: &mut Random) -> Option<Vec<u8>> {
    let (mut stuffer, mut wire) = (Stuffer::default(), Vec::new());
    pieces(content, random).iter().for_each(|piece| stuffer.push(piece, &mut wire));
    stuffer.finish(&mut wire);
    assert!(is_strict(&wire));
    let (mut decoder, mut kept) = (Decoder::new(u64::MAX, u64::MAX), Vec::new());
    (decoder.decode(&wire, &mut kept) == Progress::End { used: wire.len() }).then_some(kept)
}
