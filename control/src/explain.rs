//! `postern explain …`

use std::net::{IpAddr, SocketAddr};

use clap::Args;
use postern_address::{Mailbox, ReversePath};
use postern_config::Config;
use postern_ipc::ask;
use postern_ipc::control::{Reply, Request};
use postern_ipc::explain::{ExplainRequest, Explained, Looked, Tried};
use serde_json::{Value, json};

use crate::Failure;
use crate::table::{self, visible};

/// A client and its mail.
#[derive(Debug, Args)]
pub(crate) struct ExplainArguments {
    /// The client's address
    #[arg(long)]
    client: IpAddr,
    /// What it calls itself
    #[arg(long)]
    helo: String,
    /// The reverse-path; `<>` for a bounce
    #[arg(long, value_parser = reverse_path)]
    from: ReversePath,
    /// The recipient
    #[arg(long, value_parser = mailbox)]
    rcpt: Mailbox,
    /// The user it logs in as
    #[arg(long, value_name = "USER")]
    auth: Option<String>,
    /// The listener it comes to, as the configuration has it; the first of `service = "smtp"` if not given
    #[arg(long, value_name = "ADDRESS:PORT")]
    listener: Option<SocketAddr>,
}

/// Asks a worker of smtpd and prints what it says.
pub(crate) fn explain(config: &Config, arguments: &ExplainArguments, as_json: bool) -> Result<(), Failure> {
    let request = ExplainRequest {
        client: arguments.client.to_canonical(),
        listener: arguments.listener,
        helo: arguments.helo.clone(),
        user: arguments.auth.clone(),
        from: arguments.from.clone(),
        to: arguments.rcpt.clone(),
    };
    let (mut refused, mut whole) = (None, false);
    ask(&config.runtime, &Request::Explain(Box::new(request)), |reply| match reply {
        Reply::Explained(step) => {
            whole |= matches!(*step, Explained::Outcome { .. });
            if as_json {
                table::print_json(&in_json(&step));
            } else {
                in_words(&step).iter().for_each(|line| table::out(&visible(line)));
            }
        }
        Reply::Refused(why) => refused = Some(Failure::new(1, why)),
        _ => {}
    })?;
    match (refused, whole) {
        (Some(refused), _) => Err(refused),
        (None, false) => {
            Err(Failure::new(1, "the explanation has no end: the worker was restarted, try again"))
        }
        (None, true) => Ok(()),
    }
}

fn in_words(step: &Explained) -> Vec<String> {
    match step {
        Explained::Client { name, words, score } => {
            vec![format!("client: {} ({words}); list score {score}", name.as_deref().unwrap_or("unknown"))]
        }
        Explained::Tried(tried) => rule_in_words(tried),
        Explained::Stage { stage, verdict, effects } => {
            vec![format!("{stage}: {}", with_effects(verdict, effects))]
        }
        Explained::Recipient { verdict } => vec![format!("recipient: {verdict}")],
        Explained::Outcome { verdict, effects } => {
            vec![format!("outcome: {}", with_effects(verdict, effects))]
        }
    }
}

fn rule_in_words(tried: &Tried) -> Vec<String> {
    let action = match &tried.action {
        Some(action) if action.is_empty() => "matches, and does nothing".to_owned(),
        Some(action) => format!("matches: {action}"),
        None => "does not match".to_owned(),
    };
    let head = format!("{}: rule {} (line {}) {action}", tried.stage, tried.rule, tried.line);
    let condition = |looked: &Looked| {
        let mark = match looked.holds {
            Some(true) => "yes",
            Some(false) => "no",
            None => "not known",
        };
        format!("    {}: {mark}, {}", looked.condition, looked.because)
    };
    std::iter::once(head).chain(tried.conditions.iter().map(condition)).collect()
}

fn with_effects(verdict: &str, effects: &[String]) -> String {
    if effects.is_empty() { verdict.to_owned() } else { format!("{verdict}; {}", effects.join("; ")) }
}

fn in_json(step: &Explained) -> Value {
    match step {
        Explained::Client { name, words, score } => {
            json!({ "step": "client", "name": name, "because": words, "score": score })
        }
        Explained::Tried(tried) => {
            let condition = |looked: &Looked| json!({ "condition": looked.condition, "holds": looked.holds, "because": looked.because });
            let conditions: Vec<_> = tried.conditions.iter().map(condition).collect();
            json!({
                "step": "rule", "stage": tried.stage, "rule": tried.rule, "line": tried.line,
                "matches": tried.action.is_some(), "action": tried.action, "conditions": conditions,
            })
        }
        Explained::Stage { stage, verdict, effects } => {
            json!({ "step": "stage", "stage": stage, "verdict": verdict, "effects": effects })
        }
        Explained::Recipient { verdict } => json!({ "step": "recipient", "verdict": verdict }),
        Explained::Outcome { verdict, effects } => {
            json!({ "step": "outcome", "verdict": verdict, "effects": effects })
        }
    }
}

fn reverse_path(text: &str) -> Result<ReversePath, String> {
    if matches!(text, "" | "<>") {
        return Ok(ReversePath::Null);
    }
    mailbox(text).map(ReversePath::Mailbox)
}

fn mailbox(text: &str) -> Result<Mailbox, String> {
    let bare = text.strip_prefix('<').and_then(|text| text.strip_suffix('>')).unwrap_or(text);
    Mailbox::parse(bare).map_err(|error| format!("{error}: write it as name@example.org"))
}
