//! What an administrator is told of a file.

#![allow(clippy::unwrap_used)] // a test that panics has failed

mod common;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use common::*;
use postern_spool::*;

fn done(message: u16, recipient: u32) -> LogRecord {
    let what = LogEntry::Done { recipient, address: None, status: DoneStatus::Delivered };
    LogRecord { message, what }
}

/// A file of three messages in `new/`, its id.
fn three(desk: &Desk) -> QueueId {
    let mut writer = gated_batch(desk, &[b"one\r\n", &[b'x'; 9000], b"three\r\n"]);
    desk.wait(&mut writer, 4);
    drop(writer);
    id(1)
}

fn flip(desk: &Desk, name: QueueId, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(desk.path("new", name)).unwrap();
    let mut octet = [0];
    file.read_exact_at(&mut octet, at).unwrap();
    file.write_all_at(&[octet[0] ^ 4], at).unwrap();
}

#[test]
fn a_body_that_was_given_back_is_no_damage_and_one_that_waits_is() {
    let desk = Desk::in_memory();
    let name = three(&desk);
    let look = || verify(desk.fd("new"), &name.to_string()).unwrap();
    let whole = Verified { found: Found::Whole, waiting: 3, whole: 3, finished: 0, log: LogTail::Clean };
    assert_eq!(look(), whole);
    let mut file = desk.open("new", name);
    let recipients = file.messages()[1].envelope.recipients.len() as u32;
    let records: Vec<_> = (0..recipients).map(|r| done(1, r)).collect();
    file.append(&records).unwrap();
    file.give_back(1).unwrap();
    assert_eq!(look(), Verified { waiting: 2, whole: 2, finished: 1, ..whole.clone() });
    flip(&desk, name, file.messages()[2].offset);
    let damaged = look();
    assert!(matches!(damaged.found, Found::Damaged(_)), "{damaged:?}");
    assert_eq!((damaged.waiting, damaged.whole), (2, 1));
    assert_eq!(file.read_damaged_body(2).unwrap()[1..], b"three\r\n"[1..]);
}

#[test]
fn a_torn_log_is_told_from_a_damaged_one() {
    let desk = Desk::in_memory();
    write_one(desk.fd("new"), &message(2, b"x")).unwrap();
    let name = id(2);
    let start = std::fs::metadata(desk.path("new", name)).unwrap().len();
    desk.open("new", name).append(&[done(0, 0), done(0, 1), done(0, 2)]).unwrap();
    let look = || verify(desk.fd("new"), &name.to_string()).unwrap();
    assert_eq!((look().log, look().finished), (LogTail::Clean, 1));
    let size = std::fs::metadata(desk.path("new", name)).unwrap().len();
    let file = OpenOptions::new().write(true).open(desk.path("new", name)).unwrap();
    file.set_len(size - 1).unwrap();
    assert!(matches!(look().log, LogTail::Torn(_)), "half a record");
    flip(&desk, name, start + 3);
    assert!(matches!(look().log, LogTail::Damaged(_)), "a record before a whole one");
    let mut open = desk.open("new", name);
    assert_eq!(open.recipient_states(0), vec![RecipientState::Waiting; 3]);
    open.cut_log().unwrap();
    assert_eq!((look().log, look().waiting), (LogTail::Clean, 1));
}

#[test]
fn a_file_of_another_name_is_told() {
    let desk = Desk::in_memory();
    write_one(desk.fd("new"), &message(2, b"x")).unwrap();
    std::fs::rename(desk.path("new", id(2)), desk.path("new", id(3))).unwrap();
    let found = verify(desk.fd("new"), &id(3).to_string()).unwrap().found;
    assert!(matches!(found, Found::Damaged(_)));
}
