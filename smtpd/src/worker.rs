//! What every connection uses: the neighbours, the writer, the buffers; and what is done with them for
//! one connection at a time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use postern_config::SmtpLimits;
use postern_daemon::{Host, Port};
use postern_event::{Event, Level};
use postern_ipc::{Recent, smtpd_lookup, smtpd_verify};
use postern_smtp::Reply;
use postern_smtp::server::{Action, Answer, Finished, Output, Phase, Rejected, Session};
use postern_spool::{Completion, IdAllocator, NewMessage, STREAM_ABOVE, Writer};

use crate::abuse::shell::Abuse;
use crate::abuse::tarpit::content_time;
use crate::connection::{Came, Connection, Content, Key, State};
use crate::identity;
use crate::message::{self, Header, Source};
use crate::policy::engine::Rules;
use crate::refusal;
use crate::room::Room;

/// One read of content; commands come in smaller pieces.
const CONTENT_READ: usize = 64 * 1024;
const COMMAND_READ: usize = 8 * 1024;

/// What one connection may read before the others have their turn, octets.
const TURN: usize = 512 * 1024;

/// Above this much that the disk has not taken, a client is not read.
const UNWRITTEN_MAX: usize = 256 * 1024;

/// How long lookup may take.
const LOOKUP_PATIENCE: Duration = Duration::from_secs(30);

/// How long verify may take: its answers are its own, or of lists for which it has 5 s.
pub(crate) const VERIFY_PATIENCE: Duration = Duration::from_secs(10);

/// How long a client may take to read our last words, and to close after them.
const CLOSING_PATIENCE: Duration = Duration::from_secs(10);

/// Numbers for `postern status`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) connections: u64,
    pub(crate) accepted: u64,
    pub(crate) octets: u64,
    pub(crate) rejected: u64,
    pub(crate) spool_refused: u64,
    pub(crate) timeouts: u64,
}

/// The shared part of a worker.
pub(crate) struct Worker {
    pub(crate) writer: Writer,
    pub(crate) room: Room,
    pub(crate) ids: IdAllocator,
    pub(crate) hops_max: u32,
    pub(crate) timeouts: Timeouts,
    pub(crate) lookup: Port<smtpd_lookup::Question, smtpd_lookup::Answer>,
    pub(crate) verify: Port<smtpd_verify::Question, smtpd_verify::Answer>,
    /// Of the configuration, for new sessions.
    pub(crate) rules: Arc<Rules>,
    /// What guards against abuse.
    pub(crate) abuse: Abuse,
    pub(crate) counters: Counters,
    /// Questions to lookup without an answer.
    pub(crate) unanswered: usize,
    /// Mail that lookup let in a moment ago.
    pub(crate) let_in: Recent<smtpd_lookup::Incoming, ()>,
    /// Messages handed to the writer and not completed, and open streams.
    pub(crate) writing: usize,
    /// Connections with something to say at the end of the turn.
    pub(crate) dirty: Vec<Key>,
    /// Connections with something to read, which have had their turn.
    pub(crate) runnable: VecDeque<Key>,
    /// Connections that wait for the disk.
    pub(crate) paused: Vec<Key>,
    /// Connections to be removed.
    pub(crate) gone: Vec<Key>,
    buffer: Box<[u8]>,
    actions: Vec<Action>,
}

/// How long clients may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    pub(crate) command: Duration,
    pub(crate) data: Duration,
    pub(crate) session: Duration,
}

impl Timeouts {
    /// As they are configured.
    pub(crate) fn of(limits: &SmtpLimits) -> Self {
        Self { command: limits.command_timeout, data: limits.data_timeout, session: limits.session_time }
    }
}

impl Worker {
    pub(crate) fn new(
        writer: Writer,
        room: Room,
        ids: IdAllocator,
        limits: &SmtpLimits,
        lookup: Port<smtpd_lookup::Question, smtpd_lookup::Answer>,
        verify: Port<smtpd_verify::Question, smtpd_verify::Answer>,
        abuse: Abuse,
    ) -> Self {
        Self {
            writer,
            room,
            ids,
            hops_max: limits.hops,
            timeouts: Timeouts::of(limits),
            lookup,
            verify,
            rules: Arc::default(),
            abuse,
            counters: Counters::default(),
            unanswered: 0,
            let_in: Recent::default(),
            writing: 0,
            dirty: Vec::new(),
            runnable: VecDeque::new(),
            paused: Vec::new(),
            gone: Vec::new(),
            buffer: vec![0; CONTENT_READ].into(),
            actions: Vec::new(),
        }
    }

    /// Goes on with a connection as far as it goes now: input that waits, then input that can be read.
    pub(crate) fn drive(&mut self, host: &mut Host, connection: &mut Connection) {
        self.understand(host, connection);
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut read = 0;
        while connection.wants_input() {
            if read >= TURN {
                self.runnable.push_back(connection.key);
                break;
            }
            let commands = connection.session.phase() != Phase::Content;
            let limit = if commands { COMMAND_READ } else { CONTENT_READ };
            let piece = &mut buffer[..limit];
            match connection.read(piece) {
                Ok(came) if connection.state != State::Open => connection.linger(came),
                Ok(Came::Octets(length)) => {
                    read += length;
                    connection.active = host.now();
                    self.take_input(host, connection, &piece[..length]);
                }
                Ok(Came::Nothing) => {}
                Ok(Came::End) => connection.eof = true,
                Err(error) => self.lose(host, connection, &error),
            }
        }
        self.buffer = buffer;
        if connection.has_sealed() {
            self.flush_later(connection);
        }
        if connection.eof {
            self.end_of_input(connection);
        }
        if let State::Gone(_) = connection.state {
            self.gone.push(connection.key);
        }
    }

    /// Says something to the session, and does what it wants.
    pub(crate) fn tell(
        &mut self,
        host: &mut Host,
        connection: &mut Connection,
        tell: impl FnOnce(&mut Session, &mut Output),
    ) {
        let before = (connection.session.phase(), connection.session.commands());
        let wire = std::mem::take(&mut connection.output);
        let mut out = Output { wire, actions: std::mem::take(&mut self.actions) };
        tell(&mut connection.session, &mut out);
        connection.output = out.wire;
        if before != (connection.session.phase(), connection.session.commands()) {
            (connection.since, connection.octets) = (host.now(), 0);
        }
        let mut actions = out.actions;
        for action in actions.drain(..) {
            self.perform(host, connection, action);
        }
        self.actions = actions;
        let ending = matches!(connection.state, State::Closing(_));
        if ending || !connection.output.is_empty() {
            self.flush_later(connection);
        }
    }

    /// What there is to say is written at the end of the turn.
    pub(crate) fn flush_later(&mut self, connection: &mut Connection) {
        if !connection.dirty {
            connection.dirty = true;
            self.dirty.push(connection.key);
        }
    }

    /// Writes what was said this turn. While lookup is asked, the replies wait for the next: whoever
    /// pipelines reads them together anyway.
    pub(crate) fn flush(&mut self, connection: &mut Connection) {
        connection.dirty = false;
        if connection.state == State::Open && connection.guard.is_held() {
            return;
        }
        let asking = connection.state == State::Open && connection.session.phase() == Phase::Asking;
        if asking && connection.output.len() < COMMAND_READ {
            return;
        }
        match connection.write() {
            Ok(true) => connection.finish(),
            Ok(false) => return,
            Err(_) => connection.state = State::Gone("connection lost"),
        }
        match connection.state {
            State::Gone(_) => self.gone.push(connection.key),
            // It may have been full, and input have waited for it.
            _ if !connection.input.is_empty() || connection.wants_input() => {
                self.runnable.push_back(connection.key);
            }
            _ => {}
        }
    }

    /// lookup has answered one question.
    pub(crate) fn answered(
        &mut self,
        host: &mut Host,
        connection: &mut Connection,
        ticket: u16,
        say: smtpd_lookup::Say,
    ) {
        match say {
            smtpd_lookup::Say::Recipient(verdict) => match refusal::answer(verdict) {
                Answer::Accepted => self.guard_accepted(host, connection, ticket),
                answer => self.answer(host, connection, ticket, answer),
            },
            smtpd_lookup::Say::Table(said) => self.table_said(host, connection, ticket, said),
            smtpd_lookup::Say::Vrfy(known) => {
                self.answer(host, connection, ticket, identity::verified(known));
            }
            smtpd_lookup::Say::Expn(known) => {
                self.answer(host, connection, ticket, identity::expanded(known));
            }
            smtpd_lookup::Say::Turned(turned) => {
                self.answer(host, connection, ticket, identity::turned(turned));
            }
        }
        self.drive(host, connection);
    }

    /// lookup is gone or silent.
    pub(crate) fn unanswerable(&mut self, host: &mut Host, connection: &mut Connection) {
        connection.guard.clear();
        let answer = Answer::Refused(refusal::lookup_failure());
        self.rules_silent(host, connection);
        self.tell(host, connection, |session, out| session.answer_all(&answer, out));
        self.drive(host, connection);
    }

    /// The writer is done with this connection's message.
    pub(crate) fn completed(&mut self, host: &mut Host, connection: &mut Connection, completion: Completion) {
        let Completion { id, result, .. } = completion;
        if let Err(error) = &result {
            self.counters.spool_refused += 1;
            let session = connection.id;
            host.emit(&Event::SpoolRefused { session, id, error: &error.to_string() });
        }
        let judging = connection.beside.as_ref().is_some_and(|beside| beside.is_judging());
        if judging || connection.session.phase() != Phase::Settling {
            // A stream that failed while it came in: the client hears of it at its end.
            if let Err(error) = result {
                connection.content = Content::Failed(error);
                connection.paused = false;
                self.drive(host, connection);
            }
            return;
        }
        connection.active = host.now();
        connection.content = Content::Held;
        let receipt = connection.receipt.take();
        let reply = match result {
            Ok(()) => refusal::queued(&id.to_string()),
            Err(error) => refusal::spool(&error),
        };
        if let (true, Some(receipt)) = (reply.code == 250, receipt) {
            self.counters.accepted += 1;
            self.counters.octets += receipt.size;
            host.emit(&Event::Accepted {
                id,
                session: connection.id,
                client: connection.client(),
                from: &receipt.from,
                size: receipt.size,
                nrcpt: receipt.nrcpt,
                message_id: receipt.message_id.as_deref(),
                forwarded: receipt.forwarded.as_ref(),
            });
        }
        self.tell(host, connection, |session, out| session.settle(reply, out));
        self.drive(host, connection);
    }

    /// Goes on with a client that waited for the disk, if it has taken enough.
    pub(crate) fn unpause(&mut self, host: &mut Host, connection: &mut Connection) {
        if !connection.paused {
            return;
        }
        if self.writer.unwritten(connection.key.request(0)) > STREAM_ABOVE {
            return self.paused.push(connection.key);
        }
        connection.paused = false;
        connection.active = host.now();
        self.drive(host, connection);
    }

    /// Looks whether somebody takes too long. Returns how long from now to look again.
    pub(crate) fn watch(&mut self, host: &mut Host, connection: &mut Connection) -> Duration {
        let now = host.now();
        let since_active = now.saturating_duration_since(connection.active);
        let left = |limit: Duration, passed: Duration| limit.saturating_sub(passed);
        if connection.state != State::Open {
            let left = left(CLOSING_PATIENCE, since_active);
            if left.is_zero() {
                self.give_up(connection, "last reply not read");
            }
            return left;
        }
        let whole = left(self.timeouts.session, now.saturating_duration_since(connection.opened));
        // A command has its time in all, and content the time of its octets: whoever trickles ends too.
        let (command, data) = self.abuse.times(&self.timeouts);
        let since = now.saturating_duration_since(connection.since);
        let remaining = match connection.session.phase() {
            Phase::Command => left(command, since).min(whole),
            Phase::Content if connection.paused => self.timeouts.data,
            Phase::Content => {
                let in_all = left(content_time(data, connection.octets), since);
                left(data, since_active).min(in_all).min(whole)
            }
            Phase::Asking if connection.guard.is_waiting() => {
                left(VERIFY_PATIENCE, now.saturating_duration_since(connection.asked))
            }
            Phase::Asking => left(LOOKUP_PATIENCE, now.saturating_duration_since(connection.asked)),
            Phase::Settling if connection.beside.as_ref().is_some_and(|beside| beside.is_judging()) => {
                left(LOOKUP_PATIENCE, now.saturating_duration_since(connection.asked))
            }
            Phase::Settling | Phase::Closed => self.timeouts.command,
        };
        if !remaining.is_zero() {
            return remaining;
        }
        if connection.session.phase() == Phase::Asking && connection.guard.is_waiting() {
            // verify hangs: the session goes on without it.
            self.missed_verify(host, connection);
            self.drive(host, connection);
        } else if matches!(connection.session.phase(), Phase::Asking | Phase::Settling) {
            self.unanswerable(host, connection);
        } else {
            self.counters.timeouts += 1;
            self.close(host, connection, refusal::timeout(), "timeout");
        }
        CLOSING_PATIENCE
    }

    /// Says a last word and closes.
    pub(crate) fn close(
        &mut self,
        host: &mut Host,
        connection: &mut Connection,
        reply: Reply,
        why: &'static str,
    ) {
        connection.active = host.now();
        self.tell(host, connection, |session, out| session.close(reply, why, out));
    }

    /// The connection is removed: nothing of it may stay behind.
    pub(crate) fn forget(&mut self, host: &mut Host, mut connection: Connection) {
        self.drop_content(&mut connection);
        self.give_back(host, &connection);
        // Closing the socket ends its registration too.
        let _ = host.registry().deregister(connection.stream());
        let State::Gone(why) = connection.state else { return };
        host.emit(&Event::Disconnect {
            session: connection.id,
            client: connection.client(),
            messages: connection.session.messages(),
            commands: connection.session.commands(),
            milliseconds: host.now().saturating_duration_since(connection.opened).as_millis() as u64,
            why,
        });
    }

    /// Removes the connection without a word.
    pub(crate) fn give_up(&mut self, connection: &mut Connection, why: &'static str) {
        let why = match connection.state {
            State::Open => why,
            State::Closing(why) | State::Lingering(why, _) | State::Gone(why) => why,
        };
        connection.state = State::Gone(why);
        self.gone.push(connection.key);
    }

    /// The socket or its TLS fails.
    fn lose(&mut self, host: &mut Host, connection: &mut Connection, error: &std::io::Error) {
        connection.state = State::Gone("connection lost");
        if error.kind() == std::io::ErrorKind::Other {
            connection.state = State::Gone("TLS failed");
            let text = format!("session {} with [{}]: {error}", connection.id, connection.address);
            host.note(Level::Info, &text);
            // The alert that says why, if the client still listens.
            connection.output = Vec::new();
            let _ = connection.write();
        }
    }

    /// Offers the session what waits.
    fn understand(&mut self, host: &mut Host, connection: &mut Connection) {
        if connection.input.is_empty() || connection.state != State::Open {
            return;
        }
        let mut input = std::mem::take(&mut connection.input);
        let used = self.offer(host, connection, &input);
        if used < input.len() {
            input.drain(..used);
            connection.input = input;
        }
    }

    /// Offers the session what was read; the usual case copies nothing but content.
    fn take_input(&mut self, host: &mut Host, connection: &mut Connection, piece: &[u8]) {
        if !connection.input.is_empty() {
            connection.input.extend_from_slice(piece);
            return self.understand(host, connection);
        }
        let used = self.offer(host, connection, piece);
        if connection.state == State::Open {
            connection.input.extend_from_slice(&piece[used..]);
        }
    }

    /// Offers the session input as long as it takes some: what it asks may be answered at once. Returns how
    /// much it took.
    fn offer(&mut self, host: &mut Host, connection: &mut Connection, input: &[u8]) -> usize {
        let full = self.room.is_full(host);
        let now = host.wall().0;
        let mut used = 0;
        while used < input.len()
            && connection.state == State::Open
            && !connection.paused
            && !connection.guard.is_held()
        {
            let before = used;
            self.tell(host, connection, |session, out| {
                session.set_full(full);
                session.set_time(now);
                used += session.receive(&input[before..], out);
            });
            connection.octets += (used - before) as u64;
            self.stream_content(host, connection);
            if used == before {
                break;
            }
        }
        used
    }

    /// The client will say no more: what it is owed is written, and that is all.
    fn end_of_input(&mut self, connection: &mut Connection) {
        let owed = matches!(connection.session.phase(), Phase::Asking | Phase::Settling);
        if connection.state != State::Open || owed {
            return;
        }
        connection.state = State::Closing("client closed");
        self.drop_content(connection);
        self.flush_later(connection);
    }

    /// Large content goes to the disk as it comes.
    fn stream_content(&mut self, host: &Host, connection: &mut Connection) {
        let held = connection.session.content_held();
        let token = connection.key.request(0);
        match &connection.content {
            Content::Held if held <= STREAM_ABOVE => return,
            Content::Held => {
                let content = connection.session.take_content();
                let id = self.ids.next(host.wall().0 * 1000);
                let header = Header::read(&content);
                if let Some(beside) = connection.beside.as_mut().filter(|beside| beside.judges_content()) {
                    beside.header = content[..postern_message::body_offset(&content)].to_vec();
                }
                self.writer.open_stream(token, id);
                self.writer.append(token, content);
                self.writing += 1;
                connection.content = Content::Streamed(Box::new((id, header)));
            }
            Content::Streamed(_) if held > 0 => {
                self.writer.append(token, connection.session.take_content());
            }
            Content::Streamed(_) => return,
            Content::Failed(_) => return drop(connection.session.take_content()),
        }
        if self.writer.unwritten(token) > UNWRITTEN_MAX && !connection.paused {
            connection.paused = true;
            self.paused.push(connection.key);
        }
    }

    pub(crate) fn drop_content(&mut self, connection: &mut Connection) {
        if let Content::Streamed(_) = std::mem::replace(&mut connection.content, Content::Held) {
            self.abort_stream(connection);
        }
        connection.paused = false;
    }

    /// What is with the writer already is not kept.
    pub(crate) fn abort_stream(&mut self, connection: &Connection) {
        self.writer.abort_stream(connection.key.request(0));
        self.writing = self.writing.saturating_sub(1);
    }

    /// Does what the session wants.
    pub(crate) fn perform(&mut self, host: &mut Host, connection: &mut Connection, action: Action) {
        match action {
            Action::Ask { ticket, question } => self.ask(host, connection, ticket, question),
            Action::Finished(finished) => {
                if let Some(finished) = self.judge_content(host, connection, finished) {
                    self.commit(host, connection, *finished);
                }
            }
            Action::Dropped => self.drop_content(connection),
            Action::Rejected(rejected) => {
                self.log_rejected(host, connection, &rejected);
                self.guard_error(host, connection, &rejected.reply);
            }
            Action::Close(why) => {
                connection.state = State::Closing(why);
                connection.active = host.now();
                self.drop_content(connection);
            }
        }
    }

    /// A message is complete: to the writer with it.
    pub(crate) fn commit(&mut self, host: &mut Host, connection: &mut Connection, mut finished: Finished) {
        let token = connection.key.request(0);
        let (streamed, (id, header)) = match std::mem::replace(&mut connection.content, Content::Held) {
            Content::Held => (false, (self.ids.next(host.wall().0 * 1000), Header::read(&finished.content))),
            Content::Streamed(stream) => (true, *stream),
            Content::Failed(error) => {
                let reply = refusal::spool(&error);
                return self.tell(host, connection, |session, out| session.settle(reply, out));
            }
        };
        if header.hops > self.hops_max {
            if streamed {
                self.abort_stream(connection);
            }
            return self.tell(host, connection, |session, out| session.settle(refusal::looping(), out));
        }
        let forwarded = connection.take_forwarded();
        let protocol = connection.session.trace_name(finished.parameters.smtputf8);
        let source = Source {
            address: connection.address,
            name: connection.name.as_ref().map(|name| name.as_str()),
            helo: connection.session.helo().unwrap_or_default(),
            protocol: &protocol,
            hostname: connection.session.settings().hostname.as_str(),
        };
        let (mut envelope, mut prepend, mut receipt) =
            message::prepare(&mut finished, source, header, id, host.wall());
        if let Some(forwarded) = forwarded {
            identity::originate(&mut envelope, &forwarded);
            receipt.forwarded = Some(forwarded);
        }
        if let Some(beside) = &mut connection.beside {
            let effects = beside.take_effects();
            if effects.discarded {
                return self.discard(host, connection, streamed, &receipt);
            }
            effects.apply(&mut envelope, &mut prepend);
        }
        connection.receipt = Some(Box::new(receipt));
        if streamed {
            if !finished.content.is_empty() {
                self.writer.append(token, finished.content);
            }
            self.writer.finish_stream(token, envelope, prepend);
        } else {
            self.writing += 1;
            self.writer.submit(token, NewMessage { id, envelope, prepend, body: finished.content });
        }
    }

    fn log_rejected(&mut self, host: &mut Host, connection: &Connection, rejected: &Rejected) {
        self.counters.rejected += 1;
        host.emit(&Event::Reject {
            session: connection.id,
            client: connection.client(),
            stage: rejected.stage,
            reply: &rejected.reply,
            from: rejected.from.as_ref(),
            to: rejected.to.as_ref().map(|to| to.as_str()),
            helo: connection.session.helo(),
            proto: connection.session.protocol_name(),
        });
    }
}
