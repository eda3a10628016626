//! Policy servers that do what servers do: hang up, answer out of turn, are not there.

#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token, Waker};
use postern_config::PolicyServer;
use postern_daemon::Host;
use postern_event::{Log, LogKind};
use postern_ipc::{Peer, Role};
use postern_verify::delegation::{CONNECTIONS, Delegation, Outcome};

struct Rig {
    poll: Poll,
    host: Host,
    delegation: Delegation<usize>,
    server: PolicyServer,
}

impl Rig {
    fn new(path: &Path) -> Self {
        let poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), Token(1)).unwrap());
        let log = Log::new(std::fs::File::create("/dev/null").unwrap().into(), LogKind::Text, "verify");
        let registry = poll.registry().try_clone().unwrap();
        let mut host = Host::new(Peer::only(Role::Verify), log, false, registry, waker);
        let server = PolicyServer::Unix(path.to_owned());
        let delegation = Delegation::new(&mut host, std::slice::from_ref(&server));
        Self { poll, host, delegation, server }
    }

    fn ask(&mut self, asker: usize) {
        self.host.tick();
        let attributes = [("sender".to_owned(), format!("{asker}@x.test"))];
        self.delegation.ask(&self.host, asker, &self.server, &attributes);
    }

    /// Turns the loop until so many were answered.
    fn answers(&mut self, count: usize) -> BTreeMap<usize, Outcome> {
        let mut answers = BTreeMap::new();
        let late = Instant::now() + Duration::from_secs(120);
        loop {
            answers.extend(self.delegation.take_done());
            if answers.len() >= count {
                return answers;
            }
            assert!(Instant::now() < late, "{answers:?}");
            let patience = self.delegation.deadline().map(|at| at.saturating_duration_since(Instant::now()));
            let mut events = Events::with_capacity(64);
            let patience = patience.map(|patience| patience + Duration::from_millis(1));
            self.poll.poll(&mut events, patience).unwrap();
            self.host.tick();
            for event in &events {
                assert!(self.delegation.ready(&self.host, event.token()));
            }
            self.delegation.pass(&self.host);
        }
    }
}

/// Serves every connection by `serve`, which is given the stream and the connection's number.
fn serve(
    path: &Path,
    serve: impl Fn(&mut BufReader<UnixStream>, usize) + Send + Sync + 'static,
) -> Arc<AtomicUsize> {
    let listener = UnixListener::bind(path).unwrap();
    let (connections, serve) = (Arc::new(AtomicUsize::new(0)), Arc::new(serve));
    let counter = connections.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (n, serve) = (counter.fetch_add(1, Ordering::SeqCst), serve.clone());
            std::thread::spawn(move || serve(&mut BufReader::new(stream), n));
        }
    });
    connections
}

/// The sender of the next request; none at the end.
fn request(reader: &mut impl BufRead) -> Option<String> {
    let mut sender = None;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return None;
        }
        match line.trim_end() {
            "" => return sender,
            line => sender = line.strip_prefix("sender=").map(str::to_owned).or(sender),
        }
    }
}

fn answer(reader: &mut BufReader<UnixStream>, action: &str) {
    // In two pieces: the end of an answer is not the end of a read.
    let text = format!("action={action}\n\n");
    let (first, second) = text.split_at(text.len() - 1);
    reader.get_mut().write_all(first.as_bytes()).unwrap();
    reader.get_mut().write_all(second.as_bytes()).unwrap();
}

#[test]
fn a_server_that_hangs_up_after_an_answer_is_asked_again_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("policy");
    let connections = serve(&path, |reader, _| {
        let sender = request(reader).unwrap_or_default();
        answer(reader, &format!("OK {sender}"));
    });
    let mut rig = Rig::new(&path);
    for n in 0..5 {
        rig.ask(n);
        assert_eq!(rig.answers(1), BTreeMap::from([(n, Ok(format!("OK {n}@x.test")))]));
    }
    assert_eq!(connections.load(Ordering::SeqCst), 5);
    assert!(rig.delegation.is_idle());
}

#[test]
fn each_answer_goes_to_its_asker_however_many_ask() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("policy");
    let connections = serve(&path, |reader, _| {
        while let Some(sender) = request(reader) {
            answer(reader, &sender);
        }
    });
    let mut rig = Rig::new(&path);
    let all = 3 * CONNECTIONS;
    (0..all).for_each(|n| rig.ask(n));
    let answers = rig.answers(all);
    assert!((0..all).all(|n| answers[&n] == Ok(format!("{n}@x.test"))), "{answers:?}");
    assert!(connections.load(Ordering::SeqCst) <= CONNECTIONS);
}

#[test]
fn who_is_not_there_or_talks_nonsense() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("policy");
    let mut rig = Rig::new(&path);
    rig.ask(1);
    let answers = rig.answers(1);
    assert!(answers[&1].as_ref().is_err_and(|why| why.contains("cannot connect")), "{answers:?}");
    // It is there by the second try.
    rig.ask(2);
    serve(&path, |reader, n| {
        while let Some(sender) = request(reader) {
            match (&*sender, n) {
                ("3@x.test", _) => answer(reader, "OK\n\naction=REJECT"),
                ("4@x.test", _) => reader.get_mut().write_all(b"acti").unwrap(),
                _ => answer(reader, "DUNNO"),
            }
            if sender == "4@x.test" {
                return;
            }
        }
    });
    assert_eq!(rig.answers(1)[&2], Ok("DUNNO".into()));
    rig.ask(3);
    rig.ask(4);
    let answers = rig.answers(2);
    assert!(answers.values().all(Result::is_err), "{answers:?}");
    // One who is gone hears nothing, and nobody hears what was meant for it.
    rig.ask(5);
    rig.delegation.forget(|asker| *asker == 5);
    assert!(rig.delegation.is_idle());
    rig.ask(6);
    assert_eq!(rig.answers(1), BTreeMap::from([(6, Ok("DUNNO".into()))]));
    // A server that the configuration does not name.
    let other = PolicyServer::Unix("/nowhere".into());
    rig.delegation.ask(&rig.host, 7, &other, &[]);
    assert!(rig.answers(1)[&7].is_err());
    rig.delegation.replace(&mut rig.host, &[]);
    rig.ask(8);
    assert!(rig.answers(1)[&8].is_err(), "nor one that it does not name any more");
}
