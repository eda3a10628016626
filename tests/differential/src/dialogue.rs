//! What a client says, and when it listens.

use std::fmt;

use postern_conformance::{expand, show};

/// A dialogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dialogue {
    /// Its name: letters, digits, hyphens.
    pub name: String,
    /// What is said, one after the other. A QUIT comes behind it.
    pub turns: Vec<Turn>,
}

/// What is said before the server is listened to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// A command line without its line end: one reply.
    Command(Vec<u8>),
    /// Content, as it goes over the wire, without the final dot: said only to a 354, and then one reply.
    Content(Vec<u8>),
    /// A BDAT command with its octets: one reply.
    Chunk(Vec<u8>, bool),
    /// Octets with whatever is in them, at the end of a dialogue: all replies until the server closes.
    Stream(Vec<u8>),
}

impl Dialogue {
    /// The marks of its messages begin with this.
    pub fn mark(&self) -> String {
        format!("{}.", self.name)
    }
}

impl fmt::Display for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command(line) => f.write_str(&show(line)),
            Self::Content(_) => f.write_str("(content)"),
            Self::Chunk(octets, last) => {
                write!(f, "BDAT {}{}", octets.len(), if *last { " LAST" } else { "" })
            }
            Self::Stream(_) => f.write_str("(stream)"),
        }
    }
}

/// Reads a file of `corpus/`: `[name]`, and below it `C: line`, `D: content line`, `D| content octets`,
/// `B: chunk`, `BL: last chunk`, `R: stream`. Texts have the escapes of the conformance suite. The D lines of
/// one message stand together; the first line of each message, and `{mark}` elsewhere, marks it. `#` begins a
/// comment.
pub fn parse(text: &str) -> Result<Vec<Dialogue>, String> {
    let mut all: Vec<Dialogue> = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let wrong = |why: &str| format!("line {}: {why}: {line:?}", n + 1);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            all.push(Dialogue { name: name.to_owned(), turns: Vec::new() });
            continue;
        }
        let dialogue = all.last_mut().ok_or_else(|| wrong("a line before the first [name]"))?;
        let (word, text) = line.split_once(' ').unwrap_or((line, ""));
        let mark = format!("{}{}", dialogue.mark(), dialogue.turns.len());
        let octets = expand(text, &|name| (name == "mark").then(|| mark.clone().into_bytes()));
        let turn = match word {
            "C:" => Turn::Command(octets),
            "R:" => Turn::Stream(octets),
            "B:" => Turn::Chunk(octets, false),
            "BL:" => Turn::Chunk(octets, true),
            "D:" | "D|" => {
                let line = if word == "D:" { [&octets[..], b"\r\n"].concat() } else { octets };
                if let Some(Turn::Content(content)) = dialogue.turns.last_mut() {
                    content.extend_from_slice(&line);
                    continue;
                }
                let first = format!("X-Mark: {mark}\r\n");
                Turn::Content([first.as_bytes(), &line].concat())
            }
            _ => return Err(wrong("unknown word")),
        };
        dialogue.turns.push(turn);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dialogue() {
        let all = parse("# x\n[one]\nC: EHLO a\nD: .\nD| b\\n\nC: QUIT\n[two]\nR: {mark}\\r\\n\n").unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].turns[1], Turn::Content(b"X-Mark: one.1\r\n.\r\nb\n".to_vec()));
        assert_eq!(all[1].turns[0], Turn::Stream(b"two.0\r\n".to_vec()));
        assert!(parse("C: x\n").is_err() && parse("[a]\nX: y\n").is_err());
    }
}
