//! What a client asks besides sending mail: VRFY, EXPN, HELP, ETRN, and the commands nobody has any more.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use postern_tests::{Address, Sink, Smtp, System, message};

/// A generous wait.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn names_are_told_to_those_who_may_relay() {
    let system = System::builder().users(&["u@v.test", "w@v.test"]).relay().start();
    let mut trusted = system.smtp();
    trusted.ehlo();
    trusted.says("VRFY u", "250 2.1.5 <u@v.test>");
    trusted.says("VRFY <w@v.test>", "250 2.1.5 <w@v.test>");
    trusted.says("VRFY nobody", "550 5.1.1");
    trusted.says("VRFY someone@other.test", "252 2.");
    trusted.says("VRFY a@b@c", "501");
    trusted.says("VRFY", "501");
    trusted.says("EXPN u@v.test", "250 2.1.5 <u@v.test>");
    trusted.says("EXPN nobody@v.test", "550 5.1.1");
    // RFC 5321 §3.5.3, §7.3: neither yes nor no.
    let mut stranger = Smtp::connect_from("127.0.0.9".parse().unwrap(), system.address());
    stranger.ehlo();
    for verb in ["VRFY", "EXPN"] {
        let said = |client: &mut Smtp, name: &str| client.says(&format!("{verb} {name}"), "252 2.");
        assert_eq!(said(&mut stranger, "u@v.test"), said(&mut stranger, "nobody@v.test"));
    }
    // In a transaction they change nothing (RFC 5321 §4.1.1.6), and replies keep their order.
    stranger.bytes(
        b"MAIL FROM:<a@x.test>\r\nRCPT TO:<u@v.test>\r\nVRFY u\r\nEXPN w\r\nRCPT TO:<w@v.test>\r\nNOOP\r\n",
    );
    for expected in ["250 2.1.0", "250 2.1.5", "252", "252", "250 2.1.5", "250 2.0.0"] {
        stranger.expect(expected);
    }
}

#[test]
fn aliases_are_expanded() {
    let aliases = tempfile::NamedTempFile::new().unwrap();
    std::fs::set_permissions(aliases.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    std::fs::write(
        aliases.path(),
        "postmaster: nobody\nlist: a@x.test, b@y.test,\n nobody\naway: c@z.test\n",
    )
    .unwrap();
    let local = format!("[\"h.test\"]\naliases = \"{}\"", aliases.path().display());
    let system = System::builder().users(&["u@v.test"]).relay().set("local", "domains", &local).start();
    let mut client = system.smtp();
    client.ehlo();
    let members = client.says("EXPN list", "250");
    assert_eq!(members.lines, ["2.1.5 <a@x.test>", "2.1.5 <b@y.test>", "2.1.5 <nobody@h.test>"]);
    client.says("VRFY list@h.test", "250 2.1.5 <list@h.test>");
    client.says("VRFY away@h.test", "251 2.1.5 User not local; will forward to <c@z.test>");
    client.says("EXPN away", "250 2.1.5 <c@z.test>");
}

#[test]
fn what_is_gone_is_refused_with_its_reason() {
    let system = System::start();
    let mut client = system.smtp();
    client.ehlo();
    for line in ["SEND FROM:<a@x.test>", "SOML FROM:<a@x.test>", "SAML FROM:<a@x.test>", "TURN"] {
        let reply = client.says(line, "502 5.5.1");
        assert!(reply.lines[0].contains("RFC 5321"), "{reply:?}");
    }
    let help = client.says("HELP", "214");
    assert!(help.lines.len() > 1 && help.lines.iter().any(|line| line.contains("RCPT")), "{help:?}");
}

#[test]
fn etrn_tries_waiting_mail_at_once() {
    let address = Address::claim();
    let via = format!("smtp:[{}]:2600", address.ip);
    let system = System::builder()
        .set("relay", "networks", "[\"127.0.0.1\"]")
        .set("relay", "domains", "[\"sink.test\", \"away.sink.test\"]")
        .route("sink.test", &via)
        .route("other.test", &via)
        .set("queue", "retry-first", "\"1 h\"")
        .set("queue", "retry-most", "\"2 h\"")
        .start();
    let mut client = system.smtp();
    let ids: Vec<String> = ["b@sink.test", "c@sink.test", "d@other.test"]
        .iter()
        .map(|to| client.send("a@x.test", &[to], &message("waits")).unwrap())
        .collect();
    ids.iter().for_each(|id| drop(system.attempted(id, "deferred")));
    let sink = Sink::start_at(address.port(2600));
    // Anybody may ask: the mail goes where it belongs, and not to him.
    let mut peer = Smtp::connect_from("127.0.0.9".parse().unwrap(), system.address());
    assert!(peer.ehlo().lines.contains(&"ETRN".to_owned()));
    peer.says("ETRN sink.test", "250 2.0.0");
    ids[..2].iter().for_each(|id| system.finished(id));
    assert_eq!(sink.wait_for(2, PATIENCE).len(), 2);
    system.wait("note", |e| e["text"].as_str().is_some_and(|text| text.starts_with("etrn: sink.test: ")));
    // Asked again at once; for others' domains; for what is none (RFC 1985 §5.3).
    peer.says("ETRN SINK.test", "458");
    for (node, code) in [("v.test", "459"), ("x.test", "459"), ("@x.test", "459"), ("#uucp", "458")] {
        peer.says(&format!("ETRN {node}"), code);
    }
    for node in ["a..b", "u@sink.test", "@", ""] {
        peer.says(&format!("ETRN {node}"), "501");
    }
    // `@`: that domain and those below it, of which one was not asked for yet.
    peer.says("ETRN @sink.test", "250 2.0.0");
    system
        .wait("note", |e| e["text"].as_str().is_some_and(|text| text.starts_with("etrn: away.sink.test: ")));
    // In its place in a batch.
    peer.bytes(b"MAIL FROM:<a@x.test>\r\nRCPT TO:<u@v.test>\r\nETRN other.test\r\nRSET\r\n");
    for expected in ["250", "250 2.1.5", "250 2.0.0", "250"] {
        peer.expect(expected);
    }
    system.finished(&ids[2]);
}
