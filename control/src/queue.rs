//! `postern queue …`

use postern_config::Config;
use postern_ipc::ask;
use postern_ipc::control::{MessageDetail, MessageState, MessageSummary, QueueRequest, Reply, Request};
use postern_smtp::parameters::{ByMode, Notify, RcptParameters, Ret};
use postern_spool::{BodyType, Deadline, Options, Timestamp};
use serde_json::{Value, json};

use crate::Failure;
use crate::arguments::QueueCommand;
use crate::table::{self, visible};

/// Asks the queue-manager and prints what it says.
pub(crate) fn queue(config: &Config, command: &QueueCommand, as_json: bool) -> Result<(), Failure> {
    let request = match command {
        QueueCommand::List => QueueRequest::List,
        QueueCommand::Show { id } => QueueRequest::Show(*id),
        QueueCommand::Flush { id } => QueueRequest::Flush(*id),
        QueueCommand::Hold { id } => QueueRequest::Hold(*id),
        QueueCommand::Release { id } => QueueRequest::Release(*id),
        QueueCommand::Remove { id } => QueueRequest::Remove(*id),
    };
    let (mut listed, mut refused) = (0, None);
    let now = Timestamp::now();
    ask(&config.runtime, &Request::Queue(request), |reply| match reply {
        // Printed as they come: a queue may be longer than memory.
        Reply::Messages(messages) if as_json => {
            messages.iter().for_each(|m| table::print_json(&summary_json(m)))
        }
        Reply::Messages(messages) => {
            listed += messages.len();
            messages.iter().for_each(|message| print_summary(message, now));
        }
        Reply::Message(detail) if as_json => table::print_json(&detail_json(&detail)),
        Reply::Message(detail) => print_detail(&detail, now),
        Reply::Done(text) => table::say(as_json, &text),
        Reply::Refused(why) => refused = Some(Failure::new(1, why)),
        _ => {}
    })?;
    if let Some(refused) = refused {
        return Err(refused);
    }
    if matches!(command, QueueCommand::List) && !as_json {
        table::out(&match listed {
            0 => "The queue is empty.".to_owned(),
            1 => "1 message.".to_owned(),
            n => format!("{n} messages."),
        });
    }
    Ok(())
}

/// One message as three kinds of lines: what it is, then each recipient with its last failure.
fn print_summary(message: &MessageSummary, now: Timestamp) {
    let age = table::span(now.0.saturating_sub(message.arrival.0));
    let state = state(message.state, now);
    table::out(&format!(
        "{}  {state}  {} octets  {age} old  {}",
        message.id, message.size, message.reverse_path
    ));
    for (recipient, why) in &message.recipients {
        let why = why.as_deref().map(|why| format!("  ({})", visible(why))).unwrap_or_default();
        table::out(&format!("    to <{recipient}>{why}"));
    }
    let shown = message.recipients.len() as u32;
    if message.recipient_count > shown {
        table::out(&format!("    and {} more", message.recipient_count - shown));
    }
}

fn print_detail(detail: &MessageDetail, now: Timestamp) {
    let summary = &detail.summary;
    table::out(&format!("id          {}", summary.id));
    table::out(&format!("state       {}", state(summary.state, now)));
    table::out(&format!("from        {}", summary.reverse_path));
    table::out(&format!("arrived     {}", time(summary.arrival)));
    table::out(&format!("octets      {}", summary.size));
    if let Value::Object(options) = options(&detail.options, detail.body) {
        for (key, what) in options {
            table::out(&format!("{key:<12}{}", visible(&words(&what))));
        }
    }
    for (place, (recipient, what)) in detail.recipients.iter().enumerate() {
        let (notify, orcpt) = recipient_options(&detail.options, place);
        let notify = notify.map(|notify| format!(", notify {notify}")).unwrap_or_default();
        let orcpt = orcpt.map(|orcpt| format!(", originally {orcpt}")).unwrap_or_default();
        table::out(&format!("to          <{recipient}>: {}", visible(&format!("{what}{notify}{orcpt}"))));
    }
    table::out("");
    let header = String::from_utf8_lossy(&detail.header);
    header.lines().for_each(|line| table::out(&visible(line)));
}

/// A value in a line for people.
fn words(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        Value::Object(parts) => {
            let parts: Vec<_> = parts.iter().map(|(key, what)| format!("{key} {}", words(what))).collect();
            parts.join(", ")
        }
        other => other.to_string(),
    }
}

fn state(state: MessageState, now: Timestamp) -> String {
    match state {
        MessageState::Active => "active".into(),
        MessageState::Deferred(until) => {
            format!("deferred, next try in {}", table::span(until.0.saturating_sub(now.0)))
        }
        MessageState::Scheduled(until) => format!("to be delivered from {} on", time(until)),
        MessageState::Held => "held".into(),
    }
}

/// What a sender asked for, as the parameters of SMTP that say it; none where nothing was asked.
pub(crate) fn options(options: &Options, body: BodyType) -> Value {
    let mut value = serde_json::Map::new();
    let mut say = |key: &str, what: Value| drop(value.insert(key.to_owned(), what));
    match body {
        BodyType::SevenBit => {}
        BodyType::EightBit => say("body", json!("8BITMIME")),
        BodyType::Binary => say("body", json!("BINARYMIME")),
    }
    if options.smtputf8 {
        say("smtputf8", json!(true));
    }
    if let Some(ret) = options.ret {
        say(
            "ret",
            json!(match ret {
                Ret::Full => "FULL",
                Ret::Headers => "HDRS",
            }),
        );
    }
    if let Some(envid) = &options.envid {
        say("envid", json!(envid));
    }
    if let Some(Deadline { at, mode, trace }) = options.deliver_by {
        let mode = match mode {
            ByMode::Notify => "notify",
            ByMode::Return => "return",
        };
        say("deliver_by", json!({ "until": time(at), "else": mode, "trace": trace }));
    }
    if let Some(until) = options.hold_until {
        say("hold_until", json!(time(until)));
    }
    if options.priority != 0 {
        say("priority", json!(options.priority));
    }
    if options.held {
        say("held", json!(true));
    }
    Value::Object(value)
}

/// What was said of one recipient, by its place.
pub(crate) fn recipient_options(options: &Options, place: usize) -> (Option<String>, Option<String>) {
    let found = options.recipients.iter().find(|(n, _)| *n as usize == place);
    let Some((_, RcptParameters { notify, orcpt })) = found else { return (None, None) };
    let notify = notify.map(|Notify { success, failure, delay }| {
        let words = [(success, "SUCCESS"), (failure, "FAILURE"), (delay, "DELAY")];
        let words: Vec<_> = words.iter().filter(|(wanted, _)| *wanted).map(|(_, word)| *word).collect();
        if words.is_empty() { "NEVER".to_owned() } else { words.join(",") }
    });
    (notify, orcpt.as_ref().map(|orcpt| format!("{};{}", orcpt.kind, orcpt.address)))
}

pub(crate) fn time(at: Timestamp) -> String {
    let instant = i64::try_from(at.0).ok().and_then(|at| jiff::Timestamp::from_millisecond(at).ok());
    instant.map_or("?".into(), |at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

fn summary_json(message: &MessageSummary) -> Value {
    let (state, until) = match message.state {
        MessageState::Active => ("active", None),
        MessageState::Deferred(until) => ("deferred", Some(time(until))),
        MessageState::Scheduled(until) => ("scheduled", Some(time(until))),
        MessageState::Held => ("held", None),
    };
    let recipients: Vec<_> =
        message.recipients.iter().map(|(to, why)| json!({ "to": to.as_str(), "reason": why })).collect();
    json!({
        "id": message.id.to_string(), "state": state, "next_try": until, "arrival": time(message.arrival),
        "size": message.size, "from": message.reverse_path.as_str(), "recipients": recipients,
        "recipient_count": message.recipient_count,
    })
}

fn detail_json(detail: &MessageDetail) -> Value {
    let mut value = summary_json(&detail.summary);
    let recipients = detail.recipients.iter().enumerate().map(|(place, (to, what))| {
        let (notify, orcpt) = recipient_options(&detail.options, place);
        json!({ "to": to.as_str(), "status": what, "notify": notify, "orcpt": orcpt })
    });
    value["recipients"] = recipients.collect();
    value["options"] = options(&detail.options, detail.body);
    value["header"] = json!(String::from_utf8_lossy(&detail.header));
    value
}
