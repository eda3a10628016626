//! The server's session machine, with questions answered at random times and the input cut at random.

use std::collections::VecDeque;
use std::sync::Arc;

use postern_address::Domain;
use postern_smtp::server::{
    Action, Answer, Asks, Extension, Extensions, Identity, Output, Phase, Protocol, Question, Session,
    Settings,
};
use postern_smtp::{EnhancedCode, Reply};

use crate::material::{Random, front, is_strict};

pub(crate) fn run(data: &[u8]) {
    let (options, input): ([u8; 4], _) = front(data);
    let mut prompt = Bench::new(options);
    while prompt.answer(0) {}
    for octet in input {
        prompt.feed(std::slice::from_ref(octet));
        while prompt.answer(0) {}
    }
    let mut slow = Bench::new(options);
    let mut random = Random::of(&options);
    for piece in crate::material::pieces(input, &mut random) {
        slow.feed(piece);
        for _ in 0..random.below(3) {
            slow.answer(random.below(8));
        }
    }
    while slow.answer(random.below(8)) {}
    // RFC 2920: how the input is cut, and how fast we are, changes nothing.
    assert_eq!(String::from_utf8_lossy(&prompt.wire), String::from_utf8_lossy(&slow.wire));
    assert_eq!(prompt.finished, slow.finished);
    assert_eq!(prompt.rejected, slow.rejected);
    assert_eq!(prompt.closed, slow.closed);
    assert!(prompt.early <= prompt.session.commands());
}

/// A client, a lookup and a spool in one.
struct Bench {
    session: Session,
    wire: Vec<u8>,
    asked: VecDeque<(u16, Question)>,
    finished: Vec<(String, Vec<String>, Vec<u8>)>,
    rejected: Vec<(&'static str, u16)>,
    closed: Option<&'static str>,
    early: u32,
    input: Vec<u8>,
    take_content: bool,
    taken: Vec<u8>,
}

impl Bench {
    fn new(options: [u8; 4]) -> Self {
        let has = |octet: usize, bit: u8| options[octet] & 1 << bit != 0;
        let offered = Extension::ALL.into_iter().enumerate().filter(|(bit, _)| has(2, *bit as u8 % 8));
        let settings = Settings {
            hostname: Domain::parse("mx.test").unwrap(),
            protocol: if has(0, 0) { Protocol::Lmtp } else { Protocol::Smtp },
            secure: has(0, 1),
            extensions: offered.fold(Extensions::all(), |all, (_, extension)| all.without(extension)),
            asks: Asks {
                client: has(1, 0),
                helo: has(1, 1),
                mail: has(1, 2),
                data: has(1, 3),
                vrfy: has(1, 4),
                expn: has(1, 5),
                etrn: has(1, 6),
            },
            message_size: 600,
            recipients: 4,
            transactions: has(0, 6).then_some(2),
            recipient_domains: has(0, 7).then_some(2),
            line_length: 100,
            errors: 1 + u32::from(options[3] % 8),
            normalise: has(0, 2),
        };
        let mut out = Output::default();
        let mut session = Session::new(Arc::new(settings), &mut out);
        if has(0, 3) {
            session.offer(&["XCLIENT NAME ADDR", "XFORWARD NAME ADDR"]);
        }
        session.set_full(has(0, 4));
        session.set_time(1_800_000_000_000);
        if has(3, 7) {
            session.set_identity(Identity::User("fuzz".into()));
        }
        let mut bench = Self {
            session,
            wire: Vec::new(),
            asked: VecDeque::new(),
            finished: Vec::new(),
            rejected: Vec::new(),
            closed: None,
            early: 0,
            input: Vec::new(),
            take_content: has(0, 5),
            taken: Vec::new(),
        };
        bench.take(out);
        bench
    }

    fn take(&mut self, out: Output) {
        assert!(out.wire.is_empty() || (out.wire.ends_with(b"\r\n") && is_strict(&out.wire)));
        assert!(!out.wire.contains(&0) && out.wire.len() < 64 << 10);
        self.wire.extend_from_slice(&out.wire);
        for action in out.actions {
            assert!(self.closed.is_none(), "{action:?} after Close");
            match action {
                Action::Ask { ticket, question } => {
                    assert!(self.asked.iter().all(|(open, _)| *open != ticket), "a ticket twice");
                    self.asked.push_back((ticket, question));
                }
                Action::Finished(finished) => {
                    let mut content = std::mem::take(&mut self.taken);
                    content.extend_from_slice(&finished.content);
                    assert!(!finished.recipients.is_empty(), "a message for nobody");
                    assert_eq!(content.len() as u64, finished.size);
                    let recipients = finished.recipients.iter().map(|r| format!("{r:?}")).collect();
                    self.finished.push((finished.reverse_path.to_string(), recipients, content));
                }
                Action::Dropped => self.taken.clear(),
                Action::Rejected(rejected) => self.rejected.push((rejected.stage, rejected.reply.code)),
                Action::Close(why) => self.closed = Some(why),
            }
        }
        self.early = self.session.talked_early();
    }

    fn feed(&mut self, input: &[u8]) {
        self.input.extend_from_slice(input);
        loop {
            let mut out = Output::default();
            let used = self.session.receive(&self.input, &mut out);
            self.input.drain(..used);
            self.take(out);
            if self.take_content {
                self.taken.extend(self.session.take_content());
                assert_eq!(self.session.content_held(), 0);
            }
            if used == 0 {
                return;
            }
        }
    }

    /// Answers the n-th open question, or settles a finished message. False when nothing is open.
    fn answer(&mut self, n: usize) -> bool {
        let mut out = Output::default();
        if self.session.phase() == Phase::Settling {
            let content = self.finished.last().map_or(0, |message| message.2.len());
            self.session.settle(said([250, 451, 554][content % 3]), &mut out);
        } else {
            if self.asked.is_empty() {
                assert_ne!(self.session.phase(), Phase::Asking, "it waits for nothing");
                return false;
            }
            let (ticket, question) = self.asked.remove(n % self.asked.len()).unwrap();
            self.session.answer(ticket, oracle(&question), &mut out);
        }
        self.take(out);
        if self.closed.is_some() {
            self.asked.clear();
        }
        self.feed(b"");
        true
    }
}

/// What is answered depends on the question alone.
fn oracle(question: &Question) -> Answer {
    let (text, say) = match question {
        Question::Vrfy(text) | Question::Expn(text) | Question::Etrn(text) => (text.clone(), true),
        Question::Helo(text) | Question::Xclient(text) | Question::Xforward(text) => (text.clone(), false),
        Question::Mail { path, .. } => (path.as_str().to_owned(), false),
        Question::Rcpt { recipient, .. } => (recipient.as_str().to_owned(), false),
        Question::Client | Question::Data => return Answer::Accepted,
    };
    match text.as_bytes().first() {
        _ if say => Answer::Say(said(250)),
        Some(b'x') => Answer::Refused(said(550)),
        Some(b'y') => Answer::Refused(said(451)),
        Some(b'z') => Answer::Closed(said(421)),
        _ => Answer::Accepted,
    }
}

fn said(code: u16) -> Reply {
    Reply::new(code, EnhancedCode::new((code / 100) as u8, 0, 0), "So be it")
}
