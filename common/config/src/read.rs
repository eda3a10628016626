//! From the file's tables to a [`Config`], collecting every mistake on the way.

use std::collections::HashSet;
use std::fmt::Display;
use std::hash::Hash;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use postern_address::Domain;
use toml::de::{DeTable, DeValue};

use crate::error::{ConfigError, Place};
use crate::routes::RouteIndex;
use crate::shape::{At, Reader, Section, Value, find, text};
use crate::types::{
    Config, Delivery, Listen, Local, LogTarget, MailboxTemplate, QueueLimits, Relay, Reserve, Route,
    RoutePattern, Service, SmtpLimits, Tls, UserSet, Via, Virtual,
};
use crate::value::{self, Mistake, mistake};

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
        let rules = self.rules(root, &listen);
        let dns = self.section(root, "[dns]");
        let dns_servers = self.list(&dns, "servers", value::dns_server);
        let auth = self.section(root, "[auth]");
        let auth_users = self.optional(&auth, "users", text(value::path));
        let smtp = self.smtp(root);
        let (queue, reserve) = self.queue(root);
        let delivery = self.delivery(root);
        let limits = self.limits(root, &relay.networks);
        let lists = self.lists(root);
        let greylist = self.greylist(root);
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
            rules,
            tls: tls.flatten(),
            dns_servers: without_places(dns_servers),
            auth_users: auth_users.map(|u| u.1),
            smtp,
            queue,
            reserve,
            delivery,
            limits,
            lists,
            greylist,
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
        let local = self.domains_quietly(root, "local");
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
        let ours = domains.map(|domains| domains.iter().map(|(_, d)| d.as_str()).collect::<HashSet<_>>());
        for (at, mailbox) in &listed {
            if !ours.as_ref().is_none_or(|ours| ours.contains(mailbox.host())) {
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
        let ours: HashSet<_> = local.chain(virtual_.into_iter().flatten().flat_map(|v| &v.domains)).collect();
        for (at, domain) in domains.iter().filter(|(_, domain)| ours.contains(domain)) {
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
            let bare_newline = self.optional(&section, "bare-newline", text(value::bare_newline));
            let proxy = self.list(&section, "proxy", value::trusted_network);
            let without = self.list(&section, "without", value::extension);
            self.doubles(&proxy);
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
                let bare_newline = bare_newline.map(|(_, value)| value).unwrap_or_default();
                let proxy = without_places(proxy);
                let without = without_places(without);
                listen.push(Listen { address, service, bare_newline, proxy, without });
            }
        }
        listen
    }

    fn routes(&mut self, root: &DeTable<'_>, local: bool, virtual_: bool) -> Vec<Route> {
        let (mut routes, mut index): (Vec<Route>, _) = (Vec::new(), RouteIndex::default());
        for section in self.tables(root, "[[route]]") {
            let domain = self.required(&section, "domain", text(value::route_pattern));
            let via = self.required(&section, "via", text(value::via));
            if let Some((at, domain)) = &domain
                && let Some(earlier) = index.covering(domain).and_then(|n| routes.get(n))
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
                index.push(&domain);
                routes.push(Route { domain, via });
            }
        }
        routes
    }

    fn smtp(&mut self, root: &DeTable<'_>) -> SmtpLimits {
        let section = self.section(root, "[smtp]");
        let xclient = self.list(&section, "xclient", value::trusted_network);
        let xforward = self.list(&section, "xforward", value::trusted_network);
        [&xclient, &xforward].into_iter().for_each(|networks| self.doubles(networks));
        SmtpLimits {
            workers: self.number(&section, "workers", 1..=64).map(|n| n as u16),
            // RFC 5321 §4.5.3.1.7 asks for at least 64 KiB; a smaller limit is the operator's to choose.
            message_size: self.size(&section, "message-size", 1000..=1 << 40).unwrap_or(50 << 20),
            recipients: self.number(&section, "recipients", 1..=100_000).unwrap_or(1000) as u32,
            recipient_domains: self.number(&section, "recipient-domains", 1..=100_000).map(|n| n as u32),
            messages: self.number(&section, "messages", 1..=1_000_000).map(|n| n as u32),
            sessions: self.number(&section, "sessions", 1..=1_000_000).unwrap_or(10_000) as u32,
            // RFC 5321 §4.5.3.1.6: a text line has up to 1000 octets.
            line_length: self.size(&section, "line-length", 1000..=16 << 20).unwrap_or(64 << 10) as u32,
            command_timeout: self.time(&section, "command-timeout", SECOND).unwrap_or(5 * MINUTE),
            data_timeout: self.time(&section, "data-timeout", SECOND).unwrap_or(3 * MINUTE),
            session_time: self.time(&section, "session-time", SECOND).unwrap_or(HOUR),
            errors: self.number(&section, "errors", 1..=10_000).unwrap_or(20) as u32,
            greet_pause: self.time(&section, "greet-pause", Duration::ZERO).unwrap_or_default(),
            tarpit: self.time(&section, "tarpit", Duration::ZERO).unwrap_or(SECOND),
            hops: self.number(&section, "hops", 1..=10_000).unwrap_or(100) as u32,
            xclient: without_places(xclient),
            xforward: without_places(xforward),
        }
    }

    fn queue(&mut self, root: &DeTable<'_>) -> (QueueLimits, Reserve) {
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
        let reserve = Reserve {
            octets: self.size(&section, "min-free", 0..=1 << 50).unwrap_or(64 << 20),
            inodes: self.number(&section, "min-inodes", 0..=1 << 40).unwrap_or(1000),
        };
        let limits = QueueLimits {
            lifetime,
            delay_warning: self.time(&section, "delay-warning", SECOND),
            // Who shortens one value does not want to be told that the default of another is longer.
            bounce_lifetime: bounce_lifetime.unwrap_or_else(|| DAY.min(lifetime)),
            retry_first: first.unwrap_or_else(|| (5 * MINUTE).min(most.unwrap_or(5 * MINUTE))),
            retry_most: most.unwrap_or_else(|| (70 * MINUTE).max(first.unwrap_or_default())),
        };
        (limits, reserve)
    }

    fn delivery(&mut self, root: &DeTable<'_>) -> Delivery {
        let section = self.section(root, "[delivery]");
        let without = self.list(&section, "without", value::used_extension);
        Delivery {
            connections: self.number(&section, "connections", 1..=10_000).unwrap_or(20) as u32,
            jobs: self.number(&section, "jobs", 1..=100_000).unwrap_or(200) as u32,
            connect_timeout: self.time(&section, "connect-timeout", SECOND).unwrap_or(30 * SECOND),
            reply_timeout: self.time(&section, "reply-timeout", SECOND).unwrap_or(5 * MINUTE),
            idle_timeout: self.time(&section, "idle-timeout", Duration::ZERO).unwrap_or(5 * SECOND),
            without: without_places(without),
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
    fn domains_quietly(&self, root: &DeTable<'_>, section: &str) -> HashSet<Domain> {
        let found =
            find(root, section).and_then(|(_, v)| v.get_ref().as_table()).and_then(|t| find(t, "domains"));
        let items = found.and_then(|(_, v)| v.get_ref().as_array()).into_iter().flatten();
        items.filter_map(|v| Domain::parse(v.get_ref().as_str()?).ok()).collect()
    }

    fn doubles<T: Eq + Hash + Display>(&mut self, items: &[At<T>]) {
        let mut seen = HashSet::new();
        for (at, item) in items.iter().filter(|(_, item)| !seen.insert(item)) {
            self.problem(at.clone(), format!("`{item}` stands here twice"), Some("remove one".to_owned()));
        }
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

fn shown(pattern: &RoutePattern) -> String {
    match pattern {
        RoutePattern::Domain(domain) => format!("`{domain}`"),
        RoutePattern::Below(domain) => format!("`.{domain}`"),
        RoutePattern::Any => "`*`".to_owned(),
    }
}
