//! `[[rule]]`: what is read, and what is said about what cannot be meant.

#![allow(clippy::unwrap_used)] // helpers of tests

use postern_config::{Config, PolicyServer, RuleAction, Stage, Test, parse};

const HEAD: &str =
    "hostname = \"a.b\"\n[[listen]]\naddress = \"127.0.0.1:25\"\nservice = \"smtp\"\n[[rule]]\n";

fn good(rules: &str) -> Config {
    parse(&format!("{HEAD}{rules}"), "t").unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn everything_at_once() {
    let config = good(
        r#"stage = "rcpt"
ask = "inet:127.0.0.1:10023"
table = "text:/etc/t"
key = "from"
network = ["192.0.2.0/24", "::/0"]
service = ["smtp"]
listener = ["127.0.0.1:25"]
authenticated = false
helo = ["localhost", ".example.org", "*"]
from = ["<>", "a@x.y", "@x.y", ".x.y", "a@", "*"]
to = ["a@x.y"]
name = [".x.y"]
name-verified = true
score-at-least = 5
not = { helo = ["mx.x.y"], network = ["192.0.2.1"] }
action = "reject 550 5.7.1 no"
[[rule]]
stage = "data"
header = ["X-Spam-Flag: YES*", "Precedence"]
action = "tag X-Seen: yes"
[[rule]]
stage = "client"
ask = "unix:/run/p/s"
"#,
    );
    let [first, second, third] = &config.rules[..] else { panic!("three rules") };
    assert_eq!((first.line, first.stage), (5, Stage::Rcpt));
    // What costs a question comes last, the dearest behind all.
    let keys: Vec<_> = first.conditions.iter().map(|c| c.test.key()).collect();
    assert_eq!(keys[keys.len() - 5..], ["name", "name-verified", "score-at-least", "table", "ask"]);
    assert_eq!(first.conditions.iter().filter(|c| c.negated).count(), 2);
    assert_eq!(second.action, Some(RuleAction::Tag("X-Seen: yes".into())));
    assert_eq!(third.action, None);
    assert!(matches!(&third.conditions[0].test, Test::Ask(PolicyServer::Unix(path)) if path == "/run/p/s"));
    assert_eq!(config.lookup().tables.len(), 1);
    assert_eq!(config.verify().servers.len(), 2);
    let words = config.explain();
    assert!(words.contains("client: rule 3 of line 26: if ask unix:/run/p/s: do as it says"), "{words}");
}

#[test]
fn actions() {
    for (written, read) in [
        ("accept", "accept"),
        ("reject", "reject 554 5.7.1 Access denied"),
        ("reject go away", "reject 554 5.7.1 go away"),
        ("reject 550 go away", "reject 550 5.7.1 go away"),
        ("reject 5.1.2 go away", "reject 554 5.1.2 go away"),
        ("reject 521 5.1.10 go  away", "reject 521 5.1.10 go  away"),
        ("defer", "defer 450 4.7.1 Try again later"),
        ("defer 421 4.2.1 later", "defer 421 4.2.1 later"),
        ("hold", "hold"),
        ("discard", "discard"),
        ("redirect  a@X.y", "redirect a@x.y"),
        ("tag X-A:  b ", "tag X-A: b"),
    ] {
        let config = good(&format!("stage = \"rcpt\"\naction = \"{written}\""));
        assert_eq!(config.rules[0].action.as_ref().unwrap().to_string(), read, "{written}");
    }
}

#[test]
fn mistakes_are_told_with_what_was_meant() {
    for (rules, wanted) in [
        ("action = \"accept\"", "5:1 `stage` is missing in [[rule]]"),
        ("stage = \"sender\"\naction = \"accept\"", "6:9 unknown stage `sender` | did you mean `from`?"),
        ("stage = \"dta\"\naction = \"accept\"", "did you mean `data`?"),
        ("stage = \"rcpt\"", "`action` is missing in [[rule]]"),
        ("stage = \"rcpt\"\ntable = \"text:/t\"\nask = \"unix:/s\"", "who decides, the table or the policy"),
        ("stage = \"rcpt\"\naction = \"permit\"", "7:10 unknown action `permit` | did you mean `accept`?"),
        ("stage = \"rcpt\"\naction = \"REJECT\"", "did you mean `reject`?"),
        ("stage = \"rcpt\"\naction = \"rejetc\"", "did you mean `reject`?"),
        ("stage = \"rcpt\"\naction = \"reject 250 fine\"", "`250` is not a reply code of class 5"),
        ("stage = \"rcpt\"\naction = \"reject 450 no\"", "`450` is not a reply code of class 5"),
        ("stage = \"rcpt\"\naction = \"defer 451 5.1.1 no\"", "5.1.1 is not of class 4"),
        ("stage = \"rcpt\"\naction = \"reject 550 5.1 .1 no\"", ""),
        ("stage = \"rcpt\"\naction = \"reject nö\"", "other characters than those of ASCII"),
        ("stage = \"rcpt\"\naction = \"redirect\"", "redirect, where to?"),
        ("stage = \"rcpt\"\naction = \"redirect x\"", "`x` is not a mail address"),
        ("stage = \"rcpt\"\naction = \"tag nothing\"", "a header line with a colon"),
        ("stage = \"rcpt\"\naction = \"tag X Y: z\"", "not the name of a header field"),
        ("stage = \"rcpt\"\naction = \"hold it\"", "`hold` stands alone"),
        (
            "stage = \"helo\"\nfrom = [\"@x.y\"]\naction = \"reject\"",
            "7:8 `from` is not known at the stage `helo` | write stage = \"from\", or a later one",
        ),
        (
            "stage = \"rcpt\"\nheader = [\"X\"]\naction = \"reject\"",
            "`header` is not known at the stage `rcpt`",
        ),
        ("stage = \"client\"\nauthenticated = true\naction = \"reject\"", "`authenticated` is not known"),
        (
            "stage = \"client\"\ntable = \"text:/t\"\nkey = \"to\"",
            "`table` is not known at the stage `client`",
        ),
        ("stage = \"rcpt\"\nkey = \"to\"\naction = \"hold\"", "`key` without a `table`"),
        ("stage = \"rcpt\"\ntable = \"text:/t\"\nkey = \"recipient\"", "is nothing that can be looked up"),
        ("stage = \"rcpt\"\ntable = \"cdb:/t\"", "tables of the type `cdb:`"),
        ("stage = \"rcpt\"\nto = [\"x.y\"]\naction = \"hold\"", "`x.y` is a domain | did you mean `@x.y`"),
        ("stage = \"rcpt\"\nto = [\"*@x.y\"]\naction = \"hold\"", "did you mean `@x.y`?"),
        ("stage = \"rcpt\"\nto = []\naction = \"hold\"", "`to` without a value never holds"),
        ("stage = \"rcpt\"\nto = \"a@x.y\"\naction = \"hold\"", "write [\"a@x.y\"]"),
        ("stage = \"rcpt\"\nfrom = [\"\"]\naction = \"hold\"", "the null reverse-path is written `<>`"),
        ("stage = \"rcpt\"\nname = [\"*.x.y\"]\naction = \"hold\"", "did you mean `.x.y`?"),
        ("stage = \"rcpt\"\nnetwork = [\"10.0.0.1/8\"]\naction = \"hold\"", "has bits behind its prefix"),
        (
            "stage = \"rcpt\"\nlistener = [\"127.0.0.1:26\"]\naction = \"hold\"",
            "no [[listen]] has the address",
        ),
        ("stage = \"rcpt\"\nservice = [\"stmp\"]\naction = \"hold\"", "unknown service `stmp`"),
        (
            "stage = \"rcpt\"\nauthenticated = \"yes\"\naction = \"hold\"",
            "where true or false, without quotes,",
        ),
        ("stage = \"rcpt\"\nask = \"inet:localhost:10023\"", "did you mean `inet:127.0.0.1:10023`?"),
        ("stage = \"rcpt\"\nask = \"inet:policy.x.y:10023\"", "an address is needed, not a name"),
        ("stage = \"rcpt\"\nask = \"private/policy\"", "is no policy server | as `inet:127.0.0.1:10023`"),
        ("stage = \"rcpt\"\nask = \"unix:private/policy\"", "is not an absolute path"),
        ("stage = \"rcpt\"\nnot = { stage = \"rcpt\" }\naction = \"hold\"", "`stage` is no condition"),
        ("stage = \"rcpt\"\nnot = { hello = [\"x\"] }\naction = \"hold\"", "unknown key `hello` in [[rule]]"),
        ("stage = \"rcpt\"\nnot = { }\naction = \"hold\"", "`not` without a condition"),
        ("stage = \"rcpt\"\nscore-at-last = 5\naction = \"hold\"", "did you mean `score-at-least`?"),
        (
            "stage = \"rcpt\"\naction = \"accept\"\n[[rule]]\nstage = \"rcpt\"\naction = \"hold\"",
            "8:1 this rule is never reached: the one of line 5",
        ),
    ] {
        if wanted.is_empty() {
            let _ = parse(&format!("{HEAD}{rules}"), "t");
            continue;
        }
        let error = parse(&format!("{HEAD}{rules}"), "t").expect_err(rules);
        let said: Vec<String> = error
            .problems
            .iter()
            .map(|p| {
                let place = p.place.as_ref().unwrap();
                format!(
                    "{}:{} {} | {}",
                    place.line,
                    place.column,
                    p.message,
                    p.help.clone().unwrap_or_default()
                )
            })
            .collect();
        assert!(said.len() == 1 && said[0].contains(wanted), "{rules}\nsays {said:#?}\nnot {wanted}");
    }
}
