//! Clients that have said EHLO and do nothing.

use std::time::Instant;

use super::Run;
use crate::figures::{Figures, GREETED, PSS, RSS};
use crate::generator;
use crate::peers::ADDRESS;
use crate::tree;

pub(super) fn measure(run: &Run) -> Figures {
    let begin = Instant::now();
    let sessions = generator::idle(ADDRESS, run.cell.sessions);
    let greeted = sessions.len() as f64 / begin.elapsed().as_secs_f64();
    let (rss, pss) = tree::memory(run.peer.root());
    Figures::from([
        (GREETED.into(), greeted),
        (RSS.into(), rss as f64 / 1024.0),
        (PSS.into(), pss as f64 / 1024.0),
    ])
}
