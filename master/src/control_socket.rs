//! The control socket: a packet socket in the runtime directory. The kernel tells who is asking.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, sockopt};
use nix::unistd::Uid;
use postern_ipc::Link;
use postern_ipc::control::{Reply, Request};

use crate::Fatal;

/// The listening socket; its path goes with it.
pub(crate) struct ControlSocket {
    socket: OwnedFd,
    path: PathBuf,
}

/// Somebody at the control socket.
pub(crate) struct Connection {
    /// The conversation.
    pub(crate) link: Link<Reply, Request>,
    /// root, or the user that master runs as: may change things. Others may look at the status.
    pub(crate) may_change: bool,
    /// It has made its request.
    pub(crate) asked: bool,
}

impl ControlSocket {
    /// Makes the runtime directory and the socket in it. A socket left behind by a dead system is
    /// replaced: that no other system lives is known by the spool's lock.
    pub(crate) fn open(runtime: &Path) -> Result<Self, Fatal> {
        let path = runtime.join("control");
        let open = || -> io::Result<OwnedFd> {
            if !runtime.exists() {
                DirBuilder::new().recursive(true).mode(0o755).create(runtime)?;
                // The umask is stricter; everybody may ask for the status.
                std::fs::set_permissions(runtime, Permissions::from_mode(0o755))?;
            }
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = nix::sys::socket::socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
            nix::sys::socket::bind(socket.as_raw_fd(), &UnixAddr::new(&path)?)?;
            std::fs::set_permissions(&path, Permissions::from_mode(0o666))?;
            nix::sys::socket::listen(&socket, Backlog::new(16)?)?;
            Ok(socket)
        };
        let socket = open().map_err(|e| Fatal::because(format!("control socket {}", path.display()), e))?;
        Ok(Self { socket, path })
    }

    /// The next caller; none when nobody waits.
    pub(crate) fn accept(&self) -> io::Result<Option<Connection>> {
        let accepted = match postern_sys::accept(&self.socket) {
            Ok(accepted) => accepted,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(e) => return Err(e),
        };
        let peer = nix::sys::socket::getsockopt(&accepted, sockopt::PeerCredentials)?;
        let may_change = peer.uid() == 0 || peer.uid() == Uid::effective().as_raw();
        Ok(Some(Connection { link: Link::new(accepted), may_change, asked: false }))
    }

    /// For the event loop.
    pub(crate) fn descriptor(&self) -> &OwnedFd {
        &self.socket
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // Left behind it does no harm: the next start replaces it.
        let _ = std::fs::remove_file(&self.path);
    }
}
