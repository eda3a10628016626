//! TLS from the first octet (RFC 8314 §3.3): where its configuration comes from, and the layer between
//! a connection and its socket.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postern_daemon::Host;
use postern_event::Level;
use postern_tls::{KeysLink, ServerConfig, Session, SessionError, server_config};

/// How long after a failure keys is not asked for the certificate again: asking blocks the loop.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// The worker's certificate, whose key is in the keys program.
pub(crate) struct Certificate {
    keys: Arc<KeysLink>,
    config: Option<Arc<ServerConfig>>,
    not_before: Option<Instant>,
}

/// One connection's TLS, and the octets on either side of it.
#[derive(Debug)]
pub(crate) struct Layer {
    session: Session,
    /// Decrypted and not yet read.
    plain: Vec<u8>,
    /// Encrypted and not yet written, from `sent`.
    sealed: Vec<u8>,
    sent: usize,
    ended: bool,
}

impl Certificate {
    pub(crate) fn new() -> Self {
        Self { keys: Arc::new(KeysLink::new()), config: None, not_before: None }
    }

    /// A keys program was started: it may have another certificate.
    pub(crate) fn connect(&mut self, socket: OwnedFd) {
        self.keys.connect(socket);
        self.forget();
    }

    /// The certificate may have changed: the next connection asks for it.
    pub(crate) fn forget(&mut self) {
        (self.config, self.not_before) = (None, None);
    }

    /// A new connection's TLS; none when there is no certificate, which is told.
    pub(crate) fn layer(&mut self, host: &mut Host) -> Option<Box<Layer>> {
        if self.config.is_none() && self.not_before.is_none_or(|at| host.now() >= at) {
            match self.ask() {
                Ok(config) => self.config = Some(config),
                Err(error) => {
                    self.not_before = Some(host.now() + ASK_AGAIN);
                    let text = format!("no TLS, connections to submissions are closed at once: {error}");
                    host.note(Level::Error, &text);
                }
            }
        }
        let session = Session::new(Arc::clone(self.config.as_ref()?)).ok()?;
        let (plain, sealed) = (Vec::new(), Vec::new());
        Some(Box::new(Layer { session, plain, sealed, sent: 0, ended: false }))
    }

    fn ask(&self) -> Result<Arc<ServerConfig>, String> {
        let (chain, schemes) = self.keys.certificate().map_err(|e| e.to_string())?;
        server_config(chain, &schemes, self.keys.clone()).map_err(|e| e.to_string())
    }
}

impl Layer {
    /// Takes what came from the socket.
    pub(crate) fn open(&mut self, arrived: &[u8]) -> Result<(), SessionError> {
        let outcome = self.session.receive(arrived, &mut self.plain);
        // Also after an error: the alert says why.
        self.session.outgoing(&mut self.sealed)?;
        self.ended |= outcome?;
        Ok(())
    }

    /// Moves what is decrypted to the front of `buffer`.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> usize {
        let length = buffer.len().min(self.plain.len());
        buffer[..length].copy_from_slice(&self.plain[..length]);
        self.plain.drain(..length);
        if self.plain.is_empty() {
            self.plain = Vec::new();
        }
        length
    }

    /// There is something to [`Layer::read`].
    pub(crate) fn has_plain(&self) -> bool {
        !self.plain.is_empty()
    }

    /// The client said that nothing will come, and all of it was read.
    pub(crate) fn is_ended(&self) -> bool {
        self.ended && self.plain.is_empty()
    }

    /// Takes what is to be sent; how much of it.
    pub(crate) fn seal(&mut self, plain: &[u8]) -> Result<usize, SessionError> {
        let taken = self.session.send(plain)?;
        self.session.outgoing(&mut self.sealed)?;
        Ok(taken)
    }

    /// Says within TLS that nothing will come from us.
    pub(crate) fn close(&mut self) -> Result<(), SessionError> {
        self.session.close();
        self.session.outgoing(&mut self.sealed)
    }

    /// For the socket.
    pub(crate) fn unsent(&self) -> &[u8] {
        self.sealed.get(self.sent..).unwrap_or_default()
    }

    /// The socket took so much of [`Layer::unsent`].
    pub(crate) fn sent(&mut self, length: usize) {
        self.sent += length;
        if self.sent >= self.sealed.len() {
            (self.sealed, self.sent) = (Vec::new(), 0);
        }
    }
}
