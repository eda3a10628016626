//! File systems in image files, whose power can be cut.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};

use crate::need::python;
use crate::process::until;

/// A file system in an image file, mounted where only this thread, the threads that it starts from now on and
/// their children see it. With the last of them the mount goes, however they end.
#[derive(Debug)]
pub struct LoopFs {
    image: PathBuf,
    mounted: PathBuf,
}

/// Tells the file system to stop: nothing is written any more, the journal neither (flag 2: NOLOGFLUSH). The
/// number is EXT4_IOC_SHUTDOWN, and XFS_IOC_GOINGDOWN as well.
const SHUTDOWN: &str = "\
import array, fcntl, os, sys
for path in sys.argv[1:]:
    fcntl.ioctl(os.open(path, os.O_RDONLY | os.O_DIRECTORY), 0x8004587d, array.array('I', [2]))
";

impl LoopFs {
    /// Gives the calling thread a mount namespace of its own. To be called before the first thread and the
    /// first process of the test are started.
    pub fn enter_own_namespace() {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        run(Command::new("mount").args(["--make-rprivate", "/"]));
    }

    /// Makes a file system of that type (`ext4`, `xfs`) in a new image and mounts it. XFS wants 300 MB, which
    /// take no room until they are written.
    pub fn create(kind: &str, image: &Path, mounted: &Path) -> Self {
        std::fs::File::create(image).unwrap().set_len(384 << 20).unwrap();
        std::fs::create_dir_all(mounted).unwrap();
        run(Command::new(format!("mkfs.{kind}")).arg("-q").arg(image));
        let disk = Self { image: image.to_owned(), mounted: mounted.to_owned() };
        disk.mount();
        disk
    }

    /// Mounts one that is in an image already.
    pub fn existing(image: &Path, mounted: &Path) -> Self {
        std::fs::create_dir_all(mounted).unwrap();
        let disk = Self { image: image.to_owned(), mounted: mounted.to_owned() };
        disk.mount();
        disk
    }

    /// Mounts it again after [`LoopFs::unmount`].
    pub fn mount(&self) {
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.mounted));
    }

    /// Unmounts it, as soon as nobody uses it any more.
    pub fn unmount(&self) {
        until("the file system is unused", Duration::from_secs(20), || {
            let output = Command::new("umount").arg(&self.mounted).output().unwrap();
            output.status.success().then_some(())
        });
    }

    /// Mounts it anew for reading only, under the programs that use it, or for writing again.
    pub fn remount(&self, option: &str) -> bool {
        let mut mount = Command::new("mount");
        mount.args(["-o", &format!("remount,{option}")]).arg(&self.mounted);
        mount.output().unwrap().status.success()
    }

    /// Cuts the power of several at once, or nearly so.
    pub fn cut(disks: &[&LoopFs]) {
        let paths: Vec<_> = disks.iter().map(|disk| disk.mounted.to_str().unwrap()).collect();
        python(SHUTDOWN, &paths);
    }
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        // Programs may still run there when a test fails. What is no longer mounted is an error, and well.
        let _ = Command::new("umount").arg("--lazy").arg(&self.mounted).output();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
