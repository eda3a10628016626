//! What is beside a system: where its mail goes. Every round has a network of its own, so every server has
//! its own fixed port.

mod chunks;
mod far;
mod flaky;
mod sink;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;

use postern_tests::{Dovecot, Nsd};

use crate::cell::Workload;
use crate::peers::Name;
use chunks::Chunks;
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

/// A sink that offers CHUNKING, which smtp-sink does not.
const CHUNKS: SocketAddr = port(2532);
/// far-chunks.test: that sink, 50 ms away.
pub(crate) const FAR_CHUNKS: SocketAddr = port(2533);

/// The servers that a system needs for a workload. They end with this.
pub(crate) struct Beside {
    sink: Option<Sink>,
    flaky: Option<Flaky>,
    chunks: Option<Chunks>,
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
        let chunks = (workload == Workload::FarChunks).then(|| Chunks::start(CHUNKS));
        if chunks.is_some() {
            far::start(FAR_CHUNKS, CHUNKS);
        }
        let users = ["u1@dovecot.test", "u2@dovecot.test", "u3@dovecot.test", "u4@dovecot.test"];
        Self {
            sink,
            flaky: (workload == Workload::Flaky).then(|| Flaky::start(FLAKY)),
            chunks,
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
        self.sink.as_ref().map_or(0, Sink::count)
            + self.flaky.as_ref().map_or(0, Flaky::count)
            + self.chunks.as_ref().map_or(0, Chunks::count)
    }
}

/// Each client is served by a thread of its own, as long as this process runs.
fn listen(address: SocketAddr, serve: impl Fn(TcpStream) + Send + Sync + 'static) {
    let (listener, serve) = (TcpListener::bind(address).unwrap(), Arc::new(serve));
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let serve = Arc::clone(&serve);
            std::thread::spawn(move || serve(client));
        }
    });
}

/// The address of one of many destinations: `d17.dest.test` is 127.65.0.18, where the sink listens.
pub(crate) fn destination(n: usize) -> SocketAddr {
    SocketAddr::from(([127, 65, (n / 250) as u8, (n % 250 + 1) as u8], SINK.port()))
}

const fn port(number: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), number)
}
