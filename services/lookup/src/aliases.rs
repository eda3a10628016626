//! The aliases file, in the form of `/etc/aliases` (aliases(5)).

use std::collections::HashMap;
use std::path::PathBuf;

use postern_address::Mailbox;

/// The aliases of a file, by name in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Aliases {
    entries: HashMap<String, Entry>,
}

/// What an alias leads to, or why that cannot be said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// In the file's order.
    Targets(Vec<Target>),
    /// The line is broken: mail for the name waits until somebody repairs it.
    Broken(String),
}

/// One value of an alias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A name on this host, perhaps an alias.
    Name(String),
    /// `\name`: the account, not an alias again.
    Account(String),
    /// An address, here or elsewhere.
    Address(Mailbox),
    /// `:include:/path`: a file of values.
    Include(PathBuf),
    /// `|command`: known, and not done (data is never code).
    Command(String),
    /// `/path`: known, and not done.
    File(String),
    /// `/dev/null`: thrown away.
    Null,
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineError {
    /// From 1: where the entry begins.
    pub line: usize,
    /// What, and what to do about it.
    pub message: String,
}

impl Aliases {
    /// Parses a file. The errors leave the other lines usable; a name whose values are broken is known as
    /// [`Entry::Broken`].
    pub fn parse(text: &str) -> (Self, Vec<LineError>) {
        let (mut aliases, mut errors) = (Self::default(), Vec::new());
        for (line, entry) in logical_lines(text) {
            let mut error = |message: String| errors.push(LineError { line, message });
            let (name, values) = match split_name(&entry) {
                Ok(split) => split,
                Err(message) => {
                    error(message);
                    continue;
                }
            };
            let parsed = match values_of(values) {
                Ok(targets) if targets.is_empty() => Err("no value behind the colon".to_owned()),
                other => other,
            };
            let parsed = match parsed {
                Ok(targets) => Entry::Targets(targets),
                Err(message) => {
                    error(format!("alias `{name}`: {message}"));
                    Entry::Broken(format!("alias {name} is broken, line {line} of the aliases file"))
                }
            };
            if aliases.entries.contains_key(&name) {
                error(format!("alias `{name}` stands here again: only its first line counts"));
                continue;
            }
            aliases.entries.insert(name, parsed);
        }
        (aliases, errors)
    }

    /// What a name leads to, whatever its case; none when it is no alias.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(&name.to_lowercase())
    }

    /// How many names.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// No names at all.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The files that are included.
    pub fn includes(&self) -> Vec<PathBuf> {
        let targets = self.entries.values().filter_map(|entry| match entry {
            Entry::Targets(targets) => Some(targets),
            Entry::Broken(_) => None,
        });
        let mut paths: Vec<_> = targets
            .flatten()
            .filter_map(|target| if let Target::Include(path) = target { Some(path.clone()) } else { None })
            .collect();
        paths.sort();
        paths.dedup();
        paths
    }
}

/// Parses an included file: values, separated by commas or line ends, with comments.
pub fn parse_include(text: &str) -> Result<Vec<Target>, LineError> {
    let mut targets = Vec::new();
    // No names, so no continuations: each line is for itself.
    for (n, line) in text.lines().enumerate() {
        let content = line.trim();
        if !content.starts_with('#') {
            targets.extend(values_of(content).map_err(|message| LineError { line: n + 1, message })?);
        }
    }
    Ok(targets)
}

/// Lines with their continuations (which begin with a blank), without comments and empty lines.
fn logical_lines(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let content = line.trim();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        match lines.last_mut() {
            Some((_, entry)) if line.starts_with([' ', '\t']) => {
                entry.push(' ');
                entry.push_str(content);
            }
            _ => lines.push((n + 1, content.to_owned())),
        }
    }
    lines
}

/// The name in lower case and the values' text.
fn split_name(entry: &str) -> Result<(String, &str), String> {
    let (name, values) = if entry.starts_with('"') {
        let end = quoted_end(entry).ok_or("a quote is not closed")?;
        let values = entry[end..].trim_start().strip_prefix(':').ok_or("no colon behind the name")?;
        (unquote(&entry[..end]), values)
    } else {
        let (name, values) =
            entry.split_once(':').ok_or_else(|| format!("`{}`: no colon", shorten(entry)))?;
        (name.trim().to_owned(), values)
    };
    if name.is_empty() || name.chars().any(char::is_control) {
        return Err("no name before the colon".to_owned());
    }
    if name.contains('@') {
        return Err(format!("`{}`: an alias has no domain", shorten(&name)));
    }
    Ok((name.to_lowercase(), values))
}

fn values_of(text: &str) -> Result<Vec<Target>, String> {
    split_commas(text)?.into_iter().map(str::trim).filter(|v| !v.is_empty()).map(target).collect()
}

/// Splits at commas outside of quotes.
fn split_commas(text: &str) -> Result<Vec<&str>, String> {
    let (mut parts, mut begin, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ',' if !quoted => {
                parts.push(&text[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    if quoted {
        return Err("a quote is not closed".to_owned());
    }
    parts.push(&text[begin..]);
    Ok(parts)
}

fn target(text: &str) -> Result<Target, String> {
    // A value that is quoted whole: `"|command with, comma"`, `"joe smith"`.
    let plain = if quoted_end(text) == Some(text.len()) { unquote(text) } else { text.to_owned() };
    if plain.chars().any(char::is_control) || plain.is_empty() {
        return Err("an empty value, or control characters in it".to_owned());
    }
    if plain == "/dev/null" {
        return Ok(Target::Null);
    }
    if let Some(path) = strip_include(&plain) {
        let path = unquote(path.trim());
        return if path.starts_with('/') {
            Ok(Target::Include(path.into()))
        } else {
            Err(format!("`:include:{}` needs an absolute path", shorten(&path)))
        };
    }
    match plain.as_bytes().first() {
        Some(b'|') => return Ok(Target::Command(plain)),
        Some(b'/') => return Ok(Target::File(plain)),
        _ => {}
    }
    if let Some(name) = plain.strip_prefix('\\')
        && !name.contains('@')
    {
        return Ok(Target::Account(name.to_owned()));
    }
    // `Joe Smith <joe@example.org>`
    let inside = plain.rsplit_once('<').and_then(|(_, rest)| rest.trim_end().strip_suffix('>'));
    let plain = inside.map_or(plain.clone(), str::to_owned);
    match Mailbox::parse(&plain).or_else(|_| Mailbox::parse(text)) {
        Ok(mailbox) => Ok(Target::Address(mailbox)),
        Err(error) if plain.contains('@') => Err(format!("`{}`: {error}", shorten(&plain))),
        Err(_) if plain.contains(':') => {
            Err(format!("`{}` is no value: a line end too few?", shorten(&plain)))
        }
        Err(_) => Ok(Target::Name(plain)),
    }
}

fn strip_include(text: &str) -> Option<&str> {
    let prefix = text.get(..9)?;
    prefix.eq_ignore_ascii_case(":include:").then(|| &text[9..])
}

/// The index behind the closing quote of a quoted text, which is at its front.
fn quoted_end(text: &str) -> Option<usize> {
    let mut chars = text.strip_prefix('"')?.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some(at + 2),
            '\\' => drop(chars.next()?),
            _ => {}
        }
    }
    None
}

fn unquote(text: &str) -> String {
    if text.len() < 2 || quoted_end(text) != Some(text.len()) {
        return text.to_owned();
    }
    let (mut out, mut chars) = (String::new(), text[1..text.len() - 1].chars());
    while let Some(c) = chars.next() {
        // A backslash before anything but a quote or itself is part of the text: `"\\joe"`, `"\joe"`.
        match (c, chars.clone().next()) {
            ('\\', Some(next @ ('"' | '\\'))) => {
                out.push(next);
                chars.next();
            }
            _ => out.push(c),
        }
    }
    out
}

fn shorten(text: &str) -> String {
    text.chars().take(60).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn targets(text: &str) -> Vec<Target> {
        let (aliases, errors) = Aliases::parse(&format!("x: {text}\n"));
        assert_eq!(errors, []);
        match aliases.get("X") {
            Some(Entry::Targets(targets)) => targets.clone(),
            other => panic!("{other:?}"),
        }
    }

    fn name(text: &str) -> Target {
        Target::Name(text.into())
    }

    fn address(text: &str) -> Target {
        Target::Address(Mailbox::parse(text).unwrap())
    }

    #[test]
    fn values() {
        let cases: &[(&str, Vec<Target>)] = &[
            ("joe", vec![name("joe")]),
            (
                "joe, ann@Example.ORG ,,\\bob",
                vec![name("joe"), address("ann@example.org"), Target::Account("bob".into())],
            ),
            ("\"joe smith\"", vec![name("joe smith")]),
            ("\"joe smith\"@x.org", vec![address("\"joe smith\"@x.org")]),
            ("Joe Smith <joe@x.org>", vec![address("joe@x.org")]),
            ("\"|/usr/bin/vacation joe, ann\"", vec![Target::Command("|/usr/bin/vacation joe, ann".into())]),
            ("|\"/bin/cmd a, b\"", vec![Target::Command("|\"/bin/cmd a, b\"".into())]),
            ("/var/mail/x", vec![Target::File("/var/mail/x".into())]),
            ("/dev/null", vec![Target::Null]),
            (":include:/etc/list", vec![Target::Include("/etc/list".into())]),
            ("\":Include:/etc/a, b\"", vec![Target::Include("/etc/a, b".into())]),
        ];
        for (text, expected) in cases {
            assert_eq!(&targets(text), expected, "{text}");
        }
    }

    #[test]
    fn the_file_of_debian() {
        let text = "# See man 5 aliases for format\npostmaster:    root\n\nmailer-daemon: postmaster\r\nnobody: root\n\
            \"Joe Smith\": joe\n# a comment\n  # another, indented\nroot: ann,\n\tbob@example.org,\n  \\carl\n\
            ftp : root\nABUSE:root\n";
        let (aliases, errors) = Aliases::parse(text);
        assert_eq!((errors, aliases.len()), (Vec::new(), 7));
        let root =
            Entry::Targets(vec![name("ann"), address("bob@example.org"), Target::Account("carl".into())]);
        assert_eq!(aliases.get("Root"), Some(&root));
        assert_eq!(aliases.get("joe smith"), Some(&Entry::Targets(vec![name("joe")])));
        assert_eq!(aliases.get("ftp"), aliases.get("abuse"));
        assert_eq!(aliases.get("nobody-else"), None);
    }

    #[test]
    fn broken_lines_are_named_and_the_others_stand() {
        let text = "good: joe\nno colon here\n: empty\nhalf: \"joe\nbad: a@\nx@y.z: joe\nnothing:\ngood: ann\n\
            rel: :include:list\n";
        let (aliases, errors) = Aliases::parse(text);
        let lines: Vec<_> = errors.iter().map(|e| e.line).collect();
        assert_eq!(lines, [2, 3, 4, 5, 6, 7, 8, 9], "{errors:?}");
        assert_eq!(aliases.get("good"), Some(&Entry::Targets(vec![name("joe")])));
        assert!(matches!(aliases.get("half"), Some(Entry::Broken(_))));
        assert_eq!(aliases.get("no colon here"), None);
    }

    #[test]
    fn included_files() {
        let list = parse_include("# members\njoe\nann@x.org, bob\n\n\\carl\n").unwrap();
        assert_eq!(list, [name("joe"), address("ann@x.org"), name("bob"), Target::Account("carl".into())]);
        assert_eq!(parse_include("joe\nann@\n").unwrap_err().line, 2);
    }

    proptest! {
        #[test]
        fn never_panics(text in "(?s)[a-c:,\"\\\\|/ \t\r\n#@<>é]{0,80}") {
            let _ = Aliases::parse(&text);
            let _ = parse_include(&text);
        }
    }
}
