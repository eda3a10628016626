//! How messages are laid out in a spool file.

use std::io::IoSlice;

use crate::format::{self, BLOCK, FOOT_LEN, HEAD_LEN, Head, INDEX_MAX, StoredRef};
use crate::id::QueueId;
use crate::writer::{NewMessage, WriteError};

/// Where the next body may begin in a file of several messages.
static ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];

/// Where messages are put.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// The file: the id of its first message.
    pub(crate) id: QueueId,
    /// Where in the file.
    pub(crate) at: u64,
    /// Which part of the file they are; `None` in a file that has but one.
    pub(crate) part: Option<u32>,
}

impl Place {
    /// The beginning of a file of one part.
    pub(crate) fn alone(id: QueueId) -> Self {
        Self { id, at: 0, part: None }
    }
}

/// What stands around the bodies of a part.
pub(crate) struct Layout {
    place: Place,
    head: [u8; HEAD_LEN],
    /// Where each body begins.
    starts: Vec<u64>,
    /// Where the index begins.
    index: u64,
    /// Index and foot.
    tail: Vec<u8>,
}

impl Layout {
    pub(crate) fn of(messages: &[&NewMessage], place: Place) -> Result<Self, WriteError> {
        let mut index = Vec::with_capacity(messages.iter().map(|m| m.prepend.len() + 512).sum());
        let mut starts = Vec::with_capacity(messages.len());
        let mut position = place.at + HEAD_LEN as u64;
        for message in messages {
            if messages.len() > 1 {
                position = position.next_multiple_of(BLOCK);
            }
            starts.push(position);
            let stored = StoredRef {
                id: message.id,
                envelope: &message.envelope,
                prepend: &message.prepend,
                offset: position,
                length: message.body.len() as u64,
                crc: crc32c::crc32c(&message.body),
            };
            format::encode_message(&mut index, &stored);
            position += stored.length;
        }
        let (head, tail) = close(place, position, index, messages.len() as u32)?;
        Ok(Self { place, head, starts, index: position, tail })
    }

    /// The whole part, in order.
    pub(crate) fn slices<'a>(&'a self, messages: &[&'a NewMessage]) -> Vec<IoSlice<'a>> {
        let mut slices = Vec::with_capacity(2 * messages.len() + 2);
        let mut position = self.place.at + HEAD_LEN as u64;
        slices.push(IoSlice::new(&self.head));
        for (message, start) in messages.iter().zip(&self.starts) {
            let gap = start.saturating_sub(position) as usize;
            slices.push(IoSlice::new(ZEROS.get(..gap).unwrap_or(&ZEROS)));
            slices.push(IoSlice::new(&message.body));
            position = start + message.body.len() as u64;
        }
        slices.push(IoSlice::new(&self.tail));
        slices
    }

    /// Behind the foot.
    pub(crate) fn end(&self) -> u64 {
        self.index + self.tail.len() as u64
    }
}

/// The head of a part whose index begins at `at`, and the index with its foot.
pub(crate) fn close(
    place: Place,
    at: u64,
    mut index: Vec<u8>,
    messages: u32,
) -> Result<([u8; HEAD_LEN], Vec<u8>), WriteError> {
    if index.len() > INDEX_MAX {
        return Err(WriteError::Io(format!("index of {} octets", index.len())));
    }
    let Place { id, part, .. } = place;
    let head = format::encode_head(Head { id, foot: at + index.len() as u64, part });
    let foot: [u8; FOOT_LEN] = format::encode_foot(id, at, &index, messages, part.unwrap_or(0));
    index.extend_from_slice(&foot);
    Ok((head, index))
}
