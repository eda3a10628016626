//! The shell: jobs in, connections out, results back.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use mio::Token;
use postern_address::Domain;
use postern_config::Delivery;
use postern_daemon::{Handles, Host, Port};
use postern_event::Level;
use postern_ipc::queue_agent::{Destination, FromAgent, Job, Outcome, ToAgent};
use postern_ipc::resolve::{Answer, DnsError, Query, Question, Records};
use postern_ipc::supervise::Handle;
use postern_ipc::{Peer, RequestId, Role};
use postern_smtp::client::{Client, Event, Protocol};
use postern_smtp::{EnhancedCode, Reply};

use crate::attempt::{Attempt, Clock};
use crate::connection::{Connection, Patience, Turn};
use crate::content::Source;
use crate::routing::{Candidate, Refusal, Route, Step};

/// Messages over one connection; then a new one, perhaps to another of the destination's servers.
const TRANSACTIONS_MAX: u32 = 100;

/// How long transactions may go on after the program was told to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// The resolver answers sooner, if only to say that it cannot.
const DNS_PATIENCE: Duration = Duration::from_secs(60);

/// Results in one frame: with replies of the greatest length it still fits.
const RESULTS_A_FRAME: usize = 20;

/// What an agent is told by the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which protocol it speaks.
    pub protocol: Protocol,
    /// Our name.
    pub hostname: Domain,
    /// Connections and timeouts.
    pub delivery: Delivery,
}

/// The state of the program.
#[derive(Debug)]
pub(crate) struct Agent {
    settings: Settings,
    queue: Port<FromAgent, ToAgent>,
    resolver: Port<Question, Answer>,
    /// By the queue-manager's number.
    attempts: HashMap<u64, Attempt>,
    connections: HashMap<Token, Connection>,
    idle: HashMap<Destination, Vec<Token>>,
    questions: HashMap<RequestId, (u64, Instant)>,
    last_question: RequestId,
    /// Connections that can go on at once.
    again: Vec<Token>,
    /// No deadline is before this.
    soonest: Option<Instant>,
    stopping: Option<Instant>,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    jobs: u64,
    connections: u64,
    reused: u64,
    delivered: u64,
    deferred: u64,
    failed: u64,
}

impl Agent {
    pub(crate) fn start(host: &mut Host, settings: Settings, handles: Handles) -> Self {
        let mut agent = Self {
            settings,
            queue: Port::new(host, Peer::only(Role::QueueManager)),
            resolver: Port::new(host, Peer::only(Role::Resolver)),
            attempts: HashMap::new(),
            connections: HashMap::new(),
            idle: HashMap::new(),
            questions: HashMap::new(),
            last_question: 0,
            again: Vec::new(),
            soonest: None,
            stopping: None,
            counts: Counts::default(),
        };
        for (handle, socket) in handles {
            match handle {
                Handle::Link(peer) => agent.linked(host, peer, socket),
                other => host.note(Level::Warning, &format!("a handle that is of no use here: {other:?}")),
            }
        }
        agent
    }

    pub(crate) fn linked(&mut self, host: &mut Host, peer: Peer, socket: OwnedFd) {
        match peer.role {
            Role::QueueManager => {
                self.queue.connect(host, socket);
                self.notice_losses(host);
                let jobs = self.settings.delivery.jobs;
                // Not said means lost at once: noticed at the end of this turn.
                let _ = self.queue.send(host, &FromAgent::Ready { jobs });
                self.listen_to_queue(host);
            }
            Role::Resolver => {
                self.resolver.connect(host, socket);
                self.notice_losses(host);
            }
            _ => host
                .note(Level::Warning, &format!("a link to {peer}, with whom there is nothing to talk about")),
        }
    }

    pub(crate) fn ready(&mut self, host: &mut Host, token: Token) {
        if token == self.queue.token() {
            self.queue.flush(host);
            self.listen_to_queue(host);
        } else if token == self.resolver.token() {
            self.resolver.flush(host);
            while let Some((answer, _)) = self.resolver.receive(host) {
                self.answered(host, answer.id, answer.result);
            }
        } else if let Some(connection) = self.connections.get_mut(&token) {
            connection.woken();
            self.drive(host, token);
        }
        self.notice_losses(host);
    }

    pub(crate) fn turn(&mut self, host: &mut Host) -> Option<Instant> {
        self.notice_losses(host);
        for token in std::mem::take(&mut self.again) {
            self.drive(host, token);
        }
        if self.soonest.is_some_and(|at| at <= host.now()) {
            self.expire(host);
        }
        if self.stopping.is_some() && self.attempts.is_empty() && self.connections.is_empty() {
            host.finish();
        }
        if self.again.is_empty() { self.soonest } else { Some(host.now()) }
    }

    pub(crate) fn reload(&mut self, host: &mut Host, settings: Settings) {
        if settings.delivery.jobs != self.settings.delivery.jobs {
            host.note(
                Level::Info,
                "[delivery] jobs: the new number holds after the next start of this program",
            );
        }
        self.settings = settings;
    }

    pub(crate) fn stop(&mut self, host: &mut Host) {
        let until = host.now() + STOP_PATIENCE;
        self.stopping = Some(until);
        self.wake_at(until);
        let waiting: Vec<u64> = self
            .attempts
            .values()
            .filter(|attempt| !attempt.in_transaction)
            .map(|attempt| attempt.job)
            .collect();
        waiting.into_iter().for_each(|job| self.give_up(host, job, &shutting_down()));
        let idle: Vec<Token> = self.idle.drain().flat_map(|(_, tokens)| tokens).collect();
        idle.into_iter().for_each(|token| self.quit(host, token));
    }

    pub(crate) fn counters(&self) -> Vec<(String, u64)> {
        let counts = &self.counts;
        [
            ("jobs", counts.jobs),
            ("jobs_now", self.attempts.len() as u64),
            ("connections", counts.connections),
            ("connections_now", self.connections.len() as u64),
            ("connections_reused", counts.reused),
            ("delivered", counts.delivered),
            ("deferred", counts.deferred),
            ("failed", counts.failed),
        ]
        .map(|(name, count)| (name.to_owned(), count))
        .to_vec()
    }

    // Jobs.

    fn listen_to_queue(&mut self, host: &mut Host) {
        while let Some((message, descriptors)) = self.queue.receive(host) {
            match message {
                ToAgent::Job(job) => self.begin(host, job, descriptors.into_iter().next()),
                // Nothing is remembered from one job to the next.
                ToAgent::Flush => {}
            }
        }
    }

    fn begin(&mut self, host: &mut Host, mut job: Job, descriptor: Option<OwnedFd>) {
        let number = job.job;
        if self.attempts.contains_key(&number) {
            return host.note(Level::Error, &format!("queue-manager used the number of job {number} twice"));
        }
        self.counts.jobs += 1;
        let seed = job.queue_id.as_u64() ^ host.wall().0.rotate_left(32) ^ number;
        let us = &self.settings.hostname;
        let route = match (&job.destination, self.settings.protocol) {
            (Destination::Smtp(nexthop), Protocol::Smtp) => Ok(Route::smtp(nexthop, us, seed)),
            (Destination::Lmtp(server), Protocol::Lmtp) => Ok(Route::lmtp(server, us, seed)),
            (other, _) => Err(format!("{other:?} is no destination of this agent")),
        };
        let content =
            std::mem::replace(&mut job.content, postern_ipc::queue_agent::Content::Inline(Vec::new()));
        let source = Source::new(content, descriptor).map_err(str::to_owned);
        let clock = Clock::new(&job, host.wall(), host.now());
        let (route, source) = match (route, source) {
            (Ok(route), Ok(source)) => (route, source),
            (Err(why), _) | (_, Err(why)) => {
                // A job that makes no sense is answered all the same: its grant must come back.
                let nowhere = postern_config::Nexthop::Mx(us.clone());
                let content = postern_ipc::queue_agent::Content::Inline(Vec::new());
                let Ok(source) = Source::new(content, None) else { return };
                self.attempts
                    .insert(number, Attempt::new(job, clock, Route::smtp(&nowhere, us, seed), source));
                return self.give_up(host, number, &local_fault(&why));
            }
        };
        let destination = job.destination.clone();
        self.attempts.insert(number, Attempt::new(job, clock, route, source));
        if self.stopping.is_some() {
            return self.give_up(host, number, &shutting_down());
        }
        match self.take_idle(&destination) {
            Some(token) => self.reuse(host, token, number),
            None => self.advance(host, number),
        }
    }

    /// Follows the route of a job to its next question or connection, or to its end.
    fn advance(&mut self, host: &mut Host, job: u64) {
        if self.stopping.is_some() {
            return self.give_up(host, job, &shutting_down());
        }
        loop {
            let Some(attempt) = self.attempts.get_mut(&job) else { return };
            let query = match attempt.route.step() {
                Step::AskMx(domain) => Query::Mx(domain),
                Step::AskAddresses(domain) => Query::Addresses(domain),
                Step::GiveUp(refusal) => return self.give_up(host, job, &refusal),
                Step::Connect(candidate) => match self.connect(host, job, candidate) {
                    Ok(()) => return,
                    Err(()) => continue,
                },
            };
            if self.ask(host, job, query) {
                return;
            }
            let unreachable = DnsError::Temporary("the resolver does not run".into());
            if let Some(attempt) = self.attempts.get_mut(&job) {
                attempt.route.answered(Err(unreachable));
            }
        }
    }

    fn give_up(&mut self, host: &mut Host, job: u64, refusal: &Refusal) {
        let now = host.now();
        if let Some(attempt) = self.attempts.get_mut(&job) {
            attempt.give_up(refusal, now, &mut |event| host.emit(event));
        }
        self.report(host, job);
    }

    /// Sends the results there are, and `Done` when they are the last.
    fn report(&mut self, host: &mut Host, job: u64) {
        let Some(attempt) = self.attempts.get_mut(&job) else { return };
        let mut results = attempt.take_results();
        let done = attempt.is_done();
        // A link that is lost meanwhile is noticed, and every job dropped, at the end of the turn.
        while !results.is_empty() {
            let rest = results.split_off(results.len().min(RESULTS_A_FRAME));
            results.iter().for_each(|(_, outcome)| self.counts.add(outcome));
            let _ = self.queue.send(host, &FromAgent::Results { job, results });
            results = rest;
        }
        if done {
            self.attempts.remove(&job);
            let _ = self.queue.send(host, &FromAgent::Done { job });
            self.questions.retain(|_, (asker, _)| *asker != job);
            self.release(host, job);
        }
    }

    /// A job ended while its connection was on the way: nobody needs that any more.
    fn release(&mut self, host: &mut Host, job: u64) {
        let held: Vec<Token> =
            self.connections.iter().filter(|(_, c)| c.job == Some(job)).map(|(token, _)| *token).collect();
        for token in held {
            self.close(host, token);
        }
    }

    // The DNS.

    fn ask(&mut self, host: &mut Host, job: u64, query: Query) -> bool {
        self.last_question += 1;
        let id = self.last_question;
        if !self.resolver.send(host, &Question { id, query }) {
            return false;
        }
        let until = host.now() + DNS_PATIENCE;
        self.questions.insert(id, (job, until));
        self.wake_at(until);
        true
    }

    fn answered(&mut self, host: &mut Host, id: RequestId, answer: Result<Records, DnsError>) {
        let Some((job, _)) = self.questions.remove(&id) else { return };
        if let Some(attempt) = self.attempts.get_mut(&job) {
            attempt.route.answered(answer);
            self.advance(host, job);
        }
    }

    // Connections.

    fn connect(&mut self, host: &mut Host, job: u64, candidate: Candidate) -> Result<(), ()> {
        let Some(attempt) = self.attempts.get_mut(&job) else { return Ok(()) };
        let token = host.token();
        let client = Client::new(self.settings.protocol, self.settings.hostname.clone());
        let deadline = host.now() + self.settings.delivery.connect_timeout;
        let destination = attempt.destination.clone();
        let registry = host.registry();
        match Connection::open(candidate, destination, job, client, registry, token, deadline) {
            Ok(connection) => {
                self.counts.connections += 1;
                self.connections.insert(token, connection);
                self.wake_at(deadline);
                Ok(())
            }
            Err((candidate, why)) => {
                attempt.route.failed(&candidate, not_connected(&candidate, &why), false);
                Err(())
            }
        }
    }

    fn take_idle(&mut self, destination: &Destination) -> Option<Token> {
        let tokens = self.idle.get_mut(destination)?;
        let token = tokens.pop();
        if tokens.is_empty() {
            self.idle.remove(destination);
        }
        token
    }

    fn reuse(&mut self, host: &mut Host, token: Token, job: u64) {
        let Some(connection) = self.connections.get_mut(&token) else { return self.advance(host, job) };
        self.counts.reused += 1;
        connection.job = Some(job);
        self.transact(host, token);
        self.drive(host, token);
    }

    /// Begins the transaction of a connection's job.
    fn transact(&mut self, host: &mut Host, token: Token) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let Some(attempt) = connection.job.and_then(|job| self.attempts.get_mut(&job)) else { return };
        connection.transactions += 1;
        if connection.client.begin(attempt.transaction(host.now())).is_err() {
            // It was idle, or said Ready: cannot be. The job goes another way.
            let job = attempt.job;
            attempt.disconnected();
            connection.job = None;
            self.close(host, token);
            self.give_up(host, job, &local_fault("a connection took no transaction"));
        }
    }

    /// Moves a connection on as far as it goes for now.
    fn drive(&mut self, host: &mut Host, token: Token) {
        let patience = self.patience();
        let mut moved = 0;
        loop {
            let Some(connection) = self.connections.get_mut(&token) else { return };
            match connection.finish_connecting(host.now(), &patience) {
                Ok(true) => {}
                Ok(false) => return,
                Err(why) => return self.not_reached(host, token, &why),
            }
            let attempt = connection.job.and_then(|job| self.attempts.get_mut(&job));
            let turn = connection.turn(attempt.map(|attempt| &mut attempt.source), &mut moved);
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
                _ if busy && moved < crate::connection::TURN => {}
                Turn::Blocked => return,
                Turn::More => return self.again.push(token),
            }
        }
    }

    /// What came of a connection's input.
    fn events(&mut self, host: &mut Host, token: Token) {
        let now = host.now();
        loop {
            let Some(connection) = self.connections.get_mut(&token) else { return };
            let Some(event) = connection.client.event() else { return };
            let job = connection.job;
            let attempt = job.and_then(|job| self.attempts.get_mut(&job));
            match (event, attempt) {
                (Event::Ready, Some(_)) => self.transact(host, token),
                (Event::Ready, None) => self.quit(host, token),
                (Event::Unusable { reply, remote }, attempt) => {
                    connection.job = None;
                    let Some(attempt) = attempt else { continue };
                    attempt.disconnected();
                    // A kept connection that has gone stale says nothing about the server.
                    if connection.transactions <= 1 {
                        attempt.route.failed(&connection.candidate, reply, remote);
                    }
                    let job = attempt.job;
                    self.report(host, job);
                    self.advance(host, job);
                }
                (Event::Recipient { index, outcome }, Some(attempt)) => {
                    attempt.told(index, outcome, &connection.relay, now, &mut |event| host.emit(event));
                }
                (Event::Finished, _) => {
                    connection.job = None;
                    if let Some(job) = job {
                        self.report(host, job);
                    }
                    self.keep(host, token);
                }
                (Event::Recipient { .. }, None) => {}
            }
        }
    }

    /// A connection has nothing to do: keep it for a while, or let it go.
    fn keep(&mut self, host: &mut Host, token: Token) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        if !connection.client.is_idle() {
            return;
        }
        let idle: usize = self.idle.values().map(Vec::len).sum();
        let room = idle < self.settings.delivery.jobs as usize;
        if connection.transactions >= TRANSACTIONS_MAX || self.stopping.is_some() || !room {
            return self.quit(host, token);
        }
        self.idle.entry(connection.destination.clone()).or_default().push(token);
    }

    fn quit(&mut self, host: &mut Host, token: Token) {
        self.forget_idle(token);
        let Some(connection) = self.connections.get_mut(&token) else { return };
        connection.client.quit();
        if !connection.client.is_quitting() {
            return self.close(host, token);
        }
        self.again.push(token);
    }

    /// A connection could not be made.
    fn not_reached(&mut self, host: &mut Host, token: Token, why: &str) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let (job, candidate) = (connection.job.take(), connection.candidate.clone());
        self.close(host, token);
        let Some(job) = job else { return };
        if let Some(attempt) = self.attempts.get_mut(&job) {
            attempt.disconnected();
            attempt.route.failed(&candidate, not_connected(&candidate, why), false);
            self.advance(host, job);
        }
    }

    fn close(&mut self, host: &mut Host, token: Token) {
        self.forget_idle(token);
        if let Some(mut connection) = self.connections.remove(&token) {
            connection.unwatch(host.registry());
        }
    }

    fn forget_idle(&mut self, token: Token) {
        let Some(connection) = self.connections.get(&token) else { return };
        if let Some(tokens) = self.idle.get_mut(&connection.destination) {
            tokens.retain(|idle| *idle != token);
            if tokens.is_empty() {
                self.idle.remove(&connection.destination);
            }
        }
    }

    // Time and losses.

    fn patience(&self) -> Patience {
        let delivery = &self.settings.delivery;
        Patience { reply: delivery.reply_timeout, idle: delivery.idle_timeout }
    }

    fn wake_at(&mut self, at: Instant) {
        self.soonest = Some(self.soonest.map_or(at, |soonest| soonest.min(at)));
    }

    /// Ends what has waited too long.
    fn expire(&mut self, host: &mut Host) {
        let now = host.now();
        let late: Vec<Token> =
            self.connections.iter().filter(|(_, c)| c.deadline <= now).map(|(token, _)| *token).collect();
        late.into_iter().for_each(|token| self.too_late(host, token));
        let unanswered: Vec<RequestId> =
            self.questions.iter().filter(|(_, (_, until))| *until <= now).map(|(id, _)| *id).collect();
        for id in unanswered {
            self.answered(host, id, Err(DnsError::Temporary("no answer from the resolver".into())));
        }
        if self.stopping.is_some_and(|until| until <= now) {
            let jobs: Vec<u64> = self.attempts.keys().copied().collect();
            jobs.into_iter().for_each(|job| self.give_up(host, job, &shutting_down()));
            let all: Vec<Token> = self.connections.keys().copied().collect();
            all.into_iter().for_each(|token| self.close(host, token));
        }
        let deadlines = self.connections.values().map(|connection| connection.deadline);
        let questions = self.questions.values().map(|(_, until)| *until);
        self.soonest = deadlines.chain(questions).chain(self.stopping).min();
    }

    fn too_late(&mut self, host: &mut Host, token: Token) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        if connection.is_connecting() {
            return self.not_reached(host, token, "Connection timed out");
        }
        if connection.client.is_idle() {
            self.quit(host, token);
            return self.drive(host, token);
        }
        connection.client.timed_out();
        self.events(host, token);
        self.close(host, token);
    }

    fn notice_losses(&mut self, host: &mut Host) {
        if self.queue.take_lost() {
            // The queue-manager that comes next queues these again: nobody waits for our results.
            self.attempts.clear();
            self.questions.clear();
            let busy: Vec<Token> =
                self.connections.iter().filter(|(_, c)| c.job.is_some()).map(|(token, _)| *token).collect();
            busy.into_iter().for_each(|token| self.close(host, token));
        }
        if self.resolver.take_lost() {
            for id in self.questions.keys().copied().collect::<Vec<_>>() {
                self.answered(host, id, Err(DnsError::Temporary("the resolver went away".into())));
            }
        }
    }
}

impl Counts {
    fn add(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Delivered(_) => self.delivered += 1,
            Outcome::Deferred(_) => self.deferred += 1,
            Outcome::Failed(_) => self.failed += 1,
        }
    }
}

fn not_connected(candidate: &Candidate, why: &str) -> Reply {
    Reply::new(451, EnhancedCode::new(4, 4, 1), format!("connect to {}: {why}", candidate.describe()))
}

fn shutting_down() -> Refusal {
    deferred(Reply::new(451, EnhancedCode::new(4, 3, 2), "this system is going down"))
}

fn local_fault(why: &str) -> Refusal {
    deferred(Reply::new(451, EnhancedCode::new(4, 3, 5), why))
}

fn deferred(reply: Reply) -> Refusal {
    Refusal { permanent: false, reply, remote: false, destination_down: false, relay: None }
}
