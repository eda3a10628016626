//! The parameters of MAIL and RCPT as they stand on the line (RFC 5321 §4.1.2, Mail-parameters): each
//! at most once, none that is not offered.

use super::command::{ARGUMENT, Refused, refused};
use super::extensions::{Extension, Extensions};
use crate::parameters::{Body, MailParameters, RcptParameters};

/// Those of MAIL; and whether PRDR was said, which ends with the dialogue.
pub(super) fn mail(text: &str, offered: Extensions) -> Result<MailParameters, Refused> {
    let mut mail = MailParameters::default();
    each(text, "MAIL", |key, value| {
        let known = |extension| offered.has(extension);
        match (key, value) {
            ("SIZE", Some(value)) if known(Extension::Size) => mail.size = Some(octets(value)?),
            ("BODY", Some(value)) if known(Extension::EightBitMime) => mail.body = body(value, offered)?,
            _ => return Some(false),
        }
        Some(true)
    })?;
    Ok(mail)
}

/// Those of RCPT.
pub(super) fn rcpt(text: &str, _offered: Extensions) -> Result<RcptParameters, Refused> {
    let rcpt = RcptParameters::default();
    each(text, "RCPT", |_, _| Some(false))?;
    Ok(rcpt)
}

/// Hands each parameter, its key in capitals, to `take`, which says none when the value is bad and false
/// when it knows no such parameter.
fn each(
    text: &str,
    verb: &'static str,
    mut take: impl FnMut(&str, Option<&str>) -> Option<bool>,
) -> Result<(), Refused> {
    let mut seen = Vec::new();
    for parameter in text.split([' ', '\t']).filter(|p| !p.is_empty()) {
        let (key, value) = match parameter.split_once('=') {
            Some((key, value)) => (key.to_ascii_uppercase(), Some(value)),
            None => (parameter.to_ascii_uppercase(), None),
        };
        let bad = || refused(verb, 501, ARGUMENT, &format!("Bad or repeated {key} parameter"));
        match take(&key, value) {
            Some(true) if seen.contains(&key) => return Err(bad()),
            Some(true) => seen.push(key),
            None => return Err(bad()),
            Some(false) => {
                return Err(refused(verb, 555, ARGUMENT, &format!("Unsupported {verb} parameter")));
            }
        }
    }
    Ok(())
}

/// 1 to 20 digits (RFC 1870 §3).
pub(super) fn octets(value: &str) -> Option<u64> {
    let digits = !value.is_empty() && value.len() <= 20 && value.bytes().all(|b| b.is_ascii_digit());
    // More than fits is more than we take.
    digits.then(|| value.parse().unwrap_or(u64::MAX))
}

/// RFC 6152 §3, RFC 3030 §3.
fn body(value: &str, offered: Extensions) -> Option<Body> {
    match () {
        () if value.eq_ignore_ascii_case("BINARYMIME") && offered.has(Extension::BinaryMime) => {
            Some(Body::Binary)
        }
        () if value.eq_ignore_ascii_case("8BITMIME") => Some(Body::EightBit),
        () if value.eq_ignore_ascii_case("7BIT") => Some(Body::SevenBit),
        () => None,
    }
}
