//! One sync of `tmp/` for all who wait for one, made by a thread of its own: while a file is synced its
//! directory is too, and a journal takes both in one commit.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::ops::{Directory, Ops};
use crate::writer::{WriteError, lock};

/// Where syncs of the directory are asked for.
#[derive(Default)]
pub(crate) struct Together {
    next: Mutex<Next>,
    asked: Condvar,
}

#[derive(Default)]
struct Next {
    /// Those who asked since the last sync began.
    group: Option<Arc<Group>>,
    closed: bool,
}

/// Those who share one sync.
#[derive(Default)]
pub(crate) struct Group {
    result: Mutex<Option<Result<(), WriteError>>>,
    done: Condvar,
}

impl Together {
    /// Asks for a sync that begins after this call: one that is under way may have missed the caller's
    /// entry.
    pub(crate) fn ask(&self) -> Arc<Group> {
        let mut next = lock(&self.next);
        let group = next.group.get_or_insert_default().clone();
        self.asked.notify_one();
        group
    }

    /// Nobody asks any more.
    pub(crate) fn close(&self) {
        lock(&self.next).closed = true;
        self.asked.notify_one();
    }

    /// The thread: until it is closed, and nobody waits.
    pub(crate) fn run(&self, ops: &Ops, directory: &Directory<'_>) {
        while let Some(group) = self.next() {
            let result = ops.sync_directory(directory).map_err(WriteError::from);
            *lock(&group.result) = Some(result);
            group.done.notify_all();
        }
    }

    fn next(&self) -> Option<Arc<Group>> {
        let mut next = lock(&self.next);
        loop {
            match next.group.take() {
                Some(group) => return Some(group),
                None if next.closed => return None,
                None => next = self.asked.wait(next).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

impl Group {
    /// What became of the sync.
    pub(crate) fn wait(&self) -> Result<(), WriteError> {
        let mut result = lock(&self.result);
        loop {
            match &*result {
                Some(result) => return result.clone(),
                None => result = self.done.wait(result).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}
