//! The parameters of MAIL and RCPT as they are said: what [`crate::parameters`] holds, written again.

use std::fmt::Write;

use crate::parameters::{Body, ByMode, MailParameters, Notify, OriginalRecipient, RcptParameters, Ret};

/// What follows the reverse-path, with a blank before each parameter. `hold` is no parameter between hosts: a
/// message is not sent before its time.
pub(super) fn mail(parameters: &MailParameters) -> String {
    let mut line = String::new();
    if let Some(size) = parameters.size {
        let _ = write!(line, " SIZE={size}"); // A string takes everything.
    }
    line.push_str(match parameters.body {
        Body::SevenBit => "",
        Body::EightBit => " BODY=8BITMIME",
        Body::Binary => " BODY=BINARYMIME",
    });
    if parameters.smtputf8 {
        line.push_str(" SMTPUTF8");
    }
    line.push_str(match parameters.ret {
        None => "",
        Some(Ret::Full) => " RET=FULL",
        Some(Ret::Headers) => " RET=HDRS",
    });
    if let Some(envid) = &parameters.envid {
        line.push_str(" ENVID=");
        xtext(&mut line, envid);
    }
    if let Some(by) = parameters.by {
        // Nine digits are all that RFC 2852 §4 has room for.
        let seconds = by.seconds.clamp(-999_999_999, 999_999_999);
        let mode = if by.mode == ByMode::Return { "R" } else { "N" };
        let _ = write!(line, " BY={seconds};{mode}{}", if by.trace { "T" } else { "" });
    }
    if let Some(priority) = parameters.priority.filter(|priority| *priority != 0) {
        let _ = write!(line, " MT-PRIORITY={priority}");
    }
    line
}

/// What follows the forward-path.
pub(super) fn rcpt(parameters: &RcptParameters) -> String {
    let mut line = String::new();
    if let Some(Notify { success, failure, delay }) = parameters.notify {
        let words = [(success, "SUCCESS"), (failure, "FAILURE"), (delay, "DELAY")];
        let wanted: Vec<&str> = words.iter().filter(|(wanted, _)| *wanted).map(|(_, word)| *word).collect();
        let words = if wanted.is_empty() { "NEVER".to_owned() } else { wanted.join(",") };
        let _ = write!(line, " NOTIFY={words}");
    }
    // A type is an atom (RFC 3461 §4.2); what a local program wrote in its place is not said.
    let atom = |kind: &str| kind.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') && !kind.is_empty();
    if let Some(OriginalRecipient { kind, address }) = parameters.orcpt.as_ref().filter(|o| atom(&o.kind)) {
        let _ = write!(line, " ORCPT={kind};");
        match kind.eq_ignore_ascii_case("utf-8") {
            true => utf8_xtext(&mut line, address),
            false => xtext(&mut line, address),
        }
    }
    line
}

/// RFC 3461 §4: what is not printable, `+` and `=` in hexadecimal digits.
fn xtext(out: &mut String, text: &str) {
    for octet in text.bytes() {
        if octet.is_ascii_graphic() && !b"+=".contains(&octet) {
            out.push(char::from(octet));
        } else {
            let _ = write!(out, "+{octet:02X}");
        }
    }
}

/// RFC 6533 §3: the form that every server takes, with or without SMTPUTF8.
fn utf8_xtext(out: &mut String, text: &str) {
    for c in text.chars() {
        if c.is_ascii_graphic() && !"\\+=".contains(c) {
            out.push(c);
        } else {
            let _ = write!(out, "\\x{{{:X}}}", u32::from(c));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters::DeliverBy;

    #[test]
    fn as_they_are_said() {
        assert_eq!(mail(&MailParameters::default()), "");
        let parameters = MailParameters {
            size: Some(7),
            body: Body::Binary,
            smtputf8: true,
            ret: Some(Ret::Headers),
            envid: Some("QQ 3+1=4".into()),
            by: Some(DeliverBy { seconds: 120, mode: ByMode::Return, trace: true }),
            hold: None,
            priority: Some(-3),
        };
        assert_eq!(
            mail(&parameters),
            " SIZE=7 BODY=BINARYMIME SMTPUTF8 RET=HDRS ENVID=QQ+203+2B1+3D4 BY=120;RT MT-PRIORITY=-3"
        );
        assert_eq!(rcpt(&RcptParameters::default()), "");
        let said = |kind: &str, address: &str| {
            let orcpt = OriginalRecipient { kind: kind.into(), address: address.into() };
            let notify = Some(Notify { success: true, failure: false, delay: true });
            rcpt(&RcptParameters { notify, orcpt: Some(orcpt) })
        };
        assert_eq!(said("rfc822", "a+b@x"), " NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a+2Bb@x");
        assert_eq!(said("utf-8", "é+b@x"), " NOTIFY=SUCCESS,DELAY ORCPT=utf-8;\\x{E9}\\x{2B}b@x");
        let never = RcptParameters { notify: Some(Notify::default()), orcpt: None };
        assert_eq!(rcpt(&never), " NOTIFY=NEVER");
    }

    #[test]
    fn no_line_end_gets_out() {
        let orcpt = OriginalRecipient { kind: "utf-8".into(), address: "a\r\nQUIT".into() };
        assert!(!rcpt(&RcptParameters { notify: None, orcpt: Some(orcpt) }).contains(['\r', '\n']));
        let orcpt = OriginalRecipient { kind: "a\r\n".into(), address: "b".into() };
        assert_eq!(rcpt(&RcptParameters { notify: None, orcpt: Some(orcpt) }), "");
        let parameters = MailParameters { envid: Some("a\r\nQUIT".into()), ..MailParameters::default() };
        assert!(!mail(&parameters).contains(['\r', '\n']));
    }
}
