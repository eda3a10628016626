//! What is asked of the running system, at its control socket.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use postern_config::Config;
use postern_ipc::control::{MessageState, MessageSummary, QueueRequest, Reply, Request};
use postern_ipc::{AskError, ask};
use postern_spool::QueueId;

use crate::caller;
use crate::failure::{Failure, status};
use crate::submit::Drop;

/// mailq: the queue in the table that scripts know from Postfix.
pub(crate) fn list(config: &Config, out: &mut impl Write) -> Result<(), Failure> {
    let (mut table, mut refused) = (Table::default(), None);
    let asked = ask(&config.runtime, &Request::Queue(QueueRequest::List), |reply| match reply {
        Reply::Messages(messages) => {
            for message in &messages {
                say(out, &table.entry(message));
            }
        }
        Reply::Refused(why) => refused = Some(Failure::new(status::NO_PERMISSION, why)),
        _ => {}
    });
    match (asked, refused) {
        (Ok(()), None) => say(out, &table.end()),
        (Ok(()), Some(refused)) => return Err(refused),
        (Err(AskError::NotRunning(why)), _) => {
            let waiting = Drop::open(config).ok().and_then(|drop| drop.waiting());
            let waiting = waiting.map(|n| format!("\n{n} messages wait in drop/")).unwrap_or_default();
            return Err(Failure::new(
                status::UNAVAILABLE,
                format!("the mail system is down ({why}){waiting}"),
            ));
        }
        (Err(error), _) => return Err(Failure::new(status::UNAVAILABLE, error.to_string())),
    }
    Ok(())
}

/// `-q`: tries deferred messages now.
pub(crate) fn flush(config: &Config, id: Option<QueueId>, verbose: bool) -> Result<(), Failure> {
    let said = simple(config, &Request::Queue(QueueRequest::Flush(id)))?;
    if verbose {
        say(&mut std::io::stdout(), &format!("{said}\n"));
    }
    Ok(())
}

/// newaliases: Postern reads aliases as they are, and again when they change. So this asks it to read its
/// configuration, and when it does not run there is nothing to do.
pub(crate) fn aliases(config: &Config) -> Result<(), Failure> {
    match simple(config, &Request::Reload) {
        Ok(_) => Ok(()),
        Err(failure) if failure.status == status::UNAVAILABLE => {
            say(&mut std::io::stdout(), "Postern is not running; it reads the aliases when it starts.\n");
            Ok(())
        }
        Err(failure) => Err(failure),
    }
}

/// `-bd`, `-bD`: becomes `postern start` or `postern run`, which lies beside this program.
pub(crate) fn start(verb: &str, config: &Path) -> Failure {
    if let Err(failure) = caller::drop_privilege() {
        return failure;
    }
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join("postern")));
    let Some(program) = beside.filter(|path| path.is_file()) else {
        return Failure::new(
            status::USAGE,
            format!("no `postern` beside this program: use `postern {verb}`"),
        );
    };
    let error = Command::new(&program).arg("--config").arg(config).arg(verb).exec();
    Failure::new(status::OS, format!("cannot execute {}: {error}", program.display()))
}

fn simple(config: &Config, request: &Request) -> Result<String, Failure> {
    let (mut said, mut refused) = (String::new(), None);
    ask(&config.runtime, request, |reply| match reply {
        Reply::Done(text) => said = text,
        Reply::Refused(why) => refused = Some(why),
        _ => {}
    })
    .map_err(|error| Failure::new(status::UNAVAILABLE, error.to_string()))?;
    match refused {
        None => Ok(said),
        Some(why) => Err(Failure::new(status::NO_PERMISSION, why.trim_end())),
    }
}

/// A reader that went away wants no more: nothing to report.
fn say(out: &mut impl Write, text: &str) {
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Postfix's table for long queue ids.
#[derive(Debug, Default)]
struct Table {
    messages: u64,
    octets: u64,
}

impl Table {
    fn entry(&mut self, message: &MessageSummary) -> String {
        let before = if self.messages == 0 {
            "----Queue ID----- --Size-- ---Arrival Time---- --Sender/Recipient------\n"
        } else {
            "\n"
        };
        self.messages += 1;
        self.octets += message.size;
        let mark = match message.state {
            MessageState::Active => "*",
            MessageState::Deferred(_) | MessageState::Scheduled(_) => "",
            MessageState::Held => "!",
        };
        let sender = match message.reverse_path.as_str() {
            "" => "MAILER-DAEMON",
            address => address,
        };
        let id = format!("{}{mark}", message.id);
        let mut text = format!("{before}{id:<17} {:>8} {} {sender}\n", message.size, arrival(message));
        let mut last = None;
        for (recipient, reason) in &message.recipients {
            if let Some(reason) = reason.as_deref().filter(|reason| last != Some(*reason)) {
                text.push_str(&format!("{:>76}\n", format!("({})", visible(reason))));
                last = Some(reason);
            }
            text.push_str(&format!("{:46} {recipient}\n", ""));
        }
        let more = u64::from(message.recipient_count).saturating_sub(message.recipients.len() as u64);
        if more > 0 {
            text.push_str(&format!("{:46} and {more} more\n", ""));
        }
        text
    }

    fn end(&self) -> String {
        let plural = if self.messages == 1 { "" } else { "s" };
        match self.messages {
            0 => "Mail queue is empty\n".to_owned(),
            n => format!("\n-- {} Kbytes in {n} Request{plural}.\n", self.octets / 1024),
        }
    }
}

/// `Sun Nov 22 04:18:27`, from `Sun, 22 Nov 2026 04:18:27 +0000`.
fn arrival(message: &MessageSummary) -> String {
    let date = postern_message::date(message.arrival.0);
    match date.split_whitespace().collect::<Vec<_>>()[..] {
        [weekday, day, month, _, time, _] => {
            format!("{} {month} {day} {time}", weekday.trim_end_matches(','))
        }
        _ => date,
    }
}

/// A server's words on a terminal.
fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use postern_address::{Mailbox, ReversePath};
    use postern_spool::Timestamp;

    use super::*;

    #[test]
    fn a_table() {
        let mailbox = |text: &str| Mailbox::parse(text).unwrap();
        let summary = MessageSummary {
            id: QueueId::from_u64(7),
            state: MessageState::Active,
            arrival: Timestamp(1_790_000_000_000),
            size: 4096,
            reverse_path: ReversePath::Null,
            recipients: vec![
                (mailbox("a@b.test"), Some("no\x1b[31m".into())),
                (mailbox("c@d.test"), Some("no\x1b[31m".into())),
            ],
            recipient_count: 5,
        };
        let mut table = Table::default();
        let first = table.entry(&summary);
        let lines: Vec<&str> = first.lines().collect();
        assert!(lines[0].starts_with("----Queue ID-----"));
        assert!(lines[1].starts_with("0000000000007*        4096 ") && lines[1].ends_with(" MAILER-DAEMON"));
        assert_eq!(lines[2].trim(), "(no?[31m)");
        assert_eq!(
            lines[3..].iter().map(|l| l.trim()).collect::<Vec<_>>(),
            ["a@b.test", "c@d.test", "and 3 more"]
        );
        assert!(table.entry(&summary).starts_with("\n0000"));
        assert_eq!(table.end(), "\n-- 8 Kbytes in 2 Requests.\n");
        assert_eq!(Table::default().end(), "Mail queue is empty\n");
    }
}
