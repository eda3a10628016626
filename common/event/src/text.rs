//! An event as one line of text, in the words and keys that log tools know from Postfix.

use std::borrow::Cow;
use std::fmt::{self, Display, Write};

use postern_address::ReversePath;
use postern_smtp::xclient::Forwarded;

use crate::event::{Attempt, Event, Level};

/// Longest text taken from one field, octets: no client makes the log grow faster than its mail.
pub(crate) const FIELD_MAX: usize = 4096;

/// The line without its head (time, program) and without a line end.
pub(crate) fn line(event: &Event<'_>) -> String {
    let mut out = String::with_capacity(160);
    // Writing to a String does not fail.
    let _ = write(&mut out, event);
    out
}

fn write(out: &mut String, event: &Event<'_>) -> fmt::Result {
    match *event {
        Event::Note { level, id, text } => {
            if let Some(id) = id {
                write!(out, "{}: ", clean(id))?;
            }
            write!(out, "{}{}", severity(level), clean(text))
        }
        Event::Delivery(ref attempt) => delivery(out, attempt),
        Event::Started { .. }
        | Event::Listening { .. }
        | Event::Ready { .. }
        | Event::ProgramStarted { .. }
        | Event::ProgramDied { .. }
        | Event::Reloaded { .. }
        | Event::Stopping
        | Event::Stopped
        | Event::Sandboxed { .. }
        | Event::LinkLost { .. } => house(out, event),
        Event::Connect { .. }
        | Event::Disconnect { .. }
        | Event::Reject { .. }
        | Event::Policy { .. }
        | Event::Accepted { .. }
        | Event::SpoolRefused { .. }
        | Event::LimitExceeded { .. }
        | Event::Overload { .. } => session(out, event),
        _ => queue(out, event),
    }
}

fn house(out: &mut String, event: &Event<'_>) -> fmt::Result {
    let severity = severity(event.level());
    match *event {
        Event::Started { version, configuration } => {
            write!(
                out,
                "daemon started -- version {}, configuration {}",
                clean(version),
                clean(configuration)
            )
        }
        Event::Listening { address, service } => write!(out, "listening on {address} for {}", clean(service)),
        Event::Ready { milliseconds } => write!(out, "ready after {} s", Seconds(milliseconds)),
        Event::ProgramStarted { program, pid } => write!(out, "program {} pid {pid} started", clean(program)),
        Event::ProgramDied { program, pid, how, restart_in_ms } => write!(
            out,
            "{severity}program {} pid {pid} {}, started again in {} s",
            clean(program),
            clean(how),
            Seconds(restart_in_ms)
        ),
        Event::Reloaded { outcome: Ok(()) } => write!(out, "reload: the new configuration is in force"),
        Event::Reloaded { outcome: Err(why) } => {
            write!(out, "{severity}reload: the old configuration stays: {}", clean(why))
        }
        Event::Stopping => write!(out, "stopping"),
        Event::Stopped => write!(out, "stopped"),
        Event::Sandboxed { landlock, seccomp, user } => {
            write!(
                out,
                "sandbox: user={}, landlock={}, seccomp={}",
                clean(user),
                clean(landlock),
                clean(seccomp)
            )
        }
        Event::LinkLost { peer, why } => {
            write!(out, "{severity}link to {} lost: {}", clean(peer), clean(why))
        }
        _ => Ok(()),
    }
}

fn session(out: &mut String, event: &Event<'_>) -> fmt::Result {
    match *event {
        Event::Connect { session, client, proxy } => {
            write!(out, "{session}: connect from {}", clean(&client.to_string()))?;
            proxy.map_or(Ok(()), |proxy| write!(out, " by way of [{proxy}]"))
        }
        Event::Disconnect { session, client, messages, commands, milliseconds, why } => write!(
            out,
            "{session}: disconnect from {} messages={messages} commands={commands} seconds={} ({})",
            clean(&client.to_string()),
            Seconds(milliseconds),
            clean(why)
        ),
        Event::Reject { session, client, stage, reply, from, to, helo, proto } => {
            // NOQUEUE stands where the id would: fail2ban and pflogsumm look for these words.
            let client = client.to_string();
            write!(out, "NOQUEUE: reject: {} from {}: ", clean(stage), clean(&client))?;
            write!(out, "{};", clean(&reply.to_string()))?;
            circumstances(out, from, to, proto, helo)?;
            write!(out, " session={session}")
        }
        Event::Policy { session, client, stage, action, rule, line, text, from, to, helo, proto } => {
            let stage = match stage {
                "client" => "CONNECT",
                "helo" => "HELO",
                "from" => "MAIL",
                "rcpt" => "RCPT",
                _ => "END-OF-MESSAGE",
            };
            let client = client.to_string();
            // In Postfix's words; but a refusal has its own line in those, and is not to be counted twice.
            match action {
                "reject" | "defer" | "accept" => write!(out, "{session}: policy: {}", clean(action))?,
                "tag" => write!(out, "NOQUEUE: prepend")?,
                _ => write!(out, "NOQUEUE: {}", clean(action))?,
            }
            write!(out, ": {stage} from {}: ", clean(&client))?;
            write!(out, "rule {rule} (line {line})")?;
            if !text.is_empty() {
                write!(out, ": {}", clean(text))?;
            }
            write!(out, ";")?;
            circumstances(out, from, to, proto, helo)?;
            write!(out, " session={session}")
        }
        Event::Accepted { id, session, client, from, size, nrcpt, message_id, forwarded } => {
            let client = client.to_string();
            write!(out, "{id}: client={}, ", clean(&client))?;
            if let Some(forwarded) = forwarded {
                // Postfix's words.
                if let Some(ident) = &forwarded.ident {
                    write!(out, "orig_queue_id={}, ", clean(ident))?;
                }
                if let Some(client) = original_client(forwarded) {
                    write!(out, "orig_client={}, ", clean(&client))?;
                }
            }
            write!(out, "session={session}, from=<{}>, ", clean(from.as_str()))?;
            write!(
                out,
                "size={size}, nrcpt={nrcpt}, message-id=<{}>",
                clean(bare(message_id.unwrap_or_default()))
            )
        }
        Event::LimitExceeded { session, client, measure, scope, count, limit } => write!(
            out,
            "{}{measure} limit exceeded: {count} from {}; limit={limit} per={scope} session={session}",
            severity(event.level()),
            clean(&client.to_string())
        ),
        Event::Overload { begins: true, sessions, most } => write!(
            out,
            "{}overload: {sessions} sessions of {most}: timeouts are shorter, fewer errors are borne",
            severity(event.level())
        ),
        Event::Overload { begins: false, sessions, most } => {
            write!(out, "overload is over: {sessions} sessions of {most}")
        }
        Event::SpoolRefused { session, id, error } => {
            write!(out, "{id}: {}spool: {}, session={session}", severity(event.level()), clean(error))
        }
        _ => Ok(()),
    }
}

/// What was said before a command was refused, or a rule did something.
fn circumstances(
    out: &mut String,
    from: Option<&ReversePath>,
    to: Option<&str>,
    proto: &str,
    helo: Option<&str>,
) -> fmt::Result {
    if let Some(from) = from {
        write!(out, " from=<{}>", clean(from.as_str()))?;
    }
    if let Some(to) = to {
        write!(out, " to=<{}>", clean(to))?;
    }
    write!(out, " proto={}", clean(proto))?;
    helo.map_or(Ok(()), |helo| write!(out, " helo=<{}>", clean(helo)))
}

/// `name[address]` of the client that XFORWARD told; none when it told neither.
pub(crate) fn original_client(forwarded: &Forwarded) -> Option<String> {
    let name = forwarded.name.as_deref().unwrap_or("unknown");
    match forwarded.address {
        Some(address) => Some(format!("{name}[{address}]")),
        None => forwarded.name.as_ref().map(|name| format!("{name}[unknown]")),
    }
}

fn queue(out: &mut String, event: &Event<'_>) -> fmt::Result {
    match *event {
        Event::Active { id, from, size, nrcpt } => {
            write!(out, "{id}: from=<{}>, size={size}, nrcpt={nrcpt} (queue active)", clean(from.as_str()))
        }
        Event::PickedUp { id, uid, from } => write!(out, "{id}: uid={uid} from=<{}>", clean(from.as_str())),
        Event::BounceQueued { id, bounce, told } => {
            let what = match told {
                "success" => "delivery status",
                "delay" => "delay",
                _ => "non-delivery",
            };
            write!(out, "{id}: sender {what} notification: {bounce}")
        }
        Event::BounceDropped { id, why } => {
            write!(out, "{id}: no sender non-delivery notification: {}", clean(why))
        }
        Event::Removed { id } => write!(out, "{id}: removed"),
        Event::Operator { id: Some(id), action } => write!(out, "{id}: operator: {}", clean(action)),
        Event::Operator { id: None, action } => write!(out, "operator: {}", clean(action)),
        Event::Corrupt { file, why } => {
            write!(out, "{}saving corrupt file {}: {}", severity(event.level()), clean(file), clean(why))
        }
        Event::Recovered { files, messages, swept, milliseconds } => write!(
            out,
            "recovered files={files}, messages={messages}, swept={swept}, seconds={}",
            Seconds(milliseconds)
        ),
        _ => Ok(()),
    }
}

fn delivery(out: &mut String, attempt: &Attempt<'_>) -> fmt::Result {
    write!(out, "{}: to=<{}>, ", attempt.id, clean(attempt.to.as_str()))?;
    if let Some(original) = attempt.orig_to {
        write!(out, "orig_to=<{}>, ", clean(original.as_str()))?;
    }
    let [before, queued, connecting, sending] = attempt.delays.map(Seconds);
    let total = Seconds(attempt.delays.iter().fold(0, |sum, ms| sum.saturating_add(*ms)));
    write!(out, "relay={}, delay={total}, ", clean(attempt.relay.unwrap_or("none")))?;
    write!(out, "delays={before}/{queued}/{connecting}/{sending}, ")?;
    let (dsn, status, reply) = (attempt.dsn(), attempt.status.name(), attempt.reply.to_string());
    write!(out, "dsn={dsn}, status={status} ({})", clean(&reply))
}

fn severity(level: Level) -> &'static str {
    match level {
        Level::Debug | Level::Info => "",
        Level::Warning => "warning: ",
        Level::Error => "error: ",
        Level::Fatal => "fatal: ",
    }
}

/// A message id without its brackets.
pub(crate) fn bare(id: &str) -> &str {
    let id = id.trim();
    id.strip_prefix('<').and_then(|id| id.strip_suffix('>')).unwrap_or(id)
}

/// A field as it may stand in a line: without control characters, so that nobody writes a line of his own,
/// and not longer than [`FIELD_MAX`].
pub(crate) fn clean(text: &str) -> Cow<'_, str> {
    let text = cut(text);
    if !text.chars().any(char::is_control) {
        return text;
    }
    text.chars()
        .flat_map(|c| {
            let escape: Box<dyn Iterator<Item = char>> =
                if c.is_control() { Box::new(c.escape_default()) } else { Box::new(std::iter::once(c)) };
            escape
        })
        .collect::<String>()
        .into()
}

/// The text, cut at a character's end when it is too long.
pub(crate) fn cut(text: &str) -> Cow<'_, str> {
    if text.len() <= FIELD_MAX {
        return Cow::Borrowed(text);
    }
    let end = (0..=FIELD_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    Cow::Owned(format!("{}...", &text[..end]))
}

/// Milliseconds printed as seconds with two significant digits below ten seconds, as Postfix does: `24`,
/// `3.1`, `0.17`, `0`.
struct Seconds(u64);

impl Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            10_000.. => format!("{}", self.0.saturating_add(500) / 1000),
            1000.. => format!("{:.1}", self.0 as f64 / 1000.0),
            _ => format!("{:.2}", self.0 as f64 / 1000.0),
        };
        let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
        f.write_str(if text.is_empty() { "0" } else { text })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds() {
        for (ms, text) in [
            (0, "0"),
            (4, "0"),
            (5, "0.01"),
            (120, "0.12"),
            (200, "0.2"),
            (1000, "1"),
            (1950, "1.9"),
            (9990, "10"),
            (10_000, "10"),
            (86_400_000, "86400"),
        ] {
            assert_eq!(Seconds(ms).to_string(), text, "{ms}");
        }
    }

    #[test]
    fn nobody_writes_a_line_of_his_own() {
        assert_eq!(clean("a\r\nb\u{1b}\u{85}\u{7f}"), "a\\r\\nb\\u{1b}\\u{85}\\u{7f}");
        let long = "ü".repeat(FIELD_MAX);
        assert!(clean(&long).len() <= FIELD_MAX + 3 && clean(&long).ends_with("ü..."));
    }
}
