//! One connection: a socket, the protocol's state over it, and how long it may take.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};
use nix::errno::Errno;
use postern_daemon::Readiness;
use postern_ipc::queue_agent::Destination;
use postern_smtp::client::{Client, Waiting};

use crate::content::Source;
use crate::routing::{Candidate, Endpoint};

/// Octets moved before other connections have their turn.
pub(crate) const TURN: usize = 1024 * 1024;

/// Octets read or fed at once.
pub(crate) const PIECE: usize = 32 * 1024;

/// The end of content may take a server long (RFC 5321 §4.5.3.2.6).
const FINAL_REPLY: Duration = Duration::from_secs(600);

/// A server has this long to answer QUIT, which nobody needs.
const QUIT: Duration = Duration::from_secs(5);

/// Timeouts, from the configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub(crate) reply: Duration,
    pub(crate) idle: Duration,
}

/// A connection, from the first SYN.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) client: Client,
    pub(crate) candidate: Candidate,
    pub(crate) relay: String,
    pub(crate) destination: Destination,
    /// The jobs it works for: what the server says is about the first, content is sent of the last.
    pub(crate) jobs: VecDeque<Given>,
    /// Transactions begun.
    pub(crate) transactions: u32,
    /// Transactions that came to their end.
    pub(crate) ended: u32,
    /// Since when it has nothing to do.
    pub(crate) resting_since: Option<Instant>,
    pub(crate) deadline: Instant,
    stream: Stream,
    connecting: bool,
    readiness: Readiness,
    writable: bool,
    write_failed: bool,
    seen: (u64, Waiting),
}

/// A job of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Given {
    pub(crate) job: u64,
    /// It was given behind another, which was not answered yet.
    pub(crate) ahead: bool,
    /// The connection was made for it: its route has no more to say of this server.
    pub(crate) made: bool,
    /// It may have left as a whole.
    pub(crate) whole: bool,
}

impl Given {
    /// If the connection breaks, how it was sent may be why.
    pub(crate) fn left_ahead(&self) -> bool {
        self.ahead || self.whole
    }
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Why a connection could not even be begun, in the kernel's words.
#[derive(Debug)]
pub(crate) enum NotOpened {
    /// The server, or the way to it.
    Refused(Candidate, String),
    /// We have no descriptor or memory for it: the server is not at fault.
    Ours(String),
}

/// How far one turn came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nothing more can be done until the socket says so.
    Blocked,
    /// All of the content was handed over; its end is not yet said.
    ContentRead,
    /// More can be done at once, when others had their turn.
    More,
}

impl Connection {
    /// Begins to connect.
    pub(crate) fn open(
        candidate: Candidate,
        destination: Destination,
        job: u64,
        client: Client,
        registry: &Registry,
        token: Token,
        deadline: Instant,
    ) -> Result<Self, NotOpened> {
        let stream = match &candidate.endpoint {
            Endpoint::Tcp(address) => TcpStream::connect(*address).map(Stream::Tcp),
            Endpoint::Unix(path) => UnixStream::connect(path).map(Stream::Unix),
        };
        let registered = stream.and_then(|mut stream| {
            let both = Interest::READABLE | Interest::WRITABLE;
            match &mut stream {
                Stream::Tcp(stream) => registry.register(stream, token, both)?,
                Stream::Unix(stream) => registry.register(stream, token, both)?,
            }
            Ok(stream)
        });
        let stream = match registered {
            Ok(stream) => stream,
            Err(error) if is_ours(&error) => return Err(NotOpened::Ours(words(&error))),
            Err(error) => return Err(NotOpened::Refused(candidate, words(&error))),
        };
        let relay = candidate.relay();
        let seen = (client.progress(), client.waiting());
        Ok(Self {
            client,
            candidate,
            relay,
            destination,
            jobs: VecDeque::from([Given { job, ahead: false, made: true, whole: false }]),
            transactions: 0,
            ended: 0,
            resting_since: None,
            deadline,
            stream,
            connecting: true,
            readiness: Readiness::default(),
            writable: false,
            write_failed: false,
            seen,
        })
    }

    /// From now on it is one to this destination, of which its server is a candidate.
    pub(crate) fn belongs_to(&mut self, destination: Destination, candidate: Candidate) {
        self.relay = candidate.relay();
        (self.destination, self.candidate) = (destination, candidate);
    }

    /// The kernel says that something can be read, or written.
    pub(crate) fn woken(&mut self, event: &Event) {
        self.readiness.tell(event);
        self.writable |= event.is_writable() || event.is_error() || event.is_read_closed();
    }

    /// The job that the server's next words are about.
    pub(crate) fn first(&self) -> Option<u64> {
        self.jobs.front().map(|given| given.job)
    }

    /// The job whose content is sent.
    pub(crate) fn last(&self) -> Option<u64> {
        self.jobs.back().map(|given| given.job)
    }

    /// The first job is no more its concern.
    pub(crate) fn drop_first(&mut self) -> Option<Given> {
        self.jobs.pop_front()
    }

    /// Still on the way to the server.
    pub(crate) fn is_connecting(&self) -> bool {
        self.connecting
    }

    /// Whether the connection is made by now; an error says why it never will be.
    pub(crate) fn finish_connecting(&mut self, now: Instant, patience: &Patience) -> Result<bool, String> {
        if !self.connecting {
            return Ok(true);
        }
        let made = match &self.stream {
            Stream::Tcp(stream) => stream.take_error().and_then(|error| match error {
                Some(error) => Err(error),
                None => stream.peer_addr().map(drop),
            }),
            Stream::Unix(stream) => stream.take_error().and_then(|error| error.map_or(Ok(()), Err)),
        };
        match made {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(false),
            Err(error) => return Err(words(&error)),
        }
        if let Stream::Tcp(stream) = &self.stream {
            // Commands are small and answered: never wait for more to send. Not having it costs time only.
            let _ = stream.set_nodelay(true);
        }
        self.connecting = false;
        self.deadline = now + patience.reply;
        Ok(true)
    }

    /// Moves octets until the socket blocks, or a turn's worth. Stops early when the client has events. What stands in
    /// the buffer before and after means nothing.
    pub(crate) fn turn(
        &mut self,
        mut source: Option<&mut Source>,
        buffer: &mut [u8],
        moved: &mut usize,
    ) -> Result<Turn, io::Error> {
        loop {
            let before = *moved;
            if self.readiness.is_readable() {
                *moved += self.read(buffer);
            }
            // As much as it takes, so that a small message leaves with its end, by one call and in one packet.
            while self.client.wants_content()
                && let Some(source) = source.as_deref_mut()
            {
                *moved += 1;
                match source.read(buffer)? {
                    0 => return Ok(Turn::ContentRead),
                    count => self.client.content(buffer.get(..count).unwrap_or_default()),
                }
            }
            if self.writable && !self.client.output().is_empty() {
                *moved += self.write();
            }
            if *moved == before || self.client.is_closed() {
                return Ok(Turn::Blocked);
            }
            if self.client.has_event() || *moved >= TURN {
                return Ok(Turn::More);
            }
        }
    }

    /// Sets the deadline anew where the session got on since this was last called.
    pub(crate) fn renew_deadline(&mut self, now: Instant, patience: &Patience) {
        let waiting = self.client.waiting();
        let seen = (self.client.progress(), waiting);
        if self.connecting || seen == self.seen {
            return;
        }
        self.seen = seen;
        self.deadline = now
            + match waiting {
                _ if self.client.is_quitting() => QUIT,
                Waiting::Nothing => patience.idle,
                Waiting::Reply | Waiting::Room => patience.reply,
                Waiting::FinalReply => patience.reply.max(FINAL_REPLY),
            };
    }

    /// Stops watching the socket, before it is closed.
    pub(crate) fn unwatch(&mut self, registry: &Registry) {
        // Closing the socket does it too: there is no copy of it.
        let _ = match &mut self.stream {
            Stream::Tcp(stream) => registry.deregister(stream),
            Stream::Unix(stream) => registry.deregister(stream),
        };
    }

    /// How much was read; the client hears of an end.
    fn read(&mut self, buffer: &mut [u8]) -> usize {
        let result = match &mut self.stream {
            Stream::Tcp(stream) => stream.read(buffer),
            Stream::Unix(stream) => stream.read(buffer),
        };
        match result {
            Ok(0) => {
                self.readiness.exhausted();
                self.client.lost();
                0
            }
            Ok(count) => {
                self.readiness.came(count, buffer.len());
                self.client.input(buffer.get(..count).unwrap_or_default());
                count
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 1,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && !self.write_failed => {
                self.readiness.exhausted();
                0
            }
            // After a failed write, what the server said before it went was worth reading; nothing is left.
            Err(_) => {
                self.readiness.exhausted();
                self.client.lost();
                0
            }
        }
    }

    fn write(&mut self) -> usize {
        let result = match &mut self.stream {
            Stream::Tcp(stream) => stream.write(self.client.output()),
            Stream::Unix(stream) => stream.write(self.client.output()),
        };
        match result {
            Ok(count) => {
                self.client.written(count);
                count
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 1,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.writable = false;
                0
            }
            Err(_) => {
                (self.writable, self.write_failed) = (false, true);
                self.readiness.broken();
                1
            }
        }
    }
}

fn is_ours(error: &io::Error) -> bool {
    let number = error.raw_os_error().map(Errno::from_raw);
    matches!(number, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM))
}

/// `Connection refused`, without std's `(os error 111)`.
fn words(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => Errno::from_raw(number).desc().to_owned(),
        None => error.to_string(),
    }
}
