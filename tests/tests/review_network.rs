//! What a hostile neighbour, caller or long life does to the programs at the network and to master.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr};
use postern_ipc::control::{Reply, Request};
use postern_ipc::{Link, LinkError, blocking};
use postern_tests::{System, have, message, until};

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
    until("no descriptor more than before", Duration::from_secs(5), || {
        let now = counts();
        now.iter().zip(&before).all(|(now, before)| now.1 <= before.1 + 1).then_some(())
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
