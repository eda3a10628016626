//! What a sender asked for, and content in any octets: said to servers that offer it, and to others not.

use super::*;
use crate::parameters::{ByMode, DeliverBy, Notify, OriginalRecipient, RcptParameters, Ret};

const EVERYTHING: &[u8] = b"250-mx\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-DSN\r\n250-SMTPUTF8\r\n\
    250-CHUNKING\r\n250-BINARYMIME\r\n250-DELIVERBY 60\r\n250 MT-PRIORITY\r\n";

fn asking(body: Body) -> Transaction {
    let parameters = MailParameters {
        size: None,
        body,
        smtputf8: false,
        ret: Some(Ret::Full),
        envid: Some("Q1".into()),
        by: Some(DeliverBy { seconds: 100, mode: ByMode::Notify, trace: false }),
        hold: None,
        priority: Some(3),
    };
    let notify = Some(Notify { success: true, failure: true, delay: false });
    let orcpt = Some(OriginalRecipient { kind: "rfc822".into(), address: "o@b.test".into() });
    Transaction { parameters, said: vec![RcptParameters { notify, orcpt }], ..transaction(2) }
}

fn server(ehlo: &'static [u8]) -> Server {
    Server { ehlo, ..Server::new(Protocol::Smtp) }
}

fn said(server: &Server, verb: &str) -> Vec<String> {
    server.commands.iter().filter(|command| command.starts_with(verb)).cloned().collect()
}

#[test]
fn a_server_is_told_what_it_offers_to_hear() {
    let mut knows = server(EVERYTHING);
    run(&mut knows, asking(Body::SevenBit), b"x", &[1000]);
    assert_eq!(said(&knows, "MAIL"), ["MAIL FROM:<from@a.test> RET=FULL ENVID=Q1 BY=100;N MT-PRIORITY=3"]);
    let recipients =
        ["RCPT TO:<u0@b.test> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;o@b.test", "RCPT TO:<u1@b.test>"];
    assert_eq!(said(&knows, "RCPT"), recipients);
    let mut plain = server(b"250 mx\r\n");
    run(&mut plain, asking(Body::SevenBit), b"x", &[1000]);
    assert_eq!(said(&plain, "MAIL"), ["MAIL FROM:<from@a.test>"]);
    assert_eq!(said(&plain, "RCPT"), ["RCPT TO:<u0@b.test>", "RCPT TO:<u1@b.test>"]);
}

#[test]
fn a_message_to_be_returned_when_late_goes_only_where_that_is_seen_to() {
    let by = |seconds| {
        let mut transaction = asking(Body::SevenBit);
        transaction.parameters.by = Some(DeliverBy { seconds, mode: ByMode::Return, trace: false });
        transaction
    };
    for (ehlo, seconds, code) in [
        (EVERYTHING, 60, None),
        (EVERYTHING, 59, Some(EnhancedCode::new(5, 4, 7))),
        (EVERYTHING, 0, Some(EnhancedCode::new(5, 4, 7))),
        (FULL, 60, Some(EnhancedCode::new(5, 3, 3))),
    ] {
        let (_, events) = run(&mut server(ehlo), by(seconds), b"x", &[1000]);
        let codes = events.iter().filter_map(|event| match event {
            Event::Recipient { outcome, .. } if outcome.verdict == Verdict::Failed => outcome.reply.enhanced,
            _ => None,
        });
        assert_eq!(codes.collect::<Vec<_>>(), vec![code; 2].into_iter().flatten().collect::<Vec<_>>());
    }
    // LMTP servers are where mail is delivered.
    let mut lmtp = Server { ehlo: FULL, ..Server::new(Protocol::Lmtp) };
    let (_, events) = run(&mut lmtp, by(1), b"x", &[1000]);
    assert!(verdicts(&events).iter().all(|(_, verdict, _)| *verdict == Verdict::Delivered));
}

#[test]
fn utf8_in_the_header_needs_smtputf8_as_well() {
    let mut transaction = asking(Body::EightBit);
    transaction.parameters.smtputf8 = true;
    let mut knows = server(EVERYTHING);
    run(&mut knows, transaction.clone(), b"x", &[1000]);
    assert!(said(&knows, "MAIL")[0].contains(" BODY=8BITMIME SMTPUTF8 "));
    let mut plain = server(FULL);
    let (_, events) = run(&mut plain, transaction, b"x", &[1000]);
    assert_eq!(verdicts(&events), [(0, Verdict::Failed, 553), (1, Verdict::Failed, 553)]);
    assert!(said(&plain, "MAIL").is_empty());
}

#[test]
fn the_form_of_content() {
    let of = |body, ehlo: &[u8]| {
        let mut parser = ReplyParser::default();
        let reply = parser.push(&mut &ehlo[..]).unwrap().unwrap();
        Form::of(body, &Extensions::from_reply(&reply))
    };
    assert_eq!(of(Body::SevenBit, b"250 mx\r\n"), Form::AsItIs);
    assert_eq!(of(Body::EightBit, b"250 mx\r\n"), Form::SevenBit);
    assert_eq!(of(Body::EightBit, FULL), Form::AsItIs);
    assert_eq!(of(Body::Binary, FULL), Form::SevenBit);
    assert_eq!(of(Body::Binary, b"250-mx\r\n250 BINARYMIME\r\n"), Form::SevenBit);
    assert_eq!(of(Body::Binary, EVERYTHING), Form::Chunks);
}

#[test]
fn binary_content_goes_in_chunks_and_untouched() {
    for pieces in [&[1000][..], &[1], &[3, 17]] {
        for protocol in [Protocol::Smtp, Protocol::Lmtp] {
            let mut server = Server { ehlo: EVERYTHING, ..Server::new(protocol) };
            server.rcpt = vec![b"250 Ok\r\n", b"550 5.1.1 who\r\n"];
            let content = b".\r\n\0\n.\n\r\r\n.\r\n";
            let (mut client, events) = run(&mut server, asking(Body::Binary), content, pieces);
            use Verdict::{Delivered, Failed};
            assert_eq!(verdicts(&events), [(1, Failed, 550), (0, Delivered, 250)]);
            assert_eq!(server.contents, [content]);
            assert!(
                said(&server, "MAIL")[0].contains(" BODY=BINARYMIME ") && said(&server, "DATA").is_empty()
            );
            // The session goes on with another message.
            client.begin(transaction(1)).unwrap();
            let events = talk(&mut client, &mut server, b"", b"b", pieces);
            assert_eq!(verdicts(&events), [(0, Delivered, 250)]);
        }
    }
}

#[test]
fn no_chunk_follows_a_refused_one_nor_nobody() {
    let mut full = server(EVERYTHING);
    full.chunk = b"552 5.3.4 too much\r\n";
    let (mut client, events) = run(&mut full, asking(Body::Binary), &[b'x'; 5000], &[1000]);
    assert_eq!(verdicts(&events), [(0, Verdict::Failed, 552), (1, Verdict::Failed, 552)]);
    assert_eq!(said(&full, "BDAT").len(), 1);
    assert!(client.is_idle());
    client.begin(transaction(1)).unwrap();
    talk(&mut client, &mut full, b"", b"b", &[100]);
    assert_eq!((said(&full, "RSET").len(), full.contents.len()), (1, 1));
    let mut nobody = server(EVERYTHING);
    nobody.rcpt = vec![b"550 no\r\n"];
    let (client, events) = run(&mut nobody, asking(Body::Binary), b"x", &[1000]);
    assert_eq!(verdicts(&events).len(), 2);
    assert!(client.is_idle() && said(&nobody, "BDAT").is_empty());
}
