//! The program over a real link: questions in, verdicts out, the file changed under it.

#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mio::{Events, Poll, Token, Waker};
use postern_auth::Auth;
use postern_config::AuthPart;
use postern_daemon::{Host, Program};
use postern_event::{Log, LogKind};
use postern_ipc::smtpd_auth::{Answer, Question, Verdict};
use postern_ipc::supervise::Handle;
use postern_ipc::{Link, Peer, Role, blocking};

const SECRET: &str =
    "$6$abcdefgh$ltjgWl6579NluT/Vi1nwEvcil.G5Nbc4NiXZaNGStk8PSwGfQv72N2CKPPrVACtLtip/cZ/1GM/O6IND4WQhG.";
const PASS_WORD: &str = "$5$abcdefgh$0REkPn1Z4CNNcjMacpXfYSNOtfCErlQR.ejJ2YSRMr4";

struct Rig {
    poll: Poll,
    host: Host,
    program: Auth,
    smtpd: Link<Question, Answer>,
    last: u64,
}

impl Rig {
    fn new(users: &Path) -> Self {
        let poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), Token(1)).unwrap());
        let log = Log::new(File::create("/dev/null").unwrap().into(), LogKind::Text, "auth");
        let me = Peer::only(Role::Auth);
        let mut host = Host::new(me, log, false, poll.registry().try_clone().unwrap(), waker);
        let (ours, theirs) = blocking::pair().unwrap();
        let link = Handle::Link(Peer { role: Role::Smtpd, instance: 0 });
        let config = AuthPart { users: Some(users.to_owned()) };
        let program = Auth::start(&mut host, config, vec![(link, theirs)]).unwrap();
        Self { poll, host, program, smtpd: Link::new(ours), last: 0 }
    }

    fn say(&mut self, user: &str, password: &str) -> u64 {
        self.last += 1;
        let question = Question { id: self.last, user: user.into(), password: password.into() };
        self.smtpd.send(&question).unwrap();
        self.last
    }

    /// Turns the loop until there are as many answers.
    fn hear(&mut self, count: usize) -> Vec<Answer> {
        let mut answers = Vec::new();
        let mut events = Events::with_capacity(16);
        while answers.len() < count {
            self.poll.poll(&mut events, Some(Duration::from_secs(30))).unwrap();
            assert!(!events.is_empty(), "{} of {count} answers", answers.len());
            self.host.tick();
            for event in &events {
                if event.token() != Token(1) {
                    self.program.ready(&mut self.host, event.token(), event);
                }
            }
            let _ = self.program.turn(&mut self.host);
            self.program.flush(&mut self.host);
            while let Some((answer, _)) = self.smtpd.receive().unwrap() {
                answers.push(answer);
            }
        }
        answers
    }

    fn ask(&mut self, user: &str, password: &str) -> Verdict {
        let id = self.say(user, password);
        let answer = self.hear(1)[0].clone();
        assert_eq!(answer.id, id);
        answer.verdict
    }

    /// The configuration is read anew, and with it the file, whatever its time.
    fn reload(&mut self, users: &Path) {
        self.program.reload(&mut self.host, AuthPart { users: Some(users.to_owned()) });
    }
}

#[test]
fn verdicts() {
    let directory = tempfile::tempdir().unwrap();
    let users = directory.path().join("users");
    std::fs::write(&users, format!("ann:{SECRET}\nbob:{PASS_WORD}\n")).unwrap();
    let mut rig = Rig::new(&users);
    for (user, password, verdict) in [
        ("ann", "secret", Verdict::Authenticated),
        ("bob", "pass:word", Verdict::Authenticated),
        ("ann", "pass:word", Verdict::Refused),
        ("ann", "", Verdict::Refused),
        ("nobody", "secret", Verdict::Refused),
        ("", "", Verdict::Refused),
    ] {
        assert_eq!(rig.ask(user, password), verdict, "{user}");
    }
    std::fs::write(&users, format!("carl:{SECRET}\n")).unwrap();
    rig.reload(&users);
    assert_eq!(rig.ask("ann", "secret"), Verdict::Refused);
    assert_eq!(rig.ask("carl", "secret"), Verdict::Authenticated);
    rig.reload(&directory.path().join("missing"));
    assert_eq!(rig.ask("carl", "secret"), Verdict::Unavailable);
    rig.reload(&users);
    assert_eq!(rig.ask("carl", "secret"), Verdict::Authenticated);
}

#[test]
fn too_many_at_once_are_told_to_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let users = directory.path().join("users");
    std::fs::write(&users, format!("ann:{SECRET}\n")).unwrap();
    let mut rig = Rig::new(&users);
    // The link itself takes only so many at once; the rest follow as there is room.
    for _ in 0..400 {
        rig.say("ann", "secret");
    }
    let mut answers = Vec::new();
    while answers.len() < 400 {
        rig.smtpd.flush().unwrap();
        answers.extend(rig.hear(1));
    }
    let count = |verdict| answers.iter().filter(|answer| answer.verdict == verdict).count();
    assert!(count(Verdict::Authenticated) >= 128);
    assert_eq!(count(Verdict::Authenticated) + count(Verdict::Unavailable), 400);
}

#[test]
fn a_successor_hears_nothing_of_its_predecessor() {
    let directory = tempfile::tempdir().unwrap();
    let users = directory.path().join("users");
    std::fs::write(&users, format!("ann:{SECRET}\n")).unwrap();
    let mut rig = Rig::new(&users);
    // Both ask with the same id: the first, whose password is right, is replaced while it is hashed.
    let first = rig.say("ann", "secret");
    let token_turn = |rig: &mut Rig| {
        let mut events = Events::with_capacity(16);
        rig.poll.poll(&mut events, Some(Duration::from_secs(30))).unwrap();
        rig.host.tick();
        for event in &events {
            if event.token() != Token(1) {
                rig.program.ready(&mut rig.host, event.token(), event);
            }
        }
    };
    token_turn(&mut rig);
    let (ours, theirs) = blocking::pair().unwrap();
    rig.smtpd = Link::new(ours);
    rig.program.linked(&mut rig.host, Peer { role: Role::Smtpd, instance: 0 }, theirs);
    rig.last = first - 1;
    assert_eq!(rig.ask("ann", "wrong"), Verdict::Refused);
}
