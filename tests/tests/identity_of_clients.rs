//! Who a client is when somebody else says so: haproxy's PROXY protocol, Postfix's XCLIENT and XFORWARD.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use postern_tests::{Address, Nsd, Postfix, Process, Smtp, System, have, have_root, message, python, until};

/// A generous wait.
const PATIENCE: Duration = Duration::from_secs(60);

/// A port for the proxies at 127.0.0.1, beside the usual one.
fn proxied() -> System {
    let listen = |service: &str| {
        format!("[[listen]]\naddress = \"127.0.0.1:0\"\nservice = \"{service}\"\nproxy = [\"127.0.0.1\"]\n")
    };
    System::builder()
        .certificate()
        .set("relay", "networks", "[\"203.0.113.0/24\", \"127.0.0.9\"]")
        .route("sink.test", "discard")
        .toml(&listen("submission"))
        .toml(&listen("submissions"))
        .start()
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Everything up to the end; a reset is one.
fn rest(mut stream: TcpStream) -> String {
    let (mut said, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => said.extend_from_slice(&piece[..length]),
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(e) => panic!("{e}"),
        }
    }
    String::from_utf8_lossy(&said).into_owned()
}

/// What is sent first, and the codes of the replies.
fn say(address: SocketAddr, header: &[u8]) -> Vec<String> {
    let mut stream = connect(address);
    stream.write_all(header).unwrap();
    rest(stream).lines().map(|line| line.chars().take(9).collect()).collect()
}

/// `PROXY`, version 2, TCP over IPv4: 203.0.113.7 at port 4000 to 192.0.2.1 at port 25.
const VERSION_2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xcb\0\x71\x07\xc0\0\x02\x01\x0f\xa0\0\x19";

#[test]
fn a_client_is_who_the_proxy_says() {
    let system = proxied();
    let address = system.addresses("submission")[0];
    // Each of these may relay or may not, by the address that is told: the proxy itself may not.
    let version_1: &[u8] = b"PROXY TCP4 203.0.113.7 192.0.2.1 4000 25\r\n";
    let v6: &[u8] = b"PROXY TCP6 2001:db8::7 2001:db8::1 4000 25\r\n";
    let mapped: &[u8] = b"PROXY TCP6 ::ffff:203.0.113.7 ::1 4000 25\r\n";
    let local: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    for (header, client, relays) in [
        (version_1, "203.0.113.7", true),
        (VERSION_2, "203.0.113.7", true),
        (mapped, "203.0.113.7", true),
        (v6, "2001:db8::7", false),
        (b"PROXY UNKNOWN\r\n", "127.0.0.1", false),
        (local, "127.0.0.1", false),
    ] {
        let mark = system.log.mark();
        let mut stream = BufReader::new(connect(address));
        stream.get_mut().write_all(header).unwrap();
        for (line, expected) in [
            ("", "220"),
            ("EHLO client.test", "250"),
            ("MAIL FROM:<a@x.test>", "250"),
            ("RCPT TO:<b@sink.test>", if relays { "250 2.1.5" } else { "554 5.7.1" }),
            ("QUIT", "221"),
        ] {
            if !line.is_empty() {
                stream.get_mut().write_all(format!("{line}\r\n").as_bytes()).unwrap();
            }
            let last = |line: &String| line.chars().nth(3) == Some(' ');
            let reply = stream.by_ref().lines().map(Result::unwrap).find(last).unwrap();
            assert!(reply.starts_with(expected), "{header:?}: {line}: {reply}");
        }
        let connect = system.log.wait_from(mark, "connect", |e| e["client_address"] == client, PATIENCE);
        assert_eq!(connect["proxy"], "127.0.0.1");
        let session = connect["session"].clone();
        system.log.wait_from(
            mark,
            "disconnect",
            |e| e["session"] == session && e["client_address"] == client,
            PATIENCE,
        );
    }
}

#[test]
fn a_header_in_pieces() {
    let system = proxied();
    let mut stream = connect(system.addresses("submission")[0]);
    for octet in VERSION_2 {
        // One packet each, as far as the kernel lets them go alone.
        stream.write_all(&[*octet]).unwrap();
    }
    let mut greeting = [0; 4];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"220 ");
    system.wait("connect", |e| e["client_address"] == "203.0.113.7");
}

#[test]
fn without_a_header_nobody_is_heard() {
    let system = proxied();
    let address = system.addresses("submission")[0];
    let silent = connect(address);
    (&silent).write_all(b"PROXY TCP4 203.0.113.7").unwrap();
    let long = [b"PROXY UNKNOWN ", vec![b'x'; 200].as_slice(), b"\r\n"].concat();
    for header in [
        &b"EHLO client.test\r\n"[..],
        b"PROXY TCP4 203.0.113.7 192.0.2.1 4000\r\n",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 4000 25\nEHLO client.test\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c",
        &long,
    ] {
        assert_eq!(say(address, header), ["554 5.7.1"], "{header:?}");
    }
    system.wait("reject", |e| e["stage"] == "CONNECT" && e["reply"] == "554 5.7.1 Error: no PROXY header");
    // A check that says nothing is nobody's business.
    drop(connect(address));
    // A stranger may say what he likes.
    let stranger: IpAddr = "127.0.0.9".parse().unwrap();
    let refused = Smtp::connect_from(stranger, address);
    assert!(refused.greeting().is("554 5.7.1"), "{:?}", refused.greeting());
    system.wait("reject", |e| e["client_address"] == "127.0.0.9");
    // Within TLS nothing is said in clear text.
    assert_eq!(say(system.addresses("submissions")[0], b"EHLO client.test\r\n"), [""; 0]);
    // Nor is anybody waited for.
    assert_eq!(rest(silent), "554 5.7.1 Error: no PROXY header in time\r\n");
    // And the usual port understands no header.
    assert!(system.smtp().says("PROXY TCP4 203.0.113.7 192.0.2.1 4000 25", "500").is("500"));
    let connects = system.log.events().into_iter().filter(|e| e["event"] == "connect");
    assert!(connects.into_iter().all(|e| e["client_address"] == "127.0.0.1" && e["proxy"].is_null()));
}

/// Behind a header of version 1: greeted, or not.
fn greeted(address: SocketAddr, client: &str) -> (BufReader<TcpStream>, String) {
    let mut stream = BufReader::new(connect(address));
    let header = format!("PROXY TCP4 {client} 192.0.2.1 4000 25\r\n");
    stream.get_mut().write_all(header.as_bytes()).unwrap();
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    (stream, line)
}

#[test]
fn limits_are_of_the_client_that_is_told() {
    let system = System::builder()
        .set("limits", "sessions", "1")
        .set("limits", "exempt", "[]")
        .set("smtp", "xclient", "[\"127.0.0.1\"]")
        .toml("[[listen]]\naddress = \"127.0.0.1:0\"\nservice = \"submission\"\nproxy = [\"127.0.0.1\"]\n")
        .start();
    let address = system.addresses("submission")[0];
    let (one, said) = greeted(address, "203.0.113.7");
    assert!(said.starts_with("220 "), "{said}");
    assert!(greeted(address, "203.0.113.7").1.starts_with("421 4.7.0"));
    // Another client of the same proxy is not counted with it.
    let (_two, said) = greeted(address, "203.0.113.8");
    assert!(said.starts_with("220 "), "{said}");
    drop(one);
    let again = until("the first is gone", PATIENCE, || {
        let (again, said) = greeted(address, "203.0.113.7");
        said.starts_with("220 ").then_some(again)
    });
    // By XCLIENT likewise: who takes another's place leaves his own.
    let mut client = system.smtp();
    client.ehlo();
    client.says("XCLIENT ADDR=203.0.113.9", "220");
    let (third, said) = greeted(address, "203.0.113.9");
    assert!(said.starts_with("421 4.7.0"), "{said}");
    drop((third, again));
    let mut other = system.smtp();
    other.ehlo();
    other.says("XCLIENT ADDR=203.0.113.9", "421 4.7.0");
    client.ehlo();
    client.quit();
}

#[test]
fn the_name_is_that_of_the_client_that_is_told() {
    if !have(&["nsd"]) {
        return;
    }
    let nsd = Nsd::start_with(
        "far A 203.0.113.7\nliar A 203.0.113.99",
        "7.113.0.203 PTR far.test.\n8.113.0.203 PTR liar.test.",
    );
    let system = System::builder()
        .dns(nsd.address())
        .set("smtp", "xclient", "[\"127.0.0.1\"]")
        .toml("[[listen]]\naddress = \"127.0.0.1:0\"\nservice = \"lmtp\"\nproxy = [\"127.0.0.1\"]\n")
        .start();
    // A name is not waited for: sooner or later a session ends with it.
    let named = |client: &str, name: &str, ask: &dyn Fn()| {
        until(name, PATIENCE, || {
            let mark = system.log.mark();
            ask();
            let end = system.log.wait_from(mark, "disconnect", |e| e["client_address"] == client, PATIENCE);
            (end["client_name"] == name).then_some(())
        });
    };
    let proxied = |client: &'static str| {
        let address = system.addresses("lmtp")[0];
        move || drop(greeted(address, client))
    };
    named("203.0.113.7", "far.test", &proxied("203.0.113.7"));
    let xclient = |text: &'static str| {
        let address = system.address();
        move || {
            let mut client = Smtp::connect(address);
            client.ehlo();
            client.says(text, "220");
            client.quit();
        }
    };
    named("203.0.113.7", "far.test", &xclient("XCLIENT ADDR=203.0.113.7"));
    // What is told of the name stands, even when it is that there is none.
    let mark = system.log.mark();
    xclient("XCLIENT ADDR=203.0.113.7 NAME=[UNAVAILABLE]")();
    let end = system.log.wait_from(mark, "disconnect", |e| e["client_address"] == "203.0.113.7", PATIENCE);
    assert!(end["client_name"].is_null(), "{end}");
    // And who only claims to be liar.test is not.
    for _ in 0..3 {
        let mark = system.log.mark();
        proxied("203.0.113.8")();
        let end =
            system.log.wait_from(mark, "disconnect", |e| e["client_address"] == "203.0.113.8", PATIENCE);
        assert!(end["client_name"].is_null(), "{end}");
    }
}

/// The header and the first octets of the handshake in one packet.
#[test]
fn a_header_and_tls_in_one_packet() {
    if !have(&["openssl", "python3"]) {
        return;
    }
    let system = proxied();
    let script = "import socket, ssl, sys\n\
        c = ssl.create_default_context(cafile=sys.argv[2] + '/chain.pem')\n\
        i, o = ssl.MemoryBIO(), ssl.MemoryBIO()\n\
        t = c.wrap_bio(i, o, server_hostname='mx.test')\n\
        s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n\
        first = b'PROXY TCP4 203.0.113.7 192.0.2.1 4000 465\\r\\n'\n\
        while True:\n\
        \x20   try:\n\
        \x20       said = t.read(4) if t.version() and t.cipher() else t.do_handshake() or t.read(4)\n\
        \x20       break\n\
        \x20   except ssl.SSLWantReadError:\n\
        \x20       s.sendall(first + o.read())\n\
        \x20       first = b''\n\
        \x20       i.write(s.recv(65536))\n\
        print(said.decode())\n";
    let address = system.addresses("submissions")[0];
    let said = python(script, &[&address.port().to_string(), system.directory().to_str().unwrap()]);
    assert_eq!(said.trim_end_matches('\n'), "220 ");
    system.wait("connect", |e| e["client_address"] == "203.0.113.7");
}

/// haproxy before three ports: version 1, version 2 with a checksum, and version 2 before TLS.
struct Haproxy {
    _process: Process,
    _directory: tempfile::TempDir,
    address: Address,
}

impl Haproxy {
    fn start(clear: SocketAddr, tls: SocketAddr) -> Self {
        let (directory, address) = (tempfile::tempdir().unwrap(), Address::claim());
        let mut text =
            "defaults\n mode tcp\n timeout connect 60s\n timeout client 60s\n timeout server 60s\n\
                        global\n maxconn 100\n nbthread 1\n"
                .to_owned();
        for (port, server) in [
            (2501, format!("{clear} send-proxy")),
            (2502, format!("{clear} send-proxy-v2 proxy-v2-options crc32c,unique-id")),
            (2503, format!("{tls} send-proxy-v2")),
        ] {
            let bind = address.port(port);
            text += &format!("listen p{port}\n bind {bind}\n server postern {server}\n");
        }
        // Its own health checks: LOCAL, and a dialogue that is one.
        text += &format!(
            "backend checked\n option smtpchk EHLO check.test\n server postern {clear} send-proxy-v2 check \
             check-send-proxy inter 1s\n"
        );
        let file = directory.path().join("haproxy.cfg");
        std::fs::write(&file, text).unwrap();
        let process = Process::start(Command::new("/usr/sbin/haproxy").args(["-db", "-q", "-f"]).arg(&file));
        for port in [2501, 2502, 2503] {
            until("haproxy listens", PATIENCE, || TcpStream::connect(address.port(port)).ok());
        }
        Self { _process: process, _directory: directory, address }
    }
}

#[test]
fn by_way_of_haproxy() {
    if !have(&["haproxy", "openssl"]) {
        return;
    }
    let system = proxied();
    let haproxy = Haproxy::start(system.addresses("submission")[0], system.addresses("submissions")[0]);
    let client: IpAddr = "127.0.0.9".parse().unwrap();
    for port in [2501, 2502] {
        let mut smtp = Smtp::connect_from(client, haproxy.address.port(port));
        let id = smtp.send("a@x.test", &["u@v.test"], &message("by proxy")).unwrap();
        let accepted = system.wait("accepted", |e| e["id"] == id);
        assert_eq!(accepted["client_address"], "127.0.0.9");
        // Who may relay is decided for the client, not for its proxy.
        smtp.dialogue(&[("MAIL FROM:<a@x.test>", "250"), ("RCPT TO:<b@sink.test>", "250")]);
        smtp.quit();
        system.finished(&id);
    }
    let mails = system.wait_maildir("u@v.test", 2);
    assert!(mails.iter().all(|mail| mail.headers("Received")[0].contains("[127.0.0.9]")));
    let mut other = Smtp::connect(haproxy.address.port(2501));
    other.ehlo();
    other.dialogue(&[("MAIL FROM:<a@x.test>", "250"), ("RCPT TO:<b@sink.test>", "554 5.7.1")]);
    // TLS through haproxy: the header is in the clear, before the handshake.
    let mark = system.log.mark();
    let mut openssl = Command::new("openssl");
    openssl.args(["s_client", "-brief", "-connect"]).arg(haproxy.address.port(2503).to_string());
    let output = openssl.stdin(std::process::Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("CONNECTION ESTABLISHED"), "{said}");
    system.log.wait_from(mark, "connect", |e| e["client_address"] == "127.0.0.1", PATIENCE);
    // Its checks come from itself, and end well: `quit`.
    system.wait("disconnect", |e| e["why"] == "quit" && e["commands"] == 2);
}

#[test]
fn proxied_by_swaks() {
    if !have(&["swaks"]) {
        return;
    }
    let system = proxied();
    for (version, family) in [("1", "TCP4"), ("2", "AF_INET")] {
        for (source, fine) in [("203.0.113.7", true), ("192.0.2.7", false)] {
            let mut swaks = Command::new("swaks");
            swaks.args(["--server", &system.addresses("submission")[0].to_string(), "--helo", "client.test"]);
            swaks.args(["--from", "a@x.test", "--to", "b@sink.test", "--proxy-version", version]);
            swaks.args(["--proxy-family", family, "--proxy-source", source, "--proxy-source-port", "4000"]);
            swaks.args(["--proxy-dest", "192.0.2.1", "--proxy-dest-port", "25"]);
            if version == "2" {
                swaks.args(["--proxy-protocol", "STREAM", "--proxy-command", "PROXY"]);
            }
            let output = swaks.output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(output.status.success(), fine, "{said} {}", String::from_utf8_lossy(&output.stderr));
        }
    }
    let told = |e: &&serde_json::Value| e["event"] == "accepted" && e["client_address"] == "203.0.113.7";
    assert_eq!(system.log.events().iter().filter(told).count(), 2);
}

/// 127.0.0.1 may say XCLIENT and XFORWARD; 203.0.113.0/24 may relay.
fn trusting() -> System {
    System::builder()
        .set("smtp", "xclient", "[\"127.0.0.1\"]")
        .set("smtp", "xforward", "[\"127.0.0.1\"]")
        .set("relay", "networks", "[\"203.0.113.0/24\"]")
        .route("sink.test", "discard")
        .start()
}

fn relays(client: &mut Smtp, expected: &str) {
    client.ehlo();
    client.dialogue(&[("MAIL FROM:<a@x.test>", "250"), ("RCPT TO:<b@sink.test>", expected), ("RSET", "250")]);
}

#[test]
fn xclient_makes_another_client_of_the_session() {
    let system = trusting();
    let mut client = system.smtp();
    let offered = client.ehlo();
    assert!(offered.lines.contains(&"XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT".to_owned()));
    relays(&mut client, "554 5.7.1");
    client.says("XCLIENT NAME=good.example ADDR=203.0.113.7 PORT=4000", "220 mx.test");
    // As after the first greeting, nothing of before counts.
    client.says("MAIL FROM:<a@x.test>", "503");
    relays(&mut client, "250");
    let id = client.send("a@x.test", &["u@v.test"], &message("xclient")).unwrap();
    let accepted = system.wait("accepted", |e| e["id"] == id);
    assert_eq!(
        (&accepted["client_address"], &accepted["client_name"]),
        (&"203.0.113.7".into(), &"good.example".into())
    );
    let mails = system.wait_maildir("u@v.test", 1);
    assert!(mails[0].headers("Received")[0].contains("(good.example [203.0.113.7])"));
    let connect = system.wait("connect", |e| e["client_address"] == "203.0.113.7");
    assert_eq!(connect["proxy"], "127.0.0.1");
    // Whoever may say it once may say it again; what it cannot be is refused, and nothing changes.
    client.dialogue(&[("MAIL FROM:<a@x.test>", "250"), ("XCLIENT ADDR=192.0.2.1", "503"), ("RSET", "250")]);
    for text in ["XCLIENT", "XCLIENT ADDR=host", "XCLIENT REVERSE=x", "XCLIENT NAME=a..b", "XCLIENT ADDR"] {
        client.says(text, "501 5.5.4");
    }
    client.dialogue(&[("MAIL FROM:<a@x.test>", "250"), ("RCPT TO:<b@sink.test>", "250"), ("RSET", "250")]);
    client.says("XCLIENT ADDR=[UNAVAILABLE] NAME=[UNAVAILABLE]", "220");
    relays(&mut client, "554 5.7.1");
    client.says("XCLIENT ADDR=IPV6:2001:db8::7 LOGIN=ann", "220");
    relays(&mut client, "250");
    client.says("xclient login=[unavailable]", "220");
    relays(&mut client, "554 5.7.1");
    client.quit();
    // A batch: what follows waits for the new greeting and is the new client's.
    let mut client = system.smtp();
    client.bytes(
        b"EHLO a\r\nXCLIENT ADDR=203.0.113.8\r\nEHLO b\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@sink.test>\r\n",
    );
    for expected in ["250", "220", "250", "250", "250 2.1.5"] {
        client.expect(expected);
    }
    // Nobody else is offered it, or heard.
    let mut stranger = Smtp::connect_from("127.0.0.9".parse().unwrap(), system.address());
    assert!(!stranger.ehlo().lines.iter().any(|line| line.starts_with('X')));
    stranger.says("XCLIENT ADDR=203.0.113.7", "502 5.5.1");
    stranger.says("XFORWARD ADDR=203.0.113.7", "502 5.5.1");
    relays(&mut stranger, "554 5.7.1");
}

#[test]
fn xclient_by_swaks() {
    if !have(&["swaks"]) {
        return;
    }
    let system = trusting();
    for (address, fine) in [("203.0.113.7", true), ("192.0.2.7", false)] {
        let mut swaks = Command::new("swaks");
        swaks.args(["--server", &system.address().to_string(), "--from", "a@x.test", "--to", "b@sink.test"]);
        swaks.args(["--xclient-addr", address, "--xclient-name", "some.example", "--helo", "client.test"]);
        let output = swaks.output().unwrap();
        assert_eq!(output.status.success(), fine, "{}", String::from_utf8_lossy(&output.stdout));
    }
    let accepted = system.wait("accepted", |e| e["client_name"] == "some.example");
    assert_eq!(accepted["client_address"], "203.0.113.7");
}

#[test]
fn xforward_is_for_the_record_of_one_message() {
    let system = trusting();
    let mut client = system.smtp();
    let offered = client.ehlo();
    assert!(offered.lines.contains(&"XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE".to_owned()));
    let mut send = |before: &[(&str, &str)]| {
        client.dialogue(before);
        client.dialogue(&[("MAIL FROM:<a@x.test>", "250"), ("RCPT TO:<u@v.test>", "250"), ("DATA", "354")]);
        client.bytes(&message("forwarded"));
        let id = client.says(".", "250").queue_id().unwrap();
        system.wait("accepted", |e| e["id"] == id)
    };
    let accepted = send(&[
        ("XFORWARD NAME=far.example ADDR=203.0.113.7 PORT=4000 PROTO=ESMTP", "250"),
        ("XFORWARD HELO=far+28 IDENT=4QxYz SOURCE=REMOTE", "250"),
    ]);
    assert_eq!(accepted["orig_client"], "far.example[203.0.113.7]");
    assert_eq!((&accepted["orig_helo"], &accepted["orig_queue_id"]), (&"far?".into(), &"4QxYz".into()));
    assert_eq!(accepted["client_address"], "127.0.0.1");
    // The next message is another.
    assert!(send(&[])["orig_client"].is_null());
    // So is the one behind a transaction that came to nothing.
    let reset = [("XFORWARD ADDR=203.0.113.7", "250"), ("MAIL FROM:<a@x.test>", "250"), ("RSET", "250")];
    assert!(send(&reset)["orig_client"].is_null());
    assert_eq!(send(&[("XFORWARD ADDR=203.0.113.7", "250")])["orig_client"], "unknown[203.0.113.7]");
    // An initial one begins with nothing.
    assert!(send(&[("XFORWARD IDENT=5", "250")])["orig_client"].is_null());
    // It gives no rights, has its place, and its form.
    client.says("XFORWARD ADDR=203.0.113.7", "250");
    client.dialogue(&[("MAIL FROM:<a@x.test>", "250"), ("RCPT TO:<b@sink.test>", "554 5.7.1")]);
    client.dialogue(&[("XFORWARD HELO=x", "503"), ("RSET", "250"), ("XFORWARD LOGIN=ann", "501")]);
    let mails = system.wait_maildir("u@v.test", 5);
    assert!(mails.iter().all(|mail| mail.headers("Received")[0].contains("[127.0.0.1]")));
}

#[test]
fn xforward_by_postfix() {
    if !have(&["postfix"]) || !have_root() {
        return;
    }
    let system = System::builder()
        .hostname("second.test")
        .virtual_domain("w.test")
        .set("smtp", "xforward", "[\"127.0.0.1\"]")
        .start();
    let postfix = Postfix::start_with(
        "normalize",
        false,
        &format!(
            "mynetworks = 127.0.0.0/8\nsmtpd_relay_restrictions = permit_mynetworks, reject\n\
             relayhost = [127.0.0.1]:{}\nsmtp_send_xforward_command = yes\n",
            system.address().port()
        ),
    );
    let mut client = Smtp::connect_from("127.0.0.9".parse().unwrap(), postfix.address());
    client.send("a@x.test", &["u@w.test"], &message("by way of Postfix")).unwrap();
    let accepted = system.wait("accepted", |_| true);
    assert_eq!(accepted["orig_client_address"], "127.0.0.9", "{accepted} {}", postfix.log());
    assert_eq!((&accepted["orig_helo"], &accepted["orig_proto"]), (&"client.test".into(), &"ESMTP".into()));
    assert!(postfix.log().contains(accepted["orig_queue_id"].as_str().unwrap()));
    system.wait_maildir("u@w.test", 1);
}
