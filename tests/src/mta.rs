//! Strangers' mail systems, each as an instance of its own, in which `u1@v.test`, `u2@v.test` and the
//! postmaster get mail and nobody relays. They have STARTTLS. They need root: their programs change users.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::unistd::User;
use tempfile::TempDir;

use crate::net::{Address, via};
use crate::peers::scratch;
use crate::process::{Process, until};
use crate::system::make_certificate;

const PATIENCE: Duration = Duration::from_secs(30);

/// Where `tests/install-packages` unpacks Debian's Exim, which cannot be installed beside its Postfix.
const EXIM: &str = "/usr/local/lib/postern-peers/exim4";

/// Debian's Postfix.
#[derive(Debug)]
pub struct Postfix {
    directory: TempDir,
    address: Address,
}

impl Postfix {
    /// Starts it. `bare` is its setting for LF without CR: `no`, which takes it for a line end, is what Debian
    /// gives; `normalize` and `reject` are the others. With `tls` it offers STARTTLS.
    pub fn start(bare: &str, tls: bool) -> Self {
        Self::start_with(bare, tls, "")
    }

    /// The same, with further lines of `main.cf`.
    pub fn start_with(bare: &str, tls: bool, more: &str) -> Self {
        let (directory, address) = (scratch("postfix"), Address::claim());
        let d = directory.path();
        for name in ["etc", "queue", "data", "mail"] {
            std::fs::create_dir(d.join(name)).unwrap();
        }
        let postfix = User::from_name("postfix").unwrap().expect("Debian's postfix is installed");
        let nobody = User::from_name("nobody").unwrap().unwrap();
        chown(d, Some(0), Some(0)).unwrap();
        chown(d.join("data"), Some(postfix.uid.as_raw()), None).unwrap();
        chown(d.join("mail"), Some(nobody.uid.as_raw()), Some(nobody.gid.as_raw())).unwrap();
        make_certificate(d);
        let fill = |text: &str| {
            text.replace("@DIRECTORY@", &d.display().to_string())
                .replace("@LISTEN@", &address.port(2525).to_string())
                .replace("@BARE@", bare)
                .replace("@TLS@", if tls { "may" } else { "none" })
                .replace("@UID@", &nobody.uid.to_string())
                .replace("@GID@", &nobody.gid.to_string())
        };
        let main = with(&fill(include_str!("mta/main.cf")), more);
        std::fs::write(d.join("etc/main.cf"), main).unwrap();
        std::fs::write(d.join("etc/master.cf"), fill(include_str!("mta/master.cf"))).unwrap();
        let this = Self { directory, address };
        this.postfix("start");
        until("Postfix", PATIENCE, || TcpStream::connect(this.address()).ok());
        this
    }

    /// Where it listens for SMTP.
    pub fn address(&self) -> SocketAddr {
        self.address.port(2525)
    }

    /// The route to it.
    pub fn via(&self) -> String {
        via(self.address())
    }

    /// Where the Maildirs of its users are.
    pub fn mail(&self) -> PathBuf {
        self.directory.path().join("mail/v.test")
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Nothing is queued.
    pub fn is_empty(&self) -> bool {
        let queue = self.directory.path().join("queue");
        let entries =
            |name: &str| std::fs::read_dir(queue.join(name)).unwrap().map(|entry| entry.unwrap().path());
        ["maildrop", "incoming", "active", "deferred"]
            .iter()
            .all(|name| entries(name).all(|path| path.is_dir()))
    }

    fn postfix(&self, what: &str) {
        let mut command = Command::new("/usr/sbin/postfix");
        command.arg("-c").arg(self.directory.path().join("etc")).arg(what);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "postfix {what}: {said}{}", self.log());
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What it said helps more than a second panic.
            eprintln!("Postfix's log:\n{}", last_lines(&self.log()));
            let etc = self.directory.path().join("etc");
            let _ = Command::new("/usr/sbin/postfix").arg("-c").arg(etc).arg("stop").output();
        } else {
            self.postfix("stop");
        }
    }
}

/// `main.cf` with further lines. What they set anew is left out of it: of an entry that comes twice each program of
/// Postfix warns, its postlogd too, which waits for itself for ever when ten warnings of others wait for it just then.
fn with(main: &str, more: &str) -> String {
    let name = |line: &str| line.split_once('=').map(|(name, _)| name.trim().to_owned());
    let again: Vec<_> = more.lines().filter_map(name).collect();
    let kept = main.lines().filter(|line| name(line).is_none_or(|name| !again.contains(&name)));
    kept.chain(more.lines()).map(|line| format!("{line}\n")).collect()
}

/// Debian's Exim. It knows its own path and that of its configuration, so it is shown an `/etc` and a
/// `/usr/sbin` of its own, in a mount namespace that ends with it. User `u1` has the password `secret`.
#[derive(Debug)]
pub struct Exim {
    directory: TempDir,
    address: Address,
    _process: Process,
}

impl Exim {
    /// Whether it is unpacked.
    pub fn is_there() -> bool {
        Path::new(EXIM).join("usr/sbin/exim4").exists()
    }

    /// Starts it.
    pub fn start() -> Self {
        let address = Address::claim();
        let config =
            include_str!("mta/exim.conf").replace("@IP@", &address.ip.to_string()).replace("@PORT@", "2525");
        let directory = Self::home(&config);
        let d = directory.path();
        let mut command = Self::command(d, &["-bdf"]);
        let errors = std::fs::File::create(d.join("stderr")).unwrap();
        command.current_dir("/").stdout(Stdio::null()).stderr(errors);
        let mut process = Process::start(&mut command);
        let at = address.port(2525);
        let up = until("Exim", PATIENCE, || {
            let up = TcpStream::connect(at).ok().map(|_| true);
            up.or_else(|| process.ended().map(|_| false))
        });
        let this = Self { directory, address, _process: process };
        assert!(up, "Exim did not start:\n{}", this.log());
        this
    }

    /// Where it listens for SMTP.
    pub fn address(&self) -> SocketAddr {
        self.address.port(2525)
    }

    /// Where the Maildirs of its users are.
    pub fn mail(&self) -> PathBuf {
        self.directory.path().join("mail/v.test")
    }

    /// What it logged.
    pub fn log(&self) -> String {
        Self::logged(self.directory.path())
    }

    /// Hands it a message for `recipients`, which it sends to the server at `to` at once, in chunks and with
    /// PRDR where they are offered. Returns what it logged.
    pub fn sends(to: SocketAddr, from: &str, recipients: &[&str], message: &[u8]) -> String {
        let config = include_str!("mta/exim-client.conf")
            .replace("@IP@", &to.ip().to_string())
            .replace("@PORT@", &to.port().to_string());
        let directory = Self::home(&config);
        std::fs::write(directory.path().join("message"), message).unwrap();
        let mut command = Self::command(directory.path(), &["-odf", "-oi", "-f", from]);
        command.args(recipients).current_dir("/");
        command.stdin(std::fs::File::open(directory.path().join("message")).unwrap());
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        said + &Self::logged(directory.path())
    }

    /// A directory with all it needs.
    fn home(config: &str) -> TempDir {
        let directory = scratch("exim");
        let d = directory.path();
        for name in ["etc", "etc/exim4", "spool", "log", "mail"] {
            std::fs::create_dir(d.join(name)).unwrap();
        }
        make_certificate(d);
        let nobody = User::from_name("nobody").unwrap().unwrap();
        let (uid, gid) = (nobody.uid.as_raw(), nobody.gid.as_raw());
        for name in [".", "spool", "log", "mail", "key.pem", "chain.pem"] {
            chown(d.join(name), Some(uid), Some(gid)).unwrap();
        }
        // Another name for nobody.
        let with = |file: &str, line: String| {
            let text = std::fs::read_to_string(Path::new("/etc").join(file)).unwrap();
            std::fs::write(d.join("etc").join(file), format!("{text}\n{line}\n")).unwrap();
        };
        with("passwd", format!("Debian-exim:x:{uid}:{gid}::/:/usr/sbin/nologin"));
        with("group", format!("Debian-exim:x:{gid}:"));
        let config = config.replace("@DIRECTORY@", &d.display().to_string());
        std::fs::write(d.join("etc/exim4/exim4.conf"), config).unwrap();
        directory
    }

    /// Exim with these arguments, in a mount namespace of its own.
    fn command(home: &Path, arguments: &[&str]) -> Command {
        let script = "mount -t overlay overlay -o \"lowerdir=$1/etc:/etc\" /etc && \
                      mount --bind \"$2/usr/sbin\" /usr/sbin && shift 2 && exec /usr/sbin/exim4 \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]).arg(home).arg(EXIM);
        command.args(arguments);
        command
    }

    fn logged(directory: &Path) -> String {
        let read = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap_or_default();
        ["stderr", "log/mainlog", "log/rejectlog", "log/paniclog"].map(read).concat()
    }
}

impl Drop for Exim {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("Exim's log:\n{}", last_lines(&self.log()));
        }
    }
}

fn last_lines(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
