//! A sink that refuses every fifth recipient for now.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::listen;

/// It runs as long as this process.
pub(crate) struct Flaky {
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    recipients: AtomicUsize,
    messages: AtomicUsize,
}

impl Flaky {
    pub(crate) fn start(address: SocketAddr) -> Self {
        let counts = Arc::<Counts>::default();
        let ours = Arc::clone(&counts);
        listen(address, move |client| {
            // A connection ends as it likes.
            let _ = converse(client, &ours);
        });
        Self { counts }
    }

    /// Messages that it took.
    pub(crate) fn count(&self) -> usize {
        self.counts.messages.load(Ordering::Relaxed)
    }
}

fn converse(stream: TcpStream, counts: &Counts) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = BufReader::new(stream);
    input.get_mut().write_all(b"220 flaky.test ESMTP\r\n")?;
    let mut line = Vec::new();
    let (mut accepted, mut content) = (false, false);
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if content {
            if line != b".\r\n" {
                continue;
            }
            (accepted, content) = (false, false);
            counts.messages.fetch_add(1, Ordering::Relaxed);
            input.get_mut().write_all(b"250 2.0.0 Ok\r\n")?;
            continue;
        }
        let word = line.get(..4).unwrap_or_default().to_ascii_uppercase();
        let answer: &[u8] = match &*word {
            b"EHLO" => b"250-flaky.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE\r\n",
            b"RCPT" if counts.recipients.fetch_add(1, Ordering::Relaxed) % 5 == 4 => b"451 4.3.0 Not now\r\n",
            b"RCPT" => {
                accepted = true;
                b"250 2.1.5 Ok\r\n"
            }
            b"DATA" if !accepted => b"554 5.5.1 No valid recipients\r\n",
            b"DATA" => {
                content = true;
                b"354 Go on\r\n"
            }
            b"QUIT" => return input.get_mut().write_all(b"221 2.0.0 Bye\r\n"),
            _ => b"250 2.0.0 Ok\r\n",
        };
        input.get_mut().write_all(answer)?;
    }
}
