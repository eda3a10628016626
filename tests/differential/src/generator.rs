//! Dialogues from a seed: mostly right, with something wrong here and there.

use crate::dialogue::{Dialogue, Turn};

/// Makes dialogues; the same ones for the same seed.
#[derive(Clone, Debug)]
pub struct Generator {
    seed: u64,
    state: u64,
    made: usize,
    chunking: bool,
}

const GREETINGS: &[&str] = &[
    "EHLO",
    "EHLO a b",
    "EHLO [127.0.0.1]",
    "EHLO [IPv6:::1]",
    "HELO client.test",
    "HELO",
    "ehlo CLIENT.TEST",
    "LHLO client.test",
];
const NOISE: &[&str] = &[
    "NOOP",
    "noop",
    "NOOP hello",
    "RSET",
    "RSET x",
    "NONSENSE",
    "VRFY nobody",
    "VRFY",
    "EXPN staff",
    "DATA",
    "DATA x",
    "RCPT TO:<u1@v.test>",
    "MAIL FROM:<a@client.test>",
    "MAILX FROM:<a@b>",
    "SEND FROM:<a@client.test>",
    "QUITX",
    "X",
    "EHLO client.test",
    "HELO client.test",
    "RCPT",
    "MAIL",
];
const LOCALS: &[&str] = &[
    "a",
    "a.b",
    "a+b",
    "a-b",
    "a_b",
    "a/b=c",
    "!#$%&'*+-/=?^_`{|}~",
    "\"q\"",
    "\"q s\"",
    "\"a\\\"b\"",
    "\"a@b\"",
    "\"a\\b\"",
    "\"\"",
    "a..b",
    ".a",
    "a.",
    "a@b",
    "a b",
    "",
    "a\\b",
    "a,b",
    "a(b)",
    "a;b",
    "a:b",
    "[a]",
    "j\u{fc}rgen",
    "A",
    "\"a",
    "a\"",
    "a\"b\"c",
];
const DOMAINS: &[&str] = &[
    "client.test",
    "CLIENT.Test",
    "x",
    "a-b.test",
    "1.test",
    "[127.0.0.1]",
    "[IPv6:::1]",
    "[IPv6:2001:db8::1]",
    "[300.1.1.1]",
    "[1.2.3]",
    "[",
    "[]",
    "b..c",
    ".b.c",
    "b.c.",
    "-b.c",
    "b-.c",
    "b_c.test",
    "",
    "b c",
    "b,c",
    "1.2.3.4",
    "b\u{fc}cher.test",
    "xn--bcher-kva.test",
];
const RECIPIENTS: &[&str] = &[
    "<u1@v.test>",
    "<u2@v.test>",
    "<U1@V.TEST>",
    "<Postmaster@v.test>",
    "<nobody@v.test>",
    "<b@elsewhere.test>",
    "<b%elsewhere.test@v.test>",
    "<@relay.test:u1@v.test>",
    "<\"u1\"@v.test>",
    "u1@v.test",
    "<u1>",
    "<>",
    "<u1@v.test",
    "u1@v.test>",
    "< u1@v.test>",
    "<u1@v.test >",
    "<u1@v.test.>",
];
const MAIL_PARAMETERS: &[&str] = &[
    "SIZE=100",
    "size=100",
    "SIZE=0",
    "SIZE=abc",
    "SIZE=",
    "SIZE",
    "SIZE=99999999999",
    "BODY=8BITMIME",
    "body=7bit",
    "BODY=9BIT",
    "BODY=",
    "COLOUR=BLUE",
    "SIZE=10 BODY=8BITMIME",
    "=x",
    "SIZE=10 COLOUR",
];
const LINES: &[&str] = &[
    "",
    "text",
    ".",
    "..",
    ".x",
    "a.",
    " leading",
    "trailing ",
    "\ttab",
    "QUIT",
    "RSET",
    "MAIL FROM:<a@b>",
    "From nobody",
    "Subject: x",
    "Gr\u{fc}\u{df}e",
    "X-Mark-Not: 1",
    "-",
    "\u{1}\u{2}",
    "\u{7f}",
];

impl Generator {
    /// With that seed; chunks only where both servers take them.
    pub fn new(seed: u64, chunking: bool) -> Self {
        Self { seed, state: seed ^ 0x9e37_79b9_7f4a_7c15, made: 0, chunking }
    }

    /// The next dialogue.
    pub fn dialogue(&mut self) -> Dialogue {
        self.made += 1;
        let name = format!("g{}-{}", self.seed, self.made);
        let mut dialogue = Dialogue { name, turns: Vec::new() };
        if self.one_in(5) {
            let stream = self.stream(&dialogue);
            dialogue.turns.push(Turn::Stream(stream));
            return dialogue;
        }
        if self.one_in(6) {
            let greeting = self.any(GREETINGS);
            command(&mut dialogue, greeting);
        }
        if !self.one_in(12) {
            command(&mut dialogue, "EHLO client.test");
        }
        for _ in 0..=self.below(3) {
            self.transaction(&mut dialogue);
            if self.one_in(2) {
                command(&mut dialogue, "RSET");
            }
        }
        dialogue
    }

    /// Everything in one go. Since a stream is compared as a whole it is of commands that both answer alike.
    fn stream(&mut self, dialogue: &Dialogue) -> Vec<u8> {
        let mut out = b"EHLO client.test\r\n".to_vec();
        let mut line = |text: &str| out.extend_from_slice(format!("{text}\r\n").as_bytes());
        for message in 0..self.below(6) {
            if self.one_in(4) {
                line(self.any(&[
                    "NOOP",
                    "RSET",
                    "NONSENSE",
                    "VRFY",
                    "RCPT TO:<u1@v.test>",
                    "DATA",
                    "noop",
                    "",
                ]));
            }
            line(self.any(&[
                "MAIL FROM:<a@client.test>",
                "MAIL FROM:<> SIZE=100",
                "mail from:<\"a b\"@x> BODY=8BITMIME",
            ]));
            let mut accepted = 0;
            for _ in 0..=self.below(4) {
                let recipient = self.any(&["u1@v.test", "u2@v.test", "nobody@v.test", "b@elsewhere.test"]);
                accepted += usize::from(recipient.starts_with('u'));
                line(&format!("RCPT TO:<{recipient}>"));
            }
            if accepted == 0 || self.one_in(6) {
                line("RSET");
                continue;
            }
            let head = format!("X-Mark: {}0\r\nX-Number: {message}\r\n\r\n", dialogue.mark());
            let body: Vec<_> = (0..self.below(6)).map(|_| self.any(LINES)).collect();
            if self.chunking && self.one_in(2) {
                let text: String = body.iter().map(|text| format!("{text}\r\n")).collect();
                line(&format!("BDAT {}\r\n{head}BDAT {} LAST\r\n{text}text", head.len(), text.len() + 6));
            } else {
                let stuff = |text: &&str| {
                    if text.starts_with('.') { format!(".{text}\r\n") } else { format!("{text}\r\n") }
                };
                line(&format!("DATA\r\n{head}{}.", body.iter().map(stuff).collect::<String>()));
            }
        }
        line("QUIT");
        out
    }

    fn transaction(&mut self, dialogue: &mut Dialogue) {
        self.noise(dialogue, 5);
        let mail = self.mail();
        command(dialogue, &mail);
        self.noise(dialogue, 10);
        for _ in 0..=self.below(3) {
            let recipient = if self.one_in(2) { "<u1@v.test>" } else { self.any(RECIPIENTS) };
            let more = if self.one_in(15) { " COLOUR=BLUE" } else { "" };
            command(dialogue, &format!("RCPT TO:{recipient}{more}"));
        }
        self.noise(dialogue, 10);
        if self.one_in(20) {
            return;
        }
        if self.chunking && self.one_in(4) {
            return self.chunks(dialogue);
        }
        command(dialogue, "DATA");
        let mark =
            format!("X-Mark: {}{}\r\nSubject: generated\r\n\r\n", dialogue.mark(), dialogue.turns.len());
        let mut content = mark.into_bytes();
        for _ in 0..self.below(8) {
            let line = self.any(LINES);
            if line.starts_with('.') {
                content.push(b'.');
            }
            content.extend_from_slice(line.as_bytes());
            content.extend_from_slice(b"\r\n");
        }
        dialogue.turns.push(Turn::Content(content));
    }

    fn chunks(&mut self, dialogue: &mut Dialogue) {
        let mark = format!("X-Mark: {}{}\r\n\r\n", dialogue.mark(), dialogue.turns.len());
        let mut octets = mark.into_bytes();
        for _ in 0..self.below(4) {
            let line = self.any(LINES);
            octets.extend_from_slice(line.as_bytes());
            octets.extend_from_slice(b"\r\n");
            if self.one_in(2) {
                dialogue.turns.push(Turn::Chunk(std::mem::take(&mut octets), false));
            }
        }
        octets.extend_from_slice(b"end\r\n");
        dialogue.turns.push(Turn::Chunk(octets, true));
    }

    fn mail(&mut self) -> String {
        let address = match self.below(4) {
            0 => format!("{}@{}", self.any(LOCALS), self.any(DOMAINS)),
            1 if self.one_in(3) => String::new(),
            _ => "a@client.test".to_owned(),
        };
        let path = match self.below(30) {
            0 => address,
            1 => format!("< {address}>"),
            2 => format!("<{address}"),
            3 => format!("{address}>"),
            4 => format!("<@relay.test:{address}>"),
            5 => format!("<<{address}>>"),
            6 => format!(" <{address}>"),
            7 => format!("Name <{address}>"),
            _ => format!("<{address}>"),
        };
        let parameter =
            if self.one_in(3) { format!(" {}", self.any(MAIL_PARAMETERS)) } else { String::new() };
        let verb = if self.one_in(10) { "mail from:" } else { "MAIL FROM:" };
        format!("{verb}{path}{parameter}")
    }

    fn noise(&mut self, dialogue: &mut Dialogue, seldom: usize) {
        if self.one_in(seldom) {
            let noise = self.any(NOISE);
            command(dialogue, noise);
        }
    }

    fn any(&mut self, all: &[&'static str]) -> &'static str {
        all.get(self.below(all.len())).copied().unwrap_or_default()
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// splitmix64.
    fn below(&mut self, n: usize) -> usize {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }
}

fn command(dialogue: &mut Dialogue, line: &str) {
    dialogue.turns.push(Turn::Command(line.as_bytes().to_vec()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_for_the_same_seed() {
        let make = |seed| {
            let mut generator = Generator::new(seed, true);
            (0..50).map(|_| generator.dialogue()).collect::<Vec<_>>()
        };
        assert_eq!(make(1), make(1));
        assert_ne!(make(1), make(2));
    }
}
