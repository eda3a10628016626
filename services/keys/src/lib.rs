//! NAME
//!     postern-keys: holds the private key
//!
//! WHAT IT DOES
//!     Reads the certificate chain and the private key at its start from descriptors that master opened,
//!     closes them, and signs TLS handshakes for the workers of smtpd. The key never leaves this process.
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
//!     A reload keeps the key: a renewed certificate needs a restart of the system. The PEM text is not
//!     wiped from memory after reading.

#![forbid(unsafe_code)]

pub mod holder;
pub mod shape;

use std::fs::File;
use std::io::Read;
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
                Handle::Certificate => certificate = Some(read(descriptor, "certificate")?),
                Handle::PrivateKey => key = Some(read(descriptor, "key")?),
                Handle::Link(peer) => links.push((peer, descriptor)),
                _ => {}
            }
        }
        let holder = match (certificate, key) {
            (None, None) => Holder::empty(),
            (Some(certificate), Some(key)) => {
                Holder::from_pem(&certificate, &key).map_err(|error| StartError(format!("[tls] {error}")))?
            }
            _ => return Err(StartError("[tls] needs both certificate and key".into())),
        };
        let mut program = Self { askers: Ports::new(), holder, signed: 0, refused: 0 };
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

    fn reload(&mut self, _host: &mut Host, _config: KeysPart) {}

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

fn read(descriptor: OwnedFd, what: &str) -> Result<Vec<u8>, StartError> {
    let mut bytes = Vec::new();
    File::from(descriptor)
        .take(FILE_MOST)
        .read_to_end(&mut bytes)
        .map_err(|error| StartError(format!("[tls] {what}: cannot read it: {error}")))?;
    Ok(bytes)
}
