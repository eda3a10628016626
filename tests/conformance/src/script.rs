//! The suite's text: requirements and their scripts. The README has the language.

use std::fmt;

/// How strongly the standard asks for it (RFC 2119).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// It is required.
    Must,
    /// It is recommended.
    Should,
    /// It is allowed, and this is how it is done by a server that does it.
    May,
}

/// A requirement and its test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// `5321-4.1.1.4-data-needs-rcpt`: the RFC's number, the section, a few words.
    pub id: String,
    /// How strongly it is asked for.
    pub level: Level,
    /// Where: `RFC 5321 §4.1.1.4`.
    pub reference: String,
    /// What is asked for, in one sentence.
    pub says: String,
    /// What the server's profile must have for this test.
    pub wants: Vec<Want>,
    /// The script is run once for each of these values of a variable; the name is empty when there is none.
    pub each: (String, Vec<String>),
    /// The script.
    pub steps: Vec<Step>,
}

/// A part of the profile that a test needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// A way to see what was delivered.
    Delivered,
    /// A recipient that does not exist.
    Unknown,
    /// A recipient that we may not send to by this server.
    Relay,
    /// A second recipient.
    Second,
    /// A user's name and password.
    Password,
}

/// One line of a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A new connection. The first one needs no step.
    Connect,
    /// Octets to send, variables in them.
    Send(String),
    /// So many lines of the message, dots doubled on the wire, also expected to be delivered.
    Content(usize, String),
    /// A BDAT command with its octets; the flag is LAST. Also expected to be delivered.
    Chunk(bool, String),
    /// Octets expected to be delivered that are not sent by this step.
    Expected(String),
    /// What was expected to be delivered so far is forgotten.
    Forget,
    /// A reply that fits.
    Reply(Pattern),
    /// Every reply until the server closes; no more of the pattern than so many.
    Drain(Vec<(usize, Pattern)>),
    /// The server closes without another word.
    Closed,
    /// The test is skipped unless the last EHLO's reply had this keyword (`AUTH=PLAIN`: with this parameter).
    Need(String),
    /// The test is skipped if the last EHLO's reply had this keyword.
    Unless(String),
    /// A rule on the last reply that needs more than a pattern: see `checks.rs`.
    Check(String),
    /// The TLS handshake.
    Secure,
    /// The TLS handshake if the last reply was a 220. Where it comes to nothing, or was refused, the script is
    /// over with that connection.
    SecureIfReady,
    /// TLS, as far as the server offers STARTTLS and does not talk it yet, and EHLO after it.
    SecureIfOffered,
    /// Octets are sent one a write from here on, or as they come again.
    Slice(bool),
    /// The client says that nothing more will come, and listens on.
    Eof,
    /// The client closes.
    Hangup,
    /// The message with this mark was delivered, so often, and is what was expected.
    Delivered(usize, String),
    /// The message with this mark was delivered, whatever became of its content.
    Arrived(String),
    /// The message with this mark was delivered, and its header, unfolded, has this text, or one of several.
    Trace(String, String),
    /// No message with this mark is ever delivered: judged at the end of the whole run.
    Absent(String),
}

/// What a reply may be: one of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// The alternatives.
    pub any: Vec<One>,
    /// The text has this in it, whatever the case; variables in it.
    pub text: Option<String>,
}

/// One alternative.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum One {
    /// A code, `x` for any digit, and an enhanced code, if one is demanded, with `x` for any number.
    Code(String, Option<String>),
    /// Instead of a reply the server closes. The script is over with that connection.
    Close,
}

/// A line that is not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// Which, from 1.
    pub line: usize,
    /// Why.
    pub why: String,
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.why)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Must => "MUST",
            Self::Should => "SHOULD",
            Self::May => "MAY",
        })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, one) in self.any.iter().enumerate() {
            if n > 0 {
                f.write_str(" or ")?;
            }
            match one {
                One::Close => f.write_str("a closed connection")?,
                One::Code(code, None) => f.write_str(code)?,
                One::Code(code, Some(enhanced)) => write!(f, "{code} {enhanced}")?,
            }
        }
        if let Some(text) = &self.text {
            write!(f, " with {text:?}")?;
        }
        Ok(())
    }
}

/// Reads requirements: a file of `suite/`.
pub fn parse(text: &str) -> Result<Vec<Requirement>, SyntaxError> {
    let mut all: Vec<Requirement> = Vec::new();
    let mut repeated: Option<(usize, usize)> = None;
    for (n, line) in text.lines().enumerate() {
        let wrong = |why: &str| SyntaxError { line: n + 1, why: why.to_owned() };
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(head) = line.strip_prefix('[') {
            all.push(head_of(head).ok_or_else(|| wrong("expected [ID] LEVEL REFERENCE"))?);
            continue;
        }
        let current = all.last_mut().ok_or_else(|| wrong("a line before the first [ID]"))?;
        if current.says.is_empty() {
            current.says = line.trim().to_owned();
            continue;
        }
        if let Some(times) = line.strip_prefix("repeat ") {
            let times = times.trim().parse().map_err(|_| wrong("expected repeat N"))?;
            repeated = Some((times, current.steps.len()));
        } else if line == "end" {
            let (times, from) = repeated.take().ok_or_else(|| wrong("end without repeat"))?;
            let body = current.steps.split_off(from.min(current.steps.len()));
            current.steps.extend(std::iter::repeat_n(body, times).flatten());
        } else {
            step(line, current).map_err(|why| wrong(&why))?;
        }
    }
    match all.iter().find(|requirement| requirement.steps.is_empty()) {
        Some(empty) => Err(SyntaxError { line: 0, why: format!("{} has no script", empty.id) }),
        None => Ok(all),
    }
}

fn head_of(head: &str) -> Option<Requirement> {
    let (id, rest) = head.split_once("] ")?;
    let (level, reference) = rest.split_once(' ')?;
    let level = match level {
        "MUST" => Level::Must,
        "SHOULD" => Level::Should,
        "MAY" => Level::May,
        _ => return None,
    };
    Some(Requirement {
        id: id.to_owned(),
        level,
        reference: reference.trim().to_owned(),
        says: String::new(),
        wants: Vec::new(),
        each: (String::new(), Vec::new()),
        steps: Vec::new(),
    })
}

fn step(line: &str, into: &mut Requirement) -> Result<(), String> {
    let (word, argument) = match line.split_once(' ') {
        Some((word, argument)) => (word, argument),
        None => (line, ""),
    };
    let steps = &mut into.steps;
    match word {
        "wants:" => {
            for want in argument.split_whitespace() {
                into.wants.push(want_of(want).ok_or_else(|| format!("unknown want {want:?}"))?);
            }
        }
        "each" => {
            let (name, values) = argument.split_once(": ").ok_or("expected each NAME: A | B")?;
            into.each = (name.to_owned(), values.split(" | ").map(|v| v.trim().to_owned()).collect());
        }
        ">" => return idiom(argument, into),
        "C:" => steps.push(Step::Send(format!("{argument}\\r\\n"))),
        "C|" => steps.push(Step::Send(argument.to_owned())),
        "B:" => steps.push(Step::Chunk(false, argument.to_owned())),
        "BL:" => steps.push(Step::Chunk(true, argument.to_owned())),
        "E|" => steps.push(Step::Expected(argument.to_owned())),
        "forget" => steps.push(Step::Forget),
        "S:" if argument == "close" => steps.push(Step::Closed),
        "S:" => steps.push(Step::Reply(pattern(argument)?)),
        "drain" => steps.push(Step::Drain(limits(argument)?)),
        "need:" => steps.push(Step::Need(argument.to_owned())),
        "unless:" => steps.push(Step::Unless(argument.to_owned())),
        "check:" => steps.push(Step::Check(argument.to_owned())),
        "connect" => steps.push(Step::Connect),
        "tls" => steps.push(Step::Secure),
        "tls?" => steps.push(Step::SecureIfReady),
        "secure" => steps.push(Step::SecureIfOffered),
        "slice:" => steps.push(Step::Slice(argument == "on")),
        "eof" => steps.push(Step::Eof),
        "hangup" => steps.push(Step::Hangup),
        "delivered:" => {
            let (times, mark) = match argument.split_once(' ') {
                Some((times, mark)) => (times.parse().map_err(|_| "delivered: N MARK")?, mark),
                None => (1, argument),
            };
            steps.push(Step::Delivered(times, mark.to_owned()));
            into.wants.push(Want::Delivered);
        }
        "arrived:" => {
            steps.push(Step::Arrived(argument.to_owned()));
            into.wants.push(Want::Delivered);
        }
        "trace:" => {
            let (mark, text) = argument.split_once(' ').ok_or("expected trace: MARK TEXT")?;
            steps.push(Step::Trace(mark.to_owned(), text.to_owned()));
            into.wants.push(Want::Delivered);
        }
        // Worth having even where nobody can look at what is delivered.
        "absent:" => steps.push(Step::Absent(argument.to_owned())),
        _ if word.starts_with("M*") || word == "M:" => {
            let times = match word.strip_prefix("M*") {
                Some(times) => times.trim_end_matches(':').parse().map_err(|_| "expected M*N:")?,
                None => 1,
            };
            steps.push(Step::Content(times, argument.to_owned()));
        }
        _ => return Err(format!("unknown word {word:?}")),
    }
    Ok(())
}

/// The idioms of a dialogue, each a few lines that are otherwise written again and again.
fn idiom(name: &str, into: &mut Requirement) -> Result<(), String> {
    let lines: &[&str] = match name {
        "greeting" => &["S: 220"],
        "ehlo" => &["S: 220", "C: EHLO {client}", "S: 250"],
        "helo" => &["S: 220", "C: HELO {client}", "S: 250"],
        "mail" => &["C: MAIL FROM:<{sender}>", "S: 250"],
        "rcpt" => &["C: RCPT TO:<{recipient}>", "S: 250"],
        "data" => &["C: DATA", "S: 354"],
        "envelope" => &["> mail", "> rcpt"],
        "transaction" => &["> mail", "> rcpt", "> data"],
        "header" => &[
            "M: X-Conformance: {token}",
            "M: Date: Thu, 01 Jan 2026 00:00:00 +0000",
            "M: From: <{sender}>",
            "M: To: <{recipient}>",
            "M: Message-ID: <{token}@{client}>",
            "M: Subject: {id}",
        ],
        "message" => &["> header", "M: ", "M: This is a message."],
        "end" => &["C: .", "S: 250"],
        "send" => &["> transaction", "> message", "> end"],
        "quit" => &["C: QUIT", "S: 221"],
        _ => return Err(format!("unknown idiom {name:?}")),
    };
    lines.iter().try_for_each(|line| step(line, into))
}

fn want_of(name: &str) -> Option<Want> {
    Some(match name {
        "delivered" => Want::Delivered,
        "unknown" => Want::Unknown,
        "relay" => Want::Relay,
        "second" => Want::Second,
        "password" => Want::Password,
        _ => return None,
    })
}

fn limits(text: &str) -> Result<Vec<(usize, Pattern)>, String> {
    let parts = text.split(", ").filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (count, codes) = part.split_once(' ').ok_or("expected drain N CODE, …")?;
            Ok((count.parse().map_err(|_| "expected drain N CODE, …")?, pattern(codes)?))
        })
        .collect()
}

/// `250|251`, `5xx 5.1.x|close`, `250 ~ text`.
pub fn pattern(text: &str) -> Result<Pattern, String> {
    let (codes, text) = match text.split_once(" ~ ") {
        Some((codes, text)) => (codes, Some(text.to_owned())),
        None => (text, None),
    };
    let one = |part: &str| {
        if part == "close" {
            return Ok(One::Close);
        }
        let (code, enhanced) = match part.split_once(' ') {
            Some((code, enhanced)) => (code, Some(enhanced.to_owned())),
            None => (part, None),
        };
        let digits = code.len() == 3 && code.bytes().all(|c| c.is_ascii_digit() || c == b'x');
        let dots = enhanced.as_deref().is_none_or(|e| e.split('.').count() == 3);
        if digits && dots {
            Ok(One::Code(code.to_owned(), enhanced))
        } else {
            Err(format!("no code: {part:?}"))
        }
    };
    let any = codes.split('|').map(|part| one(part.trim())).collect::<Result<_, _>>()?;
    Ok(Pattern { any, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_requirement() {
        let text = "# comment\n[1-2-three] MUST RFC 1 §2\nA sentence.\nwants: unknown\neach x: a | b\n\
                    > greeting\nC: NOOP {x}\nS: 250 2.0.0|5xx|close ~ ok\n";
        let all = parse(text).unwrap();
        assert_eq!((all[0].id.as_str(), all[0].says.as_str()), ("1-2-three", "A sentence."));
        assert_eq!(all[0].each, ("x".into(), vec!["a".into(), "b".into()]));
        assert_eq!(all[0].steps[1], Step::Send("NOOP {x}\\r\\n".into()));
        let Step::Reply(pattern) = &all[0].steps[2] else { panic!() };
        assert_eq!(pattern.to_string(), "250 2.0.0 or 5xx or a closed connection with \"ok\"");
    }

    #[test]
    fn what_is_not_understood() {
        for (text, line) in [
            ("C: x\n", 1),
            ("[a] PERHAPS x\n", 1),
            ("[a] MUST RFC 1\nsays\nC: NOOP\nnonsense\n", 4),
            ("[a] MUST RFC 1\nsays\nS: 25\n", 3),
            ("[a] MUST RFC 1\nsays\n> nothing\n", 3),
            ("[a] MUST RFC 1\nsays\n", 0),
        ] {
            assert_eq!(parse(text).unwrap_err().line, line, "{text:?}");
        }
    }
}
