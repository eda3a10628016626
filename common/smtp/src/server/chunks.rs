//! Content in chunks (RFC 3030): how long each is stands in its BDAT command, so nothing in it can be taken
//! for its end, and nothing is stuffed.
//!
//! What is within is another matter. A message of BODY=BINARYMIME may hold any octet. Every other one is
//! text, and may be sent on by DATA, where a bare CR or LF is what SMTP smuggling is made of: text that holds
//! one, or a NUL, is refused (554 5.6.0) as DATA would refuse it, `bare-newline = "normalise"` or not. Since
//! both sides agree where the chunk ends, the dialogue goes on. Text that does not end with a line end is
//! given one, as DATA would have given it.

/// Why content in chunks is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// More octets than we take.
    TooBig,
    /// A line over the limit.
    LineTooLong,
    /// Text with a NUL.
    Nul,
    /// Text with a CR without LF.
    BareCr,
    /// Text with a LF without CR.
    BareLf,
}

/// The content of one message, in pieces cut anywhere.
#[derive(Clone, Debug)]
pub struct Chunks {
    binary: bool,
    state: State,
    line: u64,
    size: u64,
    fault: Option<Fault>,
    size_max: u64,
    line_max: u64,
}

/// Where text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    LineStart,
    Line,
    /// Behind a CR.
    Cr,
}

impl Chunks {
    /// For content of at most `size_max` octets; in lines of at most `line_max`, unless it is binary.
    pub fn new(binary: bool, size_max: u64, line_max: u64) -> Self {
        Self { binary, state: State::LineStart, line: 0, size: 0, fault: None, size_max, line_max }
    }

    /// Whether a chunk of `octets` more fits.
    pub fn fits(&self, octets: u64) -> bool {
        self.size.saturating_add(octets) <= self.size_max
    }

    /// Takes the next piece and appends it to `kept`, unless there is or was something wrong with it.
    pub fn take(&mut self, piece: &[u8], kept: &mut Vec<u8>) {
        self.size = self.size.saturating_add(piece.len() as u64);
        if self.size > self.size_max {
            self.fault.get_or_insert(Fault::TooBig);
        }
        if !self.binary {
            self.check(piece);
        }
        if self.fault.is_none() {
            kept.extend_from_slice(piece);
        }
    }

    /// The end of the last chunk. The size of the whole, or what was wrong with it.
    pub fn end(&mut self, kept: &mut Vec<u8>) -> Result<u64, Fault> {
        if !self.binary && self.state == State::Cr {
            self.fault.get_or_insert(Fault::BareCr);
        }
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        if !self.binary && self.state == State::Line {
            kept.extend_from_slice(b"\r\n");
            self.size += 2;
        }
        Ok(self.size)
    }

    /// What was wrong so far.
    pub fn fault(&self) -> Option<Fault> {
        self.fault
    }

    fn check(&mut self, piece: &[u8]) {
        let mut at = 0;
        while let (Some(&octet), None) = (piece.get(at), self.fault) {
            match (self.state, octet) {
                (State::Cr, b'\n') => {
                    (self.state, self.line) = (State::LineStart, 0);
                    at += 1;
                }
                (State::Cr, _) => self.fault = Some(Fault::BareCr),
                (_, b'\r') => {
                    self.state = State::Cr;
                    at += 1;
                }
                (_, b'\n') => self.fault = Some(Fault::BareLf),
                (_, 0) => self.fault = Some(Fault::Nul),
                _ => {
                    let rest = &piece[at..];
                    let text = memchr::memchr3(b'\r', b'\n', 0, rest).unwrap_or(rest.len());
                    self.state = State::Line;
                    self.line += text as u64;
                    if self.line > self.line_max {
                        self.fault = Some(Fault::LineTooLong);
                    }
                    at += text;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is kept of `pieces`, or what is wrong with them.
    fn whole(binary: bool, pieces: &[&[u8]]) -> Result<Vec<u8>, Fault> {
        let (mut chunks, mut kept) = (Chunks::new(binary, 1000, 50), Vec::new());
        pieces.iter().for_each(|piece| chunks.take(piece, &mut kept));
        let size = chunks.end(&mut kept)?;
        assert_eq!(size, kept.len() as u64);
        Ok(kept)
    }

    #[test]
    fn text_is_lines() {
        for (text, kept) in [
            (&b""[..], &b""[..]),
            (b"a", b"a\r\n"),
            (b"a\r\n", b"a\r\n"),
            (b"\r\n.\r\n..\r\n", b"\r\n.\r\n..\r\n"),
            (b"\r\n\xff\x01", b"\r\n\xff\x01\r\n"),
        ] {
            assert_eq!(whole(false, &[text]).as_deref(), Ok(kept), "{text:?}");
        }
        for (text, fault) in [
            (&b"\n"[..], Fault::BareLf),
            (b"a\r\nb\nc", Fault::BareLf),
            (b"a\r", Fault::BareCr),
            (b"a\rb", Fault::BareCr),
            (b"\r\r\n", Fault::BareCr),
            (b"a\0", Fault::Nul),
            (&[b'x'; 51], Fault::LineTooLong),
        ] {
            assert_eq!(whole(false, &[text]), Err(fault), "{text:?}");
            assert!(whole(true, &[text]).is_ok_and(|kept| kept == text));
        }
    }

    #[test]
    fn the_limit_is_the_messages() {
        let text = [&[b'x'; 48][..], b"\r\n"].concat();
        assert!(whole(false, &[&text[..]; 20]).is_ok());
        assert_eq!(whole(false, &[&text[..]; 21]), Err(Fault::TooBig));
        assert_eq!(whole(true, &[&text[..]; 21]), Err(Fault::TooBig));
        let mut chunks = Chunks::new(false, 1000, 50);
        chunks.take(b"\r\n", &mut Vec::new());
        assert!(chunks.fits(998) && !chunks.fits(999) && !chunks.fits(u64::MAX));
    }

    proptest! {
        #[test]
        fn splits_do_not_matter(
            text in proptest::collection::vec(prop::sample::select(b"a.\r\n\0\n\r\n".to_vec()), 0..20),
            lines in proptest::collection::vec("[a.]{0,30}\r\n", 0..6),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
            binary in any::<bool>(),
        ) {
            let input = [lines.concat().into_bytes(), text].concat();
            let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(input.len() + 1)).collect();
            cuts.extend([0, input.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &input[pair[0]..pair[1]]).collect();
            prop_assert_eq!(whole(binary, &pieces), whole(binary, &[&input]));
        }

        #[test]
        fn kept_text_has_whole_line_ends_alone(text in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(kept) = whole(false, &[&text]) {
                let lone = kept.split(|b| *b == b'\n').rev().skip(1).any(|line| !line.ends_with(b"\r"));
                let crs = kept.iter().filter(|b| **b == b'\r').count();
                prop_assert!(!lone && crs == kept.iter().filter(|b| **b == b'\n').count());
            }
        }
    }
}
