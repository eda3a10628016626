//! A client that sends exactly what it is told.

use std::fmt;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, SocketAddrV4, TcpStream};
use std::time::Duration;

use crate::process::until;

/// How long a reply may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection.
#[derive(Debug)]
pub struct Smtp {
    stream: BufReader<TcpStream>,
    greeting: Reply,
}

/// A whole reply.
#[derive(Clone, PartialEq, Eq)]
pub struct Reply {
    /// Its code.
    pub code: u16,
    /// The text of its lines.
    pub lines: Vec<String>,
}

impl Smtp {
    /// Connects and reads the greeting.
    pub fn connect(address: SocketAddr) -> Self {
        Self::from_stream(TcpStream::connect(address).unwrap()).unwrap()
    }

    /// Connects from an address of this machine and reads the greeting.
    pub fn connect_from(source: IpAddr, address: SocketAddr) -> Self {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket};
        use std::os::fd::AsRawFd;
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let made = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(made.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(source, 0))).unwrap();
        connect(made.as_raw_fd(), &SockaddrStorage::from(address)).unwrap();
        Self::from_stream(TcpStream::from(made)).unwrap()
    }

    /// Connects and reads the greeting, unless the server is not there or goes away.
    pub fn try_connect(address: SocketAddr) -> io::Result<Self> {
        Self::from_stream(TcpStream::connect(address)?)
    }

    fn from_stream(stream: TcpStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let mut smtp =
            Self { stream: BufReader::new(stream), greeting: Reply { code: 0, lines: Vec::new() } };
        smtp.greeting = smtp.try_reply()?;
        Ok(smtp)
    }

    /// The server's first words.
    pub fn greeting(&self) -> &Reply {
        &self.greeting
    }

    /// Says EHLO and returns what the server can do.
    pub fn ehlo(&mut self) -> Reply {
        self.says("EHLO client.test", "250")
    }

    /// Sends a line, CRLF added.
    pub fn line(&mut self, line: &str) {
        self.bytes(format!("{line}\r\n").as_bytes());
    }

    /// Sends bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.try_bytes(bytes).unwrap();
    }

    /// Sends bytes as they are, unless the server went away.
    pub fn try_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Waits until the server has read what was sent so far, so that what is sent next comes to it alone. Both
    /// sides must be on this machine.
    pub fn wait_until_read(&self) {
        let stream = self.stream.get_ref();
        let (Ok(SocketAddr::V4(ours)), Ok(SocketAddr::V4(theirs))) =
            (stream.local_addr(), stream.peer_addr())
        else {
            panic!("only over IPv4")
        };
        // As the kernel prints it: the address as it lies in memory.
        let shown = |a: SocketAddrV4| format!("{:08X}:{:04X}", u32::from_ne_bytes(a.ip().octets()), a.port());
        let ends = [shown(theirs), shown(ours)];
        until("the server reads", PATIENCE, || {
            let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
            let mut sockets = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            // A socket that is gone reads nothing more.
            let socket = sockets.find(|fields| fields.get(1..3).is_some_and(|of| of == ends));
            socket.is_none_or(|fields| fields[4].ends_with(":00000000")).then_some(())
        });
    }

    /// Reads one reply.
    pub fn reply(&mut self) -> Reply {
        self.try_reply().unwrap_or_else(|e| panic!("no reply: {e}"))
    }

    /// Reads one reply, unless the server went away. What is no reply is an error.
    pub fn try_reply(&mut self) -> io::Result<Reply> {
        let mut lines = Vec::new();
        loop {
            let mut line = Vec::new();
            if self.stream.read_until(b'\n', &mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let text = String::from_utf8(line).map_err(|e| io::Error::other(e.to_string()))?;
            let wrong = || io::Error::other(format!("this is no reply: {text:?}"));
            let text = text.strip_suffix("\r\n").ok_or_else(wrong)?;
            let code = text.get(..3).and_then(|code| code.parse().ok()).ok_or_else(wrong)?;
            lines.push(text.get(4..).unwrap_or_default().to_owned());
            if text.as_bytes().get(3) != Some(&b'-') {
                return Ok(Reply { code, lines });
            }
        }
    }

    /// Reads one reply that begins with `expected`: `250`, or `550 5.1.1`.
    pub fn expect(&mut self, expected: &str) -> Reply {
        let reply = self.reply();
        assert!(reply.is(expected), "expected {expected}, got {reply}");
        reply
    }

    /// Sends a line and expects a reply.
    pub fn says(&mut self, line: &str, expected: &str) -> Reply {
        self.line(line);
        let reply = self.reply();
        assert!(reply.is(expected), "{line}: expected {expected}, got {reply}");
        reply
    }

    /// Sends each line and expects the reply beside it.
    pub fn dialogue(&mut self, turns: &[(&str, &str)]) {
        for (line, expected) in turns {
            self.says(line, expected);
        }
    }

    /// One transaction: the queue id, or the first reply that refused it. The message is dot-stuffed here.
    /// The first call says EHLO.
    pub fn send(&mut self, from: &str, to: &[&str], message: &[u8]) -> Result<String, Reply> {
        self.try_send(from, to, message).unwrap_or_else(|e| panic!("the server went away: {e}"))
    }

    /// As [`Smtp::send`], where the server may go away.
    pub fn try_send(&mut self, from: &str, to: &[&str], message: &[u8]) -> io::Result<Result<String, Reply>> {
        let recipients = to.iter().map(|to| format!("RCPT TO:<{to}>"));
        let mut commands = vec![format!("MAIL FROM:<{from}>")];
        commands.extend(recipients);
        if !self.greeting.lines.is_empty() {
            self.greeting.lines.clear();
            commands.insert(0, "EHLO client.test".into());
        }
        commands.push("DATA".into());
        for command in commands {
            self.try_bytes(format!("{command}\r\n").as_bytes())?;
            let reply = self.try_reply()?;
            if reply.code >= 400 {
                self.try_bytes(b"RSET\r\n")?;
                self.try_reply()?;
                return Ok(Err(reply));
            }
        }
        self.try_bytes(&stuffed(message))?;
        let reply = self.try_reply()?;
        match reply.queue_id() {
            Some(id) => Ok(Ok(id)),
            None => Ok(Err(reply)),
        }
    }

    /// Says QUIT and waits until the server has closed.
    pub fn quit(mut self) {
        self.says("QUIT", "221");
        self.closed();
    }

    /// The server closes the connection without another word.
    pub fn closed(&mut self) {
        let mut rest = Vec::new();
        // A reset is an end as well.
        let _ = io::Read::read_to_end(&mut self.stream, &mut rest);
        assert!(rest.is_empty(), "more from the server: {:?}", String::from_utf8_lossy(&rest));
    }
}

impl Reply {
    /// The reply begins with that code, and that enhanced code if there is one.
    pub fn is(&self, expected: &str) -> bool {
        self.to_string().starts_with(expected)
    }

    /// The id in `250 2.0.0 Ok: queued as ID`.
    pub fn queue_id(&self) -> Option<String> {
        let text = self.lines.last().filter(|_| self.code == 250)?;
        text.rsplit_once("queued as ").map(|(_, id)| id.trim().to_owned())
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code, self.lines.join(" / "))
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The content with leading dots doubled and the final dot (RFC 5321 §4.5.2).
fn stuffed(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + 16);
    for line in message.split_inclusive(|octet| *octet == b'\n') {
        if line.starts_with(b".") {
            out.push(b'.');
        }
        out.extend_from_slice(line);
    }
    if !message.is_empty() && !message.ends_with(b"\r\n") {
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b".\r\n");
    out
}
