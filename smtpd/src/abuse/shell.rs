//! The guard at work: what verify is asked for a client, what its answers do to the session, and when replies
//! are written that wait.

use std::net::IpAddr;
use std::time::Duration;

use postern_address::{Mailbox, ReversePath};
use postern_config::{Limits, Service, SmtpdPart};
use postern_daemon::Host;
use postern_event::{Event, Level};
use postern_ipc::smtpd_verify::{Ask, ClientFacts, Exceeded, Greylisted, Lease, Measure, Question};
use postern_smtp::Reply;
use postern_smtp::server::{Answer, Asks, Identity, Phase};

use super::guard::{Guard, Rules, Step, Waiting};
use super::overload::Overload;
use super::{tarpit, words};
use crate::connection::{Connection, Key, State};
use crate::deadlines::Deadlines;
use crate::worker::{Timeouts, VERIFY_PATIENCE, Worker};

/// The ticket of the question for more errors: no command asks it.
const ERRORS: u16 = u16::MAX - 1;

/// The ticket of the question for a user's limits: no command asks it.
const USER: u16 = u16::MAX - 2;

/// What the worker needs for it.
#[derive(Debug)]
pub(crate) struct Abuse {
    limits: Limits,
    lists: bool,
    greylist: bool,
    greet_pause: Duration,
    tarpit: Duration,
    /// Greetings and replies that wait for the clock.
    pub(crate) pauses: Deadlines<Key>,
    /// Nearly too many sessions.
    pub(crate) overload: Overload,
}

impl Abuse {
    pub(crate) fn new(host: &Host, config: &SmtpdPart) -> Self {
        Self {
            limits: config.clients.clone(),
            lists: config.lists,
            greylist: config.greylist,
            greet_pause: config.limits.greet_pause,
            tarpit: config.limits.tarpit,
            pauses: Deadlines::new(host.now()),
            overload: Overload::default(),
        }
    }

    /// A new configuration, for new clients.
    pub(crate) fn reload(&mut self, config: &SmtpdPart) {
        self.limits = config.clients.clone();
        (self.lists, self.greylist) = (config.lists, config.greylist);
        (self.greet_pause, self.tarpit) = (config.limits.greet_pause, config.limits.tarpit);
    }

    /// How long a command and a piece of content may take now.
    pub(crate) fn times(&self, usual: &Timeouts) -> (Duration, Duration) {
        (self.overload.command(usual.command), self.overload.data(usual.data))
    }

    /// The guard for the client that takes another's place in a session (XCLIENT).
    pub(crate) fn guard_after(&self, before: &Guard, client: IpAddr) -> Guard {
        Guard::new(before.rules(), self.limits.is_exempt(client))
    }

    /// The guard for a client of a listener. Lists, greylisting and the pause are for mail from other hosts;
    /// users and programs of ours are counted alone.
    pub(crate) fn guard(&self, service: Service, client: IpAddr) -> Guard {
        let from_hosts = service == Service::Smtp;
        let rules = Rules {
            counted: self.limits.any(),
            listed: self.lists && from_hosts,
            list_score: self.limits.list_score,
            greylisted: self.greylist && from_hosts,
            greet_pause: if from_hosts { self.greet_pause } else { Duration::ZERO },
        };
        Guard::new(rules, self.limits.is_exempt(client))
    }
}

/// What a session is to ask for the guard's sake.
pub(crate) fn asks(config: &SmtpdPart, service: Service) -> Asks {
    let limits = &config.clients;
    let pause = service == Service::Smtp && !config.limits.greet_pause.is_zero();
    let messages = [limits.client, limits.user, limits.listener].iter().any(|limit| limit.messages > 0);
    Asks { client: limits.any() || pause, mail: messages, ..Asks::default() }
}

impl Worker {
    /// A client came: verify is told, and asked who it is. With nobody there it goes on unknown.
    pub(crate) fn introduce(&mut self, host: &mut Host, connection: &mut Connection, listener: u16) {
        let guard = &connection.guard;
        let (counted, listed) = (guard.is_counted(), guard.is_listed());
        let ask = Ask::Begin { client: connection.address, listener, counted, listed };
        // Whether it is known in time or at all changes one word of the trace, unless there are limits.
        if !self.ask_verify(host, connection, connection.changes, ask) {
            connection.guard.lose();
            self.client_known(host, connection, ClientFacts::UNKNOWN);
        }
    }

    /// A client is gone: verify counts it no more, and gets back what is left of its lease.
    pub(crate) fn give_back(&mut self, host: &mut Host, connection: &Connection) {
        if let Some(left) = connection.guard.to_give_back() {
            let session = connection.counted_as();
            // Unsaid, it is counted until this link ends.
            let _ = self.verify.send(host, &Question { id: session, ask: Ask::End { session, left } });
        }
    }

    /// The client is a user from now on, whose limits are for it too.
    pub(crate) fn guard_user(&mut self, host: &mut Host, connection: &mut Connection) {
        let Identity::User(user) = connection.session.identity() else { return };
        if !connection.guard.is_counted() {
            return;
        }
        let (session, user) = (connection.counted_as(), user.to_string());
        let left = connection.guard.start_anew();
        if !self.ask_verify(host, connection, USER, Ask::User { session, user, left }) {
            connection.guard.lose();
        }
    }

    /// May it be greeted?
    pub(crate) fn guard_greeting(&mut self, host: &mut Host, connection: &mut Connection, ticket: u16) {
        match connection.guard.greet(ticket, host.now()) {
            Step::Go => self.answer(host, connection, ticket, Answer::Accepted),
            Step::Wait | Step::AskMore => {
                let pause = connection.guard.pause();
                connection.asked = pause.unwrap_or(host.now());
                let until = pause.unwrap_or(host.now() + VERIFY_PATIENCE);
                self.abuse.pauses.enter(host.now(), until, connection.key);
            }
        }
    }

    /// May it send another message?
    pub(crate) fn guard_mail(&mut self, host: &mut Host, connection: &mut Connection, ticket: u16) {
        if self.lease(host, connection, ticket, Measure::Messages) {
            self.answer(host, connection, ticket, Answer::Accepted);
        }
    }

    /// May it name another recipient? Then lookup is asked.
    pub(crate) fn guard_recipient(
        &mut self,
        host: &mut Host,
        connection: &mut Connection,
        ticket: u16,
        recipient: Mailbox,
    ) {
        connection.guard.name(ticket, &recipient);
        if self.lease(host, connection, ticket, Measure::Recipients) {
            self.ask_recipient(host, connection, ticket, recipient);
        }
    }

    /// lookup takes a recipient. Who is on a list is refused here and not at the greeting, so that the log says
    /// from whom and to whom; who is not may have to come back.
    pub(crate) fn guard_accepted(&mut self, host: &mut Host, connection: &mut Connection, ticket: u16) {
        if matches!(connection.session.identity(), Identity::User(_)) {
            return self.answer(host, connection, ticket, Answer::Accepted);
        }
        if connection.guard.judge(ticket) == Step::Wait {
            connection.asked = host.now();
            return;
        }
        if let Some(facts) = connection.guard.denied() {
            let reply = words::listed(facts, connection.address);
            return self.answer(host, connection, ticket, Answer::Refused(reply));
        }
        let from = connection.session.transaction().map(|(path, _)| path.clone());
        let to = connection.guard.named(ticket);
        if let (Some(from), Some(to)) = (from, to)
            && connection.guard.greylist(ticket) == Step::AskMore
        {
            connection.asked = host.now();
            let ask = Ask::Greylist { client: connection.address, from, to };
            if self.ask_verify(host, connection, ticket, ask) {
                return;
            }
            connection.guard.take_waiting(|waiting| *waiting == Waiting::Greylist(ticket));
        }
        self.answer(host, connection, ticket, Answer::Accepted);
    }

    /// Something was refused for good.
    pub(crate) fn guard_error(&mut self, host: &mut Host, connection: &mut Connection, reply: &Reply) {
        let ended = connection.session.phase() == Phase::Closed || connection.state != State::Open;
        if ended || !reply.is_permanent() || connection.guard.is_exempt() {
            return;
        }
        let (errors, most) = (connection.session.errors(), connection.session.settings().errors);
        if self.abuse.overload.is_on() {
            if errors >= self.abuse.overload.errors(most) {
                return self.close(host, connection, words::too_many_errors(), "too many errors");
            }
        } else {
            let delay = tarpit::delay(errors, most, self.abuse.tarpit);
            if !delay.is_zero() {
                let until = host.now() + delay;
                // It cannot go on before it has its reply.
                connection.since = until;
                connection.guard.hold(until);
                self.abuse.pauses.enter(host.now(), until, connection.key);
            }
        }
        if connection.guard.err() == Step::AskMore {
            let session = connection.counted_as();
            // With nobody there, nobody counts.
            let _ = self.ask_verify(host, connection, ERRORS, Ask::More { session, of: Measure::Errors });
        }
    }

    /// verify leases so much, or no more.
    pub(crate) fn leased(
        &mut self,
        host: &mut Host,
        connection: &mut Connection,
        ticket: u16,
        lease: Result<Lease, Exceeded>,
    ) {
        if ticket != USER && connection.guard.is_new() {
            return self.counted(host, connection, lease);
        }
        let ours = |waiting: &Waiting| matches!(waiting, Waiting::Lease(of, _) if *of == ticket);
        let waiting = connection.guard.take_waiting(ours);
        match (lease, waiting) {
            (Ok(lease), Some(Waiting::Lease(ticket, measure))) => {
                connection.guard.leased(lease);
                self.again(host, connection, ticket, measure);
            }
            (Ok(lease), _) if ticket == USER => connection.guard.replace(lease),
            (Ok(lease), _) => {
                connection.guard.leased(lease);
                // For the error that it was asked for.
                let _ = connection.guard.err();
            }
            (Err(exceeded), waiting) => {
                self.log_exceeded(host, connection, &exceeded);
                let reply = words::exceeded(&exceeded, connection.address);
                match waiting {
                    Some(_) => self.answer(host, connection, ticket, Answer::Refused(reply)),
                    None => self.close(host, connection, reply, "limit exceeded"),
                }
            }
        }
    }

    /// verify says what lists say.
    pub(crate) fn lists_said(&mut self, host: &mut Host, connection: &mut Connection, facts: &ClientFacts) {
        connection.guard.facts = Some(Box::new(facts.clone()));
        let lists = |waiting: &Waiting| matches!(waiting, Waiting::Lists(_));
        while let Some(Waiting::Lists(ticket)) = connection.guard.take_waiting(lists) {
            self.guard_accepted(host, connection, ticket);
        }
    }

    /// verify says what the greylist says.
    pub(crate) fn greylisted(
        &mut self,
        host: &mut Host,
        connection: &mut Connection,
        ticket: u16,
        greylisted: Greylisted,
    ) {
        let ours = |waiting: &Waiting| *waiting == Waiting::Greylist(ticket);
        if connection.guard.take_waiting(ours).is_none() {
            return;
        }
        let answer = match greylisted {
            Greylisted::Later(seconds) => Answer::Refused(words::greylisted(seconds)),
            Greylisted::Pass => Answer::Accepted,
            Greylisted::Returned(seconds) => {
                self.log_returned(host, connection, ticket, seconds);
                Answer::Accepted
            }
        };
        self.answer(host, connection, ticket, answer);
    }

    /// verify is gone: nobody waits for it, and nobody is counted until he comes anew.
    pub(crate) fn missed_verify(&mut self, host: &mut Host, connection: &mut Connection) {
        for waiting in connection.guard.lose() {
            match waiting {
                Waiting::Lease(ticket, measure) => self.again(host, connection, ticket, measure),
                Waiting::Lists(ticket) => self.guard_accepted(host, connection, ticket),
                Waiting::Greylist(ticket) => self.answer(host, connection, ticket, Answer::Accepted),
                Waiting::Greeting(_) => {}
            }
        }
        self.greet(host, connection);
    }

    /// Time passed for a greeting or for replies.
    pub(crate) fn look_at_pause(&mut self, host: &mut Host, connection: &mut Connection) {
        if connection.guard.release(host.now()) {
            self.flush_later(connection);
        }
        self.greet(host, connection);
        self.drive(host, connection);
        // An overload began, or verify hangs.
        self.watch(host, connection);
        let open = connection.state == State::Open;
        if let Some(until) = connection.guard.next().filter(|_| open) {
            self.abuse.pauses.enter(host.now(), until, connection.key);
        }
    }

    /// There are so many sessions now. When that is an overload from now on: how soon they are to be looked at.
    pub(crate) fn count_sessions(
        &mut self,
        host: &mut Host,
        sessions: usize,
        most: usize,
    ) -> Option<Duration> {
        let begins = self.abuse.overload.update(sessions, most)?;
        host.emit(&Event::Overload { begins, sessions: sessions as u64, most: most as u64 });
        begins.then(|| self.abuse.times(&self.timeouts).0)
    }

    /// Uses one of the lease. False when verify has to be asked first, or it is refused.
    fn lease(&mut self, host: &mut Host, connection: &mut Connection, ticket: u16, measure: Measure) -> bool {
        if connection.guard.take(ticket, measure) == Step::Go {
            return true;
        }
        connection.asked = host.now();
        let session = connection.counted_as();
        if self.ask_verify(host, connection, ticket, Ask::More { session, of: measure }) {
            return false;
        }
        connection.guard.take_waiting(|waiting| *waiting == Waiting::Lease(ticket, measure));
        true
    }

    /// Goes on with a command that waited for a lease.
    fn again(&mut self, host: &mut Host, connection: &mut Connection, ticket: u16, measure: Measure) {
        if measure != Measure::Recipients {
            return self.guard_mail(host, connection, ticket);
        }
        if let Some(recipient) = connection.guard.named(ticket) {
            self.guard_recipient(host, connection, ticket, recipient);
        }
    }

    /// verify has counted the session, or will not have it.
    fn counted(&mut self, host: &mut Host, connection: &mut Connection, lease: Result<Lease, Exceeded>) {
        match lease {
            Ok(lease) => {
                connection.guard.leased(lease);
                self.greet(host, connection);
            }
            Err(exceeded) => {
                connection.guard.refuse();
                self.log_exceeded(host, connection, &exceeded);
                let reply = words::exceeded(&exceeded, connection.address);
                let greeting = |waiting: &Waiting| matches!(waiting, Waiting::Greeting(_));
                match connection.guard.take_waiting(greeting) {
                    Some(Waiting::Greeting(ticket)) => {
                        self.answer(host, connection, ticket, Answer::Closed(reply));
                    }
                    _ => self.close(host, connection, reply, "limit exceeded"),
                }
            }
        }
    }

    /// Greets a client that waits for it, if its time has come and it has waited.
    fn greet(&mut self, host: &mut Host, connection: &mut Connection) {
        let paused = connection.guard.pause().is_some();
        let Some(ticket) = connection.guard.take_greeting(host.now()) else { return };
        // Whatever came in the pause is read by now.
        let talked = paused && !connection.input.is_empty();
        let answer = match talked {
            true => Answer::Closed(words::talked_before_greeting()),
            false => Answer::Accepted,
        };
        self.answer(host, connection, ticket, answer);
    }

    fn log_returned(&self, host: &mut Host, connection: &Connection, ticket: u16, seconds: u32) {
        let from = connection.session.transaction().map_or("", |(from, _)| ReversePath::as_str(from));
        let to = connection.guard.named(ticket);
        let to = to.as_ref().map_or("", |to| to.as_str());
        let client = connection.client();
        let text = format!("greylist: {client} came back after {seconds} s: from=<{from}> to=<{to}>");
        host.log.note(Level::Info, Some(&connection.id.to_string()), &text);
    }

    /// False when it cannot be asked.
    pub(crate) fn ask_verify(
        &mut self,
        host: &mut Host,
        connection: &Connection,
        ticket: u16,
        ask: Ask,
    ) -> bool {
        let question = Question { id: connection.key.request(ticket), ask };
        !self.verify.is_congested() && self.verify.send(host, &question)
    }

    fn log_exceeded(&self, host: &mut Host, connection: &Connection, exceeded: &Exceeded) {
        host.emit(&Event::LimitExceeded {
            session: connection.id,
            client: connection.client(),
            measure: exceeded.measure.name(),
            scope: exceeded.scope.name(),
            count: exceeded.count,
            limit: exceeded.limit,
        });
    }
}
