//! The whole system, started for real.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use postern_spool::SpoolFile;
use serde_json::Value;
use tempfile::TempDir;

use crate::log::Log;
use crate::maildir::{Mail, maildir};
use crate::net::via;
use crate::process::{Process, until};
use crate::smtp::Smtp;

/// How long an event of the normal course may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long the system may take to stop: master kills what hangs after 30 s.
const STOPPING: Duration = Duration::from_secs(40);

/// What is to be started.
#[derive(Clone, Debug)]
pub struct Builder {
    hostname: String,
    domain: String,
    users: String,
    listeners: Vec<(String, String)>,
    routes: Vec<(String, String)>,
    settings: BTreeMap<(String, String), String>,
    rest: String,
    unprivileged: bool,
    small_spool: Option<String>,
    certified: bool,
}

/// A running system. Dropped, it is stopped by SIGTERM, and that it stops cleanly is part of every test.
#[derive(Debug)]
pub struct System {
    /// Its JSON log.
    pub log: Log,
    directory: TempDir,
    process: Option<Process>,
    started_at: usize,
    unprivileged: bool,
    small_spool: Option<String>,
}

impl Builder {
    /// Our name; `mx.test` otherwise.
    pub fn hostname(mut self, name: &str) -> Self {
        self.hostname = name.into();
        self
    }

    /// The virtual domain; `v.test` otherwise.
    pub fn virtual_domain(mut self, domain: &str) -> Self {
        self.domain = domain.into();
        self
    }

    /// Who exists in the virtual domain; everybody otherwise.
    pub fn users(mut self, users: &[&str]) -> Self {
        let quoted: Vec<_> = users.iter().map(|user| format!("\"{user}\"")).collect();
        self.users = format!("[{}]", quoted.join(", "));
        self
    }

    /// A further listener: a service on a port that the kernel picks.
    pub fn listen(mut self, address: &str, service: &str) -> Self {
        self.listeners.push((address.into(), service.into()));
        self
    }

    /// A route.
    pub fn route(mut self, domain: &str, via: &str) -> Self {
        self.routes.push((domain.into(), via.into()));
        self
    }

    /// Clients of 127.0.0.1 may relay.
    pub fn relay(self) -> Self {
        self.set("relay", "networks", "[\"127.0.0.1\"]")
    }

    /// The name server to ask.
    pub fn dns(self, server: SocketAddr) -> Self {
        self.set("dns", "servers", &format!("[\"{server}\"]"))
    }

    /// A certificate for `mx.test`, made by openssl in the system's directory: `chain.pem` and `key.pem`.
    pub fn certificate(self) -> Self {
        let mut with = self.set("tls", "certificate", "\"{directory}/chain.pem\"");
        with.certified = true;
        with.set("tls", "key", "\"{directory}/key.pem\"")
    }

    /// A key of a section, its value as TOML: `.set("smtp", "message-size", "\"1 MiB\"")`.
    pub fn set(mut self, section: &str, key: &str, value: &str) -> Self {
        self.settings.insert((section.into(), key.into()), value.into());
        self
    }

    /// Deferred mail is tried again soon: after a second at first, and two at most.
    pub fn fast_retries(self) -> Self {
        self.set("queue", "retry-first", "\"1 s\"").set("queue", "retry-most", "\"2 s\"")
    }

    /// Further sections of the configuration, as they are.
    pub fn toml(mut self, text: &str) -> Self {
        self.rest.push_str(text);
        self.rest.push('\n');
        self
    }

    /// Started by root, run as `nobody` all the same, without system users.
    pub fn unprivileged(mut self) -> Self {
        self.unprivileged = true;
        self
    }

    /// The SMTP port is this one, over every restart, instead of one that the kernel picks.
    pub fn at(mut self, address: SocketAddr) -> Self {
        self.listeners = vec![(address.to_string(), "smtp".into())];
        self
    }

    /// The spool is a file system of its own with these mount options of tmpfs (`size=2m`), in a mount
    /// namespace that only the system sees and that ends with it. Needs root.
    pub fn small_spool(mut self, options: &str) -> Self {
        self.small_spool = Some(options.into());
        // What is tested is a disk that is full, not one that is nearly so, unless a test says else.
        let unset = |builder: &Self, key: &str| !builder.settings.contains_key(&("queue".into(), key.into()));
        if unset(&self, "min-free") {
            self = self.set("queue", "min-free", "\"0 B\"").set("queue", "min-inodes", "0");
        }
        self
    }

    /// Starts the system and waits until it is ready.
    pub fn start(self) -> System {
        let mut system = self.prepare();
        system.start_again();
        system
    }

    /// Makes the directory and the configuration and starts nothing yet.
    pub fn prepare(self) -> System {
        let directory = tempfile::Builder::new().prefix("postern-test-").tempdir().unwrap();
        let d = directory.path();
        std::fs::set_permissions(d, PermissionsExt::from_mode(0o755)).unwrap();
        let mail = d.join("mail");
        std::fs::create_dir(&mail).unwrap();
        std::fs::write(d.join("postern.toml"), self.text(d)).unwrap();
        if self.certified {
            make_certificate(d);
        }
        let unprivileged = self.unprivileged && nix::unistd::geteuid().is_root();
        if unprivileged {
            let (uid, gid) = nobody();
            chown(d, Some(uid), Some(gid)).unwrap();
            chown(&mail, Some(uid), Some(gid)).unwrap();
        } else if nix::unistd::geteuid().is_root() {
            let owner = User::from_name("postern-mail").unwrap().expect("system users: run etc/users");
            chown(&mail, Some(owner.uid.as_raw()), Some(owner.gid.as_raw())).unwrap();
        }
        let log = Log::new(&d.join("log"));
        let small_spool = self.small_spool.clone();
        System { log, directory, process: None, started_at: 0, unprivileged, small_spool }
    }

    fn text(&self, directory: &Path) -> String {
        let d = directory.display();
        let mut text = format!(
            "hostname = \"{}\"\nspool = \"{d}/spool\"\nruntime = \"{d}/run\"\nlog = \"json:{d}/log\"\n",
            self.hostname,
        );
        for (address, service) in &self.listeners {
            write!(text, "\n[[listen]]\naddress = \"{address}\"\nservice = \"{service}\"\n").unwrap();
        }
        let mut settings = self.settings.clone();
        let mut default = |section: &str, key: &str, value: String| {
            settings.entry((section.into(), key.into())).or_insert(value);
        };
        default("virtual", "domains", format!("[\"{}\"]", self.domain));
        default("virtual", "mailbox", format!("\"maildir:{d}/mail/{{domain}}/{{local}}\""));
        default("virtual", "users", self.users.clone());
        // Nothing that a test sends may leave this machine by accident: a name server that is not there.
        default("dns", "servers", "[\"127.0.0.1:9\"]".into());
        // More than one worker, also where there is one core.
        default("smtp", "workers", "2".into());
        let mut section = "";
        for ((of, key), value) in &settings {
            if of != section {
                write!(text, "\n[{of}]\n").unwrap();
                section = of;
            }
            writeln!(text, "{key} = {}", value.replace("{directory}", &d.to_string())).unwrap();
        }
        for (domain, via) in &self.routes {
            let via = via.replace("{directory}", &d.to_string());
            write!(text, "\n[[route]]\ndomain = \"{domain}\"\nvia = \"{via}\"\n").unwrap();
        }
        write!(text, "\n{}", self.rest.replace("{directory}", &d.to_string())).unwrap();
        text
    }
}

impl System {
    /// A system as one usually wants it: `v.test` is a virtual domain in which everybody exists, nobody may
    /// relay, one SMTP port.
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// The same, to be changed before it is started.
    pub fn builder() -> Builder {
        Builder {
            hostname: "mx.test".into(),
            domain: "v.test".into(),
            users: "\"*\"".into(),
            listeners: vec![("127.0.0.1:0".into(), "smtp".into())],
            routes: Vec::new(),
            settings: BTreeMap::new(),
            rest: String::new(),
            unprivileged: false,
            small_spool: None,
            certified: false,
        }
    }

    /// Starts it once more after [`System::stop`] or [`System::kill_all`], in the same directory.
    pub fn start_again(&mut self) {
        assert!(self.process.is_none(), "it runs already");
        self.started_at = self.log.mark();
        let errors = File::create(self.directory.path().join("stderr")).unwrap();
        let mut command = match &self.small_spool {
            None => self.command("postern"),
            Some(options) => {
                let script =
                    "mkdir -p \"$1\" && mount -t tmpfs -o \"$2\" tmpfs \"$1\" && shift 2 && exec \"$@\"";
                let mut command = Command::new("unshare");
                command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
                command.arg(self.spool_path()).arg(options).arg(binary("postern"));
                command
            }
        };
        command.arg("run").arg("--config").arg(self.config());
        command.stdout(errors.try_clone().unwrap()).stderr(errors);
        let mut process = Process::start(&mut command);
        let ready = until("the system is ready or ends", PATIENCE, || {
            let none = Duration::ZERO;
            let ready = self.log.try_wait_from(self.started_at, "ready", |_| true, none).map(|_| true);
            ready.or_else(|| process.ended().map(|_| false))
        });
        self.process = Some(process);
        assert!(ready, "the system did not start:\n{}", self.stderr());
    }

    /// Stops it by SIGTERM. It must end with status 0.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let status = process.stop(STOPPING);
            let status = status.unwrap_or_else(|| panic!("the system hangs at SIGTERM"));
            assert!(status.success(), "the system ended with {status}:\n{}", self.stderr());
        }
    }

    /// Sends SIGTERM and does not wait.
    pub fn begin_to_stop(&self) {
        self.process.as_ref().expect("it runs").signal(Signal::SIGTERM);
    }

    /// Kills every program of it at once by SIGKILL.
    pub fn kill_all(&mut self) {
        let pids: Vec<_> = self.pids().into_values().collect();
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
        for pid in &pids {
            // Those that ended with master are gone already.
            let _ = kill(Pid::from_raw(*pid as i32), Signal::SIGKILL);
        }
        until("every program is gone", PATIENCE, || pids.iter().all(|pid| !alive(*pid)).then_some(()));
    }

    /// The process ids of its programs but master by name (`smtpd/0`), as the log has them.
    pub fn pids(&self) -> BTreeMap<String, u32> {
        let events = self.log.events();
        let mut pids = BTreeMap::new();
        for event in events.iter().skip(self.started_at) {
            let subject = event["name"].as_str().unwrap_or_default().to_owned();
            match event["event"].as_str() {
                Some("program-started") => pids.insert(subject, event["pid"].as_u64().unwrap() as u32),
                Some("program-died") => pids.remove(&subject),
                _ => None,
            };
        }
        pids
    }

    /// Kills a program by SIGKILL and waits until it was started anew: its new process id.
    pub fn kill_program(&self, program: &str) -> u32 {
        let old = *self.pids().get(program).unwrap_or_else(|| panic!("{program} does not run"));
        kill(Pid::from_raw(old as i32), Signal::SIGKILL).unwrap();
        until(&format!("{program} is started anew"), PATIENCE, || {
            self.pids().get(program).copied().filter(|pid| *pid != old)
        })
    }

    /// Master's process id.
    pub fn master(&self) -> u32 {
        self.process.as_ref().expect("it runs").pid()
    }

    /// Where it listens for SMTP: the first listener.
    pub fn address(&self) -> SocketAddr {
        self.addresses("smtp")[0]
    }

    /// Where it listens for a service.
    pub fn addresses(&self, service: &str) -> Vec<SocketAddr> {
        let events = self.log.events();
        let listening = events.iter().skip(self.started_at).filter(|e| e["event"] == "listening");
        let ours = listening.filter(|e| e["service"] == service);
        ours.map(|e| e["address"].as_str().unwrap().parse().unwrap()).collect()
    }

    /// The route to it.
    pub fn via(&self) -> String {
        via(self.address())
    }

    /// A connection, greeted.
    pub fn smtp(&self) -> Smtp {
        Smtp::connect(self.address())
    }

    /// Waits for an event that fits.
    pub fn wait(&self, event: &str, fits: impl Fn(&Value) -> bool) -> Value {
        self.log.wait_for(event, fits, PATIENCE)
    }

    /// Waits until every recipient of a message is finished and it is gone from the queue.
    pub fn finished(&self, id: &str) {
        self.wait("removed", |event| event["id"] == id);
    }

    /// Waits for the outcome of an attempt: `sent`, `deferred` or `bounced`.
    pub fn attempted(&self, id: &str, status: &str) -> Value {
        self.wait("delivery", |event| event["id"] == id && event["status"] == status)
    }

    /// What is in the Maildir of a recipient in the virtual domain.
    pub fn maildir(&self, recipient: &str) -> Vec<Mail> {
        let (local, domain) = recipient.rsplit_once('@').unwrap();
        maildir(&self.directory.path().join("mail").join(domain).join(local))
    }

    /// Waits until that many messages are in the Maildir.
    pub fn wait_maildir(&self, recipient: &str, count: usize) -> Vec<Mail> {
        until(&format!("{count} messages for {recipient}"), PATIENCE, || {
            let mails = self.maildir(recipient);
            (mails.len() >= count).then_some(mails)
        })
    }

    /// The directory of this test.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.directory.path().join("postern.toml")
    }

    /// The names of the files in a directory of the spool.
    pub fn spool(&self, directory: &str) -> Vec<String> {
        let directory = self.spool_path().join(directory);
        let Ok(entries) = std::fs::read_dir(&directory) else { return Vec::new() };
        let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
        // A writer's blanks are nothing yet.
        let blank = |name: &String| {
            name.starts_with('.') && postern_spool::is_blank(&directory.join(name)).unwrap_or(true)
        };
        let mut names: Vec<_> = names.filter(|name| !blank(name)).collect();
        names.sort();
        names
    }

    /// The spool files in a directory of the spool, opened.
    pub fn spool_files(&self, directory: &str) -> Vec<SpoolFile> {
        let opened = File::open(self.spool_path().join(directory)).unwrap();
        let names = self.spool(directory);
        names.iter().map(|name| SpoolFile::open(opened.as_fd(), name).unwrap()).collect()
    }

    /// The spool's path.
    pub fn spool_path(&self) -> PathBuf {
        self.directory.path().join("spool")
    }

    /// The directory of its control socket.
    pub fn runtime(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    /// Waits until nothing is queued: what was accepted is delivered, bounced or removed.
    pub fn wait_empty(&self, patience: Duration) {
        until("the queue is empty", patience, || {
            let listed = self.postern_json(&["queue", "list"]);
            (listed.is_empty() && self.spool("new").is_empty() && self.spool("tmp").is_empty()).then_some(())
        });
    }

    /// A program of ours, as the user that the system runs as.
    pub fn command(&self, program: &str) -> Command {
        if self.unprivileged {
            return self.command_of_nobody(program);
        }
        let mut command = Command::new(binary(program));
        command.stdin(Stdio::null());
        command
    }

    /// A program of ours as `nobody`, for a test that is root. Where the programs lie `nobody` may have no
    /// way to, so he is shown their directory in another place, in a mount namespace of his own.
    pub fn command_of_nobody(&self, program: &str) -> Command {
        let place = self.directory.path().join("bin");
        std::fs::create_dir_all(&place).unwrap();
        let (uid, gid) = nobody();
        let script = "mount --bind \"$1\" \"$2\" && cd / && shift 2 && exec setpriv \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
        command.arg(binary(program).parent().unwrap()).arg(&place);
        command.args([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".into()]);
        command.arg(place.join(program)).stdin(Stdio::null());
        command
    }

    /// Where a program of ours is.
    pub fn program(name: &str) -> PathBuf {
        binary(name)
    }

    /// Runs `postern ARGUMENTS --config …`.
    pub fn postern(&self, arguments: &[&str]) -> Output {
        self.command("postern").args(arguments).arg("--config").arg(self.config()).output().unwrap()
    }

    /// Runs `postern ARGUMENTS --json --config …`, which must succeed, and returns the objects it printed.
    pub fn postern_json(&self, arguments: &[&str]) -> Vec<Value> {
        let mut all = arguments.to_vec();
        all.push("--json");
        let output = self.postern(&all);
        let (said, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "postern {arguments:?}: {}: {said}{errors}", output.status);
        let values = serde_json::Deserializer::from_str(&said).into_iter();
        values.map(|value| value.unwrap_or_else(|e| panic!("postern {arguments:?}: {e}: {said}"))).collect()
    }

    /// What it said on its standard output and error.
    pub fn stderr(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("stderr")).unwrap_or_default()
    }
}

impl Drop for System {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log.text();
            let lines: Vec<_> = log.lines().collect();
            let last = lines.len().saturating_sub(150);
            eprintln!("the system's log:\n{}\n{}", lines[last..].join("\n"), self.stderr());
            if let Some(mut process) = self.process.take() {
                process.stop(STOPPING);
            }
        } else {
            self.stop();
        }
    }
}

/// As for a real host, but that everybody may read the key: what keeps it from the programs is then their
/// confinement alone.
pub(crate) fn make_certificate(directory: &Path) {
    let mut openssl = Command::new("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "9",
    ]);
    openssl.args(["-subj", "/CN=mx.test", "-addext", "subjectAltName=DNS:mx.test"]);
    openssl.args(["-keyout", "key.pem", "-out", "chain.pem"]).current_dir(directory);
    let made = openssl.output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::set_permissions(directory.join("key.pem"), PermissionsExt::from_mode(0o644)).unwrap();
}

/// The path of a program of ours: from the directory in `POSTERN_BIN`, or beside this test. In the second
/// case they are built first, once, so that no test runs against an old one.
fn binary(program: &str) -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| {
        if let Some(directory) = std::env::var_os("POSTERN_BIN") {
            return directory.into();
        }
        let test = std::env::current_exe().unwrap();
        let directory = test.parent().unwrap().parent().unwrap();
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--locked", "--workspace", "--bins"]);
        build.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        if directory.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "cargo build --workspace --bins");
        directory.to_owned()
    });
    let path = directory.join(program);
    assert!(path.exists(), "{} does not exist: make build", path.display());
    path
}

fn nobody() -> (u32, u32) {
    let user = User::from_name("nobody").unwrap().expect("a user nobody");
    (user.uid.as_raw(), user.gid.as_raw())
}

/// The process exists and is no zombie.
fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}
