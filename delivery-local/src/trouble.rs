//! Errors of the file system in the words of a reply (RFC 3463 §3).

use std::io;

use postern_smtp::{EnhancedCode, Reply};

/// Not now: what was tried, and why it failed.
pub fn deferred(what: &str, error: &io::Error) -> Reply {
    let (code, enhanced) = match error.raw_os_error() {
        Some(libc::EDQUOT) => (452, EnhancedCode::new(4, 2, 2)),
        Some(libc::ENOSPC) => (452, EnhancedCode::new(4, 3, 1)),
        Some(
            libc::EACCES
            | libc::EPERM
            | libc::EROFS
            | libc::ENOENT
            | libc::ENOTDIR
            | libc::ELOOP
            | libc::EFBIG
            | libc::EEXIST,
        ) => (450, EnhancedCode::new(4, 2, 0)),
        _ => (451, EnhancedCode::new(4, 3, 0)),
    };
    Reply::new(code, enhanced, format!("{what}: {error}"))
}

/// Not now, and no fault of the file system.
pub fn unavailable(text: impl Into<String>) -> Reply {
    Reply::new(450, EnhancedCode::new(4, 2, 0), text)
}

/// Not now, and the fault is this program's.
pub fn internal(text: impl Into<String>) -> Reply {
    Reply::new(451, EnhancedCode::new(4, 3, 0), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_is_told_apart() {
        for (errno, words) in [
            (libc::ENOSPC, "452 4.3.1 write x: No space left on device (os error 28)"),
            (libc::EDQUOT, "452 4.2.2 write x: Disk quota exceeded (os error 122)"),
            (libc::EACCES, "450 4.2.0 write x: Permission denied (os error 13)"),
            (libc::EIO, "451 4.3.0 write x: Input/output error (os error 5)"),
        ] {
            let reply = deferred("write x", &io::Error::from_raw_os_error(errno));
            assert_eq!(reply.to_string(), words);
        }
    }
}
