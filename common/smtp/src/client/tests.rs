//! The machine against servers of every temper.

use postern_address::{Domain, Mailbox, ReversePath};
use proptest::prelude::*;

use super::stuffing::tests::decode;
use super::*;
use crate::parameters::{Body, MailParameters};
use crate::reply::{EnhancedCode, Reply};

mod asks;
mod follow;
mod whole;

/// A strict server: reads only what has arrived, answers by a script, and keeps what it was told.
struct Server {
    protocol: Protocol,
    ehlo: &'static [u8],
    /// The reply to each recipient, in turn.
    rcpt: Vec<&'static [u8]>,
    mail: &'static [u8],
    /// The replies to the first ones, where they differ.
    mails: Vec<&'static [u8]>,
    rset: &'static [u8],
    /// The reply to the last chunk for nobody.
    nobody: &'static [u8],
    data: &'static [u8],
    /// Replies to the end of content, in turn.
    end: Vec<&'static [u8]>,
    heard: Vec<u8>,
    commands: Vec<String>,
    contents: Vec<Vec<u8>>,
    accepted: usize,
    in_mail: bool,
    in_content: bool,
    closed: bool,
    /// The reply to each chunk but the last.
    chunk: &'static [u8],
    chunks: Vec<u8>,
}

const FULL: &[u8] = b"250-mx\r\n250-PIPELINING\r\n250-SIZE 1000\r\n250 8BITMIME\r\n";

impl Server {
    fn new(protocol: Protocol) -> Self {
        Self {
            protocol,
            ehlo: FULL,
            rcpt: vec![b"250 2.1.5 Ok\r\n"],
            mail: b"250 2.1.0 Ok\r\n",
            mails: Vec::new(),
            rset: b"250 2.0.0 Ok\r\n",
            nobody: b"503 5.5.1 no recipients\r\n",
            data: b"354 go\r\n",
            end: vec![b"250 2.0.0 Ok: queued\r\n"],
            heard: Vec::new(),
            commands: Vec::new(),
            contents: Vec::new(),
            accepted: 0,
            in_mail: false,
            in_content: false,
            closed: false,
            chunk: b"250 2.0.0 more\r\n",
            chunks: Vec::new(),
        }
    }

    fn hear(&mut self, octets: &[u8]) -> Vec<u8> {
        self.heard.extend_from_slice(octets);
        let mut out = Vec::new();
        loop {
            if self.in_content {
                let Some((content, rest)) = decode(&self.heard) else { break };
                self.contents.push(content);
                self.heard = rest.to_vec();
                self.in_content = false;
                let replies = if self.protocol == Protocol::Lmtp { self.accepted } else { 1 };
                (0..replies).for_each(|n| out.extend_from_slice(self.end[n % self.end.len()]));
                (self.accepted, self.in_mail) = (0, false);
                continue;
            }
            let Some(end) = self.heard.windows(2).position(|w| w == b"\r\n") else { break };
            let line = String::from_utf8(self.heard.drain(..end + 2).collect()).unwrap();
            let line = line.trim_end().to_owned();
            if let Some(chunk) = line.strip_prefix("BDAT ") {
                let (length, last) = chunk.split_once(' ').map_or((chunk, false), |(n, _)| (n, true));
                let length: usize = length.parse().unwrap();
                if self.heard.len() < length {
                    self.heard.splice(0..0, [line.as_bytes(), b"\r\n"].concat());
                    break;
                }
                self.chunks.extend(self.heard.drain(..length));
                if last && self.accepted == 0 {
                    // It stays in the transaction, as a server may.
                    self.chunks.clear();
                    out.extend_from_slice(self.nobody);
                } else if last {
                    self.contents.push(std::mem::take(&mut self.chunks));
                    let replies = if self.protocol == Protocol::Lmtp { self.accepted } else { 1 };
                    let ends = self.contents.len() - 1;
                    (ends..ends + replies).for_each(|n| out.extend_from_slice(self.end[n % self.end.len()]));
                    (self.accepted, self.in_mail) = (0, false);
                } else {
                    out.extend_from_slice(self.chunk);
                }
                self.commands.push(line);
                continue;
            }
            let rcpts = self.commands.iter().filter(|c| c.starts_with("RCPT")).count();
            out.extend_from_slice(match line.split_once([' ', ':']).map_or(&*line, |(verb, _)| verb) {
                "EHLO" | "LHLO" => self.ehlo,
                "RSET" => {
                    (self.accepted, self.in_mail) = (0, false);
                    self.rset
                }
                "HELO" => b"250 Ok\r\n",
                "MAIL" if self.in_mail => b"503 5.5.1 nested MAIL\r\n",
                "MAIL" => {
                    let mails = self.commands.iter().filter(|c| c.starts_with("MAIL")).count();
                    let reply = self.mails.get(mails).copied().unwrap_or(self.mail);
                    self.in_mail = reply.starts_with(b"2");
                    reply
                }
                "RCPT" if !self.in_mail => b"503 5.5.1 need MAIL\r\n",
                "RCPT" => {
                    let reply = self.rcpt[rcpts % self.rcpt.len()];
                    self.accepted += usize::from(reply.starts_with(b"2"));
                    reply
                }
                "DATA" => {
                    self.in_content = self.data.starts_with(b"354");
                    self.data
                }
                "QUIT" => {
                    self.closed = true;
                    b"221 bye\r\n"
                }
                _ => b"500 what\r\n",
            });
            self.commands.push(line);
        }
        out
    }
}

/// Talks until both are silent. Octets travel in pieces of the sizes given, in turn.
fn talk(
    client: &mut Client,
    server: &mut Server,
    greeting: &[u8],
    content: &[u8],
    pieces: &[usize],
) -> Vec<Event> {
    let mut sizes = pieces.iter().copied().cycle();
    let (mut events, mut to_client, mut left) = (Vec::new(), greeting.to_vec(), Some(content));
    loop {
        let before = (client.progress(), to_client.len(), client.output().len(), events.len());
        let size = sizes.next().unwrap().min(to_client.len());
        let piece: Vec<u8> = to_client.drain(..size).collect();
        client.input(&piece);
        events.extend(std::iter::from_fn(|| client.event()));
        if client.wants_content() {
            match left.as_mut().filter(|rest| !rest.is_empty()) {
                Some(rest) => {
                    let (piece, others) = rest.split_at(sizes.next().unwrap().min(rest.len()));
                    client.content(piece);
                    *rest = others;
                }
                None => client.content_end(),
            }
        }
        let size = sizes.next().unwrap().min(client.output().len());
        let piece = client.output()[..size].to_vec();
        client.written(size);
        to_client.extend(server.hear(&piece));
        if before == (client.progress(), to_client.len(), client.output().len(), events.len())
            && to_client.is_empty()
            && client.output().is_empty()
            && !client.wants_content()
        {
            return events;
        }
    }
}

fn client(protocol: Protocol) -> Client {
    Client::new(protocol, Domain::parse("client.test").unwrap())
}

fn transaction(recipients: usize) -> Transaction {
    Transaction {
        reverse_path: ReversePath::parse("<from@a.test>").unwrap(),
        recipients: (0..recipients).map(|n| Mailbox::parse(&format!("u{n}@b.test")).unwrap()).collect(),
        size: 10,
        parameters: MailParameters { body: Body::EightBit, ..MailParameters::default() },
        said: Vec::new(),
        whole: false,
    }
}

/// Opens a session and runs one transaction.
fn run(
    server: &mut Server,
    transaction: Transaction,
    content: &[u8],
    pieces: &[usize],
) -> (Client, Vec<Event>) {
    let mut client = client(server.protocol);
    let events = talk(&mut client, server, b"220 mx ready\r\n", b"", pieces);
    assert_eq!(events, [Event::Ready]);
    client.begin(transaction).unwrap();
    let events = talk(&mut client, server, b"", content, pieces);
    (client, events)
}

fn verdicts(events: &[Event]) -> Vec<(usize, Verdict, u16)> {
    let told = |event: &Event| match event {
        Event::Recipient { index, outcome } => Some((*index, outcome.verdict, outcome.reply.code)),
        _ => None,
    };
    events.iter().filter_map(told).collect()
}

#[test]
fn a_message_for_three_with_one_refused() {
    for ehlo in [FULL, b"250 mx\r\n", b"502 no\r\n"] {
        let mut server = Server::new(Protocol::Smtp);
        server.ehlo = ehlo;
        server.rcpt = vec![b"250 Ok\r\n", b"550 5.1.1 who\r\n", b"251 Ok\r\n"];
        let (mut client, events) = run(&mut server, transaction(3), b".a\r\n", &[1000]);
        use Verdict::{Delivered, Failed};
        assert_eq!(verdicts(&events), [(1, Failed, 550), (0, Delivered, 250), (2, Delivered, 250)]);
        assert_eq!(events.last(), Some(&Event::Finished));
        assert_eq!(server.contents, [b".a\r\n"]);
        assert_eq!(client.server_name(), if ehlo.starts_with(b"250") { "mx" } else { "Ok" });
        let mail = server.commands.iter().find(|c| c.starts_with("MAIL")).unwrap();
        let full = "MAIL FROM:<from@a.test> SIZE=10 BODY=8BITMIME";
        assert_eq!(mail, if ehlo == FULL { full } else { "MAIL FROM:<from@a.test>" });
        // Once more over the same connection, then good-bye.
        client.begin(transaction(1)).unwrap();
        let events = talk(&mut client, &mut server, b"", b"b", &[3]);
        assert_eq!(verdicts(&events), [(0, Delivered, 250)]);
        client.quit();
        talk(&mut client, &mut server, b"", b"", &[100]);
        assert!(client.is_closed() && server.closed);
        assert_eq!(server.contents.len(), 2);
    }
}

#[test]
fn nobody_accepted_means_no_message() {
    // With and without pipelining, DATA refused or (against the letter) taken.
    for (ehlo, data) in [(FULL, &b"503 no\r\n"[..]), (FULL, b"354 go\r\n"), (b"250 mx\r\n", b"354 go\r\n")] {
        let mut server = Server::new(Protocol::Smtp);
        (server.ehlo, server.data) = (ehlo, data);
        server.rcpt = vec![b"550 no\r\n", b"450 later\r\n"];
        let (mut client, events) = run(&mut server, transaction(2), b"secret", &[1000]);
        assert_eq!(verdicts(&events), [(0, Verdict::Failed, 550), (1, Verdict::Deferred, 450)]);
        let taken = ehlo == FULL && data.starts_with(b"354");
        assert_eq!(server.contents, if taken { vec![vec![]] } else { vec![] });
        assert_eq!(server.commands.iter().any(|c| c == "DATA"), ehlo == FULL);
        // The next transaction begins clean.
        server.rcpt = vec![b"250 Ok\r\n"];
        server.data = b"354 go\r\n";
        client.begin(transaction(1)).unwrap();
        let events = talk(&mut client, &mut server, b"", b"x", &[1000]);
        assert_eq!(verdicts(&events), [(0, Verdict::Delivered, 250)]);
        assert_eq!(server.commands.iter().filter(|c| *c == "RSET").count(), usize::from(!taken));
    }
}

#[test]
fn lmtp_answers_for_each_recipient() {
    let mut server = Server::new(Protocol::Lmtp);
    server.rcpt = vec![b"250 Ok\r\n", b"550 5.1.1 no\r\n", b"250 Ok\r\n", b"250 Ok\r\n"];
    server.end = vec![b"250 2.0.0 saved\r\n", b"452 4.2.2 full\r\n", b"554 5.6.0 no\r\n"];
    let (_, events) = run(&mut server, transaction(4), b"x", &[7]);
    use Verdict::{Deferred, Delivered, Failed};
    assert_eq!(
        verdicts(&events),
        [(1, Failed, 550), (0, Delivered, 250), (2, Deferred, 452), (3, Failed, 554)]
    );
    assert_eq!(server.commands[0], "LHLO client.test");
    // Nobody accepted, DATA taken all the same.
    let mut server = Server::new(Protocol::Lmtp);
    server.rcpt = vec![b"550 no\r\n"];
    let (client, events) = run(&mut server, transaction(1), b"x", &[1000]);
    assert_eq!(verdicts(&events), [(0, Failed, 550)]);
    assert!(client.is_closed() && server.contents == [b""]);
}

#[test]
fn sessions_that_do_not_begin() {
    for (protocol, greeting, ehlo) in [
        (Protocol::Smtp, &b"554 no\r\n"[..], FULL),
        (Protocol::Smtp, b"421 busy\r\n", FULL),
        (Protocol::Smtp, b"220 hi\r\n", &b"421 busy\r\n"[..]),
        (Protocol::Smtp, b"220 hi\r\n", b"450 busy\r\n"),
        (Protocol::Lmtp, b"220 hi\r\n", b"500 what\r\n"),
        (Protocol::Smtp, b"220 hi\r\n", b"garbage\r\n"),
        (Protocol::Smtp, b"220 hi\r\n250 early\r\n", FULL),
        (Protocol::Smtp, b"250 hi\r\n", FULL),
        (Protocol::Smtp, b"220 hi\r\n", b"250 hi\r\n250 and more\r\n"),
    ] {
        let (mut client, mut server) = (client(protocol), Server::new(protocol));
        server.ehlo = ehlo;
        let events = talk(&mut client, &mut server, greeting, b"", &[1000]);
        assert!(matches!(&events[..], [Event::Unusable { .. }]), "{events:?}");
        assert!(client.is_closed());
    }
}

#[test]
fn refused_before_it_is_sent() {
    let mut server = Server::new(Protocol::Smtp);
    let (_, events) = run(&mut server, Transaction { size: 1001, ..transaction(2) }, b"x", &[1000]);
    assert_eq!(verdicts(&events), [(0, Verdict::Failed, 552), (1, Verdict::Failed, 552)]);
    assert_eq!(server.commands, ["EHLO client.test"]);
    let mut server = Server::new(Protocol::Smtp);
    let mut both = transaction(1);
    both.recipients.push(Mailbox::parse("ü@b.test").unwrap());
    let (_, events) = run(&mut server, both, b"x", &[1000]);
    assert_eq!(verdicts(&events), [(1, Verdict::Failed, 553), (0, Verdict::Delivered, 250)]);
}

/// A client that has sent `octets` of its content, the connection and its server.
fn in_content() -> Client {
    let (mut client, _) = before_content(Protocol::Smtp, FULL);
    client.content(b"half");
    client
}

/// A client that may send the content of a transaction for two, and its server.
fn before_content(protocol: Protocol, ehlo: &'static [u8]) -> (Client, Server) {
    let (mut client, mut server) = (client(protocol), Server::new(protocol));
    server.ehlo = ehlo;
    talk(&mut client, &mut server, b"220 hi\r\n", b"", &[1000]);
    client.begin(transaction(2)).unwrap();
    while !client.wants_content() {
        exchange(&mut client, &mut server);
    }
    (client, server)
}

/// Says what is to be said, and hears the answer.
fn exchange(client: &mut Client, server: &mut Server) {
    let said = client.output().to_vec();
    client.written(said.len());
    client.input(&server.hear(&said));
}

fn drain(client: &mut Client) -> Vec<Event> {
    std::iter::from_fn(|| client.event()).collect()
}

#[test]
fn broken_in_the_middle() {
    let mut lost = in_content();
    lost.lost();
    let mut slow = in_content();
    slow.timed_out();
    let mut ours = in_content();
    ours.abandon(Reply::new(451, EnhancedCode::new(4, 3, 0), "cannot read"));
    let mut talker = in_content();
    talker.input(b"250 already\r\n");
    for mut client in [lost, slow, ours, talker] {
        let events = drain(&mut client);
        assert_eq!(verdicts(&events), [(0, Verdict::Deferred, 451), (1, Verdict::Deferred, 451)]);
        assert!(client.is_closed() && events.last() == Some(&Event::Finished));
        assert!(!client.output().ends_with(b".\r\n"), "the message was completed");
    }
    let mut early = in_content();
    early.input(b"552 5.3.4 too much\r\n");
    assert_eq!(verdicts(&drain(&mut early)), [(0, Verdict::Failed, 552), (1, Verdict::Failed, 552)]);
    // Before content the recipients are free for another server.
    let (mut client, mut server) = (client(Protocol::Smtp), Server::new(Protocol::Smtp));
    talk(&mut client, &mut server, b"220 hi\r\n", b"", &[1000]);
    client.begin(transaction(1)).unwrap();
    client.lost();
    assert!(matches!(&drain(&mut client)[..], [Event::Unusable { remote: false, .. }]));
    // A loss of what carries nothing is no event.
    let (mut client, mut server) = (self::client(Protocol::Smtp), Server::new(Protocol::Smtp));
    talk(&mut client, &mut server, b"220 hi\r\n", b"", &[1000]);
    client.input(b"421 idle too long\r\n");
    assert!(client.is_closed() && drain(&mut client).is_empty());
}

#[test]
fn patience() {
    let mut client = in_content();
    assert_eq!(client.waiting(), Waiting::Room);
    client.content_end();
    assert_eq!(client.waiting(), Waiting::Room);
    client.written(100);
    assert_eq!(client.waiting(), Waiting::FinalReply);
    // Octets are no progress, only whole replies are.
    let before = client.progress();
    client.input(b"250 O");
    assert_eq!(client.progress(), before);
    client.input(b"k\r\n");
    assert!(client.progress() > before);
    assert_eq!(client.waiting(), Waiting::Nothing);
}

#[test]
fn content_waits_for_room() {
    let mut client = in_content();
    let mut pushed = 0;
    while client.wants_content() {
        client.content(&[b'\n'; 32 * 1024]);
        pushed += 1;
    }
    assert!(pushed <= 3 && client.output().len() < 200 * 1024);
    client.written(client.output().len());
    assert!(client.wants_content());
}

fn reply() -> impl Strategy<Value = &'static [u8]> {
    let replies: [&[u8]; 12] = [
        b"250 Ok\r\n",
        b"250-Ok\r\n250 more\r\n",
        b"354 go\r\n",
        b"450 4.2.0 later\r\n",
        b"550 5.1.1 never\r\n",
        b"552 full\r\n",
        b"421 bye\r\n",
        b"",
        b"250 Ok\n",
        b"junk\r\n",
        b"250-Ok\r\n450 no\r\n",
        b"250 Ok\r\n250 Ok\r\n",
    ];
    // Mostly well-behaved, so that some runs come to their end.
    prop_oneof![4 => Just(replies[0]), 3 => (0..6usize).prop_map(move |n| replies[n]), 1 => (0..12usize).prop_map(move |n| replies[n])]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever the server says, in whatever pieces: every recipient is told of exactly once, or the
    /// session was unusable before content and each is told of at most once.
    #[test]
    fn everyone_is_told_of_once(
        lmtp in any::<bool>(),
        ehlo in prop_oneof![3 => Just(FULL), 2 => Just(&b"250 mx\r\n"[..]), 1 => reply()],
        mail in reply(), data in prop_oneof![3 => Just(&b"354 go\r\n"[..]), 1 => reply()],
        rcpt in proptest::collection::vec(reply(), 1..5),
        end in proptest::collection::vec(reply(), 1..5),
        count in 1usize..6,
        content in "[.\r\na]{0,40}",
        pieces in proptest::collection::vec(1usize..40, 1..6),
        break_off in any::<bool>(),
    ) {
        let protocol = if lmtp { Protocol::Lmtp } else { Protocol::Smtp };
        let mut server = Server::new(protocol);
        (server.ehlo, server.mail, server.data, server.rcpt, server.end) = (ehlo, mail, data, rcpt, end);
        let mut client = client(protocol);
        let mut events = talk(&mut client, &mut server, b"220 hi\r\n", b"", &pieces);
        if client.is_idle() {
            client.begin(transaction(count)).unwrap();
            events.extend(talk(&mut client, &mut server, b"", content.as_bytes(), &pieces));
        }
        // A silent server is given up on.
        if !client.is_idle() && !client.is_closed() {
            if break_off { client.lost() } else { client.timed_out() }
            events.extend(drain(&mut client));
        }
        // It was ready, and broke before anything was asked of it: no more is to be told.
        if events == [Event::Ready] && client.is_closed() {
            return Ok(());
        }
        let unusable = events.iter().filter(|e| matches!(e, Event::Unusable { .. })).count();
        let finished = events.iter().filter(|e| matches!(e, Event::Finished)).count();
        prop_assert_eq!(unusable + finished, 1, "{:?}", events);
        let mut told: Vec<usize> = verdicts(&events).iter().map(|(index, ..)| *index).collect();
        told.sort_unstable();
        let before = told.len();
        told.dedup();
        prop_assert_eq!(told.len(), before, "told twice: {:?}", events);
        prop_assert!(finished == 0 || told.len() == count, "untold: {:?}", events);
        for event in &events {
            if let Event::Recipient { outcome, .. } = event {
                prop_assert!(outcome.reply.enhanced.is_some());
                let class = match outcome.verdict { Verdict::Delivered => 2, Verdict::Deferred => 4, Verdict::Failed => 5 };
                prop_assert_eq!(outcome.reply.code / 100, class);
                // Only an end of content makes a delivery.
                prop_assert!(class != 2 || !server.contents.is_empty());
            }
        }
    }

    /// The grouping of pipelined replies makes no difference.
    #[test]
    fn pieces_make_no_difference(pieces in proptest::collection::vec(1usize..60, 1..6), lmtp in any::<bool>()) {
        let protocol = if lmtp { Protocol::Lmtp } else { Protocol::Smtp };
        let outcome = |pieces: &[usize]| {
            let mut server = Server::new(protocol);
            server.rcpt = vec![b"250 a\r\n", b"550-no\r\n550 way\r\n", b"450 later\r\n"];
            server.end = vec![b"250 a\r\n", b"452 b\r\n"];
            let (_, events) = run(&mut server, transaction(5), b"line\r\n.dot\r\nx", pieces);
            (events, server.commands, server.contents)
        };
        prop_assert_eq!(outcome(&pieces), outcome(&[100_000]));
    }

    #[test]
    fn hostile_octets_never_panic(input in proptest::collection::vec(any::<u8>(), 0..300), piece in 1usize..50) {
        let mut greeted = client(Protocol::Smtp);
        let mut sending = in_content();
        for part in input.chunks(piece) {
            greeted.input(part);
            greeted.written(greeted.output().len());
            sending.input(part);
        }
    }
}
