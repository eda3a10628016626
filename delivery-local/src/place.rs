//! Opening directories on the way to a mailbox, making what is missing.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, fstat, mkdirat};

use crate::disk::Disk;

/// A mailbox is its user's alone.
const PRIVATE: Mode = Mode::S_IRWXU;

/// Whether a symbolic link on the way is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// A user may lay his own mailbox elsewhere: everything happens with his rights.
    Follow,
    /// Nobody but us makes anything beneath the base of virtual mailboxes.
    Refuse,
}

/// The directories on the way to some mailboxes. Their entries must outlive a crash before anything is reported
/// that lies beneath; and whoever made one may have been killed before it was on the disk, so that it is there
/// says nothing.
#[derive(Debug, Default)]
pub struct Way(BTreeMap<(u64, u64), OwnedFd>);

impl Way {
    /// The way leads from this directory to one in it.
    pub fn pass(&mut self, directory: BorrowedFd<'_>) -> io::Result<()> {
        let status = fstat(directory)?;
        if let Entry::Vacant(place) = self.0.entry((status.st_dev, status.st_ino)) {
            place.insert(directory.try_clone_to_owned()?);
        }
        Ok(())
    }

    /// The directories, each once.
    pub fn directories(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.values().map(AsFd::as_fd)
    }

    /// All of them are on the disk.
    pub fn synced(&mut self) {
        self.0.clear();
    }

    /// Syncs every directory once, and forgets them when that succeeds.
    pub fn sync(&mut self, disk: &mut Disk) -> io::Result<()> {
        disk.sync(&self.directories().collect::<Vec<_>>()).into_iter().collect::<io::Result<()>>()?;
        self.synced();
        Ok(())
    }
}

/// Opens a directory that must be there.
pub fn directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Opens the directory `path` beneath `within`, and makes what is missing. `..` is refused, and a path is never
/// absolute: each name is opened in the directory before it, which is what openat2's RESOLVE_BENEATH comes to,
/// on every kernel.
pub fn beneath(within: BorrowedFd<'_>, path: &Path, links: Links, way: &mut Way) -> io::Result<OwnedFd> {
    let mut at = within.try_clone_to_owned()?;
    for component in path.components() {
        at = match component {
            Component::Normal(name) => enter(at.as_fd(), name, links, way)?,
            Component::CurDir => continue,
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return Err(escapes(path)),
        };
    }
    Ok(at)
}

/// The directory of a file beneath `within`, opened as by [`beneath`], and the file's name.
pub fn parent_beneath<'a>(
    within: BorrowedFd<'_>,
    path: &'a Path,
    links: Links,
    way: &mut Way,
) -> io::Result<(OwnedFd, &'a OsStr)> {
    let name = path.file_name().ok_or_else(|| escapes(path))?;
    Ok((beneath(within, path.parent().unwrap_or(Path::new("")), links, way)?, name))
}

/// Opens a directory in another, and makes it when it is missing.
pub fn enter(at: BorrowedFd<'_>, name: &OsStr, links: Links, way: &mut Way) -> io::Result<OwnedFd> {
    way.pass(at)?;
    let mut flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    if links == Links::Refuse {
        flags |= OFlag::O_NOFOLLOW;
    }
    match openat(at, name, flags, Mode::empty()) {
        Err(Errno::ENOENT) => {}
        outcome => return Ok(outcome?),
    }
    match mkdirat(at, name, PRIVATE) {
        // Somebody else was faster: so be it.
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(openat(at, name, flags, Mode::empty())?)
}

fn escapes(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{} leads out of its base", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn made_privately_and_beneath() {
        let temp = tempfile::tempdir().unwrap();
        let base = directory(temp.path()).unwrap();
        let mut way = Way::default();
        beneath(base.as_fd(), Path::new("v.test/u"), Links::Refuse, &mut way).unwrap();
        beneath(base.as_fd(), Path::new("v.test/w"), Links::Refuse, &mut way).unwrap();
        assert_eq!(way.0.len(), 2, "the base and the domain, each once");
        way.sync(&mut Disk::one_by_one()).unwrap();
        assert!(way.0.is_empty());
        let made = std::fs::metadata(temp.path().join("v.test/u")).unwrap();
        assert!(made.is_dir());
        assert_eq!(made.permissions().mode() & 0o777, 0o700);
        for path in ["../x", "/etc", "a/../../x", "v.test/../.."] {
            assert!(beneath(base.as_fd(), Path::new(path), Links::Refuse, &mut way).is_err(), "{path}");
        }
    }

    #[test]
    fn links_are_followed_for_users_alone() {
        let temp = tempfile::tempdir().unwrap();
        let base = directory(temp.path()).unwrap();
        symlink("/tmp", temp.path().join("link")).unwrap();
        let mut way = Way::default();
        assert!(beneath(base.as_fd(), Path::new("link"), Links::Refuse, &mut way).is_err());
        assert!(beneath(base.as_fd(), Path::new("link"), Links::Follow, &mut way).is_ok());
    }
}
