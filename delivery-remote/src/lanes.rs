//! What there is for each destination: how many connections, which of them are idle, and the jobs that wait for one.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::Token;
use postern_ipc::queue_agent::Destination;

/// Every destination with a connection or a job that waits.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    lanes: HashMap<Destination, Lane>,
    /// The idle connections by their servers, those by TCP: a server may be the exchanger of many destinations.
    idle_at: HashMap<SocketAddr, Vec<Token>>,
    idle: usize,
    /// A connection of these was closed: a job that waits may make another.
    freed: Vec<Destination>,
    /// Destinations to be sent nothing ahead, until when; also when nothing leads there.
    one_by_one: HashMap<Destination, Instant>,
}

/// So long: more than the pause before the next attempt, which must not fail in the same way.
const ONE_BY_ONE: Duration = Duration::from_secs(6 * 3600);

/// So many of those are remembered.
const ONE_BY_ONE_MAX: usize = 10_000;

#[derive(Debug, Default)]
struct Lane {
    connections: usize,
    idle: Vec<Idle>,
    waiting: VecDeque<u64>,
    /// Busy connections that can take one more.
    roomy: VecDeque<Token>,
}

#[derive(Debug)]
struct Idle {
    token: Token,
    server: Option<SocketAddr>,
}

impl Lane {
    fn is_unused(&self) -> bool {
        self.connections == 0 && self.waiting.is_empty()
    }
}

impl Lanes {
    /// Another connection may be made where `most` are allowed.
    pub(crate) fn has_room(&self, destination: &Destination, most: u32) -> bool {
        self.lanes.get(destination).is_none_or(|lane| lane.connections < most.max(1) as usize)
    }

    /// A connection was begun.
    pub(crate) fn opened(&mut self, destination: &Destination) {
        self.lanes.entry(destination.clone()).or_default().connections += 1;
    }

    /// A connection is no more.
    pub(crate) fn closed(&mut self, destination: &Destination, token: Token) {
        self.forget_idle(destination, token);
        let Some(lane) = self.lanes.get_mut(destination) else { return };
        lane.roomy.retain(|roomy| *roomy != token);
        lane.connections = lane.connections.saturating_sub(1);
        if !lane.waiting.is_empty() {
            self.freed.push(destination.clone());
        }
        self.tidy(destination);
    }

    /// Forgets a destination that nobody waits for and nothing leads to.
    pub(crate) fn tidy(&mut self, destination: &Destination) {
        if self.lanes.get(destination).is_some_and(Lane::is_unused) {
            self.lanes.remove(destination);
        }
    }

    /// The destinations of which a connection was closed while jobs wait there.
    pub(crate) fn take_freed(&mut self) -> Vec<Destination> {
        std::mem::take(&mut self.freed)
    }

    /// A connection has nothing to do. `server` is where it leads to, if that is by TCP.
    pub(crate) fn rest(&mut self, destination: &Destination, token: Token, server: Option<SocketAddr>) {
        self.lanes.entry(destination.clone()).or_default().idle.push(Idle { token, server });
        if let Some(server) = server {
            self.idle_at.entry(server).or_default().push(token);
        }
        self.idle += 1;
    }

    /// The connection that became idle last.
    pub(crate) fn take_idle(&mut self, destination: &Destination) -> Option<Token> {
        let idle = self.lanes.get_mut(destination)?.idle.pop()?;
        Some(self.taken(idle))
    }

    /// Of the connections to a server, whatever destination they were made for, the one that became idle last.
    pub(crate) fn idle_at(&self, server: SocketAddr) -> Option<Token> {
        self.idle_at.get(&server)?.last().copied()
    }

    /// The connection is not idle any more, if it was.
    pub(crate) fn forget_idle(&mut self, destination: &Destination, token: Token) {
        let Some(lane) = self.lanes.get_mut(destination) else { return };
        if let Some(place) = lane.idle.iter().rposition(|idle| idle.token == token) {
            let idle = lane.idle.remove(place);
            self.taken(idle);
        }
    }

    fn taken(&mut self, Idle { token, server }: Idle) -> Token {
        self.idle -= 1;
        if let Some(server) = server
            && let Some(tokens) = self.idle_at.get_mut(&server)
        {
            // It is mostly the last.
            tokens.iter().rposition(|idle| *idle == token).map(|place| tokens.remove(place));
            if tokens.is_empty() {
                self.idle_at.remove(&server);
            }
        }
        token
    }

    /// Every idle connection.
    pub(crate) fn all_idle(&self) -> Vec<Token> {
        self.lanes.values().flat_map(|lane| &lane.idle).map(|idle| idle.token).collect()
    }

    /// How many are idle.
    pub(crate) fn idle(&self) -> usize {
        self.idle
    }

    /// A busy connection can take one more, behind what it has. Whether it still can when it is
    /// taken is to be looked at then.
    pub(crate) fn can_take_one_more(&mut self, destination: &Destination, token: Token) {
        if let Some(lane) = self.lanes.get_mut(destination)
            && !lane.roomy.contains(&token)
        {
            lane.roomy.push_back(token);
        }
    }

    /// The busy connection that has been able to take one more for longest: its reply is the nearest.
    pub(crate) fn take_roomy(&mut self, destination: &Destination) -> Option<Token> {
        self.lanes.get_mut(destination)?.roomy.pop_front()
    }

    /// A job waits for a connection.
    pub(crate) fn wait(&mut self, destination: &Destination, job: u64) {
        self.lanes.entry(destination.clone()).or_default().waiting.push_back(job);
    }

    /// A job waits again, before all others.
    pub(crate) fn wait_first(&mut self, destination: &Destination, job: u64) {
        self.lanes.entry(destination.clone()).or_default().waiting.push_front(job);
    }

    /// The job that has waited longest.
    pub(crate) fn next_waiting(&mut self, destination: &Destination) -> Option<u64> {
        self.lanes.get_mut(destination)?.waiting.pop_front()
    }

    /// Nobody waits any more.
    pub(crate) fn nobody_waits(&mut self) {
        self.lanes.values_mut().for_each(|lane| lane.waiting.clear());
        self.lanes.retain(|_, lane| !lane.is_unused());
        self.freed.clear();
    }

    /// From now on its servers are sent no whole message, and nothing behind what they have not answered.
    pub(crate) fn set_one_by_one(&mut self, destination: &Destination, now: Instant) {
        if self.one_by_one.len() >= ONE_BY_ONE_MAX {
            self.one_by_one.retain(|_, until| *until > now);
        }
        if self.one_by_one.len() < ONE_BY_ONE_MAX {
            self.one_by_one.insert(destination.clone(), now + ONE_BY_ONE);
        }
    }

    /// Nothing may be sent ahead.
    pub(crate) fn is_one_by_one(&self, destination: &Destination, now: Instant) -> bool {
        self.one_by_one.get(destination).is_some_and(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use postern_ipc::queue_agent::Nexthop;
    use proptest::prelude::*;

    use super::*;

    fn destination(n: u16) -> Destination {
        Destination::Smtp(Nexthop::Address(([127, 0, 0, 1], n).into()))
    }

    fn server(n: usize) -> SocketAddr {
        ([127, 0, 0, 1], n as u16).into()
    }

    proptest! {
        /// Whatever happens in whatever order: the limit holds, an idle connection is given once, nobody who waits
        /// is forgotten, and nothing of a destination that nobody needs is kept.
        #[test]
        fn nothing_is_lost(story in proptest::collection::vec((0u8..8, 0u16..3), 0..200)) {
            let mut lanes = Lanes::default();
            // Where to, and which.
            let mut open: Vec<(u16, usize)> = Vec::new();
            let mut idle: Vec<(u16, usize)> = Vec::new();
            let mut waiting: Vec<VecDeque<u64>> = vec![VecDeque::new(); 3];
            let mut roomy: Vec<(u16, usize)> = Vec::new();
            for (n, (what, at)) in story.into_iter().enumerate() {
                let to = destination(at);
                match what {
                    0 if lanes.has_room(&to, 2) => {
                        lanes.opened(&to);
                        open.push((at, n));
                        prop_assert!(open.iter().filter(|(there, _)| *there == at).count() <= 2);
                    }
                    0 | 1 => {
                        lanes.wait(&to, n as u64);
                        waiting[at as usize].push_back(n as u64);
                    }
                    2 => if let Some(place) = open.iter().position(|busy| busy.0 == at && !idle.contains(busy)) {
                        lanes.rest(&to, Token(open[place].1), (n % 3 > 0).then(|| server(n % 3)));
                        idle.push(open[place]);
                    },
                    3 => {
                        let last = idle.iter().rposition(|(there, _)| *there == at).map(|place| idle.remove(place));
                        prop_assert_eq!(lanes.take_idle(&to), last.map(|(_, token)| Token(token)));
                    }
                    4 => if let Some(place) = open.iter().position(|(there, _)| *there == at) {
                        let gone = open.remove(place);
                        idle.retain(|one| *one != gone);
                        roomy.retain(|one| *one != gone);
                        lanes.closed(&to, Token(gone.1));
                        prop_assert_eq!(lanes.take_freed().contains(&to), !waiting[at as usize].is_empty());
                    },
                    5 => if let Some(&one) = open.iter().rfind(|(there, _)| *there == at) {
                        lanes.can_take_one_more(&to, Token(one.1));
                        if !roomy.contains(&one) {
                            roomy.push(one);
                        }
                    },
                    6 => {
                        let first = roomy.iter().position(|(there, _)| *there == at).map(|place| roomy.remove(place));
                        prop_assert_eq!(lanes.take_roomy(&to), first.map(|(_, token)| Token(token)));
                    }
                    _ => {
                        prop_assert_eq!(lanes.next_waiting(&to), waiting[at as usize].pop_front());
                        lanes.tidy(&to);
                    }
                }
                prop_assert!(lanes.lanes.values().all(|lane| !lane.is_unused()));
                for (server, tokens) in &lanes.idle_at {
                    prop_assert_eq!(lanes.idle_at(*server), tokens.last().copied());
                    let of = |idle: &&Idle| idle.server == Some(*server);
                    let mut idle: Vec<Token> =
                        lanes.lanes.values().flat_map(|lane| lane.idle.iter().filter(of)).map(|idle| idle.token).collect();
                    idle.sort_unstable();
                    let mut tokens = tokens.clone();
                    tokens.sort_unstable();
                    prop_assert_eq!(idle, tokens);
                }
                prop_assert_eq!(lanes.idle(), idle.len());
                prop_assert_eq!(lanes.all_idle().len(), idle.len());
            }
            lanes.nobody_waits();
            open.into_iter().for_each(|(at, token)| lanes.closed(&destination(at), Token(token)));
            prop_assert!(lanes.lanes.is_empty() && lanes.idle_at.is_empty() && lanes.idle() == 0);
        }
    }
}
