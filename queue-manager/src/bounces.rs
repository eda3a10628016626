//! From a bounce order to a message for the writer.

use postern_address::{Mailbox, ReversePath};
use postern_message::bounce::{Bounce, Failed, compose};
use postern_message::date;
use postern_smtp::Reply;
use postern_spool::{
    BodyType, Envelope, NewMessage, Origin, QueueId, ReadError, SpoolFile, Stored, Timestamp,
};

use crate::content;
use crate::scheduler::{BounceOrder, Place};

/// As much of a message is read to be returned.
const RETURNED_MAX: usize = 64 * 1024;

/// Composes the report that `order` asks for; none when there is nobody to tell.
pub(crate) fn write(
    file: &SpoolFile,
    place: Place,
    order: &BounceOrder,
    id: QueueId,
    hostname: &str,
    now: Timestamp,
) -> Result<Option<NewMessage>, ReadError> {
    let stored: &Stored = file
        .messages()
        .get(usize::from(place.number))
        .ok_or_else(|| ReadError::Corrupt("no such message".into()))?;
    let envelope = &stored.envelope;
    let to: &Mailbox = match (&order.owner, &envelope.reverse_path) {
        (Some(owner), _) => owner,
        (None, ReversePath::Mailbox(sender)) => sender,
        (None, ReversePath::Null) => return Ok(None),
    };
    // A body that is damaged is no reason to tell nobody.
    let (content, whole) = match content::beginning(file, place.number, RETURNED_MAX) {
        Err(ReadError::Corrupt(_)) => (stored.prepend.clone(), false),
        read => read?,
    };
    let failures: Vec<Failed<'_>> = order
        .failures
        .iter()
        .map(|failure| Failed {
            address: &failure.address,
            original: failure.original.as_ref(),
            status: status(&failure.report.reply),
            remote: failure.report.relay.as_deref(),
            reply: failure.report.reply.to_string(),
            is_remote: failure.report.remote,
            expired: failure.expired,
        })
        .collect();
    let composed = compose(&Bounce {
        hostname,
        id: &id.to_string(),
        now: now.0,
        to,
        message_id: &order.id.to_string(),
        arrival: envelope.arrival.0,
        sender: envelope.reverse_path.as_str(),
        failures: &failures,
        content: &content,
        whole,
    });
    let envelope = Envelope {
        reverse_path: ReversePath::Null,
        recipients: vec![to.clone()],
        arrival: now,
        body: if composed.eight_bit { BodyType::EightBit } else { BodyType::SevenBit },
        origin: Origin::Internal,
        options: postern_spool::Options::default(),
    };
    let received = format!("Received: by {hostname} (Postern) id {id};\r\n\t{}\r\n", date(now.0));
    Ok(Some(NewMessage { id, envelope, prepend: received.into_bytes(), body: composed.message }))
}

/// The status for a program (RFC 3464 §2.3.4): the reply's own, or its class alone.
fn status(reply: &Reply) -> String {
    match reply.enhanced {
        Some(code) => code.to_string(),
        None if reply.is_transient() => "4.0.0".into(),
        None => "5.0.0".into(),
    }
}
