//! What the session's tests share.

use std::collections::VecDeque;

use super::*;
use crate::reply::EnhancedCode;

/// A client, a lookup and a spool in one: refuses recipients whose local part begins with `x`, and
/// defers those with `y`.
pub(super) struct Bench {
    pub(super) session: Session,
    pub(super) wire: String,
    pub(super) asked: VecDeque<(u16, Question)>,
    /// Recipients that were answered for with a yes.
    pub(super) accepted: Vec<Mailbox>,
    pub(super) finished: Vec<Finished>,
    pub(super) rejected: Vec<(&'static str, u16)>,
    pub(super) dropped: usize,
    pub(super) closed: Option<&'static str>,
    pub(super) input: Vec<u8>,
}

impl Bench {
    pub(super) fn new(protocol: Protocol) -> Self {
        Self::with(settings(protocol))
    }

    pub(super) fn with(settings: Settings) -> Self {
        let mut out = Output::default();
        let session = Session::new(Arc::new(settings), &mut out);
        let mut bench = Self {
            session,
            wire: String::new(),
            asked: VecDeque::new(),
            accepted: Vec::new(),
            finished: Vec::new(),
            rejected: Vec::new(),
            dropped: 0,
            closed: None,
            input: Vec::new(),
        };
        bench.take(out);
        bench
    }

    /// On a lenient listener.
    pub(super) fn normalising() -> Self {
        let mut bench = Self::new(Protocol::Smtp);
        let mut settings = bench.session.settings().clone();
        settings.normalise = true;
        bench.session = Session::new(Arc::new(settings), &mut Output::default());
        bench
    }

    pub(super) fn take(&mut self, out: Output) {
        self.wire.push_str(std::str::from_utf8(&out.wire).unwrap());
        for action in out.actions {
            assert!(self.closed.is_none(), "{action:?} after Close");
            match action {
                Action::Ask { ticket, question } => self.asked.push_back((ticket, question)),
                Action::Finished(finished) => {
                    let known = |recipient| self.accepted.contains(recipient);
                    assert!(!finished.recipients.is_empty() && finished.recipients.iter().all(known));
                    self.finished.push(*finished);
                }
                Action::Dropped => self.dropped += 1,
                Action::Rejected(rejected) => self.rejected.push((rejected.stage, rejected.reply.code)),
                Action::Close(why) => self.closed = Some(why),
            }
        }
    }

    /// Input, as far as it is understood without answers.
    pub(super) fn feed(&mut self, input: &[u8]) {
        self.input.extend_from_slice(input);
        loop {
            let mut out = Output::default();
            let used = self.session.receive(&self.input, &mut out);
            self.input.drain(..used);
            self.take(out);
            if used == 0 {
                return;
            }
        }
    }

    /// Answers the n-th open question, or settles a finished message. False when nothing is open.
    pub(super) fn answer(&mut self, n: usize) -> bool {
        let mut out = Output::default();
        if self.session.phase() == Phase::Settling {
            self.session.settle(error250(), &mut out);
        } else {
            let open = self.asked.len();
            if open == 0 {
                return false;
            }
            let (ticket, question) = self.asked.remove(n % open).unwrap();
            let answer = oracle(&question);
            if let (Question::Rcpt { recipient, .. }, Answer::Accepted) = (question, &answer) {
                self.accepted.push(recipient);
            }
            self.session.answer(ticket, answer, &mut out);
        }
        self.take(out);
        self.feed(b"");
        true
    }

    /// Input with every answer at once: what came back since the last call.
    pub(super) fn say(&mut self, input: &str) -> String {
        self.feed(input.as_bytes());
        while self.answer(0) {}
        std::mem::take(&mut self.wire)
    }

    pub(super) fn codes(&mut self, input: &str) -> Vec<u16> {
        codes(&self.say(input))
    }
}

/// What is answered depends on the question alone: names that begin with `x` are refused, with `y`
/// deferred, with `z` shown the door.
pub(super) fn oracle(question: &Question) -> Answer {
    let name = match question {
        Question::Client => "c",
        Question::Data => "d",
        Question::Helo(name) => name,
        Question::Mail { path, .. } => path.as_str(),
        Question::Rcpt { recipient, .. } => recipient.as_str(),
        Question::Vrfy(text) | Question::Expn(text) | Question::Etrn(text) => {
            return Answer::Say(Reply::new(250, EnhancedCode::new(2, 1, 5), text.clone()));
        }
        Question::Xclient(text) | Question::Xforward(text) => text,
    };
    match name.as_bytes().first() {
        Some(b'x') => Answer::Refused(Reply::coded(550, (5, 1, 1), "no such user")),
        Some(b'y') => Answer::Refused(Reply::coded(451, (4, 3, 0), "later")),
        Some(b'z') => Answer::Closed(Reply::coded(421, (4, 7, 0), "go away")),
        _ => Answer::Accepted,
    }
}

pub(super) fn error250() -> Reply {
    Reply::new(250, EnhancedCode::new(2, 0, 0), "Ok: queued")
}

/// The codes of the replies, one for each.
pub(super) fn codes(wire: &str) -> Vec<u16> {
    assert!(wire.is_empty() || wire.ends_with("\r\n"), "{wire:?}");
    let lines = wire.split_terminator("\r\n");
    lines.filter(|line| line.as_bytes()[3] == b' ').map(|line| line[..3].parse().unwrap()).collect()
}

pub(super) fn greeted() -> Bench {
    let mut bench = Bench::new(Protocol::Smtp);
    assert_eq!(bench.codes("EHLO c.test\r\n"), [220, 250]);
    bench
}

pub(super) fn settings(protocol: Protocol) -> Settings {
    Settings {
        hostname: Domain::parse("mx.test").unwrap(),
        protocol,
        secure: false,
        extensions: Extensions::all(),
        asks: Asks::default(),
        message_size: 1000,
        recipients: 4,
        transactions: None,
        recipient_domains: None,
        line_length: 100,
        errors: 5,
        normalise: false,
    }
}
