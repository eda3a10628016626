//! The program, for either protocol.

use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::time::Instant;

use mio::Token;
use postern_config::RemotePart;
use postern_daemon::{Handles, Host, Program, StartError};
use postern_ipc::{Peer, Role};
use postern_smtp::client::Protocol;
use serde::de::DeserializeOwned;

use crate::agent::{Agent, Settings};

/// What differs between delivery-remote and lmtp.
pub trait Kind {
    /// Which program.
    const ROLE: Role;
    /// Its part of the configuration.
    type Config: DeserializeOwned;
    /// What the agent needs of it.
    fn settings(config: Self::Config) -> Settings;
}

/// delivery-remote.
#[derive(Debug)]
pub struct Remote;

impl Kind for Remote {
    const ROLE: Role = Role::DeliveryRemote;
    type Config = RemotePart;

    fn settings(config: RemotePart) -> Settings {
        Settings { protocol: Protocol::Smtp, hostname: config.hostname, delivery: config.delivery }
    }
}

/// An agent that delivers to servers.
#[derive(Debug)]
pub struct Courier<K> {
    agent: Agent,
    kind: PhantomData<fn() -> K>,
}

impl<K: Kind> Program for Courier<K> {
    const ROLE: Role = K::ROLE;
    type Config = K::Config;

    fn start(host: &mut Host, config: K::Config, handles: Handles) -> Result<Self, StartError> {
        Ok(Self { agent: Agent::start(host, K::settings(config), handles), kind: PhantomData })
    }

    fn linked(&mut self, host: &mut Host, peer: Peer, socket: OwnedFd) {
        self.agent.linked(host, peer, socket);
    }

    fn ready(&mut self, host: &mut Host, token: Token, event: &mio::event::Event) {
        self.agent.ready(host, token, event);
    }

    fn turn(&mut self, host: &mut Host) -> Option<Instant> {
        self.agent.turn(host)
    }

    fn flush(&mut self, host: &mut Host) {
        self.agent.flush(host);
    }

    fn reload(&mut self, host: &mut Host, config: K::Config) {
        self.agent.reload(host, K::settings(config));
    }

    fn stop(&mut self, host: &mut Host) {
        self.agent.stop(host);
    }

    fn counters(&self) -> Vec<(String, u64)> {
        self.agent.counters()
    }
}
