//! One TLS connection without its socket.

use std::io::{self, Read, Write};
use std::sync::Arc;

use rustls::{ProtocolVersion, ServerConfig, ServerConnection};

/// Ciphertext and plaintext kept for sending before [`Session::send`] takes no more, octets each.
const BUFFER_MOST: usize = 64 * 1024;

/// A server's side of a TLS connection. Bytes that arrived go to [`Session::receive`], which returns the
/// plaintext in them; plaintext to be sent goes to [`Session::send`]; after either, what
/// [`Session::outgoing`] returns goes to the socket.
#[derive(Debug)]
pub struct Session {
    connection: ServerConnection,
}

/// Why a connection cannot go on. Send what [`Session::outgoing`] still has (the alert), then close.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SessionError {
    /// TLS says so.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// It cannot be begun or fed.
    #[error("TLS: {0}")]
    Io(String),
}

/// What was agreed on, for the log and for Received lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// `TLSv1.3`
    pub version: &'static str,
    /// `TLS13_AES_256_GCM_SHA384`
    pub suite: &'static str,
}

impl Session {
    /// A connection that has just begun.
    pub fn new(config: Arc<ServerConfig>) -> Result<Self, SessionError> {
        let mut connection = ServerConnection::new(config)?;
        connection.set_buffer_limit(Some(BUFFER_MOST));
        Ok(Self { connection })
    }

    /// Takes what arrived and appends its plaintext to `plaintext`. True when the client said, within
    /// TLS, that it sends no more.
    pub fn receive(&mut self, mut arrived: &[u8], plaintext: &mut Vec<u8>) -> Result<bool, SessionError> {
        loop {
            // Never more than one read's worth inside: rustls refuses to take bytes while its plaintext
            // waits, so that is taken out after each.
            if !arrived.is_empty() {
                let taken = self.connection.read_tls(&mut arrived).map_err(io_error)?;
                if taken == 0 {
                    return Ok(true);
                }
            }
            let state = self.connection.process_new_packets()?;
            take(&mut self.connection, plaintext)?;
            if state.peer_has_closed() {
                return Ok(true);
            }
            if arrived.is_empty() {
                return Ok(false);
            }
        }
    }

    /// Takes plaintext to be sent and returns how much of it: less than all when what was taken before
    /// has not been sent yet. Before the handshake is over, what is taken waits for its end.
    pub fn send(&mut self, plaintext: &[u8]) -> Result<usize, SessionError> {
        self.connection.writer().write(plaintext).map_err(io_error)
    }

    /// Appends the ciphertext to be sent to `out`.
    pub fn outgoing(&mut self, out: &mut Vec<u8>) -> Result<(), SessionError> {
        while self.connection.wants_write() {
            self.connection.write_tls(out).map_err(io_error)?;
        }
        Ok(())
    }

    /// Says, within TLS, that we send no more (close_notify, RFC 8446 §6.1): without it the client cannot
    /// tell our end from an attacker's.
    pub fn close(&mut self) {
        self.connection.send_close_notify();
    }

    /// The handshake is not over.
    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// What was agreed on; none before the handshake is over.
    pub fn negotiated(&self) -> Option<Negotiated> {
        let version = match self.connection.protocol_version()? {
            ProtocolVersion::TLSv1_3 => "TLSv1.3",
            ProtocolVersion::TLSv1_2 => "TLSv1.2",
            _ => return None,
        };
        let suite = self.connection.negotiated_cipher_suite()?.suite().as_str()?;
        Some(Negotiated { version, suite })
    }
}

/// All plaintext that is there.
fn take(connection: &mut ServerConnection, plaintext: &mut Vec<u8>) -> Result<(), SessionError> {
    let mut reader = connection.reader();
    let mut buffer = [0; 4096];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => plaintext.extend_from_slice(buffer.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(io_error(error)),
        }
    }
}

fn io_error(error: io::Error) -> SessionError {
    SessionError::Io(error.to_string())
}
