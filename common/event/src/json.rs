//! An event as one JSON object, with the keys of the text form.

use std::fmt::Display;

use postern_address::ReversePath;
use serde::Serialize;
use serde::ser::Serializer;

use crate::event::{Attempt, Client, Event};
use crate::text::{FIELD_MAX, bare, cut};

/// Appends the object and a line end.
pub(crate) fn write(out: &mut Vec<u8>, time: &str, program: &str, pid: u32, event: &Event<'_>) {
    let mut object = Object::begin(out);
    object.shown("time", time);
    object.shown("program", program);
    // The process that an event tells of is told instead of the one that tells it.
    if !matches!(event, Event::ProgramStarted { .. } | Event::ProgramDied { .. }) {
        object.value("pid", pid);
    }
    object.shown("level", event.level().name());
    object.shown("event", event.name());
    fields(&mut object, event);
    object.end();
    out.push(b'\n');
}

/// An object as it is written: a line is made for each thing that happens to a message, so nothing is made for it
/// but its octets.
struct Object<'a> {
    out: &'a mut Vec<u8>,
    next: u8,
}

impl<'a> Object<'a> {
    fn begin(out: &'a mut Vec<u8>) -> Self {
        Self { out, next: b'{' }
    }

    /// There is always a key.
    fn end(self) {
        self.out.push(b'}');
    }

    fn key(&mut self, key: &str) {
        self.out.extend([self.next, b'"']);
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
        self.next = b',';
    }

    /// A number, truth or list of numbers.
    fn value(&mut self, key: &str, value: impl Serialize) {
        self.key(key);
        // Neither these nor writing to memory can fail.
        let _ = serde_json::to_writer(&mut *self.out, &value);
    }

    /// A string.
    fn shown(&mut self, key: &str, value: impl Display) {
        self.key(key);
        let begin = self.out.len();
        let _ = serde_json::Serializer::new(&mut *self.out).collect_str(&value);
        let written = self.out.get(begin..).unwrap_or_default();
        // DEL; and C1 controls begin so.
        if written.len() > FIELD_MAX || written.iter().any(|b| matches!(b, 0x7F | 0xC2)) {
            self.out.truncate(begin);
            self.out.extend_from_slice(escaped(&cut(&value.to_string())).as_bytes());
        }
    }

    fn shown_if_known(&mut self, key: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.shown(key, value);
        }
    }
}

/// JSON lets DEL and the C1 controls stand as they are; a terminal obeys them.
fn escaped(text: &str) -> String {
    let json = serde_json::Value::from(text).to_string();
    json.chars().fold(String::with_capacity(json.len()), |mut out, c| {
        if c.is_control() {
            out.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            out.push(c);
        }
        out
    })
}

/// The fields of an event, its ids first. What is not known is left out.
fn fields(object: &mut Object<'_>, event: &Event<'_>) {
    match *event {
        Event::Started { version, configuration } => {
            object.shown("version", version);
            object.shown("configuration", configuration);
        }
        Event::Listening { address, service } => {
            object.shown("address", address);
            object.shown("service", service);
        }
        Event::Ready { milliseconds } => object.value("milliseconds", milliseconds),
        Event::ProgramStarted { program, pid } => {
            object.shown("name", program);
            object.value("pid", pid);
        }
        Event::ProgramDied { program, pid, how, restart_in_ms } => {
            object.shown("name", program);
            object.value("pid", pid);
            object.shown("how", how);
            object.value("restart_in_ms", restart_in_ms);
        }
        Event::Reloaded { outcome: Ok(()) } => object.shown("outcome", "taken"),
        Event::Reloaded { outcome: Err(why) } => {
            object.shown("outcome", "refused");
            object.shown("why", why);
        }
        Event::Stopping | Event::Stopped => {}
        Event::Sandboxed { landlock, seccomp, user } => {
            object.shown("user", user);
            object.shown("landlock", landlock);
            object.shown("seccomp", seccomp);
        }
        Event::LinkLost { peer, why } => {
            object.shown("peer", peer);
            object.shown("why", why);
        }
        Event::Connect { .. }
        | Event::Disconnect { .. }
        | Event::Reject { .. }
        | Event::Policy { .. }
        | Event::Accepted { .. }
        | Event::SpoolRefused { .. }
        | Event::LimitExceeded { .. }
        | Event::Overload { .. } => session_fields(object, event),
        Event::Active { id, from, size, nrcpt } => {
            object.shown("id", id);
            object.shown("from", from.as_str());
            object.value("size", size);
            object.value("nrcpt", nrcpt);
        }
        Event::PickedUp { id, uid, from } => {
            object.shown("id", id);
            object.value("uid", uid);
            object.shown("from", from.as_str());
        }
        Event::BounceQueued { id, bounce, told } => {
            object.shown("id", id);
            object.shown("bounce", bounce);
            object.shown("told", told);
        }
        Event::BounceDropped { id, why } => {
            object.shown("id", id);
            object.shown("why", why);
        }
        Event::Removed { id } => object.shown("id", id),
        Event::Operator { id, action } => {
            object.shown_if_known("id", id);
            object.shown("action", action);
        }
        Event::Corrupt { file, why } => {
            object.shown("file", file);
            object.shown("why", why);
        }
        Event::Recovered { files, messages, swept, milliseconds } => {
            object.value("files", files);
            object.value("messages", messages);
            object.value("swept", swept);
            object.value("milliseconds", milliseconds);
        }
        Event::Delivery(ref attempt) => delivery_fields(object, attempt),
        Event::Note { id, text, .. } => {
            object.shown_if_known("id", id);
            object.shown("text", text);
        }
    }
}

fn session_fields(object: &mut Object<'_>, event: &Event<'_>) {
    match *event {
        Event::Connect { session, client, proxy } => {
            object.shown("session", session);
            put_client(object, client);
            object.shown_if_known("proxy", proxy);
        }
        Event::Disconnect { session, client, messages, commands, milliseconds, why } => {
            object.shown("session", session);
            put_client(object, client);
            object.value("messages", messages);
            object.value("commands", commands);
            object.value("milliseconds", milliseconds);
            object.shown("why", why);
        }
        Event::Reject { session, client, stage, reply, from, to, helo, proto } => {
            object.shown("session", session);
            put_client(object, client);
            object.shown("stage", stage);
            object.value("code", reply.code);
            object.shown_if_known("dsn", reply.enhanced);
            object.shown("reply", reply);
            put_circumstances(object, from, to, proto, helo);
        }
        Event::Policy { session, client, stage, action, rule, line, text, from, to, helo, proto } => {
            object.shown("session", session);
            put_client(object, client);
            object.shown("stage", stage);
            object.shown("action", action);
            object.value("rule", rule);
            object.value("line", line);
            object.shown("text", text);
            put_circumstances(object, from, to, proto, helo);
        }
        Event::Accepted { id, session, client, from, size, nrcpt, message_id, forwarded } => {
            object.shown("id", id);
            object.shown("session", session);
            put_client(object, client);
            object.shown("from", from.as_str());
            object.value("size", size);
            object.value("nrcpt", nrcpt);
            object.shown_if_known("message_id", message_id.map(bare));
            if let Some(forwarded) = forwarded {
                object.shown_if_known("orig_queue_id", forwarded.ident.as_deref());
                object.shown_if_known("orig_client", crate::text::original_client(forwarded));
                object.shown_if_known("orig_client_address", forwarded.address);
                object.shown_if_known("orig_helo", forwarded.helo.as_deref());
                object.shown_if_known("orig_proto", forwarded.protocol.as_deref());
            }
        }
        Event::LimitExceeded { session, client, measure, scope, count, limit } => {
            object.shown("session", session);
            put_client(object, client);
            object.shown("measure", measure);
            object.shown("scope", scope);
            object.value("count", count);
            object.value("limit", limit);
        }
        Event::Overload { begins, sessions, most } => {
            object.value("begins", begins);
            object.value("sessions", sessions);
            object.value("most", most);
        }
        Event::SpoolRefused { session, id, error } => {
            object.shown("id", id);
            object.shown("session", session);
            object.shown("error", error);
        }
        _ => {}
    }
}

fn put_client(object: &mut Object<'_>, client: Client<'_>) {
    object.shown("client", client);
    object.shown("client_address", client.address);
    object.shown_if_known("client_name", client.name);
}

/// What was said before a command was refused, or a rule did something.
fn put_circumstances(
    object: &mut Object<'_>,
    from: Option<&ReversePath>,
    to: Option<&str>,
    proto: &str,
    helo: Option<&str>,
) {
    object.shown_if_known("from", from.map(ReversePath::as_str));
    object.shown_if_known("to", to);
    object.shown("proto", proto);
    object.shown_if_known("helo", helo);
}

fn delivery_fields(object: &mut Object<'_>, attempt: &Attempt<'_>) {
    let seconds = |ms: u64| ms as f64 / 1000.0;
    let total = attempt.delays.iter().fold(0u64, |sum, ms| sum.saturating_add(*ms));
    object.shown("id", attempt.id);
    object.shown("to", attempt.to.as_str());
    object.shown_if_known("orig_to", attempt.orig_to.map(|original| original.as_str()));
    object.shown("relay", attempt.relay.unwrap_or("none"));
    object.value("delay", seconds(total));
    object.value("delays", attempt.delays.map(seconds));
    object.shown("dsn", attempt.dsn());
    object.shown("status", attempt.status.name());
    object.shown("reply", attempt.reply);
}
