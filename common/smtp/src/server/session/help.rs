//! The reply to HELP (RFC 5321 §4.1.1.8): what can be said here, and whom to ask.

use super::{Protocol, Settings};
use crate::reply::{EnhancedCode, Reply};
use crate::server::extensions::Extension;

/// The commands of this session: `extra` as it is offered to this client.
pub(super) fn text(settings: &Settings, extra: &[&str]) -> Reply {
    let has = |extension| settings.extensions.has(extension);
    let usual = match settings.protocol {
        Protocol::Smtp => "EHLO HELO MAIL RCPT DATA RSET NOOP VRFY HELP QUIT",
        Protocol::Lmtp => "LHLO MAIL RCPT DATA RSET NOOP VRFY HELP QUIT",
    };
    let further = [
        ("BDAT", has(Extension::Chunking)),
        ("EXPN", has(Extension::Expn) && settings.asks.expn),
        ("ETRN", has(Extension::Etrn) && settings.asks.etrn),
    ];
    let further = further.into_iter().filter(|(_, offered)| *offered).map(|(verb, _)| verb);
    let extra = extra.iter().filter_map(|line| line.split(' ').next());
    let further: Vec<&str> = further.chain(extra).collect();
    let mut lines = vec![format!("Commands: {usual}")];
    if !further.is_empty() {
        lines.push(format!("Extensions: {}", further.join(" ")));
    }
    lines.push("They are explained in RFC 5321 and the documents that EHLO's reply names".to_owned());
    lines.push(format!("A human is at <postmaster@{}>", settings.hostname));
    Reply { code: 214, enhanced: Some(EnhancedCode::new(2, 0, 0)), lines }
}
