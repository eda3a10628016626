//! What is looked up in a table, the most specific first, as access(5) has it.

use std::net::IpAddr;

use postern_address::{Mailbox, ReversePath};
use postern_config::TableKey;

use super::facts::Facts;

/// Most names above a name that are looked up.
const PARENTS_MAX: usize = 10;

/// The keys for a condition.
pub(crate) fn keys(key: TableKey, facts: &Facts<'_>) -> Vec<String> {
    let mut keys = Vec::new();
    match key {
        TableKey::Client => {
            facts.name().into_iter().for_each(|name| names(name, &mut keys));
            networks(facts.address, &mut keys);
        }
        TableKey::Helo => match facts.helo {
            literal if literal.starts_with('[') => keys.push(literal.to_ascii_lowercase()),
            name => names(name.trim_end_matches('.'), &mut keys),
        },
        TableKey::From => match facts.from {
            Some(ReversePath::Mailbox(mailbox)) => address(mailbox, &mut keys),
            Some(ReversePath::Null) => keys.push("<>".to_owned()),
            None => {}
        },
        TableKey::To => {
            if let [only] = facts.to {
                address(only, &mut keys);
            }
        }
    }
    keys
}

/// `mx.example.org`, `.example.org`, `example.org`, `.org`, `org`.
fn names(name: &str, keys: &mut Vec<String>) {
    let name = name.to_ascii_lowercase();
    if name.is_empty() {
        return;
    }
    let parents = name.match_indices('.').map(|(at, _)| &name[at..]).filter(|parent| parent.len() > 1);
    let parents: Vec<String> =
        parents.take(PARENTS_MAX).flat_map(|parent| [parent.to_owned(), parent[1..].to_owned()]).collect();
    keys.push(name);
    keys.extend(parents);
}

/// `192.0.2.7`, `192.0.2`, `192.0`, `192`; `2001:db8:0:1:…` likewise, both with and without zeros left out.
fn networks(address: IpAddr, keys: &mut Vec<String>) {
    let mut text = address.to_string();
    let separator = if address.is_ipv4() { '.' } else { ':' };
    loop {
        if !text.is_empty() && !keys.contains(&text) {
            keys.push(text.clone());
        }
        match text.rfind(separator) {
            Some(at) => text.truncate(at),
            None => return,
        }
        while text.ends_with(separator) {
            text.pop();
        }
    }
}

/// `name+extension@example.org`, `name@example.org`, the domain and those above it, `name@`.
fn address(mailbox: &Mailbox, keys: &mut Vec<String>) {
    let (local, host) = (mailbox.local_part().to_lowercase(), mailbox.host().to_ascii_lowercase());
    let plain = local.split_once('+').map(|(name, _)| name.to_owned()).filter(|name| !name.is_empty());
    keys.push(format!("{local}@{host}"));
    keys.extend(plain.iter().map(|name| format!("{name}@{host}")));
    match host.starts_with('[') {
        true => keys.push(host),
        false => names(&host, keys),
    }
    keys.push(format!("{local}@"));
    keys.extend(plain.iter().map(|name| format!("{name}@")));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(fill: impl FnOnce(&mut Vec<String>)) -> Vec<String> {
        let mut keys = Vec::new();
        fill(&mut keys);
        keys
    }

    #[test]
    fn the_most_specific_first() {
        assert_eq!(
            of(|keys| names("MX.example.org", keys)),
            ["mx.example.org", ".example.org", "example.org", ".org", "org"]
        );
        assert_eq!(of(|keys| names("localhost", keys)), ["localhost"]);
        assert_eq!(
            of(|keys| networks("192.0.2.7".parse().unwrap(), keys)),
            ["192.0.2.7", "192.0.2", "192.0", "192"]
        );
        let v6 = of(|keys| networks("2001:db8::1".parse().unwrap(), keys));
        assert_eq!(v6, ["2001:db8::1", "2001:db8", "2001"]);
        let mailbox = Mailbox::parse("U+ext@v.test").unwrap();
        assert_eq!(
            of(|keys| address(&mailbox, keys)),
            ["u+ext@v.test", "u@v.test", "v.test", ".test", "test", "u+ext@", "u@"]
        );
        let many = "a.".repeat(100) + "org";
        assert!(of(|keys| names(&many, keys)).len() <= 1 + 2 * PARENTS_MAX);
    }
}
