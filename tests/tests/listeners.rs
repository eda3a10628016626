//! The other services: TLS from the first octet, submission, LMTP.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};

use postern_tests::{Smtp, System, have, message, python};

#[test]
fn tls_from_the_first_octet() {
    if !have(&["openssl", "python3"]) {
        return;
    }
    let system = System::builder().certificate().listen("127.0.0.1:0", "submissions").start();
    let address = system.addresses("submissions")[0];
    let script = "import smtplib, socket, ssl, sys\n\
        c = ssl.create_default_context(cafile=sys.argv[2] + '/chain.pem')\n\
        class S(smtplib.SMTP_SSL):\n\
        \x20   def _get_socket(self, host, port, timeout):\n\
        \x20       return self.context.wrap_socket(socket.create_connection((host, port), timeout), \
        server_hostname='mx.test')\n\
        with S('127.0.0.1', int(sys.argv[1]), context=c) as s:\n\
        \x20   print(s.sock.version())\n\
        \x20   assert s.sendmail('a@x.test', ['u@v.test'], b'Subject: by TLS\\r\\n\\r\\n' + b'x' * 70 + b'\\r\\n') == {}\n\
        \x20   big = b'Subject: big\\r\\n\\r\\n' + (b'y' * 70 + b'\\r\\n') * 20000\n\
        \x20   assert s.sendmail('a@x.test', ['u@v.test'], big) == {}\n";
    let version = python(script, &[&address.port().to_string(), system.directory().to_str().unwrap()]);
    assert_eq!(version.trim(), "TLSv1.3");
    let mails = system.wait_maildir("u@v.test", 2);
    assert!(mails.iter().all(|mail| mail.headers("Received")[0].contains("ESMTPS")), "RFC 3848");
    assert!(mails.iter().any(|mail| mail.bytes.len() > 20_000 * 71));

    // The lowest version that is spoken is 1.2 (RFC 8996).
    for (option, fine) in [("-tls1_2", true), ("-tls1_1", false)] {
        let mut openssl = Command::new("openssl");
        openssl.args(["s_client", "-brief", option, "-cipher", "DEFAULT@SECLEVEL=0", "-connect"]);
        openssl.arg(address.to_string()).stdin(Stdio::null());
        let output = openssl.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(said.contains("CONNECTION ESTABLISHED"), fine, "{option}: {said}");
    }
    // Plain text where TLS is due gets no word of SMTP.
    let plain = std::net::TcpStream::connect(address).unwrap();
    std::io::Write::write_all(&mut &plain, b"EHLO client.test\r\n").unwrap();
    let mut said = Vec::new();
    // An alert or a reset: both will do.
    let _ = std::io::Read::read_to_end(&mut &plain, &mut said);
    assert!(!said.starts_with(b"2"), "{said:?}");
}

#[test]
fn by_lmtp() {
    let system = System::builder().users(&["u@v.test", "w@v.test"]).listen("127.0.0.1:0", "lmtp").start();
    let mut client = Smtp::connect(system.addresses("lmtp")[0]);
    client.dialogue(&[
        ("EHLO client.test", "5"),
        ("LHLO client.test", "250"),
        ("MAIL FROM:<a@x.test>", "250"),
        ("RCPT TO:<u@v.test>", "250"),
        ("RCPT TO:<no@v.test>", "550 5.1.1"),
        ("RCPT TO:<w@v.test>", "250"),
        ("DATA", "354"),
    ]);
    client.bytes(&message("lmtp"));
    client.line(".");
    // RFC 2033 §4.2: a reply for each recipient that was accepted.
    client.expect("250 2.0.0");
    client.expect("250 2.0.0");
    client.quit();
    for to in ["u@v.test", "w@v.test"] {
        let mails = system.wait_maildir(to, 1);
        assert!(mails[0].headers("Received")[0].contains("LMTP"));
    }
}

#[test]
fn several_ports_of_one_kind() {
    let system = System::builder().listen("127.0.0.2:0", "smtp").listen("127.0.0.1:0", "submission").start();
    let all = [system.addresses("smtp"), system.addresses("submission")].concat();
    assert_eq!(all.len(), 3);
    for address in all {
        let id = Smtp::connect(address).send("a@x.test", &["u@v.test"], &message("any port")).unwrap();
        system.finished(&id);
    }
    assert_eq!(system.maildir("u@v.test").len(), 3);
}
