//! Policy servers: Postfix's policy delegation protocol (SMTPD_POLICY_README), as its client.
//!
//! A request is lines `name=value` and an empty line; the answer is `action=…` and an empty line. A
//! connection carries one request at a time and is kept for the next. A server that fails once is asked
//! once more, a second later; then the rule that asked is told why, and the client hears 451 4.3.5.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use mio::{Interest, Token};
use postern_config::PolicyServer;
use postern_daemon::Host;

/// Connections to one server at once: as many requests are under way.
pub const CONNECTIONS: usize = 20;

/// Requests to one server that wait for a connection. More is not a queue but a heap.
const WAITING_MAX: usize = 5000;

/// How long a request may take, with everything. smtpd waits 30 s.
const PATIENCE: Duration = Duration::from_secs(25);

/// How long a connection is kept without a request, and in all (as Postfix's
/// `smtpd_policy_service_max_idle` and `_max_ttl`).
const IDLE: Duration = Duration::from_secs(300);
const LIFETIME: Duration = Duration::from_secs(1000);

/// Between two tries (`smtpd_policy_service_retry_delay`).
const RETRY: Duration = Duration::from_secs(1);

/// Most octets of an answer.
const ANSWER_MAX: usize = 16 * 1024;

/// What a server answered: the action; or why there is none.
pub type Outcome = Result<String, String>;

/// All policy servers. `A` names who asks.
#[derive(Debug)]
pub struct Delegation<A> {
    servers: Vec<Server<A>>,
    done: Vec<(A, Outcome)>,
}

#[derive(Debug)]
struct Server<A> {
    address: PolicyServer,
    first_token: usize,
    conversations: Vec<Option<Conversation<A>>>,
    waiting: VecDeque<Job<A>>,
    /// The configuration does not name it any more: what is under way is finished.
    retired: bool,
}

#[derive(Debug)]
struct Job<A> {
    asker: A,
    request: Vec<u8>,
    deadline: Instant,
    /// Not to be tried before.
    not_before: Option<Instant>,
    /// It failed once on a new connection.
    tried: bool,
}

#[derive(Debug)]
struct Conversation<A> {
    stream: Stream,
    job: Option<Job<A>>,
    sent: usize,
    answer: Vec<u8>,
    /// It has carried a request before this one: its failure may be the server's farewell.
    used: bool,
    opened: Instant,
    idle_since: Instant,
}

#[derive(Debug)]
enum Stream {
    Tcp(mio::net::TcpStream),
    Unix(mio::net::UnixStream),
}

/// What came of a look at a connection.
enum Turn {
    /// More is to come.
    Later,
    /// The action.
    Answered(String),
    /// It is of no use any more.
    Broken(String),
}

impl<A: Clone> Delegation<A> {
    /// For the servers of the configuration.
    pub fn new(host: &mut Host, servers: &[PolicyServer]) -> Self {
        let mut delegation = Self { servers: Vec::new(), done: Vec::new() };
        delegation.replace(host, servers);
        delegation
    }

    /// The configuration names others now.
    pub fn replace(&mut self, host: &mut Host, servers: &[PolicyServer]) {
        for server in &mut self.servers {
            server.retired = !servers.contains(&server.address);
        }
        for address in servers {
            if !self.servers.iter().any(|server| server.address == *address) {
                let first_token = host.tokens(CONNECTIONS).0;
                let conversations = (0..CONNECTIONS).map(|_| None).collect();
                let (address, waiting) = (address.clone(), VecDeque::new());
                self.servers.push(Server { address, first_token, conversations, waiting, retired: false });
            }
        }
    }

    /// Asks a server; [`Delegation::take_done`] has the answer, at once or later.
    pub fn ask(&mut self, host: &Host, asker: A, server: &PolicyServer, attributes: &[(String, String)]) {
        let place = self.servers.iter().position(|s| s.address == *server && !s.retired);
        let Some(place) = place else {
            return self.done.push((asker, Err("the configuration of verify does not name it".into())));
        };
        let server = &mut self.servers[place];
        if server.waiting.len() >= WAITING_MAX {
            return self.done.push((asker, Err(format!("{WAITING_MAX} requests wait for it already"))));
        }
        let (request, deadline) = (encode(attributes), host.now() + PATIENCE);
        server.waiting.push_back(Job { asker, request, deadline, not_before: None, tried: false });
        self.serve(host, place);
    }

    /// Whether an event is for one of the connections; then it was dealt with.
    pub fn ready(&mut self, host: &Host, token: Token) -> bool {
        let of = |server: &Server<A>| token.0.checked_sub(server.first_token).filter(|n| *n < CONNECTIONS);
        let Some((place, slot)) =
            self.servers.iter().enumerate().find_map(|(place, server)| Some((place, of(server)?)))
        else {
            return false;
        };
        self.look(host, place, slot);
        self.serve(host, place);
        true
    }

    /// Lets go of what took too long.
    pub fn pass(&mut self, host: &Host) {
        let now = host.now();
        for place in 0..self.servers.len() {
            let server = &mut self.servers[place];
            let waiting = std::mem::take(&mut server.waiting);
            for job in waiting {
                match job.deadline <= now {
                    true => self.done.push((job.asker, Err("no answer in time".into()))),
                    false => server.waiting.push_back(job),
                }
            }
            for slot in &mut server.conversations {
                let Some(conversation) = slot else { continue };
                let over = match &conversation.job {
                    Some(job) => job.deadline <= now,
                    None => {
                        conversation.idle_since + IDLE <= now
                            || conversation.opened + LIFETIME <= now
                            || server.retired
                    }
                };
                if over && let Some(conversation) = slot.take() {
                    let asker = conversation.job.map(|job| job.asker);
                    self.done.extend(asker.map(|asker| (asker, Err("no answer in time".to_owned()))));
                }
            }
            self.serve(host, place);
        }
    }

    /// When to call [`Delegation::pass`].
    pub fn deadline(&self) -> Option<Instant> {
        let of_job = |job: &Job<A>| job.not_before.map_or(job.deadline, |at| at.min(job.deadline));
        let of_server = |server: &Server<A>| {
            let waiting = server.waiting.iter().map(of_job).min();
            let conversations = server.conversations.iter().flatten().map(|c| match &c.job {
                Some(job) => job.deadline,
                None => (c.idle_since + IDLE).min(c.opened + LIFETIME),
            });
            waiting.into_iter().chain(conversations).min()
        };
        self.servers.iter().filter_map(of_server).min()
    }

    /// The answers that have come.
    pub fn take_done(&mut self) -> Vec<(A, Outcome)> {
        std::mem::take(&mut self.done)
    }

    /// Somebody who asked is gone.
    pub fn forget(&mut self, gone: impl Fn(&A) -> bool) {
        for server in &mut self.servers {
            server.waiting.retain(|job| !gone(&job.asker));
            for slot in &mut server.conversations {
                // An answer that nobody waits for would be taken for that to the next request.
                if slot.as_ref().and_then(|c| c.job.as_ref()).is_some_and(|job| gone(&job.asker)) {
                    *slot = None;
                }
            }
        }
        self.done.retain(|(asker, _)| !gone(asker));
    }

    /// Nobody waits for anything.
    pub fn is_idle(&self) -> bool {
        let busy = |server: &Server<A>| {
            !server.waiting.is_empty() || server.conversations.iter().flatten().any(|c| c.job.is_some())
        };
        self.done.is_empty() && !self.servers.iter().any(busy)
    }

    /// Gives connections to those who wait.
    fn serve(&mut self, host: &Host, place: usize) {
        loop {
            let server = &mut self.servers[place];
            let due = |job: &Job<A>| job.not_before.is_none_or(|at| at <= host.now());
            let Some(n) = server.waiting.iter().position(due) else { return };
            let idle = server.conversations.iter().position(|c| c.as_ref().is_some_and(|c| c.job.is_none()));
            let Some(slot) = idle.or_else(|| server.conversations.iter().position(Option::is_none)) else {
                return;
            };
            let Some(job) = server.waiting.remove(n) else { return };
            let token = Token(server.first_token + slot);
            let opened = match server.conversations[slot].take() {
                Some(kept) => Ok(kept),
                None => connect(host, &server.address, token),
            };
            match opened {
                Ok(mut conversation) => {
                    (conversation.sent, conversation.answer) = (0, Vec::new());
                    conversation.job = Some(job);
                    server.conversations[slot] = Some(conversation);
                    self.look(host, place, slot);
                }
                Err(error) => self.failed(host, place, job, false, format!("cannot connect: {error}")),
            }
        }
    }

    /// Goes on with one connection.
    fn look(&mut self, host: &Host, place: usize, slot: usize) {
        let Some(conversation) = self.servers[place].conversations[slot].as_mut() else { return };
        match conversation.turn() {
            Turn::Later => {}
            Turn::Answered(action) => {
                conversation.used = true;
                conversation.idle_since = host.now();
                if let Some(job) = conversation.job.take() {
                    self.done.push((job.asker, Ok(action)));
                }
            }
            Turn::Broken(why) => {
                let Some(gone) = self.servers[place].conversations[slot].take() else { return };
                let farewell = gone.used && gone.answer.is_empty();
                if let Some(job) = gone.job {
                    self.failed(host, place, job, farewell, why);
                }
            }
        }
    }

    /// A connection failed under a job. A kept one that is closed by then says nothing about the server.
    fn failed(&mut self, host: &Host, place: usize, mut job: Job<A>, farewell: bool, why: String) {
        let server = &mut self.servers[place];
        if farewell {
            // The others are as old: the job gets a new one.
            server
                .conversations
                .iter_mut()
                .filter(|c| c.as_ref().is_some_and(|c| c.job.is_none()))
                .for_each(|c| *c = None);
            server.waiting.push_front(job);
        } else if !job.tried && host.now() + RETRY < job.deadline {
            (job.tried, job.not_before) = (true, Some(host.now() + RETRY));
            server.waiting.push_back(job);
        } else {
            self.done.push((job.asker, Err(why)));
        }
    }
}

impl<A> Conversation<A> {
    fn turn(&mut self) -> Turn {
        if let Some(job) = &self.job {
            while let Some(rest @ [_, ..]) = job.request.get(self.sent..) {
                match self.stream.write(rest) {
                    Ok(0) => return Turn::Broken("it takes no more".into()),
                    Ok(length) => self.sent += length,
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    // The connection may not be there yet.
                    Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => break,
                    Err(e) => return Turn::Broken(format!("cannot write to it: {e}")),
                }
            }
        }
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Turn::Broken("it closed the connection".into()),
                Ok(_) if self.job.is_none() => return Turn::Broken("it talks without being asked".into()),
                Ok(length) => self.answer.extend_from_slice(&buffer[..length]),
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => break,
                Err(e) => return Turn::Broken(format!("cannot read from it: {e}")),
            }
            match decode(&self.answer) {
                Ok(Some(action)) => return Turn::Answered(action),
                Ok(None) if self.answer.len() > ANSWER_MAX => {
                    return Turn::Broken("its answer has no end".into());
                }
                Ok(None) => {}
                Err(why) => return Turn::Broken(why),
            }
        }
        Turn::Later
    }
}

impl Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }
}

fn connect<A>(host: &Host, server: &PolicyServer, token: Token) -> io::Result<Conversation<A>> {
    let both = Interest::READABLE | Interest::WRITABLE;
    let stream = match server {
        PolicyServer::Inet(address) => {
            let mut stream = mio::net::TcpStream::connect(*address)?;
            // Requests are small and answers waited for; slower if it cannot be.
            let _ = stream.set_nodelay(true);
            host.registry().register(&mut stream, token, both)?;
            Stream::Tcp(stream)
        }
        PolicyServer::Unix(path) => {
            let mut stream = mio::net::UnixStream::connect(path)?;
            host.registry().register(&mut stream, token, both)?;
            Stream::Unix(stream)
        }
    };
    let now = host.now();
    Ok(Conversation {
        stream,
        job: None,
        sent: 0,
        answer: Vec::new(),
        used: false,
        opened: now,
        idle_since: now,
    })
}

/// A request. Values come from the network in part: no value ends its line.
pub fn encode(attributes: &[(String, String)]) -> Vec<u8> {
    let mut request = b"request=smtpd_access_policy\n".to_vec();
    for (name, value) in attributes {
        request.extend_from_slice(name.as_bytes());
        request.push(b'=');
        request.extend(value.bytes().map(|b| if b.is_ascii_control() { b'?' } else { b }));
        request.push(b'\n');
    }
    request.push(b'\n');
    request
}

/// The action of an answer; none when its end has not come yet; or what is wrong with it. Other attributes
/// than `action` are passed over, as Postfix does.
pub fn decode(answer: &[u8]) -> Result<Option<String>, String> {
    let Some(end) = answer.windows(2).position(|pair| pair == b"\n\n") else {
        // Some write CRLF.
        return match answer.windows(4).position(|four| four == b"\r\n\r\n") {
            Some(end) => whole(&answer[..end], answer.len() == end + 4),
            None if answer.starts_with(b"\n") => Err("its answer is empty".into()),
            None => Ok(None),
        };
    };
    whole(&answer[..end], answer.len() == end + 2)
}

fn whole(lines: &[u8], is_all: bool) -> Result<Option<String>, String> {
    if !is_all {
        return Err("it says more than one answer".into());
    }
    let text = String::from_utf8_lossy(lines);
    let mut actions =
        text.lines().filter_map(|line| line.split_once('=')).filter(|(name, _)| name.trim() == "action");
    match (actions.next(), actions.next()) {
        (Some((_, action)), None) => {
            Ok(Some(action.trim().replace(|c: char| c.is_control(), "?").chars().take(1000).collect()))
        }
        (None, _) => Err(format!(
            "there is no action in its answer `{}`",
            text.escape_debug().take(100).collect::<String>()
        )),
        (Some(_), Some(_)) => Err("it says two actions".into()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests() {
        let attributes = [("sender".to_owned(), "a\n\nb@x".to_owned()), ("size".to_owned(), String::new())];
        assert_eq!(encode(&attributes), b"request=smtpd_access_policy\nsender=a??b@x\nsize=\n\n");
    }

    #[test]
    fn answers() {
        for (answer, wanted) in [
            (&b""[..], Ok(None)),
            (b"action=DUN", Ok(None)),
            (b"action=DUNNO\n", Ok(None)),
            (b"action=DUNNO\n\n", Ok(Some("DUNNO"))),
            (b"action=DUNNO\r\n\r\n", Ok(Some("DUNNO"))),
            (b"x=y\naction= 450 4.7.1 a=b \n\n", Ok(Some("450 4.7.1 a=b"))),
            (b"action=\n\n", Ok(Some(""))),
            (b"\n", Err(())),
            (b"x=y\n\n", Err(())),
            (b"action=a\naction=b\n\n", Err(())),
            (b"action=a\n\naction=b\n\n", Err(())),
        ] {
            let read = decode(answer).map_err(|_| ());
            assert_eq!(read, wanted.map(|w| w.map(str::to_owned)), "{:?}", String::from_utf8_lossy(answer));
        }
    }

    proptest! {
        #[test]
        fn no_answer_has_two_lines(answer in proptest::collection::vec(any::<u8>(), 0..60)) {
            let bytes = [b"action=", &answer[..], b"\n\n"].concat();
            if let Ok(Some(action)) = decode(&bytes) {
                prop_assert!(!action.chars().any(char::is_control));
            }
        }
    }
}
