//! The systems, as a load sees them.

use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postern_tests::{Address, System, until};

use crate::load::Workload;
use crate::postfix::Postfix;

/// A system under load, and what is beside it.
pub(crate) struct Peer {
    system: Which,
    sink: Sink,
    /// Where mail on hold goes with Postern: a server that takes connections and never says a word.
    _silent: TcpListener,
    users: usize,
    place: Address,
}

enum Which {
    Postern(System),
    Postfix(Postfix),
}

/// Starts a system.
pub(crate) type Start = fn() -> Peer;

impl Peer {
    /// Postern, 0, and Postfix, 1; which of them comes first changes from round to round.
    pub(crate) fn both(round: usize) -> [(usize, Start); 2] {
        let both: [(usize, Start); 2] = [(0, Self::postern), (1, Self::postfix)];
        if round.is_multiple_of(2) { both } else { [both[1], both[0]] }
    }

    fn postern() -> Self {
        let (place, sink) = (Address::claim(), Sink::start());
        let silent = TcpListener::bind(place.port(2527)).unwrap();
        let via = |address: SocketAddr| format!("smtp:[{}]:{}", address.ip(), address.port());
        let system = System::builder()
            .relay()
            .at(place.port(2525))
            .route("hold.test", &via(place.port(2527)))
            .route("relay.test", &via(sink.address))
            .start();
        Self { system: Which::Postern(system), sink, _silent: silent, users: 0, place }
    }

    fn postfix() -> Self {
        let (place, sink) = (Address::claim(), Sink::start());
        let silent = TcpListener::bind(place.port(2527)).unwrap();
        let system = Postfix::start(place.port(2525), sink.address);
        Self { system: Which::Postfix(system), sink, _silent: silent, users: 0, place }
    }

    pub(crate) fn stop(self) {
        match self.system {
            // What is on hold has connections that last: no system stops at once over that.
            Which::Postern(mut system) => system.stop(),
            Which::Postfix(postfix) => drop(postfix),
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        match self.system {
            Which::Postern(_) => "postern",
            Which::Postfix(_) => "postfix",
        }
    }

    /// Its first process.
    pub(crate) fn root(&self) -> u32 {
        match &self.system {
            Which::Postern(system) => system.master(),
            Which::Postfix(postfix) => postfix.master(),
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.place.port(2525)
    }

    /// A user with an empty Maildir.
    pub(crate) fn next_user(&mut self) -> String {
        self.users += 1;
        format!("u{}", self.users)
    }

    /// Messages in a user's Maildir.
    pub(crate) fn delivered(&self, user: &str) -> usize {
        let mail = match &self.system {
            Which::Postern(system) => system.directory().join("mail"),
            Which::Postfix(postfix) => postfix.mail(),
        };
        let new = mail.join("v.test").join(user).join("new");
        std::fs::read_dir(new).map_or(0, Iterator::count)
    }

    /// Messages at the sink.
    pub(crate) fn sunk(&mut self) -> usize {
        self.sink.count()
    }

    /// What is still done when the last message is delivered is done now, so that it is counted.
    pub(crate) fn settle(&self, workload: Workload) {
        if workload == Workload::Hold {
            let nothing = || match &self.system {
                Which::Postern(system) => system.spool("new").is_empty() && system.spool("tmp").is_empty(),
                Which::Postfix(_) => true,
            };
            until("everything is taken in", Duration::from_secs(60), || nothing().then_some(()));
        } else {
            until("the queue is empty", Duration::from_secs(60), || match &self.system {
                Which::Postern(system) => {
                    ["tmp", "new", "cur"].iter().all(|d| system.spool(d).is_empty()).then_some(())
                }
                Which::Postfix(postfix) => postfix.is_empty().then_some(()),
            });
        }
    }

    /// Its sendmail(1).
    pub(crate) fn sendmail(&self) -> Command {
        match &self.system {
            Which::Postern(system) => {
                let mut command = system.command("sendmail");
                command.arg("-C").arg(system.config());
                command
            }
            Which::Postfix(postfix) => postfix.sendmail(),
        }
    }
}

/// smtp-sink(1), which counts.
pub(crate) struct Sink {
    pub(crate) address: SocketAddr,
    _place: Address,
    pid: u32,
    child: std::process::Child,
    count: Arc<AtomicUsize>,
}

impl Sink {
    pub(crate) fn start() -> Self {
        let place = Address::claim();
        let address = place.port(2526);
        let mut command = Command::new("smtp-sink");
        command.args(["-c", "-h", "sink.test"]);
        if nix::unistd::geteuid().is_root() {
            command.args(["-u", "nobody"]);
        }
        command.arg(address.to_string()).arg("1000").current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut output = child.stdout.take().unwrap();
        let count = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&count);
        // Its thread ends with the sink.
        std::thread::spawn(move || {
            let (mut buffer, mut text) = ([0; 65536], Vec::new());
            while let Ok(length @ 1..) = output.read(&mut buffer) {
                text.extend_from_slice(&buffer[..length]);
                // "sess=1 quit=1 mesg=1\r", again and again; only the last that is whole counts.
                let Some(end) = text.iter().rposition(|octet| *octet == b'\r') else { continue };
                let last = String::from_utf8_lossy(&text[end.saturating_sub(64)..end]).into_owned();
                text.drain(..end);
                let number = last.rsplit("mesg=").next().unwrap_or_default();
                if let Ok(number) = number.trim().parse() {
                    counter.fetch_max(number, Ordering::Relaxed);
                }
            }
        });
        until("smtp-sink", Duration::from_secs(10), || std::net::TcpStream::connect(address).ok());
        Self { address, _place: place, pid: child.id(), child, count }
    }

    pub(crate) fn count(&mut self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        kill(Pid::from_raw(self.pid as i32), Signal::SIGTERM).unwrap();
        self.child.wait().unwrap();
    }
}

/// A directory that all users may go through.
pub(crate) fn scratch(name: &str) -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::Builder::new().prefix(&format!("postern-bench-{name}-")).tempdir().unwrap();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    directory
}

/// A path in the project.
pub(crate) fn project(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join(path)
}
