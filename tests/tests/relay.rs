//! Mail to other hosts: who is asked, in which order, and what is made of the answers.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postern_tests::{
    Address, Answer, Dovecot, Nsd, Postfix, Sink, System, from_line, have, have_root, maildir, message, until,
};

#[test]
fn a_route_leads_to_a_host() {
    let sink = Sink::start();
    let system = System::builder().relay().route("sink.test", &sink.via()).start();
    let id = system.smtp().send("a@x.test", &["b@sink.test", "c@sink.test"], &message("routed")).unwrap();
    system.finished(&id);
    let taken = sink.taken();
    assert_eq!(taken.len(), 1, "one transaction for both recipients: {taken:?}");
    assert_eq!(taken[0].helo, "EHLO mx.test");
    assert!(taken[0].mail.starts_with("MAIL FROM:<a@x.test>"), "{}", taken[0].mail);
    assert_eq!(taken[0].rcpt, ["RCPT TO:<b@sink.test>", "RCPT TO:<c@sink.test>"]);
    assert!(taken[0].content.starts_with(b"Received: from client.test"));
    assert!(taken[0].content.ends_with(&message("routed")));
    let sent = system.attempted(&id, "sent");
    assert_eq!(sent["dsn"], "2.0.0");
    assert!(sent["relay"].as_str().unwrap().contains(&sink.address().port().to_string()), "{sent}");
}

#[test]
fn a_server_that_knows_only_helo() {
    let sink = Sink::start();
    sink.behave(|command| match command {
        "EHLO mx.test" => Answer::Say("502 5.5.1 What is that?".into()),
        _ => Answer::Usual,
    });
    let system = System::builder().relay().route("sink.test", &sink.via()).start();
    let id = system.smtp().send("a@x.test", &["b@sink.test"], &message("old")).unwrap();
    system.finished(&id);
    let taken = sink.taken();
    assert_eq!(taken[0].helo, "HELO mx.test");
    assert_eq!(taken[0].mail, "MAIL FROM:<a@x.test>", "no parameters without EHLO");
}

#[test]
fn each_recipient_has_its_own_result() {
    let sink = Sink::start();
    sink.behave(|command| match command {
        "RCPT TO:<later@sink.test>" => Answer::Say("450 4.2.0 Later".into()),
        "RCPT TO:<never@sink.test>" => Answer::Say("550 5.1.1 Never".into()),
        _ => Answer::Usual,
    });
    let system = System::builder().relay().fast_retries().route("sink.test", &sink.via()).start();
    let to = ["now@sink.test", "later@sink.test", "never@sink.test"];
    let id = system.smtp().send("a@v.test", &to, &message("three ways")).unwrap();
    let of = |to: &str, status: &str| {
        system.wait("delivery", |e| e["id"] == *id && e["to"] == *to && e["status"] == *status)
    };
    assert_eq!(of("now@sink.test", "sent")["dsn"], "2.0.0");
    assert_eq!(of("later@sink.test", "deferred")["dsn"], "4.2.0");
    assert_eq!(of("never@sink.test", "bounced")["dsn"], "5.1.1");
    sink.behave_well();
    of("later@sink.test", "sent");
    system.finished(&id);
    let rcpt: Vec<_> = sink.taken().into_iter().flat_map(|taken| taken.rcpt).collect();
    assert_eq!(rcpt, ["RCPT TO:<now@sink.test>", "RCPT TO:<later@sink.test>"], "each once");
    let bounce = &system.wait_maildir("a@v.test", 1)[0];
    assert_eq!(bounce.header("Return-Path").unwrap(), "<>");
}

#[test]
fn connections_are_used_again() {
    let sink = Sink::start();
    let system =
        System::builder().relay().route("sink.test", &sink.via()).set("delivery", "connections", "1").start();
    let mut client = system.smtp();
    let ids: Vec<_> = (0..10)
        .map(|n| client.send("a@x.test", &["b@sink.test"], &message(&format!("no {n}"))).unwrap())
        .collect();
    ids.iter().for_each(|id| system.finished(id));
    let taken = sink.taken();
    assert_eq!(taken.len(), 10);
    let connections = taken.iter().map(|taken| taken.connection).max().unwrap() + 1;
    assert!(connections < 10, "{connections} connections for 10 messages");
}

/// What Postfix and Dovecot make of envelopes that come in one group with the content before them (RFC 2920 §3.1).
#[test]
fn envelopes_that_leave_with_the_content_before_them() {
    if !have(&["postfix", "dovecot", "python3"]) || !have_root() {
        return;
    }
    let (postfix, dovecot) = (Postfix::start("normalize", false), Dovecot::start(&["u@d.test"]));
    let lmtp = format!("lmtp:unix:{}", dovecot.lmtp_socket().display());
    let system = System::builder()
        .relay()
        .route("v.test", &postfix.via())
        .route("d.test", &lmtp)
        .set("delivery", "connections", "1")
        .start();
    let agents = ["delivery-remote", "lmtp"].map(|name| Pid::from_raw(system.pids()[name] as i32));
    // So that the others wait when the first is delivered.
    agents.iter().for_each(|agent| kill(*agent, Signal::SIGSTOP).unwrap());
    let mut client = system.smtp();
    let text = |n: usize| message(&format!("number {n}"));
    let ids: Vec<_> = (0..40)
        .map(|n| client.send("a@x.test", &[["u1@v.test", "u@d.test"][n % 2]], &text(n)).unwrap())
        .collect();
    agents.iter().for_each(|agent| kill(*agent, Signal::SIGCONT).unwrap());
    ids.iter().for_each(|id| system.finished(id));
    let inbox = postfix.mail().join("u1");
    until("twenty messages", Duration::from_secs(60), || (maildir(&inbox).len() == 20).then_some(()));
    let subjects = |texts: Vec<Vec<u8>>| {
        let subject = |text: Vec<u8>| {
            let text = String::from_utf8(text).unwrap();
            text.lines().find_map(|line| line.strip_prefix("Subject: number ")?.parse().ok()).unwrap()
        };
        texts.into_iter().map(subject).collect::<BTreeSet<usize>>()
    };
    let of_postfix = maildir(&inbox).into_iter().map(|mail| mail.bytes).collect();
    assert_eq!(subjects(of_postfix), (0..40).step_by(2).collect());
    assert_eq!(subjects(dovecot.inbox("u@d.test")), (1..40).step_by(2).collect());
}

/// Postfix and Postern offer CHUNKING: messages leave whole, without waiting for what is said of those before, some of
/// them to nobody that exists.
#[test]
fn whole_messages_leave_one_behind_the_other() {
    if !have(&["postfix"]) || !have_root() {
        return;
    }
    let postfix = Postfix::start_with("normalize", false, "debug_peer_list = 127.0.0.1");
    let second = System::builder().hostname("second.test").virtual_domain("w.test").start();
    let system = System::builder()
        .relay()
        .route("v.test", &postfix.via())
        .route("w.test", &second.via())
        .set("delivery", "connections", "1")
        .start();
    let agent = Pid::from_raw(system.pids()["delivery-remote"] as i32);
    kill(agent, Signal::SIGSTOP).unwrap();
    let mut client = system.smtp();
    let text = |n: usize| {
        let dots = "\r\n.\r\n..\r\nRSET\r\n.";
        [&message(&format!("number {n}"))[..], dots.as_bytes(), b"\r\n"].concat()
    };
    let to = |n: usize| if n % 6 == 4 { "nobody@v.test" } else { ["u1@v.test", "u@w.test"][n % 2] };
    let ids: Vec<_> = (0..60).map(|n| client.send("", &[to(n)], &text(n)).unwrap()).collect();
    kill(agent, Signal::SIGCONT).unwrap();
    for (n, id) in ids.iter().enumerate() {
        system.attempted(id, if n % 6 == 4 { "bounced" } else { "sent" });
    }
    let inbox = postfix.mail().join("u1");
    until("twenty messages", Duration::from_secs(60), || (maildir(&inbox).len() == 20).then_some(()));
    let contents = |mails: Vec<postern_tests::Mail>| {
        let bare = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap().replace("\r\n", "\n");
        let content = |mail: postern_tests::Mail| bare(from_line(&mail.bytes, b"From: "));
        mails.into_iter().map(content).collect::<BTreeSet<String>>()
    };
    let sent = |odd: usize| {
        let mine = (0..60).filter(|n| n % 2 == odd && n % 6 != 4);
        mine.map(|n| String::from_utf8(text(n)).unwrap().replace("\r\n", "\n")).collect::<BTreeSet<String>>()
    };
    assert_eq!(contents(maildir(&inbox)), sent(0));
    assert_eq!(contents(second.wait_maildir("u@w.test", 30)), sent(1));
    let log = postfix.log();
    assert!(log.contains("]: BDAT ") && log.contains("]: RSET"), "not sent whole:\n{log}");
    assert!(!log.contains("improper command pipelining"), "{log}");
}

#[test]
fn from_one_postern_to_another() {
    let second = System::builder().hostname("second.test").virtual_domain("w.test").start();
    let first = System::builder().relay().route("w.test", &second.via()).start();
    let id = first.smtp().send("a@x.test", &["u@w.test"], &message("twice")).unwrap();
    first.finished(&id);
    let mails = second.wait_maildir("u@w.test", 1);
    let received = mails[0].headers("Received");
    assert_eq!(received.len(), 2);
    assert!(received[0].contains("from mx.test") && received[0].contains("by second.test"), "{received:?}");
    assert!(received[1].contains("by mx.test"), "{received:?}");
}

/// The next hop hears nothing but CRLF line ends and stuffed dots.
#[test]
fn dots_are_stuffed_for_the_next_hop() {
    let sink = Sink::start();
    let system = System::builder().relay().route("sink.test", &sink.via()).start();
    let content = b"Subject: dots\r\n\r\n.\r\n..\r\n.QUIT\r\n";
    let id = system.smtp().send("a@x.test", &["b@sink.test"], content).unwrap();
    system.finished(&id);
    let taken = sink.taken();
    assert!(taken[0].content.ends_with(content));
    assert!(taken[0].raw.ends_with(b"\r\n\r\n..\r\n...\r\n..QUIT\r\n"));
}

// By the DNS: the name server and the mail exchangers live on loopback addresses of their own, ports 53 and
// 25.

#[test]
fn exchangers_are_tried_by_preference() {
    if !have(&["nsd"]) || !have_root() {
        return;
    }
    let (best, second, third) = (Address::claim(), Address::claim(), Address::claim());
    let nsd = Nsd::start(&format!(
        "y IN MX 30 c\ny IN MX 10 a\ny IN MX 20 b\na IN A {}\nb IN A {}\nc IN A {}",
        best.ip, second.ip, third.ip
    ));
    // Nobody listens at the best.
    let (sink, last) = (Sink::start_at(second.port(25)), Sink::start_at(third.port(25)));
    let system = System::builder().relay().dns(nsd.address()).fast_retries().start();
    let id = system.smtp().send("a@x.test", &["b@y.test"], &message("by preference")).unwrap();
    system.finished(&id);
    assert_eq!((sink.taken().len(), last.taken().len()), (1, 0));
    let relay = system.attempted(&id, "sent")["relay"].as_str().unwrap().to_owned();
    assert!(relay.starts_with(&format!("b.test[{}]:25", second.ip)), "{relay}");

    // One that greets with 4yz is passed by, too. (A new system: it has no connection that it could use again.)
    drop(system);
    let system = System::builder().relay().dns(nsd.address()).fast_retries().start();
    sink.behave(|command| match command {
        "CONNECT" => Answer::Say("421 4.3.2 Not now".into()),
        _ => Answer::Usual,
    });
    let id = system.smtp().send("a@x.test", &["b@y.test"], &message("past a 421")).unwrap();
    system.finished(&id);
    assert_eq!((sink.taken().len(), last.taken().len()), (1, 1));
}

/// An operator may route mail to a server that has our name; a domain's own records must not lead to it, by whichever
/// connection.
#[test]
fn a_connection_that_is_there_leads_no_mail_in_circles() {
    if !have(&["nsd"]) || !have_root() {
        return;
    }
    let server = Address::claim();
    let nsd = Nsd::start(&format!("y IN MX 10 a\na IN A {}", server.ip));
    let sink = Sink::start_at(server.port(25));
    let system = System::builder().relay().dns(nsd.address()).route("z.test", &sink.via()).start();
    sink.behave(|command| match command {
        "EHLO mx.test" => Answer::Say("250 mx.test".into()),
        _ => Answer::Usual,
    });
    let id = system.smtp().send("a@v.test", &["b@z.test"], &message("as the operator said")).unwrap();
    system.finished(&id);
    let id = system.smtp().send("a@v.test", &["b@y.test"], &message("in circles")).unwrap();
    assert_eq!(system.attempted(&id, "bounced")["dsn"], "5.4.6");
    assert_eq!(sink.taken().len(), 1);
    assert_eq!(sink.commands().iter().filter(|command| command.starts_with("EHLO")).count(), 1);
}

#[test]
fn without_mx_the_domain_itself_is_asked() {
    if !have(&["nsd"]) || !have_root() {
        return;
    }
    let host = Address::claim();
    let nsd = Nsd::start(&format!("plain IN A {}", host.ip));
    let sink = Sink::start_at(host.port(25));
    let system = System::builder().relay().dns(nsd.address()).start();
    let id = system.smtp().send("a@x.test", &["b@plain.test"], &message("no MX")).unwrap();
    system.finished(&id);
    assert_eq!(sink.taken().len(), 1);
}

#[test]
fn who_takes_no_mail_and_who_does_not_exist() {
    if !have(&["nsd"]) || !have_root() {
        return;
    }
    let nsd = Nsd::start("null IN MX 0 .\nempty IN TXT \"nothing here\"");
    let system = System::builder().relay().dns(nsd.address()).start();
    for (domain, dsn) in [("null.test", "5.1.10"), ("missing.test", "5.1.2"), ("empty.test", "5.1.2")] {
        let to = format!("b@{domain}");
        let id = system.smtp().send("a@v.test", &[&to], &message(domain)).unwrap();
        let bounced = system.attempted(&id, "bounced");
        let enhanced = bounced["dsn"].as_str().unwrap();
        assert!(enhanced.starts_with("5."), "{bounced}");
        // RFC 7505 §4.2 has a code of its own for the null MX.
        assert!(domain != "null.test" || enhanced == dsn, "{bounced}");
        system.finished(&id);
    }
    assert_eq!(system.wait_maildir("a@v.test", 3).len(), 3);
}

#[test]
fn a_name_server_that_does_not_answer_defers() {
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let system = System::builder().relay().dns(silent.local_addr().unwrap()).start();
    let id = system.smtp().send("a@x.test", &["b@y.test"], &message("no DNS")).unwrap();
    let deferred = system.attempted(&id, "deferred");
    assert!(deferred["dsn"].as_str().unwrap().starts_with("4."), "{deferred}");
    assert_eq!(system.spool("cur").len(), 1);
}

#[test]
fn routes_that_discard_and_refuse() {
    let system = System::builder()
        .relay()
        .route("gone.test", "discard")
        .route("closed.test", "error:5.2.1 Closed for good")
        .route("busy.test", "error:4.3.0 Come back")
        .start();
    let mut client = system.smtp();
    let id = client.send("a@x.test", &["b@gone.test"], &message("discarded")).unwrap();
    system.finished(&id);
    client.says("MAIL FROM:<a@x.test>", "250");
    let refused = client.says("RCPT TO:<b@closed.test>", "5");
    assert!(refused.to_string().contains("5.2.1 Closed for good"), "{refused}");
    let refused = client.says("RCPT TO:<b@busy.test>", "4");
    assert!(refused.to_string().contains("4.3.0 Come back"), "{refused}");
}
