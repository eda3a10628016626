//! What the value of a table, or the answer of a policy server, means: the words of access(5).

use postern_address::Mailbox;
use postern_smtp::{EnhancedCode, Reply};

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// OK
    Accept,
    /// DUNNO, and an empty answer: nothing.
    Dunno,
    /// REJECT, DEFER, 4nn, 5nn.
    Refuse(Words),
    /// DEFER_IF_PERMIT: unless it is refused anyway.
    DeferIfPermit(Words),
    /// DEFER_IF_REJECT: what is refused for good later is refused for now.
    DeferIfReject(Words),
    /// HOLD
    Hold,
    /// REDIRECT
    Redirect(Mailbox),
    /// PREPEND: a header line without line end.
    Tag(String),
    /// DISCARD
    Discard,
    /// WARN, INFO: for the log.
    Note(String),
}

/// Code, status and text of a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Words {
    pub(crate) code: u16,
    pub(crate) enhanced: EnhancedCode,
    pub(crate) text: String,
}

impl Words {
    fn new(code: u16, enhanced: (u8, u16, u16), text: &str) -> Self {
        let (class, subject, detail) = enhanced;
        let default = "Access denied";
        // RFC 3463 codes may stand before the text.
        let (first, rest) = text.split_once(' ').unwrap_or((text, ""));
        let (enhanced, text) = match EnhancedCode::parse(first) {
            Some(own) if u16::from(own.class()) == code / 100 => (own, rest.trim_start()),
            // Of another class: Postfix corrects the class.
            Some(_) => (EnhancedCode::new(class, subject, detail), rest.trim_start()),
            None => (EnhancedCode::new(class, subject, detail), text),
        };
        let text = if text.is_empty() { default } else { text };
        // The line that the client gets is bounded (RFC 5321 §4.5.3.1.5).
        let text = text.chars().filter(|c| !c.is_control()).take(400).collect();
        Self { code, enhanced, text }
    }

    /// As Postfix says it: `<subject>: Recipient address rejected: text`.
    pub(crate) fn reply(&self, (subject, class): (String, &str)) -> Reply {
        let text = format!("<{subject}>: {class} rejected: {}", self.text);
        Reply::new(self.code, self.enhanced, text)
    }
}

/// It is nothing: DUNNO, or empty.
pub(crate) fn is_dunno(value: &str) -> bool {
    let word = value.split_ascii_whitespace().next().unwrap_or_default();
    word.is_empty() || word.eq_ignore_ascii_case("DUNNO")
}

/// Reads a value. `Err` says what is wrong with it.
pub(crate) fn parse(value: &str) -> Result<Access, String> {
    let value = value.trim();
    let (word, rest) = value.split_once([' ', '\t']).unwrap_or((value, ""));
    let rest = rest.trim();
    if is_dunno(value) {
        return Ok(Access::Dunno);
    }
    if word.len() == 3 && word.starts_with(['4', '5']) && word.bytes().all(|b| b.is_ascii_digit()) {
        let code = word.parse().unwrap_or(450);
        if code % 100 >= 60 {
            return Err(format!("`{word}` is not a reply code"));
        }
        let class = if code < 500 { 4 } else { 5 };
        return Ok(Access::Refuse(Words::new(code, (class, 7, 1), rest)));
    }
    if value.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(Access::Accept);
    }
    Ok(match word.to_ascii_uppercase().as_str() {
        "OK" => Access::Accept,
        "REJECT" => Access::Refuse(Words::new(554, (5, 7, 1), rest)),
        "DEFER" => Access::Refuse(Words::new(450, (4, 7, 1), rest)),
        "DEFER_IF_PERMIT" => Access::DeferIfPermit(Words::new(450, (4, 7, 1), rest)),
        "DEFER_IF_REJECT" => Access::DeferIfReject(Words::new(450, (4, 7, 1), rest)),
        "HOLD" => Access::Hold,
        "DISCARD" => Access::Discard,
        "WARN" | "INFO" => Access::Note(rest.to_owned()),
        "REDIRECT" => Mailbox::parse(rest.trim_start_matches('<').trim_end_matches('>'))
            .map(Access::Redirect)
            .map_err(|e| format!("REDIRECT `{rest}`: {e}"))?,
        "PREPEND" => prepend(rest).map(Access::Tag)?,
        _ => return Err(format!("`{word}` is not an action of access(5) that is known here")),
    })
}

/// A header line, of which nobody makes two.
fn prepend(line: &str) -> Result<String, String> {
    let name = line.split_once(':').map(|(name, _)| name).unwrap_or_default();
    let plain = |b: u8| b.is_ascii_graphic() && b != b':';
    if name.is_empty() || !name.bytes().all(plain) || line.len() > 900 || line.chars().any(char::is_control) {
        return Err(format!("PREPEND `{}` is not a header line", line.escape_default()));
    }
    Ok(line.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values() {
        let refused = |value: &str| match parse(value) {
            Ok(Access::Refuse(w) | Access::DeferIfPermit(w) | Access::DeferIfReject(w)) => {
                format!("{} {} {}", w.code, w.enhanced, w.text)
            }
            other => panic!("{value}: {other:?}"),
        };
        assert_eq!(refused("REJECT"), "554 5.7.1 Access denied");
        assert_eq!(refused("reject  5.1.8 go away"), "554 5.1.8 go away");
        assert_eq!(refused("550 no"), "550 5.7.1 no");
        assert_eq!(refused("450 4.7.0 later"), "450 4.7.0 later");
        assert_eq!(refused("450 5.7.0 later"), "450 4.7.1 later");
        assert_eq!(
            refused("DEFER_IF_PERMIT Greylisted, see http://x/"),
            "450 4.7.1 Greylisted, see http://x/"
        );
        assert_eq!(refused("defer_if_reject x"), "450 4.7.1 x");
        for (value, access) in [
            ("", Access::Dunno),
            ("dunno whatever", Access::Dunno),
            ("OK", Access::Accept),
            ("ok with words", Access::Accept),
            ("12345", Access::Accept),
            ("HOLD for me", Access::Hold),
            ("DISCARD", Access::Discard),
            ("PREPEND X-Greylist: delayed 5 s", Access::Tag("X-Greylist: delayed 5 s".into())),
            ("REDIRECT u@v.test", Access::Redirect(Mailbox::parse("u@v.test").unwrap())),
            ("WARN look", Access::Note("look".into())),
        ] {
            assert_eq!(parse(value), Ok(access), "{value}");
        }
        for value in
            ["FILTER smtp:x", "permit_mynetworks", "REDIRECT nobody", "PREPEND words", "465 x", "599 x"]
        {
            assert!(parse(value).is_err(), "{value}");
        }
    }

    proptest! {
        /// Whatever a server says, no reply has a second line, and no header line either.
        #[test]
        fn nobody_writes_a_second_line(value in "(?s)(REJECT |450 |PREPEND X: |DEFER )?.{0,40}") {
            match parse(&value) {
                Ok(Access::Refuse(words)) => prop_assert!(!words.text.chars().any(char::is_control)),
                Ok(Access::Tag(line)) => prop_assert!(!line.chars().any(char::is_control)),
                _ => {}
            }
        }
    }
}
