//! A load generator of our own, for what smtp-source does not tell: how long the reply to the final dot
//! takes. A thread a session; each command waits for its reply, as smtp-source does it.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// What came out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measured {
    /// From the final dot to its reply, sorted.
    pub(crate) milliseconds: Vec<f64>,
    /// Messages a second, to compare with smtp-source's.
    pub(crate) rate: f64,
}

/// What a session does.
pub(crate) struct Load<'a> {
    pub(crate) address: SocketAddr,
    pub(crate) sessions: usize,
    /// Messages of each session.
    pub(crate) each: usize,
    pub(crate) size: usize,
    /// All in one connection, or each in its own.
    pub(crate) long: bool,
    /// A connection is closed when QUIT was answered, or was sent.
    pub(crate) patient: bool,
    /// The recipient of the n-th message of all.
    pub(crate) to: &'a (dyn Fn(usize) -> String + Sync),
}

/// Until the last reply.
pub(crate) fn run(load: &Load<'_>) -> Measured {
    let begin = Instant::now();
    let mut milliseconds: Vec<f64> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..load.sessions).map(|session| scope.spawn(move || one(load, session))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let rate = (load.sessions * load.each) as f64 / begin.elapsed().as_secs_f64();
    milliseconds.sort_by(f64::total_cmp);
    Measured { milliseconds, rate }
}

fn one(load: &Load<'_>, number: usize) -> Vec<f64> {
    let message = message(load.size);
    let mut took = Vec::with_capacity(load.each);
    let mut session = None;
    for n in 0..load.each {
        let mut now = session.take().unwrap_or_else(|| Session::open(load.address));
        now.ask("MAIL FROM:<a@x.test>", b'2');
        now.ask(&format!("RCPT TO:<{}>", (load.to)(n * load.sessions + number)), b'2');
        took.push(now.data(&message).as_secs_f64() * 1000.0);
        if load.long && n + 1 < load.each {
            session = Some(now);
        } else if load.patient {
            now.ask("QUIT", b'2');
        } else {
            now.say("QUIT");
        }
    }
    took
}

/// Clients that have said EHLO and wait.
pub(crate) fn idle(address: SocketAddr, count: usize) -> Vec<impl Sized> {
    (0..count).map(|_| Session::open(address)).collect()
}

/// One message to many recipients, pipelined in fifties.
pub(crate) fn send_to_all(address: SocketAddr, to: &[String], size: usize) -> Measured {
    let begin = Instant::now();
    let mut session = Session::open(address);
    session.ask("MAIL FROM:<a@x.test>", b'2');
    for some in to.chunks(50) {
        let lines: String = some.iter().map(|to| format!("RCPT TO:<{to}>\r\n")).collect();
        session.stream.get_mut().write_all(lines.as_bytes()).unwrap();
        some.iter().for_each(|_| session.reply(b'2'));
    }
    let took = session.data(&message(size));
    session.ask("QUIT", b'2');
    Measured { milliseconds: vec![took.as_secs_f64() * 1000.0], rate: 1.0 / begin.elapsed().as_secs_f64() }
}

/// A message of about that size, with CRLF.
pub(crate) fn message(size: usize) -> Vec<u8> {
    let mut message = b"From: <a@x.test>\r\nTo: <u@v.test>\r\nSubject: load\r\n\r\n".to_vec();
    while message.len() < size {
        message.extend_from_slice(b"La de da de da. La de da de da. La de da de da. La de da de da.\r\n");
    }
    message
}

struct Session {
    stream: BufReader<TcpStream>,
    line: Vec<u8>,
}

impl Session {
    fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        let mut session = Self { stream: BufReader::new(stream), line: Vec::new() };
        session.reply(b'2');
        session.ask("EHLO client.test", b'2');
        session
    }

    fn ask(&mut self, line: &str, expected: u8) {
        self.say(line);
        self.reply(expected);
    }

    fn say(&mut self, line: &str) {
        self.stream.get_mut().write_all(format!("{line}\r\n").as_bytes()).unwrap();
    }

    /// The content, and how long the reply to its final dot took.
    fn data(&mut self, message: &[u8]) -> Duration {
        self.ask("DATA", b'3');
        let mut whole = message.to_vec();
        whole.extend_from_slice(b".\r\n");
        self.stream.get_mut().write_all(&whole).unwrap();
        let begin = Instant::now();
        self.reply(b'2');
        begin.elapsed()
    }

    fn reply(&mut self, expected: u8) {
        loop {
            self.line.clear();
            self.stream.read_until(b'\n', &mut self.line).unwrap();
            assert_eq!(self.line.first(), Some(&expected), "{}", String::from_utf8_lossy(&self.line));
            if self.line.get(3) != Some(&b'-') {
                return;
            }
        }
    }
}
