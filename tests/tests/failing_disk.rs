//! The disk itself answers EIO under a file system that is mounted: nbdkit's error filter, below a loop device.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use postern_tests::{LoopFs, Process, System, have, have_root, message, until};

#[test]
fn a_disk_that_cannot_be_written() {
    if !have_root() || !have(&["nbdkit", "nbdfuse", "mkfs.ext4", "e2fsck"]) {
        return;
    }
    LoopFs::enter_own_namespace();
    let mut system =
        System::builder().fast_retries().route("sink.test", "smtp:[127.0.0.1]:9").relay().prepare();
    let d = system.directory().to_owned();
    let failing = FailingDisk::start(&d);
    let disk = LoopFs::existing(&failing.file(), &d.join("spool"));
    system.start_again();
    let mut client = system.smtp();
    let mut send = |subject: &str| client.send("a@v.test", &["b@sink.test"], &message(subject));
    let mut accepted: Vec<String> = (0..5).map(|n| send(&format!("before-{n}")).unwrap()).collect();
    failing.fail();
    for n in 0..10 {
        // An fsync that failed is not tried again and believed: none of them may be a 250.
        let refused = send(&format!("during-{n}")).expect_err("a worthless 250");
        assert!(refused.is("451 4.3.0"), "{refused}");
    }
    system.wait("spool-refused", |_| true);
    // What an administrator does then: the disk is mended, the file system is checked.
    system.kill_all();
    failing.work();
    disk.unmount();
    let checked = Command::new("e2fsck").args(["-f", "-y"]).arg(failing.file()).output().unwrap();
    assert!(checked.status.code().is_some_and(|code| code < 4), "{checked:?}");
    disk.mount();
    system.start_again();
    accepted.push(system.smtp().send("a@v.test", &["b@sink.test"], &message("after")).unwrap());
    until("every message with a 250 is queued, once", Duration::from_secs(60), || {
        let listed = system.postern_json(&["queue", "list"]);
        let count = |id: &String| listed.iter().filter(|message| message["id"] == id.as_str()).count();
        accepted.iter().all(|id| count(id) == 1).then_some(())
    });
    assert!(system.spool("corrupt").is_empty(), "{:?}", system.spool("corrupt"));
    system.stop();
    disk.unmount();
}

/// A disk in a file whose writes fail when we say so.
struct FailingDisk {
    directory: PathBuf,
    _process: Process,
}

impl FailingDisk {
    fn start(below: &Path) -> Self {
        let directory = below.join("failing");
        let (image, mounted) = (directory.join("image"), directory.join("mounted"));
        std::fs::create_dir_all(&mounted).unwrap();
        std::fs::File::create(&image).unwrap().set_len(384 << 20).unwrap();
        assert!(Command::new("mkfs.ext4").arg("-q").arg(&image).status().unwrap().success());
        let mut command = Command::new("nbdfuse");
        command.arg(&mounted).args(["--command", "nbdkit", "-s", "--filter=error", "file"]).arg(&image);
        command.args(["error-pwrite=EIO", "error-pwrite-rate=1"]);
        command.arg(format!("error-pwrite-file={}", directory.join("trigger").display()));
        let disk = Self { directory, _process: Process::start(&mut command) };
        until("the disk is there", Duration::from_secs(30), || disk.file().exists().then_some(()));
        disk
    }

    /// As a file; a loop device makes it a disk.
    fn file(&self) -> PathBuf {
        self.directory.join("mounted/nbd")
    }

    fn fail(&self) {
        std::fs::File::create(self.directory.join("trigger")).unwrap();
    }

    fn work(&self) {
        std::fs::remove_file(self.directory.join("trigger")).unwrap();
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        // It ends its server too. What is no longer mounted is an error, and well.
        let _ = Command::new("umount").arg("--lazy").arg(self.directory.join("mounted")).output();
    }
}
