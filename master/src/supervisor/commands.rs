//! What operators ask of the running system: reloads, and the control socket.

use std::time::Instant;

use mio::Token;
use postern_config::Config;
use postern_event::{Event, Level};
use postern_ipc::control::{ProgramStatus, Reply, Request};
use postern_ipc::supervise::ToChild;
use postern_ipc::{Peer, Role};

use super::{Phase, Supervisor, watch};
use crate::child::{self, Child};
use crate::gather::{Gather, Outcomes, Renewal, Subject};
use crate::resources;

/// Callers at the control socket at once.
const CALLERS_MAX: usize = 64;

impl Supervisor {
    pub(super) fn begin_reload(&mut self, connection: Option<Token>) {
        if let Err(why) = self.try_begin_reload(connection) {
            self.log.emit(&Event::Reloaded { outcome: Err(&why) });
            self.answer(connection, Reply::Refused(why));
        }
    }

    fn try_begin_reload(&mut self, connection: Option<Token>) -> Result<(), String> {
        if self.phase != Phase::Running {
            return Err("the system is starting or stopping".into());
        }
        if self.is_reloading() {
            return Err("another reload is under way".into());
        }
        let config = postern_config::load(&self.config_path).map_err(|e| e.to_string())?;
        if let Some(what) = fixed_part_that_differs(&self.config, &config) {
            return Err(format!("{what} cannot change while the system runs: stop it and start it again"));
        }
        let (log, _) = resources::log(&config.log).map_err(|e| e.to_string())?;
        let tls = resources::tls(&config).map_err(|e| format!("[tls] {e}"))?;
        // All that can fail before anybody is asked.
        let mut parts = Vec::new();
        for place in self.living() {
            let role = self.children[place].peer.role;
            let mut files = vec![child::part(&config, role).map_err(|e| e.to_string())?];
            if let (Role::Keys, Some((key, certificate))) = (role, &tls) {
                let cloned = key.try_clone().and_then(|key| Ok([key, certificate.try_clone()?]));
                files.extend(cloned.map_err(|e| e.to_string())?);
            }
            parts.push((place, files));
        }
        // A program that is dead now is started with what comes of this, and not before.
        let asked: Vec<usize> = parts.iter().map(|(place, _)| *place).collect();
        parts.into_iter().for_each(|(place, files)| self.tell(place, &ToChild::Prepare, files));
        let subject = Subject::Reload(Box::new(Renewal { config, log, tls }), Vec::new());
        self.gathers.push(Gather::new(connection, subject, asked.into_iter(), Instant::now()));
        Ok(())
    }

    /// A new configuration waits for its programs: none is started until it is known which one is in force.
    pub(super) fn is_reloading(&self) -> bool {
        self.gathers.iter().any(Gather::is_reload)
    }

    fn finish_reload(&mut self, connection: Option<Token>, new: Renewal, refusals: Vec<(usize, String)>) {
        let Renewal { config, log, tls } = new;
        if !refusals.is_empty() {
            let words: Vec<_> = refusals
                .iter()
                .map(|(place, why)| format!("{}: {why}", self.children[*place].peer))
                .collect();
            (0..self.children.len()).for_each(|place| self.tell(place, &ToChild::Abort, Vec::new()));
            self.log.emit(&Event::Reloaded { outcome: Err(&words.join("; ")) });
            self.answer(connection, Reply::Refused(words.join("; ")));
            return;
        }
        for place in 0..self.children.len() {
            let log = log.try_clone().into_iter().collect();
            self.tell(place, &ToChild::Commit, log);
        }
        if let Ok(own) = log.try_clone() {
            self.log.replace(own);
        }
        self.log_descriptor = log;
        self.config = config;
        self.resources.replace_tls(tls);
        self.relink_keys();
        self.log.emit(&Event::Reloaded { outcome: Ok(()) });
        self.answer(connection, Reply::Done("configuration reloaded".into()));
    }

    /// What smtpd asked keys before its commit was answered with the old chain, and no signature of the new
    /// key would fit it. What comes over a new link is answered after the commit.
    fn relink_keys(&mut self) {
        let Some(keys) = self.place_of(Peer::only(Role::Keys)) else { return };
        if self.resources.has_tls() && self.children[keys].running.is_some() {
            match self.connect(keys) {
                Ok(links) => links.into_iter().for_each(|(peer, socket)| {
                    self.tell(keys, &ToChild::Linked(peer), vec![socket]);
                }),
                Err(error) => self.log.note(Level::Error, None, &format!("linking keys anew: {error}")),
            }
        }
    }

    // The control socket.

    pub(super) fn take_callers(&mut self) {
        loop {
            match self.control.accept() {
                Ok(None) => return,
                Ok(Some(connection)) => {
                    let token = Token(self.next_connection);
                    self.next_connection += 1;
                    if watch(&self.poll, &connection.link, token).is_ok() {
                        self.connections.insert(token, connection);
                    }
                    self.make_room();
                }
                Err(error) => {
                    self.log.note(Level::Warning, None, &format!("control socket: {error}"));
                    return;
                }
            }
        }
    }

    /// Everybody on the host may call, and a caller may say nothing for ever: the oldest goes, those who may
    /// change things last.
    fn make_room(&mut self) {
        if self.connections.len() > CALLERS_MAX {
            let oldest = self.connections.iter().min_by_key(|(token, c)| (c.may_change, token.0));
            if let Some(token) = oldest.map(|(token, _)| *token) {
                self.hang_up(token);
            }
        }
    }

    /// The caller is gone, and his question with him; a reload goes on.
    fn hang_up(&mut self, token: Token) {
        self.connections.remove(&token);
        self.gathers.retain(|gather| gather.connection != Some(token) || gather.is_reload());
    }

    pub(super) fn hear_caller(&mut self, token: Token) {
        loop {
            let Some(connection) = self.connections.get_mut(&token) else { return };
            match connection.link.flush().and_then(|()| connection.link.receive()) {
                Ok(None) => return,
                // One request a connection: a flood of them would keep us from everything else.
                Ok(Some(_)) if connection.asked => self.hang_up(token),
                Ok(Some((request, _))) => {
                    connection.asked = true;
                    self.serve(token, request);
                }
                // It has heard enough, or spoke nonsense.
                Err(_) => self.hang_up(token),
            }
        }
    }

    fn serve(&mut self, token: Token, request: Request) {
        let may_change = self.connections.get(&token).is_some_and(|connection| connection.may_change);
        if !may_change && request != Request::Status {
            return self
                .answer(Some(token), Reply::Refused("only root and Postern's own user may do this".into()));
        }
        match request {
            Request::Status => self.ask_all(token, Subject::Status(Vec::new()), || ToChild::Ping),
            Request::Probe(attempts) => {
                self.ask_all(token, Subject::Probe(Vec::new()), || ToChild::Probe(attempts.clone()));
            }
            Request::Reload => self.begin_reload(Some(token)),
            // The connection closes when we end: that is the answer.
            Request::Stop => self.begin_stop(false),
            Request::Queue(request) => {
                let place = self.place_of(Peer::only(Role::QueueManager));
                self.pass_on(token, place, &ToChild::Control { may_change, request });
            }
            Request::Explain(request) => {
                let place = self.living().into_iter().find(|&n| self.children[n].peer.role == Role::Smtpd);
                self.pass_on(token, place, &ToChild::Explain(request));
            }
        }
    }

    /// Another program answers at the caller's connection.
    fn pass_on(&mut self, token: Token, place: Option<usize>, message: &ToChild) {
        let (Some(place), Some(connection)) = (place, self.connections.remove(&token)) else {
            return self
                .answer(Some(token), Reply::Refused("nobody runs who could say it: try again".into()));
        };
        match connection.link.into_socket() {
            Ok(socket) => self.tell(place, message, vec![socket]),
            Err(error) => self.log.note(Level::Warning, None, &format!("control socket: {error}")),
        }
    }

    fn ask_all(&mut self, token: Token, subject: Subject, question: impl Fn() -> ToChild) {
        let living = self.living();
        living.iter().for_each(|&place| self.tell(place, &question(), Vec::new()));
        self.gathers.push(Gather::new(Some(token), subject, living.into_iter(), Instant::now()));
    }

    /// The places of the programs that run.
    fn living(&self) -> Vec<usize> {
        (0..self.children.len()).filter(|&place| self.children[place].running.is_some()).collect()
    }

    pub(super) fn conclude(&mut self, gather: Gather) {
        match gather.subject {
            Subject::Status(mut counters) => {
                let status = |(place, child): (usize, &Child)| ProgramStatus {
                    program: child.peer.to_string(),
                    pid: child.pid(),
                    started: child.running.as_ref().map(|r| r.started_at).unwrap_or_default(),
                    restarts: child.restarts,
                    counters: counters
                        .iter_mut()
                        .find(|(at, _)| *at == place)
                        .map(|(_, counters)| std::mem::take(counters))
                        .unwrap_or_default(),
                };
                let programs: Vec<_> = self.children.iter().enumerate().map(status).collect();
                // A frame holds some dozens of programs.
                for some in programs.chunks(16) {
                    self.say(gather.connection, &Reply::Programs(some.to_vec()));
                }
                self.say(gather.connection, &Reply::End);
            }
            Subject::Probe(outcomes) => {
                for (place, attempts) in outcomes {
                    self.say(gather.connection, &probed(self.children[place].peer, attempts));
                }
                self.say(gather.connection, &Reply::End);
            }
            Subject::Reload(new, refusals) => self.finish_reload(gather.connection, *new, refusals),
        }
    }

    /// One reply and the end.
    fn answer(&mut self, connection: Option<Token>, reply: Reply) {
        self.say(connection, &reply);
        self.say(connection, &Reply::End);
    }

    fn say(&mut self, connection: Option<Token>, reply: &Reply) {
        let Some(token) = connection else { return };
        if let Some(connection) = self.connections.get_mut(&token)
            && connection.link.send(reply).is_err()
        {
            self.connections.remove(&token);
        }
    }

    fn place_of(&self, peer: Peer) -> Option<usize> {
        self.children.iter().position(|child| child.peer == peer)
    }
}

fn probed(peer: Peer, attempts: Outcomes) -> Reply {
    Reply::Probed { program: peer.to_string(), attempts }
}

/// What a reload cannot change, if the configurations differ in it.
fn fixed_part_that_differs(old: &Config, new: &Config) -> Option<&'static str> {
    let base = |config: &Config| config.virtual_.as_ref().and_then(|v| v.mailbox.base());
    [
        ("spool", old.spool != new.spool),
        ("runtime", old.runtime != new.runtime),
        ("[[listen]]", old.listen != new.listen),
        ("[smtp] workers", old.smtp.workers() != new.smtp.workers()),
        ("[tls]", old.tls != new.tls),
        ("[virtual] mailbox or owner", base(old) != base(new) || owner(old) != owner(new)),
        ("the kind of log", std::mem::discriminant(&old.log) != std::mem::discriminant(&new.log)),
    ]
    .into_iter()
    .find_map(|(what, differs)| differs.then_some(what))
}

fn owner(config: &Config) -> Option<&str> {
    config.virtual_.as_ref().map(|v| v.owner.as_str())
}
