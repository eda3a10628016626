//! What hides a second message behind something like the end of the first: every sequence that was published
//! since 2023. None of them ends a message here, and none of them leaves us.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use postern_tests::{Sink, Smtp, System, until, vectors};
use serde_json::Value;

/// A second message, as one who smuggles would hide it.
const HIDDEN: &[u8] =
    b"MAIL FROM:<evil@x.test>\r\nRCPT TO:<smuggled@v.test>\r\nDATA\r\nSubject: evil\r\n\r\nevil\r\n.\r\n";

/// In front of the sequence.
const OUTER: &[u8] = b"Subject: outer\r\n\r\nouter";

/// What ends content.
const END: &[u8] = b"\r\n.\r\n";

/// A listener that is lenient, beside the first, which is not.
const LENIENT: &str = "[[listen]]\naddress = \"127.0.0.1:0\"\nservice = \"smtp\"\nbare-newline = \"normalise\"\n\
                       [[listen]]\naddress = \"127.0.0.1:0\"\nservice = \"lmtp\"\nbare-newline = \"normalise\"\n";

/// A sequence of the corpus, controls included.
struct Sequence {
    name: String,
    octets: Vec<u8>,
}

impl Sequence {
    /// The message with it, and what is hidden behind it.
    fn message(&self) -> Vec<u8> {
        [OUTER, &self.octets, HIDDEN].concat()
    }

    /// A CR or a LF stands alone in the message.
    fn is_bare(&self) -> bool {
        !is_strict(&self.message())
    }

    fn has_nul(&self) -> bool {
        self.octets.contains(&0)
    }

    fn ends(&self) -> bool {
        self.octets == END
    }
}

fn corpus() -> Option<Vec<Sequence>> {
    let text = vectors("smuggling-sequences.json")?;
    let all: Vec<Value> = serde_json::from_slice(&text).unwrap();
    let octets = |hex: &str| {
        let digits = hex.as_bytes().chunks(2).map(|two| std::str::from_utf8(two).unwrap());
        digits.map(|two| u8::from_str_radix(two, 16).unwrap()).collect::<Vec<_>>()
    };
    let of = |v: &Value| Sequence {
        name: v["id"].as_str().unwrap().to_owned(),
        octets: octets(v["bytes_hex"].as_str().unwrap()),
    };
    let mut sequences: Vec<_> = all.iter().map(of).collect();
    assert!(sequences.len() >= 15);
    // The survey of servers had it, and it must be among them whatever the file has.
    sequences.push(Sequence { name: "crlf-dot-crcrlf".into(), octets: b"\r\n.\r\r\n".into() });
    Some(sequences)
}

/// No CR and no LF but in pairs.
fn is_strict(octets: &[u8]) -> bool {
    let text: String = octets.iter().map(|octet| char::from(*octet)).collect();
    !text.replace("\r\n", "").contains(['\r', '\n'])
}

#[test]
fn by_data_whole_and_split_at_every_byte() {
    let Some(corpus) = corpus() else { return };
    let system = System::builder().toml(LENIENT).start();
    let (mut outer, mut smuggled) = (Vec::new(), 0);
    for lenient in [false, true] {
        let address = system.addresses("smtp")[usize::from(lenient)];
        for sequence in &corpus {
            let content = [&sequence.message()[..], b"QUIT\r\n"].concat();
            // Whole; in two parts, cut at each place from before the sequence to behind it; octet by octet.
            let first = OUTER.len();
            let last = first + sequence.octets.len() + 1;
            let mut cuts: Vec<Vec<usize>> = (first..=last).map(|at| vec![at]).collect();
            cuts.extend([vec![], (first..=last).collect()]);
            for cut in cuts {
                let what = format!("{}, lenient: {lenient}, cut at {cut:?}", sequence.name);
                let mut client = Smtp::connect(address);
                client.ehlo();
                client.dialogue(&[
                    ("MAIL FROM:<a@x.test>", "250"),
                    ("RCPT TO:<u@v.test>", "250"),
                    ("DATA", "354"),
                ]);
                send_in_parts(&mut client, &content, &cut);
                let mut replies = Vec::new();
                while let Ok(reply) = client.try_reply() {
                    replies.push(reply);
                }
                let said: Vec<_> = replies.iter().map(ToString::to_string).collect();
                let begin: Vec<_> = said.iter().map(|reply| &reply[..reply.len().min(9)]).collect();
                let expected: &[&str] = match () {
                    () if sequence.ends() => {
                        smuggled += 1;
                        &["250 2.0.0", "250 2.1.0", "250 2.1.5", "354 End d", "250 2.0.0", "221 2.0.0"]
                    }
                    // The two sides do not agree any more about what is content: it is closed.
                    () if !lenient && sequence.is_bare() => &["554 5.5.2"],
                    () if !lenient && sequence.has_nul() => &["554 5.5.2", "221 2.0.0"],
                    () => &["250 2.0.0", "221 2.0.0"],
                };
                assert_eq!(begin, expected, "{what}");
                outer.extend(replies[0].queue_id());
            }
        }
    }
    system.wait_empty(Duration::from_secs(120));
    // The control shows that this test would see a smuggled message.
    assert!(smuggled > 0);
    assert_eq!(system.maildir("smuggled@v.test").len(), smuggled);
    let mails = system.maildir("u@v.test");
    assert_eq!(mails.len(), outer.len());
    for mail in mails {
        assert_eq!(mail.header("Return-Path").unwrap(), "<a@x.test>");
        assert!(!mail.bytes.contains(&b'\r') && !mail.bytes.contains(&0), "{:?}", mail);
    }
}

/// Each part is sent when the server has read the one before.
fn send_in_parts(client: &mut Smtp, content: &[u8], cuts: &[usize]) {
    let mut begin = 0;
    for end in cuts.iter().copied().chain([content.len()]) {
        // The server may have hung up already: then there is nobody left to fool.
        let _ = client.try_bytes(&content[begin..end]);
        client.wait_until_read();
        begin = end;
    }
}

#[test]
fn by_bdat_it_is_content_or_refused() {
    let Some(corpus) = corpus() else { return };
    let sink = Sink::start();
    let system = System::builder().toml(LENIENT).relay().route("sink.test", &sink.via()).start();
    let mut sent = 0;
    for lenient in [false, true] {
        let address = system.addresses("smtp")[usize::from(lenient)];
        for sequence in &corpus {
            let content = sequence.message();
            let first = OUTER.len();
            let cuts = (first..=first + sequence.octets.len()).map(|at| vec![at]).chain([vec![]]);
            for cut in cuts {
                let what = format!("{}, lenient: {lenient}, chunks cut at {cut:?}", sequence.name);
                let mut client = Smtp::connect(address);
                client.ehlo();
                client.dialogue(&[("MAIL FROM:<a@x.test>", "250"), ("RCPT TO:<u@sink.test>", "250")]);
                let (mut begin, mut dialogue) = (0, Vec::new());
                for end in cut.iter().copied().chain([content.len()]) {
                    let last = if end == content.len() { " LAST" } else { "" };
                    dialogue.extend(format!("BDAT {}{last}\r\n", end - begin).as_bytes());
                    dialogue.extend(&content[begin..end]);
                    begin = end;
                }
                dialogue.extend(b"QUIT\r\n");
                client.bytes(&dialogue);
                let mut replies = Vec::new();
                while let Ok(reply) = client.try_reply() {
                    replies.push(reply);
                }
                let codes: Vec<_> = replies.iter().map(|reply| reply.code).collect();
                assert!(!codes.contains(&354), "{what}: {replies:?}");
                assert_eq!(codes.last(), Some(&221), "both sides agree where the chunk ends: {what}");
                let queued = replies.iter().filter(|reply| reply.queue_id().is_some()).count();
                let text = is_strict(&content) && !sequence.has_nul();
                assert_eq!(queued, usize::from(text), "{what}: {replies:?}");
                assert!(text || codes.contains(&554), "{what}: {replies:?}");
                sent += queued;
            }
        }
    }
    for message in sink.wait_for(sent, Duration::from_secs(120)) {
        assert_eq!(message.rcpt.len(), 1);
        assert!(is_strict(&message.raw));
        let text = String::from_utf8(message.content).unwrap();
        assert!(text.ends_with(std::str::from_utf8(HIDDEN).unwrap()), "it is content, every octet: {text}");
    }
    nothing_was_smuggled(&sink, sent);
}

/// BODY=BINARYMIME may hold anything. A next hop that does not take it gets it encoded, in lines.
#[test]
fn binary_content_leaves_in_lines() {
    let Some(corpus) = corpus() else { return };
    let sink = Sink::start();
    let system = System::builder().relay().route("sink.test", &sink.via()).start();
    let mut client = system.smtp();
    client.ehlo();
    for sequence in &corpus {
        let mime = b"MIME-Version: 1.0\r\nContent-Type: application/octet-stream\r\n\
                     Content-Transfer-Encoding: binary\r\n";
        let content = [&mime[..], &sequence.message(), b"\rend\n"].concat();
        client.dialogue(&[("MAIL FROM:<a@x.test> BODY=BINARYMIME", "250"), ("RCPT TO:<u@sink.test>", "250")]);
        client.line(&format!("BDAT {} LAST", content.len()));
        client.bytes(&content);
        client.expect("250 2.0.0");
    }
    client.quit();
    for message in sink.wait_for(corpus.len(), Duration::from_secs(120)) {
        assert!(is_strict(&message.raw), "{:?}", String::from_utf8_lossy(&message.raw));
        assert!(!message.raw.contains(&0));
    }
    nothing_was_smuggled(&sink, corpus.len());
}

#[test]
fn what_is_handed_in_leaves_with_crlf_alone() {
    let Some(corpus) = corpus() else { return };
    let sink = Sink::start();
    let system = System::builder().toml(LENIENT).relay().route("sink.test", &sink.via()).start();
    let lmtp = system.addresses("lmtp")[0];
    let mut sent = 0;
    for sequence in &corpus {
        // Whole, as it would be typed into LMTP; what comes behind an honest end is for the other tests.
        if !sequence.ends() {
            let mut client = Smtp::connect(lmtp);
            client.says("LHLO client.test", "250");
            client.dialogue(&[
                ("MAIL FROM:<a@x.test>", "250"),
                ("RCPT TO:<u@sink.test>", "250"),
                ("DATA", "354"),
            ]);
            client.bytes(&sequence.message());
            client.expect("250 2.0.0");
            client.quit();
            sent += 1;
        }
        // sendmail with -i: nothing but the end of its input ends the message.
        let mut sendmail = system.command("sendmail");
        sendmail.env("POSTERN_CONFIG", system.config()).args(["-i", "-f", "a@x.test", "--", "u@sink.test"]);
        let mut running = sendmail.stdin(Stdio::piped()).spawn().unwrap();
        running.stdin.take().unwrap().write_all(&sequence.message()).unwrap();
        assert!(running.wait().unwrap().success(), "{}", sequence.name);
        sent += 1;
    }
    for message in sink.wait_for(sent, Duration::from_secs(120)) {
        assert_eq!((message.mail.contains("a@x.test"), message.rcpt.len()), (true, 1));
        assert!(is_strict(&message.raw), "{:?}", String::from_utf8_lossy(&message.raw));
        assert!(message.content.windows(9).any(|window| window == b"MAIL FROM"), "the hidden part is text");
    }
    nothing_was_smuggled(&sink, sent);
}

/// The next hop was told of `count` messages, and of nobody but who was meant.
fn nothing_was_smuggled(sink: &Sink, count: usize) {
    until("the last reply", Duration::from_secs(30), || (sink.taken().len() == count).then_some(()));
    let commands = sink.commands();
    assert!(commands.iter().all(|command| !command.contains("smuggled") && !command.contains("evil")));
}
