//! The parameters of MAIL and RCPT as they stand on the line (RFC 5321 §4.1.2, Mail-parameters): each
//! at most once, none that is not offered. A value that is not what its RFC says is 501 5.5.4, a parameter
//! that we do not offer 555 5.5.4.

use super::command::{ARGUMENT, Refused, refused};
use super::extensions::{Extension, Extensions};
use crate::parameters::{
    Body, ByMode, DeliverBy, Hold, MailParameters, Notify, OriginalRecipient, RcptParameters, Ret,
};
use crate::{date_time, xtext};

/// Longest ENVID, decoded (RFC 3461 §4.4).
const ENVID_MAX: usize = 100;

/// Longest ORCPT, as it stands there (RFC 3461 §4.2).
const ORCPT_MAX: usize = 500;

/// Those of MAIL; and whether PRDR was said, which ends with the dialogue.
pub(super) fn mail(text: &str, offered: Extensions) -> Result<(MailParameters, bool), Refused> {
    let mut mail = MailParameters::default();
    let mut prdr = false;
    each(text, "MAIL", |key, value| {
        let known = |extension| offered.has(extension);
        match (key, value) {
            ("SIZE", _) if known(Extension::Size) => mail.size = Some(octets(value?)?),
            ("BODY", _) if known(Extension::EightBitMime) => mail.body = body(value?, offered)?,
            ("SMTPUTF8", None) if known(Extension::SmtpUtf8) => mail.smtputf8 = true,
            ("RET", _) if known(Extension::Dsn) => mail.ret = Some(ret(value?)?),
            ("ENVID", _) if known(Extension::Dsn) => mail.envid = Some(envid(value?)?),
            ("BY", _) if known(Extension::DeliverBy) => mail.by = Some(by(value?)?),
            ("HOLDFOR" | "HOLDUNTIL", _) if known(Extension::FutureRelease) => {
                // RFC 4865 §4.2: one of the two.
                let hold = if key == "HOLDFOR" { hold_for(value?) } else { hold_until(value?) };
                mail.hold = hold.filter(|_| mail.hold.is_none()).map(Some)?;
            }
            ("MT-PRIORITY", _) if known(Extension::MtPriority) => mail.priority = Some(priority(value?)?),
            ("PRDR", None) if known(Extension::Prdr) => prdr = true,
            ("SMTPUTF8", Some(_)) if known(Extension::SmtpUtf8) => return None,
            ("PRDR", Some(_)) if known(Extension::Prdr) => return None,
            _ => return Some(false),
        }
        Some(true)
    })?;
    Ok((mail, prdr))
}

/// Those of RCPT.
pub(super) fn rcpt(text: &str, offered: Extensions) -> Result<RcptParameters, Refused> {
    let mut rcpt = RcptParameters::default();
    each(text, "RCPT", |key, value| {
        match key {
            "NOTIFY" if offered.has(Extension::Dsn) => rcpt.notify = Some(notify(value?)?),
            "ORCPT" if offered.has(Extension::Dsn) => rcpt.orcpt = Some(orcpt(value?)?),
            _ => return Some(false),
        }
        Some(true)
    })?;
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

/// 1 to 20 digits (RFC 1870 §3, RFC 3030 §2).
pub(super) fn octets(value: &str) -> Option<u64> {
    let digits = is_digits(value) && value.len() <= 20;
    // More than fits is more than we take.
    digits.then(|| value.parse().unwrap_or(u64::MAX))
}

fn is_digits(value: &str) -> bool {
    !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit())
}

/// RFC 6152 §3, RFC 3030 §3.
fn body(value: &str, offered: Extensions) -> Option<Body> {
    match value.to_ascii_uppercase().as_str() {
        "BINARYMIME" if offered.has(Extension::BinaryMime) => Some(Body::Binary),
        "8BITMIME" => Some(Body::EightBit),
        "7BIT" => Some(Body::SevenBit),
        _ => None,
    }
}

/// RFC 3461 §4.3.
fn ret(value: &str) -> Option<Ret> {
    match value.to_ascii_uppercase().as_str() {
        "FULL" => Some(Ret::Full),
        "HDRS" => Some(Ret::Headers),
        _ => None,
    }
}

/// RFC 3461 §4.4.
fn envid(value: &str) -> Option<String> {
    xtext::decode(value).filter(|id| !id.is_empty() && id.len() <= ENVID_MAX)
}

/// RFC 3461 §4.1: NEVER, or a list of the others.
fn notify(value: &str) -> Option<Notify> {
    let mut notify = Notify::default();
    if value.eq_ignore_ascii_case("NEVER") {
        return Some(notify);
    }
    for word in value.split(',') {
        match word.to_ascii_uppercase().as_str() {
            "SUCCESS" => notify.success = true,
            "FAILURE" => notify.failure = true,
            "DELAY" => notify.delay = true,
            _ => return None,
        }
    }
    Some(notify)
}

/// RFC 3461 §4.2, RFC 6533 §3.
fn orcpt(value: &str) -> Option<OriginalRecipient> {
    let (kind, address) = value.split_once(';').filter(|_| value.len() <= ORCPT_MAX)?;
    let atext = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*-/?^_`{|}~".contains(&b);
    if kind.is_empty() || !kind.bytes().all(atext) {
        return None;
    }
    let decode = if kind.eq_ignore_ascii_case("utf-8") { xtext::decode_utf8 } else { xtext::decode };
    let address = decode(address).filter(|address| !address.is_empty())?;
    Some(OriginalRecipient { kind: kind.to_owned(), address })
}

/// RFC 2852 §4: `[+-]digits;N` or `R`, and perhaps `T`. What is returned when it is late cannot be late at
/// the beginning.
fn by(value: &str) -> Option<DeliverBy> {
    let (time, mode) = value.split_once(';')?;
    let digits = time.strip_prefix(['+', '-']).unwrap_or(time);
    let magnitude: i64 = digits.parse().ok().filter(|_| is_digits(digits) && digits.len() <= 9)?;
    let seconds = if time.starts_with('-') { -magnitude } else { magnitude };
    let (mode, trace) = match mode.to_ascii_uppercase().as_str() {
        "N" => (ByMode::Notify, false),
        "NT" => (ByMode::Notify, true),
        "R" => (ByMode::Return, false),
        "RT" => (ByMode::Return, true),
        _ => return None,
    };
    (mode == ByMode::Notify || seconds > 0).then_some(DeliverBy { seconds, mode, trace })
}

/// RFC 4865 §4.2: 1 to 9 digits, not zero.
fn hold_for(value: &str) -> Option<Hold> {
    let seconds: u64 = value.parse().ok().filter(|_| is_digits(value) && value.len() <= 9)?;
    (seconds > 0).then_some(Hold::For(seconds))
}

fn hold_until(value: &str) -> Option<Hold> {
    date_time::parse(value).map(Hold::Until)
}

/// RFC 6710 §4.1: -9 to 9, one digit and no plus.
fn priority(value: &str) -> Option<i8> {
    let digit = value.strip_prefix('-').unwrap_or(value);
    let ok = digit.len() == 1 && is_digits(digit) && value != "-0";
    value.parse().ok().filter(|_| ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_mail(text: &str) -> Result<MailParameters, u16> {
        mail(text, Extensions::all()).map(|(mail, _)| mail).map_err(|refused| refused.reply.code)
    }

    fn of_rcpt(text: &str) -> Result<RcptParameters, u16> {
        rcpt(text, Extensions::all()).map_err(|refused| refused.reply.code)
    }

    #[test]
    fn mail_parameters() {
        let all =
            " SIZE=100 BODY=binarymime smtputf8 RET=hdrs ENVID=a+2Bb BY=-5;nt HOLDFOR=60 MT-PRIORITY=-9 PRDR";
        let expected = MailParameters {
            size: Some(100),
            body: Body::Binary,
            smtputf8: true,
            ret: Some(Ret::Headers),
            envid: Some("a+b".into()),
            by: Some(DeliverBy { seconds: -5, mode: ByMode::Notify, trace: true }),
            hold: Some(Hold::For(60)),
            priority: Some(-9),
        };
        assert_eq!(of_mail(all), Ok(expected));
        assert_eq!(mail(all, Extensions::all()).map(|(_, prdr)| prdr), Ok(true));
        assert_eq!(of_mail("HOLDUNTIL=1970-01-02T00:00:00Z").unwrap().hold, Some(Hold::Until(86_400_000)));
        assert_eq!(of_mail("BY=+120;R").unwrap().by.map(|by| by.seconds), Some(120));
    }

    #[test]
    fn bad_mail_parameters() {
        let envid = format!("ENVID={}", "a".repeat(101));
        for text in [
            "SIZE",
            "SIZE=",
            "SIZE=1 size=1",
            "BODY=",
            "BODY=8BIT",
            "SMTPUTF8=",
            "SMTPUTF8=yes",
            "SMTPUTF8 SMTPUTF8",
            "RET=ALL",
            "RET",
            "RET=FULL RET=FULL",
            "ENVID=",
            "ENVID=+",
            "ENVID=a=b",
            "ENVID=+0D",
            &envid,
            "BY=",
            "BY=5",
            "BY=5;",
            "BY=5;X",
            "BY=5;TR",
            "BY=0;R",
            "BY=-1;R",
            "BY=1234567890;N",
            "BY=;N",
            "BY=+-5;N",
            "HOLDFOR=0",
            "HOLDFOR=-1",
            "HOLDFOR=1234567890",
            "HOLDFOR=",
            "HOLDUNTIL=tomorrow",
            "HOLDFOR=1 HOLDUNTIL=2030-01-01T00:00:00Z",
            "HOLDFOR=1 HOLDFOR=2",
            "MT-PRIORITY=10",
            "MT-PRIORITY=+3",
            "MT-PRIORITY=-",
            "MT-PRIORITY=-0",
            "MT-PRIORITY=",
            "PRDR=1",
        ] {
            assert_eq!(of_mail(text), Err(501), "{text}");
        }
        for text in ["NOTIFY=NEVER", "AUTH=<>", "X", "=1", "SIZE=1 XYZ=2"] {
            assert_eq!(of_mail(text), Err(555), "{text}");
        }
    }

    #[test]
    fn rcpt_parameters() {
        let both = of_rcpt("NOTIFY=delay,Success ORCPT=rfc822;a+2Bb@c.d").unwrap();
        assert_eq!(both.notify, Some(Notify { success: true, failure: false, delay: true }));
        assert_eq!(both.orcpt, Some(OriginalRecipient { kind: "rfc822".into(), address: "a+b@c.d".into() }));
        assert_eq!(of_rcpt("NOTIFY=NEVER").unwrap().notify, Some(Notify::default()));
        assert_eq!(of_rcpt("ORCPT=utf-8;j\\x{F6}s@x").unwrap().orcpt.unwrap().address, "jös@x");
        let orcpt = format!("ORCPT=rfc822;{}", "a".repeat(500));
        for text in [
            "NOTIFY=",
            "NOTIFY=NEVER,SUCCESS",
            "NOTIFY=SUCCESS,",
            "NOTIFY=ALWAYS",
            "NOTIFY=NEVER NOTIFY=NEVER",
            "ORCPT=",
            "ORCPT=a@b",
            "ORCPT=;a@b",
            "ORCPT=rfc822;",
            "ORCPT=rfc822;a+",
            "ORCPT=r(c;a",
            "ORCPT=rfc822;é",
            &orcpt,
        ] {
            assert_eq!(of_rcpt(text), Err(501), "{text}");
        }
        assert_eq!(of_rcpt("SIZE=1"), Err(555));
    }

    #[test]
    fn what_is_not_offered_is_not_known() {
        let offered = Extensions::BASIC;
        let code = |text| mail(text, offered).map_or_else(|refused| refused.reply.code, |_| 250);
        let parameters = ["SMTPUTF8", "RET=FULL", "ENVID=a", "BY=5;N", "HOLDFOR=1", "MT-PRIORITY=1", "PRDR"];
        assert_eq!(parameters.map(code), [555; 7]);
        assert_eq!((code("BODY=BINARYMIME"), code("BODY=8BITMIME SIZE=1")), (501, 250));
        assert_eq!(rcpt("NOTIFY=NEVER", offered).unwrap_err().reply.code, 555);
        assert_eq!(mail("SIZE=1", Extensions::NONE).unwrap_err().reply.code, 555);
    }
}
