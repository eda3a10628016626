//! Whose a recipient is, whether he exists, who may relay to him, and where his mail goes: decided from
//! tables, without files, clocks or sockets.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use postern_address::{Domain, Mailbox};
use postern_config::{
    EnhancedStatus, LookupPart, MailboxTemplate, Nexthop, Route, RouteIndex, RoutePattern, UserSet, Via,
    Virtual,
};
use postern_ipc::queue_agent::{Destination, MailboxKind};
use postern_ipc::queue_lookup::{Action, Delivery};
use postern_ipc::smtpd_lookup::{Incoming, Verdict};
use postern_smtp::{EnhancedCode, Reply};

use crate::accounts::{Account, Accounts};
use crate::aliases::{Aliases, Entry, Target};
use crate::expansion::Expansion;
use crate::table::TextTable;

/// Between a user and the extension that he may put behind his name.
const DELIMITER: char = '+';

/// A table that is read from a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source<T> {
    /// None is configured.
    Absent,
    /// Its content.
    Ready(T),
    /// It could not be read, ever: what needs it has to wait.
    Unavailable(String),
}

/// Everything that decisions are made from.
#[derive(Debug)]
pub struct Tables {
    /// What the operator wrote.
    pub config: LookupPart,
    /// `[local] aliases`
    pub aliases: Source<Aliases>,
    /// `[virtual] users` when it is a table.
    pub users: Source<TextTable>,
    /// Without root: the only user who can receive.
    pub caller: Option<Account>,
    listed: HashSet<String>,
    domains: Domains,
}

/// The configuration's domains, found without a look at each: there may be tens of thousands.
#[derive(Debug)]
struct Domains {
    routes: RouteIndex,
    local: HashSet<Domain>,
    virtual_: HashSet<Domain>,
    relay: HashSet<Domain>,
}

impl Domains {
    fn of(config: &LookupPart) -> Self {
        let set = |domains: &[Domain]| domains.iter().cloned().collect();
        Self {
            routes: RouteIndex::new(&config.routes),
            local: config.local.as_ref().map(|local| set(&local.domains)).unwrap_or_default(),
            virtual_: config.virtual_.as_ref().map(|virtual_| set(&virtual_.domains)).unwrap_or_default(),
            relay: set(&config.relay.domains),
        }
    }
}

/// Reads an included file.
pub type Include<'a> = &'a mut dyn FnMut(&Path) -> Result<Vec<Target>, String>;

/// Whose mail it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Place<'c> {
    /// A user with an account, or an alias.
    Local,
    /// A virtual user.
    Virtual,
    /// A route takes it.
    Via(&'c Via),
    /// Another host's.
    Elsewhere,
}

impl Tables {
    /// Tables for a configuration, their files not read yet.
    pub fn new(config: LookupPart, caller: Option<Account>) -> Self {
        let listed = match config.virtual_.as_ref().map(|v| &v.users) {
            Some(UserSet::Listed(users)) => users.iter().map(|u| u.as_str().to_lowercase()).collect(),
            _ => HashSet::new(),
        };
        let domains = Domains::of(&config);
        Self { config, aliases: Source::Absent, users: Source::Absent, caller, listed, domains }
    }

    /// smtpd asks: may this mail come in?
    pub fn smtpd_lookup(&self, question: &Incoming, accounts: &mut dyn Accounts) -> Verdict {
        let recipient = &question.recipient;
        let domain = recipient.domain();
        let ours = domain.as_ref().is_some_and(|domain| self.is_listed(domain));
        match self.place(recipient) {
            Place::Local => exists(self.is_local_user(&recipient.local_name(), accounts)),
            Place::Virtual => exists(self.virtual_user(recipient).map(|user| user.is_some())),
            Place::Via(Via::Error(status, text)) if ours => Verdict::Rejected(error_reply(*status, text)),
            // The users of [virtual] are the users of its domains, whatever way their mail takes.
            Place::Via(Via::Smtp(_) | Via::Lmtp(_))
                if domain.as_ref().is_some_and(|d| self.is_virtual(d)) =>
            {
                exists(self.virtual_user(recipient).map(|user| user.is_some()))
            }
            Place::Via(_) if ours => Verdict::Local,
            // A route says where mail goes, never that it may come.
            place => match (self.may_relay(question, domain.as_ref()), place) {
                (false, _) => Verdict::RelayDenied,
                (true, Place::Via(Via::Error(status, text))) => Verdict::Rejected(error_reply(*status, text)),
                (true, _) => Verdict::Relay,
            },
        }
    }

    /// queue-manager asks: where does it go? `Err` says why that cannot be said now.
    pub fn queue_lookup(
        &self,
        recipient: &Mailbox,
        accounts: &mut dyn Accounts,
        include: Include<'_>,
    ) -> Result<Vec<Delivery>, String> {
        Expansion::new(self, accounts, include).resolve(recipient)
    }

    /// What an operator should know about these tables, if anything.
    pub fn warnings(&self, accounts: &mut dyn Accounts) -> Vec<String> {
        let mut warnings = Vec::new();
        let has_alias = |name| matches!(&self.aliases, Source::Ready(aliases) if aliases.get(name).is_some());
        let has_account = matches!(self.local_account("postmaster", accounts), Ok(Some(_)));
        let nobody = !has_alias("postmaster") && !has_alias("root") && !has_account && self.caller.is_none();
        if self.config.local.is_some() && nobody {
            let text = "nobody reads the mail for postmaster (RFC 5321 §4.5.1), it will wait in the queue: \
                        add a line `postmaster: NAME` to the aliases";
            warnings.push(text.to_owned());
        }
        warnings
    }

    /// Routes first, then `[local]`, then `[virtual]`. Only a route for exactly a domain takes it from those
    /// sections: `*` and `.example.org` are for the domains of others, so that a smart host does not get
    /// the mail that it sends us.
    pub(crate) fn place(&self, recipient: &Mailbox) -> Place<'_> {
        let Some(domain) = recipient.domain() else {
            return self.route(None, true).map_or(Place::Elsewhere, |route| Place::Via(&route.via));
        };
        let listed = self.is_listed(&domain);
        let ours = listed || self.is_our_postmaster(recipient, &domain);
        match self.route(Some(&domain), !ours).map(|route| &route.via) {
            Some(Via::Local) if self.config.local.is_some() => Place::Local,
            Some(Via::Virtual) if self.config.virtual_.is_some() => Place::Virtual,
            Some(via) => Place::Via(via),
            None if self.is_virtual(&domain) => Place::Virtual,
            None if ours && self.config.local.is_some() => Place::Local,
            None if ours => Place::Virtual,
            None => Place::Elsewhere,
        }
    }

    fn route(&self, domain: Option<&Domain>, wide: bool) -> Option<&Route> {
        let routes = &self.domains.routes;
        let place = match (domain, wide) {
            (Some(domain), true) => routes.first(domain),
            (Some(domain), false) => routes.exactly(domain),
            (None, true) => routes.any(),
            (None, false) => None,
        };
        self.config.routes.get(place?)
    }

    fn is_listed(&self, domain: &Domain) -> bool {
        self.is_virtual(domain) || self.domains.local.contains(domain)
    }

    fn is_virtual(&self, domain: &Domain) -> bool {
        self.domains.virtual_.contains(domain)
    }

    /// `postmaster` at our own name is ours even when that name is no mail domain (RFC 5321 §4.5.1), as
    /// long as anybody's mail is.
    fn is_our_postmaster(&self, recipient: &Mailbox, domain: &Domain) -> bool {
        let somebody = self.config.local.is_some() || self.config.virtual_.is_some();
        somebody && *domain == self.config.hostname && is_postmaster(&recipient.local_name())
    }

    fn may_relay(&self, question: &Incoming, domain: Option<&Domain>) -> bool {
        self.is_trusted(question.client, question.authenticated)
            || domain.is_some_and(|domain| self.domains.relay.contains(domain))
    }

    /// The client may relay wherever it likes.
    pub(crate) fn is_trusted(&self, client: IpAddr, authenticated: bool) -> bool {
        // A client of IPv4 on a listener of IPv6 has an address of both.
        let client = client.to_canonical();
        authenticated || self.config.relay.networks.iter().any(|network| network.contains(&client))
    }

    /// We keep a domain's mail for another host: it is in `[relay] domains`, or a route of its own leads there.
    pub(crate) fn queues_for(&self, domain: &Domain) -> bool {
        match self.route(Some(domain), true).map(|route| (&route.domain, &route.via)) {
            Some((RoutePattern::Domain(_) | RoutePattern::Below(_), Via::Smtp(_) | Via::Lmtp(_))) => true,
            Some((RoutePattern::Domain(_), _)) => false,
            _ => self.domains.relay.contains(domain),
        }
    }

    fn is_local_user(&self, name: &str, accounts: &mut dyn Accounts) -> Result<bool, String> {
        for candidate in candidates(name) {
            match self.alias(candidate)? {
                Some(Entry::Broken(why)) => return Err(why.clone()),
                Some(Entry::Targets(_)) => return Ok(true),
                None => {}
            }
        }
        Ok(is_postmaster(name) || self.local_account(name, accounts)?.is_some())
    }

    pub(crate) fn alias(&self, name: &str) -> Result<Option<&Entry>, String> {
        match &self.aliases {
            Source::Absent => Ok(None),
            Source::Ready(aliases) => Ok(aliases.get(name)),
            Source::Unavailable(why) => Err(why.clone()),
        }
    }

    /// The account that gets the mail of a local name, with or without its extension. Never root: nothing
    /// is delivered with his rights. Without root, the caller alone.
    pub(crate) fn local_account(
        &self,
        name: &str,
        accounts: &mut dyn Accounts,
    ) -> Result<Option<Account>, String> {
        for candidate in candidates(name) {
            let found = match accounts.find(candidate)? {
                None => accounts.find(&candidate.to_lowercase())?,
                found => found,
            };
            let can = |account: &Account| {
                account.uid != 0 && self.caller.as_ref().is_none_or(|caller| caller.uid == account.uid)
            };
            if let Some(account) = found.filter(can) {
                return Ok(Some(account));
            }
        }
        Ok(None)
    }

    /// The name of a virtual user in lower case, fit for a path; none when there is no such user.
    pub(crate) fn virtual_user(&self, recipient: &Mailbox) -> Result<Option<String>, String> {
        let Some(virtual_) = &self.config.virtual_ else { return Ok(None) };
        let (local, host) = (recipient.local_name().to_lowercase(), recipient.host());
        if !is_path_safe(&local) {
            return Ok(None);
        }
        let mut found = None;
        for candidate in candidates(&local) {
            let key = || format!("{candidate}@{host}");
            let is_user = match (&virtual_.users, &self.users) {
                // With every name a user, an extension is still an extension.
                (UserSet::All, _) => candidate.len() < local.len() || !has_extension(&local),
                (UserSet::Listed(_), _) => self.listed.contains(&key()),
                (UserSet::Table(_), Source::Ready(users)) => users.get(&key()).is_some(),
                (UserSet::Table(_), Source::Unavailable(why)) => return Err(why.clone()),
                (UserSet::Table(_), Source::Absent) => {
                    return Err("the table of users is not read yet".into());
                }
            };
            if is_user {
                found = Some(candidate.to_owned());
                break;
            }
        }
        Ok(found.or_else(|| is_postmaster(&local).then(|| "postmaster".to_owned())))
    }

    /// The user of a virtual mailbox is one of the operator's own, not only postmaster by the RFC's word.
    pub(crate) fn is_named_virtual_user(&self, recipient: &Mailbox) -> bool {
        let key = recipient.as_str().to_lowercase();
        match (self.config.virtual_.as_ref().map(|v| &v.users), &self.users) {
            (Some(UserSet::All), _) => true,
            (Some(UserSet::Listed(_)), _) => self.listed.contains(&key),
            (Some(UserSet::Table(_)), Source::Ready(users)) => users.get(&key).is_some(),
            _ => false,
        }
    }

    /// Where the mail of an account goes.
    pub(crate) fn local_destination(&self, account: &Account) -> Destination {
        let fill = |path: &str| path.replace("{user}", &account.name);
        let mailbox = match self.config.local.as_ref().map(|local| &local.mailbox) {
            Some(MailboxTemplate::Lmtp(server)) => return Destination::Lmtp(server.clone()),
            Some(MailboxTemplate::Mbox(path)) => MailboxKind::Mbox(fill(path)),
            Some(MailboxTemplate::Maildir(path)) => MailboxKind::Maildir(fill(path)),
            None => MailboxKind::Maildir("~/Maildir".to_owned()),
        };
        Destination::Local { user: account.name.clone(), mailbox }
    }

    /// Where the mail of a virtual user goes: a path below the base.
    pub(crate) fn virtual_destination(virtual_: &Virtual, user: &str, host: &str) -> Destination {
        let base = virtual_.mailbox.base().unwrap_or_default();
        let fill = |path: &str| {
            let below = base.to_str().and_then(|base| path.strip_prefix(base)).unwrap_or(path);
            // The domain first: what stands for it holds no brace, a local part may.
            below.replace("{domain}", host).replace("{local}", user)
        };
        let mailbox = match &virtual_.mailbox {
            MailboxTemplate::Lmtp(server) => return Destination::Lmtp(server.clone()),
            MailboxTemplate::Maildir(path) => MailboxKind::Maildir(fill(path)),
            MailboxTemplate::Mbox(path) => MailboxKind::Mbox(fill(path)),
        };
        Destination::Virtual { mailbox }
    }
}

/// A user as written, then without the extension.
pub(crate) fn candidates(name: &str) -> impl Iterator<Item = &str> {
    let base = name.split_once(DELIMITER).map(|(base, _)| base).filter(|base| !base.is_empty());
    std::iter::once(name).chain(base)
}

fn has_extension(name: &str) -> bool {
    candidates(name).nth(1).is_some()
}

pub(crate) fn is_postmaster(name: &str) -> bool {
    candidates(name).any(|candidate| candidate.eq_ignore_ascii_case("postmaster"))
}

/// A local part that can stand for one component of a path.
fn is_path_safe(local: &str) -> bool {
    let clean = |c: char| c != '/' && !c.is_control();
    !local.is_empty() && local.len() <= 200 && !local.starts_with('.') && local.chars().all(clean)
}

/// By MX, or to an address literal's address (RFC 5321 §5.1).
pub(crate) fn elsewhere(recipient: &Mailbox) -> Option<Nexthop> {
    let literal = |address: IpAddr| Nexthop::Address(SocketAddr::new(address, 25));
    recipient.literal().map(literal).or_else(|| recipient.domain().map(Nexthop::Mx))
}

pub(crate) fn action_of(via: &Via) -> Action {
    match via {
        Via::Smtp(nexthop) => Action::Deliver(Destination::Smtp(nexthop.clone())),
        Via::Lmtp(server) => Action::Deliver(Destination::Lmtp(server.clone())),
        Via::Discard => Action::Discard,
        Via::Error(status, text) => Action::Fail(error_reply(*status, text)),
        // The configuration is refused when a route leads to a section that is not there.
        Via::Local | Via::Virtual => {
            Action::Fail(reply(451, (4, 3, 5), "route to a section that is missing"))
        }
    }
}

/// The reply of a route `error:` (RFC 3463 §3; 556 for a domain that takes no mail: RFC 7504 §4).
pub(crate) fn error_reply(status: EnhancedStatus, text: &str) -> Reply {
    let code = match status {
        (4, 1 | 2, _) => 450,
        (4, ..) => 451,
        (_, 1, 10) => 556,
        (_, 7, _) => 554,
        _ => 550,
    };
    reply(code, status, text)
}

pub(crate) fn reply(code: u16, (class, subject, detail): EnhancedStatus, text: &str) -> Reply {
    Reply::new(code, EnhancedCode::parse(&format!("{class}.{subject}.{detail}")), text)
}

fn exists(found: Result<bool, String>) -> Verdict {
    match found {
        Ok(true) => Verdict::Local,
        Ok(false) => Verdict::UnknownUser,
        Err(why) => Verdict::Unavailable(why),
    }
}
