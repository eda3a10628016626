//! `-bs`: SMTP on standard input and output. The machine is smtpd's own; only that LF ends a line too, as
//! programs that use this write it, and that every recipient is taken: the caller could name it with
//! `sendmail` as well.

use std::io::{Read, Write};
use std::sync::Arc;

use postern_config::Config;
use postern_smtp::server::{
    Action, Answer, Asks, Extensions, Finished, Output, Phase, Protocol, Session, Settings,
};
use postern_smtp::{EnhancedCode, Reply};
use postern_spool::{NewMessage, Timestamp, WriteError};

use crate::caller::Caller;
use crate::content::LineEnds;
use crate::failure::{Failure, status};
use crate::submit::{self, Drop};

/// Speaks until QUIT or the end of input.
pub(crate) fn speak(
    config: &Config,
    caller: &Caller,
    input: &mut impl Read,
    output: &mut impl Write,
) -> Result<(), Failure> {
    let drop = Drop::open(config)?;
    let settings = Settings {
        hostname: config.hostname.clone(),
        protocol: Protocol::Smtp,
        secure: false,
        // Not CHUNKING: line ends are rewritten on the way in, so octets cannot be counted.
        extensions: Extensions::BASIC,
        asks: Asks::default(),
        message_size: config.smtp.message_size,
        recipients: config.smtp.recipients,
        transactions: None,
        recipient_domains: None,
        line_length: config.smtp.line_length,
        errors: config.smtp.errors,
        normalise: false,
    };
    let mut out = Output::default();
    let mut session = Session::new(Arc::new(settings), &mut out);
    let (mut ends, mut waiting, mut piece) = (LineEnds::default(), Vec::new(), vec![0; 16 * 1024]);
    loop {
        write(output, &mut out)?;
        if session.phase() == Phase::Closed {
            return Ok(());
        }
        let length = match input.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Failure::new(status::IO, format!("standard input: {error}"))),
        };
        ends.take(piece.get(..length).unwrap_or_default(), &mut waiting);
        loop {
            let used = session.receive(&waiting, &mut out);
            waiting.drain(..used);
            let actions = std::mem::take(&mut out.actions);
            let idle = used == 0 && actions.is_empty() && out.wire.is_empty();
            for action in actions {
                act(action, &mut session, &drop, caller, &mut out);
            }
            write(output, &mut out)?;
            if idle {
                break;
            }
        }
    }
}

fn act(action: Action, session: &mut Session, drop: &Drop, caller: &Caller, out: &mut Output) {
    match action {
        Action::Ask { ticket, .. } => session.answer(ticket, Answer::Accepted, out),
        Action::Finished(finished) => {
            let reply = take(*finished, drop, caller);
            session.settle(reply, out);
        }
        // The reply to a refusal is in the wire bytes; what was dropped was nowhere yet.
        Action::Rejected(_) | Action::Dropped | Action::Close(_) => {}
    }
}

fn take(finished: Finished, drop: &Drop, caller: &Caller) -> Reply {
    const LATER: EnhancedCode = EnhancedCode::new(4, 3, 0);
    let now = Timestamp::now();
    let Finished { reverse_path, recipients, content, .. } = finished;
    let written = drop.fresh_id().and_then(|id| {
        let envelope = submit::envelope(reverse_path, recipients, caller, now, &content)?;
        // The queue-manager adds what the header section lacks.
        Ok((id, drop.put(NewMessage { id, envelope, prepend: Vec::new(), body: content })))
    });
    match written {
        Ok((id, Ok(()))) => Reply::new(250, EnhancedCode::new(2, 0, 0), format!("Ok: queued as {id}")),
        Ok((_, Err(WriteError::NoSpace))) => {
            Reply::new(452, EnhancedCode::new(4, 3, 1), "Insufficient system storage")
        }
        Ok((_, Err(error))) => Reply::new(451, LATER, format!("Error: {error}")),
        Err(failure) => Reply::new(451, LATER, format!("Error: {}", failure.text)),
    }
}

fn write(output: &mut impl Write, out: &mut Output) -> Result<(), Failure> {
    let result = output.write_all(&out.wire).and_then(|()| output.flush());
    out.wire.clear();
    result.map_err(|error| Failure::new(status::IO, format!("standard output: {error}")))
}
