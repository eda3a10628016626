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

/// What is said together travels in frames of up to so many octets; whatever is longer has one of its own.
const TOGETHER: usize = 32 * 1024;

/// One end of a conversation: `Out` is said here, `In` is heard. Non-blocking; register it with the event
/// loop by its descriptor for reading, and for writing while [`Link::wants_write`].
#[derive(Debug)]
pub struct Link<Out, In> {
    socket: OwnedFd,
    waiting: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    buffer: Box<[u8]>,
    /// The frame in it has values from the first to the second place that were not heard yet.
    heard: usize,
    length: usize,
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
        let buffer = vec![0; MAX_FRAME].into();
        Self { socket, waiting: VecDeque::new(), buffer, heard: 0, length: 0, spoken: PhantomData }
    }

    /// Sends a value, or keeps it in order until the peer has room.
    pub fn send(&mut self, value: &Out) -> Result<(), LinkError> {
        self.send_with(value, Vec::new())
    }

    /// Sends a value with descriptors beside it.
    pub fn send_with(&mut self, value: &Out, descriptors: Vec<OwnedFd>) -> Result<(), LinkError> {
        self.say(value, descriptors)?;
        self.flush()
    }

    /// Says a value that leaves with the next [`Link::flush`], together with others: one frame, and one turn of
    /// the peer's, for all of them. Descriptors stand beside a frame of their own.
    pub fn say(&mut self, value: &Out, descriptors: Vec<OwnedFd>) -> Result<(), LinkError> {
        if let Some((last, beside)) = self.waiting.back_mut()
            && beside.is_empty()
            && descriptors.is_empty()
            && frame::add(last, value, TOGETHER)?
        {
            return Ok(());
        }
        // What is before it is full.
        self.flush()?;
        self.waiting.push_back((frame::encode(value)?, descriptors));
        Ok(())
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
        let mut beside = Vec::new();
        while self.heard == self.length {
            match postern_sys::receive(self.socket.as_fd(), &mut self.buffer) {
                Ok((0, _)) => return Err(LinkError::Closed),
                Ok((length, descriptors)) => (self.heard, self.length, beside) = (0, length, descriptors),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(closed_or(e)),
            }
        }
        let (value, heard) = frame::decode_next(&self.buffer[..self.length], self.heard)?;
        self.heard = heard;
        Ok(Some((value, beside)))
    }

    /// Gives the socket back, to be passed to another program; refused while something waits for the peer, or
    /// was said by it and is not heard.
    pub fn into_socket(self) -> Result<OwnedFd, LinkError> {
        if self.wants_write() || self.heard < self.length {
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
    fn what_is_said_together_is_one_packet() {
        let (a, b) = blocking::pair().unwrap();
        let (mut a, mut b) = (Link::<String, ()>::new(a), Link::<(), String>::new(b));
        let words: Vec<String> = (0..2000).map(|n| "x".repeat(n % 100)).collect();
        words.iter().for_each(|word| a.say(word, Vec::new()).unwrap());
        a.flush().unwrap();
        let mut packets = 0;
        for word in &words {
            packets += usize::from(b.heard == b.length);
            assert_eq!(b.receive().unwrap().unwrap().0, *word);
        }
        assert_eq!(packets, 4);
        assert!(b.receive().unwrap().is_none());
    }

    #[test]
    fn descriptors_stay_with_their_value() {
        let (a, b) = blocking::pair().unwrap();
        let (mut a, mut b) = (Link::<u8, ()>::new(a), Link::<(), u8>::new(b));
        for n in 0..6u8 {
            let descriptors = (0..n % 2).map(|_| a.as_fd().try_clone_to_owned().unwrap());
            a.say(&n, descriptors.collect()).unwrap();
        }
        a.flush().unwrap();
        for n in 0..6u8 {
            let (value, descriptors) = b.receive().unwrap().unwrap();
            assert_eq!((value, descriptors.len()), (n, usize::from(n % 2)));
        }
    }

    #[test]
    fn a_bad_frame_behind_a_good_one_is_an_error() {
        let (a, b) = blocking::pair().unwrap();
        postern_sys::send(a.as_fd(), &[1, 1, b'x', 200], &[]).unwrap();
        let mut b = Link::<(), String>::new(b);
        assert_eq!(b.receive().unwrap().unwrap().0, "x");
        assert!(matches!(b.receive(), Err(LinkError::Frame(_))));
    }

    #[test]
    fn a_bad_frame_is_an_error_of_the_link() {
        let (a, b) = blocking::pair().unwrap();
        postern_sys::send(a.as_fd(), &[1, 200], &[]).unwrap();
        let mut b = Link::<(), String>::new(b);
        assert!(matches!(b.receive(), Err(LinkError::Frame(_))));
    }
}
