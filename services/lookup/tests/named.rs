//! What VRFY, EXPN and ETRN are answered, from configurations and alias files as they are written.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use postern_address::{Domain, Mailbox};
use postern_config::parse;
use postern_ipc::smtpd_lookup::{Known, Named, Turned};
use postern_lookup::accounts::{Account, Accounts};
use postern_lookup::aliases::{Aliases, Target};
use postern_lookup::routing::{Source, Tables};

const HOST: &str = r#"
hostname = "mx.test"
[local]
domains = ["here.test", "also.test"]
[virtual]
domains = ["v.test", "w.test"]
mailbox = "maildir:/mail/{domain}/{local}"
users = ["u@v.test", "both@v.test", "both@w.test"]
[relay]
networks = ["127.0.0.1"]
domains = ["backup.test", "b.partner.test"]
[[route]]
domain = "gone.test"
via = "error:5.1.2 moved"
[[route]]
domain = "partner.test"
via = "smtp:[192.0.2.1]"
[[route]]
domain = ".branch.test"
via = "smtp:[192.0.2.2]"
[[route]]
domain = "*"
via = "smtp:[192.0.2.3]"
"#;

const ALIASES: &str = "postmaster: ann\nlist: ann, bob, carol@other.test\naway: dave@other.test\n\
                       dead: \"|/bin/false\"\nhuge: :include:/huge\nown: ann\n";

struct People;

impl Accounts for People {
    fn find(&mut self, name: &str) -> Result<Option<Account>, String> {
        match name {
            "ann" => Ok(Some(Account { name: name.into(), uid: 1000 })),
            "bob" => Ok(Some(Account { name: name.into(), uid: 1001 })),
            "slow" => Err("the directory does not answer".into()),
            _ => Ok(None),
        }
    }
}

fn tables() -> Tables {
    let config = parse(HOST, "test").unwrap_or_else(|e| panic!("{e}")).lookup();
    let mut tables = Tables::new(config, None);
    tables.aliases = Source::Ready(Aliases::parse(ALIASES).0);
    tables
}

fn include(_: &Path) -> Result<Vec<Target>, String> {
    let lines: String = (0..2000).map(|n| format!("member{n}@other.test\n")).collect();
    postern_lookup::aliases::parse_include(&lines).map_err(|e| e.message)
}

fn named(client: &str, name: &str) -> Named {
    Named { client: client.parse().unwrap(), authenticated: false, name: name.into() }
}

fn vrfy(name: &str) -> Known {
    tables().vrfy(&named("127.0.0.1", name), &mut People, &mut include)
}

fn expn(name: &str) -> Known {
    tables().expn(&named("127.0.0.1", name), &mut People, &mut include)
}

fn boxes(names: &[&str]) -> Vec<Mailbox> {
    names.iter().map(|name| Mailbox::parse(name).unwrap()).collect()
}

fn mailbox(name: &str) -> Mailbox {
    Mailbox::parse(name).unwrap()
}

#[test]
fn names_are_told_to_those_who_may_relay() {
    assert_eq!(vrfy("ann"), Known::Mailbox(mailbox("ann@here.test")));
    assert_eq!(vrfy("<ann@also.test>"), Known::Mailbox(mailbox("ann@also.test")));
    assert_eq!(vrfy("u"), Known::Mailbox(mailbox("u@v.test")));
    assert_eq!(
        vrfy("Postmaster"),
        Known::Ambiguous(boxes(&["Postmaster@here.test", "Postmaster@v.test", "Postmaster@w.test"]))
    );
    assert_eq!(vrfy("both"), Known::Ambiguous(boxes(&["both@v.test", "both@w.test"])));
    assert_eq!(vrfy("list@here.test"), Known::Mailbox(mailbox("list@here.test")));
    assert_eq!(vrfy("own"), Known::Mailbox(mailbox("own@here.test")));
    assert_eq!(vrfy("away"), Known::Forwards(mailbox("dave@other.test")));
    assert_eq!(vrfy("someone@other.test"), Known::Elsewhere);
    for name in ["nobody", "a b", "<ann", "nobody@v.test", "dead@here.test"] {
        assert_eq!(vrfy(name), Known::Unknown, "{name}");
    }
    for name in ["@here.test", "a@b@c", "<>"] {
        assert_eq!(vrfy(name), Known::Malformed, "{name}");
    }
    assert!(matches!(vrfy("slow@here.test"), Known::Unavailable(_)));
    assert!(matches!(vrfy("slow"), Known::Unavailable(_)));
    // Everybody else hears the same of every name.
    for name in ["ann", "nobody", "list", "a b", "x@other.test", "x@backup.test", "slow"] {
        let stranger = named("192.0.2.9", name);
        assert_eq!(tables().vrfy(&stranger, &mut People, &mut include), Known::Untold, "{name}");
        assert_eq!(tables().expn(&stranger, &mut People, &mut include), Known::Untold, "{name}");
        let user = Named { authenticated: true, ..stranger };
        assert_ne!(tables().vrfy(&user, &mut People, &mut include), Known::Untold, "{name}");
    }
}

#[test]
fn lists_are_expanded() {
    let members = boxes(&["ann@here.test", "bob@here.test", "carol@other.test"]);
    assert_eq!(expn("list"), Known::Members(members));
    assert_eq!(expn("ann"), Known::Members(boxes(&["ann@here.test"])));
    assert_eq!(expn("huge"), Known::TooMany(2000));
    assert_eq!(expn("nobody"), Known::Unknown);
    assert_eq!(expn("dead"), Known::Unknown);
    assert_eq!(expn("x@other.test"), Known::Elsewhere);
}

#[test]
fn mail_is_queued_for_domains_with_a_way_of_their_own() {
    let domains = |names: &[&str]| Ok(names.iter().map(|name| Domain::parse(name).unwrap()).collect());
    for name in ["backup.test", "partner.test", "a.branch.test"] {
        assert_eq!(tables().turn(name), domains(&[name]));
    }
    assert_eq!(tables().turn("PARTNER.test"), domains(&["partner.test"]));
    assert_eq!(tables().turn("@partner.test"), domains(&["b.partner.test", "partner.test"]));
    assert_eq!(tables().turn("@test"), domains(&["b.partner.test", "backup.test", "partner.test"]));
    // Delivered here, sent nowhere, or like everybody's mail.
    for name in ["here.test", "v.test", "gone.test", "branch.test", "other.test", "@other.test", "@gone.test"]
    {
        assert_eq!(tables().turn(name), Err(Turned::NotOurs), "{name}");
    }
    for name in ["", "@", "a b", "a..b", "u@partner.test", "[192.0.2.1]"] {
        assert_eq!(tables().turn(name), Err(Turned::Malformed), "{name}");
    }
    assert_eq!(tables().turn("#uucp"), Err(Turned::NoSuchQueue));
}
