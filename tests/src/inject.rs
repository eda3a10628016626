//! Faults in the system calls of a running program.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// While it lives, system calls of a process, all its threads and the children to come fail.
#[derive(Debug)]
pub struct Fault {
    strace: Child,
}

impl Fault {
    /// Lets `calls` (`fsync,fdatasync`) fail with an error (`EIO`), each and every one, from now on. Needs
    /// root and strace.
    pub fn inject(pid: u32, calls: &str, error: &str) -> Self {
        let mut command = Command::new("strace");
        command.args(["-f", "-p", &pid.to_string(), "-e", &format!("trace={calls}")]);
        command.args([
            "-e",
            &format!("inject={calls}:error={error}"),
            "-e",
            "signal=none",
            "-o",
            "/dev/null",
        ]);
        let mut strace =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        let mut errors = BufReader::new(strace.stderr.take().unwrap());
        while !said.contains(" attached") {
            let read = errors.read_line(&mut said).unwrap();
            assert!(read > 0, "strace: {said}");
        }
        // It says more as threads come and go, and must not wait for a reader.
        std::thread::spawn(move || std::io::copy(&mut errors, &mut std::io::sink()));
        Self { strace }
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        // By SIGTERM it lets go of the process first. It has ended when the process has.
        let _ = kill(Pid::from_raw(self.strace.id() as i32), Signal::SIGTERM);
        let _ = self.strace.wait();
    }
}
