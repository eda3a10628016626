//! NAME
//!     postern-tests: the rig that starts the whole system for real
//!
//! WHAT IT DOES
//!     [`System`] writes a configuration into a directory of its own, starts `postern run` on ports that the
//!     kernel picks, waits for its `ready` event, and ends it by SIGTERM. [`Smtp`] speaks to it byte for
//!     byte, [`Log`] waits for an event of its JSON log, [`maildir()`] reads what was delivered. [`Sink`] is a
//!     next hop with any fault one likes; [`Dovecot`], [`SmtpSink`] and [`Nsd`] are strangers' servers.
//!
//! ```no_run
//! use postern_tests::{System, message};
//! let system = System::start();
//! let id = system.smtp().send("a@x.test", &["u@v.test"], &message("hello")).unwrap();
//! system.finished(&id);
//! assert_eq!(system.maildir("u@v.test").len(), 1);
//! ```
//!
//! TALKS TO
//!     Only addresses of 127.0.0.0/8; an [`Address`] is one of them that no other test has, with all its ports.
//!
//! TRUST
//!     Started by root, the system gets its system users, and the strangers' servers run as `nobody`;
//!     [`Builder::unprivileged`] runs the whole system as `nobody`. Otherwise all run as the caller.
//!
//! FAILURE
//!     It panics: a rig that goes on is a test that lies. A panicking test shows the system's log. A peer
//!     that is not installed is an error with `POSTERN_CI=1`, and otherwise a loud `SKIPPED`.

#![forbid(unsafe_code)]
// A rig's way to fail is to panic.
#![allow(clippy::unwrap_used)]

mod backlog;
mod blocklog;
mod inject;
mod ledger;
mod log;
mod loopfs;
mod maildir;
mod mta;
mod need;
mod net;
mod peers;
mod policy;
mod process;
mod put;
mod sink;
mod smtp;
mod system;

pub use backlog::backlog;
pub use blocklog::{BlockLog, Entry, Fate, LoggedDisk, Request};
pub use inject::Fault;
pub use ledger::{Ledger, Random, scale, settled};
pub use log::Log;
pub use loopfs::LoopFs;
pub use maildir::{Mail, maildir};
pub use mta::{Exim, Postfix};
pub use need::{have, have_root, python, skip, vectors};
pub use net::Address;
pub use peers::{Dovecot, Nsd, SmtpSink};
pub use policy::{Heard, PolicyServer, Postgrey, Spawner};
pub use process::{Process, until};
pub use put::put;
pub use sink::{Answer, Sink, Taken};
pub use smtp::{Reply, Smtp};
pub use system::{Builder, System};

/// A small message with CRLF line ends: a subject, and a body of one line.
pub fn message(subject: &str) -> Vec<u8> {
    format!("From: <a@x.test>\r\nSubject: {subject}\r\n\r\nThis is {subject}.\r\n").into_bytes()
}

/// The part of a message behind the lines that were put before it: from the first line that begins with
/// `first` on.
pub fn from_line<'a>(message: &'a [u8], first: &[u8]) -> &'a [u8] {
    let starts = std::iter::once(0)
        .chain(message.iter().enumerate().filter(|(_, octet)| **octet == b'\n').map(|(at, _)| at + 1));
    starts
        .map(|at| &message[at..])
        .find(|rest| rest.starts_with(first))
        .unwrap_or_else(|| panic!("no line begins with {:?}", String::from_utf8_lossy(first)))
}

/// A message of about `size` octets: a base64 attachment of random-looking bytes, the same ones for the same
/// size, behind a line that tells it from all others.
pub fn attachment(size: usize) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let head = format!(
        "From: <a@x.test>\r\nSubject: {size} octets\r\nMIME-Version: 1.0\r\n\
         Content-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    );
    let mut message = head.into_bytes();
    let mut state = size as u64 ^ 0x9e37_79b9_7f4a_7c15;
    let encoded = size.div_ceil(3) * 4;
    message.reserve(encoded + encoded / 38);
    for n in 0..encoded {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        message.push(ALPHABET[(state >> 58) as usize]);
        if n % 76 == 75 || n + 1 == encoded {
            message.extend_from_slice(b"\r\n");
        }
    }
    message
}

/// A message as files of this host hold it: lines end with LF.
pub fn with_lf(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len());
    for (n, octet) in message.iter().enumerate() {
        if *octet != b'\r' || message.get(n + 1) != Some(&b'\n') {
            out.push(*octet);
        }
    }
    out
}
