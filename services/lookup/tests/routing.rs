//! What lookup answers, table by table.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;

use postern_address::Mailbox;
use postern_config::{LmtpServer, Nexthop, parse};
use postern_ipc::queue_agent::{Destination, MailboxKind};
use postern_ipc::queue_lookup::{Action, Delivery};
use postern_ipc::smtpd_lookup::{Incoming, Verdict};
use postern_lookup::accounts::{Account, Accounts};
use postern_lookup::aliases::{Aliases, Target, parse_include};
use postern_lookup::routing::{Source, Tables};
use postern_lookup::table::TextTable;
use proptest::prelude::*;

const CONFIG: &str = r#"
hostname = "mx.example.org"
[local]
domains = ["example.org", "moved.example.org"]
[virtual]
domains = ["v.test", "w.test"]
mailbox = "maildir:/srv/mail/{domain}/{local}"
users = ["U@v.test", "list@v.test", "x@w.test"]
[relay]
networks = ["10.0.0.0/8", "2001:db8::/32"]
domains = ["backup.test"]
[[route]]
domain = "moved.example.org"
via = "smtp:[10.9.9.9]:2525"
[[route]]
domain = "w.test"
via = "lmtp:unix:/run/lmtp"
[[route]]
domain = "closed.test"
via = "error:5.1.2 closed"
[[route]]
domain = "later.test"
via = "error:4.2.0 moving house"
[[route]]
domain = "hole.test"
via = "discard"
[[route]]
domain = "extra.test"
via = "local"
[[route]]
domain = ".sub.test"
via = "smtp:sub-relay.test"
[[route]]
domain = "*"
via = "smtp:[smart.test]"
"#;

const ALIASES: &str = "
postmaster: root
root: ann
staff: ann, bob, ann, carl@other.test
owner-staff: bob
deep: staff, \\bob
ann-and-backup: ann
ann: ann, backup@other.test
loop-a: loop-b
loop-b: loop-a, ann
only-loop: only-loop
program: |/bin/true
file: /var/mail/x
trash: /dev/null
list: :include:/lists/members
gone: :include:/lists/gone
mixed: bob, nobody-here, broken
broken: a@
to-virtual: u@v.test, U@V.test
rootly: \\root
weird: \"a b\"
";

struct People(HashMap<&'static str, u32>);

impl Accounts for People {
    fn find(&mut self, name: &str) -> Result<Option<Account>, String> {
        if name == "ldap-is-down" {
            return Err("no answer".to_owned());
        }
        Ok(self.0.get(name).map(|uid| Account { name: name.to_owned(), uid: *uid }))
    }
}

fn people() -> People {
    People(HashMap::from([("ann", 1000), ("bob", 1001), ("root", 0), ("ann+own", 1002)]))
}

fn tables(config: &str, aliases: &str) -> Tables {
    let config = parse(config, "test").unwrap_or_else(|e| panic!("{e}")).lookup();
    let mut tables = Tables::new(config, None);
    tables.aliases = Source::Ready(Aliases::parse(aliases).0);
    tables
}

fn mailbox(text: &str) -> Mailbox {
    Mailbox::parse(text).unwrap()
}

fn ask(tables: &Tables, client: &str, authenticated: bool, recipient: &str) -> Verdict {
    let client: IpAddr = client.parse().unwrap();
    let question = Incoming { client, authenticated, recipient: mailbox(recipient) };
    tables.smtpd_lookup(&question, &mut people())
}

fn include(path: &Path) -> Result<Vec<Target>, String> {
    match path.to_str() {
        Some("/lists/members") => parse_include("ann\nbob, dave@other.test\nlist\n").map_err(|e| e.message),
        _ => Err("no such file".to_owned()),
    }
}

fn resolve(tables: &Tables, recipient: &str) -> Result<Vec<Delivery>, String> {
    tables.queue_lookup(&mailbox(recipient), &mut people(), &mut include)
}

/// Each delivery as `address action`.
fn told(tables: &Tables, recipient: &str) -> Vec<String> {
    let deliveries = resolve(tables, recipient).unwrap_or_else(|e| panic!("{recipient}: {e}"));
    let shown = |delivery: &Delivery| {
        let action = match &delivery.action {
            Action::Deliver(Destination::Local { user, mailbox: MailboxKind::Maildir(path) }) => {
                format!("{user} {path}")
            }
            Action::Deliver(Destination::Virtual { mailbox: MailboxKind::Maildir(path) }) => path.clone(),
            Action::Deliver(Destination::Smtp(Nexthop::Mx(domain))) => format!("mx {domain}"),
            Action::Deliver(other) => format!("{other:?}"),
            Action::Discard => "discard".to_owned(),
            Action::Fail(reply) => reply.to_string(),
        };
        let owner = delivery.reverse_path.as_ref().map(|o| format!(" from {o}")).unwrap_or_default();
        format!("{} {action}{owner}", delivery.recipient)
    };
    deliveries.iter().map(shown).collect()
}

#[test]
fn who_may_send_to_whom() {
    let tables = tables(CONFIG, ALIASES);
    let (stranger, friend, mapped) = ("192.0.2.1", "10.1.2.3", "::ffff:10.1.2.3");
    let rejected = |v: &Verdict| matches!(v, Verdict::Rejected(_));
    for (recipient, client, verdict) in [
        ("ann@example.org", stranger, Verdict::Local),
        ("ANN@Example.ORG", stranger, Verdict::Local),
        ("ann+tag@example.org", stranger, Verdict::Local),
        ("ann+own@example.org", stranger, Verdict::Local),
        ("staff@example.org", stranger, Verdict::Local),
        ("Staff+x@example.org", stranger, Verdict::Local),
        ("nobody-here@example.org", friend, Verdict::UnknownUser),
        ("+x@example.org", stranger, Verdict::UnknownUser),
        ("\"../ann\"@example.org", stranger, Verdict::UnknownUser),
        ("root@example.org", stranger, Verdict::Local),
        ("postmaster@example.org", stranger, Verdict::Local),
        ("PostMaster@v.test", stranger, Verdict::Local),
        ("postmaster@mx.example.org", stranger, Verdict::Local),
        ("ann@mx.example.org", stranger, Verdict::RelayDenied),
        ("ann@extra.test", stranger, Verdict::Local),
        ("nobody-here@extra.test", stranger, Verdict::UnknownUser),
        ("anybody@moved.example.org", stranger, Verdict::Local),
        ("u@v.test", stranger, Verdict::Local),
        ("u+tag@v.test", stranger, Verdict::Local),
        ("ann@v.test", stranger, Verdict::UnknownUser),
        ("x@w.test", stranger, Verdict::Local),
        ("y@w.test", stranger, Verdict::UnknownUser),
        ("a@backup.test", stranger, Verdict::Relay),
        ("a@sub.backup.test", stranger, Verdict::RelayDenied),
        ("a@elsewhere.test", stranger, Verdict::RelayDenied),
        ("a@elsewhere.test", friend, Verdict::Relay),
        ("a@elsewhere.test", mapped, Verdict::Relay),
        ("a@elsewhere.test", "2001:db8::9", Verdict::Relay),
        // A route makes nothing ours.
        ("a@hole.test", stranger, Verdict::RelayDenied),
        ("a@closed.test", stranger, Verdict::RelayDenied),
        ("a@x.sub.test", stranger, Verdict::RelayDenied),
        ("a@hole.test", friend, Verdict::Relay),
        ("ann@[127.0.0.1]", stranger, Verdict::RelayDenied),
        ("ann@[127.0.0.1]", friend, Verdict::Relay),
        // Source routes by percent and bang are names like any other.
        ("a%elsewhere.test@example.org", stranger, Verdict::UnknownUser),
        ("elsewhere.test!a@example.org", stranger, Verdict::UnknownUser),
        ("\"a@elsewhere.test\"@example.org", stranger, Verdict::UnknownUser),
    ] {
        assert_eq!(ask(&tables, client, false, recipient), verdict, "{recipient} from {client}");
    }
    assert_eq!(ask(&tables, stranger, true, "a@elsewhere.test"), Verdict::Relay);
    assert!(rejected(&ask(&tables, friend, false, "a@closed.test")));
    assert!(matches!(ask(&tables, stranger, false, "broken@example.org"), Verdict::Unavailable(_)));
    assert!(matches!(ask(&tables, stranger, false, "ldap-is-down@example.org"), Verdict::Unavailable(_)));
    for (domain, reply) in [("closed.test", "550 5.1.2 closed"), ("later.test", "450 4.2.0 moving house")] {
        match ask(&tables, friend, false, &format!("a@{domain}")) {
            Verdict::Rejected(said) => assert_eq!(said.to_string(), reply),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn where_mail_goes() {
    let tables = tables(CONFIG, ALIASES);
    let cases: &[(&str, &[&str])] = &[
        ("bob@example.org", &["bob@example.org bob ~/Maildir"]),
        ("Bob+tag@example.org", &["Bob+tag@example.org bob ~/Maildir"]),
        ("nobody-here@example.org", &["nobody-here@example.org 550 5.1.1 user unknown"]),
        (
            "ann@example.org",
            &[
                "ann@example.org ann ~/Maildir",
                "backup@other.test Smtp(Host { host: Domain(smart.test), port: 25 })",
            ],
        ),
        ("bob@extra.test", &["bob@extra.test bob ~/Maildir"]),
        ("a@hole.test", &["a@hole.test discard"]),
        ("a@closed.test", &["a@closed.test 550 5.1.2 closed"]),
        ("a@later.test", &["a@later.test 450 4.2.0 moving house"]),
        ("a@x.sub.test", &["a@x.sub.test mx sub-relay.test"]),
        ("u+tag@v.test", &["u+tag@v.test v.test/u"]),
        ("U@v.test", &["U@v.test v.test/u"]),
        ("gone@v.test", &["gone@v.test 550 5.1.1 user unknown"]),
        ("trash@example.org", &["trash@example.org discard"]),
        (
            "program@example.org",
            &["program@example.org 554 5.2.4 an alias leads to a command, which is not supported"],
        ),
        (
            "file@example.org",
            &["file@example.org 554 5.2.4 an alias leads to a file, which is not supported"],
        ),
        ("to-virtual@example.org", &["u@v.test v.test/u"]),
        (
            "only-loop@example.org",
            &["only-loop@example.org 554 5.4.6 only-loop is an alias for itself and has no account"],
        ),
        (
            "rootly@example.org",
            &["root@example.org 550 5.2.1 nothing is delivered to root: an alias for root is needed"],
        ),
        ("weird@example.org", &["\"a b\"@example.org 550 5.1.1 user unknown"]),
        (
            "list@example.org",
            &[
                "ann@example.org ann ~/Maildir",
                "backup@other.test Smtp(Host { host: Domain(smart.test), port: 25 })",
                "bob@example.org bob ~/Maildir",
                "dave@other.test Smtp(Host { host: Domain(smart.test), port: 25 })",
            ],
        ),
        (
            "mixed@example.org",
            &[
                "bob@example.org bob ~/Maildir",
                "nobody-here@example.org 550 5.1.1 user unknown",
                "broken@example.org 451 4.3.5 alias broken is broken, line 18 of the aliases file",
            ],
        ),
    ];
    for (recipient, expected) in cases {
        assert_eq!(&told(&tables, recipient), expected, "{recipient}");
    }
    assert!(resolve(&tables, "gone@example.org").unwrap_err().contains("no such file"));
    assert!(resolve(&tables, "ldap-is-down@example.org").is_err());
    assert!(resolve(&tables, "broken@example.org").is_err());
}

#[test]
fn lists_have_an_owner_and_no_doubles() {
    let tables = tables(CONFIG, ALIASES);
    let staff = told(&tables, "staff@example.org");
    assert_eq!(staff[0], "ann@example.org ann ~/Maildir from owner-staff@example.org");
    let addresses: Vec<_> = staff.iter().map(|d| d.split(' ').next().unwrap()).collect();
    assert_eq!(addresses, ["ann@example.org", "backup@other.test", "bob@example.org", "carl@other.test"]);
    assert!(staff.iter().all(|d| d.ends_with("from owner-staff@example.org")), "{staff:?}");
    // Through another alias the owner is still the list's, and nobody gets it twice.
    assert_eq!(told(&tables, "deep@example.org"), staff);
    assert_eq!(told(&tables, "owner-staff@example.org"), ["bob@example.org bob ~/Maildir"]);
    let looping = told(&tables, "loop-a@example.org");
    assert!(looping.iter().any(|d| d.starts_with("ann@example.org ann")), "{looping:?}");
}

/// What an alias cannot do is told under the alias's own name, which may be a mailbox as well: neither may
/// hide the other.
#[test]
fn a_mailbox_beside_what_an_alias_cannot_do() {
    let aliases = "ann: |/usr/bin/vacation ann, \\ann\nbob: /dev/null, \\bob\nann+own: \\ann+own, |x\n";

    let tables = tables(CONFIG, aliases);
    for (recipient, expected) in [
        ("ann@example.org", "ann@example.org ann ~/Maildir"),
        ("bob@example.org", "bob@example.org bob ~/Maildir"),
        ("ann+own@example.org", "ann+own@example.org ann+own ~/Maildir"),
    ] {
        assert_eq!(told(&tables, recipient), [expected], "{recipient}");
    }
    // The members of a list that cannot be read just now must not be forgotten.
    let list = "ann: \\ann, :include:/lists/gone\n";
    let why = resolve(&self::tables(CONFIG, list), "ann@example.org").unwrap_err();
    assert!(why.contains("no such file"), "{why}");
}

#[test]
fn aliases_within_aliases_end() {
    let chain: String = (0..40).map(|n| format!("a{n}: a{}\n", n + 1)).collect();
    let tables = tables(CONFIG, &chain);
    assert_eq!(
        told(&tables, "a25@example.org"),
        ["a41@example.org 550 5.1.1 user unknown"].map(|s| s.replace("a41", "a40"))
    );
    assert!(told(&tables, "a0@example.org")[0].contains("554 5.4.6"));
}

#[test]
fn postmaster_finds_a_reader() {
    let resolved = |aliases: &str| resolve(&tables(CONFIG, aliases), "postmaster@v.test");
    let users = |deliveries: Vec<Delivery>| match &deliveries[0].action {
        Action::Deliver(Destination::Local { user, .. }) => user.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(users(resolved("postmaster: bob").unwrap()), "bob");
    assert_eq!(users(resolved("root: bob").unwrap()), "bob");
    assert!(resolved("").unwrap_err().contains("postmaster: NAME"));
    assert_eq!(tables(CONFIG, "").warnings(&mut people()).len(), 1);
    assert_eq!(tables(CONFIG, "root: bob").warnings(&mut people()).len(), 0);
    // Both by each other.
    assert!(
        resolve(&tables(CONFIG, "postmaster: root\nroot: postmaster"), "postmaster@example.org").is_err()
    );
    // Without [local] it has a mailbox of its own.
    let alone = "hostname = \"mx.v.test\"\n[virtual]\ndomains = [\"v.test\"]\nmailbox = \"maildir:/m/{local}\"\nusers = []";
    assert_eq!(told(&tables(alone, ""), "postmaster@v.test"), ["postmaster@v.test postmaster"]);
    assert_eq!(told(&tables(alone, ""), "postmaster@mx.v.test"), ["postmaster@mx.v.test postmaster"]);
}

#[test]
fn without_root_the_caller_alone_receives() {
    let mut tables = tables(CONFIG, "");
    tables.caller = Some(Account { name: "bob".into(), uid: 1001 });
    assert_eq!(ask(&tables, "192.0.2.1", false, "bob@example.org"), Verdict::Local);
    assert_eq!(ask(&tables, "192.0.2.1", false, "ann@example.org"), Verdict::UnknownUser);
    assert!(told(&tables, "ann@example.org")[0].contains("550 5.2.1 without root"));
    assert_eq!(told(&tables, "postmaster@example.org"), ["postmaster@example.org bob ~/Maildir"]);
}

#[test]
fn mailboxes_by_template() {
    let config = |mailbox: &str, users: &str| {
        format!(
            "hostname = \"mx.v.test\"\n[virtual]\ndomains = [\"v.test\"]\nmailbox = \"{mailbox}\"\nusers = {users}"
        )
    };
    let all = tables(&config("maildir:/srv/{domain}/x-{local}/Maildir", "\"*\""), "");
    for (recipient, path) in [
        ("Jo.E@v.test", "v.test/x-jo.e/Maildir"),
        ("jo+e@v.test", "v.test/x-jo/Maildir"),
        ("\"{domain}\"@v.test", "v.test/x-{domain}/Maildir"),
        ("дмитрий@v.test", "v.test/x-дмитрий/Maildir"),
    ] {
        assert_eq!(told(&all, recipient), [format!("{} {path}", mailbox(recipient))]);
    }
    for recipient in ["\"a/b\"@v.test", "\"..\"@v.test", "\".x\"@v.test", "\"../../etc\"@v.test"] {
        assert_eq!(ask(&all, "192.0.2.1", false, recipient), Verdict::UnknownUser, "{recipient}");
        assert!(told(&all, recipient)[0].ends_with("550 5.1.1 user unknown"), "{recipient}");
    }
    let lmtp = tables(&config("lmtp:unix:/run/lmtp", "\"*\""), "");
    let server = LmtpServer::Unix("/run/lmtp".into());
    let deliveries = resolve(&lmtp, "a+b@v.test").unwrap();
    assert_eq!(deliveries[0].action, Action::Deliver(Destination::Lmtp(server)));
    assert_eq!(deliveries[0].recipient, mailbox("a+b@v.test"));
    let mut table = tables(&config("mbox:/srv/mbox-{local}", "\"text:/x\""), "");
    assert!(matches!(ask(&table, "::1", false, "u@v.test"), Verdict::Unavailable(_)));
    table.users = Source::Ready(TextTable::parse("u@v.test x\n").0);
    assert_eq!(ask(&table, "::1", false, "U+a@v.test"), Verdict::Local);
    assert_eq!(ask(&table, "::1", false, "v@v.test"), Verdict::UnknownUser);
    let mbox = MailboxKind::Mbox("mbox-u".into());
    assert_eq!(
        resolve(&table, "u@v.test").unwrap()[0].action,
        Action::Deliver(Destination::Virtual { mailbox: mbox })
    );
}

#[test]
fn a_table_that_cannot_be_read_makes_no_unknown_users() {
    let mut tables = tables(CONFIG, "");
    tables.aliases = Source::Unavailable("/etc/aliases: permission denied".into());
    assert!(matches!(ask(&tables, "::1", false, "nobody-here@example.org"), Verdict::Unavailable(_)));
    assert!(resolve(&tables, "bob@example.org").is_err());
    assert_eq!(ask(&tables, "::1", false, "u@v.test"), Verdict::Local, "what needs no alias goes on");
}

fn alias_name() -> impl Strategy<Value = String> {
    prop_oneof![
        (0u8..8).prop_map(|n| format!("n{n}")),
        Just("ann".to_owned()),
        Just("root".to_owned()),
        Just("postmaster".to_owned())
    ]
}

fn alias_value() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => alias_name(),
        1 => alias_name().prop_map(|n| format!("\\{n}")),
        1 => alias_name().prop_map(|n| format!("{n}@example.org")),
        1 => alias_name().prop_map(|n| format!("{n}@v.test")),
        1 => Just(":include:/lists/members".to_owned()),
        1 => Just("|x".to_owned()),
        1 => Just("out@other.test".to_owned()),
    ]
}

proptest! {
    #[test]
    fn every_tangle_of_aliases_ends(
        lines in proptest::collection::vec((alias_name(), proptest::collection::vec(alias_value(), 1..6)), 0..12),
        recipient in alias_name(),
    ) {
        let text: String = lines.iter().map(|(name, values)| format!("{name}: {}\n", values.join(", "))).collect();
        let tables = tables(CONFIG, &text);
        if let Ok(deliveries) = resolve(&tables, &format!("{recipient}@example.org")) {
            prop_assert!(!deliveries.is_empty());
            let mut addresses: Vec<_> = deliveries.iter().map(|d| d.recipient.as_str().to_lowercase()).collect();
            let count = addresses.len();
            addresses.sort();
            addresses.dedup();
            prop_assert_eq!(addresses.len(), count, "one delivery an address");
        }
    }

    #[test]
    fn no_recipient_panics_or_leaves_the_base(local in "\\PC{1,20}", domain in "v\\.test|example\\.org|[a-z.]{1,9}") {
        let all = tables("hostname = \"mx.v.test\"\n[virtual]\ndomains = [\"v.test\"]\nmailbox = \"maildir:/m/{domain}/{local}\"\nusers = \"*\"", "");
        let Ok(recipient) = Mailbox::parse(&format!("{local}@{domain}")).or_else(|_| Mailbox::parse(&format!("\"{local}\"@{domain}"))) else {
            return Ok(());
        };
        for tables in [&all, &tables(CONFIG, ALIASES)] {
            let _ = ask(tables, "192.0.2.1", false, recipient.as_str());
            for delivery in tables.queue_lookup(&recipient, &mut people(), &mut include).unwrap_or_default() {
                if let Action::Deliver(Destination::Virtual { mailbox: MailboxKind::Maildir(path) }) = delivery.action {
                    let parts: Vec<_> = path.split('/').collect();
                    prop_assert!(parts.len() == 2 && parts.iter().all(|p| !p.is_empty() && !p.starts_with('.')), "{}", path);
                }
            }
        }
    }
}
