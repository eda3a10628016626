//! When a socket is worth reading.

use mio::event::Event;

/// What is known of a socket's reading side. The event loop tells of changes alone (edge-triggered, epoll(7)), so what
/// it told holds until a read has shown that nothing is left.
#[derive(Clone, Copy, Debug, Default)]
pub struct Readiness {
    readable: bool,
    hung_up: bool,
}

impl Readiness {
    /// The event loop tells of the socket.
    pub fn tell(&mut self, event: &Event) {
        let ended = event.is_error() || event.is_read_closed();
        self.readable |= event.is_readable() || ended;
        self.hung_up |= ended;
    }

    /// A read may give octets, the end or an error.
    pub fn is_readable(self) -> bool {
        self.readable
    }

    /// A read gave so many octets where there was `room` for more. A short read has emptied the socket, and the kernel
    /// tells when more comes. Unless it has already told that nothing will: then the end is to be read.
    pub fn came(&mut self, octets: usize, room: usize) {
        self.readable = octets == room || self.hung_up;
    }

    /// A read gave nothing.
    pub fn exhausted(&mut self) {
        self.readable = false;
    }

    /// To be read once, whatever was told.
    pub fn look(&mut self) {
        self.readable = true;
    }

    /// To be read to its end: the connection is broken.
    pub fn broken(&mut self) {
        (self.readable, self.hung_up) = (true, true);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::Shutdown;

    use mio::net::UnixStream;
    use mio::{Events, Interest, Poll, Token};

    use super::*;

    /// The end comes with the last octets, in one event: no other will tell of it.
    #[test]
    fn an_end_behind_a_short_read_is_read() {
        let mut poll = Poll::new().unwrap();
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        poll.registry().register(&mut ours, Token(0), Interest::READABLE).unwrap();
        let (mut events, mut readiness, mut buffer) =
            (Events::with_capacity(4), Readiness::default(), [0; 8]);
        let mut wait = |readiness: &mut Readiness| {
            poll.poll(&mut events, None).unwrap();
            events.iter().for_each(|event| readiness.tell(event));
            assert!(readiness.is_readable());
        };
        theirs.write_all(b"twelve octet").unwrap();
        wait(&mut readiness);
        for (octets, more) in [(8, true), (4, false)] {
            assert_eq!(ours.read(&mut buffer).unwrap(), octets);
            readiness.came(octets, buffer.len());
            assert_eq!(readiness.is_readable(), more);
        }
        assert_eq!(ours.read(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);
        theirs.write_all(b"last").unwrap();
        theirs.shutdown(Shutdown::Write).unwrap();
        wait(&mut readiness);
        assert_eq!(ours.read(&mut buffer).unwrap(), 4);
        readiness.came(4, buffer.len());
        assert!(readiness.is_readable());
        assert_eq!(ours.read(&mut buffer).unwrap(), 0);
        readiness.exhausted();
        assert!(!readiness.is_readable());
    }
}
