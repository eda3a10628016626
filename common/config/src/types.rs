//! The configuration as checked and understood: what [`crate::load`] returns.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use postern_address::{Domain, Mailbox};
use postern_smtp::server::Extension;
use serde::{Deserialize, Serialize};

use crate::abuse::{Greylist, Limits, List};
use crate::rules::Rule;

/// A whole, valid configuration. Every value is in place: defaults are filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// `hostname`: our name in the greeting, in Received lines and in message ids.
    pub hostname: Domain,
    /// `spool`, default `/var/spool/postern`.
    pub spool: PathBuf,
    /// `runtime`: control socket and pid file, default `/run/postern`.
    pub runtime: PathBuf,
    /// `log`, default syslog.
    pub log: LogTarget,
    /// `[[listen]]`, in the file's order.
    pub listen: Vec<Listen>,
    /// `[local]`: domains whose users have accounts here.
    pub local: Option<Local>,
    /// `[virtual]`: domains whose mailboxes lie under one base.
    pub virtual_: Option<Virtual>,
    /// `[relay]`.
    pub relay: Relay,
    /// `[[route]]`: the first that matches wins.
    pub routes: Vec<Route>,
    /// `[[rule]]`, in the file's order: of each stage, the first that decides wins.
    pub rules: Vec<Rule>,
    /// `[tls]`.
    pub tls: Option<Tls>,
    /// `[dns] servers`, default those of `/etc/resolv.conf`.
    pub dns_servers: Vec<SocketAddr>,
    /// `[auth] users`: `name:hash` lines.
    pub auth_users: Option<PathBuf>,
    /// `[smtp]`.
    pub smtp: SmtpLimits,
    /// `[queue]`.
    pub queue: QueueLimits,
    /// `[queue]`: what smtpd leaves free in the spool.
    pub reserve: Reserve,
    /// `[delivery]`.
    pub delivery: Delivery,
    /// `[limits]`.
    pub limits: Limits,
    /// `[[list]]`, in the file's order.
    pub lists: Vec<List>,
    /// `[greylist]`.
    pub greylist: Greylist,
}

/// Where log lines go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogTarget {
    /// `syslog`: `/dev/log`, facility mail.
    Syslog,
    /// `text:stderr`
    TextStderr,
    /// `json:stderr`
    JsonStderr,
    /// `text:PATH`
    TextFile(PathBuf),
    /// `json:PATH`
    JsonFile(PathBuf),
}

/// One `[[listen]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listen {
    /// `address`: port 0 lets the kernel choose, and the log says which.
    pub address: SocketAddr,
    /// `service`
    pub service: Service,
    /// `bare-newline`, default `reject`.
    pub bare_newline: BareNewline,
    /// `proxy`: who alone connects, each time with a PROXY header; none for a port without proxies.
    pub proxy: Vec<IpNet>,
    /// `without`: extensions that are not offered though the service has them.
    pub without: Vec<Extension>,
}

/// What becomes of line ends that are not CRLF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum BareNewline {
    /// The client is told so and closed.
    #[default]
    Reject,
    /// They are rewritten before anything else looks at them.
    Normalise,
}

/// What a listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Service {
    /// Mail from other hosts, usually port 25.
    Smtp,
    /// Mail from users, usually port 587 (RFC 6409).
    Submission,
    /// The same within TLS from the first byte, usually port 465 (RFC 8314).
    Submissions,
    /// LMTP (RFC 2033).
    Lmtp,
}

/// `[local]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Local {
    /// `domains`; never empty.
    pub domains: Vec<Domain>,
    /// `mailbox`, default `maildir:~/Maildir`.
    pub mailbox: MailboxTemplate,
    /// `aliases`: a file in the form of `/etc/aliases`; none when not set.
    pub aliases: Option<PathBuf>,
}

/// `[virtual]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Virtual {
    /// `domains`; never empty, none of them also in `[local]`.
    pub domains: Vec<Domain>,
    /// `mailbox`: `{domain}` and `{local}` stand for the recipient's. `maildir:` and `mbox:` need an
    /// absolute path.
    pub mailbox: MailboxTemplate,
    /// `users`
    pub users: UserSet,
    /// `owner`: the system user who owns the mailboxes, default `postern-mail`. Not used without root.
    pub owner: String,
}

/// Who exists in the virtual domains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UserSet {
    /// `"*"`: every name.
    All,
    /// A list of mailboxes in the file.
    Listed(Vec<Mailbox>),
    /// A table keyed by mailbox.
    Table(Table),
}

/// A table outside the configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Table {
    /// `text:PATH`: a key, blanks, a value, one a line; `#` begins a comment.
    Text(PathBuf),
}

/// A mailbox with variables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MailboxTemplate {
    /// `maildir:PATH`; `~` at the beginning is the user's home, `{user}` the login name.
    Maildir(String),
    /// `mbox:PATH`
    Mbox(String),
    /// `lmtp:unix:PATH`, `lmtp:host:port`, `lmtp:[address]:port`: hand the mail to that server.
    Lmtp(LmtpServer),
}

/// `[relay]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relay {
    /// `networks`: who may relay without a password. Default: nobody.
    pub networks: Vec<IpNet>,
    /// `domains` we are a backup MX for.
    pub domains: Vec<Domain>,
}

/// One `[[route]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// `domain`: `example.org` that domain, `.example.org` all below it, `*` every one.
    pub domain: RoutePattern,
    /// `via`
    pub via: Via,
}

/// Which recipient domains a route is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RoutePattern {
    /// That domain alone.
    Domain(Domain),
    /// Every name below it, not itself.
    Below(Domain),
    /// Every domain.
    Any,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Via {
    /// `smtp:[10.1.2.3]:2525`, `smtp:[host.example]` (port 25, no MX), `smtp:domain.example` (by MX).
    Smtp(Nexthop),
    /// `lmtp:unix:PATH`, `lmtp:[address]:port`, `lmtp:host:port`.
    Lmtp(LmtpServer),
    /// `local`: as if the domain were in `[local]`.
    Local,
    /// `virtual`: as if it were in `[virtual]`.
    Virtual,
    /// `discard`
    Discard,
    /// `error:5.1.1 text`, `error:4.2.0 text`
    Error(EnhancedStatus, String),
}

/// `class.subject.detail`, class 4 or 5 (RFC 3463).
pub type EnhancedStatus = (u8, u16, u16);

/// Which host to relay to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Nexthop {
    /// By the domain's MX records (RFC 5321 §5.1), port 25.
    Mx(Domain),
    /// `[host]:port`: the host's addresses, no MX.
    Host {
        /// The name.
        host: Domain,
        /// The TCP port.
        port: u16,
    },
    /// `[address]:port`.
    Address(SocketAddr),
}

/// Where an LMTP server listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LmtpServer {
    /// A Unix socket's path.
    Unix(String),
    /// By TCP.
    Tcp(Nexthop),
}

/// `[tls]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tls {
    /// `certificate`: PEM chain, the host's first.
    pub certificate: PathBuf,
    /// `key`: PEM private key.
    pub key: PathBuf,
}

/// `[smtp]`: what one smtpd worker takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SmtpLimits {
    /// `workers`, if the configuration says: 1 to 64.
    pub workers: Option<u16>,
    /// `message-size`, octets, default 50 MiB (SIZE, RFC 1870).
    pub message_size: u64,
    /// `recipients` of one message, default 1000.
    pub recipients: u32,
    /// `recipient-domains` of one message, default no limit.
    pub recipient_domains: Option<u32>,
    /// `messages` of one session, default no limit.
    pub messages: Option<u32>,
    /// `sessions` of one worker at once, default 10,000.
    pub sessions: u32,
    /// `line-length` of text, octets, default 64 KiB: longer lines are refused.
    pub line_length: u32,
    /// `command-timeout`, default 5 min (RFC 5321 §4.5.3.2).
    pub command_timeout: Duration,
    /// `data-timeout` between two pieces of content, default 3 min.
    pub data_timeout: Duration,
    /// `session-time` in all, default 1 h.
    pub session_time: Duration,
    /// `errors` until the session is closed with 421, default 20.
    pub errors: u32,
    /// `greet-pause` before the greeting, default none: who talks in it is sent away.
    pub greet_pause: Duration,
    /// `tarpit`: by so much each reply waits longer than the one before, once half of `errors` are made;
    /// default 1 s.
    pub tarpit: Duration,
    /// `hops`: Received lines until a message counts as looping, default 100.
    pub hops: u32,
    /// `xclient`: who may say who its client is. Default: nobody.
    pub xclient: Vec<IpNet>,
    /// `xforward`: who may say where a message came from. Default: nobody.
    pub xforward: Vec<IpNet>,
}

impl SmtpLimits {
    /// How many workers: [`default_workers`] if the configuration does not say. Reading one does not ask: that takes
    /// the system a dozen calls, and each run of `sendmail` reads it.
    pub fn workers(&self) -> u16 {
        self.workers.unwrap_or_else(default_workers)
    }
}

/// One worker for two cores: its loop fills one, and what its messages cost behind it, in the threads that write
/// and in the programs that deliver, the other. More workers also mean more files in the spool for the same
/// messages: those of one worker share theirs.
pub fn default_workers() -> u16 {
    std::thread::available_parallelism().map_or(1, |n| (n.get() / 2).clamp(1, 64) as u16)
}

/// `[queue]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueLimits {
    /// `lifetime` until a deferred message is bounced, default 5 d.
    pub lifetime: Duration,
    /// `bounce-lifetime`, default 1 d: bounces are given up earlier.
    pub bounce_lifetime: Duration,
    /// `retry-first`, default 5 min.
    pub retry_first: Duration,
    /// `retry-most`, default 1 h 10 min.
    pub retry_most: Duration,
    /// `delay-warning`: when a sender hears that its message waits. None: after 4 h those who asked.
    pub delay_warning: Option<Duration>,
}

/// `[queue]`: what smtpd leaves free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserve {
    /// `min-free` octets, default 64 MiB.
    pub octets: u64,
    /// `min-inodes`, default 1000.
    pub inodes: u64,
}

/// `[delivery]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// `connections` to one destination at once, default 20.
    pub connections: u32,
    /// `jobs` of one agent at once, default 200.
    pub jobs: u32,
    /// `connect-timeout`, default 30 s.
    pub connect_timeout: Duration,
    /// `reply-timeout`, default 5 min.
    pub reply_timeout: Duration,
    /// `idle-timeout` of a connection kept for reuse, default 5 s.
    pub idle_timeout: Duration,
    /// `without`: extensions of servers that are not made use of; default none.
    pub without: Vec<Extension>,
}

impl Service {
    /// The word in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Smtp => "smtp",
            Self::Submission => "submission",
            Self::Submissions => "submissions",
            Self::Lmtp => "lmtp",
        }
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(path) => write!(f, "text:{}", path.display()),
        }
    }
}

impl MailboxTemplate {
    /// The directory before the first variable: the base under which every mailbox of it lies. None for
    /// LMTP.
    pub fn base(&self) -> Option<PathBuf> {
        let (Self::Maildir(path) | Self::Mbox(path)) = self else { return None };
        let constant = path.split('{').next().unwrap_or_default();
        Some(PathBuf::from(&constant[..constant.rfind('/').map_or(0, |at| at + 1)]))
    }
}
