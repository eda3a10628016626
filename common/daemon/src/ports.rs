//! The neighbours who ask a service: a port for each, in the order they were first linked.

use std::os::fd::OwnedFd;

use mio::Token;
use postern_ipc::Peer;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::host::Host;
use crate::port::Port;

/// Ports of one conversation, named by their place. A place stays its peer's for the program's life, so it
/// can name an asker together with a request id; when [`Ports::take_lost`] says so, what was under way
/// for that place must be forgotten before its successor's ids are heard.
#[derive(Debug)]
pub struct Ports<Out, In> {
    ports: Vec<Port<Out, In>>,
}

impl<Out: Serialize, In: DeserializeOwned> Ports<Out, In> {
    /// No neighbours yet.
    pub fn new() -> Self {
        Self { ports: Vec::new() }
    }

    /// Takes a link in and returns its place: see [`Ports::take_lost`], then hear it.
    pub fn connect(&mut self, host: &mut Host, peer: Peer, socket: OwnedFd) -> usize {
        let place = self.ports.iter().position(|port| port.peer() == peer).unwrap_or_else(|| {
            self.ports.push(Port::new(host, peer));
            self.ports.len() - 1
        });
        if let Some(port) = self.ports.get_mut(place) {
            port.connect(host, socket);
        }
        place
    }

    /// Something happened at `token`: sends what waits, and returns the place to be heard.
    pub fn ready(&mut self, host: &mut Host, token: Token) -> Option<usize> {
        let place = self.ports.iter().position(|port| port.token() == token)?;
        self.ports.get_mut(place)?.flush(host);
        Some(place)
    }

    /// The next thing asked at a place. None also while the neighbour does not read our answers: it is
    /// heard again when it does, and so cannot make us keep more and more of them.
    pub fn receive(&mut self, host: &mut Host, place: usize) -> Option<In> {
        let port = self.ports.get_mut(place).filter(|port| !port.is_congested())?;
        port.receive(host).map(|(question, _)| question)
    }

    /// Answers. False when nobody is there any more or the answer does not fit a frame.
    #[must_use]
    pub fn send(&mut self, host: &mut Host, place: usize, answer: &Out) -> bool {
        self.ports.get_mut(place).is_some_and(|port| port.send(host, answer))
    }

    /// Sends what was said in this turn.
    pub fn flush(&mut self, host: &mut Host) {
        self.ports.iter_mut().for_each(|port| port.flush(host));
    }

    /// Somebody is there.
    pub fn is_connected(&self, place: usize) -> bool {
        self.ports.get(place).is_some_and(Port::is_connected)
    }

    /// The neighbour of this place went away since this was last asked.
    pub fn take_lost(&mut self, place: usize) -> bool {
        self.ports.get_mut(place).is_some_and(Port::take_lost)
    }

    /// A place whose neighbour went away since this was last asked. Call it until none.
    pub fn next_lost(&mut self) -> Option<usize> {
        self.ports.iter_mut().position(Port::take_lost)
    }
}

impl<Out: Serialize, In: DeserializeOwned> Default for Ports<Out, In> {
    fn default() -> Self {
        Self::new()
    }
}
