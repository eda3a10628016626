//! What one slow message among many costs the disk.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use postern_tests::{Answer, Sink, Smtp, System, until};

const MESSAGES: usize = 50;

/// A batch shares a file, and batches do; what is delivered of it gives its blocks back, though one message waits.
#[test]
fn one_slow_message_among_fifty_pins_little() {
    let sink = Sink::start();
    sink.behave(|command| match command.to_ascii_lowercase().contains("<slow@") {
        true => Answer::Say("451 4.2.0 Later".into()),
        false => Answer::Usual,
    });
    let system = System::builder()
        .relay()
        .set("smtp", "workers", "1")
        .set("queue", "retry-first", "\"1 h\"")
        .route("sink.test", &sink.via())
        .start();
    // Round after round until a file is shared: who shares one with whom is the committer's business.
    let body = postern_tests::attachment(20_000);
    let shared = (0..20).any(|_| {
        let mut clients: Vec<_> = (0..MESSAGES).map(|_| system.smtp()).collect();
        for (n, client) in clients.iter_mut().enumerate() {
            let to = if n == MESSAGES / 2 { "slow" } else { "fast" };
            client.says("EHLO client.test", "250");
            client.says("MAIL FROM:<a@v.test>", "250");
            client.says(&format!("RCPT TO:<{to}@sink.test>"), "250");
            client.says("DATA", "354");
            client.bytes(&body);
        }
        // All end at once.
        clients.iter_mut().for_each(|client| client.line("."));
        let ids: Vec<_> = clients.iter_mut().map(|client| client.expect("250").queue_id().unwrap()).collect();
        clients.into_iter().for_each(Smtp::quit);
        for (n, id) in ids.iter().enumerate() {
            match n == MESSAGES / 2 {
                true => drop(system.attempted(id, "deferred")),
                false => system.finished(id),
            }
        }
        system.spool_files("cur").iter().any(|file| file.messages().len() > 3)
    });
    assert!(shared, "no file is shared");
    until("delivered messages give their blocks back", Duration::from_secs(60), || {
        let names = system.spool("cur");
        let blocks = names.iter().map(|name| {
            std::fs::metadata(system.spool_path().join("cur").join(name)).unwrap().blocks() * 512
        });
        // Two blocks of each of sixteen parts, a large index, and the log.
        blocks.into_iter().all(|octets| octets < 160 << 10).then_some(())
    });
    // And the slow ones are whole.
    for file in system.spool_files("cur") {
        let slow = file
            .messages()
            .iter()
            .position(|stored| stored.envelope.recipients.iter().any(|to| to.to_string().contains("slow")));
        let content = file.read_body(slow.unwrap()).unwrap();
        assert!(content == body, "the slow message is whole");
    }
}
