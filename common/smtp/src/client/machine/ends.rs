//! How transactions end: each recipient told of once, or free to be tried again.

use super::{Client, State};
use crate::client::Event;
use crate::client::outcome::{Outcome, with_enhanced};
use crate::client::transaction::{Command, Open, Phase, Recipient, Sending};
use crate::reply::{EnhancedCode, Reply};

impl Client {
    /// The server is not to be understood any more.
    pub(super) fn garbage(&mut self, why: &str) {
        let text = format!("protocol error while {}: {why}", self.doing());
        self.lose(Reply::new(451, EnhancedCode::new(4, 3, 0), text), false);
    }

    /// The connection is over; `closing` when the server said so (421). A transaction of which not all has left may go
    /// to another server. One that left with its content may have been taken, and trying at once would make two of it.
    pub(super) fn lose(&mut self, reply: Reply, closing: bool) {
        // Ready, and over before anybody heard of it: never ready.
        let unheard = self.events.iter().position(|event| *event == Event::Ready);
        if let Some(at) = unheard {
            self.events.remove(at);
            self.state = State::Hello;
        }
        if self.state == State::Hello {
            self.events.push_back(Event::Unusable { reply: with_enhanced(reply.clone()), remote: closing });
        }
        // A server that closes reads no further: what it had not answered it has not taken.
        let mut read = !closing || matches!(self.answered, Some(Command::End | Command::EndFor(_)));
        while let Some(open) = self.open.front() {
            let taken = match open.sending {
                Sending::Whole => read && open.phase == Phase::Ended && open.end_at <= self.written,
                Sending::Data | Sending::Chunks => open.phase != Phase::Envelope,
            };
            read &= !closing;
            if taken {
                self.tell_pending(|| Outcome::deferred(reply.clone(), closing));
            }
            if let Some(reason) = self.open.front_mut().and_then(|open| open.given_up.take()) {
                self.tell_pending(|| Outcome::deferred(reason.clone(), false));
            }
            let untold = |open: Open| open.has_again() || open.pending().next().is_some();
            self.events.push_back(match self.open.pop_front().is_some_and(untold) {
                true => Event::Unusable { reply: with_enhanced(reply.clone()), remote: closing },
                false => Event::Finished,
            });
        }
        self.state = State::Closed;
        self.expected.clear();
    }

    /// Ends the first transaction, and goes over to the one that follows. Nobody may be left untold but those who are to
    /// be tried again: whoever else is (no path leads here but that of content which we cannot read) is deferred.
    pub(super) fn finish(&mut self) {
        let Some(open) = self.open.front_mut() else { return };
        let early = || Reply::new(451, EnhancedCode::new(4, 3, 0), "transaction ended early");
        let reply = open.given_up.take().unwrap_or_else(early);
        self.tell_pending(|| Outcome::deferred(reply.clone(), false));
        let ended = self.open.pop_front();
        self.events.push_back(match ended.filter(Open::has_again) {
            Some(open) => Event::Again { confused: open.confused },
            None => Event::Finished,
        });
        if self.open.is_empty() && self.state == State::Busy {
            self.state = State::Idle;
        }
    }

    /// Of the first transaction's recipients.
    pub(super) fn tell(&mut self, index: usize, outcome: Outcome) {
        let recipient = self.open.front_mut().and_then(|open| open.recipients.get_mut(index));
        if let Some(recipient) = recipient.filter(|recipient| **recipient != Recipient::Told) {
            *recipient = Recipient::Told;
            self.events.push_back(Event::Recipient { index, outcome });
        }
    }

    pub(super) fn tell_pending(&mut self, outcome: impl Fn() -> Outcome) {
        let pending: Vec<usize> = self.open.front().into_iter().flat_map(Open::pending).collect();
        pending.into_iter().for_each(|index| self.tell(index, outcome()));
    }
}
