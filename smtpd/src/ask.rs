//! Who is asked what the session wants to know. Each answer comes back by [`Session::answer`] with the
//! question's ticket, at once or later; the client's later commands wait for it.
//!
//! [`Session::answer`]: postern_smtp::server::Session::answer

use postern_address::Mailbox;
use postern_daemon::Host;
use postern_ipc::RequestId;
use postern_ipc::smtpd_lookup::{Ask, Incoming, Question as ToLookup};
use postern_smtp::server::{Answer, Identity, Phase, Question};

use crate::connection::Connection;
use crate::refusal;
use crate::worker::Worker;

/// Questions to lookup without an answer: past this it is not busy but stuck.
const UNANSWERED_MAX: usize = 20_000;

impl Worker {
    /// A question of the session: it is answered here, or by whom it is sent to.
    pub(crate) fn ask(
        &mut self,
        host: &mut Host,
        connection: &mut Connection,
        ticket: u16,
        question: Question,
    ) {
        if let Some(question) = self.rules_first(host, connection, ticket, question) {
            self.ask_others(host, connection, ticket, question);
        }
    }

    /// What the rules have nothing against.
    pub(crate) fn ask_others(
        &mut self,
        host: &mut Host,
        connection: &mut Connection,
        ticket: u16,
        question: Question,
    ) {
        match question {
            Question::Client => self.guard_greeting(host, connection, ticket),
            Question::Mail { .. } => self.guard_mail(host, connection, ticket),
            Question::Rcpt { recipient, .. } => self.guard_recipient(host, connection, ticket, recipient),
            // Nobody has anything to say to these.
            Question::Helo(_) | Question::Data => self.answer(host, connection, ticket, Answer::Accepted),
            Question::Vrfy(name) => {
                let named = connection.named(name);
                self.send_to_lookup(host, connection, ticket, Ask::Vrfy(named));
            }
            Question::Expn(name) => {
                let named = connection.named(name);
                self.send_to_lookup(host, connection, ticket, Ask::Expn(named));
            }
            Question::Etrn(node) => self.send_to_lookup(host, connection, ticket, Ask::Etrn(node)),
            Question::Xclient(attributes) => {
                let answer = self.xclient(host, connection, &attributes);
                self.answer(host, connection, ticket, answer);
            }
            Question::Xforward(attributes) => {
                let answer = self.xforward(connection, &attributes);
                self.answer(host, connection, ticket, answer);
            }
        }
    }

    /// May this recipient come in? The answer comes by [`Worker::answered`], or was yes a moment ago.
    pub(crate) fn ask_recipient(
        &mut self,
        host: &mut Host,
        connection: &mut Connection,
        ticket: u16,
        recipient: Mailbox,
    ) {
        let authenticated = matches!(connection.session.identity(), Identity::User(_));
        let incoming = Incoming { client: connection.address, authenticated, recipient };
        if self.let_in.get(&incoming, host.now()).is_some() {
            return self.guard_accepted(host, connection, ticket);
        }
        self.send_to_lookup(host, connection, ticket, Ask::Recipient(incoming));
    }

    fn send_to_lookup(&mut self, host: &mut Host, connection: &mut Connection, ticket: u16, ask: Ask) {
        let id = connection.key.request(ticket);
        connection.asked = host.now();
        if !self.ask_lookup(host, id, ask) {
            self.answer(host, connection, ticket, Answer::Refused(refusal::lookup_failure()));
        }
    }

    /// False when it cannot be asked.
    pub(crate) fn ask_lookup(&mut self, host: &mut Host, id: RequestId, ask: Ask) -> bool {
        let incoming = if let Ask::Recipient(incoming) = &ask { Some(incoming.clone()) } else { None };
        let asked = self.unanswered < UNANSWERED_MAX && self.lookup.send(host, &ToLookup { id, ask });
        self.unanswered += usize::from(asked);
        if let (true, Some(incoming)) = (asked, incoming) {
            self.let_in.asked(id, incoming, host.now());
        }
        asked
    }

    /// Tells the session what it asked.
    pub(crate) fn answer(
        &mut self,
        host: &mut Host,
        connection: &mut Connection,
        ticket: u16,
        answer: Answer,
    ) {
        let answer = self.behind_rules(connection, ticket, answer);
        self.tell(host, connection, |session, out| session.answer(ticket, answer, out));
        if connection.session.phase() != Phase::Asking {
            connection.guard.clear();
        }
    }
}
