//! What is beside a system: where its mail goes. Every round has a network of its own, so every server has
//! its own fixed port.

mod sink;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

pub(crate) use sink::Sink;

/// relay.test: smtp-sink.
pub(crate) const SINK: SocketAddr = port(2526);
/// hold.test, for systems that cannot hold mail: a server that takes connections and never says a word.
pub(crate) const SILENT: SocketAddr = port(2527);

/// Starts it.
pub(crate) fn silent() -> TcpListener {
    TcpListener::bind(SILENT).unwrap()
}

const fn port(number: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), number)
}
