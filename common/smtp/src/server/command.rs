//! What a command line says (RFC 5321 §4.1.1). A command that parses is well-formed to its last
//! character; whether it makes sense now is the session's to say.

use postern_address::{ForwardPath, ReversePath};

use super::arguments;
use super::extensions::Extensions;
use crate::parameters::{MailParameters, RcptParameters};
use crate::reply::{EnhancedCode, Reply};

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// HELO with the client's name.
    Helo(&'a str),
    /// EHLO with the client's name.
    Ehlo(&'a str),
    /// LHLO with the client's name (RFC 2033).
    Lhlo(&'a str),
    /// MAIL
    Mail(Box<Mail>),
    /// RCPT
    Rcpt(Box<Rcpt>),
    /// DATA
    Data,
    /// BDAT (RFC 3030 §2): so many octets follow its line at once.
    Bdat {
        /// Octets of the chunk.
        size: u64,
        /// There is no other.
        last: bool,
    },
    /// RSET
    Rset,
    /// NOOP, with anything behind it.
    Noop,
    /// VRFY and its argument, as it stands there.
    Vrfy(&'a str),
    /// EXPN and its argument.
    Expn(&'a str),
    /// ETRN and its argument (RFC 1985).
    Etrn(&'a str),
    /// XCLIENT and its attributes.
    Xclient(&'a str),
    /// XFORWARD and its attributes.
    Xforward(&'a str),
    /// HELP, with anything behind it.
    Help,
    /// QUIT
    Quit,
}

impl Command<'_> {
    /// Whether a client has to wait for the reply before it goes on (RFC 2920 §3.1).
    pub fn ends_group(&self) -> bool {
        use Command::*;
        matches!(self, Helo(_) | Ehlo(_) | Lhlo(_) | Data | Vrfy(_) | Expn(_) | Etrn(_) | Noop | Quit)
    }
}

/// MAIL and its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mail {
    /// Where bounces go.
    pub reverse_path: ReversePath,
    /// What else is asked for.
    pub parameters: MailParameters,
    /// PRDR was said.
    pub prdr: bool,
}

/// RCPT and its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rcpt {
    /// To whom.
    pub forward_path: ForwardPath,
    /// What else is asked for.
    pub parameters: RcptParameters,
    /// Something of it is not US-ASCII: there has to be a transaction with SMTPUTF8.
    pub utf8: bool,
}

/// A line that is no command we take: which command it tried to be, and the reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// For the log: `RCPT`, or `UNKNOWN`.
    pub verb: &'static str,
    /// For the client.
    pub reply: Reply,
}

const SYNTAX: EnhancedCode = EnhancedCode::new(5, 5, 2);
const NOT_IMPLEMENTED: EnhancedCode = EnhancedCode::new(5, 5, 1);
pub(super) const ARGUMENT: EnhancedCode = EnhancedCode::new(5, 5, 4);
const SENDER_SYNTAX: EnhancedCode = EnhancedCode::new(5, 1, 7);
const RECIPIENT_SYNTAX: EnhancedCode = EnhancedCode::new(5, 1, 3);
pub(super) const NOT_ASCII: EnhancedCode = EnhancedCode::new(5, 6, 7);

/// Known and not offered: 502 instead of 500 (RFC 5321 §4.2.4).
const NOT_OFFERED: [(&str, &str); 7] = [
    ("TURN", "Error: TURN is a way to get the mail of others (RFC 5321 appendix F.1)"),
    ("SEND", "Error: SEND is of no use any more (RFC 5321 appendix F.6)"),
    ("SOML", "Error: SOML is of no use any more (RFC 5321 appendix F.6)"),
    ("SAML", "Error: SAML is of no use any more (RFC 5321 appendix F.6)"),
    ("STARTTLS", "Error: command not implemented"),
    ("AUTH", "Error: command not implemented"),
    ("ATRN", "Error: command not implemented"),
];

/// Parses a line without its CRLF; of parameters it knows those that belong to what is `offered`.
pub fn parse(line: &[u8], offered: Extensions) -> Result<Command<'_>, Refused> {
    let unknown = || match line.get(..4) {
        // Another server would find a chunk's size in it, or a tab between the words.
        Some(verb) if verb.eq_ignore_ascii_case(b"BDAT") => bad_chunk(),
        _ => refused("UNKNOWN", 500, SYNTAX, "Error: command not recognized"),
    };
    let text = std::str::from_utf8(line).map_err(|_| unknown())?;
    if text.bytes().any(|b| b.is_ascii_control() && b != b'\t') {
        return Err(unknown());
    }
    let text = text.trim_end_matches([' ', '\t']);
    let (verb, rest) = text.split_once(' ').unwrap_or((text, ""));
    let is = |name: &str| verb.eq_ignore_ascii_case(name);
    if is("MAIL") {
        mail(rest, offered).map(|mail| Command::Mail(Box::new(mail)))
    } else if is("RCPT") {
        rcpt(rest, offered).map(|rcpt| Command::Rcpt(Box::new(rcpt)))
    } else if is("DATA") {
        bare("DATA", rest, Command::Data)
    } else if is("BDAT") {
        chunk(rest)
    } else if is("EHLO") {
        client_name("EHLO", rest).map(Command::Ehlo)
    } else if is("HELO") {
        client_name("HELO", rest).map(Command::Helo)
    } else if is("LHLO") {
        client_name("LHLO", rest).map(Command::Lhlo)
    } else if is("RSET") {
        bare("RSET", rest, Command::Rset)
    } else if is("QUIT") {
        bare("QUIT", rest, Command::Quit)
    } else if is("NOOP") {
        Ok(Command::Noop)
    } else if is("HELP") {
        Ok(Command::Help)
    } else if is("VRFY") {
        argument("VRFY", rest, Command::Vrfy)
    } else if is("EXPN") {
        argument("EXPN", rest, Command::Expn)
    } else if is("ETRN") {
        argument("ETRN", rest, Command::Etrn)
    } else if is("XCLIENT") {
        argument("XCLIENT", rest, Command::Xclient)
    } else if is("XFORWARD") {
        argument("XFORWARD", rest, Command::Xforward)
    } else if let Some((name, why)) = NOT_OFFERED.into_iter().find(|(name, _)| is(name)) {
        Err(refused(name, 502, NOT_IMPLEMENTED, why))
    } else {
        Err(unknown())
    }
}

pub(super) fn refused(verb: &'static str, code: u16, enhanced: EnhancedCode, text: &str) -> Refused {
    Refused { verb, reply: Reply::new(code, enhanced, text) }
}

fn bare<'a>(verb: &'static str, rest: &str, command: Command<'a>) -> Result<Command<'a>, Refused> {
    if rest.trim().is_empty() {
        return Ok(command);
    }
    Err(refused(verb, 501, ARGUMENT, &format!("Syntax: {verb}")))
}

/// One word of printable characters. That it is the client's domain or address literal, as the grammar
/// has it, is not checked: RFC 5321 §4.1.4 forbids to refuse mail for a name that does not verify, and the
/// field is full of names with underscores and worse. It goes into one line of the trace and of the log.
fn client_name<'a>(verb: &'static str, rest: &'a str) -> Result<&'a str, Refused> {
    let name = rest.trim();
    let printable = name.bytes().all(|b| b.is_ascii_graphic());
    if name.is_empty() || name.len() > 255 || !printable {
        return Err(refused(verb, 501, ARGUMENT, &format!("Syntax: {verb} hostname")));
    }
    Ok(name)
}

/// A BDAT that does not say how much follows leaves nobody knowing what is data and what a command: 521, and
/// the session ends.
fn chunk(rest: &str) -> Result<Command<'_>, Refused> {
    let mut words = rest.split(' ').filter(|word| !word.is_empty());
    let size = words.next().and_then(arguments::octets);
    let last = words.next();
    match (size, last, words.next()) {
        (Some(size), None, _) => Ok(Command::Bdat { size, last: false }),
        (Some(size), Some(last), None) if last.eq_ignore_ascii_case("LAST") => {
            Ok(Command::Bdat { size, last: true })
        }
        _ => Err(bad_chunk()),
    }
}

fn bad_chunk() -> Refused {
    refused("BDAT", 521, ARGUMENT, "Syntax: BDAT size [LAST]")
}

/// One argument or several: which, is for those to say who are asked about it.
fn argument<'a>(
    verb: &'static str,
    rest: &'a str,
    command: impl FnOnce(&'a str) -> Command<'a>,
) -> Result<Command<'a>, Refused> {
    match rest.trim() {
        "" => Err(refused(verb, 501, ARGUMENT, &format!("Syntax: {verb} argument"))),
        argument => Ok(command(argument)),
    }
}

fn mail(rest: &str, offered: Extensions) -> Result<Mail, Refused> {
    let syntax = || refused("MAIL", 501, ARGUMENT, "Syntax: MAIL FROM:<address>");
    let (path, parameters) = path(rest, "FROM:").ok_or_else(syntax)?;
    let reverse_path = ReversePath::parse(path)
        .map_err(|error| refused("MAIL", 501, SENDER_SYNTAX, &format!("Bad sender address: {error}")))?;
    let (parameters, prdr) = arguments::mail(parameters, offered)?;
    if !rest.is_ascii() && !parameters.smtputf8 {
        return Err(refused("MAIL", 553, NOT_ASCII, "Error: not US-ASCII, which takes SMTPUTF8"));
    }
    Ok(Mail { reverse_path, parameters, prdr })
}

fn rcpt(rest: &str, offered: Extensions) -> Result<Rcpt, Refused> {
    let syntax = || refused("RCPT", 501, ARGUMENT, "Syntax: RCPT TO:<address>");
    let (path, parameters) = path(rest, "TO:").ok_or_else(syntax)?;
    let forward_path = ForwardPath::parse(path).map_err(|error| {
        refused("RCPT", 501, RECIPIENT_SYNTAX, &format!("Bad recipient address: {error}"))
    })?;
    let utf8 = !rest.is_ascii();
    Ok(Rcpt { forward_path, parameters: arguments::rcpt(parameters, offered)?, utf8 })
}

/// `FROM:<path> parameters`: the path with its brackets, and what follows. Blanks before the path are no
/// part of the grammar, but of the field.
fn path<'a>(rest: &'a str, keyword: &str) -> Option<(&'a str, &'a str)> {
    let head = rest.get(..keyword.len())?;
    let rest = rest[keyword.len()..].trim_start_matches(' ');
    if !head.eq_ignore_ascii_case(keyword) || !rest.starts_with('<') {
        return None;
    }
    let end = path_end(rest)?;
    let (path, parameters) = rest.split_at(end);
    (parameters.is_empty() || parameters.starts_with([' ', '\t'])).then_some((path, parameters))
}

/// The index behind the `>` that is not within a quoted string.
fn path_end(text: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, b) in text.bytes().enumerate() {
        match b {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'>' if !quoted => return Some(at + 1),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::parameters::Body;

    fn parse(line: &[u8]) -> Result<Command<'_>, Refused> {
        super::parse(line, Extensions::all())
    }

    fn code(line: &str) -> u16 {
        parse(line.as_bytes()).map_or_else(|refused| refused.reply.code, |_| 250)
    }

    #[test]
    fn understood() {
        assert_eq!(parse(b"eHLO  [192.0.2.1] "), Ok(Command::Ehlo("[192.0.2.1]")));
        assert_eq!(parse(b"noop x y"), Ok(Command::Noop));
        assert_eq!(parse(b"BDAT 010"), Ok(Command::Bdat { size: 10, last: false }));
        assert_eq!(parse(b"bdat  0 last "), Ok(Command::Bdat { size: 0, last: true }));
        assert_eq!(parse(b"BDAT 99999999999999999999"), Ok(Command::Bdat { size: u64::MAX, last: false }));
        let Ok(Command::Mail(mail)) = parse(b"MAIL from: <\"a>b\"@X.org> size=00100 Body=8bitMIME") else {
            panic!()
        };
        assert_eq!(mail.reverse_path.as_str(), "\"a>b\"@x.org");
        assert_eq!((mail.parameters.size, mail.parameters.body), (Some(100), Body::EightBit));
        let Ok(Command::Rcpt(rcpt)) = parse(b"RCPT TO:<postmaster>") else { panic!() };
        assert_eq!(rcpt.forward_path, ForwardPath::Postmaster);
        assert_eq!(code("MAIL FROM:<>"), 250);
        assert_eq!(code("MAIL FROM:<> SIZE=99999999999999999999"), 250);
        assert_eq!(code("RCPT TO:<@a.b,@c.d:u@v.test>"), 250);
    }

    #[test]
    fn refused_with_the_right_code() {
        for (line, expected) in [
            ("", 500),
            ("FOO", 500),
            ("MAILFROM:<a@b>", 500),
            ("NOOP\tx", 500),
            ("STARTTLS", 502),
            ("SAML FROM:<a@b>", 502),
            ("EHLO", 501),
            ("HELO a b", 501),
            ("DATA x", 501),
            ("QUIT now", 501),
            ("VRFY", 501),
            ("MAIL", 501),
            ("MAIL FROM:", 501),
            ("MAIL FROM:a@b", 501),
            ("MAIL FROM:<a@b", 501),
            ("MAIL FROM:<a@b>SIZE=1", 501),
            ("MAIL FROM:<a b@c>", 501),
            ("MAIL FROM:<a@b> SIZE=", 501),
            ("MAIL FROM:<a@b> SIZE=-1", 501),
            ("MAIL FROM:<a@b> SIZE=1 SIZE=1", 501),
            ("MAIL FROM:<a@b> BODY=9BIT", 501),
            ("BDAT", 521),
            ("BDAT\t5", 521),
            ("bdat5 LAST", 521),
            ("BDAT 5\u{1}", 521),
            ("BDAT x", 521),
            ("BDAT -1", 521),
            ("BDAT 1 LAST LAST", 521),
            ("BDAT 1 LATER", 521),
            ("BDAT 1LAST", 521),
            ("BDAT 999999999999999999999", 521),
            ("MAIL FROM:<a@b> SMTPUTF8=1", 501),
            ("MAIL FROM:<\u{fc}@b> SMTPUTF8", 250),
            ("MAIL FROM:<a@\u{fc}.test>", 553),
            ("MAIL FROM:<a@b> AUTH=<>", 555),
            ("MAIL FROM:<\u{fc}@b>", 553),
            ("RCPT TO:<>", 501),
            ("RCPT TO:<a>", 501),
            ("RCPT TO:<a@b> NOTIFY=NEVER", 250),
            ("RCPT TO:<a@b> SIZE=1", 555),
        ] {
            assert_eq!(code(line), expected, "{line:?}");
        }
        assert_eq!(parse(b"\xff\xfe").unwrap_err().reply.code, 500);
    }

    proptest! {
        #[test]
        fn never_panics(line in "(MAIL FROM:|RCPT TO:|mail |EHLO |)[<>\"\\\\a@.: =\u{e9}\t]{0,30}") {
            let _ = parse(line.as_bytes());
        }
    }
}
