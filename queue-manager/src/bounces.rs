//! From an order for a report to a message for the writer.

use std::collections::BTreeMap;

use postern_address::{Mailbox, ReversePath};
use postern_message::bounce::{Action, Bounce, Failed, Kind, compose};
use postern_message::date;
use postern_smtp::Reply;
use postern_smtp::parameters::{RcptParameters, Ret};
use postern_spool::{
    BodyType, Envelope, NewMessage, Options, Origin, QueueId, ReadError, SpoolFile, Stored, Success,
    Timestamp,
};

use crate::content;
use crate::scheduler::{BounceOrder, Failure, Late, Place, ReportKind};

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
    let to: &Mailbox = match (&order.key.owner, &envelope.reverse_path) {
        (Some(owner), _) => owner,
        (None, ReversePath::Mailbox(sender)) => sender,
        (None, ReversePath::Null) => return Ok(None),
    };
    let kind = match order.key.kind {
        ReportKind::Failure => Kind::Failure,
        ReportKind::Delay => Kind::Delay(order.tried_until.0),
        ReportKind::Success => Kind::Success,
    };
    // A body that is damaged is no reason to tell nobody.
    let (content, whole) = match content::beginning(file, place.number, RETURNED_MAX) {
        Err(ReadError::Corrupt(_)) => (stored.prepend.clone(), false),
        read => read?,
    };
    // What the sender calls a recipient; a list's owner has heard of none of that.
    let options = Some(&envelope.options).filter(|_| order.key.owner.is_none());
    let said = options.into_iter().flat_map(|options| &options.recipients);
    let said: BTreeMap<u32, &RcptParameters> = said.map(|(n, said)| (*n, said)).collect();
    let orcpt = |recipient: &u32| {
        let orcpt = said.get(recipient)?.orcpt.as_ref()?;
        Some((orcpt.kind.as_str(), orcpt.address.as_str()))
    };
    let failed = order.failures.iter().map(|failure: &Failure| Failed {
        address: &failure.address,
        original: failure.original.as_ref(),
        orcpt: orcpt(&failure.recipient),
        action: if kind == Kind::Failure { Action::Failed } else { Action::Delayed },
        status: match failure.expired {
            Some(Late::Deadline) => "5.4.7".into(), // RFC 2852 §4.1.4
            _ => status(&failure.report.reply),
        },
        remote: failure.report.relay.as_deref(),
        reply: failure.report.reply.to_string(),
        is_remote: failure.report.remote,
        expired: failure.expired.is_some(),
    });
    let mut failures: Vec<Failed<'_>> = failed.collect();
    failures.extend(order.owed.iter().map(|(recipient, original, owed)| Failed {
        address: owed.address.as_ref().unwrap_or(original),
        original: owed.address.as_ref().map(|_| original),
        orcpt: orcpt(recipient),
        action: match owed.action {
            Success::Delivered => Action::Delivered,
            Success::Relayed => Action::Relayed,
            Success::Expanded => Action::Expanded,
        },
        status: success_status(&owed.reply),
        remote: owed.relay.as_deref(),
        reply: owed.reply.clone(),
        is_remote: owed.relay.as_ref().is_some_and(|relay| relay.contains(['[', '/'])),
        expired: false,
    }));
    // Only a failed message comes back as a whole, and only lines can (RFC 3461 §4.3).
    let headers_alone = envelope.options.ret == Some(Ret::Headers) || envelope.body == BodyType::Binary;
    let whole = whole && kind == Kind::Failure && !headers_alone;
    let composed = compose(&Bounce {
        hostname,
        id: &id.to_string(),
        now: now.0,
        to,
        message_id: &order.id.to_string(),
        arrival: envelope.arrival.0,
        sender: envelope.reverse_path.as_str(),
        kind,
        envid: options.and_then(|options| options.envid.as_deref()),
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
        // The returned header section has its own type; what needs SMTPUTF8 is an address above it.
        options: Options { smtputf8: !to.is_ascii(), ..Options::default() },
    };
    let received = format!("Received: by {hostname} (Postern) id {id};\r\n\t{}\r\n", date(now.0));
    Ok(Some(NewMessage { id, envelope, prepend: received.into_bytes(), body: composed.message }))
}

/// The same of a reply that was written down.
fn success_status(reply: &str) -> String {
    let code = reply.split_ascii_whitespace().nth(1).filter(|word| {
        word.starts_with("2.") && word.bytes().all(|b| b.is_ascii_digit() || b == b'.') && word.len() <= 9
    });
    code.unwrap_or("2.0.0").to_owned()
}

/// The status for a program (RFC 3464 §2.3.4): the reply's own, or its class alone.
fn status(reply: &Reply) -> String {
    match reply.enhanced {
        Some(code) => code.to_string(),
        None if reply.is_transient() => "4.0.0".into(),
        None => "5.0.0".into(),
    }
}
