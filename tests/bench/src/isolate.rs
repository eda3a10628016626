//! A round in a process of its own, from which nothing escapes.
//!
//! It is this program again, the first process of a process namespace: when it ends, by itself or because
//! we were killed or lost patience, the kernel kills everything that it started, daemons too. It has
//! mounts and a network of its own as well, so it needs no free ports, and a temporary directory that is
//! removed behind it.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::cgroup;
use crate::machine::project;

/// The first word of a command line that says: this is a round.
pub(crate) const INSIDE: &str = "--inside";

/// Does a task in isolation. What it printed, or why it did not come to its end.
pub(crate) fn run(task: &[String], patience: Duration) -> Result<String, String> {
    let directory = tempfile::Builder::new().prefix("postern-bench-").tempdir().unwrap();
    let scratch = untouched(directory.path());
    let group = cgroup::Made::new();
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare", "--pid", "--net", "--fork", "--kill-child"]);
    command.arg("--mount-proc").arg(std::env::current_exe().unwrap()).arg(INSIDE).args(task);
    command.env("TMPDIR", &scratch).env("RUST_BACKTRACE", "0");
    command.envs(group.as_ref().map(cgroup::Made::variable));
    let errors = scratch.join("errors");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(std::fs::File::create(&errors).unwrap());
    let mut child = command.spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        // It ends when the last process that could write has ended.
        output.read_to_string(&mut text).map(|_| text)
    });
    let deadline = Instant::now() + patience;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let text = reader.join().unwrap().unwrap_or_default();
    match status {
        Some(status) if status.success() => return Ok(text),
        _ => {}
    }
    let said = std::fs::read_to_string(&errors).unwrap_or_default();
    let said =
        said.lines().find(|line| !line.starts_with("thread ") && !line.is_empty()).unwrap_or("no word");
    let kept = keep_logs(&scratch, &task.join("-"));
    match status {
        Some(status) => Err(format!("{said} ({status}; logs in {kept})")),
        None => Err(format!("not within {patience:?} (logs in {kept})")),
    }
}

/// A directory in `directory`, on a part of the disk that the rounds before did not use. Without a journal, ext4 does not
/// give an inode away for minutes after it was freed, and passes them all in its search for another: one round's clearing
/// up would be a part of the next one's figures. It lays what is in a directory with this attribute far apart; other
/// file systems have neither.
fn untouched(directory: &Path) -> PathBuf {
    let _ = Command::new("chattr").arg("+T").arg(directory).stderr(Stdio::null()).status();
    // How far, its name decides.
    let round = tempfile::tempdir_in(directory).unwrap().keep();
    for path in [directory, &round] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }
    round
}

/// Inside: the network has an address, and a panic is an end with a status, as the first process of a
/// namespace cannot be aborted.
pub(crate) fn inside() {
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        say(panic);
        std::process::exit(101);
    }));
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
    assert!(status.success(), "ip link set lo up: {status}");
    // OpenSMTPD's queue of new connections holds five. With cookies the kernel answers more clients than it has room for,
    // forgets them, and who waits to be greeted waits for ever; without, they come again after a second.
    std::fs::write("/proc/sys/net/ipv4/tcp_syncookies", "0").unwrap();
}

/// Keeps logs and configurations of a round that failed; where.
fn keep_logs(scratch: &Path, name: &str) -> String {
    let place = format!("target/bench/failed/{}", name.replace(['/', ' '], "-"));
    let directory = project(&place);
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory).unwrap();
    let _ = std::fs::copy(scratch.join("errors"), directory.join("errors"));
    for entry in std::fs::read_dir(scratch).into_iter().flatten().flatten() {
        for name in ["log", "log/mainlog", "log/paniclog", "stderr", "postern.toml"] {
            let of = entry.file_name();
            let to = directory.join(format!("{}-{}", of.to_string_lossy(), name.replace('/', "-")));
            // What is not there is not kept.
            let _ = std::fs::copy(entry.path().join(name), to);
        }
    }
    place
}
