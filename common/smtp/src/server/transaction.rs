//! One mail transaction (RFC 5321 §3.3), as values that turn into each other: [`Transaction`] when MAIL
//! was accepted, [`Receiving`] when DATA was, [`Finished`] at the end of content. Each step takes the
//! value before it, and dropping a value drops the transaction whole: there is no state to reset, and no
//! way to content that does not lead over MAIL and an accepted recipient.

use postern_address::{Mailbox, ReversePath};

use super::command::Mail;
use super::data::{Decoder, Fault, Progress};

/// MAIL was accepted; recipients may follow.
#[derive(Debug)]
pub(super) struct Transaction {
    reverse_path: ReversePath,
    eight_bit: bool,
    recipients: Vec<Mailbox>,
    accepted: u32,
}

/// Content is coming in.
#[derive(Debug)]
pub(super) struct Receiving {
    transaction: Transaction,
    decoder: Decoder,
    content: Vec<u8>,
}

/// A message read to its end, within all limits of the dialogue.
#[derive(Debug, PartialEq, Eq)]
pub struct Finished {
    /// Where bounces go.
    pub reverse_path: ReversePath,
    /// At least one, each once.
    pub recipients: Vec<Mailbox>,
    /// BODY=8BITMIME was said.
    pub eight_bit: bool,
    /// The content, less what was taken while it came in.
    pub content: Vec<u8>,
    /// Octets of the whole content.
    pub size: u64,
    /// How many RCPT commands were accepted: as many replies are due in LMTP.
    pub(super) accepted: u32,
}

impl Transaction {
    pub(super) fn new(mail: Mail) -> Self {
        let Mail { reverse_path, eight_bit, size: _ } = mail;
        Self { reverse_path, eight_bit, recipients: Vec::new(), accepted: 0 }
    }

    pub(super) fn reverse_path(&self) -> &ReversePath {
        &self.reverse_path
    }

    /// RCPT commands accepted so far.
    pub(super) fn accepted(&self) -> u32 {
        self.accepted
    }

    /// Takes a recipient; the same one again is accepted and not delivered twice.
    pub(super) fn accept(&mut self, recipient: Mailbox) {
        self.accepted += 1;
        if !self.recipients.contains(&recipient) {
            self.recipients.push(recipient);
        }
    }

    /// DATA: content, or the transaction unchanged when it has no recipient.
    pub(super) fn begin_content(self, decoder: Decoder) -> Result<Box<Receiving>, Self> {
        if self.recipients.is_empty() {
            return Err(self);
        }
        Ok(Box::new(Receiving { transaction: self, decoder, content: Vec::new() }))
    }
}

impl Receiving {
    pub(super) fn reverse_path(&self) -> &ReversePath {
        &self.transaction.reverse_path
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
        let Transaction { reverse_path, eight_bit, recipients, accepted } = self.transaction;
        match self.decoder.fault() {
            Some(fault) => Err((fault, reverse_path)),
            None => {
                let size = self.decoder.size();
                Ok(Finished { reverse_path, recipients, eight_bit, content: self.content, size, accepted })
            }
        }
    }
}
