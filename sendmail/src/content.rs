//! From what a program writes to a message (RFC 5322 §2.1): line ends, the final dot. Pure.

/// Turns text into lines that end in CRLF, in pieces cut anywhere.
///
/// LF and CRLF end a line, whatever is mixed. A CR that is followed by neither becomes a blank in the
/// header section and a line end in the body: in the header section a line end would let a program that
/// guards its header values against LF alone be made to write lines of somebody else's choosing; in the
/// body it is how old Macs ended lines. CRs before a line end belong to it.
#[derive(Debug)]
pub struct Lines {
    out: Vec<u8>,
    /// Where the line under way begins in `out`.
    begin: usize,
    /// CRs whose meaning the next octet tells.
    returns: usize,
    in_header: bool,
    ended: bool,
    ignore_dots: bool,
}

impl Lines {
    /// Nothing read. Unless `ignore_dots`, a line of a dot alone ends the message.
    pub fn new(ignore_dots: bool) -> Self {
        Self { out: Vec::new(), begin: 0, returns: 0, in_header: true, ended: false, ignore_dots }
    }

    /// Takes the next piece. False when the message has ended: what follows is not read.
    pub fn take(&mut self, piece: &[u8]) -> bool {
        let mut rest = piece;
        while !self.ended && !rest.is_empty() {
            // What lies before the next line end or CR is copied at once.
            let plain = rest.iter().position(|octet| matches!(octet, b'\n' | b'\r')).unwrap_or(rest.len());
            let (run, behind) = rest.split_at(plain);
            if !run.is_empty() {
                self.returns_alone();
                self.out.extend_from_slice(run);
            }
            match behind.first() {
                Some(b'\n') => self.end_line(),
                Some(_) => self.returns += 1,
                None => {}
            }
            rest = behind.get(1..).unwrap_or_default();
        }
        !self.ended
    }

    /// Octets so far.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// Nothing was read.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// The message; a last line without an end gets one.
    pub fn finish(mut self) -> Vec<u8> {
        if !self.ended && (self.out.len() > self.begin || self.returns > 0) {
            self.end_line();
        }
        self.out
    }

    fn end_line(&mut self) {
        let line = self.out.get(self.begin..).unwrap_or_default();
        if line == b"." && !self.ignore_dots {
            self.ended = true;
            self.out.truncate(self.begin);
            return;
        }
        self.break_line();
    }

    fn break_line(&mut self) {
        self.returns = 0;
        self.in_header &= self.out.len() > self.begin;
        self.out.extend_from_slice(b"\r\n");
        self.begin = self.out.len();
    }

    fn returns_alone(&mut self) {
        if self.returns == 0 {
            return;
        }
        if self.in_header {
            self.returns = 0;
            self.out.push(b' ');
        } else {
            // A dot before it ends no message: only what the program means as a line end does.
            self.break_line();
        }
    }
}

/// Drops mbox's line in front of a message (`From ann Sun Nov 22 …`), which some programs leave there.
pub fn without_mbox_line(mut message: Vec<u8>) -> Vec<u8> {
    while message.starts_with(b"From ") || message.starts_with(b">From ") {
        let end = message.windows(2).position(|pair| pair == b"\r\n").map_or(message.len(), |at| at + 2);
        message.drain(..end);
    }
    message
}

/// Turns LF into CRLF and leaves the rest: for a dialogue, whose machine judges everything else.
#[derive(Debug, Default)]
pub struct LineEnds {
    after_return: bool,
}

impl LineEnds {
    /// Appends the next piece to `out`.
    pub fn take(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        for &octet in piece {
            if octet == b'\n' && !self.after_return {
                out.push(b'\r');
            }
            self.after_return = octet == b'\r';
            out.push(octet);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str, ignore_dots: bool) -> String {
        let mut lines = Lines::new(ignore_dots);
        lines.take(text.as_bytes());
        String::from_utf8(lines.finish()).unwrap()
    }

    #[test]
    fn line_ends() {
        assert_eq!(read("A: b\n\nc\r\nd", false), "A: b\r\n\r\nc\r\nd\r\n");
        assert_eq!(read("A: b\rBcc: x\n\nc\rd\r\r\n", false), "A: b Bcc: x\r\n\r\nc\r\nd\r\n");
        assert_eq!(read("", false), "");
        assert_eq!(read("\n", false), "\r\n");
        assert_eq!(read("a\r", false), "a\r\n");
    }

    #[test]
    fn dots() {
        assert_eq!(read("A: b\n\nc\n.\nd\n", false), "A: b\r\n\r\nc\r\n");
        assert_eq!(read("A: b\n\nc\n.\r\nd\n", false), "A: b\r\n\r\nc\r\n");
        assert_eq!(read("A: b\n\nc\n.", false), "A: b\r\n\r\nc\r\n");
        assert_eq!(read("A: b\n\nc\n.\nd\n", true), "A: b\r\n\r\nc\r\n.\r\nd\r\n");
        assert_eq!(read("A: b\n\n.\rd\n", false), "A: b\r\n\r\n.\r\nd\r\n");
        assert_eq!(read("A: b\n\n..\n.x\n", false), "A: b\r\n\r\n..\r\n.x\r\n");
    }

    #[test]
    fn mbox_lines() {
        let without = |text: &str| String::from_utf8(without_mbox_line(text.into())).unwrap();
        assert_eq!(without("From ann Sun\r\nA: b\r\n"), "A: b\r\n");
        assert_eq!(without("From: ann\r\n"), "From: ann\r\n");
        assert_eq!(without("From ann"), "");
    }

    proptest! {
        #[test]
        fn only_crlf_is_left(text in "([abc.:]|\r|\n|\r\n){0,40}", cut: prop::sample::Index, ignore: bool) {
            let (mut whole, mut pieces) = (Lines::new(ignore), Lines::new(ignore));
            whole.take(text.as_bytes());
            let (a, b) = text.as_bytes().split_at(cut.index(text.len() + 1));
            if pieces.take(a) {
                pieces.take(b);
            }
            let whole = whole.finish();
            prop_assert_eq!(&whole, &pieces.finish());
            let text = String::from_utf8(whole).unwrap();
            prop_assert!(text.is_empty() || text.ends_with("\r\n"));
            let bare = text.replace("\r\n", "");
            prop_assert!(!bare.contains(['\r', '\n']));
        }

        #[test]
        fn line_ends_of_a_dialogue(text in "[ab\r\n]{0,20}", cut: prop::sample::Index) {
            let (mut ends, mut out) = (LineEnds::default(), Vec::new());
            let (a, b) = text.as_bytes().split_at(cut.index(text.len() + 1));
            ends.take(a, &mut out);
            ends.take(b, &mut out);
            let expected = text.replace("\r\n", "\n").replace('\n', "\r\n");
            prop_assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
