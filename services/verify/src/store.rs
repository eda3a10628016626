//! What the greylist knows, on the disk: one file, appended to, and written anew when most of it is old.
//!
//! ```text
//! head      8 magic  16 key of the hashes   4 zero   4 checksum
//! records   8 key  4 first  4 last  2 passes  2 zero  4 checksum      (the last of a key counts)
//! ```
//!
//! Numbers are little-endian, checksums CRC-32C. Records are not synced: what a power cut takes are some minutes
//! of it, and whoever they were comes back once more. A record that is damaged is passed over; a head that is
//! damaged makes the file worthless, and it is set aside as `greylist.damaged`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{self, Receiver, TryRecvError};

use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;

use crate::greylist::Entry;

const MAGIC: &[u8; 8] = b"PSTNGRY1";
const HEAD: usize = 32;
const RECORD: usize = 24;

const NAME: &str = "greylist";
const NEW: &str = "greylist.new";
const DAMAGED: &str = "greylist.damaged";

/// Records that may be old before the file is written anew, besides as many as are of use.
const OLD_MOST: usize = 4096;

/// More is not read: no file of ours is that long.
const FILE_MOST: u64 = 64 << 20;

/// The file.
#[derive(Debug)]
pub struct Store {
    directory: OwnedFd,
    file: File,
    /// Key of the hashes.
    pub hash: [u64; 2],
    records: usize,
    /// To be appended.
    pending: Vec<u8>,
    /// The file that is being written anew, and what came meanwhile.
    rewrite: Option<Rewrite>,
    /// So many records until it is tried again after it failed.
    patience: usize,
}

#[derive(Debug)]
struct Rewrite {
    written: Receiver<io::Result<File>>,
    records: usize,
    since: Vec<u8>,
}

/// What was found at the start.
#[derive(Debug, Default)]
pub struct Found {
    /// Everything readable, in the file's order.
    pub entries: Vec<Entry>,
    /// Damaged records.
    pub damaged: usize,
    /// The whole file was set aside: why.
    pub set_aside: Option<&'static str>,
}

impl Store {
    /// Opens the file in a directory, or makes one with `fresh` as the key of its hashes.
    pub fn open(directory: OwnedFd, fresh: [u64; 2]) -> io::Result<(Self, Found)> {
        let mut file = open(&directory, NAME, OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_APPEND)?;
        let mut octets = Vec::new();
        (&mut file).take(FILE_MOST).read_to_end(&mut octets)?;
        let mut found = Found::default();
        let hash = match read_head(&octets) {
            Ok(hash) => hash,
            Err(why) => {
                if !octets.is_empty() {
                    found.set_aside = Some(why);
                    renameat(&directory, NAME, &directory, DAMAGED)?;
                    file = open(&directory, NAME, OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_APPEND)?;
                }
                octets = Vec::new();
                file.write_all(&head(fresh))?;
                fresh
            }
        };
        let records = octets.get(HEAD..).unwrap_or_default();
        for record in records.chunks(RECORD) {
            match read_record(record) {
                Some(entry) => found.entries.push(entry),
                None => found.damaged += 1,
            }
        }
        let torn = records.len() % RECORD;
        if torn > 0 {
            // The next record must begin where one can be found.
            file.set_len((HEAD + records.len() - torn) as u64)?;
        }
        let store = Self {
            directory,
            file,
            hash,
            records: records.len() / RECORD,
            pending: Vec::new(),
            rewrite: None,
            patience: 0,
        };
        Ok((store, found))
    }

    /// Something is to be kept. It is written by [`Store::write`].
    pub fn note(&mut self, entry: Entry) {
        write_record(&mut self.pending, entry);
    }

    /// Writes what was noted.
    pub fn write(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let pending = std::mem::take(&mut self.pending);
        if let Some(rewrite) = &mut self.rewrite {
            rewrite.since.extend_from_slice(&pending);
        }
        self.records += pending.len() / RECORD;
        let before = self.file.metadata()?.len();
        let written = self.file.write_all(&pending);
        if written.is_err() {
            // Half a record would hide those behind it.
            self.file.set_len(before)?;
        }
        written
    }

    /// Most of the file is old: `live` records would do.
    pub fn wants_rewrite(&self, live: usize) -> bool {
        self.rewrite.is_none() && self.records > (live * 2 + OLD_MOST).max(self.patience)
    }

    /// Writes the file anew with these entries, in a thread of its own; `wake` is called when
    /// [`Store::rewritten`] has something to do.
    pub fn rewrite(
        &mut self,
        entries: impl Iterator<Item = Entry>,
        wake: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let mut octets = head(self.hash).to_vec();
        entries.for_each(|entry| write_record(&mut octets, entry));
        let records = (octets.len() - HEAD) / RECORD;
        let directory = self.directory.try_clone()?;
        let (tell, written) = mpsc::channel();
        std::thread::Builder::new().name("greylist".into()).spawn(move || {
            let write = || -> io::Result<File> {
                let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_APPEND;
                let mut file = open(&directory, NEW, flags)?;
                file.write_all(&octets)?;
                file.sync_data()?;
                Ok(file)
            };
            // Nobody listens any more: the program ends.
            let _ = tell.send(write());
            wake();
        })?;
        self.rewrite = Some(Rewrite { written, records, since: Vec::new() });
        Ok(())
    }

    /// The file written anew takes the place of the old one, if it is ready. None while it is not.
    pub fn rewritten(&mut self) -> Option<io::Result<()>> {
        let written = match self.rewrite.as_ref()?.written.try_recv() {
            Ok(written) => written,
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Disconnected) => Err(io::Error::other("the thread that wrote it is gone")),
        };
        let Rewrite { records, since, .. } = self.rewrite.take()?;
        self.patience = self.records.saturating_mul(2);
        Some(written.and_then(|mut file| {
            file.write_all(&since)?;
            renameat(&self.directory, NEW, &self.directory, NAME)?;
            self.file = file;
            self.records = records + since.len() / RECORD;
            self.patience = 0;
            Ok(())
        }))
    }

    /// Records in the file.
    pub fn records(&self) -> usize {
        self.records
    }
}

fn open(directory: &impl AsFd, name: &str, flags: OFlag) -> io::Result<File> {
    let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let opened = openat(directory, name, flags, Mode::from_bits_truncate(0o600))?;
    Ok(File::from(opened))
}

fn head(hash: [u64; 2]) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..8].copy_from_slice(MAGIC);
    head[8..16].copy_from_slice(&hash[0].to_le_bytes());
    head[16..24].copy_from_slice(&hash[1].to_le_bytes());
    let crc = crc32c::crc32c(&head[..28]);
    head[28..].copy_from_slice(&crc.to_le_bytes());
    head
}

fn read_head(octets: &[u8]) -> Result<[u64; 2], &'static str> {
    let head = octets.first_chunk::<HEAD>().ok_or("it is too short")?;
    if !head.starts_with(MAGIC) {
        return Err("it is none of ours, or of a newer version");
    }
    if number(head, 28, 4) != u64::from(crc32c::crc32c(&head[..28])) {
        return Err("its head is damaged");
    }
    Ok([number(head, 8, 8), number(head, 16, 8)])
}

fn write_record(out: &mut Vec<u8>, entry: Entry) {
    let from = out.len();
    out.extend_from_slice(&entry.key.to_le_bytes());
    out.extend_from_slice(&entry.first.to_le_bytes());
    out.extend_from_slice(&entry.last.to_le_bytes());
    out.extend_from_slice(&entry.passes.to_le_bytes());
    out.extend_from_slice(&[0, 0]);
    let crc = crc32c::crc32c(&out[from..]);
    out.extend_from_slice(&crc.to_le_bytes());
}

fn read_record(record: &[u8]) -> Option<Entry> {
    let record = record.first_chunk::<RECORD>()?;
    if number(record, 20, 4) != u64::from(crc32c::crc32c(&record[..20])) {
        return None;
    }
    Some(Entry {
        key: number(record, 0, 8),
        first: number(record, 8, 4) as u32,
        last: number(record, 12, 4) as u32,
        passes: number(record, 16, 2) as u16,
    })
}

/// Up to 8 octets, little-endian.
fn number(octets: &[u8], from: usize, length: usize) -> u64 {
    octets.iter().skip(from).take(length).rev().fold(0, |number, octet| number << 8 | u64::from(*octet))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn entry(n: u64) -> Entry {
        Entry { key: n << 40 | n, first: n as u32, last: n as u32 + 1, passes: n as u16 }
    }

    fn reopen(directory: &Path) -> (Store, Found) {
        Store::open(File::open(directory).unwrap().into(), [7, 8]).unwrap()
    }

    #[test]
    fn what_was_noted_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let (mut store, found) = reopen(directory.path());
        assert!(found.entries.is_empty() && found.set_aside.is_none());
        (0..100).for_each(|n| store.note(entry(n)));
        store.write().unwrap();
        let opened = File::open(directory.path()).unwrap();
        let (store, found) = Store::open(opened.into(), [9, 9]).unwrap();
        assert_eq!(store.hash, [7, 8], "the key stays");
        assert_eq!(found.entries, (0..100).map(entry).collect::<Vec<_>>());
    }

    #[test]
    fn written_anew_with_what_came_meanwhile() {
        let directory = tempfile::tempdir().unwrap();
        let (mut store, _) = reopen(directory.path());
        for _ in 0..100 {
            (0..100).for_each(|n| store.note(entry(n)));
        }
        store.write().unwrap();
        assert!(!store.wants_rewrite(5000) && store.wants_rewrite(100));
        let (tell, woken) = mpsc::channel();
        store.rewrite((0..100).map(entry), move || tell.send(()).unwrap()).unwrap();
        store.note(entry(200));
        store.write().unwrap();
        woken.recv().unwrap();
        store.rewritten().unwrap().unwrap();
        store.note(entry(300));
        store.write().unwrap();
        assert_eq!((store.records(), store.wants_rewrite(100)), (102, false));
        let (_, found) = reopen(directory.path());
        assert_eq!(found.entries, (0..100).chain([200, 300]).map(entry).collect::<Vec<_>>());
        assert!(!directory.path().join(NEW).exists());
    }

    #[test]
    fn a_file_that_is_none_is_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(NAME), b"something else, of 32 octets and more").unwrap();
        let (mut store, found) = reopen(directory.path());
        assert!(found.set_aside.is_some() && found.entries.is_empty());
        assert!(directory.path().join(DAMAGED).exists());
        store.note(entry(1));
        store.write().unwrap();
        assert_eq!(reopen(directory.path()).1.entries, [entry(1)]);
    }

    proptest! {
        /// Cut anywhere, or damaged anywhere: what was not touched is found, and nothing else; and what is
        /// written afterwards is found too.
        #[test]
        fn damage_costs_what_it_hits(cut in 0..400usize, at in 0..400usize, bit in 0..8u8) {
            let directory = tempfile::tempdir().unwrap();
            let (mut store, _) = reopen(directory.path());
            (0..12).for_each(|n| store.note(entry(n)));
            store.write().unwrap();
            let path = directory.path().join(NAME);
            let mut octets = std::fs::read(&path).unwrap();
            octets.truncate(cut);
            if let Some(octet) = octets.get_mut(at) {
                *octet ^= 1 << bit;
            }
            std::fs::write(&path, &octets).unwrap();
            let (mut store, found) = reopen(directory.path());
            let whole = octets.len().saturating_sub(HEAD) / RECORD;
            let touched = at.checked_sub(HEAD).map(|at| at / RECORD).filter(|_| at < octets.len());
            let head_lost = octets.len() < HEAD || at < HEAD;
            let expected: Vec<Entry> = (0..whole.min(12))
                .filter(|n| !head_lost && touched != Some(*n))
                .map(|n| entry(n as u64))
                .collect();
            prop_assert_eq!(&found.entries, &expected);
            store.note(entry(99));
            store.write().unwrap();
            prop_assert_eq!(reopen(directory.path()).1.entries.last().copied(), Some(entry(99)));
        }
    }
}
