//! How what was written gets onto the disk: with a sync of each file, or with one of the file system.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::stat::fstat;
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC, FsType, TMPFS_MAGIC, fstatfs};
use nix::sys::utsname::uname;
use nix::unistd::{fsync, syncfs};
use postern_sys::{WRITE_BLOCK, XFS_SUPER_MAGIC};

/// With fewer files each is synced by itself.
const MANY: usize = 4;

/// File systems of which syncfs(2) promises what fsync(2) does. Of others it does not: FUSE, for one, does not pass
/// it on.
const KNOWN: [FsType; 5] =
    [EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC, F2FS_SUPER_MAGIC, TMPFS_MAGIC];

/// Since this kernel syncfs(2) tells of what could not be written.
const TELLS: (u32, u32) = (5, 8);

/// Syncs what was written. Many files of one file system are synced together, which costs little more than one of
/// them does: 10 files at a third, 50 at a fifth of the time.
#[derive(Debug)]
pub struct Disk {
    /// A directory of the file system that can be synced as a whole, and its device. It was opened before anything
    /// was written: what failed since is told of.
    whole: Option<(OwnedFd, u64)>,
    pace: Pace,
}

impl Disk {
    /// The disk that a directory is on.
    pub fn of(directory: BorrowedFd<'_>) -> io::Result<Self> {
        let known = KNOWN.contains(&fstatfs(directory)?.filesystem_type());
        let tells = uname()?.release().to_str().is_some_and(|release| version(release) >= TELLS);
        if !known || !tells {
            return Ok(Self::one_by_one());
        }
        let whole = Some((directory.try_clone_to_owned()?, fstat(directory)?.st_dev));
        Ok(Self { whole, pace: Pace::default() })
    }

    /// A disk of which nothing is known.
    pub fn one_by_one() -> Self {
        Self { whole: None, pace: Pace::default() }
    }

    /// Syncs files and directories: for each, in their order, whether it is on the disk.
    pub fn sync(&mut self, files: &[BorrowedFd<'_>]) -> Vec<io::Result<()>> {
        let together = self.sync_together(files);
        let alone = || files.iter().zip(&together).filter(|(_, done)| !**done).map(|(file, _)| file);
        for file in alone() {
            // All of them before the first is waited for.
            begin_writing(file.as_fd());
        }
        let sync = |(file, done): (&BorrowedFd<'_>, &bool)| if *done { Ok(()) } else { Ok(fsync(file)?) };
        files.iter().zip(&together).map(sync).collect()
    }

    /// Which of the files are on the disk now, by a sync of all of it. When that fails, or is not worth it, none: each
    /// is to tell for itself.
    fn sync_together(&mut self, files: &[BorrowedFd<'_>]) -> Vec<bool> {
        let none = vec![false; files.len()];
        let Some((root, device)) = &self.whole else { return none };
        if files.len() < MANY || !self.pace.allows(Instant::now()) {
            return none;
        }
        let here = |file: &BorrowedFd<'_>| fstat(file).is_ok_and(|status| status.st_dev == *device);
        let there: Vec<bool> = files.iter().map(here).collect();
        let count = there.iter().filter(|there| **there).count();
        if count < MANY {
            return none;
        }
        let begin = Instant::now();
        // A file system that was shut down by an error says so to fsync; to syncfs some kernels' ext4 and XFS do not.
        let outcome = syncfs(root).and_then(|()| fsync(root));
        let end = Instant::now();
        self.pace.took(count, end - begin, end);
        if outcome.is_ok() { there } else { none }
    }
}

/// A file that is written in blocks ([`WRITE_BLOCK`]), and is on its way to the disk while the rest of it is still
/// written. Only a sync says that it is there.
#[derive(Debug)]
pub struct Blocks<F> {
    file: F,
    /// What is not written yet.
    block: Vec<u8>,
    /// How long it will be.
    room: usize,
    /// Octets that the disk was not given yet.
    pending: usize,
}

impl<F: AsFd + Write> Blocks<F> {
    /// So many octets are given to the disk while the next ones are written.
    pub const AT_ONCE: usize = 1024 * 1024;

    /// A file whose next octet is at this place.
    pub fn new(file: F, at: u64) -> Self {
        let room = WRITE_BLOCK - (at % WRITE_BLOCK as u64) as usize;
        Self { file, block: Vec::with_capacity(room), room, pending: 0 }
    }

    /// Writes what is left of it, and gives back the file.
    pub fn finish(mut self) -> io::Result<F> {
        self.file.write_all(&self.block)?;
        Ok(self.file)
    }

    fn write_block(&mut self) -> io::Result<()> {
        self.file.write_all(&self.block)?;
        self.pending += self.block.len();
        self.block.clear();
        self.room = WRITE_BLOCK;
        if self.pending >= Self::AT_ONCE {
            self.pending = 0;
            begin_writing(self.file.as_fd());
        }
        Ok(())
    }
}

impl<F: AsFd + Write> Write for Blocks<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.get(..self.room - self.block.len()).unwrap_or(bytes);
        self.block.extend_from_slice(taken);
        if self.block.len() == self.room {
            self.write_block()?;
        }
        Ok(taken.len())
    }

    /// The beginning of a block waits for its rest, or for [`Blocks::finish`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The disk has what was written, and need not wait for the sync. Only a hint: what counts is the sync.
fn begin_writing(file: BorrowedFd<'_>) {
    let _ = postern_sys::start_writeback(file, 0, 0);
}

/// A sync of the whole file system also waits for what others wrote. Where that was long, files are synced one by one
/// for a while.
#[derive(Debug, Default)]
struct Pace {
    not_before: Option<Instant>,
}

impl Pace {
    /// A disk without much else to do needs less, and less for each file.
    const PATIENCE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(10));

    /// How long a long one is remembered.
    const MEMORY: Duration = Duration::from_secs(60);

    fn allows(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|at| at <= now)
    }

    /// So many files took so long, until now.
    fn took(&mut self, files: usize, long: Duration, now: Instant) {
        let files = u32::try_from(files).unwrap_or(u32::MAX);
        let (all, each) = Self::PATIENCE;
        if long > all + each.saturating_mul(files) {
            self.not_before = Some(now + Self::MEMORY);
        }
    }
}

/// `6.1.0-18-amd64` is 6.1.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use proptest::prelude::*;

    use super::*;
    use crate::place::directory;

    /// Remembers each write.
    #[derive(Debug)]
    struct Writes(File, Vec<Vec<u8>>);

    impl AsFd for Writes {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }

    impl Write for Writes {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1.push(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    proptest! {
        /// Every octet once, in its order; each write ends where a block does, but for the last.
        #[test]
        fn what_is_written_is_whole_blocks(
            at in 0u64..3 * WRITE_BLOCK as u64,
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..20),
            times in 1usize..300,
        ) {
            let mut out = Blocks::new(Writes(File::open("/dev/null").unwrap(), Vec::new()), at);
            let said = pieces.concat().repeat(times);
            for _ in 0..times {
                pieces.iter().for_each(|piece| out.write_all(piece).unwrap());
            }
            let Writes(_, writes) = out.finish().unwrap();
            prop_assert!(writes.concat() == said);
            let mut end = at;
            for (n, write) in writes.iter().enumerate() {
                prop_assert!(write.len() <= WRITE_BLOCK);
                end += write.len() as u64;
                prop_assert!(n + 1 == writes.len() || end % WRITE_BLOCK as u64 == 0);
            }
        }
    }

    #[test]
    fn kernels() {
        assert_eq!(version("6.1.0-18-amd64"), (6, 1));
        assert_eq!(version("5.8"), (5, 8));
        assert_eq!(version("6.18.44-fc"), (6, 18));
        assert_eq!(version("odd"), (0, 0));
        assert!(version("4.18.0-553.el8") < TELLS && version("10.0") > TELLS);
    }

    #[test]
    fn a_long_sync_is_not_repeated_for_a_while() {
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        let mut pace = Pace::default();
        pace.took(10, Duration::from_millis(199), begin);
        assert!(pace.allows(begin));
        pace.took(10, Duration::from_millis(201), begin);
        assert!(!pace.allows(after(59)) && pace.allows(after(60)));
        pace.took(usize::MAX, Duration::from_secs(1), after(60));
        assert!(pace.allows(after(60)));
    }

    /// Each file answers for itself, whether it lies on the disk, on another one, or cannot be synced at all.
    #[test]
    fn each_has_its_own_result() {
        let (temp, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
        let mut files: Vec<File> = Vec::new();
        for at in [temp.path(), other.path()] {
            files.extend((0..5).map(|n| File::create(at.join(n.to_string())).unwrap()));
        }
        let (pipe, _end) = nix::unistd::pipe().unwrap();
        let root = directory(temp.path()).unwrap();
        for mut disk in [Disk::of(root.as_fd()).unwrap(), Disk::one_by_one()] {
            let mut all: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
            all.push(pipe.as_fd());
            let results = disk.sync(&all);
            assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 10);
            assert!(results[10].is_err(), "a pipe is on no disk");
        }
    }

    #[test]
    fn a_known_disk_is_synced_together() {
        let temp = tempfile::tempdir_in("/dev/shm").unwrap();
        let root = directory(temp.path()).unwrap();
        let mut disk = Disk::of(root.as_fd()).unwrap();
        assert!(disk.whole.is_some(), "tmpfs is known");
        let files: Vec<File> =
            (0..8).map(|n| File::create(temp.path().join(n.to_string())).unwrap()).collect();
        let all: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
        assert_eq!(disk.sync_together(&all), [true; 8]);
        assert_eq!(disk.sync_together(&all[..MANY - 1]), [false; 3], "few are synced one by one");
        disk.pace.took(1, Duration::from_secs(9), Instant::now());
        assert_eq!(disk.sync_together(&all), [false; 8]);
        let unknown = directory(std::path::Path::new("/proc/self")).unwrap();
        assert!(Disk::of(unknown.as_fd()).unwrap().whole.is_none());
    }
}
