//! Policy servers: strangers' ones, and one of the test's own.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;

use crate::net::Address;
use crate::peers::{give_to_peer, group_name, peer_user, scratch, write};
use crate::process::{Process, until};

const PATIENCE: Duration = Duration::from_secs(60);

/// postgrey, as Debian's init script starts it, in a directory of its own: everybody comes back after a second.
#[derive(Debug)]
pub struct Postgrey {
    _directory: TempDir,
    address: Address,
    _process: Process,
}

impl Postgrey {
    /// Starts it.
    pub fn start() -> Self {
        let (directory, address) = (scratch("postgrey"), Address::claim());
        let (user, _, gid) = peer_user();
        let mut command = Command::new("/usr/sbin/postgrey");
        command.arg(format!("--inet={}:10023", address.ip));
        command.arg(format!("--dbdir={}", directory.path().display()));
        command.arg(format!("--pidfile={}", directory.path().join("pid").display()));
        command.args([format!("--user={user}"), format!("--group={}", group_name(gid))]);
        command.args(["--delay=1", "--greylist-text=Greylisted, come back in %s seconds"]);
        command.current_dir("/").stdout(Stdio::null()).stderr(Stdio::null());
        let process = Process::start(&mut command);
        until("postgrey", PATIENCE, || std::net::TcpStream::connect(address.port(10_023)).ok());
        Self { _directory: directory, address, _process: process }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address.port(10_023)
    }
}

/// A Unix socket at which every connection gets a program of its own, with the connection as its standard input
/// and output: Postfix's spawn(8).
#[derive(Debug)]
pub struct Spawner {
    directory: TempDir,
}

impl Spawner {
    /// policyd-spf with Debian's settings, but that it looks at clients of 127.0.0.0/8 too, and asks this name
    /// server. Needs root, for a `/etc/resolv.conf` that only it sees.
    pub fn policyd_spf(name_server: SocketAddr) -> Self {
        let directory = scratch("policyd-spf");
        let settings = "debugLevel = 1\nTestOnly = 1\nHELO_reject = Fail\nMail_From_reject = Fail\n\
                        PermError_reject = False\nTempError_Defer = False\nskip_addresses = 192.0.2.254/32\n";
        write(&directory, "policyd-spf.conf", settings);
        write(&directory, "resolv.conf", &format!("nameserver {}\n", name_server.ip()));
        let d = directory.path().display();
        let script = format!(
            "mount --bind {d}/resolv.conf /etc/resolv.conf && exec /usr/bin/policyd-spf {d}/policyd-spf.conf"
        );
        Self::start(directory, move |stream| {
            let mut command = Command::new("unshare");
            command.args(["--mount", "sh", "-c", &script]);
            let (input, output) = (stream.try_clone().unwrap(), stream);
            command.stdin(std::os::fd::OwnedFd::from(input)).stdout(std::os::fd::OwnedFd::from(output));
            let mut child = command.stderr(Stdio::null()).spawn().unwrap();
            // It ends with its connection.
            child.wait().unwrap();
        })
    }

    fn start(directory: TempDir, serve: impl Fn(UnixStream) + Send + Sync + 'static) -> Self {
        let listener = listen(directory.path());
        let serve = Arc::new(serve);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let serve = serve.clone();
                std::thread::spawn(move || serve(stream));
            }
        });
        Self { directory }
    }

    /// The socket.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("policy")
    }
}

/// A policy server of the test's own.
#[derive(Debug)]
pub struct PolicyServer {
    directory: TempDir,
    heard: Arc<Mutex<Heard>>,
}

/// What it was told: all requests, and over how many connections.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// Each with its lines.
    pub requests: Vec<Vec<String>>,
    /// So many were opened.
    pub connections: usize,
}

impl PolicyServer {
    /// Answers each request with what `answer` makes of its lines, octet for octet; with none it closes.
    pub fn start(answer: impl Fn(&[String]) -> Option<String> + Send + Sync + 'static) -> Self {
        let directory = scratch("policy");
        let listener = listen(directory.path());
        let heard = Arc::new(Mutex::new(Heard::default()));
        let (ours, answer) = (heard.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (ours, answer) = (ours.clone(), answer.clone());
                ours.lock().unwrap().connections += 1;
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(stream);
                    while let Some(lines) = request(&mut reader) {
                        ours.lock().unwrap().requests.push(lines.clone());
                        match answer(&lines) {
                            Some(text) => reader.get_mut().write_all(text.as_bytes()).unwrap_or_default(),
                            None => return,
                        }
                    }
                });
            }
        });
        Self { directory, heard }
    }

    /// The socket.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("policy")
    }

    /// What it was told so far.
    pub fn heard(&self) -> Heard {
        self.heard.lock().unwrap().clone()
    }
}

impl Heard {
    /// An attribute of a request.
    pub fn attribute(&self, request: usize, name: &str) -> Option<String> {
        let line = |line: &String| Some(line.strip_prefix(name)?.strip_prefix('=')?.to_owned());
        self.requests.get(request)?.iter().find_map(line)
    }
}

fn listen(directory: &Path) -> UnixListener {
    let path = directory.join("policy");
    let listener = UnixListener::bind(&path).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    give_to_peer(&path);
    listener
}

fn request(reader: &mut impl BufRead) -> Option<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end_matches('\n') {
            "" => return Some(lines),
            line => lines.push(line.to_owned()),
        }
    }
}
