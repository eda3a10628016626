//! Strangers' servers. Root starts them as `nobody`.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::need::{find, python};
use crate::net::Address;
use crate::process::{Process, until};

const PATIENCE: Duration = Duration::from_secs(20);

/// Dovecot: an LMTP server, and IMAP to read back what it took. Its users are those it is started with, all
/// with the password `secret`.
#[derive(Debug)]
pub struct Dovecot {
    directory: TempDir,
    address: Address,
    _process: Process,
}

impl Dovecot {
    /// Starts it for users like `u@d.test`. Others it refuses with 550 5.1.1.
    pub fn start(users: &[&str]) -> Self {
        Self::start_in(scratch("dovecot"), users)
    }

    fn start_in(directory: TempDir, users: &[&str]) -> Self {
        let address = Address::claim();
        let d = directory.path().display();
        let (user, uid, gid) = peer_user();
        let config = format!(
            "base_dir = {d}/run\n\
             state_dir = {d}/state\n\
             log_path = {d}/log\n\
             protocols = imap lmtp\n\
             listen = {ip}\n\
             ssl = no\n\
             disable_plaintext_auth = no\n\
             default_internal_user = {user}\n\
             default_internal_group = {group}\n\
             default_login_user = {user}\n\
             mail_location = maildir:{d}/mail/%u\n\
             first_valid_uid = 1\n\
             first_valid_gid = 0\n\
             passdb {{\n driver = passwd-file\n args = scheme=PLAIN username_format=%u {d}/users\n}}\n\
             userdb {{\n driver = passwd-file\n args = username_format=%u {d}/users\n\
             \x20override_fields = uid={uid} gid={gid} home={d}/mail/%u\n}}\n\
             service anvil {{\n chroot =\n}}\n\
             service stats {{\n chroot =\n}}\n\
             service imap-login {{\n chroot =\n inet_listener imap {{\n  port = 11143\n }}\n\
             \x20inet_listener imaps {{\n  port = 0\n }}\n}}\n\
             service lmtp {{\n inet_listener lmtp {{\n  address = {ip}\n  port = 11024\n }}\n\
             \x20unix_listener lmtp {{\n  mode = 0666\n }}\n}}\n",
            ip = address.ip,
            group = group_name(gid),
        );
        write(&directory, "dovecot.conf", &config);
        let passwords: String = users.iter().map(|user| format!("{user}:{{PLAIN}}secret::::::\n")).collect();
        write(&directory, "users", &passwords);
        let mut command = Command::new(find("dovecot").unwrap());
        command.arg("-F").arg("-c").arg(directory.path().join("dovecot.conf"));
        let process = start_as_peer(&mut command, &directory);
        let dovecot = Self { directory, address, _process: process };
        let log = dovecot.directory.path().join("log");
        until(&format!("Dovecot on {}", dovecot.lmtp_address()), PATIENCE, || {
            TcpStream::connect(dovecot.lmtp_address()).ok()
        });
        assert!(log.exists(), "Dovecot writes its log");
        dovecot
    }

    /// The Unix socket of its LMTP server.
    pub fn lmtp_socket(&self) -> PathBuf {
        self.directory.path().join("run/lmtp")
    }

    /// The TCP address of its LMTP server.
    pub fn lmtp_address(&self) -> SocketAddr {
        self.address.port(11024)
    }

    /// Every message of a user's INBOX, read by Python's IMAP client.
    pub fn inbox(&self, user: &str) -> Vec<Vec<u8>> {
        let script = "import imaplib, sys\n\
            m = imaplib.IMAP4(sys.argv[1], 11143)\n\
            m.login(sys.argv[2], 'secret')\n\
            m.select(readonly=True)\n\
            for n in m.search(None, 'ALL')[1][0].split():\n\
            \x20   print(m.fetch(n, '(BODY.PEEK[])')[1][0][1].hex())\n\
            m.logout()\n";
        let printed = python(script, &[&self.address.ip.to_string(), user]);
        printed.lines().map(from_hex).collect()
    }
}

/// Postfix's smtp-sink, which writes each message to a file.
#[derive(Debug)]
pub struct SmtpSink {
    directory: TempDir,
    address: Address,
    _process: Process,
}

impl SmtpSink {
    /// Starts it with further arguments of smtp-sink(1).
    pub fn start(arguments: &[&str]) -> Self {
        let directory = scratch("smtp-sink");
        let address = Address::claim();
        let dump = directory.path().join("m.");
        let mut command = Command::new(find("smtp-sink").unwrap());
        command.args(["-h", "sink.test", "-d"]).arg(&dump).args(arguments);
        if nix::unistd::geteuid().is_root() {
            command.args(["-u", "nobody"]);
        }
        command.arg(address.port(2525).to_string()).arg("1000");
        command.current_dir(directory.path()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = Process::start(&mut command);
        until("smtp-sink", PATIENCE, || TcpStream::connect(address.port(2525)).ok());
        Self { directory, address, _process: process }
    }

    /// The route to it.
    pub fn via(&self) -> String {
        format!("smtp:[{}]:2525", self.address.ip)
    }

    /// Waits until it wrote that many messages. Each has `X-…` lines and a Received line of its own before
    /// it, and LF line ends, as smtp-sink writes them.
    pub fn wait(&self, count: usize, patience: Duration) -> Vec<Vec<u8>> {
        until(&format!("{count} messages at smtp-sink"), patience, || {
            let messages = self.messages();
            (messages.len() >= count).then_some(messages)
        })
    }

    /// The messages whose transactions came to their end.
    pub fn messages(&self) -> Vec<Vec<u8>> {
        let files = std::fs::read_dir(self.directory.path()).unwrap().map(|entry| entry.unwrap().path());
        let messages = files.map(|file| std::fs::read(file).unwrap());
        // smtp-sink puts an empty line behind a message that it took whole.
        messages
            .filter(|message| message.ends_with(b"\n\n"))
            .map(|message| message[..message.len() - 1].to_vec())
            .collect()
    }
}

/// NSD: an authoritative name server on port 53 of an address of its own (root), or 5353.
#[derive(Debug)]
pub struct Nsd {
    _directory: TempDir,
    address: Address,
    port: u16,
    _process: Process,
}

impl Nsd {
    /// Serves the zone `test.`: the lines of `zone`, with names relative to it, stand below an SOA and an NS
    /// record.
    pub fn start(zone: &str) -> Self {
        Self::start_with(zone, "")
    }

    /// The same, and the zone `in-addr.arpa.` with the lines of `reverse`.
    pub fn start_with(zone: &str, reverse: &str) -> Self {
        let directory = scratch("nsd");
        let address = Address::claim();
        let port = if nix::unistd::geteuid().is_root() { 53 } else { 5353 };
        let d = directory.path().display();
        let (user, ..) = peer_user();
        let user = if port == 53 { user } else { String::new() };
        let config = format!(
            "server:\n ip-address: {}@{port}\n username: \"{user}\"\n chroot: \"\"\n zonesdir: {d}\n database: \"\"\n \
             pidfile: {d}/nsd.pid\n xfrdfile: {d}/xfrd\n xfrdir: {d}\n zonelistfile: {d}/zl\n logfile: {d}/nsd.log\n \
             server-count: 1\n rrl-ratelimit: 0\n\
             remote-control:\n control-enable: no\n\
             zone:\n name: test.\n zonefile: zone\n\
             zone:\n name: in-addr.arpa.\n zonefile: reverse\n",
            address.ip
        );
        write(&directory, "nsd.conf", &config);
        let reverse = format!(
            "$ORIGIN in-addr.arpa.\n$TTL 60\n@ IN SOA ns.test. h 1 60 60 60 5\n@ IN NS ns.test.\n{reverse}\n"
        );
        write(&directory, "reverse", &reverse);
        let zone = format!(
            "$ORIGIN test.\n$TTL 60\n@ IN SOA ns h 1 60 60 60 5\n@ IN NS ns\nns IN A {}\n{zone}\n",
            address.ip
        );
        write(&directory, "zone", &zone);
        let mut command = Command::new(find("nsd").unwrap());
        command.arg("-d").arg("-c").arg(directory.path().join("nsd.conf"));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let process = Process::start(&mut command);
        let at = address.port(port);
        until("nsd", PATIENCE, || TcpStream::connect(at).ok());
        Self { _directory: directory, address, port, _process: process }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address.port(self.port)
    }
}

/// A directory that servers under another user can work in.
pub(crate) fn scratch(name: &str) -> TempDir {
    let directory = tempfile::Builder::new().prefix(&format!("postern-{name}-")).tempdir().unwrap();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    give_to_peer(directory.path());
    directory
}

/// The user of strangers' servers: `nobody` for root, the caller otherwise. Name, user id, group id.
pub(crate) fn peer_user() -> (String, u32, u32) {
    let user = if nix::unistd::geteuid().is_root() {
        nix::unistd::User::from_name("nobody").unwrap().unwrap()
    } else {
        nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap()
    };
    (user.name, user.uid.as_raw(), user.gid.as_raw())
}

pub(crate) fn group_name(gid: u32) -> String {
    nix::unistd::Group::from_gid(gid.into()).unwrap().unwrap().name
}

pub(crate) fn give_to_peer(path: &Path) {
    let (_, uid, gid) = peer_user();
    std::os::unix::fs::chown(path, Some(uid), Some(gid)).unwrap();
}

pub(crate) fn write(directory: &TempDir, name: &str, text: &str) {
    let path = directory.path().join(name);
    std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
    give_to_peer(&path);
}

fn start_as_peer(command: &mut Command, directory: &TempDir) -> Process {
    let (_, uid, gid) = peer_user();
    if nix::unistd::geteuid().is_root() {
        command.uid(uid).gid(gid);
    }
    command.current_dir(directory.path()).stdout(Stdio::null()).stderr(Stdio::null());
    Process::start(command)
}

fn from_hex(line: &str) -> Vec<u8> {
    let digit = |c: u8| (c as char).to_digit(16).unwrap() as u8;
    line.as_bytes().chunks(2).map(|pair| digit(pair[0]) * 16 + digit(pair[1])).collect()
}
