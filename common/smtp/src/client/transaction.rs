//! One transaction: what is to be said, and who was answered.

use std::collections::VecDeque;

use postern_address::{Mailbox, ReversePath};

use crate::client::extensions::Extensions;
use crate::client::parameters;
use crate::client::stuffing::Stuffer;
use crate::parameters::{Body, ByMode, MailParameters, RcptParameters};
use crate::reply::{EnhancedCode, Reply};

/// One message for some recipients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// For MAIL.
    pub reverse_path: ReversePath,
    /// For RCPT; at least one. They are named by their place here.
    pub recipients: Vec<Mailbox>,
    /// Octets of the content, for SIZE=.
    pub size: u64,
    /// What else MAIL is to say, where the server offers it; `size` and `hold` are not looked at. The caller has
    /// seen to it that content which the server does not take is converted: see [`Form`].
    pub parameters: MailParameters,
    /// What RCPT is to say, where the server offers DSN: by their places; none for those missing.
    pub said: Vec<RcptParameters>,
}

/// How content must be sent to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As it is.
    AsItIs,
    /// As it is, by BDAT.
    Chunks,
    /// In octets below 128 and in lines.
    SevenBit,
}

impl Form {
    /// The form for content that is in one of these kinds of octets.
    pub fn of(body: Body, extensions: &Extensions) -> Self {
        match body {
            Body::SevenBit => Self::AsItIs,
            Body::EightBit if extensions.eight_bit => Self::AsItIs,
            Body::Binary if extensions.binary && extensions.chunking => Self::Chunks,
            Body::EightBit | Body::Binary => Self::SevenBit,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Connect,
    Ehlo,
    Helo,
    Reset,
    Mail,
    Recipient(usize),
    Data,
    /// What stands in for DATA before BDAT: nothing is said.
    Chunks,
    /// A piece of content that is not the last (RFC 3030 §2).
    Chunk,
    /// The end of content, for everybody.
    End,
    /// The end of content, for one recipient (RFC 2033 §4.2).
    EndFor(usize),
    Quit,
}

/// The transaction under way.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) transaction: Transaction,
    pub(super) recipients: Vec<Recipient>,
    pub(super) plan: VecDeque<Command>,
    pub(super) mail_refused: bool,
    pub(super) phase: Phase,
    pub(super) stuffer: Stuffer,
    /// By BDAT.
    pub(super) chunks: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recipient {
    Pending,
    Accepted,
    Told,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Envelope,
    Content,
    Ended,
}

impl Open {
    /// A transaction, and who cannot be sent to at all and why.
    pub(super) fn new(
        transaction: Transaction,
        lmtp: bool,
        reset: bool,
        extensions: Extensions,
    ) -> (Self, Vec<(usize, Reply)>) {
        let limit = extensions.size_limit.filter(|&limit| transaction.size > limit);
        let needs_utf8 = transaction.parameters.smtputf8 || !transaction.reverse_path.as_str().is_ascii();
        let sender_fits = extensions.utf8 || !needs_utf8;
        let chunks = Form::of(transaction.parameters.body, &extensions) == Form::Chunks;
        // With LMTP it is there.
        let late = if lmtp { None } else { too_late(&transaction.parameters, &extensions) };
        let mut plan: VecDeque<Command> = reset.then_some(Command::Reset).into_iter().collect();
        plan.push_back(Command::Mail);
        let mut refused = Vec::new();
        for (index, recipient) in transaction.recipients.iter().enumerate() {
            if let Some(limit) = limit {
                refused.push((index, too_large(transaction.size, limit)));
            } else if let Some(late) = &late {
                refused.push((index, late.clone()));
            } else if !sender_fits || !(extensions.utf8 || recipient.is_ascii()) {
                refused.push((index, no_utf8()));
            } else {
                plan.push_back(Command::Recipient(index));
            }
        }
        plan.push_back(if chunks { Command::Chunks } else { Command::Data });
        if refused.len() == transaction.recipients.len() {
            plan.clear();
        }
        let recipients = vec![Recipient::Pending; transaction.recipients.len()];
        let open = Self {
            transaction,
            recipients,
            plan,
            mail_refused: false,
            phase: Phase::Envelope,
            stuffer: Stuffer::default(),
            chunks,
        };
        (open, refused)
    }

    /// Recipients not yet told of.
    pub(super) fn pending(&self) -> impl Iterator<Item = usize> + '_ {
        let told = |(index, recipient): (usize, &Recipient)| (*recipient != Recipient::Told).then_some(index);
        self.recipients.iter().enumerate().filter_map(told)
    }

    /// The command as it is said.
    pub(super) fn line(&self, command: Command, extensions: Extensions) -> String {
        match command {
            Command::Mail => self.mail_line(extensions),
            Command::Recipient(index) => match self.transaction.recipients.get(index) {
                Some(recipient) => {
                    let said = self.transaction.said.get(index).filter(|_| extensions.dsn);
                    let said = said.map(parameters::rcpt).unwrap_or_default();
                    format!("RCPT TO:<{recipient}>{said}\r\n")
                }
                None => String::new(),
            },
            Command::Data => "DATA\r\n".into(),
            _ => "RSET\r\n".into(),
        }
    }

    fn mail_line(&self, extensions: Extensions) -> String {
        let transaction = &self.transaction;
        let mut line = format!("MAIL FROM:{}", transaction.reverse_path);
        if extensions.size {
            line.push_str(&format!(" SIZE={}", transaction.size));
        }
        let asked = &transaction.parameters;
        let ascii = transaction.reverse_path.as_str().is_ascii()
            && transaction.recipients.iter().all(Mailbox::is_ascii);
        let said = MailParameters {
            size: None,
            body: match asked.body {
                Body::Binary if self.chunks => Body::Binary,
                Body::EightBit if extensions.eight_bit => Body::EightBit,
                _ => Body::SevenBit,
            },
            smtputf8: extensions.utf8 && (asked.smtputf8 || !ascii),
            ret: asked.ret.filter(|_| extensions.dsn),
            envid: asked.envid.clone().filter(|_| extensions.dsn),
            by: asked.by.filter(|_| extensions.deliver_by.is_some()),
            hold: None,
            priority: asked.priority.filter(|_| extensions.priority),
        };
        line.push_str(&parameters::mail(&said));
        line.push_str("\r\n");
        line
    }
}

/// RFC 1870: no use in sending it.
fn too_large(size: u64, limit: u64) -> Reply {
    let text = format!("message size {size} exceeds size limit {limit} of the server");
    Reply::new(552, EnhancedCode::new(5, 3, 4), text)
}

/// A message to be returned when it is late goes only to a server that sees to it, in time (RFC 2852 §4.1).
fn too_late(parameters: &MailParameters, extensions: &Extensions) -> Option<Reply> {
    let by = parameters.by.filter(|by| by.mode == ByMode::Return)?;
    match extensions.deliver_by {
        None => {
            let text = "the server does not offer DELIVERBY, which this message needs";
            Some(Reply::new(550, EnhancedCode::new(5, 3, 3), text))
        }
        Some(least) if by.seconds < least.max(1) => {
            let text = format!("{} s are left to deliver it, the server needs {least} s", by.seconds);
            Some(Reply::new(550, EnhancedCode::new(5, 4, 7), text))
        }
        Some(_) => None,
    }
}

/// RFC 6531 §3.5.
fn no_utf8() -> Reply {
    let text = "the server does not offer SMTPUTF8, which this message needs";
    Reply::new(553, EnhancedCode::new(5, 6, 7), text)
}
