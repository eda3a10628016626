//! The program: listeners, connections and neighbours, and when what is done with them.

mod reception;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::Token;
use postern_config::{BareNewline, Listen, Service, SmtpdPart, Stage};
use postern_daemon::{Handles, Host, Port, Program, StartError};
use postern_event::Level;
use postern_ipc::explain::ExplainRequest;
use postern_ipc::supervise::Handle;
use postern_ipc::{Peer, Role, smtpd_auth, smtpd_verify};
use postern_smtp::server::{Asks, Phase, Protocol, Settings};
use postern_spool::{Completion, IdAllocator, Slot, Writer, WriterDirs};
use slab::Slab;

use crate::abuse::{self, shell::Abuse};
use crate::accept::Listener;
use crate::connection::{Connection, Key, State};
use crate::deadlines::Deadlines;
use crate::offers::offers;
use crate::policy::engine::Rules;
use crate::policy::explain::Explanations;
use crate::proxied::Gate;
use crate::refusal;
use crate::room::Room;
use crate::secure::Certificate;
use crate::worker::{Timeouts, Worker};

/// How long sessions may go on after we were told to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// Tokens of connections: more than there can be descriptors.
const PLACES: usize = 1 << 24;

/// postern-smtpd.
pub struct Smtpd {
    config: SmtpdPart,
    listeners: Vec<Listener>,
    gate: Gate,
    connections: Slab<Connection>,
    first_token: usize,
    worker: Worker,
    auth: Port<smtpd_auth::Question, smtpd_auth::Answer>,
    certificate: Certificate,
    explanations: Explanations,
    deadlines: Deadlines<Key>,
    first_session: u64,
    sessions: u64,
    stop_at: Option<Instant>,
}

impl Program for Smtpd {
    const ROLE: Role = Role::Smtpd;
    type Config = SmtpdPart;

    fn start(host: &mut Host, config: SmtpdPart, handles: Handles) -> Result<Self, StartError> {
        let mut parts = Parts::default();
        handles.into_iter().for_each(|(handle, descriptor)| parts.sort(handle, descriptor));
        let (Some(tmp), Some(new)) = (parts.tmp, parts.new) else {
            return Err(StartError("master gave no spool directories".into()));
        };
        let room = tmp.try_clone().map_err(|e| StartError(format!("cannot keep the spool open: {e}")))?;
        let room = Room::new(room, config.reserve);
        let waker = host.waker();
        // A loop that cannot be woken still looks at its deadlines.
        let writer = Writer::start(WriterDirs { tmp, new }, move || drop(waker.wake()))
            .map_err(|e| StartError(format!("cannot start the spool's writer: {e}")))?;
        let lookup = Port::new(host, Peer::only(Role::Lookup));
        let verify = Port::new(host, Peer::only(Role::Verify));
        let ids = IdAllocator::new(Slot::worker(host.me.instance));
        let abuse = Abuse::new(host, &config);
        let mut program = Self {
            listeners: Vec::new(),
            gate: Gate::new(host),
            connections: Slab::new(),
            first_token: host.tokens(PLACES).0,
            worker: Worker::new(writer, room, ids, &config.limits, lookup, verify, abuse),
            auth: Port::new(host, Peer::only(Role::Auth)),
            certificate: Certificate::new(),
            explanations: Explanations::new(host),
            deadlines: Deadlines::new(host.now()),
            // Microseconds: sessions come slower, so numbers do not repeat after a restart.
            first_session: (u64::from(host.me.instance) << 52) | ((host.wall().0 * 1000) & ((1 << 52) - 1)),
            sessions: 0,
            stop_at: None,
            config,
        };
        program.worker.rules = Arc::new(Rules::new(&program.config.rules));
        for (number, socket) in parts.listeners {
            program.listen(host, number, socket)?;
        }
        parts.links.into_iter().for_each(|(peer, socket)| program.linked(host, peer, socket));
        Ok(program)
    }

    fn linked(&mut self, host: &mut Host, peer: Peer, socket: OwnedFd) {
        match peer.role {
            Role::Lookup => self.worker.lookup.connect(host, socket),
            Role::Verify => self.worker.verify.connect(host, socket),
            Role::Auth => self.auth.connect(host, socket),
            Role::Keys => self.certificate.connect(socket),
            _ => host.note(Level::Warning, &format!("master linked {peer}, whom smtpd does not know")),
        }
        // Before the new one is asked: what the old one was asked is lost.
        self.miss_lookup(host);
        self.hear_lookup(host);
        self.hear_verify(host);
    }

    fn ready(&mut self, host: &mut Host, token: Token, event: &mio::event::Event) {
        if let Some(place) = token.0.checked_sub(self.first_token).filter(|place| *place < PLACES) {
            if let Some(connection) = self.connections.get_mut(place) {
                connection.wake(event);
                if event.is_writable() && !connection.output.is_empty() {
                    self.worker.flush_later(connection);
                }
                self.worker.drive(host, connection);
            }
        } else if token == self.worker.lookup.token() {
            self.worker.lookup.flush(host);
            self.hear_lookup(host);
        } else if token == self.worker.verify.token() {
            self.worker.verify.flush(host);
            self.hear_verify(host);
        } else if token == self.auth.token() {
            while self.auth.receive(host).is_some() {}
        } else if let Some(listener) = self.listeners.iter_mut().find(|listener| listener.token == token) {
            listener.set_ready();
        } else if self.explanations.ready(host, token) {
        } else if let Some(Some(arrival)) = self.gate.ready(host, token) {
            self.arrive(host, arrival);
        }
    }

    fn turn(&mut self, host: &mut Host) -> Option<Instant> {
        self.take_completions(host);
        self.accept(host);
        while let Some(late) = self.gate.take_late(host) {
            self.arrive(host, late);
        }
        self.run(host);
        self.miss_lookup(host);
        self.look_at_deadlines(host);
        self.look_at_pauses(host);
        self.explanations.pass(host.now(), false);
        self.count_sessions(host);
        self.wind_up(host);
        self.reply();
        self.reap(host);
        self.next(host)
    }

    fn flush(&mut self, host: &mut Host) {
        self.worker.lookup.flush(host);
        self.worker.verify.flush(host);
        self.auth.flush(host);
    }

    fn prepare(&mut self, _host: &mut Host, config: &SmtpdPart) -> Result<(), String> {
        if config.listen != self.config.listen {
            return Err("[[listen]] cannot be changed by a reload: restart".into());
        }
        Ok(())
    }

    /// Sessions under way keep what they were told at their beginning; timeouts are ours and change.
    fn reload(&mut self, _host: &mut Host, config: SmtpdPart) {
        self.config = config;
        self.worker.let_in.forget();
        self.worker.hops_max = self.config.limits.hops;
        self.worker.room.reserve = self.config.reserve;
        self.worker.timeouts = Timeouts::of(&self.config.limits);
        self.worker.abuse.reload(&self.config);
        self.worker.rules = Arc::new(Rules::new(&self.config.rules));
        self.certificate.forget();
        for listener in &mut self.listeners {
            listener.settings = settings(&self.config, &listener.listen);
        }
    }

    fn stop(&mut self, host: &mut Host) {
        self.listeners.drain(..).for_each(|listener| listener.close(host));
        self.gate.clear();
        self.stop_at = Some(host.now() + STOP_PATIENCE);
    }

    fn explain(&mut self, host: &mut Host, request: ExplainRequest, connection: OwnedFd) {
        self.explanations.begin(host, &mut self.worker, &self.config.listen, request, connection);
    }

    fn counters(&self) -> Vec<(String, u64)> {
        let counters = &self.worker.counters;
        [
            ("sessions", self.connections.len() as u64),
            ("connections", counters.connections),
            ("accepted", counters.accepted),
            ("octets", counters.octets),
            ("rejected", counters.rejected),
            ("spool-refused", counters.spool_refused),
            ("timeouts", counters.timeouts),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }
}

/// What master gave, sorted.
#[derive(Default)]
struct Parts {
    listeners: BTreeMap<u16, OwnedFd>,
    tmp: Option<OwnedFd>,
    new: Option<OwnedFd>,
    links: Vec<(Peer, OwnedFd)>,
}

impl Parts {
    fn sort(&mut self, handle: Handle, descriptor: OwnedFd) {
        match handle {
            Handle::Listener(number) => drop(self.listeners.insert(number, descriptor)),
            Handle::SpoolDirectory(name) if name == "tmp" => self.tmp = Some(descriptor),
            Handle::SpoolDirectory(name) if name == "new" => self.new = Some(descriptor),
            Handle::Link(peer) => self.links.push((peer, descriptor)),
            // Nothing else is ours: it is closed.
            _ => {}
        }
    }
}

impl Smtpd {
    fn listen(&mut self, host: &mut Host, number: u16, socket: OwnedFd) -> Result<(), StartError> {
        let Some(listen) = self.config.listen.get(usize::from(number)) else {
            return Err(StartError(format!("master gave listener {number}, which is not configured")));
        };
        let settings = settings(&self.config, listen);
        if listen.service == Service::Submissions && !self.config.tls {
            let text =
                format!("{}: submissions without [tls]: connections are closed at once", listen.address);
            host.note(Level::Error, &text);
        }
        let listener = Listener::new(host, socket, listen.clone(), settings)
            .map_err(|e| StartError(format!("cannot listen on {}: {e}", listen.address)))?;
        self.listeners.push(listener);
        Ok(())
    }

    fn hear_lookup(&mut self, host: &mut Host) {
        while let Some((answer, _)) = self.worker.lookup.receive(host) {
            self.worker.unanswered = self.worker.unanswered.saturating_sub(1);
            self.worker.let_in.answered(answer.id, refusal::is_let_in(&answer.say).then_some(()));
            let (key, ticket) = Key::of_request(answer.id);
            match living(&mut self.connections, key) {
                Some(connection) => self.worker.answered(host, connection, ticket, answer.say),
                None => self.explanations.lookup_said(host, &mut self.worker, answer.id, answer.say),
            }
        }
    }

    /// A lost lookup answers nothing any more: its clients are told now, not when patience ends.
    fn miss_lookup(&mut self, host: &mut Host) {
        // What verify was asked stays unknown.
        if self.worker.verify.take_lost() {
            self.explanations.pass(host.now(), true);
            for (_, connection) in &mut self.connections {
                self.worker.verify_lost(host, connection);
                self.worker.missed_verify(host, connection);
                self.worker.drive(host, connection);
            }
        }
        if !self.worker.lookup.take_lost() {
            return;
        }
        self.worker.unanswered = 0;
        self.worker.let_in.forget();
        self.explanations.pass(host.now(), true);
        for (_, connection) in &mut self.connections {
            self.worker.tables_lost(host, connection);
            // Who is not greeted yet waits for somebody else.
            if connection.session.phase() == Phase::Asking && !connection.session.is_greeting() {
                self.worker.unanswerable(host, connection);
            }
        }
    }

    fn hear_verify(&mut self, host: &mut Host) {
        while let Some((answer, _)) = self.worker.verify.receive(host) {
            let (key, ticket) = Key::of_request(answer.id);
            let Some(connection) = living(&mut self.connections, key) else {
                self.explanations.verify_said(host, &mut self.worker, answer.id, answer.say);
                continue;
            };
            match answer.say {
                // Of the client before XCLIENT.
                smtpd_verify::Say::Client(_) if ticket != connection.changes => {}
                smtpd_verify::Say::Lease(_) if ticket != connection.changes && connection.guard.is_new() => {}
                smtpd_verify::Say::Client(mut facts) => {
                    connection.learn_name(&mut facts);
                    self.worker.lists_said(host, connection, &facts);
                    self.worker.client_known(host, connection, facts);
                }
                smtpd_verify::Say::Delegated(said) => {
                    self.worker.server_said(host, connection, ticket, said);
                }
                smtpd_verify::Say::Lease(lease) => {
                    self.worker.leased(host, connection, ticket, lease);
                }
                smtpd_verify::Say::Greylist(greylisted) => {
                    self.worker.greylisted(host, connection, ticket, greylisted);
                }
            }
            self.worker.drive(host, connection);
        }
    }

    fn take_completions(&mut self, host: &mut Host) {
        if self.worker.writing == 0 {
            return;
        }
        for completion in self.worker.writer.completions() {
            self.worker.writing = self.worker.writing.saturating_sub(1);
            let Completion { token, id, .. } = completion;
            match living(&mut self.connections, Key::of_request(token).0) {
                Some(connection) => self.worker.completed(host, connection, completion),
                None => {
                    let text = format!("{id}: its client is gone; the spool says {:?}", completion.result);
                    host.note(Level::Info, &text);
                }
            }
        }
        for key in std::mem::take(&mut self.worker.paused) {
            if let Some(connection) = living(&mut self.connections, key) {
                self.worker.unpause(host, connection);
            }
        }
    }

    fn run(&mut self, host: &mut Host) {
        for key in std::mem::take(&mut self.worker.runnable) {
            if let Some(connection) = living(&mut self.connections, key) {
                self.worker.drive(host, connection);
            }
        }
    }

    fn look_at_deadlines(&mut self, host: &mut Host) {
        for key in self.deadlines.take(host.now()) {
            if let Some(connection) = living(&mut self.connections, key) {
                let remaining = self.worker.watch(host, connection);
                self.deadlines.enter(host.now(), host.now() + remaining, key);
            }
        }
    }

    fn count_sessions(&mut self, host: &mut Host) {
        let most = self.config.limits.sessions as usize;
        if let Some(soon) = self.worker.count_sessions(host, self.connections.len(), most) {
            for (_, connection) in &self.connections {
                self.worker.abuse.pauses.enter(host.now(), host.now() + soon, connection.key);
            }
        }
    }

    fn look_at_pauses(&mut self, host: &mut Host) {
        for key in self.worker.abuse.pauses.take(host.now()) {
            if let Some(connection) = living(&mut self.connections, key) {
                self.worker.look_at_pause(host, connection);
            }
        }
    }

    /// After [`Program::stop`]: sessions that are not in the middle of something are told to go.
    fn wind_up(&mut self, host: &mut Host) {
        let Some(stop_at) = self.stop_at else { return };
        let late = host.now() >= stop_at;
        for (_, connection) in &mut self.connections {
            let idle = connection.session.phase() == Phase::Command && connection.input.is_empty();
            match connection.state {
                State::Open if idle || late => {
                    self.worker.close(host, connection, refusal::stopping(), "stopping");
                }
                State::Lingering(..) => self.worker.give_up(connection, "stopping"),
                _ if late => self.worker.give_up(connection, "stopping"),
                _ => {}
            }
        }
    }

    /// Writes what was said to clients in this turn.
    fn reply(&mut self) {
        for key in std::mem::take(&mut self.worker.dirty) {
            if let Some(connection) = living(&mut self.connections, key) {
                self.worker.flush(connection);
            }
        }
    }

    fn reap(&mut self, host: &mut Host) {
        for key in std::mem::take(&mut self.worker.gone) {
            let gone = |c: &&mut Connection| matches!(c.state, State::Gone(_));
            if living(&mut self.connections, key).filter(gone).is_some() {
                let connection = self.connections.remove(key.place);
                self.worker.forget(host, connection);
            }
        }
        if let Some(stop_at) = self.stop_at
            && (self.connections.is_empty() || host.now() >= stop_at)
        {
            host.finish();
        }
    }

    fn next(&self, host: &Host) -> Option<Instant> {
        let now = host.now();
        let worker = &self.worker;
        let busy = !worker.runnable.is_empty() || !worker.dirty.is_empty() || !worker.gone.is_empty();
        let listeners = self.listeners.iter().filter_map(|listener| listener.next(now));
        busy.then_some(now)
            .into_iter()
            .chain(listeners)
            .chain(self.deadlines.next())
            .chain(self.worker.abuse.pauses.next())
            .chain(self.gate.next())
            .chain(self.explanations.next())
            .chain(self.stop_at)
            .min()
    }
}

/// The connection of that name, if it is still there.
fn living(connections: &mut Slab<Connection>, key: Key) -> Option<&mut Connection> {
    connections.get_mut(key.place).filter(|connection| connection.key == key)
}

/// Stages that somebody has something to say to. MAIL begins what rules keep of a message.
fn asks(config: &SmtpdPart, service: Service) -> Asks {
    let guard = abuse::shell::asks(config, service);
    let has = |stage| config.rules.iter().any(|rule| rule.stage == stage);
    Asks {
        client: guard.client || has(Stage::Client),
        helo: has(Stage::Helo),
        mail: guard.mail || has(Stage::From) || has(Stage::Rcpt) || has(Stage::Data),
        vrfy: true,
        expn: true,
        etrn: service != Service::Lmtp,
        ..Asks::default()
    }
}

/// What new sessions of a listener are told.
fn settings(config: &SmtpdPart, listen: &Listen) -> Arc<Settings> {
    let limits = &config.limits;
    Arc::new(Settings {
        hostname: config.hostname.clone(),
        protocol: if listen.service == Service::Lmtp { Protocol::Lmtp } else { Protocol::Smtp },
        secure: listen.service == Service::Submissions,
        extensions: offers(listen),
        asks: asks(config, listen.service),
        message_size: limits.message_size,
        recipients: limits.recipients,
        transactions: limits.messages,
        recipient_domains: limits.recipient_domains,
        line_length: limits.line_length,
        errors: limits.errors,
        normalise: listen.bare_newline == BareNewline::Normalise,
    })
}
