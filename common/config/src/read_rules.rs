//! `[[rule]]`: from the file's tables to [`Rule`]s.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use postern_address::{Domain, Mailbox};
use toml::de::{DeTable, DeValue};

use crate::error::Place;
use crate::rules::{
    AddressPattern, Condition, HeaderPattern, NamePattern, PolicyServer, Rule, RuleAction, RuleReply, Stage,
    TableKey, Test,
};
use crate::shape::{At, Reader, Section, Value, find, text};
use crate::types::Listen;
use crate::value::{self, Mistake, did_you_mean, mistake};

/// Longest text of a reply or a header line: with code and name it fits a line of SMTP (RFC 5321 §4.5.3.1.5)
/// and one of mail.
const TEXT_MAX: usize = 450;

impl Reader<'_> {
    pub(crate) fn rules(&mut self, root: &DeTable<'_>, listen: &[Listen]) -> Vec<Rule> {
        let mut rules: Vec<Rule> = Vec::new();
        for section in self.tables(root, "[[rule]]") {
            if let Some(rule) = self.rule(&section, listen) {
                if let Some(last) =
                    rules.iter().find(|earlier| earlier.stage == rule.stage && earlier.is_last())
                {
                    let message = format!(
                        "this rule is never reached: the one of line {} is for everybody, and ends the stage",
                        last.line
                    );
                    let help = "the first rule that decides wins: move this one up, or remove it";
                    self.problem(section.at.clone(), message, Some(help.to_owned()));
                }
                rules.push(rule);
            }
        }
        rules
    }

    fn rule(&mut self, section: &Section<'_, '_>, listen: &[Listen]) -> Option<Rule> {
        let before = self.problems.len();
        let stage = self.required(section, "stage", text(stage)).map(|(_, stage)| stage);
        let mut tests = self.tests(section, listen, stage);
        let negated = self.negated(section, listen, stage);
        let action = self.optional(section, "action", text(action));
        let asks = tests.iter().filter(|(_, test)| matches!(test, Test::Table { .. } | Test::Ask(_))).count();
        let has_action = section.table.is_some_and(|table| find(table, "action").is_some());
        if !has_action && asks != 1 && self.problems.len() == before {
            let (message, help) = match asks {
                0 => ("`action` is missing in [[rule]]", "write action = \"reject\"        # or accept, …"),
                _ => (
                    "`action` is missing: who decides, the table or the policy server?",
                    "write an `action`, or make two rules of it",
                ),
            };
            self.problem(section.at.clone(), message.to_owned(), Some(help.to_owned()));
        }
        if self.problems.len() > before {
            return None;
        }
        let negated = negated.into_iter().map(|test| (true, test));
        let mut conditions: Vec<Condition> = tests
            .drain(..)
            .map(|test| (false, test))
            .chain(negated)
            .map(|(negated, (_, test))| Condition { negated, test })
            .collect();
        // What needs nobody comes first. Of two questions, the one whose answer is the action is the last.
        conditions.sort_by_key(|c| (cost(&c.test), !c.negated));
        let line = Place::of(self.text, &section.at).line as u32;
        Some(Rule { line, stage: stage?, conditions, action: action.map(|(_, action)| action) })
    }

    /// `not = { … }`: the same keys, none of which may hold.
    fn negated(
        &mut self,
        section: &Section<'_, '_>,
        listen: &[Listen],
        stage: Option<Stage>,
    ) -> Vec<At<Test>> {
        let Some((_, value)) = section.table.and_then(|table| find(table, "not")) else { return Vec::new() };
        let DeValue::Table(table) = value.get_ref() else {
            self.wrong_type::<()>(value, "conditions in braces, as { network = [\"192.0.2.0/24\"] },");
            return Vec::new();
        };
        self.unknown_keys("[[rule]]", table);
        for key in ["stage", "action", "not"] {
            if let Some((at, _)) = find(table, key) {
                let message = format!("`{key}` is no condition");
                self.problem(at.span(), message, Some("it stands in [[rule]] itself".to_owned()));
            }
        }
        if table.is_empty() {
            self.problem(value.span(), "`not` without a condition".to_owned(), None);
        }
        let inner = Section { name: "[[rule]]", table: Some(table), at: value.span() };
        self.tests(&inner, listen, stage)
    }

    fn tests(&mut self, section: &Section<'_, '_>, listen: &[Listen], stage: Option<Stage>) -> Vec<At<Test>> {
        let mut tests = Vec::new();
        let mut put = |test: Option<At<Test>>| tests.extend(test);
        put(self.patterns(section, "network", network, Test::Network));
        put(self.patterns(section, "service", value::service, Test::Service));
        let listeners = self.patterns(section, "listener", value::socket_address, Test::Listener);
        if let Some((at, Test::Listener(addresses))) = &listeners {
            for address in addresses.iter().filter(|a| !listen.iter().any(|l| l.address == **a)) {
                let known: Vec<_> = listen.iter().map(|l| format!("`{}`", l.address)).collect();
                let help = format!("there are {}", known.join(", "));
                self.problem(at.clone(), format!("no [[listen]] has the address `{address}`"), Some(help));
            }
        }
        put(listeners);
        put(self.truth(section, "authenticated").map(|(at, yes)| (at, Test::Authenticated(yes))));
        put(self.patterns(section, "helo", name_pattern, Test::Helo));
        put(self.patterns(section, "from", from_pattern, Test::From));
        put(self.patterns(section, "to", to_pattern, Test::To));
        put(self.patterns(section, "header", header_pattern, Test::Header));
        put(self.patterns(section, "name", name_pattern, Test::Name));
        put(self.truth(section, "name-verified").map(|(at, yes)| (at, Test::NameVerified(yes))));
        let score = section.table.and_then(|table| find(table, "score-at-least")).map(|(at, _)| at.span());
        if let (Some(at), Some(score)) = (score, self.number(section, "score-at-least", 1..=1_000_000)) {
            put(Some((at, Test::ScoreAtLeast(score as i32))));
        }
        put(self.table_test(section, stage));
        let server = self.optional(section, "ask", text(policy_server));
        put(server.map(|(at, server)| (at, Test::Ask(server))));
        for (at, test) in &tests {
            if let Some(stage) = stage
                && stage < test.known_from()
            {
                let first = test.known_from().name();
                let message = format!("`{}` is not known at the stage `{}`", test.key(), stage.name());
                self.problem(at.clone(), message, Some(format!("write stage = \"{first}\", or a later one")));
            }
        }
        tests
    }

    fn table_test(&mut self, section: &Section<'_, '_>, stage: Option<Stage>) -> Option<At<Test>> {
        let key = self.optional(section, "key", text(table_key));
        let table = self.optional(section, "table", text(value::table));
        let has_table = section.table.is_some_and(|table| find(table, "table").is_some());
        if let (Some((at, _)), false) = (&key, has_table) {
            let help = "write table = \"text:/path\" too";
            self.problem(at.clone(), "`key` without a `table`".to_owned(), Some(help.to_owned()));
        }
        let (at, table) = table?;
        let key = key.map_or_else(|| TableKey::of(stage.unwrap_or(Stage::Rcpt)), |(_, key)| key);
        Some((at, Test::Table { table, key }))
    }

    fn patterns<T>(
        &mut self,
        section: &Section<'_, '_>,
        key: &'static str,
        read: fn(&str) -> Result<T, Mistake>,
        make: fn(Vec<T>) -> Test,
    ) -> Option<At<Test>> {
        let (at, items) = self.optional(section, key, |reader, v| reader.items(v, read))?;
        if items.is_empty() {
            let help = "name one, or remove the key".to_owned();
            self.problem(at, format!("`{key}` without a value never holds"), Some(help));
            return None;
        }
        Some((at, make(items.into_iter().map(|(_, item)| item).collect())))
    }

    fn truth(&mut self, section: &Section<'_, '_>, key: &'static str) -> Option<At<bool>> {
        let read = |reader: &mut Self, value: &Value<'_>| match value.get_ref() {
            DeValue::Boolean(truth) => Some(*truth),
            _ => reader.wrong_type(value, "true or false, without quotes,"),
        };
        self.optional(section, key, read)
    }
}

/// What a test costs: nothing, what verify finds out anyway, a question to a program, one to a stranger.
fn cost(test: &Test) -> u8 {
    match test {
        Test::Name(_) | Test::NameVerified(_) => 1,
        Test::ScoreAtLeast(_) => 2,
        Test::Table { .. } => 3,
        Test::Ask(_) => 4,
        _ => 0,
    }
}

fn stage(text: &str) -> Result<Stage, Mistake> {
    let names = Stage::ALL.map(Stage::name);
    let habits = [
        ("connect", "client"),
        ("ehlo", "helo"),
        ("sender", "from"),
        ("mail", "from"),
        ("recipient", "rcpt"),
        ("to", "rcpt"),
        ("end-of-data", "data"),
        ("content", "data"),
    ];
    if let Some(stage) = Stage::ALL.into_iter().find(|stage| stage.name() == text) {
        return Ok(stage);
    }
    let meant = habits.iter().find(|(word, _)| *word == text);
    let help =
        meant.map_or_else(|| did_you_mean(text, &names), |(_, meant)| format!("did you mean `{meant}`?"));
    mistake(format!("unknown stage `{text}`"), help)
}

fn table_key(text: &str) -> Result<TableKey, Mistake> {
    let keys = [TableKey::Client, TableKey::Helo, TableKey::From, TableKey::To];
    let names = keys.map(TableKey::name);
    keys.into_iter().find(|key| key.name() == text).map_or_else(
        || mistake(format!("`{text}` is nothing that can be looked up"), did_you_mean(text, &names)),
        Ok,
    )
}

/// As in `[relay]`, but the whole world may be meant here.
fn network(text: &str) -> Result<IpNet, Mistake> {
    match text.parse::<IpNet>() {
        Ok(network) if network.prefix_len() == 0 && network == network.trunc() => Ok(network),
        _ => value::network(text),
    }
}

fn name_pattern(text: &str) -> Result<NamePattern, Mistake> {
    let help = "as `example.org`, `.example.org` for every name below it, or `*`";
    if text == "*" {
        return Ok(NamePattern::Any);
    }
    if let Some(parent) = text.strip_prefix('.') {
        return value::domain(parent).map(NamePattern::Below);
    }
    if text.starts_with("*.") {
        return mistake(format!("`{text}` is not a pattern"), format!("did you mean `{}`?", &text[1..]));
    }
    if text.is_empty() || text.contains(['*', '@', ' ']) || !text.chars().all(|c| c.is_ascii_graphic()) {
        return mistake(format!("`{text}` is not a name"), help);
    }
    Ok(NamePattern::Exact(text.trim_end_matches('.').to_ascii_lowercase()))
}

fn from_pattern(text: &str) -> Result<AddressPattern, Mistake> {
    if text.is_empty() {
        return mistake("an empty address", "the null reverse-path is written `<>`");
    }
    if text == "<>" { Ok(AddressPattern::Null) } else { to_pattern(text) }
}

fn to_pattern(text: &str) -> Result<AddressPattern, Mistake> {
    let help =
        "as `name@example.org`, `@example.org`, `.example.org` for every domain below it, `name@`, or `*`";
    if text == "*" {
        return Ok(AddressPattern::Any);
    }
    if text == "<>" {
        return mistake("no mail is for `<>`", help);
    }
    if let Some(rest) = text.strip_prefix('@') {
        return match rest.strip_prefix('.') {
            Some(parent) => value::domain(parent).map(AddressPattern::Below),
            None => value::domain(rest).map(AddressPattern::At),
        };
    }
    if let Some(parent) = text.strip_prefix('.') {
        return value::domain(parent).map(AddressPattern::Below);
    }
    if let Some(local) = text.strip_suffix('@') {
        let any = Domain::parse("example.org").ok().and_then(|domain| Mailbox::new(local, &domain).ok());
        return match any {
            Some(mailbox) => Ok(AddressPattern::Local(mailbox.local_name().to_ascii_lowercase())),
            None => mistake(format!("`{local}` is not the local part of an address"), help),
        };
    }
    if !text.contains('@') && Domain::parse(text).is_ok() {
        let help = format!("did you mean `@{text}`, or `.{text}` for the domains below it?");
        return mistake(format!("`{text}` is a domain"), help);
    }
    if let Some((local @ ("*" | ""), domain)) = text.split_once('@') {
        let _ = local;
        return mistake(format!("`{text}` is not a pattern"), format!("did you mean `@{domain}`?"));
    }
    Mailbox::parse(text)
        .map(AddressPattern::Exact)
        .or_else(|e| mistake(format!("`{text}` is not a mail address: {e}"), help))
}

fn header_pattern(text: &str) -> Result<HeaderPattern, Mistake> {
    let (name, value) = match text.split_once(':') {
        Some((name, value)) => (name.trim_end(), Some(value.trim())),
        None => (text, None),
    };
    field_name(name)?;
    let value = value.filter(|value| !value.is_empty() && *value != "*").map(str::to_owned);
    Ok(HeaderPattern { name: name.to_owned(), value })
}

/// RFC 5322 §3.6.8.
fn field_name(name: &str) -> Result<(), Mistake> {
    if name.is_empty() || name.len() > 64 || !name.bytes().all(|b| b.is_ascii_graphic() && b != b':') {
        return mistake(format!("`{name}` is not the name of a header field"), "as `X-Spam-Flag: YES`");
    }
    Ok(())
}

fn policy_server(text: &str) -> Result<PolicyServer, Mistake> {
    let help = "as `inet:127.0.0.1:10023` or `unix:/run/policy/socket`";
    match text.split_once(':') {
        Some(("unix", path)) => {
            // sun_path holds 108 octets with the final NUL (unix(7)).
            if path.len() > 107 {
                return mistake("the path is too long for a Unix socket", "at most 107 octets");
            }
            if !path.starts_with('/') {
                let help = "write the whole path: there is no queue directory that it could be relative to";
                return mistake(format!("`{path}` is not an absolute path"), help);
            }
            value::path(path).map(|path: PathBuf| PolicyServer::Unix(path))
        }
        Some(("inet", address)) => match address.parse::<SocketAddr>() {
            Ok(address) if address.port() > 0 => Ok(PolicyServer::Inet(address)),
            _ => {
                let port = address.rsplit_once(':').map_or("PORT", |(_, port)| port);
                let help = match address.rsplit_once(':') {
                    Some(("localhost", port)) => format!("did you mean `inet:127.0.0.1:{port}`?"),
                    Some((host, _)) if host.parse::<IpAddr>().is_err() => {
                        format!("an address is needed, not a name: `inet:192.0.2.1:{port}`")
                    }
                    _ => help.to_owned(),
                };
                mistake(format!("`{address}` is not an address and port"), help)
            }
        },
        _ => mistake(format!("`{text}` is no policy server"), help),
    }
}

fn action(text: &str) -> Result<RuleAction, Mistake> {
    let (word, rest) = text.trim().split_once([' ', '\t']).unwrap_or((text.trim(), ""));
    let rest = rest.trim();
    let alone = |action| match rest {
        "" => Ok(action),
        _ => mistake(format!("`{word}` stands alone"), format!("did you mean `{word}`, without `{rest}`?")),
    };
    match word {
        "accept" => alone(RuleAction::Accept),
        "hold" => alone(RuleAction::Hold),
        "discard" => alone(RuleAction::Discard),
        "reject" => reply(rest, 5).map(RuleAction::Refuse),
        "defer" => reply(rest, 4).map(RuleAction::Refuse),
        "redirect" if rest.is_empty() => mistake("redirect, where to?", "as `redirect name@example.org`"),
        "redirect" => value::mailbox(rest).map(RuleAction::Redirect),
        "tag" => tag(rest).map(RuleAction::Tag),
        _ => {
            let habits = [
                ("ok", "accept"),
                ("permit", "accept"),
                ("prepend", "tag"),
                ("drop", "discard"),
                ("tempfail", "defer"),
                ("deny", "reject"),
                ("quarantine", "hold"),
            ];
            let known = ["accept", "reject", "defer", "hold", "redirect", "tag", "discard"];
            let lower = word.to_ascii_lowercase();
            let meant = habits.iter().find(|(habit, _)| *habit == lower).map(|(_, meant)| *meant);
            let meant = meant.or_else(|| known.into_iter().find(|known| *known == lower));
            let help =
                meant.map_or_else(|| did_you_mean(word, &known), |meant| format!("did you mean `{meant}`?"));
            mistake(format!("unknown action `{word}`"), help)
        }
    }
}

/// `[code] [enhanced code] [text]`
fn reply(words: &str, class: u16) -> Result<RuleReply, Mistake> {
    let example = if class == 5 { "reject 550 5.7.1 not here" } else { "defer 451 4.7.1 come back later" };
    let (default, status, text) = match class {
        5 => (554, (5, 7, 1), "Access denied"),
        _ => (450, (4, 7, 1), "Try again later"),
    };
    let (first, rest) = words.split_once(' ').unwrap_or((words, ""));
    let is_code = first.len() == 3 && first.bytes().all(|b| b.is_ascii_digit());
    let (code, rest) = match first.parse::<u16>() {
        Ok(code) if is_code => (code, rest.trim_start()),
        _ => (default, words),
    };
    if code / 100 != class || code % 100 >= 60 {
        let message = format!("`{code}` is not a reply code of class {class}");
        return mistake(message, format!("as `{example}`"));
    }
    let (first, behind) = rest.split_once(' ').unwrap_or((rest, ""));
    let (status, rest) = match value::enhanced_status(first) {
        Some(status) => (status, behind.trim_start()),
        None if first.split('.').count() == 3 && first.bytes().all(|b| b.is_ascii_digit() || b == b'.') => {
            return mistake(format!("`{first}` is not an enhanced status code"), format!("as `{example}`"));
        }
        None => (status, rest),
    };
    if u16::from(status.0) != class {
        let message = format!("the status {}.{}.{} is not of class {class}", status.0, status.1, status.2);
        return mistake(message, format!("code and status are of one class, as `{example}`"));
    }
    plain(rest)?;
    let text = if rest.is_empty() { text } else { rest };
    Ok(RuleReply { code, status, text: text.to_owned() })
}

fn tag(line: &str) -> Result<String, Mistake> {
    let help = "as `tag X-Suspicious: yes`";
    let Some((name, value)) = line.split_once(':') else {
        return mistake("a tag is a header line with a colon", help);
    };
    field_name(name)?;
    plain(value)?;
    if value.trim().is_empty() {
        return mistake(format!("the tag `{name}:` has no value"), help);
    }
    Ok(format!("{name}: {}", value.trim()))
}

fn plain(text: &str) -> Result<(), Mistake> {
    if !text.bytes().all(|b| matches!(b, b' '..=b'~')) {
        return mistake("other characters than those of ASCII, or control characters", "write it in ASCII");
    }
    if text.len() > TEXT_MAX {
        return mistake("the text is too long for a line", format!("at most {TEXT_MAX} characters"));
    }
    Ok(())
}
