//! What master opens for its children: ports, directories, the log, the keys.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, sockopt};
use nix::unistd::{Gid, Uid, fchown};
use postern_config::{Config, Listen, LogTarget, Service};
use postern_event::LogKind;
use postern_ipc::Role;
use postern_ipc::supervise::Handle;

use crate::Fatal;
use crate::identity;

/// Connections that the kernel keeps for us until we accept them.
const BACKLOG: i32 = 1024;

/// How long a former system may take to let go of the spool.
const LOCK_PATIENCE: Duration = Duration::from_secs(15);

/// The key and its certificate.
pub(crate) type Tls = (OwnedFd, OwnedFd);

/// Everything opened, with what it is.
pub(crate) struct Resources {
    listeners: Vec<OwnedFd>,
    /// Holds the spool's lock for as long as we and the queue-manager live.
    directories: Vec<(&'static str, OwnedFd)>,
    mailbox_base: Option<OwnedFd>,
    greylist: OwnedFd,
    tls: Option<Tls>,
}

impl Resources {
    /// Opens all of it.
    pub(crate) fn open(config: &Config) -> Result<Self, Fatal> {
        Ok(Self {
            directories: spool(&config.spool)?,
            greylist: greylist(&config.spool)?,
            mailbox_base: mailbox_base(config)?,
            tls: tls(config)?,
            listeners: config.listen.iter().map(bind).collect::<Result<_, _>>()?,
        })
    }

    /// What a program of `role` is handed at its start.
    pub(crate) fn handles(&self, role: Role) -> std::io::Result<Vec<(Handle, OwnedFd)>> {
        let mut handles = Vec::new();
        let mut give = |handle, descriptor: &OwnedFd| -> std::io::Result<()> {
            handles.push((handle, descriptor.try_clone()?));
            Ok(())
        };
        match role {
            Role::Smtpd => {
                for (n, listener) in self.listeners.iter().enumerate() {
                    give(Handle::Listener(n as u16), listener)?;
                }
                for (name, directory) in
                    self.directories.iter().filter(|(name, _)| matches!(*name, "tmp" | "new"))
                {
                    give(Handle::SpoolDirectory((*name).to_owned()), directory)?;
                }
            }
            Role::QueueManager => {
                for (name, directory) in &self.directories {
                    give(Handle::SpoolDirectory((*name).to_owned()), directory)?;
                }
            }
            Role::DeliveryLocal => {
                if let Some(base) = &self.mailbox_base {
                    give(Handle::MailboxBase, base)?;
                }
            }
            Role::Verify => give(Handle::Greylist, &self.greylist)?,
            Role::Keys => {
                if let Some((key, certificate)) = &self.tls {
                    give(Handle::PrivateKey, key)?;
                    give(Handle::Certificate, certificate)?;
                }
            }
            _ => {}
        }
        Ok(handles)
    }

    /// The key and its certificate were renewed: keys is handed these from now on.
    pub(crate) fn replace_tls(&mut self, tls: Option<Tls>) {
        self.tls = tls;
    }

    /// There is a key.
    pub(crate) fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Where the listeners are, after the kernel chose.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = std::io::Result<SocketAddr>> + '_ {
        self.listeners.iter().map(|fd| TcpListener::from(fd.try_clone()?).local_addr())
    }
}

/// Opens the key and the certificate. At a reload too: renewed ones are other files by the same names.
pub(crate) fn tls(config: &Config) -> Result<Option<Tls>, Fatal> {
    let open = |tls: &postern_config::Tls| Ok((readable(&tls.key)?, readable(&tls.certificate)?));
    config.tls.as_ref().map(open).transpose()
}

/// The word of a service in the configuration.
pub(crate) fn service_name(service: Service) -> &'static str {
    match service {
        Service::Smtp => "smtp",
        Service::Submission => "submission",
        Service::Submissions => "submissions",
        Service::Lmtp => "lmtp",
    }
}

/// Opens the log that children write to.
pub(crate) fn log(target: &LogTarget) -> Result<(OwnedFd, LogKind), Fatal> {
    let file = |path: &Path| {
        let opened = OpenOptions::new().append(true).create(true).mode(0o640).open(path);
        opened.map(OwnedFd::from).map_err(|e| Fatal::because(format!("log {}", path.display()), e))
    };
    let stderr =
        || std::io::stderr().as_fd().try_clone_to_owned().map_err(|e| Fatal::because("log stderr", e));
    Ok(match target {
        LogTarget::Syslog => (syslog()?, LogKind::Syslog),
        LogTarget::TextStderr => (stderr()?, LogKind::Text),
        LogTarget::JsonStderr => (stderr()?, LogKind::Json),
        LogTarget::TextFile(path) => (file(path)?, LogKind::Text),
        LogTarget::JsonFile(path) => (file(path)?, LogKind::Json),
    })
}

fn syslog() -> Result<OwnedFd, Fatal> {
    let connect = || -> std::io::Result<OwnedFd> {
        let socket = UnixDatagram::unbound()?;
        socket.connect("/dev/log")?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    };
    connect().map_err(|e| {
        Fatal(format!("log: no syslog daemon at /dev/log ({e}): start one, or say `log = \"text:stderr\"` or `\"text:PATH\"`"))
    })
}

fn readable(path: &Path) -> Result<OwnedFd, Fatal> {
    File::open(path).map(OwnedFd::from).map_err(|e| Fatal::because(path.display(), e))
}

/// Makes the spool's directories, gives each its owner and mode, opens them, and takes the spool's lock.
fn spool(path: &Path) -> Result<Vec<(&'static str, OwnedFd)>, Fatal> {
    let failed = |e: std::io::Error| Fatal::because(format!("spool {}", path.display()), e);
    postern_spool::create_directories(path).map_err(failed)?;
    let owners = identity::rooted().then(owners).transpose()?;
    if owners.is_some() {
        // Local programs pass through to `drop`; nobody but its owner sees into the others.
        std::fs::set_permissions(path, Permissions::from_mode(0o755)).map_err(failed)?;
    }
    let mut opened = Vec::new();
    for name in postern_spool::DIRECTORIES {
        let flags = (OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits();
        let directory =
            OpenOptions::new().read(true).custom_flags(flags).open(path.join(name)).map_err(failed)?;
        if let Some(owners) = &owners {
            let (uid, gid, mode) = owners.of(name);
            fchown(&directory, Some(uid), Some(gid)).map_err(|e| failed(e.into()))?;
            directory.set_permissions(Permissions::from_mode(mode)).map_err(failed)?;
        }
        if name == "cur" {
            lock(&directory, path)?;
        }
        opened.push((name, directory.into()));
    }
    Ok(opened)
}

/// Makes the directory of the greylist, in the spool's, and opens it. Whether there is a greylist may change by
/// a reload: the directory is there in any case.
fn greylist(spool: &Path) -> Result<OwnedFd, Fatal> {
    let path = spool.join("greylist");
    let failed = |e: std::io::Error| Fatal::because(path.display(), e);
    match std::fs::DirBuilder::new().mode(0o700).create(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    let flags = (OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits();
    let directory = OpenOptions::new().read(true).custom_flags(flags).open(&path).map_err(failed)?;
    if identity::rooted() {
        let owner = identity::user(Role::Verify.system_user())?;
        fchown(&directory, Some(owner.uid), Some(owner.gid)).map_err(|e| failed(e.into()))?;
        directory.set_permissions(Permissions::from_mode(0o700)).map_err(failed)?;
    }
    Ok(directory.into())
}

/// Two systems on one spool would deliver everything twice. The lock belongs to the open directory, which
/// the queue-manager shares: it is free when both it and master are gone, however they went.
fn lock(directory: &File, path: &Path) -> Result<(), Fatal> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match directory.try_lock() {
            Ok(()) => return Ok(()),
            // No event tells of a lock's release without blocking on it.
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20))
            }
            Err(TryLockError::WouldBlock) => {
                return Err(Fatal(format!("another Postern is running on the spool {}", path.display())));
            }
            Err(TryLockError::Error(error)) => return Err(Fatal::because("spool lock", error)),
        }
    }
}

/// Owners and modes of the spool's directories under root. `tmp` and `new` belong to smtpd, which makes
/// files there, and hand the files to the queue-manager's group; the rest is the queue-manager's alone,
/// but for `drop`, where the sendmail program's group may make files and, by the sticky bit, not remove
/// another's.
struct Owners {
    smtpd: Uid,
    queue: Uid,
    queue_group: Gid,
    drop_group: Gid,
}

fn owners() -> Result<Owners, Fatal> {
    let queue = identity::user(Role::QueueManager.system_user())?;
    Ok(Owners {
        smtpd: identity::user(Role::Smtpd.system_user())?.uid,
        queue: queue.uid,
        queue_group: queue.gid,
        drop_group: Gid::from_raw(identity::drop_group()?),
    })
}

impl Owners {
    fn of(&self, directory: &str) -> (Uid, Gid, u32) {
        match directory {
            "tmp" | "new" => (self.smtpd, self.queue_group, 0o2770),
            "drop" => (self.queue, self.drop_group, 0o3770),
            _ => (self.queue, self.queue_group, 0o700),
        }
    }
}

fn mailbox_base(config: &Config) -> Result<Option<OwnedFd>, Fatal> {
    let Some(virtual_) = &config.virtual_ else { return Ok(None) };
    let Some(base) = virtual_.mailbox.base() else { return Ok(None) };
    let failed = |e: std::io::Error| Fatal::because(format!("[virtual] mailbox base {}", base.display()), e);
    let existed = base.exists();
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&base).map_err(failed)?;
    let directory = File::open(&base).map_err(failed)?;
    if identity::rooted() && !existed {
        let owner = identity::user(&virtual_.owner)?;
        fchown(&directory, Some(owner.uid), Some(owner.gid)).map_err(|e| failed(e.into()))?;
        directory.set_permissions(Permissions::from_mode(0o700)).map_err(failed)?;
    }
    Ok(Some(directory.into()))
}

/// Binds a listener. IPv6 sockets take IPv4 clients too (`[::]:25` is the whole host) unless the address
/// is a particular one.
fn bind(listen: &Listen) -> Result<OwnedFd, Fatal> {
    bind_address(listen.address).map_err(|error| {
        let hint = match error {
            nix::errno::Errno::EACCES => ": ports below 1024 need root; an ordinary user takes a higher one",
            nix::errno::Errno::EADDRINUSE => ": another mail server is running there",
            _ => "",
        };
        Fatal(format!(
            "cannot listen on {} ({}): {error}{hint}",
            listen.address,
            service_name(listen.service)
        ))
    })
}

fn bind_address(address: SocketAddr) -> nix::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = nix::sys::socket::socket(family, SockType::Stream, flags, None)?;
    nix::sys::socket::setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    if address.is_ipv6() {
        nix::sys::socket::setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
    }
    nix::sys::socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    nix::sys::socket::listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(socket)
}
