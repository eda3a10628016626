//! A job's content, piece by piece.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use postern_ipc::queue_agent::Content;
use postern_message::SevenBit;

/// As much of the content is looked at for its header section.
const HEADER_READ: u64 = 128 * 1024;

/// Octets converted at once.
const PIECE: usize = 16 * 1024;

/// Where the content's octets come from, and how far it was read.
#[derive(Debug)]
pub(crate) struct Source {
    front: Vec<u8>,
    file: Option<(File, u64, u64)>,
    at: u64,
    /// For a server that takes no other octets than those below 128.
    conversion: Option<Conversion>,
}

#[derive(Debug, Default)]
struct Conversion {
    converter: SevenBit,
    converted: Vec<u8>,
    read: usize,
    ended: bool,
}

impl Source {
    /// The content of a job, with the descriptor that came beside it.
    pub(crate) fn new(content: Content, descriptor: Option<OwnedFd>) -> Result<Self, &'static str> {
        match (content, descriptor) {
            (Content::Inline(front), _) => Ok(Self { front, file: None, at: 0, conversion: None }),
            (Content::File { prepend, offset, length }, Some(file)) => {
                let file = Some((file.into(), offset, length));
                Ok(Self { front: prepend, file, at: 0, conversion: None })
            }
            (Content::File { .. }, None) => Err("the message's descriptor did not come with the job"),
        }
    }

    /// Octets in all.
    pub(crate) fn size(&self) -> u64 {
        self.front.len() as u64 + self.file.as_ref().map_or(0, |(_, _, length)| *length)
    }

    /// From the beginning again, for another server: as it is, or converted to what fits seven bits.
    pub(crate) fn rewind(&mut self, seven_bit: bool) {
        self.at = 0;
        self.conversion = seven_bit.then(Conversion::default);
    }

    /// The beginning of the content, which holds the header section; nothing else may have been read.
    pub(crate) fn header(&mut self) -> io::Result<Vec<u8>> {
        self.rewind(false);
        let mut beginning = vec![0; self.size().min(HEADER_READ) as usize];
        let mut filled = 0;
        while let Some(room) = beginning.get_mut(filled..).filter(|room| !room.is_empty()) {
            match self.read_as_it_is(room)? {
                0 => break,
                count => filled += count,
            }
        }
        self.rewind(false);
        beginning.truncate(postern_message::body_offset(&beginning));
        Ok(beginning)
    }

    /// The next octets into `buffer`; 0 at the end. A file that is shorter than was said is an error: the
    /// message is not to be sent cut.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(mut conversion) = self.conversion.take() else { return self.read_as_it_is(buffer) };
        let count = conversion.read(buffer, &mut |piece| self.read_as_it_is(piece));
        self.conversion = Some(conversion);
        count
    }

    fn read_as_it_is(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
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

impl Conversion {
    fn read(
        &mut self,
        buffer: &mut [u8],
        source: &mut dyn FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        while self.read == self.converted.len() && !self.ended {
            (self.read, self.converted) = (0, Vec::new());
            let mut piece = vec![0; PIECE];
            match source(&mut piece)? {
                0 => {
                    self.converter.finish(&mut self.converted);
                    self.ended = true;
                }
                count => {
                    self.converter.push(piece.get(..count).unwrap_or_default(), &mut self.converted);
                }
            }
        }
        let rest = self.converted.get(self.read..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.read += count;
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
            source.rewind(false);
        }
    }

    #[test]
    fn converted_and_once_more_as_it_is() {
        let message = "Content-Transfer-Encoding: 8bit\r\n\r\né\r\n";
        let content = Content::Inline(message.as_bytes().to_vec());
        let mut source = Source::new(content, None).unwrap();
        let read = |source: &mut Source| {
            let (mut all, mut buffer) = (Vec::new(), [0; 5]);
            loop {
                match source.read(&mut buffer).unwrap() {
                    0 => return String::from_utf8(all).unwrap(),
                    n => all.extend_from_slice(&buffer[..n]),
                }
            }
        };
        source.rewind(true);
        let converted = "Content-Transfer-Encoding: quoted-printable\r\n\r\n=C3=A9\r\n";
        assert_eq!(read(&mut source), converted);
        assert_eq!(source.header().unwrap(), b"Content-Transfer-Encoding: 8bit\r\n\r\n");
        assert_eq!(read(&mut source), message);
    }

    #[test]
    fn a_short_file_is_an_error() {
        let content = Content::File { prepend: Vec::new(), offset: 0, length: 4 };
        assert!(Source::new(content.clone(), None).is_err());
        let mut source = Source::new(content, Some(tempfile::tempfile().unwrap().into())).unwrap();
        assert!(source.read(&mut [0; 10]).is_err());
    }
}
