//! NAME
//!     postern-lmtp: hands mail to LMTP servers (RFC 2033), such as Dovecot and Cyrus
//!
//! WHAT IT DOES
//!     What postern-delivery-remote does ([`Courier`]), with LMTP: LHLO, and after the content one reply
//!     for each accepted recipient, so that one full mailbox does not hold up the others. Servers listen
//!     on a Unix socket or by TCP; MX records have no say.
//!
//! TALKS TO
//!     queue-manager (`queue_agent`), resolver (`resolve`, for servers named by host), the servers.
//!
//! TRUST
//!     As postern-delivery-remote: servers are hostile, the spool is out of sight.
//!
//! FAILURE
//!     A server that is not there defers its mail, in clear words:
//!     `connect to /run/dovecot/lmtp: No such file or directory`.
//!
//! BUGS
//!     A server whose listen queue is full is taken for one that is down: the kernel refuses the
//!     connection at once and does not say when to come again.

#![forbid(unsafe_code)]

use postern_config::LmtpPart;
use postern_delivery_remote::{Courier, Kind, Settings};
use postern_ipc::Role;
use postern_smtp::client::Protocol;

/// The program.
pub type Lmtp = Courier<ToServer>;

/// What makes a courier speak LMTP.
#[derive(Debug)]
pub struct ToServer;

impl Kind for ToServer {
    const ROLE: Role = Role::Lmtp;
    type Config = LmtpPart;

    fn settings(config: LmtpPart) -> Settings {
        Settings { protocol: Protocol::Lmtp, hostname: config.hostname, delivery: config.delivery }
    }
}
