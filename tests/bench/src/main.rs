//! NAME
//!     postern-bench: Postern and other mail systems side by side, in one run
//!
//! SYNOPSIS
//!     `postern-bench [--quick] [--peers postfix,exim] [--rounds N] [--seconds S] [--document]
//!     [--workload relay,hold [--sessions 10,50] [--size 4,64] [--short] [--trace]]`
//!
//! WHAT IT DOES
//!     Starts each system as an instance of its own, gives all of them the same load by turns (A B A B), and
//!     writes what came out to `target/bench/results.json` and, between two marks, into
//!     `docs/performance.md`, with charts beside it. `make bench-quick` takes three minutes, `make bench` most
//!     of an hour. With others than Postfix it has a plan of fewer cells, a file and marks of its own
//!     (`results-others.json`), and no charts: neither run changes what the other wrote.
//!     With `--workload` exactly these cells are measured, every workload with each number of sessions and
//!     each size (in KiB); otherwise those of the plan ([`plan`]). `--peers` says beside whom: `postfix` if
//!     nothing is said, `none`, or `all`.
//!
//! TALKS TO
//!     127.0.0.0/8 of a network of its own. The load is smtp-source's and the sink is smtp-sink, both
//!     Postfix's; the generator of our own ([`generator`]) is for what these do not do: telling how long the
//!     last reply takes, and many recipients' addresses.
//!
//! TRUST
//!     It is root: it starts Postfix, and makes namespaces. Postern has its system users.
//!
//! FAILURE
//!     Every round of every system is a process of its own in namespaces of its own ([`isolate`]). When it
//!     ends, however it ends, the kernel ends all that it started. A round that fails (a message lost, nothing
//!     delivered for long) is reported as failed, its logs are kept in `target/bench/failed`, and the run goes
//!     on; the status is then 1.
//!
//! BUGS
//!     The load generator shares the machine's cores with what it measures.

#![forbid(unsafe_code)]
// A round's way to fail is to panic.
#![allow(clippy::unwrap_used)]

mod beside;
mod cell;
mod cgroup;
mod figures;
mod generator;
mod isolate;
mod limits;
mod machine;
mod options;
mod peers;
mod plan;
mod report;
mod round;
mod rounds;
mod tree;
mod workload;

use std::process::ExitCode;

use crate::options::Options;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some((isolate::INSIDE, task)) = words.split_first().map(|(first, rest)| (&**first, rest)) {
        isolate::inside();
        println!("{}", round::perform(task));
        // Nothing is stopped in order: the kernel ends it all at once.
        std::process::exit(0);
    }
    let options = match Options::parse(&words) {
        Ok(options) => options,
        Err(why) => {
            eprintln!("postern-bench: {why}");
            return ExitCode::from(64);
        }
    };
    let results = rounds::run(&options, plan::cells(&options));
    report::write(&options, &results);
    ExitCode::from(u8::from(!results.failures.is_empty()))
}
