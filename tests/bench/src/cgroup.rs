//! The control group of a round's system: the kernel counts there what all of its processes use, also those
//! whose parents never wait for them, and those that have ended.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// Where a round finds the path of its group.
const VARIABLE: &str = "POSTERN_BENCH_CGROUP";
/// Names of the groups begin so; the rest is the maker's process id.
const PREFIX: &str = "postern-bench-";

/// A group, seen from outside the round. Dropped, it is removed; its processes are to have ended.
pub(crate) struct Made(PathBuf);

/// Our own group, if groups can be made below it that count.
static OURS: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
    let ours = ours()?;
    sweep(&ours);
    let tried = Made::below(&ours).ok()?;
    Group(tried.0.clone()).seconds().is_some().then_some(ours)
});

/// Whether rounds have groups. If not, CPU seconds are those of the processes that are waited for.
pub(crate) fn counts() -> bool {
    OURS.is_some()
}

impl Made {
    /// A new one; none where there is no cgroup v2 that we may write to.
    pub(crate) fn new() -> Option<Self> {
        let ours = OURS.as_ref()?;
        Some(Self::below(ours).unwrap())
    }

    fn below(ours: &Path) -> std::io::Result<Self> {
        let path = ours.join(format!("{PREFIX}{}", std::process::id()));
        std::fs::create_dir(&path).map(|()| Self(path))
    }

    /// For the environment of the round.
    pub(crate) fn variable(&self) -> (&'static str, &Path) {
        (VARIABLE, &self.0)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        // The last processes of a round that was killed may still be about to end.
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(error) = std::fs::remove_dir(&self.0) {
            if Instant::now() > deadline {
                eprintln!("{} is left behind: {error}", self.0.display());
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A group, seen by the round.
pub(crate) struct Group(PathBuf);

impl Group {
    /// That which was made for this round.
    pub(crate) fn of_this_round() -> Option<Self> {
        std::env::var_os(VARIABLE).map(|path| Self(path.into()))
    }

    /// Does something; whatever is started meanwhile is in the group for good, while this process goes back.
    pub(crate) fn within<T>(&self, start: impl FnOnce() -> T) -> T {
        let outside = self.0.parent().unwrap();
        enter(&self.0);
        let started = start();
        enter(outside);
        started
    }

    /// CPU seconds of all that was ever in it.
    pub(crate) fn seconds(&self) -> Option<f64> {
        let text = std::fs::read_to_string(self.0.join("cpu.stat")).ok()?;
        let microseconds = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
        Some(microseconds.parse::<f64>().ok()? / 1e6)
    }
}

fn enter(group: &Path) {
    // 0 is who writes.
    std::fs::write(group.join("cgroup.procs"), "0").unwrap();
}

/// The group of this process. cgroup v1 is not asked: where its accounting hangs together with its scheduler, a
/// system in a group of its own would share the cores with the load by other rules.
fn ours() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let mount = mounts.lines().find_map(|line| match *line.split(' ').collect::<Vec<_>>() {
        [_, at, "cgroup2", ..] => Some(at),
        _ => None,
    })?;
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new(mount).join(path))
}

/// Removes what a benchmark left behind that was killed.
fn sweep(ours: &Path) {
    for entry in std::fs::read_dir(ours).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(maker) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        if !Path::new("/proc").join(maker).exists() {
            // What still runs there keeps it.
            let _ = std::fs::remove_dir(entry.path());
        }
    }
}
