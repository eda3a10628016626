//! Who delivers a job: the user, and the mailbox, or why nobody may. No I/O but the given accounts.

use std::path::{Path, PathBuf};

use postern_ipc::queue_agent::{Destination, MailboxKind};
use postern_ipc::supervise::Identity;
use postern_smtp::{EnhancedCode, Reply};

use crate::trouble::{internal, unavailable};

/// How many workers share the virtual mailboxes: syncs of different mailboxes then overlap.
const VIRTUAL_SHARDS: u64 = 4;

/// What one worker is for. Jobs of equal posts go to the same worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Post {
    /// Whom to become; none without root.
    pub identity: Option<Identity>,
    /// Where to.
    pub place: Place,
}

/// The mailbox of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// One Maildir of a system user.
    Maildir {
        /// What is missing on the way is made beneath this, which must be there.
        within: PathBuf,
        /// Absolute.
        path: PathBuf,
    },
    /// One mbox file of a system user.
    Mbox {
        /// Absolute.
        path: PathBuf,
    },
    /// The virtual mailboxes of one shard, beneath their base.
    Virtual {
        /// Counted from 0.
        shard: u8,
    },
}

/// Why nobody delivers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not now.
    Deferred(Reply),
    /// Never.
    Failed(Reply),
}

/// What this program runs as.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// May become others.
    pub rooted: bool,
    /// The caller's user id.
    pub caller: u32,
    /// Who owns the virtual mailboxes under root.
    pub virtual_owner: Option<String>,
    /// The base of the virtual mailboxes was handed over.
    pub has_base: bool,
}

/// A system user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: PathBuf,
}

/// The host's accounts.
pub trait Accounts {
    /// A user by name; the error is for the log.
    fn find(&mut self, name: &str) -> Result<Option<Account>, String>;

    /// The group that must be had to create files in a mailbox directory (`/var/mail`), if it is the
    /// mail group's.
    fn mail_group_of(&self, directory: &Path) -> Option<u32>;
}

/// Who delivers to `destination`.
pub fn plan(
    destination: &Destination,
    surroundings: &Surroundings,
    accounts: &mut impl Accounts,
) -> Result<Post, Refusal> {
    match destination {
        Destination::Local { user, mailbox } => local(user, mailbox, surroundings, accounts),
        Destination::Virtual { mailbox } => virtual_(mailbox, surroundings, accounts),
        Destination::Smtp(_) | Destination::Lmtp(_) => {
            Err(Refusal::Deferred(internal("job for another agent")))
        }
    }
}

fn local(
    user: &str,
    mailbox: &MailboxKind,
    surroundings: &Surroundings,
    accounts: &mut impl Accounts,
) -> Result<Post, Refusal> {
    let account = find(user, accounts)?;
    let mut identity = become_it(user, &account, surroundings)?;
    let (MailboxKind::Maildir(path) | MailboxKind::Mbox(path)) = mailbox;
    let (path, within) = match path.strip_prefix("~/") {
        Some(rest) => (account.home.join(rest.trim_start_matches('/')), account.home.clone()),
        None => (PathBuf::from(path), Path::new(path).parent().map(Path::to_owned).unwrap_or_default()),
    };
    if !path.is_absolute() {
        return Err(Refusal::Deferred(internal(format!("mailbox {} is not absolute", path.display()))));
    }
    let place = match mailbox {
        MailboxKind::Maildir(_) => Place::Maildir { within, path },
        MailboxKind::Mbox(_) => {
            let group = path.parent().and_then(|directory| accounts.mail_group_of(directory));
            if let (Some(identity), Some(group)) = (&mut identity, group)
                && !identity.groups.contains(&group)
            {
                identity.groups.push(group);
            }
            Place::Mbox { path }
        }
    };
    Ok(Post { identity, place })
}

fn virtual_(
    mailbox: &MailboxKind,
    surroundings: &Surroundings,
    accounts: &mut impl Accounts,
) -> Result<Post, Refusal> {
    if !surroundings.has_base {
        return Err(Refusal::Deferred(internal("no base directory of virtual mailboxes is configured")));
    }
    let identity = match (surroundings.rooted, &surroundings.virtual_owner) {
        (false, _) => None,
        (true, Some(owner)) => match accounts.find(owner) {
            Ok(Some(account)) => become_it(owner, &account, surroundings)?,
            Ok(None) => {
                let text = format!("system user {owner}, owner of the virtual mailboxes, does not exist");
                return Err(Refusal::Deferred(internal(text)));
            }
            Err(error) => return Err(Refusal::Deferred(internal(format!("looking up {owner}: {error}")))),
        },
        (true, None) => {
            return Err(Refusal::Deferred(internal("no owner of virtual mailboxes is configured")));
        }
    };
    let (MailboxKind::Maildir(path) | MailboxKind::Mbox(path)) = mailbox;
    // FNV-1a: only evenness matters, and that one mailbox is always the same worker's.
    let hash =
        path.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    Ok(Post { identity, place: Place::Virtual { shard: (hash % VIRTUAL_SHARDS) as u8 } })
}

fn find(user: &str, accounts: &mut impl Accounts) -> Result<Account, Refusal> {
    match accounts.find(user) {
        Ok(Some(account)) => Ok(account),
        Ok(None) => {
            let text = format!("no user {user:?} on this host");
            Err(Refusal::Failed(Reply::new(550, EnhancedCode::new(5, 1, 1), text)))
        }
        Err(error) => Err(Refusal::Deferred(internal(format!("looking up user {user:?}: {error}")))),
    }
}

fn become_it(
    user: &str,
    account: &Account,
    surroundings: &Surroundings,
) -> Result<Option<Identity>, Refusal> {
    if surroundings.rooted {
        if account.uid == 0 {
            // A mailbox of root's would have to be written as root. Deferred and not failed: an alias
            // repairs it.
            let text = format!("no mail is delivered as {user}: name a person for {user} in the aliases");
            return Err(Refusal::Deferred(unavailable(text)));
        }
        let Account { uid, gid, groups, .. } = account.clone();
        return Ok(Some(Identity { uid, gid, groups }));
    }
    if account.uid == surroundings.caller {
        return Ok(None);
    }
    let text = format!("Postern was started without root: it cannot deliver to {user}");
    Err(Refusal::Deferred(internal(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed;

    impl Accounts for Fixed {
        fn find(&mut self, name: &str) -> Result<Option<Account>, String> {
            let account = |uid, home: &str| Account { uid, gid: uid, groups: vec![uid], home: home.into() };
            match name {
                "u" => Ok(Some(account(1000, "/home/u"))),
                "root" => Ok(Some(account(0, "/root"))),
                "postern-mail" => Ok(Some(account(70, "/nonexistent"))),
                "broken" => Err("the directory is down".into()),
                _ => Ok(None),
            }
        }

        fn mail_group_of(&self, directory: &Path) -> Option<u32> {
            (directory == Path::new("/var/mail")).then_some(8)
        }
    }

    fn rooted() -> Surroundings {
        let virtual_owner = Some("postern-mail".into());
        Surroundings { rooted: true, caller: 0, virtual_owner, has_base: true }
    }

    fn local_to(user: &str, mailbox: MailboxKind, surroundings: &Surroundings) -> Result<Post, Refusal> {
        plan(&Destination::Local { user: user.into(), mailbox }, surroundings, &mut Fixed)
    }

    #[test]
    fn users() {
        let maildir = || MailboxKind::Maildir("~/Maildir".into());
        let post = local_to("u", maildir(), &rooted()).unwrap();
        assert_eq!(post.identity.map(|i| i.uid), Some(1000));
        let (within, path) = ("/home/u".into(), "/home/u/Maildir".into());
        assert_eq!(post.place, Place::Maildir { within, path });
        assert!(matches!(local_to("root", maildir(), &rooted()), Err(Refusal::Deferred(r)) if r.code == 450));
        assert!(matches!(local_to("x", maildir(), &rooted()), Err(Refusal::Failed(r)) if r.code == 550));
        assert!(matches!(local_to("broken", maildir(), &rooted()), Err(Refusal::Deferred(_))));
    }

    #[test]
    fn without_root_only_the_caller() {
        let caller = Surroundings { rooted: false, caller: 1000, ..rooted() };
        let post = local_to("u", MailboxKind::Mbox("~/mbox".into()), &caller).unwrap();
        assert_eq!(post, Post { identity: None, place: Place::Mbox { path: "/home/u/mbox".into() } });
        let other = Surroundings { rooted: false, caller: 1001, ..rooted() };
        assert!(matches!(
            local_to("u", MailboxKind::Mbox("~/mbox".into()), &other),
            Err(Refusal::Deferred(_))
        ));
    }

    #[test]
    fn the_mail_group_comes_with_the_mail_directory() {
        let post = local_to("u", MailboxKind::Mbox("/var/mail/u".into()), &rooted()).unwrap();
        assert_eq!(post.identity.unwrap().groups, [1000, 8]);
        let post = local_to("u", MailboxKind::Mbox("~/mbox".into()), &rooted()).unwrap();
        assert_eq!(post.identity.unwrap().groups, [1000]);
    }

    #[test]
    fn virtual_mailboxes_have_one_owner() {
        let to = |path: &str| Destination::Virtual { mailbox: MailboxKind::Maildir(path.into()) };
        let post = plan(&to("v.test/u"), &rooted(), &mut Fixed).unwrap();
        assert_eq!(post.identity.as_ref().map(|i| i.uid), Some(70));
        assert_eq!(plan(&to("v.test/u"), &rooted(), &mut Fixed).unwrap(), post);
        let nobody = Surroundings { virtual_owner: Some("missing".into()), ..rooted() };
        assert!(matches!(plan(&to("v.test/u"), &nobody, &mut Fixed), Err(Refusal::Deferred(_))));
        let caller = Surroundings { rooted: false, ..rooted() };
        assert_eq!(plan(&to("v.test/u"), &caller, &mut Fixed).unwrap().identity, None);
    }
}
