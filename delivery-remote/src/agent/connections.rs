//! Connections: begun, driven, kept, closed.

use std::time::{Duration, Instant};

use mio::Token;
use postern_daemon::Host;
use postern_event::Level;
use postern_ipc::queue_agent::Destination;
use postern_smtp::client::{Client, Event, Transaction};
use postern_smtp::{EnhancedCode, Reply};

use super::{Agent, local_fault, shutting_down};
use crate::connection::{Connection, Given, NotOpened, TURN, Turn};
use crate::routing::{Candidate, Refusal};

/// Messages over one connection; then a new one, perhaps to another of the destination's servers.
const TRANSACTIONS_MAX: u32 = 100;

/// How long an address that was not reached comes last.
const SHUNNED_FOR: Duration = Duration::from_secs(60);

/// So many such addresses are remembered.
const SHUNNED_MAX: usize = 10_000;

/// A connection over which nothing was said for so long is not trusted with a whole message: the server may have closed
/// it, and of such a message nobody would know whether it was taken; of one whose envelope is not answered it is clear.
pub(crate) const RESTED: Duration = Duration::from_secs(1);

impl Agent {
    /// Begins to connect for a job; false when another server is to be tried.
    pub(super) fn connect(&mut self, host: &mut Host, job: u64, candidate: Candidate) -> bool {
        let Some(attempt) = self.attempts.get_mut(&job) else { return true };
        // One that had a connection is not given the next one that may be as stale: there could be hundreds.
        let fresh = attempt.connection.is_none();
        let idle = candidate.server().filter(|_| fresh).and_then(|server| self.lanes.idle_at(server));
        if let Some(token) = idle.filter(|token| self.connections.contains_key(token)) {
            return self.change_over(host, token, job, candidate);
        }
        let token = host.token();
        let settings = &self.settings;
        let client = Client::new(settings.protocol, settings.hostname.clone());
        let client = client.without(&settings.delivery.without);
        let deadline = host.now() + self.settings.delivery.connect_timeout;
        let destination = attempt.destination.clone();
        let registry = host.registry();
        match Connection::open(candidate, destination, job, client, registry, token, deadline) {
            Ok(connection) => {
                attempt.connection = Some(token);
                self.counts.connections += 1;
                self.lanes.opened(&connection.destination);
                self.connections.insert(token, connection);
                self.wake_at(deadline);
                true
            }
            Err(NotOpened::Ours(why)) => {
                host.note(Level::Error, &format!("cannot make a connection: {why}"));
                self.give_up(host, job, &local_fault(&why));
                true
            }
            Err(NotOpened::Refused(candidate, why)) => {
                attempt.route.failed(&candidate, not_connected(&candidate, &why), false);
                self.not_answering(host.now(), &candidate);
                false
            }
        }
    }

    /// An idle connection changes over to the destination of a job, of which its server is an exchanger as well; false
    /// when another server is to be tried.
    fn change_over(&mut self, host: &mut Host, token: Token, job: u64, candidate: Candidate) -> bool {
        let Some(connection) = self.connections.get_mut(&token) else { return true };
        let Some(attempt) = self.attempts.get_mut(&job) else { return true };
        if attempt.route.is_ourselves(&candidate, connection.client.server_name()) {
            return false;
        }
        self.lanes.closed(&connection.destination, token);
        self.lanes.opened(&attempt.destination);
        connection.belongs_to(attempt.destination.clone(), candidate.clone());
        // It may have gone stale: then the server is asked once more.
        attempt.route.put_back(candidate);
        self.reuse(host, token, job);
        true
    }

    pub(super) fn reuse(&mut self, host: &mut Host, token: Token, job: u64) {
        if !self.connections.contains_key(&token) {
            return self.advance(host, job);
        }
        self.give(host, token, job);
        self.drive(host, token);
    }

    /// Gives an idle connection a job. Whoever drives it moves it on.
    fn give(&mut self, host: &mut Host, token: Token, job: u64) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        self.counts.reused += 1;
        connection.jobs.push_back(Given { job, ahead: false, made: false, whole: false });
        self.transact(host, token);
    }

    /// Begins the transaction of a connection's job.
    fn transact(&mut self, host: &mut Host, token: Token) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let Some(attempt) = connection.last().and_then(|job| self.attempts.get_mut(&job)) else { return };
        attempt.connection = Some(token);
        connection.transactions += 1;
        let transaction = attempt.transaction(&connection.client.extensions(), host.wall(), host.now());
        let one_by_one = self.lanes.is_one_by_one(&connection.destination, host.now());
        let since = connection.resting_since.take();
        let rested = since.is_some_and(|since| host.now().saturating_duration_since(since) >= RESTED);
        let careful = one_by_one || rested;
        let transaction = match transaction {
            Ok(transaction) => Transaction { whole: transaction.whole && !careful, ..transaction },
            Err(reply) => return self.unsuitable(host, token, reply),
        };
        if let Some(given) = connection.jobs.back_mut() {
            given.whole = transaction.whole && connection.client.takes_whole();
        }
        if connection.client.begin(transaction).is_err() {
            // It was idle or said Ready a moment ago. Nothing was sent: the job goes another way.
            let reply = Reply::new(451, EnhancedCode::new(4, 4, 2), "lost connection before a transaction");
            attempt.disconnected();
            attempt.route.failed(&connection.candidate, reply, false);
            let given = connection.drop_first();
            self.close(host, token);
            given.into_iter().for_each(|given| self.advance(host, given.job));
        }
    }

    /// The message of a connection's job cannot go to its server. Another would be asked in vain: who offers less
    /// than a message needs is found at every attempt (RFC 6531 §3.5 and RFC 3030 §4 have it returned).
    fn unsuitable(&mut self, host: &mut Host, token: Token, reply: Reply) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let refusal = unsuitable(connection, reply);
        let given = connection.drop_first();
        given.into_iter().for_each(|given| self.give_up(host, given.job, &refusal));
        self.keep(host, token);
    }

    /// Moves a connection on as far as it goes for now.
    pub(super) fn drive(&mut self, host: &mut Host, token: Token) {
        let patience = self.patience();
        let mut moved = 0;
        loop {
            let Some(connection) = self.connections.get_mut(&token) else { return };
            match connection.finish_connecting(host.now(), &patience) {
                Ok(true) => {}
                Ok(false) => return,
                Err(why) => return self.not_reached(host, token, &why),
            }
            let attempt = connection.last().and_then(|job| self.attempts.get_mut(&job));
            let source = attempt.map(|attempt| &mut attempt.source);
            let turn = connection.turn(source, &mut self.buffer, &mut moved);
            let turn = turn.unwrap_or_else(|error| {
                host.note(Level::Error, &format!("cannot read a message's content: {error}"));
                let reply = Reply::new(451, EnhancedCode::new(4, 3, 0), "cannot read the message's content");
                connection.client.abandon(reply);
                Turn::Blocked
            });
            let busy = connection.client.has_event();
            self.events(host, token);
            let Some(connection) = self.connections.get_mut(&token) else { return };
            if connection.client.is_closed() {
                return self.close(host, token);
            }
            connection.renew_deadline(host.now(), &patience);
            let deadline = connection.deadline;
            self.wake_at(deadline);
            match turn {
                Turn::ContentRead => self.end_content(host, token),
                _ if busy && moved < TURN => {}
                Turn::Blocked => return,
                Turn::More => return self.again.push(token),
            }
        }
    }

    /// Ends the content of a connection's last job. The envelope of a job that waits leaves with it.
    fn end_content(&mut self, host: &mut Host, token: Token) {
        if let Some(connection) = self.connections.get_mut(&token) {
            connection.client.content_end();
            self.fill(host, token);
        }
    }

    /// A job waits for a destination: if a server takes whole messages, it need not have answered those before.
    pub(super) fn send_behind(&mut self, host: &mut Host, destination: &Destination) {
        while let Some(token) = self.lanes.take_roomy(destination) {
            if self.connections.get(&token).is_some_and(|connection| connection.client.can_follow()) {
                self.fill(host, token);
                return self.drive(host, token);
            }
        }
    }

    /// Gives a busy connection that can take one more what waits.
    fn fill(&mut self, host: &mut Host, token: Token) {
        let Some(connection) = self.connections.get(&token) else { return };
        let last = connection.transactions >= TRANSACTIONS_MAX || self.stopping.is_some();
        let one_by_one = self.lanes.is_one_by_one(&connection.destination, host.now());
        if last || one_by_one || !connection.client.can_follow() {
            return;
        }
        let takes_whole = connection.client.takes_whole();
        let destination = connection.destination.clone();
        match self.next_waiting(&destination) {
            Some(job) => self.follow(host, token, job),
            None if takes_whole => self.lanes.can_take_one_more(&destination, token),
            None => {}
        }
    }

    fn follow(&mut self, host: &mut Host, token: Token, job: u64) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let Some(attempt) = self.attempts.get_mut(&job) else { return };
        if attempt.plain {
            return self.lanes.wait_first(&connection.destination, job);
        }
        let transaction = attempt.transaction(&connection.client.extensions(), host.wall(), host.now());
        match transaction.map(|transaction| connection.client.follow(transaction)) {
            Ok(Ok(())) => {
                attempt.connection = Some(token);
                connection.jobs.push_back(Given { job, ahead: true, made: false, whole: false });
                connection.transactions += 1;
                self.counts.reused += 1;
            }
            Ok(Err(_)) => {
                attempt.disconnected();
                self.lanes.wait_first(&connection.destination, job);
            }
            Err(reply) => {
                let refusal = unsuitable(connection, reply);
                self.give_up(host, job, &refusal);
            }
        }
    }

    /// What came of a connection's input.
    pub(super) fn events(&mut self, host: &mut Host, token: Token) {
        let now = host.now();
        loop {
            let Some(connection) = self.connections.get_mut(&token) else { return };
            let Some(event) = connection.client.event() else { return };
            let attempt = connection.first().and_then(|job| self.attempts.get_mut(&job));
            match (event, attempt) {
                (Event::Ready, Some(attempt)) => {
                    let name = connection.client.server_name();
                    if attempt.route.is_ourselves(&connection.candidate, name) {
                        let job = attempt.job;
                        connection.drop_first();
                        self.quit(host, token);
                        self.advance(host, job);
                    } else {
                        self.transact(host, token);
                    }
                }
                (Event::Ready, None) => self.quit(host, token),
                (Event::Unusable { reply, remote }, attempt) => {
                    let given = connection.drop_first();
                    if !remote && given.is_some_and(|given| given.left_ahead()) {
                        self.lanes.set_one_by_one(&connection.destination, now);
                    }
                    let Some(attempt) = attempt else { continue };
                    attempt.disconnected();
                    // A kept connection that has gone stale says nothing about the server.
                    if connection.ended == 0 {
                        attempt.route.failed(&connection.candidate, reply, remote);
                    }
                    let job = attempt.job;
                    self.report(host, job);
                    self.advance(host, job);
                }
                (Event::Recipient { index, outcome }, Some(attempt)) => {
                    attempt.told(index, outcome, &connection.relay, now, &mut |event| host.emit(event));
                }
                (Event::Again { confused }, _) => self.once_more(host, token, confused),
                (Event::Finished, _) => self.finished(host, token),
                (Event::Recipient { .. }, None) => {}
            }
        }
    }

    /// A connection's first job is to be tried again, in the plain way.
    fn once_more(&mut self, host: &mut Host, token: Token, confused: bool) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        connection.ended += 1;
        let (given, destination) = (connection.drop_first(), connection.destination.clone());
        let candidate = given.filter(|given| given.made).map(|_| connection.candidate.clone());
        if confused {
            self.lanes.set_one_by_one(&destination, host.now());
        }
        if let Some(attempt) = given.and_then(|given| self.attempts.get_mut(&given.job)) {
            let job = attempt.job;
            attempt.disconnected();
            attempt.plain = true;
            candidate.into_iter().for_each(|candidate| attempt.route.put_back(candidate));
            self.report(host, job);
            match self.stopping {
                Some(_) => self.give_up(host, job, &shutting_down()),
                None => self.lanes.wait_first(&destination, job),
            }
        }
        self.keep(host, token);
    }

    /// A connection's first job was told of.
    fn finished(&mut self, host: &mut Host, token: Token) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        connection.ended += 1;
        let given = connection.drop_first();
        let takes_whole = connection.client.takes_whole();
        if connection.client.is_closed() && given.is_some_and(|given| given.left_ahead()) {
            // It broke, and perhaps by how it was sent: the next attempt must not fail for that again.
            self.lanes.set_one_by_one(&connection.destination, host.now());
        }
        given.into_iter().for_each(|given| self.report(host, given.job));
        // Not if there is a next one, even if all was said of it already.
        self.keep(host, token);
        if takes_whole {
            self.fill(host, token);
        }
    }

    /// A connection that has nothing to do is given what waits, or kept for a while, or let go.
    pub(super) fn keep(&mut self, host: &mut Host, token: Token) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        if !connection.client.is_idle() {
            return;
        }
        let room = self.lanes.idle() < self.settings.delivery.jobs as usize;
        if connection.transactions >= TRANSACTIONS_MAX || self.stopping.is_some() || !room {
            return self.quit(host, token);
        }
        let destination = connection.destination.clone();
        match self.next_waiting(&destination) {
            Some(job) => self.give(host, token, job),
            None => self.rest(host, token),
        }
    }

    /// Nothing waits for a connection.
    fn rest(&mut self, host: &Host, token: Token) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        connection.resting_since = Some(host.now());
        self.lanes.rest(&connection.destination, token, connection.candidate.server());
    }

    pub(super) fn quit(&mut self, host: &mut Host, token: Token) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        self.lanes.forget_idle(&connection.destination, token);
        connection.client.quit();
        if !connection.client.is_quitting() {
            return self.close(host, token);
        }
        self.again.push(token);
    }

    /// A connection could not be made.
    pub(super) fn not_reached(&mut self, host: &mut Host, token: Token, why: &str) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let (given, candidate) = (connection.drop_first(), connection.candidate.clone());
        self.close(host, token);
        self.not_answering(host.now(), &candidate);
        let Some(Given { job, .. }) = given else { return };
        if let Some(attempt) = self.attempts.get_mut(&job) {
            attempt.disconnected();
            attempt.route.failed(&candidate, not_connected(&candidate, why), false);
            self.advance(host, job);
        }
    }

    /// Remembers an address that was not reached.
    pub(super) fn not_answering(&mut self, now: Instant, candidate: &Candidate) {
        let Some(address) = candidate.server() else { return };
        if self.shunned.len() >= SHUNNED_MAX {
            self.shunned.retain(|_, until| *until > now);
        }
        if self.shunned.len() < SHUNNED_MAX {
            self.shunned.insert(address, now + SHUNNED_FOR);
        }
    }

    pub(super) fn close(&mut self, host: &mut Host, token: Token) {
        if let Some(mut connection) = self.connections.remove(&token) {
            connection.unwatch(host.registry());
            self.lanes.closed(&connection.destination, token);
        }
    }
}

/// A message cannot go to a connection's server.
fn unsuitable(connection: &Connection, reply: Reply) -> Refusal {
    Refusal {
        permanent: !reply.is_transient(),
        reply,
        remote: false,
        destination_down: false,
        relay: Some(connection.relay.clone()),
    }
}

fn not_connected(candidate: &Candidate, why: &str) -> Reply {
    Reply::new(451, EnhancedCode::new(4, 4, 1), format!("connect to {}: {why}", candidate.describe()))
}
