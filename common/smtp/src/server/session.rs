//! One client's dialogue.

use std::collections::VecDeque;
use std::sync::Arc;

use postern_address::{Domain, ForwardPath, Mailbox, ReversePath};

use super::command::{self, Command, Mail};
use super::data::{Decoder, Fault, Progress, Violation};
use super::framing::{self, Split};
use super::normalise;
use super::transaction::{Finished, Receiving, Transaction};
use crate::reply::{EnhancedCode, Reply};

/// RCPT questions under way at once. A pipelined batch asks them together; past this the rest of the
/// batch waits.
const ASKED_MAX: usize = 64;

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
    /// Most octets of content; announced as SIZE.
    pub message_size: u64,
    /// Most recipients of one message.
    pub recipients: u32,
    /// Longest line of content, octets.
    pub line_length: u32,
    /// Refused commands until the session is closed.
    pub errors: u32,
    /// Bare line ends are rewritten ([`super::normalise`]) instead of refused.
    pub normalise: bool,
}

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
    /// Find out about a recipient, then call [`Session::answer`] with the ticket.
    Ask {
        /// Pairs answer and question within this session.
        ticket: u16,
        /// Who.
        recipient: Mailbox,
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

/// What is known about a recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Taken.
    Accepted,
    /// Not taken, and why: 4yz or 5yz.
    Refused(Reply),
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

/// The machine. It never waits: bytes that cannot be understood before something is answered are left
/// unused, and are to be offered again after it.
#[derive(Debug)]
pub struct Session {
    settings: Arc<Settings>,
    /// What the client calls itself, and whether it said EHLO (or LHLO).
    greeted: Option<(Box<str>, bool)>,
    stage: Stage,
    skipping: bool,
    asked: VecDeque<Asked>,
    next_ticket: u16,
    errors: u32,
    commands: u32,
    messages: u32,
    full: bool,
}

#[derive(Debug)]
enum Stage {
    Idle,
    Open(Transaction),
    Content(Box<Receiving>),
    /// So many replies are due.
    Settling(u32, ReversePath),
    Closed,
}

/// A RCPT whose reply is not written yet: the client must get the replies in order.
#[derive(Debug)]
struct Asked {
    ticket: u16,
    recipient: Option<Mailbox>,
    answer: Option<Answer>,
}

impl Session {
    /// A session, with the greeting written (RFC 5321 §3.1).
    pub fn new(settings: Arc<Settings>, out: &mut Output) -> Self {
        let protocol = if settings.protocol == Protocol::Lmtp { "LMTP" } else { "ESMTP" };
        say(out, &["220 ", settings.hostname.as_str(), " ", protocol, " Postern\r\n"]);
        Self {
            settings,
            greeted: None,
            stage: Stage::Idle,
            skipping: false,
            asked: VecDeque::new(),
            next_ticket: 0,
            errors: 0,
            commands: 0,
            messages: 0,
            full: false,
        }
    }

    /// Whether there is no room for another message: then MAIL is answered 452, before the client sends
    /// what could not be kept. Transactions under way go on.
    pub fn set_full(&mut self, full: bool) {
        self.full = full;
    }

    /// Takes input and returns how much of it was used. Offer the rest again, with more behind it, or
    /// after an answer, or when the wire bytes are written.
    pub fn receive(&mut self, input: &[u8], out: &mut Output) -> usize {
        let mut used = 0;
        while used < input.len() && out.wire.len() < WIRE_FULL {
            let rest = &input[used..];
            let step = match self.stage {
                Stage::Closed => return input.len(),
                Stage::Settling(..) => 0,
                Stage::Content(_) => self.content(rest, out),
                Stage::Idle | Stage::Open(_) => self.line(rest, out),
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
        let Stage::Settling(replies, from) = std::mem::replace(&mut self.stage, Stage::Idle) else { return };
        for _ in 1..replies {
            reply.write_to(&mut out.wire);
        }
        if reply.code / 100 == 2 {
            reply.write_to(&mut out.wire);
            self.errors = 0;
            self.messages += 1;
        } else {
            self.refuse("END-OF-MESSAGE", reply, Some(from), None, out);
        }
    }

    /// Says a last word (421) and closes, whatever is under way.
    pub fn close(&mut self, reply: Reply, why: &'static str, out: &mut Output) {
        match self.stage {
            Stage::Closed => return,
            Stage::Content(_) => out.actions.push(Action::Dropped),
            _ => {}
        }
        reply.write_to(&mut out.wire);
        self.end(why, out);
    }

    /// Whom the dialogue waits for.
    pub fn phase(&self) -> Phase {
        match self.stage {
            Stage::Idle | Stage::Open(_) if self.asked.is_empty() => Phase::Command,
            Stage::Idle | Stage::Open(_) => Phase::Asking,
            Stage::Content(_) => Phase::Content,
            Stage::Settling(..) => Phase::Settling,
            Stage::Closed => Phase::Closed,
        }
    }

    /// Content collected so far and not yet taken, octets.
    pub fn content_held(&self) -> usize {
        match &self.stage {
            Stage::Content(receiving) => receiving.held(),
            _ => 0,
        }
    }

    /// Takes the content collected so far, so that a large message need not be held. What is taken is
    /// missing from [`Finished::content`].
    pub fn take_content(&mut self) -> Vec<u8> {
        match &mut self.stage {
            Stage::Content(receiving) => receiving.take(),
            _ => Vec::new(),
        }
    }

    /// What the client calls itself.
    pub fn helo(&self) -> Option<&str> {
        self.greeted.as_ref().map(|(name, _)| &**name)
    }

    /// `SMTP`, `ESMTP`, `ESMTPS`, `LMTP`, … for trace lines (RFC 3848).
    pub fn protocol_name(&self) -> &'static str {
        let extended = matches!(self.greeted, Some((_, true)));
        match (self.settings.protocol, self.settings.secure) {
            (Protocol::Lmtp, false) => "LMTP",
            (Protocol::Lmtp, true) => "LMTPS",
            // A HELO within TLS has no name of its own.
            (Protocol::Smtp, true) => "ESMTPS",
            (Protocol::Smtp, false) if extended => "ESMTP",
            (Protocol::Smtp, false) => "SMTP",
        }
    }

    /// Our settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Commands so far.
    pub fn commands(&self) -> u32 {
        self.commands
    }

    /// Messages accepted so far.
    pub fn messages(&self) -> u32 {
        self.messages
    }

    /// The next command line, if there is one and its turn has come.
    fn line(&mut self, input: &[u8], out: &mut Output) -> usize {
        // Replies leave in order: only RCPT is understood while RCPTs are open.
        let waiting = !self.asked.is_empty();
        let split = if self.settings.normalise { normalise::split } else { framing::split };
        match split(input, self.skipping) {
            Split::Skip { consumed } => {
                self.skipping = true;
                consumed
            }
            Split::Incomplete => 0,
            Split::Line { line, consumed } => {
                let parsed = command::parse(line);
                let is_rcpt = match &parsed {
                    Ok(command) => matches!(command, Command::Rcpt(_)),
                    Err(refused) => refused.verb == "RCPT",
                };
                if waiting && !(is_rcpt && self.may_ask()) {
                    return 0;
                }
                self.commands += 1;
                match parsed {
                    Ok(command) => self.obey(command, out),
                    Err(refused) if waiting => self.queue_refusal(refused.reply),
                    Err(refused) => self.refuse(refused.verb, refused.reply, None, None, out),
                }
                consumed
            }
            Split::TooLong { .. } | Split::Violation if waiting => 0,
            Split::TooLong { consumed } => {
                self.skipping = false;
                self.commands += 1;
                self.refuse("UNKNOWN", error(500, (5, 5, 2), "Error: line too long"), None, None, out);
                consumed
            }
            Split::Violation => {
                let reply = error(500, (5, 5, 2), "Error: only CRLF ends a line");
                self.reject("UNKNOWN", reply, None, None, out);
                self.end("line end violation", out);
                input.len()
            }
        }
    }

    fn obey(&mut self, command: Command<'_>, out: &mut Output) {
        match command {
            Command::Mail(mail) => self.mail(mail, out),
            Command::Rcpt(path) => self.rcpt(path, out),
            Command::Data => self.data(out),
            Command::Ehlo(name) if self.is_smtp() => self.greet(name, true, out),
            Command::Helo(name) if self.is_smtp() => self.greet(name, false, out),
            Command::Lhlo(name) if !self.is_smtp() => self.greet(name, true, out),
            Command::Ehlo(_) | Command::Helo(_) => self.misplaced("HELO", "This is LMTP: say LHLO", out),
            Command::Lhlo(_) => self.misplaced("LHLO", "This is SMTP: say EHLO", out),
            Command::Rset => {
                self.stage = Stage::Idle;
                say(out, &["250 2.0.0 Ok\r\n"]);
            }
            Command::Noop => say(out, &["250 2.0.0 Ok\r\n"]),
            // RFC 5321 §3.5.3, §7.3: whether a mailbox exists is told at RCPT alone.
            Command::Vrfy => say(out, &["252 2.5.0 Cannot verify; send mail and see\r\n"]),
            Command::Help => say(out, &["214 2.0.0 See RFC 5321\r\n"]),
            Command::Quit => {
                say(out, &["221 2.0.0 Bye\r\n"]);
                self.end("quit", out);
            }
        }
    }

    fn is_smtp(&self) -> bool {
        self.settings.protocol == Protocol::Smtp
    }

    /// RFC 5321 §4.1.4: a greeting resets like RSET. It has no enhanced code (RFC 2034 §4).
    fn greet(&mut self, name: &str, extended: bool, out: &mut Output) {
        self.stage = Stage::Idle;
        self.greeted = Some((name.into(), extended));
        let hostname = self.settings.hostname.as_str();
        if !extended {
            return say(out, &["250 ", hostname, "\r\n"]);
        }
        let size = self.settings.message_size.to_string();
        say(out, &["250-", hostname, "\r\n250-PIPELINING\r\n250-SIZE ", &size]);
        say(out, &["\r\n250-8BITMIME\r\n250-ENHANCEDSTATUSCODES\r\n250 HELP\r\n"]);
    }

    fn mail(&mut self, mail: Mail, out: &mut Output) {
        if self.greeted.is_none() {
            return self.misplaced("MAIL", "Error: say EHLO first", out);
        }
        if matches!(self.stage, Stage::Open(_)) {
            return self.misplaced("MAIL", "Error: nested MAIL command", out);
        }
        if mail.size.is_some_and(|size| size > self.settings.message_size) {
            return self.refuse("MAIL", too_big(), Some(mail.reverse_path), None, out);
        }
        if self.full {
            // RFC 5321 §4.2.3; RFC 1870 §6.1.
            let reply = error(452, (4, 3, 1), "Error: insufficient system storage, try again");
            return self.refuse("MAIL", reply, Some(mail.reverse_path), None, out);
        }
        self.stage = Stage::Open(Transaction::new(mail));
        say(out, &["250 2.1.0 Ok\r\n"]);
    }

    fn rcpt(&mut self, path: ForwardPath, out: &mut Output) {
        let Stage::Open(transaction) = &self.stage else {
            return self.misplaced("RCPT", "Error: need MAIL command", out);
        };
        let full = transaction.accepted() >= self.settings.recipients;
        let recipient = match path {
            ForwardPath::Mailbox(mailbox) => Ok(mailbox),
            ForwardPath::Postmaster => Mailbox::new("postmaster", &self.settings.hostname),
        };
        let recipient = match recipient {
            Ok(recipient) if !full => recipient,
            Ok(recipient) => {
                let reply = error(452, (4, 5, 3), "Error: too many recipients");
                return self.refuse("RCPT", reply, None, Some(recipient), out);
            }
            // Our own name with `postmaster@` before it is too long for a mailbox.
            Err(e) => {
                let reply = error(501, (5, 1, 3), &format!("Bad recipient address: {e}"));
                return self.refuse("RCPT", reply, None, None, out);
            }
        };
        let ticket = self.next_ticket;
        self.next_ticket = ticket.wrapping_add(1);
        self.asked.push_back(Asked { ticket, recipient: Some(recipient.clone()), answer: None });
        out.actions.push(Action::Ask { ticket, recipient });
    }

    /// Room for one more question. The recipients already asked for count as if they were accepted, so
    /// that what is answered does not depend on how fast it is.
    fn may_ask(&self) -> bool {
        let Stage::Open(transaction) = &self.stage else { return false };
        let asked = self.asked.len();
        asked < ASKED_MAX && transaction.accepted() as usize + asked < self.settings.recipients as usize
    }

    /// A RCPT that is refused at once, behind others that are open.
    fn queue_refusal(&mut self, reply: Reply) {
        let ticket = self.next_ticket;
        self.next_ticket = ticket.wrapping_add(1);
        self.asked.push_back(Asked { ticket, recipient: None, answer: Some(Answer::Refused(reply)) });
    }

    /// Writes the replies to RCPTs as far as they are known, in order.
    fn write_answers(&mut self, out: &mut Output) {
        while self.asked.front().is_some_and(|asked| asked.answer.is_some()) {
            let Some(asked) = self.asked.pop_front() else { return };
            match (asked.answer, asked.recipient, &mut self.stage) {
                (Some(Answer::Accepted), Some(recipient), Stage::Open(transaction)) => {
                    transaction.accept(recipient);
                    say(out, &["250 2.1.5 Ok\r\n"]);
                }
                (Some(Answer::Refused(reply)), recipient, _) => {
                    self.refuse("RCPT", reply, None, recipient, out);
                }
                // Not possible: questions are open only in a transaction.
                _ => return,
            }
        }
        if self.asked.is_empty() {
            self.asked = VecDeque::new();
        }
    }

    fn data(&mut self, out: &mut Output) {
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Open(transaction) => {
                let limits = (self.settings.message_size, u64::from(self.settings.line_length));
                let decoder = Decoder::new(limits.0, limits.1).normalising(self.settings.normalise);
                match transaction.begin_content(decoder) {
                    Ok(receiving) => {
                        self.stage = Stage::Content(receiving);
                        say(out, &["354 End data with <CR><LF>.<CR><LF>\r\n"]);
                    }
                    Err(transaction) => {
                        // RFC 5321 §4.1.4: out of order, so the state stays. RFC 2033 §4.2 wants 503.
                        self.stage = Stage::Open(transaction);
                        let code = if self.is_smtp() { 554 } else { 503 };
                        let reply = error(code, (5, 5, 1), "Error: no valid recipients");
                        self.refuse("DATA", reply, None, None, out);
                    }
                }
            }
            other => {
                self.stage = other;
                self.misplaced("DATA", "Error: need RCPT command", out);
            }
        }
    }

    /// Content, up to its end or that of the input.
    fn content(&mut self, input: &[u8], out: &mut Output) -> usize {
        let Stage::Content(receiving) = &mut self.stage else { return 0 };
        let progress = receiving.decode(input);
        if progress == Progress::More {
            return input.len();
        }
        let Stage::Content(receiving) = std::mem::replace(&mut self.stage, Stage::Idle) else { return 0 };
        match progress {
            Progress::More => input.len(),
            Progress::Violation(violation) => {
                let text = match violation {
                    Violation::BareCr => "Error: bare <CR> received",
                    Violation::BareLf => "Error: bare <LF> received",
                };
                let from = Some(receiving.reverse_path().clone());
                out.actions.push(Action::Dropped);
                self.reject("END-OF-MESSAGE", error(554, (5, 5, 2), text), from, None, out);
                self.end("line end violation", out);
                input.len()
            }
            Progress::End { used } => {
                match receiving.finish() {
                    Ok(finished) => {
                        let replies = if self.is_smtp() { 1 } else { finished.accepted };
                        self.stage = Stage::Settling(replies, finished.reverse_path.clone());
                        out.actions.push(Action::Finished(Box::new(finished)));
                    }
                    Err((fault, from)) => {
                        out.actions.push(Action::Dropped);
                        let reply = match fault {
                            Fault::TooBig => too_big(),
                            Fault::LineTooLong => error(554, (5, 6, 0), "Error: line of text too long"),
                            Fault::Nul => error(554, (5, 5, 2), "Error: NUL in the message"),
                        };
                        self.refuse("END-OF-MESSAGE", reply, Some(from), None, out);
                    }
                }
                used
            }
        }
    }

    /// RFC 5321 §4.1.4: out of order, and the state stays as it was.
    fn misplaced(&mut self, verb: &'static str, text: &str, out: &mut Output) {
        self.refuse(verb, error(503, (5, 5, 1), text), None, None, out);
    }

    /// Says no, and counts it when it is for good: who hears it too often is shown the door.
    fn refuse(
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
            self.close(error(421, (4, 7, 0), "Error: too many errors"), "too many errors", out);
        }
    }

    fn reject(
        &mut self,
        stage: &'static str,
        reply: Reply,
        from: Option<ReversePath>,
        to: Option<Mailbox>,
        out: &mut Output,
    ) {
        reply.write_to(&mut out.wire);
        let from = from.or_else(|| match &self.stage {
            Stage::Open(transaction) => Some(transaction.reverse_path().clone()),
            _ => None,
        });
        out.actions.push(Action::Rejected(Box::new(Rejected { stage, reply, from, to })));
    }

    fn end(&mut self, why: &'static str, out: &mut Output) {
        self.stage = Stage::Closed;
        self.asked = VecDeque::new();
        out.actions.push(Action::Close(why));
    }
}

fn say(out: &mut Output, parts: &[&str]) {
    parts.iter().for_each(|part| out.wire.extend_from_slice(part.as_bytes()));
}

fn error(code: u16, (class, subject, detail): (u8, u16, u16), text: &str) -> Reply {
    Reply::new(code, EnhancedCode::new(class, subject, detail), text)
}

/// RFC 1870 §6.1.
fn too_big() -> Reply {
    error(552, (5, 3, 4), "Error: message size exceeds the limit")
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
