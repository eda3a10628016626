//! One recipient resolved into deliveries: aliases, lists, and the guards against what a file of aliases can
//! say by mistake.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use postern_address::{Domain, Mailbox};
use postern_ipc::queue_agent::Destination;
use postern_ipc::queue_lookup::{Action, Delivery};
use postern_smtp::Reply;

use crate::accounts::{Account, Accounts};
use crate::aliases::{Entry, Target};
use crate::routing::{Include, Place, Tables, action_of, candidates, elsewhere, is_postmaster, reply};

/// Aliases of aliases.
const DEPTH: usize = 20;

/// Values looked at for one recipient.
const WORK: usize = 20_000;

/// The resolution of one recipient.
pub(crate) struct Expansion<'a> {
    tables: &'a Tables,
    accounts: &'a mut dyn Accounts,
    include: Include<'a>,
    deliveries: Vec<Delivery>,
    /// By address, in lower case: its place in `deliveries`.
    addresses: HashMap<String, usize>,
    /// What cannot be said beside a delivery to the same address: all of it waits.
    postponed: Option<String>,
    mailboxes: HashSet<Destination>,
    expanded: HashSet<String>,
    circle: Option<String>,
    work: usize,
}

/// Where in the tree of aliases we are.
#[derive(Clone)]
struct Branch {
    /// The aliases from the recipient to here.
    above: Vec<String>,
    /// The nearest `owner-LIST`.
    owner: Option<Mailbox>,
    /// What a name without a domain belongs to.
    domain: Domain,
}

impl<'a> Expansion<'a> {
    pub(crate) fn new(tables: &'a Tables, accounts: &'a mut dyn Accounts, include: Include<'a>) -> Self {
        Self {
            tables,
            accounts,
            include,
            deliveries: Vec::new(),
            addresses: HashMap::new(),
            postponed: None,
            mailboxes: HashSet::new(),
            expanded: HashSet::new(),
            circle: None,
            work: 0,
        }
    }

    /// The deliveries; never empty.
    pub(crate) fn resolve(mut self, recipient: &Mailbox) -> Result<Vec<Delivery>, String> {
        let domain = recipient.domain().unwrap_or_else(|| self.tables.config.hostname.clone());
        let branch = Branch { above: Vec::new(), owner: None, domain };
        self.address(recipient, &branch)?;
        if let Some(why) = self.postponed {
            return Err(why);
        }
        if self.deliveries.is_empty() {
            // Nothing but a circle, or an include file without a member.
            let failure = match &self.circle {
                Some(name) => {
                    reply(554, (5, 4, 6), &format!("{name} is an alias for itself and has no account"))
                }
                None => reply(550, (5, 2, 4), "the list has no members"),
            };
            self.push(recipient, &branch, Action::Fail(failure));
        }
        Ok(self.deliveries)
    }

    fn address(&mut self, address: &Mailbox, branch: &Branch) -> Result<(), String> {
        match self.tables.place(address) {
            Place::Local => {
                let mut branch = branch.clone();
                if let Some(domain) = address.domain() {
                    branch.domain = domain;
                }
                self.name(&address.local_name(), address, &branch)
            }
            Place::Virtual => self.virtual_(address, branch),
            Place::Via(via) => {
                self.push(address, branch, action_of(via));
                Ok(())
            }
            Place::Elsewhere => {
                let unknown = || Action::Fail(reply(550, (5, 1, 2), "not a host that mail could go to"));
                let to = |nexthop| Action::Deliver(Destination::Smtp(nexthop));
                self.push(address, branch, elsewhere(address).map_or_else(unknown, to));
                Ok(())
            }
        }
    }

    /// A local name: an alias, else an account. `address` is what it is called in results.
    fn name(&mut self, name: &str, address: &Mailbox, branch: &Branch) -> Result<(), String> {
        let tables = self.tables;
        for candidate in candidates(name) {
            let Some(entry) = tables.alias(candidate)? else { continue };
            let key = candidate.to_lowercase();
            if branch.above.contains(&key) {
                // `ann: ann, backup@example.org`: the second ann is the account. Without one, the circle
                // leads to those who have the message already.
                if !is_postmaster(name) && self.tables.local_account(name, self.accounts)?.is_none() {
                    self.circle = Some(clean(name));
                    return Ok(());
                }
                return self.account(name, address, branch);
            }
            return self.alias(&key, entry, address, branch);
        }
        self.account(name, address, branch)
    }

    fn alias(&mut self, key: &str, entry: &Entry, address: &Mailbox, branch: &Branch) -> Result<(), String> {
        let targets = match entry {
            Entry::Targets(targets) => targets,
            Entry::Broken(why) if branch.above.is_empty() => return Err(why.clone()),
            Entry::Broken(why) => {
                self.push(address, branch, Action::Fail(reply(451, (4, 3, 5), why)));
                return Ok(());
            }
        };
        if !self.expanded.insert(key.to_owned()) {
            return Ok(()); // its members have the message already
        }
        if branch.above.len() >= DEPTH {
            let text = format!("alias {key}: more than {DEPTH} aliases within each other");
            self.push(address, branch, Action::Fail(reply(554, (5, 4, 6), &text)));
            return Ok(());
        }
        let mut below = branch.clone();
        below.above.push(key.to_owned());
        let owner = format!("owner-{key}");
        if !key.starts_with("owner-")
            && self.tables.alias(&owner)?.is_some()
            && let Ok(owner) = Mailbox::new(&owner, &branch.domain)
        {
            below.owner = Some(owner);
        }
        targets.iter().try_for_each(|target| self.target(target, address, &below))
    }

    fn target(&mut self, target: &Target, alias: &Mailbox, branch: &Branch) -> Result<(), String> {
        self.work += 1;
        if self.work > WORK {
            let text = format!("the aliases of one recipient have more than {WORK} values");
            self.push(alias, branch, Action::Fail(reply(554, (5, 2, 4), &text)));
            return Ok(());
        }
        let refused = |what: &str| {
            let text = format!("an alias leads to a {what}, which is not supported");
            Action::Fail(reply(554, (5, 2, 4), &text))
        };
        match target {
            Target::Name(name) | Target::Account(name) => match Mailbox::new(name, &branch.domain) {
                Ok(address) if matches!(target, Target::Name(_)) => self.name(name, &address, branch),
                Ok(address) => self.account(name, &address, branch),
                Err(_) => {
                    self.push(
                        alias,
                        branch,
                        Action::Fail(reply(550, (5, 1, 3), "an alias leads to no user name")),
                    );
                    Ok(())
                }
            },
            Target::Address(address) => self.address(address, branch),
            Target::Include(path) => self.included(path, alias, branch),
            Target::Null => {
                self.push(alias, branch, Action::Discard);
                Ok(())
            }
            Target::Command(_) => {
                self.push(alias, branch, refused("command"));
                Ok(())
            }
            Target::File(_) => {
                self.push(alias, branch, refused("file"));
                Ok(())
            }
        }
    }

    fn included(&mut self, path: &Path, alias: &Mailbox, branch: &Branch) -> Result<(), String> {
        let key = format!(":include:{}", path.display());
        if branch.above.len() >= DEPTH {
            let text = format!("{key}: more than {DEPTH} aliases within each other");
            self.push(alias, branch, Action::Fail(reply(554, (5, 4, 6), &text)));
            return Ok(());
        }
        if !self.expanded.insert(key.clone()) {
            return Ok(());
        }
        match (self.include)(path) {
            Ok(targets) => {
                let mut below = branch.clone();
                below.above.push(key);
                targets.iter().try_for_each(|target| self.target(target, alias, &below))
            }
            // Nothing was delivered for this list, so all of it can wait.
            Err(why) if self.deliveries.is_empty() => Err(why),
            Err(why) => {
                self.push(alias, branch, Action::Fail(reply(451, (4, 3, 5), &why)));
                Ok(())
            }
        }
    }

    fn account(&mut self, name: &str, address: &Mailbox, branch: &Branch) -> Result<(), String> {
        let action = match self.tables.local_account(name, self.accounts)? {
            Some(account) => Action::Deliver(self.tables.local_destination(&account)),
            None if is_postmaster(name) => return self.postmaster(address, branch),
            None => Action::Fail(self.nobody(name)?),
        };
        self.push(address, branch, action);
        Ok(())
    }

    /// Mail for postmaster must find a reader (RFC 5321 §4.5.1): root's alias, or without root the caller.
    fn postmaster(&mut self, address: &Mailbox, branch: &Branch) -> Result<(), String> {
        let tables = self.tables;
        if let Some(entry) = tables.alias("root")?
            && !branch.above.iter().any(|key| key == "root")
        {
            return self.alias("root", entry, address, branch);
        }
        let Some(Account { name, uid }) = &tables.caller else {
            return Err(
                "nobody reads the mail for postmaster: add a line `postmaster: NAME` to the aliases".into()
            );
        };
        if *uid == 0 || name.is_empty() {
            return Err(
                "mail for postmaster is not delivered to root or a nameless user: add an alias for it".into(),
            );
        }
        let caller = Account { name: name.clone(), uid: *uid };
        self.push(address, branch, Action::Deliver(tables.local_destination(&caller)));
        Ok(())
    }

    fn nobody(&mut self, name: &str) -> Result<Reply, String> {
        let mut exists = false;
        for candidate in candidates(name) {
            exists = exists || self.accounts.find(candidate)?.is_some();
        }
        Ok(match exists {
            true if self.tables.caller.is_some() => {
                reply(550, (5, 2, 1), "without root only the caller's own mailbox can receive")
            }
            true => reply(550, (5, 2, 1), "nothing is delivered to root: an alias for root is needed"),
            false => reply(550, (5, 1, 1), "user unknown"),
        })
    }

    fn virtual_(&mut self, address: &Mailbox, branch: &Branch) -> Result<(), String> {
        let Some(virtual_) = &self.tables.config.virtual_ else {
            return Err("there is no [virtual] any more".to_owned());
        };
        let Some(user) = self.tables.virtual_user(address)? else {
            self.push(address, branch, Action::Fail(reply(550, (5, 1, 1), "user unknown")));
            return Ok(());
        };
        let local = self.tables.config.local.as_ref().and_then(|local| local.domains.first());
        if let Some(domain) = local
            && is_postmaster(&user)
            && !self.tables.is_named_virtual_user(address)
        {
            // One postmaster for all domains, with an account or an alias.
            let branch = Branch { domain: domain.clone(), ..branch.clone() };
            return self.name("postmaster", address, &branch);
        }
        let action = Action::Deliver(Tables::virtual_destination(virtual_, &user, address.host()));
        self.push(address, branch, action);
        Ok(())
    }

    /// Notes a delivery, unless the address or the mailbox has one.
    fn push(&mut self, address: &Mailbox, branch: &Branch, action: Action) {
        let key = address.as_str().to_lowercase();
        let known = self.addresses.get(&key).and_then(|at| self.deliveries.get_mut(*at));
        if let Some(known) = known {
            // `ann: |command, \ann`: both are called ann. The mailbox is what counts, unless the rest is only
            // for now: then what it would lead to must not be forgotten.
            match (&known.action, &action) {
                (Action::Fail(reply), Action::Deliver(_)) | (Action::Deliver(_), Action::Fail(reply))
                    if reply.is_transient() =>
                {
                    self.postponed = Some(reply.lines.join(" "));
                }
                (Action::Fail(_) | Action::Discard, Action::Deliver(destination)) => {
                    self.mailboxes.insert(destination.clone());
                    known.action = action;
                }
                _ => {}
            }
            return;
        }
        if let Action::Deliver(destination @ (Destination::Local { .. } | Destination::Virtual { .. })) =
            &action
            && !self.mailboxes.insert(destination.clone())
        {
            return;
        }
        self.addresses.insert(key, self.deliveries.len());
        let delivery = Delivery { recipient: address.clone(), reverse_path: branch.owner.clone(), action };
        self.deliveries.push(delivery);
    }
}

fn clean(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(64).collect()
}
