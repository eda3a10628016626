//! What a server's replies come to.

use super::{Client, Expected, Protocol, State};
use crate::client::Event;
use crate::client::extensions::Extensions;
use crate::client::outcome::{Outcome, with_enhanced};
use crate::client::transaction::{Command, Phase, Recipient, Sending};
use crate::reply::{EnhancedCode, Reply};

impl Client {
    /// One whole reply.
    pub(super) fn reply(&mut self, reply: Reply) {
        self.replies += 1;
        let front = self.expected.front().copied();
        let Some(expected) = front.filter(|expected| expected.behind <= self.written) else {
            return self.premature(reply);
        };
        self.expected.pop_front();
        if expected.to.is_of_a_transaction()
            && let Some(open) = self.open.front_mut()
        {
            open.awaited -= 1;
        }
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
            Command::Reset => self.reset_answered(reply),
            Command::Mail => self.mail_answered(reply),
            Command::Recipient(index) => self.recipient_answered(index, reply),
            Command::Data => self.data_answered(reply),
            Command::Chunks => {}
            Command::Chunk if reply.code / 100 == 2 => {}
            Command::Chunk | Command::End | Command::EndFor(_) if reply.code / 100 == 3 => {
                self.unexpected(reply);
            }
            Command::Chunk => self.chunk_refused(&reply),
            Command::End => self.end_answered(reply),
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
                self.extensions = Extensions::from_reply(&reply).without(&self.without);
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

    fn reset_answered(&mut self, reply: Reply) {
        let Some(open) = self.open.front_mut() else { return };
        match reply.code / 100 {
            2 => self.needs_reset = false,
            3 => self.unexpected(reply),
            // The rest of it is on its way already.
            _ if open.sending == Sending::Whole => (open.not_reset, open.confused) = (true, true),
            _ => self.refused(reply),
        }
    }

    fn mail_answered(&mut self, reply: Reply) {
        match reply.code / 100 {
            2 => self.needs_reset = true,
            3 => self.unexpected(reply),
            _ => {
                self.needs_reset = true;
                let Some(open) = self.open.front_mut() else { return };
                open.mail_refused = true;
                open.plan.clear();
                self.refuse_pending(Command::Mail, &reply);
            }
        }
    }

    fn recipient_answered(&mut self, index: usize, mut reply: Reply) {
        let Some(open) = self.open.front_mut() else { return };
        let ours = open.may_be_ours(Command::Recipient(index), &reply);
        let others = open.recipients.contains(&Recipient::Accepted);
        let Some(recipient) = open.recipients.get_mut(index) else { return };
        match reply.code / 100 {
            // What follows a refused MAIL is refused for that alone.
            _ if open.mail_refused => {}
            2 => *recipient = Recipient::Accepted,
            3 => self.unexpected(reply),
            _ if ours => *recipient = Recipient::Again,
            _ => {
                // Too many recipients, in the words of RFC 821: those behind may come again
                // (RFC 5321 §4.5.3.1.10). A full mailbox says 5.2.2.
                if reply.code == 552 && reply.enhanced.is_none() && others {
                    reply.code = 452;
                    reply.enhanced = Some(EnhancedCode::new(4, 5, 3));
                }
                self.tell(index, Outcome::remote(reply));
            }
        }
    }

    fn data_answered(&mut self, reply: Reply) {
        let Some(open) = self.open.front_mut() else { return };
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
            400..=599 => self.refuse_pending(Command::Data, &reply),
            _ => self.unexpected(reply),
        }
    }

    fn chunk_refused(&mut self, reply: &Reply) {
        // The rest of it is of no use (RFC 3030 §2).
        self.needs_reset = true;
        self.tell_pending(|| Outcome::remote(reply.clone()));
        if let Some(open) = self.open.front_mut() {
            open.phase = Phase::Ended;
        }
    }

    fn end_answered(&mut self, reply: Reply) {
        let Some(open) = self.open.front() else { return };
        // After a chunk that failed the state is not determined (RFC 3030 §2).
        self.needs_reset = open.sending == Sending::Whole && reply.code / 100 != 2;
        // Whatever is said to content for nobody: nobody has it.
        if open.pending().next().is_none() {
            return;
        }
        self.end_of(reply);
    }

    /// The reply to content that somebody was to have.
    fn end_of(&mut self, reply: Reply) {
        let whole = self.open.front().is_some_and(|open| open.sending == Sending::Whole);
        self.refuse_pending(Command::End, &reply);
        if whole && reply.code / 10 == 50 {
            // The server may not have known what a chunk is, and have taken it for commands: what it says from here
            // on may be the answer to anything.
            self.finish();
            self.garbage(&format!("unexpected reply {reply}"));
            self.state = State::Closed;
        }
    }

    /// The reply to a command about all who are left: what becomes of them, a delivery included.
    fn refuse_pending(&mut self, command: Command, reply: &Reply) {
        let Some(open) = self.open.front_mut() else { return };
        if !open.may_be_ours(command, reply) {
            return self.tell_pending(|| Outcome::remote(reply.clone()));
        }
        // A bare 554 is more often said of a message than of the protocol.
        open.confused |= open.pending().next().is_some() && (reply.code != 554 || reply.enhanced.is_some());
        open.again();
    }

    /// A reply before what it could answer has left. Of content it may be the answer: a server that has
    /// seen enough. Otherwise it is 421, or replies and commands no longer pair up.
    fn premature(&mut self, reply: Reply) {
        let end =
            matches!(self.expected.front(), Some(Expected { to: Command::End | Command::EndFor(_), .. }));
        let data = self.open.front().is_some_and(|open| open.phase == Phase::Content && !open.is_gathering());
        let whole = self.open.front().is_some_and(|open| open.sending == Sending::Whole);
        // A chunk of which a part has not left cannot have been taken by a server that closes.
        let over = reply.code == 421 && whole;
        if (end || data) && reply.code >= 400 && !over {
            self.refuse_pending(Command::End, &reply);
            self.finish();
            self.lose(reply, true);
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

    /// The server will not have us, and is told good-bye (RFC 5321 §4.1.1.10).
    fn refused(&mut self, reply: Reply) {
        self.open.clear();
        self.events.push_back(Event::Unusable { reply: with_enhanced(reply), remote: true });
        self.expected.clear();
        self.state = State::Quitting;
        self.say("QUIT\r\n");
        self.expect(Command::Quit);
    }
}
