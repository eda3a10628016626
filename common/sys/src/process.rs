//! Starting processes.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use nix::unistd::{ForkResult, Pid};

/// The number by which a child knows its control socket.
const CONTROL: i32 = 3;

/// Starts `command` with `control` as its descriptor 3 and nothing else beyond standard input, output
/// and error. The child dies with its parent.
pub fn spawn(mut command: Command, control: OwnedFd) -> io::Result<Child> {
    let raw = control.as_raw_fd();
    let parent = std::process::id();
    // SAFETY: between fork and exec only async-signal-safe calls are made: dup2, fcntl, close_range,
    // prctl, getppid. Nothing allocates.
    unsafe {
        command.pre_exec(move || {
            let moved =
                if raw == CONTROL { libc::fcntl(raw, libc::F_SETFD, 0) } else { libc::dup2(raw, CONTROL) };
            if moved < 0 {
                return Err(io::Error::last_os_error());
            }
            // Mark, not close: std keeps a pipe of its own to report a failed exec.
            libc::close_range(CONTROL as u32 + 1, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as i32);
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if libc::getppid() as u32 != parent {
                return Err(io::Error::other("parent died"));
            }
            Ok(())
        });
    }
    let child = command.spawn();
    drop(control);
    child
}

/// Which side of a fork we are on.
#[derive(Debug)]
pub enum Forked {
    /// The parent, and its child's id.
    Parent(Pid),
    /// The child.
    Child,
}

/// Why a fork was not made.
#[derive(Debug)]
pub enum ForkError {
    /// The program has other threads, whose locks the child would find held for ever.
    Threads(usize),
    /// The kernel refused.
    Os(io::Error),
}

impl std::fmt::Display for ForkError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Threads(n) => write!(f, "cannot fork with {n} threads"),
            Self::Os(error) => write!(f, "cannot fork: {error}"),
        }
    }
}

impl std::error::Error for ForkError {}

/// Forks a program that has one thread; refused when it has more. The thread count is the link count of
/// `/proc/self/task`, given by the caller as an open directory so that it also works in a sandbox.
pub fn fork_single_threaded(task_directory: std::os::fd::BorrowedFd<'_>) -> Result<Forked, ForkError> {
    let stat = nix::sys::stat::fstat(task_directory).map_err(|e| ForkError::Os(e.into()))?;
    let threads = (stat.st_nlink as usize).saturating_sub(2);
    if threads != 1 {
        return Err(ForkError::Threads(threads));
    }
    // SAFETY: this is the only thread, so no lock is held by another and the child may do as it likes.
    match unsafe { nix::unistd::fork() }.map_err(|e| ForkError::Os(e.into()))? {
        ForkResult::Parent { child } => Ok(Forked::Parent(child)),
        ForkResult::Child => Ok(Forked::Child),
    }
}

/// Forks a child that holds standard input, output and error and `keep` alone, does `work` with them and
/// ends with the status that it returns; 101 when it panics. Refused like [`fork_single_threaded`]. What
/// `work` captures must own no descriptor: in the child it would be one that is closed.
pub fn fork_worker(
    task_directory: std::os::fd::BorrowedFd<'_>,
    keep: Vec<OwnedFd>,
    work: impl FnOnce(Vec<OwnedFd>) -> i32,
) -> Result<Pid, ForkError> {
    match fork_single_threaded(task_directory)? {
        Forked::Parent(child) => Ok(child),
        Forked::Child => {
            // A panic must not unwind into the parent's frames, of which this process has a copy.
            let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                close_all_but(&keep)?;
                Ok::<_, io::Error>(work(keep))
            }));
            let status = status.map_or(101, |outcome| outcome.unwrap_or(102));
            // SAFETY: _exit ends the process at once; no destructor of the parent's copy runs.
            unsafe { libc::_exit(status) }
        }
    }
}

/// Closes every descriptor from 3 on but these.
fn close_all_but(keep: &[OwnedFd]) -> io::Result<()> {
    let mut kept: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd() as u32).filter(|fd| *fd > 2).collect();
    kept.sort_unstable();
    let mut first = 3;
    for last in kept.into_iter().map(|fd| fd - 1).chain([u32::MAX]) {
        // SAFETY: the child of a fork uses nothing of its parent's but `keep`, and its memory is never
        // dropped: fork_worker sees to both.
        if first <= last && unsafe { libc::close_range(first, last, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        first = last.saturating_add(2);
    }
    Ok(())
}

/// Tries to execute a program in place of this one, for a sandbox's self-test: comes back with the errno
/// that prevented it, and does not come back from a hole. `path` must not exist.
pub fn execute_attempt(path: &str) -> i32 {
    let Ok(path) = CString::new(path) else { return libc::EINVAL };
    let argv = [path.as_ptr(), std::ptr::null()];
    // SAFETY: both arrays end with a null pointer, and the string lives until the call returns.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), argv[1..].as_ptr()) };
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Tries to trace another process, for a sandbox's self-test: the errno that prevented it, or 0 when it
/// was possible. The trace ends with this process.
pub fn trace_attempt(pid: i32) -> i32 {
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: PTRACE_SEIZE reads no memory of ours: address and options are zero.
    if unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, none, none) } == 0 {
        return 0;
    }
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn the_child_gets_its_control_socket_alone() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let _another = std::fs::File::open("/dev/null").unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "ls /proc/self/fd >&3"]);
        let mut child = spawn(command, theirs.into()).unwrap();
        let mut text = String::new();
        (&ours).read_to_string(&mut text).unwrap();
        assert!(child.wait().unwrap().success());
        // 3 is the socket, 4 the directory that ls itself reads.
        assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3", "4"]);
    }

    #[test]
    fn no_fork_beside_threads() {
        let tasks = std::fs::File::open("/proc/self/task").unwrap();
        // The test harness runs this in a thread of its own.
        assert!(matches!(fork_single_threaded(tasks.as_fd()), Err(ForkError::Threads(n)) if n > 1));
    }

    #[test]
    fn executing_nothing_fails() {
        assert_eq!(execute_attempt("/nonexistent/program"), libc::ENOENT);
    }
}
