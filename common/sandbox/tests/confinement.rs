//! Every program's profile from inside: what must fail, and what must work.
//!
//! The test starts itself anew as a child of one thread for every role, once with a system user to become
//! (as root) and once as an ordinary user. The children enter the profile, try, and tell what they found.

#![allow(clippy::unwrap_used, reason = "a test, built without the harness that says so")]

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, User, chown, setgroups, setresgid, setresuid};
use postern_ipc::Role;
use postern_ipc::supervise::{Attempt, Handle, Identity};
use postern_sandbox::{Confinement, Endpoint, Grant, attempt, become_user, confine_worker, enter};

const NOBODY: u32 = 65_534;
const SPOOL: [&str; 5] = ["tmp", "new", "cur", "drop", "corrupt"];

fn main() -> ExitCode {
    match std::env::var("SANDBOX_ROLE") {
        Ok(role) => child(&role),
        Err(_) => parent(),
    }
}

fn parent() -> ExitCode {
    let root = Uid::effective().is_root();
    if !root {
        eprintln!("SKIPPED: not root, so no program was tried with a system user of its own");
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let echo = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (tcp, udp) = (listener.local_addr().unwrap(), echo.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, from)) = echo.recv_from(&mut buffer) {
            echo.send_to(&buffer[..length], from).unwrap();
        }
    });
    let mut failed = 0;
    for role in Role::CHILDREN {
        let modes: &[&str] =
            if root { &["rooted", "nobody", "old-kernel"] } else { &["caller", "old-kernel"] };
        let named = (role == Role::Verify).then_some(&"named");
        for mode in modes.iter().chain(named) {
            let directory = prepare(root);
            let _unix = UnixListener::bind(directory.path().join("socket")).unwrap();
            fs::set_permissions(directory.path().join("socket"), Permissions::from_mode(0o777)).unwrap();
            let output = Command::new(std::env::current_exe().unwrap())
                .env("SANDBOX_ROLE", role.name())
                .env("SANDBOX_MODE", mode)
                .env("SANDBOX_DIRECTORY", directory.path())
                .env("SANDBOX_TCP", tcp.to_string())
                .env("SANDBOX_UDP", udp.to_string())
                .output()
                .unwrap();
            let (out, err) =
                (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            // The panic that every child makes and catches must have been printed.
            let whole = output.status.success() && out.ends_with("end\n") && err.contains("a panic to see");
            println!("{role} as {mode}: {}{}", if whole { "ok: " } else { "FAILED\n" }, out);
            if !whole {
                println!("{err}\n{:?}", output.status);
                failed += 1;
            }
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Makes the kernel answer like one that never heard of Landlock.
fn without_landlock() {
    use seccompiler::{SeccompAction, SeccompFilter};
    let calls =
        [libc::SYS_landlock_create_ruleset, libc::SYS_landlock_add_rule, libc::SYS_landlock_restrict_self];
    let filter = SeccompFilter::new(
        calls.into_iter().map(|call| (call, Vec::new())).collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS as u32),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program: seccompiler::BpfProgram = filter.unwrap().try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

/// A house of the test's own; all of it belongs to the user the child will be: Landlock alone must keep
/// it from what is not its part.
fn prepare(root: bool) -> tempfile::TempDir {
    let directory = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir().unwrap();
    let path = directory.path();
    let mut all = vec![path.to_owned()];
    for sub in SPOOL.iter().map(|s| path.join(s)).chain([path.join("mail"), path.join("tables")]) {
        fs::create_dir(&sub).unwrap();
        all.push(sub);
    }
    for (name, content) in [("secret", "s"), ("table", "t"), ("tables/table", "t"), ("new/queued", "q")] {
        fs::write(path.join(name), content).unwrap();
        fs::set_permissions(path.join(name), Permissions::from_mode(0o600)).unwrap();
        all.push(path.join(name));
    }
    if root {
        let (user, group) = (Some(Uid::from_raw(NOBODY)), Some(Gid::from_raw(NOBODY)));
        all.iter().for_each(|path| chown(path, user, group).unwrap());
    }
    directory
}

struct Child {
    role: Role,
    mode: String,
    directory: PathBuf,
    tcp: SocketAddr,
    udp: SocketAddr,
    spool: Vec<(Handle, OwnedFd)>,
    complaints: Vec<String>,
}

fn child(role: &str) -> ExitCode {
    let variable = |name: &str| std::env::var(name).unwrap();
    let directory = PathBuf::from(variable("SANDBOX_DIRECTORY"));
    let mode = variable("SANDBOX_MODE");
    if mode == "old-kernel" {
        without_landlock();
    }
    if mode == "nobody" || mode == "old-kernel" && Uid::effective().is_root() {
        let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        setgroups(&[]).unwrap();
        setresgid(gid, gid, gid).unwrap();
        setresuid(uid, uid, uid).unwrap();
    }
    let role = Role::CHILDREN.into_iter().find(|r| r.name() == role).unwrap();
    let spool = match role {
        Role::Smtpd => &SPOOL[..2],
        Role::QueueManager => &SPOOL[..],
        _ => &[],
    };
    let open = |name: &&str| {
        (Handle::SpoolDirectory((*name).into()), File::open(directory.join(name)).unwrap().into())
    };
    let mut child = Child {
        role,
        mode,
        spool: spool.iter().map(open).collect(),
        directory,
        tcp: variable("SANDBOX_TCP").parse().unwrap(),
        udp: variable("SANDBOX_UDP").parse().unwrap(),
        complaints: Vec::new(),
    };
    child.enter_and_try();
    child.complaints.iter().for_each(|complaint| println!("  {complaint}"));
    println!("end");
    if child.complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Child {
    fn enter_and_try(&mut self) {
        let uid = if self.role == Role::DeliveryLocal { 0 } else { NOBODY };
        let identity = Identity { uid, gid: uid, groups: vec![] };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let rooted = self.mode == "rooted" || (self.mode == "named" && Uid::effective().is_root());
        let report = enter(&Confinement {
            role: self.role,
            identity: rooted.then_some(identity),
            readable: vec![self.directory.join("table"), self.directory.join("missing")],
            writable: match self.role {
                Role::DeliveryLocal => vec![self.directory.join("mail")],
                _ => Vec::new(),
            },
            reachable: match self.mode.as_str() {
                "named" => {
                    vec![Endpoint::Tcp(self.tcp.port()), Endpoint::Unix(self.directory.join("socket"))]
                }
                _ => Vec::new(),
            },
            directories: self.spool.iter().map(|(handle, fd)| (handle.clone(), fd.as_fd())).collect(),
        });
        match report {
            Ok(report) if self.mode == "old-kernel" && report.landlock != "absent" => {
                self.complaints.push(format!("enforced what is not there: {report:?}"));
            }
            Ok(report) => println!("{report:?}"),
            Err(error) => return self.complaints.push(format!("cannot enter: {error}")),
        }
        self.must_fail(&listener);
        self.must_work(&listener);
    }

    /// Servers that the configuration names, and no others.
    fn reaches_the_named(&mut self, other: &TcpListener) {
        if let Err(error) = TcpStream::connect(self.tcp) {
            self.complaints.push(format!("BROKEN: the named port: {error}"));
        }
        if let Err(error) = UnixStream::connect(self.directory.join("socket")) {
            self.complaints.push(format!("BROKEN: the named socket: {error}"));
        }
        if TcpStream::connect(other.local_addr().unwrap()).is_ok() {
            self.complaints.push("HOLE: another port".into());
        }
        if UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).is_ok() {
            self.complaints.push("HOLE: UDP".into());
        }
    }

    fn must_fail(&mut self, listener: &TcpListener) {
        let path = |name: &str| self.directory.join(name).display().to_string();
        let mut attempts = vec![
            Attempt::Read("/etc/shadow".into()),
            Attempt::Read(path("secret")),
            Attempt::Read(path("tables/table")),
            Attempt::Read(path("new/queued")),
            Attempt::Read("/proc/self/mem".into()),
            Attempt::Create("/tmp/postern-sandbox-hole".into()),
            Attempt::Create(path("hole")),
            Attempt::Create("/dev/null".into()),
            Attempt::Execute("/nonexistent/program".into()),
            Attempt::Execute("/bin/true".into()),
            Attempt::BecomeRoot,
            Attempt::Trace(nix::unistd::getppid().as_raw()),
        ];
        if self.role == Role::QueueManager {
            attempts.retain(|a| *a != Attempt::Read(path("new/queued")));
        }
        if self.mode == "named" {
            self.reaches_the_named(listener);
        } else if !matches!(self.role, Role::DeliveryRemote | Role::Lmtp | Role::Resolver) {
            attempts.extend([Attempt::Connect(self.tcp), Attempt::InternetSocket]);
        }
        if self.mode == "old-kernel" {
            // Ownership and seccomp remain; everything here is one user's.
            attempts.retain(|a| !matches!(a, Attempt::Read(path) if !path.starts_with("/etc")));
            let writes =
                matches!(self.role, Role::Smtpd | Role::QueueManager | Role::DeliveryLocal | Role::Verify);
            attempts.retain(|a| !matches!(a, Attempt::Create(_)) || !writes);
        }
        for tried in attempts {
            match attempt(&tried) {
                Ok(()) => self.complaints.push(format!("HOLE: {tried:?}")),
                Err(libc::EPERM | libc::EACCES) => {}
                Err(other) => self.complaints.push(format!("closed by errno {other}, not by us: {tried:?}")),
            }
        }
        if TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).is_ok() {
            self.complaints.push("HOLE: listens".into());
        }
        let may = self.role == Role::Lmtp || self.mode == "named";
        if UnixStream::connect(self.directory.join("socket")).is_ok() && !may {
            self.complaints.push("HOLE: connects to a Unix socket".into());
        }
        // To itself it may: abort is made of that. (This signal is ignored.)
        if let Err(error) = nix::sys::signal::raise(nix::sys::signal::Signal::SIGWINCH) {
            self.complaints.push(format!("BROKEN: signals to itself: {error}"));
        }
        if nix::sys::signal::kill(nix::unistd::getppid(), None).is_ok() {
            self.complaints.push("HOLE: may signal its parent".into());
        }
        if nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 1, 1).is_ok() {
            self.complaints.push("HOLE: may change limits".into());
        }
        if Command::new("/bin/true").status().is_ok() {
            self.complaints.push("HOLE: starts programs".into());
        }
    }

    fn must_work(&mut self, listener: &TcpListener) {
        self.works("memory", |_| {
            let memory = vec![1u8; 64 << 20];
            (memory.iter().map(|b| usize::from(*b)).sum::<usize>() == 64 << 20).then_some(()).ok_or("wrong")
        });
        self.works("threads", |_| {
            let threads: Vec<_> = (0..4).map(|n| std::thread::spawn(move || n)).collect();
            threads.into_iter().try_for_each(|t| t.join().map(drop).map_err(|_| "join"))
        });
        self.works("panic", |_| {
            let caught = std::thread::spawn(|| panic!("a panic to see")).join();
            if caught.is_err() { Ok(()) } else { Err("no panic") }
        });
        self.works("time and chance", |_| {
            let now = (std::time::SystemTime::now(), std::time::Instant::now());
            std::thread::sleep(Duration::from_nanos(1));
            // Its hasher takes random numbers.
            let map = std::collections::HashMap::from([(now, ())]);
            if now.1.elapsed() > Duration::ZERO && map.len() == 1 { Ok(()) } else { Err("stands still") }
        });
        self.works("epoll", |_| {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            let event = nix::sys::eventfd::EventFd::from_value(1)?;
            epoll.add(&event, EpollEvent::new(EpollFlags::EPOLLIN, 7))?;
            let mut events = [EpollEvent::empty()];
            let count = epoll.wait(&mut events, EpollTimeout::from(1000u16))?;
            if count == 1 { Ok(()) } else { Err(nix::errno::Errno::EIO) }
        });
        if Path::new("/etc/localtime").exists() {
            self.works("time zone", |_| fs::read("/etc/localtime"));
        }
        self.works("a table of the configuration", |c| fs::read(c.directory.join("table")));
        match self.role {
            // The rest of these is about Landlock.
            Role::Smtpd | Role::DeliveryLocal if self.mode == "old-kernel" => {}
            Role::Smtpd => self.smtpd(listener),
            Role::QueueManager => self.queue_manager(),
            Role::Lookup => self.accounts(),
            Role::DeliveryLocal => {
                self.accounts();
                self.worker();
            }
            Role::DeliveryRemote => self.works("connect", |c| TcpStream::connect(c.tcp)),
            Role::Lmtp => {
                self.works("connect", |c| TcpStream::connect(c.tcp));
                self.works("connect", |c| UnixStream::connect(c.directory.join("socket")));
            }
            Role::Resolver => self.works("ask by UDP", |c| {
                let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
                socket.send_to(b"question", c.udp)?;
                socket.recv_from(&mut [0; 64])
            }),
            _ => {}
        }
    }

    fn works<T, E: std::fmt::Display>(&mut self, what: &str, does: impl FnOnce(&Self) -> Result<T, E>) {
        if let Err(error) = does(self) {
            self.complaints.push(format!("BROKEN: {what}: {error}"));
        }
    }

    fn accounts(&mut self) {
        self.works("accounts", |_| match User::from_name("root") {
            Ok(Some(_)) => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }

    /// The two further steps, in a fork as delivery-local makes it.
    fn worker(&mut self) {
        let tasks = openat(nix::fcntl::AT_FDCWD, "/proc/self/task", OFlag::O_PATH, Mode::empty()).unwrap();
        let (directory, rooted) = (self.directory.join("mail"), self.mode == "rooted");
        self.works("a worker", |_| -> Result<(), String> {
            // A thread that was joined above may be counted for a moment longer: the kernel tells of its end
            // before it takes it out of the list.
            let until = std::time::Instant::now() + Duration::from_secs(5);
            let threads = || nix::sys::stat::fstat(&tasks).map(|stat| stat.st_nlink.saturating_sub(2));
            while threads() != Ok(1) && std::time::Instant::now() < until {
                std::thread::yield_now();
            }
            let pid = postern_sys::fork_worker(tasks.as_fd(), vec![], |_| match worker(&directory, rooted) {
                Ok(()) => 0,
                Err(error) => {
                    println!("  in the worker: {error}");
                    3
                }
            });
            match nix::sys::wait::waitpid(pid.map_err(|e| e.to_string())?, None) {
                Ok(nix::sys::wait::WaitStatus::Exited(_, 0)) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }

    fn spool(&self, name: &str) -> &OwnedFd {
        &self.spool.iter().find(|(handle, _)| *handle == Handle::SpoolDirectory(name.into())).unwrap().1
    }

    fn smtpd(&mut self, listener: &TcpListener) {
        self.works("write to the spool", |c| {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
            let file = openat(c.spool("tmp"), "message", flags, Mode::from_bits_truncate(0o660))?;
            let mut file = File::from(file);
            nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, 4096)?;
            file.write_all(b"message")?;
            file.set_len(7)?;
            file.sync_data()?;
            file.sync_all()?;
            nix::unistd::fsync(c.spool("tmp"))?;
            renameat(c.spool("tmp"), "message", c.spool("new"), "message")?;
            if openat(c.spool("new"), "message", OFlag::O_RDONLY, Mode::empty()).is_ok() {
                return Err(std::io::Error::other("HOLE: can read it back"));
            }
            let remove = nix::unistd::UnlinkatFlags::NoRemoveDir;
            if nix::unistd::unlinkat(c.spool("new"), "queued", remove).is_ok()
                || openat(c.spool("new"), "made", flags, Mode::empty()).is_ok()
                || nix::dir::Dir::openat(c.spool("new"), ".", OFlag::O_RDONLY, Mode::empty()).is_ok()
            {
                return Err(std::io::Error::other("HOLE: may do more than move into new/"));
            }
            openat(c.spool("tmp"), "replacing", flags, Mode::from_bits_truncate(0o660))?;
            if renameat(c.spool("tmp"), "replacing", c.spool("new"), "queued").is_ok() {
                return Err(std::io::Error::other("HOLE: may replace a message"));
            }
            openat(c.spool("tmp"), "aborted", flags, Mode::from_bits_truncate(0o660))?;
            nix::unistd::unlinkat(c.spool("tmp"), "aborted", remove)?;
            Ok(())
        });
        self.works("accept", |_| -> std::io::Result<()> {
            listener.set_nonblocking(true)?;
            match listener.accept() {
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
                other => other.map(drop),
            }
        });
    }

    fn queue_manager(&mut self) {
        self.works("keep the spool", |c| -> std::io::Result<()> {
            let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
            inotify.add_watch(&c.directory.join("new"), AddWatchFlags::IN_MOVED_TO)?;
            renameat(c.spool("new"), "queued", c.spool("cur"), "queued")?;
            let file = openat(c.spool("cur"), "queued", OFlag::O_RDWR | OFlag::O_APPEND, Mode::empty())?;
            let mut file = File::from(file);
            file.read_to_end(&mut Vec::new())?;
            file.write_all(b"log")?;
            file.sync_data()?;
            fs::read_dir(c.directory.join("cur"))?.try_for_each(|entry| entry.map(drop))?;
            postern_sys::sealed_file("part", b"content")?;
            nix::unistd::unlinkat(
                c.spool("cur"),
                OsStr::new("queued"),
                nix::unistd::UnlinkatFlags::NoRemoveDir,
            )?;
            Ok(())
        });
    }
}

fn worker(mail: &Path, rooted: bool) -> Result<(), String> {
    if rooted {
        let root = Identity { uid: 0, gid: 0, groups: vec![] };
        become_user(&root).err().ok_or("HOLE: becomes root")?;
        become_user(&Identity { uid: NOBODY, gid: NOBODY, groups: vec![] }).map_err(|e| e.to_string())?;
    }
    let tree = mail.join("tree");
    fs::create_dir(&tree).map_err(|e| format!("make a Maildir: {e}"))?;
    fs::write(mail.join("other"), "x").map_err(|e| format!("make a file: {e}"))?;
    let opened = |path: &Path| File::open(path).map_err(|e| e.to_string());
    let (tree_fd, mail_fd) = (opened(&tree)?, opened(mail)?);
    confine_worker(&[(tree_fd.as_fd(), Grant::Tree), (mail_fd.as_fd(), Grant::DotLocks)])
        .map_err(|e| e.to_string())?;
    let path = |sub: &str| mail.join(sub).display().to_string();
    for tried in [
        Attempt::Read(path("other")),
        Attempt::Read("/etc/passwd".into()),
        Attempt::Create(path("made")),
        Attempt::Execute("/bin/true".into()),
        Attempt::BecomeRoot,
        Attempt::InternetSocket,
        Attempt::Trace(nix::unistd::getppid().as_raw()),
    ] {
        if !matches!(attempt(&tried), Err(libc::EPERM | libc::EACCES)) {
            return Err(format!("HOLE: {tried:?}"));
        }
    }
    let other = Uid::from_raw(1);
    if setresuid(other, other, other).is_ok() || std::os::unix::net::UnixStream::pair().is_ok() {
        return Err("HOLE: becomes another user, or makes sockets".into());
    }
    nix::sys::stat::mknodat(&mail_fd, "lock", nix::sys::stat::SFlag::S_IFREG, Mode::S_IRUSR, 0)
        .and_then(|()| nix::unistd::unlinkat(&mail_fd, "lock", nix::unistd::UnlinkatFlags::NoRemoveDir))
        .map_err(|e| format!("dot-lock: {e}"))?;
    fs::create_dir(tree.join("tmp")).map_err(|e| e.to_string())?;
    fs::create_dir(tree.join("new")).map_err(|e| e.to_string())?;
    fs::write(tree.join("tmp/m"), "m").map_err(|e| e.to_string())?;
    fs::rename(tree.join("tmp/m"), tree.join("new/m")).map_err(|e| format!("move: {e}"))
}
