//! `[limits]`, `[[list]]`, `[greylist]`: what is read, and what is refused in which words.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::time::Duration;

use postern_config::{Config, Limit, Limits, parse};

const HEAD: &str = "hostname = \"mx.test\"\n[relay]\nnetworks = [\"192.0.2.0/24\"]\n";

fn good(text: &str) -> Config {
    parse(&format!("{HEAD}{text}"), "f.toml").unwrap_or_else(|e| panic!("{e}"))
}

fn mistakes(text: &str) -> String {
    parse(&format!("{HEAD}{text}"), "f.toml").unwrap_err().to_string()
}

#[test]
fn without_a_word_it_is_as_in_postfix() {
    let config = good("");
    assert_eq!(config.limits.client, Limit { sessions: 50, ..Limit::OFF });
    assert_eq!((config.limits.user, config.limits.listener), (Limit::OFF, Limit::OFF));
    let exempt = |client: &str| config.limits.is_exempt(client.parse().unwrap());
    assert!(exempt("127.0.0.1") && exempt("127.9.9.9") && exempt("::1") && exempt("192.0.2.77"));
    assert!(!exempt("192.0.3.1") && !exempt("2001:db8::1"));
    assert!(config.lists.is_empty() && !config.greylist.enabled && config.limits.any());
    assert_eq!(config.smtp.greet_pause, Duration::ZERO);
}

#[test]
fn scopes_lists_and_greylisting() {
    let config = good(
        "[limits]\nsessions = 0\nmessages = { client = 10, user = 20, listener = 30 }\nerrors = 5\nexempt = []\n\
         list-score = 3\n[[list]]\nname = \"zen.example\"\nweight = 2\n\
         [[list]]\nname = \"zen.example\"\nreplies = [\"127.0.0.4/30\"]\n\
         [[list]]\nname = \"good.example\"\nkind = \"allow\"\nweight = 5\n\
         [greylist]\nenabled = true\ndelay = \"1 s\"\nauto-allow = 0\n",
    );
    let Limits { client, user, listener, exempt, list_score } = config.limits.clone();
    assert_eq!(client, Limit { messages: 10, errors: 5, ..Limit::OFF });
    assert_eq!((user.messages, listener.messages, exempt.len(), list_score), (20, 30, 0, 3));
    let weights: Vec<i32> = config.lists.iter().map(|list| list.weight).collect();
    assert_eq!(weights, [2, 1, -5]);
    let counts = |n: usize, reply: &str| config.lists[n].counts(reply.parse().unwrap());
    assert!(counts(0, "127.0.0.2") && counts(0, "127.0.1.255"));
    assert!(!counts(0, "127.255.255.254") && !counts(0, "192.0.2.1") && !counts(0, "::1"));
    assert!(counts(1, "127.0.0.7") && !counts(1, "127.0.0.2"));
    assert_eq!(config.greylist.delay, Duration::from_secs(1));
    let words = config.explain();
    for part in ["10 a client, 20 a user, 30 a listener", "good.example counts -5", "greylisted for 1 s"] {
        assert!(words.contains(part), "{part}: {words}");
    }
}

#[test]
fn mistakes_in_clear_words() {
    for (text, parts) in [
        ("[limits]\nsessions = { host = 3 }\n", ["no limit for `host`", "`client`, `user` or `listener`"]),
        ("[limits]\nmessages = 70000\n", ["70000 is out of range", "0 (no limit) to 60000"]),
        ("[limits]\nmessages = \"10\"\n", ["a string, where a number", "f.toml:5"]),
        ("[limits]\nmesages = 1\n", ["unknown key `mesages`", "did you mean `messages`?"]),
        ("[[list]]\nkind = \"deny\"\n", ["`name` is missing", "name = \"zen.example\""]),
        (
            "[[list]]\nname = \"a.example\"\nkind = \"black\"\n",
            ["no kind of list: `black`", "`deny` or `allow`"],
        ),
        (
            "[[list]]\nname = \"a.example\"\n[[list]]\nname = \"a.example\"\n",
            ["`a.example` is there twice", "different `replies`"],
        ),
        ("[greylist]\nenabled = 1\n", ["an integer, where true or false", "f.toml:5"]),
        ("[greylist]\ndelay = \"3 d\"\n", ["`delay` is not shorter than `window`", "after `delay`"]),
    ] {
        let said = mistakes(text);
        for part in parts {
            assert!(said.contains(part), "{text}{said}\nlacks {part}");
        }
    }
}
