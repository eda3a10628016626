//! What the scheduler says, done: questions to lookup, jobs to agents, records, reports, ends.

use postern_address::{Mailbox, ReversePath};
use postern_daemon::Host;
use postern_event::{Attempt, Event, Level, Status};
use postern_ipc::RequestId;
use postern_ipc::queue_agent::{FromAgent, Job, Outcome, Report, Target, ToAgent};
use postern_ipc::queue_lookup::{self, Delivery, Question, Say};
use postern_smtp::parameters::RcptParameters;
use postern_smtp::{EnhancedCode, Reply};
use postern_spool::{
    BodyType, DoneStatus, LogEntry, LogRecord, Options, QueueId, ReadError, Timestamp, WriteError,
};

use crate::bounces;
use crate::content::{self, Prepared};
use crate::queue::{QueueManager, Writing, damage};
use crate::replay::Replay;
use crate::scheduler::{Action, AgentKind, BounceOrder, Order, Place, ReportKey, ReportKind, Told};

/// Actions of one turn: then other events have their turn.
const ACTIONS_A_TURN: usize = 500;
/// Longest list of deliveries that is remembered for the next message to the same recipient.
const WAYS_MAX: usize = 4;

/// What a job needs of a message's envelope.
struct Needed {
    arrival: Timestamp,
    reverse_path: ReversePath,
    body: BodyType,
    options: Options,
    /// For each target.
    parameters: Vec<RcptParameters>,
}

impl QueueManager {
    pub(crate) fn hear_lookup(&mut self, host: &mut Host) {
        while let Some((said, _)) = self.lookup.receive(host) {
            let answer = match said {
                Say::Answer(answer) => answer,
                Say::Turn(domain) => {
                    self.turn_to(host, &domain);
                    continue;
                }
            };
            let Some((question, deliveries)) = self.answers.join(answer) else { continue };
            self.ways.answered(question, worth_keeping(&deliveries));
            if !self.scheduler.answer(question, deliveries, host.wall()) {
                host.note(Level::Warning, "lookup answered what it was not asked");
            }
        }
        self.miss_lookup();
    }

    /// Takes back what lookup was asked, if it is gone.
    pub(crate) fn miss_lookup(&mut self) {
        if self.lookup.take_lost() {
            self.scheduler.lookup_lost();
            self.ways.forget();
            self.answers.forget();
        }
    }

    /// The scheduler's question, answered by what lookup said a moment ago or by lookup.
    fn ask_lookup(&mut self, host: &mut Host, question: RequestId, recipient: Mailbox) {
        if let Some(ways) = self.ways.get(&recipient, host.now()) {
            self.scheduler.answer(question, Ok(ways.clone()), host.wall());
        } else if self.lookup.send(host, &Question { id: question, recipient: recipient.clone() }) {
            self.ways.asked(question, recipient, host.now());
        } else {
            self.miss_lookup();
        }
    }

    /// A domain's host says that it is there (ETRN, RFC 1985): what waits for it is tried now.
    fn turn_to(&mut self, host: &mut Host, domain: &postern_address::Domain) {
        let messages = self.scheduler.flush_destination(domain);
        for kind in [AgentKind::Remote, AgentKind::Lmtp] {
            // Who does not answer may answer now. An agent that is not there has nothing to forget.
            let _ = self.agents[kind as usize].send(host, &ToAgent::Flush);
        }
        host.note(Level::Info, &format!("etrn: {domain}: {messages} deferred messages are tried now"));
    }

    pub(crate) fn hear_agent(&mut self, host: &mut Host, kind: AgentKind) {
        while let Some((said, _)) = self.agents[kind as usize].receive(host) {
            let known = match said {
                FromAgent::Ready { jobs } => {
                    self.scheduler.agent_ready(kind, jobs);
                    true
                }
                FromAgent::Results { job, results } => {
                    let mut known = true;
                    for (target, outcome) in results {
                        known &= self.scheduler.result(job, target, outcome, host.wall());
                    }
                    known
                }
                FromAgent::Done { job } => self.scheduler.done(job, host.wall()),
            };
            if !known {
                let role = kind.role();
                host.note(Level::Warning, &format!("{role} told of a job or recipient it does not have"));
            }
        }
        self.agent_lost(host, kind);
    }

    /// Takes back what an agent had, if it is gone.
    pub(crate) fn agent_lost(&mut self, host: &mut Host, kind: AgentKind) {
        if self.agents[kind as usize].take_lost() {
            self.scheduler.agent_lost(kind, host.wall());
        }
    }

    /// Does what the scheduler says. True when there is more than a turn's work.
    pub(crate) fn obey_scheduler(&mut self, host: &mut Host) -> bool {
        for kind in AgentKind::ALL {
            let congested = self.agents[kind as usize].is_congested();
            self.scheduler.agent_congested(kind, congested);
        }
        for _ in 0..ACTIONS_A_TURN {
            let Some(action) = self.scheduler.next(host.wall()) else { return false };
            match action {
                Action::Load(id) => self.load(host, id),
                Action::Ask { question, recipient } => self.ask_lookup(host, question, recipient),
                Action::Start(order) => self.start_job(host, order),
                Action::Record(id, place, log) => self.record(host, id, place, log),
                Action::Tell(told) => tell(host, &told),
                Action::Bounce(order) => self.bounce(host, order),
                Action::DropBounce(id, why) => host.emit(&Event::BounceDropped { id, why }),
                Action::Finished(id, place) => self.finished(host, id, place),
            }
        }
        true
    }

    fn load(&mut self, host: &mut Host, id: QueueId) {
        let Some(place) = self.scheduler.place(id) else { return };
        let unwritten = self.store.unwritten(place.file).to_vec();
        let loaded = self.store.get(place.file).and_then(|file| {
            let stored = file.messages().get(usize::from(place.number));
            let stored = stored.ok_or_else(|| ReadError::Corrupt("no such message".into()))?;
            Ok(Replay::new(file.log().iter().chain(&unwritten), place.number, stored).loaded(stored))
        });
        match loaded {
            Ok(loaded) => self.scheduler.loaded(id, loaded, host.wall()),
            Err(ReadError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                host.note(Level::Error, &format!("{id}: its file is gone from the spool"));
                self.scheduler.forget(id);
                self.store.forget(place.file);
            }
            Err(error) => {
                if let Some(why) = damage(&error) {
                    self.scheduler.forget(id);
                    return self.set_aside(host, place.file, why);
                }
                host.note(Level::Error, &format!("{id}: cannot be read, trying again later: {error}"));
                self.scheduler.load_failed(id, host.wall());
            }
        }
    }

    fn start_job(&mut self, host: &mut Host, order: Order) {
        let now = host.wall();
        let Some(place) = self.scheduler.place(order.id) else { return };
        let length = |address: &postern_address::Mailbox| 8 + address.as_str().len();
        let beside: usize =
            order.targets.iter().map(|(to, from)| length(to) + from.as_ref().map_or(1, length)).sum();
        let prepared = self.store.get(place.file).and_then(|file| {
            let stored = file.messages().get(usize::from(place.number));
            let stored = stored.ok_or_else(|| ReadError::Corrupt("no such message".into()))?;
            let envelope = &stored.envelope;
            let beside = beside + order.parameters_size(&envelope.options);
            // Not the envelope itself: a message to thousands has as many jobs.
            let (targets, said) = ((0u32..).zip(&order.targets), &envelope.options);
            let parameters = targets.map(|(n, (_, original))| order.parameters(n, said, original.as_ref()));
            let needed = Needed {
                arrival: envelope.arrival,
                reverse_path: order
                    .owner
                    .clone()
                    .map_or_else(|| envelope.reverse_path.clone(), ReversePath::Mailbox),
                body: envelope.body,
                options: order.options(said),
                parameters: parameters.collect(),
            };
            Ok((content::prepare(file, place.number, beside)?, needed))
        });
        let (prepared, needed) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return self.unreadable(host, &order, place, &error),
        };
        let Prepared { content, descriptor, trace } = prepared;
        let mut targets = Vec::new();
        for ((index, (address, original)), parameters) in (0u32..).zip(&order.targets).zip(needed.parameters)
        {
            let Some(reply) = trace.refuses(self.config.hops, &order.destination, address) else {
                let (recipient, original) = (address.clone(), original.clone());
                targets.push(Target { index, recipient, original, parameters });
                continue;
            };
            tell(
                host,
                &Told {
                    id: order.id,
                    address: address.clone(),
                    original: original.clone(),
                    arrival: needed.arrival,
                    scheduled: order.scheduled,
                    status: Status::Bounced,
                    reply: reply.clone(),
                },
            );
            self.scheduler.result(order.job, index, Outcome::Failed(ours(reply)), now);
        }
        if targets.is_empty() {
            self.scheduler.done(order.job, now);
            return;
        }
        let job = Job {
            job: order.job,
            queue_id: order.id,
            arrival: needed.arrival,
            scheduled: order.scheduled,
            options: Box::new(needed.options),
            reverse_path: needed.reverse_path,
            recipients: targets,
            destination: order.destination,
            body: needed.body,
            content,
        };
        let agent = &mut self.agents[order.agent as usize];
        let descriptors = descriptor.into_iter().collect();
        let sent = agent.send_with(host, &ToAgent::Job(job), descriptors);
        let congested = agent.is_congested();
        self.agent_lost(host, order.agent);
        self.scheduler.agent_congested(order.agent, congested);
        if !sent {
            // The link is as good as before, or the job went back with all others of it.
            self.scheduler.done(order.job, now);
        }
    }

    /// A message that cannot be read is tried again later; one that is damaged is held for a human, who may
    /// have a copy, and not destroyed.
    fn unreadable(&mut self, host: &mut Host, order: &Order, place: Place, error: &ReadError) {
        let reply = Reply::new(451, EnhancedCode::new(4, 3, 0), "the message cannot be read from the spool");
        for index in 0..order.targets.len() as u32 {
            self.scheduler.result(order.job, index, Outcome::Deferred(ours(reply.clone())), host.wall());
        }
        if let Some(why) = damage(error) {
            let why = format!("{}: {why}; the message is held", order.id);
            host.emit(&Event::Corrupt { file: &place.file.to_string(), why: &why });
            self.scheduler.hold(order.id, host.wall());
        } else {
            host.note(Level::Error, &format!("{}: cannot be read, trying again later: {error}", order.id));
        }
        self.scheduler.done(order.job, host.wall());
    }

    fn record(&mut self, host: &mut Host, id: QueueId, place: Place, log: Vec<LogEntry>) {
        let record = |what| LogRecord { message: place.number, what };
        let records: Vec<LogRecord> = log.into_iter().map(record).collect();
        if let Err(error) = self.store.append(place.file, &records) {
            // It is kept in memory and tried again; a crash would repeat what is not written.
            host.note(Level::Error, &format!("{id}: cannot record results in its spool file: {error}"));
        }
    }

    fn bounce(&mut self, host: &mut Host, order: BounceOrder) {
        let id = self.next_id();
        let (now, place) = (host.wall(), self.scheduler.place(order.id));
        let written = place.ok_or_else(|| "not in the queue".to_owned()).and_then(|place| {
            let file = self.store.get(place.file).map_err(|error| error.to_string())?;
            bounces::write(file, place, &order, id, self.config.hostname.as_str(), now)
                .map_err(|error| error.to_string())
        });
        match written {
            Ok(Some(message)) => {
                let token = self.next_token(Writing::Bounce { of: order.id, key: order.key });
                self.writer.submit(token, message);
            }
            Ok(None) => {
                host.emit(&Event::BounceDropped { id: order.id, why: "the reverse-path is null" });
                self.scheduler.bounced(order.id, &order.key, true, now);
            }
            Err(error) => {
                let text = format!("{}: cannot write a report to its sender now: {error}", order.id);
                host.note(Level::Error, &text);
                self.scheduler.bounced(order.id, &order.key, false, now);
            }
        }
    }

    pub(crate) fn next_token(&mut self, writing: Writing) -> u64 {
        self.last_write += 1;
        self.writing.insert(self.last_write, writing);
        self.last_write
    }

    /// Takes what the writer has finished.
    pub(crate) fn hear_writer(&mut self, host: &mut Host) {
        for completion in self.writer.completions() {
            match self.writing.remove(&completion.token) {
                Some(Writing::Bounce { of, key }) => {
                    self.bounce_written(host, of, &key, completion.id, completion.result);
                }
                Some(Writing::Pickup(pickup)) => {
                    self.picked_up(host, completion.token, &pickup, completion.result)
                }
                None => {}
            }
        }
    }

    fn bounce_written(
        &mut self,
        host: &mut Host,
        of: QueueId,
        key: &ReportKey,
        bounce: QueueId,
        result: Result<(), WriteError>,
    ) {
        match &result {
            Ok(()) => {
                let told = match key.kind {
                    ReportKind::Failure => "failure",
                    ReportKind::Delay => "delay",
                    ReportKind::Success => "success",
                };
                host.emit(&Event::BounceQueued { id: of, bounce, told });
            }
            Err(error) => {
                host.note(Level::Error, &format!("{of}: cannot write a report to its sender now: {error}"))
            }
        }
        self.scheduler.bounced(of, key, result.is_ok(), host.wall());
    }

    /// The order of things at a message's end is told in [`crate::store`].
    fn finished(&mut self, host: &mut Host, id: QueueId, place: Place) {
        let mut recorded = true;
        if self.store.is_shared(place.file) {
            // The file stays: what an operator removed, or could not be recorded before, must be in its log.
            let unwritten = self.store.unwritten(place.file).to_vec();
            let left = self.store.get(place.file).map(|file| {
                let stored = file.messages().get(usize::from(place.number));
                stored.map(|stored| {
                    let log = file.log().iter().chain(&unwritten);
                    removals(&Replay::new(log, place.number, stored), stored, place)
                })
            });
            let ended = left.and_then(|left| match left.filter(|left| !left.is_empty()) {
                Some(left) => self.store.append(place.file, &left),
                None => Ok(()),
            });
            if let Err(error) = ended {
                recorded = false;
                host.note(Level::Error, &format!("{id}: cannot record its end in its spool file: {error}"));
            }
        }
        match self.store.finish(place.file, place.number, recorded) {
            Ok(()) => host.emit(&Event::Removed { id }),
            Err(error) => {
                let text =
                    format!("{id}: finished, but its file cannot be removed from the spool's cur/: {error}");
                host.note(Level::Error, &text);
                self.store.remove_later(place.file, id);
            }
        }
    }
}

fn removals(replay: &Replay, stored: &postern_spool::Stored, place: Place) -> Vec<LogRecord> {
    let removed = |(recipient, _)| LogRecord {
        message: place.number,
        what: LogEntry::Done { recipient, address: None, status: DoneStatus::Removed },
    };
    replay.unfinished(stored).map(removed).collect()
}

/// What the next message to the same recipient may be sent by. Where nobody can be reached lookup is asked again:
/// that is what an operator repairs.
fn worth_keeping(deliveries: &Result<Vec<Delivery>, String>) -> Option<Vec<Delivery>> {
    let fails = |delivery: &Delivery| matches!(delivery.action, queue_lookup::Action::Fail(_));
    let ways = deliveries.as_ref().ok()?;
    (ways.len() <= WAYS_MAX && !ways.iter().any(fails)).then(|| ways.clone())
}

fn ours(reply: Reply) -> Report {
    Report { relay: None, reply, remote: false, destination_down: false }
}

fn tell(host: &mut Host, told: &Told) {
    let now = host.wall().0;
    let delays = [
        told.scheduled.0.saturating_sub(told.arrival.0),
        now.saturating_sub(told.scheduled.0.max(told.arrival.0)),
        0,
        0,
    ];
    host.emit(&Event::Delivery(Attempt {
        id: told.id,
        to: &told.address,
        orig_to: told.original.as_ref(),
        relay: None,
        delays,
        status: told.status,
        reply: &told.reply,
    }));
}
