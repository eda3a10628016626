//! Senders under fire, and the list of what they were promised.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use postern_spool::Found;

use crate::message;
use crate::process::until;
use crate::smtp::Smtp;
use crate::system::System;

/// What was accepted, noted by the senders the moment that they read the 250.
#[derive(Debug, Default)]
pub struct Ledger {
    accepted: Mutex<Vec<String>>,
    grown: Condvar,
    next: AtomicUsize,
    ended: AtomicBool,
}

impl Ledger {
    /// Notes that somebody promised to deliver the message of that subject.
    pub fn note(&self, subject: String) {
        self.lock().push(subject);
        self.grown.notify_all();
    }

    /// Waits until so many messages were accepted. False when they were not in that time.
    pub fn reaches(&self, count: usize, patience: Duration) -> bool {
        let few = |accepted: &mut Vec<String>| accepted.len() < count;
        let waited = self.grown.wait_timeout_while(self.lock(), patience, few);
        waited.unwrap_or_else(PoisonError::into_inner).0.len() >= count
    }

    /// How many messages were accepted so far.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// The subjects of all that was accepted so far.
    pub fn accepted(&self) -> Vec<String> {
        self.lock().clone()
    }

    /// A number that no other message has.
    pub fn number(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Senders end after the message that they are at.
    pub fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }

    /// [`Ledger::end`] was called.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Sends until the end. A message for which no 250 was heard is forgotten: it may come or not. The server
    /// may go away at any moment and come back. When `most` are accepted it is the end too.
    pub fn send(&self, server: SocketAddr, from: &str, to: &[&str], most: usize) {
        let mut client: Option<Smtp> = None;
        while !self.has_ended() && self.count() < most {
            let Some(smtp) = &mut client else {
                client = Smtp::try_connect(server).ok().filter(|smtp| smtp.greeting().code == 220);
                if client.is_none() {
                    std::thread::sleep(Duration::from_millis(5));
                }
                continue;
            };
            let n = self.number();
            let subject = format!("message-{n}");
            match smtp.try_send(from, &[to[n % to.len()]], &message(&subject)) {
                Ok(Ok(_)) => self.note(subject),
                Ok(Err(reply)) => assert!((400..500).contains(&reply.code), "{reply}"),
                Err(_) => client = None,
            }
        }
    }

    /// Everything accepted is among what arrived, whole. How many copies there are too many.
    pub fn check(&self, arrived: impl IntoIterator<Item = Vec<u8>>) -> usize {
        let mut copies: BTreeMap<String, usize> = BTreeMap::new();
        for content in arrived {
            let text = String::from_utf8(content).unwrap();
            let subject = text.lines().find_map(|line| line.strip_prefix("Subject: "));
            let subject = subject.unwrap_or_else(|| panic!("not one of ours: {text:?}")).to_owned();
            assert!(text.trim_end().ends_with(&format!("This is {subject}.")), "a whole message: {text:?}");
            *copies.entry(subject).or_default() += 1;
        }
        let accepted = self.accepted();
        let lost: Vec<_> = accepted.iter().filter(|subject| !copies.contains_key(*subject)).collect();
        assert!(lost.is_empty(), "{} of {} accepted are lost: {lost:?}", lost.len(), accepted.len());
        copies.values().map(|count| count - 1).sum()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until all that was accepted has left the queue. What a writer left unfinished in `tmp/` was promised
/// to nobody and lies there for a day.
pub fn settled(system: &System, patience: Duration) {
    let promised = |directory: &str| {
        let opened = File::open(system.spool_path().join(directory)).unwrap();
        // What is gone meanwhile was moved on.
        let unfinished =
            |name: &String| !matches!(postern_spool::classify(opened.as_fd(), name), Ok(Found::Unfinished));
        system.spool(directory).iter().filter(|name| unfinished(name)).count()
    };
    // In the order of a message's way, so that none passes unseen; the list last, since what it does not show
    // yet of cur/ is there. A queue-manager that was just killed answers when it is back.
    let nothing_listed = || {
        let listed = system.postern(&["queue", "list", "--json"]);
        listed.status.success() && listed.stdout.is_empty()
    };
    until("all that was accepted has left the queue", patience, || {
        let left: usize = ["tmp", "drop", "new", "cur"].iter().map(|directory| promised(directory)).sum();
        (left == 0 && nothing_listed()).then_some(())
    });
}

/// A sequence of random numbers that can be had again: `POSTERN_SEED`, or the clock. The seed is printed.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Starts one.
    pub fn start() -> Self {
        let given = std::env::var("POSTERN_SEED").ok().map(|seed| seed.parse().unwrap());
        let seed = given.unwrap_or_else(|| {
            SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64 % 1_000_000_007
        });
        println!("POSTERN_SEED={seed}");
        Self(seed)
    }

    /// The one of that seed.
    pub fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// One below a limit.
    pub fn below(&mut self, limit: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// A number of the environment, or another one.
pub fn scale(variable: &str, usual: usize) -> usize {
    std::env::var(variable).map_or(usual, |n| n.parse().unwrap_or_else(|e| panic!("{variable}={n}: {e}")))
}
