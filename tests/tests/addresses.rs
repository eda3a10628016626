//! The address parser, judged by public corpora of addresses: isemail's (its grammar is RFC 5322's, which is
//! wider than RFC 5321's), that of Python's email-validator, and internationalised ones.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use postern_address::{Charset, Mailbox, MailboxError};
use postern_tests::vectors;
use serde_json::Value;

/// What isemail finds in an address that SMTP can carry (RFC 5321 §4.1.2). Whether a name is in DNS is not the
/// grammar's to know. All its other findings are errors, or RFC 5322's alone: comments, folding, obsolete forms.
const OF_SMTP: [&str; 7] = [
    "ISEMAIL_VALID",
    "ISEMAIL_DNSWARN_NO_MX_RECORD",
    "ISEMAIL_DNSWARN_NO_RECORD",
    "ISEMAIL_RFC5321_TLD",
    "ISEMAIL_RFC5321_TLDNUMERIC",
    "ISEMAIL_RFC5321_QUOTEDSTRING",
    "ISEMAIL_RFC5321_ADDRESSLITERAL",
];

/// Where we differ, and why.
const DIFFERENT: [(&str, &str); 12] = [
    ("\"\"@iana.org", NOBODY),
    ("12345678901234567890123456789012345678901234567890123456789012345@iana.org", LEAST),
    ("abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghiklmn@iana.org", LEAST),
    ("\"abcdefghijklmnopqrstuvwxyz abcdefghijklmnopqrstuvwxyz abcdefg\\h\"@iana.org", LEAST),
    ("\"abcdefghijklmnopqrstuvwxyz abcdefghijklmnopqrstuvwxyz abcdefghj\"@iana.org", LEAST),
    ("first.last@[IPv6:1111:2222:3333::4444:5555:12.34.56.78]", ONE_GROUP),
    ("first.last@[IPv6:1111:2222:3333::4444:5555:6666:7777]", ONE_GROUP),
    ("first.last@[IPv6:::a2:a3:a4:b1:b2:b3:b4]", ONE_GROUP),
    ("first.last@[IPv6:::a2:a3:a4:b1:ffff:11.22.33.44]", ONE_GROUP),
    ("first.last@[IPv6:a1:a2:a3:a4:b1::11.22.33.44]", ONE_GROUP),
    ("first.last@[IPv6:a1:a2:a3:a4:b1:b2:b3::]", ONE_GROUP),
    ("test@[IPv6:1111:2222:3333:4444:5555:6666::8888]", ONE_GROUP),
];

const NOBODY: &str = "refused: the grammar has an empty quoted local part, and it can be nobody's name";
const LEAST: &str = "taken: 64 octets are what everybody must take, not the most (RFC 5321 §4.5.3.1)";
const ONE_GROUP: &str = "taken: RFC 5321 §4.1.3 wants `::` to be two groups at least, RFC 4291 §2.2 not, and \
                         nobody can mean anything else by it";

#[test]
fn isemail() {
    let mut differences = BTreeMap::new();
    for file in ["isemail-tests.xml", "isemail-tests-original.xml"] {
        let Some(text) = vectors(&format!("addresses/{file}")) else { return };
        let tests = tests(&String::from_utf8(text).unwrap());
        assert!(tests.len() > 150, "{file}: {}", tests.len());
        for (address, diagnosis) in tests {
            let ours = Mailbox::parse_in(Charset::Ascii, &address);
            if ours.is_ok() != OF_SMTP.contains(&&*diagnosis) {
                differences.insert(address, (diagnosis, ours));
            }
        }
    }
    for (address, reason) in DIFFERENT {
        assert!(differences.remove(address).is_some(), "no difference any more: {address:?} ({reason})");
    }
    assert!(differences.is_empty(), "unexplained: {differences:#?}");
}

/// What email-validator refuses and we take: it judges whether somebody is likely to have the address.
const NOT_FOR_SMTP_TO_REFUSE: [(&str, &str); 23] = [
    ("11111111112222222222333333333344444444445555555555666666666677777@example.com", LEAST),
    ("111111111122222222223333333333444444444455555555556666666666777777@example.com", LEAST),
    ("\u{fb2c}111111122222222223333333333444444444455555555556666666666777777@example.com", LEAST),
    ("me@1.xn--4dbc.com", LDH),
    ("me@xn--4dbc.1.com", LDH),
    ("me@1.xn--4dbrk0ce", LDH),
    ("me@xn--0.tld", LDH),
    ("me@yy--0.tld", LDH),
    ("me@yy\u{ff0d}\u{ff0d}0.tld", LDH),
    ("me@[127.0.0.1]", LITERAL),
    ("me@[IPv6:::1]", LITERAL),
    ("me@bad-tld-1", GRAMMAR),
    ("me@bad.tld-2", GRAMMAR),
    ("my@localhost", GRAMMAR),
    ("me.\u{37e}@example.com", NO_NFC),
    ("a\u{2005}b@example.test", NON_ASCII),
    ("a\u{300}b@example.test", NON_ASCII),
    ("a\u{200b}b@example.test", NON_ASCII),
    ("a\u{202d}forward-\u{202e}reversedb@example.test", NON_ASCII),
    ("a\u{e000}b@example.test", NON_ASCII),
    ("a\u{10fdef}b@example.test", NON_ASCII),
    ("a\u{fdef}b@example.test", NON_ASCII),
    (TOO_LONG_IN_NFC, NO_NFC),
];

const LITERAL: &str = "it refuses address literals as a policy";
const GRAMMAR: &str =
    "a domain may have one label, and any: RFC 5321 §4.1.2; that it exists is for DNS to know";
const LDH: &str = "letters, digits and hyphens in ASCII are a name in DNS, whatever IDNA would make of them";
const NO_NFC: &str = "it becomes another character in NFC, which only the mailbox's host may apply";
const NON_ASCII: &str =
    "RFC 6531 §3.3 takes every character beyond ASCII; we except what ends a line, and controls";

/// Within 254 octets as it is.
const TOO_LONG_IN_NFC: &str = "my.\u{fb2c}.address@\
    1111111111222222222233333333334444444444555555555.6666666666777777777788888888889999999999\
    000000000.1111111111222222222233333333334444444444555555555.666666666677777777778888888888\
    9999999999000000000.11111111112222222222333333333344.info";

#[test]
fn email_validator() {
    let Some(text) = vectors("addresses/email-validator-2.4.0.json") else { return };
    // One "address" has half a surrogate pair, which is no character and no UTF-8.
    let text = String::from_utf8(text).unwrap().replace("\\ud800", "\\u0000");
    let corpus: Value = serde_json::from_str(&text).unwrap();
    let cases = |name: &str| corpus[name].as_array().unwrap().clone();
    for case in [cases("test_email_valid"), cases("test_email_valid_intl_local_part")].concat() {
        let expected = &case[1];
        // It reads header fields too: of `Name <address>` the address is ours to judge.
        let address = expected["original"].as_str().unwrap_or(case[0].as_str().unwrap());
        let mailbox = Mailbox::parse(address).unwrap_or_else(|e| panic!("{address}: {e}"));
        assert_eq!(mailbox.host(), expected["ascii_domain"], "{address}");
        // It composes letters (NFC), which only the mailbox's host may do.
        assert!(!address.is_ascii() || mailbox.local_part() == expected["local_part"], "{address}");
        let plain = Mailbox::parse_in(Charset::Ascii, address);
        assert_eq!(plain.is_ok(), address.is_ascii(), "{address}");
    }
    for case in cases("test_email_valid_only_if_quoted_local_part") {
        let (address, expected) = (case[0].as_str().unwrap(), &case[1]);
        let mailbox = Mailbox::parse(address).unwrap_or_else(|e| panic!("{address}: {e}"));
        assert!(mailbox.local_part() == *expected || address.contains('\u{37e}'), "{address}");
    }
    for case in cases("test_email_invalid_character_smtputf8_off") {
        let address = case[0].as_str().unwrap();
        assert_eq!(Mailbox::parse_in(Charset::Ascii, address), Err(MailboxError::NeedsSmtputf8), "{address}");
    }
    let mut taken = BTreeMap::new();
    for case in [cases("test_email_invalid_syntax"), cases("test_email_invalid_syntax_strict")].concat() {
        let (address, why) = (case[0].as_str().unwrap(), case[1].as_str().unwrap());
        if Mailbox::parse(address).is_ok() {
            taken.insert(address.to_owned(), why.to_owned());
        }
    }
    for case in cases("test_email_unsafe_character") {
        let address = format!("a{}b@example.test", case[0].as_str().unwrap());
        if Mailbox::parse(&address).is_ok() {
            taken.insert(address, case[1].as_str().unwrap().to_owned());
        }
    }
    for (address, reason) in NOT_FOR_SMTP_TO_REFUSE {
        assert!(taken.remove(address).is_some(), "refused by now: {address:?} ({reason})");
    }
    assert!(taken.is_empty(), "unexplained: {taken:#?}");
}

#[test]
fn internationalised() {
    let Some(text) = vectors("eai/addresses.json") else { return };
    let corpus: Vec<Value> = serde_json::from_slice(&text).unwrap();
    let addresses: Vec<_> = corpus.iter().map(|case| case["addr"].as_str().unwrap()).collect();
    let mut distinct = BTreeSet::new();
    for address in &addresses {
        let mailbox = Mailbox::parse(address).unwrap_or_else(|e| panic!("{address:?}: {e}"));
        assert!(mailbox.host().is_ascii(), "{address}");
        assert_eq!(Mailbox::parse(mailbox.as_str()).as_ref(), Ok(&mailbox), "{address}");
        let plain = Mailbox::parse_in(Charset::Ascii, address);
        assert_eq!(plain.is_ok(), address.is_ascii(), "{address}");
        distinct.insert(mailbox);
    }
    // The A-label and its U-label, and the domain with an ideographic full stop (which UTS 46 maps) and with
    // an ordinary one. Composed and decomposed letters of a local part are not the same: its host judges.
    assert_eq!(distinct.len(), addresses.len() - 2);
}

/// The addresses of isemail's XML and what it says of them. A control character stands there as the symbol for
/// it, from U+2400 on.
fn tests(xml: &str) -> Vec<(String, String)> {
    let within = |text: &str, tag: &str| {
        let (_, rest) = text.split_once(&format!("<{tag}>"))?;
        let (inner, _) = rest.split_once(&format!("</{tag}>"))?;
        Some(entities(inner))
    };
    let control = |c: char| match u32::from(c) {
        symbol @ 0x2400..=0x241f => char::from_u32(symbol - 0x2400).unwrap(),
        0x2421 => '\x7f',
        _ => c,
    };
    let of = |test: &str| {
        let address = within(test, "address").unwrap_or_default();
        (address.chars().map(control).collect(), within(test, "diagnosis").unwrap())
    };
    xml.split("<test id=").skip(1).map(of).collect()
}

fn entities(text: &str) -> String {
    let mut parts = text.split('&');
    let mut out = parts.next().unwrap().to_owned();
    for part in parts {
        let (name, rest) = part.split_once(';').unwrap();
        out.push(match name {
            "lt" => '<',
            "gt" => '>',
            "amp" => '&',
            "quot" => '"',
            "apos" => '\'',
            _ => {
                let hexadecimal = name.strip_prefix("#x").map(|digits| u32::from_str_radix(digits, 16));
                let number = hexadecimal.unwrap_or_else(|| name.strip_prefix('#').unwrap().parse());
                char::from_u32(number.unwrap()).unwrap()
            }
        });
        out.push_str(rest);
    }
    out
}
