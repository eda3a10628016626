//! What becomes of a message beside the replies.

use postern_address::Mailbox;
use postern_spool::Envelope;

/// The sum of what rules did that did not decide.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Effects {
    /// An operator looks at it first.
    pub(crate) held: bool,
    /// Nothing is kept.
    pub(crate) discarded: bool,
    /// It goes there instead.
    pub(crate) redirect: Option<Mailbox>,
    /// Header lines without line ends, in the order of the rules.
    pub(crate) tags: Vec<String>,
}

/// Most lines put before one message: a batch of recipients with a line each is bounded.
const TAGS_MAX: usize = 100;

impl Effects {
    /// What came later, on top.
    pub(crate) fn add(&mut self, later: Self) {
        self.held |= later.held;
        self.discarded |= later.discarded;
        self.redirect = later.redirect.or_else(|| self.redirect.take());
        for tag in later.tags {
            // The same line for each of a hundred recipients says nothing more.
            if self.tags.len() < TAGS_MAX && !self.tags.contains(&tag) {
                self.tags.push(tag);
            }
        }
    }

    /// Does it to a message on its way to the spool.
    pub(crate) fn apply(self, envelope: &mut Envelope, prepend: &mut Vec<u8>) {
        if !self.tags.is_empty() {
            let mut lines = self.lines();
            lines.append(prepend);
            *prepend = lines;
        }
        envelope.options.held |= self.held;
        if let Some(to) = self.redirect {
            envelope.recipients = vec![to];
            // What was asked for others is nothing to this one.
            envelope.options.recipients.clear();
        }
    }

    /// Nothing at all.
    #[cfg(test)]
    pub(crate) fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// The lines to be put before the message.
    pub(crate) fn lines(&self) -> Vec<u8> {
        self.tags.iter().flat_map(|tag| [tag.as_bytes(), b"\r\n"].concat()).collect()
    }
}
