//! Descriptors over sockets, and descriptors inherited over exec.

use std::io::{self, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, recvmsg, sendmsg};

/// Most descriptors in one packet: the kernel's own limit (SCM_MAX_FD). A smtpd worker is given all
/// listeners in one.
const DESCRIPTORS_MAX: usize = 253;

/// Sends one packet with descriptors beside it, without blocking. `WouldBlock` when the peer is full.
pub fn send(socket: BorrowedFd<'_>, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<RawFd> = descriptors.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    let sent = sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(packet)], control, flags, None)?;
    if sent == packet.len() { Ok(()) } else { Err(io::Error::other("packet was cut on sending")) }
}

/// Begins to write a file's dirty pages back, without waiting for them. A hint: it promises nothing, a
/// file system that cannot says so, and the sync that follows is what counts.
pub fn start_writeback(file: BorrowedFd<'_>, offset: u64, length: u64) -> io::Result<()> {
    let range = (i64::try_from(offset), i64::try_from(length));
    let (Ok(offset), Ok(length)) = range else { return Err(io::ErrorKind::InvalidInput.into()) };
    // SAFETY: the descriptor is open while it is borrowed, and the call touches no memory of ours.
    let done =
        unsafe { libc::sync_file_range(file.as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Receives one packet into `buffer`, without blocking: its length and its descriptors. A length of 0
/// is the end of the link. A packet or descriptors that do not fit are an error, and what did arrive of
/// them is closed.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; DESCRIPTORS_MAX]);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just made these descriptors for us, and nobody else knows them.
            descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    if message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "packet over the limit"));
    }
    Ok((message.bytes, descriptors))
}

/// The next connection of a listening socket, non-blocking and closed on exec. `WouldBlock` when there is
/// none.
pub fn accept(listener: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let raw = nix::sys::socket::accept4(listener.as_raw_fd(), flags)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Takes a descriptor that the parent process left open for us, by its number. None when it is not open
/// or was taken before.
pub fn inherited(number: RawFd) -> Option<OwnedFd> {
    static TAKEN: std::sync::Mutex<Vec<RawFd>> = std::sync::Mutex::new(Vec::new());
    let mut taken = TAKEN.lock().ok()?;
    // SAFETY: fcntl with F_GETFD reads a flag of the number and touches nothing else.
    if taken.contains(&number) || unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return None;
    }
    taken.push(number);
    // SAFETY: the number is open, std did not open it (callers ask for 3, before they open anything),
    // and the list above gives it out once. The flag keeps it from a later exec.
    let owned = unsafe {
        libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC);
        OwnedFd::from_raw_fd(number)
    };
    Some(owned)
}

/// A file in memory holding `content`, which nobody can change or cut any more, at its beginning.
pub fn sealed_file(name: &str, content: &[u8]) -> io::Result<OwnedFd> {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    let name = std::ffi::CString::new(name).map_err(|_| io::ErrorKind::InvalidInput)?;
    let fd = memfd_create(name.as_c_str(), MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(content)?;
    io::Seek::rewind(&mut file)?;
    let seals =
        SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;

    use nix::sys::socket::{AddressFamily, SockType, socketpair};

    use super::*;

    #[test]
    fn packets_and_descriptors_travel() {
        let (a, b) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let file = sealed_file("t", b"content").unwrap();
        send(a.as_fd(), b"packet", &[file.as_fd()]).unwrap();
        let mut buffer = [0; 16];
        let (length, mut descriptors) = receive(b.as_fd(), &mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"packet");
        let mut text = String::new();
        std::fs::File::from(descriptors.pop().unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "content");
        send(a.as_fd(), &[0; 17], &[]).unwrap();
        assert_eq!(receive(b.as_fd(), &mut buffer).unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(a);
        assert_eq!(receive(b.as_fd(), &mut buffer).unwrap().0, 0);
    }

    #[test]
    fn sealed_files_stay() {
        let file = std::fs::File::from(sealed_file("t", b"x").unwrap());
        assert!((&file).write_all(b"y").is_err());
        assert!(file.set_len(0).is_err());
    }
}
