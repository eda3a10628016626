//! How a client comes in: from a listener, perhaps by way of a proxy, to its session.

use std::net::IpAddr;

use mio::net::TcpStream;
use mio::{Interest, Token};
use postern_daemon::Host;
use postern_event::{Client, Event, Level, SessionId};
use postern_smtp::Reply;
use postern_smtp::server::{Output, Session};

use super::Smtpd;
use crate::connection::{Connection, Key};
use crate::policy::shell::Beside;
use crate::proxied::{Arrival, Missing};
use crate::secure::Layer;
use crate::{identity, refusal};

/// Clients taken from one listener in one turn.
const ACCEPT_TURN: usize = 64;

impl Smtpd {
    /// Takes who waits at the listeners.
    pub(super) fn accept(&mut self, host: &mut Host) {
        for at in 0..self.listeners.len() {
            for _ in 0..ACCEPT_TURN {
                let crowded = self.is_crowded();
                let listener = &mut self.listeners[at];
                let Some((stream, address)) = listener.accept(host) else { break };
                let proxies = &listener.listen.proxy;
                if proxies.is_empty() {
                    self.receive(host, at, stream, address, None);
                    continue;
                }
                let reply = match () {
                    () if !proxies.iter().any(|proxy| proxy.contains(&address)) => refusal::not_a_proxy(),
                    () if crowded => refusal::too_many_sessions(),
                    () => {
                        if let Err(error) = self.gate.hold(host, stream, address, at) {
                            let text = format!("event loop: cannot watch a connection: {error}");
                            host.note(Level::Error, &text);
                        }
                        continue;
                    }
                };
                let secure = listener.settings.secure;
                self.turn_away(host, stream, address, secure, &reply);
            }
        }
    }

    /// A proxy has said whose connection it is, or has not.
    pub(super) fn arrive(&mut self, host: &mut Host, arrival: Arrival) {
        let Arrival { stream, proxy, listener, client } = arrival;
        match client {
            Ok(client) => self.receive(host, listener, stream, client, Some(proxy)),
            Err(Missing::Closed) => {}
            Err(why) => {
                let secure = self.listeners.get(listener).is_none_or(|listener| listener.settings.secure);
                let reply = refusal::no_proxy_header(&why.to_string());
                self.turn_away(host, stream, proxy, secure, &reply);
            }
        }
    }

    /// A client's connection, directly or by way of a proxy.
    fn receive(
        &mut self,
        host: &mut Host,
        at: usize,
        stream: TcpStream,
        address: IpAddr,
        proxy: Option<IpAddr>,
    ) {
        let Some(listener) = self.listeners.get(at) else { return };
        let secure = listener.settings.secure;
        if self.is_crowded() {
            return self.turn_away(host, stream, address, secure, &refusal::too_many_sessions());
        }
        let tls = if secure {
            // Never in clear text: its users believe to be within TLS. Without a certificate, closing is
            // all there is to do, and it has been told.
            let Some(layer) = self.certificate.layer(host) else { return };
            Some(layer)
        } else {
            None
        };
        self.admit(host, at, tls, stream, address, proxy);
    }

    fn is_crowded(&self) -> bool {
        self.connections.len() + self.gate.len() >= self.config.limits.sessions as usize
    }

    /// Says why, if it can be heard, and closes.
    fn turn_away(
        &mut self,
        host: &mut Host,
        mut stream: TcpStream,
        address: IpAddr,
        secure: bool,
        reply: &Reply,
    ) {
        self.sessions += 1;
        self.worker.counters.connections += 1;
        let mut wire = Vec::new();
        reply.write_to(&mut wire);
        if !secure {
            // The socket is new and takes one line; a client that does not listen is none.
            let _ = std::io::Write::write(&mut stream, &wire);
        }
        host.emit(&Event::Reject {
            session: SessionId(self.first_session + self.sessions),
            client: Client { name: None, address },
            stage: "CONNECT",
            reply,
            from: None,
            to: None,
            helo: None,
            proto: "SMTP",
        });
    }

    /// Begins the session.
    fn admit(
        &mut self,
        host: &mut Host,
        at: usize,
        tls: Option<Box<Layer>>,
        mut stream: TcpStream,
        address: IpAddr,
        proxy: Option<IpAddr>,
    ) {
        let Some(listener) = self.listeners.get(at) else { return };
        let (settings, service) = (listener.settings.clone(), listener.listen.service);
        let beside = Beside::new(&self.worker.rules, &listener.listen);
        self.sessions += 1;
        self.worker.counters.connections += 1;
        let id = SessionId(self.first_session + self.sessions);
        host.emit(&Event::Connect { session: id, client: Client { name: None, address }, proxy });
        let entry = self.connections.vacant_entry();
        let key = Key::new(entry.key(), self.sessions);
        let token = Token(self.first_token + key.place);
        if let Err(error) =
            host.registry().register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)
        {
            return host.note(Level::Error, &format!("event loop: cannot watch a connection: {error}"));
        }
        let mut out = Output::default();
        let session = Session::new(settings, &mut out);
        let mut connection = Connection::new(stream, tls, key, session, id, address, host.now());
        connection.output = out.wire;
        connection.beside = beside;
        self.worker.flush_later(&mut connection);
        connection.guard = self.worker.abuse.guard(service, address);
        connection.session.set_strict(!connection.guard.is_exempt());
        let limits = &self.config.limits;
        connection.session.offer(identity::offers(address, &limits.xclient, &limits.xforward));
        connection.listener = at as u16;
        let connection = entry.insert(connection);
        self.worker.introduce(host, connection, at as u16);
        for action in out.actions {
            self.worker.perform(host, connection, action);
        }
        let command = self.worker.abuse.times(&self.worker.timeouts).0;
        self.deadlines.enter(host.now(), host.now() + command, key);
    }
}
