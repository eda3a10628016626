//! A 250 is worth a 250: whatever dies, whenever, what was accepted arrives.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use postern_tests::{Address, Sink, Smtp, System, message, until};

const MESSAGES: usize = 5000;
const CLIENTS: usize = 6;

/// Jobs that one agent may have under way: what is repeated when something is killed.
const JOBS: usize = 20;

#[test]
fn whatever_is_killed_what_was_accepted_arrives() {
    let address = Address::claim();
    let (remote, lmtp) = (Sink::start(), Sink::start());
    let mut system = System::builder()
        .at(address.port(2525))
        .relay()
        .set("relay", "networks", &format!("[\"{}\", \"127.0.0.0/8\"]", address.ip))
        .route("sink.test", &remote.via())
        .route("lmtp.test", &lmtp.via().replace("smtp:", "lmtp:"))
        .set("delivery", "jobs", &JOBS.to_string())
        .fast_retries()
        .start();
    let victims: Vec<_> = system.pids().into_keys().map(Some).chain([None, None]).collect();
    assert!(victims.len() > 10, "every program: {victims:?}");

    let next = AtomicUsize::new(0);
    let accepted = Mutex::new(Vec::new());
    std::thread::scope(|threads| {
        for _ in 0..CLIENTS {
            threads.spawn(|| send_all(address.port(2525), &next, &accepted));
        }
        for (n, victim) in victims.iter().enumerate() {
            let share = MESSAGES * (n + 1) / (victims.len() + 1);
            until("more messages are accepted", Duration::from_secs(120), || {
                (accepted.lock().unwrap().len() >= share).then_some(())
            });
            match victim {
                Some(program) => drop(system.kill_program(program)),
                None => {
                    system.kill_all();
                    system.start_again();
                }
            }
        }
    });
    system.wait_empty(Duration::from_secs(120));

    let accepted: BTreeSet<String> = accepted.into_inner().unwrap().into_iter().collect();
    assert_eq!(accepted.len(), MESSAGES);
    let mut arrived: BTreeMap<String, usize> = BTreeMap::new();
    let local = system.maildir("u@v.test").into_iter().map(|mail| mail.bytes);
    let relayed = remote.taken().into_iter().chain(lmtp.taken()).map(|taken| taken.content);
    for content in local.chain(relayed) {
        let text = String::from_utf8(content).unwrap();
        let subject = text.lines().find_map(|line| line.strip_prefix("Subject: ")).unwrap().to_owned();
        assert!(text.trim_end().ends_with(&format!("This is {subject}.")), "a whole message: {text}");
        *arrived.entry(subject).or_default() += 1;
    }
    let lost: Vec<_> = accepted.iter().filter(|subject| !arrived.contains_key(*subject)).collect();
    assert!(lost.is_empty(), "{} accepted messages are lost: {lost:?}", lost.len());
    // Twice is only what was under way at an agent at the moment of a death.
    let twice: usize = arrived.values().map(|count| count - 1).sum();
    let most = 3 * JOBS * victims.len();
    assert!(twice <= most, "{twice} copies too many, {most} could have been under way");
    println!("{MESSAGES} accepted, {} deaths, {twice} second copies", victims.len());
}

/// A client that notes each message for which it got a 250, and sends again under another name what it
/// did not get one for.
fn send_all(server: SocketAddr, next: &AtomicUsize, accepted: &Mutex<Vec<String>>) {
    let mut client: Option<Smtp> = None;
    loop {
        let n = next.fetch_add(1, Ordering::Relaxed);
        if n >= MESSAGES {
            return;
        }
        let to = ["u@v.test", "b@sink.test", "c@lmtp.test"][n % 3];
        for attempt in 0.. {
            assert!(attempt < 10_000, "message {n} is never taken");
            let subject = format!("message-{n}-{attempt}");
            let outcome = match &mut client {
                Some(client) => client.try_send("a@x.test", &[to], &message(&subject)),
                None => {
                    client = Smtp::try_connect(server).ok().filter(|client| client.greeting().code == 220);
                    if client.is_none() {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    continue;
                }
            };
            match outcome {
                Ok(Ok(_)) => {
                    accepted.lock().unwrap().push(subject);
                    break;
                }
                Ok(Err(reply)) => assert!((400..500).contains(&reply.code), "{reply}"),
                Err(_) => client = None,
            }
        }
    }
}

/// The edge between S1 and S2 of the spool's states, and the one between S2 and S3: all is killed at the very
/// moment of the 250.
#[test]
fn killed_at_the_moment_of_the_250() {
    let mut system = System::start();
    for round in 0..10 {
        let mut client = system.smtp();
        let subjects: Vec<_> = (0..5).map(|n| format!("round-{round}-{n}")).collect();
        for subject in &subjects {
            client.send("a@x.test", &[&format!("r{round}@v.test")], &message(subject)).unwrap();
        }
        system.kill_all();
        system.start_again();
        // Some may come twice: they were delivered, and not yet reported, when all was killed.
        until(&format!("round {round} arrives"), Duration::from_secs(30), || {
            let mails = system.maildir(&format!("r{round}@v.test"));
            let came: BTreeSet<_> = mails.iter().map(|mail| mail.header("Subject").unwrap()).collect();
            subjects.iter().all(|subject| came.contains(subject)).then_some(())
        });
    }
    system.wait_empty(Duration::from_secs(30));
}

/// What is deferred is on disk and nowhere else.
#[test]
fn deferred_mail_outlives_everything() {
    let address = Address::claim();
    let via = format!("smtp:[{}]:2600", address.ip);
    let mut system = System::builder().relay().fast_retries().route("sink.test", &via).start();
    let mut client = system.smtp();
    let ids: Vec<_> = (0..20)
        .map(|n| client.send("a@x.test", &["b@sink.test", "c@v.test"], &message(&format!("no-{n}"))).unwrap())
        .collect();
    for id in &ids {
        system.wait("delivery", |e| e["id"] == **id && e["to"] == "b@sink.test" && e["status"] == "deferred");
        system.wait("delivery", |e| e["id"] == **id && e["to"] == "c@v.test" && e["status"] == "sent");
    }
    system.stop();
    system.start_again();
    system.kill_all();
    let sink = Sink::start_at(address.port(2600));
    system.start_again();
    ids.iter().for_each(|id| system.finished(id));
    let subjects: BTreeSet<_> = sink.taken().iter().map(|taken| taken.content.clone()).collect();
    assert_eq!((sink.taken().len(), subjects.len()), (20, 20));
    assert_eq!(system.maildir("c@v.test").len(), 20, "delivered recipients are not delivered again");
}
