//! What a configuration does, in plain words, for `postern check`.

use std::fmt::{Display, Write};
use std::time::Duration;

use crate::abuse::{Limit, Limits};
use crate::rules::Stage;
use crate::types::{
    BareNewline, Config, LmtpServer, LogTarget, MailboxTemplate, Nexthop, RoutePattern, Service, Table,
    UserSet, Via,
};

impl Config {
    /// Tells what this configuration does. Every value is named; `(default)` stands behind those that are
    /// as they would be without being set.
    pub fn explain(&self) -> String {
        let mut out = Lines(String::new());
        out.line(&format!("This host is {}.", self.hostname));
        self.explain_listeners(&mut out);
        self.explain_ours(&mut out);
        self.explain_relaying(&mut out);
        self.explain_routes(&mut out);
        self.explain_rules(&mut out);
        self.explain_values(&mut out);
        out.0
    }

    fn explain_listeners(&self, out: &mut Lines) {
        out.title("Ports");
        if self.listen.is_empty() {
            out.item("none: mail comes from programs on this host alone (sendmail)");
        }
        for listen in &self.listen {
            let words = match (listen.service, &self.tls) {
                (Service::Smtp, Some(_)) => "SMTP from other hosts, STARTTLS offered",
                (Service::Smtp, None) => "SMTP from other hosts, without TLS",
                (Service::Submission, Some(_)) => "submission by users, STARTTLS offered",
                (Service::Submission, None) => "submission by users; without [tls] no password can be taken",
                (Service::Submissions, _) => "submission by users, TLS from the first byte",
                (Service::Lmtp, _) => "LMTP",
            };
            let port = if listen.address.port() == 0 { ", port chosen at start" } else { "" };
            out.item(&format!("{}: {words}{port}", listen.address));
            if listen.bare_newline == BareNewline::Normalise {
                out.item("  line ends that are not CRLF are rewritten (bare-newline)");
            }
            if !listen.without.is_empty() {
                let names: Vec<_> = listen.without.iter().map(|extension| extension.keyword()).collect();
                out.item(&format!("  without {}", names.join(", ")));
            }
            if !listen.proxy.is_empty() {
                out.item(&format!("  only for {}, each connection with a PROXY header", list(&listen.proxy)));
            }
        }
    }

    fn explain_ours(&self, out: &mut Lines) {
        out.title("Mail delivered here");
        if self.local.is_none() && self.virtual_.is_none() {
            out.item("none: this host is no mail's destination");
        }
        if let Some(local) = &self.local {
            out.item(&format!(
                "{}: to users with an account, into {}",
                list(&local.domains),
                template(&local.mailbox)
            ));
            match &local.aliases {
                Some(file) => out.item(&format!("  aliases of {} come first", file.display())),
                None => out.item("  without aliases (default)"),
            }
        }
        if let Some(virtual_) = &self.virtual_ {
            let users = match &virtual_.users {
                UserSet::All => "to every name".to_owned(),
                UserSet::Listed(users) if users.is_empty() => "to nobody".to_owned(),
                UserSet::Listed(users) => format!("to {}", list(users)),
                UserSet::Table(Table::Text(file)) => format!("to the names in {}", file.display()),
            };
            out.item(&format!("{}: {users}, into {}", list(&virtual_.domains), template(&virtual_.mailbox)));
            let default = mark(virtual_.owner == "postern-mail");
            out.item(&format!(
                "  the mailboxes belong to {}{default} (without root: to the caller)",
                virtual_.owner
            ));
            let (MailboxTemplate::Maildir(path) | MailboxTemplate::Mbox(path)) = &virtual_.mailbox else {
                return;
            };
            if virtual_.domains.len() > 1 && !path.contains("{domain}") {
                out.item(
                    "  note: no {domain} in the path: the same name in two of the domains is one mailbox",
                );
            }
        }
    }

    fn explain_relaying(&self, out: &mut Lines) {
        out.title("Who may send to other hosts through this one");
        match &self.relay.networks[..] {
            [] => out.item("no network without a password (default)"),
            networks => out.item(&format!("without a password: clients in {}", list(networks))),
        }
        match &self.auth_users {
            Some(file) => out.item(&format!("with a password: the users of {}", file.display())),
            None => out.item("nobody has a password: [auth] users is not set (default)"),
        }
        match &self.relay.domains[..] {
            [] => out.item("to no domain as its backup MX (default)"),
            domains => out.item(&format!("anybody, to {}: we are backup MX for it", list(domains))),
        }
    }

    fn explain_routes(&self, out: &mut Lines) {
        out.title("Where other mail goes, the first that matches");
        for route in &self.routes {
            let domain = match &route.domain {
                RoutePattern::Domain(domain) => domain.to_string(),
                RoutePattern::Below(domain) => format!("every name below {domain}"),
                RoutePattern::Any => "everything".to_owned(),
            };
            let via = match &route.via {
                Via::Smtp(to) => format!("by SMTP to {}", nexthop(to)),
                Via::Lmtp(to) => format!("by LMTP to {}", server(to)),
                Via::Local => "as if it were in [local]".to_owned(),
                Via::Virtual => "as if it were in [virtual]".to_owned(),
                Via::Discard => "thrown away".to_owned(),
                Via::Error((class, subject, detail), text) => {
                    format!("refused with {class}.{subject}.{detail} {text}")
                }
            };
            out.item(&format!("{domain}: {via}"));
        }
        if !self.routes.iter().any(|route| route.domain == RoutePattern::Any) {
            out.item("everything else: by its MX records, port 25");
        }
    }

    fn explain_rules(&self, out: &mut Lines) {
        out.title("Rules, of each stage the first that decides");
        if self.rules.is_empty() {
            out.item("none (default)");
        }
        let in_order = Stage::ALL
            .into_iter()
            .flat_map(|stage| self.rules.iter().enumerate().filter(move |(_, rule)| rule.stage == stage));
        for (n, rule) in in_order {
            let stage = rule.stage.name();
            out.item(&format!("{stage}: rule {} of line {}: {rule}", n + 1, rule.line));
        }
    }

    fn explain_abuse(&self, out: &mut Lines) {
        out.title("[limits] What clients may do");
        let (limits, usual) = (&self.limits, Limits::default());
        let scopes = |of: fn(&Limit) -> u32| {
            let all = [("client", &limits.client), ("user", &limits.user), ("listener", &limits.listener)];
            let set = all.into_iter().filter(|(_, limit)| of(limit) > 0);
            let words: Vec<String> = set.map(|(scope, limit)| format!("{} a {scope}", of(limit))).collect();
            if words.is_empty() { "no limit".to_owned() } else { words.join(", ") }
        };
        type Of = fn(&Limit) -> u32;
        let named: [(&str, Of); 6] = [
            ("sessions", |limit| limit.sessions),
            ("connections", |limit| limit.connections),
            ("messages", |limit| limit.messages),
            ("recipients", |limit| limit.recipients),
            ("errors", |limit| limit.errors),
            ("auth-failures", |limit| limit.auth_failures),
        ];
        for (name, of) in named {
            let as_usual = [
                (&limits.client, &usual.client),
                (&limits.user, &usual.user),
                (&limits.listener, &usual.listener),
            ];
            out.value(name, scopes(of), as_usual.iter().all(|(limit, usual)| of(limit) == of(usual)));
        }
        out.value("exempt", list(&limits.exempt), false);
        out.value("list-score", limits.list_score, limits.list_score == usual.list_score);
        for list in &self.lists {
            out.item(&format!("the list {} counts {}", list.name, list.weight));
        }
        let greylist = &self.greylist;
        match greylist.enabled {
            true => out.item(&format!(
                "unknown senders are greylisted for {}, within {}; known for {}",
                time(greylist.delay),
                time(greylist.window),
                time(greylist.lifetime)
            )),
            false => out.item("nobody is greylisted (default)"),
        }
    }

    fn explain_values(&self, out: &mut Lines) {
        out.title("Files");
        out.value("spool", self.spool.display(), self.spool.as_os_str() == "/var/spool/postern");
        out.value("runtime", self.runtime.display(), self.runtime.as_os_str() == "/run/postern");
        let log = match &self.log {
            LogTarget::Syslog => "syslog".to_owned(),
            LogTarget::TextStderr => "text:stderr".to_owned(),
            LogTarget::JsonStderr => "json:stderr".to_owned(),
            LogTarget::TextFile(file) => format!("text:{}", file.display()),
            LogTarget::JsonFile(file) => format!("json:{}", file.display()),
        };
        out.value("log", log, self.log == LogTarget::Syslog);
        match &self.tls {
            Some(tls) => {
                out.value("[tls] certificate", tls.certificate.display(), false);
                out.value("[tls] key", tls.key.display(), false);
            }
            None => out.value("[tls]", "none", true),
        }
        match &self.dns_servers[..] {
            [] => out.value("[dns] servers", "those of /etc/resolv.conf", true),
            servers => out.value("[dns] servers", list(servers), false),
        }
        let smtp = &self.smtp;
        out.title("[smtp] Limits of a worker");
        out.value("workers", smtp.workers(), smtp.workers.is_none());
        out.value("message-size", size(smtp.message_size), smtp.message_size == 50 << 20);
        out.value("recipients", smtp.recipients, smtp.recipients == 1000);
        for (key, limit) in [("recipient-domains", smtp.recipient_domains), ("messages", smtp.messages)] {
            out.value(key, limit.map_or("no limit".to_owned(), |limit| limit.to_string()), limit.is_none());
        }
        out.value("sessions", smtp.sessions, smtp.sessions == 10_000);
        out.value("line-length", size(smtp.line_length.into()), smtp.line_length == 64 << 10);
        out.time("command-timeout", smtp.command_timeout, 300);
        out.time("data-timeout", smtp.data_timeout, 180);
        out.time("session-time", smtp.session_time, 3600);
        out.value("errors", smtp.errors, smtp.errors == 20);
        out.time("greet-pause", smtp.greet_pause, 0);
        out.time("tarpit", smtp.tarpit, 1);
        out.value("hops", smtp.hops, smtp.hops == 100);
        out.value("xclient", nobody_or(&smtp.xclient), smtp.xclient.is_empty());
        out.value("xforward", nobody_or(&smtp.xforward), smtp.xforward.is_empty());
        self.explain_abuse(out);
        out.title("[queue] Retries");
        out.time("lifetime", self.queue.lifetime, 5 * 86_400);
        out.time("bounce-lifetime", self.queue.bounce_lifetime, 86_400);
        out.time("retry-first", self.queue.retry_first, 300);
        out.time("retry-most", self.queue.retry_most, 4200);
        match self.queue.delay_warning {
            Some(after) => out.time("delay-warning", after, 0),
            None => out.value("delay-warning", "after 4 h, those who asked", true),
        }
        out.value("min-free", size(self.reserve.octets), self.reserve.octets == 64 << 20);
        out.value("min-inodes", self.reserve.inodes, self.reserve.inodes == 1000);
        out.title("[delivery] Limits of deliveries");
        out.value("connections", self.delivery.connections, self.delivery.connections == 20);
        out.value("jobs", self.delivery.jobs, self.delivery.jobs == 200);
        out.time("connect-timeout", self.delivery.connect_timeout, 30);
        out.time("reply-timeout", self.delivery.reply_timeout, 300);
        out.time("idle-timeout", self.delivery.idle_timeout, 5);
        let without: Vec<_> = self.delivery.without.iter().map(|extension| extension.keyword()).collect();
        let names = if without.is_empty() { "nothing".to_owned() } else { without.join(", ") };
        out.value("without", names, without.is_empty());
    }
}

struct Lines(String);

impl Lines {
    fn line(&mut self, text: &str) {
        self.0.push_str(text);
        self.0.push('\n');
    }

    fn title(&mut self, text: &str) {
        self.0.push('\n');
        self.line(text);
    }

    fn item(&mut self, text: &str) {
        self.line(&format!("  {text}"));
    }

    fn value(&mut self, name: &str, value: impl Display, default: bool) {
        // Writing to a String does not fail.
        let _ = writeln!(self.0, "  {name:18} {value}{}", mark(default));
    }

    fn time(&mut self, name: &str, value: Duration, default_seconds: u64) {
        self.value(name, time(value), value == Duration::from_secs(default_seconds));
    }
}

fn mark(default: bool) -> &'static str {
    if default { " (default)" } else { "" }
}

fn nobody_or(items: &[impl Display]) -> String {
    if items.is_empty() { "nobody".to_owned() } else { list(items) }
}

fn list(items: &[impl Display]) -> String {
    let shown: Vec<String> = items.iter().take(20).map(ToString::to_string).collect();
    let more = items.len() - shown.len();
    shown.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}

fn template(template: &MailboxTemplate) -> String {
    match template {
        MailboxTemplate::Maildir(path) => format!("the Maildir {path}"),
        MailboxTemplate::Mbox(path) => format!("the mbox file {path}"),
        MailboxTemplate::Lmtp(to) => format!("the LMTP server {}", server(to)),
    }
}

fn server(to: &LmtpServer) -> String {
    match to {
        LmtpServer::Unix(path) => format!("unix:{path}"),
        LmtpServer::Tcp(to) => nexthop(to),
    }
}

fn nexthop(to: &Nexthop) -> String {
    match to {
        Nexthop::Mx(domain) => format!("the MX hosts of {domain}"),
        Nexthop::Host { host, port } => format!("[{host}]:{port}"),
        Nexthop::Address(address) if address.is_ipv4() => format!("[{}]:{}", address.ip(), address.port()),
        Nexthop::Address(address) => address.to_string(),
    }
}

/// In the largest unit that needs no fraction.
fn size(octets: u64) -> String {
    [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1_000_000, "MB"), (1000, "kB")]
        .into_iter()
        .find(|(factor, _)| octets > 0 && octets.is_multiple_of(*factor))
        .map_or(format!("{octets} B"), |(factor, unit)| format!("{} {unit}", octets / factor))
}

/// `1 h 10 min`
fn time(duration: Duration) -> String {
    let mut rest = duration.as_millis();
    let mut words = Vec::new();
    for (factor, unit) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s"), (1, "ms")] {
        if rest >= factor {
            words.push(format!("{} {unit}", rest / factor));
            rest %= factor;
        }
    }
    if words.is_empty() { "0 s".to_owned() } else { words.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_read_back() {
        for octets in [0, 1, 999, 1000, 1024, 50 << 20, 3_000_000_000] {
            assert_eq!(crate::value::size(&size(octets)), Ok(octets));
        }
        for ms in [0u64, 1, 999, 4_200_000, 432_000_000, 90_061_001] {
            let duration = Duration::from_millis(ms);
            assert_eq!(crate::value::duration(&time(duration)), Ok(duration));
        }
    }
}
