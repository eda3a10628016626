//! Master: what dies is started again, a reload is taken by all or by none, a stop is clean.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use postern_tests::{Answer, Sink, Smtp, System, message, until};

#[test]
fn every_program_is_started_again_and_wired_anew() {
    let sink = Sink::start();
    let system = System::builder().relay().fast_retries().route("sink.test", &sink.via()).start();
    let pids = system.pids();
    for (n, program) in pids.keys().enumerate() {
        system.kill_program(program);
        // A new client after each death: mail goes all the ways again.
        let to = ["u@v.test", "b@sink.test"];
        let id = until("a message is taken", Duration::from_secs(20), || {
            let mut client = Smtp::try_connect(system.address()).ok()?;
            client.try_send("a@x.test", &to, &message(&format!("after-{program}"))).ok()?.ok()
        });
        system.finished(&id);
        assert!(system.maildir("u@v.test").len() > n);
    }
    let died: Vec<_> = system.log.events().into_iter().filter(|e| e["event"] == "program-died").collect();
    assert_eq!(died.len(), pids.len(), "nothing else died: {died:?}");
    let status = system.postern_json(&["status"]);
    assert!(status.iter().all(|p| p["restarts"] == 1 || p["program"] == "master"), "{status:?}");
}

#[test]
fn who_dies_again_and_again_waits_longer() {
    let system = System::start();
    for _ in 0..4 {
        system.kill_program("auth");
    }
    let events = system.log.events();
    let waits: Vec<_> = events
        .iter()
        .filter(|e| e["event"] == "program-died" && e["name"] == "auth")
        .map(|e| e["restart_in_ms"].as_u64().unwrap())
        .collect();
    assert_eq!(waits.len(), 4);
    assert!(waits.windows(2).all(|two| two[0] < two[1]), "{waits:?}");
}

#[test]
fn when_master_dies_all_end_and_the_next_start_goes_on() {
    let mut system = System::start();
    let id = system.smtp().send("a@x.test", &["u@v.test"], &message("before")).unwrap();
    let pids = system.pids();
    // kill_all kills master first; that the others end by themselves is what is waited for here.
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(system.master() as i32),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    until("every program ends with master", Duration::from_secs(10), || {
        let alive = |pid: &u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
        };
        (!pids.values().any(alive)).then_some(())
    });
    system.kill_all();
    system.start_again();
    system.finished(&id);
    // The mailbox may have had it when everything died, and the queue not yet the result: then it comes
    // twice. That is what the promise allows for the last second, and no more.
    let copies = system.maildir("u@v.test").len();
    assert!((1..=2).contains(&copies), "{copies} copies");
}

#[test]
fn a_reload_is_taken_or_refused() {
    let system = System::builder().users(&["u@v.test"]).start();
    let text = std::fs::read_to_string(system.config()).unwrap();
    let mut client = system.smtp();
    client.ehlo();
    client.dialogue(&[("MAIL FROM:<a@x.test>", "250"), ("RCPT TO:<w@v.test>", "550 5.1.1")]);

    std::fs::write(system.config(), text.replace("\"u@v.test\"", "\"u@v.test\", \"w@v.test\"")).unwrap();
    assert!(system.postern(&["reload"]).status.success());
    system.wait("reloaded", |e| e["outcome"] == "taken");
    // Also for the session that was open, and no program was restarted for it.
    client.says("RCPT TO:<w@v.test>", "250");
    assert!(!system.log.events().iter().any(|e| e["event"] == "program-died"));

    std::fs::write(system.config(), text.replace("hostname", "hostnmae")).unwrap();
    let output = system.postern(&["queue", "list"]);
    assert_eq!(output.status.code(), Some(78), "the command reads the configuration as well");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(system.master() as i32),
        nix::sys::signal::Signal::SIGHUP,
    )
    .unwrap();
    let refused = system.wait("reloaded", |e| e["outcome"] == "refused");
    assert!(refused["why"].as_str().unwrap().contains("hostnmae"), "{refused}");
    client.says("RCPT TO:<u@v.test>", "250");
}

#[test]
fn at_sigterm_sessions_hear_421() {
    let mut system = System::start();
    let (mut idle, mut busy) = (system.smtp(), system.smtp());
    idle.ehlo();
    busy.ehlo();
    busy.dialogue(&[("MAIL FROM:<a@x.test>", "250"), ("RCPT TO:<u@v.test>", "250"), ("DATA", "354")]);
    busy.bytes(&message("under way"));
    let begin = Instant::now();
    system.begin_to_stop();
    idle.expect("421 4.3.2");
    idle.closed();
    // One in the middle of its content is not waited for without end.
    system.stop();
    assert!(begin.elapsed() < Duration::from_secs(35));
    system.wait("stopped", |_| true);
    assert!(Smtp::try_connect(system.address()).is_err());
}

#[test]
fn a_delivery_under_way_at_sigterm_is_finished_or_comes_again() {
    let sink = Sink::start();
    sink.behave(|command| if command == "." { Answer::Silence } else { Answer::Usual });
    let mut system = System::builder().relay().fast_retries().route("sink.test", &sink.via()).start();
    let id = system.smtp().send("a@x.test", &["b@sink.test"], &message("hangs")).unwrap();
    sink.wait_command(".");
    system.stop();
    sink.behave_well();
    system.start_again();
    system.finished(&id);
    assert_eq!(sink.taken().len(), 1);
}

#[test]
fn postern_stop_and_start() {
    let mut system = System::start();
    assert!(system.postern(&["stop"]).status.success());
    system.stop();
    let output = system.postern(&["status"]);
    assert_eq!(output.status.code(), Some(69), "{}", String::from_utf8_lossy(&output.stderr));
    let output = system.postern(&["start"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let status = system.postern_json(&["status"]);
    assert!(status.len() > 10 && status.iter().all(|program| program["pid"].is_u64()), "{status:?}");
    assert!(system.postern(&["stop"]).status.success());
    assert_eq!(system.postern(&["status"]).status.code(), Some(69));
}
