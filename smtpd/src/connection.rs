//! One client's connection: the socket, the dialogue over it, and what waits on either side.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown};
use std::time::Instant;

use mio::net::TcpStream;
use postern_address::Domain;
use postern_daemon::Readiness;
use postern_event::{Client, SessionId};
use postern_smtp::server::framing::COMMAND_LINE_MAX;
use postern_smtp::server::{Phase, Session};
use postern_spool::{QueueId, WriteError};

use crate::abuse::guard::Guard;
use crate::identity::Forwarding;
use crate::message::{Header, Receipt};
use crate::policy::shell::Beside;
use crate::secure::Layer;

/// With this much unsent, a client is read no further: it has to take its replies first.
const OUTPUT_FULL: usize = 16 * 1024;

/// What a client may still send after we closed, before we stop listening to it, octets.
const LINGER_MAX: u64 = 4 << 20;

/// Names a connection: its place, and which of those that had the place it is. As a number it names
/// requests to neighbours and messages to the writer, so that an answer never reaches a successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    /// Place in the table.
    pub(crate) place: usize,
    generation: u32,
}

/// A connection. Buffers are empty, without memory, unless something waits in them.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    tls: Option<Box<Layer>>,
    pub(crate) key: Key,
    pub(crate) session: Session,
    pub(crate) id: SessionId,
    pub(crate) address: IpAddr,
    /// Its verified name, when verify has found one by now.
    pub(crate) name: Option<Domain>,
    /// Read and not yet understood.
    pub(crate) input: Vec<u8>,
    /// Said and not yet sent, from `sent`.
    pub(crate) output: Vec<u8>,
    sent: usize,
    pub(crate) state: State,
    /// What it may do, and what it waits for.
    pub(crate) guard: Guard,
    pub(crate) content: Content,
    /// Of the message that is being committed.
    pub(crate) receipt: Option<Box<Receipt>>,
    /// What rules know and have done; none without rules.
    pub(crate) beside: Option<Box<Beside>>,
    /// What XFORWARD said of the next message.
    pub(crate) forwarding: Option<Box<Forwarding>>,
    /// How often XCLIENT changed who the client is.
    pub(crate) changes: u16,
    /// XCLIENT told its name, or that it has none.
    pub(crate) name_told: bool,
    /// Which of our listeners took it.
    pub(crate) listener: u16,
    /// In the list of those to be flushed at the end of the turn.
    pub(crate) dirty: bool,
    /// The disk has to take what we have before we read more.
    pub(crate) paused: bool,
    readiness: Readiness,
    pub(crate) eof: bool,
    pub(crate) opened: Instant,
    /// Last sign of life.
    pub(crate) active: Instant,
    /// When the command under way could begin, or the content.
    pub(crate) since: Instant,
    /// Octets of content since then.
    pub(crate) octets: u64,
    /// Last question to lookup.
    pub(crate) asked: Instant,
}

/// Where a connection stands; the text is why it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Open,
    /// To be closed when all is written.
    Closing(&'static str),
    /// All is written and our half is closed. What the client still sends is read and forgotten: were
    /// the socket closed with octets unread, the kernel would reset it and our last reply be lost.
    Lingering(&'static str, u64),
    /// To be removed.
    Gone(&'static str),
}

/// What becomes of content beyond what the session holds.
#[derive(Debug)]
pub(crate) enum Content {
    /// Nothing: it is held, or there is none.
    Held,
    /// It goes to the disk as it comes.
    Streamed(Box<(QueueId, Header)>),
    /// The disk did not take it: the rest is read and forgotten.
    Failed(WriteError),
}

/// What came of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Came {
    /// So many octets.
    Octets(usize),
    /// Nothing now.
    Nothing,
    /// Nothing ever again.
    End,
}

impl Key {
    const PLACES: u64 = 1 << 24;
    const GENERATIONS: u64 = 1 << 24;

    /// A name for whoever takes `place`; `serial` grows with each connection.
    pub(crate) fn new(place: usize, serial: u64) -> Self {
        Self { place, generation: (serial % Self::GENERATIONS) as u32 }
    }

    /// The number for one of the connection's requests.
    pub(crate) fn request(self, ticket: u16) -> u64 {
        ((self.place as u64 % Self::PLACES) << 40) | (u64::from(self.generation) << 16) | u64::from(ticket)
    }

    /// The inverse of [`Key::request`].
    pub(crate) fn of_request(request: u64) -> (Self, u16) {
        let place = (request >> 40) as usize;
        (Self::new(place, request >> 16), request as u16)
    }
}

impl Connection {
    pub(crate) fn new(
        stream: TcpStream,
        tls: Option<Box<Layer>>,
        key: Key,
        session: Session,
        id: SessionId,
        address: IpAddr,
        now: Instant,
    ) -> Self {
        Self {
            stream,
            tls,
            key,
            session,
            id,
            address,
            name: None,
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            state: State::Open,
            guard: Guard::default(),
            content: Content::Held,
            receipt: None,
            forwarding: None,
            changes: 0,
            name_told: false,
            listener: 0,
            beside: None,
            dirty: false,
            paused: false,
            readiness: Readiness::default(),
            eof: false,
            opened: now,
            active: now,
            since: now,
            octets: 0,
            asked: now,
        }
    }

    /// What verify knows the session by: another client in it is another session there.
    pub(crate) fn counted_as(&self) -> u64 {
        self.key.request(self.changes)
    }

    /// For events.
    pub(crate) fn client(&self) -> Client<'_> {
        Client { name: self.name.as_ref().map(Domain::as_str), address: self.address }
    }

    /// The kernel says that something can be read, or written.
    pub(crate) fn wake(&mut self, event: &mio::event::Event) {
        self.readiness.tell(event);
    }

    /// More input is of use now, and there may be some.
    pub(crate) fn wants_input(&self) -> bool {
        let reading = match self.state {
            State::Open => match self.session.phase() {
                Phase::Command | Phase::Content => !self.eof,
                // More RCPTs of the batch may come.
                Phase::Asking => !self.eof,
                Phase::Settling | Phase::Closed => false,
            },
            State::Lingering(..) => true,
            State::Closing(_) | State::Gone(_) => false,
        };
        reading
            && (self.readiness.is_readable() || self.tls.as_ref().is_some_and(|tls| tls.has_plain()))
            && !self.paused
            && !self.guard.is_held()
            && self.input.len() < COMMAND_LINE_MAX
            && self.output.len() < OUTPUT_FULL
            // TLS answers some records by itself (RFC 8446 §4.6.3): whoever does not read that is heard no more.
            && self.tls.as_ref().is_none_or(|tls| tls.unsent().len() < OUTPUT_FULL)
    }

    /// Reads once. Nothing may come of octets that came: TLS has some of its own.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Came> {
        let Some(mut tls) = self.tls.take() else { return self.read_socket(buffer) };
        let came = self.read_tls(&mut tls, buffer);
        self.tls = Some(tls);
        came
    }

    /// TLS has something to say that the session knows nothing of.
    pub(crate) fn has_sealed(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| !tls.unsent().is_empty())
    }

    /// Writes what there is. True when all of it is written.
    pub(crate) fn write(&mut self) -> io::Result<bool> {
        while let Some(unsent @ [_, ..]) = self.output.get(self.sent..) {
            let Some(tls) = &mut self.tls else {
                match write_socket(&mut self.stream, unsent)? {
                    Some(length) => self.sent += length,
                    None => return Ok(false),
                }
                continue;
            };
            let taken = tls.seal(unsent).map_err(io::Error::other)?;
            self.sent += taken;
            if !write_sealed(&mut self.stream, tls)? || taken == 0 {
                return Ok(false);
            }
        }
        (self.output, self.sent) = (Vec::new(), 0);
        match &mut self.tls {
            Some(tls) => write_sealed(&mut self.stream, tls),
            None => Ok(true),
        }
    }

    fn read_tls(&mut self, tls: &mut Layer, buffer: &mut [u8]) -> io::Result<Came> {
        if !tls.has_plain() {
            match self.read_socket(buffer)? {
                Came::Octets(length) => tls.open(&buffer[..length]).map_err(io::Error::other)?,
                other => return Ok(other),
            }
        }
        match tls.read(buffer) {
            0 if tls.is_ended() => Ok(Came::End),
            length => Ok(Came::Octets(length)),
        }
    }

    fn read_socket(&mut self, buffer: &mut [u8]) -> io::Result<Came> {
        loop {
            return match self.stream.read(buffer) {
                Ok(0) => Ok(Came::End),
                Ok(length) => {
                    self.readiness.came(length, buffer.len());
                    Ok(Came::Octets(length))
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.readiness.exhausted();
                    Ok(Came::Nothing)
                }
                Err(e) => Err(e),
            };
        }
    }

    /// All is written: the end, or the wait for the client to take it.
    pub(crate) fn finish(&mut self) {
        let State::Closing(why) = self.state else { return };
        let nothing_unread = self.eof || (why == "quit" && self.input.is_empty());
        self.input = Vec::new();
        if let Some(tls) = &mut self.tls {
            // A courtesy: the last reply has its end in itself.
            let _ = tls.close().map(|()| write_sealed(&mut self.stream, tls));
        }
        if nothing_unread || self.stream.shutdown(Shutdown::Write).is_err() {
            self.state = State::Gone(why);
        } else {
            self.readiness.look();
            self.state = State::Lingering(why, 0);
        }
    }

    /// Forgets what a closed client still sends.
    pub(crate) fn linger(&mut self, came: Came) {
        let State::Lingering(why, before) = self.state else { return };
        let so_far = match came {
            Came::Octets(length) => before + length as u64,
            Came::Nothing => before,
            Came::End => LINGER_MAX,
        };
        self.state = if so_far < LINGER_MAX { State::Lingering(why, so_far) } else { State::Gone(why) };
    }

    /// For the event loop, when the connection is removed.
    pub(crate) fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }
}

/// How much the socket took; none when it takes nothing now.
fn write_socket(stream: &mut TcpStream, unsent: &[u8]) -> io::Result<Option<usize>> {
    loop {
        match stream.write(unsent) {
            Ok(length) => return Ok(Some(length)),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(e) => return Err(e),
        }
    }
}

/// True when all of it is written.
fn write_sealed(stream: &mut TcpStream, tls: &mut Layer) -> io::Result<bool> {
    while !tls.unsent().is_empty() {
        match write_socket(stream, tls.unsent())? {
            Some(length) => tls.sent(length),
            None => return Ok(false),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_find_their_way_back() {
        for (place, serial, ticket) in [(0, 0, 0), (9_999, 123_456_789, 65_535), ((1 << 24) - 1, u64::MAX, 7)]
        {
            let key = Key::new(place, serial);
            assert_eq!(Key::of_request(key.request(ticket)), (key, ticket));
        }
        assert_ne!(Key::new(1, 1).request(0), Key::new(1, 2).request(0));
    }
}
