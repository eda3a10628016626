//! Content in chunks (RFC 3030 §2): from the first BDAT to the message.

use postern_address::ReversePath;

use super::replies::too_big;
use super::{Action, Announced, Discard, Output, Session, Stage};
use crate::parameters::Body;
use crate::reply::Reply;
use crate::server::chunks::{Chunks, Fault};
use crate::server::extensions::Extension;
use crate::server::question::{Pending, Question};

/// A chunk larger than this is never there to be read to its end.
const CHUNK_MAX: u64 = 1 << 40;

impl Session {
    /// BDAT. Whatever is wrong with it, its octets follow: they are read before the reply is written, and
    /// never taken for commands.
    pub(super) fn bdat(&mut self, size: u64, last: bool, out: &mut Output) {
        if size > CHUNK_MAX {
            self.reject("BDAT", too_big(), None, None, out);
            return self.end("chunk without end", out);
        }
        let misplaced = |text| Reply::coded(503, (5, 5, 1), text);
        if !self.settings.extensions.has(Extension::Chunking) {
            let reply = Reply::coded(502, (5, 5, 1), "Error: command not implemented");
            return self.begin_discard(size, reply, None, out);
        }
        match &self.stage {
            Stage::Open(transaction) if transaction.accepted() == 0 => {
                let reply = self.no_recipients();
                self.begin_discard(size, reply, None, out);
            }
            Stage::Open(_) if self.settings.asks.data => {
                self.ask(Question::Data, Pending::Chunk { size, last }, out);
            }
            Stage::Open(_) => self.begin_chunks(size, last, out),
            Stage::Between(_) => self.begin_chunk(size, last, out),
            Stage::Barred => self.begin_discard(size, misplaced("Error: access denied"), None, out),
            _ => self.begin_discard(size, misplaced("Error: need RCPT command"), None, out),
        }
    }

    /// The first chunk is accepted.
    pub(super) fn begin_chunks(&mut self, size: u64, last: bool, out: &mut Output) {
        let Stage::Open(transaction) = std::mem::replace(&mut self.stage, Stage::Idle) else { return };
        let binary = transaction.mail().1.body == Body::Binary;
        let chunks = Chunks::new(binary, self.settings.message_size, u64::from(self.settings.line_length));
        match transaction.begin_chunks(chunks) {
            Ok(chunked) => {
                self.stage = Stage::Between(chunked);
                self.begin_chunk(size, last, out);
            }
            Err(transaction) => {
                self.stage = Stage::Open(transaction);
                let reply = self.no_recipients();
                self.begin_discard(size, reply, None, out);
            }
        }
    }

    /// Octets of a chunk.
    pub(super) fn chunk(&mut self, input: &[u8], out: &mut Output) -> usize {
        let Stage::Chunk(chunked, announced) = &mut self.stage else { return 0 };
        let piece = front(input, announced.left);
        chunked.add(piece);
        announced.left -= piece.len() as u64;
        if announced.left == 0 {
            self.end_chunk(out);
        }
        piece.len()
    }

    /// Octets of a chunk that is refused.
    pub(super) fn discard(&mut self, input: &[u8], out: &mut Output) -> usize {
        let Some(discard) = &mut self.discard else { return 0 };
        let piece = front(input, discard.left);
        discard.left -= piece.len() as u64;
        if discard.left == 0
            && let Some(discard) = self.discard.take()
        {
            self.refuse("BDAT", discard.reply, discard.from, None, out);
        }
        piece.len()
    }

    /// Reads a chunk and forgets it, then says why.
    pub(super) fn begin_discard(
        &mut self,
        size: u64,
        reply: Reply,
        from: Option<ReversePath>,
        out: &mut Output,
    ) {
        self.discard = Some(Box::new(Discard { left: size, reply, from }));
        if size == 0 {
            self.discard(&[], out);
        }
    }

    fn begin_chunk(&mut self, size: u64, last: bool, out: &mut Output) {
        let Stage::Between(chunked) = std::mem::replace(&mut self.stage, Stage::Idle) else { return };
        if !chunked.fits(size) {
            // RFC 1870 §6.1, as soon as it is known.
            out.actions.push(Action::Dropped);
            let from = Some(chunked.mail().0.clone());
            return self.begin_discard(size, too_big(), from, out);
        }
        self.stage = Stage::Chunk(chunked, Announced { size, left: size, last });
        if size == 0 {
            self.end_chunk(out);
        }
    }

    /// RFC 3030 §2: each chunk has its reply, and the last one's is the message's.
    fn end_chunk(&mut self, out: &mut Output) {
        let Stage::Chunk(chunked, announced) = std::mem::replace(&mut self.stage, Stage::Idle) else {
            return;
        };
        if chunked.fault().is_none() && !announced.last {
            self.stage = Stage::Between(chunked);
            return self.say(250, (2, 0, 0), &format!("Ok: {} octets", announced.size), out);
        }
        match chunked.finish() {
            Ok(finished) => self.finished(finished, out),
            Err((fault, from)) => {
                out.actions.push(Action::Dropped);
                let stage = if announced.last { "END-OF-MESSAGE" } else { "BDAT" };
                self.refuse(stage, reply(fault), Some(from), None, out);
            }
        }
    }
}

fn front(input: &[u8], left: u64) -> &[u8] {
    let length = usize::try_from(left).map_or(input.len(), |left| left.min(input.len()));
    &input[..length]
}

fn reply(fault: Fault) -> Reply {
    let of_text = |text| Reply::coded(554, (5, 6, 0), text);
    match fault {
        Fault::TooBig => too_big(),
        Fault::LineTooLong => of_text("Error: line of text too long"),
        Fault::Nul => of_text("Error: NUL in text that is not BODY=BINARYMIME"),
        Fault::BareCr => of_text("Error: bare <CR> in text that is not BODY=BINARYMIME"),
        Fault::BareLf => of_text("Error: bare <LF> in text that is not BODY=BINARYMIME"),
    }
}
