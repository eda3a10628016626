//! One mail transaction (RFC 5321 §3.3), as values that turn into each other: [`Transaction`] when MAIL
//! was accepted, [`Receiving`] when DATA was or [`Chunked`] when BDAT was, [`Finished`] at the end of content. Each step takes the
//! value before it, and dropping a value drops the transaction whole: there is no state to reset, and no
//! way to content that does not lead over MAIL and an accepted recipient.

use postern_address::{Mailbox, ReversePath};

use super::chunks::{self, Chunks};
use super::command::Mail;
use super::data::{Decoder, Fault, Progress};
use crate::parameters::{MailParameters, RcptParameters};

/// The client has said who it is: without this value there is no transaction.
#[derive(Debug)]
pub(super) struct Greeted {
    name: Box<str>,
    extended: bool,
}

/// MAIL was accepted; recipients may follow.
#[derive(Debug)]
pub(super) struct Transaction {
    mail: Mail,
    recipients: Vec<Mailbox>,
    recipient_parameters: Vec<(u32, RcptParameters)>,
    accepted: u32,
}

/// Content is coming in.
#[derive(Debug)]
pub(super) struct Receiving {
    transaction: Box<Transaction>,
    decoder: Decoder,
    content: Vec<u8>,
}

/// Content is coming in, in chunks.
#[derive(Debug)]
pub(super) struct Chunked {
    transaction: Box<Transaction>,
    chunks: Chunks,
    content: Vec<u8>,
}

/// A message read to its end, within all limits of the dialogue.
#[derive(Debug, PartialEq, Eq)]
pub struct Finished {
    /// Where bounces go.
    pub reverse_path: ReversePath,
    /// What else MAIL said.
    pub parameters: MailParameters,
    /// At least one, each once.
    pub recipients: Vec<Mailbox>,
    /// What else RCPT said, by the recipient's place, of those of whom something was said.
    pub recipient_parameters: Vec<(u32, RcptParameters)>,
    /// The content, less what was taken while it came in.
    pub content: Vec<u8>,
    /// Octets of the whole content.
    pub size: u64,
    /// A reply for each recipient is wanted.
    pub(super) prdr: bool,
    /// How many RCPT commands were accepted: as many replies are due in LMTP.
    pub(super) accepted: u32,
}

impl Greeted {
    /// `extended`: by EHLO or LHLO.
    pub(super) fn new(name: Box<str>, extended: bool) -> Self {
        Self { name, extended }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn is_extended(&self) -> bool {
        self.extended
    }
}

impl Transaction {
    pub(super) fn new(_: &Greeted, mail: Mail) -> Self {
        Self { mail, recipients: Vec::new(), recipient_parameters: Vec::new(), accepted: 0 }
    }

    pub(super) fn mail(&self) -> (&ReversePath, &MailParameters) {
        (&self.mail.reverse_path, &self.mail.parameters)
    }

    /// RCPT commands accepted so far.
    pub(super) fn accepted(&self) -> u32 {
        self.accepted
    }

    /// Takes in by `SMTPUTF8` what is not US-ASCII.
    pub(super) fn smtputf8(&self) -> bool {
        self.mail.parameters.smtputf8
    }

    /// The recipients accepted so far, each once.
    pub(super) fn recipients(&self) -> &[Mailbox] {
        &self.recipients
    }

    /// Takes a recipient. The same one again is accepted and not delivered twice: what was asked for at
    /// the first time stands.
    pub(super) fn accept(&mut self, (recipient, parameters): (Mailbox, RcptParameters)) {
        self.accepted += 1;
        if self.recipients.contains(&recipient) {
            return;
        }
        if !parameters.is_empty() {
            self.recipient_parameters.push((self.recipients.len() as u32, parameters));
        }
        self.recipients.push(recipient);
    }

    /// DATA: content, or the transaction unchanged when it has no recipient.
    pub(super) fn begin_content(self: Box<Self>, decoder: Decoder) -> Result<Box<Receiving>, Box<Self>> {
        if self.recipients.is_empty() {
            return Err(self);
        }
        Ok(Box::new(Receiving { transaction: self, decoder, content: Vec::new() }))
    }

    /// The first BDAT: the same.
    pub(super) fn begin_chunks(self: Box<Self>, chunks: Chunks) -> Result<Box<Chunked>, Box<Self>> {
        if self.recipients.is_empty() {
            return Err(self);
        }
        Ok(Box::new(Chunked { transaction: self, chunks, content: Vec::new() }))
    }

    fn finish(self, content: Vec<u8>, size: u64) -> Finished {
        let Self { mail, recipients, recipient_parameters, accepted } = self;
        let Mail { reverse_path, parameters, prdr } = mail;
        Finished { reverse_path, parameters, recipients, recipient_parameters, content, size, prdr, accepted }
    }
}

impl Receiving {
    pub(super) fn mail(&self) -> (&ReversePath, &MailParameters) {
        self.transaction.mail()
    }

    pub(super) fn decode(&mut self, input: &[u8]) -> Progress {
        self.content.reserve(if self.decoder.fault().is_none() { input.len() } else { 0 });
        let progress = self.decoder.decode(input, &mut self.content);
        if self.decoder.fault().is_some() {
            self.content = Vec::new();
        }
        progress
    }

    /// Content collected and not yet taken, octets.
    pub(super) fn held(&self) -> usize {
        self.content.len()
    }

    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.content)
    }

    /// The end of content: a message, or why it is none and whose it was.
    pub(super) fn finish(self) -> Result<Finished, (Fault, ReversePath)> {
        match self.decoder.fault() {
            Some(fault) => Err((fault, self.transaction.mail.reverse_path)),
            None => Ok(self.transaction.finish(self.content, self.decoder.size())),
        }
    }
}

impl Chunked {
    pub(super) fn mail(&self) -> (&ReversePath, &MailParameters) {
        self.transaction.mail()
    }

    /// Whether a chunk of so many octets does not make it too large.
    pub(super) fn fits(&self, octets: u64) -> bool {
        self.chunks.fits(octets)
    }

    /// A piece of a chunk.
    pub(super) fn add(&mut self, piece: &[u8]) {
        self.chunks.take(piece, &mut self.content);
        if self.chunks.fault().is_some() {
            self.content = Vec::new();
        }
    }

    /// What was wrong so far.
    pub(super) fn fault(&self) -> Option<chunks::Fault> {
        self.chunks.fault()
    }

    /// Content collected and not yet taken, octets.
    pub(super) fn held(&self) -> usize {
        self.content.len()
    }

    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.content)
    }

    /// The end of the last chunk.
    pub(super) fn finish(mut self) -> Result<Finished, (chunks::Fault, ReversePath)> {
        match self.chunks.end(&mut self.content) {
            Err(fault) => Err((fault, self.transaction.mail.reverse_path)),
            Ok(size) => Ok(self.transaction.finish(self.content, size)),
        }
    }
}
