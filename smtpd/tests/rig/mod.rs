//! Plays master, lookup and verify for one real worker.

// A rig that fails is a test that fails.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use postern_config::{BareNewline, Limit, Limits, Listen, Reserve, Service, SmtpLimits, SmtpdPart};
use postern_ipc::smtpd_lookup::{Answer, Ask, Question, Say, Verdict};
use postern_ipc::supervise::{FromChild, Handle, LogKind, ToChild};
use postern_ipc::{Link, Peer, Role, blocking, encode_config, smtpd_keys, smtpd_verify};
use postern_spool::{SpoolFile, Stored, is_blank};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// How long anything may take before the test has failed.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) type Tls = rustls::StreamOwned<rustls::ClientConnection, TcpStream>;

/// A worker and its surroundings. Dropping it kills the worker.
pub(crate) struct Rig {
    pub(crate) address: SocketAddr,
    pub(crate) child: Child,
    pub(crate) control: Link<ToChild, FromChild>,
    spool: tempfile::TempDir,
    log: tempfile::NamedTempFile,
    /// Questions that lookup heard and did not answer: local parts that begin with `s`.
    pub(crate) silent: Arc<Mutex<Vec<Question>>>,
}

/// How often lookup was asked for a local part that begins with `c`.
pub(crate) static CHANGING: AtomicUsize = AtomicUsize::new(0);

/// Limits for tests.
pub(crate) fn limits() -> SmtpLimits {
    SmtpLimits {
        workers: Some(1),
        message_size: 50 << 20,
        recipients: 100,
        recipient_domains: None,
        messages: None,
        sessions: 5_000,
        line_length: 64 << 10,
        command_timeout: Duration::from_secs(300),
        data_timeout: Duration::from_secs(180),
        session_time: Duration::from_secs(3600),
        errors: 20,
        greet_pause: Duration::ZERO,
        tarpit: Duration::ZERO,
        hops: 10,
        xclient: Vec::new(),
        xforward: Vec::new(),
    }
}

pub(crate) fn start(service: Service, limits: SmtpLimits) -> Rig {
    start_with(service, limits, Vec::new())
}

/// With more neighbours than lookup and verify.
pub(crate) fn start_with(service: Service, limits: SmtpLimits, links: Vec<(Peer, OwnedFd)>) -> Rig {
    start_command(Command::new(env!("CARGO_BIN_EXE_postern-smtpd")), service, limits, links, Disk::Works)
}

/// With a spool in which no file can be made.
pub(crate) fn start_without_disk() -> Rig {
    let command = Command::new(env!("CARGO_BIN_EXE_postern-smtpd"));
    start_command(command, Service::Smtp, limits(), Vec::new(), Disk::Fails)
}

/// With so many descriptors at most.
pub(crate) fn start_narrow(descriptors: u32) -> Rig {
    let mut command = Command::new("/bin/sh");
    let script = format!("ulimit -n {descriptors}; exec \"$0\"");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_postern-smtpd")]);
    start_command(command, Service::Smtp, limits(), Vec::new(), Disk::Works)
}

#[derive(PartialEq)]
enum Disk {
    Works,
    /// No file can be made in the spool's `tmp/`.
    Fails,
}

fn start_command(
    command: Command,
    service: Service,
    limits: SmtpLimits,
    links: Vec<(Peer, OwnedFd)>,
    disk: Disk,
) -> Rig {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // std listens with 128 places, and a SYN that finds none is tried again after a second.
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(4096).unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let spool = tempfile::tempdir().unwrap();
    postern_spool::create_directories(spool.path()).unwrap();
    let log = tempfile::NamedTempFile::new().unwrap();
    let tls = service == Service::Submissions && !links.is_empty();
    let config = part(address, service, limits, tls);
    let (ours, theirs) = blocking::pair().unwrap();
    let child = postern_sys::spawn(command, theirs).unwrap();
    let mut control = Link::<ToChild, FromChild>::new(ours);
    let silent = Arc::new(Mutex::new(Vec::new()));
    let directory = |name: &str| OwnedFd::from(std::fs::File::open(spool.path().join(name)).unwrap());
    let mut handles = vec![
        Handle::Listener(0),
        Handle::SpoolDirectory("tmp".into()),
        Handle::SpoolDirectory("new".into()),
        Handle::Link(Peer::only(Role::Lookup)),
        Handle::Link(Peer::only(Role::Verify)),
    ];
    let mut descriptors = vec![
        config,
        log.reopen().unwrap().into(),
        listener.into(),
        directory("tmp"),
        directory("new"),
        lookup(silent.clone()),
        verify(),
    ];
    if disk == Disk::Fails {
        std::fs::remove_dir(spool.path().join("tmp")).unwrap();
    }
    for (peer, descriptor) in links {
        handles.push(Handle::Link(peer));
        descriptors.push(descriptor);
    }
    let me = Peer { role: Role::Smtpd, instance: 0 };
    control
        .send_with(&ToChild::Start { me, handles, identity: None, log: LogKind::Json }, descriptors)
        .unwrap();
    let mut rig = Rig { address, child, control, spool, log, silent };
    match blocking::receive(&mut rig.control, Some(PATIENCE)) {
        Ok((FromChild::Ready, _)) => rig,
        other => panic!("not ready: {other:?}, log: {}", rig.log()),
    }
}

/// The worker's part of the configuration, as it travels.
fn part(address: SocketAddr, service: Service, limits: SmtpLimits, tls: bool) -> OwnedFd {
    let hostname = postern_address::Domain::parse("mx.test").unwrap();
    // What the disk under a test has free is not its matter.
    let reserve = Reserve { octets: 0, inodes: 0 };
    let listen = vec![Listen {
        address,
        service,
        bare_newline: BareNewline::Reject,
        proxy: Vec::new(),
        without: Vec::new(),
    }];
    let exempt = vec!["127.0.0.0/8".parse().unwrap()];
    let clients = Limits { client: Limit::OFF, exempt, ..Limits::default() };
    let (lists, greylist, rules) = (false, false, Vec::new());
    let config = SmtpdPart { hostname, listen, limits, reserve, tls, clients, lists, greylist, rules };
    postern_sys::sealed_file("config", &encode_config(&config).unwrap()).unwrap()
}

impl Rig {
    /// A new configuration, whose listener is at `address`; whether the worker takes it.
    pub(crate) fn reload(&mut self, address: SocketAddr, limits: SmtpLimits) -> bool {
        let config = part(address, Service::Smtp, limits, false);
        self.control.send_with(&ToChild::Prepare, vec![config]).unwrap();
        let answer = blocking::receive(&mut self.control, Some(PATIENCE));
        let Ok((FromChild::Prepared(outcome), _)) = answer else { panic!("{answer:?}") };
        let verdict = if outcome.is_ok() { ToChild::Commit } else { ToChild::Abort };
        self.control.send(&verdict).unwrap();
        self.control.send(&ToChild::Ping).unwrap();
        let answer = blocking::receive(&mut self.control, Some(PATIENCE));
        assert!(matches!(answer, Ok((FromChild::Alive(_), _))), "{answer:?}");
        outcome.is_ok()
    }

    pub(crate) fn connect(&self) -> Client {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client { reader: BufReader::new(stream) }
    }

    /// A client within TLS.
    pub(crate) fn connect_tls(&self, certificate: &CertificateDer<'static>) -> Client<Tls> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = "mx.test".try_into().unwrap();
        let connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let socket = self.connect().reader.into_inner();
        Client { reader: BufReader::new(rustls::StreamOwned::new(connection, socket)) }
    }

    /// A client that has been greeted.
    pub(crate) fn greeted(&self) -> Client {
        let mut client = self.connect();
        client.expect("220 mx.test ESMTP Postern");
        assert!(client.say("EHLO client.test\r\n").len() > 6);
        client
    }

    /// What the worker logged so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).unwrap()
    }

    /// Every message in `new/`, by its id. The move there follows the 250, so `ids` are waited for.
    pub(crate) fn messages(&self, ids: &[String]) -> HashMap<String, (Stored, Vec<u8>)> {
        let begun = std::time::Instant::now();
        let new = std::fs::File::open(self.spool.path().join("new")).unwrap();
        loop {
            let mut found = HashMap::new();
            for entry in std::fs::read_dir(self.spool.path().join("new")).unwrap() {
                let file =
                    SpoolFile::open(new.as_fd(), entry.unwrap().file_name().to_str().unwrap()).unwrap();
                for (n, stored) in file.messages().iter().enumerate() {
                    found.insert(stored.id.to_string(), (stored.clone(), file.read_body(n).unwrap()));
                }
            }
            if ids.iter().all(|id| found.contains_key(id)) {
                return found;
            }
            assert!(begun.elapsed() < PATIENCE, "{} of {} messages", found.len(), ids.len());
            std::thread::yield_now();
        }
    }

    /// Files in `tmp/` with something in them.
    pub(crate) fn unfinished(&self) -> usize {
        let files = std::fs::read_dir(self.spool.path().join("tmp")).unwrap();
        files.filter(|file| is_blank(&file.as_ref().unwrap().path()).is_ok_and(|blank| !blank)).count()
    }

    /// Waits until the worker has logged a text: it writes at the end of a turn.
    #[track_caller]
    pub(crate) fn wait_log(&self, text: &str) {
        let begun = std::time::Instant::now();
        while !self.log().contains(text) {
            assert!(begun.elapsed() < PATIENCE, "no {text:?} in {}", self.log());
            std::thread::yield_now();
        }
    }

    /// One of the worker's counters.
    pub(crate) fn counter(&mut self, name: &str) -> u64 {
        self.control.send(&ToChild::Ping).unwrap();
        match blocking::receive(&mut self.control, Some(PATIENCE)) {
            Ok((FromChild::Alive(counters), _)) => counters.into_iter().find(|c| c.0 == name).unwrap().1,
            other => panic!("{other:?}"),
        }
    }

    /// A line of `/proc/PID/status`, in kB.
    pub(crate) fn memory(&self, line: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let value = status.lines().find(|l| l.starts_with(line)).unwrap();
        value.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client that speaks what it is told, byte for byte.
pub(crate) struct Client<S = TcpStream> {
    pub(crate) reader: BufReader<S>,
}

impl<S: Read + Write> Client<S> {
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.reader.get_mut().write_all(bytes).unwrap();
    }

    /// One reply, all of its lines.
    pub(crate) fn reply(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            self.reader.read_line(&mut line).unwrap();
            assert!(line.ends_with("\r\n"), "connection ended after {lines:?} {line:?}");
            let last = line.as_bytes()[3] == b' ';
            lines.push(line.trim_end().to_owned());
            if last {
                return lines;
            }
        }
    }

    pub(crate) fn say(&mut self, text: &str) -> Vec<String> {
        self.send(text.as_bytes());
        self.reply()
    }

    /// The next reply is of one line and begins so.
    #[track_caller]
    pub(crate) fn expect(&mut self, beginning: &str) -> String {
        let reply = self.reply();
        assert!(reply.len() == 1 && reply[0].starts_with(beginning), "{reply:?}, not {beginning:?}");
        reply.into_iter().next().unwrap()
    }

    /// The id in the reply to a message.
    #[track_caller]
    pub(crate) fn queued(&mut self) -> String {
        self.expect("250 2.0.0 Ok: queued as ").rsplit(' ').next().unwrap().to_owned()
    }

    /// The server closes, and nothing comes before.
    pub(crate) fn closed(&mut self) {
        let mut rest = Vec::new();
        let outcome = self.reader.read_to_end(&mut rest);
        // A reset is an end too; silence is not.
        assert_ne!(outcome.map_err(|e| e.kind()), Err(std::io::ErrorKind::WouldBlock));
        assert_eq!(String::from_utf8_lossy(&rest), "");
    }
}

/// lookup: `x…` does not exist, `r…` may not be relayed, `s…` is not answered, `c…` exists the first time alone,
/// all else is local.
pub(crate) fn lookup(silent: Arc<Mutex<Vec<Question>>>) -> OwnedFd {
    let (ours, theirs) = blocking::pair().unwrap();
    std::thread::spawn(move || {
        let mut link = Link::<Answer, Question>::new(ours);
        while let Ok((question, _)) = blocking::receive(&mut link, None) {
            let Ask::Recipient(incoming) = &question.ask else { continue };
            let verdict = match incoming.recipient.as_str().as_bytes()[0] {
                b's' => {
                    silent.lock().unwrap().push(question);
                    continue;
                }
                b'c' if CHANGING.fetch_add(1, Ordering::Relaxed) > 0 => Verdict::UnknownUser,
                b'x' => Verdict::UnknownUser,
                b'r' => Verdict::RelayDenied,
                _ => Verdict::Local,
            };
            if link.send(&Answer { id: question.id, say: Say::Recipient(verdict) }).is_err()
                || blocking::flush(&mut link, None).is_err()
            {
                return;
            }
        }
    });
    theirs
}

/// verify: every client is `client.test`.
fn verify() -> OwnedFd {
    let (ours, theirs) = blocking::pair().unwrap();
    std::thread::spawn(move || {
        let mut link = Link::<smtpd_verify::Answer, smtpd_verify::Question>::new(ours);
        while let Ok((question, _)) = blocking::receive(&mut link, None) {
            let name = postern_address::Domain::parse("client.test").unwrap();
            let name = smtpd_verify::ClientName::Confirmed(name);
            let facts = smtpd_verify::ClientFacts { name, ..smtpd_verify::ClientFacts::UNKNOWN };
            let say = smtpd_verify::Say::Client(facts);
            let answer = smtpd_verify::Answer { id: question.id, say };
            if link.send(&answer).is_err() || blocking::flush(&mut link, None).is_err() {
                return;
            }
        }
    });
    theirs
}

/// keys: one certificate for `mx.test`, also given to the caller.
pub(crate) fn keys() -> (OwnedFd, CertificateDer<'static>) {
    let (ours, theirs) = blocking::pair().unwrap();
    let made = rcgen::generate_simple_self_signed(["mx.test".to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
    let chain = vec![certificate.to_vec()];
    std::thread::spawn(move || {
        let mut link = Link::<smtpd_keys::Answer, smtpd_keys::Question>::new(ours);
        while let Ok((question, _)) = blocking::receive(&mut link, None) {
            let answer = match question {
                smtpd_keys::Question::Certificate { id } => {
                    smtpd_keys::Answer::Certificate { id, chain: chain.clone(), schemes: vec![0x0403] }
                }
                smtpd_keys::Question::Sign { id, scheme, message } => {
                    let signer = key.choose_scheme(&[scheme.into()]).unwrap();
                    smtpd_keys::Answer::Signature { id, signature: Ok(signer.sign(&message).unwrap()) }
                }
            };
            if link.send(&answer).is_err() || blocking::flush(&mut link, None).is_err() {
                return;
            }
        }
    });
    (theirs, certificate)
}
