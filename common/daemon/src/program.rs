//! From exec to exit.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token, Waker};
use postern_event::{Event, Level, Log};
use postern_ipc::supervise::{FromChild, Handle, ToChild};
use postern_ipc::{Link, LinkError, MAX_CONFIG, Peer, Role, blocking, decode_config};
use postern_sandbox::{Confinement, Endpoint};
use serde::de::DeserializeOwned;

use crate::host::Host;

const CONTROL: Token = Token(0);
const WAKER: Token = Token(1);

/// How long master may take to say `Start`.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// The descriptors handed to a program at its start.
pub type Handles = Vec<(Handle, OwnedFd)>;

/// Why a program does not start: one sentence for the log, with what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(pub String);

/// A program: what it does when something happens. Everything runs on one thread and must not block.
pub trait Program: Sized {
    /// Which program.
    const ROLE: Role;
    /// Its part of the configuration.
    type Config: DeserializeOwned;

    /// Files and directories of the configuration that it reads itself; the sandbox lets it.
    fn readable(config: &Self::Config) -> Vec<PathBuf> {
        let _ = config;
        Vec::new()
    }

    /// Directories of the configuration that it works in, beyond those handed to it.
    fn writable(config: &Self::Config) -> Vec<PathBuf> {
        let _ = config;
        Vec::new()
    }

    /// Servers of the configuration that it connects to itself; the sandbox lets it.
    fn reachable(config: &Self::Config) -> Vec<Endpoint> {
        let _ = config;
        Vec::new()
    }

    /// Starts serving, in the sandbox.
    fn start(host: &mut Host, config: Self::Config, handles: Handles) -> Result<Self, StartError>;

    /// A neighbour was started anew: this is the way to it.
    fn linked(&mut self, host: &mut Host, peer: Peer, socket: OwnedFd);

    /// A watched descriptor may be read or written.
    fn ready(&mut self, host: &mut Host, token: Token, event: &mio::event::Event);

    /// The end of a turn of the loop: after its events, a wake-up or the deadline. Returns the next
    /// deadline.
    fn turn(&mut self, host: &mut Host) -> Option<Instant>;

    /// Sends what was said in this turn: flushes every port.
    fn flush(&mut self, host: &mut Host);

    /// Whether a new configuration can be taken without a restart; the reason if not.
    fn prepare(&mut self, host: &mut Host, config: &Self::Config) -> Result<(), String> {
        let _ = (host, config);
        Ok(())
    }

    /// As [`Program::prepare`], with the files that master opened anew for this program (keys alone: the
    /// key and its certificate, as [`Handle`] names them).
    fn prepare_with(
        &mut self,
        host: &mut Host,
        config: &Self::Config,
        files: Vec<OwnedFd>,
    ) -> Result<(), String> {
        drop(files);
        self.prepare(host, config)
    }

    /// Takes the configuration last prepared.
    fn reload(&mut self, host: &mut Host, config: Self::Config);

    /// Take nothing new, finish what is under way, then call [`Host::finish`]. Master kills after 30 s.
    fn stop(&mut self, host: &mut Host);

    /// An operator's command (queue-manager alone).
    fn control(
        &mut self,
        host: &mut Host,
        may_change: bool,
        request: postern_ipc::control::QueueRequest,
        connection: OwnedFd,
    ) {
        let _ = (host, may_change, request, connection);
    }

    /// What would become of this mail? (smtpd alone)
    fn explain(
        &mut self,
        host: &mut Host,
        request: postern_ipc::explain::ExplainRequest,
        connection: OwnedFd,
    ) {
        let _ = (host, request, connection);
    }

    /// Numbers for `postern status`.
    fn counters(&self) -> Vec<(String, u64)> {
        Vec::new()
    }
}

/// The `main` of a program.
pub fn run<P: Program>() -> ExitCode {
    let Some(control) = postern_sys::inherited(3) else {
        let name = P::ROLE.name();
        eprintln!("postern-{name} is a part of Postern and is started by it: see postern(8), `postern run`");
        return ExitCode::from(64);
    };
    match serve::<P>(Link::new(control)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(End::MasterGone) => ExitCode::SUCCESS,
        Err(End::Failed(mut log, error)) => {
            if let Some(log) = &mut log {
                log.note(Level::Fatal, None, &error);
                log.flush();
            } else {
                eprintln!("postern-{}: {error}", P::ROLE.name());
            }
            ExitCode::FAILURE
        }
    }
}

type Control = Link<FromChild, ToChild>;

/// Why a program ends other than by being told to.
enum End {
    MasterGone,
    Failed(Option<Box<Log>>, String),
}

impl From<LinkError> for End {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Closed => Self::MasterGone,
            error => Self::Failed(None, format!("control socket: {error}")),
        }
    }
}

fn serve<P: Program>(mut control: Control) -> Result<(), End> {
    let (start, descriptors) = blocking::receive(&mut control, Some(START_PATIENCE))?;
    let ToChild::Start { me, handles, identity, log: kind } = start else {
        return Err(End::Failed(None, "master did not say Start first".into()));
    };
    let mut descriptors = descriptors.into_iter();
    let (Some(config), Some(log)) = (descriptors.next(), descriptors.next()) else {
        return Err(End::Failed(None, "master sent no configuration".into()));
    };
    let mut log = Log::new(log, kind, me.role.name());
    let rooted = identity.is_some();
    let handles: Handles = handles.into_iter().zip(descriptors).collect();
    let begun = (|| -> Result<_, String> {
        let config: P::Config = read_config(config)?;
        let (readable, writable) = (P::readable(&config), P::writable(&config));
        let directories = handles.iter().map(|(handle, fd)| (handle.clone(), fd.as_fd())).collect();
        let reachable = P::reachable(&config);
        let confinement = Confinement { role: me.role, identity, readable, writable, reachable, directories };
        let report =
            postern_sandbox::enter(&confinement).map_err(|e| format!("cannot enter the sandbox: {e}"))?;
        let (landlock, seccomp, user) = (&*report.landlock, &*report.seccomp, &*report.user);
        log.emit(&Event::Sandboxed { landlock, seccomp, user });
        let poll = Poll::new().map_err(|e| format!("event loop: {e}"))?;
        let waker = Waker::new(poll.registry(), WAKER).map_err(|e| format!("event loop: {e}"))?;
        let registry = poll.registry().try_clone().map_err(|e| format!("event loop: {e}"))?;
        Ok((config, poll, registry, Arc::new(waker)))
    })();
    let (config, poll, registry, waker) = match begun {
        Ok(begun) => begun,
        Err(error) => return Err(End::Failed(Some(Box::new(log)), error)),
    };
    let mut host = Host::new(me, log, rooted, registry, waker);
    let failed = |host: Host, error: String| End::Failed(Some(Box::new(host.log)), error);
    if let Err(error) = host.watch(&control, CONTROL) {
        return Err(failed(host, format!("event loop: {error}")));
    }
    match P::start(&mut host, config, handles) {
        Ok(program) => turn_until_stopped(host, poll, control, program),
        Err(error) => Err(failed(host, error.0)),
    }
}

fn read_config<C: DeserializeOwned>(descriptor: OwnedFd) -> Result<C, String> {
    let mut bytes = Vec::new();
    let file = std::fs::File::from(descriptor);
    file.take(MAX_CONFIG as u64 + 1).read_to_end(&mut bytes).map_err(|e| format!("configuration: {e}"))?;
    decode_config(&bytes).map_err(|e| format!("configuration: {e}"))
}

fn turn_until_stopped<P: Program>(
    mut host: Host,
    mut poll: Poll,
    mut control: Control,
    mut program: P,
) -> Result<(), End> {
    let mut events = Events::with_capacity(1024);
    let mut prepared = None;
    control.send(&FromChild::Ready)?;
    loop {
        let deadline = program.turn(&mut host);
        program.flush(&mut host);
        if host.log.take_broken() {
            control.send(&FromChild::LogBroken)?;
        }
        host.log.flush();
        if host.finished {
            return Ok(());
        }
        let deadline = if std::mem::take(&mut host.again) { Some(host.now()) } else { deadline };
        let patience = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        match poll.poll(&mut events, patience.map(round_up)) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(End::Failed(Some(Box::new(host.log)), format!("event loop: {e}"))),
            Ok(()) => {}
        }
        host.tick();
        for event in &events {
            match event.token() {
                CONTROL => {
                    control.flush()?;
                    while let Some((message, descriptors)) = control.receive()? {
                        obey(&mut host, &mut program, &mut control, &mut prepared, message, descriptors)?;
                    }
                }
                WAKER => {}
                token => program.ready(&mut host, token, event),
            }
        }
    }
}

/// epoll counts milliseconds: rounded down, a deadline in half a millisecond would spin.
fn round_up(duration: Duration) -> Duration {
    Duration::from_millis(duration.as_micros().div_ceil(1000) as u64)
}

fn obey<P: Program>(
    host: &mut Host,
    program: &mut P,
    control: &mut Control,
    prepared: &mut Option<P::Config>,
    message: ToChild,
    descriptors: Vec<OwnedFd>,
) -> Result<(), LinkError> {
    let mut descriptors = descriptors.into_iter();
    let descriptor = descriptors.next();
    match (message, descriptor) {
        (ToChild::Linked(peer), Some(socket)) => program.linked(host, peer, socket),
        (ToChild::Prepare, Some(config)) => {
            let outcome = read_config::<P::Config>(config).and_then(|config| {
                program.prepare_with(host, &config, descriptors.collect())?;
                *prepared = Some(config);
                Ok(())
            });
            control.send(&FromChild::Prepared(outcome))?;
        }
        (ToChild::Commit, log) => {
            if let Some(log) = log {
                host.log.replace(log);
            }
            if let Some(config) = prepared.take() {
                program.reload(host, config);
            }
        }
        (ToChild::Abort, _) => *prepared = None,
        (ToChild::Stop, _) => program.stop(host),
        (ToChild::Probe(attempts), _) => {
            let outcome = attempts.into_iter().map(|a| (a.clone(), postern_sandbox::attempt(&a))).collect();
            control.send(&FromChild::Probed(outcome))?;
        }
        (ToChild::Control { may_change, request }, Some(connection)) => {
            program.control(host, may_change, request, connection);
        }
        (ToChild::Explain(request), Some(connection)) => program.explain(host, *request, connection),
        (ToChild::Log, Some(log)) => host.log.replace(log),
        (ToChild::Ping, _) => control.send(&FromChild::Alive(program.counters()))?,
        (message, _) => {
            host.note(Level::Warning, &format!("master said what makes no sense here: {message:?}"))
        }
    }
    Ok(())
}
