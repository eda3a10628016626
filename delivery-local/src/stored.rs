//! A message as it is stored: LF line ends, our own Return-Path and Delivered-To first.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use postern_address::{Mailbox, ReversePath};
use postern_ipc::queue_agent::Content;

/// How much of a file is read at once.
const CHUNK: usize = 64 * 1024;

const RETURN_PATH: &[u8] = b"return-path:";

/// Writes a message for one recipient: `Return-Path`, `Delivered-To`, then the content with CRLF turned to
/// LF. A Return-Path that the message brought is left out: there is to be one, ours (RFC 5321 §4.4).
pub fn write(
    out: &mut impl Write,
    reverse_path: &ReversePath,
    recipient: &Mailbox,
    content: &Content,
    file: Option<&File>,
) -> io::Result<()> {
    write!(out, "Return-Path: <{}>\nDelivered-To: {recipient}\n", reverse_path.as_str())?;
    let mut rewriter = Rewriter::default();
    match content {
        Content::Inline(bytes) => rewriter.push(bytes, out)?,
        Content::File { prepend, offset, length } => {
            rewriter.push(prepend, out)?;
            let file = file.ok_or_else(|| io::Error::other("the job came without its file"))?;
            let mut chunk = vec![0; CHUNK];
            let mut done = 0;
            while done < *length {
                let want = chunk.len().min(usize::try_from(length - done).unwrap_or(CHUNK));
                let position = offset.checked_add(done).ok_or(io::ErrorKind::InvalidInput)?;
                let part = chunk.get_mut(..want).unwrap_or_default();
                file.read_exact_at(part, position)?;
                rewriter.push(part, out)?;
                done += want as u64;
            }
        }
    }
    rewriter.finish(out)
}

/// Turns content as on the wire into content as stored, in pieces of any size.
#[derive(Debug, Default)]
pub struct Rewriter {
    /// A CR was the last octet: it is part of a line end, or not.
    held_cr: bool,
    place: Place,
    /// The beginning of a header line, until it is known whether it is Return-Path.
    beginning: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// At the beginning of a header line, with what is in `beginning`.
    #[default]
    LineStart,
    /// Likewise, and the field before was dropped: if this goes on with it, it is dropped too.
    AfterDropped,
    /// In a header line that is kept.
    Kept,
    /// In one that is dropped.
    Dropped,
    /// Behind the header section.
    Body,
}

impl Rewriter {
    /// Takes some octets and writes what is certain.
    pub fn push(&mut self, bytes: &[u8], out: &mut impl Write) -> io::Result<()> {
        let mut rest = bytes;
        while let Some((&first, behind)) = rest.split_first() {
            if self.place == Place::Body {
                return self.body(rest, out);
            }
            if self.held_cr && first != b'\n' {
                self.held_cr = false;
                self.take(b"\r", out)?;
            }
            if first == b'\r' {
                self.held_cr = true;
                rest = behind;
                continue;
            }
            if first == b'\n' {
                self.held_cr = false;
                self.take(b"\n", out)?;
                rest = behind;
                continue;
            }
            let run = rest.iter().position(|b| matches!(b, b'\r' | b'\n')).unwrap_or(rest.len());
            let (run, behind) = rest.split_at(run);
            self.take(run, out)?;
            rest = behind;
        }
        Ok(())
    }

    /// Behind the header section nothing changes but that CRLF is LF: what lies between two CRs goes at once.
    fn body(&mut self, bytes: &[u8], out: &mut impl Write) -> io::Result<()> {
        if std::mem::take(&mut self.held_cr) && bytes.first() != Some(&b'\n') {
            out.write_all(b"\r")?;
        }
        let mut written = 0;
        for cr in memchr::memchr_iter(b'\r', bytes) {
            let next = bytes.get(cr + 1);
            if matches!(next, None | Some(b'\n')) {
                out.write_all(bytes.get(written..cr).unwrap_or_default())?;
                written = cr + 1;
                self.held_cr = next.is_none();
            }
        }
        out.write_all(bytes.get(written..).unwrap_or_default())
    }

    /// The end of the message: writes what was held.
    pub fn finish(mut self, out: &mut impl Write) -> io::Result<()> {
        if self.held_cr {
            self.take(b"\r", out)?;
        }
        out.write_all(&self.beginning)
    }

    /// A piece of one line, or its end.
    fn take(&mut self, piece: &[u8], out: &mut impl Write) -> io::Result<()> {
        match self.place {
            Place::Body => out.write_all(piece), // A CR that was held.
            Place::Kept | Place::Dropped => {
                if self.place == Place::Kept {
                    out.write_all(piece)?;
                }
                if piece == b"\n" {
                    let dropped = self.place == Place::Dropped;
                    self.place = if dropped { Place::AfterDropped } else { Place::LineStart };
                }
                Ok(())
            }
            Place::LineStart | Place::AfterDropped => self.begin(piece, out),
        }
    }

    fn begin(&mut self, piece: &[u8], out: &mut impl Write) -> io::Result<()> {
        if self.beginning.is_empty() {
            if piece == b"\n" {
                self.place = Place::Body;
                return out.write_all(piece);
            }
            let folded = matches!(piece.first(), Some(b' ' | b'\t'));
            if folded && self.place == Place::AfterDropped {
                self.place = Place::Dropped;
                return Ok(());
            }
        }
        if piece != b"\n" {
            self.beginning.extend_from_slice(piece);
            let known = self.beginning.len().min(RETURN_PATH.len());
            let could_be = self.beginning.iter().zip(RETURN_PATH).all(|(a, b)| a.eq_ignore_ascii_case(b));
            if could_be && known == RETURN_PATH.len() {
                self.beginning.clear();
                self.place = Place::Dropped;
                return Ok(());
            }
            if could_be {
                return Ok(());
            }
        }
        let beginning = std::mem::take(&mut self.beginning);
        self.place = Place::Kept;
        out.write_all(&beginning)?;
        match piece {
            b"\n" => self.take(piece, out),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rewritten(pieces: &[&[u8]]) -> Vec<u8> {
        let (mut out, mut rewriter) = (Vec::new(), Rewriter::default());
        pieces.iter().for_each(|piece| rewriter.push(piece, &mut out).unwrap());
        rewriter.finish(&mut out).unwrap();
        out
    }

    #[test]
    fn foreign_return_paths_go() {
        let message = b"RETURN-path: <a@b>\r\n\tfolded\r\nReturn: kept\r\nreturn-path:x\r\nSubject: s\r\n f\r\n\r\nReturn-Path: body\r\n";
        assert_eq!(rewritten(&[message]), b"Return: kept\nSubject: s\n f\n\nReturn-Path: body\n");
        assert_eq!(rewritten(&[b"Ret"]), b"Ret");
        assert_eq!(rewritten(&[b"\r\nReturn-Path: x\r\n"]), b"\nReturn-Path: x\n");
    }

    #[test]
    fn lone_carriage_returns_stay() {
        assert_eq!(rewritten(&[b"\r\na\rb\r", b"\r\nc\r"]), b"\na\rb\r\nc\r");
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            message in "(Return-Path: x\r\n|RETURN|A: b\r\n|\t c\r\n|\r\n|\r|\n|text){0,12}",
            cuts in proptest::collection::vec(0usize..100, 0..6),
        ) {
            let whole = rewritten(&[message.as_bytes()]);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(message.len())).collect();
            cuts.extend([0, message.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &message.as_bytes()[w[0]..w[1]]).collect();
            prop_assert_eq!(rewritten(&pieces), whole);
        }

        #[test]
        fn bodies_change_in_line_ends_alone(body in "(\r|\n|\r\n|[ -~]{1,30}){0,20}", cut in 0usize..300) {
            let (first, second) = body.split_at(cut.min(body.len()));
            let stored = rewritten(&[b"\r\n", first.as_bytes(), second.as_bytes()]);
            prop_assert_eq!(stored, format!("\n{}", body.replace("\r\n", "\n")).into_bytes());
        }
    }
}
