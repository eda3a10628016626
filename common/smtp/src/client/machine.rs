//! One connection to a server, from greeting to QUIT: what is asked of it, and what it says.

mod answers;
mod ends;

use std::collections::VecDeque;

use postern_address::Domain;

use crate::client::extensions::Extensions;
use crate::client::outcome::Outcome;
use crate::client::replies::ReplyParser;
use crate::client::transaction::{Command, Open, Phase, Sending, Transaction};
use crate::reply::{EnhancedCode, Reply};
use crate::server::Extension;

/// Octets of content that may wait for the server to take them.
const CONTENT_AHEAD: usize = 64 * 1024;

/// Octets sent that count as progress: a server that takes less in its time is as good as gone.
const PROGRESS: u64 = 16 * 1024;

/// Transactions at once. When a connection breaks each that had left as a whole may have been delivered, and is sent
/// a second time: so many messages are what a broken connection may double. Two are enough to keep a far server busy
/// while its replies are on the way, with the connections that there are to it.
const TRANSACTIONS_AT_ONCE: usize = 2;

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
    /// The transaction is over, and recipients were not told of: what refused them may be how the transaction was sent,
    /// with another before it or its content at once. They are to be tried again, here or elsewhere, in a transaction
    /// that is begun alone and not [`Transaction::whole`]. From here on it is as after [`Event::Finished`].
    Again {
        /// The server does not follow: send it nothing more in such a way.
        confused: bool,
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
    /// Transactions under way. Replies are about the first, content is of the last.
    open: VecDeque<Open>,
    /// Extensions that are not made use of.
    without: Vec<Extension>,
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
            open: VecDeque::new(),
            without: Vec::new(),
            needs_reset: false,
            events: VecDeque::new(),
        };
        client.expect(Command::Connect);
        client
    }

    /// The same, which makes no use of these extensions, whatever the server offers.
    pub fn without(self, extensions: &[Extension]) -> Self {
        Self { without: extensions.to_vec(), ..self }
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
        let (open, refused) = Open::new(transaction, self.protocol == Protocol::Lmtp, self.extensions);
        self.add(open);
        self.state = State::Busy;
        refused.into_iter().for_each(|(index, reply)| self.tell(index, Outcome::local(reply)));
        self.advance();
        Ok(())
    }

    /// Hands over a transaction behind one whose content has ended, though that is not answered yet. Its envelope
    /// leaves at once, in one group with the end of that content (RFC 2920 §3.1) if it has not left: over a long way
    /// that halves the time of a message. If it may leave as a whole its content is wanted now, and
    /// leaves with it. Given back when the server does not take it so, or when not all of its recipients can be
    /// sent to: begin it later.
    pub fn follow(&mut self, transaction: Transaction) -> Result<(), Box<Transaction>> {
        if !self.can_follow() || transaction.recipients.is_empty() {
            return Err(Box::new(transaction));
        }
        let (open, refused) = Open::new(transaction, self.protocol == Protocol::Lmtp, self.extensions);
        if !refused.is_empty() {
            return Err(Box::new(open.transaction));
        }
        self.add(open);
        self.advance();
        Ok(())
    }

    /// [`Client::follow`] may be called.
    pub fn can_follow(&self) -> bool {
        let said = |last: &Open| last.phase == Phase::Ended && last.given_up.is_none();
        self.extensions.pipelining
            && self.state == State::Busy
            && self.open.len() < TRANSACTIONS_AT_ONCE
            && self.open.back().is_some_and(said)
    }

    /// The server takes transactions as a whole.
    pub fn takes_whole(&self) -> bool {
        self.protocol == Protocol::Smtp && self.extensions.pipelining && self.extensions.chunking
    }

    /// Content of the transaction that was handed over last can be taken: call [`Client::content`] or
    /// [`Client::content_end`].
    pub fn wants_content(&self) -> bool {
        // Of chunks one after the other: a server that refuses one is not sent the rest.
        let chunk = self.expected.front().is_some_and(|expected| expected.to == Command::Chunk);
        !chunk
            && self.events.is_empty()
            && self.output().len() < CONTENT_AHEAD
            && self.open.back().is_some_and(|last| last.phase == Phase::Content)
    }

    /// The next piece of content. Pieces of at most 32 KiB keep the memory below 400 KiB.
    pub fn content(&mut self, piece: &[u8]) {
        self.compact();
        let before = self.out.len();
        let Some(last) = self.open.back_mut().filter(|last| last.phase == Phase::Content) else { return };
        match last.sending {
            Sending::Data => last.stuffer.push(piece, &mut self.out),
            Sending::Whole => last.stuffer.push(piece, &mut last.gathered),
            Sending::Chunks if piece.is_empty() => {}
            Sending::Chunks => {
                self.say(&format!("BDAT {}\r\n", piece.len()));
                self.say_octets(piece);
                return self.expect(Command::Chunk);
            }
        }
        self.queued += (self.out.len() - before) as u64;
    }

    /// That was all of it.
    pub fn content_end(&mut self) {
        let Some(last) = self.open.back_mut().filter(|last| last.phase == Phase::Content) else { return };
        last.phase = Phase::Ended;
        match last.sending {
            Sending::Data => {
                let mut end = Vec::new();
                last.stuffer.finish(&mut end);
                self.say_octets(&end);
            }
            Sending::Chunks => self.say("BDAT 0 LAST\r\n"),
            Sending::Whole => self.say_whole(),
        }
        let Some(last) = self.open.back_mut() else { return };
        last.end_at = self.queued;
        let accepted: Vec<usize> = last.pending().collect();
        match self.protocol {
            Protocol::Smtp => self.expect(Command::End),
            Protocol::Lmtp => accepted.into_iter().for_each(|index| self.expect(Command::EndFor(index))),
        }
    }

    /// Something of our own went wrong: the content cannot be read. Ends the transaction whose content is wanted
    /// without completing the message: recipients not yet told of are deferred with `reply`. Closed, unless nothing
    /// was said of it yet.
    pub fn abandon(&mut self, reply: Reply) {
        match self.open.back_mut().filter(|last| last.is_gathering()) {
            Some(last) => {
                (last.phase, last.given_up) = (Phase::Ended, Some(reply));
                last.plan.clear();
                self.advance();
            }
            None => {
                self.lose(reply, false);
                self.state = State::Closed;
            }
        }
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
            Some(Expected { to: Command::End | Command::EndFor(_), behind }) if *behind <= self.written => {
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
        self.open.front().map(|open| open.phase)
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

    fn add(&mut self, open: Open) {
        let later = open.is_gathering();
        self.open.push_back(open);
        if !later {
            self.prepare();
        }
    }

    /// What is to be known of the last transaction when it is said.
    fn prepare(&mut self) {
        // A server may keep what is left of a transaction of which a chunk failed (RFC 3030 §2), and take the next
        // recipients for that one's: what is behind a chunk begins with RSET, whatever becomes of that chunk.
        let before = self.open.len().checked_sub(2).and_then(|at| self.open.get(at));
        let reset = before.map_or(self.needs_reset, |before| before.sending != Sending::Data);
        let ahead = before.is_some();
        let Some(last) = self.open.back_mut() else { return };
        last.ahead = ahead;
        if reset && !last.plan.is_empty() {
            last.plan.push_front(Command::Reset);
        }
    }

    /// Says the whole of the last transaction.
    fn say_whole(&mut self) {
        self.prepare();
        let Some(last) = self.open.back_mut() else { return };
        last.stuffer.finish(&mut last.gathered);
        let content = std::mem::take(&mut last.gathered);
        while let Some(command) = self.open.back_mut().and_then(|last| last.plan.pop_front()) {
            self.say_command(command);
        }
        self.say(&format!("BDAT {} LAST\r\n", content.len()));
        self.say_octets(&content);
    }

    /// Sends what may be sent now of the last transaction: everything up to DATA where the server takes it so (RFC 2920),
    /// else one command after the reply to the one before. Ends those of which all was heard.
    fn advance(&mut self) {
        while self.state == State::Busy && (self.extensions.pipelining || self.expected.is_empty()) {
            let Some(last) = self.open.back_mut().filter(|last| !last.is_gathering()) else { break };
            let Some(&command) = last.plan.front() else { break };
            if command == Command::Chunks && !self.expected.is_empty() {
                break; // A chunk may only follow what is known to be accepted.
            }
            last.plan.pop_front();
            match command {
                Command::Data | Command::Chunks if last.pending().next().is_none() => {}
                Command::Chunks => last.phase = Phase::Content,
                _ => self.say_command(command),
            }
        }
        while self.state == State::Busy && self.open.front().is_some_and(Open::is_over) {
            self.finish();
        }
    }

    /// Says a command of the last transaction.
    fn say_command(&mut self, command: Command) {
        let Some(last) = self.open.back() else { return };
        let line = last.line(command, self.extensions);
        self.say(&line);
        self.expect(command);
    }

    fn say(&mut self, text: &str) {
        self.say_octets(text.as_bytes());
    }

    fn say_octets(&mut self, octets: &[u8]) {
        self.out.extend_from_slice(octets);
        self.queued += octets.len() as u64;
    }

    fn expect(&mut self, to: Command) {
        if to.is_of_a_transaction()
            && let Some(last) = self.open.back_mut()
        {
            last.awaited += 1;
        }
        self.expected.push_back(Expected { to, behind: self.queued });
    }

    /// Gives the room of what was sent back to what is to be sent.
    fn compact(&mut self) {
        self.out.drain(..self.out_start);
        self.out_start = 0;
    }
}
