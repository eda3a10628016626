//! What servers say to our client.

use std::collections::VecDeque;

use postern_address::{Domain, Mailbox, ReversePath};
use postern_smtp::client::{Client, Event, Protocol, ReplyParser, Transaction};
use postern_smtp::parameters::{Body, MailParameters};

use crate::material::{Random, front, is_strict, pieces};

pub(crate) fn run(data: &[u8]) {
    let (options, input): ([u8; 3], _) = front(data);
    let mut random = Random::of(&options);
    let cut = pieces(input, &mut random);
    assert_eq!(replies(&[input]), replies(&cut));
    dialogue(&cut, options[0], &mut random);
}

/// The replies, and whether one was none.
fn replies(cut: &[&[u8]]) -> (Vec<String>, bool) {
    let (mut parser, mut replies) = (ReplyParser::default(), Vec::new());
    for piece in cut {
        let mut input = *piece;
        loop {
            match parser.push(&mut input) {
                Ok(Some(reply)) => {
                    let mut wire = Vec::new();
                    reply.write_to(&mut wire);
                    assert!(is_strict(&wire), "{reply:?}");
                    replies.push(format!("{reply:?}"));
                }
                Ok(None) => break,
                Err(_) => return (replies, true),
            }
        }
    }
    (replies, false)
}

/// Transactions with a server that says this.
fn dialogue(cut: &[&[u8]], options: u8, random: &mut Random) {
    let protocol = if options & 1 == 0 { Protocol::Smtp } else { Protocol::Lmtp };
    let mut client = Client::new(protocol, Domain::parse("mx.test").unwrap());
    let (mut sent, mut open, mut ended) = (Vec::new(), VecDeque::new(), 0);
    for piece in cut {
        client.input(piece);
        step(&mut client, &mut sent, &mut open, &mut ended, options, random);
    }
    if !client.is_closed() {
        if random.below(2) == 0 { client.lost() } else { client.timed_out() }
    }
    step(&mut client, &mut sent, &mut open, &mut ended, options, random);
    assert!(client.is_closed() && is_strict(&sent));
    assert!(open.is_empty(), "somebody was never told of: {open:?}");
}

/// Does what is to be done; `open` is who was not told of yet, of each transaction under way.
fn step(
    client: &mut Client,
    sent: &mut Vec<u8>,
    open: &mut VecDeque<Vec<usize>>,
    ended: &mut u32,
    options: u8,
    random: &mut Random,
) {
    loop {
        while let Some(event) = client.event() {
            match event {
                Event::Ready => assert!(open.is_empty()),
                // Those not told of are tried elsewhere, or once more.
                Event::Unusable { .. } => drop(open.pop_front()),
                Event::Again { .. } => {
                    assert!(open.pop_front().is_some_and(|pending| !pending.is_empty()), "for nobody");
                    *ended += 1;
                }
                Event::Recipient { index, .. } => {
                    let pending = open.front_mut().expect("nobody asked");
                    let place = pending.iter().position(|n| *n == index).expect("told of twice");
                    pending.swap_remove(place);
                }
                Event::Finished => {
                    assert_eq!(open.pop_front(), Some(Vec::new()), "somebody was not told of");
                    *ended += 1;
                }
            }
        }
        if client.is_idle() && open.is_empty() && *ended < 3 {
            let transaction = transaction(options);
            let pending = (0..transaction.recipients.len()).collect();
            if client.begin(transaction).is_ok() {
                open.push_back(pending);
                continue;
            }
        }
        if client.wants_content() {
            let content: &[u8] = b"a\r\n.\r\nb\nc\rd\r\n";
            pieces(content, random).into_iter().for_each(|piece| client.content(piece));
            client.content_end();
        }
        let next = transaction(options);
        let pending = (0..next.recipients.len()).collect();
        if *ended < 2 && client.can_follow() && random.below(2) == 0 && client.follow(next).is_ok() {
            open.push_back(pending);
            continue;
        }
        if client.output().is_empty() {
            return;
        }
        let length = 1 + random.below(client.output().len());
        sent.extend_from_slice(&client.output()[..length]);
        client.written(length);
    }
}

fn transaction(options: u8) -> Transaction {
    let recipients = ["a@v.test", "b@v.test", "\u{fc}@v.test"];
    let recipients = recipients.iter().take(1 + usize::from(options >> 1 & 3).min(2));
    let recipients = recipients.map(|text| Mailbox::parse(text).unwrap()).collect();
    let body = if options & 8 == 0 { Body::SevenBit } else { Body::EightBit };
    let parameters = MailParameters { body, smtputf8: options & 16 != 0, ..MailParameters::default() };
    let whole = options & 32 == 0;
    Transaction { reverse_path: ReversePath::Null, recipients, size: 13, parameters, said: Vec::new(), whole }
}
