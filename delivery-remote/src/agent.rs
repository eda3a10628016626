//! The shell: jobs in, connections out, results back.

pub(crate) mod connections;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use mio::Token;
use mio::event::Event;
use postern_address::Domain;
use postern_config::Delivery;
use postern_daemon::{Handles, Host, Port};
use postern_event::Level;
use postern_ipc::queue_agent::{Destination, FromAgent, Job, Outcome, ToAgent};
use postern_ipc::resolve::{Answer, DnsError, Query, Question, Records};
use postern_ipc::supervise::Handle;
use postern_ipc::{Peer, RequestId, Role};
use postern_smtp::client::Protocol;
use postern_smtp::{EnhancedCode, Reply};

use crate::attempt::{Attempt, Clock};
use crate::connection::{Connection, PIECE, Patience};
use crate::content::Source;
use crate::lanes::Lanes;
use crate::routing::{Candidate, Endpoint, Refusal, Route, Step};

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
    /// For what is read, from whichever of them.
    buffer: Box<[u8]>,
    lanes: Lanes,
    questions: HashMap<RequestId, (u64, Instant)>,
    last_question: RequestId,
    /// Addresses that were not reached: until then they come last.
    shunned: HashMap<SocketAddr, Instant>,
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
            buffer: vec![0; PIECE].into(),
            lanes: Lanes::default(),
            questions: HashMap::new(),
            last_question: 0,
            shunned: HashMap::new(),
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

    pub(crate) fn ready(&mut self, host: &mut Host, token: Token, event: &Event) {
        if token == self.queue.token() {
            self.queue.flush(host);
            self.listen_to_queue(host);
        } else if token == self.resolver.token() {
            self.resolver.flush(host);
            while let Some((answer, _)) = self.resolver.receive(host) {
                self.answered(host, answer.id, answer.result);
            }
        } else if let Some(connection) = self.connections.get_mut(&token) {
            connection.woken(event);
            self.drive(host, token);
        }
        self.notice_losses(host);
    }

    pub(crate) fn turn(&mut self, host: &mut Host) -> Option<Instant> {
        self.notice_losses(host);
        for token in std::mem::take(&mut self.again) {
            self.drive(host, token);
        }
        for destination in self.lanes.take_freed() {
            self.reconnect(host, &destination);
        }
        if self.soonest.is_some_and(|at| at <= host.now()) {
            self.expire(host);
        }
        if self.stopping.is_some() && self.attempts.is_empty() && self.connections.is_empty() {
            host.finish();
        }
        if self.again.is_empty() { self.soonest } else { Some(host.now()) }
    }

    pub(crate) fn flush(&mut self, host: &mut Host) {
        self.queue.flush(host);
        self.resolver.flush(host);
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
        self.lanes.nobody_waits();
        self.lanes.all_idle().into_iter().for_each(|token| self.quit(host, token));
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
                ToAgent::Flush => self.shunned.clear(),
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
        if self.attempts.get(&number).is_some_and(Attempt::is_done) {
            return self.report(host, number);
        }
        match self.lanes.take_idle(&destination) {
            Some(token) => self.reuse(host, token, number),
            None if self.has_room(&destination) => self.advance(host, number),
            None => {
                self.lanes.wait(&destination, number);
                self.send_behind(host, &destination);
            }
        }
    }

    /// Another connection may be made to a destination.
    fn has_room(&self, destination: &Destination) -> bool {
        self.lanes.has_room(destination, self.settings.delivery.connections)
    }

    /// The job that has waited longest for a connection to a destination, of those that are still to be done.
    fn next_waiting(&mut self, destination: &Destination) -> Option<u64> {
        std::iter::from_fn(|| self.lanes.next_waiting(destination))
            .find(|job| self.attempts.contains_key(job))
    }

    /// Connections to a destination were closed: jobs that wait make their own.
    fn reconnect(&mut self, host: &mut Host, destination: &Destination) {
        while self.has_room(destination)
            && let Some(job) = self.next_waiting(destination)
        {
            self.advance(host, job);
        }
        self.lanes.tidy(destination);
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
                Step::Connect(candidate)
                    if !self.lanes.has_room(&attempt.destination, self.settings.delivery.connections) =>
                {
                    attempt.route.put_back(candidate);
                    return match self.lanes.take_idle(&attempt.destination) {
                        Some(token) => self.reuse(host, token, job),
                        None => self.lanes.wait(&attempt.destination, job),
                    };
                }
                Step::Connect(candidate) => match shun(&self.shunned, attempt, candidate, host.now()) {
                    Some(candidate) => match self.connect(host, job, candidate) {
                        true => return,
                        false => continue,
                    },
                    None => continue,
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
            let (held, asked) = (attempt.connection, attempt.question);
            self.attempts.remove(&job);
            let _ = self.queue.send(host, &FromAgent::Done { job });
            asked.and_then(|question| self.questions.remove(&question));
            held.into_iter().for_each(|token| self.release(host, job, token));
        }
    }

    /// A job ended while its connection was on the way: nobody needs that any more.
    fn release(&mut self, host: &mut Host, job: u64, token: Token) {
        let holds = |connection: &Connection| connection.jobs.iter().any(|given| given.job == job);
        if self.connections.get(&token).is_some_and(holds) {
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
        if let Some(attempt) = self.attempts.get_mut(&job) {
            attempt.question = Some(id);
        }
        self.wake_at(until);
        true
    }

    fn answered(&mut self, host: &mut Host, id: RequestId, answer: Result<Records, DnsError>) {
        let Some((job, _)) = self.questions.remove(&id) else { return };
        if let Some(attempt) = self.attempts.get_mut(&job) {
            attempt.question = None;
            attempt.route.answered(answer);
            self.advance(host, job);
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
            self.lanes.nobody_waits();
            let busy: Vec<Token> = self
                .connections
                .iter()
                .filter(|(_, c)| !c.jobs.is_empty())
                .map(|(token, _)| *token)
                .collect();
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
            Outcome::Delivered(_) | Outcome::Relayed(_) | Outcome::Passed(_) => self.delivered += 1,
            Outcome::Deferred(_) => self.deferred += 1,
            Outcome::Failed(_) => self.failed += 1,
        }
    }
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

/// Puts a candidate that was not reached lately behind the others of its route.
fn shun(
    shunned: &HashMap<SocketAddr, Instant>,
    attempt: &mut Attempt,
    candidate: Candidate,
    now: Instant,
) -> Option<Candidate> {
    match &candidate.endpoint {
        Endpoint::Tcp(address) if shunned.get(address).is_some_and(|until| *until > now) => {
            attempt.route.postpone(candidate).err()
        }
        _ => Some(candidate),
    }
}
