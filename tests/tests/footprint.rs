//! What a release costs: memory at rest, and time to the first 220. `make footprint` runs it; a debug build
//! would prove nothing.
#![allow(clippy::unwrap_used)]
#![cfg(not(debug_assertions))]

use std::time::{Duration, Instant};

use postern_tests::{Smtp, System, message};

#[test]
fn every_program_is_small_at_rest() {
    let system = System::start();
    let id = system.smtp().send("a@x.test", &["u@v.test"], &message("one")).unwrap();
    system.finished(&id);
    let mut pids = system.pids();
    pids.insert("master".into(), system.master());
    for (program, pid) in pids {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let resident: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        println!("{program:20} {resident:6} KiB");
        assert!(resident < 8 << 10, "{program}: {resident} KiB");
    }
}

#[test]
fn it_starts_fast() {
    let address = postern_tests::Address::claim();
    let mut system = System::builder().at(address.port(2525)).prepare();
    // The first run makes the directories and brings the programs into memory.
    system.start_again();
    system.stop();
    let begin = Instant::now();
    system.start_again();
    let client = Smtp::connect(address.port(2525));
    let took = begin.elapsed();
    println!("from start to 220: {took:?}");
    assert_eq!(client.greeting().code, 220);
    assert!(took < Duration::from_millis(300), "{took:?}");
}
