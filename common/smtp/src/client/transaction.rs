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
    /// It may leave as a whole, content and all, before the server has said a word to it.
    pub whole: bool,
}

/// The most octets of content that leave with their envelope: so much is sent in vain when everybody is refused.
pub const WHOLE_MAX: u64 = 64 * 1024;

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
    /// What stands in for DATA before the chunks of binary mail: nothing is said.
    Chunks,
    /// A piece of content that is not the last (RFC 3030 §2).
    Chunk,
    /// The end of content, for everybody.
    End,
    /// The end of content, for one recipient (RFC 2033 §4.2).
    EndFor(usize),
    Quit,
}

impl Command {
    /// It is said for a transaction.
    pub(super) fn is_of_a_transaction(self) -> bool {
        !matches!(self, Self::Connect | Self::Ehlo | Self::Helo | Self::Quit)
    }
}

/// How the content of a transaction is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sending {
    /// By DATA.
    Data,
    /// By BDAT, piece by piece, once it is known who is accepted.
    Chunks,
    /// By one BDAT, in one group with the envelope, whose replies RFC 3030 §2 would have us collect first
    /// (docs/architecture.md says why not). Until all of it was handed over nothing is said.
    Whole,
}

/// A transaction under way.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) transaction: Transaction,
    pub(super) recipients: Vec<Recipient>,
    pub(super) plan: VecDeque<Command>,
    pub(super) phase: Phase,
    pub(super) sending: Sending,
    pub(super) stuffer: Stuffer,
    /// The content, as it is to be sent as a whole.
    pub(super) gathered: Vec<u8>,
    /// Replies to come.
    pub(super) awaited: usize,
    /// Where its last octet stands among all that were queued.
    pub(super) end_at: u64,
    /// It was said while another's final reply was to come.
    pub(super) ahead: bool,
    /// RSET was refused: whatever is refused after it may be for that alone.
    pub(super) not_reset: bool,
    pub(super) mail_refused: bool,
    /// See [`super::Event::Again`].
    pub(super) confused: bool,
    /// Why it is not sent, for a reason of our own.
    pub(super) given_up: Option<Reply>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recipient {
    Pending,
    Accepted,
    /// Refused for what may be our way of saying it: nothing is told, and it is to be tried again.
    Again,
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
        extensions: Extensions,
    ) -> (Self, Vec<(usize, Reply)>) {
        let limit = extensions.size_limit.filter(|&limit| transaction.size > limit);
        let needs_utf8 = transaction.parameters.smtputf8 || !transaction.reverse_path.as_str().is_ascii();
        let sender_fits = extensions.utf8 || !needs_utf8;
        let sending = sending(&transaction, lmtp, &extensions);
        // With LMTP it is there.
        let late = if lmtp { None } else { too_late(&transaction.parameters, &extensions) };
        let mut plan = VecDeque::from([Command::Mail]);
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
        let mut phase = Phase::Envelope;
        match sending {
            Sending::Data => plan.push_back(Command::Data),
            Sending::Chunks => plan.push_back(Command::Chunks),
            Sending::Whole => phase = Phase::Content,
        }
        if refused.len() == transaction.recipients.len() {
            plan.clear();
            phase = Phase::Ended;
        }
        let recipients = vec![Recipient::Pending; transaction.recipients.len()];
        let open = Self {
            transaction,
            recipients,
            plan,
            phase,
            sending,
            stuffer: if sending == Sending::Whole { Stuffer::unstuffed() } else { Stuffer::default() },
            gathered: Vec::new(),
            awaited: 0,
            end_at: u64::MAX,
            ahead: false,
            not_reset: false,
            mail_refused: false,
            confused: false,
            given_up: None,
        };
        (open, refused)
    }

    /// Recipients of whom it is not decided what becomes of them.
    pub(super) fn pending(&self) -> impl Iterator<Item = usize> + '_ {
        let open = |recipient: &Recipient| matches!(recipient, Recipient::Pending | Recipient::Accepted);
        let places = self.recipients.iter().enumerate();
        places.filter_map(move |(index, recipient)| open(recipient).then_some(index))
    }

    /// Some are to be tried again.
    pub(super) fn has_again(&self) -> bool {
        self.recipients.contains(&Recipient::Again)
    }

    /// Those who were left are to be tried again.
    pub(super) fn again(&mut self) {
        let pending: Vec<usize> = self.pending().collect();
        for index in pending {
            self.recipients[index] = Recipient::Again;
        }
    }

    /// Its content is being handed over, and nothing was said yet.
    pub(super) fn is_gathering(&self) -> bool {
        self.sending == Sending::Whole && self.phase == Phase::Content
    }

    /// Nothing more is to be said or heard of it.
    pub(super) fn is_over(&self) -> bool {
        self.phase != Phase::Content && self.plan.is_empty() && self.awaited == 0
    }

    /// A permanent refusal may be the answer to how we said it, and not to what: it must not be the end of a message.
    ///
    /// After RSET and in turn, MAIL and RCPT and the content are judged for what they are, also when they came ahead of
    /// time. But a server that does not follow says so by a reply about the protocol; and 554 without a word more
    /// is what Exim says of input that it did not expect yet. The chunk itself may not be understood in any case.
    pub(super) fn may_be_ours(&self, command: Command, reply: &Reply) -> bool {
        let protocol = reply.code / 10 == 50 || reply.enhanced.is_some_and(|code| code.subject() == 5);
        let bare = reply.code == 554 && reply.enhanced.is_none();
        let ours = match (command, self.sending) {
            (Command::End, Sending::Whole) => self.not_reset || protocol || (self.ahead && bare),
            // The server has said that it is ready for it.
            (Command::End, _) => false,
            _ => self.not_reset || (self.ahead && (protocol || bare)),
        };
        reply.code / 100 == 5 && ours
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
                Body::Binary if self.sending == Sending::Chunks => Body::Binary,
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

fn sending(transaction: &Transaction, lmtp: bool, extensions: &Extensions) -> Sending {
    if Form::of(transaction.parameters.body, extensions) == Form::Chunks {
        return Sending::Chunks;
    }
    // How many replies there are to a chunk for nobody RFC 2033 does not say, and LMTP servers are near.
    let offered = extensions.pipelining && extensions.chunking && !lmtp;
    let small = transaction.size <= WHOLE_MAX;
    if transaction.whole && offered && small { Sending::Whole } else { Sending::Data }
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
