//! Commands, the questions they lead to, and what follows from the answers.

use std::collections::{BTreeSet, VecDeque};

use postern_address::{ForwardPath, Mailbox};

use super::help;
use super::replies::{push, too_big};
use super::{Action, BY_MIN, HOLD_MAX, Output, Protocol, Session, Stage};
use crate::date_time;
use crate::parameters::{Body, ByMode, DeliverBy, Hold, MailParameters};
use crate::reply::Reply;
use crate::server::command::{self, Command, Mail, Rcpt};
use crate::server::extensions::Extension;
use crate::server::framing::{self, Split};
use crate::server::normalise;
use crate::server::question::{Answer, Asked, Pending, Question};
use crate::server::transaction::{Greeted, Transaction};

/// RCPT questions under way at once. A pipelined batch asks them together; past this the rest of the
/// batch waits.
const ASKED_MAX: usize = 64;

impl Session {
    /// The beginning, and the new beginning after XCLIENT.
    pub(super) fn begin(&mut self, out: &mut Output) {
        self.drop_transaction(out);
        self.greeted = None;
        if self.settings.asks.client {
            return self.ask(Question::Client, Pending::Client, out);
        }
        self.write_greeting(out);
    }

    /// The next command line, if there is one and its turn has come.
    pub(super) fn line(&mut self, input: &[u8], out: &mut Output) -> usize {
        // Replies leave in order: only RCPT is understood while RCPTs are open.
        let waiting = !self.asked.is_empty();
        let split = if self.settings.normalise { normalise::split } else { framing::split };
        let line = split(input, self.skipping);
        let too_long = matches!(line, Split::Skip { .. } | Split::TooLong { .. });
        if too_long
            && !self.skipping
            && !waiting
            && input.get(..4).is_some_and(|v| v.eq_ignore_ascii_case(b"BDAT"))
        {
            // How much follows it cannot be known.
            self.reject("BDAT", Reply::coded(521, (5, 5, 2), "Error: line too long"), None, None, out);
            self.end("chunk of unknown size", out);
            return input.len();
        }
        match line {
            Split::Skip { .. } if waiting => 0,
            Split::Skip { consumed } => {
                self.skipping = true;
                consumed
            }
            Split::Incomplete => 0,
            Split::Line { line, consumed } => {
                let parsed = command::parse(line, self.settings.extensions);
                let is_rcpt = match &parsed {
                    Ok(command) => matches!(command, Command::Rcpt(_)),
                    Err(refused) => refused.verb == "RCPT",
                };
                if waiting && !(is_rcpt && self.may_ask()) {
                    return 0;
                }
                self.commands += 1;
                let pipelines = self.has(Extension::Pipelining)
                    && self.greeted.as_ref().is_some_and(Greeted::is_extended);
                let last = !pipelines || matches!(&parsed, Ok(command) if command.ends_group());
                let early = last && consumed < input.len();
                self.early += u32::from(early);
                if early && self.strict && !matches!(parsed, Ok(Command::Quit)) {
                    let stage = match parsed {
                        Ok(Command::Data) => "DATA",
                        Ok(Command::Ehlo(_) | Command::Helo(_) | Command::Lhlo(_)) => "HELO",
                        _ => "UNKNOWN",
                    };
                    let reply = Reply::coded(554, (5, 5, 0), "Error: SMTP protocol synchronization");
                    self.reject(stage, reply, None, None, out);
                    self.end("improper command pipelining", out);
                    return input.len();
                }
                // A chunk's octets are to be passed over all the same.
                let open = matches!(parsed, Ok(Command::Bdat { .. } | Command::Quit));
                match parsed {
                    Err(refused) if refused.verb == "BDAT" => {
                        self.reject("BDAT", refused.reply, None, None, out);
                        self.end("chunk of unknown size", out);
                    }
                    _ if matches!(self.stage, Stage::Barred) && !open => {
                        self.misplaced("UNKNOWN", "Error: access denied", out);
                    }
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
                self.refuse("UNKNOWN", Reply::coded(500, (5, 5, 2), "Error: line too long"), None, None, out);
                consumed
            }
            Split::Violation => {
                let reply = Reply::coded(500, (5, 5, 2), "Error: only CRLF ends a line");
                self.reject("UNKNOWN", reply, None, None, out);
                self.end("line end violation", out);
                input.len()
            }
        }
    }

    fn has(&self, extension: Extension) -> bool {
        self.settings.extensions.has(extension)
    }

    pub(super) fn is_smtp(&self) -> bool {
        self.settings.protocol == Protocol::Smtp
    }

    /// Writes replies as far as they are known, in order.
    pub(super) fn write_answers(&mut self, out: &mut Output) {
        while self.asked.front().is_some_and(|asked| asked.answer.is_some()) {
            let Some(asked) = self.asked.pop_front() else { return };
            if let Some(answer) = asked.answer {
                self.conclude(asked.pending, answer, out);
            }
        }
        if self.asked.is_empty() {
            self.asked = VecDeque::new();
        }
    }

    fn obey(&mut self, command: Command<'_>, out: &mut Output) {
        match command {
            Command::Mail(mail) => self.mail(mail, out),
            Command::Rcpt(rcpt) => self.rcpt(*rcpt, out),
            Command::Data => self.data(out),
            Command::Bdat { size, last } => self.bdat(size, last, out),
            Command::Ehlo(name) if self.is_smtp() => self.hello(name, true, out),
            Command::Helo(name) if self.is_smtp() => self.hello(name, false, out),
            Command::Lhlo(name) if !self.is_smtp() => self.hello(name, true, out),
            Command::Ehlo(_) | Command::Helo(_) => self.misplaced("HELO", "This is LMTP: say LHLO", out),
            Command::Lhlo(_) => self.misplaced("LHLO", "This is SMTP: say EHLO", out),
            Command::Rset => {
                self.drop_transaction(out);
                self.say(250, (2, 0, 0), "Ok", out);
            }
            Command::Noop => self.say(250, (2, 0, 0), "Ok", out),
            Command::Vrfy(argument) if self.settings.asks.vrfy && self.has(Extension::Vrfy) => {
                self.ask_name("VRFY", argument, Question::Vrfy, out);
            }
            // RFC 5321 §3.5.3, §7.3: whether a mailbox exists is told at RCPT alone.
            Command::Vrfy(_) => self.say(252, (2, 5, 0), "Cannot verify; send mail and see", out),
            Command::Expn(argument) if self.settings.asks.expn && self.has(Extension::Expn) => {
                self.ask_name("EXPN", argument, Question::Expn, out);
            }
            Command::Etrn(argument) if self.settings.asks.etrn && self.has(Extension::Etrn) => {
                self.ask(Question::Etrn(argument.into()), Pending::Word { verb: "ETRN", utf8: false }, out);
            }
            Command::Xclient(_) if self.offers("XCLIENT") && self.transaction().is_some() => {
                self.misplaced("XCLIENT", "Error: mail transaction in progress", out);
            }
            Command::Xclient(attributes) if self.offers("XCLIENT") => {
                self.ask(Question::Xclient(attributes.into()), Pending::Xclient, out);
            }
            Command::Xforward(_) if self.offers("XFORWARD") && self.transaction().is_some() => {
                self.misplaced("XFORWARD", "Error: mail transaction in progress", out);
            }
            Command::Xforward(attributes) if self.offers("XFORWARD") => {
                self.ask(
                    Question::Xforward(attributes.into()),
                    Pending::Word { verb: "XFORWARD", utf8: false },
                    out,
                );
            }
            Command::Expn(_) => self.not_offered("EXPN", out),
            Command::Etrn(_) => self.not_offered("ETRN", out),
            Command::Xclient(_) => self.not_offered("XCLIENT", out),
            Command::Xforward(_) => self.not_offered("XFORWARD", out),
            Command::Help => self.write(&help::text(&self.settings, self.extra), out),
            Command::Quit => {
                self.say(221, (2, 0, 0), "Bye", out);
                self.end("quit", out);
            }
        }
    }

    /// VRFY or EXPN. What is not US-ASCII takes SMTPUTF8, in the command and in the reply (RFC 6531 §3.7.4.2).
    fn ask_name(
        &mut self,
        verb: &'static str,
        argument: &str,
        question: impl FnOnce(String) -> Question,
        out: &mut Output,
    ) {
        let (name, last) = argument.rsplit_once(' ').unwrap_or((argument, ""));
        let utf8 = self.has(Extension::SmtpUtf8) && last.eq_ignore_ascii_case("SMTPUTF8");
        let name = if utf8 { name.trim_end() } else { argument };
        if !utf8 && !name.is_ascii() {
            let reply = Reply::coded(553, (5, 6, 7), "Error: not US-ASCII, which takes SMTPUTF8");
            return self.refuse(verb, reply, None, None, out);
        }
        self.ask(question(name.into()), Pending::Word { verb, utf8 }, out);
    }

    fn not_offered(&mut self, verb: &'static str, out: &mut Output) {
        self.refuse(verb, Reply::coded(502, (5, 5, 1), "Error: command not implemented"), None, None, out);
    }

    fn offers(&self, verb: &str) -> bool {
        self.extra.iter().any(|line| line.split(' ').next() == Some(verb))
    }

    fn hello(&mut self, name: &str, extended: bool, out: &mut Output) {
        let pending = Pending::Greeting { name: name.into(), extended };
        if self.settings.asks.helo {
            return self.ask(Question::Helo(name.into()), pending, out);
        }
        self.conclude(pending, Answer::Accepted, out);
    }

    fn mail(&mut self, mail: Box<Mail>, out: &mut Output) {
        if self.greeted.is_none() {
            return self.misplaced("MAIL", "Error: say EHLO first", out);
        }
        if self.transaction().is_some() {
            return self.misplaced("MAIL", "Error: nested MAIL command", out);
        }
        if mail.parameters.size.is_some_and(|size| size > self.settings.message_size) {
            return self.refuse("MAIL", too_big(), Some(mail.reverse_path), None, out);
        }
        if let Some(reply) = self.not_possible(&mail.parameters) {
            return self.refuse("MAIL", reply, Some(mail.reverse_path), None, out);
        }
        if self.settings.transactions.is_some_and(|most| self.transactions >= most) {
            // RFC 9422 §4.1.
            let reply =
                Reply::coded(421, (4, 3, 2), "Error: too many messages in one session, connect again");
            self.reject("MAIL", reply, Some(mail.reverse_path), None, out);
            return self.end("too many messages", out);
        }
        if self.full {
            // RFC 5321 §4.2.3; RFC 1870 §6.1.
            let reply = Reply::coded(452, (4, 3, 1), "Error: insufficient system storage, try again");
            return self.refuse("MAIL", reply, Some(mail.reverse_path), None, out);
        }
        if self.settings.asks.mail {
            let question =
                Question::Mail { path: mail.reverse_path.clone(), parameters: mail.parameters.clone() };
            return self.ask(question, Pending::Mail(mail), out);
        }
        self.conclude(Pending::Mail(mail), Answer::Accepted, out);
    }

    /// What is well-formed and more than we do.
    fn not_possible(&self, parameters: &MailParameters) -> Option<Reply> {
        let held = match parameters.hold {
            None => 0,
            Some(Hold::For(seconds)) => seconds,
            Some(Hold::Until(at)) => at.saturating_sub(self.now) / 1000,
        };
        if held > HOLD_MAX {
            // RFC 4865 §4.2.
            return Some(Reply::coded(501, (5, 5, 4), "Error: longer than a message is held here"));
        }
        match parameters.by {
            // RFC 2852 §4.1.
            Some(DeliverBy { seconds, mode: ByMode::Return, .. }) if seconds < BY_MIN => {
                Some(Reply::coded(555, (5, 5, 4), "Error: sooner than a message is returned here"))
            }
            _ => None,
        }
    }

    fn rcpt(&mut self, rcpt: Rcpt, out: &mut Output) {
        let transaction = match &self.stage {
            Stage::Open(transaction) => transaction,
            Stage::Between(_) => return self.misplaced("RCPT", "Error: the content has begun", out),
            _ => return self.misplaced("RCPT", "Error: need MAIL command", out),
        };
        if rcpt.utf8 && !transaction.smtputf8() {
            // RFC 6531 §3.5.
            let reply = Reply::coded(553, (5, 6, 7), "Error: not US-ASCII, which takes SMTPUTF8 at MAIL");
            return self.refuse("RCPT", reply, None, None, out);
        }
        let full = transaction.accepted() >= self.settings.recipients;
        let recipient = match rcpt.forward_path {
            ForwardPath::Mailbox(mailbox) => Ok(mailbox),
            ForwardPath::Postmaster => Mailbox::new("postmaster", &self.settings.hostname),
        };
        let recipient = match recipient {
            Ok(recipient) if !full => recipient,
            Ok(recipient) => {
                let reply = Reply::coded(452, (4, 5, 3), "Error: too many recipients");
                return self.refuse("RCPT", reply, None, Some(recipient), out);
            }
            // Our own name with `postmaster@` before it is too long for a mailbox.
            Err(e) => {
                let reply = Reply::coded(501, (5, 1, 3), format!("Bad recipient address: {e}"));
                return self.refuse("RCPT", reply, None, None, out);
            }
        };
        if self.settings.recipient_domains.is_some_and(|most| self.domains(Some(&recipient)) > most) {
            // RFC 9422 §4.3.
            let reply = Reply::coded(452, (4, 5, 3), "Error: too many recipient domains");
            return self.refuse("RCPT", reply, None, Some(recipient), out);
        }
        let parameters = rcpt.parameters;
        let pending = Pending::Rcpt(Box::new((recipient.clone(), parameters.clone())));
        self.ask(Question::Rcpt { recipient, parameters }, pending, out);
    }

    fn data(&mut self, out: &mut Output) {
        match &self.stage {
            // RFC 3030 §3.
            Stage::Open(transaction) if transaction.mail().1.body == Body::Binary => {
                self.misplaced("DATA", "Error: BODY=BINARYMIME is for BDAT", out);
            }
            Stage::Between(_) => self.misplaced("DATA", "Error: the message comes by BDAT", out),
            Stage::Open(transaction) if transaction.accepted() == 0 => {
                let reply = self.no_recipients();
                self.refuse("DATA", reply, None, None, out);
            }
            Stage::Open(_) if self.settings.asks.data => self.ask(Question::Data, Pending::Data, out),
            Stage::Open(_) => self.begin_content(out),
            _ => self.misplaced("DATA", "Error: need RCPT command", out),
        }
    }

    pub(super) fn ask(&mut self, question: Question, pending: Pending, out: &mut Output) {
        let ticket = self.ticket();
        self.asked.push_back(Asked { ticket, pending, answer: None });
        out.actions.push(Action::Ask { ticket, question });
    }

    fn ticket(&mut self) -> u16 {
        let ticket = self.next_ticket;
        self.next_ticket = ticket.wrapping_add(1);
        ticket
    }

    /// Room for one more question. The recipients already asked for count as if they were accepted, so
    /// that what is answered does not depend on how fast it is.
    fn may_ask(&self) -> bool {
        let Stage::Open(transaction) = &self.stage else { return false };
        let asked = self.asked.len();
        let of_rcpt = |asked: &Asked| matches!(asked.pending, Pending::Rcpt(_) | Pending::BadRcpt);
        self.asked.back().is_some_and(of_rcpt)
            && asked < ASKED_MAX
            && transaction.accepted() as usize + asked < self.settings.recipients as usize
            && self.settings.recipient_domains.is_none_or(|most| self.domains(None) < most)
    }

    /// Domains of the transaction, with those of `one_more` and of the recipients that are asked about.
    fn domains(&self, one_more: Option<&Mailbox>) -> u32 {
        let Stage::Open(transaction) = &self.stage else { return 0 };
        let asked = self.asked.iter().filter_map(|asked| match &asked.pending {
            Pending::Rcpt(rcpt) => Some(&rcpt.0),
            _ => None,
        });
        let all = transaction.recipients().iter().chain(asked).chain(one_more);
        all.map(Mailbox::host).collect::<BTreeSet<_>>().len() as u32
    }

    /// A RCPT that is refused at once, behind others that are open.
    fn queue_refusal(&mut self, reply: Reply) {
        let ticket = self.ticket();
        let answer = Some(Answer::Refused(reply));
        self.asked.push_back(Asked { ticket, pending: Pending::BadRcpt, answer });
    }

    /// What follows from an answer.
    fn conclude(&mut self, pending: Pending, answer: Answer, out: &mut Output) {
        let reply = match (answer, &pending) {
            (Answer::Accepted, _) => return self.go_on(pending, out),
            (Answer::Say(reply), Pending::Word { utf8: false, .. })
                if reply.lines.iter().any(|line| !line.is_ascii()) =>
            {
                return self.say(252, (2, 6, 8), "The answer takes SMTPUTF8", out);
            }
            (Answer::Say(reply), Pending::Word { utf8, .. }) if !reply.is_permanent() => {
                return self.write_as(&reply, *utf8, out);
            }
            (Answer::Closed(reply), _) => {
                let stage = pending.stage();
                self.reject(stage, reply, None, None, out);
                return self.end("refused", out);
            }
            (Answer::Refused(reply) | Answer::Say(reply), _) => reply,
        };
        let stage = pending.stage();
        match pending {
            // No greeting counts as an error, it is the reply to nothing.
            Pending::Client => {
                self.reject(stage, reply, None, None, out);
                self.stage = Stage::Barred;
            }
            Pending::Mail(mail) => self.refuse(stage, reply, Some(mail.reverse_path), None, out),
            Pending::Rcpt(rcpt) => self.refuse(stage, reply, None, Some(rcpt.0), out),
            Pending::Data => {
                let from = self.transaction().map(|(path, _)| path.clone());
                self.drop_transaction(out);
                self.refuse(stage, reply, from, None, out);
            }
            Pending::Chunk { size, .. } => {
                let from = self.transaction().map(|(path, _)| path.clone());
                self.drop_transaction(out);
                self.begin_discard(size, reply, from, out);
            }
            Pending::BadRcpt | Pending::Greeting { .. } | Pending::Word { .. } | Pending::Xclient => {
                self.refuse(stage, reply, None, None, out);
            }
        }
    }

    /// What follows from a yes.
    fn go_on(&mut self, pending: Pending, out: &mut Output) {
        match pending {
            Pending::Client => self.write_greeting(out),
            Pending::Greeting { name, extended } => self.greet(name, extended, out),
            Pending::Mail(mail) => {
                let Some(greeted) = &self.greeted else { return };
                self.transactions += 1;
                self.turns = self.turns.wrapping_add(1);
                self.stage = Stage::Open(Box::new(Transaction::new(greeted, *mail)));
                self.say(250, (2, 1, 0), "Ok", out);
            }
            Pending::Rcpt(rcpt) => {
                let Stage::Open(transaction) = &mut self.stage else { return };
                transaction.accept(*rcpt);
                self.say(250, (2, 1, 5), "Ok", out);
            }
            Pending::Data => self.begin_content(out),
            Pending::Chunk { size, last } => self.begin_chunks(size, last, out),
            Pending::Word { .. } => self.say(250, (2, 0, 0), "Ok", out),
            Pending::Xclient => self.begin(out),
            // It has its answer from the beginning.
            Pending::BadRcpt => {}
        }
    }

    fn write_greeting(&mut self, out: &mut Output) {
        let protocol = if self.is_smtp() { "ESMTP" } else { "LMTP" };
        push(out, &format!("220 {} {protocol} Postern\r\n", self.settings.hostname));
    }

    /// RFC 5321 §4.1.4: a greeting resets like RSET. It has no enhanced code (RFC 2034 §4).
    fn greet(&mut self, name: Box<str>, extended: bool, out: &mut Output) {
        self.drop_transaction(out);
        self.greeted = Some(Greeted::new(name, extended));
        let hostname = self.settings.hostname.as_str();
        if !extended {
            return push(out, &format!("250 {hostname}\r\n"));
        }
        let mut lines = vec![hostname.to_owned()];
        for extension in Extension::ALL.into_iter().filter(|e| self.settings.extensions.has(*e)) {
            let keyword = extension.keyword();
            lines.push(match extension {
                Extension::Size => format!("{keyword} {}", self.settings.message_size),
                Extension::DeliverBy => format!("{keyword} {BY_MIN}"),
                Extension::FutureRelease => {
                    let until = date_time::write(self.now.saturating_add(HOLD_MAX * 1000));
                    format!("{keyword} {HOLD_MAX} {until}")
                }
                Extension::Limits => self.limits(keyword),
                Extension::Etrn if !self.settings.asks.etrn => continue,
                Extension::Vrfy if !self.settings.asks.vrfy => continue,
                Extension::Expn if !self.settings.asks.expn => continue,
                _ => keyword.to_owned(),
            });
        }
        lines.extend(self.extra.iter().map(|line| (*line).to_owned()));
        Reply { code: 250, enhanced: None, lines }.write_to(&mut out.wire);
    }
    /// RFC 9422 §3.
    fn limits(&self, keyword: &str) -> String {
        let limits = [
            ("MAILMAX", self.settings.transactions),
            ("RCPTMAX", Some(self.settings.recipients)),
            ("RCPTDOMAINMAX", self.settings.recipient_domains),
        ];
        let said = limits.iter().filter_map(|(name, limit)| limit.map(|limit| format!(" {name}={limit}")));
        format!("{keyword}{}", said.collect::<String>())
    }
}
