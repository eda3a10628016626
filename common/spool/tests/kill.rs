//! A writer that is killed, for real: every message it had reported is found.

#![allow(clippy::unwrap_used)] // a test that panics has failed

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use common::*;
use postern_spool::*;

/// Names the spool to a child.
const SPOOL: &str = "POSTERN_TEST_SPOOL";

#[test]
fn every_reported_message_is_found_after_a_kill() {
    let mut unreported = 0;
    for round in 1..=20 {
        let desk = Desk::in_memory();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_child", "--ignored", "--nocapture"])
            .env(SPOOL, desk.directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let reported = |line: String| QueueId::parse(line.strip_prefix("250 ")?);
        let mut known: BTreeSet<QueueId> =
            lines.by_ref().map_while(Result::ok).filter_map(reported).take(round * 17).collect();
        child.kill().unwrap();
        // What it had still said before it died counts as well; only a whole line is a report.
        known.extend(lines.map_while(Result::ok).filter_map(reported));
        child.wait().unwrap();

        let rescued =
            rescue(desk.fd("tmp"), desk.fd("new"), desk.fd("corrupt"), Duration::ZERO, SystemTime::now())
                .unwrap();
        assert_eq!((rescued.failed, rescued.set_aside), (vec![], vec![]));
        let found = desk.messages("new");
        for id in &known {
            assert!(found.contains_key(id), "{id} had its 250 and is lost");
        }
        unreported += found.len() - known.len();
        for (id, message) in found {
            let n = id.micros() - self::id(0).micros();
            assert!(message == self::message(n, &body(n)), "{id} is not what was sent");
        }
    }
    println!("{unreported} messages were found that had not been reported");
}

/// The program that is killed; never run by itself.
#[test]
#[ignore = "is started by the test above, which kills it"]
fn the_child() {
    let Some(spool) = std::env::var_os(SPOOL).map(PathBuf::from) else { return };
    let directory = |name| std::fs::File::open(spool.join(name)).unwrap().into();
    let (wake, woken) = std::sync::mpsc::sync_channel(1);
    let wake = move || wake.try_send(()).unwrap_or_default();
    let mut writer =
        Writer::start(WriterDirs { tmp: directory("tmp"), new: directory("new") }, wake).unwrap();
    let (mut next, mut waiting) = (0, 0);
    loop {
        while waiting < 20 {
            let sent = message(next, &body(next));
            if sent.body.len() > 30_000 {
                writer.open_stream(next, sent.id);
                sent.body.chunks(8192).for_each(|chunk| writer.append(next, chunk.to_vec()));
                writer.finish_stream(next, sent.envelope, sent.prepend);
            } else {
                writer.submit(next, sent);
            }
            (next, waiting) = (next + 1, waiting + 1);
        }
        woken.recv().unwrap();
        for done in writer.completions() {
            assert_eq!(done.result, Ok(()));
            // One write a line, so that a line is there or is not.
            std::io::stdout().lock().write_all(format!("250 {}\n", done.id).as_bytes()).unwrap();
            waiting -= 1;
        }
    }
}

fn body(n: u64) -> Vec<u8> {
    vec![(n % 251) as u8; (n * 7919 % 40_000) as usize]
}
