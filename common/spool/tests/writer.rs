//! The writer and the reader together, on real files.

#![allow(clippy::unwrap_used)] // a test that panics has failed

mod common;

use std::collections::HashMap;
use std::io;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use common::*;
use postern_spool::*;
use postern_sys::WRITE_BLOCK;
use proptest::prelude::*;

#[test]
fn one_message_there_and_back() {
    let desk = Desk::new();
    let mut writer = desk.writer();
    let sent = message(1, b"Subject: x\r\n\r\nbody\r\n");
    writer.submit(7, sent.clone());
    let done = desk.wait(&mut writer, 1);
    assert_eq!((done[0].token, done[0].id, &done[0].result), (7, sent.id, &Ok(())));
    drop(writer);
    assert_eq!(list(desk.fd("tmp")).unwrap(), Listing::default());
    desk.holds("new", &sent);
    // As plain as qmail's: nothing but the message and what is about it.
    assert_eq!(desk.open("new", sent.id).messages()[0].offset, 64);
}

#[test]
fn one_message_written_and_waited_for() {
    let desk = Desk::new();
    let sent = message(1, b"");
    write_one(desk.fd("drop"), &sent).unwrap();
    desk.holds("drop", &sent);
    assert_eq!(list(desk.fd("drop")).unwrap().others, Vec::<String>::new());
    assert!(write_one(desk.fd("drop"), &message(1, b"other")).is_err(), "never over another");
    desk.holds("drop", &sent);
    assert_eq!(list(desk.fd("drop")).unwrap(), Listing { files: vec![sent.id], others: vec![] });
}

#[test]
fn what_comes_during_a_sync_goes_into_the_next_file() {
    let desk = Desk::new();
    let gate = Gate::new();
    let mut writer = desk.probed(gate.probe());
    writer.submit(0, message(0, b"first"));
    gate.reached();
    for n in 1..=300 {
        writer.submit(n, message(n, &vec![b'x'; n as usize * 7]));
    }
    gate.open();
    let done = desk.wait(&mut writer, 301);
    assert!(done.iter().all(|d| d.result.is_ok() && d.id == id(d.token)));
    drop(writer);
    let sizes: Vec<_> =
        list(desk.fd("new")).unwrap().files.iter().map(|f| desk.open("new", *f).messages().len()).collect();
    assert_eq!(sizes, [1, 256, 44]);
    let file = desk.open("new", id(1));
    for (n, stored) in file.messages().iter().enumerate() {
        assert_eq!(stored.offset % 4096, 0);
        assert_same(&file, n, &message(n as u64 + 1, &vec![b'x'; (n + 1) * 7]));
    }
}

#[test]
fn a_file_of_several_is_bounded_in_octets() {
    let desk = Desk::new();
    let gate = Gate::new();
    let mut writer = desk.probed(gate.probe());
    writer.submit(0, message(0, b"first"));
    gate.reached();
    for n in 1..=6 {
        writer.submit(n, message(n, &vec![b'x'; 400 << 10]));
    }
    writer.submit(7, message(7, &vec![b'y'; 6 << 20]));
    gate.open();
    desk.wait(&mut writer, 8);
    drop(writer);
    let sizes: Vec<_> =
        list(desk.fd("new")).unwrap().files.iter().map(|f| desk.open("new", *f).messages().len()).collect();
    assert_eq!(sizes, [1, 3, 3, 1]);
    desk.holds("new", &message(7, &vec![b'y'; 6 << 20]));
}

#[test]
fn many_producers() {
    let desk = Desk::new();
    let writer = Mutex::new(desk.writer());
    let mut waiting = 800;
    std::thread::scope(|scope| {
        for producer in 0..8u64 {
            let writer = &writer;
            scope.spawn(move || {
                for k in 0..100 {
                    let n = producer * 100 + k;
                    if k % 25 == 7 {
                        let sent = message(n, &body(n));
                        writer.lock().unwrap().open_stream(n, sent.id);
                        for piece in sent.body.chunks(1000) {
                            writer.lock().unwrap().append(n, piece.to_vec());
                        }
                        writer.lock().unwrap().finish_stream(n, sent.envelope, sent.prepend);
                    } else {
                        writer.lock().unwrap().submit(n, message(n, &body(n)));
                    }
                }
            });
        }
        while waiting > 0 {
            desk.next_wake();
            for done in writer.lock().unwrap().completions() {
                assert_eq!((done.id, done.result), (id(done.token), Ok(())));
                waiting -= 1;
            }
        }
    });
    drop(writer);
    assert_eq!(list(desk.fd("tmp")).unwrap(), Listing::default());
    let stored = desk.messages("new");
    assert_eq!(stored.len(), 800);
    for n in 0..800 {
        assert!(stored[&id(n)] == message(n, &body(n)), "message {n} came back changed");
    }
}

fn body(n: u64) -> Vec<u8> {
    (0..n * 13 % 5000).map(|k| (k * n) as u8).collect()
}

#[test]
fn a_stream_and_its_back_pressure() {
    let desk = Desk::new();
    let gate = Gate::of(|operation| matches!(operation, Operation::Write(..)));
    let mut writer = desk.probed(gate.probe());
    let sent = message(1, &(0..3_000_000u32).map(|n| (n / 3) as u8).collect::<Vec<_>>());
    writer.open_stream(9, sent.id);
    let mut chunks = sent.body.chunks(40_007);
    writer.append(9, chunks.next().unwrap().to_vec());
    gate.reached();
    chunks.for_each(|chunk| writer.append(9, chunk.to_vec()));
    assert_eq!(writer.unwritten(9), sent.body.len());
    gate.open();
    while writer.unwritten(9) > STREAM_ABOVE {
        desk.next_wake();
        assert_eq!(writer.completions(), []);
    }
    writer.finish_stream(9, sent.envelope.clone(), sent.prepend.clone());
    let done = desk.wait(&mut writer, 1);
    assert_eq!(done, [Completion { token: 9, id: sent.id, result: Ok(()) }]);
    assert_eq!(writer.unwritten(9), 0);
    drop(writer);
    desk.holds("new", &sent);
    let (descriptor, offset) = desk.open("new", sent.id).content_descriptor(0).unwrap();
    let mut file = std::fs::File::from(descriptor);
    let mut content = Vec::new();
    io::Seek::seek(&mut file, io::SeekFrom::Start(offset)).unwrap();
    io::Read::read_to_end(&mut io::Read::take(&file, sent.body.len() as u64), &mut content).unwrap();
    assert!(content == sent.body);
    assert!(io::Write::write(&mut file, b"x").is_err(), "read-only");
}

#[test]
fn an_aborted_stream_leaves_nothing() {
    let desk = Desk::new();
    let mut writer = desk.writer();
    writer.open_stream(1, id(1));
    writer.append(1, vec![b'x'; 5000]);
    writer.abort_stream(1);
    // The same token and even the same id at once again: commands keep their order.
    let sent = message(1, b"second try");
    writer.open_stream(1, sent.id);
    writer.append(1, sent.body.clone());
    writer.finish_stream(1, sent.envelope.clone(), sent.prepend.clone());
    // And one that is still open when the writer goes.
    writer.open_stream(2, id(2));
    writer.append(2, vec![b'x'; 5000]);
    let done = desk.wait(&mut writer, 1);
    assert_eq!(done, [Completion { token: 1, id: sent.id, result: Ok(()) }]);
    drop(writer);
    desk.holds("new", &sent);
    assert_eq!(list(desk.fd("new")).unwrap().files, [sent.id]);
    assert_eq!(list(desk.fd("tmp")).unwrap(), Listing::default());
}

#[test]
fn dropping_the_writer_writes_what_was_submitted() {
    let desk = Desk::new();
    let mut writer = desk.writer();
    (0..50).for_each(|n| writer.submit(n, message(n, b"x")));
    drop(writer);
    assert_eq!(desk.messages("new").len(), 50);
}

#[test]
fn a_shared_file_gives_back_one_body_and_hands_out_another_alone() {
    let desk = Desk::new();
    let mut writer = gated_batch(&desk, &[b"small", &[b'x'; 10_000], &[b'y'; 4096], b"tail"]);
    desk.wait(&mut writer, 5);
    drop(writer);
    let file = desk.open("new", id(1));
    let blocks =
        || std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(desk.path("new", id(1))).unwrap());
    let before = blocks();
    file.give_back(1).unwrap();
    // 10,000 octets take three blocks of 4 KiB; blocks are counted in 512 octets.
    assert!(blocks() + 24 <= before || before < 24, "{before} blocks became {}", blocks());
    assert!(matches!(file.read_body(1), Err(ReadError::Corrupt(_))));
    for n in [0, 2, 3] {
        let (descriptor, offset) = file.content_descriptor(n).unwrap();
        let mut content = Vec::new();
        let mut descriptor = std::fs::File::from(descriptor);
        io::Read::read_to_end(&mut descriptor, &mut content).unwrap();
        assert_eq!(offset, 0);
        assert!(content == file.read_body(n).unwrap(), "body {n} and nothing else");
        assert!(io::Write::write(&mut descriptor, b"x").is_err(), "sealed");
    }
    (0..4).for_each(|n| file.give_back(n).unwrap());
    assert_eq!(desk.open("new", id(1)).messages(), file.messages(), "the index stays");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn batches_round_trip(bodies in proptest::collection::vec(
        prop_oneof![Just(vec![]), any::<Vec<u8>>(), (1usize..20_000).prop_map(|n| vec![0xe9; n])], 1..12,
    )) {
        let desk = Desk::in_memory();
        let slices: Vec<&[u8]> = bodies.iter().map(Vec::as_slice).collect();
        let mut writer = gated_batch(&desk, &slices);
        desk.wait(&mut writer, bodies.len() + 1);
        drop(writer);
        let file = desk.open("new", id(1));
        prop_assert_eq!(file.messages().len(), bodies.len());
        for (n, body) in bodies.iter().enumerate() {
            prop_assert!(restore(&file, n) == message(n as u64 + 1, body));
        }
    }

    /// Whatever the pieces, and but for its last three writes (the rest, the foot and the head) in whole blocks.
    #[test]
    fn streams_round_trip(chunks in proptest::collection::vec((any::<Vec<u8>>(), 1usize..1000), 0..20)) {
        let desk = Desk::in_memory();
        let writes = Arc::new(Mutex::new(Vec::new()));
        let seen = writes.clone();
        let mut writer = desk.probed(Arc::new(move |operation| {
            if let Operation::Write(_, at, slices) = operation {
                let octets = slices.iter().map(|slice| slice.len()).sum::<usize>();
                seen.lock().unwrap().push(at + octets as u64);
            }
            Ok(())
        }));
        let chunks: Vec<Vec<u8>> = chunks.into_iter().map(|(chunk, times)| chunk.repeat(times)).collect();
        let sent = message(1, &chunks.concat());
        writer.open_stream(1, sent.id);
        chunks.into_iter().for_each(|chunk| writer.append(1, chunk));
        writer.finish_stream(1, sent.envelope.clone(), sent.prepend.clone());
        desk.wait(&mut writer, 1);
        drop(writer);
        desk.holds("new", &sent);
        let ends = writes.lock().unwrap();
        let whole = ends.get(..ends.len().saturating_sub(3)).unwrap_or_default();
        prop_assert!(whole.iter().all(|end| end % WRITE_BLOCK as u64 == 0), "{ends:?}");
    }
}

#[test]
fn listing_is_in_order_of_time_and_leaves_strangers_alone() {
    let desk = Desk::new();
    for n in [5, 3, 9, 1] {
        write_one(desk.fd("cur"), &message(n, b"")).unwrap();
    }
    std::fs::write(desk.path("cur", "readme"), b"").unwrap();
    std::fs::write(desk.path("cur", id(2).to_string().to_lowercase()), b"").unwrap();
    std::fs::create_dir(desk.path("cur", id(4))).unwrap();
    let listing = list(desk.fd("cur")).unwrap();
    assert_eq!(listing.files, [1, 3, 5, 9].map(id));
    assert_eq!(listing.others.len(), 2);
    let names: HashMap<_, _> = listing.others.iter().map(|n| (n.clone(), ())).collect();
    assert!(names.contains_key("readme"));
}

#[test]
fn wakes_are_one_a_file() {
    let desk = Desk::new();
    let gate = Gate::new();
    let (wakes, woken) = channel();
    let wakes = Mutex::new(wakes);
    let wake = move || wakes.lock().unwrap().send(()).unwrap_or_default();
    let mut writer = Writer::start_probed(desk.dirs(), wake, gate.probe()).unwrap();
    writer.submit(0, message(0, b""));
    gate.reached();
    (1..=200).for_each(|n| writer.submit(n, message(n, b"x")));
    gate.open();
    let writer = Arc::new(Mutex::new(Some(writer)));
    drop(writer.lock().unwrap().take());
    assert_eq!(woken.iter().count(), 2);
}
