//! `postern explain`: the rules tried for a client that is not there, with the real neighbours, and each
//! step told to whoever asks.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::Token;
use postern_config::{Listen, Service, Stage};
use postern_daemon::Host;
use postern_ipc::control::{Reply as Said, Request};
use postern_ipc::explain::{ExplainRequest, Explained};
use postern_ipc::smtpd_lookup::{self, Incoming};
use postern_ipc::smtpd_verify::{self, ClientFacts, ClientName};
use postern_ipc::{Link, RequestId};
use postern_smtp::Reply;
use postern_smtp::server::Answer;

use super::effects::Effects;
use super::engine::{Decision, Evaluation, Heard, Need, Rules, Step, Verdict};
use super::facts::Facts;
use super::shell::{Dialogue, delegated, protocol_state};
use crate::connection::Key;
use crate::refusal;
use crate::worker::Worker;

/// Explanations at once.
const DESKS: usize = 8;

/// Their places are the last: no connection ever has one (there are fewer descriptors).
const FIRST_PLACE: usize = (1 << 24) - 1 - DESKS;

/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// All explanations under way.
pub(crate) struct Explanations {
    first_token: usize,
    desks: [Option<Desk>; DESKS],
    serial: u64,
}

/// One of them.
struct Desk {
    link: Link<Said, Request>,
    key: Key,
    request: ExplainRequest,
    rules: Arc<Rules>,
    listen: Listen,
    client: Option<ClientFacts>,
    evaluation: Evaluation,
    /// lookup is asked whether the recipient is taken.
    at_recipient: bool,
    effects: Effects,
    otherwise: Option<Reply>,
    until: Instant,
    over: bool,
}

impl Explanations {
    pub(crate) fn new(host: &mut Host) -> Self {
        Self { first_token: host.tokens(DESKS).0, desks: [const { None }; DESKS], serial: 0 }
    }

    /// Somebody wants to know.
    pub(crate) fn begin(
        &mut self,
        host: &mut Host,
        worker: &mut Worker,
        listeners: &[Listen],
        request: ExplainRequest,
        connection: OwnedFd,
    ) {
        let mut link = Link::new(connection);
        let place = self.desks.iter().position(Option::is_none);
        let (Some(place), Some(listen)) = (place, listener(listeners, &request)) else {
            let why =
                if place.is_none() { "too many explanations at once: try again" } else { "no such listener" };
            // A caller who is gone needs no answer.
            let _ = link.send(&Said::Refused(why.into())).and_then(|()| link.send(&Said::End));
            return;
        };
        if host.watch(&link, Token(self.first_token + place)).is_err() {
            return;
        }
        self.serial += 1;
        let key = Key::new(FIRST_PLACE + place, self.serial);
        let client = request.client;
        // As for a session of it: who is exempt from limits is looked up in no list.
        let listed = worker.abuse.guard(listen.service, client).is_listed();
        let desk = Desk {
            link,
            key,
            request,
            rules: worker.rules.clone(),
            listen,
            client: None,
            evaluation: Evaluation::new(Stage::Client, true),
            at_recipient: false,
            effects: Effects::default(),
            otherwise: None,
            until: host.now() + PATIENCE,
            over: false,
        };
        self.desks[place] = Some(desk);
        let ask = smtpd_verify::Ask::Begin { client, listener: 0, counted: false, listed };
        let question = smtpd_verify::Question { id: key.request(0), ask };
        if worker.verify.is_congested() || !worker.verify.send(host, &question) {
            self.verify_said(host, worker, question.id, smtpd_verify::Say::Client(ClientFacts::UNKNOWN));
        }
    }

    /// An answer of verify that no connection waits for.
    pub(crate) fn verify_said(
        &mut self,
        host: &mut Host,
        worker: &mut Worker,
        id: RequestId,
        say: smtpd_verify::Say,
    ) {
        let Some(desk) = self.of(id) else { return };
        match say {
            smtpd_verify::Say::Client(facts) if desk.client.is_none() => {
                desk.introduce(facts);
                desk.go_on(host, worker, None);
            }
            smtpd_verify::Say::Delegated(said) => desk.go_on(host, worker, Some(Heard::Server(said))),
            _ => {}
        }
        self.sweep(host.now());
    }

    /// An answer of lookup that no connection waits for.
    pub(crate) fn lookup_said(
        &mut self,
        host: &mut Host,
        worker: &mut Worker,
        id: RequestId,
        say: smtpd_lookup::Say,
    ) {
        let Some(desk) = self.of(id) else { return };
        match say {
            smtpd_lookup::Say::Table(said) => desk.go_on(host, worker, Some(Heard::Table(said))),
            smtpd_lookup::Say::Recipient(verdict) if desk.at_recipient => {
                desk.judged_by_lookup(host, worker, verdict)
            }
            _ => {}
        }
        self.sweep(host.now());
    }

    /// Whether an event is for one of them; then it was dealt with.
    pub(crate) fn ready(&mut self, host: &Host, token: Token) -> bool {
        let place = token.0.checked_sub(self.first_token).filter(|place| *place < DESKS);
        let Some(place) = place else { return false };
        if let Some(desk) = &mut self.desks[place] {
            // Who hangs up, or talks, has heard enough.
            let heard = desk.link.flush().and_then(|()| desk.link.receive());
            desk.until = if matches!(heard, Ok(None)) { desk.until } else { host.now() };
        }
        self.sweep(host.now());
        true
    }

    /// Somebody who was asked is gone, or it takes too long.
    pub(crate) fn pass(&mut self, now: Instant, lost: bool) {
        for desk in self.desks.iter_mut().flatten() {
            if lost && !desk.over {
                desk.say(&Said::Refused("a program that was asked has ended: try again".into()));
                desk.end();
            }
        }
        self.sweep(now);
    }

    /// When to call [`Explanations::pass`].
    pub(crate) fn next(&self) -> Option<Instant> {
        self.desks.iter().flatten().map(|desk| desk.until).min()
    }

    fn of(&mut self, id: RequestId) -> Option<&mut Desk> {
        let (key, _) = Key::of_request(id);
        self.desks.iter_mut().flatten().find(|desk| desk.key == key && !desk.over)
    }

    fn sweep(&mut self, now: Instant) {
        for slot in &mut self.desks {
            if slot.as_ref().is_some_and(|d| d.until <= now || (d.over && !d.link.wants_write())) {
                *slot = None;
            }
        }
    }
}

impl Desk {
    fn introduce(&mut self, facts: ClientFacts) {
        let (name, why) = match &facts.name {
            ClientName::Confirmed(name) => (Some(name.to_string()), "name confirmed by the DNS".to_owned()),
            ClientName::Unknown => (None, "no name, or none that leads back to the address".to_owned()),
            ClientName::Unavailable => (None, "the DNS does not say what its name is".to_owned()),
        };
        let lists: Vec<_> =
            facts.lists.iter().map(|hit| format!("{} ({:+})", hit.list, hit.weight)).collect();
        let words = if lists.is_empty() { why } else { format!("{why}; lists: {}", lists.join(", ")) };
        self.say(&explained(Explained::Client { name, words, score: facts.list_score }));
        self.client = Some(facts);
    }

    /// The rules, stage by stage, as far as it goes.
    fn go_on(&mut self, host: &mut Host, worker: &mut Worker, mut heard: Option<Heard>) {
        loop {
            let rules = self.rules.clone();
            let (request, listen) = (&self.request, &self.listen);
            let stage = self.evaluation.stage;
            let known = |from: Stage| stage >= from;
            let to = if known(Stage::Rcpt) { std::slice::from_ref(&request.to) } else { &[] };
            let facts = Facts {
                address: request.client,
                service: listen.service,
                listener: listen.address,
                client: self.client.as_ref(),
                helo: if known(Stage::Helo) { &request.helo } else { "" },
                user: request.user.as_deref().filter(|_| known(Stage::From)),
                from: known(Stage::From).then_some(&request.from),
                to,
                message: None,
            };
            let step = self.evaluation.step(&rules, &facts, heard.take());
            let need = match step {
                Step::Need(need) => need,
                Step::Done(verdict) => {
                    self.tell_tried();
                    if !self.stage_over(host, worker, verdict) {
                        return;
                    }
                    continue;
                }
            };
            let id = self.key.request(1);
            let asked = match need {
                Need::Client => return,
                Need::Table(table, keys) => {
                    worker.ask_lookup(host, id, smtpd_lookup::Ask::Table { table, keys })
                }
                Need::Server(server) => {
                    let state = protocol_state(stage, true);
                    let instance = format!("explain.{id:x}");
                    let count = usize::from(stage == Stage::Data);
                    let dialogue = Dialogue { state, name: "ESMTP", count, size: 0, instance: &instance };
                    let ask =
                        smtpd_verify::Ask::Delegate { server, attributes: delegated(&facts, &dialogue) };
                    worker.verify.send(host, &smtpd_verify::Question { id, ask })
                }
            };
            self.tell_tried();
            if !asked {
                self.say(&Said::Refused("lookup or verify cannot be asked: try again".into()));
                self.end();
            }
            return;
        }
    }

    fn tell_tried(&mut self) {
        for tried in self.evaluation.tried() {
            self.say(&explained(Explained::Tried(tried)));
        }
    }

    /// True when the next stage is to be tried at once.
    fn stage_over(&mut self, host: &mut Host, worker: &mut Worker, verdict: Verdict) -> bool {
        let stage = self.evaluation.stage;
        let refusal = verdict.refusal(stage).cloned();
        let words = match (&refusal, &verdict.decision) {
            (Some(reply), _) => reply.to_string(),
            (None, Decision::Accept) => "accept".to_owned(),
            (None, _) => "pass".to_owned(),
        };
        let effects = words_of(&verdict.effects);
        self.say(&explained(Explained::Stage { stage: stage.name().to_owned(), verdict: words, effects }));
        if let Some(reply) = refusal {
            self.outcome(reply.to_string());
            return false;
        }
        self.effects.add(verdict.effects);
        self.otherwise = verdict.otherwise;
        if stage == Stage::Rcpt {
            self.ask_recipient(host, worker);
            return false;
        }
        self.next_stage()
    }

    /// True when there is one.
    fn next_stage(&mut self) -> bool {
        let next = Stage::ALL.into_iter().find(|stage| *stage > self.evaluation.stage);
        match next {
            Some(stage) => self.evaluation = Evaluation::new(stage, true),
            None => self.outcome("accepted".to_owned()),
        }
        next.is_some()
    }

    fn ask_recipient(&mut self, host: &mut Host, worker: &mut Worker) {
        self.at_recipient = true;
        let (client, recipient) = (self.request.client, self.request.to.clone());
        let authenticated = self.request.user.is_some();
        let ask = smtpd_lookup::Ask::Recipient(Incoming { client, authenticated, recipient });
        if !worker.ask_lookup(host, self.key.request(2), ask) {
            self.say(&Said::Refused("lookup cannot be asked: try again".into()));
            self.end();
        }
    }

    fn judged_by_lookup(&mut self, host: &mut Host, worker: &mut Worker, verdict: smtpd_lookup::Verdict) {
        self.at_recipient = false;
        let taken = match &verdict {
            smtpd_lookup::Verdict::Local => "it is ours, and exists",
            _ => "it is another host's, and may be relayed",
        };
        match refusal::answer(verdict) {
            Answer::Refused(reply) | Answer::Closed(reply) => {
                self.say(&explained(Explained::Recipient { verdict: reply.to_string() }));
                self.outcome(reply.to_string());
            }
            _ => {
                self.say(&explained(Explained::Recipient { verdict: taken.to_owned() }));
                match self.otherwise.take() {
                    Some(reply) => self.outcome(reply.to_string()),
                    None if self.next_stage() => self.go_on(host, worker, None),
                    None => {}
                }
            }
        }
    }

    fn outcome(&mut self, verdict: String) {
        let effects = words_of(&self.effects);
        self.say(&explained(Explained::Outcome { verdict, effects }));
        self.end();
    }

    fn end(&mut self) {
        self.say(&Said::End);
        self.over = true;
    }

    /// Who is gone by then is noticed by the event loop.
    fn say(&mut self, said: &Said) {
        if self.link.send(said).is_err() {
            self.over = true;
        }
    }
}

fn explained(step: Explained) -> Said {
    Said::Explained(Box::new(step))
}

/// The one that is named; else the first that other hosts come to.
fn listener(listeners: &[Listen], request: &ExplainRequest) -> Option<Listen> {
    let found = match request.listener {
        Some(address) => listeners.iter().find(|listen| listen.address == address),
        None => listeners.iter().find(|listen| listen.service == Service::Smtp).or_else(|| listeners.first()),
    };
    found.cloned()
}

fn words_of(effects: &Effects) -> Vec<String> {
    let mut words = Vec::new();
    if effects.discarded {
        words.push("discard".to_owned());
    }
    if effects.held {
        words.push("hold".to_owned());
    }
    words.extend(effects.redirect.iter().map(|to| format!("redirect to <{to}>")));
    words.extend(effects.tags.iter().map(|tag| format!("tag {tag}")));
    words
}
