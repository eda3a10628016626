//! The accounts of this host, by the name service.

use std::collections::HashMap;
use std::ffi::CString;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::unistd::{Gid, Group, User, getgrouplist};

use crate::plan::{Account, Accounts};

/// How long an answer is used again: a burst of mail for one user is one question. What changes in an
/// account meanwhile is the home or the groups, and mail follows a few seconds later.
const KEPT: Duration = Duration::from_secs(10);

/// Most answers kept.
const KEPT_MAX: usize = 1000;

/// Asks the name service, and remembers its answers for a moment. That there is no such user is not
/// remembered: mail must not bounce for an account that was just made.
#[derive(Debug, Default)]
pub struct HostAccounts {
    known: HashMap<String, (Instant, Account)>,
}

impl Accounts for HostAccounts {
    fn find(&mut self, name: &str) -> Result<Option<Account>, String> {
        if let Some((asked, account)) = self.known.get(name)
            && asked.elapsed() < KEPT
        {
            return Ok(Some(account.clone()));
        }
        let Some(account) = ask(name)? else { return Ok(None) };
        if self.known.len() >= KEPT_MAX {
            self.known.clear();
        }
        self.known.insert(name.to_owned(), (Instant::now(), account.clone()));
        Ok(Some(account))
    }

    fn mail_group_of(&self, directory: &Path) -> Option<u32> {
        let stat = nix::sys::stat::stat(directory).ok()?;
        let mail = Group::from_name("mail").ok()??;
        let writable = stat.st_mode & 0o020 != 0;
        (writable && stat.st_gid == mail.gid.as_raw()).then_some(stat.st_gid)
    }
}

fn ask(name: &str) -> Result<Option<Account>, String> {
    let Some(user) = User::from_name(name).map_err(|e| e.to_string())? else { return Ok(None) };
    let name = CString::new(user.name).map_err(|e| e.to_string())?;
    let groups = getgrouplist(&name, user.gid).map_err(|e| e.to_string())?;
    Ok(Some(Account {
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
        groups: groups.into_iter().map(Gid::as_raw).collect(),
        home: user.dir,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn found_kept_and_not_found() {
        let mut accounts = HostAccounts::default();
        let root = accounts.find("root").unwrap().unwrap();
        assert_eq!((root.uid, accounts.known.len()), (0, 1));
        assert_eq!(accounts.find("root").unwrap(), Some(root));
        assert_eq!(accounts.find("no-such-user").unwrap(), None);
        assert_eq!(accounts.known.len(), 1);
    }
}
