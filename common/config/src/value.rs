//! The grammar of single values: from text to meaning, without knowing where the text stands.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use postern_address::{Domain, Mailbox};
use postern_smtp::server::Extension;

use crate::error::nearest;
use crate::types::{
    BareNewline, EnhancedStatus, LmtpServer, LogTarget, MailboxTemplate, Nexthop, RoutePattern, Service,
    Table, Via,
};

/// LMTP's port by habit; it has no assigned one (RFC 2033 §3: not 25).
const LMTP_PORT: u16 = 24;

/// Why a text is not the value it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mistake {
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

pub(crate) fn mistake<T>(message: impl Into<String>, help: impl Into<String>) -> Result<T, Mistake> {
    Err(Mistake { message: message.into(), help: Some(help.into()) })
}

pub(crate) fn did_you_mean(read: &str, known: &[&str]) -> String {
    match nearest(read, known.iter().copied()) {
        Some(word) => format!("did you mean `{word}`?"),
        None => format!("one of {}", known.iter().map(|w| format!("`{w}`")).collect::<Vec<_>>().join(", ")),
    }
}

pub(crate) fn domain(text: &str) -> Result<Domain, Mistake> {
    Domain::parse(text)
        .or_else(|e| mistake(format!("`{text}` is not a domain name: {e}"), "as `example.org`"))
}

/// Our own name: other hosts look it up (RFC 5321 §2.3.5, §4.1.1.1).
pub(crate) fn hostname(text: &str) -> Result<Domain, Mistake> {
    let name = domain(text)?;
    let help = "the name that the DNS has for this host, as `mx.example.org`";
    let last = name.as_str().rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|b| b.is_ascii_digit()) {
        return mistake(format!("`{text}` is an address, not a name"), help);
    }
    if !name.as_str().contains('.') {
        return mistake(format!("`{text}` is not a full domain name"), help);
    }
    Ok(name)
}

pub(crate) fn mailbox(text: &str) -> Result<Mailbox, Mistake> {
    Mailbox::parse(text)
        .or_else(|e| mistake(format!("`{text}` is not a mail address: {e}"), "as `name@example.org`"))
}

pub(crate) fn path(text: &str) -> Result<PathBuf, Mistake> {
    if !text.starts_with('/') {
        return mistake(format!("`{text}` is not an absolute path"), "begin it with `/`");
    }
    if text.chars().any(char::is_control) {
        return mistake("a path with control characters", "no program could show it in a log");
    }
    Ok(PathBuf::from(text))
}

pub(crate) fn log_target(text: &str) -> Result<LogTarget, Mistake> {
    match text.split_once(':') {
        Some(("text", "stderr")) => Ok(LogTarget::TextStderr),
        Some(("json", "stderr")) => Ok(LogTarget::JsonStderr),
        Some(("text", file)) => path(file).map(LogTarget::TextFile),
        Some(("json", file)) => path(file).map(LogTarget::JsonFile),
        None if text == "syslog" => Ok(LogTarget::Syslog),
        None if text == "stderr" => mistake("`stderr` in which form?", "did you mean `text:stderr`?"),
        None if text.starts_with('/') => {
            mistake(format!("`{text}` in which form?"), format!("did you mean `text:{text}`?"))
        }
        _ => mistake(
            format!("`{text}` is no place for the log"),
            did_you_mean(text, &["syslog", "text:stderr", "json:stderr", "text:/path", "json:/path"]),
        ),
    }
}

pub(crate) fn service(text: &str) -> Result<Service, Mistake> {
    match text {
        "smtp" => Ok(Service::Smtp),
        "submission" => Ok(Service::Submission),
        "submissions" => Ok(Service::Submissions),
        "lmtp" => Ok(Service::Lmtp),
        "smtps" => mistake("unknown service `smtps`", "did you mean `submissions` (RFC 8314)?"),
        _ => {
            let known = ["smtp", "submission", "submissions", "lmtp"];
            mistake(format!("unknown service `{text}`"), did_you_mean(text, &known))
        }
    }
}

pub(crate) fn bare_newline(text: &str) -> Result<BareNewline, Mistake> {
    match text {
        "reject" => Ok(BareNewline::Reject),
        "normalise" => Ok(BareNewline::Normalise),
        "normalize" => mistake("unknown value `normalize`", "did you mean `normalise`?"),
        _ => {
            let known = ["reject", "normalise"];
            mistake(format!("unknown value `{text}`"), did_you_mean(text, &known))
        }
    }
}

pub(crate) fn extension(text: &str) -> Result<Extension, Mistake> {
    Extension::parse(text).ok_or(()).or_else(|()| {
        let known = Extension::ALL.map(Extension::keyword);
        mistake(format!("unknown extension `{text}`"), did_you_mean(text, &known))
    })
}

/// An extension that servers offer and our clients make use of.
pub(crate) fn used_extension(text: &str) -> Result<Extension, Mistake> {
    let found = extension(text)?;
    if Extension::USED.contains(&found) {
        return Ok(found);
    }
    let known = Extension::USED.map(Extension::keyword).join(", ");
    mistake(format!("`{text}` is nothing that deliveries make use of"), format!("they use {known}"))
}

pub(crate) fn socket_address(text: &str) -> Result<SocketAddr, Mistake> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let help = match (text.parse::<IpAddr>(), text.strip_prefix("*:")) {
        (Ok(IpAddr::V4(address)), _) => format!("the port is missing: `{address}:25`"),
        (Ok(IpAddr::V6(address)), _) => format!("the port is missing: `[{address}]:25`"),
        (_, Some(port)) => format!("every address is `[::]:{port}`"),
        _ => "as `192.0.2.1:25`, `[2001:db8::1]:25`, or `[::]:25` for every address".to_owned(),
    };
    mistake(format!("`{text}` is not an address and port"), help)
}

/// A DNS server: an address, with port 53 when none is written.
pub(crate) fn dns_server(text: &str) -> Result<SocketAddr, Mistake> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, 53));
    }
    text.parse().or_else(|_| {
        mistake(
            format!("`{text}` is not an address"),
            "as `127.0.0.1`, `127.0.0.1:53` or `[::1]:53`; a name is not possible here",
        )
    })
}

pub(crate) fn network(text: &str) -> Result<IpNet, Mistake> {
    let network = match (text.parse::<IpNet>(), text.parse::<IpAddr>()) {
        (Ok(network), _) => network,
        (_, Ok(address)) => IpNet::from(address),
        _ => {
            let help = "as `192.0.2.1`, `192.0.2.0/24` or `2001:db8::/32`";
            return mistake(format!("`{text}` is neither an address nor a network"), help);
        }
    };
    if network != network.trunc() {
        let help = format!("did you mean `{}` or `{}`?", network.trunc(), network.addr());
        return mistake(format!("`{text}` has bits behind its prefix"), help);
    }
    if network.prefix_len() == 0 {
        let help = "name the networks that may relay; a user elsewhere proves who he is with a password";
        return mistake(format!("`{text}` lets the whole world relay"), help);
    }
    Ok(network)
}

/// Of those who are believed when they say whose connection or message it is.
pub(crate) fn trusted_network(text: &str) -> Result<IpNet, Mistake> {
    if text.parse::<IpNet>().is_ok_and(|network| network.prefix_len() == 0) {
        let help = "name the hosts that are trusted, as `10.0.0.1`";
        return mistake(format!("`{text}` lets the whole world claim to be anybody"), help);
    }
    network(text)
}

pub(crate) fn route_pattern(text: &str) -> Result<RoutePattern, Mistake> {
    match text.strip_prefix('.') {
        _ if text == "*" => Ok(RoutePattern::Any),
        Some(parent) => domain(parent).map(RoutePattern::Below),
        None if text.starts_with("*.") => {
            mistake(format!("`{text}` is not a pattern"), format!("did you mean `{}`?", &text[1..]))
        }
        None => domain(text).map(RoutePattern::Domain),
    }
}

pub(crate) fn via(text: &str) -> Result<Via, Mistake> {
    let known = ["smtp:", "lmtp:", "local", "virtual", "discard", "error:"];
    match text.split_once(':') {
        None => match text {
            "local" => Ok(Via::Local),
            "virtual" => Ok(Via::Virtual),
            "discard" => Ok(Via::Discard),
            _ => mistake(format!("`{text}` is no way for mail"), did_you_mean(text, &known)),
        },
        Some(("smtp", to)) => smtp_nexthop(to).map(Via::Smtp),
        Some(("lmtp", to)) => lmtp_server(to).map(Via::Lmtp),
        Some(("error", rest)) => error_via(rest),
        Some((kind, _)) => {
            mistake(format!("`{kind}:` is no way for mail"), did_you_mean(&format!("{kind}:"), &known))
        }
    }
}

fn error_via(text: &str) -> Result<Via, Mistake> {
    let help = "a code of RFC 3463 and a text, as `error:5.1.1 no such user` or `error:4.2.0 moving house`";
    let (code, words) = text.split_once(' ').unwrap_or((text, ""));
    let Some(status) = enhanced_status(code) else {
        return mistake(format!("`{code}` is not an enhanced status code of class 4 or 5"), help);
    };
    let words = words.trim();
    if words.is_empty() || words.chars().any(char::is_control) {
        return mistake("the error has no text, or control characters in it", help);
    }
    Ok(Via::Error(status, words.to_owned()))
}

pub(crate) fn enhanced_status(text: &str) -> Option<EnhancedStatus> {
    let mut parts = text.split('.').map(|part| {
        let digits = !part.is_empty() && part.len() <= 3 && part.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| part.parse::<u16>().ok()).flatten()
    });
    let (class, subject, detail) = (parts.next()??, parts.next()??, parts.next()??);
    (parts.next().is_none() && matches!(class, 4 | 5)).then_some((class as u8, subject, detail))
}

fn smtp_nexthop(text: &str) -> Result<Nexthop, Mistake> {
    if text.starts_with('[') {
        return bracketed(text, 25);
    }
    if let Some((host, port)) = text.split_once(':') {
        let help = format!(
            "`smtp:[{host}]:{port}` goes to that host; `smtp:{host}` goes by its MX records, to port 25"
        );
        return mistake(format!("`{text}`: a port needs a host, not MX records"), help);
    }
    if text.parse::<IpAddr>().is_ok() {
        return mistake(format!("`{text}` is an address"), format!("write it as `smtp:[{text}]`"));
    }
    domain(text).map(Nexthop::Mx)
}

/// `[address]:port`, `[host]:port`, the port optional.
fn bracketed(text: &str, default_port: u16) -> Result<Nexthop, Mistake> {
    let help = "as `[192.0.2.1]:25`, `[2001:db8::1]`, `[host.example]:25`";
    let Some((inside, behind)) = text.strip_prefix('[').and_then(|t| t.split_once(']')) else {
        return mistake(format!("`{text}` has no closing bracket"), help);
    };
    let port = match behind.strip_prefix(':') {
        Some(digits) => port(digits)?,
        None if behind.is_empty() => default_port,
        None => return mistake(format!("`{behind}` behind the bracket"), help),
    };
    let v6 = inside.strip_prefix("IPv6:").unwrap_or(inside);
    if let Ok(address) = v6.parse::<Ipv6Addr>() {
        return Ok(Nexthop::Address(SocketAddr::new(address.into(), port)));
    }
    match inside.parse::<IpAddr>() {
        Ok(address) => Ok(Nexthop::Address(SocketAddr::new(address, port))),
        Err(_) => domain(inside).map(|host| Nexthop::Host { host, port }),
    }
}

fn port(digits: &str) -> Result<u16, Mistake> {
    match digits.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => mistake(format!("`{digits}` is not a port"), "1 to 65535"),
    }
}

pub(crate) fn lmtp_server(text: &str) -> Result<LmtpServer, Mistake> {
    if let Some(socket) = text.strip_prefix("unix:") {
        path(socket)?;
        // sun_path holds 108 octets with the final NUL (unix(7)).
        if socket.len() > 107 {
            return mistake("the path is too long for a Unix socket", "at most 107 octets");
        }
        return Ok(LmtpServer::Unix(socket.to_owned()));
    }
    if text.starts_with('/') {
        return mistake(format!("`{text}` alone"), format!("did you mean `lmtp:unix:{text}`?"));
    }
    if text.starts_with('[') {
        return bracketed(text, LMTP_PORT).map(LmtpServer::Tcp);
    }
    if text.is_empty() {
        let help = "as `lmtp:unix:/run/dovecot/lmtp`, `lmtp:[127.0.0.1]:24` or `lmtp:host.example:24`";
        return mistake("the LMTP server is missing", help);
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, digits)) => (host, port(digits)?),
        None => (text, LMTP_PORT),
    };
    match host.parse::<IpAddr>() {
        Ok(address) => Ok(LmtpServer::Tcp(Nexthop::Address(SocketAddr::new(address, port)))),
        Err(_) => Ok(LmtpServer::Tcp(Nexthop::Host { host: domain(host)?, port })),
    }
}

/// A mailbox of `[local]`: `~` and `{user}`.
pub(crate) fn local_mailbox(text: &str) -> Result<MailboxTemplate, Mistake> {
    let template = mailbox_template(text, &["user"])?;
    let (MailboxTemplate::Maildir(path) | MailboxTemplate::Mbox(path)) = &template else {
        return Ok(template);
    };
    if path.starts_with("~/") {
        return Ok(template);
    }
    if !path.starts_with('/') {
        return mistake(
            format!("`{path}` is neither absolute nor in the user's home"),
            "begin it with `/` or `~/`",
        );
    }
    if !path.contains("{user}") {
        return mistake(
            format!("`{path}` is one mailbox for every user"),
            "put `{user}` in it, or begin it with `~/`",
        );
    }
    Ok(template)
}

/// A mailbox of `[virtual]`: absolute, `{local}` and perhaps `{domain}`.
pub(crate) fn virtual_mailbox(text: &str) -> Result<MailboxTemplate, Mistake> {
    let template = mailbox_template(text, &["domain", "local"])?;
    let (MailboxTemplate::Maildir(path) | MailboxTemplate::Mbox(path)) = &template else {
        return Ok(template);
    };
    if !path.starts_with('/') {
        let help = "virtual users have no home: begin it with `/`";
        return mistake(format!("`{path}` is not an absolute path"), help);
    }
    if !path.contains("{local}") {
        return mistake(format!("`{path}` is one mailbox for every user"), "put `{local}` in it");
    }
    Ok(template)
}

fn mailbox_template(text: &str, variables: &[&str]) -> Result<MailboxTemplate, Mistake> {
    let kinds = ["maildir:", "mbox:", "lmtp:"];
    let Some((kind, rest)) = text.split_once(':') else {
        let help = if text.starts_with(['/', '~']) {
            format!("did you mean `maildir:{text}`?")
        } else {
            did_you_mean(text, &kinds)
        };
        return mistake(format!("`{text}`: which kind of mailbox?"), help);
    };
    match kind {
        "maildir" => check_template(rest, variables).map(|()| MailboxTemplate::Maildir(rest.to_owned())),
        "mbox" => check_template(rest, variables).map(|()| MailboxTemplate::Mbox(rest.to_owned())),
        "lmtp" => lmtp_server(rest).map(MailboxTemplate::Lmtp),
        _ => mistake(format!("`{kind}:` is no kind of mailbox"), did_you_mean(&format!("{kind}:"), &kinds)),
    }
}

fn check_template(text: &str, variables: &[&str]) -> Result<(), Mistake> {
    let braced: Vec<String> = variables.iter().map(|v| format!("{{{v}}}")).collect();
    let braced: Vec<&str> = braced.iter().map(String::as_str).collect();
    if text.is_empty() || text.chars().any(char::is_control) {
        return mistake("the mailbox has no path, or control characters in it", "as `maildir:~/Maildir`");
    }
    if Path::new(text).components().any(|part| part == std::path::Component::ParentDir) {
        return mistake(format!("`..` in `{text}`"), "write the path without it");
    }
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        let variable = rest[at..].strip_prefix('{').and_then(|r| r.split_once('}'));
        let Some((name, behind)) = variable else {
            return mistake(format!("a single brace in `{text}`"), did_you_mean("", &braced));
        };
        if !variables.contains(&name) {
            let read = format!("{{{name}}}");
            return mistake(format!("unknown variable `{read}`"), did_you_mean(&read, &braced));
        }
        rest = behind;
    }
    Ok(())
}

pub(crate) fn table(text: &str) -> Result<Table, Mistake> {
    match text.split_once(':') {
        Some(("text", file)) => path(file).map(Table::Text),
        Some((
            kind @ ("cdb" | "hash" | "lmdb" | "sqlite" | "pgsql" | "mysql" | "ldap" | "redis" | "regexp"
            | "pcre"),
            _,
        )) => mistake(
            format!("tables of the type `{kind}:` are not yet supported"),
            "`text:PATH`, a key and a value on each line",
        ),
        _ => mistake(
            format!("`{text}` is no table"),
            "`\"*\"` for every name, a list `[\"u@example.org\"]`, or `\"text:/path\"`",
        ),
    }
}

/// `50 MiB`, `10 kB`, `512 B`.
pub(crate) fn size(text: &str) -> Result<u64, Mistake> {
    let units = ["B", "kB", "KiB", "MB", "MiB", "GB", "GiB"];
    let factors = [1, 1000, 1 << 10, 1_000_000, 1 << 20, 1_000_000_000, 1 << 30];
    let (number, unit, rest) = number_and_unit(text).or_else(|()| {
        mistake(format!("`{text}` is not a size"), "a number and a unit, as `50 MiB` or `10 kB`")
    })?;
    let factor = units.iter().zip(factors).find(|(known, _)| **known == unit).map(|(_, factor)| factor);
    let Some(factor) = factor.filter(|_| rest.is_empty()) else {
        return mistake(format!("unknown unit `{unit}{rest}` of a size"), did_you_mean(unit, &units));
    };
    number.checked_mul(factor).map_or_else(|| mistake(format!("`{text}` is too large"), "below 16 EiB"), Ok)
}

/// `5 d`, `1 h 10 min`, `200 ms`.
pub(crate) fn duration(text: &str) -> Result<Duration, Mistake> {
    let units = ["ms", "s", "min", "h", "d", "w"];
    let factors = [1, 1000, 60_000, 3_600_000, 86_400_000, 604_800_000];
    let (mut rest, mut total) = (text.trim(), 0u64);
    loop {
        let (number, unit, behind) = number_and_unit(rest).or_else(|()| {
            mistake(format!("`{text}` is not a time"), "numbers and units, as `30 s`, `5 d` or `1 h 10 min`")
        })?;
        let Some(factor) = units.iter().zip(factors).find(|(known, _)| **known == unit).map(|(_, f)| f)
        else {
            let meant = match unit {
                "m" => "did you mean `min`?".to_owned(),
                "sec" | "second" | "seconds" => "did you mean `s`?".to_owned(),
                "day" | "days" => "did you mean `d`?".to_owned(),
                "hour" | "hours" => "did you mean `h`?".to_owned(),
                _ => did_you_mean(unit, &units),
            };
            return mistake(format!("unknown unit `{unit}` of time"), meant);
        };
        let sum = number.checked_mul(factor).and_then(|ms| total.checked_add(ms));
        // A thousand years is a slip of the finger, and sums of times must not overflow.
        let Some(sum) = sum.filter(|ms| *ms <= 1000 * 365 * 86_400_000) else {
            return mistake(format!("`{text}` is too long"), "at most 365000 d");
        };
        (total, rest) = (sum, behind);
        if rest.is_empty() {
            return Ok(Duration::from_millis(total));
        }
    }
}

/// The first number of a text, its unit, and what follows.
fn number_and_unit(text: &str) -> Result<(u64, &str, &str), ()> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number = text[..digits].parse().map_err(|_| ())?;
    let rest = text[digits..].trim_start();
    let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
    if letters == 0 {
        return Err(());
    }
    Ok((number, &rest[..letters], rest[letters..].trim_start()))
}
