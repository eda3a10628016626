//! Lists of addresses as people write them (RFC 5322 §3.4, §4.4): display names, groups, comments, quoted
//! strings, source routes. Pure.

use postern_address::{Domain, Mailbox};

/// Why a text is no list of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListError {
    /// The address, as far as it can be told.
    pub address: String,
    /// What is wrong with it.
    pub why: String,
}

/// The mailboxes of an address list, in order. A name without a domain is one of `home`.
pub fn mailboxes(text: &str, home: &Domain) -> Result<Vec<Mailbox>, ListError> {
    let tokens = tokens(text).map_err(|why| error(text, why))?;
    split(&tokens)?.into_iter().map(|address| mailbox(address, home)).collect()
}

/// One address, bare or in angle brackets, qualified with `home` if it has no domain.
pub fn single(text: &str, home: &Domain) -> Result<Mailbox, ListError> {
    let mut all = mailboxes(text, home)?;
    match (all.pop(), all.is_empty()) {
        (Some(mailbox), true) => Ok(mailbox),
        _ => Err(error(text, "expected one address")),
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// An atom, a quoted string or a domain literal, as written.
    Word(String),
    /// One of `,:;<>@.`
    Special(char),
}

/// Splits into tokens; comments and blanks go.
fn tokens(text: &str) -> Result<Vec<Token>, &'static str> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(&c) = chars.peek() {
        match c {
            ' ' | '\t' | '\r' | '\n' => drop(chars.next()),
            '(' => comment(&mut chars)?,
            '"' => tokens.push(Token::Word(delimited(&mut chars, '"', "a quote is not closed")?)),
            '[' => tokens.push(Token::Word(delimited(&mut chars, ']', "a bracket is not closed")?)),
            ',' | ':' | ';' | '<' | '>' | '@' | '.' => {
                chars.next();
                tokens.push(Token::Special(c));
            }
            ')' | ']' | '\\' => return Err("a character that cannot stand in an address"),
            c if c.is_control() => return Err("a control character"),
            _ => {
                let mut word = String::new();
                while let Some(c) = chars.next_if(|c| !c.is_control() && !" ()<>[]:;@\\,.\"".contains(*c)) {
                    word.push(c);
                }
                tokens.push(Token::Word(word));
            }
        }
    }
    Ok(tokens)
}

/// Skips a comment; comments nest.
fn comment(chars: &mut impl Iterator<Item = char>) -> Result<(), &'static str> {
    let mut depth = 0usize;
    while let Some(c) = chars.next() {
        match c {
            '(' => depth += 1,
            ')' if depth == 1 => return Ok(()),
            ')' => depth -= 1,
            '\\' => drop(chars.next()),
            _ => {}
        }
    }
    Err("a comment is not closed")
}

/// A quoted string or a literal, its delimiters and escapes included.
fn delimited(
    chars: &mut impl Iterator<Item = char>,
    end: char,
    unclosed: &'static str,
) -> Result<String, &'static str> {
    let mut text: String = chars.next().into_iter().collect();
    while let Some(c) = chars.next() {
        text.push(c);
        match c {
            '\\' => text.extend(chars.next()),
            c if c == end => return Ok(text),
            _ => {}
        }
    }
    Err(unclosed)
}

/// The addresses' own tokens: groups are opened, empty places of the list dropped.
fn split(tokens: &[Token]) -> Result<Vec<&[Token]>, ListError> {
    let mut addresses = Vec::new();
    let (mut begin, mut in_group, mut in_angle) = (0, false, false);
    for (at, token) in tokens.iter().enumerate() {
        let here = tokens.get(begin..at).unwrap_or_default();
        match token {
            Token::Special('<') => in_angle = true,
            Token::Special('>') => in_angle = false,
            // Within brackets `,` and `:` belong to a source route.
            _ if in_angle => {}
            Token::Special(':') if in_group => return Err(error(&text(here), "a group within a group")),
            Token::Special(':') => {
                (in_group, begin) = (true, at + 1);
            }
            Token::Special(';') if !in_group => return Err(error(&text(here), "`;` ends a group")),
            Token::Special(',' | ';') => {
                if !here.is_empty() {
                    addresses.push(here);
                }
                in_group &= *token != Token::Special(';');
                begin = at + 1;
            }
            _ => {}
        }
    }
    match tokens.get(begin..) {
        _ if in_group => return Err(error(&text(tokens), "a group is not closed by `;`")),
        Some(last) if !last.is_empty() => addresses.push(last),
        _ => {}
    }
    Ok(addresses)
}

/// One address: what is between angle brackets, or all of it.
fn mailbox(tokens: &[Token], home: &Domain) -> Result<Mailbox, ListError> {
    let failed = |why: &str| error(&text(tokens), why);
    let open = tokens.iter().position(|token| *token == Token::Special('<'));
    let spec = match open {
        None => tokens,
        Some(open) => match tokens.get(open + 1..).and_then(<[Token]>::split_last) {
            Some((Token::Special('>'), inside)) => without_route(inside),
            _ => return Err(failed("`<` and `>` do not match")),
        },
    };
    let mut address = String::new();
    let mut after_word = false;
    for token in spec {
        match token {
            Token::Word(_) if after_word => return Err(failed("two words where an address is expected")),
            Token::Word(word) => address.push_str(word),
            Token::Special(c @ ('.' | '@')) => address.push(*c),
            Token::Special(c) => return Err(failed(&format!("`{c}` out of place"))),
        }
        after_word = matches!(token, Token::Word(_));
    }
    if address.is_empty() {
        return Err(failed("empty address"));
    }
    if !spec.contains(&Token::Special('@')) {
        address = format!("{address}@{home}");
    }
    Mailbox::parse(&address).map_err(|why| failed(&why.to_string()))
}

/// Drops the obsolete `@a,@b:` before the address (RFC 5322 §4.4).
fn without_route(inside: &[Token]) -> &[Token] {
    let colon = inside.iter().position(|token| *token == Token::Special(':'));
    match (inside.first(), colon) {
        (Some(Token::Special('@')), Some(colon)) => inside.get(colon + 1..).unwrap_or_default(),
        _ => inside,
    }
}

fn text(tokens: &[Token]) -> String {
    let mut text = String::new();
    for token in tokens {
        match token {
            Token::Word(word) => {
                if text.ends_with(|c: char| c.is_alphanumeric() || c == '"') {
                    text.push(' ');
                }
                text.push_str(word);
            }
            Token::Special(c) => text.push(*c),
        }
    }
    text
}

fn error(address: &str, why: &str) -> ListError {
    let address = address.chars().map(|c| if c.is_control() { '?' } else { c }).take(100).collect();
    ListError { address, why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn home() -> Domain {
        Domain::parse("home.test").unwrap()
    }

    fn list(text: &str) -> Vec<String> {
        let all = mailboxes(text, &home()).unwrap_or_else(|error| panic!("{text}: {error:?}"));
        all.into_iter().map(String::from).collect()
    }

    #[test]
    fn as_people_write_them() {
        assert_eq!(list("ann"), ["ann@home.test"]);
        assert_eq!(list(" , ann@A.test,, bob (the builder) "), ["ann@a.test", "bob@home.test"]);
        assert_eq!(list("\"Smith, Ann\" <ann@a.test>, Bob B. <bob>"), ["ann@a.test", "bob@home.test"]);
        assert_eq!(list("Ann (a (nested \\) one), x) <ann@a.test>"), ["ann@a.test"]);
        assert_eq!(list("<@relay.test,@other.test:ann@a.test>"), ["ann@a.test"]);
        assert_eq!(
            list("Friends: ann@a.test, Bob <bob@b.test>; carl@c.test"),
            ["ann@a.test", "bob@b.test", "carl@c.test"]
        );
        assert_eq!(list("undisclosed-recipients:;"), [""; 0]);
        assert_eq!(list("ann . smith @ a . test"), ["ann.smith@a.test"]);
        assert_eq!(list("\"a b\"@a.test, \"x@y\"@z.test"), ["\"a b\"@a.test", "\"x@y\"@z.test"]);
        assert_eq!(list("\"a b\""), ["\"a b\"@home.test"]);
        assert_eq!(list("u@[192.0.2.1], v@[IPv6:2001:db8::1]"), ["u@[192.0.2.1]", "v@[IPv6:2001:db8::1]"]);
        assert_eq!(list("J\u{fc}rgen <j@\u{fc}.test>"), ["j@xn--tda.test"]);
        assert_eq!(list(""), [""; 0]);
    }

    #[test]
    fn refused() {
        for text in [
            "ann bob",
            "ann@",
            "@a.test",
            "<>",
            "<ann@a.test",
            "ann@a.test>",
            "a <b@c> d",
            "\"open",
            "(open",
            "x: ann@a.test",
            "ann; bob",
            "a: b: c;;",
            "a@b@c",
            "a..b@c.test",
            "a@b\\c",
            "a@[1.2.3]",
            "<a:b@c.test>",
        ] {
            assert!(mailboxes(text, &home()).is_err(), "{text}");
        }
        assert!(single("a, b", &home()).is_err() && single("", &home()).is_err());
        assert_eq!(single("<ann>", &home()).unwrap().as_str(), "ann@home.test");
    }

    proptest! {
        #[test]
        fn never_panics(text in "[ab@.,:;<>()\\[\\]\"\\\\ \u{fc}\t]{0,30}|(?s).{0,40}") {
            let _ = mailboxes(&text, &home());
        }

        #[test]
        fn a_list_of_mailboxes_reads_back(
            all in proptest::collection::vec(("[a-z]{1,8}|\"[a-z @,:]{1,8}\"", "[a-z]{1,5}\\.test"), 0..6),
            names in proptest::collection::vec(any::<bool>(), 6),
        ) {
            let expected: Vec<Mailbox> =
                all.iter().map(|(local, domain)| Mailbox::parse(&format!("{local}@{domain}")).unwrap()).collect();
            let written: Vec<String> = expected
                .iter()
                .zip(names)
                .map(|(mailbox, named)| if named { format!("\"N, N\" <{mailbox}>") } else { mailbox.to_string() })
                .collect();
            prop_assert_eq!(mailboxes(&written.join(", "), &home()), Ok(expected));
        }
    }
}
