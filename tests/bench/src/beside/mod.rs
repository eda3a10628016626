//! What is beside a system: where its mail goes. Every round has a network of its own, so every server has
//! its own fixed port.

mod far;
mod flaky;
mod sink;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;

use postern_tests::{Dovecot, Nsd};

use crate::cell::Workload;
use crate::peers::Name;
use flaky::Flaky;
pub(crate) use sink::Sink;

/// relay.test: smtp-sink. It listens on every address, so that there are many destinations.
pub(crate) const SINK: SocketAddr = port(2526);
/// hold.test, for systems that cannot hold mail: a server that takes connections and never says a word.
pub(crate) const SILENT: SocketAddr = port(2527);
/// lmtp.test: smtp-sink again.
pub(crate) const LMTP: SocketAddr = port(2528);
/// far.test: the sink of relay.test, 50 ms away.
pub(crate) const FAR: SocketAddr = port(2529);
/// flaky.test: a sink that refuses every fifth recipient for now.
pub(crate) const FLAKY: SocketAddr = port(2530);
/// dead.test: nobody listens.
pub(crate) const DEAD: SocketAddr = port(2531);

/// The servers that a system needs for a workload. They end with this.
pub(crate) struct Beside {
    sink: Option<Sink>,
    flaky: Option<Flaky>,
    dovecot: Option<Dovecot>,
    nsd: Option<Nsd>,
    _silent: TcpListener,
}

impl Beside {
    pub(crate) fn start(name: Name, workload: Workload) -> Self {
        let sink = match workload {
            Workload::LmtpSink => Some(Sink::start(LMTP, &["-L"])),
            _ if workload.relays() => Some(Sink::start(SocketAddr::from(([0, 0, 0, 0], SINK.port())), &[])),
            _ => None,
        };
        if workload == Workload::Far {
            far::start(FAR, SINK);
        }
        let users = ["u1@dovecot.test", "u2@dovecot.test", "u3@dovecot.test", "u4@dovecot.test"];
        Self {
            sink,
            flaky: (workload == Workload::Flaky).then(|| Flaky::start(FLAKY)),
            dovecot: (workload == Workload::LmtpDovecot).then(|| Dovecot::start(&users)),
            nsd: name.asks_dns().then(|| Nsd::start("sink IN A 127.0.0.1")),
            _silent: TcpListener::bind(SILENT).unwrap(),
        }
    }

    /// Where nobody answers, there is no DNS, and who asks all the same hears so at once.
    pub(crate) fn name_server(&self) -> IpAddr {
        self.nsd.as_ref().map_or(Ipv4Addr::LOCALHOST.into(), |nsd| nsd.address().ip())
    }

    /// dovecot.test: where Dovecot listens for LMTP.
    pub(crate) fn dovecot(&self) -> SocketAddr {
        self.dovecot.as_ref().map_or(DEAD, Dovecot::lmtp_address)
    }

    /// Where Dovecot puts a user's new mail.
    pub(crate) fn inbox(&self, user: &str) -> Option<PathBuf> {
        let socket = self.dovecot.as_ref()?.lmtp_socket();
        Some(socket.parent()?.parent()?.join("mail").join(format!("{user}@dovecot.test/new")))
    }

    /// Messages that the sinks took.
    pub(crate) fn sunk(&self) -> usize {
        self.sink.as_ref().map_or(0, Sink::count) + self.flaky.as_ref().map_or(0, Flaky::count)
    }
}

/// The address of one of many destinations: `d17.dest.test` is 127.65.0.18, where the sink listens.
pub(crate) fn destination(n: usize) -> SocketAddr {
    SocketAddr::from(([127, 65, (n / 250) as u8, (n % 250 + 1) as u8], SINK.port()))
}

const fn port(number: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), number)
}
