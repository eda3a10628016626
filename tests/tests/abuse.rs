//! Those who do not behave: too many at once, too much, too early, too slow, on a list, for the first time.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use postern_tests::{Address, Builder, Nsd, Reply, Smtp, System, have, have_root, message, until};

const PATIENCE: Duration = Duration::from_secs(60);

/// A system in which nobody is exempt.
fn strict() -> Builder {
    System::builder().set("limits", "exempt", "[]").set("smtp", "tarpit", "\"0 s\"")
}

fn client(n: u8) -> IpAddr {
    Ipv4Addr::new(127, 200, 1, n).into()
}

fn from(system: &System, client: IpAddr) -> Smtp {
    Smtp::connect_from(client, system.address())
}

/// MAIL and RCPT in a session of its own: the reply to RCPT.
fn rcpt(system: &System, client: IpAddr, sender: &str, recipient: &str) -> Reply {
    let mut smtp = from(system, client);
    smtp.ehlo();
    smtp.says(&format!("MAIL FROM:<{sender}>"), "250");
    smtp.line(&format!("RCPT TO:<{recipient}>"));
    let reply = smtp.reply();
    smtp.quit();
    reply
}

/// A connection whose greeting is not waited for.
fn connect_silently(client: IpAddr, to: SocketAddr) -> TcpStream {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket};
    use std::os::fd::AsRawFd;
    let made = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(made.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(client, 0))).unwrap();
    connect(made.as_raw_fd(), &SockaddrStorage::from(to)).unwrap();
    let stream = TcpStream::from(made);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Everything the server says until it closes.
fn read_all(stream: &mut TcpStream) -> String {
    let mut said = Vec::new();
    // A reset is an end as well.
    let _ = stream.read_to_end(&mut said);
    String::from_utf8_lossy(&said).into_owned()
}

#[test]
fn sessions_of_one_client_over_all_workers() {
    let system = strict().set("limits", "sessions", "3").start();
    let mut open: Vec<Smtp> = (0..3).map(|_| from(&system, client(1))).collect();
    assert!(open.iter().all(|smtp| smtp.greeting().is("220")));
    let mut refused = from(&system, client(1));
    assert!(refused.greeting().is("421 4.7.0 Error: too many connections from 127.200.1.1"));
    refused.closed();
    let exceeded = system.wait("limit-exceeded", |_| true);
    assert_eq!(
        (&exceeded["measure"], &exceeded["scope"]),
        (&"Connection concurrency".into(), &"client".into())
    );
    assert_eq!((&exceeded["count"], &exceeded["limit"]), (&4.into(), &3.into()));
    assert_eq!(exceeded["client_address"], "127.200.1.1");
    system.wait("reject", |e| e["stage"] == "CONNECT" && e["session"] == exceeded["session"]);
    assert!(from(&system, client(2)).greeting().is("220"), "another client");

    // One goes, and another may come.
    open.pop().unwrap().quit();
    let again = until("a place is free", PATIENCE, || {
        let smtp = from(&system, client(1));
        smtp.greeting().is("220").then_some(smtp)
    });
    open.push(again);

    // A worker dies, and its sessions with it.
    system.kill_program("smtpd/0");
    system.kill_program("smtpd/1");
    drop(open);
    until("the places of dead workers are free", PATIENCE, || {
        let all: Vec<Smtp> = (0..3).map(|_| from(&system, client(1))).collect();
        all.iter().all(|smtp| smtp.greeting().is("220")).then_some(())
    });
}

/// All workers wait at one socket, and the kernel wakes one of them: it must not always be the same.
#[test]
fn sessions_that_stay_are_shared_by_the_workers() {
    let system = System::builder().start();
    let staying: Vec<Smtp> = (0..64).map(|_| Smtp::connect(system.address())).collect();
    assert!(staying.iter().all(|smtp| smtp.greeting().is("220")));
    let sessions = until("all are counted", PATIENCE, || {
        let status = system.postern_json(&["status"]);
        let workers = status.iter().filter(|of| of["program"].as_str().unwrap().starts_with("smtpd"));
        let sessions: Vec<u64> = workers.map(|of| of["counters"]["sessions"].as_u64().unwrap()).collect();
        (sessions.iter().sum::<u64>() == 64).then_some(sessions)
    });
    assert!(sessions.len() == 2 && sessions.iter().all(|of_one| *of_one >= 16), "{sessions:?}");
}

#[test]
fn without_verify_nobody_is_kept_waiting() {
    let system = strict().set("limits", "sessions", "1").set("limits", "messages", "100").start();
    let mut first = from(&system, client(1));
    system.kill_program("verify");
    // The successor counts anew; who was there goes on.
    let id = first.send("a@x.test", &["u@v.test"], &message("still there")).unwrap();
    system.finished(&id);
    let mut second = until("a greeting", PATIENCE, || {
        let smtp = from(&system, client(1));
        smtp.greeting().is("220").then_some(smtp)
    });
    let id = second.send("a@x.test", &["u@v.test"], &message("counted")).unwrap();
    system.finished(&id);
}

#[test]
fn verify_that_hangs_is_not_waited_for_long() {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    let system = strict().start();
    let verify = Pid::from_raw(system.pids()["verify"] as i32);
    kill(verify, Signal::SIGSTOP).unwrap();
    let mut smtp = from(&system, client(1));
    assert!(smtp.greeting().is("220"));
    smtp.send("a@x.test", &["u@v.test"], &message("without verify")).unwrap();
    kill(verify, Signal::SIGCONT).unwrap();
}

/// By XCLIENT a session is whose the test wants it to be.
#[test]
fn users_and_networks_of_ipv6() {
    let system = strict()
        .set("limits", "exempt", "[\"127.0.0.1\"]")
        .set("smtp", "xclient", "[\"127.0.0.1\"]")
        .set("limits", "sessions", "{ client = 2 }")
        .set("limits", "messages", "{ client = 100, user = 2 }")
        .start();
    let turn_into = |told: &str| {
        let mut smtp = system.smtp();
        smtp.ehlo();
        smtp.line(&format!("XCLIENT {told}"));
        (smtp.reply(), smtp)
    };
    let open: Vec<_> = (1..3).map(|n| turn_into(&format!("ADDR=IPV6:2001:db8::{n}"))).collect();
    assert!(open.iter().all(|(reply, _)| reply.is("220")), "{open:?}");
    let (refused, _) = turn_into("ADDR=IPV6:2001:db8::ffff");
    assert!(refused.is("421 4.7.0 Error: too many connections from 2001:db8::ffff"), "{refused}");
    assert!(turn_into("ADDR=IPV6:2001:db8:0:1::1").0.is("220"), "another network");

    for (sent, address) in ["192.0.2.1", "192.0.2.2", "192.0.2.3"].into_iter().enumerate() {
        let (reply, mut smtp) = turn_into(&format!("ADDR={address} LOGIN=u"));
        assert!(reply.is("220"));
        smtp.ehlo();
        smtp.line("MAIL FROM:<a@x.test>");
        let reply = smtp.reply();
        match sent {
            0 | 1 => assert!(reply.is("250"), "{reply}"),
            _ => assert!(reply.is("450 4.7.1 Error: too much mail"), "{reply}"),
        }
    }
    assert_eq!(system.wait("limit-exceeded", |e| e["scope"] == "user")["limit"], 2);
}

#[test]
fn this_host_and_relay_networks_are_exempt() {
    let limits = System::builder().set("limits", "sessions", "1").set("limits", "messages", "1");
    let system = limits.set("relay", "networks", "[\"127.200.1.0/24\"]").start();
    for address in [client(1), Ipv4Addr::LOCALHOST.into()] {
        let mut open: Vec<Smtp> = (0..3).map(|_| from(&system, address)).collect();
        for smtp in &mut open {
            let id = smtp.send("a@x.test", &["u@v.test"], &message("exempt")).unwrap();
            system.finished(&id);
        }
    }
}

#[test]
fn connections_messages_and_recipients_a_minute() {
    let system = strict()
        .set("limits", "connections", "{ client = 4 }")
        .set("limits", "messages", "2")
        .set("limits", "recipients", "{ client = 5, listener = 1000 }")
        .start();
    let mut smtp = from(&system, client(1));
    for n in 0..2 {
        smtp.send("a@x.test", &["u@v.test"], &message(&format!("no {n}"))).unwrap();
    }
    let refused = smtp.says("MAIL FROM:<a@x.test>", "450 4.7.1 Error: too much mail from 127.200.1.1");
    assert_eq!(refused.code, 450);
    let exceeded = system.wait("limit-exceeded", |_| true);
    assert_eq!(exceeded["measure"], "Message delivery request rate");
    smtp.quit();

    let mut smtp = from(&system, client(2));
    smtp.ehlo();
    smtp.says("MAIL FROM:<a@x.test>", "250");
    for n in 0..5 {
        smtp.says(&format!("RCPT TO:<u{n}@v.test>"), "250");
    }
    smtp.says("RCPT TO:<u9@v.test>", "450 4.7.1 Error: too many recipients from 127.200.1.2");
    smtp.says("DATA", "354");
    smtp.bytes(b"Subject: x\r\n\r\nx\r\n.\r\n");
    smtp.expect("250");
    smtp.quit();

    for _ in 0..3 {
        from(&system, client(2)).quit();
    }
    let mut fifth = from(&system, client(2));
    assert!(fifth.greeting().is("421 4.7.0 Error: too many connections"), "{}", fifth.greeting());
    fifth.closed();
}

#[test]
fn who_errs_too_often_is_sent_away() {
    let system = strict().set("limits", "errors", "3").start();
    let mut smtp = from(&system, client(1));
    smtp.ehlo();
    for _ in 0..3 {
        smtp.says("NONSENSE", "5");
    }
    smtp.line("NONSENSE");
    smtp.expect("5");
    smtp.expect("421 4.7.0 Error: too many errors from 127.200.1.1");
    smtp.closed();
    assert!(from(&system, client(1)).greeting().is("421 4.7.0 Error: too many errors"));
    assert!(from(&system, client(2)).greeting().is("220"));
}

#[test]
fn errors_make_replies_slow_and_nobody_else_waits() {
    let system = strict()
        .set("smtp", "workers", "1")
        .set("smtp", "errors", "8")
        .set("smtp", "tarpit", "\"1 s\"")
        .start();
    let mut smtp = from(&system, client(1));
    smtp.ehlo();
    for _ in 0..4 {
        smtp.says("NONSENSE", "5");
    }
    let begun = Instant::now();
    smtp.line("NONSENSE");
    // The reply waits; the worker does not.
    let mut other = from(&system, client(2));
    other.send("a@x.test", &["u@v.test"], &message("meanwhile")).unwrap();
    smtp.expect("5");
    smtp.says("NONSENSE", "5");
    assert!(begun.elapsed() >= Duration::from_secs(3), "one second, then two: {:?}", begun.elapsed());
}

#[test]
fn who_talks_before_the_greeting() {
    let system = strict().set("smtp", "greet-pause", "\"2 s\"").start();
    let begun = Instant::now();
    let mut polite = from(&system, client(1));
    assert!(begun.elapsed() >= Duration::from_secs(2));
    polite.send("a@x.test", &["u@v.test"], &message("polite")).unwrap();
    // A machine that is busy enough makes an early talker a late one.
    until("an early talker is caught", PATIENCE, || {
        let mut early = connect_silently(client(2), system.address());
        early.write_all(b"EHLO early.test\r\nQUIT\r\n").unwrap();
        let said = read_all(&mut early);
        assert!(!said.is_empty());
        said.starts_with("554 5.5.1 Error: protocol error, talked before the greeting\r\n").then_some(())
    });
    let reject = system.wait("reject", |e| e["client_address"] == "127.200.1.2");
    assert_eq!(reject["stage"], "CONNECT");
}

#[test]
fn pipelining_where_it_is_not_allowed() {
    let system = strict().start();
    // RFC 2920 §3.1: MAIL, RCPT and DATA may go together.
    let mut fine = from(&system, client(1));
    fine.ehlo();
    fine.bytes(b"MAIL FROM:<a@x.test>\r\nRCPT TO:<u@v.test>\r\nDATA\r\n");
    ["250", "250", "354"].into_iter().for_each(|reply| drop(fine.expect(reply)));
    fine.bytes(b"Subject: x\r\n\r\nx\r\n.\r\nQUIT\r\n");
    fine.expect("250");
    fine.expect("221");
    // Nothing may follow EHLO, DATA; nothing at all without EHLO.
    for (before, at_once) in [
        ("", "EHLO x.test\r\nMAIL FROM:<a@x.test>\r\n"),
        (
            "EHLO x.test\r\n",
            "MAIL FROM:<a@x.test>\r\nRCPT TO:<u@v.test>\r\nDATA\r\nSubject: x\r\n\r\nx\r\n.\r\n",
        ),
        ("HELO x.test\r\n", "MAIL FROM:<a@x.test>\r\nRCPT TO:<u@v.test>\r\n"),
    ] {
        let mut smtp = from(&system, client(1));
        if !before.is_empty() {
            smtp.bytes(before.as_bytes());
            smtp.expect("250");
        }
        smtp.bytes(at_once.as_bytes());
        let last = until("the end", PATIENCE, || {
            let reply = smtp.reply();
            (reply.code >= 500).then_some(reply)
        });
        assert!(last.is("554 5.5.0 Error: SMTP protocol synchronization"), "{last}");
        smtp.closed();
    }
    system.wait("disconnect", |e| e["why"] == "improper command pipelining");
    assert_eq!(system.wait_maildir("u@v.test", 1).len(), 1);
}

#[test]
fn whoever_trickles_ends() {
    let system =
        strict().set("smtp", "command-timeout", "\"2 s\"").set("smtp", "data-timeout", "\"2 s\"").start();
    let trickle = |begin: &str, replies: usize, octet: &[u8]| {
        let mut stream = connect_silently(client(1), system.address());
        stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let mut said = String::new();
        let mut lines = begin.lines();
        until("the trickling ends", PATIENCE, || {
            let mut buffer = [0; 512];
            match stream.read(&mut buffer) {
                Ok(0) => return Some(()),
                Ok(length) => said.push_str(&String::from_utf8_lossy(&buffer[..length])),
                Err(_) => {}
            }
            // A command for each reply, then an octet at a time.
            let heard = said.lines().filter(|line| line.as_bytes().get(3) == Some(&b' ')).count();
            let out = match lines.clone().next() {
                Some(line) if begin.lines().count() - lines.clone().count() < heard => {
                    lines.next();
                    format!("{line}\r\n").into_bytes()
                }
                Some(_) => Vec::new(),
                None if heard >= replies => octet.to_vec(),
                None => Vec::new(),
            };
            // Closed is an end as well.
            stream.write_all(&out).is_err().then_some(())
        });
        said
    };
    let said = trickle("", 1, b"N");
    assert!(said.ends_with("421 4.4.2 Error: timeout exceeded\r\n"), "{said}");
    let begin = "EHLO x.test\nMAIL FROM:<a@x.test>\nRCPT TO:<u@v.test>\nDATA\n";
    let said = trickle(begin, 5, b"x");
    assert!(said.contains("354 ") && said.ends_with("421 4.4.2 Error: timeout exceeded\r\n"), "{said}");
}

#[test]
fn an_overloaded_worker_is_impatient() {
    let system = strict()
        .set("smtp", "workers", "1")
        .set("smtp", "sessions", "10")
        .set("smtp", "command-timeout", "\"30 s\"")
        .start();
    let mut idle: Vec<Smtp> = (1..9).map(|n| from(&system, client(n))).collect();
    let begins = system.wait("overload", |e| e["begins"] == true);
    assert_eq!((&begins["sessions"], &begins["most"]), (&8.into(), &10.into()));
    // A thirtieth of the time: a second. Nobody was refused.
    for smtp in &mut idle {
        smtp.expect("421 4.4.2");
    }
    system.wait("overload", |e| e["begins"] == false);
    assert!(!system.log.events().iter().any(|e| e["event"] == "reject"));
}

/// The name of a client in a list.
fn listed(client: IpAddr, list: &str) -> String {
    let IpAddr::V4(v4) = client else { panic!("{client}") };
    let [a, b, c, d] = v4.octets();
    format!("{d}.{c}.{b}.{a}.{list}")
}

#[test]
fn lists_in_the_dns() {
    if !have(&["nsd"]) || !have_root() {
        return;
    }
    let nsd = Nsd::start(&format!(
        "{} IN A 127.0.0.2\n{} IN TXT \"see https://bad.test/?ip\"\n{} IN A 127.0.0.3\n{} IN A 127.0.0.2\n\
         {} IN A 127.0.0.9\n{} IN A 127.255.255.254\n",
        listed(client(1), "bad"),
        listed(client(1), "bad"),
        listed(client(2), "worse"),
        listed(client(3), "bad"),
        listed(client(3), "good"),
        listed(client(4), "bad"),
    ));
    let system = strict()
        .dns(nsd.address())
        .set("limits", "list-score", "2")
        .toml(
            "[[list]]\nname = \"bad.test\"\nweight = 2\n\
             [[list]]\nname = \"worse.test\"\nreplies = [\"127.0.0.3\"]\n\
             [[list]]\nname = \"gone.example\"\nweight = 9\n\
             [[list]]\nname = \"good.test\"\nkind = \"allow\"\n",
        )
        .start();
    let refused = rcpt(&system, client(1), "a@x.test", "u@v.test");
    let words = "550 5.7.1 Service unavailable; Client host [127.200.1.1] blocked using bad.test; see \
                 https://bad.test/?ip";
    assert_eq!(refused.to_string(), words);
    let reject = system.wait("reject", |e| e["client_address"] == "127.200.1.1");
    assert_eq!((&reject["from"], &reject["to"]), (&"a@x.test".into(), &"u@v.test".into()));
    for (n, why) in [(2, "1 of 2"), (3, "2 less 1"), (4, "a list's complaint"), (5, "on none")] {
        let taken = rcpt(&system, client(n), "a@x.test", "u@v.test");
        assert!(taken.is("250"), "{why}: {taken}");
    }
    // A list that does not answer counts nothing, and the operator is told.
    system.wait("note", |e| e["text"].as_str().unwrap().contains("the list gone.example counts nothing now"));
    system.wait("note", |e| e["text"].as_str().unwrap().contains("it answers 127.255.255.254"));
}

#[test]
fn a_name_server_that_is_silent_holds_nobody_up_for_long() {
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let system = strict().dns(silent.local_addr().unwrap()).toml("[[list]]\nname = \"bad.test\"\n").start();
    assert!(rcpt(&system, client(1), "a@x.test", "u@v.test").is("250"));
}

#[test]
fn who_comes_back_is_let_in_and_remembered() {
    let greylisted = strict().set("greylist", "enabled", "true").set("greylist", "delay", "\"3 s\"");
    let mut system = greylisted.set("greylist", "auto-allow", "2").start();
    let (one, other) = (Address::claim(), client(77));
    let one: IpAddr = one.ip.into();
    assert!(
        rcpt(&system, one, "a@x.test", "u@v.test").is("450 4.7.1 Recipient address rejected: Greylisted")
    );
    let back = |system: &System, sender: &str| {
        until("it is let in", PATIENCE, || rcpt(system, one, sender, "u@v.test").is("250").then_some(()))
    };
    back(&system, "a@x.test");
    system.wait("note", |e| e["text"].as_str().unwrap().starts_with("greylist: unknown["));
    assert!(rcpt(&system, other, "a@x.test", "u@v.test").is("450 4.7.1"), "another network");
    // Whatever dies.
    system.kill_program("verify");
    until("verify is there again", PATIENCE, || {
        rcpt(&system, client(88), "new@x.test", "u@v.test").is("450").then_some(())
    });
    assert!(rcpt(&system, one, "a@x.test", "u@v.test").is("250"));
    system.stop();
    system.start_again();
    assert!(rcpt(&system, one, "a@x.test", "u@v.test").is("250"));
    assert!(rcpt(&system, one, "b@x.test", "u@v.test").is("450"));
    back(&system, "b@x.test");
    assert!(rcpt(&system, one, "c@x.test", "u@v.test").is("250"), "its network always comes back");
    // Who does not exist is no matter of the greylist.
    assert!(rcpt(&system, other, "a@x.test", "u@elsewhere.test").is("554 5.7.1"));
}
