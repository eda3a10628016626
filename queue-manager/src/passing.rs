//! What of a sender's wishes goes on to the next hop.

use postern_address::Mailbox;
use postern_smtp::parameters::{Notify, OriginalRecipient, RcptParameters};
use postern_spool::Options;

use crate::scheduler::{Order, Passing};

impl Order {
    /// The message's options for this job.
    pub(crate) fn options(&self, all: &Options) -> Options {
        let Options { smtputf8, ret, envid, deliver_by, priority, .. } = all;
        let kept = Options {
            smtputf8: *smtputf8,
            ret: *ret,
            envid: envid.clone(),
            deliver_by: *deliver_by,
            priority: *priority,
            ..Options::default()
        };
        if self.owner.is_some() {
            // A list's mail is a message of its own (RFC 3461 §5.2.7.1).
            return Options { ret: None, envid: None, deliver_by: None, ..kept };
        }
        kept
    }

    /// What the next hop is asked for one target.
    pub(crate) fn parameters(
        &self,
        target: u32,
        all: &Options,
        original: Option<&Mailbox>,
    ) -> RcptParameters {
        let Some((place, passing)) = self.recipients.get(target as usize) else {
            return RcptParameters::default();
        };
        let said = all.recipients.iter().find(|(n, _)| n == place).map(|(_, said)| said.clone());
        let Some(mut said) = said.filter(|_| *passing != Passing::Nothing) else {
            return RcptParameters::default();
        };
        if let (Some(notify), Passing::NoSuccess) = (&mut said.notify, passing) {
            *notify = Notify { success: false, ..*notify };
        }
        // The name that its sender knows must not get lost (RFC 3461 §5.2.7.2).
        said.orcpt = said.orcpt.or_else(|| original.map(original_recipient));
        said
    }

    /// Octets that these take in a frame, at most.
    pub(crate) fn parameters_size(&self, all: &Options) -> usize {
        let orcpt = |(_, said): &(u32, RcptParameters)| {
            said.orcpt.as_ref().map_or(0, |orcpt| orcpt.kind.len() + orcpt.address.len())
        };
        let ours = |(n, _): &&(u32, RcptParameters)| self.recipients.iter().any(|(place, _)| place == n);
        let said: usize = all.recipients.iter().filter(ours).map(orcpt).sum();
        // Without one of its sender's, the envelope's address stands in.
        let originals: usize =
            self.targets.iter().filter_map(|(_, original)| original.as_ref()).map(|o| o.as_str().len()).sum();
        said + originals + 32 * self.targets.len() + all.envid.as_ref().map_or(0, String::len) + 64
    }
}

/// An address as the recipient that its sender named (RFC 3461 §4.2, RFC 6533 §3).
pub(crate) fn original_recipient(mailbox: &Mailbox) -> OriginalRecipient {
    let kind = if mailbox.is_ascii() { "rfc822" } else { "utf-8" };
    OriginalRecipient { kind: kind.into(), address: mailbox.as_str().into() }
}
