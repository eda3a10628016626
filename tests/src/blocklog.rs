//! A disk that remembers every write and every flush, and what it may hold when the power goes.
//!
//! A [`LoggedDisk`] is an image file behind qemu-storage-daemon's `blklogwrites`, shown as a file again by
//! FUSE: what the kernel writes to it goes to the image and, in that order, into a log. A [`BlockLog`] is the
//! log, read. What a disk holds at a cut: every write before the last flush, and of the later ones whichever
//! it likes, sector by sector.
//!
//! The log has the format of Linux' dm-log-writes, version 1 (`drivers/md/dm-log-writes.c`): a superblock
//! `magic u64, version u64, entries u64, sector size u32`, then for each entry a sector `sector u64,
//! sectors u64, flags u64, length of inline data u64`, followed by the data of a write; little-endian.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::ledger::Random;
use crate::process::{Process, until};

/// What a disk writes at once or not at all.
const SECTOR: usize = 512;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;

/// A disk whose writes are logged. Dropped, it is gone; what is mounted of it is to be unmounted before.
#[derive(Debug)]
pub struct LoggedDisk {
    exported: PathBuf,
    log: PathBuf,
    daemon: Process,
}

/// A log, read.
#[derive(Clone, Debug)]
pub struct BlockLog {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

/// One thing that the disk was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where in the log it stands.
    pub position: u64,
    /// What it is.
    pub what: Request,
}

/// A write or a flush.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// What was written before is on the disk now.
    Flush,
    /// This part of the log's file belongs at that offset of the disk. `through`: with its end it is on the disk.
    Write {
        /// Where on the disk.
        offset: u64,
        /// Where in the log.
        data: Range<usize>,
        /// Force unit access.
        through: bool,
    },
    /// This part of the disk holds anything from now on, and zeros in practice.
    Discard(Range<u64>),
    /// A word for a human.
    Mark,
}

/// What became of the writes behind the last flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// None reached the disk.
    None,
    /// All did.
    All,
    /// Each did or did not.
    Some,
    /// All but one did.
    AllButOne,
    /// The first ones did, and of the next one some sectors.
    TornEnd,
    /// Of each, some sectors did.
    Torn,
}

impl Fate {
    /// All there are.
    pub const ALL: [Fate; 6] =
        [Fate::None, Fate::All, Fate::Some, Fate::AllButOne, Fate::TornEnd, Fate::Torn];
}

impl LoggedDisk {
    /// Puts an image behind a log, in a directory. The image itself is written to.
    pub fn start(directory: &Path, image: &Path) -> Self {
        let (exported, log) = (directory.join("exported"), directory.join("block.log"));
        File::create(&exported).unwrap();
        File::create(&log).unwrap();
        let mut command = Command::new("qemu-storage-daemon");
        // What the host makes of a flush is of no interest: the log says that there was one.
        let file = |name: &str, path: &Path| {
            format!("driver=file,node-name={name},cache.no-flush=on,filename={}", path.display())
        };
        command.arg("--blockdev").arg(file("image", image));
        command.arg("--blockdev").arg(file("log", &log));
        command.args([
            "--blockdev",
            "driver=blklogwrites,node-name=logged,file=image,log=log,log-sector-size=512",
        ]);
        command.arg("--export").arg(format!(
            "type=fuse,id=export,node-name=logged,writable=on,mountpoint={}",
            exported.display()
        ));
        let mut daemon = Process::start(&mut command);
        until("the disk is there", Duration::from_secs(20), || {
            let ended = daemon.ended();
            assert!(ended.is_none(), "qemu-storage-daemon: {ended:?}");
            (std::fs::metadata(&exported).unwrap().len() > 0).then_some(())
        });
        Self { exported, log, daemon }
    }

    /// The disk as a file.
    pub fn path(&self) -> &Path {
        &self.exported
    }

    /// How long the log is. A write or flush that somebody has waited for stands before this position.
    pub fn position(&self) -> u64 {
        std::fs::metadata(&self.log).unwrap().len()
    }

    /// Ends it: the log, `block.log` in its directory, is complete.
    pub fn stop(mut self) {
        let status = self.daemon.stop(Duration::from_secs(20));
        assert!(status.is_some_and(|status| status.success()), "qemu-storage-daemon: {status:?}");
    }
}

impl BlockLog {
    /// Reads a log that is complete.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, String> {
        let number = |at: usize| -> Result<u64, String> {
            let octets = bytes.get(at..at + 8).ok_or_else(|| format!("the log ends at {at}"))?;
            Ok(u64::from_le_bytes(octets.try_into().unwrap()))
        };
        let (magic, version, count) = (number(0)?, number(8)?, number(16)?);
        let sector_size = number(24)? as u32 as usize;
        if magic != MAGIC || version != 1 || sector_size < SECTOR || !sector_size.is_power_of_two() {
            return Err(format!("not a write log: {magic:#x}, version {version}, sectors of {sector_size}"));
        }
        let mut entries = Vec::new();
        let mut at = sector_size;
        for _ in 0..count {
            let (sector, sectors, flags, inline) =
                (number(at)?, number(at + 8)?, number(at + 16)?, number(at + 24)?);
            let header = at;
            let wrong =
                || format!("the entry at {header} is none: {sector}, {sectors}, {flags:#x}, {inline}");
            if flags & !(FLUSH | FUA | DISCARD | MARK) != 0 || 32 + inline > sector_size as u64 {
                return Err(wrong());
            }
            let size = sector_size as u64;
            let offset = sector.checked_mul(size).ok_or_else(wrong)?;
            let length = sectors.checked_mul(size).ok_or_else(wrong)?;
            let end = offset.checked_add(length).ok_or_else(wrong)?;
            let position = at as u64;
            let mut push = |what| entries.push(Entry { position, what });
            at += sector_size;
            // A flush that comes with a write was done before it.
            if flags & FLUSH != 0 {
                push(Request::Flush);
            }
            if flags & MARK != 0 {
                push(Request::Mark);
            } else if flags & DISCARD != 0 {
                push(Request::Discard(offset..end));
            } else if length > 0 {
                let data =
                    at..usize::try_from(length).ok().and_then(|n| n.checked_add(at)).ok_or_else(wrong)?;
                if data.end > bytes.len() {
                    return Err(format!("the log ends in the write at {position}"));
                }
                at = data.end;
                push(Request::Write { offset, data, through: flags & FUA != 0 });
            }
        }
        Ok(Self { bytes, entries })
    }

    /// The entries.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// How many entries stand before a position.
    pub fn before(&self, position: u64) -> usize {
        self.entries.partition_point(|entry| entry.position < position)
    }

    /// How many of the entries before a cut are on the disk for certain.
    pub fn certain(&self, cut: usize) -> usize {
        let flush = self.entries.iter().take(cut).rposition(|entry| entry.what == Request::Flush);
        flush.map_or(0, |flush| flush + 1)
    }

    /// Writes these entries to an image, all and in order.
    ///
    /// # Errors
    ///
    /// The image could not be written.
    pub fn apply(&self, image: &File, entries: Range<usize>) -> io::Result<()> {
        for entry in &self.entries[entries] {
            self.write(image, entry, |_| true)?;
        }
        Ok(())
    }

    /// Writes to an image what the disk may have of these entries, which no flush followed. How many sectors
    /// of how many that was.
    ///
    /// # Errors
    ///
    /// The image could not be written.
    pub fn apply_by_chance(
        &self,
        image: &File,
        entries: Range<usize>,
        fate: Fate,
        random: &mut Random,
    ) -> io::Result<(usize, usize)> {
        let entries = &self.entries[entries];
        let chosen = random.below(entries.len().max(1) as u64) as usize;
        let (mut written, mut all) = (0, 0);
        for (n, entry) in entries.iter().enumerate() {
            let through = matches!(entry.what, Request::Write { through: true, .. });
            let whole = random.below(2) == 0;
            self.write(image, entry, |_| {
                let keep = through
                    || match fate {
                        Fate::None => false,
                        Fate::All => true,
                        Fate::Some => whole,
                        Fate::AllButOne => n != chosen,
                        Fate::TornEnd => n < chosen || n == chosen && random.below(2) == 0,
                        Fate::Torn => random.below(2) == 0,
                    };
                all += 1;
                written += usize::from(keep);
                keep
            })?;
        }
        Ok((written, all))
    }

    /// Writes those sectors of an entry that `keep` wants.
    fn write(&self, image: &File, entry: &Entry, mut keep: impl FnMut(usize) -> bool) -> io::Result<()> {
        match &entry.what {
            Request::Flush | Request::Mark => Ok(()),
            Request::Write { offset, data, .. } => {
                let mut at = *offset;
                for (n, sector) in self.bytes[data.clone()].chunks(SECTOR).enumerate() {
                    if keep(n) {
                        image.write_all_at(sector, at)?;
                    }
                    at += sector.len() as u64;
                }
                Ok(())
            }
            Request::Discard(range) => {
                for (n, at) in range.clone().step_by(SECTOR).enumerate() {
                    if keep(n) {
                        image.write_all_at(&[0; SECTOR], at)?;
                    }
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log of entries: sector, flags, data.
    fn log(entries: &[(u64, u64, Vec<u8>)]) -> Vec<u8> {
        let sector_of = |numbers: &[u64]| {
            let mut bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
            bytes.resize(SECTOR, 0);
            bytes
        };
        let mut bytes = sector_of(&[MAGIC, 1, entries.len() as u64, SECTOR as u64]);
        for (sector, flags, data) in entries {
            bytes.extend(sector_of(&[*sector, (data.len() / SECTOR) as u64, *flags, 0]));
            bytes.extend(data);
        }
        bytes
    }

    fn filled(octet: u8, sectors: usize) -> Vec<u8> {
        vec![octet; sectors * SECTOR]
    }

    /// Two sectors of 1, a flush, a sector of 2 over the second of them, two sectors of 3 behind.
    fn example() -> BlockLog {
        let entries = [(0, 0, filled(1, 2)), (0, FLUSH, vec![]), (1, 0, filled(2, 1)), (2, 0, filled(3, 2))];
        BlockLog::parse(log(&entries)).unwrap()
    }

    fn image() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 * SECTOR as u64).unwrap();
        file
    }

    /// The first octets of the first four sectors.
    fn sectors(image: &File) -> Vec<u8> {
        (0..4)
            .map(|n| {
                let mut sector = [0; SECTOR];
                image.read_exact_at(&mut sector, n * SECTOR as u64).unwrap();
                assert!(sector.iter().all(|octet| *octet == sector[0]), "half a sector");
                sector[0]
            })
            .collect()
    }

    #[test]
    fn entries_are_read_with_their_places() {
        let log = example();
        let positions: Vec<_> = log.entries().iter().map(|entry| entry.position / SECTOR as u64).collect();
        assert_eq!(positions, [1, 4, 5, 7]);
        assert_eq!(log.entries()[1].what, Request::Flush);
        let data = 6 * SECTOR..7 * SECTOR;
        assert_eq!(log.entries()[2].what, Request::Write { offset: SECTOR as u64, data, through: false });
        assert_eq!(log.before(0), 0);
        assert_eq!(log.before(4 * SECTOR as u64), 1);
        assert_eq!(log.before(4 * SECTOR as u64 + 1), 2);
        assert_eq!(log.before(u64::MAX), 4);
        assert_eq!([0, 1, 2, 3, 4].map(|cut| log.certain(cut)), [0, 0, 2, 2, 2]);
    }

    #[test]
    fn what_is_flushed_is_there_and_the_rest_by_chance() {
        let log = example();
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..400 {
            for fate in Fate::ALL {
                let image = image();
                log.apply(&image, 0..2).unwrap();
                let (written, all) =
                    log.apply_by_chance(&image, 2..4, fate, &mut Random::seeded(seed)).unwrap();
                let found = sectors(&image);
                assert_eq!((found[0], all), (1, 3));
                assert!(matches!(found[1], 1 | 2) && found[2..].iter().all(|octet| matches!(octet, 0 | 3)));
                let expected = match fate {
                    Fate::None => 0..=0,
                    Fate::All => 3..=3,
                    Fate::AllButOne => 1..=2,
                    Fate::Some | Fate::TornEnd | Fate::Torn => 0..=3,
                };
                assert!(expected.contains(&written), "{fate:?}: {written}");
                seen.insert(found);
            }
        }
        assert_eq!(seen.len(), 8, "every subset of three sectors");
    }

    #[test]
    fn a_write_through_is_there_and_a_discard_may_be() {
        let entries = [(0, FLUSH | FUA, filled(5, 1)), (0, DISCARD, vec![])];
        let mut bytes = log(&entries);
        // The discard of one sector, which brings no data.
        let discard = bytes.len() - SECTOR;
        bytes[discard + 8] = 1;
        let log = BlockLog::parse(bytes).unwrap();
        assert_eq!(log.entries().len(), 3);
        assert_eq!(log.certain(2), 1);
        let image = image();
        log.apply_by_chance(&image, 1..2, Fate::None, &mut Random::seeded(1)).unwrap();
        assert_eq!(sectors(&image), [5, 0, 0, 0]);
        log.apply(&image, 2..3).unwrap();
        assert_eq!(sectors(&image), [0; 4]);
    }

    #[test]
    fn what_is_no_log_is_refused() {
        let whole = log(&[(0, 0, filled(1, 2)), (0, FLUSH, vec![])]);
        for length in 0..whole.len() - SECTOR + 32 {
            assert!(BlockLog::parse(whole[..length].to_vec()).is_err(), "{length} octets");
        }
        for (at, octet) in
            [(0, 1), (8, 2), (24, 1), (SECTOR + 16, 0x10), (SECTOR + 15, 0xff), (SECTOR + 24 + 1, 2)]
        {
            let mut bytes = whole.clone();
            bytes[at] = octet;
            assert!(BlockLog::parse(bytes).is_err(), "octet {at} is {octet}");
        }
    }
}
