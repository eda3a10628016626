//! The loop: signals, children, time.

mod commands;

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use postern_config::Config;
use postern_event::{Event, Level, Log, LogKind};
use postern_ipc::supervise::{FromChild, Handle, ToChild};
use postern_ipc::{LinkError, Peer, Role, blocking, topology};

use crate::child::{self, Child, Running};
use crate::control_socket::{Connection, ControlSocket};
use crate::gather::Gather;
use crate::notify::notify;
use crate::resources::{self, Resources};
use crate::{Fatal, identity};

/// What `postern --version` says.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

const SIGNALS: Token = Token(0);
const CONTROL: Token = Token(1);
const FIRST_CHILD: usize = 2;
const FIRST_CONNECTION: usize = 1 << 16;

/// Links that go with `Start`; the rest follow one by one.
const LINKS_AT_START: usize = 8;

/// How often a program may ask for another log in its life: it does so when syslog was restarted, and at
/// most every ten seconds.
const LOGS_MAX: u32 = 10_000;

/// The order in which programs are stopped: first nothing new comes in, then what is being delivered is
/// finished with the agents' help, then the rest goes. A stage that takes longer than its patience is
/// killed; nothing is lost by it.
const STAGES: [Stage; 3] = [
    Stage { who: Some(Role::Smtpd), patience: Duration::from_secs(15) },
    Stage { who: Some(Role::QueueManager), patience: Duration::from_secs(20) },
    Stage { who: None, patience: Duration::from_secs(15) },
];

/// Some programs, or all, that are stopped together.
struct Stage {
    who: Option<Role>,
    patience: Duration,
}

impl Stage {
    fn has(&self, role: Role) -> bool {
        self.who.is_none_or(|who| who == role)
    }
}

/// The running system.
pub(crate) struct Supervisor {
    config_path: PathBuf,
    config: Config,
    programs: PathBuf,
    resources: Resources,
    log: Log,
    log_descriptor: OwnedFd,
    log_kind: LogKind,
    poll: Poll,
    signals: SignalFd,
    control: ControlSocket,
    connections: HashMap<Token, Connection>,
    next_connection: usize,
    children: Vec<Child>,
    gathers: Vec<Gather>,
    began: Instant,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// Some program has not served yet since the start.
    Starting,
    Running,
    /// In this stage of [`STAGES`] until this instant; a failed start ends with status 1.
    Stopping {
        stage: usize,
        kill_at: Instant,
        failed: bool,
    },
}

impl Supervisor {
    /// Opens everything and starts every program.
    pub(crate) fn start(config_path: &Path, config: Config) -> Result<Self, Fatal> {
        let began = Instant::now();
        // Modes are given by those who make files; this keeps the world out where they forget.
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o007));
        let (log_descriptor, log_kind) = resources::log(&config.log)?;
        let own = log_descriptor.try_clone().map_err(|e| Fatal::because("log", e))?;
        let mut log = Log::new(own, log_kind, Role::Master.name());
        let resources = Resources::open(&config)?;
        let control = ControlSocket::open(&config.runtime)?;
        let poll = Poll::new().map_err(|e| Fatal::because("event loop", e))?;
        let signals = signals()?;
        watch(&poll, &signals, SIGNALS)?;
        watch(&poll, control.descriptor(), CONTROL)?;
        let path = config_path.display().to_string();
        log.emit(&Event::Started { version: VERSION, configuration: &path });
        for (listen, address) in config.listen.iter().zip(resources.addresses()) {
            let address = address.map_err(|e| Fatal::because("listener", e))?;
            log.emit(&Event::Listening { address, service: resources::service_name(listen.service) });
        }
        let children = child::peers(&config).map(|peer| Child::new(peer, began)).collect();
        Ok(Self {
            config_path: config_path.to_owned(),
            programs: programs()?,
            config,
            resources,
            log,
            log_descriptor,
            log_kind,
            poll,
            signals,
            control,
            connections: HashMap::new(),
            next_connection: FIRST_CONNECTION,
            children,
            gathers: Vec::new(),
            began,
            phase: Phase::Starting,
        })
    }

    /// Turns until the system is down.
    pub(crate) fn supervise(mut self) -> Result<(), Fatal> {
        let ended = self.turn();
        if let Err(error) = &ended {
            self.log.note(Level::Fatal, None, &error.0);
        }
        self.log.flush();
        ended
    }

    fn turn(&mut self) -> Result<(), Fatal> {
        let mut events = Events::with_capacity(256);
        loop {
            self.keep_time()?;
            self.log.flush();
            if let Phase::Stopping { failed, .. } = self.phase
                && self.children.iter().all(|child| child.running.is_none())
            {
                self.log.emit(&Event::Stopped);
                return if failed {
                    Err(Fatal("the system did not start: the log says why".into()))
                } else {
                    Ok(())
                };
            }
            let patience = self.deadline().map(|at| at.saturating_duration_since(Instant::now()));
            match self.poll.poll(&mut events, patience.map(|p| p + Duration::from_millis(1))) {
                Err(e) if e.kind() != std::io::ErrorKind::Interrupted => {
                    return Err(Fatal::because("event loop", e));
                }
                _ => {}
            }
            for token in events.iter().map(|event| event.token()).collect::<Vec<_>>() {
                match token {
                    SIGNALS => self.take_signals(),
                    CONTROL => self.take_callers(),
                    Token(n) if n >= FIRST_CONNECTION => self.hear_caller(token),
                    Token(n) => self.hear_child(n - FIRST_CHILD),
                }
            }
        }
    }

    // Time.

    fn deadline(&self) -> Option<Instant> {
        // During a reload nobody is started, and its end is among the others.
        let startable = if self.is_reloading() { &[][..] } else { &self.children[..] };
        let restarts = startable.iter().filter_map(|child| child.restart_at);
        let gathers = self.gathers.iter().map(Gather::deadline);
        let kill = match self.phase {
            Phase::Stopping { kill_at, .. } => Some(kill_at),
            _ => None,
        };
        restarts.chain(gathers).chain(kill).min()
    }

    fn keep_time(&mut self) -> Result<(), Fatal> {
        let now = Instant::now();
        while let Some(n) = self.gathers.iter_mut().position(|gather| gather.is_over(now)) {
            let gather = self.gathers.swap_remove(n);
            self.conclude(gather);
        }
        for place in 0..self.children.len() {
            if !self.is_reloading() && self.children[place].restart_at.is_some_and(|at| at <= now) {
                self.start_or_retry(place, now)?;
            }
        }
        if let Phase::Stopping { stage, kill_at, failed } = self.phase {
            let of_stage = |child: &&mut Child| STAGES[stage].has(child.peer.role) && child.running.is_some();
            let mut left = self.children.iter_mut().filter(of_stage).peekable();
            if left.peek().is_none() && stage + 1 < STAGES.len() {
                self.stop_stage(stage + 1, failed);
            } else if kill_at <= now {
                for running in left.filter_map(|child| child.running.as_mut()) {
                    // Already dead is as good.
                    let _ = running.process.kill();
                }
                self.phase = Phase::Stopping { stage, kill_at: now + Duration::from_secs(5), failed };
            }
        }
        Ok(())
    }

    // Children.

    /// What cannot be started now (no memory, no descriptors, an upgrade under way) is tried again later,
    /// once the system runs: the other programs do their work meanwhile.
    fn start_or_retry(&mut self, place: usize, now: Instant) -> Result<(), Fatal> {
        let started = self.start_child(place);
        match started {
            Err(error) if self.phase != Phase::Starting => {
                self.log.note(Level::Error, None, &error.0);
                let child = &mut self.children[place];
                child.restart_at = Some(now + child.backoff.died(now, now));
                Ok(())
            }
            started => started,
        }
    }

    fn start_child(&mut self, place: usize) -> Result<(), Fatal> {
        let peer = self.children[place].peer;
        self.children[place].restart_at = None;
        let failed = |e: &dyn std::fmt::Display| Fatal(format!("cannot start postern-{peer}: {e}"));
        let mut descriptors = vec![
            child::part(&self.config, peer.role).map_err(|e| failed(&e))?,
            self.log_descriptor.try_clone().map_err(|e| failed(&e))?,
        ];
        let mut handles = self.resources.handles(peer.role).map_err(|e| failed(&e))?;
        let mut links = self.connect(place).map_err(|e| failed(&e))?;
        let later = links.split_off(links.len().min(LINKS_AT_START));
        handles.extend(links.into_iter().map(|(neighbour, socket)| (Handle::Link(neighbour), socket)));
        let (handles, handed): (Vec<_>, Vec<_>) = handles.into_iter().unzip();
        descriptors.extend(handed);
        let start =
            ToChild::Start { me: peer, handles, identity: identity::of(peer.role)?, log: self.log_kind };
        let mut running = Running::execute(&self.programs, peer.role).map_err(|e| failed(&e))?;
        if let Err(error) = watch(&self.poll, &running.link, Token(FIRST_CHILD + place)) {
            // Nobody else would bury it.
            let _ = running.process.kill().and_then(|()| running.process.wait());
            return Err(error);
        }
        let pid = running.process.id();
        self.children[place].running = Some(running);
        self.tell(place, &start, descriptors);
        for (neighbour, socket) in later {
            self.tell(place, &ToChild::Linked(neighbour), vec![socket]);
        }
        self.log.emit(&Event::ProgramStarted { program: &peer.to_string(), pid });
        Ok(())
    }

    /// Makes a link to every neighbour that lives, and tells the neighbour: our ends. A neighbour that
    /// does not live yet is connected when it is started.
    fn connect(&mut self, place: usize) -> std::io::Result<Vec<(Peer, OwnedFd)>> {
        let me = self.children[place].peer;
        let mut links = Vec::new();
        for neighbour in topology::neighbours(me.role) {
            for other in 0..self.children.len() {
                if self.children[other].peer.role != neighbour || self.children[other].running.is_none() {
                    continue;
                }
                let (ours, theirs) = blocking::pair()?;
                links.push((self.children[other].peer, ours));
                self.tell(other, &ToChild::Linked(me), vec![theirs]);
            }
        }
        Ok(links)
    }

    /// Says something to a program. One that cannot be told is dying: its death will be seen.
    fn tell(&mut self, place: usize, message: &ToChild, descriptors: Vec<OwnedFd>) {
        let Some(running) = &mut self.children[place].running else { return };
        running.owed += u32::from(matches!(message, ToChild::Ping | ToChild::Prepare | ToChild::Probe(_)));
        let told = running.link.send_with(message, descriptors);
        let deaf = running.link.is_congested();
        let peer = self.children[place].peer;
        if let Err(error) = told
            && !matches!(error, LinkError::Closed)
        {
            self.log.note(Level::Error, None, &format!("cannot tell {peer}: {error}"));
        }
        if deaf {
            // What is kept for it are descriptors as well, and we have need of ours.
            self.misbehaves(place, "it does not hear its control socket any more");
        }
    }

    /// A program that hangs, or was taken over: its successor does better.
    fn misbehaves(&mut self, place: usize, how: &str) {
        let Some(running) = &mut self.children[place].running else { return };
        let _ = self.poll.registry().deregister(&mut SourceFd(&running.link.as_raw_fd()));
        let peer = self.children[place].peer;
        self.log.note(Level::Error, None, &format!("{peer} on its control socket: {how}: it is killed"));
        self.kill(place);
    }

    fn hear_child(&mut self, place: usize) {
        loop {
            let Some(running) = self.children.get_mut(place).and_then(|child| child.running.as_mut()) else {
                return;
            };
            let heard = running.link.flush().and_then(|()| running.link.receive());
            match heard {
                Ok(None) => return,
                Ok(Some((FromChild::Ready, _))) if !running.ready => {
                    running.ready = true;
                    self.check_ready();
                }
                Ok(Some((FromChild::LogBroken, _))) if running.logs < LOGS_MAX => {
                    running.logs += 1;
                    self.reopen_log(place);
                }
                Ok(Some((answer, _))) if running.owed > 0 => {
                    running.owed -= 1;
                    self.gathers.iter_mut().for_each(|gather| gather.answer(place, &answer));
                }
                // However much it says: it cannot keep us from the others.
                Ok(Some(_)) => return self.misbehaves(place, "it says what nobody asked"),
                // It is dying, and its death will be seen; the socket would wake us until then.
                Err(LinkError::Closed) => {
                    let _ = self.poll.registry().deregister(&mut SourceFd(&running.link.as_raw_fd()));
                    return;
                }
                Err(error) => return self.misbehaves(place, &error.to_string()),
            }
        }
    }

    fn kill(&mut self, place: usize) {
        if let Some(running) = &mut self.children[place].running {
            // Already dead is as good.
            let _ = running.process.kill();
        }
    }

    fn check_ready(&mut self) {
        let all =
            self.children.iter().all(|child| child.running.as_ref().is_some_and(|running| running.ready));
        if self.phase == Phase::Starting && all {
            self.phase = Phase::Running;
            self.log.emit(&Event::Ready { milliseconds: self.began.elapsed().as_millis() as u64 });
            if let Err(error) = notify("READY=1") {
                self.log.note(
                    Level::Warning,
                    None,
                    &format!("cannot tell NOTIFY_SOCKET that we serve: {error}"),
                );
            }
        }
    }

    fn bury_the_dead(&mut self) {
        let now = Instant::now();
        for place in 0..self.children.len() {
            let child = &mut self.children[place];
            let Some(running) = &mut child.running else { continue };
            let status = match running.process.try_wait() {
                Ok(Some(status)) => status,
                Ok(None) => continue,
                Err(error) => {
                    self.log.note(Level::Error, None, &format!("waiting for {}: {error}", child.peer));
                    continue;
                }
            };
            let (pid, started) = (running.process.id(), running.started);
            child.running = None;
            self.gathers.iter_mut().for_each(|gather| gather.died(place));
            if matches!(self.phase, Phase::Stopping { .. }) {
                continue;
            }
            let wait = child.backoff.died(started, now);
            child.restart_at = Some(now + wait);
            child.restarts += 1;
            let (program, how) = (child.peer.to_string(), status.to_string());
            let restart_in_ms = wait.as_millis() as u64;
            self.log.emit(&Event::ProgramDied { program: &program, pid, how: &how, restart_in_ms });
            if self.phase == Phase::Starting {
                self.log.note(Level::Fatal, None, &format!("{program} did not start: giving up"));
                self.begin_stop(true);
            }
        }
    }

    fn reopen_log(&mut self, place: usize) {
        match resources::log(&self.config.log).and_then(|(log, _)| {
            self.log.replace(log.try_clone().map_err(|e| Fatal::because("log", e))?);
            self.log_descriptor = log.try_clone().map_err(|e| Fatal::because("log", e))?;
            Ok(log)
        }) {
            Ok(log) => self.tell(place, &ToChild::Log, vec![log]),
            Err(error) => self.log.note(Level::Warning, None, &format!("cannot open the log anew: {error}")),
        }
    }

    // Signals.

    fn take_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            match Signal::try_from(signal.ssi_signo as i32) {
                Ok(Signal::SIGCHLD) => self.bury_the_dead(),
                Ok(Signal::SIGHUP) => self.begin_reload(None),
                Ok(Signal::SIGTERM | Signal::SIGINT) => self.begin_stop(false),
                _ => {}
            }
        }
    }

    fn begin_stop(&mut self, failed: bool) {
        if matches!(self.phase, Phase::Stopping { .. }) {
            return;
        }
        self.log.emit(&Event::Stopping);
        // Whoever started us may not listen; the stop goes on.
        let _ = notify("STOPPING=1");
        self.children.iter_mut().for_each(|child| child.restart_at = None);
        self.stop_stage(0, failed);
    }

    fn stop_stage(&mut self, stage: usize, failed: bool) {
        self.phase = Phase::Stopping { stage, kill_at: Instant::now() + STAGES[stage].patience, failed };
        for place in 0..self.children.len() {
            if STAGES[stage].has(self.children[place].peer.role) {
                self.tell(place, &ToChild::Stop, Vec::new());
            }
        }
    }
}

/// Where the programs lie: beside this one.
fn programs() -> Result<PathBuf, Fatal> {
    let own = std::env::current_exe().map_err(|e| Fatal::because("finding the programs", e))?;
    own.parent().map(Path::to_owned).ok_or_else(|| Fatal("finding the programs: no directory".into()))
}

/// Signals become readable instead of interrupting.
fn signals() -> Result<SignalFd, Fatal> {
    let failed = |e| Fatal::because("signals", e);
    let wanted: SigSet =
        [Signal::SIGCHLD, Signal::SIGHUP, Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    wanted.thread_block().map_err(failed)?;
    SignalFd::with_flags(&wanted, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).map_err(failed)
}

fn watch(poll: &Poll, descriptor: &impl AsRawFd, token: Token) -> Result<(), Fatal> {
    let both = Interest::READABLE | Interest::WRITABLE;
    let registered = poll.registry().register(&mut SourceFd(&descriptor.as_raw_fd()), token, both);
    registered.map_err(|e| Fatal::because("event loop", e))
}
