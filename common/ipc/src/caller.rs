//! The asking side of the control socket, for the control binary and mailq.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr};

use crate::control::{Reply, Request};
use crate::link::{Link, LinkError, blocking};

/// The system answers at once, or is in trouble.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens at the control socket.
    #[error("Postern is not running here (nobody answers at {0})")]
    NotRunning(String),
    /// The conversation broke off.
    #[error("asking the running system: {0}")]
    Link(#[from] LinkError),
}

/// Asks the system whose runtime directory this is; `each` hears every reply but the last,
/// [`Reply::End`]. A connection that closes before is an error, but for [`Request::Stop`], whose answer
/// that is.
pub fn ask(runtime: &Path, request: &Request, mut each: impl FnMut(Reply)) -> Result<(), AskError> {
    let path = runtime.join("control");
    let connect = || -> nix::Result<_> {
        let socket =
            nix::sys::socket::socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        nix::sys::socket::connect(socket.as_raw_fd(), &UnixAddr::new(&path)?)?;
        Ok(socket)
    };
    let socket = connect().map_err(|e| AskError::NotRunning(format!("{}: {e}", path.display())))?;
    let mut link = Link::<Request, Reply>::new(socket);
    link.send(request)?;
    blocking::flush(&mut link, Some(PATIENCE))?;
    loop {
        match blocking::receive(&mut link, Some(PATIENCE)) {
            Ok((Reply::End, _)) => return Ok(()),
            Ok((reply, _)) => each(reply),
            Err(LinkError::Closed) if *request == Request::Stop => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}
