//! A message's bytes on their way to an agent, and what its header section says of its way so far.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use postern_address::Mailbox;
use postern_ipc::queue_agent::{Content, Destination, INLINE_MAX};
use postern_message::fields;
use postern_smtp::{EnhancedCode, Reply};
use postern_spool::{ReadError, SpoolFile};

/// As much of a large message is read for its header section.
const HEADER_READ: usize = 128 * 1024;

/// A message ready for a job.
#[derive(Debug)]
pub struct Prepared {
    /// For the job.
    pub content: Content,
    /// Beside the job.
    pub descriptor: Option<OwnedFd>,
    /// Where it has been.
    pub trace: Trace,
}

/// Where a message has been, by its header section.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// Received fields (RFC 5321 §6.3).
    pub received: u32,
    /// Delivered-To fields.
    pub delivered_to: Vec<String>,
}

/// A frame holds this much of a message and its recipients.
const FRAME_ROOM: usize = 60 * 1024;

/// Reads message `number`: all of a small one, a descriptor and the header section of a large one. `beside` is
/// what else the job's frame must hold, octets.
pub fn prepare(file: &SpoolFile, number: u16, beside: usize) -> Result<Prepared, ReadError> {
    let n = usize::from(number);
    let stored = file.messages().get(n).ok_or_else(|| ReadError::Corrupt("no such message".into()))?;
    let room = INLINE_MAX.min(FRAME_ROOM.saturating_sub(beside));
    if stored.prepend.len() as u64 + stored.length <= room as u64 {
        let mut bytes = stored.prepend.clone();
        bytes.extend(file.read_body(n)?);
        let trace = Trace::read(&bytes);
        return Ok(Prepared { content: Content::Inline(bytes), descriptor: None, trace });
    }
    let (descriptor, offset) = file.content_descriptor(n)?;
    let body = File::from(descriptor);
    let mut bytes = stored.prepend.clone();
    bytes.extend(read_at(&body, offset, stored.length.min(HEADER_READ as u64) as usize)?);
    let trace = Trace::read(&bytes);
    let content = Content::File { prepend: stored.prepend.clone(), offset, length: stored.length };
    Ok(Prepared { content, descriptor: Some(body.into()), trace })
}

/// The beginning of a message, at most `most` octets of its body, and whether that is all of it.
pub fn beginning(file: &SpoolFile, number: u16, most: usize) -> Result<(Vec<u8>, bool), ReadError> {
    let n = usize::from(number);
    let stored = file.messages().get(n).ok_or_else(|| ReadError::Corrupt("no such message".into()))?;
    let mut bytes = stored.prepend.clone();
    if stored.length <= most as u64 {
        bytes.extend(file.read_body(n)?);
        return Ok((bytes, true));
    }
    let (descriptor, offset) = file.content_descriptor(n)?;
    bytes.extend(read_at(&File::from(descriptor), offset, most)?);
    Ok((bytes, false))
}

fn read_at(file: &File, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

impl Trace {
    fn read(message: &[u8]) -> Self {
        let mut trace = Self::default();
        for field in fields(message) {
            if field.is("received") {
                trace.received += 1;
            } else if field.is("delivered-to") {
                trace.delivered_to.push(field.value());
            }
        }
        trace
    }

    /// Why the message must not go to `address`: it has been there, or nearly everywhere.
    pub fn refuses(&self, hops: u32, destination: &Destination, address: &Mailbox) -> Option<Reply> {
        let code = EnhancedCode::new(5, 4, 6);
        if self.received > hops {
            return Some(Reply::new(554, code, format!("too many hops: {} Received fields", self.received)));
        }
        let here = matches!(destination, Destination::Local { .. } | Destination::Virtual { .. });
        let been = |to: &String| to.trim_matches(['<', '>']).eq_ignore_ascii_case(address.as_str());
        (here && self.delivered_to.iter().any(been))
            .then(|| Reply::new(554, code, format!("mail forwarding loop for {address}")))
    }
}

#[cfg(test)]
mod tests {
    use postern_ipc::queue_agent::{MailboxKind, Nexthop};

    use super::*;

    #[test]
    fn loops_are_seen() {
        let message =
            b"Received: a\r\nreceived: b\r\n\tc\r\nDelivered-To: U@v.test\r\n\r\nReceived: body\r\n";
        let trace = Trace::read(message);
        assert_eq!((trace.received, trace.delivered_to.len()), (2, 1));
        let address = Mailbox::parse("u@v.test").unwrap();
        let here = Destination::Virtual { mailbox: MailboxKind::Maildir("v".into()) };
        let there = Destination::Smtp(Nexthop::Address("127.0.0.1:25".parse().unwrap()));
        assert!(trace.refuses(2, &here, &address).is_some());
        assert!(trace.refuses(2, &here, &Mailbox::parse("w@v.test").unwrap()).is_none());
        assert!(trace.refuses(2, &there, &address).is_none());
        assert!(trace.refuses(1, &there, &address).is_some());
    }
}
