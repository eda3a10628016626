//! Transactions that leave as a whole: envelope and content in one group, one behind the other.

use super::*;

const CHUNKS: &[u8] = b"250-mx\r\n250-PIPELINING\r\n250-SIZE 100000\r\n250-8BITMIME\r\n250 CHUNKING\r\n";

fn whole(recipients: usize) -> Transaction {
    Transaction { whole: true, ..transaction(recipients) }
}

/// A session with a server that offers CHUNKING, and nothing said yet.
fn open() -> (Client, Server) {
    let (mut client, mut server) = (client(Protocol::Smtp), Server::new(Protocol::Smtp));
    server.ehlo = CHUNKS;
    assert_eq!(talk(&mut client, &mut server, b"220 hi\r\n", b"", &[1000]), [Event::Ready]);
    server.commands.clear();
    (client, server)
}

fn hand_over(client: &mut Client, content: &[u8]) {
    assert!(client.wants_content());
    client.content(content);
    client.content_end();
}

/// Two whole transactions have left; the first is for as many, the second for one more.
fn two(recipients: usize) -> (Client, Server) {
    let (mut client, server) = open();
    client.begin(whole(recipients)).unwrap();
    hand_over(&mut client, b"first\r\n");
    client.follow(whole(recipients + 1)).unwrap();
    hand_over(&mut client, b"second\r\n");
    (client, server)
}

fn said(client: &Client) -> String {
    String::from_utf8(client.output().to_vec()).unwrap()
}

/// The events of each transaction, in turn.
fn stories(events: &[Event]) -> Vec<Vec<Event>> {
    let ends =
        |event: &Event| matches!(event, Event::Finished | Event::Unusable { .. } | Event::Again { .. });
    events.split_inclusive(ends).map(<[Event]>::to_vec).collect()
}

use Verdict::{Deferred, Delivered, Failed};

#[test]
fn two_leave_before_a_word_is_said() {
    let (mut client, mut server) = two(1);
    let envelope = "MAIL FROM:<from@a.test> SIZE=10 BODY=8BITMIME\r\nRCPT TO:<u0@b.test>\r\n";
    let second = format!("RSET\r\n{envelope}RCPT TO:<u1@b.test>\r\nBDAT 8 LAST\r\nsecond\r\n");
    assert_eq!(said(&client), format!("{envelope}BDAT 7 LAST\r\nfirst\r\n{second}"));
    assert!(!client.can_follow() && client.follow(whole(1)).is_err(), "two are enough");
    exchange(&mut client, &mut server);
    let events = drain(&mut client);
    let first = Event::Finished;
    assert_eq!(verdicts(&events), [(0, Delivered, 250), (0, Delivered, 250), (1, Delivered, 250)]);
    assert_eq!((&events[1], events.last()), (&first, Some(&first)));
    assert_eq!(server.contents, [&b"first\r\n"[..], b"second\r\n"]);
    assert!(client.is_idle());
    // A third follows the second as soon as the first was answered.
    let (mut client, mut server) = two(1);
    let replies = server.hear(client.output());
    client.written(client.output().len());
    let first = b"250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n250 2.0.0 Ok: queued\r\n".len();
    client.input(&replies[..first]);
    assert_eq!(drain(&mut client).len(), 2);
    client.follow(whole(1)).unwrap();
    hand_over(&mut client, b"third\r\n");
    let third = server.hear(client.output());
    client.written(client.output().len());
    client.input(&[&replies[first..], &third].concat());
    assert_eq!(verdicts(&drain(&mut client)).len(), 3);
    assert_eq!(server.contents.len(), 3);
}

#[test]
fn content_is_counted_and_not_stuffed() {
    for (content, arrives) in [
        (&b".\r\n..\r\nx"[..], &b".\r\n..\r\nx\r\n"[..]),
        (b"a\n.\nb\rc\r\n", b"a\r\n.\r\nb\r\nc\r\n"),
        (b"", b""),
    ] {
        for piece in [1, 2, 1000] {
            let (mut client, mut server) = open();
            client.begin(whole(1)).unwrap();
            assert_eq!(verdicts(&talk(&mut client, &mut server, b"", content, &[piece])).len(), 1);
            assert_eq!(server.contents, [arrives]);
        }
    }
}

#[test]
fn large_content_waits_for_the_envelope_s_replies() {
    let large = Transaction { size: WHOLE_MAX + 1, ..whole(1) };
    let (mut client, mut server) = open();
    client.begin(large).unwrap();
    assert!(said(&client).ends_with("DATA\r\n"));
    talk(&mut client, &mut server, b"", b"x", &[1000]);
    // And where it is not offered, wanted or known what would be said.
    for (protocol, ehlo, whole) in [
        (Protocol::Smtp, FULL, true),
        (Protocol::Smtp, CHUNKS, false),
        (Protocol::Smtp, b"250-mx\r\n250 CHUNKING\r\n", true),
        (Protocol::Lmtp, CHUNKS, true),
    ] {
        let mut server = Server { ehlo, ..Server::new(protocol) };
        let (_, events) = run(&mut server, Transaction { whole, ..transaction(1) }, b"x", &[1000]);
        assert_eq!(verdicts(&events), [(0, Delivered, 250)]);
        assert!(server.commands.contains(&"DATA".to_owned()));
    }
    let mut without = self::client(Protocol::Smtp).without(&[crate::server::Extension::Chunking]);
    talk(
        &mut without,
        &mut Server { ehlo: CHUNKS, ..Server::new(Protocol::Smtp) },
        b"220 hi\r\n",
        b"",
        &[99],
    );
    assert!(!without.takes_whole() && without.extensions().pipelining);
}

/// What becomes of two, and how often the first content and the second arrive.
fn story(change: impl FnOnce(&mut Server)) -> (Vec<Vec<Event>>, Server, Client) {
    let (mut client, mut server) = two(1);
    change(&mut server);
    exchange(&mut client, &mut server);
    (stories(&drain(&mut client)), server, client)
}

#[test]
fn a_refused_transaction_does_not_touch_the_one_behind_it() {
    for (mail, rcpt, nobody, first) in [
        (&b"550 5.7.1 not you\r\n"[..], &b"250 Ok\r\n"[..], &b"503 5.5.1 no\r\n"[..], (0, Failed, 550)),
        (b"451 4.3.0 later\r\n", b"250 Ok\r\n", b"503 5.5.1 no\r\n", (0, Deferred, 451)),
        (b"503 5.5.1 alone\r\n", b"250 Ok\r\n", b"503 5.5.1 no\r\n", (0, Failed, 503)),
        (b"250 Ok\r\n", b"550 5.1.1 who\r\n", b"554 5.5.1 nobody\r\n", (0, Failed, 550)),
        (b"250 Ok\r\n", b"450 4.2.0 later\r\n", b"503 no\r\n", (0, Deferred, 450)),
        // A server that takes content for nobody has delivered nothing.
        (b"250 Ok\r\n", b"550 5.1.1 who\r\n", b"250 2.0.0 thanks\r\n", (0, Failed, 550)),
        (b"550 5.7.1 not you\r\n", b"250 Ok\r\n", b"250 2.0.0 thanks\r\n", (0, Failed, 550)),
    ] {
        let (stories, server, client) = story(|server| {
            (server.mails, server.nobody) = (vec![mail], nobody);
            server.rcpt = vec![rcpt, b"250 Ok\r\n", b"250 Ok\r\n"];
        });
        assert_eq!(verdicts(&stories[0]), [first]);
        assert_eq!(verdicts(&stories[1]), [(0, Delivered, 250), (1, Delivered, 250)]);
        assert!(stories.iter().all(|story| story.last() == Some(&Event::Finished)));
        assert_eq!(server.contents, [b"second\r\n"]);
        assert!(client.is_idle());
    }
    // Content that is refused is refused for those who were accepted, in its own transaction.
    for (end, first) in [
        (&b"554 5.7.1 spam\r\n"[..], Failed),
        (b"550 no\r\n", Failed),
        (b"554 alone, that is for the message\r\n", Failed),
        (b"452 4.3.1 full\r\n", Deferred),
    ] {
        let (stories, ..) = story(|server| server.end = vec![end, b"250 Ok\r\n"]);
        assert_eq!(verdicts(&stories[0])[0].1, first);
        assert_eq!(verdicts(&stories[1]), [(0, Delivered, 250), (1, Delivered, 250)]);
    }
}

#[test]
fn one_recipient_of_two_is_refused() {
    let (stories, server, _) =
        story(|server| server.rcpt = vec![b"250 Ok\r\n", b"550 5.1.1 who\r\n", b"250 Ok\r\n"]);
    assert_eq!(verdicts(&stories[0]), [(0, Delivered, 250)]);
    assert_eq!(verdicts(&stories[1]), [(0, Failed, 550), (1, Delivered, 250)]);
    assert_eq!(server.contents.len(), 2);
}

/// What a server says of the protocol to a transaction that came ahead of time is ours to answer for.
#[test]
fn a_refusal_of_how_it_was_sent_is_no_end() {
    type Change = fn(&mut Server);
    let changes: [(Change, bool); 6] = [
        (|server| server.mails = vec![b"250 Ok\r\n", b"503 5.5.1 nested MAIL\r\n"], true),
        (|server| server.mails = vec![b"250 Ok\r\n", b"550 5.5.0 pipelining\r\n"], true),
        (|server| server.mails = vec![b"250 Ok\r\n", b"554 SMTP synchronization error\r\n"], false),
        (|server| server.rcpt = vec![b"250 Ok\r\n", b"503 hm\r\n", b"501 5.1.3 odd\r\n"], false),
        (|server| server.end = vec![b"250 Ok\r\n", b"554 hm\r\n"], false),
        (|server| server.end = vec![b"250 Ok\r\n", b"550 5.5.1 bad sequence\r\n"], true),
    ];
    for (n, (change, confused)) in changes.into_iter().enumerate() {
        let (stories, _, client) = story(change);
        assert_eq!(verdicts(&stories[0]), [(0, Delivered, 250)]);
        assert_eq!(stories[1], [Event::Again { confused }], "{n}");
        assert!(client.is_idle(), "{n}");
    }
    // RSET refused, and then the next, whatever for.
    let (stories, ..) = story(|server| {
        server.rset = b"500 what\r\n";
        server.mails = vec![b"250 Ok\r\n", b"550 5.7.1 not you\r\n"];
    });
    assert_eq!(stories[1], [Event::Again { confused: true }]);
    // But what it takes all the same is delivered, and who does not exist does not exist.
    let (stories, ..) = story(|server| server.rset = b"500 what\r\n");
    assert_eq!(verdicts(&stories[1]).len(), 2);
    let (stories, ..) =
        story(|server| server.rcpt = vec![b"250 Ok\r\n", b"550 5.1.1 who\r\n", b"503 hm\r\n"]);
    assert_eq!(verdicts(&stories[1]), [(0, Failed, 550)]);
    assert_eq!(stories[1].last(), Some(&Event::Again { confused: false }));
}

/// Who goes again goes alone, and is then told what the server says.
#[test]
fn the_second_time_it_counts() {
    let (_, mut server, mut client) =
        story(|server| server.mails = vec![b"250 Ok\r\n", b"503 hm\r\n", b"503 5.5.1 never\r\n"]);
    client.begin(transaction(1)).unwrap();
    let events = talk(&mut client, &mut server, b"", b"x", &[1000]);
    assert_eq!(verdicts(&events), [(0, Failed, 503)]);
    assert_eq!(server.contents, [&b"first\r\n"[..], b""], "DATA had left with it");
}

/// A server that offers CHUNKING and does not know BDAT reads the chunk as commands: nothing it says counts.
#[test]
fn a_chunk_that_is_not_understood_ends_the_session() {
    let (stories, _, client) = story(|server| server.end = vec![b"500 5.5.2 what\r\n250 Ok\r\n250 Ok\r\n"]);
    assert_eq!(stories[0], [Event::Again { confused: true }]);
    assert_eq!(verdicts(&stories[1]), [(0, Deferred, 451), (1, Deferred, 451)]);
    assert!(client.is_closed());
}

#[test]
fn a_session_that_breaks() {
    let unusable = |story: &[Event]| matches!(story, [Event::Unusable { .. }]);
    // All of both has left: both may be there.
    for break_off in [Client::lost, Client::timed_out, |client: &mut Client| client.input(b"junk\r\n")] {
        let (mut client, _) = two(1);
        client.written(client.output().len());
        break_off(&mut client);
        let stories = stories(&drain(&mut client));
        assert_eq!(verdicts(&stories[0]), [(0, Deferred, 451)]);
        assert_eq!(verdicts(&stories[1]), [(0, Deferred, 451), (1, Deferred, 451)]);
        assert!(client.is_closed());
    }
    // An octet of the second is still here: it may go another way. And so may the first, if that one is its own.
    let (mut client, _) = two(1);
    client.written(client.output().len() - 1);
    client.lost();
    let events = stories(&drain(&mut client));
    assert!(verdicts(&events[0]).len() == 1 && unusable(&events[1]), "{events:?}");
    let (mut client, _) = open();
    client.begin(whole(1)).unwrap();
    hand_over(&mut client, b"x\r\n");
    client.written(client.output().len() - 1);
    client.lost();
    assert!(unusable(&drain(&mut client)));
    // Nothing was said of what is still being handed over.
    let (mut client, _) = open();
    client.begin(whole(1)).unwrap();
    client.content(b"x\r\n");
    assert!(client.output().is_empty());
    client.input(b"554 5.3.0 early\r\n");
    assert!(unusable(&drain(&mut client)) && client.is_closed());
}

/// A server that says that it closes has not read on.
#[test]
fn good_night_is_said_to_those_behind_as_well() {
    let heard = |replies: &[u8]| {
        let (mut client, _) = two(1);
        client.written(client.output().len());
        client.input(replies);
        assert!(client.is_closed());
        stories(&drain(&mut client))
    };
    let unusable = |story: &[Event]| matches!(story, [Event::Unusable { remote: true, .. }]);
    let stories = heard(b"421 4.3.2 good night\r\n");
    assert!(unusable(&stories[0]) && unusable(&stories[1]), "{stories:?}");
    let stories = heard(b"250 Ok\r\n250 Ok\r\n421 4.3.2 good night\r\n");
    assert_eq!(verdicts(&stories[0]), [(0, Deferred, 421)]);
    assert!(unusable(&stories[1]), "{stories:?}");
    let stories = heard(b"250 Ok\r\n250 Ok\r\n250 Ok\r\n421 4.3.2 one is enough\r\n");
    assert_eq!(verdicts(&stories[0]), [(0, Delivered, 250)]);
    assert!(unusable(&stories[1]), "{stories:?}");
}

/// A server that has heard enough of a chunk of which not all has left.
#[test]
fn refused_in_the_middle_of_a_chunk() {
    for (reply, verdict) in [(&b"552 5.3.4 too much\r\n"[..], Some(Failed)), (b"500 what\r\n", None)] {
        let (mut client, _) = two(1);
        let end = said(&client).find("first").unwrap() + 1;
        client.written(end);
        client.input(b"250 Ok\r\n250 Ok\r\n");
        client.input(reply);
        let stories = stories(&drain(&mut client));
        assert_eq!(verdicts(&stories[0]).first().map(|(_, verdict, _)| *verdict), verdict);
        assert!(matches!(stories[1][..], [Event::Unusable { .. }]) && client.is_closed());
    }
}

#[test]
fn content_that_cannot_be_read_leaves_the_session_alone() {
    let (mut client, mut server) = open();
    client.begin(whole(1)).unwrap();
    hand_over(&mut client, b"first\r\n");
    client.follow(whole(2)).unwrap();
    client.content(b"sec");
    client.abandon(Reply::new(451, EnhancedCode::new(4, 3, 0), "cannot read"));
    assert!(drain(&mut client).is_empty(), "the first is not over");
    exchange(&mut client, &mut server);
    let events = drain(&mut client);
    assert_eq!(verdicts(&events), [(0, Delivered, 250), (0, Deferred, 451), (1, Deferred, 451)]);
    assert!(client.is_idle() && server.contents.len() == 1);
    client.begin(whole(1)).unwrap();
    client.abandon(Reply::new(451, EnhancedCode::new(4, 3, 0), "cannot read"));
    assert!(drain(&mut client).ends_with(&[Event::Finished]) && client.is_idle());
}

#[test]
fn behind_content_by_data_and_before_it() {
    let (mut client, mut server) = open();
    client.begin(transaction(1)).unwrap();
    exchange(&mut client, &mut server);
    hand_over(&mut client, b".first\r\n");
    client.follow(whole(1)).unwrap();
    hand_over(&mut client, b".second\r\n");
    assert!(!said(&client).contains("RSET"), "the end of DATA is the end of the transaction");
    exchange(&mut client, &mut server);
    assert_eq!(verdicts(&drain(&mut client)).len(), 2);
    client.begin(whole(1)).unwrap();
    hand_over(&mut client, b".third\r\n");
    client.follow(transaction(1)).unwrap();
    assert!(said(&client).contains(".third\r\nRSET\r\nMAIL") && said(&client).ends_with("DATA\r\n"));
    exchange(&mut client, &mut server);
    assert_eq!(verdicts(&drain(&mut client)).len(), 1);
    hand_over(&mut client, b".fourth\r\n");
    exchange(&mut client, &mut server);
    assert_eq!(verdicts(&drain(&mut client)).len(), 1);
    let contents: [&[u8]; 4] = [b".first\r\n", b".second\r\n", b".third\r\n", b".fourth\r\n"];
    assert_eq!(server.contents, contents);
}

/// A reply of any temper to each command in its turn, for a server that answers all it is asked.
fn replies() -> impl Strategy<Value = Vec<&'static [u8]>> {
    let other: [&[u8]; 6] = [
        b"503 5.5.1 sequence\r\n",
        b"554 hm\r\n",
        b"550 5.1.1 never\r\n",
        b"450 4.2.0 later\r\n",
        b"500 what\r\n",
        b"421 bye\r\n",
    ];
    let one = prop_oneof![8 => Just(&b"250 Ok\r\n"[..]), 1 => (0..6usize).prop_map(move |n| other[n])];
    proptest::collection::vec(one, 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// Whatever is said in whatever pieces, of six transactions that are whole or not: each ends with its own outcome and
    /// every recipient's is told once or is free; who is told of a delivery has it; and nobody is failed for the protocol
    /// in what came ahead.
    #[test]
    fn each_ends_with_its_own(
        mails in replies(), rcpt in replies(), end in replies(), rset in replies(),
        kinds in proptest::collection::vec((1usize..4, prop::bool::weighted(0.8)), 6),
        pieces in proptest::collection::vec(1usize..120, 1..6),
        break_off in any::<bool>(),
        silent_from in prop_oneof![Just(usize::MAX), 0usize..1000],
    ) {
        let (mut client, mut server) = open();
        (server.mails, server.rcpt, server.end, server.rset) = (mails, rcpt, end, rset[0]);
        let sender = |n: usize, again: bool| Transaction {
            reverse_path: ReversePath::parse(&format!("<n{n}@a.test>")).unwrap(),
            whole: kinds[n].1 && !again,
            ..transaction(kinds[n].0)
        };
        // Those handed over of which the end was not heard, and whether something was before them.
        let mut under_way = std::collections::VecDeque::<(usize, bool)>::new();
        let (mut next, mut to_client) = (0, Vec::new());
        let (mut sizes, mut heard) = (pieces.iter().copied().cycle(), 0);
        let mut delivered = vec![0; kinds.len()];
        let mut story = Vec::new();
        for _ in 0..20_000 {
            let size = sizes.next().unwrap().min(to_client.len());
            let piece: Vec<u8> = to_client.drain(..size).collect();
            client.input(&piece);
            let quiet = to_client.is_empty() && client.output().is_empty() && !client.wants_content();
            if quiet && !under_way.is_empty() && !client.has_event() {
                if break_off { client.lost() } else { client.timed_out() }
            }
            while let Some(event) = client.event() {
                let &(n, ahead) = under_way.front().expect("an event about nothing");
                match &event {
                    Event::Recipient { outcome, .. } => {
                        let code = outcome.reply.code;
                        // What is said to content after 354 is about the content.
                        let arrived = server.contents.contains(&format!("content {n}\r\n").into_bytes());
                        let asked_for = !kinds[n].1 && arrived;
                        let ours = ahead && outcome.verdict == Failed && code / 10 == 50 && !asked_for;
                        prop_assert!(!ours, "failed for what we did: {:?}", outcome);
                        delivered[n] += usize::from(outcome.verdict == Delivered);
                        story.push(event);
                    }
                    end => {
                        let mut told: Vec<usize> = verdicts(&story).iter().map(|(index, ..)| *index).collect();
                        told.sort_unstable();
                        let all: Vec<usize> = (0..kinds[n].0).collect();
                        prop_assert!(told.windows(2).all(|pair| pair[0] != pair[1]), "told twice: {:?}", story);
                        prop_assert_eq!(*end == Event::Finished, told == all, "{:?} {:?}", end, story);
                        story.clear();
                        under_way.pop_front();
                    }
                }
            }
            if client.is_closed() {
                break;
            }
            if next < kinds.len() && client.is_idle() && under_way.is_empty() {
                client.begin(sender(next, false)).unwrap();
                under_way.push_back((next, false));
                next += 1;
            } else if next < kinds.len() && client.can_follow() && client.follow(sender(next, false)).is_ok() {
                under_way.push_back((next, true));
                next += 1;
            }
            if client.wants_content() {
                client.content(format!("content {}\r\n", next - 1).as_bytes());
                client.content_end();
            }
            let size = sizes.next().unwrap().min(client.output().len());
            let piece = client.output()[..size].to_vec();
            client.written(size);
            let reply = server.hear(&piece);
            to_client.extend_from_slice(&reply[..reply.len().min(silent_from - heard)]);
            heard = (heard + reply.len()).min(silent_from);
        }
        prop_assert!(under_way.is_empty(), "somebody was never told of");
        prop_assert!(client.is_closed() || client.is_quitting() || next == kinds.len());
        for (n, delivered) in delivered.into_iter().enumerate() {
            let content = format!("content {n}\r\n").into_bytes();
            let arrived = server.contents.iter().filter(|arrived| **arrived == content).count();
            prop_assert!(arrived <= 1 && (delivered == 0 || arrived == 1), "{} {} {}", n, delivered, arrived);
        }
    }
}
