//! Where two servers differ, and which differences are known.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use postern_conformance::{One, Pattern, Reply, pattern};
use serde::Deserialize;

use crate::dialogue::{Dialogue, Turn};
use crate::player::Said;

/// A difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// In which dialogue.
    pub dialogue: String,
    /// At which command.
    pub command: String,
    /// What was said to it before, so that one can see the state.
    pub ours: String,
    /// What the other said.
    pub theirs: String,
}

/// The list of known differences.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Known {
    /// Those that the corpus shows.
    #[serde(default)]
    difference: Vec<Rule>,
    /// Those that only generated dialogues need.
    #[serde(default)]
    generated: Vec<Rule>,
}

/// A known difference, or a kind of them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    /// At commands like one of these; `*` is any text, and case is the same. For streams, all replies are one,
    /// so this is `(stream)`.
    commands: Vec<String>,
    /// In dialogues like this; any if it is left out.
    dialogue: Option<String>,
    /// What we say: a pattern as in the conformance suite. For streams the codes, and `close` at the end.
    ours: String,
    /// What the other says.
    theirs: String,
    /// Why ours is right.
    why: String,
}

/// What comes of comparing one dialogue.
#[derive(Debug, Default)]
pub struct Compared {
    /// Differences, in order.
    pub differences: Vec<Difference>,
    /// The turns (their numbers in the dialogue) of messages that both took, so that what was delivered must be
    /// the same.
    pub taken: BTreeSet<usize>,
    /// The turns whose messages were judged differently.
    pub apart: BTreeSet<usize>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}\n    ours:   {}\n    theirs: {}",
            self.dialogue, self.command, self.ours, self.theirs
        )
    }
}

impl Known {
    /// Reads the list. Each must have a reason.
    pub fn read(path: &Path) -> Result<Self, String> {
        let wrong = |e: String| format!("{}: {e}", path.display());
        let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        let known: Self = toml::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        for rule in known.difference.iter().chain(&known.generated) {
            if rule.why.len() < 20 {
                return Err(wrong(format!("{:?} has no reason", rule.commands)));
            }
        }
        Ok(known)
    }

    /// Which rule, by number, covers the difference: the first one that does.
    pub fn covers(&self, difference: &Difference) -> Option<usize> {
        let command = difference.command.to_ascii_uppercase();
        self.difference.iter().chain(&self.generated).position(|rule| {
            rule.commands.iter().any(|wanted| like(&command, &wanted.to_ascii_uppercase()))
                && rule.dialogue.as_deref().is_none_or(|wanted| like(&difference.dialogue, wanted))
                && said_like(&difference.ours, &rule.ours)
                && said_like(&difference.theirs, &rule.theirs)
        })
    }

    /// The rules for the corpus that are not among these, for a report.
    pub fn unused(&self, used: &BTreeSet<usize>) -> Vec<String> {
        let all = self.difference.iter().enumerate().filter(|(n, _)| !used.contains(n));
        all.map(|(_, rule)| format!("{:?} ({} / {})", rule.commands, rule.ours, rule.theirs)).collect()
    }
}

/// Compares what two servers said to a dialogue.
pub fn compare(dialogue: &Dialogue, ours: &[Said], theirs: &[Said]) -> Compared {
    let mut out = Compared::default();
    // They are in the same state.
    let mut together = true;
    // They agree about whether the client has said who it is; RSET changes nothing about that.
    let mut introduced = true;
    let quit = Turn::Command(b"QUIT".to_vec());
    // The greeting comes before the first turn.
    for (n, turn) in dialogue.turns.iter().chain([&quit]).enumerate() {
        let (Some(a), Some(b)) = (ours.get(n + 1), theirs.get(n + 1)) else { break };
        let command = match turn {
            Turn::Command(line) => String::from_utf8_lossy(line).to_ascii_uppercase(),
            _ => String::new(),
        };
        let greets = ["EHLO", "HELO"].iter().any(|verb| command.starts_with(verb));
        introduced |= greets && done(a) && done(b);
        if introduced && (greets || command.starts_with("RSET")) && done(a) && done(b) {
            together = true;
        }
        let holds_message = matches!(turn, Turn::Content(_) | Turn::Chunk(..) | Turn::Stream(_));
        if !together {
            if holds_message {
                out.apart.insert(n);
            }
            continue;
        }
        let differs = match turn {
            Turn::Stream(_) => codes(a) != codes(b),
            _ => !same(a, b),
        };
        if differs {
            let shown = |said: &Said| if matches!(turn, Turn::Stream(_)) { codes(said) } else { one(said) };
            out.differences.push(Difference {
                dialogue: dialogue.name.clone(),
                command: turn.to_string(),
                ours: shown(a),
                theirs: shown(b),
            });
        }
        let harmless = ["VRFY", "EXPN", "HELP", "NOOP"].iter().any(|verb| command.starts_with(verb));
        if harmless && a.closed == b.closed {
            continue;
        }
        // Two refusals in different words leave both where they were.
        together =
            done(a) == done(b) && a.closed == b.closed && a.passed == b.passed && !(differs && done(a));
        introduced &= !greets || together;
        // RFC 3030 §2 leaves open what state a refused chunk leaves.
        let open = matches!(turn, Turn::Chunk(..)) && !done(a);
        if open || (matches!(turn, Turn::Stream(_)) && differs) {
            together = false;
        }
        if holds_message && together {
            out.taken.insert(n);
        } else if holds_message {
            out.apart.insert(n);
        }
    }
    out
}

/// It was answered 2yz or 3yz.
fn done(said: &Said) -> bool {
    said.replies.last().is_some_and(|reply| reply.code < 400)
}

fn same(a: &Said, b: &Said) -> bool {
    let alike = |a: &Reply, b: &Reply| {
        a.code == b.code && (a.enhanced().is_none() || b.enhanced().is_none() || a.enhanced() == b.enhanced())
    };
    a.closed == b.closed
        && a.passed == b.passed
        && a.replies.len() == b.replies.len()
        && a.replies.iter().zip(&b.replies).all(|(a, b)| alike(a, b))
}

/// `250 2.1.0 Ok`, `close`, `passed`.
fn one(said: &Said) -> String {
    match said.replies.last() {
        Some(reply) => reply.to_string(),
        None if said.closed => "close".into(),
        None => "passed".into(),
    }
}

/// `250 354 554 close`.
fn codes(said: &Said) -> String {
    let codes: Vec<_> = said.replies.iter().map(|reply| reply.code.to_string()).collect();
    codes.join(" ") + if said.closed { " close" } else { "" }
}

/// A pattern; for streams the text itself, with `*`.
fn said_like(said: &str, wanted: &str) -> bool {
    if like(said, wanted) {
        return true;
    }
    let Ok(Pattern { any, text }) = pattern(wanted) else { return false };
    let mut words = said.splitn(2, ' ');
    let Some(Ok(code)) = words.next().map(str::parse) else {
        return said == "close" && any.contains(&One::Close);
    };
    let lines = vec![words.next().unwrap_or_default().to_owned()];
    Reply { code, lines, longest: 0 }.fits(&Pattern { any, text })
}

/// `*` in `wanted` is any text.
fn like(text: &str, wanted: &str) -> bool {
    let Some((first, rest)) = wanted.split_once('*') else { return text == wanted };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let mut rest = rest;
    while let Some((middle, more)) = rest.split_once('*') {
        let Some(at) = text.find(middle) else { return false };
        text = &text[at + middle.len()..];
        rest = more;
    }
    text.ends_with(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialogue::parse;

    fn said(texts: &[&str]) -> Vec<Said> {
        let reply = |text: &str| Reply {
            code: text[..3].parse().unwrap(),
            lines: vec![text.get(4..).unwrap_or_default().to_owned()],
            longest: 0,
        };
        texts.iter().map(|text| Said { replies: vec![reply(text)], ..Said::default() }).collect()
    }

    #[test]
    fn differences() {
        let dialogue =
            parse("[a]\nC: EHLO x\nC: MAIL FROM:<a>\nC: RCPT TO:<b>\nC: RSET\nC: NOOP\n").unwrap().remove(0);
        let ours = said(&["220", "250", "501 5.1.7 no", "503", "250", "250 2.0.0 a", "221"]);
        let theirs = said(&["220", "250", "250 2.1.0 ok", "250", "250", "250 2.0.0 b", "221"]);
        let compared = compare(&dialogue, &ours, &theirs);
        assert_eq!(compared.differences.len(), 1, "what follows from the first is not counted again");
        let known: Known = toml::from_str(
            "[[difference]]\ncommands = [\"mail *\"]\nours = \"501 5.1.x\"\ntheirs = \"250\"\nwhy = \"because of the grammar\"\n\
             [[difference]]\ncommands = [\"X\"]\nours = \"501\"\ntheirs = \"250\"\nwhy = \"because of the grammar\"\n",
        )
        .unwrap();
        assert_eq!(known.covers(&compared.differences[0]), Some(0));
        assert_eq!(known.unused(&[0].into()), ["[\"X\"] (501 / 250)"]);
    }

    #[test]
    fn refusals_in_other_words_keep_the_state() {
        let dialogue = parse("[a]\nC: FOO\nC: BAR\n").unwrap().remove(0);
        let compared =
            compare(&dialogue, &said(&["220", "500", "500", "221"]), &said(&["220", "502", "502", "221"]));
        assert_eq!(compared.differences.len(), 2);
    }

    #[test]
    fn globs() {
        for (text, wanted, is) in [
            ("abc", "abc", true),
            ("abc", "a*c", true),
            ("abc", "*", true),
            ("abc", "a*d", false),
            ("ab", "a*b*b", false),
        ] {
            assert_eq!(like(text, wanted), is, "{text} {wanted}");
        }
        assert!(said_like("250 354 close", "250 354 *") && said_like("close", "500|close"));
        assert!(!said_like("250 2.1.0 Ok", "250 2.1.5"));
    }
}
