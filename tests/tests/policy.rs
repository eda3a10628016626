//! Rules: what they do to sessions and messages, with real clients and real policy servers; and what
//! `postern explain` says of them.
#![allow(clippy::unwrap_used)]

use std::process::Command;
use std::time::Duration;

use postern_tests::{
    Nsd, PolicyServer, Postgrey, Smtp, Spawner, System, attachment, have, have_root, message, python, until,
};

const PATIENCE: Duration = Duration::from_secs(120);

/// Rules as lines `stage; condition; condition; action`.
fn rules(lines: &[&str]) -> String {
    let rule = |line: &&str| {
        let mut parts = line.split("; ");
        let stage = parts.next().unwrap();
        let rest: Vec<_> = parts.collect();
        format!("\n[[rule]]\nstage = \"{stage}\"\n{}\n", rest.join("\n"))
    };
    lines.iter().map(rule).collect()
}

#[test]
fn every_action() {
    let system = System::builder()
        .users(&["u@v.test", "w@v.test", "trap@v.test"])
        .toml(&rules(&[
            "from; from = [\"@bad.test\"]; action = \"reject 550 5.7.1 go away\"",
            "from; from = [\"late@x.test\"]; action = \"defer\"",
            "from; from = [\"bye@x.test\"]; action = \"defer 421 4.7.0 come back another day\"",
            "rcpt; to = [\"w@v.test\"]; from = [\"a@x.test\"]; action = \"accept\"",
            "rcpt; to = [\"w@v.test\"]; action = \"reject\"",
            "rcpt; from = [\"held@x.test\"]; action = \"hold\"",
            "rcpt; from = [\"held@x.test\", \"tagged@x.test\"]; action = \"tag X-Tag: first\"",
            "rcpt; from = [\"tagged@x.test\"]; action = \"tag X-Tag: second\"",
            "rcpt; from = [\"moved@x.test\"]; action = \"redirect trap@v.test\"",
            "rcpt; from = [\"nothing@x.test\"]; action = \"discard\"",
            // Behind accept and discard nobody gets here.
            "rcpt; from = [\"nothing@x.test\"]; action = \"reject\"",
        ]))
        .start();
    let mut client = system.smtp();
    client.ehlo();
    client.says("MAIL FROM:<x@bad.test>", "550 5.7.1 go away");
    client.says("MAIL FROM:<late@x.test>", "450 4.7.1 Try again later");
    let event = system.wait("policy", |e| e["action"] == "reject");
    assert_eq!((&event["stage"], &event["rule"]), (&"from".into(), &1.into()));
    system.wait("reject", |e| e["stage"] == "MAIL" && e["from"] == "x@bad.test");
    client.says("MAIL FROM:<b@x.test>", "250");
    client.says("RCPT TO:<w@v.test>", "554 5.7.1 Access denied");
    client.says("RCPT TO:<nobody@v.test>", "550 5.1.1");
    client.says("RSET", "250");

    let id = client.send("a@x.test", &["w@v.test"], &message("accepted")).unwrap();
    system.finished(&id);
    let id = client.send("tagged@x.test", &["u@v.test"], &message("tagged")).unwrap();
    system.finished(&id);
    let mail = &system.wait_maildir("u@v.test", 1)[0];
    assert_eq!(mail.headers("X-Tag"), ["first", "second"]);

    let id = client.send("moved@x.test", &["u@v.test", "w@v.test"], &message("moved")).unwrap_err();
    assert!(id.is("554 5.7.1"), "w@v.test stays refused, whatever becomes of the others: {id:?}");
    client.says("RSET", "250");
    let id = client.send("moved@x.test", &["u@v.test"], &message("moved")).unwrap();
    system.finished(&id);
    assert_eq!(system.wait_maildir("trap@v.test", 1)[0].header("Subject").as_deref(), Some("moved"));

    let id = client.send("nothing@x.test", &["u@v.test"], &message("gone")).unwrap();
    system.wait("note", |e| e["id"] == id.as_str() && e["text"].as_str().unwrap().contains("discarded"));
    system.wait("policy", |e| e["action"] == "discard" && e["from"] == "nothing@x.test");

    let id = client.send("held@x.test", &["u@v.test"], &message("held")).unwrap();
    until("a held message", PATIENCE, || {
        let listed = system.postern_json(&["queue", "list"]);
        listed.iter().any(|m| m["id"] == id.as_str() && m["state"] == "held").then_some(())
    });
    assert!(system.postern(&["queue", "release", &id]).status.success());
    system.finished(&id);
    let mails = system.wait_maildir("u@v.test", 2);
    assert!(mails.iter().all(|mail| mail.header("Subject").as_deref() != Some("gone")));
    // Another message of the same session is nobody's but its own.
    let id = client.send("c@x.test", &["u@v.test"], &message("plain")).unwrap();
    system.finished(&id);
    client.says("MAIL FROM:<bye@x.test>", "421 4.7.0 come back another day");
    client.closed();
}

#[test]
fn before_a_word_and_after_hello() {
    let system = System::builder()
        .toml(&rules(&[
            "client; network = [\"127.0.0.9\"]; action = \"reject 550 5.7.1 not you\"",
            "client; network = [\"127.0.0.10\"]; action = \"reject 521 5.3.2 not here\"",
            "client; network = [\"127.0.0.11\"]; action = \"tag X-Client: eleven\"",
            "client; network = [\"127.0.0.12\"]; name-verified = false; action = \"defer 450 4.7.25 nameless\"",
            "helo; helo = [\"localhost\", \".local\"]; action = \"reject\"",
            "helo; helo = [\"tagged.test\"]; action = \"tag X-Helo: tagged\"",
        ]))
        .start();
    let from = |last: u8| Smtp::connect_from([127, 0, 0, last].into(), system.address());
    let mut refused = from(9);
    assert!(
        refused.greeting().is("550 5.7.1 not you") || refused.greeting().is("554"),
        "{:?}",
        refused.greeting()
    );
    refused.says("EHLO x.test", "503");
    refused.says("QUIT", "221");
    let mut closed = from(10);
    assert_eq!(closed.greeting().code, 521);
    closed.closed();
    assert!(from(12).greeting().is("450 4.7.25 nameless"), "a client of loopback has no name");
    let mut client = from(11);
    client.send("a@x.test", &["n@v.test"], &message("under another name")).unwrap();
    client.says("EHLO localhost", "554 5.7.1");
    client.says("EHLO a.Local", "554 5.7.1");
    client.says("EHLO tagged.test", "250");
    for _ in 0..2 {
        let id = client.send("a@x.test", &["u@v.test"], &message("twice")).unwrap();
        system.finished(&id);
    }
    // Of another name nothing is left.
    client.says("EHLO other.test", "250");
    let id = client.send("a@x.test", &["w@v.test"], &message("once")).unwrap();
    system.finished(&id);
    for mail in system.wait_maildir("u@v.test", 2) {
        assert_eq!(
            (mail.headers("X-Client"), mail.headers("X-Helo")),
            (vec!["eleven".into()], vec!["tagged".into()])
        );
    }
    let mail = &system.wait_maildir("w@v.test", 1)[0];
    assert_eq!((mail.headers("X-Client").len(), mail.headers("X-Helo").len()), (1, 0));
    let text = String::from_utf8_lossy(&mail.bytes).into_owned();
    assert!(text.find("X-Client:") < text.find("Received:"), "{text}");
}

#[test]
fn the_message_itself() {
    let system = System::builder()
        .toml(&rules(&[
            "data; header = [\"X-Spam-Flag: YES*\"]; action = \"reject 550 5.7.1 no spam\"",
            "data; header = [\"X-Mailer: *bulk*\"]; to = [\"w@v.test\"]; action = \"discard\"",
            "data; header = [\"Subject\"]; action = \"tag X-Subject: yes\"",
        ]))
        .start();
    let mut client = system.smtp();
    client.ehlo();
    let flagged = |size| [b"X-Spam-Flag: Yes, really\r\n".to_vec(), attachment(size)].concat();
    // Held in memory, and streamed to the disk while it comes in.
    for size in [10, 400_000] {
        let refused = client.send("a@x.test", &["u@v.test"], &flagged(size)).unwrap_err();
        assert!(refused.is("550 5.7.1 no spam"), "{refused:?}");
        let id = client.send("a@x.test", &["u@v.test"], &attachment(size)).unwrap();
        system.finished(&id);
        let bulk = [b"X-Mailer: The Bulk Sender\r\n".to_vec(), attachment(size)].concat();
        client.send("a@x.test", &["w@v.test"], &bulk).unwrap();
        let id = client.send("a@x.test", &["u@v.test"], &bulk).unwrap();
        system.finished(&id);
    }
    let mails = system.wait_maildir("u@v.test", 4);
    assert!(mails.iter().all(|mail| mail.headers("X-Subject") == ["yes"]));
    assert_eq!(system.maildir("w@v.test").len(), 0);
    system.wait_empty(PATIENCE);
    assert_eq!(system.spool("tmp"), [""; 0], "what was refused left nothing");
}

#[test]
fn a_table_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let table = directory.path().join("access");
    std::fs::write(
        &table,
        "bad.test  REJECT we know you\nx@bad.test OK\nlate.test 451 4.7.1 later\n<> DISCARD\n",
    )
    .unwrap();
    let system =
        System::builder().toml(&rules(&[&format!("from; table = \"text:{}\"", table.display())])).start();
    let mut client = system.smtp();
    client.ehlo();
    client
        .says("MAIL FROM:<a@mx.bad.test>", "554 5.7.1 <a@mx.bad.test>: Sender address rejected: we know you");
    client.says("MAIL FROM:<x@bad.test>", "250");
    client.says("RSET", "250");
    client.says("MAIL FROM:<a@late.test>", "451 4.7.1");
    client.send("", &["u@v.test"], &message("bounce")).unwrap();
    client.says("MAIL FROM:<a@good.test>", "250");
    client.says("RSET", "250");
    // A changed table is read without a word.
    std::fs::write(&table, "good.test 550 not any more\n").unwrap();
    // A session each: who hears no too often is shown the door.
    let says = |expected: &str| {
        let mut client = system.smtp();
        client.ehlo();
        client.line("MAIL FROM:<a@good.test>");
        client.reply().is(expected).then_some(())
    };
    until("the new table", PATIENCE, || says("550"));
    // What is no action is told to nobody but the log.
    std::fs::write(&table, "good.test permit_mynetworks\n").unwrap();
    until("the broken table", PATIENCE, || says("451 4.3.5"));
    system.wait("policy", |e| e["text"].as_str().unwrap().contains("permit_mynetworks"));
    assert_eq!(system.maildir("u@v.test").len(), 0);
}

#[test]
fn a_policy_server_is_told_and_obeyed() {
    let server = PolicyServer::start(|lines| {
        let has = |line: &str| lines.iter().any(|l| l == line);
        let action = match () {
            () if has("sender=gone@x.test") => return None,
            () if has("sender=nonsense@x.test") => return Some("nonsense\n\n".into()),
            () if has("sender=held@x.test") => "HOLD",
            () if has("sender=tagged@x.test") => "PREPEND X-Policy: tagged",
            () if has("sender=later@x.test") => "DEFER_IF_PERMIT 4.2.0 Greylisted",
            () if has("sender=no@x.test") => "550 5.7.23 not you",
            () => "DUNNO",
        };
        Some(format!("action={action}\n\n"))
    });
    let system = System::builder()
        .users(&["u@v.test"])
        .set("smtp", "workers", "1")
        .toml(&rules(&[
            &format!("rcpt; ask = \"unix:{}\"", server.path().display()),
            "rcpt; from = [\"later@x.test\"]; to = [\"rejected@v.test\"]; action = \"reject\"",
        ]))
        .start();
    let mut client = system.smtp();
    client.ehlo();
    let rcpt = |client: &mut Smtp, from: &str, to: &str, expected: &str| {
        client.says(&format!("MAIL FROM:<{from}>"), "250");
        client.says(&format!("RCPT TO:<{to}>"), expected);
        client.says("RSET", "250");
    };
    rcpt(&mut client, "a@x.test", "u@v.test", "250");
    rcpt(&mut client, "no@x.test", "u@v.test", "550 5.7.23 <u@v.test>: Recipient address rejected: not you");
    rcpt(
        &mut client,
        "later@x.test",
        "u@v.test",
        "450 4.2.0 <u@v.test>: Recipient address rejected: Greylisted",
    );
    // Deferred is what nobody refuses.
    rcpt(&mut client, "later@x.test", "nobody@v.test", "550 5.1.1");
    rcpt(&mut client, "later@x.test", "rejected@v.test", "554 5.7.1");
    let heard = server.heard();
    assert_eq!(heard.connections, 1, "the connection is kept");
    assert_eq!(
        heard.requests[0][..3],
        ["request=smtpd_access_policy", "protocol_state=RCPT", "protocol_name=ESMTP"]
    );
    for (name, value) in [
        ("client_address", "127.0.0.1"),
        ("client_name", "unknown"),
        ("sender", "a@x.test"),
        ("recipient", "u@v.test"),
        ("recipient_count", "0"),
        ("size", "0"),
        ("sasl_username", ""),
    ] {
        assert_eq!(heard.attribute(0, name).as_deref(), Some(value), "{name}");
    }
    assert_ne!(heard.attribute(0, "instance"), heard.attribute(1, "instance"));

    // A batch: all are asked together, and answered in order.
    client
        .bytes(b"MAIL FROM:<tagged@x.test> SIZE=77\r\nRCPT TO:<u@v.test>\r\nRCPT TO:<n@v.test>\r\nDATA\r\n");
    for expected in ["250", "250", "550 5.1.1", "354"] {
        client.expect(expected);
    }
    client.bytes(b"Subject: x\r\n\r\n.\r\n");
    let id = client.expect("250").queue_id().unwrap();
    system.finished(&id);
    assert_eq!(system.wait_maildir("u@v.test", 1)[0].headers("X-Policy"), ["tagged"]);
    let heard = server.heard();
    let last = heard.requests.len() - 1;
    assert_eq!(heard.attribute(last, "size").as_deref(), Some("77"));
    assert_eq!(heard.attribute(last, "instance"), heard.attribute(last - 1, "instance"), "one message");

    // What cannot be understood, or does not answer, is as in Postfix. It is tried twice.
    let before = server.heard().requests.len();
    rcpt(&mut client, "gone@x.test", "u@v.test", "451 4.3.5 Server configuration problem");
    assert!(server.heard().requests.len() >= before + 2);
    rcpt(&mut client, "nonsense@x.test", "u@v.test", "451 4.3.5");
    rcpt(&mut client, "a@x.test", "u@v.test", "250");
    let id = client.send("held@x.test", &["u@v.test"], &message("held")).unwrap();
    let listed = until("it in the queue", PATIENCE, || {
        system.postern_json(&["queue", "list"]).into_iter().find(|m| m["id"] == id.as_str())
    });
    assert_eq!(listed["state"], "held");
}

#[test]
fn a_policy_server_that_thinks_for_ever_and_a_verify_that_dies() {
    let server = PolicyServer::start(|lines| {
        while lines.iter().any(|line| line == "sender=slow@x.test") {
            std::thread::park();
        }
        Some("action=DUNNO\n\n".into())
    });
    let ask = format!("ask = \"unix:{}\"", server.path().display());
    let system = System::builder()
        .set("smtp", "workers", "1")
        .toml(&rules(&[
            &format!("rcpt; to = [\"asked@v.test\"]; {ask}"),
            &format!("data; not = {{ to = [\"asked@v.test\"] }}; {ask}"),
        ]))
        .start();
    let mut client = system.smtp();
    client.ehlo();
    client.says("MAIL FROM:<slow@x.test>", "250");
    for large in [false, true] {
        let before = server.heard().requests.len();
        match large {
            false => client.line("RCPT TO:<asked@v.test>"),
            true => {
                client.dialogue(&[("RCPT TO:<u@v.test>", "250"), ("DATA", "354")]);
                client.bytes(&[attachment(400_000), b".\r\n".to_vec()].concat());
            }
        }
        until("the question", PATIENCE, || (server.heard().requests.len() > before).then_some(()));
        system.kill_program("verify");
        client.expect("451 4.3.5");
        system.wait("program-started", |e| e["name"] == "verify");
    }
    // Its successor asks, and nothing is left of what was deferred.
    let id = until("verify to be back", PATIENCE, || {
        client.send("a@x.test", &["u@v.test"], &message("after")).ok()
    });
    system.finished(&id);
    system.wait_empty(PATIENCE);
    assert_eq!(system.maildir("u@v.test").len(), 1);
    // Whoever waits while the system is stopped is told to come again, and does not lose by it.
    client.says("MAIL FROM:<slow@x.test>", "250");
    client.dialogue(&[("RCPT TO:<u@v.test>", "250"), ("DATA", "354")]);
    let before = server.heard().requests.len();
    client.bytes(b"Subject: late\r\n\r\n.\r\n");
    until("the question", PATIENCE, || (server.heard().requests.len() > before).then_some(()));
    system.begin_to_stop();
    let last = client.reply();
    assert!(last.code == 421 || last.code == 451, "{last:?}");
}

#[test]
fn postgrey_lets_in_who_comes_back() {
    if !have(&["postgrey", "python3"]) {
        return;
    }
    let postgrey = Postgrey::start();
    let ask = format!("rcpt; ask = \"inet:{}\"", postgrey.address());
    let system = System::builder().toml(&rules(&[&ask])).start();
    let mut client = system.smtp();
    client.ehlo();
    client.says("MAIL FROM:<a@x.test>", "250");
    let reply = client.says("RCPT TO:<u@v.test>", "450");
    assert!(reply.lines[0].contains("Recipient address rejected: Greylisted, come back"), "{reply:?}");
    client.quit();
    // Python's client comes back until it is let in.
    let script = "import smtplib, sys, time\n\
        for n in range(60):\n\
        \x20   s = smtplib.SMTP('127.0.0.1', int(sys.argv[1]), 'client.test')\n\
        \x20   try:\n\
        \x20       s.sendmail('a@x.test', ['u@v.test'], b'Subject: back\\r\\n\\r\\nhello\\r\\n')\n\
        \x20       print('taken'); break\n\
        \x20   except smtplib.SMTPRecipientsRefused as e:\n\
        \x20       assert e.recipients['u@v.test'][0] == 450, e\n\
        \x20       time.sleep(0.5)\n";
    assert_eq!(python(script, &[&system.address().port().to_string()]).trim(), "taken");
    let mail = &system.wait_maildir("u@v.test", 1)[0];
    assert!(mail.header("X-Greylist").unwrap().starts_with("delayed "), "{:?}", mail.header("X-Greylist"));
    system.wait("policy", |e| e["action"] == "defer" && e["text"].as_str().unwrap().contains("Greylisted"));
}

#[test]
fn policyd_spf_marks_and_refuses() {
    if !(have(&["policyd-spf", "unshare", "nsd", "swaks"]) && have_root()) {
        return;
    }
    let zone = "x IN TXT \"v=spf1 ip4:127.0.0.0/8 ip4:192.0.2.0/24 -all\"\nstrict IN TXT \"v=spf1 -all\"";
    let dns = Nsd::start(zone);
    let spawner = Spawner::policyd_spf(dns.address());
    let ask = format!("rcpt; ask = \"unix:{}\"", spawner.path().display());
    let system = System::builder().dns(dns.address()).toml(&rules(&[&ask])).start();
    let swaks = |domain: &str| {
        let mut swaks = Command::new("swaks");
        swaks.args([
            "--server",
            "127.0.0.1",
            "--port",
            &system.address().port().to_string(),
            "--helo",
            domain,
        ]);
        swaks.args(["--from", &format!("a@{domain}"), "--to", "u@v.test", "--header", "Subject: spf"]);
        String::from_utf8(swaks.output().unwrap().stdout).unwrap()
    };
    let refused = swaks("strict.test");
    assert!(refused.contains("<** 550 5.7.23 <u@v.test>: Recipient address rejected:"), "{refused}");
    let taken = swaks("x.test");
    assert!(taken.contains("<-  250 2.0.0 Ok: queued"), "{taken}");
    let mail = &system.wait_maildir("u@v.test", 1)[0];
    let said = mail.header("Received-SPF").unwrap();
    assert!(said.starts_with("Pass"), "{said}");
    // `postern explain` asks it too, for clients that are not there.
    let explain = |client: &str| {
        let arguments = ["--helo", "x.test", "--from", "a@x.test", "--rcpt", "u@v.test"];
        let steps = system.postern_json(&[&["explain", "--client", client][..], &arguments[..]].concat());
        steps.last().unwrap()["verdict"].as_str().unwrap().to_owned()
    };
    assert_eq!(explain("192.0.2.9"), "accepted");
    let refused = explain("203.0.113.9");
    assert!(refused.starts_with("550 5.7.23") && refused.contains("SPF"), "{refused}");
}

#[test]
fn explain_tells_each_rule_and_why() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let table = directory.path().join("access");
    std::fs::write(&table, "x.test HOLD\n").unwrap();
    let system = System::builder()
        .users(&["u@v.test"])
        .toml(&rules(&[
            "client; network = [\"127.9.0.0/16\"]; action = \"reject\"",
            "helo; helo = [\"localhost\"]; action = \"reject\"",
            &format!("from; table = \"text:{}\"", table.display()),
            "rcpt; not = { authenticated = true }; to = [\"u@v.test\"]; action = \"tag X-A: b\"",
            "rcpt; from = [\"spam@x.test\"]; action = \"reject 550 5.7.1 spam\"",
            "data; header = [\"X-Flag\"]; action = \"reject\"",
        ]))
        .start();
    // Of addresses of loopback nobody asks the DNS.
    let explain = |more: &[&str]| {
        let given = ["explain", "--client", "127.0.0.7", "--helo", "x.test", "--from", "a@x.test"];
        system.postern_json(&[&given[..], more].concat())
    };
    let steps = explain(&["--rcpt", "u@v.test"]);
    let rules: Vec<_> = steps.iter().filter(|s| s["step"] == "rule").collect();
    let matches: Vec<_> =
        rules.iter().map(|r| (r["rule"].as_u64().unwrap(), r["matches"].as_bool().unwrap())).collect();
    assert_eq!(matches, [(1, false), (2, false), (3, true), (4, true), (5, false), (6, false)]);
    assert_eq!(rules[0]["conditions"][0]["because"], "the client is 127.0.0.7");
    assert_eq!(rules[2]["conditions"][0]["because"], "`x.test` has the value `HOLD`");
    assert_eq!(rules[5]["conditions"][0]["holds"], serde_json::Value::Null);
    assert!(steps.iter().any(|s| s["step"] == "recipient" && s["verdict"] == "it is ours, and exists"));
    let outcome = steps.last().unwrap();
    assert_eq!(outcome["verdict"], "accepted");
    assert_eq!(outcome["effects"], serde_json::json!(["hold", "tag X-A: b"]));

    let verdict =
        |steps: Vec<serde_json::Value>| steps.last().unwrap()["verdict"].as_str().unwrap().to_owned();
    assert!(verdict(explain(&["--rcpt", "nobody@v.test"])).starts_with("550 5.1.1"));
    assert!(verdict(explain(&["--rcpt", "u@far.test"])).starts_with("554 5.7.1"));
    // With a password everything else is the same, but who may relay.
    let steps = explain(&["--rcpt", "u@far.test", "--auth", "u"]);
    assert_eq!(steps.last().unwrap()["effects"], serde_json::json!(["hold"]));
    assert_eq!(verdict(steps), "accepted");

    let given = ["explain", "--client", "127.9.0.1", "--helo", "x", "--from", "<>", "--rcpt", "u@v.test"];
    let output = system.postern(&given);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    let line = std::fs::read_to_string(system.config()).unwrap();
    let line = 1 + line.lines().position(|l| l == "[[rule]]").unwrap();
    assert!(
        text.contains(&format!("client: rule 1 (line {line}) matches: reject 554 5.7.1 Access denied")),
        "{text}"
    );
    assert!(text.contains("    network = 127.9.0.0/16: yes, the client is 127.9.0.1"), "{text}");
    assert!(text.ends_with("outcome: 554 5.7.1 Access denied\n"), "{text}");
    let wrong =
        system.postern(&["explain", "--client", "127.0.0.7", "--helo", "x", "--from", "a", "--rcpt", "u"]);
    assert_eq!(wrong.status.code(), Some(64));
    // Nothing of this left a trace in the queue, or anywhere.
    assert!(system.postern_json(&["queue", "list"]).is_empty());
}

#[test]
fn what_the_dns_says_of_a_client() {
    if !have(&["nsd"]) {
        return;
    }
    let dns =
        Nsd::start("9.2.0.192.bl IN A 127.0.0.2\n9.2.0.192.wl IN A 127.0.0.2\n10.2.0.192.bl IN A 127.0.0.2");
    let system = System::builder()
        .dns(dns.address())
        .toml("[[list]]\nname = \"bl.test\"\nkind = \"deny\"\nweight = 5\n")
        .toml("[[list]]\nname = \"wl.test\"\nkind = \"allow\"\nweight = 3\n")
        .toml(&rules(&[
            "client; score-at-least = 5; action = \"reject 554 5.7.1 listed\"",
            "rcpt; score-at-least = 2; action = \"tag X-Score: some\"",
            "rcpt; name-verified = false; action = \"reject\"",
            "rcpt; name-verified = false; action = \"hold\"",
        ]))
        .start();
    let explain = |client: &str| {
        let given = ["--helo", "x.test", "--from", "a@x.test", "--rcpt", "u@v.test"];
        system.postern_json(&[&["explain", "--client", client][..], &given[..]].concat())
    };
    let last = |steps: &[serde_json::Value]| steps.last().unwrap()["verdict"].as_str().unwrap().to_owned();
    let steps = explain("192.0.2.10");
    assert_eq!((&steps[0]["step"], &steps[0]["score"]), (&"client".into(), &5.into()), "{steps:?}");
    assert_eq!(last(&steps), "554 5.7.1 listed");
    let steps = explain("192.0.2.9");
    assert_eq!(steps[0]["score"], 2);
    assert!(steps.iter().any(|s| s["rule"] == 2 && s["matches"] == true), "{steps:?}");
    // This server knows nothing of in-addr.arpa.
    assert_eq!(steps[0]["name"], serde_json::Value::Null);
    assert_eq!(last(&steps), "554 5.7.1 Access denied");
}

#[test]
fn a_reload_brings_other_rules() {
    let system =
        System::builder().toml(&rules(&["from; from = [\"a@x.test\"]; action = \"reject\""])).start();
    let mut before = system.smtp();
    before.ehlo();
    before.says("MAIL FROM:<a@x.test>", "554 5.7.1");
    let text = std::fs::read_to_string(system.config()).unwrap();
    std::fs::write(system.config(), text.replace("a@x.test", "b@x.test")).unwrap();
    assert!(system.postern(&["reload"]).status.success());
    let mut after = system.smtp();
    after.ehlo();
    after.dialogue(&[("MAIL FROM:<b@x.test>", "554 5.7.1"), ("MAIL FROM:<a@x.test>", "250")]);
    // A session keeps what it was told at its beginning.
    before.says("MAIL FROM:<a@x.test>", "554 5.7.1");
    // The sandbox knows the servers of the start.
    let more = text + &rules(&["rcpt; ask = \"inet:127.0.0.1:10023\""]);
    std::fs::write(system.config(), more).unwrap();
    let refused = system.postern(&["reload"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("inet:127.0.0.1:10023") && said.contains("restart"),
        "{said}"
    );
}
