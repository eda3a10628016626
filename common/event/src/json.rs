//! An event as one JSON object, with the keys of the text form.

use postern_address::ReversePath;
use serde_json::{Value, json};

use crate::event::{Attempt, Client, Event};
use crate::text::{bare, cut};

/// The keys of an event in their order, behind the head (`time`, `program`, `pid`, `level`, `event`).
pub(crate) type Fields = Vec<(&'static str, Value)>;

/// Appends the object and a line end.
pub(crate) fn write(out: &mut Vec<u8>, time: &str, program: &str, pid: u32, event: &Event<'_>) {
    let fields = fields(event);
    let mut head: Fields = vec![("time", text(time)), ("program", text(program))];
    // The process that an event tells of is told instead of the one that tells it.
    if !fields.iter().any(|(key, _)| *key == "pid") {
        head.push(("pid", json!(pid)));
    }
    head.extend([("level", text(event.level().name())), ("event", text(event.name()))]);
    for (n, (key, value)) in head.into_iter().chain(fields).enumerate() {
        out.extend_from_slice(if n == 0 { b"{\"" } else { b",\"" });
        out.extend_from_slice(key.as_bytes());
        out.extend_from_slice(b"\":");
        out.extend_from_slice(escaped(&value).as_bytes());
    }
    out.extend_from_slice(b"}\n");
}

/// JSON lets DEL and the C1 controls stand as they are; a terminal obeys them.
fn escaped(value: &Value) -> String {
    let json = value.to_string();
    if !json.chars().any(char::is_control) {
        return json;
    }
    json.chars().fold(String::new(), |mut out, c| {
        if c.is_control() {
            out.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            out.push(c);
        }
        out
    })
}

/// The fields of an event, its ids first. What is not known is left out.
pub(crate) fn fields(event: &Event<'_>) -> Fields {
    match *event {
        Event::Started { version, configuration } => {
            vec![("version", text(version)), ("configuration", text(configuration))]
        }
        Event::Listening { address, service } => {
            vec![("address", shown(address)), ("service", text(service))]
        }
        Event::Ready { milliseconds } => vec![("milliseconds", json!(milliseconds))],
        Event::ProgramStarted { program, pid } => vec![("name", text(program)), ("pid", json!(pid))],
        Event::ProgramDied { program, pid, how, restart_in_ms } => vec![
            ("name", text(program)),
            ("pid", json!(pid)),
            ("how", text(how)),
            ("restart_in_ms", json!(restart_in_ms)),
        ],
        Event::Reloaded { outcome: Ok(()) } => vec![("outcome", text("taken"))],
        Event::Reloaded { outcome: Err(why) } => vec![("outcome", text("refused")), ("why", text(why))],
        Event::Stopping | Event::Stopped => Vec::new(),
        Event::Sandboxed { landlock, seccomp, user } => {
            vec![("user", text(user)), ("landlock", text(landlock)), ("seccomp", text(seccomp))]
        }
        Event::LinkLost { peer, why } => vec![("peer", text(peer)), ("why", text(why))],
        Event::Connect { .. }
        | Event::Disconnect { .. }
        | Event::Reject { .. }
        | Event::Policy { .. }
        | Event::Accepted { .. }
        | Event::SpoolRefused { .. }
        | Event::LimitExceeded { .. }
        | Event::Overload { .. } => session_fields(event),
        Event::Active { id, from, size, nrcpt } => vec![
            ("id", shown(id)),
            ("from", text(from.as_str())),
            ("size", json!(size)),
            ("nrcpt", json!(nrcpt)),
        ],
        Event::PickedUp { id, uid, from } => {
            vec![("id", shown(id)), ("uid", json!(uid)), ("from", text(from.as_str()))]
        }
        Event::BounceQueued { id, bounce, told } => {
            vec![("id", shown(id)), ("bounce", shown(bounce)), ("told", text(told))]
        }
        Event::BounceDropped { id, why } => vec![("id", shown(id)), ("why", text(why))],
        Event::Removed { id } => vec![("id", shown(id))],
        Event::Operator { id, action } => {
            let id = id.map(|id| ("id", shown(id)));
            id.into_iter().chain([("action", text(action))]).collect()
        }
        Event::Corrupt { file, why } => vec![("file", text(file)), ("why", text(why))],
        Event::Recovered { files, messages, swept, milliseconds } => vec![
            ("files", json!(files)),
            ("messages", json!(messages)),
            ("swept", json!(swept)),
            ("milliseconds", json!(milliseconds)),
        ],
        Event::Delivery(ref attempt) => delivery_fields(attempt),
        Event::Note { id, text: words, .. } => {
            let id = id.map(|id| ("id", text(id)));
            id.into_iter().chain([("text", text(words))]).collect()
        }
    }
}

fn session_fields(event: &Event<'_>) -> Fields {
    match *event {
        Event::Connect { session, client, proxy } => {
            let mut fields = vec![("session", shown(session))];
            push_client(&mut fields, client);
            fields.extend(proxy.map(|proxy| ("proxy", shown(proxy))));
            fields
        }
        Event::Disconnect { session, client, messages, commands, milliseconds, why } => {
            let mut fields = vec![("session", shown(session))];
            push_client(&mut fields, client);
            fields.extend([
                ("messages", json!(messages)),
                ("commands", json!(commands)),
                ("milliseconds", json!(milliseconds)),
                ("why", text(why)),
            ]);
            fields
        }
        Event::Reject { session, client, stage, reply, from, to, helo, proto } => {
            let mut fields = vec![("session", shown(session))];
            push_client(&mut fields, client);
            fields.extend([("stage", text(stage)), ("code", json!(reply.code))]);
            fields.extend(reply.enhanced.map(|code| ("dsn", shown(code))));
            fields.push(("reply", shown(reply)));
            push_circumstances(&mut fields, from, to, proto, helo);
            fields
        }
        Event::Policy { session, client, stage, action, rule, line, text: words, from, to, helo, proto } => {
            let mut fields = vec![("session", shown(session))];
            push_client(&mut fields, client);
            fields.extend([
                ("stage", text(stage)),
                ("action", text(action)),
                ("rule", json!(rule)),
                ("line", json!(line)),
                ("text", text(words)),
            ]);
            push_circumstances(&mut fields, from, to, proto, helo);
            fields
        }
        Event::Accepted { id, session, client, from, size, nrcpt, message_id, forwarded } => {
            let mut fields = vec![("id", shown(id)), ("session", shown(session))];
            push_client(&mut fields, client);
            fields.extend([("from", text(from.as_str())), ("size", json!(size)), ("nrcpt", json!(nrcpt))]);
            fields.extend(message_id.map(|id| ("message_id", text(bare(id)))));
            if let Some(forwarded) = forwarded {
                fields.extend(forwarded.ident.as_deref().map(|ident| ("orig_queue_id", text(ident))));
                fields.extend(crate::text::original_client(forwarded).map(|c| ("orig_client", text(&c))));
                fields.extend(forwarded.address.map(|address| ("orig_client_address", shown(address))));
                fields.extend(forwarded.helo.as_deref().map(|helo| ("orig_helo", text(helo))));
                fields.extend(forwarded.protocol.as_deref().map(|proto| ("orig_proto", text(proto))));
            }
            fields
        }
        Event::LimitExceeded { session, client, measure, scope, count, limit } => {
            let mut fields = vec![("session", shown(session))];
            push_client(&mut fields, client);
            fields.extend([
                ("measure", text(measure)),
                ("scope", text(scope)),
                ("count", json!(count)),
                ("limit", json!(limit)),
            ]);
            fields
        }
        Event::Overload { begins, sessions, most } => {
            vec![("begins", json!(begins)), ("sessions", json!(sessions)), ("most", json!(most))]
        }
        Event::SpoolRefused { session, id, error } => {
            vec![("id", shown(id)), ("session", shown(session)), ("error", text(error))]
        }
        _ => Vec::new(),
    }
}

fn push_client(fields: &mut Fields, client: Client<'_>) {
    fields.push(("client", shown(client)));
    fields.push(("client_address", shown(client.address)));
    fields.extend(client.name.map(|name| ("client_name", text(name))));
}

/// What was said before a command was refused, or a rule did something.
fn push_circumstances(
    fields: &mut Fields,
    from: Option<&ReversePath>,
    to: Option<&str>,
    proto: &str,
    helo: Option<&str>,
) {
    fields.extend(from.map(|from| ("from", text(from.as_str()))));
    fields.extend(to.map(|to| ("to", text(to))));
    fields.push(("proto", text(proto)));
    fields.extend(helo.map(|helo| ("helo", text(helo))));
}

fn delivery_fields(attempt: &Attempt<'_>) -> Fields {
    let seconds = |ms: u64| json!(ms as f64 / 1000.0);
    let total = attempt.delays.iter().fold(0u64, |sum, ms| sum.saturating_add(*ms));
    let mut fields = vec![("id", shown(attempt.id)), ("to", text(attempt.to.as_str()))];
    fields.extend(attempt.orig_to.map(|original| ("orig_to", text(original.as_str()))));
    fields.extend([
        ("relay", text(attempt.relay.unwrap_or("none"))),
        ("delay", seconds(total)),
        ("delays", Value::Array(attempt.delays.map(seconds).to_vec())),
        ("dsn", Value::String(attempt.dsn())),
        ("status", text(attempt.status.name())),
        ("reply", shown(attempt.reply)),
    ]);
    fields
}

fn text(text: &str) -> Value {
    Value::String(cut(text).into_owned())
}

fn shown(value: impl std::fmt::Display) -> Value {
    text(&value.to_string())
}
