//! `postern queue …`

use postern_config::Config;
use postern_ipc::ask;
use postern_ipc::control::{MessageDetail, MessageState, MessageSummary, QueueRequest, Reply, Request};
use postern_spool::Timestamp;
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
    for (recipient, what) in &detail.recipients {
        table::out(&format!("to          <{recipient}>: {}", visible(what)));
    }
    table::out("");
    let header = String::from_utf8_lossy(&detail.header);
    header.lines().for_each(|line| table::out(&visible(line)));
}

fn state(state: MessageState, now: Timestamp) -> String {
    match state {
        MessageState::Active => "active".into(),
        MessageState::Deferred(until) => {
            format!("deferred, next try in {}", table::span(until.0.saturating_sub(now.0)))
        }
        MessageState::Held => "held".into(),
    }
}

pub(crate) fn time(at: Timestamp) -> String {
    let instant = i64::try_from(at.0).ok().and_then(|at| jiff::Timestamp::from_millisecond(at).ok());
    instant.map_or("?".into(), |at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

fn summary_json(message: &MessageSummary) -> Value {
    let (state, until) = match message.state {
        MessageState::Active => ("active", None),
        MessageState::Deferred(until) => ("deferred", Some(time(until))),
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
    value["recipients"] =
        detail.recipients.iter().map(|(to, what)| json!({ "to": to.as_str(), "status": what })).collect();
    value["header"] = json!(String::from_utf8_lossy(&detail.header));
    value
}
