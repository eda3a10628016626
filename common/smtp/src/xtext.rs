//! xtext (RFC 3461 §4) and its sibling for addresses in UTF-8 (RFC 6533 §3): how a parameter of MAIL or RCPT
//! holds what a parameter cannot.

/// Encodes printable US-ASCII and blanks; none when there is anything else.
pub fn encode(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        match b {
            b'+' | b'=' | b' ' => out.push_str(&format!("+{b:02X}")),
            b'!'..=b'~' => out.push(char::from(b)),
            _ => return None,
        }
    }
    Some(out)
}

/// Decodes to printable US-ASCII and blanks. Anything else could end a line of a report or of the log.
pub fn decode(text: &str) -> Option<String> {
    if text.contains(['=', ' ']) { None } else { decode_loosely(text) }
}

/// As [`decode`], and takes what an encoder should have encoded: Postfix does, in XCLIENT and XFORWARD.
pub fn decode_loosely(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(b) = rest.next() {
        let octet = match b {
            b'+' => {
                let mut digit = || rest.next().filter(|b| !b.is_ascii_lowercase()).and_then(hexadecimal);
                digit()? * 16 + digit()?
            }
            b => b,
        };
        if !octet.is_ascii_graphic() && octet != b' ' {
            return None;
        }
        out.push(char::from(octet));
    }
    Some(out)
}

/// Encodes an address as utf-8-addr-xtext, which is US-ASCII.
pub fn encode_utf8(address: &str) -> Option<String> {
    let mut out = String::with_capacity(address.len());
    for c in address.chars() {
        match c {
            '+' | '=' | '\\' | ' ' => out.push_str(&format!("\\x{{{:02X}}}", c as u32)),
            '!'..='~' => out.push(c),
            c if c.is_control() => return None,
            c => out.push_str(&format!("\\x{{{:X}}}", c as u32)),
        }
    }
    Some(out)
}

/// Decodes utf-8-addr-xtext, utf-8-addr-unitext, or an address as it is (RFC 6533 §3).
pub fn decode_utf8(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        let c = match c {
            '\\' => {
                let (digits, after) = rest.strip_prefix("x{")?.split_once('}')?;
                let ok = (2..=6).contains(&digits.len())
                    && digits.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
                rest = after;
                char::from_u32(ok.then(|| u32::from_str_radix(digits, 16).ok()).flatten()?)?
            }
            '=' | ' ' => return None,
            c => c,
        };
        if c.is_control() {
            return None;
        }
        out.push(c);
    }
    Some(out)
}

fn hexadecimal(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|digit| digit as u8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known() {
        assert_eq!(encode("a+b=c d").as_deref(), Some("a+2Bb+3Dc+20d"));
        assert_eq!(decode("a+2Bb+3Dc+20d").as_deref(), Some("a+b=c d"));
        assert_eq!(encode_utf8("jös+é@x").as_deref(), Some("j\\x{F6}s\\x{2B}\\x{E9}@x"));
        for text in ["j\\x{F6}s@x", "jös@x"] {
            assert_eq!(decode_utf8(text).as_deref(), Some("jös@x"));
        }
        for text in ["+", "+2", "+2b", "+0A", "+7F", "+FF", "a=b", "a b", "é", "\t"] {
            assert_eq!(decode(text), None, "{text:?}");
        }
        for text in
            ["\\", "\\x{}", "\\x{6}", "\\x{f6}", "\\x{0A}", "\\x{D800}", "\\x{1234567}", "\\x{41", "a b"]
        {
            assert_eq!(decode_utf8(text), None, "{text:?}");
        }
        assert_eq!((encode("é"), encode("\n"), encode_utf8("\n")), (None, None, None));
    }

    proptest! {
        #[test]
        fn there_and_back(text in "[ -~]{0,40}", wide in "\\PC{0,40}") {
            prop_assert_eq!(decode(&encode(&text).unwrap()), Some(text));
            if let Some(encoded) = encode_utf8(&wide) {
                prop_assert!(encoded.is_ascii());
                prop_assert_eq!(decode_utf8(&encoded), Some(wide));
            }
        }

        #[test]
        fn any(text in "\\PC{0,40}") {
            let _ = (decode(&text), decode_utf8(&text));
        }
    }
}
