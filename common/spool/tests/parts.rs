//! Files of several parts: messages that were committed one after the other, each part with a sync of its own.

#![allow(clippy::unwrap_used)] // a test that panics has failed

mod common;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use common::*;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use postern_spool::*;

/// Messages 0; 1, 2 and 3; 4: in three parts of one file, which is named after the first. Its octets.
fn three_parts(desk: &Desk) -> Vec<u8> {
    let gate = Gate::new();
    let mut writer = desk.keeping(gate.probe());
    writer.submit(0, sent()[0].clone());
    gate.reached();
    (1..4).for_each(|n| writer.submit(n, sent()[n as usize].clone()));
    gate.open();
    desk.wait(&mut writer, 4);
    writer.submit(4, sent()[4].clone());
    desk.wait(&mut writer, 1);
    drop(writer);
    std::fs::read(desk.path("new", id(0))).unwrap()
}

fn sent() -> Vec<NewMessage> {
    let bodies: [&[u8]; 5] = [b"first\r\n", b"one\r\n", b"", &[0xe9; 5000], &[b'x'; 300]];
    bodies.iter().zip(0..).map(|(body, n)| message(n, body)).collect()
}

/// How many messages there are up to the end of each part, and where those ends are.
fn ends(bytes: &[u8]) -> Vec<(usize, usize)> {
    let foot = |at: usize| u64::from_le_bytes(bytes[at + 24..at + 32].try_into().unwrap()) as usize + 48;
    let first = foot(0);
    let second = foot(first.next_multiple_of(4096));
    let third = foot(second.next_multiple_of(4096));
    assert_eq!(third, bytes.len());
    vec![(1, first), (4, second), (5, third)]
}

fn rescue_now(desk: &Desk) -> Rescued {
    rescue(desk.fd("tmp"), desk.fd("new"), desk.fd("corrupt"), Duration::ZERO, SystemTime::now()).unwrap()
}

/// What was prepared and not used is cut off when a file is moved; a crash may leave it.
#[test]
fn zeros_behind_the_end_mean_nothing() {
    let desk = Desk::new();
    let mut bytes = three_parts(&desk);
    let end = bytes.len();
    bytes.resize(end + 70_000, 0);
    let alone = id(7);
    let mut writer = desk.probed(Arc::new(|_| Ok(())));
    writer.submit(7, message(7, b"of a file of one part"));
    desk.wait(&mut writer, 1);
    drop(writer);
    let zeros = std::fs::metadata(desk.path("new", alone)).unwrap().len() + 70_000;
    std::fs::File::options().write(true).open(desk.path("new", alone)).unwrap().set_len(zeros).unwrap();
    std::fs::write(desk.path("new", id(0)), &bytes).unwrap();
    let held = |message| LogRecord { message, what: LogEntry::Held };
    for (name, messages) in [(id(0), 5), (alone, 1)] {
        let mut file = desk.open("new", name);
        assert_eq!((file.messages().len(), file.log().len()), (messages, 0));
        assert!(matches!(file.log_tail().unwrap(), LogTail::Torn(_)));
        file.append(&[held(0)]).unwrap();
        let read = desk.open("new", name);
        assert_eq!((read.log(), read.log_tail().unwrap()), (&[held(0)][..], LogTail::Clean));
    }

    // As a writer that died leaves it.
    std::fs::write(desk.path("tmp", ".1.2.3"), &bytes).unwrap();
    std::fs::remove_file(desk.path("new", id(0))).unwrap();
    assert_eq!(rescue_now(&desk), Rescued { adopted: vec![id(0)], ..Rescued::default() });
    assert_eq!(std::fs::metadata(desk.path("new", id(0))).unwrap().len(), end as u64);
}

#[test]
fn what_is_prepared_and_not_used_is_cut_off() {
    let desk = Desk::new();
    let mut writer = Writer::start_probed_filling(desk.dirs(), desk.waker(), Arc::new(|_| Ok(()))).unwrap();
    for n in 0..3 {
        writer.submit(n, message(n, &[b'x'; 5000]));
        assert_eq!(desk.wait(&mut writer, 1)[0].result, Ok(()));
    }
    // The one that gets more parts, and the next.
    let growing = list(desk.fd("tmp")).unwrap().others;
    let sizes = growing.iter().map(|name| std::fs::metadata(desk.path("tmp", name)).unwrap().len());
    assert!(sizes.clone().all(|size| size > 0), "{:?}", sizes.collect::<Vec<_>>());
    drop(writer);
    let [file] = list(desk.fd("new")).unwrap().files[..] else { panic!("not one file") };
    let read = desk.open("new", file);
    assert_eq!((read.messages().len(), read.log_tail().unwrap()), (3, LogTail::Clean));
}

#[test]
fn what_comes_at_once_behind_another_shares_its_file() {
    let desk = Desk::new();
    three_parts(&desk);
    assert_eq!(list(desk.fd("new")).unwrap().files, [id(0)]);
    assert_eq!(list(desk.fd("tmp")).unwrap(), Listing::default());
    let mut file = desk.open("new", id(0));
    assert_eq!(file.messages().len(), 5);
    sent().iter().enumerate().for_each(|(n, sent)| assert_same(&file, n, sent));
    // The log is one, and begins behind all of them.
    let held = |message| LogRecord { message, what: LogEntry::Held };
    file.append(&[held(4)]).unwrap();
    file.append(&[held(0)]).unwrap();
    file.sync().unwrap();
    let read = desk.open("new", id(0));
    assert_eq!(read.log(), [held(4), held(0)]);
    assert_eq!(read.log_tail().unwrap(), LogTail::Clean);
    // The blocks of each body can be given back, whatever part it stands in, and of no other.
    (0..4).for_each(|n| read.give_back(n).unwrap());
    assert_same(&read, 4, &sent()[4]);
    assert_eq!(desk.open("new", id(0)).messages(), file.messages());
}

#[test]
fn a_lone_message_is_handed_over_soon() {
    let desk = Desk::new();
    let moved = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
    moved.add_watch(&desk.directory.path().join("new"), AddWatchFlags::IN_MOVED_TO).unwrap();
    let mut writer = desk.writer();
    for n in 0..3 {
        writer.submit(n, message(n, b"x"));
        assert_eq!(desk.wait(&mut writer, 1)[0].result, Ok(()));
        let mut told = [PollFd::new(moved.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut told, 60_000u16), Ok(1), "message {n} stays in tmp/");
        assert_eq!(moved.read_events().unwrap().len(), 1);
        desk.holds("new", &message(n, b"x"));
    }
}

#[test]
fn a_full_file_is_handed_over() {
    let desk = Desk::in_memory();
    let mut writer = desk.keeping(Arc::new(|_| Ok(())));
    for n in 0..300 {
        writer.submit(n, message(n, b"x"));
        desk.wait(&mut writer, 1);
    }
    drop(writer);
    assert_eq!(list(desk.fd("new")).unwrap().files, [id(0), id(256)]);
    assert_eq!(desk.messages("new").len(), 300);
    // By octets as well: 1.25 MiB.
    let desk = Desk::in_memory();
    let mut writer = desk.keeping(Arc::new(|_| Ok(())));
    for n in 0..20 {
        writer.submit(n, message(n, &[b'x'; 100_000]));
        desk.wait(&mut writer, 1);
    }
    drop(writer);
    assert_eq!(list(desk.fd("new")).unwrap().files, [id(0), id(13)]);
}

/// What was accepted lies in `tmp/` while its file may get more. Nobody takes it away from a writer that lives.
#[test]
fn recovery_leaves_the_file_of_a_writer_that_lives() {
    let desk = Desk::new();
    let mut writer = desk.keeping(Arc::new(|_| Ok(())));
    for n in 0..3 {
        writer.submit(n, message(n, b"x"));
        assert_eq!(desk.wait(&mut writer, 1)[0].result, Ok(()));
        let later = SystemTime::now() + 2 * SWEEP_AFTER;
        let rescued =
            rescue(desk.fd("tmp"), desk.fd("new"), desk.fd("corrupt"), Duration::ZERO, later).unwrap();
        assert_eq!(rescued, Rescued::default());
        assert_eq!(list(desk.fd("new")).unwrap().files, []);
    }
    drop(writer);
    assert_eq!(desk.open("new", id(0)).messages().len(), 3);
}

/// Wherever a writer died, recovery delivers every part that is whole, and nothing else.
#[test]
fn cut_at_any_length_the_whole_parts_are_adopted() {
    let desk = Desk::in_memory();
    let bytes = three_parts(&desk);
    std::fs::remove_file(desk.path("new", id(0))).unwrap();
    let ends = ends(&bytes);
    for keep in 0..=bytes.len() {
        std::fs::write(desk.path("tmp", ".blank"), &bytes[..keep]).unwrap();
        let whole = ends.iter().rfind(|(_, end)| *end <= keep).map_or(0, |(messages, _)| *messages);
        let rescued = rescue_now(&desk);
        if whole == 0 {
            assert_eq!(rescued.adopted, [], "at {keep}");
            continue;
        }
        assert_eq!(rescued, Rescued { adopted: vec![id(0)], ..Rescued::default() }, "at {keep}");
        let mut file = desk.open("new", id(0));
        assert_eq!(file.messages().len(), whole, "at {keep}");
        sent()[..whole].iter().enumerate().for_each(|(n, sent)| assert_same(&file, n, sent));
        assert_eq!(file.log_tail().unwrap(), LogTail::Clean, "at {keep}");
        file.append(&[LogRecord { message: 0, what: LogEntry::Held }]).unwrap();
        assert_eq!(desk.open("new", id(0)).log().len(), 1, "at {keep}");
        std::fs::remove_file(desk.path("new", id(0))).unwrap();
    }
}

/// In the queue a file has all of its parts: no damage makes it look as if it had fewer.
#[test]
fn any_flipped_bit_is_noticed_where_it_matters() {
    let desk = Desk::in_memory();
    let mut bytes = three_parts(&desk);
    let ends = ends(&bytes);
    let intact = desk.open("new", id(0));
    let bodies: Vec<_> =
        intact.messages().iter().map(|m| m.offset as usize..(m.offset + m.length) as usize).collect();
    let indices: Vec<_> = ends
        .iter()
        .map(|(_, end)| u64::from_le_bytes(bytes[end - 40..end - 32].try_into().unwrap()) as usize..*end)
        .collect();
    let heads = [0, ends[0].1.next_multiple_of(4096), ends[1].1.next_multiple_of(4096)];
    for at in 0..bytes.len() {
        bytes[at] ^= 1 << (at % 8);
        std::fs::write(desk.path("new", id(0)), &bytes).unwrap();
        bytes[at] ^= 1 << (at % 8);
        let hit = bodies.iter().position(|body| body.contains(&at));
        let matters = heads.iter().any(|head| (*head..head + 64).contains(&at))
            || indices.iter().any(|index| index.contains(&at));
        match SpoolFile::open(desk.fd("new"), &id(0).to_string()) {
            Ok(read) => {
                assert!(!matters, "bit at {at} not noticed");
                assert_eq!(read.messages(), intact.messages(), "bit at {at}");
                for n in 0..5 {
                    assert_eq!(read.read_body(n).is_err(), hit == Some(n), "bit at {at}, body {n}");
                }
            }
            Err(ReadError::Corrupt(_)) => assert!(matters, "bit at {at} is padding or in a body"),
            Err(error) => panic!("bit at {at}: {error}"),
        }
    }
}

/// Neither a lost sector nor a lost block hides what stands behind it.
#[test]
fn a_part_without_its_head_is_missed() {
    let desk = Desk::in_memory();
    let bytes = three_parts(&desk);
    let ends = ends(&bytes);
    for lost in [&[0; 512][..], &[0xff; 4096]] {
        for (_, end) in &ends[..2] {
            let mut damaged = bytes.clone();
            let at = end.next_multiple_of(4096);
            let length = lost.len().min(bytes.len() - at - 48);
            damaged[at..at + length].copy_from_slice(&lost[..length]);
            std::fs::write(desk.path("new", id(0)), damaged).unwrap();
            let opened = SpoolFile::open(desk.fd("new"), &id(0).to_string());
            assert!(matches!(opened, Err(ReadError::Corrupt(_))), "{opened:?}");
        }
    }
}

#[test]
fn a_torn_log_is_read_up_to_the_tear_and_goes_on_from_there() {
    let desk = Desk::in_memory();
    let parts = three_parts(&desk);
    let held = |message| LogRecord { message, what: LogEntry::Held };
    // Ends with an octet that is not zero: zeros behind the tear do not complete it.
    let done = LogEntry::Done { recipient: 0, address: None, status: DoneStatus::Removed };
    let records = [held(4), held(0), LogRecord { message: 2, what: done }];
    desk.open("new", id(0)).append(&records).unwrap();
    let full = std::fs::read(desk.path("new", id(0))).unwrap();
    for keep in parts.len()..=full.len() {
        for rest in [&b""[..], &[0; 700], &[b"stranger", &full[full.len() - 12..]].concat()] {
            std::fs::write(desk.path("new", id(0)), [&full[..keep], rest].concat()).unwrap();
            let mut file = desk.open("new", id(0));
            assert_eq!(file.messages().len(), 5, "at {keep}");
            let known = file.log().len();
            assert_eq!(file.log(), &records[..known], "at {keep}");
            assert_eq!(known == records.len(), keep == full.len(), "at {keep}");
            file.append(&[held(1)]).unwrap();
            file.append(&[held(3)]).unwrap();
            let expected = [&records[..known], &[held(1), held(3)]].concat();
            assert_eq!(desk.open("new", id(0)).log(), expected, "at {keep}");
        }
    }
}

/// A power cut may leave a foot and not all of the bodies before it.
#[test]
fn of_a_damaged_last_part_a_copy_is_kept_and_the_rest_delivered() {
    let desk = Desk::in_memory();
    let mut bytes = three_parts(&desk);
    let last = desk.open("new", id(0)).messages()[4].offset as usize;
    std::fs::remove_file(desk.path("new", id(0))).unwrap();
    bytes[last + 7] ^= 1;
    std::fs::write(desk.path("tmp", ".1.2.3"), &bytes).unwrap();
    std::fs::write(desk.path("corrupt", ".1.2.3"), b"of another day").unwrap();
    let rescued = rescue_now(&desk);
    assert_eq!(rescued.adopted, [id(0)]);
    assert_eq!(rescued.set_aside.len(), 1);
    let (copy, why) = &rescued.set_aside[0];
    assert!(why.contains(&id(4).to_string()), "{why}");
    assert_eq!(std::fs::read(desk.path("corrupt", copy)).unwrap(), bytes);
    let found = desk.messages("new");
    assert_eq!(found.len(), 4);
    assert!(sent()[..4].iter().all(|sent| found[&sent.id] == *sent));

    // Damage further ahead is no half-written part: all of it is for a human.
    bytes[last + 7] ^= 1;
    bytes[64] ^= 1;
    std::fs::write(desk.path("tmp", ".1.2.4"), &bytes).unwrap();
    let rescued = rescue_now(&desk);
    assert_eq!((rescued.adopted.len(), rescued.set_aside.len()), (0, 1));
    assert_eq!(std::fs::read(desk.path("corrupt", ".1.2.4")).unwrap(), bytes);
}

/// When there is no room for the copy nothing of it stays, however often recovery looks, and the file waits.
#[test]
fn a_copy_for_which_there_is_no_room() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = {
        let desk = Desk::in_memory();
        let mut bytes = three_parts(&desk);
        bytes[desk.open("new", id(0)).messages()[4].offset as usize] ^= 1;
        bytes
    };
    std::fs::create_dir(directory.path().join("corrupt")).unwrap();
    let at = directory.path().join("corrupt");
    let Some(mounted) = Tmpfs::mount(at, "size=8k", "a_copy_for_which_there_is_no_room") else { return };
    let desk = Desk::at(directory);
    std::fs::write(desk.path("tmp", ".1.2.3"), &bytes).unwrap();
    for _ in 0..2 {
        let rescued = rescue_now(&desk);
        assert_eq!((rescued.failed.len(), rescued.adopted.len(), rescued.set_aside.len()), (1, 0, 0));
        assert_eq!(list(desk.fd("corrupt")).unwrap(), Listing::default());
    }
    assert_eq!(std::fs::read(desk.path("tmp", ".1.2.3")).unwrap(), bytes);
    let directory = desk.into_directory();
    drop(mounted);
    drop(directory);
}

/// A further part is no file of its own.
#[test]
fn a_file_that_begins_with_a_later_part_is_damaged() {
    let desk = Desk::in_memory();
    let bytes = three_parts(&desk);
    // Its offsets moved with it, and its checksums right.
    let part = ends(&bytes)[1].1.next_multiple_of(4096);
    let mut alone = bytes[part..].to_vec();
    let length = (alone.len() - 48) as u64;
    alone[24..32].copy_from_slice(&length.to_le_bytes());
    let crc = crc32c::crc32c(&alone[..60]).to_le_bytes();
    alone[60..64].copy_from_slice(&crc);
    std::fs::write(desk.path("cur", id(0)), &alone).unwrap();
    let opened = SpoolFile::open(desk.fd("cur"), &id(0).to_string());
    assert!(matches!(&opened, Err(ReadError::Corrupt(why)) if why.contains("later part")), "{opened:?}");
}

/// A local user's file has one part, and what he put behind it is not looked at.
#[test]
fn a_file_of_drop_has_one_part() {
    let desk = Desk::in_memory();
    let bytes = three_parts(&desk);
    std::fs::write(desk.path("drop", id(0)), bytes).unwrap();
    let file = SpoolFile::open_dropped(desk.fd("drop"), &id(0).to_string()).unwrap();
    assert_eq!(file.messages().len(), 1);
    assert_same(&file, 0, &sent()[0]);
}

/// Fails the `which`th operation that is such a one.
fn failing(which: usize, such: fn(&Operation<'_>) -> bool) -> Probe {
    let count = AtomicUsize::new(0);
    Arc::new(move |operation| {
        let this = such(operation) && count.fetch_add(1, Ordering::SeqCst) + 1 == which;
        if this { Err(io::Error::from(Errno::EIO)) } else { Ok(()) }
    })
}

#[test]
fn a_part_that_fails_takes_no_other_with_it() {
    let write: fn(&Operation<'_>) -> bool = |o| matches!(o, Operation::Write(..));
    let sync: fn(&Operation<'_>) -> bool = |o| matches!(o, Operation::Sync(..));
    for such in [write, sync] {
        let desk = Desk::new();
        let mut writer = desk.keeping(failing(3, such));
        for n in 0..5 {
            writer.submit(n, message(n, b"x"));
            let result = desk.wait(&mut writer, 1).remove(0).result;
            assert_eq!(result.is_ok(), n != 2, "message {n}: {result:?}");
        }
        drop(writer);
        assert_eq!(list(desk.fd("tmp")).unwrap(), Listing::default());
        assert_eq!(list(desk.fd("new")).unwrap().files, [id(0), id(3)]);
        assert_eq!(desk.open("new", id(0)).messages().len(), 2);
        assert_eq!(desk.open("new", id(3)).messages().len(), 2);
    }
}

/// While it is not certain that a failed part is gone, the file waits for recovery, which looks at every part.
#[test]
fn a_part_that_cannot_be_cut_off_leaves_the_file_to_recovery() {
    let desk = Desk::new();
    let probe: Probe = Arc::new(move |operation| match operation {
        Operation::Write(_, at, _) if *at > 0 => Err(Errno::EIO.into()),
        Operation::Cut(..) => Err(Errno::EIO.into()),
        _ => Ok(()),
    });
    let mut writer = desk.keeping(probe);
    for n in 0..2 {
        writer.submit(n, message(n, b"x"));
        assert_eq!(desk.wait(&mut writer, 1)[0].result.is_ok(), n == 0);
    }
    drop(writer);
    assert_eq!(list(desk.fd("new")).unwrap().files, []);
    assert_eq!(rescue_now(&desk), Rescued { adopted: vec![id(0)], ..Rescued::default() });
    desk.holds("new", &message(0, b"x"));
}

const GOLDEN: &[u8] = include_bytes!("golden/format-1-parts.spool");

#[test]
fn the_golden_file_of_parts_reads_for_ever() {
    let desk = Desk::in_memory();
    std::fs::write(desk.path("cur", id(0)), GOLDEN).unwrap();
    let file = desk.open("cur", id(0));
    assert_eq!(file.messages().len(), 5);
    sent().iter().enumerate().for_each(|(n, sent)| assert_same(&file, n, sent));
    assert_eq!(file.log(), golden_log());
}

#[test]
fn parts_are_still_written_as_they_were() {
    let desk = Desk::in_memory();
    three_parts(&desk);
    desk.open("new", id(0)).append(&golden_log()).unwrap();
    let written = std::fs::read(desk.path("new", id(0))).unwrap();
    if written != GOLDEN {
        let kept = std::env::temp_dir().join("format-1-parts.spool");
        std::fs::write(&kept, written).unwrap();
        panic!("differs from the golden file: see {}", kept.display());
    }
}

fn golden_log() -> Vec<LogRecord> {
    let done = LogEntry::Done { recipient: 0, address: None, status: DoneStatus::Delivered };
    [LogRecord { message: 4, what: done }, LogRecord { message: 1, what: LogEntry::Held }].into()
}
