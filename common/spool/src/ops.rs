//! Every operation the writer makes on files, in one place: so that a test can record them and play a
//! power cut at any instant, or make any of them fail.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::{Mode, fchmod};
use nix::sys::uio::pwritev;
use nix::unistd::{UnlinkatFlags, unlinkat};

/// One operation, as it is about to be made.
#[derive(Debug)]
pub enum Operation<'a> {
    /// A new file, and the directory's label.
    Create(&'static str, &'a str),
    /// Bytes at a place of a file.
    Write(&'a str, u64, &'a [IoSlice<'a>]),
    /// fsync of a file.
    Sync(&'a str),
    /// fsync of a directory.
    SyncDirectory(&'static str),
    /// A file cut to this length.
    Cut(&'a str, u64),
    /// A file's way from one directory to another, or to another name.
    Rename((&'static str, &'a str), (&'static str, &'a str)),
    /// A file's end.
    Unlink(&'static str, &'a str),
}

/// What files are prepared with, a piece of it.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// Sees each operation before it is made; an error is what the operation then reports.
pub type Probe = Arc<dyn Fn(&Operation<'_>) -> io::Result<()> + Send + Sync>;

/// The operations.
#[derive(Clone, Default)]
pub(crate) struct Ops {
    pub(crate) probe: Option<Probe>,
}

/// A directory and the word a probe knows it by.
pub(crate) struct Directory<'a> {
    pub(crate) fd: BorrowedFd<'a>,
    pub(crate) label: &'static str,
}

/// A file being written.
pub(crate) struct Output {
    file: File,
    name: String,
    /// So many zeros were written and synced, and with them its inode.
    prepared: u64,
}

impl Output {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// How many zeros it began with.
    pub(crate) fn prepared(&self) -> u64 {
        self.prepared
    }
}

impl Ops {
    /// Creates a file that must not exist. The mode is set whatever the umask: the queue-manager is
    /// another user and must be able to write the log.
    pub(crate) fn create(&self, directory: &Directory<'_>, name: String, mode: Mode) -> io::Result<Output> {
        self.probe(&Operation::Create(directory.label, &name))?;
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(directory.fd, name.as_str(), flags, mode)?;
        let output = Output { file: fd.into(), name, prepared: 0 };
        if let Err(error) = fchmod(output.file.as_fd(), mode) {
            self.discard(directory, &output.name);
            return Err(error.into());
        }
        Ok(output)
    }

    /// As [`Ops::create`], and locks it against recovery, which may have met it before the lock was there.
    pub(crate) fn create_locked(
        &self,
        directory: &Directory<'_>,
        name: String,
        mode: Mode,
    ) -> io::Result<Output> {
        let output = self.create(directory, name, mode)?;
        let locked = output.file.try_lock().map_err(io::Error::from).and_then(|()| output.file.metadata());
        match locked {
            Ok(metadata) if metadata.nlink() > 0 => Ok(output),
            Ok(_) => Err(io::Error::other("recovery removed a new file")),
            Err(error) => {
                self.discard(directory, &output.name);
                Err(error)
            }
        }
    }

    /// Writes all of `slices` at `offset`, in one call unless the kernel cuts it.
    pub(crate) fn write(&self, to: &Output, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.probe(&Operation::Write(&to.name, offset, slices))?;
        let mut offset = i64::try_from(offset).map_err(io::Error::other)?;
        let mut rest = slices;
        // Drop empty ones from the front, so that the end of the loop is the end of the bytes.
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            // At most IOV_MAX of them at once.
            let now = rest.get(..rest.len().min(1024)).unwrap_or(&[]);
            match pwritev(&to.file, now, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as i64;
                    IoSlice::advance_slices(&mut rest, written);
                }
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Lets the disk begin. It is not an operation of its own to a probe, since it promises nothing.
    pub(crate) fn begin(&self, output: &Output) {
        let _ = postern_sys::start_writeback(output.file.as_fd(), 0, 0);
    }

    /// Puts a file on stable storage. A new file needs fsync, since fdatasync need not write the mode. Of one that was
    /// prepared the mode is there, and so are its blocks: what was written into them is all that is left to do.
    pub(crate) fn sync(&self, output: &Output) -> io::Result<()> {
        self.probe(&Operation::Sync(&output.name))?;
        if output.prepared > 0 { output.file.sync_data() } else { output.file.sync_all() }
    }

    /// Writes the first `octets` of an empty file with zeros, so that it has its blocks; [`Ops::settle`] follows. Where
    /// they do not go it stays empty.
    pub(crate) fn prepare(&self, output: &mut Output, octets: u64) -> io::Result<()> {
        let whole = octets as usize / ZEROS.len();
        let rest = ZEROS.get(..octets as usize % ZEROS.len()).unwrap_or(&[]);
        let mut slices = vec![IoSlice::new(&ZEROS); whole];
        slices.push(IoSlice::new(rest));
        if self.write(output, &mut slices, 0).is_err() {
            return self.cut(output, 0);
        }
        output.prepared = octets;
        self.begin(output);
        Ok(())
    }

    /// Puts a file on stable storage with all of its inode.
    pub(crate) fn settle(&self, output: &Output) -> io::Result<()> {
        self.probe(&Operation::Sync(&output.name))?;
        output.file.sync_all()
    }

    /// Cuts off what stands behind `length`.
    pub(crate) fn cut(&self, output: &Output, length: u64) -> io::Result<()> {
        self.probe(&Operation::Cut(&output.name, length))?;
        output.file.set_len(length)
    }

    /// Puts a directory's entries on stable storage.
    pub(crate) fn sync_directory(&self, directory: &Directory<'_>) -> io::Result<()> {
        self.probe(&Operation::SyncDirectory(directory.label))?;
        Ok(nix::unistd::fsync(directory.fd)?)
    }

    /// Moves a file; never over another one.
    pub(crate) fn rename(
        &self,
        (from, name): (&Directory<'_>, &str),
        (to, to_name): (&Directory<'_>, &str),
    ) -> io::Result<()> {
        self.probe(&Operation::Rename((from.label, name), (to.label, to_name)))?;
        rename_between(from.fd, name, to.fd, to_name)
    }

    /// Unlinks a file of which nothing was promised. When that fails the file stays for recovery, which
    /// sweeps it, or, were it whole, delivers it once more than its sender asked: nothing is lost.
    pub(crate) fn discard(&self, directory: &Directory<'_>, name: &str) {
        if self.probe(&Operation::Unlink(directory.label, name)).is_ok() {
            let _ = unlinkat(directory.fd, name, UnlinkatFlags::NoRemoveDir);
        }
    }

    fn probe(&self, operation: &Operation<'_>) -> io::Result<()> {
        self.probe.as_ref().map_or(Ok(()), |probe| probe(operation))
    }
}

/// Moves a file from one directory to another, never over another file.
pub fn rename_between(
    from: BorrowedFd<'_>,
    from_name: &str,
    to: BorrowedFd<'_>,
    to_name: &str,
) -> io::Result<()> {
    Ok(renameat2(from, from_name, to, to_name, RenameFlags::RENAME_NOREPLACE)?)
}

/// The label for an owned directory.
pub(crate) fn labelled<'a>(fd: &'a OwnedFd, label: &'static str) -> Directory<'a> {
    Directory { fd: fd.as_fd(), label }
}
