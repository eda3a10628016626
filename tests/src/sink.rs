//! A next hop that takes mail byte for byte, or shows any fault that a test asks for.

use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::net::via;
use crate::process::until;

/// What the sink does at a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// What is usual.
    Usual,
    /// This line instead; the command has no effect.
    Say(String),
    /// Close the connection.
    Drop,
    /// Say nothing and go on reading.
    Silence,
}

/// A message that the sink took.
#[derive(Clone, PartialEq, Eq)]
pub struct Taken {
    /// The EHLO or HELO line.
    pub helo: String,
    /// The MAIL line.
    pub mail: String,
    /// The RCPT lines that were accepted.
    pub rcpt: Vec<String>,
    /// The content, dots unstuffed, with the line ends that came.
    pub content: Vec<u8>,
    /// The content as it came, dots stuffed, without the final dot's line.
    pub raw: Vec<u8>,
    /// Which connection brought it, counted from 0.
    pub connection: usize,
}

/// A server for SMTP (and LMTP: it greets LHLO as well, and answers once for each recipient then).
pub struct Sink {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

type Behaviour = Box<dyn Fn(&str) -> Answer + Send + Sync>;

struct Shared {
    stopped: AtomicBool,
    state: Mutex<State>,
    behaviour: Mutex<Arc<Behaviour>>,
}

#[derive(Default)]
struct State {
    taken: Vec<Taken>,
    commands: Vec<String>,
    connections: Vec<TcpStream>,
}

impl Sink {
    /// A sink on a port that the kernel picks.
    pub fn start() -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// A sink at an address.
    pub fn start_at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap_or_else(|e| panic!("{address}: {e}"));
        let address = listener.local_addr().unwrap();
        let usual: Behaviour = Box::new(|_| Answer::Usual);
        let shared = Arc::new(Shared {
            stopped: AtomicBool::new(false),
            state: Mutex::default(),
            behaviour: Mutex::new(Arc::new(usual)),
        });
        let ours = Arc::clone(&shared);
        let thread = std::thread::spawn(move || accept(&listener, &ours));
        Self { address, shared, thread: Some(thread) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The route to it.
    pub fn via(&self) -> String {
        via(self.address)
    }

    /// From now on, asks `behave` at each command: its line, `CONNECT` at the beginning and `.` at the end
    /// of content.
    pub fn behave(&self, behave: impl Fn(&str) -> Answer + Send + Sync + 'static) {
        *lock(&self.shared.behaviour) = Arc::new(Box::new(behave));
    }

    /// From now on, takes everything.
    pub fn behave_well(&self) {
        self.behave(|_| Answer::Usual);
    }

    /// What it took so far.
    pub fn taken(&self) -> Vec<Taken> {
        lock(&self.shared.state).taken.clone()
    }

    /// Every command it was given so far, of all connections, `CONNECT` included.
    pub fn commands(&self) -> Vec<String> {
        lock(&self.shared.state).commands.clone()
    }

    /// Waits until it took that many messages.
    pub fn wait(&self, count: usize) -> Vec<Taken> {
        self.wait_for(count, Duration::from_secs(30))
    }

    /// Waits, that long at most, until it took that many messages.
    pub fn wait_for(&self, count: usize, patience: Duration) -> Vec<Taken> {
        until(&format!("{count} messages at the sink"), patience, || {
            let state = lock(&self.shared.state);
            (state.taken.len() >= count).then(|| state.taken.clone())
        })
    }

    /// Waits until it was given a command that begins so.
    pub fn wait_command(&self, begins: &str) {
        until(&format!("{begins} at the sink"), Duration::from_secs(30), || {
            lock(&self.shared.state).commands.iter().any(|command| command.starts_with(begins)).then_some(())
        });
    }

    /// Closes the port and every connection, and returns what it took.
    pub fn stop(mut self) -> Vec<Taken> {
        self.shut();
        self.taken()
    }

    fn shut(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        for connection in lock(&self.shared.state).connections.drain(..) {
            // The other side may have closed it.
            let _ = connection.shutdown(Shutdown::Both);
        }
        // Wakes the accepting thread; if that fails it is gone already.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.shut();
    }
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sink({})", self.address)
    }
}

impl fmt::Debug for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let content = String::from_utf8_lossy(&self.content);
        write!(f, "Taken({}, {:?}, {} octets: {:.300})", self.mail, self.rcpt, self.content.len(), content)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for (number, stream) in listener.incoming().enumerate() {
        if shared.stopped.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        lock(&shared.state).connections.push(stream.try_clone().unwrap());
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            let Ok(ours) = stream.try_clone() else { return };
            // A connection ends as it likes. Its end is said: the list above keeps a copy of it open.
            let _ = converse(stream, number, &shared);
            let _ = ours.shutdown(Shutdown::Both);
        });
    }
}

fn converse(stream: TcpStream, number: usize, shared: &Shared) -> std::io::Result<()> {
    let mut input = BufReader::new(stream);
    let (mut helo, mut mail, mut rcpt) = (String::new(), String::new(), Vec::new());
    let mut command = "CONNECT".to_owned();
    loop {
        lock(&shared.state).commands.push(command.clone());
        let behave = Arc::clone(&lock(&shared.behaviour));
        let mut answer = behave(&command);
        let word = command.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
        if answer == Answer::Usual {
            let usual = match &*word {
                "CONNECT" => "220 sink.test ESMTP",
                "EHLO" | "LHLO" => {
                    helo.clone_from(&command);
                    "250-sink.test\r\n250-PIPELINING\r\n250-SIZE\r\n250-8BITMIME\r\n250 ENHANCEDSTATUSCODES"
                }
                "HELO" => {
                    helo.clone_from(&command);
                    "250 sink.test"
                }
                "MAIL" => {
                    mail.clone_from(&command);
                    "250 2.1.0 Ok"
                }
                "RCPT" if mail.is_empty() => "503 5.5.1 No MAIL",
                "RCPT" => {
                    rcpt.push(command.clone());
                    "250 2.1.5 Ok"
                }
                "DATA" if rcpt.is_empty() => "554 5.5.1 No valid recipients",
                "DATA" => "354 Go on",
                "RSET" => {
                    mail.clear();
                    rcpt.clear();
                    "250 2.0.0 Ok"
                }
                "NOOP" => "250 2.0.0 Ok",
                "QUIT" => "221 2.0.0 Bye",
                _ => "500 5.5.2 What?",
            };
            answer = Answer::Say(usual.into());
        }
        match &answer {
            Answer::Drop => return input.get_ref().shutdown(Shutdown::Both),
            Answer::Say(line) => input.get_mut().write_all(format!("{line}\r\n").as_bytes())?,
            Answer::Usual | Answer::Silence => {}
        }
        if word == "QUIT" {
            return Ok(());
        }
        if answer == Answer::Say("354 Go on".into()) {
            let raw = content(&mut input)?;
            let message = Taken {
                helo: helo.clone(),
                mail: std::mem::take(&mut mail),
                rcpt: std::mem::take(&mut rcpt),
                content: unstuffed(&raw),
                raw,
                connection: number,
            };
            match end_of_content(&mut input, &message, &behave, shared)? {
                true => {}
                false => return input.get_ref().shutdown(Shutdown::Both),
            }
        }
        let mut line = Vec::new();
        if input.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        command = String::from_utf8_lossy(&line).trim_end().to_owned();
    }
}

/// Answers the final dot: once, or by LMTP once for each recipient. False: close.
fn end_of_content(
    input: &mut BufReader<TcpStream>,
    message: &Taken,
    behave: &Behaviour,
    shared: &Shared,
) -> std::io::Result<bool> {
    let lmtp = message.helo.to_ascii_uppercase().starts_with("LHLO");
    let answers = if lmtp { message.rcpt.len() } else { 1 };
    lock(&shared.state).commands.push(".".into());
    for n in 0..answers {
        let asked = if lmtp { format!(". {}", message.rcpt[n]) } else { ".".to_owned() };
        match behave(&asked) {
            Answer::Drop => return Ok(false),
            Answer::Silence => {}
            Answer::Say(line) => input.get_mut().write_all(format!("{line}\r\n").as_bytes())?,
            Answer::Usual => {
                // Taken before it is said, so that a test which saw the reply's effect finds the message.
                if n == 0 {
                    lock(&shared.state).taken.push(message.clone());
                }
                input.get_mut().write_all(b"250 2.0.0 Ok: taken\r\n")?;
            }
        }
    }
    Ok(true)
}

/// Reads up to the line of a single dot. A line ends where CRLF says so and nowhere else.
fn content(input: &mut BufReader<TcpStream>) -> std::io::Result<Vec<u8>> {
    let mut raw = Vec::new();
    loop {
        let begin = raw.len();
        while !raw[begin..].ends_with(b"\r\n") {
            if input.read_until(b'\n', &mut raw)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        if &raw[begin..] == b".\r\n" {
            raw.truncate(begin);
            return Ok(raw);
        }
    }
}

fn unstuffed(raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len());
    let mut at_start = true;
    for (n, octet) in raw.iter().enumerate() {
        if !(at_start && *octet == b'.') {
            out.push(*octet);
        }
        at_start = *octet == b'\n' && n > 0 && raw[n - 1] == b'\r';
    }
    out
}
