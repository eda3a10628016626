//! The program: the scheduler's hands.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use mio::Token;
use postern_address::Mailbox;
use postern_config::QueuePart;
use postern_daemon::{Handles, Host, Port, Program, StartError};
use postern_event::{Event, Level};
use postern_ipc::control::{QueueRequest, Reply as Answer};
use postern_ipc::queue_agent::{FromAgent, ToAgent};
use postern_ipc::supervise::Handle;
use postern_ipc::{Peer, Recent, Role, queue_lookup};
use postern_spool::{IdAllocator, QueueId, ReadError, Slot, Writer, WriterDirs};

use crate::copier::Copier;
use crate::intake::{Janitor, JanitorDirs, Recovery, Troubles, Watcher, recover};
use crate::operator::{Operators, detail};
use crate::pickup::Pickup;
use crate::scheduler::{AgentKind, Limits, ReportKey, Scheduler};
use crate::store::Store;

/// Directories are scanned so often, whatever the kernel told.
const SCAN_EVERY: Duration = Duration::from_secs(30);
/// The same when the kernel tells nothing.
const SCAN_UNWATCHED: Duration = Duration::from_secs(1);
/// A result is on stable storage after at most a second: this, and the time the disk takes.
const SYNC_AFTER: Duration = Duration::from_millis(700);
/// Jobs may take so long to end when we are to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// The last sync may take so long.
const SYNC_PATIENCE: Duration = Duration::from_secs(15);

/// The queue-manager.
pub struct QueueManager {
    pub(crate) config: QueuePart,
    pub(crate) scheduler: Scheduler,
    pub(crate) store: Store,
    pub(crate) new: OwnedFd,
    pub(crate) drop: OwnedFd,
    pub(crate) corrupt: OwnedFd,
    pub(crate) writer: Writer,
    /// What the writer writes for us, by its token.
    pub(crate) writing: HashMap<u64, Writing>,
    pub(crate) last_write: u64,
    pub(crate) ids: IdAllocator,
    pub(crate) lookup: Port<queue_lookup::Question, queue_lookup::Say>,
    pub(crate) answers: queue_lookup::Answers,
    /// Ways that lookup showed a moment ago.
    pub(crate) ways: Recent<Mailbox, Vec<queue_lookup::Delivery>>,
    pub(crate) agents: [Port<ToAgent, FromAgent>; 3],
    watcher: Option<(Watcher, Token)>,
    janitor: Janitor,
    pub(crate) recovery: Option<Receiver<Recovery>>,
    pub(crate) recovered: (u64, u64),
    /// Files taken in while recovery runs: it may list them too.
    pub(crate) taken: HashSet<QueueId>,
    /// Names in `new/` and `drop/` to be looked at.
    pub(crate) incoming: VecDeque<QueueId>,
    pub(crate) dropped: VecDeque<QueueId>,
    /// Files of `drop/` that are with the writer.
    pub(crate) picking: HashSet<QueueId>,
    /// Large ones, which are taken one after the other.
    pub(crate) large: VecDeque<QueueId>,
    pub(crate) copier: Copier,
    /// The one large message of `drop/` on its way.
    pub(crate) streaming: Option<u64>,
    pub(crate) troubles: Troubles,
    operators: Operators,
    next_scan: Instant,
    next_sync: Option<Instant>,
    stopping: Option<Instant>,
}

/// What the writer writes for us.
#[derive(Debug)]
pub(crate) enum Writing {
    /// A report on a message.
    Bounce {
        /// The message.
        of: QueueId,
        /// Which of its reports.
        key: ReportKey,
    },
    /// A message of a local program.
    Pickup(Box<Pickup>),
}

impl Program for QueueManager {
    const ROLE: Role = Role::QueueManager;
    type Config = QueuePart;

    fn start(host: &mut Host, config: QueuePart, handles: Handles) -> Result<Self, StartError> {
        let mut links = Vec::new();
        let mut directories = HashMap::new();
        for (handle, descriptor) in handles {
            match handle {
                Handle::Link(peer) => links.push((peer, descriptor)),
                Handle::SpoolDirectory(name) => drop(directories.insert(name, descriptor)),
                other => host.note(Level::Warning, &format!("a handle that is of no use here: {other:?}")),
            }
        }
        let mut directory = |name: &str| {
            directories.remove(name).ok_or_else(|| StartError(format!("no handle for the spool's {name}/")))
        };
        let (tmp, new, cur) = (directory("tmp")?, directory("new")?, directory("cur")?);
        let (drop, corrupt) = (directory("drop")?, directory("corrupt")?);
        let mut queue = Self::build(host, config, [tmp, new, cur, drop, corrupt])
            .map_err(|error| StartError(format!("cannot work in the spool: {error}")))?;
        for (peer, socket) in links {
            queue.linked(host, peer, socket);
        }
        queue.scan(host);
        Ok(queue)
    }

    fn linked(&mut self, host: &mut Host, peer: Peer, socket: OwnedFd) {
        if peer.role == Role::Lookup {
            self.lookup.connect(host, socket);
            self.miss_lookup();
            if self.lookup.is_connected() {
                self.scheduler.lookup_linked();
            }
            return self.hear_lookup(host);
        }
        let Some(kind) = AgentKind::ALL.into_iter().find(|kind| kind.role() == peer.role) else {
            return host.note(Level::Warning, &format!("a link to {peer} is of no use here"));
        };
        self.agents[kind as usize].connect(host, socket);
        self.agent_lost(host, kind);
        self.hear_agent(host, kind);
    }

    fn ready(&mut self, host: &mut Host, token: Token, _: &mio::event::Event) {
        if token == self.lookup.token() {
            self.lookup.flush(host);
            return self.hear_lookup(host);
        }
        if let Some(kind) = AgentKind::ALL.into_iter().find(|k| self.agents[*k as usize].token() == token) {
            self.agents[kind as usize].flush(host);
            return self.hear_agent(host, kind);
        }
        if let Some((watcher, at)) = &self.watcher
            && *at == token
        {
            let seen = watcher.read();
            self.incoming.extend(seen.new);
            self.dropped.extend(seen.dropped);
            if seen.overflow {
                self.next_scan = host.now();
            }
            return;
        }
        self.operators.ready(host, token);
    }

    fn turn(&mut self, host: &mut Host) -> Option<Instant> {
        let mut busy = false;
        self.hear_writer(host);
        self.hear_janitor(host);
        self.hear_syncer(host);
        if self.stopping.is_none() {
            busy |= self.hear_recovery(host);
            if host.now() >= self.next_scan {
                self.scan(host);
            }
            busy |= self.take_in(host);
            busy |= self.pick_up(host);
        }
        busy |= self.obey_scheduler(host);
        busy |= self.operators.turn(host, &self.scheduler, &mut self.store);
        self.sync_when_due(host);
        if let Some(patience) = self.stopping {
            self.stop_when_quiet(host, patience);
        }
        if busy { Some(host.now()) } else { self.deadline(host) }
    }

    fn flush(&mut self, host: &mut Host) {
        self.lookup.flush(host);
        self.agents.iter_mut().for_each(|agent| agent.flush(host));
    }

    fn reload(&mut self, host: &mut Host, config: QueuePart) {
        self.ways.forget();
        self.scheduler.set_limits(Limits::from((&config.limits, config.connections)));
        self.config = config;
        let _ = host;
    }

    fn stop(&mut self, host: &mut Host) {
        self.scheduler.stop();
        self.give_up_streaming();
        self.stopping = Some(host.now() + STOP_PATIENCE);
    }

    fn control(&mut self, host: &mut Host, may_change: bool, request: QueueRequest, connection: OwnedFd) {
        let reply = match request {
            _ if !may_change => {
                Answer::Refused("only root and the owner of the system may see the queue".into())
            }
            QueueRequest::List => return self.operators.list(host, connection),
            QueueRequest::Show(id) => self.show(id),
            QueueRequest::Flush(id) => {
                self.ways.forget();
                let found = self.scheduler.flush(id);
                for agent in &mut self.agents {
                    // An agent that is not there has nothing to forget.
                    let _ = agent.send(host, &ToAgent::Flush);
                }
                self.done(host, id, found, "flushed")
            }
            QueueRequest::Hold(id) => {
                let found = self.scheduler.hold(id, host.wall());
                self.done(host, Some(id), found, "held")
            }
            QueueRequest::Release(id) => {
                let found = self.scheduler.release(id);
                self.done(host, Some(id), found, "released")
            }
            QueueRequest::Remove(id) => {
                let found = self.scheduler.remove(id, host.wall());
                self.done(host, Some(id), found, "removed")
            }
        };
        self.operators.answer(host, connection, vec![reply]);
    }

    fn counters(&self) -> Vec<(String, u64)> {
        let (all, deferred, scheduled, held) = self.scheduler.sizes();
        let counts = self.scheduler.counts();
        [
            ("active", (all - deferred - scheduled - held) as u64),
            ("deferred", deferred as u64),
            ("scheduled", scheduled as u64),
            ("held", held as u64),
            ("delivered", counts.delivered),
            ("deferrals", counts.deferred),
            ("bounced", counts.bounced),
            ("removed", counts.removed),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }
}

impl QueueManager {
    /// Puts the parts together; `directories` are tmp, new, cur, drop and corrupt.
    fn build(host: &mut Host, config: QueuePart, directories: [OwnedFd; 5]) -> std::io::Result<Self> {
        let [tmp, new, cur, drop, corrupt] = directories;
        let wake = |host: &Host| {
            let waker = host.waker();
            // A wake-up that fails is made good by the next event or deadline.
            move || std::mem::drop(waker.wake())
        };
        let watcher = match Watcher::new(new.as_fd(), drop.as_fd()) {
            Ok(watcher) => {
                let token = host.token();
                host.watch(&std::os::fd::AsRawFd::as_raw_fd(&watcher.as_fd()), token)?;
                Some((watcher, token))
            }
            Err(error) => {
                let text = format!("cannot watch new/ and drop/, scanning them each second instead: {error}");
                host.note(Level::Warning, &text);
                None
            }
        };
        let janitor = JanitorDirs {
            tmp: tmp.try_clone()?,
            new: new.try_clone()?,
            corrupt: corrupt.try_clone()?,
            drop: drop.try_clone()?,
        };
        let copier = Copier::start(drop.try_clone()?, cur.try_clone()?, wake(host))?;
        let recovery = recover(cur.try_clone()?, wake(host))?;
        let seed = host.wall().0 ^ (u64::from(std::process::id()) << 40);
        Ok(Self {
            scheduler: Scheduler::new(Limits::from((&config.limits, config.connections)), seed),
            config,
            store: Store::new(cur, drop.try_clone()?, wake(host))?,
            // Who called sendmail waits for drop/ alone, and for a report nobody.
            writer: Writer::start_unhurried(WriterDirs { tmp, new: new.try_clone()? }, wake(host))?,
            writing: HashMap::new(),
            last_write: 0,
            ids: IdAllocator::new(Slot::QUEUE_MANAGER),
            lookup: Port::new(host, Peer::only(Role::Lookup)),
            answers: queue_lookup::Answers::default(),
            ways: Recent::default(),
            agents: AgentKind::ALL.map(|kind| Port::new(host, Peer::only(kind.role()))),
            watcher,
            janitor: Janitor::start(janitor, wake(host))?,
            recovery: Some(recovery),
            recovered: (0, 0),
            taken: HashSet::new(),
            incoming: VecDeque::new(),
            dropped: VecDeque::new(),
            picking: HashSet::new(),
            large: VecDeque::new(),
            copier,
            streaming: None,
            troubles: Troubles::default(),
            operators: Operators::default(),
            next_scan: host.now(),
            next_sync: None,
            stopping: None,
            new,
            drop,
            corrupt,
        })
    }

    fn deadline(&self, host: &Host) -> Option<Instant> {
        let retry = self.scheduler.deadline().map(|at| {
            let wait = at.0.saturating_sub(host.wall().0);
            host.now() + Duration::from_millis(wait.min(60_000))
        });
        let stop = self.stopping.map(|at| at.max(host.now() + Duration::from_millis(50)));
        let scan = self.stopping.is_none().then_some(self.next_scan);
        [retry, self.next_sync, stop, scan].into_iter().flatten().min()
    }

    /// Looks at the directories: what the kernel did not tell, and what could not be taken before.
    fn scan(&mut self, host: &mut Host) {
        self.next_scan = host.now() + if self.watcher.is_some() { SCAN_EVERY } else { SCAN_UNWATCHED };
        let found = postern_spool::list(self.new.as_fd())
            .and_then(|new| Ok((new.files, postern_spool::list(self.drop.as_fd())?.files)));
        match found {
            Ok((new, dropped)) => {
                self.incoming.extend(new);
                self.dropped.extend(dropped);
            }
            Err(error) => {
                host.note(Level::Error, &format!("cannot list new/ and drop/ of the spool: {error}"))
            }
        }
    }

    fn hear_janitor(&mut self, host: &mut Host) {
        while let Some(told) = self.janitor.told() {
            let rescued = match told {
                Ok(rescued) => rescued,
                Err(error) => {
                    host.note(Level::Error, &format!("cannot look through tmp/ of the spool: {error}"));
                    continue;
                }
            };
            for (file, why) in &rescued.set_aside {
                host.emit(&Event::Corrupt { file, why });
            }
            for (file, why) in rescued.failed.iter().filter(|(f, w)| self.troubles.is_news(f, w)) {
                host.note(Level::Warning, &format!("tmp/{file}: {why}"));
            }
            if !rescued.swept.is_empty() {
                let files = rescued.swept.len();
                host.note(Level::Info, &format!("removed {files} unfinished files a day old from the spool"));
            }
            self.incoming.extend(rescued.adopted);
        }
    }

    fn hear_syncer(&mut self, host: &mut Host) {
        for (name, error) in self.store.finish_sync() {
            let text = format!("cannot sync {name} of the spool: {error}; results may be lost in a crash");
            host.note(Level::Error, &text);
        }
    }

    fn sync_when_due(&mut self, host: &mut Host) {
        if !self.store.is_dirty() {
            self.next_sync = None;
            return;
        }
        let due = *self.next_sync.get_or_insert(host.now() + SYNC_AFTER);
        if host.now() >= due && !self.store.is_syncing() {
            for id in self.store.remove_again() {
                host.emit(&Event::Removed { id });
            }
            self.store.sync();
            self.next_sync = None;
        } else if host.now() >= due {
            // The thread wakes us when it is done with the batch before.
            self.next_sync = Some(host.now() + SYNC_AFTER);
        }
    }

    fn stop_when_quiet(&mut self, host: &mut Host, patience: Instant) {
        let quiet = self.scheduler.is_quiet() && self.writing.is_empty();
        if !quiet && host.now() < patience {
            return;
        }
        self.store.sync();
        if !self.store.is_dirty() && !self.store.is_syncing() {
            if !quiet {
                host.note(
                    Level::Warning,
                    "stopping with deliveries under way: they are tried again at the start",
                );
            }
            host.finish();
        } else if host.now() >= patience + SYNC_PATIENCE {
            host.note(
                Level::Error,
                "stopping while the disk still writes results: some may be lost in a crash",
            );
            host.finish();
        }
    }

    fn show(&mut self, id: QueueId) -> Answer {
        let (Some(place), Some(standing)) = (self.scheduler.place(id), self.scheduler.standing(id)) else {
            return unknown(id);
        };
        match detail(&mut self.store, id, place, standing) {
            Ok(detail) => Answer::Message(Box::new(detail)),
            Err(error) => Answer::Refused(format!("{id} cannot be read: {error}")),
        }
    }

    fn done(&mut self, host: &mut Host, id: Option<QueueId>, found: bool, action: &str) -> Answer {
        match (found, id) {
            (true, id) => {
                host.emit(&Event::Operator { id, action });
                let what = id.map_or("the queue".to_owned(), |id| id.to_string());
                Answer::Done(format!("{what}: {action}"))
            }
            (false, Some(id)) => unknown(id),
            (false, None) => Answer::Refused("nothing to do".into()),
        }
    }

    pub(crate) fn next_id(&mut self) -> QueueId {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        self.ids.next(since.map_or(0, |since| since.as_micros() as u64))
    }

    /// Sets a file of `cur/` aside for a human.
    pub(crate) fn set_aside(&mut self, host: &mut Host, file: QueueId, why: &str) {
        self.store.forget(file);
        let (name, cur) = (file.to_string(), self.store.directory().as_fd());
        match postern_spool::set_aside(cur, &name, self.corrupt.as_fd()) {
            Ok(file) => host.emit(&Event::Corrupt { file: &file, why }),
            Err(error) => {
                host.note(Level::Error, &format!("cannot set the damaged file {name} aside: {error} ({why})"))
            }
        }
    }
}

fn unknown(id: QueueId) -> Answer {
    Answer::Refused(format!("{id} is not in the queue, or not in a state for that"))
}

/// Why a file of the queue is of no use, when it is not only for now.
pub(crate) fn damage(error: &ReadError) -> Option<&str> {
    match error {
        ReadError::Corrupt(why) => Some(why),
        ReadError::Io(_) | ReadError::Newer(_) => None,
    }
}
