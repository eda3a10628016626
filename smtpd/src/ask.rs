//! Who is asked what the session wants to know. Each answer comes back by [`Session::answer`] with the
//! question's ticket, at once or later; the client's later commands wait for it.
//!
//! [`Session::answer`]: postern_smtp::server::Session::answer

use postern_daemon::Host;
use postern_ipc::smtpd_lookup::{Ask, Incoming, Question as ToLookup};
use postern_smtp::server::{Answer, Identity, Question};

use crate::connection::Connection;
use crate::refusal;
use crate::worker::{UNANSWERED_MAX, Worker};

impl Worker {
    /// A question of the session: it is answered here, or by whom it is sent to.
    pub(crate) fn ask(
        &mut self,
        host: &mut Host,
        connection: &mut Connection,
        ticket: u16,
        question: Question,
    ) {
        match question {
            Question::Rcpt { recipient, .. } => {
                let id = connection.key.request(ticket);
                let authenticated = matches!(connection.session.identity(), Identity::User(_));
                let ask = Ask::Recipient(Incoming { client: connection.address, authenticated, recipient });
                connection.asked = host.now();
                if self.unanswered < UNANSWERED_MAX && self.lookup.send(host, &ToLookup { id, ask }) {
                    self.unanswered += 1;
                } else {
                    self.answer(host, connection, ticket, Answer::Refused(refusal::lookup_failure()));
                }
            }
            // Nobody has anything to say to these.
            Question::Client
            | Question::Helo(_)
            | Question::Mail { .. }
            | Question::Data
            | Question::Vrfy(_)
            | Question::Expn(_)
            | Question::Etrn(_)
            | Question::Xclient(_)
            | Question::Xforward(_) => self.answer(host, connection, ticket, Answer::Accepted),
        }
    }

    /// Tells the session what it asked.
    pub(crate) fn answer(
        &mut self,
        host: &mut Host,
        connection: &mut Connection,
        ticket: u16,
        answer: Answer,
    ) {
        self.tell(host, connection, |session, out| session.answer(ticket, answer, out));
    }
}
