//! VRFY and EXPN (RFC 5321 §3.5): who a name is, for those who may relay. Everybody else is told nothing, by
//! a reply that looks the same for every name (§7.3).

use postern_address::{Domain, Mailbox};
use postern_ipc::queue_agent::Destination;
use postern_ipc::queue_lookup::{Action, Delivery};
use postern_ipc::smtpd_lookup::{Incoming, Known, Named, Verdict};

use crate::accounts::Accounts;
use crate::routing::{Include, Tables};

/// Most members of a list, and octets of their addresses, that a reply holds.
const MEMBERS_MAX: usize = 500;
const OCTETS_MAX: usize = 24 * 1024;

/// Virtual domains that a name alone is looked for in.
const DOMAINS_MAX: usize = 100;

impl Tables {
    /// VRFY: whose mailbox is it?
    pub fn vrfy(&self, named: &Named, accounts: &mut dyn Accounts, include: Include<'_>) -> Known {
        let mailbox = match self.mailbox_named(named, accounts) {
            Ok(mailbox) => mailbox,
            Err(known) => return known,
        };
        match self.queue_lookup(&mailbox, accounts, include) {
            Ok(deliveries) => verified(mailbox, &deliveries),
            Err(why) => Known::Unavailable(why),
        }
    }

    /// EXPN: who gets its mail?
    pub fn expn(&self, named: &Named, accounts: &mut dyn Accounts, include: Include<'_>) -> Known {
        let mailbox = match self.mailbox_named(named, accounts) {
            Ok(mailbox) => mailbox,
            Err(known) => return known,
        };
        let deliveries = match self.queue_lookup(&mailbox, accounts, include) {
            Ok(deliveries) => deliveries,
            Err(why) => return Known::Unavailable(why),
        };
        let reached = deliveries.into_iter().filter(|delivery| !matches!(delivery.action, Action::Fail(_)));
        let members: Vec<Mailbox> = reached.map(|delivery| delivery.recipient).collect();
        let octets: usize = members.iter().map(|member| member.as_str().len()).sum();
        match members.len() {
            0 => Known::Unknown,
            count if count > MEMBERS_MAX || octets > OCTETS_MAX => Known::TooMany(count),
            _ => Known::Members(members),
        }
    }

    /// The one mailbox of ours that is meant; or what else there is to say.
    fn mailbox_named(&self, named: &Named, accounts: &mut dyn Accounts) -> Result<Mailbox, Known> {
        if !self.is_trusted(named.client, named.authenticated) {
            return Err(Known::Untold);
        }
        let name = named.name.trim();
        let name = name.strip_prefix('<').and_then(|name| name.strip_suffix('>')).unwrap_or(name);
        if name.contains('@') {
            let mailbox = Mailbox::parse(name).map_err(|_| Known::Malformed)?;
            return self.known(mailbox, named, accounts);
        }
        // A name alone: the accounts are the same in all local domains.
        let (local, virtual_) = (self.config.local.as_ref(), self.config.virtual_.as_ref());
        let local = local.and_then(|local| local.domains.first());
        let domains = virtual_.map(|virtual_| virtual_.domains.as_slice()).unwrap_or_default();
        let domains: Vec<&Domain> = local.into_iter().chain(domains).take(DOMAINS_MAX).collect();
        let (mut found, mut last) = (Vec::new(), Known::Unknown);
        for domain in domains {
            let mailbox = Mailbox::new(name, domain).map_err(|_| Known::Malformed)?;
            match self.known(mailbox, named, accounts) {
                Ok(mailbox) => found.push(mailbox),
                Err(known @ Known::Unavailable(_)) => return Err(known),
                Err(known) => last = known,
            }
        }
        match (found.len(), found.pop()) {
            (0 | 1, Some(only)) => Ok(only),
            (_, Some(one)) => {
                found.push(one);
                Err(Known::Ambiguous(found))
            }
            (_, None) => Err(last),
        }
    }

    fn known(&self, mailbox: Mailbox, named: &Named, accounts: &mut dyn Accounts) -> Result<Mailbox, Known> {
        let Named { client, authenticated, .. } = *named;
        let incoming = Incoming { client, authenticated, recipient: mailbox };
        match self.smtpd_lookup(&incoming, accounts) {
            Verdict::Local => Ok(incoming.recipient),
            Verdict::Relay => Err(Known::Elsewhere),
            Verdict::RelayDenied => Err(Known::Untold),
            Verdict::UnknownUser | Verdict::Rejected(_) => Err(Known::Unknown),
            Verdict::Unavailable(why) => Err(Known::Unavailable(why)),
        }
    }
}

fn verified(mailbox: Mailbox, deliveries: &[Delivery]) -> Known {
    let fails = |delivery: &Delivery| matches!(&delivery.action, Action::Fail(reply) if reply.is_permanent());
    match deliveries {
        all if all.iter().all(fails) => Known::Unknown,
        [Delivery { recipient, action: Action::Deliver(Destination::Smtp(_)), .. }]
            if *recipient != mailbox =>
        {
            Known::Forwards(recipient.clone())
        }
        _ => Known::Mailbox(mailbox),
    }
}
