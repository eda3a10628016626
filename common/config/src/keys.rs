//! Every key of the configuration file, in one table: what the parser knows, and what
//! `docs/configuration.md` must explain.

/// One key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The section as it is written (`[smtp]`, `[[listen]]`); empty for the top of the file.
    pub section: &'static str,
    /// Its name.
    pub name: &'static str,
    /// The default as it could be written; `required` when there is none, `none` when unset is a value.
    pub default: &'static str,
}

const fn key(section: &'static str, name: &'static str, default: &'static str) -> Key {
    Key { section, name, default }
}

/// All keys, section by section.
pub const KEYS: &[Key] = &[
    key("", "hostname", "required"),
    key("", "spool", "\"/var/spool/postern\""),
    key("", "runtime", "\"/run/postern\""),
    key("", "log", "\"syslog\""),
    key("[[listen]]", "address", "required"),
    key("[[listen]]", "service", "required"),
    key("[[listen]]", "bare-newline", "\"reject\""),
    key("[[listen]]", "proxy", "[]"),
    key("[[listen]]", "without", "[]"),
    key("[local]", "domains", "required"),
    key("[local]", "mailbox", "\"maildir:~/Maildir\""),
    key("[local]", "aliases", "none"),
    key("[virtual]", "domains", "required"),
    key("[virtual]", "mailbox", "required"),
    key("[virtual]", "users", "required"),
    key("[virtual]", "owner", "\"postern-mail\""),
    key("[relay]", "networks", "[]"),
    key("[relay]", "domains", "[]"),
    key("[[route]]", "domain", "required"),
    key("[[route]]", "via", "required"),
    key("[[rule]]", "stage", "required"),
    key("[[rule]]", "network", "none"),
    key("[[rule]]", "service", "none"),
    key("[[rule]]", "listener", "none"),
    key("[[rule]]", "authenticated", "none"),
    key("[[rule]]", "helo", "none"),
    key("[[rule]]", "from", "none"),
    key("[[rule]]", "to", "none"),
    key("[[rule]]", "header", "none"),
    key("[[rule]]", "name", "none"),
    key("[[rule]]", "name-verified", "none"),
    key("[[rule]]", "score-at-least", "none"),
    key("[[rule]]", "table", "none"),
    key("[[rule]]", "key", "that of the stage"),
    key("[[rule]]", "ask", "none"),
    key("[[rule]]", "not", "none"),
    key("[[rule]]", "action", "none"),
    key("[tls]", "certificate", "required"),
    key("[tls]", "key", "required"),
    key("[dns]", "servers", "[]"),
    key("[auth]", "users", "none"),
    key("[smtp]", "workers", "one for two cores, at most 64"),
    key("[smtp]", "message-size", "\"50 MiB\""),
    key("[smtp]", "recipients", "1000"),
    key("[smtp]", "recipient-domains", "none"),
    key("[smtp]", "messages", "none"),
    key("[smtp]", "sessions", "10000"),
    key("[smtp]", "line-length", "\"64 KiB\""),
    key("[smtp]", "command-timeout", "\"5 min\""),
    key("[smtp]", "data-timeout", "\"3 min\""),
    key("[smtp]", "session-time", "\"1 h\""),
    key("[smtp]", "errors", "20"),
    key("[smtp]", "greet-pause", "\"0 s\""),
    key("[smtp]", "tarpit", "\"1 s\""),
    key("[smtp]", "hops", "100"),
    key("[smtp]", "xclient", "[]"),
    key("[smtp]", "xforward", "[]"),
    key("[limits]", "sessions", "50"),
    key("[limits]", "connections", "0"),
    key("[limits]", "messages", "0"),
    key("[limits]", "recipients", "0"),
    key("[limits]", "errors", "0"),
    key("[limits]", "auth-failures", "0"),
    key("[limits]", "exempt", "this host and the networks of `[relay]`"),
    key("[limits]", "list-score", "1"),
    key("[[list]]", "name", "required"),
    key("[[list]]", "kind", "\"deny\""),
    key("[[list]]", "weight", "1"),
    key("[[list]]", "replies", "every 127.0.0.0/8 but 127.255.255.0/24"),
    key("[greylist]", "enabled", "false"),
    key("[greylist]", "delay", "\"5 min\""),
    key("[greylist]", "window", "\"2 d\""),
    key("[greylist]", "lifetime", "\"35 d\""),
    key("[greylist]", "auto-allow", "5"),
    key("[queue]", "lifetime", "\"5 d\""),
    key("[queue]", "bounce-lifetime", "\"1 d\""),
    key("[queue]", "retry-first", "\"5 min\""),
    key("[queue]", "retry-most", "\"1 h 10 min\""),
    key("[queue]", "delay-warning", "after 4 h, to those who asked"),
    key("[queue]", "min-free", "\"64 MiB\""),
    key("[queue]", "min-inodes", "1000"),
    key("[delivery]", "connections", "20"),
    key("[delivery]", "jobs", "200"),
    key("[delivery]", "connect-timeout", "\"30 s\""),
    key("[delivery]", "reply-timeout", "\"5 min\""),
    key("[delivery]", "idle-timeout", "\"5 s\""),
    key("[delivery]", "without", "[]"),
];

/// The keys of one section.
pub(crate) fn keys_of(section: &str) -> impl Iterator<Item = &'static str> {
    KEYS.iter().filter(move |key| key.section == section).map(|key| key.name)
}

/// The sections as they are written, in order, without the top of the file.
pub(crate) fn sections() -> Vec<&'static str> {
    let mut sections: Vec<_> = KEYS.iter().map(|key| key.section).filter(|s| !s.is_empty()).collect();
    sections.dedup();
    sections
}

/// `[[listen]]` → `listen`.
pub(crate) fn bare(section: &str) -> &str {
    section.trim_matches(['[', ']'])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn within_the_budget_and_without_doubles() {
        let names: BTreeSet<_> = KEYS.iter().map(|key| (key.section, key.name)).collect();
        assert_eq!(names.len(), KEYS.len());
        assert!(KEYS.len() <= 150);
        let unique: BTreeSet<_> = sections().into_iter().collect();
        assert_eq!(unique.len(), sections().len(), "the keys of a section stand together");
    }

    /// `docs/configuration.md` has one heading for each key, `### `[section] key``, and none for a key
    /// that does not exist; each names the default.
    #[test]
    fn the_manual_knows_every_key_and_no_other() {
        let manual = include_str!("../../../docs/configuration.md");
        let headings: BTreeSet<String> = manual
            .lines()
            .filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`'))
            .map(str::to_owned)
            .collect();
        let known: BTreeSet<String> =
            KEYS.iter().map(|key| format!("{} {}", key.section, key.name).trim().to_owned()).collect();
        assert_eq!(headings, known);
        for key in KEYS {
            let heading = format!("### `{}`", format!("{} {}", key.section, key.name).trim());
            let entry = manual.split(&heading).nth(1).unwrap().split("\n##").next().unwrap();
            let default = match key.default {
                "required" | "none" => key.default.to_owned(),
                text if text.starts_with(['"', '[']) || text.starts_with(|c: char| c.is_ascii_digit()) => {
                    format!("`{text}`")
                }
                text => text.to_owned(),
            };
            assert!(entry.contains(&format!("Default: {default}")), "{heading}: Default: {default}");
            assert!(entry.contains("Example: `"), "{heading}: Example");
        }
    }
}
