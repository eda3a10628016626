//! A message on its way to a host without 8BITMIME: parts that are declared `8bit` become quoted-printable,
//! parts declared `binary` base64 (RFC 6152 §3, RFC 3030 §4, RFC 2045 §6).
//!
//! It goes through in pieces; nothing but one part's header section is held. What a part is, its own
//! Content-Transfer-Encoding says; what says nothing passes as it is, as it does in Postfix: text without
//! MIME fields cannot be encoded so that anybody would understand it. Multiparts are gone through, and so are
//! messages within messages. Signed parts are converted like all others: a host that cannot take the message
//! otherwise would break it worse.

use crate::header::fields;

/// A longer header section of a part is not looked into: the part passes as it is.
const HEADER_MAX: usize = 128 * 1024;
/// Multiparts within multiparts; deeper ones pass as they are.
const DEPTH_MAX: usize = 100;
/// The beginning of a line that is looked at for a boundary, which has at most 70 characters (RFC 2046 §5.1.1).
const DELIMITER_MAX: usize = 512;
/// Encoded lines are no longer (RFC 2045 §6.7, §6.8).
const LINE_MAX: usize = 76;

/// The conversion, between two pieces.
#[derive(Clone, Debug)]
pub struct SevenBit {
    /// Boundaries of the multiparts around this place, the innermost last.
    boundaries: Vec<Vec<u8>>,
    state: State,
    /// The beginning of the line under way, until it is known what it is.
    line: Vec<u8>,
    /// It was: what follows of the line is content.
    in_line: bool,
    /// A CR that may begin a line end.
    after_cr: bool,
    /// The line end before this line, which is a boundary's if one follows (RFC 2046 §5.1.1).
    held_end: bool,
}

#[derive(Clone, Debug)]
enum State {
    /// A header section, as far as it came.
    Header(Vec<u8>),
    /// Passes as it is.
    Pass,
    Quoted(Quoted),
    Base64(Base64),
}

impl Default for SevenBit {
    fn default() -> Self {
        Self {
            boundaries: Vec::new(),
            state: State::Header(Vec::new()),
            line: Vec::new(),
            in_line: false,
            after_cr: false,
            held_end: false,
        }
    }
}

impl SevenBit {
    /// Converts the next piece of a message onto the end of `out`.
    pub fn push(&mut self, mut piece: &[u8], out: &mut Vec<u8>) {
        while !piece.is_empty() {
            if std::mem::take(&mut self.after_cr) {
                if piece.first() == Some(&b'\n') {
                    piece = piece.get(1..).unwrap_or_default();
                    self.line_end(out);
                    continue;
                }
                self.octets(b"\r", out);
            }
            let end = memchr::memchr(b'\r', piece).unwrap_or(piece.len());
            let (text, rest) = piece.split_at(end);
            self.octets(text, out);
            self.after_cr = !rest.is_empty();
            piece = rest.get(1..).unwrap_or_default();
        }
    }

    /// The message has ended.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        if std::mem::take(&mut self.after_cr) {
            self.octets(b"\r", out);
        }
        if !self.line.is_empty() {
            self.line_known(out);
        }
        self.release_end(out);
        match std::mem::replace(&mut self.state, State::Pass) {
            State::Header(header) => out.extend_from_slice(&header),
            state => self.end_part(state, out),
        }
    }

    /// Octets of a line; no line end.
    fn octets(&mut self, mut text: &[u8], out: &mut Vec<u8>) {
        if let State::Header(header) = &mut self.state {
            header.extend_from_slice(text);
            if header.len() > HEADER_MAX {
                let header = std::mem::take(header);
                out.extend_from_slice(&header);
                self.state = State::Pass;
                self.in_line = true;
            }
            return;
        }
        if !self.in_line {
            let room = DELIMITER_MAX.saturating_sub(self.line.len()).min(text.len());
            let (beginning, rest) = text.split_at(room);
            self.line.extend_from_slice(beginning);
            text = rest;
            let dashes = b"--".get(..self.line.len().min(2)).unwrap_or_default();
            let may_be_delimiter = self.line.starts_with(dashes) && !self.boundaries.is_empty();
            if may_be_delimiter && self.line.len() < DELIMITER_MAX {
                return;
            }
            self.line_known(out);
        }
        self.content(text, out);
    }

    /// The line under way is content.
    fn line_known(&mut self, out: &mut Vec<u8>) {
        self.release_end(out);
        let line = std::mem::take(&mut self.line);
        self.in_line = true;
        self.content(&line, out);
    }

    /// CRLF.
    fn line_end(&mut self, out: &mut Vec<u8>) {
        if let State::Header(header) = &mut self.state {
            let empty = header.is_empty() || header.ends_with(b"\r\n");
            // A boundary here ends a part whose header section has no end.
            let line = header.rsplit(|b| *b == b'\n').next().unwrap_or_default().to_vec();
            if !empty && let Some(depth) = self.delimiter(&line) {
                let at = header_length(&self.state) - line.len();
                self.cut_header(at, out);
                return self.delimit(depth, &line, out);
            }
            if let State::Header(header) = &mut self.state {
                header.extend_from_slice(b"\r\n");
            }
            if empty {
                self.header_ends(out);
            }
            return;
        }
        if !self.in_line {
            if let Some(depth) = self.delimiter(&self.line) {
                let line = std::mem::take(&mut self.line);
                let state = std::mem::replace(&mut self.state, State::Pass);
                let held = std::mem::take(&mut self.held_end);
                let encoded = matches!(state, State::Base64(_));
                self.end_part(state, out);
                if held && !encoded {
                    out.extend_from_slice(b"\r\n");
                }
                return self.delimit(depth, &line, out);
            }
            self.line_known(out);
        }
        self.in_line = false;
        self.held_end = true;
    }

    /// The line end that was held back is content.
    fn release_end(&mut self, out: &mut Vec<u8>) {
        if std::mem::take(&mut self.held_end) {
            match &mut self.state {
                State::Header(_) | State::Pass => out.extend_from_slice(b"\r\n"),
                State::Quoted(quoted) => quoted.line_end(out),
                State::Base64(base64) => base64.push(b"\r\n", out),
            }
        }
    }

    fn content(&mut self, text: &[u8], out: &mut Vec<u8>) {
        match &mut self.state {
            State::Header(_) | State::Pass => out.extend_from_slice(text),
            State::Quoted(quoted) => quoted.push(text, out),
            State::Base64(base64) => base64.push(text, out),
        }
    }

    fn end_part(&mut self, state: State, out: &mut Vec<u8>) {
        match state {
            State::Header(_) | State::Pass => {}
            State::Quoted(mut quoted) => quoted.finish(out),
            State::Base64(mut base64) => base64.finish(out),
        }
    }

    /// What a line delimits: the multipart's place, and whether that is at its end.
    fn delimiter(&self, line: &[u8]) -> Option<(usize, bool)> {
        let rest = line.strip_prefix(b"--")?;
        let rest = rest.trim_ascii_end();
        let find = |(n, boundary): (usize, &Vec<u8>)| match rest.strip_prefix(boundary.as_slice()) {
            Some(b"") => Some((n, false)),
            Some(b"--") => Some((n, true)),
            _ => None,
        };
        self.boundaries.iter().enumerate().rev().find_map(find)
    }

    fn delimit(&mut self, (depth, closes): (usize, bool), line: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(line);
        out.extend_from_slice(b"\r\n");
        self.boundaries.truncate(if closes { depth } else { depth + 1 });
        self.state = if closes { State::Pass } else { State::Header(Vec::new()) };
        (self.in_line, self.held_end) = (false, false);
    }

    /// Writes a header section that ended without an empty line.
    fn cut_header(&mut self, at: usize, out: &mut Vec<u8>) {
        if let State::Header(header) = &self.state {
            out.extend_from_slice(header.get(..at).unwrap_or(header));
        }
        self.state = State::Pass;
    }

    /// The header section is whole: it says what follows.
    fn header_ends(&mut self, out: &mut Vec<u8>) {
        let State::Header(header) = std::mem::replace(&mut self.state, State::Pass) else { return };
        let part = Part::of(&header);
        let wide = matches!(part.encoding, Encoding::EightBit | Encoding::Binary);
        let (state, encoding) = match part.kind {
            Kind::Multipart(boundary) if self.boundaries.len() < DEPTH_MAX => {
                self.boundaries.push(boundary);
                (State::Pass, "7bit")
            }
            Kind::Message if self.boundaries.len() < DEPTH_MAX => (State::Header(Vec::new()), "7bit"),
            Kind::Multipart(_) | Kind::Message => return out.extend_from_slice(&header),
            Kind::Leaf if part.encoding == Encoding::Binary => (State::Base64(Base64::default()), "base64"),
            Kind::Leaf if wide => (State::Quoted(Quoted::default()), "quoted-printable"),
            Kind::Leaf => (State::Pass, ""),
        };
        self.state = state;
        if !wide {
            return out.extend_from_slice(&header);
        }
        let mut length = 0;
        for field in fields(&header) {
            length += field.raw.len();
            if field.is("content-transfer-encoding") {
                out.extend_from_slice(format!("Content-Transfer-Encoding: {encoding}\r\n").as_bytes());
            } else {
                out.extend_from_slice(field.raw);
            }
        }
        out.extend_from_slice(header.get(length..).unwrap_or_default());
    }
}

fn header_length(state: &State) -> usize {
    if let State::Header(header) = state { header.len() } else { 0 }
}

/// Whether a message's header section makes it a MIME message (RFC 2045 §4): what is in any octets and is none
/// cannot be encoded.
pub fn is_mime(message: &[u8]) -> bool {
    fields(message).any(|field| field.is("mime-version"))
}

/// What a part's header section says of it.
struct Part {
    kind: Kind,
    encoding: Encoding,
}

enum Kind {
    Multipart(Vec<u8>),
    /// A message with a header section of its own that may not be encoded as a whole (RFC 2046 §5.2.1).
    Message,
    Leaf,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Encoding {
    SevenBit,
    EightBit,
    Binary,
}

impl Part {
    fn of(header: &[u8]) -> Self {
        let (mut kind, mut encoding) = (Kind::Leaf, Encoding::SevenBit);
        for field in fields(header) {
            if field.is("content-type") {
                kind = Kind::of(&field.value());
            } else if field.is("content-transfer-encoding") {
                let value = field.value().to_ascii_lowercase();
                let word = value.split(|c: char| c.is_ascii_whitespace() || c == ';' || c == '(').next();
                encoding = match word.unwrap_or_default() {
                    "8bit" => Encoding::EightBit,
                    "binary" => Encoding::Binary,
                    _ => Encoding::SevenBit,
                };
            }
        }
        Self { kind, encoding }
    }
}

impl Kind {
    fn of(value: &str) -> Self {
        let kind = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if kind == "message/rfc822" || kind == "message/news" {
            return Self::Message;
        }
        match boundary(value).filter(|_| kind.starts_with("multipart/")) {
            Some(boundary) => Self::Multipart(boundary),
            None => Self::Leaf,
        }
    }
}

/// The boundary parameter of a Content-Type (RFC 2045 §5.1), quoted or not.
fn boundary(value: &str) -> Option<Vec<u8>> {
    let mut rest = value;
    loop {
        let at = rest.find(';')?;
        rest = rest.get(at + 1..)?.trim_start();
        let (name, after) = rest.split_once('=')?;
        let after = after.trim_start();
        let (text, next) = match after.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let end = after.find(|c: char| c == ';' || c.is_ascii_whitespace()).unwrap_or(after.len());
                let (text, next) = after.split_at(end);
                (text.to_owned(), next)
            }
        };
        if name.trim().eq_ignore_ascii_case("boundary") {
            let text = text.trim_end();
            return (!text.is_empty() && text.len() <= DELIMITER_MAX / 2).then(|| text.as_bytes().to_vec());
        }
        rest = next;
    }
}

/// A quoted string's text, and what is behind it.
fn unquote(quoted: &str) -> (String, &str) {
    let (mut text, mut escaped) = (String::new(), false);
    for (at, c) in quoted.char_indices() {
        match c {
            _ if escaped => {
                text.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return (text, quoted.get(at + 1..).unwrap_or_default()),
            c => text.push(c),
        }
    }
    (text, "")
}

/// Quoted-printable (RFC 2045 §6.7), line by line.
#[derive(Clone, Debug, Default)]
struct Quoted {
    column: usize,
    /// A blank that must be encoded if the line ends behind it.
    blank: Option<u8>,
}

impl Quoted {
    fn push(&mut self, text: &[u8], out: &mut Vec<u8>) {
        for &octet in text {
            if let Some(blank) = self.blank.take() {
                self.write(&[blank], out);
            }
            match octet {
                b' ' | b'\t' => self.blank = Some(octet),
                // The first in a line of our making: no boundary, and no dot alone.
                b'-' | b'.' if self.column == 0 => self.encode(octet, out),
                b'!'..=b'<' | b'>'..=b'~' => self.write(&[octet], out),
                _ => self.encode(octet, out),
            }
        }
    }

    fn line_end(&mut self, out: &mut Vec<u8>) {
        self.last_blank(out);
        out.extend_from_slice(b"\r\n");
        self.column = 0;
    }

    /// The part ends; the line end behind its last line is a boundary's, or there is none.
    fn finish(&mut self, out: &mut Vec<u8>) {
        self.last_blank(out);
    }

    fn last_blank(&mut self, out: &mut Vec<u8>) {
        if let Some(blank) = self.blank.take() {
            self.encode(blank, out);
        }
    }

    fn encode(&mut self, octet: u8, out: &mut Vec<u8>) {
        const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
        let digit = |n: u8| DIGITS.get(usize::from(n)).copied().unwrap_or(b'0');
        self.write(&[b'=', digit(octet >> 4), digit(octet & 15)], out);
    }

    fn write(&mut self, text: &[u8], out: &mut Vec<u8>) {
        // Room for the `=` of a soft line break.
        if self.column + text.len() > LINE_MAX - 1 {
            out.extend_from_slice(b"=\r\n");
            self.column = 0;
            if let [octet @ (b'-' | b'.')] = text {
                return self.encode(*octet, out);
            }
        }
        out.extend_from_slice(text);
        self.column += text.len();
    }
}

/// Base64 (RFC 2045 §6.8).
#[derive(Clone, Debug, Default)]
struct Base64 {
    group: Vec<u8>,
    column: usize,
}

impl Base64 {
    fn push(&mut self, mut text: &[u8], out: &mut Vec<u8>) {
        while !text.is_empty() {
            let (some, rest) = text.split_at((3 - self.group.len()).min(text.len()));
            self.group.extend_from_slice(some);
            text = rest;
            if self.group.len() == 3 {
                self.write(out);
            }
        }
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        if !self.group.is_empty() {
            self.write(out);
        }
        if self.column > 0 {
            out.extend_from_slice(b"\r\n");
            self.column = 0;
        }
    }

    fn write(&mut self, out: &mut Vec<u8>) {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let octet = |n: usize| self.group.get(n).copied().map_or(0, u32::from);
        let bits = octet(0) << 16 | octet(1) << 8 | octet(2);
        for n in 0..4 {
            let digit = DIGITS.get((bits >> (18 - 6 * n) & 63) as usize).copied();
            out.push(digit.filter(|_| n <= self.group.len()).unwrap_or(b'='));
        }
        self.group.clear();
        self.column += 4;
        if self.column >= LINE_MAX {
            out.extend_from_slice(b"\r\n");
            self.column = 0;
        }
    }
}

#[cfg(test)]
mod tests;
