//! Where a command line ends (RFC 5321 §2.3.8, §4.5.3.1.4). Only CRLF ends one: a bare CR, a bare LF or a
//! NUL is no line end, no blank and no character, but the sign of a client that hopes to be understood
//! differently by two servers. Nothing after it can be trusted to be a command.

/// Longest command line, octets, CRLF included: the 512 of RFC 5321 §4.5.3.1.4 and room for what
/// extensions add to it.
pub const COMMAND_LINE_MAX: usize = 2048;

/// What stands at the front of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split<'a> {
    /// A line, without its CRLF; `consumed` octets with it.
    Line {
        /// The text.
        line: &'a [u8],
        /// How much of the input it was.
        consumed: usize,
    },
    /// The end of a line over the limit: the reply is due now, and skipping is over.
    TooLong {
        /// How much of the input is gone.
        consumed: usize,
    },
    /// No end in sight of a line over the limit: skip `consumed` octets and go on skipping.
    Skip {
        /// How much of the input is gone, may be 0.
        consumed: usize,
    },
    /// More input is needed.
    Incomplete,
    /// A bare CR, a bare LF, or a NUL.
    Violation,
}

/// Looks at the front of `input`; `skipping` when the last answer was [`Split::Skip`]. A pure look:
/// what is not consumed is looked at again.
pub fn split(input: &[u8], skipping: bool) -> Split<'_> {
    let hopeless = |text: usize| skipping || text + 2 > COMMAND_LINE_MAX;
    let Some(at) = memchr::memchr3(b'\r', b'\n', 0, input) else {
        let all = input.len();
        return if hopeless(all) { Split::Skip { consumed: all } } else { Split::Incomplete };
    };
    match (input[at], input.get(at + 1)) {
        (b'\r', Some(b'\n')) if hopeless(at) => Split::TooLong { consumed: at + 2 },
        (b'\r', Some(b'\n')) => Split::Line { line: &input[..at], consumed: at + 2 },
        (b'\r', None) if hopeless(at) => Split::Skip { consumed: at },
        (b'\r', None) => Split::Incomplete,
        _ => Split::Violation,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        assert_eq!(split(b"NOOP\r\nX", false), Split::Line { line: b"NOOP", consumed: 6 });
        assert_eq!(split(b"\r\n", false), Split::Line { line: b"", consumed: 2 });
        for text in [&b""[..], b"NOOP", b"NOOP\r"] {
            assert_eq!(split(text, false), Split::Incomplete, "{text:?}");
        }
        for text in [&b"NOOP\nQUIT\r\n"[..], b"NOOP\rX", b"NO\0OP\r\n", b"\n", b"\r\r\n"] {
            assert_eq!(split(text, false), Split::Violation, "{text:?}");
        }
    }

    #[test]
    fn the_limit_counts_the_line_end() {
        let mut line = vec![b'x'; COMMAND_LINE_MAX - 2];
        line.extend(b"\r\n");
        assert!(matches!(split(&line, false), Split::Line { consumed: COMMAND_LINE_MAX, .. }));
        assert_eq!(split(&line[..COMMAND_LINE_MAX - 1], false), Split::Incomplete);
        line.insert(0, b'x');
        assert_eq!(split(&line, false), Split::TooLong { consumed: COMMAND_LINE_MAX + 1 });
        let cut = &line[..COMMAND_LINE_MAX];
        assert_eq!(split(cut, false), Split::Skip { consumed: COMMAND_LINE_MAX - 1 });
        assert_eq!(split(b"\r", true), Split::Skip { consumed: 0 });
        assert_eq!(split(b"\r\nQ", true), Split::TooLong { consumed: 2 });
        assert_eq!(split(b"x\n", true), Split::Violation);
    }
}
