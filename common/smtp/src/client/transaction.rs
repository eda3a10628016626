//! One transaction: what is to be said, and who was answered.

use std::collections::VecDeque;

use postern_address::{Mailbox, ReversePath};

use crate::client::extensions::Extensions;
use crate::client::stuffing::Stuffer;
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
    /// The content holds octets above 127: BODY=8BITMIME where it is offered.
    pub eight_bit: bool,
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
        reset: bool,
        extensions: Extensions,
    ) -> (Self, Vec<(usize, Reply)>) {
        let limit = extensions.size_limit.filter(|&limit| transaction.size > limit);
        let sender_fits = extensions.utf8 || transaction.reverse_path.as_str().is_ascii();
        let mut plan: VecDeque<Command> = reset.then_some(Command::Reset).into_iter().collect();
        plan.push_back(Command::Mail);
        let mut refused = Vec::new();
        for (index, recipient) in transaction.recipients.iter().enumerate() {
            if let Some(limit) = limit {
                refused.push((index, too_large(transaction.size, limit)));
            } else if !sender_fits || !(extensions.utf8 || recipient.is_ascii()) {
                refused.push((index, needs_utf8()));
            } else {
                plan.push_back(Command::Recipient(index));
            }
        }
        plan.push_back(Command::Data);
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
                Some(recipient) => format!("RCPT TO:<{recipient}>\r\n"),
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
        if extensions.eight_bit && transaction.eight_bit {
            line.push_str(" BODY=8BITMIME");
        }
        let ascii = transaction.reverse_path.as_str().is_ascii()
            && transaction.recipients.iter().all(Mailbox::is_ascii);
        if extensions.utf8 && !ascii {
            line.push_str(" SMTPUTF8");
        }
        line.push_str("\r\n");
        line
    }
}

/// RFC 1870: no use in sending it.
fn too_large(size: u64, limit: u64) -> Reply {
    let text = format!("message size {size} exceeds size limit {limit} of the server");
    Reply::new(552, EnhancedCode::new(5, 3, 4), text)
}

/// RFC 6531 §3.5.
fn needs_utf8() -> Reply {
    let text = "the server does not offer SMTPUTF8, which an address of this message needs";
    Reply::new(553, EnhancedCode::new(5, 6, 7), text)
}
