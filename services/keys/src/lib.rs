//! NAME
//!     postern-keys: holds the private key
//!
//! WHAT IT DOES
//!     Reads the certificate chain and the private key at its start, and again at a reload, from
//!     descriptors that master opened, closes them, and signs TLS handshakes for the workers of smtpd. The key never leaves this process.
//!
//! TALKS TO
//!     The workers of smtpd ([`postern_ipc::smtpd_keys`]).
//!
//! TRUST
//!     smtpd is not trusted: it gets signatures over what a TLS server signs and over nothing else
//!     ([`shape`]). While it is taken over it can still pose as this host to its clients; afterwards it
//!     cannot.
//!
//! FAILURE
//!     An unreadable or mismatched key ends the program with the reason in the log. Without a key every
//!     signature is refused, so a handshake fails, not the session's host.
//!
//! BUGS
//!     The PEM text is not wiped from memory after reading. A handshake that is under way while a reload
//!     brings another key fails.

#![forbid(unsafe_code)]

pub mod holder;
pub mod shape;

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::OwnedFd;
use std::time::Instant;

use mio::Token;
use postern_config::KeysPart;
use postern_daemon::{Handles, Host, Ports, Program, StartError};
use postern_event::Level;
use postern_ipc::smtpd_keys::{Answer, Question};
use postern_ipc::supervise::Handle;
use postern_ipc::{Peer, Role};

use crate::holder::Holder;

/// Longest PEM file read, octets.
const FILE_MOST: u64 = 1024 * 1024;

/// The program.
#[derive(Debug)]
pub struct Keys {
    askers: Ports<Answer, Question>,
    holder: Holder,
    /// Read from the files of a reload that is not yet committed.
    renewed: Option<Holder>,
    signed: u64,
    refused: u64,
}

impl Program for Keys {
    const ROLE: Role = Role::Keys;
    type Config = KeysPart;

    fn start(host: &mut Host, _config: KeysPart, handles: Handles) -> Result<Self, StartError> {
        let (mut certificate, mut key, mut links) = (None, None, Vec::new());
        for (handle, descriptor) in handles {
            match handle {
                Handle::Certificate => {
                    certificate = Some(read(descriptor, "certificate").map_err(StartError)?)
                }
                Handle::PrivateKey => key = Some(read(descriptor, "key").map_err(StartError)?),
                Handle::Link(peer) => links.push((peer, descriptor)),
                _ => {}
            }
        }
        let holder = match (certificate, key) {
            (None, None) => Holder::empty(),
            (Some(certificate), Some(key)) => holder(&certificate, &key).map_err(StartError)?,
            _ => return Err(StartError("[tls] needs both certificate and key".into())),
        };
        let mut program = Self { askers: Ports::new(), holder, renewed: None, signed: 0, refused: 0 };
        for (peer, socket) in links {
            program.linked(host, peer, socket);
        }
        Ok(program)
    }

    fn linked(&mut self, host: &mut Host, peer: Peer, socket: OwnedFd) {
        if peer.role != Role::Smtpd {
            host.note(Level::Warning, &format!("no place for a link to {peer}"));
            return;
        }
        let place = self.askers.connect(host, peer, socket);
        self.hear(host, place);
    }

    fn ready(&mut self, host: &mut Host, token: Token, _event: &mio::event::Event) {
        if let Some(place) = self.askers.ready(host, token) {
            self.hear(host, place);
        }
    }

    fn turn(&mut self, _host: &mut Host) -> Option<Instant> {
        // A question is answered when it is heard: nothing of a lost neighbour is under way.
        while self.askers.next_lost().is_some() {}
        None
    }

    fn flush(&mut self, host: &mut Host) {
        self.askers.flush(host);
    }

    /// A renewed certificate, and perhaps another key: looked at now, so that a reload with files that do not
    /// belong together is refused and the old ones stay.
    fn prepare_with(
        &mut self,
        _host: &mut Host,
        _config: &KeysPart,
        files: Vec<OwnedFd>,
    ) -> Result<(), String> {
        let mut files = files.into_iter();
        self.renewed = match (files.next(), files.next()) {
            (Some(key), Some(certificate)) => {
                Some(holder(&read(certificate, "certificate")?, &read(key, "key")?)?)
            }
            _ => None,
        };
        Ok(())
    }

    /// Master links the workers of smtpd anew behind this, so that they ask for the new chain.
    fn reload(&mut self, _host: &mut Host, _config: KeysPart) {
        if let Some(renewed) = self.renewed.take() {
            self.holder = renewed;
        }
    }

    fn stop(&mut self, host: &mut Host) {
        host.finish();
    }

    fn counters(&self) -> Vec<(String, u64)> {
        vec![("signatures".into(), self.signed), ("refused".into(), self.refused)]
    }
}

impl Keys {
    fn hear(&mut self, host: &mut Host, place: usize) {
        while let Some(question) = self.askers.receive(host, place) {
            let answer = self.holder.answer(question);
            match &answer {
                Answer::Signature { signature: Ok(_), .. } => self.signed += 1,
                Answer::Signature { signature: Err(why), .. } => {
                    self.refused += 1;
                    host.note(Level::Warning, &format!("signature refused: {why}"));
                }
                Answer::Certificate { .. } => {}
            }
            // A worker that is gone needs no answer.
            let _ = self.askers.send(host, place, &answer);
        }
    }
}

fn holder(certificate: &[u8], key: &[u8]) -> Result<Holder, String> {
    Holder::from_pem(certificate, key).map_err(|error| format!("[tls] {error}"))
}

/// All of a file, from its beginning: master hands the same open file to every successor of ours, and its
/// position is where the one before stopped to read.
fn read(descriptor: OwnedFd, what: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut file = File::from(descriptor);
    let read = file.rewind().and_then(|()| file.take(FILE_MOST).read_to_end(&mut bytes));
    read.map_err(|error| format!("[tls] {what}: cannot read it: {error}"))?;
    Ok(bytes)
}
