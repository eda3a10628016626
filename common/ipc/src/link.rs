//! One end of a connected packet socket.

use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::frame::{self, FrameError, MAX_FRAME};

/// Pairs an answer with its question on one link. The asking side chooses it.
pub type RequestId = u64;

/// Frames waiting because the peer is slow; past this the sender should ask for nothing more.
const CONGESTED_AT: usize = 64;

/// One end of a conversation: `Out` is said here, `In` is heard. Non-blocking; register it with the event
/// loop by its descriptor for reading, and for writing while [`Link::wants_write`].
#[derive(Debug)]
pub struct Link<Out, In> {
    socket: OwnedFd,
    waiting: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    buffer: Box<[u8]>,
    spoken: PhantomData<fn(Out) -> In>,
}

/// Why a link cannot be used any more, or a value not be sent.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The other program is gone. Master will send a new link.
    #[error("the other end is gone")]
    Closed,
    /// The other end said something we do not understand: drop the link.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The kernel says so: drop the link.
    #[error("link: {0}")]
    Io(#[from] io::Error),
}

impl<Out: Serialize, In: DeserializeOwned> Link<Out, In> {
    /// Takes over a connected `SOCK_SEQPACKET` socket.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, waiting: VecDeque::new(), buffer: vec![0; MAX_FRAME].into(), spoken: PhantomData }
    }

    /// Sends a value, or keeps it in order until the peer has room.
    pub fn send(&mut self, value: &Out) -> Result<(), LinkError> {
        self.send_with(value, Vec::new())
    }

    /// Sends a value with descriptors beside it.
    pub fn send_with(&mut self, value: &Out, descriptors: Vec<OwnedFd>) -> Result<(), LinkError> {
        let packet = frame::encode(value)?;
        self.waiting.push_back((packet, descriptors));
        if self.waiting.len() == 1 { self.flush() } else { Ok(()) }
    }

    /// Sends what waits, as far as the peer has room. Call it when the socket is writable.
    pub fn flush(&mut self) -> Result<(), LinkError> {
        while let Some((packet, descriptors)) = self.waiting.front() {
            let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
            match postern_sys::send(self.socket.as_fd(), packet, &borrowed) {
                Ok(()) => drop(self.waiting.pop_front()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(closed_or(e)),
            }
        }
        Ok(())
    }

    /// The next value heard and its descriptors; none when there is nothing to hear now. Call it until
    /// none: event loops are edge-triggered.
    pub fn receive(&mut self) -> Result<Option<(In, Vec<OwnedFd>)>, LinkError> {
        loop {
            match postern_sys::receive(self.socket.as_fd(), &mut self.buffer) {
                Ok((0, _)) => return Err(LinkError::Closed),
                Ok((length, descriptors)) => {
                    return Ok(Some((frame::decode(&self.buffer[..length])?, descriptors)));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(closed_or(e)),
            }
        }
    }

    /// Gives the socket back, to be passed to another program; refused while something waits for the peer.
    pub fn into_socket(self) -> Result<OwnedFd, LinkError> {
        if self.wants_write() {
            return Err(LinkError::Io(io::ErrorKind::WouldBlock.into()));
        }
        Ok(self.socket)
    }

    /// Something waits for the peer.
    pub fn wants_write(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The peer is so slow that nothing more should be asked of it: answer 4xx, or wait.
    pub fn is_congested(&self) -> bool {
        self.waiting.len() >= CONGESTED_AT
    }
}

fn closed_or(error: io::Error) -> LinkError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected => {
            LinkError::Closed
        }
        _ => LinkError::Io(error),
    }
}

impl<Out, In> AsFd for Link<Out, In> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl<Out, In> AsRawFd for Link<Out, In> {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// For programs that do one thing at a time (a child before its event loop, the control binary).
pub mod blocking {
    use super::*;

    /// A pair of connected packet sockets.
    pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?)
    }

    /// Waits for the next value, at most `timeout`; `TimedOut` is an [`LinkError::Io`].
    pub fn receive<Out: Serialize, In: DeserializeOwned>(
        link: &mut Link<Out, In>,
        timeout: Option<Duration>,
    ) -> Result<(In, Vec<OwnedFd>), LinkError> {
        loop {
            if let Some(received) = link.receive()? {
                return Ok(received);
            }
            wait(link.as_fd(), PollFlags::POLLIN, timeout)?;
        }
    }

    /// Waits until everything sent has left, at most `timeout` for each packet.
    pub fn flush<Out: Serialize, In: DeserializeOwned>(
        link: &mut Link<Out, In>,
        timeout: Option<Duration>,
    ) -> Result<(), LinkError> {
        loop {
            link.flush()?;
            if !link.wants_write() {
                return Ok(());
            }
            wait(link.as_fd(), PollFlags::POLLOUT, timeout)?;
        }
    }

    fn wait(fd: BorrowedFd<'_>, flags: PollFlags, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = match timeout {
            None => PollTimeout::NONE,
            Some(t) => PollTimeout::try_from(t).unwrap_or(PollTimeout::MAX),
        };
        match poll(&mut [PollFd::new(fd, flags)], timeout) {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_peer_gets_everything_in_order() {
        let (a, b) = blocking::pair().unwrap();
        let (mut a, mut b) = (Link::<Vec<u8>, ()>::new(a), Link::<(), Vec<u8>>::new(b));
        for n in 0..100u8 {
            a.send(&vec![n; 20_000]).unwrap();
        }
        assert!(a.wants_write() && a.is_congested());
        for n in 0..100u8 {
            a.flush().unwrap();
            assert_eq!(b.receive().unwrap().unwrap().0, vec![n; 20_000]);
        }
        assert!(b.receive().unwrap().is_none());
        drop(a);
        assert!(matches!(b.receive(), Err(LinkError::Closed)));
    }

    #[test]
    fn a_bad_frame_is_an_error_of_the_link() {
        let (a, b) = blocking::pair().unwrap();
        postern_sys::send(a.as_fd(), &[1, 200], &[]).unwrap();
        let mut b = Link::<(), String>::new(b);
        assert!(matches!(b.receive(), Err(LinkError::Frame(_))));
    }
}
