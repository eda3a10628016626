//! NAME
//!     postern-tls: TLS with the private key in another program
//!
//! WHAT IT DOES
//!     [`server_config`] makes a rustls configuration whose signatures come from a [`Sign`]: in production
//!     a [`KeysLink`] to the keys program, which holds the key and signs nothing but handshakes.
//!     [`Session`] is one TLS connection without its socket: ciphertext and plaintext in, plaintext and
//!     ciphertext out.
//!
//! TRUST
//!     The client is not trusted: what it can make us keep in memory is bounded. The keys program is
//!     trusted to sign; when it does not answer, the handshake fails and nothing else.
//!
//! BUGS
//!     A signature blocks the calling event loop, at most [`PATIENCE`]. An ECDSA signature takes well
//!     below a millisecond, RSA-4096 a few. Resumption works within one process only.

#![forbid(unsafe_code)]

mod link;
mod remote;
mod session;

pub use link::{KeysLink, PATIENCE};
pub use remote::{RemoteKey, Sign, SignError, TlsError, server_config};
pub use rustls::ServerConfig;
pub use session::{Negotiated, Session, SessionError};
