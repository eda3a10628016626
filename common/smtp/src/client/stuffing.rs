//! Content on its way out: dot-stuffing (RFC 5321 §4.5.2) and the one line end.

/// Turns content into what follows DATA, piece by piece.
///
/// A CR or an LF that stands alone becomes CRLF, so that none ever leaves this host: RFC 5321 §2.3.8
/// forbids to send them, and a server that takes `LF . LF` for the end of DATA would read what comes
/// behind it as commands ("SMTP smuggling"). Refusing such content was the other choice; but smtpd
/// takes none, so what remains comes from local programs, whose users mean a line end by it.
#[derive(Clone, Debug)]
pub struct Stuffer {
    at_line_start: bool,
    after_cr: bool,
    dots: bool,
}

impl Default for Stuffer {
    fn default() -> Self {
        Self { at_line_start: true, after_cr: false, dots: true }
    }
}

impl Stuffer {
    /// For text that goes by BDAT: line ends are made one, no dot is added.
    pub fn unstuffed() -> Self {
        Self { dots: false, ..Self::default() }
    }

    /// Appends a piece of content.
    pub fn push(&mut self, mut piece: &[u8], out: &mut Vec<u8>) {
        while let Some(&first) = piece.first() {
            if self.after_cr {
                self.end_line(out);
                if first == b'\n' {
                    piece = &piece[1..];
                    continue;
                }
            }
            if self.at_line_start && self.dots && first == b'.' {
                out.push(b'.');
            }
            let Some(end) = memchr::memchr2(b'\r', b'\n', piece) else {
                out.extend_from_slice(piece);
                self.at_line_start = false;
                return;
            };
            let (text, rest) = piece.split_at(end);
            out.extend_from_slice(text);
            match rest.first() {
                Some(b'\r') => self.after_cr = true,
                _ => self.end_line(out),
            }
            piece = rest.get(1..).unwrap_or_default();
        }
    }

    /// Appends the end: a line end when the last line has none, and the dot where there are dots.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        if self.after_cr || !self.at_line_start {
            self.end_line(out);
        }
        if self.dots {
            out.extend_from_slice(b".\r\n");
        }
    }

    fn end_line(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"\r\n");
        (self.at_line_start, self.after_cr) = (true, false);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a strict server makes of it: the content, and what is left behind the end.
    pub(in crate::client) fn decode(mut wire: &[u8]) -> Option<(Vec<u8>, &[u8])> {
        let mut content = Vec::new();
        loop {
            let end = wire.windows(2).position(|w| w == b"\r\n")?;
            let (line, rest) = (&wire[..end], &wire[end + 2..]);
            assert!(!line.contains(&b'\r') && !line.contains(&b'\n'), "bare CR or LF was sent");
            wire = rest;
            if line == b"." {
                return Some((content, wire));
            }
            content.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
            content.extend_from_slice(b"\r\n");
        }
    }

    /// Line ends made one by the dullest means.
    fn normal(content: &[u8]) -> Vec<u8> {
        let text: String = content.iter().map(|&b| char::from(b)).collect();
        let mut text = text.replace("\r\n", "\n").replace('\r', "\n");
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.replace('\n', "\r\n").chars().map(|c| c as u8).collect()
    }

    fn stuffed(pieces: &[&[u8]]) -> Vec<u8> {
        let (mut stuffer, mut out) = (Stuffer::default(), Vec::new());
        pieces.iter().for_each(|piece| stuffer.push(piece, &mut out));
        stuffer.finish(&mut out);
        out
    }

    #[test]
    fn table() {
        for (content, wire) in [
            (&b""[..], &b".\r\n"[..]),
            (b"a", b"a\r\n.\r\n"),
            (b".", b"..\r\n.\r\n"),
            (b"a\r\n.\r\nb", b"a\r\n..\r\nb\r\n.\r\n"),
            (b"a\n.\nb", b"a\r\n..\r\nb\r\n.\r\n"),
            (b"a\r.\rb", b"a\r\n..\r\nb\r\n.\r\n"),
            (b"a\r\r\nb", b"a\r\n\r\nb\r\n.\r\n"),
            (b"a\r", b"a\r\n.\r\n"),
        ] {
            assert_eq!(stuffed(&[content]), wire, "{:?}", String::from_utf8_lossy(content));
        }
    }

    proptest! {
        #[test]
        fn round_trip(content in prop_oneof!["[.\r\na]{0,40}".prop_map(String::into_bytes),
                                             proptest::collection::vec(any::<u8>(), 0..80)],
                      piece in 1usize..7) {
            let wire = stuffed(&content.chunks(piece).collect::<Vec<_>>());
            let (decoded, rest) = decode(&wire).unwrap();
            prop_assert_eq!(decoded, normal(&content));
            prop_assert!(rest.is_empty());
        }
    }
}
