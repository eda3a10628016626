//! Arbitrary envelopes and log records, for property tests.

use std::net::IpAddr;

use postern_address::{Mailbox, ReversePath};
use postern_smtp::parameters::{ByMode, Notify, OriginalRecipient, RcptParameters, Ret};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::{
    BodyType, Deadline, DoneStatus, Envelope, LogEntry, LogRecord, Options, Origin, QueueId, Success,
    Timestamp,
};

pub(crate) fn mailbox() -> impl Strategy<Value = Mailbox> {
    let local = prop_oneof!["[a-z0-9]{1,20}(\\.[a-z0-9]{1,20})?", "[a-z \"\\\\@]{1,10}", "[а-я]{1,10}"];
    let host = prop_oneof!["[a-z]{1,20}(\\.[a-z]{1,10}){0,3}", Just("x.org".to_owned())];
    (local, host).prop_map(|(local, host)| {
        Mailbox::new(&local, &postern_address::Domain::parse(&host).unwrap()).unwrap()
    })
}

pub(crate) fn id() -> impl Strategy<Value = QueueId> {
    any::<u64>().prop_map(QueueId::from_u64)
}

pub(crate) fn envelope() -> impl Strategy<Value = Envelope> {
    let reverse_path = option::of(mailbox()).prop_map(|m| m.map_or(ReversePath::Null, ReversePath::Mailbox));
    let body = prop_oneof![Just(BodyType::SevenBit), Just(BodyType::EightBit), Just(BodyType::Binary)];
    (reverse_path, vec((mailbox(), said()), 0..5), any::<u64>(), body, origin(), options()).prop_map(
        |(reverse_path, all, arrival, body, origin, options)| {
            let (recipients, said): (Vec<_>, Vec<_>) = all.into_iter().unzip();
            let said = (0..).zip(said).filter(|(_, said)| !said.is_empty()).collect();
            let options = Options { recipients: said, ..options };
            Envelope { reverse_path, recipients, arrival: Timestamp(arrival), body, origin, options }
        },
    )
}

/// What was said of one recipient: mostly nothing.
fn said() -> impl Strategy<Value = RcptParameters> {
    let notify =
        any::<(bool, bool, bool)>().prop_map(|(success, failure, delay)| Notify { success, failure, delay });
    let orcpt =
        ("[a-zA-Z0-9-]{1,10}", "\\PC{0,30}").prop_map(|(kind, address)| OriginalRecipient { kind, address });
    (option::of(notify), option::of(orcpt)).prop_map(|(notify, orcpt)| RcptParameters { notify, orcpt })
}

/// Everything but what was said of recipients.
fn options() -> impl Strategy<Value = Options> {
    let deadline = (any::<u64>(), any::<bool>(), any::<bool>()).prop_map(|(at, late, trace)| Deadline {
        at: Timestamp(at),
        mode: if late { ByMode::Return } else { ByMode::Notify },
        trace,
    });
    let ret = prop_oneof![Just(Ret::Full), Just(Ret::Headers)];
    let whole = (
        any::<bool>(),
        option::of(ret),
        option::of("[ -~]{0,30}"),
        option::of(deadline),
        option::of(any::<u64>()),
        -9i8..=9,
        any::<bool>(),
    )
        .prop_map(|(smtputf8, ret, envid, deliver_by, hold, priority, held)| Options {
            smtputf8,
            ret,
            envid,
            deliver_by,
            hold_until: hold.map(Timestamp),
            priority,
            held,
            recipients: Vec::new(),
        });
    prop_oneof![Just(Options::default()), whole]
}

pub(crate) fn log_record() -> impl Strategy<Value = LogRecord> {
    let status =
        prop_oneof![Just(DoneStatus::Delivered), Just(DoneStatus::Failed), Just(DoneStatus::Removed)];
    let done = (any::<u32>(), option::of(mailbox()), status)
        .prop_map(|(recipient, address, status)| LogEntry::Done { recipient, address, status });
    let deferred = (any::<u32>(), option::of(mailbox()), any::<u64>(), "\\PC{0,60}").prop_map(
        |(recipient, address, until, reply)| LogEntry::Deferred {
            recipient,
            address,
            until: Timestamp(until),
            reply,
        },
    );
    let what = prop_oneof![
        done,
        deferred,
        Just(LogEntry::Held),
        Just(LogEntry::Released),
        Just(LogEntry::BounceSent),
        Just(LogEntry::DelaySent),
        owed(),
        any::<u32>().prop_map(|recipient| LogEntry::Complete { recipient }),
        any::<u32>().prop_map(|recipient| LogEntry::Told { recipient })
    ];
    (any::<u16>(), what).prop_map(|(message, what)| LogRecord { message, what })
}

fn owed() -> impl Strategy<Value = LogEntry> {
    let action = prop_oneof![Just(Success::Delivered), Just(Success::Relayed), Just(Success::Expanded)];
    (any::<u32>(), option::of(mailbox()), action, option::of("\\PC{1,30}"), "\\PC{0,60}").prop_map(
        |(recipient, address, action, relay, reply)| LogEntry::Owed {
            recipient,
            address,
            action,
            relay,
            reply,
        },
    )
}

fn origin() -> impl Strategy<Value = Origin> {
    let smtp = (any::<IpAddr>(), option::of("\\PC{0,30}"), "\\PC{0,30}")
        .prop_map(|(address, name, helo)| Origin::Smtp { address, name, helo });
    prop_oneof![smtp, any::<u32>().prop_map(|uid| Origin::Local { uid }), Just(Origin::Internal)]
}
