//! One client's dialogue.

mod chunks;
mod content;
mod dialogue;
mod help;
mod replies;

use std::collections::VecDeque;
use std::sync::Arc;

use postern_address::{Domain, Mailbox, ReversePath};

use super::extensions::Extensions;
use super::question::{Answer, Asked, Asks, Pending, Question};
use super::transaction::{Chunked, Finished, Greeted, Receiving, Transaction};
use crate::parameters::MailParameters;
use crate::reply::Reply;

/// With this much to write, no further command is read: who does not read replies gets no more.
const WIRE_FULL: usize = 16 * 1024;

/// What a listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// RFC 5321.
    Smtp,
    /// RFC 2033: LHLO, and a reply for each recipient after the content.
    Lmtp,
}

/// What is the same for all sessions of a listener.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Our name.
    pub hostname: Domain,
    /// SMTP or LMTP.
    pub protocol: Protocol,
    /// It is spoken within TLS from the first octet.
    pub secure: bool,
    /// What EHLO offers.
    pub extensions: Extensions,
    /// What the owner wants to be asked about, beside RCPT.
    pub asks: Asks,
    /// Most octets of content; announced as SIZE.
    pub message_size: u64,
    /// Most recipients of one message.
    pub recipients: u32,
    /// Most transactions of one session, if there is a limit: MAILMAX (RFC 9422).
    pub transactions: Option<u32>,
    /// Most domains among the recipients of one message, if there is a limit: RCPTDOMAINMAX (RFC 9422).
    pub recipient_domains: Option<u32>,
    /// Longest line of content, octets.
    pub line_length: u32,
    /// Refused commands until the session is closed.
    pub errors: u32,
    /// Bare line ends are rewritten ([`super::normalise`]) instead of refused.
    pub normalise: bool,
}

/// The longest that a message may be held before it is sent (RFC 4865): 30 days, in seconds.
pub const HOLD_MAX: u64 = 30 * 86_400;

/// The shortest time within which a message can be demanded to be delivered or returned (RFC 2852), seconds.
pub const BY_MIN: i64 = 60;

/// What the session wants. Replies come as bytes, in order, whatever is asked meanwhile.
#[derive(Debug, Default)]
pub struct Output {
    /// To be written to the client.
    pub wire: Vec<u8>,
    /// To be done, in order.
    pub actions: Vec<Action>,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Find out, then call [`Session::answer`] with the ticket.
    Ask {
        /// Pairs answer and question within this session.
        ticket: u16,
        /// What about.
        question: Question,
    },
    /// A message is complete: keep it, then call [`Session::settle`]. Nothing is read until then.
    Finished(Box<Finished>),
    /// The content under way came to nothing: forget what was taken of it.
    Dropped,
    /// Something was refused; the reply is in the wire bytes already. For the log.
    Rejected(Box<Rejected>),
    /// Write what there is to write, then close. The text is for the log.
    Close(&'static str),
}

/// A refusal, for the log.
#[derive(Debug, PartialEq, Eq)]
pub struct Rejected {
    /// `MAIL`, `RCPT`, `DATA`, `END-OF-MESSAGE`, …
    pub stage: &'static str,
    /// What was answered.
    pub reply: Reply,
    /// The transaction's reverse-path, if there is a transaction.
    pub from: Option<ReversePath>,
    /// The recipient, as far as it was understood.
    pub to: Option<Mailbox>,
}

/// Whom the dialogue waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The client: a command.
    Command,
    /// The client: content.
    Content,
    /// Us: [`Session::answer`].
    Asking,
    /// Us: [`Session::settle`].
    Settling,
    /// Nobody.
    Closed,
}

/// How the octets travel. A session in clear text that STARTTLS secures forgets all it heard before
/// (RFC 3207 §4.2): it is begun anew with another value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// As they are.
    Clear,
    /// Within TLS.
    Tls,
}

/// Who the client has proved to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Identity {
    /// Nobody in particular.
    #[default]
    Anonymous,
    /// This user.
    User(Box<str>),
}

/// The machine. It never waits: bytes that cannot be understood before something is answered are left
/// unused, and are to be offered again after it.
#[derive(Debug)]
pub struct Session {
    settings: Arc<Settings>,
    security: Security,
    identity: Identity,
    /// What the client calls itself. A transaction is made of it: none without.
    greeted: Option<Greeted>,
    stage: Stage,
    discard: Option<Box<Discard>>,
    skipping: bool,
    asked: VecDeque<Asked>,
    next_ticket: u16,
    errors: u32,
    commands: u32,
    messages: u32,
    turns: u32,
    /// MAIL commands that were accepted.
    transactions: u32,
    early: u32,
    strict: bool,
    full: bool,
    /// Milliseconds since 1970.
    now: u64,
    /// EHLO lines for this client alone; a command that begins like one is understood.
    extra: &'static [&'static str],
}

/// Where the dialogue is. A mail transaction is one value that moves from variant to variant, and
/// whatever replaces it drops it.
#[derive(Debug)]
enum Stage {
    /// The client was refused instead of greeted.
    Barred,
    /// No transaction.
    Idle,
    /// MAIL was accepted.
    Open(Box<Transaction>),
    /// DATA was accepted.
    Content(Box<Receiving>),
    /// So much of a chunk is to come.
    Chunk(Box<Chunked>, Announced),
    /// Between two chunks of a message.
    Between(Box<Chunked>),
    /// The content is complete.
    Settling(Due),
    Closed,
}

/// The replies that are due after content.
#[derive(Debug)]
struct Due {
    from: ReversePath,
    replies: Replies,
}

/// How many.
#[derive(Clone, Copy, Debug)]
enum Replies {
    One,
    /// One for each accepted RCPT (RFC 2033 §4.2).
    Each(u32),
    /// When it was taken: a word that they follow, one for each, and one for all (draft-hall-prdr).
    Announced(u32),
}

/// A chunk as its BDAT has it.
#[derive(Clone, Copy, Debug)]
struct Announced {
    size: u64,
    left: u64,
    last: bool,
}

/// A chunk that is refused: its octets come all the same (RFC 3030 §2), and the reply after them.
#[derive(Debug)]
struct Discard {
    left: u64,
    reply: Reply,
    from: Option<ReversePath>,
}

impl Session {
    /// A session, with the greeting written (RFC 5321 §3.1), or [`Question::Client`] asked.
    pub fn new(settings: Arc<Settings>, out: &mut Output) -> Self {
        let security = if settings.secure { Security::Tls } else { Security::Clear };
        let mut session = Self {
            settings,
            security,
            identity: Identity::Anonymous,
            greeted: None,
            stage: Stage::Idle,
            discard: None,
            skipping: false,
            asked: VecDeque::new(),
            next_ticket: 0,
            errors: 0,
            commands: 0,
            messages: 0,
            turns: 0,
            transactions: 0,
            early: 0,
            strict: false,
            full: false,
            now: 0,
            extra: &[],
        };
        session.begin(out);
        session
    }

    /// Whether there is no room for another message: then MAIL is answered 452, before the client sends
    /// what could not be kept. Transactions under way go on.
    pub fn set_full(&mut self, full: bool) {
        self.full = full;
    }

    /// What time it is, in milliseconds since 1970: FUTURERELEASE speaks of dates.
    pub fn set_time(&mut self, now: u64) {
        self.now = now;
    }

    /// Who the client is by other proof than this dialogue's.
    pub fn set_identity(&mut self, identity: Identity) {
        self.identity = identity;
    }

    /// Whether a client that goes on talking where it has to wait ([`Session::talked_early`]) is sent away.
    /// Then what arrives together is a matter of replies.
    pub fn set_strict(&mut self, strict: bool) {
        self.strict = strict;
    }

    /// Lines that EHLO says to this client and not to every one (`XCLIENT NAME ADDR …`). The commands
    /// XCLIENT and XFORWARD are understood, and asked about, when a line begins with their name.
    pub fn offer(&mut self, lines: &'static [&'static str]) {
        self.extra = lines;
    }

    /// Takes input and returns how much of it was used. Offer the rest again, with more behind it, or
    /// after an answer, or when the wire bytes are written.
    pub fn receive(&mut self, input: &[u8], out: &mut Output) -> usize {
        let mut used = 0;
        while used < input.len() && out.wire.len() < WIRE_FULL {
            let rest = &input[used..];
            let step = match self.stage {
                Stage::Closed => return input.len(),
                _ if self.discard.is_some() => self.discard(rest, out),
                Stage::Settling(_) => 0,
                Stage::Content(_) => self.content(rest, out),
                Stage::Chunk(..) => self.chunk(rest, out),
                Stage::Barred | Stage::Idle | Stage::Open(_) | Stage::Between(_) => self.line(rest, out),
            };
            if step == 0 {
                break;
            }
            used += step;
        }
        used
    }

    /// The answer to an [`Action::Ask`]. One to a question that is no longer open is ignored.
    pub fn answer(&mut self, ticket: u16, answer: Answer, out: &mut Output) {
        let open = |asked: &&mut Asked| asked.ticket == ticket && asked.answer.is_none();
        if let Some(asked) = self.asked.iter_mut().find(open) {
            asked.answer = Some(answer);
            self.write_answers(out);
        }
    }

    /// Answers every open question alike: whoever was asked is gone.
    pub fn answer_all(&mut self, answer: &Answer, out: &mut Output) {
        for asked in self.asked.iter_mut().filter(|asked| asked.answer.is_none()) {
            asked.answer = Some(answer.clone());
        }
        self.write_answers(out);
    }

    /// What became of the message of [`Action::Finished`]: 2yz only when it is safe.
    pub fn settle(&mut self, reply: Reply, out: &mut Output) {
        let Stage::Settling(due) = std::mem::replace(&mut self.stage, Stage::Idle) else { return };
        let taken = reply.code / 100 == 2;
        let before = match due.replies {
            Replies::One => 0,
            Replies::Each(replies) => replies.saturating_sub(1),
            Replies::Announced(replies) if taken => {
                self.write(&Reply::new(353, None, "A reply for each recipient follows"), out);
                replies
            }
            Replies::Announced(_) => 0,
        };
        for _ in 0..before {
            self.write(&reply, out);
        }
        if taken {
            self.write(&reply, out);
            self.errors = 0;
            self.messages += 1;
        } else {
            self.refuse("END-OF-MESSAGE", reply, Some(due.from), None, out);
        }
    }

    /// Says a last word (421) and closes, whatever is under way.
    pub fn close(&mut self, reply: Reply, why: &'static str, out: &mut Output) {
        if !matches!(self.stage, Stage::Closed) {
            self.write(&reply, out);
            self.end(why, out);
        }
    }

    /// Whom the dialogue waits for.
    pub fn phase(&self) -> Phase {
        match self.stage {
            Stage::Settling(_) => Phase::Settling,
            Stage::Closed => Phase::Closed,
            Stage::Content(_) | Stage::Chunk(..) => Phase::Content,
            _ if self.discard.is_some() => Phase::Content,
            _ if self.asked.is_empty() => Phase::Command,
            _ => Phase::Asking,
        }
    }

    /// [`Question::Client`] is open: nothing has been said to the client yet.
    pub fn is_greeting(&self) -> bool {
        self.asked.front().is_some_and(|asked| matches!(asked.pending, Pending::Client))
    }

    /// Content collected so far and not yet taken, octets.
    pub fn content_held(&self) -> usize {
        match &self.stage {
            Stage::Content(receiving) => receiving.held(),
            Stage::Chunk(chunked, _) | Stage::Between(chunked) => chunked.held(),
            _ => 0,
        }
    }

    /// Takes the content collected so far, so that a large message need not be held. What is taken is
    /// missing from [`Finished::content`].
    pub fn take_content(&mut self) -> Vec<u8> {
        match &mut self.stage {
            Stage::Content(receiving) => receiving.take(),
            Stage::Chunk(chunked, _) | Stage::Between(chunked) => chunked.take(),
            _ => Vec::new(),
        }
    }

    /// What the client calls itself.
    pub fn helo(&self) -> Option<&str> {
        self.greeted.as_ref().map(Greeted::name)
    }

    /// What MAIL said, from its acceptance to the end of content.
    pub fn transaction(&self) -> Option<(&ReversePath, &MailParameters)> {
        match &self.stage {
            Stage::Open(transaction) => Some(transaction.mail()),
            Stage::Content(receiving) => Some(receiving.mail()),
            Stage::Chunk(chunked, _) | Stage::Between(chunked) => Some(chunked.mail()),
            _ => None,
        }
    }

    /// Who the client has proved to be.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// How the octets travel.
    pub fn security(&self) -> Security {
        self.security
    }

    /// `SMTP`, `ESMTP`, `ESMTPS`, `LMTP`, … for trace lines (RFC 3848).
    pub fn protocol_name(&self) -> &'static str {
        let extended = self.greeted.as_ref().is_some_and(Greeted::is_extended);
        let known = matches!(self.identity, Identity::User(_));
        match (self.settings.protocol, self.security, known) {
            (Protocol::Lmtp, Security::Clear, false) => "LMTP",
            (Protocol::Lmtp, Security::Clear, true) => "LMTPA",
            (Protocol::Lmtp, Security::Tls, false) => "LMTPS",
            (Protocol::Lmtp, Security::Tls, true) => "LMTPSA",
            // A HELO within TLS has no name of its own.
            (Protocol::Smtp, Security::Tls, false) => "ESMTPS",
            (Protocol::Smtp, Security::Tls, true) => "ESMTPSA",
            (Protocol::Smtp, Security::Clear, true) => "ESMTPA",
            (Protocol::Smtp, Security::Clear, false) if extended => "ESMTP",
            (Protocol::Smtp, Security::Clear, false) => "SMTP",
        }
    }

    /// The same for the trace line of a message, which may have come by SMTPUTF8 (RFC 6531 §4.3).
    pub fn trace_name(&self, smtputf8: bool) -> String {
        let name = self.protocol_name();
        if smtputf8 { format!("UTF8{}", name.strip_prefix('E').unwrap_or(name)) } else { name.to_owned() }
    }

    /// Our settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Commands so far.
    pub fn commands(&self) -> u32 {
        self.commands
    }

    /// How often a transaction was begun or given up: what was said about the next one is about that alone.
    pub fn turns(&self) -> u32 {
        self.turns
    }

    /// Messages accepted so far.
    pub fn messages(&self) -> u32 {
        self.messages
    }

    /// Refused commands since the last accepted message.
    pub fn errors(&self) -> u32 {
        self.errors
    }

    /// How often the client was seen to go on talking where it has to wait for a reply: behind EHLO, HELO,
    /// DATA, VRFY, EXPN, NOOP or QUIT (RFC 2920 §3.1), or behind any command when it said HELO or nothing. It is a
    /// matter of what arrived together, so never a matter of replies.
    pub fn talked_early(&self) -> u32 {
        self.early
    }
}

#[cfg(test)]
mod bench;
#[cfg(test)]
mod chunks_tests;
#[cfg(test)]
mod extensions_tests;
#[cfg(test)]
mod properties;
#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
