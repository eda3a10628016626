//! What a submitted message lacks, and what it must not tell (RFC 6409 §8). Pure.

use postern_address::{Domain, Mailbox, ReversePath};
use postern_message::{Field, body_offset, fields};

use crate::list::{self, ListError};

/// Who sends, and when.
#[derive(Clone, Debug)]
pub struct Author<'a> {
    /// For a From line that is made.
    pub address: &'a Mailbox,
    /// The person's name, if it is known.
    pub full_name: Option<&'a str>,
    /// A date as RFC 5322 has it.
    pub date: &'a str,
    /// What makes the Message-ID unique.
    pub id: &'a str,
    /// Our name.
    pub hostname: &'a Domain,
}

/// A message ready for the spool.
#[derive(Debug, PartialEq, Eq)]
pub struct Prepared {
    /// Header lines to go before it.
    pub prepend: Vec<u8>,
    /// The message without its Bcc lines.
    pub body: Vec<u8>,
}

/// The recipients that the header section names: To, Cc and Bcc, or their Resent- forms alone when there
/// are any, since then it is sent again to those (RFC 5322 §3.6.6).
pub fn recipients(message: &[u8], home: &Domain) -> Result<Vec<Mailbox>, ListError> {
    let of = |names: [&str; 3]| {
        let wanted = fields(message).filter(|field| names.iter().any(|name| field.is(name)));
        wanted.map(|field| list::mailboxes(&field.value(), home)).collect::<Result<Vec<_>, _>>()
    };
    let again = of(["resent-to", "resent-cc", "resent-bcc"])?;
    let lists = if again.is_empty() { of(["to", "cc", "bcc"])? } else { again };
    Ok(lists.concat())
}

/// Adds Date, Message-ID and From where they are missing and takes Bcc out, whether or not the recipients
/// came from it: a blind copy is blind because nobody can read it.
pub fn prepare(message: &[u8], author: &Author<'_>) -> Prepared {
    let has = |name: &str| fields(message).any(|field| field.is(name));
    let mut prepend = String::new();
    if !has("date") {
        prepend.push_str(&format!("Date: {}\r\n", author.date));
    }
    if !has("message-id") {
        prepend.push_str(&format!("Message-ID: <{}@{}>\r\n", author.id, author.hostname));
    }
    if !has("from") {
        prepend.push_str(&from(author));
    }
    let kept = |field: &Field<'_>| !(field.is("bcc") || field.is("resent-bcc"));
    let mut body = Vec::with_capacity(message.len() + 2);
    let mut header = 0;
    for field in fields(message) {
        header += field.raw.len();
        if kept(&field) {
            body.extend_from_slice(field.raw);
        }
    }
    if body_offset(message) == header {
        // No empty line: what follows the last field, or all of it, is body.
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(message.get(header..).unwrap_or_default());
    Prepared { prepend: prepend.into_bytes(), body }
}

fn from(author: &Author<'_>) -> String {
    let name = author.full_name.map(display_name).unwrap_or_default();
    match &*name {
        "" => format!("From: {}\r\n", author.address),
        name => format!("From: {name} <{}>\r\n", author.address),
    }
}

/// A name as a phrase (RFC 5322 §3.2.5): bare, quoted, or in encoded words when it is not ASCII.
fn display_name(name: &str) -> String {
    let name: String = name.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    let name = name.trim();
    let atext = |c: char| c.is_ascii_alphanumeric() || " !#$%&'*+-/=?^_`{|}~".contains(c);
    if !name.is_ascii() {
        return encoded_words(name);
    }
    // `=?` at the beginning of a word would be taken for an encoded word.
    if name.chars().all(atext) && !name.contains("=?") && !name.contains("  ") {
        return name.to_owned();
    }
    let escaped = name.replace('\\', "\\\\").replace('"', "\\\"");
    if name.is_empty() { String::new() } else { format!("\"{escaped}\"") }
}

/// RFC 2047: at most 75 characters each, no character of the name cut in two.
fn encoded_words(name: &str) -> String {
    let mut words = vec![String::new()];
    for c in name.chars() {
        let mut buffer = [0; 4];
        let octets = c.encode_utf8(&mut buffer).as_bytes();
        let encoded: String = match c {
            ' ' => "_".into(),
            // What may stand in a phrase's encoded word (RFC 2047 §5, rule 3).
            c if c.is_ascii_alphanumeric() || "!*+-/".contains(c) => c.into(),
            _ => octets.iter().map(|octet| format!("={octet:02X}")).collect(),
        };
        if words.last().is_some_and(|word| word.len() + encoded.len() > 60) {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut() {
            word.push_str(&encoded);
        }
    }
    let words: Vec<String> = words.into_iter().map(|word| format!("=?UTF-8?Q?{word}?=")).collect();
    words.join("\r\n ")
}

/// Whom bounces go to, by `-f`; `None` when it was not given. Empty and `<>` are nobody.
pub fn reverse_path(given: &str, home: &Domain) -> Result<ReversePath, ListError> {
    if matches!(given.trim(), "" | "<>") {
        return Ok(ReversePath::Null);
    }
    list::single(given, home).map(ReversePath::Mailbox)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn home() -> Domain {
        Domain::parse("home.test").unwrap()
    }

    fn prepared(message: &str, full_name: Option<&str>) -> (String, String) {
        let (home, address) = (home(), Mailbox::parse("ann@home.test").unwrap());
        let author = Author {
            address: &address,
            full_name,
            date: "Sun, 22 Nov 2026 00:00:00 +0000",
            id: "0ABC",
            hostname: &home,
        };
        let Prepared { prepend, body } = prepare(message.as_bytes(), &author);
        (String::from_utf8(prepend).unwrap(), String::from_utf8(body).unwrap())
    }

    #[test]
    fn nothing_is_added_to_a_whole_message() {
        let whole = "From: a@b\r\nDATE: x\r\nMessage-Id: <1@x>\r\nTo: c@d\r\n\r\nhello\r\n";
        assert_eq!(prepared(whole, Some("Ann")), (String::new(), whole.to_owned()));
    }

    #[test]
    fn what_is_missing_is_added() {
        let (prepend, body) = prepared("Subject: x\r\n\r\nhello\r\n", Some("Ann Smith"));
        assert_eq!(
            prepend,
            "Date: Sun, 22 Nov 2026 00:00:00 +0000\r\nMessage-ID: <0ABC@home.test>\r\n\
             From: Ann Smith <ann@home.test>\r\n"
        );
        assert_eq!(body, "Subject: x\r\n\r\nhello\r\n");
        // Text without a header section, or without the line that ends it.
        assert_eq!(prepared("hello\r\n", None).1, "\r\nhello\r\n");
        assert_eq!(prepared("Subject: x\r\nhello you\r\n", None).1, "Subject: x\r\n\r\nhello you\r\n");
        assert_eq!(prepared("Subject: x\r\n", None).1, "Subject: x\r\n\r\n");
        assert_eq!(prepared("\r\nhello\r\n", None).1, "\r\nhello\r\n");
        assert_eq!(prepared("", None).1, "\r\n");
    }

    #[test]
    fn blind_copies_are_blind() {
        let (_, body) =
            prepared("To: a@b\r\nBcc: c@d,\r\n e@f\r\nresent-BCC : g@h\r\nX: y\r\n\r\nBcc: kept\r\n", None);
        assert_eq!(body, "To: a@b\r\nX: y\r\n\r\nBcc: kept\r\n");
    }

    #[test]
    fn recipients_of_the_header() {
        let of = |message: &str| {
            recipients(message.as_bytes(), &home())
                .map(|all| all.into_iter().map(String::from).collect::<Vec<_>>())
        };
        let message =
            "To: a@a.test,\r\n Bob <b>\r\nX: no@x\r\nCc: c@c.test\r\nBcc: d@d.test\r\n\r\nTo: body@x\r\n";
        assert_eq!(of(message).unwrap(), ["a@a.test", "b@home.test", "c@c.test", "d@d.test"]);
        let again = format!("Resent-To: r@r.test\r\n{message}");
        assert_eq!(of(&again).unwrap(), ["r@r.test"]);
        assert!(of("To: not an address\r\n\r\n").is_err());
    }

    #[test]
    fn names() {
        assert_eq!(display_name("Ann Smith"), "Ann Smith");
        assert_eq!(display_name("Smith, Ann"), "\"Smith, Ann\"");
        assert_eq!(display_name("A \"x\" \\"), "\"A \\\"x\\\" \\\\\"");
        assert_eq!(display_name("a\r\nBcc: x"), "\"a  Bcc: x\"");
        assert_eq!(display_name("J\u{fc}rgen M."), "=?UTF-8?Q?J=C3=BCrgen_M=2E?=");
        assert_eq!(display_name(" "), "");
        assert_eq!(display_name(&"\u{fc}".repeat(200)).split("\r\n ").map(str::len).max(), Some(72));
    }

    #[test]
    fn senders() {
        let of = |text: &str| reverse_path(text, &home()).map(|path| path.as_str().to_owned());
        assert_eq!(of("").unwrap(), "");
        assert_eq!(of("<>").unwrap(), "");
        assert_eq!(of("ann").unwrap(), "ann@home.test");
        assert_eq!(of("Ann <ann@a.test>").unwrap(), "ann@a.test");
        assert!(of("bad address").is_err() && of("a, b").is_err());
    }

    proptest! {
        #[test]
        fn a_header_section_and_only_it_is_changed(
            message in "((From|To|Bcc|Date|X-y): [a-z@,<>\"]{0,10}\r\n|[a-z ]{0,5}\r\n){0,8}",
            name in "\\PC{0,30}",
        ) {
            let (prepend, body) = prepared(&message, Some(&name));
            let whole = format!("{prepend}{body}");
            let found: Vec<_> = fields(whole.as_bytes()).map(|field| field.name.to_ascii_lowercase()).collect();
            for needed in ["date", "message-id", "from"] {
                prop_assert!(found.iter().any(|name| name == needed));
            }
            prop_assert!(!found.iter().any(|name| name == "bcc"));
            prop_assert!(whole.contains("\r\n\r\n"));
            let old = message.get(body_offset(message.as_bytes())..).unwrap_or_default();
            prop_assert!(body.ends_with(old));
        }
    }
}
