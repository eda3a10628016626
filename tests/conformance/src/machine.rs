//! One run of one script: a pure machine. It is told what happened and says what to do next.

use std::collections::{BTreeMap, VecDeque};

use crate::checks;
use crate::reply::{Read, Reply};
use crate::script::{One, Pattern, Requirement, Step};
use crate::text::{expand, show};

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The last action is done; also the first event of all.
    Done,
    /// Octets came.
    Received(&'a [u8]),
    /// The server closed, or reset, the connection.
    Closed,
    /// Nothing came within the deadline.
    Silence,
    /// All messages with the mark that was asked for, whole.
    Found(Vec<Vec<u8>>),
    /// The last action could not be done.
    Failed(String),
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Connect anew; an old connection is closed.
    Connect,
    /// Write octets; one a write if the flag says so. A server that is gone already is no failure.
    Send(Vec<u8>, bool),
    /// Read what comes, until a deadline.
    Read,
    /// Do the TLS handshake.
    Handshake,
    /// Close the sending direction.
    Eof,
    /// Close the connection.
    Hangup,
    /// Look for delivered messages with that mark until there are so many, or until a deadline.
    Look(String, usize),
    /// It is over.
    Finish(Verdict),
}

/// What is to be said of a requirement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is met.
    Pass,
    /// It is not met, and what was seen instead.
    Fail(String),
    /// It cannot be judged of this server, and why.
    Skip(String),
}

/// The machine.
#[derive(Debug)]
pub struct Machine {
    steps: VecDeque<Step>,
    variables: BTreeMap<String, Vec<u8>>,
    begun: bool,
    input: Vec<u8>,
    gone: bool,
    secure: bool,
    slice: bool,
    said_ehlo: bool,
    offers: Option<Reply>,
    last: Option<Reply>,
    counts: Vec<usize>,
    expected: Vec<u8>,
    lf: bool,
    marks_absent: Vec<String>,
    transcript: Vec<String>,
}

impl Machine {
    /// A run of a requirement's script. `lf`: what is delivered is written with LF line ends.
    pub fn new(requirement: &Requirement, variables: BTreeMap<String, Vec<u8>>, lf: bool) -> Self {
        let mut steps: VecDeque<Step> = requirement.steps.iter().cloned().collect();
        if steps.front() != Some(&Step::Connect) {
            steps.push_front(Step::Connect);
        }
        Self {
            steps,
            variables,
            begun: false,
            input: Vec::new(),
            gone: false,
            secure: false,
            slice: false,
            said_ehlo: false,
            offers: None,
            last: None,
            counts: Vec::new(),
            expected: Vec::new(),
            lf,
            marks_absent: Vec::new(),
            transcript: Vec::new(),
        }
    }

    /// Takes what happened and says what to do.
    pub fn next(&mut self, event: Event<'_>) -> Action {
        match event {
            Event::Failed(_) if self.steps.front() == Some(&Step::SecureIfReady) => {
                self.leave();
                self.steps.pop_front();
            }
            Event::Failed(why) => return Action::Finish(Verdict::Fail(why)),
            Event::Received(octets) => self.input.extend_from_slice(octets),
            Event::Closed => self.gone = true,
            Event::Silence => return self.silent(),
            Event::Found(messages) => {
                if let Err(why) = self.judge_found(&messages) {
                    return Action::Finish(Verdict::Fail(why));
                }
                self.steps.pop_front();
            }
            Event::Done if self.begun => drop(self.steps.pop_front()),
            Event::Done => {}
        }
        self.begun = true;
        loop {
            match self.step() {
                Ok(Some(action)) => return action,
                Ok(None) => drop(self.steps.pop_front()),
                Err(verdict) => return Action::Finish(verdict),
            }
        }
    }

    /// Marks of messages that must never be delivered.
    pub fn absent(&self) -> &[String] {
        &self.marks_absent
    }

    /// What was said, a line each.
    pub fn transcript(&self) -> &[String] {
        &self.transcript
    }

    /// The step at the front: an action that is to be done for it, or nothing if it is done.
    fn step(&mut self) -> Result<Option<Action>, Verdict> {
        let Some(step) = self.steps.front().cloned() else { return Err(Verdict::Pass) };
        Ok(match step {
            Step::Connect => {
                self.input.clear();
                (self.gone, self.secure, self.slice, self.offers) = (false, false, false, None);
                self.transcript.push("-- connection".into());
                Some(Action::Connect)
            }
            Step::Send(text) => Some(self.send(self.octets(&text))),
            Step::Content(times, text) => {
                let line = [&self.octets(&text)[..], b"\r\n"].concat().repeat(times);
                self.expected.extend_from_slice(&line);
                Some(self.send(stuffed(&line)))
            }
            Step::Chunk(last, text) => {
                let octets = self.octets(&text);
                self.expected.extend_from_slice(&octets);
                let command = format!("BDAT {}{}\r\n", octets.len(), if last { " LAST" } else { "" });
                Some(self.send([command.as_bytes(), &octets].concat()))
            }
            Step::Expected(text) => {
                let octets = self.octets(&text);
                self.expected.extend_from_slice(&octets);
                None
            }
            Step::Forget => {
                self.expected.clear();
                None
            }
            Step::Reply(pattern) => self.reply(&pattern)?,
            Step::Drain(limits) => self.drain(&limits)?,
            Step::Closed => match self.read_reply()? {
                Some(reply) => return Err(fail(format!("expected a closed connection, got {reply}"))),
                None if self.gone => None,
                None => Some(Action::Read),
            },
            Step::Need(what) => match self.offers(&what) {
                true => None,
                false => return Err(Verdict::Skip(format!("{what} is not offered"))),
            },
            Step::Unless(what) if self.offers(&what) => {
                return Err(Verdict::Skip(format!("{what} is offered")));
            }
            Step::Unless(_) => None,
            Step::Check(name) => {
                let last = self.last.as_ref().ok_or_else(|| fail("no reply to look at".into()))?;
                checks::check(&name, last, self.offers.as_ref()).map_err(fail)?;
                None
            }
            Step::SecureIfReady if self.last.as_ref().is_none_or(|reply| reply.code != 220) => {
                self.leave();
                None
            }
            Step::Secure | Step::SecureIfReady if !self.input.is_empty() => {
                return Err(fail(format!("octets behind the reply to STARTTLS: {}", show(&self.input))));
            }
            Step::Secure | Step::SecureIfReady => {
                self.secure = true;
                self.transcript.push("-- TLS".into());
                Some(Action::Handshake)
            }
            Step::SecureIfOffered => {
                if self.offers("STARTTLS") && !self.secure {
                    let client = self.variables.get("client").cloned().unwrap_or_default();
                    let client = String::from_utf8_lossy(&client).into_owned();
                    let code = |code: &str| {
                        let any = vec![One::Code(code.into(), None)];
                        Step::Reply(Pattern { any, text: None })
                    };
                    let more = [
                        Step::Send("STARTTLS\\r\\n".into()),
                        code("220"),
                        Step::Secure,
                        Step::Send(format!("EHLO {client}\\r\\n")),
                        code("250"),
                    ];
                    // This step goes when it is done, so these come behind it.
                    more.into_iter().rev().for_each(|step| self.steps.insert(1, step));
                }
                None
            }
            Step::Slice(on) => {
                self.slice = on;
                None
            }
            Step::Eof => {
                self.transcript.push("-- the client will say no more".into());
                Some(Action::Eof)
            }
            Step::Hangup => {
                self.transcript.push("-- the client closes".into());
                Some(Action::Hangup)
            }
            Step::Delivered(times, mark) => Some(Action::Look(self.text(&mark), times)),
            Step::Arrived(mark) | Step::Trace(mark, _) => Some(Action::Look(self.text(&mark), 1)),
            Step::Absent(mark) => {
                self.marks_absent.push(self.text(&mark));
                None
            }
        })
    }

    fn send(&mut self, octets: Vec<u8>) -> Action {
        self.said_ehlo = octets.get(..5).is_some_and(|verb| verb.eq_ignore_ascii_case(b"EHLO "));
        self.transcript.push(format!("C: {}", show(&octets)));
        Action::Send(octets, self.slice)
    }

    fn reply(&mut self, pattern: &Pattern) -> Result<Option<Action>, Verdict> {
        let Some(reply) = self.read_reply()? else {
            if !self.gone {
                return Ok(Some(Action::Read));
            }
            if !pattern.any.contains(&One::Close) {
                return Err(fail(format!("expected {pattern}, the server closed the connection")));
            }
            self.leave();
            return Ok(None);
        };
        let filled = Pattern { text: pattern.text.as_deref().map(|text| self.text(text)), ..pattern.clone() };
        if !reply.fits(&filled) {
            return Err(fail(format!("expected {filled}, got {reply}")));
        }
        if self.said_ehlo && reply.code == 250 {
            self.offers = Some(reply.clone());
            self.said_ehlo = false;
        }
        if reply.code == 220
            && let Some(name) = reply.lines[0].split(' ').next()
        {
            self.variables.entry("server".into()).or_insert_with(|| name.as_bytes().to_vec());
        }
        self.last = Some(reply);
        Ok(None)
    }

    fn drain(&mut self, limits: &[(usize, Pattern)]) -> Result<Option<Action>, Verdict> {
        self.counts.resize(limits.len(), 0);
        while let Some(reply) = self.read_reply()? {
            for (count, (most, pattern)) in self.counts.iter_mut().zip(limits) {
                *count += usize::from(reply.fits(pattern));
                if *count > *most {
                    return Err(fail(format!("more than {most} replies {pattern}: {reply}")));
                }
            }
        }
        if !self.gone {
            return Ok(Some(Action::Read));
        }
        self.counts.clear();
        Ok(None)
    }

    /// The connection is over: what is left of the script for it is passed over. The step at the front stays,
    /// since it is about to go.
    fn leave(&mut self) {
        let about_later = |step: &Step| {
            matches!(step, Step::Connect | Step::Delivered(..) | Step::Arrived(_) | Step::Absent(_))
        };
        while self.steps.get(1).is_some_and(|step| !about_later(step)) {
            self.steps.remove(1);
        }
    }

    fn read_reply(&mut self) -> Result<Option<Reply>, Verdict> {
        match Reply::read(&self.input) {
            Read::More => Ok(None),
            Read::Malformed(why) => Err(fail(format!("this is no reply: {why}"))),
            Read::Reply(reply, used) => {
                self.input.drain(..used);
                self.transcript.push(format!("S: {reply}"));
                Ok(Some(reply))
            }
        }
    }

    fn silent(&self) -> Action {
        let what = match self.steps.front() {
            Some(Step::Reply(pattern)) => format!("expected {pattern}, got silence"),
            _ => "the server does not close the connection".to_owned(),
        };
        let rest =
            if self.input.is_empty() { String::new() } else { format!(" behind {}", show(&self.input)) };
        Action::Finish(Verdict::Fail(what + &rest))
    }

    fn judge_found(&self, messages: &[Vec<u8>]) -> Result<(), String> {
        match self.steps.front() {
            Some(Step::Arrived(_) | Step::Trace(..)) if messages.is_empty() => {
                Err("the message was not delivered".into())
            }
            Some(Step::Trace(_, text)) => {
                let wanted = self.text(text);
                let any = |header: String| {
                    wanted.split('|').any(|wanted| header.contains(&wanted.to_ascii_lowercase()))
                };
                let has = messages.iter().all(|m| any(header(m)));
                let shown = || messages.first().map(|m| header(m)).unwrap_or_default();
                if has { Ok(()) } else { Err(format!("{wanted:?} is not in the header: {:?}", shown())) }
            }
            Some(Step::Delivered(times, mark)) => {
                if messages.len() != *times {
                    return Err(format!("delivered {} times instead of {times}", messages.len()));
                }
                let line = format!("X-Conformance: {}", self.text(mark));
                let expected = if self.lf { with_lf(&self.expected) } else { self.expected.clone() };
                messages.iter().try_for_each(|message| {
                    let at = message.windows(line.len()).position(|window| window == line.as_bytes());
                    let content = &message[at.unwrap_or_default()..];
                    if content == expected { Ok(()) } else { Err(difference(&expected, content)) }
                })
            }
            _ => Ok(()),
        }
    }

    fn offers(&self, what: &str) -> bool {
        let (keyword, parameter) = match what.split_once('=') {
            Some((keyword, parameter)) => (keyword, Some(parameter)),
            None => (what, None),
        };
        let offered = self.offers.as_ref().and_then(|offers| offers.offer(keyword));
        offered.is_some_and(|has| {
            parameter
                .is_none_or(|p| p == "?" && !has.is_empty() || has.iter().any(|h| h.eq_ignore_ascii_case(p)))
        })
    }

    fn octets(&self, text: &str) -> Vec<u8> {
        expand(text, &|name| self.variable(name))
    }

    fn text(&self, text: &str) -> String {
        String::from_utf8_lossy(&self.octets(text)).into_owned()
    }

    fn variable(&self, name: &str) -> Option<Vec<u8>> {
        let size = || -> Option<u64> { self.offers.as_ref()?.offer("SIZE")?.first()?.parse().ok() };
        match name {
            "size" => size().map(|size| size.to_string().into_bytes()),
            "size+1" => size().map(|size| (size + 1).to_string().into_bytes()),
            _ => self.variables.get(name).cloned(),
        }
    }
}

fn fail(why: String) -> Verdict {
    Verdict::Fail(why)
}

/// Leading dots doubled (RFC 5321 §4.5.2).
fn stuffed(lines: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(lines.len() + 1);
    for line in lines.split_inclusive(|octet| *octet == b'\n') {
        if line.starts_with(b".") {
            out.push(b'.');
        }
        out.extend_from_slice(line);
    }
    out
}

fn with_lf(octets: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(octets.len());
    for (n, octet) in octets.iter().enumerate() {
        if *octet != b'\r' || octets.get(n + 1) != Some(&b'\n') {
            out.push(*octet);
        }
    }
    out
}

/// The header of a message in lower case, each field on one line.
fn header(message: &[u8]) -> String {
    let text = String::from_utf8_lossy(message).replace("\r\n", "\n").to_ascii_lowercase();
    let header = text.split("\n\n").next().unwrap_or_default();
    header.replace("\n\t", " ").replace("\n ", " ")
}

fn difference(expected: &[u8], content: &[u8]) -> String {
    let at = expected.iter().zip(content).take_while(|(a, b)| a == b).count();
    let from = at.saturating_sub(20);
    let piece = |octets: &[u8]| show(&octets[from.min(octets.len())..(at + 40).min(octets.len())]);
    format!(
        "delivered otherwise than sent at octet {at} of {}: sent …{}, delivered …{}",
        expected.len(),
        piece(expected),
        piece(content)
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::script::parse;

    fn machine(script: &str) -> Machine {
        let requirement = parse(&format!("[a] MUST RFC 1\nsays\n{script}")).unwrap().remove(0);
        let variables =
            [("client", "c.test"), ("sender", "a@c.test"), ("recipient", "u@v.test"), ("token", "t1")];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
        Machine::new(&requirement, variables.into(), true)
    }

    /// Plays a server that says these things, one each time it is listened to, and then closes.
    fn play(machine: &mut Machine, mut says: &[&str], found: &[&str]) -> (String, Verdict) {
        let (mut sent, mut action) = (String::new(), machine.next(Event::Done));
        loop {
            action = match action {
                Action::Finish(verdict) => return (sent, verdict),
                Action::Send(octets, _) => {
                    sent.push_str(std::str::from_utf8(&octets).unwrap());
                    machine.next(Event::Done)
                }
                Action::Connect | Action::Handshake | Action::Eof | Action::Hangup => {
                    machine.next(Event::Done)
                }
                Action::Look(..) => {
                    machine.next(Event::Found(found.iter().map(|m| m.as_bytes().to_vec()).collect()))
                }
                Action::Read => match says {
                    [] => machine.next(Event::Closed),
                    [first, rest @ ..] => {
                        says = rest;
                        machine.next(Event::Received(first.as_bytes()))
                    }
                },
            };
        }
    }

    #[test]
    fn a_dialogue() {
        let mut m = machine("> ehlo\nneed: SIZE\nC: MAIL FROM:<{sender}> SIZE={size+1}\nS: 552\n");
        let (sent, verdict) = play(&mut m, &["220 mx\r\n250-mx\r\n25", "0 SIZE 9\r\n", "552 no\r\n"], &[]);
        assert_eq!(verdict, Verdict::Pass);
        assert_eq!(sent, "EHLO c.test\r\nMAIL FROM:<a@c.test> SIZE=10\r\n");
    }

    #[test]
    fn verdicts() {
        let fails = |script: &str, says: &[&str]| match play(&mut machine(script), says, &[]).1 {
            Verdict::Fail(why) => why,
            other => panic!("{other:?}"),
        };
        assert_eq!(fails("S: 220\n", &["554 no\r\n"]), "expected 220, got 554 no");
        assert_eq!(fails("S: 220\n", &[]), "expected 220, the server closed the connection");
        assert!(fails("S: 220\n", &["220 a\n"]).contains("LF without CR"));
        assert!(fails("S: 220\nS: close\n", &["220 a\r\n221 b\r\n"]).contains("closed"));
        assert!(fails("drain 0 354\n", &["220 a\r\n354 b\r\n"]).contains("more than 0"));
        let skipped =
            play(&mut machine("> ehlo\nneed: AUTH=PLAIN\n"), &["220 a\r\n250-a\r\n250 AUTH LOGIN\r\n"], &[]);
        assert_eq!(skipped.1, Verdict::Skip("AUTH=PLAIN is not offered".into()));
        let closed =
            play(&mut machine("> greeting\nC: X\nS: 5xx|close\nC: Y\nS: 250\n"), &["220 a\r\n"], &[]);
        assert_eq!(closed.1, Verdict::Pass);
    }

    #[test]
    fn what_is_delivered() {
        let script =
            "> greeting\nM: X-Conformance: {token}\nM: \nM: .a\ndelivered: {token}\nabsent: {token}b\n";
        let good = "Received: x\nX-Conformance: t1\n\n.a\n";
        let mut m = machine(script);
        let (sent, verdict) = play(&mut m, &["220 a\r\n"], &[good]);
        assert_eq!((verdict, m.absent()), (Verdict::Pass, &["t1b".to_owned()][..]));
        assert!(sent.ends_with("\r\n..a\r\n"));
        for bad in [&[][..], &[good, good], &["X-Conformance: t1\n\na\n"]] {
            assert!(matches!(play(&mut machine(script), &["220 a\r\n"], bad).1, Verdict::Fail(_)));
        }
    }

    #[test]
    fn tls_where_it_is_offered() {
        let script = "> ehlo\nsecure\nC: NOOP\nS: 250\n";
        let with = ["220 a\r\n", "250-a\r\n250 STARTTLS\r\n", "220 go\r\n", "250 a\r\n", "250 ok\r\n"];
        let (sent, verdict) = play(&mut machine(script), &with, &[]);
        assert_eq!(
            (sent.as_str(), verdict),
            ("EHLO c.test\r\nSTARTTLS\r\nEHLO c.test\r\nNOOP\r\n", Verdict::Pass)
        );
        let injected = ["220 a\r\n", "250-a\r\n250 STARTTLS\r\n", "220 go\r\n250 a\r\n"];
        assert!(matches!(play(&mut machine(script), &injected, &[]).1, Verdict::Fail(_)));
    }

    proptest! {
        #[test]
        fn whatever_the_server_says_it_comes_to_an_end(
            says in proptest::collection::vec("(2[25]0|354|5[05]0|9)[- ]?|EHLO|SIZE 5|STARTTLS|\r\n|\n|\r|x", 0..40),
            which in 0..5usize,
        ) {
            let scripts = [
                "> ehlo\n> send\n> quit\ndelivered: {token}\n",
                "> ehlo\nneed: SIZE\nC: MAIL FROM:<a> SIZE={size+1}\nS: 5xx|close\nconnect\nS: 220\n",
                "> ehlo\nsecure\ncheck: limits\ndrain 1 250\n",
                "S: 220\nC: STARTTLS\nS: 220|5xx\ntls?\nS: close\n",
                "> greeting\nrepeat 3\nC: NOOP\nS: 250|close\nend\nhangup\ntrace: {token} x|y\n",
            ];
            let says: Vec<&str> = says.iter().map(String::as_str).collect();
            let _ = play(&mut machine(scripts[which]), &says, &[]);
        }
    }
}
