//! PROXY headers.

use postern_smtp::proxy::{HEADER_MAX, Parsed, parse};

pub(crate) fn run(data: &[u8]) {
    let whole = parse(data);
    if let Parsed::Whole(_, used) = whole {
        assert!(used <= data.len() && used <= HEADER_MAX);
    }
    assert!(whole != Parsed::More || data.len() < HEADER_MAX, "it waits for too much");
    // What was said of the front stands when more has come.
    for length in 0..data.len().min(300) {
        match parse(&data[..length]) {
            Parsed::More => {}
            Parsed::Whole(header, used) => assert_eq!(whole, Parsed::Whole(header, used), "at {length}"),
            Parsed::Not(_) => assert!(matches!(whole, Parsed::Not(_)), "at {length}"),
        }
    }
}
