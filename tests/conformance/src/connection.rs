//! The shell around the machine: one connection at a time, blocking, with deadlines.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

use crate::delivered::Mailboxes;
use crate::machine::{Action, Event, Machine, Verdict};

/// Runs a machine to its end against a server.
pub(crate) fn run(
    machine: &mut Machine,
    at: SocketAddr,
    patience: Duration,
    mailboxes: &Mailboxes,
) -> Verdict {
    let mut wire = Wire::None;
    let mut buffer = [0; 16 * 1024];
    let mut action = machine.next(Event::Done);
    loop {
        action = match action {
            Action::Finish(verdict) => return verdict,
            Action::Connect => match Wire::connect(at, patience) {
                Ok(connected) => {
                    wire = connected;
                    machine.next(Event::Done)
                }
                Err(e) => machine.next(Event::Failed(format!("{at}: {e}"))),
            },
            Action::Send(octets, slice) => {
                wire.send(&octets, slice);
                machine.next(Event::Done)
            }
            Action::Read => match wire.read(&mut buffer) {
                Ok(0) => machine.next(Event::Closed),
                Ok(length) => machine.next(Event::Received(&buffer[..length])),
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    machine.next(Event::Silence)
                }
                // A reset is an end as well.
                Err(_) => machine.next(Event::Closed),
            },
            Action::Handshake => match std::mem::replace(&mut wire, Wire::None).secure() {
                Ok(secured) => {
                    wire = secured;
                    machine.next(Event::Done)
                }
                Err(e) => machine.next(Event::Failed(format!("TLS: {e}"))),
            },
            Action::Eof => {
                // A server that is gone already needs no telling.
                let _ = match &wire {
                    Wire::None => Ok(()),
                    Wire::Plain(stream) => stream.shutdown(Shutdown::Write),
                    Wire::Tls(stream) => stream.sock.shutdown(Shutdown::Write),
                };
                machine.next(Event::Done)
            }
            Action::Hangup => {
                wire = Wire::None;
                machine.next(Event::Done)
            }
            Action::Look(mark, times) => machine.next(Event::Found(look(mailboxes, &mark, times, patience))),
        };
    }
}

fn look(mailboxes: &Mailboxes, mark: &str, times: usize, patience: Duration) -> Vec<Vec<u8>> {
    let deadline = Instant::now() + patience;
    loop {
        let found = mailboxes.find(mark);
        if found.len() >= times || Instant::now() > deadline {
            return found;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

enum Wire {
    None,
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Wire {
    fn connect(at: SocketAddr, patience: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&at, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        stream.set_nodelay(true)?;
        Ok(Self::Plain(stream))
    }

    /// A server that refuses something may be gone before all of it is sent: what it said before is still to
    /// be read, and says more than the failed write.
    fn send(&mut self, octets: &[u8], slice: bool) {
        let pieces: Vec<&[u8]> = if slice { octets.chunks(1).collect() } else { vec![octets] };
        for piece in pieces {
            let sent = match self {
                Self::None => return,
                Self::Plain(stream) => stream.write_all(piece),
                Self::Tls(stream) => stream.write_all(piece).and_then(|()| stream.flush()),
            };
            if sent.is_err() {
                return;
            }
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::None => Ok(0),
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }

    fn secure(self) -> io::Result<Self> {
        let Self::Plain(mut stream) = self else { return Err(io::Error::other("no plain connection")) };
        let name = ServerName::try_from("server.invalid").map_err(io::Error::other)?;
        let mut connection = ClientConnection::new(tls()?, name).map_err(io::Error::other)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut stream)?;
        }
        Ok(Self::Tls(Box::new(StreamOwned::new(connection, stream))))
    }
}

fn tls() -> io::Result<Arc<ClientConfig>> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Whether the certificate is good is no matter of SMTP: any will do.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
