//! One connection to a server, from greeting to QUIT.

use std::collections::VecDeque;

use postern_address::Domain;

use crate::client::extensions::Extensions;
use crate::client::outcome::{Outcome, with_enhanced};
use crate::client::replies::ReplyParser;
use crate::client::transaction::{Command, Open, Phase, Recipient, Transaction};
use crate::reply::{EnhancedCode, Reply};

/// Octets of content that may wait for the server to take them.
const CONTENT_AHEAD: usize = 64 * 1024;

/// Octets sent that count as progress: a server that takes less in its time is as good as gone.
const PROGRESS: u64 = 16 * 1024;

/// Which protocol is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// RFC 5321.
    Smtp,
    /// RFC 2033: LHLO, and one final reply for each recipient.
    Lmtp,
}

/// What came of the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The session is open: a transaction may begin.
    Ready,
    /// The server cannot be used, and no content was sent: recipients that were not told of may be tried
    /// at another server at once. A transaction under way is over.
    Unusable {
        /// Why.
        reply: Reply,
        /// In the server's words.
        remote: bool,
    },
    /// What became of one recipient of the transaction. Each is told of once.
    Recipient {
        /// Its place in the transaction.
        index: usize,
        /// Its end.
        outcome: Outcome,
    },
    /// Every recipient of the transaction was told of. From here on it is about the one that followed, if there was
    /// one; else another may begin, unless [`Client::is_closed`] or [`Client::is_quitting`].
    Finished,
}

/// What the session waits for; each has a patience of its own (RFC 5321 §4.5.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Nothing: idle.
    Nothing,
    /// A reply to a command.
    Reply,
    /// That the server takes content.
    Room,
    /// The reply to the end of content, which may take the server long.
    FinalReply,
}

/// The state of one connection.
#[derive(Debug)]
pub struct Client {
    protocol: Protocol,
    hostname: Domain,
    state: State,
    extensions: Extensions,
    server_name: String,
    parser: ReplyParser,
    out: Vec<u8>,
    out_start: usize,
    queued: u64,
    written: u64,
    replies: u64,
    expected: VecDeque<Expected>,
    answered: Option<Command>,
    open: Option<Open>,
    /// The transaction behind the open one, and the replies that are expected to it.
    following: Option<(Open, usize)>,
    needs_reset: bool,
    events: VecDeque<Event>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Hello,
    Idle,
    Busy,
    Quitting,
    Closed,
}

/// A reply to come, and how many octets of ours must have left before it can.
#[derive(Clone, Copy, Debug)]
struct Expected {
    to: Command,
    behind: u64,
}

impl Client {
    /// A connection just made: the server speaks first.
    pub fn new(protocol: Protocol, hostname: Domain) -> Self {
        let mut client = Self {
            protocol,
            hostname,
            state: State::Hello,
            extensions: Extensions::default(),
            server_name: String::new(),
            parser: ReplyParser::default(),
            out: Vec::new(),
            out_start: 0,
            queued: 0,
            written: 0,
            replies: 0,
            expected: VecDeque::new(),
            answered: None,
            open: None,
            following: None,
            needs_reset: false,
            events: VecDeque::new(),
        };
        client.expect(Command::Connect);
        client
    }

    /// The next thing that came of the input. Call it until none.
    pub fn event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// [`Client::event`] has something.
    pub fn has_event(&self) -> bool {
        !self.events.is_empty()
    }

    /// Octets came from the server.
    pub fn input(&mut self, mut octets: &[u8]) {
        while !self.is_closed() {
            match self.parser.push(&mut octets) {
                Ok(Some(reply)) => self.reply(reply),
                Ok(None) => return,
                Err(error) => self.garbage(&error.to_string()),
            }
        }
    }

    /// Octets to send.
    pub fn output(&self) -> &[u8] {
        self.out.get(self.out_start..).unwrap_or_default()
    }

    /// So many octets of the output were sent.
    pub fn written(&mut self, count: usize) {
        let count = count.min(self.out.len() - self.out_start);
        self.out_start += count;
        self.written += count as u64;
        if self.out_start == self.out.len() {
            self.out.clear();
            self.out_start = 0;
        }
    }

    /// Begins a transaction, or gives it back when the session cannot take one now. Every event must have been heard:
    /// those to come are then about this transaction.
    pub fn begin(&mut self, transaction: Transaction) -> Result<(), Box<Transaction>> {
        if !self.is_idle() || transaction.recipients.is_empty() {
            return Err(Box::new(transaction));
        }
        let lmtp = self.protocol == Protocol::Lmtp;
        let (open, refused) = Open::new(transaction, lmtp, self.needs_reset, self.extensions);
        self.open = Some(open);
        self.state = State::Busy;
        refused.into_iter().for_each(|(index, reply)| self.tell(index, Outcome::local(reply)));
        self.advance();
        Ok(())
    }

    /// Hands over the transaction that follows this one, whose content is under way. Its envelope leaves with the end
    /// of that content, in one group (RFC 2920 §3.1): over a long way that halves the time of a message. Given back
    /// when the server does not take it so, or when not all of its recipients can be sent to: begin it later.
    pub fn follow(&mut self, transaction: Transaction) -> Result<(), Box<Transaction>> {
        if !self.can_follow() || transaction.recipients.is_empty() {
            return Err(Box::new(transaction));
        }
        let lmtp = self.protocol == Protocol::Lmtp;
        let (open, refused) = Open::new(transaction, lmtp, false, self.extensions);
        if !refused.is_empty() {
            return Err(Box::new(open.transaction));
        }
        self.following = Some((open, 0));
        Ok(())
    }

    /// [`Client::follow`] may be called.
    pub fn can_follow(&self) -> bool {
        let content = |open: &Open| open.phase == Phase::Content && !open.chunks;
        self.extensions.pipelining && self.following.is_none() && self.open.as_ref().is_some_and(content)
    }

    /// Content can be taken: call [`Client::content`] or [`Client::content_end`]. Not while there are events: they may
    /// be about another transaction than the content is of.
    pub fn wants_content(&self) -> bool {
        // Of chunks one after the other: a server that refuses one is not sent the rest.
        let chunk = self.expected.front().is_some_and(|expected| expected.to == Command::Chunk);
        !chunk
            && self.events.is_empty()
            && self.output().len() < CONTENT_AHEAD
            && self.phase() == Some(Phase::Content)
    }

    /// The next piece of content. Pieces of at most 32 KiB keep the memory below 200 KiB.
    pub fn content(&mut self, piece: &[u8]) {
        if self.phase() != Some(Phase::Content) {
            return;
        }
        if self.open.as_ref().is_some_and(|open| open.chunks) {
            if !piece.is_empty() {
                self.say(&format!("BDAT {}\r\n", piece.len()));
                self.out.extend_from_slice(piece);
                self.queued += piece.len() as u64;
                self.expect(Command::Chunk);
            }
            return;
        }
        let before = self.output().len();
        self.compact();
        if let Some(open) = &mut self.open {
            open.stuffer.push(piece, &mut self.out);
        }
        self.queued += (self.output().len() - before) as u64;
    }

    /// That was all of it.
    pub fn content_end(&mut self) {
        let Some(open) = self.open.as_mut().filter(|open| open.phase == Phase::Content) else { return };
        let before = self.out.len();
        match open.chunks {
            true => self.out.extend_from_slice(b"BDAT 0 LAST\r\n"),
            false => open.stuffer.finish(&mut self.out),
        }
        self.queued += (self.out.len() - before) as u64;
        open.phase = Phase::Ended;
        let accepted: Vec<usize> = open.pending().collect();
        match self.protocol {
            Protocol::Smtp => self.expect(Command::End),
            Protocol::Lmtp => accepted.into_iter().for_each(|index| self.expect(Command::EndFor(index))),
        }
        self.announce();
    }

    /// Says the envelope of what follows.
    fn announce(&mut self) {
        let Some((mut next, _)) = self.following.take() else { return };
        let before = self.expected.len();
        while let Some(command) = next.plan.pop_front_if(|command| *command != Command::Chunks) {
            self.say(&next.line(command, self.extensions));
            self.expect(command);
        }
        self.following = Some((next, self.expected.len() - before));
    }

    /// Something of our own went wrong (the content cannot be read, we are shutting down): end without
    /// completing the message. Recipients not yet told of are deferred with `reply`.
    pub fn abandon(&mut self, reply: Reply) {
        if self.open.is_some() {
            self.tell_pending(|| Outcome::deferred(reply.clone(), false));
            self.finish();
            self.put_back(reply, false);
        }
        self.state = State::Closed;
    }

    /// The server closed the connection, or it broke.
    pub fn lost(&mut self) {
        let text = format!("lost connection while {}", self.doing());
        self.lose(Reply::new(451, EnhancedCode::new(4, 4, 2), text), false);
    }

    /// What the session waits for did not come in time.
    pub fn timed_out(&mut self) {
        let text = format!("conversation timed out while {}", self.doing());
        self.lose(Reply::new(451, EnhancedCode::new(4, 4, 2), text), false);
    }

    /// Says QUIT, between transactions. Closed after its reply, or whenever the caller closes.
    pub fn quit(&mut self) {
        if self.state == State::Idle || (self.state == State::Hello && self.expected.is_empty()) {
            self.state = State::Quitting;
            self.say("QUIT\r\n");
            self.expect(Command::Quit);
        }
    }

    /// Between transactions, and all that came of them was heard.
    pub fn is_idle(&self) -> bool {
        self.state == State::Idle && self.events.is_empty()
    }

    /// QUIT is on its way.
    pub fn is_quitting(&self) -> bool {
        self.state == State::Quitting
    }

    /// Nothing more is to be said or heard: close the socket.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// What the session waits for.
    pub fn waiting(&self) -> Waiting {
        match self.expected.front() {
            Some(Expected { to: Command::End | Command::EndFor(_), .. }) if self.output().is_empty() => {
                Waiting::FinalReply
            }
            Some(Expected { to: Command::End | Command::EndFor(_), .. }) => Waiting::Room,
            Some(_) => Waiting::Reply,
            None if self.phase() == Some(Phase::Content) => Waiting::Room,
            None => Waiting::Nothing,
        }
    }

    /// A number that grows when the session gets on: a patience begins anew then, and not with every
    /// octet of a slow server.
    pub fn progress(&self) -> u64 {
        self.replies + self.written / PROGRESS
    }

    /// What the server calls itself in its reply to EHLO, LHLO or HELO; empty before that.
    pub fn server_name(&self) -> &str {
        &self.server_name
    }

    /// What the server offers.
    pub fn extensions(&self) -> Extensions {
        self.extensions
    }

    fn phase(&self) -> Option<Phase> {
        self.open.as_ref().map(|open| open.phase)
    }

    /// One whole reply.
    fn reply(&mut self, reply: Reply) {
        self.replies += 1;
        let front = self.expected.front().copied();
        let Some(expected) = front.filter(|expected| expected.behind <= self.written) else {
            return self.premature(reply);
        };
        self.expected.pop_front();
        self.answered = Some(expected.to);
        // The server says so instead of any reply, and closes (RFC 5321 §3.8).
        if reply.code == 421 && expected.to != Command::Quit {
            return self.lose(reply, true);
        }
        match expected.to {
            Command::Connect => self.greeted(reply),
            Command::Ehlo => self.ehlo_answered(reply),
            Command::Helo => self.helo_answered(reply),
            Command::Quit => self.state = State::Closed,
            Command::Reset if reply.code / 100 == 2 => self.needs_reset = false,
            Command::Reset => self.refused(reply),
            Command::Mail => self.mail_answered(reply),
            Command::Recipient(index) => self.recipient_answered(index, reply),
            Command::Data => self.data_answered(reply),
            Command::Chunks => {}
            Command::Chunk if reply.code / 100 == 2 => {}
            Command::Chunk if reply.code / 100 == 3 => self.unexpected(reply),
            Command::Chunk => {
                // The rest of it is of no use (RFC 3030 §2).
                self.needs_reset = true;
                self.tell_pending(|| Outcome::remote(reply.clone()));
                if let Some(open) = &mut self.open {
                    open.phase = Phase::Ended;
                }
            }
            Command::End | Command::EndFor(_) if reply.code / 100 == 3 => self.unexpected(reply),
            Command::End => {
                self.needs_reset = false;
                self.tell_pending(|| Outcome::remote(reply.clone()));
            }
            Command::EndFor(index) => {
                self.needs_reset = false;
                self.tell(index, Outcome::remote(reply));
            }
        }
        self.answered = None;
        self.advance();
    }

    fn greeted(&mut self, reply: Reply) {
        match reply.code {
            220 => {}
            400..=599 => return self.refused(reply),
            _ => return self.unexpected(reply),
        }
        let verb = match self.protocol {
            Protocol::Smtp => "EHLO",
            Protocol::Lmtp => "LHLO",
        };
        self.say(&format!("{verb} {}\r\n", self.hostname));
        self.expect(Command::Ehlo);
    }

    fn ehlo_answered(&mut self, reply: Reply) {
        match reply.code / 100 {
            2 => {
                self.extensions = Extensions::from_reply(&reply);
                self.ready(&reply);
            }
            // A server without extensions (RFC 5321 §3.2). LMTP has no such fallback (RFC 2033 §4.1).
            5 if self.protocol == Protocol::Smtp => {
                self.say(&format!("HELO {}\r\n", self.hostname));
                self.expect(Command::Helo);
            }
            3 => self.unexpected(reply),
            _ => self.refused(reply),
        }
    }

    fn helo_answered(&mut self, reply: Reply) {
        match reply.code / 100 {
            2 => self.ready(&reply),
            3 => self.unexpected(reply),
            _ => self.refused(reply),
        }
    }

    fn ready(&mut self, reply: &Reply) {
        let name = reply.lines.first().and_then(|line| line.split(' ').next());
        self.server_name = name.unwrap_or_default().to_owned();
        self.state = State::Idle;
        self.events.push_back(Event::Ready);
    }

    fn mail_answered(&mut self, reply: Reply) {
        match reply.code / 100 {
            2 => self.needs_reset = true,
            3 => self.unexpected(reply),
            _ => {
                self.needs_reset = true;
                self.tell_pending(|| Outcome::remote(reply.clone()));
                if let Some(open) = &mut self.open {
                    open.mail_refused = true;
                    open.plan.clear();
                }
            }
        }
    }

    fn recipient_answered(&mut self, index: usize, mut reply: Reply) {
        let Some(open) = &mut self.open else { return };
        match reply.code / 100 {
            // What follows a refused MAIL is refused for that alone.
            _ if open.mail_refused => {}
            2 => {
                if let Some(recipient) = open.recipients.get_mut(index) {
                    *recipient = Recipient::Accepted;
                }
            }
            3 => self.unexpected(reply),
            _ => {
                // Too many recipients, in the words of RFC 821: those behind may come again
                // (RFC 5321 §4.5.3.1.10). A full mailbox says 5.2.2.
                let others = open.recipients.contains(&Recipient::Accepted);
                if reply.code == 552 && reply.enhanced.is_none() && others {
                    reply.code = 452;
                    reply.enhanced = Some(EnhancedCode::new(4, 5, 3));
                }
                self.tell(index, Outcome::remote(reply));
            }
        }
    }

    fn data_answered(&mut self, reply: Reply) {
        let Some(open) = &mut self.open else { return };
        match reply.code {
            354 if open.pending().next().is_some() => open.phase = Phase::Content,
            // DATA went before we knew that nobody was accepted: an empty message (RFC 2920 §3.1).
            354 => {
                open.phase = Phase::Ended;
                self.say(".\r\n");
                match self.protocol {
                    Protocol::Smtp => self.expect(Command::End),
                    // One reply for each of no recipients: none. Whether the server sees it so is not
                    // worth finding out.
                    Protocol::Lmtp => {
                        self.finish();
                        self.quit();
                    }
                }
            }
            400..=599 => self.tell_pending(|| Outcome::remote(reply.clone())),
            _ => self.unexpected(reply),
        }
    }

    /// A reply before what it could answer has left. Of content it may be the answer: a server that has
    /// seen enough. Otherwise it is 421, or replies and commands no longer pair up.
    fn premature(&mut self, reply: Reply) {
        let in_content = matches!(self.phase(), Some(Phase::Content))
            || matches!(self.expected.front(), Some(Expected { to: Command::End | Command::EndFor(_), .. }));
        if in_content && reply.code >= 400 {
            self.tell_pending(|| Outcome::remote(reply.clone()));
            self.finish();
            self.put_back(reply, true);
            self.state = State::Closed;
        } else if reply.code == 421 {
            self.lose(reply, true);
        } else {
            self.garbage("unsolicited reply");
        }
    }

    fn unexpected(&mut self, reply: Reply) {
        self.garbage(&format!("unexpected reply {reply}"));
    }

    /// The server is not to be understood any more.
    fn garbage(&mut self, why: &str) {
        let text = format!("protocol error while {}: {why}", self.doing());
        self.lose(Reply::new(451, EnhancedCode::new(4, 3, 0), text), false);
    }

    /// The server will not have us, and is told good-bye (RFC 5321 §4.1.1.10).
    fn refused(&mut self, reply: Reply) {
        self.open = None;
        self.events.push_back(Event::Unusable { reply: with_enhanced(reply), remote: true });
        self.expected.clear();
        self.state = State::Quitting;
        self.say("QUIT\r\n");
        self.expect(Command::Quit);
    }

    /// The connection is over. Before content, another server may do; after it, the message may have been
    /// taken, and trying at once would make two of it.
    fn lose(&mut self, reply: Reply, remote: bool) {
        // Ready, and over before anybody heard of it: never ready.
        let unheard = self.events.iter().position(|event| *event == Event::Ready);
        if let Some(at) = unheard {
            self.events.remove(at);
            self.state = State::Hello;
        }
        match (self.state, self.phase()) {
            (State::Hello, _) | (State::Busy, Some(Phase::Envelope)) => {
                self.open = None;
                self.events.push_back(Event::Unusable { reply: with_enhanced(reply), remote });
            }
            (State::Busy, _) => {
                self.tell_pending(|| Outcome::deferred(reply.clone(), remote));
                self.finish();
                self.put_back(reply, remote);
            }
            (State::Idle | State::Quitting | State::Closed, _) => {}
        }
        self.state = State::Closed;
        self.expected.clear();
    }

    /// In Postfix's words, which operators know.
    fn doing(&self) -> &'static str {
        match (self.answered.or(self.expected.front().map(|expected| expected.to)), self.state) {
            (Some(Command::Connect), _) => "receiving the initial greeting",
            (Some(Command::Ehlo), _) if self.protocol == Protocol::Lmtp => "performing the LHLO handshake",
            (Some(Command::Ehlo), _) => "performing the EHLO handshake",
            (Some(Command::Helo), _) => "performing the HELO handshake",
            (Some(Command::Reset), _) => "sending RSET",
            (Some(Command::Mail), _) => "sending MAIL FROM",
            (Some(Command::Recipient(_)), _) => "sending RCPT TO",
            (Some(Command::Data | Command::Chunks), _) => "sending DATA command",
            (Some(Command::Chunk), _) => "sending message body",
            (Some(Command::End | Command::EndFor(_)), _) => {
                "sending end of data -- message may be sent more than once"
            }
            (Some(Command::Quit), _) => "sending QUIT",
            (None, State::Busy) => "sending message body",
            (None, _) => "idle",
        }
    }

    /// Sends what may be sent now: everything up to DATA where the server takes it so (RFC 2920), else one
    /// command after the reply to the one before.
    fn advance(&mut self) {
        while self.state == State::Busy && (self.extensions.pipelining || self.expected.is_empty()) {
            let Some(open) = &mut self.open else { break };
            let Some(&command) = open.plan.front() else { break };
            if command == Command::Chunks && !self.expected.is_empty() {
                break; // A chunk may only follow what is known to be accepted.
            }
            open.plan.pop_front();
            if matches!(command, Command::Data | Command::Chunks) && open.pending().next().is_none() {
                continue;
            }
            if command == Command::Chunks {
                open.phase = Phase::Content;
                continue;
            }
            let line = open.line(command, self.extensions);
            self.say(&line);
            self.expect(command);
        }
        let over =
            self.open.as_ref().is_some_and(|open| open.phase != Phase::Content && open.plan.is_empty());
        let behind = self.following.as_ref().map_or(0, |(_, replies)| *replies);
        if self.state == State::Busy && over && self.expected.len() == behind {
            self.finish();
        }
    }

    /// Ends the transaction, and goes over to the one that follows. Nobody may be left untold: whoever is (no path leads
    /// here) is deferred.
    fn finish(&mut self) {
        self.tell_pending(|| {
            Outcome::deferred(Reply::new(451, EnhancedCode::new(4, 3, 0), "transaction ended early"), false)
        });
        self.events.push_back(Event::Finished);
        self.open = self.following.take().map(|(open, _)| open);
        self.state = if self.open.is_some() { State::Busy } else { State::Idle };
    }

    /// The session ended with the transaction before: what was to follow is free for another.
    fn put_back(&mut self, reply: Reply, remote: bool) {
        if self.open.take().is_some() {
            self.events.push_back(Event::Unusable { reply: with_enhanced(reply), remote });
        }
    }

    fn tell(&mut self, index: usize, outcome: Outcome) {
        let recipient = self.open.as_mut().and_then(|open| open.recipients.get_mut(index));
        if let Some(recipient) = recipient.filter(|recipient| **recipient != Recipient::Told) {
            *recipient = Recipient::Told;
            self.events.push_back(Event::Recipient { index, outcome });
        }
    }

    fn tell_pending(&mut self, outcome: impl Fn() -> Outcome) {
        let pending: Vec<usize> = self.open.iter().flat_map(Open::pending).collect();
        pending.into_iter().for_each(|index| self.tell(index, outcome()));
    }

    fn say(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
        self.queued += text.len() as u64;
    }

    fn expect(&mut self, to: Command) {
        self.expected.push_back(Expected { to, behind: self.queued });
    }

    /// Gives the room of what was sent back to what is to be sent.
    fn compact(&mut self) {
        self.out.drain(..self.out_start);
        self.out_start = 0;
    }
}
