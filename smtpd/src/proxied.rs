//! Connections that a proxy hands on: they wait here until the proxy has said whose they are
//! ([`postern_smtp::proxy`]), and are no sessions before. What the client itself has sent stays in the
//! socket, unread: only the header is taken.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Interest, Token};
use postern_daemon::Host;
use postern_smtp::proxy::{self, Fault, HEADER_MAX, Header, Parsed};
use slab::Slab;

/// How long a proxy may take for its header, which it sends in its first packet: longer than a lost packet
/// takes to be sent again.
const PATIENCE: Duration = Duration::from_secs(10);

/// Tokens: more than there can be descriptors.
const PLACES: usize = 1 << 24;

/// The connections that wait.
#[derive(Debug)]
pub(crate) struct Gate {
    waiting: Slab<Waiting>,
    /// Who has waited longest, by place and serial number.
    order: VecDeque<(usize, u64)>,
    first_token: usize,
    serial: u64,
}

#[derive(Debug)]
struct Waiting {
    stream: TcpStream,
    proxy: IpAddr,
    listener: usize,
    serial: u64,
    until: Instant,
}

/// A connection that waits no longer.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) stream: TcpStream,
    /// Who handed it on.
    pub(crate) proxy: IpAddr,
    /// Which of our listeners took it.
    pub(crate) listener: usize,
    /// Whose it is; or why that is not known.
    pub(crate) client: Result<IpAddr, Missing>,
}

/// Why there is no client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Missing {
    /// What came was no header.
    #[error("{0}")]
    Broken(Fault),
    /// It did not come in time.
    #[error("no PROXY header in time")]
    Late,
    /// The connection ended before it: a proxy's check that does not speak to us. Not worth a line.
    #[error("closed before its PROXY header")]
    Closed,
}

impl Gate {
    pub(crate) fn new(host: &mut Host) -> Self {
        let first_token = host.tokens(PLACES).0;
        Self { waiting: Slab::new(), order: VecDeque::new(), first_token, serial: 0 }
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Takes a proxy's connection. It may be ready at once.
    pub(crate) fn hold(
        &mut self,
        host: &Host,
        mut stream: TcpStream,
        proxy: IpAddr,
        listener: usize,
    ) -> io::Result<()> {
        let entry = self.waiting.vacant_entry();
        let place = entry.key();
        host.registry().register(&mut stream, Token(self.first_token + place), Interest::READABLE)?;
        self.serial += 1;
        self.order.push_back((place, self.serial));
        entry.insert(Waiting { stream, proxy, listener, serial: self.serial, until: host.now() + PATIENCE });
        Ok(())
    }

    /// An event of one of ours: `None` when it is none, `Some(None)` when it waits on.
    pub(crate) fn ready(&mut self, host: &Host, token: Token) -> Option<Option<Arrival>> {
        let place = token.0.checked_sub(self.first_token).filter(|place| *place < PLACES)?;
        let client = self.waiting.get_mut(place).and_then(|waiting| waiting.look().transpose());
        Some(client.map(|client| self.release(host, place, client)))
    }

    /// Who has waited too long.
    pub(crate) fn take_late(&mut self, host: &Host) -> Option<Arrival> {
        loop {
            let &(place, serial) = self.order.front()?;
            let known = self.waiting.get(place).filter(|waiting| waiting.serial == serial);
            if known.is_some_and(|waiting| host.now() < waiting.until) {
                return None;
            }
            let late = known.is_some();
            self.order.pop_front();
            if late {
                return Some(self.release(host, place, Err(Missing::Late)));
            }
        }
    }

    /// When to call [`Gate::take_late`].
    pub(crate) fn next(&self) -> Option<Instant> {
        let (place, serial) = self.order.front()?;
        // Of one that is gone: at once, to forget it.
        let known = self.waiting.get(*place).filter(|waiting| waiting.serial == *serial);
        known.map(|waiting| waiting.until)
    }

    /// Forgets all of them.
    pub(crate) fn clear(&mut self) {
        self.waiting.clear();
        self.order.clear();
    }

    fn release(&mut self, host: &Host, place: usize, client: Result<IpAddr, Missing>) -> Arrival {
        let Waiting { mut stream, proxy, listener, .. } = self.waiting.remove(place);
        // It is registered anew as a session; that tells what is already there to be read.
        let _ = host.registry().deregister(&mut stream);
        while let Some((place, serial)) = self.order.front() {
            if self.waiting.get(*place).is_some_and(|waiting| waiting.serial == *serial) {
                break;
            }
            self.order.pop_front();
        }
        Arrival { stream, proxy, listener, client }
    }
}

impl Waiting {
    /// Whose connection it is, when the whole header is there; it is then read.
    fn look(&mut self) -> Result<Option<IpAddr>, Missing> {
        let mut buffer = [0; HEADER_MAX];
        let arrived = loop {
            match self.stream.peek(&mut buffer) {
                Ok(0) => return Err(Missing::Closed),
                Ok(length) => break length,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(_) => return Err(Missing::Closed),
            }
        };
        let arrived = buffer.get(..arrived).unwrap_or_default();
        let (header, length) = match proxy::parse(arrived) {
            Parsed::More => return Ok(None),
            Parsed::Not(fault) => return Err(Missing::Broken(fault)),
            Parsed::Whole(header, length) => (header, length),
        };
        let mut header_octets = vec![0; length];
        // They are there: it was looked at them.
        self.stream.read_exact(&mut header_octets).map_err(|_| Missing::Closed)?;
        Ok(Some(match header {
            Header::Client { source, .. } => source.ip(),
            Header::Own => self.proxy,
        }))
    }
}
