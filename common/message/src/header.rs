//! The header section (RFC 5322 §2.2), read in place.

/// A header field as it stands in the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// The name, without the colon and blanks before it.
    pub name: &'a str,
    /// The whole field: name, colon, value, folds, the last line end.
    pub raw: &'a [u8],
    colon: usize,
}

/// The fields of a header section, in order.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

/// Iterates over the header fields of a message with CRLF line ends. It stops at the empty line, at the
/// end, or at the first line that is no field: what follows is body, as every other reader takes it.
pub fn fields(message: &[u8]) -> Fields<'_> {
    Fields { rest: message }
}

/// Where the body begins: behind the empty line that ends the header section, or behind the last field
/// where that line is missing.
pub fn body_offset(message: &[u8]) -> usize {
    let mut fields = fields(message);
    while fields.next().is_some() {}
    let end = message.len() - fields.rest.len();
    if fields.rest.starts_with(b"\r\n") { end + 2 } else { end }
}

/// The Message-ID's value, at most 250 characters of it, for log lines.
pub fn message_id(message: &[u8]) -> Option<String> {
    let field = fields(message).find(|field| field.is("message-id"))?;
    Some(field.value().chars().take(250).collect())
}

impl<'a> Field<'a> {
    /// True when the field has this name; case does not matter.
    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }

    /// The value unfolded, without blanks around it. Octets that are not UTF-8 become U+FFFD and control
    /// characters blanks.
    pub fn value(&self) -> String {
        let text = String::from_utf8_lossy(&self.raw[self.colon + 1..]);
        let unfolded = text.replace("\r\n", "");
        unfolded.trim().replace(|c: char| c.is_control(), " ")
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        let first_line = line_length(self.rest);
        let colon = memchr::memchr(b':', &self.rest[..first_line])?;
        let name = std::str::from_utf8(&self.rest[..colon]).ok()?.trim_end_matches([' ', '\t']);
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_graphic()) {
            return None;
        }
        let mut length = first_line;
        while matches!(self.rest.get(length), Some(b' ' | b'\t')) {
            length += line_length(&self.rest[length..]);
        }
        let (raw, rest) = self.rest.split_at(length);
        self.rest = rest;
        Some(Field { name, raw, colon })
    }
}

/// The length of the first line, its CRLF included.
fn line_length(text: &[u8]) -> usize {
    let ends = |at: &usize| at.checked_sub(1).and_then(|before| text.get(before)) == Some(&b'\r');
    memchr::memchr_iter(b'\n', text).find(ends).map_or(text.len(), |at| at + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MESSAGE: &[u8] = b"Received: a\r\n\tb\r\nSubject : hi\r\nMessage-Id:\r\n <1@x>\r\n\r\nbody: no\r\n";

    #[test]
    fn fields_in_order() {
        let found: Vec<_> = fields(MESSAGE).map(|f| (f.name, f.value())).collect();
        assert_eq!(
            found,
            [
                ("Received", "a\tb".replace('\t', " ")),
                ("Subject", "hi".into()),
                ("Message-Id", "<1@x>".into())
            ]
        );
        assert_eq!(&MESSAGE[body_offset(MESSAGE)..], b"body: no\r\n");
        assert_eq!(message_id(MESSAGE).as_deref(), Some("<1@x>"));
    }

    #[test]
    fn no_header_section() {
        for message in [&b""[..], b"\r\n", b"just text\r\n", b" folded: x\r\n", b": x\r\n"] {
            assert_eq!(fields(message).count(), 0, "{message:?}");
        }
        assert_eq!(body_offset(b"just text\r\n"), 0);
        assert_eq!(body_offset(b"A: b"), 4);
    }

    #[test]
    fn only_crlf_ends_a_line() {
        for (text, length) in
            [("a\nb\rc\r\nd", 7), ("\n\r\n", 3), ("\r\n\r\n", 2), ("a\n", 2), ("a\r", 2), ("", 0)]
        {
            assert_eq!(line_length(text.as_bytes()), length, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn fields_and_body_are_the_message(message in "([A-Za-z-]{1,3}:|[ a:]|\r\n){0,30}") {
            let message = message.as_bytes();
            let head: usize = fields(message).map(|f| f.raw.len()).sum();
            let body = body_offset(message);
            prop_assert!(body == head || (body == head + 2 && &message[head..body] == b"\r\n"));
        }

        #[test]
        fn never_panics(message in proptest::collection::vec(any::<u8>(), 0..200)) {
            fields(&message).for_each(|f| drop(f.value()));
            prop_assert!(body_offset(&message) <= message.len());
        }
    }
}
