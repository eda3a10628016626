//! What the writer says and leaves behind when an operation fails.

#![allow(clippy::unwrap_used)] // a test that panics has failed

mod common;

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use common::*;
use nix::errno::Errno;
use postern_spool::*;
use proptest::prelude::*;

/// Fails the first operation for which `which` holds, and counts syncs of files.
fn failing(which: fn(&Operation<'_>) -> bool, errno: Errno) -> (Probe, Arc<AtomicUsize>) {
    let (armed, syncs) = (AtomicUsize::new(1), Arc::new(AtomicUsize::new(0)));
    let counted = syncs.clone();
    let probe = move |operation: &Operation<'_>| {
        counted.fetch_add(usize::from(matches!(operation, Operation::Sync(_))), Ordering::SeqCst);
        if which(operation) && armed.swap(0, Ordering::SeqCst) == 1 {
            return Err(io::Error::from(errno));
        }
        Ok(())
    };
    (Arc::new(probe), syncs)
}

type Which = fn(&Operation<'_>) -> bool;

const BEFORE_THE_COMMIT: [Which; 2] =
    [|o| matches!(o, Operation::Write(..)), |o| matches!(o, Operation::Sync(..))];

const OF_A_BLANK: [Which; 2] =
    [|o| matches!(o, Operation::Create(..)), |o| matches!(o, Operation::SyncDirectory(..))];

#[test]
fn every_message_of_a_failed_batch_hears_of_it_and_the_next_batch_is_taken() {
    for (n, which) in BEFORE_THE_COMMIT.into_iter().enumerate() {
        let desk = Desk::new();
        let (fail, syncs) = failing(which, Errno::EIO);
        let gate = Gate::of(|o| matches!(o, Operation::Write(..)));
        let (held, armed) = (gate.probe(), AtomicUsize::new(0));
        // Message 0 passes; the batch behind it is gathered at the gate and meets the fault.
        let probe: Probe = Arc::new(move |o| {
            held(o)?;
            let write = usize::from(matches!(o, Operation::Write(..)));
            let second = armed.fetch_add(write, Ordering::SeqCst) + write == 2;
            if second { fail(o) } else { Ok(()) }
        });
        let mut writer = desk.probed(probe);
        writer.submit(0, message(0, b"passes"));
        gate.reached();
        (1..=10).for_each(|n| writer.submit(n, message(n, b"fails")));
        gate.open();
        let done = desk.wait(&mut writer, 11);
        for completion in &done {
            match completion.token {
                0 => assert_eq!(completion.result, Ok(())),
                _ => {
                    assert!(matches!(completion.result, Err(WriteError::Io(_))), "fault {n}: {completion:?}")
                }
            }
        }
        assert!(syncs.load(Ordering::SeqCst) <= 1, "a sync is never tried again");
        writer.submit(11, message(11, b"passes"));
        assert_eq!(desk.wait(&mut writer, 1)[0].result, Ok(()), "fault {n}");
        drop(writer);
        assert_eq!(list(desk.fd("tmp")).unwrap(), Listing::default(), "fault {n} left something");
        assert_eq!(list(desk.fd("new")).unwrap().files, [0, 11].map(id), "fault {n}");
    }
}

#[test]
fn a_failed_stream_is_reported_at_once() {
    for (n, which) in BEFORE_THE_COMMIT.into_iter().enumerate() {
        let desk = Desk::new();
        let (probe, _) = failing(which, Errno::ENOSPC);
        let mut writer = desk.probed(probe);
        let sent = message(1, &[b'x'; 100_000]);
        writer.open_stream(1, sent.id);
        writer.append(1, sent.body.clone());
        if n >= 1 {
            writer.finish_stream(1, sent.envelope.clone(), sent.prepend.clone());
        }
        let done = desk.wait(&mut writer, 1);
        assert_eq!(
            done,
            [Completion { token: 1, id: sent.id, result: Err(WriteError::NoSpace) }],
            "fault {n}"
        );
        // The event loop may not have heard of it yet: what it still says goes nowhere.
        writer.append(1, vec![0; 10]);
        writer.finish_stream(1, sent.envelope.clone(), sent.prepend.clone());
        writer.open_stream(1, sent.id);
        writer.append(1, sent.body.clone());
        writer.finish_stream(1, sent.envelope.clone(), sent.prepend.clone());
        assert_eq!(desk.wait(&mut writer, 1)[0].result, Ok(()), "fault {n}");
        drop(writer);
        desk.holds("new", &sent);
        assert_eq!(list(desk.fd("tmp")).unwrap(), Listing::default(), "fault {n} left something");
    }
}

/// One that waits for a blank which cannot be made hears why; the next one has it made anew.
#[test]
fn without_a_blank_nothing_is_taken() {
    for (n, which) in OF_A_BLANK.into_iter().enumerate() {
        let desk = Desk::new();
        let failing = Arc::new(AtomicBool::new(false));
        let fail = failing.clone();
        let gate = Gate::of(which);
        let held = gate.probe();
        let probe: Probe = Arc::new(move |o| {
            held(o)?;
            if which(o) && fail.load(Ordering::SeqCst) { Err(Errno::ENOSPC.into()) } else { Ok(()) }
        });
        let mut writer = desk.probed(probe);
        gate.reached();
        failing.store(true, Ordering::SeqCst);
        gate.open();
        for token in 0..3 {
            if token % 2 == 0 {
                writer.submit(token, message(token, b"x"));
            } else {
                writer.open_stream(token, id(token));
            }
            let refused = Completion { token, id: id(token), result: Err(WriteError::NoSpace) };
            assert_eq!(desk.wait(&mut writer, 1), [refused], "fault {n}");
        }
        failing.store(false, Ordering::SeqCst);
        writer.submit(3, message(3, b"x"));
        assert_eq!(desk.wait(&mut writer, 1)[0].result, Ok(()), "fault {n}");
        drop(writer);
        assert_eq!(list(desk.fd("tmp")).unwrap(), Listing::default(), "fault {n} left something");
        assert_eq!(list(desk.fd("new")).unwrap().files, [id(3)], "fault {n}");
    }
}

/// The disk has no room for the zeros of a blank: then it is empty, as where they would not help. A sync of them that
/// fails is one that the file cannot be trusted with.
#[test]
fn a_blank_that_cannot_be_filled() {
    let filled = |operation: &Operation<'_>| match operation {
        Operation::Write(_, _, slices) => slices.iter().all(|slice| slice.iter().all(|octet| *octet == 0)),
        _ => false,
    };
    let desk = Desk::new();
    let probe: Probe = Arc::new(move |o| if filled(o) { Err(Errno::ENOSPC.into()) } else { Ok(()) });
    let mut writer = Writer::start_probed_filling(desk.dirs(), desk.waker(), probe).unwrap();
    writer.submit(1, message(1, b"x"));
    assert_eq!(desk.wait(&mut writer, 1)[0].result, Ok(()));
    drop(writer);
    desk.holds("new", &message(1, b"x"));

    let desk = Desk::new();
    let (probe, _) = failing(|o| matches!(o, Operation::Sync(..)), Errno::EIO);
    let gate = Gate::of(|o| matches!(o, Operation::Create(..)));
    let held = gate.probe();
    let probe: Probe = Arc::new(move |o| held(o).and_then(|()| probe(o)));
    let mut writer = Writer::start_probed_filling(desk.dirs(), desk.waker(), probe).unwrap();
    gate.reached();
    writer.submit(1, message(1, b"x"));
    gate.open();
    let mut refused = 0;
    for token in 2.. {
        let Completion { result, .. } = desk.wait(&mut writer, 1).remove(0);
        if result.is_ok() {
            break;
        }
        refused += 1;
        writer.submit(token, message(token, b"x"));
    }
    assert!(refused <= 1, "{refused} were refused for one file");
    drop(writer);
    assert_eq!(list(desk.fd("tmp")).unwrap(), Listing::default());
    assert_eq!(desk.messages("new").len(), 1);
}

#[test]
fn no_completion_follows_an_abort_even_of_a_failure() {
    let desk = Desk::new();
    let (probe, _) = failing(|o| matches!(o, Operation::Write(..)), Errno::EIO);
    let mut writer = desk.probed(probe);
    writer.open_stream(1, id(1));
    writer.append(1, vec![b'x'; 100_000]);
    desk.next_wake();
    writer.abort_stream(1);
    writer.open_stream(1, id(2));
    assert_eq!(writer.completions(), []);
    writer.finish_stream(1, envelope(2), vec![]);
    assert_eq!(desk.wait(&mut writer, 1), [Completion { token: 1, id: id(2), result: Ok(()) }]);
}

#[test]
fn no_space_is_told_from_other_faults() {
    let no_space = [Errno::ENOSPC, Errno::EDQUOT];
    for errno in [Errno::ENOSPC, Errno::EDQUOT, Errno::EIO, Errno::EMFILE, Errno::EROFS] {
        let desk = Desk::new();
        let (probe, _) = failing(|o| matches!(o, Operation::Write(..)), errno);
        let mut writer = desk.probed(probe);
        writer.submit(1, message(1, b"x"));
        let result = desk.wait(&mut writer, 1).remove(0).result;
        assert_eq!(result == Err(WriteError::NoSpace), no_space.contains(&errno), "{errno}");
        assert!(result.is_err());
    }
}

#[test]
fn a_file_that_could_not_be_moved_is_accepted_and_adopted() {
    let desk = Desk::new();
    let (probe, _) = failing(|o| matches!(o, Operation::Rename(..)), Errno::EIO);
    let mut writer = desk.probed(probe);
    let sent = message(1, b"x");
    writer.submit(1, sent.clone());
    assert_eq!(desk.wait(&mut writer, 1)[0].result, Ok(()));
    drop(writer);
    assert_eq!(desk.messages("tmp").into_keys().collect::<Vec<_>>(), [sent.id]);
    let now = SystemTime::now();
    let early = rescue(desk.fd("tmp"), desk.fd("new"), desk.fd("corrupt"), ADOPT_AFTER, now).unwrap();
    assert_eq!(early, Rescued::default(), "its writer may be about to move it");
    let later = now + Duration::from_secs(11);
    let rescued = rescue(desk.fd("tmp"), desk.fd("new"), desk.fd("corrupt"), ADOPT_AFTER, later).unwrap();
    assert_eq!(rescued, Rescued { adopted: vec![sent.id], ..Rescued::default() });
    desk.holds("new", &sent);
}

#[test]
fn the_queue_manager_may_move_the_file_first() {
    let desk = Desk::new();
    let (tmp, new) =
        (desk.fd("tmp").try_clone_to_owned().unwrap(), desk.fd("new").try_clone_to_owned().unwrap());
    let moved = Arc::new(Mutex::new(0));
    let counted = moved.clone();
    let probe: Probe = Arc::new(move |operation| {
        if let Operation::Rename((_, name), (_, id)) = operation {
            use std::os::fd::AsFd;
            rename_between(tmp.as_fd(), name, new.as_fd(), id)?;
            *counted.lock().unwrap() += 1;
        }
        Ok(())
    });
    let mut writer = desk.probed(probe);
    for n in 0..3 {
        writer.submit(n, message(n, b"x"));
        assert_eq!(desk.wait(&mut writer, 1)[0].result, Ok(()));
    }
    drop(writer);
    assert_eq!(*moved.lock().unwrap(), 3);
    assert_eq!(desk.messages("new").len(), 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Whatever fails, and however often: one completion each, and what it says is what is there.
    #[test]
    fn any_operations_may_fail(
        faults in proptest::collection::btree_set(0usize..120, 0..25),
        pauses in proptest::collection::btree_set(0u64..30, 0..8),
        kind in 0usize..3,
    ) {
        let desk = Desk::in_memory();
        let count = AtomicUsize::new(0);
        let probe: Probe = Arc::new(move |operation| {
            // An unlink or a cut that fails leaves what the next recovery would take for accepted.
            if matches!(operation, Operation::Unlink(..) | Operation::Cut(..)) {
                return Ok(());
            }
            match faults.contains(&count.fetch_add(1, Ordering::SeqCst)) {
                true => Err(Errno::EIO.into()),
                false => Ok(()),
            }
        });
        let (dirs, wake) = (desk.dirs(), desk.waker());
        let started = match kind {
            0 => Writer::start_probed(dirs, wake, probe),
            1 => Writer::start_probed_keeping(dirs, wake, probe),
            _ => Writer::start_probed_filling(dirs, wake, probe),
        };
        let mut writer = started.unwrap();
        let mut done = Vec::new();
        for n in 0..30u64 {
            let sent = message(n, &vec![n as u8; n as usize * 50]);
            if n % 3 == 0 {
                writer.open_stream(n, sent.id);
                writer.append(n, sent.body);
                writer.finish_stream(n, sent.envelope, sent.prepend);
            } else {
                writer.submit(n, sent);
            }
            if pauses.contains(&n) {
                let waiting = n as usize + 1 - done.len();
                done.extend(desk.wait(&mut writer, waiting));
            }
        }
        let left = 30 - done.len();
        done.extend(desk.wait(&mut writer, left));
        drop(writer);
        let found: HashMap<_, _> = desk.messages("new").into_iter().chain(desk.messages("tmp")).collect();
        let accepted: HashSet<_> = done.iter().filter(|d| d.result.is_ok()).map(|d| d.id).collect();
        prop_assert_eq!(done.iter().map(|d| d.token).collect::<HashSet<_>>().len(), 30);
        prop_assert_eq!(&accepted, &found.keys().copied().collect::<HashSet<_>>());
        for n in 0..30 {
            let sent = message(n, &vec![n as u8; n as usize * 50]);
            prop_assert!(found.get(&sent.id).is_none_or(|found| *found == sent));
        }
    }
}

/// A real file system that is full: a tmpfs of 256 KiB, which only root can mount.
#[test]
fn a_full_file_system() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().to_owned();
    let Some(mounted) = Tmpfs::mount(at, "size=256k,nr_inodes=40", "a_full_file_system") else { return };
    let desk = Desk::at(directory);
    let mut writer = desk.writer();
    let mut taken = 0;
    let refused = loop {
        writer.submit(taken, message(taken, &[b'x'; 20_000]));
        match desk.wait(&mut writer, 1).remove(0).result {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, WriteError::NoSpace);
    assert!(taken > 3, "{taken}");
    // A large one runs into it half way, and its blocks come back.
    writer.open_stream(100, id(100));
    writer.append(100, vec![b'x'; 200_000]);
    assert_eq!(desk.wait(&mut writer, 1)[0].result, Err(WriteError::NoSpace));
    writer.submit(101, message(101, b"small enough"));
    assert_eq!(desk.wait(&mut writer, 1)[0].result, Ok(()));
    // No inodes is no space as well.
    let refused = (200..).find_map(|n| write_one(desk.fd("drop"), &message(n, b"")).err());
    assert_eq!(refused, Some(WriteError::NoSpace));
    drop(writer);
    assert_eq!(list(desk.fd("tmp")).unwrap(), Listing::default());
    assert_eq!(desk.messages("new").len() as u64, taken + 1);
    // The log of what is queued cannot grow either, and stays as it was.
    let mut file = desk.open("new", id(0));
    let record = |recipient| LogRecord {
        message: 0,
        what: LogEntry::Deferred { recipient, address: None, until: Timestamp(1), reply: "x".repeat(5000) },
    };
    let written = (0..).take_while(|n| file.append(&[record(*n)]).is_ok()).count() as u32;
    let read = desk.open("new", id(0));
    assert_eq!(read.log(), (0..written).map(record).collect::<Vec<_>>());
    drop((read, file));
    let directory = desk.into_directory();
    drop(mounted);
    drop(directory);
}

/// Recovery leaves the blanks of a writer that lives, for however long it has had nothing to write, and
/// removes those of a dead one.
#[test]
fn a_blank_is_its_writers_while_that_lives() {
    let desk = Desk::new();
    let mut writer = desk.writer();
    writer.submit(1, message(1, b"x"));
    assert_eq!(desk.wait(&mut writer, 1)[0].result, Ok(()));
    std::fs::write(desk.path("tmp", ".1.2.3"), b"").unwrap();
    std::fs::write(desk.path("tmp", ".1.2.4"), [0; 9000]).unwrap();
    let mut begun = [0; 9000];
    begun[8999] = 1;
    std::fs::write(desk.path("tmp", ".1.2.5"), begun).unwrap();
    let rescued =
        rescue(desk.fd("tmp"), desk.fd("new"), desk.fd("corrupt"), Duration::ZERO, SystemTime::now());
    let swept = [".1.2.3", ".1.2.4"].map(str::to_owned).to_vec();
    let mut rescued = rescued.unwrap();
    rescued.swept.sort();
    assert_eq!(rescued, Rescued { swept, ..Rescued::default() });
    let days = SystemTime::now() + 3 * SWEEP_AFTER;
    let rescued = rescue(desk.fd("tmp"), desk.fd("new"), desk.fd("corrupt"), ADOPT_AFTER, days).unwrap();
    assert_eq!(rescued, Rescued { swept: vec![".1.2.5".into()], ..Rescued::default() });
    for n in 2..40 {
        writer.submit(n, message(n, b"x"));
        assert_eq!(desk.wait(&mut writer, 1)[0].result, Ok(()));
    }
    drop(writer);
    assert_eq!(desk.messages("new").len(), 39);
    assert_eq!(
        list(desk.fd("tmp")).unwrap(),
        Listing::default(),
        "a writer that ends takes its blanks along"
    );
}
