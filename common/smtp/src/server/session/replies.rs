//! How the session says things.

use std::io::Write;

use postern_address::{Mailbox, ReversePath};

use super::{Action, Output, Rejected, Session, Stage};
use crate::reply::Reply;
use crate::server::extensions::Extension;

impl Session {
    /// A plain yes.
    pub(super) fn say(
        &self,
        code: u16,
        (class, subject, detail): (u8, u16, u16),
        text: &str,
        out: &mut Output,
    ) {
        // Writing to memory does not fail.
        let _ = if self.settings.extensions.has(Extension::EnhancedStatusCodes) {
            write!(out.wire, "{code} {class}.{subject}.{detail} {text}\r\n")
        } else {
            write!(out.wire, "{code} {text}\r\n")
        };
    }

    /// Any reply, its enhanced code where those are offered (RFC 2034 §4). Text that is not US-ASCII is for
    /// transactions with SMTPUTF8 (RFC 6531 §3.7.4.1); elsewhere it becomes `?`.
    pub(super) fn write(&self, reply: &Reply, out: &mut Output) {
        let utf8 = self.transaction().is_some_and(|(_, parameters)| parameters.smtputf8);
        self.write_as(reply, utf8, out);
    }

    /// The same, where the command said whether UTF-8 is understood.
    pub(super) fn write_as(&self, reply: &Reply, utf8: bool, out: &mut Output) {
        let ascii = utf8 || reply.lines.iter().all(|line| line.is_ascii());
        let codes = self.settings.extensions.has(Extension::EnhancedStatusCodes);
        if ascii && (codes || reply.enhanced.is_none()) {
            return reply.write_to(&mut out.wire);
        }
        let plain = |line: &String| line.chars().map(|c| if c.is_ascii() { c } else { '?' }).collect();
        let lines = if ascii { reply.lines.clone() } else { reply.lines.iter().map(plain).collect() };
        Reply { lines, enhanced: reply.enhanced.filter(|_| codes), ..*reply }.write_to(&mut out.wire);
    }

    /// RFC 5321 §4.1.4: out of order, and the state stays as it was.
    pub(super) fn misplaced(&mut self, verb: &'static str, text: &str, out: &mut Output) {
        self.refuse(verb, Reply::coded(503, (5, 5, 1), text), None, None, out);
    }

    /// Says no, and counts it when it is for good: who hears it too often is shown the door.
    pub(super) fn refuse(
        &mut self,
        stage: &'static str,
        reply: Reply,
        from: Option<ReversePath>,
        to: Option<Mailbox>,
        out: &mut Output,
    ) {
        self.errors += u32::from(reply.is_permanent());
        self.reject(stage, reply, from, to, out);
        if self.errors >= self.settings.errors {
            self.close(Reply::coded(421, (4, 7, 0), "Error: too many errors"), "too many errors", out);
        }
    }

    /// Says no and tells the log.
    pub(super) fn reject(
        &mut self,
        stage: &'static str,
        reply: Reply,
        from: Option<ReversePath>,
        to: Option<Mailbox>,
        out: &mut Output,
    ) {
        self.write(&reply, out);
        let from = from.or_else(|| self.transaction().map(|(path, _)| path.clone()));
        out.actions.push(Action::Rejected(Box::new(Rejected { stage, reply, from, to })));
    }

    /// Ends the transaction, wherever it is, and forgets what was taken of its content.
    pub(super) fn drop_transaction(&mut self, out: &mut Output) {
        self.turns = self.turns.wrapping_add(1);
        let stage = std::mem::replace(&mut self.stage, Stage::Idle);
        if matches!(stage, Stage::Content(_) | Stage::Chunk(..) | Stage::Between(_)) {
            out.actions.push(Action::Dropped);
        }
    }

    /// Ends everything.
    pub(super) fn end(&mut self, why: &'static str, out: &mut Output) {
        self.drop_transaction(out);
        self.stage = Stage::Closed;
        self.asked = std::collections::VecDeque::new();
        out.actions.push(Action::Close(why));
    }
}

pub(super) fn push(out: &mut Output, text: &str) {
    out.wire.extend_from_slice(text.as_bytes());
}

/// RFC 1870 §6.1.
pub(super) fn too_big() -> Reply {
    Reply::coded(552, (5, 3, 4), "Error: message size exceeds the limit")
}
