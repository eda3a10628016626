//! Trying, from inside, what must fail.

use std::fs::OpenOptions;
use std::io;
use std::net::TcpStream;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::{Uid, setresuid};
use postern_ipc::supervise::Attempt;

/// How long a connection may take that should not even begin.
const PATIENCE: Duration = Duration::from_secs(2);

/// Tries what must fail; `Ok` is a hole, `Err` the errno that closed it.
pub fn attempt(attempt: &Attempt) -> Result<(), i32> {
    match attempt {
        Attempt::Read(path) => std::fs::File::open(path).map(drop).map_err(errno),
        Attempt::Create(path) => create(path),
        Attempt::Connect(address) => match TcpStream::connect_timeout(address, PATIENCE).map_err(errno) {
            // Nobody listened, or nobody answered: the sandbox did not prevent it.
            Err(libc::ECONNREFUSED) => Ok(()),
            outcome => outcome.map(drop),
        },
        Attempt::Execute(path) => match postern_sys::execute_attempt(path) {
            // It was looked for: the call as such is allowed.
            libc::ENOENT => Ok(()),
            errno => Err(errno),
        },
        Attempt::BecomeRoot => {
            let root = Uid::from_raw(0);
            setresuid(root, root, root).map_err(|e| e as i32)
        }
        Attempt::InternetSocket => {
            socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
                .map(drop)
                .map_err(|e| e as i32)
        }
        Attempt::Trace(pid) => match postern_sys::trace_attempt(*pid) {
            0 => Ok(()),
            errno => Err(errno),
        },
    }
}

fn create(path: &str) -> Result<(), i32> {
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(_) => {
            // What could be made there must not stay; that it could is the result.
            let _ = std::fs::remove_file(path);
            Ok(())
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            OpenOptions::new().write(true).open(path).map(drop).map_err(errno)
        }
        Err(e) => Err(errno(e)),
    }
}

fn errno(error: io::Error) -> i32 {
    // Only a timeout of our own has no errno.
    error.raw_os_error().unwrap_or(libc::ETIMEDOUT)
}
