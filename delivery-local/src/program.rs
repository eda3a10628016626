//! The program: jobs in, workers, results out.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mio::Token;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, Uid};
use postern_config::LocalPart;
use postern_daemon::{Handles, Host, Port, Program, StartError};
use postern_event::{Attempt, Event, Level, Status};
use postern_ipc::queue_agent::{Destination, FromAgent, Job, Outcome, Report, ToAgent};
use postern_ipc::supervise::Handle;
use postern_ipc::{Peer, Role, blocking};
use postern_smtp::{EnhancedCode, Reply};
use postern_spool::Timestamp;

use crate::accounts::HostAccounts;
use crate::plan::{Post, Refusal, Surroundings, plan};
use crate::pool::{Action, Pool, WorkerId};
use crate::talk::{Deliver, FromWorker, ParentLink};
use crate::trouble::internal;
use crate::{trees, worker};

/// Most workers at once.
const WORKERS: usize = 50;

/// How often an ended worker is asked for, until the kernel has its status.
const REAP_EVERY: Duration = Duration::from_millis(200);

/// delivery-local.
#[derive(Debug)]
pub struct Local {
    config: LocalPart,
    queue: Port<FromAgent, ToAgent>,
    /// Counts the queue-managers: results are for the one that asked.
    generation: u64,
    jobs: HashMap<u64, UnderWay>,
    next_serial: u64,
    accounts: HostAccounts,
    pool: Pool,
    workers: HashMap<WorkerId, Live>,
    by_token: HashMap<Token, WorkerId>,
    ended: Vec<Pid>,
    /// `/proc/self/task`: counts threads before a fork.
    tasks: OwnedFd,
    base: Option<OwnedFd>,
    stopping: bool,
    delivered: u64,
    deferred: u64,
}

#[derive(Debug)]
struct UnderWay {
    job: Job,
    file: Option<OwnedFd>,
    generation: u64,
    begun: Timestamp,
}

#[derive(Debug)]
struct Live {
    link: ParentLink,
    token: Token,
    pid: Pid,
    left: bool,
}

impl Program for Local {
    const ROLE: Role = Role::DeliveryLocal;
    type Config = LocalPart;

    fn writable(config: &LocalPart) -> Vec<PathBuf> {
        trees::of_local(config.local_base.as_deref())
    }

    fn start(host: &mut Host, config: LocalPart, handles: Handles) -> Result<Self, StartError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let tasks = open("/proc/self/task", flags, Mode::empty())
            .map_err(|e| StartError(format!("cannot open /proc/self/task: {e}: is /proc mounted?")))?;
        let mut local = Self {
            queue: Port::new(host, Peer::only(Role::QueueManager)),
            config,
            generation: 0,
            jobs: HashMap::new(),
            next_serial: 0,
            accounts: HostAccounts::default(),
            pool: Pool::new(WORKERS),
            workers: HashMap::new(),
            by_token: HashMap::new(),
            ended: Vec::new(),
            tasks,
            base: None,
            stopping: false,
            delivered: 0,
            deferred: 0,
        };
        for (handle, descriptor) in handles {
            match handle {
                Handle::Link(peer) => local.linked(host, peer, descriptor),
                Handle::MailboxBase => local.base = Some(descriptor),
                other => return Err(StartError(format!("master handed over {other:?}, which is not ours"))),
            }
        }
        Ok(local)
    }

    fn linked(&mut self, host: &mut Host, peer: Peer, socket: OwnedFd) {
        if peer.role != Role::QueueManager {
            return host.note(Level::Warning, &format!("{peer} is no neighbour of this program"));
        }
        // A new queue-manager reads its queue anew and asks again: what no worker has is not done twice.
        self.generation += 1;
        for serial in self.pool.withdraw_waiting() {
            self.jobs.remove(&serial);
        }
        self.queue.connect(host, socket);
        let _ = self.queue.send(host, &FromAgent::Ready { jobs: self.config.jobs });
        self.hear_queue(host);
    }

    fn ready(&mut self, host: &mut Host, token: Token, _event: &mio::event::Event) {
        if token == self.queue.token() {
            self.queue.flush(host);
            return self.hear_queue(host);
        }
        if let Some(&id) = self.by_token.get(&token) {
            self.hear_worker(host, id);
        }
    }

    fn turn(&mut self, host: &mut Host) -> Option<Instant> {
        let actions = self.pool.expire(host.now());
        self.act(host, actions);
        self.reap(host);
        if self.stopping && self.jobs.is_empty() {
            host.finish();
        }
        let reaping = (!self.ended.is_empty()).then(|| host.now() + REAP_EVERY);
        [reaping, self.pool.deadline()].into_iter().flatten().min()
    }

    fn flush(&mut self, host: &mut Host) {
        self.queue.flush(host);
    }

    fn prepare(&mut self, _host: &mut Host, config: &LocalPart) -> Result<(), String> {
        let moved = |old: &Option<PathBuf>, new: &Option<PathBuf>| new.is_some() && old != new;
        if moved(&self.config.virtual_base, &config.virtual_base)
            || moved(&self.config.local_base, &config.local_base)
        {
            return Err("the mailboxes lie elsewhere now, where the sandbox does not reach: restart".into());
        }
        Ok(())
    }

    fn reload(&mut self, _host: &mut Host, config: LocalPart) {
        self.config = config;
    }

    fn stop(&mut self, host: &mut Host) {
        self.stopping = true;
        for serial in self.pool.withdraw_waiting() {
            let reply = Reply::new(451, EnhancedCode::new(4, 3, 2), "Postern is going down");
            self.refuse(host, serial, Refusal::Deferred(reply));
        }
    }

    fn counters(&self) -> Vec<(String, u64)> {
        vec![
            ("delivered".into(), self.delivered),
            ("deferred".into(), self.deferred),
            ("jobs".into(), self.jobs.len() as u64),
            ("workers".into(), self.workers.len() as u64),
        ]
    }
}

impl Local {
    fn hear_queue(&mut self, host: &mut Host) {
        while !self.stopping
            && let Some((said, descriptors)) = self.queue.receive(host)
        {
            match said {
                ToAgent::Job(job) => self.take(host, job, descriptors.into_iter().next()),
                // Nothing is held back here.
                ToAgent::Flush => {}
            }
        }
        if self.queue.take_lost() {
            self.generation += 1;
        }
    }

    fn take(&mut self, host: &mut Host, job: Job, file: Option<OwnedFd>) {
        self.next_serial += 1;
        let serial = self.next_serial;
        let surroundings = Surroundings {
            rooted: host.rooted,
            caller: Uid::current().as_raw(),
            virtual_owner: self.config.virtual_owner.clone(),
            has_base: self.base.is_some(),
        };
        let planned = plan(&job.destination, &surroundings, &mut self.accounts);
        let under_way = UnderWay { job, file, generation: self.generation, begun: host.wall() };
        self.jobs.insert(serial, under_way);
        match planned {
            Ok(post) => {
                let actions = self.pool.submit(serial, post, host.now());
                self.act(host, actions);
            }
            Err(refusal) => self.refuse(host, serial, refusal),
        }
    }

    fn act(&mut self, host: &mut Host, actions: Vec<Action>) {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Start(id, post) => {
                    if let Err(error) = self.start_worker(host, id, &post) {
                        host.note(Level::Error, &format!("cannot start a worker: {error}"));
                        let (lost, more) = self.pool.gone(id, false, host.now());
                        let reply = internal("no delivery process could be started");
                        lost.iter().for_each(|s| self.refuse(host, *s, Refusal::Deferred(reply.clone())));
                        actions.extend(more);
                    }
                }
                Action::Send(id, serial) if self.pool.holds(id, serial) => {
                    if let Err(error) = self.send(id, serial) {
                        let (_, more) = self.pool.finished(id, serial, host.now());
                        self.refuse(host, serial, Refusal::Deferred(internal(error)));
                        actions.extend(more);
                    }
                }
                // The worker was lost on the way here, and the job went elsewhere.
                Action::Send(..) => {}
                Action::End(id) => self.end(host, id),
            }
        }
    }

    fn start_worker(&mut self, host: &mut Host, id: WorkerId, post: &Post) -> Result<(), String> {
        let (ours, theirs) = blocking::pair().map_err(|e| format!("socket pair: {e}"))?;
        let mut keep = vec![theirs];
        if let Some(base) = &self.base {
            keep.push(base.try_clone().map_err(|e| format!("duplicate a descriptor: {e}"))?);
        }
        let hostname = self.config.hostname.as_str();
        let pid = postern_sys::fork_worker(self.tasks.as_fd(), keep, |kept| {
            let mut kept = kept.into_iter();
            match kept.next() {
                Some(socket) => worker::run(post, hostname, socket, kept.next()),
                None => 1,
            }
        })
        .map_err(|e| e.to_string())?;
        let (link, token) = (ParentLink::new(ours), host.token());
        if let Err(error) = host.watch(&link, token) {
            self.ended.push(pid);
            return Err(format!("event loop: {error}"));
        }
        self.workers.insert(id, Live { link, token, pid, left: false });
        self.by_token.insert(token, id);
        Ok(())
    }

    fn send(&mut self, id: WorkerId, serial: u64) -> Result<(), String> {
        match (self.workers.get_mut(&id), self.jobs.get(&serial)) {
            (Some(worker), Some(under_way)) => send_job(worker, serial, under_way),
            _ => Err("the delivery process is gone".into()),
        }
    }

    fn hear_worker(&mut self, host: &mut Host, id: WorkerId) {
        loop {
            let Some(worker) = self.workers.get_mut(&id) else { return };
            // What cannot be sent is noticed by receiving.
            let _ = worker.link.flush();
            match worker.link.receive() {
                Ok(Some((FromWorker::Done { serial, results }, _))) => {
                    let (had, actions) = self.pool.finished(id, serial, host.now());
                    if had {
                        self.finish(host, serial, results);
                    }
                    self.act(host, actions);
                }
                Ok(Some((FromWorker::Leaving, _))) => worker.left = true,
                Ok(None) => return,
                Err(_) => return self.lose(host, id),
            }
        }
    }

    /// A worker's socket is at its end, or says what makes no sense: it is no worker any more.
    fn lose(&mut self, host: &mut Host, id: WorkerId) {
        let in_order = self.workers.get(&id).is_some_and(|worker| worker.left);
        self.end(host, id);
        let (lost, actions) = self.pool.gone(id, in_order, host.now());
        for serial in lost {
            let reply = internal("the delivery process ended before it was done");
            self.refuse(host, serial, Refusal::Deferred(reply));
        }
        self.act(host, actions);
    }

    fn end(&mut self, host: &mut Host, id: WorkerId) {
        if let Some(worker) = self.workers.remove(&id) {
            host.unwatch(&worker.link);
            self.by_token.remove(&worker.token);
            self.ended.push(worker.pid);
        }
    }

    fn reap(&mut self, host: &mut Host) {
        self.ended.retain(|pid| match waitpid(*pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => true,
            Ok(WaitStatus::Exited(_, 0)) | Err(_) => false,
            Ok(status) => {
                host.note(Level::Warning, &format!("a worker ended badly: {status:?}"));
                false
            }
        });
    }

    fn refuse(&mut self, host: &mut Host, serial: u64, refusal: Refusal) {
        let Some(under_way) = self.jobs.remove(&serial) else { return };
        let relay = relay(&under_way.job.destination);
        let report =
            |reply| Report { relay: Some(relay.into()), reply, remote: false, destination_down: false };
        let outcome = match refusal {
            Refusal::Deferred(reply) => Outcome::Deferred(report(reply)),
            Refusal::Failed(reply) => Outcome::Failed(report(reply)),
        };
        let outcomes = under_way.job.recipients.iter().map(|t| (t.index, outcome.clone())).collect();
        self.report(host, &under_way, outcomes);
    }

    fn finish(&mut self, host: &mut Host, serial: u64, results: Vec<(u32, Result<(), Reply>)>) {
        let Some(under_way) = self.jobs.remove(&serial) else { return };
        let mut results: HashMap<u32, Result<(), Reply>> = results.into_iter().collect();
        let relay = relay(&under_way.job.destination);
        let report =
            |reply| Report { relay: Some(relay.into()), reply, remote: false, destination_down: false };
        let outcome = |index: u32| match results.remove(&index) {
            Some(Ok(())) => {
                let ok = Reply::new(250, EnhancedCode::new(2, 0, 0), "delivered to the mailbox");
                Outcome::Delivered(report(ok))
            }
            Some(Err(reply)) => Outcome::Deferred(report(reply)),
            // The worker is not trusted to have answered for everybody.
            None => Outcome::Deferred(report(internal("the delivery process gave no answer"))),
        };
        let mut outcome = outcome;
        let outcomes = under_way.job.recipients.iter().map(|t| (t.index, outcome(t.index))).collect();
        self.report(host, &under_way, outcomes);
    }

    /// Logs the outcomes, and tells the queue-manager if it is the one that asked.
    fn report(&mut self, host: &mut Host, under_way: &UnderWay, outcomes: Vec<(u32, Outcome)>) {
        let UnderWay { job, generation, begun, .. } = under_way;
        let now = Timestamp::now();
        let between = |from: Timestamp, to: Timestamp| to.0.saturating_sub(from.0);
        for (target, (_, outcome)) in job.recipients.iter().zip(&outcomes) {
            let status = match outcome {
                Outcome::Delivered(_) | Outcome::Relayed(_) | Outcome::Passed(_) => Status::Sent,
                Outcome::Deferred(_) => Status::Deferred,
                Outcome::Failed(_) => Status::Bounced,
            };
            match status {
                Status::Sent => self.delivered += 1,
                Status::Deferred => self.deferred += 1,
                Status::Bounced => {}
            }
            host.emit(&Event::Delivery(Attempt {
                id: job.queue_id,
                to: &target.recipient,
                orig_to: target.original.as_ref(),
                relay: outcome.report().relay.as_deref(),
                delays: [
                    between(job.arrival, job.scheduled),
                    between(job.scheduled, *begun),
                    0,
                    between(*begun, now),
                ],
                status,
                reply: &outcome.report().reply,
            }));
        }
        if *generation != self.generation {
            return;
        }
        // A lost link empties the port: the next queue-manager asks again.
        let _ = self.queue.send(host, &FromAgent::Results { job: job.job, results: outcomes })
            && self.queue.send(host, &FromAgent::Done { job: job.job });
    }
}

fn send_job(worker: &mut Live, serial: u64, under_way: &UnderWay) -> Result<(), String> {
    let job = &under_way.job;
    let (Destination::Local { mailbox, .. } | Destination::Virtual { mailbox }) = &job.destination else {
        return Err("job for another agent".into());
    };
    let deliver = Deliver {
        serial,
        reverse_path: job.reverse_path.clone(),
        recipients: job.recipients.iter().map(|t| (t.index, t.recipient.clone())).collect(),
        mailbox: mailbox.clone(),
        content: job.content.clone(),
    };
    // A copy: another worker gets the job if this one leaves before it begins.
    let file = under_way.file.as_ref().map(OwnedFd::try_clone).transpose();
    let file = file.map_err(|e| format!("duplicate a descriptor: {e}"))?;
    match worker.link.send_with(&deliver, file.into_iter().collect()) {
        // A dead worker is noticed by receiving: the job is in the pool's books.
        Ok(()) | Err(postern_ipc::LinkError::Closed | postern_ipc::LinkError::Io(_)) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

fn relay(destination: &Destination) -> &'static str {
    match destination {
        Destination::Virtual { .. } => "virtual",
        _ => "local",
    }
}
