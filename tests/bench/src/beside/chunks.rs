//! A sink that takes messages by BDAT (RFC 3030), and by DATA.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::listen;

/// It runs as long as this process.
pub(crate) struct Chunks {
    messages: Arc<AtomicUsize>,
}

impl Chunks {
    pub(crate) fn start(address: SocketAddr) -> Self {
        let messages = Arc::<AtomicUsize>::default();
        let ours = Arc::clone(&messages);
        listen(address, move |client| {
            // A connection ends as it likes.
            let _ = converse(client, &ours);
        });
        Self { messages }
    }

    /// Messages that it took.
    pub(crate) fn count(&self) -> usize {
        self.messages.load(Ordering::Relaxed)
    }
}

fn converse(stream: TcpStream, messages: &AtomicUsize) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = BufReader::new(stream);
    let (mut line, mut out) = (Vec::new(), b"220 chunks.test ESMTP\r\n".to_vec());
    loop {
        // What was asked in one group is answered in one (RFC 2920 §3.2).
        if input.buffer().is_empty() {
            input.get_mut().write_all(&out)?;
            out.clear();
        }
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&line).to_ascii_uppercase();
        let mut words = text.split_ascii_whitespace();
        let answer: &[u8] = match words.next().unwrap_or_default() {
            "EHLO" => b"250-chunks.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SIZE\r\n250 CHUNKING\r\n",
            "BDAT" => {
                let length = words.next().and_then(|length| length.parse().ok()).unwrap_or(0);
                std::io::copy(&mut input.by_ref().take(length), &mut std::io::sink())?;
                messages.fetch_add(usize::from(words.next() == Some("LAST")), Ordering::Relaxed);
                b"250 2.0.0 Ok\r\n"
            }
            "DATA" => {
                input.get_mut().write_all(&[&out[..], b"354 Go on\r\n"].concat())?;
                out.clear();
                while line != b".\r\n" {
                    line.clear();
                    if input.read_until(b'\n', &mut line)? == 0 {
                        return Ok(());
                    }
                }
                messages.fetch_add(1, Ordering::Relaxed);
                b"250 2.0.0 Ok\r\n"
            }
            "QUIT" => return input.get_mut().write_all(&[&out[..], b"221 2.0.0 Bye\r\n"].concat()),
            _ => b"250 2.0.0 Ok\r\n",
        };
        out.extend_from_slice(answer);
    }
}
