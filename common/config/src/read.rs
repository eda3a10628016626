//! From the file's tables to a [`Config`], collecting every mistake on the way.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use postern_address::Domain;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::{ConfigError, Place, Problem, nearest};
use crate::keys::{KEYS, bare, keys_of, sections};
use crate::types::{
    Config, Delivery, Listen, Local, LogTarget, MailboxTemplate, QueueLimits, Relay, Route, RoutePattern,
    Service, SmtpLimits, Tls, UserSet, Via, Virtual,
};
use crate::value::{self, Mistake, mistake};

/// A value and where it stands.
type Value<'t> = Spanned<DeValue<'t>>;

/// Something read and where it stands.
type At<T> = (Range<usize>, T);

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// Reads a whole file's text.
pub(crate) fn read(text: &str, file: &str) -> Result<Config, ConfigError> {
    let mut reader = Reader { text, problems: Vec::new() };
    // The recovering parser tells every broken line at once; what it made of them is not worth a look.
    let (root, errors) = DeTable::parse_recoverable(text);
    let config = if errors.is_empty() {
        reader.config(root.get_ref())
    } else {
        for error in errors {
            let help = syntax_help(text, error.span(), error.message());
            reader.problem(error.span().unwrap_or(0..0), error.message().to_owned(), help);
        }
        None
    };
    match config {
        Some(config) if reader.problems.is_empty() => Ok(config),
        _ => Err(reader.into_error(file)),
    }
}

/// What commonly is behind a line that is not TOML.
fn syntax_help(text: &str, span: Option<Range<usize>>, message: &str) -> Option<String> {
    let place = Place::of(text, &span?);
    let value = place.text.split_once('=').map(|(_, value)| value.trim())?;
    let bare = !value.is_empty() && !value.starts_with(['"', '\'', '[', '{']);
    let known =
        message.contains("duplicate") || value.parse::<f64>().is_ok() || matches!(value, "true" | "false");
    (bare && !known)
        .then(|| format!("texts, sizes and times stand in quotes: \"{}\"", value.replace(['"', '\\'], "")))
}

struct Reader<'s> {
    text: &'s str,
    problems: Vec<At<Problem>>,
}

/// One section, or the top of the file; empty when the file does not have it.
struct Section<'v, 't> {
    name: &'static str,
    table: Option<&'v DeTable<'t>>,
    at: Range<usize>,
}

impl Section<'_, '_> {
    fn is_present(&self) -> bool {
        self.table.is_some()
    }
}

impl Reader<'_> {
    fn config(&mut self, root: &DeTable<'_>) -> Option<Config> {
        self.unknown_keys("", root);
        let top = Section { name: "", table: Some(root), at: 0..0 };
        let hostname = self.required(&top, "hostname", text(value::hostname));
        let spool = self.optional(&top, "spool", text(value::path));
        let runtime = self.optional(&top, "runtime", text(value::path));
        let log = self.optional(&top, "log", text(value::log_target));
        let local = self.local(root);
        let virtual_ = self.virtual_(root);
        let relay = self.relay(root, local.as_ref(), virtual_.as_ref());
        let tls = self.tls(root);
        let listen = self.listen(root, tls.is_some());
        let routes = self.routes(root, local.is_some(), virtual_.is_some());
        let dns = self.section(root, "[dns]");
        let dns_servers = self.list(&dns, "servers", value::dns_server);
        let auth = self.section(root, "[auth]");
        let auth_users = self.optional(&auth, "users", text(value::path));
        let smtp = self.smtp(root);
        let queue = self.queue(root);
        let delivery = self.delivery(root);
        Some(Config {
            hostname: hostname?.1,
            spool: spool.map_or_else(|| PathBuf::from("/var/spool/postern"), |s| s.1),
            runtime: runtime.map_or_else(|| PathBuf::from("/run/postern"), |r| r.1),
            log: log.map_or(LogTarget::Syslog, |l| l.1),
            listen,
            local: local.flatten(),
            virtual_: virtual_.flatten(),
            relay,
            routes,
            tls: tls.flatten(),
            dns_servers: without_places(dns_servers),
            auth_users: auth_users.map(|u| u.1),
            smtp,
            queue,
            delivery,
        })
    }

    /// `Some(None)` when the section is there and broken: what depends on it must not be reported too.
    fn local(&mut self, root: &DeTable<'_>) -> Option<Option<Local>> {
        let section = self.section(root, "[local]");
        if !section.is_present() {
            return None;
        }
        let domains = self.domains(&section);
        let mailbox = self.optional(&section, "mailbox", text(value::local_mailbox));
        let aliases = self.optional(&section, "aliases", text(value::path));
        Some(domains.map(|domains| Local {
            domains: without_places(domains),
            mailbox: mailbox.map_or_else(|| MailboxTemplate::Maildir("~/Maildir".to_owned()), |m| m.1),
            aliases: aliases.map(|a| a.1),
        }))
    }

    fn virtual_(&mut self, root: &DeTable<'_>) -> Option<Option<Virtual>> {
        let section = self.section(root, "[virtual]");
        if !section.is_present() {
            return None;
        }
        let domains = self.domains(&section);
        let local: Vec<Domain> = self.domains_quietly(root, "local");
        for (at, domain) in domains.iter().flatten() {
            if local.contains(domain) {
                let help = "[local] is for users with an account here, [virtual] for all others: choose one";
                self.problem(at.clone(), format!("`{domain}` is in [local] already"), Some(help.to_owned()));
            }
        }
        let mailbox = self.required(&section, "mailbox", text(value::virtual_mailbox));
        let users = self.required(&section, "users", |reader, v| reader.users(v, domains.as_deref()));
        let owner = self.optional(&section, "owner", text(user_name));
        Some((|| {
            Some(Virtual {
                domains: without_places(domains?),
                mailbox: mailbox?.1,
                users: users?.1,
                owner: owner.map_or_else(|| "postern-mail".to_owned(), |o| o.1),
            })
        })())
    }

    fn users(&mut self, value: &Value<'_>, domains: Option<&[At<Domain>]>) -> Option<UserSet> {
        if let DeValue::String(table) = value.get_ref() {
            if table == "*" {
                return Some(UserSet::All);
            }
            return self.take(value, value::table(table)).map(UserSet::Table);
        }
        let listed = self.items(value, value::mailbox)?;
        for (at, mailbox) in &listed {
            let ours = |domains: &[At<Domain>]| domains.iter().any(|(_, d)| d.as_str() == mailbox.host());
            if !domains.is_none_or(ours) {
                let message = format!("`{}` is not one of the virtual domains", mailbox.host());
                self.problem(at.clone(), message, Some("add it to `domains` above".to_owned()));
            }
        }
        self.doubles(&listed);
        Some(UserSet::Listed(without_places(listed)))
    }

    fn relay(
        &mut self,
        root: &DeTable<'_>,
        local: Option<&Option<Local>>,
        virtual_: Option<&Option<Virtual>>,
    ) -> Relay {
        let section = self.section(root, "[relay]");
        let networks = self.list(&section, "networks", value::network);
        let domains = self.list(&section, "domains", value::domain);
        self.doubles(&networks);
        self.doubles(&domains);
        let local = local.into_iter().flatten().flat_map(|l| &l.domains);
        let ours: Vec<_> = local.chain(virtual_.into_iter().flatten().flat_map(|v| &v.domains)).collect();
        for (at, domain) in domains.iter().filter(|(_, domain)| ours.contains(&domain)) {
            let help = "a domain is either delivered here or relayed; to do so by name, use [[route]]";
            self.problem(at.clone(), format!("`{domain}` is delivered here already"), Some(help.to_owned()));
        }
        Relay { networks: without_places(networks), domains: without_places(domains) }
    }

    fn tls(&mut self, root: &DeTable<'_>) -> Option<Option<Tls>> {
        let section = self.section(root, "[tls]");
        if !section.is_present() {
            return None;
        }
        let certificate = self.required(&section, "certificate", text(value::path));
        let key = self.required(&section, "key", text(value::path));
        Some((|| Some(Tls { certificate: certificate?.1, key: key?.1 }))())
    }

    fn listen(&mut self, root: &DeTable<'_>, tls: bool) -> Vec<Listen> {
        let mut listen: Vec<Listen> = Vec::new();
        for section in self.tables(root, "[[listen]]") {
            let address = self.required(&section, "address", text(value::socket_address));
            let service = self.required(&section, "service", text(value::service));
            if let Some((at, address)) = &address
                && address.port() != 0
                && listen.iter().any(|l| l.address == *address)
            {
                self.problem(at.clone(), format!("a second listener on {address}"), None);
            }
            if let Some((at, Service::Submissions)) = &service
                && !tls
            {
                let help = "add [tls] with `certificate` and `key`";
                self.problem(
                    at.clone(),
                    "`submissions` is TLS from the first byte, and there is no [tls]".into(),
                    Some(help.into()),
                );
            }
            if let (Some((_, address)), Some((_, service))) = (address, service) {
                listen.push(Listen { address, service });
            }
        }
        listen
    }

    fn routes(&mut self, root: &DeTable<'_>, local: bool, virtual_: bool) -> Vec<Route> {
        let mut routes: Vec<Route> = Vec::new();
        for section in self.tables(root, "[[route]]") {
            let domain = self.required(&section, "domain", text(value::route_pattern));
            let via = self.required(&section, "via", text(value::via));
            if let Some((at, domain)) = &domain
                && let Some(earlier) = routes.iter().find(|route| covers(&route.domain, domain))
            {
                let help = "the first that matches wins: move this one up, or remove it";
                let message =
                    format!("this route is never reached: an earlier one is for {}", shown(&earlier.domain));
                self.problem(at.clone(), message, Some(help.to_owned()));
            }
            let missing = match &via {
                Some((at, Via::Local)) if !local => Some((at, "[local]")),
                Some((at, Via::Virtual)) if !virtual_ => Some((at, "[virtual]")),
                _ => None,
            };
            if let Some((at, section)) = missing {
                self.problem(
                    at.clone(),
                    format!("there is no {section} to deliver by"),
                    Some(format!("add {section}")),
                );
            }
            if let (Some((_, domain)), Some((_, via))) = (domain, via) {
                routes.push(Route { domain, via });
            }
        }
        routes
    }

    fn smtp(&mut self, root: &DeTable<'_>) -> SmtpLimits {
        let section = self.section(root, "[smtp]");
        SmtpLimits {
            workers: self.number(&section, "workers", 1..=64).map_or_else(default_workers, |n| n as u16),
            // RFC 5321 §4.5.3.1.7 asks for at least 64 KiB; a smaller limit is the operator's to choose.
            message_size: self.size(&section, "message-size", 1000..=1 << 40).unwrap_or(50 << 20),
            recipients: self.number(&section, "recipients", 1..=100_000).unwrap_or(1000) as u32,
            sessions: self.number(&section, "sessions", 1..=1_000_000).unwrap_or(10_000) as u32,
            // RFC 5321 §4.5.3.1.6: a text line has up to 1000 octets.
            line_length: self.size(&section, "line-length", 1000..=16 << 20).unwrap_or(64 << 10) as u32,
            command_timeout: self.time(&section, "command-timeout", SECOND).unwrap_or(5 * MINUTE),
            data_timeout: self.time(&section, "data-timeout", SECOND).unwrap_or(3 * MINUTE),
            session_time: self.time(&section, "session-time", SECOND).unwrap_or(HOUR),
            errors: self.number(&section, "errors", 1..=10_000).unwrap_or(20) as u32,
            hops: self.number(&section, "hops", 1..=10_000).unwrap_or(100) as u32,
        }
    }

    fn queue(&mut self, root: &DeTable<'_>) -> QueueLimits {
        let section = self.section(root, "[queue]");
        let lifetime = self.time(&section, "lifetime", Duration::ZERO).unwrap_or(5 * DAY);
        let bounce_lifetime = self.time(&section, "bounce-lifetime", Duration::ZERO);
        let first = self.time_at(&section, "retry-first", Duration::from_millis(1));
        let most = self.time_at(&section, "retry-most", Duration::from_millis(1));
        if let (Some((at, first)), Some((_, most))) = (&first, &most)
            && first > most
        {
            self.problem(at.clone(), "`retry-first` is longer than `retry-most`".to_owned(), None);
        }
        let (first, most) = (first.map(|f| f.1), most.map(|m| m.1));
        QueueLimits {
            lifetime,
            // Who shortens one value does not want to be told that the default of another is longer.
            bounce_lifetime: bounce_lifetime.unwrap_or_else(|| DAY.min(lifetime)),
            retry_first: first.unwrap_or_else(|| (5 * MINUTE).min(most.unwrap_or(5 * MINUTE))),
            retry_most: most.unwrap_or_else(|| (70 * MINUTE).max(first.unwrap_or_default())),
        }
    }

    fn delivery(&mut self, root: &DeTable<'_>) -> Delivery {
        let section = self.section(root, "[delivery]");
        Delivery {
            connections: self.number(&section, "connections", 1..=10_000).unwrap_or(20) as u32,
            jobs: self.number(&section, "jobs", 1..=100_000).unwrap_or(200) as u32,
            connect_timeout: self.time(&section, "connect-timeout", SECOND).unwrap_or(30 * SECOND),
            reply_timeout: self.time(&section, "reply-timeout", SECOND).unwrap_or(5 * MINUTE),
            idle_timeout: self.time(&section, "idle-timeout", Duration::ZERO).unwrap_or(5 * SECOND),
        }
    }

    fn domains(&mut self, section: &Section<'_, '_>) -> Option<Vec<At<Domain>>> {
        let (at, domains) = self.required(section, "domains", |reader, v| reader.items(v, value::domain))?;
        if domains.is_empty() {
            let help = format!("name one, or remove {}", section.name);
            self.problem(at, format!("{} without a domain", section.name), Some(help));
            return None;
        }
        self.doubles(&domains);
        Some(domains)
    }

    /// The domains of another section, for comparison: its mistakes are reported where it is read.
    fn domains_quietly(&self, root: &DeTable<'_>, section: &str) -> Vec<Domain> {
        let found =
            find(root, section).and_then(|(_, v)| v.get_ref().as_table()).and_then(|t| find(t, "domains"));
        let items = found.and_then(|(_, v)| v.get_ref().as_array()).into_iter().flatten();
        items.filter_map(|v| Domain::parse(v.get_ref().as_str()?).ok()).collect()
    }

    fn doubles<T: PartialEq + std::fmt::Display>(&mut self, items: &[At<T>]) {
        let mut doubles = Vec::new();
        for (n, (at, item)) in items.iter().enumerate() {
            // Lists of users may be long; beyond this a double does no harm but cost.
            if n < 2000 && items[..n].iter().any(|(_, earlier)| earlier == item) {
                doubles.push((at.clone(), format!("`{item}` stands here twice")));
            }
        }
        for (at, message) in doubles {
            self.problem(at, message, Some("remove one".to_owned()));
        }
    }
}

/// The shapes of values.
impl Reader<'_> {
    fn problem(&mut self, at: Range<usize>, message: String, help: Option<String>) {
        let place = Some(Place::of(self.text, &at));
        self.problems.push((at, Problem { message, help, place }));
    }

    fn take<T>(&mut self, value: &Value<'_>, result: Result<T, Mistake>) -> Option<T> {
        result.map_err(|m| self.problem(value.span(), m.message, m.help)).ok()
    }

    fn wrong_type<T>(&mut self, value: &Value<'_>, wanted: &str) -> Option<T> {
        let read = value.get_ref().type_str();
        let article = if read.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
        let message = format!("{article} {read}, where {wanted} should stand");
        self.problem(value.span(), message, None);
        None
    }

    fn section<'v, 't>(&mut self, root: &'v DeTable<'t>, name: &'static str) -> Section<'v, 't> {
        let Some((key, value)) = find(root, bare(name)) else {
            return Section { name, table: None, at: 0..0 };
        };
        let table = value.get_ref().as_table();
        match table {
            Some(table) => self.unknown_keys(name, table),
            None => self.problem(
                key.span(),
                format!("`{}` is a section", bare(name)),
                Some(format!("write {name}")),
            ),
        }
        Section { name, table, at: key.span() }
    }

    fn tables<'v, 't>(&mut self, root: &'v DeTable<'t>, name: &'static str) -> Vec<Section<'v, 't>> {
        let Some((key, value)) = find(root, bare(name)) else { return Vec::new() };
        let Some(array) = value.get_ref().as_array() else {
            let message = format!("there may be several of `{}`", bare(name));
            self.problem(key.span(), message, Some(format!("write {name}, with two brackets")));
            return Vec::new();
        };
        let mut sections = Vec::new();
        for value in array.iter() {
            match value.get_ref().as_table() {
                Some(table) => {
                    self.unknown_keys(name, table);
                    sections.push(Section { name, table: Some(table), at: value.span() });
                }
                None => {
                    self.wrong_type::<()>(value, &format!("a section {name}"));
                }
            }
        }
        sections
    }

    fn unknown_keys(&mut self, section: &'static str, table: &DeTable<'_>) {
        let sections = sections();
        let is_section = |key: &str| section.is_empty() && sections.iter().any(|s| bare(s) == key);
        let mut unknown = Vec::new();
        for (key, value) in table {
            let name: &str = key.get_ref();
            if keys_of(section).any(|known| known == name) || is_section(name) {
                continue;
            }
            let table = value.get_ref().is_table();
            let what = if table && section.is_empty() { "section" } else { "key" };
            let place = if section.is_empty() { String::new() } else { format!(" in {section}") };
            unknown.push((
                key.span(),
                format!("unknown {what} `{name}`{place}"),
                meant(section, name, &sections),
            ));
        }
        for (at, message, help) in unknown {
            self.problem(at, message, Some(help));
        }
    }

    fn optional<T>(
        &mut self,
        section: &Section<'_, '_>,
        key: &'static str,
        read: impl FnOnce(&mut Self, &Value<'_>) -> Option<T>,
    ) -> Option<At<T>> {
        debug_assert!(keys_of(section.name).any(|known| known == key), "{} {key}", section.name);
        let (_, value) = find(section.table?, key)?;
        Some((value.span(), read(self, value)?))
    }

    fn required<T>(
        &mut self,
        section: &Section<'_, '_>,
        key: &'static str,
        read: impl FnOnce(&mut Self, &Value<'_>) -> Option<T>,
    ) -> Option<At<T>> {
        if section.table.is_some_and(|table| find(table, key).is_none()) {
            // A misspelt key is one mistake, not two.
            let misspelt = |name: &str| {
                !keys_of(section.name).any(|known| known == name)
                    && nearest(name, keys_of(section.name)) == Some(key)
            };
            if section.table.is_some_and(|table| table.keys().any(|name| misspelt(name.get_ref()))) {
                return None;
            }
            let place = if section.name.is_empty() { String::new() } else { format!(" in {}", section.name) };
            let help = example(section.name, key);
            self.problem(section.at.clone(), format!("`{key}` is missing{place}"), Some(help));
            return None;
        }
        self.optional(section, key, read)
    }

    fn list<T>(
        &mut self,
        section: &Section<'_, '_>,
        key: &'static str,
        read: fn(&str) -> Result<T, Mistake>,
    ) -> Vec<At<T>> {
        self.optional(section, key, |reader, v| reader.items(v, read))
            .map(|(_, items)| items)
            .unwrap_or_default()
    }

    fn items<T>(&mut self, value: &Value<'_>, read: fn(&str) -> Result<T, Mistake>) -> Option<Vec<At<T>>> {
        let Some(array) = value.get_ref().as_array() else {
            if let Some(one) = value.get_ref().as_str() {
                let help = format!("write [\"{one}\"]");
                self.problem(value.span(), "a list should stand here".to_owned(), Some(help));
                return None;
            }
            return self.wrong_type(value, "a list of texts");
        };
        let mut items = Vec::new();
        let before = self.problems.len();
        for value in array.iter() {
            if let Some(item) = text(read)(self, value) {
                items.push((value.span(), item));
            }
        }
        // A list of which one item is broken is broken, but its other items were looked at.
        (self.problems.len() == before).then_some(items)
    }

    fn number(
        &mut self,
        section: &Section<'_, '_>,
        key: &'static str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Option<u64> {
        let read = |reader: &mut Self, value: &Value<'_>| {
            let Some(number) = integer(value) else { return reader.wrong_type(value, "a whole number") };
            reader.take(value, within(number, &range, ""))
        };
        self.optional(section, key, read).map(|(_, number)| number)
    }

    fn size(
        &mut self,
        section: &Section<'_, '_>,
        key: &'static str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Option<u64> {
        let read = |reader: &mut Self, value: &Value<'_>| {
            let octets = match (integer(value), value.get_ref().as_str()) {
                (Some(octets), _) => octets,
                (_, Some(text)) => i128::from(reader.take(value, value::size(text))?),
                _ => return reader.wrong_type(value, "a size, as \"50 MiB\","),
            };
            reader.take(value, within(octets, &range, " octets"))
        };
        self.optional(section, key, read).map(|(_, size)| size)
    }

    fn time(&mut self, section: &Section<'_, '_>, key: &'static str, least: Duration) -> Option<Duration> {
        self.time_at(section, key, least).map(|(_, time)| time)
    }

    fn time_at(
        &mut self,
        section: &Section<'_, '_>,
        key: &'static str,
        least: Duration,
    ) -> Option<At<Duration>> {
        let read = |reader: &mut Self, value: &Value<'_>| {
            if let Some(number) = integer(value) {
                let help = format!("did you mean \"{number} s\"? (units: ms, s, min, h, d, w)");
                return reader.take(value, mistake("a time without a unit", help));
            }
            let Some(text) = value.get_ref().as_str() else {
                return reader.wrong_type(value, "a time, as \"5 min\",");
            };
            let time = reader.take(value, value::duration(text))?;
            if time < least {
                let help = format!("at least {} ms", least.as_millis());
                return reader.take(value, mistake(format!("`{text}` is too short"), help));
            }
            Some(time)
        };
        self.optional(section, key, read)
    }

    fn into_error(mut self, file: &str) -> ConfigError {
        self.problems.sort_by_key(|(at, _)| at.start);
        ConfigError { file: file.to_owned(), problems: self.problems.into_iter().map(|(_, p)| p).collect() }
    }
}

fn text<'r, T>(
    read: fn(&str) -> Result<T, Mistake>,
) -> impl FnOnce(&mut Reader<'r>, &Value<'_>) -> Option<T> {
    move |reader, value| match value.get_ref().as_str() {
        Some(text) => reader.take(value, read(text)),
        None => reader.wrong_type(value, "a text in quotes"),
    }
}

fn find<'v, 't>(
    table: &'v DeTable<'t>,
    name: &str,
) -> Option<(&'v Spanned<toml::de::DeString<'t>>, &'v Value<'t>)> {
    table.iter().find(|(key, _)| key.get_ref() == name)
}

fn integer(value: &Value<'_>) -> Option<i128> {
    let integer = value.get_ref().as_integer()?;
    i128::from_str_radix(integer.as_str(), integer.radix()).ok()
}

fn within(number: i128, range: &std::ops::RangeInclusive<u64>, unit: &str) -> Result<u64, Mistake> {
    match u64::try_from(number) {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => mistake(
            format!("{number} is out of range"),
            format!("{} to {}{unit}", range.start(), range.end()),
        ),
    }
}

fn without_places<T>(items: Vec<At<T>>) -> Vec<T> {
    items.into_iter().map(|(_, item)| item).collect()
}

fn user_name(text: &str) -> Result<String, Mistake> {
    let clean = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if text.is_empty() || text.starts_with('-') || !text.chars().all(clean) {
        return mistake(format!("`{text}` is not the name of a system user"), "as `postern-mail`");
    }
    if text == "root" {
        return mistake("the mailboxes may not belong to root", "make a system user for them");
    }
    Ok(text.to_owned())
}

/// What a wrong key most likely stands for.
fn meant(section: &'static str, name: &str, sections: &[&'static str]) -> String {
    let elsewhere: Vec<_> = KEYS.iter().filter(|key| key.name == name).map(|key| key.section).collect();
    if elsewhere.contains(&"") {
        return format!("`{name}` stands at the top of the file, above the first section");
    }
    let mut here: Vec<&str> = keys_of(section).collect();
    if section.is_empty() {
        here.extend(sections.iter().map(|s| bare(s)));
    }
    if let Some(word) = nearest(name, here.iter().copied()) {
        return format!("did you mean `{word}`?");
    }
    if !elsewhere.is_empty() {
        return format!("`{name}` is a key of {}", elsewhere.join(" and "));
    }
    if let Some(key) = nearest(name, KEYS.iter().map(|key| key.name)) {
        let owner = KEYS.iter().find(|k| k.name == key).map_or("", |k| k.section);
        return format!(
            "did you mean `{key}` of {}?",
            if owner.is_empty() { "the top of the file" } else { owner }
        );
    }
    format!("known here: {}", here.iter().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", "))
}

/// What to write for a missing key.
fn example(section: &str, key: &str) -> String {
    let examples: BTreeMap<(&str, &str), &str> = BTreeMap::from([
        (("", "hostname"), "hostname = \"mx.example.org\""),
        (("[[listen]]", "address"), "address = \"[::]:25\""),
        (("[[listen]]", "service"), "service = \"smtp\"        # or submission, submissions, lmtp"),
        (("[local]", "domains"), "domains = [\"example.org\"]"),
        (("[virtual]", "domains"), "domains = [\"example.org\"]"),
        (("[virtual]", "mailbox"), "mailbox = \"maildir:/var/mail/virtual/{domain}/{local}\""),
        (
            ("[virtual]", "users"),
            "users = [\"name@example.org\"]        # or \"text:/path\", or \"*\" for every name",
        ),
        (("[[route]]", "domain"), "domain = \"partner.example\"        # or \".partner.example\", or \"*\""),
        (
            ("[[route]]", "via"),
            "via = \"smtp:[10.1.2.3]:2525\"        # or lmtp:…, local, virtual, discard, error:5.1.1 text",
        ),
        (("[tls]", "certificate"), "certificate = \"/etc/postern/tls/fullchain.pem\""),
        (("[tls]", "key"), "key = \"/etc/postern/tls/privkey.pem\""),
    ]);
    format!("write {}", examples.get(&(section, key)).copied().unwrap_or(key))
}

/// Everything that `later` is for is taken by `earlier`.
fn covers(earlier: &RoutePattern, later: &RoutePattern) -> bool {
    match (earlier, later) {
        (RoutePattern::Any, _) => true,
        (RoutePattern::Domain(a), RoutePattern::Domain(b)) => a == b,
        (RoutePattern::Below(a), RoutePattern::Domain(b)) => a != b && b.is_within(a),
        (RoutePattern::Below(a), RoutePattern::Below(b)) => b.is_within(a),
        _ => false,
    }
}

fn shown(pattern: &RoutePattern) -> String {
    match pattern {
        RoutePattern::Domain(domain) => format!("`{domain}`"),
        RoutePattern::Below(domain) => format!("`.{domain}`"),
        RoutePattern::Any => "`*`".to_owned(),
    }
}

/// One worker a core: the loop of one worker fills one core (64 fill any network).
pub(crate) fn default_workers() -> u16 {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(64) as u16)
}
