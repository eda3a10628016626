//! The power is cut at every instant of a run, and each time recovery must find every message for which
//! the writer had reported success, and deliver nothing that is not exactly what was sent.
//!
//! A run is recorded operation by operation, with the reports in between. For each place in the record
//! the disk is then made as it might be: of a file what was synced, and of what was written later any
//! part, block by block, in any order; of a directory what was synced, and of what was done to each name
//! later any beginning. That is less than any journalling file system promises.

#![allow(clippy::unwrap_used)] // a test that panics has failed

mod common;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use common::*;
use postern_spool::*;

/// What happened, in order.
#[derive(Debug)]
enum Event {
    Create(&'static str, String),
    Write(String, u64, Vec<u8>),
    Sync(String),
    Cut(String, u64),
    SyncDirectory(&'static str),
    Rename(String, &'static str, String),
    Unlink(String),
    /// The writer reported success: a 250.
    Reported(QueueId),
}

type Start = fn(WriterDirs, Box<dyn Fn() + Send + Sync>, Probe) -> std::io::Result<Writer>;

/// The blocks in which a disk writes.
const SECTOR: usize = 512;

#[test]
fn a_run_of_the_writer() {
    cut_a_run(Writer::start_probed);
}

#[test]
fn a_run_of_the_writer_with_all_its_threads() {
    (0..3).for_each(|_| cut_a_run(Writer::start_probed_in_full));
}

fn cut_a_run(start: Start) {
    let (events, sent) = record_a_run(start, |writer, sent| {
        for n in 0..40 {
            let large = n % 13 == 5;
            let message = message(n, &vec![n as u8; if large { 9000 } else { (n * 97 % 3000) as usize }]);
            sent.insert(message.id, message.clone());
            if large {
                writer.open_stream(n, message.id);
                message.body.chunks(4000).for_each(|chunk| writer.append(n, chunk.to_vec()));
                writer.finish_stream(n, message.envelope, message.prepend);
            } else {
                writer.submit(n, message);
            }
        }
    });
    let reported = events.iter().filter(|e| matches!(e, Event::Reported(_))).count();
    assert_eq!(reported, 40);
    cut_everywhere(&events, &sent, 6);
}

#[test]
fn one_message_cut_in_many_ways() {
    let (events, sent) = record_a_run(Writer::start_probed, |writer, sent| {
        let message = message(1, &[b'x'; 5000]);
        sent.insert(message.id, message.clone());
        writer.submit(1, message);
    });
    cut_everywhere(&events, &sent, 200);
}

#[test]
fn a_local_program_waits_for_its_message() {
    let desk = Desk::in_memory();
    let events: Arc<Mutex<Vec<Event>>> = Arc::default();
    let message = message(1, &[b'x'; 5000]);
    write_one_probed(desk.fd("drop"), &message, recorder(events.clone())).unwrap();
    let mut events = std::mem::take(&mut *events.lock().unwrap());
    events.push(Event::Reported(message.id));
    cut_everywhere(&events, &HashMap::from([(message.id, message)]), 200);
}

/// Messages that come one behind the other, in parts of one file.
#[test]
fn a_run_of_the_writer_in_parts() {
    for start in [Writer::start_probed_keeping as Start, Writer::start_probed_filling] {
        let (events, sent) = record_in_turns(start, 0);
        let syncs = events.iter().filter(|event| matches!(event, Event::Sync(_))).count();
        assert!(syncs > 8, "{syncs} parts");
        cut_everywhere(&events, &sent, 20);
    }
}

/// One of them cannot be synced: it is cut off, and the file goes its way without it.
#[test]
fn a_run_of_the_writer_in_parts_of_which_one_fails() {
    let starts = [Writer::start_probed_keeping as Start, Writer::start_probed_filling];
    for (start, fails) in starts.into_iter().flat_map(|start| [2, 5].map(|fails| (start, fails))) {
        let (events, sent) = record_in_turns(start, fails);
        assert!(events.iter().any(|event| matches!(event, Event::Cut(..))));
        let reported = events.iter().filter(|event| matches!(event, Event::Reported(_))).count();
        assert!((10..sent.len()).contains(&reported), "{reported} were taken");
        cut_everywhere(&events, &sent, 20);
    }
}

/// That the simulation can fail here too: of one part alone the sync is missing.
#[test]
fn a_part_that_is_reported_too_early_is_caught() {
    let starts = [Writer::start_probed_keeping as Start, Writer::start_probed_filling];
    for (start, skipped) in starts.into_iter().flat_map(|start| [1, 4, 8].map(|skipped| (start, skipped))) {
        let (mut events, sent) = record_in_turns(start, 0);
        let mut syncs = PartSyncs::default();
        events.retain(|event| match event {
            Event::Write(name, _, data) => {
                syncs.write(name, data.iter().copied());
                true
            }
            Event::Sync(name) => syncs.sync(name) != Some(skipped),
            _ => true,
        });
        let caught = std::panic::catch_unwind(|| cut_everywhere(&events, &sent, 60));
        assert!(caught.is_err(), "part {skipped} was not synced and nobody noticed");
    }
}

/// That the simulation can fail: a writer that reports before the directory is synced, and one that
/// reports before the file is, are found out.
#[test]
fn a_writer_that_reports_too_early_is_caught() {
    for skipped in ["directory", "file"] {
        let (mut events, sent) = record_a_run(Writer::start_probed, |writer, sent| {
            let message = message(1, &[b'x'; 5000]);
            sent.insert(message.id, message.clone());
            writer.submit(1, message);
        });
        events.retain(|event| match event {
            Event::Sync(_) => skipped != "file",
            Event::SyncDirectory(_) => skipped != "directory",
            _ => true,
        });
        let caught = std::panic::catch_unwind(|| cut_everywhere(&events, &sent, 200));
        assert!(caught.is_err(), "the {} was not synced and nobody noticed", skipped);
    }
}

/// Counts the syncs of parts, from 1. A thread makes blanks meanwhile, whose zeros are synced too.
#[derive(Default)]
struct PartSyncs {
    begun: BTreeSet<String>,
    count: usize,
}

impl PartSyncs {
    fn write(&mut self, name: &str, mut data: impl Iterator<Item = u8>) {
        if data.any(|octet| octet != 0) {
            self.begun.insert(name.to_owned());
        }
    }

    /// Which it is, if it is one.
    fn sync(&mut self, name: &str) -> Option<usize> {
        let part = self.begun.contains(name);
        self.count += usize::from(part);
        part.then_some(self.count)
    }
}

/// Runs a writer until everything it was given is reported.
fn record_a_run(
    start: Start,
    give: impl FnOnce(&mut Writer, &mut HashMap<QueueId, NewMessage>),
) -> (Vec<Event>, HashMap<QueueId, NewMessage>) {
    record(start, 0, Vec::new(), give)
}

/// Runs a writer that keeps its file, and gives it one to three messages whenever what it had is reported. One of its
/// syncs may fail.
fn record_in_turns(start: Start, fails: usize) -> (Vec<Event>, HashMap<QueueId, NewMessage>) {
    let mut messages = (0..20).map(|n| message(n, &vec![n as u8; (n * 977 % 6000) as usize]));
    let turns = [1, 1, 3].into_iter().cycle().map(|some| messages.by_ref().take(some).collect::<Vec<_>>());
    let turns = turns.take_while(|turn| !turn.is_empty()).collect();
    record(start, fails, turns, |writer, sent| {
        let first = message(100, b"first");
        sent.insert(first.id, first.clone());
        writer.submit(100, first);
    })
}

/// Runs a writer until everything it was given is answered: at first, and then one of `turns` whenever something is.
/// One of its syncs may fail, counted from 1; then not all is taken.
fn record(
    start: Start,
    fails: usize,
    turns: Vec<Vec<NewMessage>>,
    give: impl FnOnce(&mut Writer, &mut HashMap<QueueId, NewMessage>),
) -> (Vec<Event>, HashMap<QueueId, NewMessage>) {
    let desk = Desk::in_memory();
    let events: Arc<Mutex<Vec<Event>>> = Arc::default();
    let writer: Arc<Mutex<Option<Writer>>> = Arc::default();
    let answered = Arc::new(AtomicUsize::new(0));
    let mut sent: HashMap<_, _> =
        turns.iter().flatten().map(|message| (message.id, message.clone())).collect();
    let (noted, syncs) = (recorder(events.clone()), Mutex::new(PartSyncs::default()));
    let probe: Probe = Arc::new(move |operation| {
        let mut syncs = syncs.lock().unwrap();
        match operation {
            Operation::Write(name, _, slices) => {
                syncs.write(name, slices.iter().flat_map(|slice| slice.iter().copied()));
            }
            // It promises nothing: as if it had not been.
            Operation::Sync(name) if syncs.sync(name) == Some(fails) => {
                return Err(std::io::ErrorKind::Other.into());
            }
            _ => {}
        }
        drop(syncs);
        noted(operation)
    });
    let (noted, kept, heard) = (events.clone(), writer.clone(), answered.clone());
    let (turns, wake) = (Mutex::new(turns.into_iter()), Mutex::new(desk.waker()));
    // In the writer's own thread: a report stands in the record before what the thread does next.
    let wake = move || {
        let mut kept = kept.lock().unwrap();
        let Some(writer) = kept.as_mut() else { return };
        let done = writer.completions();
        for completion in &done {
            if fails == 0 {
                assert_eq!(completion.result, Ok(()));
            }
            if completion.result.is_ok() {
                noted.lock().unwrap().push(Event::Reported(completion.id));
            }
        }
        heard.fetch_add(done.len(), Ordering::SeqCst);
        let turn = turns.lock().unwrap().next();
        turn.into_iter().flatten().for_each(|message| writer.submit(0, message));
        wake.lock().unwrap()();
    };
    let mut started = start(desk.dirs(), Box::new(wake), probe).unwrap();
    let mut guard = writer.lock().unwrap();
    give(&mut started, &mut sent);
    *guard = Some(started);
    drop(guard);
    while answered.load(Ordering::SeqCst) < sent.len() {
        desk.next_wake();
    }
    // Ends the threads, and with them the renames that follow the reports.
    let last = writer.lock().unwrap().take();
    drop(last);
    let events = std::mem::take(&mut *events.lock().unwrap());
    (events, sent)
}

/// Notes each operation as it is about to be made.
fn recorder(events: Arc<Mutex<Vec<Event>>>) -> Probe {
    Arc::new(move |operation| {
        events.lock().unwrap().push(match operation {
            Operation::Create(label, name) => Event::Create(label, name.to_string()),
            Operation::Write(name, at, slices) => {
                let data = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
                Event::Write(name.to_string(), *at, data)
            }
            Operation::Sync(name) => Event::Sync(name.to_string()),
            Operation::SyncDirectory(label) => Event::SyncDirectory(label),
            Operation::Cut(name, length) => Event::Cut(name.to_string(), *length),
            Operation::Rename((_, from), (label, to)) => {
                Event::Rename(from.to_string(), label, to.to_string())
            }
            Operation::Unlink(_, name) => Event::Unlink(name.to_string()),
        });
        Ok(())
    })
}

fn cut_everywhere(events: &[Event], sent: &HashMap<QueueId, NewMessage>, tries: u64) {
    for cut in 0..=events.len() {
        for seed in 0..tries {
            let mut dice = Dice(cut as u64 * 1000 + seed + 1);
            let disk = Disk::after(&events[..cut], &mut dice);
            let reported = events[..cut].iter().filter_map(|event| match event {
                Event::Reported(id) => Some(*id),
                _ => None,
            });
            check(&disk, &reported.collect(), sent, (cut, seed));
        }
    }
}

/// Puts the disk before recovery, and looks at what it made of it.
fn check(
    disk: &Disk,
    reported: &BTreeSet<QueueId>,
    sent: &HashMap<QueueId, NewMessage>,
    (cut, seed): (usize, u64),
) {
    let desk = Desk::in_memory();
    for ((directory, name), content) in &disk.files {
        std::fs::write(desk.path(directory, name), content).unwrap();
    }
    let now = SystemTime::now();
    let run = || rescue(desk.fd("tmp"), desk.fd("new"), desk.fd("corrupt"), Duration::ZERO, now).unwrap();
    assert_eq!(run().failed, []);
    // Opens and verifies every message that would now be delivered.
    let found: HashMap<_, _> = desk.messages("new").into_iter().chain(desk.messages("drop")).collect();
    for id in reported {
        assert!(found.contains_key(id), "cut {cut}/{seed}: {id} had its 250 and is lost");
    }
    for (id, message) in &found {
        assert!(sent[id] == *message, "cut {cut}/{seed}: {id} is not what was sent");
    }
    assert_eq!(run(), Rescued::default(), "cut {cut}/{seed}: recovery had not finished");
}

/// What the platters hold.
struct Disk {
    files: BTreeMap<(&'static str, String), Vec<u8>>,
}

/// What is done to a file's content.
enum Change {
    Write(usize, Vec<u8>),
    Cut(usize),
}

/// A file's history up to the cut.
#[derive(Default)]
struct History {
    synced: Vec<u8>,
    changes: Vec<Change>,
    /// Where its name stood after each change, None being nowhere.
    places: Vec<Option<(&'static str, String)>>,
    /// How many of these are certain.
    certain: usize,
}

impl Disk {
    fn after(events: &[Event], dice: &mut Dice) -> Self {
        let mut histories: BTreeMap<String, History> = BTreeMap::new();
        for event in events {
            match event {
                Event::Create(label, name) => {
                    histories.entry(name.clone()).or_default().places.push(Some((label, name.clone())));
                }
                Event::Write(name, at, data) => {
                    let change = Change::Write(*at as usize, data.clone());
                    histories.entry(name.clone()).or_default().changes.push(change);
                }
                Event::Sync(name) => histories.entry(name.clone()).or_default().settle(),
                Event::Cut(name, length) => {
                    histories.entry(name.clone()).or_default().changes.push(Change::Cut(*length as usize));
                }
                Event::SyncDirectory(label) => {
                    for history in histories.values_mut() {
                        let touching =
                            |p: &Option<(&str, String)>| p.as_ref().is_some_and(|(d, _)| d == label);
                        let last = history.places.iter().rposition(touching);
                        history.certain = history.certain.max(last.map_or(0, |last| last + 1));
                    }
                }
                Event::Rename(from, label, to) => {
                    histories.entry(from.clone()).or_default().places.push(Some((label, to.clone())));
                }
                Event::Unlink(name) => histories.entry(name.clone()).or_default().places.push(None),
                Event::Reported(_) => {}
            }
        }
        let place = |(_, history): (_, History)| {
            let kept = dice.between(history.certain, history.places.len());
            let place = history.places.get(kept.checked_sub(1)?)?.clone()?;
            Some((place, history.content(dice)))
        };
        Self { files: histories.into_iter().filter_map(place).collect() }
    }
}

impl History {
    fn settle(&mut self) {
        for change in self.changes.drain(..) {
            match change {
                Change::Write(at, data) => put(&mut self.synced, at, &data),
                Change::Cut(length) => self.synced.truncate(length),
            }
        }
    }

    /// What was synced, with some sectors of what was written since, and some length between; cut or not, where it
    /// was cut since.
    fn content(&self, dice: &mut Dice) -> Vec<u8> {
        let mut content = self.synced.clone();
        let everything = dice.between(0, 2) == 0;
        for change in &self.changes {
            match change {
                Change::Write(at, data) => {
                    for (n, sector) in data.chunks(SECTOR).enumerate() {
                        if everything || dice.between(0, 1) == 0 {
                            put(&mut content, at + n * SECTOR, sector);
                        }
                    }
                }
                Change::Cut(length) if everything || dice.between(0, 1) == 0 => content.truncate(*length),
                Change::Cut(_) => {}
            }
        }
        if !everything && content.len() > self.synced.len() {
            let length = dice.between(self.synced.len(), content.len());
            content.truncate(length);
        }
        content
    }
}

fn put(content: &mut Vec<u8>, at: usize, data: &[u8]) {
    content.resize(content.len().max(at + data.len()), 0);
    content[at..at + data.len()].copy_from_slice(data);
}

/// Random numbers that are the same in every run (xorshift64*).
struct Dice(u64);

impl Dice {
    fn between(&mut self, least: usize, most: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let random = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        least + random as usize % (most - least + 1)
    }
}
