//! Opening directories on the way to a mailbox, making what is missing.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::{io, mem};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, mkdirat};

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

/// The directories on the way from a base to some mailboxes. Their entries must outlive a crash before anything is
/// reported that lies beneath; and whoever made one may have been killed before it was on the disk, so that it is
/// there says nothing.
#[derive(Debug, Default)]
pub struct Way {
    /// By their paths beneath the base, whose own is empty: each is opened once for all mailboxes behind it.
    open: BTreeMap<PathBuf, Rc<OwnedFd>>,
    /// What may not be at its path any more; but it was, for other mailboxes.
    left: Vec<Rc<OwnedFd>>,
}

impl Way {
    /// The way leads through this directory, which is at `path`.
    pub fn through(&mut self, path: &Path, directory: OwnedFd) {
        self.left.extend(self.open.insert(path.to_owned(), Rc::new(directory)));
    }

    /// Something on the way was removed: all is to be opened anew.
    pub fn lose(&mut self) {
        self.left.extend(mem::take(&mut self.open).into_values());
    }

    /// The directories.
    pub fn directories(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.open.values().chain(&self.left).map(|directory| directory.as_fd())
    }

    /// All of them are on the disk.
    pub fn synced(&mut self) {
        *self = Self::default();
    }

    /// Syncs every directory, and forgets them when that succeeds.
    pub fn sync(&mut self, disk: &mut Disk) -> io::Result<()> {
        disk.sync(&self.directories().collect::<Vec<_>>()).into_iter().collect::<io::Result<()>>()?;
        self.synced();
        Ok(())
    }

    /// The directory at `path`, which is opened if it is not open.
    fn at(&mut self, path: &Path, open: impl FnOnce() -> io::Result<OwnedFd>) -> io::Result<Rc<OwnedFd>> {
        if let Some(directory) = self.open.get(path) {
            return Ok(directory.clone());
        }
        let directory = Rc::new(open()?);
        self.open.insert(path.to_owned(), directory.clone());
        Ok(directory)
    }
}

/// Opens a directory that must be there.
pub fn directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Opens the directory `path` beneath the base `within`, and makes what is missing. `..` is refused, and a path is
/// never absolute: each name is opened in the directory before it, which is what openat2's RESOLVE_BENEATH comes to,
/// on every kernel.
pub fn beneath(within: BorrowedFd<'_>, path: &Path, links: Links, way: &mut Way) -> io::Result<OwnedFd> {
    let name = |component| match component {
        Component::Normal(name) => Some(Ok(name)),
        Component::CurDir => None,
        Component::ParentDir | Component::RootDir | Component::Prefix(_) => Some(Err(escapes(path))),
    };
    let mut names = path.components().filter_map(name).collect::<io::Result<Vec<&OsStr>>>()?;
    let Some(last) = names.pop() else { return within.try_clone_to_owned() };
    let mut here = PathBuf::new();
    let mut at = way.at(&here, || within.try_clone_to_owned())?;
    for name in names {
        here.push(name);
        at = way.at(&here, || enter(at.as_fd(), name, links))?;
    }
    enter(at.as_fd(), last, links)
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
pub fn enter(at: BorrowedFd<'_>, name: &OsStr, links: Links) -> io::Result<OwnedFd> {
    match open_in(at, name, links) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        outcome => return outcome,
    }
    make(at, name)?;
    open_in(at, name, links)
}

/// Makes a directory in another, if there is nothing of this name.
pub fn make(at: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match mkdirat(at, name, PRIVATE) {
        // Somebody else was faster: so be it.
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Opens a directory in another.
pub fn open_in(at: BorrowedFd<'_>, name: &OsStr, links: Links) -> io::Result<OwnedFd> {
    let mut flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    if links == Links::Refuse {
        flags |= OFlag::O_NOFOLLOW;
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
        assert_eq!(way.directories().count(), 2, "the base and the domain, each once");
        way.sync(&mut Disk::one_by_one()).unwrap();
        assert_eq!(way.directories().count(), 0);
        let made = std::fs::metadata(temp.path().join("v.test/u")).unwrap();
        assert!(made.is_dir());
        assert_eq!(made.permissions().mode() & 0o777, 0o700);
        for path in ["../x", "/etc", "a/../../x", "v.test/../.."] {
            assert!(beneath(base.as_fd(), Path::new(path), Links::Refuse, &mut way).is_err(), "{path}");
        }
    }

    #[test]
    fn what_was_removed_is_made_anew() {
        let temp = tempfile::tempdir().unwrap();
        let base = directory(temp.path()).unwrap();
        let (mut way, path) = (Way::default(), Path::new("v.test/u"));
        beneath(base.as_fd(), Path::new("w.test/u"), Links::Refuse, &mut way).unwrap();
        beneath(base.as_fd(), path, Links::Refuse, &mut way).unwrap();
        std::fs::remove_dir_all(temp.path().join("v.test")).unwrap();
        let lost = beneath(base.as_fd(), path, Links::Refuse, &mut way).unwrap_err();
        assert_eq!(lost.kind(), io::ErrorKind::NotFound);
        way.lose();
        beneath(base.as_fd(), path, Links::Refuse, &mut way).unwrap();
        assert!(temp.path().join(path).is_dir());
        assert_eq!(way.directories().count(), 5, "what others were made in is synced for them");
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
