//! smtp-sink(1), which counts.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use postern_tests::{Process, until};

/// It ends when it is dropped.
pub(crate) struct Sink {
    _process: Process,
    count: Arc<AtomicUsize>,
}

impl Sink {
    /// With further arguments of smtp-sink(1).
    pub(crate) fn start(address: SocketAddr, arguments: &[&str]) -> Self {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut command = Command::new("smtp-sink");
        command.args(["-c", "-u", "nobody", "-h", "sink.test"]).args(arguments);
        command.arg(address.to_string()).arg("1000").current_dir("/");
        command.stdout(writer).stderr(Stdio::inherit());
        let process = Process::start(&mut command);
        // It holds the pipe's other end.
        drop(command);
        let count = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&count);
        // The thread ends with the sink.
        std::thread::spawn(move || {
            let (mut buffer, mut text) = ([0; 65536], Vec::new());
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                text.extend_from_slice(&buffer[..length]);
                // "sess=1 quit=1 mesg=1\r", again and again; only the last that is whole counts.
                let Some(end) = text.iter().rposition(|octet| *octet == b'\r') else { continue };
                let last = String::from_utf8_lossy(&text[end.saturating_sub(64)..end]).into_owned();
                text.drain(..end);
                let number = last.rsplit("mesg=").next().unwrap_or_default();
                if let Ok(number) = number.trim().parse() {
                    counter.fetch_max(number, Ordering::Relaxed);
                }
            }
        });
        until("smtp-sink", Duration::from_secs(10), || TcpStream::connect(address).ok());
        Self { _process: process, count }
    }

    /// Messages that it took.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}
