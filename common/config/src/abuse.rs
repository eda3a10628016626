//! `[limits]`, `[[list]]` and `[greylist]`: what clients may do before they are slowed down or refused.

use std::time::Duration;

use ipnet::IpNet;
use postern_address::Domain;
use serde::{Deserialize, Serialize};
use toml::de::{DeTable, DeValue};

use crate::shape::{Reader, Section, Value, text};
use crate::value::{self, Mistake, mistake};

/// `[limits]`: what one client network, one user, one listener may do. The numbers of all workers count
/// together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Of a client network: an IPv4 address, or an IPv6 /64.
    pub client: Limit,
    /// Of a user who logged in.
    pub user: Limit,
    /// Of a listener.
    pub listener: Limit,
    /// `exempt`: networks without limits, lists, greylisting, pauses; default this host and those of
    /// `[relay] networks`.
    pub exempt: Vec<IpNet>,
    /// `list-score` from which a client's mail is refused; 0 for never. Default 1.
    pub list_score: i32,
}

/// Limits; 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// `sessions` at once; default 50 for a client.
    pub sessions: u32,
    /// `connections` a minute.
    pub connections: u32,
    /// `messages` a minute.
    pub messages: u32,
    /// `recipients` a minute.
    pub recipients: u32,
    /// `errors` a minute.
    pub errors: u32,
    /// `auth-failures` a minute.
    pub auth_failures: u32,
}

/// One `[[list]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// `name`: the zone.
    pub name: Domain,
    /// `weight`, what a client that is in it gains; negative when `kind` is `allow`. Default 1.
    pub weight: i32,
    /// `replies` that count. Default all of 127.0.0.0/8 but 127.255.255.0/24, by which lists complain of us.
    pub replies: Option<Vec<IpNet>>,
}

/// `[greylist]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greylist {
    /// `enabled`, default false.
    pub enabled: bool,
    /// `delay` before which a client must not come back, default 5 min.
    pub delay: Duration,
    /// `window` within which it must have come back, default 2 d.
    pub window: Duration,
    /// `lifetime` of what is known, counted from its last use, default 35 d.
    pub lifetime: Duration,
    /// `auto-allow`: after so many that came back a network is not greylisted any more; 0 for never.
    /// Default 5.
    pub auto_allow: u32,
}

impl Limit {
    /// No limits.
    pub const OFF: Self =
        Self { sessions: 0, connections: 0, messages: 0, recipients: 0, errors: 0, auth_failures: 0 };
}

impl Limits {
    /// Something is counted.
    pub fn any(&self) -> bool {
        [self.client, self.user, self.listener].iter().any(|limit| *limit != Limit::OFF)
    }

    /// The client is of an exempt network.
    pub fn is_exempt(&self, client: std::net::IpAddr) -> bool {
        self.exempt.iter().any(|network| network.contains(&client))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            client: Limit { sessions: 50, ..Limit::OFF },
            user: Limit::OFF,
            listener: Limit::OFF,
            exempt: Vec::new(),
            list_score: 1,
        }
    }
}

impl Default for Greylist {
    fn default() -> Self {
        const DAY: u64 = 86_400;
        Self {
            enabled: false,
            delay: Duration::from_secs(300),
            window: Duration::from_secs(2 * DAY),
            lifetime: Duration::from_secs(35 * DAY),
            auto_allow: 5,
        }
    }
}

impl List {
    /// An answer of the list that says that it has the client.
    pub fn counts(&self, reply: std::net::IpAddr) -> bool {
        match (&self.replies, reply) {
            (Some(replies), reply) => replies.iter().any(|network| network.contains(&reply)),
            (None, std::net::IpAddr::V4(reply)) => {
                reply.is_loopback() && reply.octets()[..3] != [127, 255, 255]
            }
            (None, std::net::IpAddr::V6(_)) => false,
        }
    }
}

/// Most of a rate a minute: what the counters tell apart.
const RATE_MOST: u64 = 60_000;

const SECOND: Duration = Duration::from_secs(1);

impl Reader<'_> {
    pub(crate) fn limits(&mut self, root: &DeTable<'_>, relay: &[IpNet]) -> Limits {
        let section = self.section(root, "[limits]");
        let mut limits = Limits::default();
        self.scoped(&section, "sessions", 1_000_000, &mut limits, |limit| &mut limit.sessions);
        self.scoped(&section, "connections", RATE_MOST, &mut limits, |limit| &mut limit.connections);
        self.scoped(&section, "messages", RATE_MOST, &mut limits, |limit| &mut limit.messages);
        self.scoped(&section, "recipients", RATE_MOST, &mut limits, |limit| &mut limit.recipients);
        self.scoped(&section, "errors", RATE_MOST, &mut limits, |limit| &mut limit.errors);
        self.scoped(&section, "auth-failures", RATE_MOST, &mut limits, |limit| &mut limit.auth_failures);
        let exempt = self.optional(&section, "exempt", |reader, v| reader.items(v, value::network));
        limits.exempt = match exempt {
            Some((_, all)) => all.into_iter().map(|(_, one)| one).collect(),
            None => this_host().chain(relay.iter().copied()).collect(),
        };
        if let Some(score) = self.number(&section, "list-score", 0..=10_000) {
            limits.list_score = score as i32;
        }
        limits
    }

    /// A number for the client, or `{ client = 1, user = 2, listener = 3 }`.
    fn scoped(
        &mut self,
        section: &Section<'_, '_>,
        key: &'static str,
        most: u64,
        limits: &mut Limits,
        of: fn(&mut Limit) -> &mut u32,
    ) {
        let read = |reader: &mut Self, value: &Value<'_>| {
            if let Some(number) = number(value) {
                return reader.take(value, within(number, most)).map(|n| vec![("client", n)]);
            }
            let Some(table) = value.get_ref().as_table() else {
                return reader.wrong_type(value, "a number, or { client = 10, user = 20, listener = 1000 },");
            };
            let mut all = Vec::new();
            for (name, value) in table {
                let scope = ["client", "user", "listener"].into_iter().find(|scope| name.get_ref() == *scope);
                match (scope, number(value)) {
                    (None, _) => {
                        let help = "a limit is for each `client`, `user` or `listener`".to_owned();
                        reader.problem(name.span(), format!("no limit for `{}`", name.get_ref()), Some(help));
                        return None;
                    }
                    (Some(_), None) => return reader.wrong_type(value, "a whole number"),
                    (Some(scope), Some(number)) => {
                        all.push((scope, reader.take(value, within(number, most))?));
                    }
                }
            }
            Some(all)
        };
        for (scope, number) in self.optional(section, key, read).map(|(_, all)| all).unwrap_or_default() {
            let limit = match scope {
                "user" => &mut limits.user,
                "listener" => &mut limits.listener,
                _ => &mut limits.client,
            };
            *of(limit) = number;
        }
    }

    pub(crate) fn lists(&mut self, root: &DeTable<'_>) -> Vec<List> {
        let mut lists: Vec<List> = Vec::new();
        for section in self.tables(root, "[[list]]") {
            let name = self.required(&section, "name", text(value::domain));
            let allow = self.optional(&section, "kind", text(kind)).is_some_and(|(_, allow)| allow);
            let weight = self.number(&section, "weight", 0..=1000).unwrap_or(1) as i32;
            let replies = self.optional(&section, "replies", |reader, v| reader.items(v, value::network));
            let replies = replies.map(|(_, all)| all.into_iter().map(|(_, one)| one).collect());
            let Some((at, name)) = name else { continue };
            let list = List { name, weight: if allow { -weight } else { weight }, replies };
            // One zone may stand for several lists, told apart by the reply.
            if lists.iter().any(|other| other.name == list.name && other.replies == list.replies) {
                let help = "the same zone may stand twice with different `replies`".to_owned();
                self.problem(at, format!("`{}` is there twice", list.name), Some(help));
            }
            lists.push(list);
        }
        lists
    }

    pub(crate) fn greylist(&mut self, root: &DeTable<'_>) -> Greylist {
        let section = self.section(root, "[greylist]");
        let default = Greylist::default();
        let enabled = self.optional(&section, "enabled", |reader, value| match value.get_ref() {
            DeValue::Boolean(enabled) => Some(*enabled),
            _ => reader.wrong_type(value, "true or false"),
        });
        let delay = self.time_at(&section, "delay", SECOND);
        let window = self.time(&section, "window", SECOND).unwrap_or(default.window);
        if let Some((at, delay)) = &delay
            && *delay >= window
        {
            let help = "who comes back must come after `delay` and within `window`".to_owned();
            self.problem(at.clone(), "`delay` is not shorter than `window`".to_owned(), Some(help));
        }
        Greylist {
            enabled: enabled.map_or(default.enabled, |(_, enabled)| enabled),
            delay: delay.map_or(default.delay, |(_, delay)| delay),
            window,
            lifetime: self.time(&section, "lifetime", SECOND).unwrap_or(default.lifetime),
            auto_allow: self
                .number(&section, "auto-allow", 0..=10_000)
                .map_or(default.auto_allow, |n| n as u32),
        }
    }
}

/// The loopback networks.
fn this_host() -> impl Iterator<Item = IpNet> {
    use std::net::{Ipv4Addr, Ipv6Addr};
    let v4 = IpNet::new(Ipv4Addr::new(127, 0, 0, 0).into(), 8);
    let v6 = IpNet::new(Ipv6Addr::LOCALHOST.into(), 128);
    [v4, v6].into_iter().flatten()
}

/// True for `allow`.
fn kind(text: &str) -> Result<bool, Mistake> {
    match text {
        "deny" => Ok(false),
        "allow" => Ok(true),
        _ => mistake(format!("no kind of list: `{text}`"), "a list is `deny` or `allow`"),
    }
}

fn number(value: &Value<'_>) -> Option<i128> {
    let integer = value.get_ref().as_integer()?;
    i128::from_str_radix(integer.as_str(), integer.radix()).ok()
}

fn within(number: i128, most: u64) -> Result<u32, Mistake> {
    match u32::try_from(number) {
        Ok(number) if u64::from(number) <= most => Ok(number),
        _ => mistake(format!("{number} is out of range"), format!("0 (no limit) to {most}")),
    }
}
