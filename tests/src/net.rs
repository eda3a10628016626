//! Loopback addresses for one test alone.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

/// Who holds this port of an address holds the address.
const CLAIM: u16 = 40_049;

/// An address of 127.0.0.0/8 that no other test has: every port of it is free, 25 and 53 too (for root).
/// So a test needs no lucky port, and a server that was stopped comes back at the same place.
#[derive(Debug)]
pub struct Address {
    /// The address.
    pub ip: Ipv4Addr,
    _claim: TcpListener,
}

impl Address {
    /// Claims one.
    pub fn claim() -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        for _ in 0..10_000 {
            let n = std::process::id().wrapping_mul(61).wrapping_add(COUNTER.fetch_add(1, Ordering::Relaxed));
            let [_, a, b, c] = n.to_be_bytes();
            let ip = Ipv4Addr::new(127, 64 + a % 64, b, 1 + c % 254);
            if let Ok(claim) = TcpListener::bind((ip, CLAIM)) {
                return Self { ip, _claim: claim };
            }
        }
        panic!("no free loopback address");
    }

    /// A port of it.
    pub fn port(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.ip, port))
    }
}

/// The route to a server: `smtp:[127.0.0.1]:4711`.
pub(crate) fn via(address: SocketAddr) -> String {
    format!("smtp:[{}]:{}", address.ip(), address.port())
}
