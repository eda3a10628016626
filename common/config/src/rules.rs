//! `[[rule]]`: what a rule is made of, and how it reads in words.

use std::fmt::{self, Display};
use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use postern_address::{Domain, Mailbox, ReversePath};
use serde::{Deserialize, Serialize};

use crate::types::{EnhancedStatus, Service, Table};

/// One `[[rule]]`: when all conditions hold, the action is taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Where it stands in the file.
    pub line: u32,
    /// `stage`
    pub stage: Stage,
    /// All must hold. Those that cost a question to somebody else stand behind all others, in the order
    /// name, list score, table, policy server.
    pub conditions: Vec<Condition>,
    /// `action`; none when the table's value, or the policy server's answer, is the action.
    pub action: Option<RuleAction>,
}

/// When a rule is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Stage {
    /// A client has connected.
    Client,
    /// It said HELO, EHLO or LHLO.
    Helo,
    /// MAIL.
    From,
    /// Each RCPT.
    Rcpt,
    /// The message is complete, and not yet accepted.
    Data,
}

/// A condition as it stands in a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// It stands in `not`: it must not hold.
    pub negated: bool,
    /// What is looked at.
    pub test: Test,
}

/// What a condition looks at. Of several values one is enough.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Test {
    /// `network`: the client's address.
    Network(Vec<IpNet>),
    /// `service` of the listener.
    Service(Vec<Service>),
    /// `listener`: its address, as in `[[listen]]`.
    Listener(Vec<SocketAddr>),
    /// `authenticated`
    Authenticated(bool),
    /// `helo`: what the client calls itself.
    Helo(Vec<NamePattern>),
    /// `from`: the reverse-path.
    From(Vec<AddressPattern>),
    /// `to`: the recipient; at the stage `data`, one of them.
    To(Vec<AddressPattern>),
    /// `header`: a field of the message's header section.
    Header(Vec<HeaderPattern>),
    /// `name`: the client's confirmed name.
    Name(Vec<NamePattern>),
    /// `name-verified`: the client has one.
    NameVerified(bool),
    /// `score-at-least`: the sum of what the lists say of it.
    ScoreAtLeast(i32),
    /// `table` has `key`.
    Table {
        /// `table`
        table: Table,
        /// `key`
        key: TableKey,
    },
    /// `ask`: a policy server says more than DUNNO.
    Ask(PolicyServer),
}

/// What is looked up in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TableKey {
    /// `client`: its name, then its address.
    Client,
    /// `helo`
    Helo,
    /// `from`
    From,
    /// `to`
    To,
}

/// A name: `example.org` itself, `.example.org` every one below it, `*` any.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamePattern {
    /// In lower case.
    Exact(String),
    /// Below it, not itself.
    Below(Domain),
    /// Any at all.
    Any,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AddressPattern {
    /// `name@example.org`, without regard to case.
    Exact(Mailbox),
    /// `@example.org`: every one at that domain.
    At(Domain),
    /// `.example.org`: every one at a domain below it.
    Below(Domain),
    /// `name@`: at any domain. In lower case.
    Local(String),
    /// `<>`: the null reverse-path.
    Null,
    /// `*`: any.
    Any,
}

/// `Name`, or `Name: pattern` in which `*` stands for anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderPattern {
    /// The field's name.
    pub name: String,
    /// What its value is to be, without regard to case; none when any will do.
    pub value: Option<String>,
}

/// Where a policy server listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PolicyServer {
    /// `unix:PATH`
    Unix(PathBuf),
    /// `inet:ADDRESS:PORT`
    Inet(SocketAddr),
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RuleAction {
    /// `accept`: no further rule of this stage.
    Accept,
    /// `reject …`, `defer …`
    Refuse(RuleReply),
    /// `hold`: accept it, and keep it for an operator.
    Hold,
    /// `redirect ADDRESS`: to this address instead of its recipients.
    Redirect(Mailbox),
    /// `tag Header: value`: put this line before it, without line end.
    Tag(String),
    /// `discard`: say 250, and keep nothing.
    Discard,
}

/// The reply of a refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleReply {
    /// 400 to 559.
    pub code: u16,
    /// Of the same class.
    pub status: EnhancedStatus,
    /// ASCII without control characters.
    pub text: String,
}

impl Rule {
    /// The tables it asks.
    pub fn tables(&self) -> impl Iterator<Item = &Table> {
        self.conditions.iter().filter_map(|condition| match &condition.test {
            Test::Table { table, .. } => Some(table),
            _ => None,
        })
    }

    /// The policy servers it asks.
    pub fn servers(&self) -> impl Iterator<Item = &PolicyServer> {
        self.conditions.iter().filter_map(|condition| match &condition.test {
            Test::Ask(server) => Some(server),
            _ => None,
        })
    }

    /// It ends its stage whatever is the case.
    pub(crate) fn is_last(&self) -> bool {
        use RuleAction::{Accept, Discard, Refuse};
        self.conditions.is_empty() && matches!(self.action, Some(Accept | Refuse(_) | Discard))
    }
}

impl Stage {
    /// The word in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Helo => "helo",
            Self::From => "from",
            Self::Rcpt => "rcpt",
            Self::Data => "data",
        }
    }

    /// All of them, in the order in which they come.
    pub const ALL: [Self; 5] = [Self::Client, Self::Helo, Self::From, Self::Rcpt, Self::Data];
}

impl Test {
    /// The key in the configuration.
    pub const fn key(&self) -> &'static str {
        match self {
            Self::Network(_) => "network",
            Self::Service(_) => "service",
            Self::Listener(_) => "listener",
            Self::Authenticated(_) => "authenticated",
            Self::Helo(_) => "helo",
            Self::From(_) => "from",
            Self::To(_) => "to",
            Self::Header(_) => "header",
            Self::Name(_) => "name",
            Self::NameVerified(_) => "name-verified",
            Self::ScoreAtLeast(_) => "score-at-least",
            Self::Table { .. } => "table",
            Self::Ask(_) => "ask",
        }
    }

    /// The first stage at which it can be told.
    pub const fn known_from(&self) -> Stage {
        match self {
            Self::Network(_)
            | Self::Service(_)
            | Self::Listener(_)
            | Self::Name(_)
            | Self::NameVerified(_)
            | Self::ScoreAtLeast(_)
            | Self::Ask(_) => Stage::Client,
            Self::Helo(_) => Stage::Helo,
            // AUTH comes between HELO and MAIL.
            Self::Authenticated(_) | Self::From(_) => Stage::From,
            Self::To(_) => Stage::Rcpt,
            Self::Header(_) => Stage::Data,
            Self::Table { key, .. } => key.known_from(),
        }
    }
}

impl TableKey {
    /// The word in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Helo => "helo",
            Self::From => "from",
            Self::To => "to",
        }
    }

    /// The first stage at which it is known.
    pub const fn known_from(self) -> Stage {
        match self {
            Self::Client => Stage::Client,
            Self::Helo => Stage::Helo,
            Self::From => Stage::From,
            Self::To => Stage::Rcpt,
        }
    }

    /// What one would look up at a stage.
    pub(crate) const fn of(stage: Stage) -> Self {
        match stage {
            Stage::Client => Self::Client,
            Stage::Helo => Self::Helo,
            Stage::From | Stage::Data => Self::From,
            Stage::Rcpt => Self::To,
        }
    }
}

impl NamePattern {
    /// Whether it is for this name.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => exact.eq_ignore_ascii_case(name.trim_end_matches('.')),
            Self::Below(parent) => is_below(name.trim_end_matches('.'), parent.as_str()),
            Self::Any => true,
        }
    }
}

impl AddressPattern {
    /// Whether it is for this recipient.
    pub fn matches(&self, address: &Mailbox) -> bool {
        match self {
            Self::Exact(exact) => exact.as_str().eq_ignore_ascii_case(address.as_str()),
            Self::At(domain) => domain.as_str().eq_ignore_ascii_case(address.host()),
            Self::Below(parent) => is_below(address.host(), parent.as_str()),
            Self::Local(local) => address.local_name().eq_ignore_ascii_case(local),
            Self::Null => false,
            Self::Any => true,
        }
    }

    /// Whether it is for this reverse-path.
    pub fn matches_path(&self, path: &ReversePath) -> bool {
        match path {
            ReversePath::Mailbox(address) => self.matches(address),
            ReversePath::Null => matches!(self, Self::Null | Self::Any),
        }
    }
}

impl HeaderPattern {
    /// Whether a field with this name and this unfolded value is meant.
    pub fn matches(&self, name: &str, value: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
            && self.value.as_ref().is_none_or(|pattern| is_like(value.trim(), pattern))
    }
}

/// Below, not itself.
fn is_below(name: &str, parent: &str) -> bool {
    let Some(at) = name.len().checked_sub(parent.len() + 1) else { return false };
    match (name.get(..at), name.get(at..at + 1), name.get(at + 1..)) {
        (Some(label), Some("."), Some(rest)) => !label.is_empty() && rest.eq_ignore_ascii_case(parent),
        _ => false,
    }
}

/// `*` stands for anything. The pieces between are searched from the left, so it takes no longer than the
/// text is long for each of them.
fn is_like(text: &str, pattern: &str) -> bool {
    let (text, pattern) = (text.to_lowercase(), pattern.to_lowercase());
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut pieces = pieces.peekable();
    if pieces.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(piece) = pieces.next() {
        if pieces.peek().is_none() {
            return rest.ends_with(piece);
        }
        match rest.find(piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    true
}

impl Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, condition) in self.conditions.iter().enumerate() {
            write!(f, "{}{condition}", if n == 0 { "if " } else { " and " })?;
        }
        if !self.conditions.is_empty() {
            f.write_str(": ")?;
        }
        match &self.action {
            Some(action) => write!(f, "{action}"),
            None => f.write_str("do as it says"),
        }
    }
}

impl Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.negated { "not " } else { "" }, self.test)
    }
}

impl Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(networks) => several(f, self.key(), networks),
            Self::Service(services) => {
                let names: Vec<_> = services.iter().map(|service| service.name()).collect();
                several(f, self.key(), &names)
            }
            Self::Listener(listeners) => several(f, self.key(), listeners),
            Self::Helo(patterns) | Self::Name(patterns) => several(f, self.key(), patterns),
            Self::From(patterns) | Self::To(patterns) => several(f, self.key(), patterns),
            Self::Header(patterns) => several(f, self.key(), patterns),
            Self::Authenticated(yes) | Self::NameVerified(yes) => write!(f, "{} = {yes}", self.key()),
            Self::ScoreAtLeast(score) => write!(f, "{} = {score}", self.key()),
            Self::Table { table, key } => write!(f, "{} in {table}", key.name()),
            Self::Ask(server) => write!(f, "ask {server}"),
        }
    }
}

fn several(f: &mut fmt::Formatter<'_>, key: &str, values: &[impl Display]) -> fmt::Result {
    write!(f, "{key} = ")?;
    for (n, value) in values.iter().take(8).enumerate() {
        write!(f, "{}{value}", if n == 0 { "" } else { " | " })?;
    }
    match values.len().saturating_sub(8) {
        0 => Ok(()),
        more => write!(f, " | {more} more"),
    }
}

impl Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Below(parent) => write!(f, ".{parent}"),
            Self::Any => f.write_str("*"),
        }
    }
}

impl Display for AddressPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(mailbox) => write!(f, "{mailbox}"),
            Self::At(domain) => write!(f, "@{domain}"),
            Self::Below(parent) => write!(f, ".{parent}"),
            Self::Local(local) => write!(f, "{local}@"),
            Self::Null => f.write_str("<>"),
            Self::Any => f.write_str("*"),
        }
    }
}

impl Display for HeaderPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{}: {value}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl Display for PolicyServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Inet(address) => write!(f, "inet:{address}"),
        }
    }
}

impl Display for RuleAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Refuse(reply) => {
                let (class, subject, detail) = reply.status;
                let word = if reply.code < 500 { "defer" } else { "reject" };
                write!(f, "{word} {} {class}.{subject}.{detail} {}", reply.code, reply.text)
            }
            Self::Hold => f.write_str("hold"),
            Self::Redirect(to) => write!(f, "redirect {to}"),
            Self::Tag(line) => write!(f, "tag {line}"),
            Self::Discard => f.write_str("discard"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names() {
        let domain = Domain::parse("example.org").unwrap();
        let below = NamePattern::Below(domain);
        assert!(below.matches("mx.Example.ORG") && below.matches("a.b.example.org."));
        assert!(!below.matches("example.org") && !below.matches(".example.org"));
        assert!(!below.matches("badexample.org") && !below.matches("ü.org"));
        assert!(NamePattern::Exact("localhost".into()).matches("LOCALHOST."));
    }

    #[test]
    fn addresses() {
        let is = |pattern: &AddressPattern, address: &str| pattern.matches(&Mailbox::parse(address).unwrap());
        let domain = Domain::parse("example.org").unwrap();
        assert!(is(&AddressPattern::Exact(Mailbox::parse("a@example.org").unwrap()), "A@Example.org"));
        assert!(is(&AddressPattern::At(domain.clone()), "b@EXAMPLE.org"));
        assert!(!is(&AddressPattern::At(domain.clone()), "b@mx.example.org"));
        assert!(is(&AddressPattern::Below(domain), "b@mx.example.org"));
        assert!(is(&AddressPattern::Local("abuse".into()), "Abuse@x.test"));
        assert!(!is(&AddressPattern::Null, "a@x.test"));
        assert!(AddressPattern::Null.matches_path(&ReversePath::Null));
        assert!(!AddressPattern::Local(String::new()).matches_path(&ReversePath::Null));
    }

    #[test]
    fn header_values() {
        for (text, pattern, like) in [
            ("YES, score=9", "yes*", true),
            ("no", "yes*", false),
            ("a b c", "*b*", true),
            ("abc", "a*c", true),
            ("ac", "a*a*c", false),
            ("aac", "a*a*c", true),
            ("abc", "abc", true),
            ("abcd", "abc", false),
            ("", "*", true),
            ("", "", true),
            ("ab", "a*ab", false),
            ("ABC", "*", true),
        ] {
            assert_eq!(is_like(text, pattern), like, "{text} {pattern}");
        }
    }

    proptest! {
        /// Against the definition: a star may stand for any number of characters.
        #[test]
        fn stars(text in "[ab]{0,8}", pattern in "[ab*]{0,6}") {
            fn like(text: &[u8], pattern: &[u8]) -> bool {
                match (text, pattern) {
                    (_, [b'*', rest @ ..]) => (0..=text.len()).any(|n| like(&text[n..], rest)),
                    ([a, text @ ..], [b, pattern @ ..]) => a == b && like(text, pattern),
                    (text, pattern) => text.is_empty() && pattern.is_empty(),
                }
            }
            prop_assert_eq!(is_like(&text, &pattern), like(text.as_bytes(), pattern.as_bytes()));
        }
    }
}
