//! Files that exist before there is a message for them. A thread of its own creates them in `tmp/`, several at
//! a time, and syncs the directory once for all; so when a message comes its name is on stable storage
//! already, and one sync of one file is all that its sender waits for.
//!
//! Where it helps they are filled with zeros in advance, as far as messages will probably go: what is written into
//! blocks that are there leaves the inode as it is, and its sync need not wait for a journal.
//!
//! A blank is locked (flock) for as long as we have it: recovery, which removes what writers left behind,
//! never takes one away from a writer that lives.

use std::io;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::stat::Mode;

use crate::format::BLOCK;
use crate::ops::{Directory, Ops, Output};
use crate::writer::{WriteError, lock};

/// The mode of files in `tmp/` and `new/`: the directories are set-gid, and the group is the
/// queue-manager's, which must be able to write the log.
const SHARED_MODE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR).union(Mode::S_IRGRP).union(Mode::S_IWGRP);

/// The blanks of one writer.
pub(crate) struct Blanks {
    /// How many are made ready; when half of them are taken the others are made again.
    most: usize,
    state: Mutex<State>,
    wanted: Condvar,
    made: Condvar,
}

#[derive(Default)]
struct State {
    ready: Vec<Output>,
    /// Takers who found none.
    waiting: usize,
    /// What they are told when none can be made: so many of them, and why.
    failed: usize,
    error: Option<WriteError>,
    closed: bool,
    /// None where they are not filled.
    extent: Option<Extent>,
}

impl Blanks {
    /// None yet; [`Blanks::run`] makes them.
    pub(crate) fn new(most: usize, filled: bool) -> Self {
        let state = State { extent: filled.then(Extent::default), ..State::default() };
        Self { most, state: Mutex::new(state), wanted: Condvar::new(), made: Condvar::new() }
    }

    /// A file that was a blank is done with: so much of it was used.
    pub(crate) fn used(&self, octets: u64) {
        if let Some(extent) = &mut lock(&self.state).extent {
            extent.used(octets);
        }
    }

    /// An empty file in `tmp/` whose name is on stable storage. Waits when there is none.
    pub(crate) fn take(&self) -> Result<Output, WriteError> {
        let mut state = lock(&self.state);
        if state.ready.is_empty() {
            state.waiting += 1;
            self.wanted.notify_one();
            while state.ready.is_empty() && state.failed == 0 {
                state = self.made.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.waiting -= 1;
        }
        let Some(blank) = state.ready.pop() else {
            state.failed -= 1;
            return Err(state.error.clone().unwrap_or(WriteError::NoSpace));
        };
        if state.ready.len() == self.most / 2 || state.ready.is_empty() {
            self.wanted.notify_one();
        }
        Ok(blank)
    }

    /// Nobody takes any more.
    pub(crate) fn close(&self) {
        lock(&self.state).closed = true;
        self.wanted.notify_one();
    }

    /// The thread: until it is closed; what was not taken is unlinked.
    pub(crate) fn run(&self, ops: &Ops, tmp: &Directory<'_>) {
        let mut names = Names::new();
        while let Some((count, extent)) = self.next() {
            let made = make(ops, tmp, &mut names, count, extent);
            let mut state = lock(&self.state);
            match made {
                Ok(files) => {
                    state.ready.extend(files);
                    state.failed = 0;
                }
                Err(error) => (state.failed, state.error) = (state.waiting, Some(error)),
            }
            self.made.notify_all();
        }
        for blank in &lock(&self.state).ready {
            ops.discard(tmp, blank.name());
        }
    }

    /// How many to make now, and how far to fill them. When none could be made the next are tried when somebody waits
    /// again.
    fn next(&self) -> Option<(usize, u64)> {
        let mut state = lock(&self.state);
        loop {
            if state.closed {
                return None;
            }
            let few = state.ready.len() <= self.most / 2 && state.error.is_none();
            let none = state.ready.is_empty() && state.waiting > state.failed;
            if few || none {
                state.error = None;
                let count = self.most.saturating_sub(state.ready.len()).max(1);
                return Some((count, state.extent.as_ref().map_or(0, Extent::octets)));
            }
            state = self.wanted.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Makes up to `count`, at least one. When the disk has no room for all of them there are fewer.
fn make(
    ops: &Ops,
    tmp: &Directory<'_>,
    names: &mut Names,
    count: usize,
    extent: u64,
) -> Result<Vec<Output>, WriteError> {
    let mut files: Vec<Output> = Vec::with_capacity(count);
    for _ in 0..count {
        match create(ops, tmp, names.next(), extent) {
            Ok(file) => files.push(file),
            Err(error) if files.is_empty() => return Err(error.into()),
            Err(_) => break,
        }
        // To make a file can be dear (ext4 looks long for an inode that was not just used), and a committer
        // that was woken behind us would wait for all of them.
        std::thread::yield_now();
    }
    // A journal takes all of them together.
    let settled = files.iter().filter(|file| file.prepared() > 0).try_for_each(|file| ops.settle(file));
    if let Err(error) = settled.and_then(|()| ops.sync_directory(tmp)) {
        files.iter().for_each(|file: &Output| ops.discard(tmp, file.name()));
        return Err(error.into());
    }
    Ok(files)
}

fn create(ops: &Ops, tmp: &Directory<'_>, name: String, extent: u64) -> io::Result<Output> {
    let mut file = ops.create_locked(tmp, name, SHARED_MODE)?;
    if extent > 0
        && let Err(error) = ops.prepare(&mut file, extent)
    {
        ops.discard(tmp, file.name());
        return Err(error);
    }
    Ok(file)
}

/// How far blanks are filled: as far as those before were used, so that little is written twice for nothing.
#[derive(Debug)]
struct Extent(u64);

impl Default for Extent {
    fn default() -> Self {
        Self(Self::FIRST)
    }
}

impl Extent {
    /// At first: a message or two.
    const FIRST: u64 = 16 * 1024;
    /// Files that are used further have large parts, whose content is what their sync waits for.
    const MOST: u64 = 512 * 1024;

    /// It grows at once, and shrinks by a sixteenth from file to file.
    fn used(&mut self, octets: u64) {
        self.0 = if octets > Self::MOST { 0 } else { octets.max(self.0 - self.0 / 16) };
    }

    fn octets(&self) -> u64 {
        self.0.next_multiple_of(BLOCK)
    }
}

/// Names that no other writer has, or had: process, time of its start, a number. The dot keeps them from
/// being taken for queue ids.
struct Names {
    prefix: String,
    last: u64,
}

impl Names {
    fn new() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { prefix: format!(".{:x}.{:x}", std::process::id(), since.as_nanos()), last: 0 }
    }

    fn next(&mut self) -> String {
        self.last += 1;
        format!("{}.{:x}", self.prefix, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_are_filled_as_far_as_they_are_used() {
        let mut extent = Extent::default();
        assert_eq!(extent.octets(), 16 * 1024);
        extent.used(100_000);
        assert_eq!(extent.octets(), 100_000_u64.next_multiple_of(BLOCK), "it grows at once");
        extent.used(8000);
        assert!((90_000..100_000).contains(&extent.octets()), "and shrinks slowly: {}", extent.octets());
        (0..1000).for_each(|_| extent.used(8000));
        assert_eq!(extent.octets(), 8192);
        extent.used(Extent::MOST);
        assert_eq!(extent.octets(), Extent::MOST);
        extent.used(Extent::MOST + 1);
        assert_eq!(extent.octets(), 0, "large parts have no use for it");
        extent.used(8000);
        assert_eq!(extent.octets(), 8192);
    }
}
