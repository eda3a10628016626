//! Whole configuration files: those that must work, and those that must be refused in clear words.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::time::Duration;

use postern_config::{
    BareNewline, Config, LmtpServer, LogTarget, MailboxTemplate, Nexthop, RoutePattern, Service, UserSet,
    Via, load, parse,
};
use postern_smtp::server::Extension;
use proptest::prelude::*;

const HOST: &str = r#"hostname = "mx.example.org"

[local]
domains = ["example.org"]
mailbox = "maildir:~/Maildir"            # or "mbox:/var/mail/{user}", or "lmtp:unix:/run/dovecot/lmtp"
aliases = "/etc/aliases"

[[listen]]
address = "[::]:25"
service = "smtp"                         # smtp | submission | submissions | lmtp

[[listen]]
address = "[::]:465"
service = "submissions"

[tls]
certificate = "/etc/postern/tls/fullchain.pem"
key = "/etc/postern/tls/privkey.pem"

[relay]
networks = ["127.0.0.1", "::1"]          # who may relay without a password: nobody else
domains = []                             # domains we are backup MX for

[[route]]                                # first match wins; without one, MX records decide
domain = "partner.example"
via = "smtp:[10.1.2.3]:2525"             # smtp: | lmtp: | local | virtual | discard | error:5.1.1 text
"#;

const DESK: &str = r#"hostname = "mx.test"
spool = "/tmp/desk/spool"                # default /var/spool/postern
runtime = "/tmp/desk/run"                # sockets and pids; default /run/postern
log = "json:/tmp/desk/log"               # syslog (default) | text:stderr | json:stderr | text:PATH | json:PATH

[[listen]]
address = "127.0.0.1:2525"
service = "smtp"

[virtual]
domains = ["v.test"]
mailbox = "maildir:/tmp/desk/mail/{domain}/{local}"
users = ["u@v.test", "v@v.test"]         # or a table: "text:PATH", "cdb:PATH", …; "*" takes every name

[relay]
networks = ["127.0.0.1"]

[[route]]
domain = "sink.test"
via = "smtp:[127.0.0.1]:2600"

[[route]]
domain = "lmtp.test"
via = "lmtp:unix:/tmp/desk/lmtp"
"#;

fn good(text: &str) -> Config {
    parse(text, "test.toml").unwrap_or_else(|e| panic!("{e}"))
}

/// Every problem as `line:column message | help`.
fn bad(text: &str) -> Vec<String> {
    let error = parse(text, "test.toml").expect_err("refused");
    let place = |p: &postern_config::Problem| {
        p.place.as_ref().map_or("-".to_owned(), |at| format!("{}:{}", at.line, at.column))
    };
    let help = |p: &postern_config::Problem| p.help.clone().unwrap_or_default();
    error.problems.iter().map(|p| format!("{} {} | {}", place(p), p.message, help(p))).collect()
}

#[test]
fn the_host_of_the_manual() {
    let config = good(HOST);
    assert_eq!(config.hostname.as_str(), "mx.example.org");
    let local = config.local.as_ref().unwrap();
    assert_eq!(local.mailbox, MailboxTemplate::Maildir("~/Maildir".into()));
    assert_eq!(local.aliases.as_deref(), Some("/etc/aliases".as_ref()));
    assert_eq!(config.listen.len(), 2);
    assert_eq!(config.listen[1].service, Service::Submissions);
    assert_eq!(config.listen[1].bare_newline, BareNewline::Reject);
    assert_eq!(config.relay.networks[1].to_string(), "::1/128");
    assert_eq!(config.log, LogTarget::Syslog);
    assert_eq!(config.routes[0].via, Via::Smtp(Nexthop::Address("10.1.2.3:2525".parse().unwrap())));
    assert_eq!(config.smtp.message_size, 52_428_800);
    assert!((1..=64).contains(&config.smtp.workers()));
    assert_eq!(config.queue.retry_most, Duration::from_secs(4200));
    assert_eq!(config.spool.as_os_str(), "/var/spool/postern");
}

#[test]
fn the_desk_of_the_manual() {
    let config = good(DESK);
    let virtual_ = config.virtual_.as_ref().unwrap();
    assert_eq!(virtual_.mailbox.base().as_deref(), Some("/tmp/desk/mail/".as_ref()));
    assert!(matches!(&virtual_.users, UserSet::Listed(users) if users.len() == 2));
    assert_eq!(config.log, LogTarget::JsonFile("/tmp/desk/log".into()));
    assert_eq!(config.routes[1].via, Via::Lmtp(LmtpServer::Unix("/tmp/desk/lmtp".into())));
    let words = config.explain();
    for part in ["127.0.0.1:2525: SMTP", "v.test: to u@v.test, v@v.test, into the Maildir", "(default)"] {
        assert!(words.contains(part), "{part} in\n{words}");
    }
}

#[test]
fn what_is_installed() {
    good(include_str!("../../../etc/postern.toml"));
}

#[test]
fn every_value() {
    let config = good(
        r#"
hostname = "mx.example.org"
[local]
domains = ["example.org"]
mailbox = "mbox:/var/mail/{user}"
[virtual]
domains = ["a.example", "b.example"]
mailbox = "lmtp:unix:/run/dovecot/lmtp"
users = "text:/etc/postern/users"
owner = "vmail"
[relay]
networks = ["10.0.0.0/8", "2001:db8::/32"]
domains = ["c.example"]
[[route]]
domain = ".inner.example"
via = "smtp:[relay.example]"
[[route]]
domain = "inner.example"
via = "smtp:relay.example"
[[route]]
domain = "d.example"
via = "lmtp:host.example:2003"
[[route]]
domain = "e.example"
via = "error:5.1.2 gone for good"
[[route]]
domain = "f.example"
via = "smtp:[::1]:2525"
[[route]]
domain = "g.example"
via = "local"
[[route]]
domain = "*"
via = "discard"
[dns]
servers = ["127.0.0.1", "[::1]:5353"]
[auth]
users = "/etc/postern/passwords"
[smtp]
workers = 3
message-size = 1_000_000
recipients = 100
sessions = 2000
line-length = "1 MiB"
command-timeout = "200 s"
data-timeout = "1 min 30 s"
session-time = "2h"
errors = 5
hops = 30
[queue]
lifetime = "2 h"
retry-most = "10 s"
[delivery]
connections = 2
jobs = 9
connect-timeout = "1500 ms"
reply-timeout = "1 min"
idle-timeout = "0 s"
without = ["chunking", "DSN"]
"#,
    );
    let domain = |text| postern_address::Domain::parse(text).unwrap();
    let vias: Vec<_> = config.routes.iter().map(|r| r.via.clone()).collect();
    assert_eq!(config.routes[0].domain, RoutePattern::Below(domain("inner.example")));
    assert_eq!(vias[0], Via::Smtp(Nexthop::Host { host: domain("relay.example"), port: 25 }));
    assert_eq!(vias[1], Via::Smtp(Nexthop::Mx(domain("relay.example"))));
    let tcp = Nexthop::Host { host: domain("host.example"), port: 2003 };
    assert_eq!(vias[2], Via::Lmtp(LmtpServer::Tcp(tcp)));
    assert_eq!(vias[3], Via::Error((5, 1, 2), "gone for good".into()));
    assert_eq!(vias[4], Via::Smtp(Nexthop::Address("[::1]:2525".parse().unwrap())));
    assert_eq!(config.routes[6].domain, RoutePattern::Any);
    assert_eq!(config.dns_servers, ["127.0.0.1:53".parse().unwrap(), "[::1]:5353".parse().unwrap()]);
    assert_eq!(config.smtp.message_size, 1_000_000);
    assert_eq!(config.smtp.session_time, Duration::from_secs(7200));
    assert_eq!(config.smtp.data_timeout, Duration::from_secs(90));
    // Defaults give way to a value that was set.
    assert_eq!(config.queue.bounce_lifetime, Duration::from_secs(7200));
    assert_eq!(config.queue.retry_first, Duration::from_secs(10));
    assert_eq!(config.delivery.idle_timeout, Duration::ZERO);
    assert_eq!(config.delivery.without, [Extension::Chunking, Extension::Dsn]);
    assert!(config.explain().contains("f.example: by SMTP to [::1]:2525"), "{}", config.explain());
    // Without anything but a name it is a null client, which is fine.
    assert!(good("hostname = \"null.example.org\"").listen.is_empty());
}

/// One mistake each: the text, and what must be said about it.
const MISTAKES: &[(&str, &str)] = &[
    ("hostnmae = \"a.b\"", "1:1 unknown key `hostnmae` | did you mean `hostname`?"),
    ("hostname = \"a.b\"\nworkers = 2", "2:1 unknown key `workers` | `workers` is a key of [smtp]"),
    (
        "hostname = \"a.b\"\n[smtp]\nspool = \"/x\"",
        "3:1 unknown key `spool` in [smtp] | `spool` stands at the top",
    ),
    ("hostname = \"a.b\"\n[smpt]\n", "2:2 unknown section `smpt` | did you mean `smtp`?"),
    (
        "hostname = \"a.b\"\n[queue]\nretry_first = \"1 s\"",
        "3:1 unknown key `retry_first` in [queue] | did you mean `retry-first`?",
    ),
    ("", "1:1 `hostname` is missing | write hostname = \"mx.example.org\""),
    ("hostname = \"localhost\"", "1:12 `localhost` is not a full domain name"),
    ("hostname = \"192.0.2.1\"", "1:12 `192.0.2.1` is an address"),
    ("hostname = 7", "1:12 an integer, where a text in quotes should stand"),
    ("hostname = mx.example.org", "texts, sizes and times stand in quotes: \"mx.example.org\""),
    ("hostname = \"a.b\"\nspool = \"spool\"", "2:9 `spool` is not an absolute path | begin it with `/`"),
    ("hostname = \"a.b\"\nlog = \"sislog\"", "2:7 `sislog` is no place for the log | did you mean `syslog`?"),
    ("hostname = \"a.b\"\nlog = \"/var/log/x\"", "did you mean `text:/var/log/x`?"),
    (
        "hostname = \"a.b\"\n[listen]\naddress = \"[::]:25\"",
        "2:2 there may be several of `listen` | write [[listen]]",
    ),
    ("hostname = \"a.b\"\n[[smtp]]\n", "2:3 `smtp` is a section | write [smtp]"),
    ("hostname = \"a.b\"\n[[listen]]\naddress = \"[::]:25\"", "2:1 `service` is missing in [[listen]]"),
    (
        "hostname = \"a.b\"\n[[listen]]\naddress = \"[::]:25\"\nservice = \"stmp\"",
        "4:11 unknown service `stmp` | did you mean `smtp`?",
    ),
    (
        "hostname = \"a.b\"\n[[listen]]\naddress = \"[::]:465\"\nservice = \"submissions\"",
        "4:11 `submissions` is TLS from the first byte",
    ),
    (
        "hostname = \"a.b\"\n[[listen]]\naddress = \"[::]:25\"\nservice = \"smtp\"\nbare-newline = \"normalize\"",
        "5:16 unknown value `normalize` | did you mean `normalise`?",
    ),
    (
        "hostname = \"a.b\"\n[[listen]]\naddress = \"[::]:25\"\nservice = \"smtp\"\nwithout = [\"chunkin\"]",
        "5:12 unknown extension `chunkin` | did you mean `CHUNKING`?",
    ),
    (
        "hostname = \"a.b\"\n[delivery]\nwithout = [\"PRDR\"]",
        "3:12 `PRDR` is nothing that deliveries make use of | they use PIPELINING, SIZE, 8BITMIME, CHUNKING, \
            BINARYMIME, SMTPUTF8, DSN, DELIVERBY, MT-PRIORITY",
    ),
    (
        "hostname = \"a.b\"\n[[listen]]\naddress = \"[::]:25\"\nservice = \"smtp\"\nproxy = \"10.0.0.1\"",
        "5:9 a list should stand here | write [\"10.0.0.1\"]",
    ),
    (
        "hostname = \"a.b\"\n[[listen]]\naddress = \"[::]:25\"\nservice = \"smtp\"\nproxy = [\"0.0.0.0/0\"]",
        "5:10 `0.0.0.0/0` lets the whole world claim to be anybody | name the hosts that are trusted",
    ),
    (
        "hostname = \"a.b\"\n[smtp]\nxclient = [\"10.0.0.1\", \"10.0.0.1\"]",
        "3:24 `10.0.0.1/32` stands here twice",
    ),
    (
        "hostname = \"a.b\"\n[smtp]\nxforward = [\"mx.example\"]",
        "3:13 `mx.example` is neither an address nor a network",
    ),
    (
        "hostname = \"a.b\"\n[[listen]]\naddress = \"10.0.0.1\"\nservice = \"smtp\"",
        "3:11 `10.0.0.1` is not an address and port | the port is missing: `10.0.0.1:25`",
    ),
    (
        "hostname = \"a.b\"\n[[listen]]\naddress = \"[::]:25\"\nservice = \"smtp\"\n[[listen]]\naddress = \"[::]:25\"\nservice = \"smtp\"",
        "6:11 a second listener on [::]:25",
    ),
    ("hostname = \"a.b\"\n[local]\n", "2:2 `domains` is missing in [local]"),
    ("hostname = \"a.b\"\n[local]\ndomains = []", "3:11 [local] without a domain"),
    ("hostname = \"a.b\"\n[local]\ndomains = \"x.y\"", "3:11 a list should stand here | write [\"x.y\"]"),
    ("hostname = \"a.b\"\n[local]\ndomains = [\"x.y\", \"x.y\"]", "3:19 `x.y` stands here twice"),
    ("hostname = \"a.b\"\n[local]\ndomains = [\"x..y\"]", "3:12 `x..y` is not a domain name"),
    (
        "hostname = \"a.b\"\n[local]\ndomains = [\"x.y\"]\nmailbox = \"~/Maildir\"",
        "4:11 `~/Maildir`: which kind of mailbox? | did you mean `maildir:~/Maildir`?",
    ),
    (
        "hostname = \"a.b\"\n[local]\ndomains = [\"x.y\"]\nmailbox = \"mbox:/var/mail/{usr}\"",
        "unknown variable `{usr}` | did you mean `{user}`?",
    ),
    (
        "hostname = \"a.b\"\n[local]\ndomains = [\"x.y\"]\nmailbox = \"mbox:/var/mail/all\"",
        "is one mailbox for every user",
    ),
    (
        "hostname = \"a.b\"\n[local]\ndomains = [\"x.y\"]\nmailbox = \"maildri:~/Maildir\"",
        "did you mean `maildir:`?",
    ),
    (
        "hostname = \"a.b\"\n[local]\ndomains = [\"x.y\"]\n[virtual]\ndomains = [\"x.y\"]\nmailbox = \"maildir:/m/{local}\"\nusers = \"*\"",
        "5:12 `x.y` is in [local] already",
    ),
    (
        "hostname = \"a.b\"\n[virtual]\ndomains = [\"x.y\"]\nmailbox = \"maildir:/m/{domain}\"\nusers = \"*\"",
        "put `{local}` in it",
    ),
    (
        "hostname = \"a.b\"\n[virtual]\ndomains = [\"x.y\"]\nmailbox = \"maildir:m/{local}\"\nusers = \"*\"",
        "`m/{local}` is not an absolute path",
    ),
    (
        "hostname = \"a.b\"\n[virtual]\ndomains = [\"x.y\"]\nmailbox = \"maildir:/m/../{local}\"\nusers = \"*\"",
        "`..` in",
    ),
    (
        "hostname = \"a.b\"\n[virtual]\ndomains = [\"x.y\"]\nmailbox = \"maildir:/m/{local}\"\nusers = [\"u@z.y\"]",
        "5:10 `z.y` is not one of the virtual domains",
    ),
    (
        "hostname = \"a.b\"\n[virtual]\ndomains = [\"x.y\"]\nmailbox = \"maildir:/m/{local}\"\nusers = \"cdb:/x\"",
        "tables of the type `cdb:` are not yet supported",
    ),
    (
        "hostname = \"a.b\"\n[virtual]\ndomains = [\"x.y\"]\nmailbox = \"maildir:/m/{local}\"\nusers = \"*\"\nowner = \"root\"",
        "may not belong to root",
    ),
    (
        "hostname = \"a.b\"\n[relay]\nnetworks = [\"10.0.0.1/8\"]",
        "3:13 `10.0.0.1/8` has bits behind its prefix | did you mean `10.0.0.0/8` or `10.0.0.1`?",
    ),
    ("hostname = \"a.b\"\n[relay]\nnetworks = [\"0.0.0.0/0\"]", "lets the whole world relay"),
    ("hostname = \"a.b\"\n[relay]\nnetworks = [\"localhost\"]", "is neither an address nor a network"),
    (
        "hostname = \"a.b\"\n[local]\ndomains = [\"x.y\"]\n[relay]\ndomains = [\"x.y\"]",
        "5:12 `x.y` is delivered here already",
    ),
    ("hostname = \"a.b\"\n[[route]]\ndomain = \"*.x.y\"\nvia = \"discard\"", "did you mean `.x.y`?"),
    (
        "hostname = \"a.b\"\n[[route]]\ndomain = \"x.y\"\nvia = \"smtp:x.y:25\"",
        "`smtp:[x.y]:25` goes to that host",
    ),
    ("hostname = \"a.b\"\n[[route]]\ndomain = \"x.y\"\nvia = \"stmp:x.y\"", "did you mean `smtp:`?"),
    (
        "hostname = \"a.b\"\n[[route]]\ndomain = \"x.y\"\nvia = \"error:2.0.0 fine\"",
        "`2.0.0` is not an enhanced status code of class 4 or 5",
    ),
    ("hostname = \"a.b\"\n[[route]]\ndomain = \"x.y\"\nvia = \"error:5.0.0\"", "the error has no text"),
    ("hostname = \"a.b\"\n[[route]]\ndomain = \"x.y\"\nvia = \"local\"", "there is no [local] to deliver by"),
    (
        "hostname = \"a.b\"\n[[route]]\ndomain = \"*\"\nvia = \"discard\"\n[[route]]\ndomain = \"x.y\"\nvia = \"discard\"",
        "6:10 this route is never reached: an earlier one is for `*`",
    ),
    ("hostname = \"a.b\"\n[tls]\nkey = \"/k\"", "2:2 `certificate` is missing in [tls]"),
    ("hostname = \"a.b\"\n[smtp]\nworkers = 0", "3:11 0 is out of range | 1 to 64"),
    ("hostname = \"a.b\"\n[smtp]\nworkers = -1", "-1 is out of range"),
    (
        "hostname = \"a.b\"\n[smtp]\nmessage-size = \"50 Mib\"",
        "3:16 unknown unit `Mib` of a size | did you mean `MiB`?",
    ),
    ("hostname = \"a.b\"\n[smtp]\nmessage-size = \"50\"", "a number and a unit"),
    ("hostname = \"a.b\"\n[smtp]\nmessage-size = \"99999999999 GiB\"", "is too large"),
    ("hostname = \"a.b\"\n[smtp]\ncommand-timeout = 300", "a time without a unit | did you mean \"300 s\"?"),
    (
        "hostname = \"a.b\"\n[smtp]\ncommand-timeout = \"5 m\"",
        "unknown unit `m` of time | did you mean `min`?",
    ),
    ("hostname = \"a.b\"\n[smtp]\ncommand-timeout = \"0 s\"", "`0 s` is too short"),
    (
        "hostname = \"a.b\"\n[queue]\nretry-first = \"2 h\"\nretry-most = \"1 h\"",
        "3:15 `retry-first` is longer than `retry-most`",
    ),
    ("hostname = \"a.b\"\nhostname = \"a.b\"", "2:1 duplicate key"),
    ("hostname = \"a.b", "1:"),
];

#[test]
fn mistakes_are_told_in_clear_words() {
    let mut wrong = Vec::new();
    for (text, expected) in MISTAKES {
        let told = bad(text);
        if told.len() != 1 || !told[0].contains(expected) {
            wrong.push(format!("{text}\nexpected: {expected}\ntold: {told:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn all_mistakes_at_once_in_the_order_of_the_file() {
    let told = bad(
        "hostname = \"x\"\nspoool = 1\n[smtp]\nworkers = 99\nhops = \"x\"\n[relay]\nnetworks = [\"a\", \"b\"]\n",
    );
    let lines: Vec<_> = told.iter().map(|t| t.split(' ').next().unwrap()).collect();
    assert_eq!(lines, ["1:12", "2:1", "4:11", "5:8", "7:13", "7:18"], "{told:#?}");
}

#[test]
fn an_error_looks_like_this() {
    let error = parse(
        "hostname = \"mx.example.org\"\n\n[[listen]]\n\taddress = \"[::]:25\"\n\tservice = \"stmp\"\n",
        "p.toml",
    );
    let expected = "error: unknown service `stmp`
 --> p.toml:5:12
  |
5 | \tservice = \"stmp\"
  | \t          ^^^^^^
  = help: did you mean `smtp`?

1 error in p.toml";
    assert_eq!(error.unwrap_err().to_string(), expected);
}

#[test]
fn files_that_cannot_be_read() {
    let missing = load("/nonexistent/postern.toml".as_ref()).unwrap_err();
    assert!(missing.to_string().contains("cannot read the configuration: No such file"), "{missing}");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("p.toml");
    std::fs::write(&path, b"hostname = \"a.b\"\n# \xff\n").unwrap();
    assert!(load(&path).unwrap_err().to_string().contains("line 2 is not UTF-8"));
    std::fs::write(&path, DESK).unwrap();
    assert_eq!(load(&path), Ok(good(DESK)));
}

proptest! {
    /// Whatever a slip of the hand makes of a file, it is taken or refused with a place in it.
    #[test]
    fn slips_never_panic(host in any::<bool>(), at in 0usize..1200, cut in 0usize..12, slip in "[ -~\\n\\tü]{0,6}") {
        let text: Vec<char> = if host { HOST } else { DESK }.chars().collect();
        let (head, tail) = text.split_at(at.min(text.len()));
        let text: String = head.iter().copied().chain(slip.chars()).chain(tail.iter().copied().skip(cut)).collect();
        match parse(&text, "x") {
            Ok(config) => prop_assert!(!config.explain().is_empty()),
            Err(error) => {
                prop_assert!(!error.problems.is_empty());
                prop_assert!(error.problems.iter().all(|p| p.place.is_some()));
                let _ = error.to_string();
            }
        }
    }
}
