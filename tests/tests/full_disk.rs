//! A full disk: the client hears 452, nothing that was accepted is lost, and it goes on when there is room.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use postern_tests::{Address, Sink, System, attachment, have_root, until};

#[test]
fn without_room_for_octets() {
    fill("size=2m", 100_000);
}

#[test]
fn without_room_for_large_messages() {
    fill("size=4m", 1_000_000);
}

#[test]
fn without_room_for_files() {
    fill("size=16m,nr_inodes=40", 100);
}

fn fill(options: &str, size: usize) {
    if !have_root() {
        return;
    }
    let address = Address::claim();
    let via = format!("smtp:[{}]:2600", address.ip);
    let system =
        System::builder().relay().small_spool(options).fast_retries().route("sink.test", &via).start();
    let mut client = system.smtp();
    let mut accepted = Vec::new();
    let refused = loop {
        assert!(accepted.len() < 1000, "the disk is never full");
        match client.send("a@x.test", &["b@sink.test"], &attachment(size)) {
            Ok(id) => accepted.push(id),
            Err(refused) => break refused,
        }
    };
    assert!(refused.is("452 4.3.1"), "{refused}");
    assert!(!accepted.is_empty());
    system.wait("spool-refused", |_| true);
    // The session goes on, and what else it asks for is answered.
    client.says("NOOP", "250");

    let sink = Sink::start_at(address.port(2600));
    sink.wait_for(accepted.len(), Duration::from_secs(60));
    accepted.iter().for_each(|id| system.finished(id));
    let id = until("there is room again", Duration::from_secs(20), || {
        client.send("a@x.test", &["b@sink.test"], &attachment(size)).ok()
    });
    system.finished(&id);
    let sent = attachment(size);
    let taken = sink.taken();
    assert_eq!(taken.len(), accepted.len() + 1);
    assert!(taken.iter().all(|taken| taken.content.ends_with(&sent)));
}

/// Room is kept for bounces and for results: new mail hears of it before it sends its content.
#[test]
fn nearly_full_mail_is_refused_before_its_content() {
    if !have_root() {
        return;
    }
    let address = Address::claim();
    let via = format!("smtp:[{}]:2600", address.ip);
    let system = System::builder()
        .relay()
        .set("queue", "min-free", "\"8 MiB\"")
        .small_spool("size=16m,nr_inodes=5000")
        .fast_retries()
        .route("sink.test", &via)
        .start();
    let mut client = system.smtp();
    let mut accepted = Vec::new();
    until("the spool is nearly full", Duration::from_secs(60), || {
        client.says("RSET", "250");
        client.line("MAIL FROM:<a@x.test>");
        let reply = client.reply();
        if reply.is("452 4.3.1") {
            return Some(());
        }
        client.says("RSET", "250");
        // The worker looks once a second, so a few may pass that it would refuse; nine take it below.
        if accepted.len() < 9 {
            accepted.extend(client.send("a@x.test", &["b@sink.test"], &attachment(1_000_000)));
        }
        None
    });
    client.says("NOOP", "250");
    let sink = Sink::start_at(address.port(2600));
    sink.wait_for(accepted.len(), Duration::from_secs(60));
    accepted.iter().for_each(|id| system.finished(id));
    let id = until("there is room again", Duration::from_secs(20), || {
        client.send("a@x.test", &["b@sink.test"], &attachment(1000)).ok()
    });
    system.finished(&id);
}
