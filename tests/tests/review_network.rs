//! What a hostile neighbour, caller or long life does to the programs at the network and to master.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr};
use postern_ipc::control::{Reply, Request};
use postern_ipc::{Link, LinkError, blocking};
use postern_tests::{Answer, Sink, System, have, message, until};

/// The common name of the certificate that a TLS client is shown; none when there is no handshake.
fn shown(system: &System) -> Option<String> {
    let mut openssl = Command::new("openssl");
    let address = system.addresses("submissions")[0];
    openssl.args(["s_client", "-connect", &address.to_string()]).stdin(Stdio::null());
    let output = openssl.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let subject = said.lines().find_map(|line| line.strip_prefix("subject="))?;
    said.contains("Verification").then(|| subject.replace(' ', "").replace("CN=", ""))
}

fn renew(system: &System, name: &str) {
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "9", "-subj"]);
    openssl.arg(format!("/CN={name}")).args(["-keyout", "key.new", "-out", "chain.new"]);
    assert!(openssl.current_dir(system.directory()).output().unwrap().status.success());
    for file in ["key", "chain"] {
        let (new, old) = (format!("{file}.new"), format!("{file}.pem"));
        std::fs::rename(system.directory().join(new), system.directory().join(old)).unwrap();
    }
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

fn call(system: &System) -> Link<Request, Reply> {
    let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
    let socket = nix::sys::socket::socket(family, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let address = UnixAddr::new(&system.runtime().join("control")).unwrap();
    nix::sys::socket::connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &address).unwrap();
    Link::new(socket)
}

#[test]
fn keys_started_again_has_its_key() {
    if !have(&["openssl"]) {
        return;
    }
    let system = System::builder().certificate().listen("127.0.0.1:0", "submissions").start();
    assert_eq!(shown(&system).as_deref(), Some("mx.test"));
    system.kill_program("keys");
    until("TLS again", Duration::from_secs(10), || shown(&system));
}

#[test]
fn a_renewed_certificate_is_taken_by_a_reload() {
    if !have(&["openssl"]) {
        return;
    }
    let system = System::builder().certificate().listen("127.0.0.1:0", "submissions").start();
    // Every worker has the old one.
    for _ in 0..20 {
        assert_eq!(shown(&system).as_deref(), Some("mx.test"));
    }
    renew(&system, "renewed.test");
    assert!(system.postern(&["reload"]).status.success());
    for _ in 0..20 {
        until("the renewed certificate", Duration::from_secs(5), || {
            shown(&system).filter(|name| name == "renewed.test")
        });
    }
    // A key that is another certificate's: refused, and the one before stays, also over a death.
    let chain = std::fs::read(system.directory().join("chain.pem")).unwrap();
    renew(&system, "third.test");
    let third = std::fs::read(system.directory().join("chain.pem")).unwrap();
    std::fs::remove_file(system.directory().join("chain.pem")).unwrap();
    std::fs::write(system.directory().join("chain.pem"), chain).unwrap();
    let refused = system.postern(&["reload"]);
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("keys: [tls] the private key does not belong"), "{said}");
    assert_eq!(shown(&system).as_deref(), Some("renewed.test"));
    system.kill_program("keys");
    until("TLS again", Duration::from_secs(10), || shown(&system).filter(|name| name == "renewed.test"));
    std::fs::write(system.directory().join("chain.pem"), third).unwrap();
    assert!(system.postern(&["reload"]).status.success());
    until("the third", Duration::from_secs(5), || shown(&system).filter(|name| name == "third.test"));
}

#[test]
fn what_cannot_start_does_not_stop_a_reload() {
    if !have(&["openssl"]) {
        return;
    }
    let system = System::builder().certificate().listen("127.0.0.1:0", "submissions").start();
    // The file itself is spoilt, not replaced: keys dies again and again.
    let path = system.directory().join("chain.pem");
    let chain = std::fs::read(&path).unwrap();
    std::fs::write(&path, "spoilt").unwrap();
    let pid = system.pids()["keys"];
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL)
        .unwrap();
    system.wait("program-died", |e| e["name"] == "keys" && e["restart_in_ms"].as_u64() >= Some(3000));
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, chain).unwrap();
    let output = system.postern(&["reload"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    until("TLS again", Duration::from_secs(20), || shown(&system));
}

#[test]
fn a_hundred_reloads_leave_nothing_behind() {
    let system = System::builder().certificate().listen("127.0.0.1:0", "submissions").start();
    let mut pids = system.pids();
    pids.insert("master".into(), system.master());
    let counts = || pids.iter().map(|(name, pid)| (name.clone(), descriptors(*pid))).collect::<Vec<_>>();
    for _ in 0..5 {
        assert!(system.postern(&["reload"]).status.success());
    }
    let before = counts();
    for _ in 0..95 {
        assert!(system.postern(&["reload"]).status.success());
    }
    // What one of them left behind would be there 95 times; files for the spool's next messages are made meanwhile, up
    // to sixteen for each who writes.
    until("hardly a descriptor more than before", Duration::from_secs(5), || {
        let now = counts();
        now.iter().zip(&before).all(|(now, before)| now.1 <= before.1 + 20).then_some(())
    });
    assert_eq!(pids.len(), system.pids().len() + 1);
    let id = system.smtp().send("a@x.test", &["u@v.test"], &message("after")).unwrap();
    system.finished(&id);
}

#[test]
fn callers_who_say_nothing_are_few() {
    let system = System::start();
    let mut callers: Vec<_> = (0..300).map(|_| call(&system)).collect();
    assert!(!system.postern_json(&["status"]).is_empty());
    assert!(descriptors(system.master()) < 200);
    let first = blocking::receive(&mut callers[0], Some(Duration::from_secs(5)));
    assert!(matches!(first, Err(LinkError::Closed)), "the oldest is sent away: {first:?}");
}

#[test]
fn one_request_a_connection() {
    let system = System::start();
    let mut caller = call(&system);
    let frame = postern_ipc::encode(&Request::Status).unwrap();
    let mut said = 0;
    // Until it is closed: whoever asks without end is not served without end.
    until("a caller without end is sent away", Duration::from_secs(10), || {
        let socket = std::os::fd::AsRawFd::as_raw_fd(&caller);
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        match nix::sys::socket::send(socket, &frame, flags) {
            Ok(_) => said += 1,
            Err(nix::errno::Errno::EPIPE | nix::errno::Errno::ECONNRESET) => return Some(()),
            Err(_) => {}
        }
        // Its answers are never read.
        None
    });
    drop(caller.receive());
    assert!(!system.postern_json(&["status"]).is_empty());
    assert!(std::fs::metadata(system.runtime().join("control")).unwrap().mode() & 0o777 == 0o666);
}

#[test]
fn many_listeners() {
    let mut builder = System::builder();
    for n in 2..62 {
        builder = builder.listen(&format!("127.0.0.{n}:0"), "smtp");
    }
    let system = builder.start();
    assert_eq!(system.addresses("smtp").len(), 61);
}

#[test]
fn the_interrupt_key_stops_the_desk_in_order() {
    let system = System::start();
    // It goes to the process group that has the terminal: master's, and to no other program.
    let group = |pid: u32| nix::unistd::getpgid(Some(nix::unistd::Pid::from_raw(pid as i32))).unwrap();
    let masters = group(system.master());
    for (program, pid) in system.pids() {
        assert_ne!(group(pid), masters, "{program}");
    }
    let mut client = system.smtp();
    client.ehlo();
    let master = nix::unistd::Pid::from_raw(system.master() as i32);
    nix::sys::signal::kill(master, nix::sys::signal::Signal::SIGINT).unwrap();
    client.expect("421 4.3.2");
}

#[test]
fn who_is_silent_within_tls_is_sent_away() {
    if !have(&["openssl"]) {
        return;
    }
    let system = System::builder()
        .certificate()
        .listen("127.0.0.1:0", "submissions")
        .set("smtp", "command-timeout", "\"1 s\"")
        .start();
    // Nothing at all, a record that promises more, and half of a hello.
    for begin in [&b""[..], b"\x16\x03\x01\x02\x00", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03aaaa"] {
        let mut client = TcpStream::connect(system.addresses("submissions")[0]).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        client.write_all(begin).unwrap();
        let mut said = Vec::new();
        let end = client.read_to_end(&mut said);
        assert!(!matches!(&end, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock), "{begin:?}: {end:?}");
    }
    assert_eq!(shown(&system).as_deref(), Some("mx.test"));
}

#[test]
fn who_does_not_read_is_not_heard_for_ever() {
    let system = System::builder().set("smtp", "command-timeout", "\"1 s\"").start();
    let mut client = TcpStream::connect(system.address()).unwrap();
    client.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    let noops = b"NOOP\r\n".repeat(10_000);
    // Until the replies, which nobody reads, have filled every buffer on the way, and the commands theirs.
    let stopped = (0..10_000).any(|_| client.write_all(&noops).is_err());
    assert!(stopped, "commands are taken without end");
    system.wait("disconnect", |_| true);
    system.smtp().quit();
}

#[test]
fn silent_servers_cost_a_reply_s_time_at_every_stage() {
    for stage in ["CONNECT", "EHLO", "MAIL", "RCPT", "DATA"] {
        let sink = Sink::start();
        // Silent from then on: who answers the next of a pipelined batch alone is out of step, not silent.
        let fell_silent = std::sync::atomic::AtomicBool::new(false);
        sink.behave(move |command| {
            let order = std::sync::atomic::Ordering::SeqCst;
            match fell_silent.fetch_or(command.starts_with(stage), order) || command.starts_with(stage) {
                true => Answer::Silence,
                false => Answer::Usual,
            }
        });
        let system = System::builder()
            .relay()
            .fast_retries()
            .set("delivery", "reply-timeout", "\"1 s\"")
            .route("sink.test", &sink.via())
            .start();
        let id = system.smtp().send("a@x.test", &["b@sink.test"], &message(stage)).unwrap();
        let delivery = system.attempted(&id, "deferred");
        assert!(delivery.to_string().contains("timed out"), "{stage}: {delivery}");
        sink.behave_well();
        system.finished(&id);
        assert_eq!(sink.taken().len(), 1, "{stage}");
    }
}

#[test]
fn servers_that_talk_without_end_or_sense_are_left() {
    let lines = "250-".to_owned() + &"x".repeat(1000) + "\r\n";
    for nonsense in [
        lines.repeat(5000),
        "x".repeat(1 << 20),
        "250 ok\r\n".repeat(100_000),
        "250 a\rb\r\n".into(),
        "250-a\r\n550 b\r\n".into(),
        "\0\0\0\r\n".into(),
        "99 x\r\n".into(),
    ] {
        let sink = Sink::start();
        let said = nonsense.clone();
        sink.behave(move |command| match command.starts_with("MAIL") {
            true => Answer::Say(said.clone()),
            false => Answer::Usual,
        });
        let system = System::builder().relay().fast_retries().route("sink.test", &sink.via()).start();
        let id = system.smtp().send("a@x.test", &["b@sink.test"], &message("nonsense")).unwrap();
        let beginning: String = nonsense.chars().take(20).collect();
        let delivery = system.wait("delivery", |e| e["id"] == *id);
        assert_eq!(delivery["status"], "deferred", "{beginning:?}: {delivery}");
        assert!(delivery.to_string().len() < 4000);
        sink.behave_well();
        system.finished(&id);
        assert_eq!(sink.taken().len(), 1, "{beginning:?}");
    }
}
