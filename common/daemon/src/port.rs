//! The place of one neighbour in a program: empty, or a link registered with the event loop.

use std::os::fd::OwnedFd;

use mio::Token;
use postern_event::Event;
use postern_ipc::{Link, LinkError, Peer};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::host::Host;

/// A neighbour's place. When the neighbour dies the port is empty until master links its successor;
/// requests under way are lost then, and [`Port::take_lost`] says so once.
#[derive(Debug)]
pub struct Port<Out, In> {
    peer: Peer,
    token: Token,
    link: Option<Link<Out, In>>,
    lost: bool,
}

impl<Out: Serialize, In: DeserializeOwned> Port<Out, In> {
    /// An empty place for `peer`.
    pub fn new(host: &mut Host, peer: Peer) -> Self {
        Self { peer, token: host.token(), link: None, lost: false }
    }

    /// Who belongs here.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// The token of its events.
    pub fn token(&self) -> Token {
        self.token
    }

    /// Takes a link in, from the handles at the start or from [`crate::Program::linked`]. Events that came
    /// before are heard: read it once.
    pub fn connect(&mut self, host: &mut Host, socket: OwnedFd) {
        if self.link.is_some() {
            self.lose(host, &LinkError::Closed);
        }
        let link = Link::new(socket);
        match host.watch(&link, self.token) {
            Ok(()) => self.link = Some(link),
            Err(error) => self.lose(host, &error.into()),
        }
    }

    /// Says something; it leaves at the end of the turn, with what else is said in it. False when nobody is there
    /// or it could not be said: answer 4xx, or keep the request until [`crate::Program::linked`].
    #[must_use]
    pub fn send(&mut self, host: &mut Host, value: &Out) -> bool {
        self.send_with(host, value, Vec::new())
    }

    /// Says something with descriptors beside it.
    #[must_use]
    pub fn send_with(&mut self, host: &mut Host, value: &Out, descriptors: Vec<OwnedFd>) -> bool {
        let Some(link) = &mut self.link else { return false };
        match link.say(value, descriptors) {
            Ok(()) => true,
            // The value does not fit a frame; the link is as good as before.
            Err(LinkError::Frame(error)) => {
                host.note(postern_event::Level::Error, &format!("cannot say this to {}: {error}", self.peer));
                false
            }
            Err(error) => {
                self.lose(host, &error);
                false
            }
        }
    }

    /// The next thing said by the neighbour. Call it until none.
    pub fn receive(&mut self, host: &mut Host) -> Option<(In, Vec<OwnedFd>)> {
        match self.link.as_mut()?.receive() {
            Ok(received) => received,
            Err(error) => {
                self.lose(host, &error);
                None
            }
        }
    }

    /// Sends what waits. Call it on every event of the port's token, and in [`crate::Program::flush`].
    pub fn flush(&mut self, host: &mut Host) {
        if let Some(Err(error)) = self.link.as_mut().map(Link::flush) {
            self.lose(host, &error);
        }
    }

    /// Somebody is there.
    pub fn is_connected(&self) -> bool {
        self.link.is_some()
    }

    /// Nothing more should be asked now: nobody there, or too slow.
    pub fn is_congested(&self) -> bool {
        self.link.as_ref().is_none_or(Link::is_congested)
    }

    /// The link was lost since this was last asked: what was under way must be asked again.
    pub fn take_lost(&mut self) -> bool {
        std::mem::take(&mut self.lost)
    }

    fn lose(&mut self, host: &mut Host, why: &LinkError) {
        if let Some(link) = self.link.take() {
            host.unwatch(&link);
        }
        self.lost = true;
        host.again = true;
        // A neighbour that ended is master's to tell, once; here it would be told by every neighbour.
        if !matches!(why, LinkError::Closed) {
            host.emit(&Event::LinkLost { peer: &self.peer.to_string(), why: &why.to_string() });
        }
    }
}
