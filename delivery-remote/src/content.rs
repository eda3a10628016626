//! A job's content, piece by piece.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use postern_ipc::queue_agent::Content;

/// Where the content's octets come from, and how far it was read.
#[derive(Debug)]
pub(crate) struct Source {
    front: Vec<u8>,
    file: Option<(File, u64, u64)>,
    at: u64,
}

impl Source {
    /// The content of a job, with the descriptor that came beside it.
    pub(crate) fn new(content: Content, descriptor: Option<OwnedFd>) -> Result<Self, &'static str> {
        match (content, descriptor) {
            (Content::Inline(front), _) => Ok(Self { front, file: None, at: 0 }),
            (Content::File { prepend, offset, length }, Some(file)) => {
                Ok(Self { front: prepend, file: Some((file.into(), offset, length)), at: 0 })
            }
            (Content::File { .. }, None) => Err("the message's descriptor did not come with the job"),
        }
    }

    /// Octets in all.
    pub(crate) fn size(&self) -> u64 {
        self.front.len() as u64 + self.file.as_ref().map_or(0, |(_, _, length)| *length)
    }

    /// From the beginning again, for another server.
    pub(crate) fn rewind(&mut self) {
        self.at = 0;
    }

    /// The next octets into `buffer`; 0 at the end. A file that is shorter than was said is an error: the
    /// message is not to be sent cut.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(self.at).ok().and_then(|at| self.front.get(at..)).unwrap_or_default();
        let count = if !rest.is_empty() {
            let count = rest.len().min(buffer.len());
            buffer[..count].copy_from_slice(&rest[..count]);
            count
        } else if let Some((file, offset, length)) = &self.file {
            let at = self.at - self.front.len() as u64;
            let count = usize::try_from(length - at).unwrap_or(usize::MAX).min(buffer.len());
            file.read_exact_at(&mut buffer[..count], offset + at)?;
            count
        } else {
            0
        };
        self.at += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn lines_before_and_a_part_of_a_file() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"xxxbodyyyy").unwrap();
        let content = Content::File { prepend: b"trace".to_vec(), offset: 3, length: 4 };
        let mut source = Source::new(content, Some(file.into())).unwrap();
        assert_eq!(source.size(), 9);
        for _ in 0..2 {
            let (mut all, mut buffer) = (Vec::new(), [0; 3]);
            loop {
                match source.read(&mut buffer).unwrap() {
                    0 => break,
                    n => all.extend_from_slice(&buffer[..n]),
                }
            }
            assert_eq!(all, b"tracebody");
            source.rewind();
        }
    }

    #[test]
    fn a_short_file_is_an_error() {
        let content = Content::File { prepend: Vec::new(), offset: 0, length: 4 };
        assert!(Source::new(content.clone(), None).is_err());
        let mut source = Source::new(content, Some(tempfile::tempfile().unwrap().into())).unwrap();
        assert!(source.read(&mut [0; 10]).is_err());
    }
}
