//! Plays a dialogue to a server.

use std::io::{Read as _, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use postern_conformance::{Read, Reply};

use crate::dialogue::{Dialogue, Turn};

/// How long a reply may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a server said to one turn: replies, and whether it closed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// In order; none if the turn was passed over.
    pub replies: Vec<Reply>,
    /// It closed the connection.
    pub closed: bool,
    /// The turn was not said: content without a 354, or behind the end of the connection.
    pub passed: bool,
}

/// Plays a dialogue and returns what was said to each turn, the greeting first and the answer to QUIT last.
/// Silence and what is no reply are errors.
pub fn play(dialogue: &Dialogue, at: SocketAddr) -> Result<Vec<Said>, String> {
    let wrong = |e: std::io::Error| format!("{}: {at}: {e}", dialogue.name);
    let stream = TcpStream::connect(at).map_err(wrong)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(wrong)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(wrong)?;
    stream.set_nodelay(true).map_err(wrong)?;
    let mut line = Line { stream, input: Vec::new() };
    let mut all = vec![line.hear(true)?];
    for turn in dialogue.turns.iter().chain([&Turn::Command(b"QUIT".to_vec())]) {
        let before = all.last().cloned().unwrap_or_default();
        let invited = all.iter().rev().find_map(|said| said.replies.last()).is_some_and(|r| r.code == 354);
        let closed = all.iter().any(|said| said.closed);
        if closed || (matches!(turn, Turn::Content(_)) && (!invited || before.passed)) {
            all.push(Said { passed: true, ..Said::default() });
            continue;
        }
        let mut octets = match turn {
            Turn::Command(text) => [&text[..], b"\r\n"].concat(),
            Turn::Content(content) => [&content[..], b".\r\n"].concat(),
            Turn::Stream(octets) => octets.clone(),
            Turn::Chunk(octets, last) => {
                let command = format!("BDAT {}{}\r\n", octets.len(), if *last { " LAST" } else { "" });
                [command.as_bytes(), octets].concat()
            }
        };
        if invited && !matches!(turn, Turn::Content(_)) {
            // Meant as a command, but the server waits for content: so it is content, and all of it.
            octets.extend_from_slice(b".\r\n");
        }
        line.say(&octets);
        all.push(line.hear(!matches!(turn, Turn::Stream(_)))?);
    }
    Ok(all)
}

struct Line {
    stream: TcpStream,
    input: Vec<u8>,
}

impl Line {
    /// A server that refuses something may be gone before all of it is sent: what it said is still to be heard.
    fn say(&mut self, octets: &[u8]) {
        let _ = self.stream.write_all(octets);
    }

    /// One reply, or all until the server closes.
    fn hear(&mut self, one: bool) -> Result<Said, String> {
        let mut said = Said::default();
        let mut buffer = [0; 4096];
        loop {
            match Reply::read(&self.input) {
                Read::Reply(reply, used) => {
                    self.input.drain(..used);
                    said.replies.push(reply);
                    if one {
                        return Ok(said);
                    }
                }
                Read::Malformed(why) => return Err(format!("no reply: {why}")),
                Read::More => match self.stream.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(length) => self.input.extend_from_slice(&buffer[..length]),
                    Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Err("silence".into()),
                    // A reset is an end as well.
                    Err(_) => break,
                },
            }
        }
        said.closed = true;
        Ok(said)
    }
}
