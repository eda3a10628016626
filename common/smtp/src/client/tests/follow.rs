//! A transaction whose envelope leaves with the end of the content before it.

use super::*;

const FIRST: &[u8] = b"first\r\n";

/// A client in the content of a transaction for two, all of which was handed over, and its server.
fn ending(protocol: Protocol, ehlo: &'static [u8]) -> (Client, Server) {
    let (mut client, server) = before_content(protocol, ehlo);
    client.content(FIRST);
    (client, server)
}

#[test]
fn it_leaves_in_one_group_and_is_answered_in_turn() {
    for protocol in [Protocol::Smtp, Protocol::Lmtp] {
        let (mut client, mut server) = ending(protocol, FULL);
        assert!(client.follow(transaction(1)).is_err(), "too early");
        client.content_end();
        client.follow(transaction(1)).unwrap();
        assert!(client.follow(transaction(1)).is_err(), "one follows");
        let said = String::from_utf8(client.output().to_vec()).unwrap();
        let envelope = "MAIL FROM:<from@a.test> SIZE=10 BODY=8BITMIME\r\nRCPT TO:<u0@b.test>\r\nDATA\r\n";
        assert_eq!(said, format!("first\r\n.\r\n{envelope}"));
        exchange(&mut client, &mut server);
        assert!(!client.wants_content(), "not before it is known whose content it is");
        let events = drain(&mut client);
        assert_eq!(verdicts(&events), [(0, Verdict::Delivered, 250), (1, Verdict::Delivered, 250)]);
        assert_eq!(events.iter().filter(|event| **event == Event::Finished).count(), 1);
        assert!(client.wants_content());
        let events = talk(&mut client, &mut server, b"", b"second", &[1000]);
        assert_eq!(verdicts(&events), [(0, Verdict::Delivered, 250)]);
        assert_eq!(server.contents, [FIRST, b"second\r\n"]);
        assert!(client.is_idle());
    }
}

#[test]
fn only_where_the_server_takes_it() {
    let (mut client, _) = ending(Protocol::Smtp, b"250 mx\r\n");
    client.content_end();
    assert!(!client.can_follow() && client.follow(transaction(1)).is_err(), "no PIPELINING");
    let (mut client, _) = ending(Protocol::Smtp, FULL);
    client.content_end();
    let large = Transaction { size: 1001, ..transaction(2) };
    assert_eq!(client.follow(large.clone()), Err(Box::new(large)), "begun later, it is told why");
    assert!(client.follow(transaction(0)).is_err());
    let mut idle = self::client(Protocol::Smtp);
    talk(&mut idle, &mut Server::new(Protocol::Smtp), b"220 hi\r\n", b"", &[1000]);
    assert!(idle.follow(transaction(1)).is_err(), "there is nothing to follow");
}

/// However the session breaks after the first message, the second is free for another.
#[test]
fn a_session_that_breaks_gives_it_back() {
    type Breaking = fn(&mut Client);
    let breaks: [(Breaking, Verdict, u16); 6] = [
        (Client::lost, Verdict::Deferred, 451),
        (Client::timed_out, Verdict::Deferred, 451),
        (|client| client.input(b"421 4.3.2 good night\r\n"), Verdict::Deferred, 421),
        (|client| client.input(b"nonsense\r\n"), Verdict::Deferred, 451),
        (|client| client.abandon(Reply::new(451, EnhancedCode::new(4, 3, 0), "no")), Verdict::Deferred, 451),
        // Told before the end of the content has left.
        (|client| client.input(b"552 5.3.4 too much\r\n"), Verdict::Failed, 552),
    ];
    for (n, (break_off, verdict, code)) in breaks.into_iter().enumerate() {
        let (mut client, _) = ending(Protocol::Smtp, FULL);
        client.content_end();
        client.follow(transaction(1)).unwrap();
        if n < 5 {
            client.written(client.output().len());
        }
        break_off(&mut client);
        let events = drain(&mut client);
        assert_eq!(verdicts(&events), [(0, verdict, code), (1, verdict, code)]);
        assert!(matches!(&events[2..], [Event::Finished, Event::Unusable { .. }]), "{n}: {events:?}");
        assert!(client.is_closed());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever the server says, in whatever pieces: of each of three transactions in a row every recipient is told of
    /// once, or it was free for another session before its content.
    #[test]
    fn each_is_told_of_once(
        lmtp in any::<bool>(),
        mail in reply(), data in prop_oneof![4 => Just(&b"354 go\r\n"[..]), 1 => reply()],
        rcpt in proptest::collection::vec(reply(), 1..5),
        end in proptest::collection::vec(reply(), 1..5),
        counts in proptest::collection::vec(1usize..4, 3),
        pieces in proptest::collection::vec(1usize..60, 1..6),
        break_off in any::<bool>(),
    ) {
        let protocol = if lmtp { Protocol::Lmtp } else { Protocol::Smtp };
        let (mut client, mut server) = (client(protocol), Server::new(protocol));
        (server.mail, server.data, server.rcpt, server.end) = (mail, data, rcpt, end);
        talk(&mut client, &mut server, b"220 hi\r\n", b"", &pieces);
        client.begin(transaction(counts[0])).unwrap();
        let (mut sizes, mut begun, mut to_client) = (pieces.iter().copied().cycle(), 1, Vec::new());
        let mut events = Vec::new();
        let mut contents = 0;
        while events.iter().filter(|e| matches!(e, Event::Finished | Event::Unusable { .. })).count() < begun {
            let before = (client.progress(), to_client.len(), client.output().len(), events.len());
            let size = sizes.next().unwrap().min(to_client.len());
            let piece: Vec<u8> = to_client.drain(..size).collect();
            client.input(&piece);
            events.extend(drain(&mut client));
            let wanted = client.wants_content();
            if wanted {
                client.content(format!("content {contents}").as_bytes());
                contents += 1;
                client.content_end();
                if begun < 3 {
                    client.follow(transaction(counts[begun])).unwrap();
                    begun += 1;
                }
            }
            let size = sizes.next().unwrap().min(client.output().len());
            let piece = client.output()[..size].to_vec();
            client.written(size);
            to_client.extend(server.hear(&piece));
            let after = (client.progress(), to_client.len(), client.output().len(), events.len());
            if !wanted && before == after && to_client.is_empty() && client.output().is_empty() {
                // A silent server is given up on.
                if break_off { client.lost() } else { client.timed_out() }
                events.extend(drain(&mut client));
            }
        }
        let ends = |event: &Event| matches!(event, Event::Finished | Event::Unusable { .. });
        for (n, story) in events.split_inclusive(ends).enumerate() {
            let mut told: Vec<usize> = verdicts(story).iter().map(|(index, ..)| *index).collect();
            told.sort_unstable();
            let finished = story.last() == Some(&Event::Finished);
            prop_assert!(told.windows(2).all(|pair| pair[0] != pair[1]), "told twice: {:?}", events);
            prop_assert!(!finished || told == (0..counts[n]).collect::<Vec<_>>(), "untold: {:?}", events);
        }
        // What arrived is what was sent, each under its own envelope.
        for (n, content) in server.contents.iter().filter(|content| !content.is_empty()).enumerate() {
            prop_assert_eq!(String::from_utf8_lossy(content), format!("content {n}\r\n"));
        }
    }
}
