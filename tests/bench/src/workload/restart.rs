//! How soon after a start new mail is taken, and delivered, when much is queued.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use postern_tests::until;

use super::{PATIENCE, Run, wait};
use crate::figures::{Figures, STARTED, STARTED_DELIVERED};
use crate::generator;
use crate::peers::ADDRESS;

pub(super) fn measure(run: &Run, begin: Instant) -> Figures {
    until("it listens", PATIENCE, || TcpStream::connect(ADDRESS).ok());
    generator::send_to_all(ADDRESS, &["u1@v.test".to_owned()], run.cell.size);
    let accepted = begin.elapsed();
    wait("delivered", 1, || std::fs::read_dir(run.peer.maildir("u1").join("new")).map_or(0, Iterator::count));
    let seconds = |time: Duration| time.as_secs_f64();
    Figures::from([(STARTED.into(), seconds(accepted)), (STARTED_DELIVERED.into(), seconds(begin.elapsed()))])
}
