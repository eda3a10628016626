//! Spool files. The first octet says whether the checksums of what was changed are made right again: without
//! that nothing gets beyond them.

use std::cell::OnceCell;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use postern_spool::SpoolFile;
use tempfile::TempDir;

use crate::material::front;

const HEAD: usize = 64;
const FOOT: usize = 48;
const LOG_HEAD: usize = 24;
const BLOCK: usize = 4096;
const NAME: &str = "0000000000001";

thread_local! {
    static PLACE: OnceCell<TempDir> = const { OnceCell::new() };
}

pub(crate) fn run(data: &[u8]) {
    let ([resign], bytes) = front(data);
    let mut bytes = bytes.to_vec();
    if resign & 1 != 0 {
        sign(&mut bytes);
    }
    PLACE.with(|place| read(place.get_or_init(directory).path(), &bytes));
}

/// In memory, if there is such a place.
fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

fn read(place: &Path, bytes: &[u8]) {
    std::fs::write(place.join(NAME), bytes).unwrap();
    let directory = File::open(place).unwrap();
    let dropped = SpoolFile::open_dropped(directory.as_fd(), NAME);
    let unfinished = SpoolFile::open_unfinished(directory.as_fd(), NAME);
    let Ok(file) = SpoolFile::open(directory.as_fd(), NAME) else { return };
    let dropped = dropped.expect("the log's fault is no fault of the file");
    assert!(file.messages().starts_with(dropped.messages()), "the first part, or all");
    assert_eq!(file.messages(), unfinished.expect("it is more than that").messages());
    assert!(!file.messages().is_empty(), "a file of nothing");
    for (n, message) in file.messages().iter().enumerate() {
        let body = file.read_body(n);
        assert!(body.is_err() || body.unwrap().len() as u64 == message.length);
        assert!(message.offset + message.length <= bytes.len() as u64);
        let _ = file.content_descriptor(n);
    }
    assert!(file.read_body(file.messages().len()).is_err());
    assert!(file.log().iter().all(|record| usize::from(record.message) < file.messages().len()));
    let _ = file.log_tail();
}

/// The checksums of heads, indices, feet and log made right, as far as they can be found.
fn sign(bytes: &mut [u8]) {
    let mut at = 0;
    while let Some(end) = sign_part(bytes, at) {
        let next = end.next_multiple_of(BLOCK);
        if bytes[12] == 0 {
            return sign_log(bytes, end);
        } else if bytes.get(next..).is_some_and(|rest| rest.starts_with(b"POSTERN\n")) {
            at = next;
        } else if bytes.len() >= next + LOG_HEAD {
            let crc = crc32c::crc32c(&bytes[next..next + LOG_HEAD - 4]);
            put(bytes, next + LOG_HEAD - 4, crc);
            return sign_log(bytes, next + LOG_HEAD);
        } else {
            return;
        }
    }
}

/// One part; where it ends.
fn sign_part(bytes: &mut [u8], from: usize) -> Option<usize> {
    let number = |bytes: &[u8], at: usize| {
        let octets = bytes.get(at..at + 8)?.try_into().ok()?;
        usize::try_from(u64::from_le_bytes(octets)).ok()
    };
    let crc = crc32c::crc32c(bytes.get(from..from + HEAD - 4)?);
    bytes.get(from + HEAD - 4..from + HEAD)?;
    put(bytes, from + HEAD - 4, crc);
    let foot = number(bytes, from + 24).filter(|foot| {
        (from + HEAD..bytes.len()).contains(foot) && foot.saturating_add(FOOT) <= bytes.len()
    })?;
    let index = number(bytes, foot + 8).zip(number(bytes, foot + 16));
    if let Some(index) = index.and_then(|(at, length)| bytes.get(at..at.checked_add(length)?)) {
        let crc = crc32c::crc32c(index);
        put(bytes, foot + 24, crc);
    }
    let crc = crc32c::crc32c(&bytes[foot..foot + FOOT - 4]);
    put(bytes, foot + FOOT - 4, crc);
    Some(foot + FOOT)
}

fn sign_log(bytes: &mut [u8], mut at: usize) {
    let id: [u8; 8] = bytes[16..24].try_into().unwrap();
    while let Some(length) = bytes.get(at..at + 4) {
        let length: [u8; 4] = length.try_into().unwrap();
        let end = (at + 8).saturating_add(u32::from_le_bytes(length) as usize);
        let Some(payload) = bytes.get(at + 8..end) else { return };
        let mut crc = crc32c::crc32c_append(crc32c::crc32c(&id), &(at as u64).to_le_bytes());
        crc = crc32c::crc32c_append(crc32c::crc32c_append(crc, &length), payload);
        put(bytes, at + 4, crc);
        at = end;
    }
}

fn put(bytes: &mut [u8], at: usize, crc: u32) {
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}
