//! The files of `cur/`: opened when needed, their logs written and synced, their ends.
//!
//! The order of things (the S3 and S4 of the spool's table):
//! 1. A result is appended to the file's log at once and synced within a second, in a batch. A crash before
//!    that repeats the delivery: at most what was delivered in the last second.
//!    What cannot be appended now (a full disk) is kept in memory, counts as if it stood there, and is tried
//!    again with each sync: else every further attempt would deliver once more.
//! 2. A failure is recorded only after the report to the sender is durable in the spool itself. A crash
//!    before that tries the recipient again, and reports it again.
//! 3. A message of several in one file gives its blocks back only after the records that it is done are
//!    synced: without them a crash would leave a message to deliver whose body is a hole.
//! 4. The last message of a file unlinks it, without waiting for its log: that the name is gone says more
//!    than the log. The directory is synced with the next batch, so that a crash brings back no name whose
//!    unlinking is older than a second.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use postern_spool::{LogEntry, LogRecord, QueueId, ReadError, SpoolFile};

use crate::syncer::{Batch, Synced, Syncer};

/// Files kept open. Each is two descriptors.
const OPEN_MAX: usize = 128;

/// The files of the queue.
#[derive(Debug)]
pub struct Store {
    cur: OwnedFd,
    /// Messages left, by file: a file goes with its last one.
    files: HashMap<QueueId, u16>,
    open: HashMap<QueueId, SpoolFile>,
    /// The open ones in the order they were opened.
    order: VecDeque<QueueId>,
    syncer: Syncer,
    dirty: BTreeSet<QueueId>,
    /// Records that could not be appended yet, but for deferrals.
    unwritten: BTreeMap<QueueId, Vec<LogRecord>>,
    /// Files that are done and could not be unlinked, each with its last message.
    unremoved: BTreeMap<QueueId, QueueId>,
    directory_dirty: bool,
    drop_dirty: bool,
    /// A batch is under way.
    syncing: bool,
    /// Messages to be given back when the log of their file, which was dirty, is synced.
    give_back: BTreeMap<QueueId, Vec<u16>>,
    /// The same, of files whose sync is under way.
    giving_back: BTreeMap<QueueId, Vec<u16>>,
}

impl Store {
    /// Over the directory `cur`; `drop` is synced with it; `wake` is called from a thread when [`Store::finish_sync`] has work.
    pub fn new(cur: OwnedFd, drop: OwnedFd, wake: impl Fn() + Send + 'static) -> io::Result<Self> {
        let syncer = Syncer::start(cur.try_clone()?, drop, wake)?;
        Ok(Self {
            cur,
            files: HashMap::new(),
            open: HashMap::new(),
            order: VecDeque::new(),
            syncer,
            dirty: BTreeSet::new(),
            unwritten: BTreeMap::new(),
            unremoved: BTreeMap::new(),
            directory_dirty: false,
            drop_dirty: false,
            syncing: false,
            give_back: BTreeMap::new(),
            giving_back: BTreeMap::new(),
        })
    }

    /// The directory.
    pub fn directory(&self) -> &OwnedFd {
        &self.cur
    }

    /// The file belongs to the queue.
    pub fn knows(&self, file: QueueId) -> bool {
        self.files.contains_key(&file)
    }

    /// More than one message of the file is left.
    pub fn is_shared(&self, file: QueueId) -> bool {
        self.files.get(&file).is_some_and(|left| *left > 1)
    }

    /// Takes a file into the queue, with so many messages left.
    pub fn adopt(&mut self, file: QueueId, messages: u16) {
        self.files.insert(file, messages);
    }

    /// A file, opened if need be. Nobody else writes to its log.
    pub fn get(&mut self, file: QueueId) -> Result<&mut SpoolFile, ReadError> {
        if !self.open.contains_key(&file) {
            let opened = SpoolFile::open(self.cur.as_fd(), &file.to_string())?;
            while self.order.len() >= OPEN_MAX {
                if let Some(oldest) = self.order.pop_front() {
                    self.open.remove(&oldest);
                }
            }
            self.order.push_back(file);
            self.open.insert(file, opened);
        }
        self.open.get_mut(&file).ok_or_else(|| ReadError::Io(io::ErrorKind::NotFound.into()))
    }

    /// Appends to the log of a file. After an error the records are in [`Store::unwritten`].
    pub fn append(&mut self, file: QueueId, records: &[LogRecord]) -> Result<(), ReadError> {
        let mut kept = self.unwritten.remove(&file);
        let outcome = match &mut kept {
            None => self.get(file).and_then(|opened| Ok(opened.append(records)?)),
            Some(kept) => {
                kept.extend_from_slice(records);
                self.get(file).and_then(|opened| Ok(opened.append(kept)?))
            }
        };
        self.dirty.insert(file);
        if outcome.is_err() {
            let mut kept = kept.unwrap_or_else(|| records.to_vec());
            kept.retain(|record| !matches!(record.what, LogEntry::Deferred { .. } | LogEntry::BounceSent));
            if !kept.is_empty() {
                self.unwritten.insert(file, kept);
            }
        }
        outcome
    }

    /// What the log of a file is to be read with.
    pub fn unwritten(&self, file: QueueId) -> &[LogRecord] {
        self.unwritten.get(&file).map_or(&[], Vec::as_slice)
    }

    /// Tries again what could not be appended; one that still cannot is enough to know.
    fn append_unwritten(&mut self) {
        let files: Vec<QueueId> = self.unwritten.keys().copied().collect();
        for file in files {
            if self.append(file, &[]).is_err() {
                return;
            }
        }
    }

    /// One message of a file is finished. Its blocks go back only where its records were appended.
    pub fn finish(&mut self, file: QueueId, number: u16, recorded: bool) -> io::Result<()> {
        let left = self.files.get(&file).map_or(0, |left| left.saturating_sub(1));
        if left > 0 {
            self.files.insert(file, left);
            if recorded && !self.unwritten.contains_key(&file) {
                self.give_back.entry(file).or_default().push(number);
                self.dirty.insert(file);
            }
            return Ok(());
        }
        self.forget(file);
        self.directory_dirty = true;
        postern_spool::remove(self.cur.as_fd(), &file.to_string())
    }

    /// Has a file that could not be unlinked when its last message, this one, was finished tried again.
    pub fn remove_later(&mut self, file: QueueId, message: QueueId) {
        self.unremoved.insert(file, message);
    }

    /// Tries again to unlink what could not be: the messages that are gone with their files now.
    pub fn remove_again(&mut self) -> Vec<QueueId> {
        let gone: Vec<_> = std::mem::take(&mut self.unremoved).into_iter().collect();
        let (gone, left) = gone.into_iter().partition::<Vec<_>, _>(|(file, _)| {
            postern_spool::remove(self.cur.as_fd(), &file.to_string()).is_ok()
        });
        self.unremoved = left.into_iter().collect();
        self.directory_dirty |= !gone.is_empty();
        gone.into_iter().map(|(_, message)| message).collect()
    }

    /// A name went from `drop/`: after a power cut it must not come back and be sent again.
    pub fn taken_from_drop(&mut self) {
        self.drop_dirty = true;
    }

    /// The file is no longer of the queue.
    pub fn forget(&mut self, file: QueueId) {
        self.files.remove(&file);
        self.close(file);
        self.dirty.remove(&file);
        self.unwritten.remove(&file);
        self.give_back.remove(&file);
    }

    /// Something waits to be synced.
    pub fn is_dirty(&self) -> bool {
        self.directory_dirty
            || self.drop_dirty
            || !self.dirty.is_empty()
            || !self.unwritten.is_empty()
            || !self.unremoved.is_empty()
    }

    /// A batch is under way.
    pub fn is_syncing(&self) -> bool {
        self.syncing
    }

    /// Hands what is dirty to the thread, unless it is at work. Call it once a second at least.
    pub fn sync(&mut self) {
        if self.syncing || !self.is_dirty() {
            return;
        }
        self.append_unwritten();
        let files = std::mem::take(&mut self.dirty).into_iter().collect();
        self.giving_back = std::mem::take(&mut self.give_back);
        let directory = std::mem::take(&mut self.directory_dirty);
        let drop = std::mem::take(&mut self.drop_dirty);
        self.syncer.submit(Batch { files, directory, drop });
        self.syncing = true;
    }

    /// Takes what the thread has finished; what failed is dirty again, and told.
    pub fn finish_sync(&mut self) -> Vec<(String, io::Error)> {
        let mut troubles = Vec::new();
        while let Some(Synced { files, failed }) = self.syncer.completion() {
            self.syncing = false;
            for file in files {
                for number in self.giving_back.remove(&file).unwrap_or_default() {
                    let given = self.get(file).and_then(|f| Ok(f.give_back(usize::from(number))?));
                    match given {
                        Ok(()) => {}
                        // Its last message was finished meanwhile.
                        Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {}
                        Err(ReadError::Io(error)) => troubles.push((file.to_string(), error)),
                        Err(error) => troubles.push((file.to_string(), io::Error::other(error))),
                    }
                }
            }
            for (name, error) in failed {
                match QueueId::parse(&name) {
                    Some(file) => drop(self.dirty.insert(file)),
                    None if name == "drop" => self.drop_dirty = true,
                    None => self.directory_dirty = true,
                }
                troubles.push((name, error));
            }
            for (file, numbers) in std::mem::take(&mut self.giving_back) {
                self.give_back.entry(file).or_default().extend(numbers);
            }
        }
        troubles
    }

    fn close(&mut self, file: QueueId) {
        if self.open.remove(&file).is_some() {
            self.order.retain(|open| *open != file);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use postern_address::{Mailbox, ReversePath};
    use postern_spool::{
        BodyType, DoneStatus, Envelope, LogEntry, NewMessage, Origin, Timestamp, Writer, WriterDirs,
    };

    use super::*;

    fn message(id: QueueId) -> NewMessage {
        let envelope = Envelope {
            reverse_path: ReversePath::Null,
            recipients: vec![Mailbox::parse("u@x.test").unwrap()],
            arrival: Timestamp(1),
            body: BodyType::SevenBit,
            origin: Origin::Internal,
            options: postern_spool::Options::default(),
        };
        NewMessage { id, envelope, prepend: Vec::new(), body: vec![b'x'; 9000] }
    }

    /// Otherwise every attempt of an hour with a full disk would deliver once more to those who have it.
    #[test]
    fn what_cannot_be_recorded_now_is_kept_and_recorded_later() {
        let spool = tempfile::tempdir().unwrap();
        postern_spool::create_directories(spool.path()).unwrap();
        let open = |name: &str| OwnedFd::from(std::fs::File::open(spool.path().join(name)).unwrap());
        let cur = open("cur");
        let file = QueueId::from_u64(1000);
        postern_spool::write_one(cur.as_fd(), &message(file)).unwrap();
        let mut store = Store::new(cur, open("drop"), || {}).unwrap();
        store.adopt(file, 1);
        let (path, away) = (spool.path().join("cur").join(file.to_string()), spool.path().join("away"));
        let record = |what| LogRecord { message: 0, what };
        let done = LogEntry::Done { recipient: 0, address: None, status: DoneStatus::Delivered };
        let later =
            |n| LogEntry::Deferred { recipient: n, address: None, until: Timestamp(1), reply: "450".into() };
        std::fs::rename(&path, &away).unwrap();
        assert!(store.append(file, &[record(done.clone()), record(later(1))]).is_err());
        assert_eq!(store.unwritten(file), [record(done.clone())], "deferrals are made again anyhow");
        assert!(store.is_dirty());
        std::fs::rename(&away, &path).unwrap();
        store.append(file, &[record(later(2))]).unwrap();
        assert_eq!(store.get(file).unwrap().log(), [record(done.clone()), record(later(2))]);
        assert!(store.unwritten(file).is_empty());

        store.close(file);
        std::fs::rename(&path, &away).unwrap();
        assert!(store.append(file, &[record(LogEntry::Held)]).is_err());
        std::fs::rename(&away, &path).unwrap();
        store.sync();
        assert_eq!(store.get(file).unwrap().log().len(), 3, "the next sync tries again");
    }

    #[test]
    fn a_shared_file_gives_back_after_the_sync_and_goes_with_its_last_message() {
        let spool = tempfile::tempdir().unwrap();
        postern_spool::create_directories(spool.path()).unwrap();
        let open = |name: &str| OwnedFd::from(std::fs::File::open(spool.path().join(name)).unwrap());
        // Two messages handed over together usually share a file; until they do, try again.
        let (woken, wait) = channel();
        let dirs = WriterDirs { tmp: open("tmp"), new: open("cur") };
        let mut writer = Writer::start(dirs, move || {
            let _ = woken.send(());
        })
        .unwrap();
        let shared = (0..1000).step_by(3).find_map(|n| {
            (n..n + 3).for_each(|n| writer.submit(n, message(QueueId::from_u64(1000 + n))));
            let mut done = 0;
            while done < 3 {
                wait.recv().unwrap();
                done += writer.completions().len();
            }
            let files = postern_spool::list(open("cur").as_fd()).unwrap().files;
            files.into_iter().find(|id| {
                let file = SpoolFile::open(open("cur").as_fd(), &id.to_string());
                file.is_ok_and(|file| file.messages().len() > 1)
            })
        });
        let file = shared.expect("no two messages shared a file");

        let (woken, wait) = channel();
        let mut store = Store::new(open("cur"), open("drop"), move || {
            let _ = woken.send(());
        })
        .unwrap();
        let messages = store.get(file).unwrap().messages().len() as u16;
        store.adopt(file, messages);
        let done = LogEntry::Done { recipient: 0, address: None, status: DoneStatus::Delivered };
        store.append(file, &[LogRecord { message: 0, what: done.clone() }]).unwrap();
        store.finish(file, 0, true).unwrap();
        assert!(store.get(file).unwrap().read_body(0).is_ok(), "not before the sync");
        store.sync();
        wait.recv().unwrap();
        assert!(store.finish_sync().is_empty() && !store.is_dirty());
        store.taken_from_drop();
        assert!(store.is_dirty());
        assert_eq!(store.get(file).unwrap().log().len(), 1);
        assert!(store.get(file).unwrap().read_body(1).is_ok());
        for number in 1..messages {
            store.finish(file, number, true).unwrap();
        }
        assert!(!spool.path().join("cur").join(file.to_string()).exists());
        store.sync();
        wait.recv().unwrap();
        assert!(store.finish_sync().is_empty());
    }
}
