//! From a finished dialogue to a message of the spool.

use std::net::IpAddr;

use postern_address::{Mailbox, ReversePath};
use postern_message::Received;
use postern_smtp::parameters::{Body, Hold};
use postern_smtp::server::Finished;
use postern_smtp::xclient::Forwarded;
use postern_spool::{BodyType, Deadline, Envelope, Options, Origin, QueueId, Timestamp};

/// What the log needs to know about a message that the spool has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Receipt {
    pub(crate) id: QueueId,
    pub(crate) from: ReversePath,
    pub(crate) size: u64,
    pub(crate) nrcpt: usize,
    pub(crate) message_id: Option<String>,
    /// What XFORWARD said of it.
    pub(crate) forwarded: Option<Forwarded>,
}

/// What the header section tells us. We change nothing in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    /// Received fields: how many hosts had it before us (RFC 5321 §6.3).
    pub(crate) hops: u32,
    /// For the log.
    pub(crate) message_id: Option<String>,
    /// Something of it is not US-ASCII.
    pub(crate) utf8: bool,
}

/// Who sent it and how: for the trace line and for the envelope.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source<'a> {
    pub(crate) address: IpAddr,
    pub(crate) name: Option<&'a str>,
    pub(crate) helo: &'a str,
    pub(crate) protocol: &'a str,
    pub(crate) hostname: &'a str,
}

impl Header {
    /// Reads the header section at the front of `content`.
    pub(crate) fn read(content: &[u8]) -> Self {
        let mut header = Self::default();
        for field in postern_message::fields(content) {
            header.utf8 |= !field.raw.is_ascii();
            if field.is("received") {
                header.hops += 1;
            } else if header.message_id.is_none() && field.is("message-id") {
                header.message_id = Some(field.value().chars().take(250).collect());
            }
        }
        header
    }
}

/// The parts that the spool wants beside the body: envelope, trace line; and the receipt for the log.
/// What is left of `finished` is its content.
pub(crate) fn prepare(
    finished: &mut Finished,
    source: Source<'_>,
    header: Header,
    id: QueueId,
    arrival: Timestamp,
) -> (Envelope, Vec<u8>, Receipt) {
    let recipients = std::mem::take(&mut finished.recipients);
    let received = Received {
        helo: source.helo,
        client_name: source.name,
        client_address: source.address,
        hostname: source.hostname,
        protocol: source.protocol,
        id: &id.to_string(),
        // RFC 5321 §7.2: recipients do not learn of each other.
        recipient: match &recipients[..] {
            [only] => Some(only.as_str()),
            _ => None,
        },
        at: arrival.0,
    };
    let prepend = received.line();
    let receipt = Receipt {
        id,
        from: finished.reverse_path.clone(),
        size: finished.size,
        nrcpt: recipients.len(),
        message_id: header.message_id,
        forwarded: None,
    };
    let body = finished.parameters.body;
    let options = options(finished, &recipients, header.utf8, arrival);
    let envelope = Envelope {
        reverse_path: std::mem::replace(&mut finished.reverse_path, ReversePath::Null),
        recipients,
        arrival,
        body: match body {
            Body::SevenBit => BodyType::SevenBit,
            Body::EightBit => BodyType::EightBit,
            Body::Binary => BodyType::Binary,
        },
        origin: Origin::Smtp {
            address: source.address,
            name: source.name.map(str::to_owned),
            helo: source.helo.to_owned(),
        },
        options,
    };
    (envelope, prepend, receipt)
}

/// What the client asked for, as times of our clock and with what it takes.
fn options(
    finished: &mut Finished,
    recipients: &[Mailbox],
    header_utf8: bool,
    arrival: Timestamp,
) -> Options {
    let parameters = std::mem::take(&mut finished.parameters);
    let after = |seconds: i64| Timestamp(arrival.0.saturating_add_signed(seconds.saturating_mul(1000)));
    let utf8_address = !finished.reverse_path.as_str().is_ascii()
        || recipients.iter().any(|recipient| !recipient.is_ascii());
    Options {
        // Who says SMTPUTF8 needs not use it: then every host can have the message.
        smtputf8: parameters.smtputf8 && (utf8_address || header_utf8),
        ret: parameters.ret,
        envid: parameters.envid,
        deliver_by: parameters.by.map(|by| Deadline {
            at: after(by.seconds),
            mode: by.mode,
            trace: by.trace,
        }),
        hold_until: parameters.hold.map(|hold| match hold {
            Hold::For(seconds) => after(i64::try_from(seconds).unwrap_or(i64::MAX)),
            Hold::Until(at) => Timestamp(at),
        }),
        priority: parameters.priority.unwrap_or(0),
        held: false,
        recipients: std::mem::take(&mut finished.recipient_parameters),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        let header =
            Header::read(b"Received: a\r\n b\r\nreceived: c\r\nMessage-ID: <1@x>\r\n\r\nReceived: d\r\n");
        assert_eq!(header, Header { hops: 2, message_id: Some("<1@x>".into()), utf8: false });
        assert_eq!(Header::read(b"\r\nReceived: d\r\n"), Header::default());
        assert!(Header::read("Subject: Grüße\r\n\r\n".as_bytes()).utf8);
        assert!(!Header::read("Subject: x\r\n\r\nGrüße\r\n".as_bytes()).utf8);
    }
}
