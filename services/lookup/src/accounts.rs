//! System users, as the name service knows them, remembered for a short while.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use nix::unistd::{Uid, User};

/// How long a user that exists is believed to.
const POSITIVE: Duration = Duration::from_secs(30);

/// How long a name is believed to be nobody's: shorter, since somebody may be waiting for a new account.
const NEGATIVE: Duration = Duration::from_secs(10);

/// Most names remembered: strangers choose them.
const MOST: usize = 10_000;

/// A system user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The login name as the name service writes it.
    pub name: String,
    /// Its number.
    pub uid: u32,
}

/// Who has an account here.
pub trait Accounts {
    /// The user of a login name; none when there is none; why when the name service does not answer.
    fn find(&mut self, name: &str) -> Result<Option<Account>, String>;
}

/// The name service (nsswitch.conf(5)), with a memory.
#[derive(Debug, Default)]
pub struct System {
    known: HashMap<String, (Instant, Option<Account>)>,
    now: Option<Instant>,
}

impl System {
    /// Sets the time that the memory goes by.
    pub fn at(&mut self, now: Instant) -> &mut Self {
        self.now = Some(now);
        self
    }

    /// Forgets everything.
    pub fn forget(&mut self) {
        self.known.clear();
    }

    /// The user that runs this program; without a name when the name service has none, as in a container.
    pub fn caller() -> Account {
        let uid = Uid::current();
        let nameless = Account { name: String::new(), uid: uid.as_raw() };
        User::from_uid(uid).ok().flatten().map_or(nameless, account)
    }

    fn remembered(&self, name: &str, now: Instant) -> Option<&Option<Account>> {
        let (asked, found) = self.known.get(name)?;
        let patience = if found.is_some() { POSITIVE } else { NEGATIVE };
        (now.saturating_duration_since(*asked) < patience).then_some(found)
    }
}

impl Accounts for System {
    fn find(&mut self, name: &str) -> Result<Option<Account>, String> {
        if !is_login_name(name) {
            return Ok(None);
        }
        let now = self.now.unwrap_or_else(Instant::now);
        if let Some(found) = self.remembered(name, now) {
            return Ok(found.clone());
        }
        let found = User::from_name(name).map_err(|e| format!("the name service, asked for a user: {e}"))?;
        let found = found.map(account);
        if self.known.len() >= MOST {
            self.known.clear();
        }
        self.known.insert(name.to_owned(), (now, found.clone()));
        Ok(found)
    }
}

fn account(user: User) -> Account {
    Account { name: user.name, uid: user.uid.as_raw() }
}

/// Letters, digits, `.`, `_`, `-`, not beginning with `-` or `.`: what useradd(8) makes, and nothing that
/// could be more than a name in a path.
pub fn is_login_name(name: &str) -> bool {
    let clean = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    !name.is_empty() && name.len() <= 64 && !name.starts_with(['-', '.']) && name.chars().all(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_service_is_asked_and_remembered() {
        let (mut system, start) = (System::default(), Instant::now());
        let root = Account { name: "root".into(), uid: 0 };
        assert_eq!(system.at(start).find("root"), Ok(Some(root.clone())));
        assert_eq!(system.at(start).find("no-such-user-here"), Ok(None));
        assert_eq!(system.remembered("root", start + Duration::from_secs(29)), Some(&Some(root)));
        assert_eq!(system.remembered("root", start + Duration::from_secs(30)), None);
        assert_eq!(system.remembered("no-such-user-here", start + Duration::from_secs(9)), Some(&None));
        assert_eq!(system.remembered("no-such-user-here", start + Duration::from_secs(10)), None);
    }

    #[test]
    fn names_that_are_never_asked_for() {
        for name in ["", "a/b", "..", ".x", "-x", "a b", "a\0", "ä", "a:b", &"x".repeat(65)] {
            assert!(!is_login_name(name), "{name:?}");
        }
        assert!(is_login_name("Ann.B_c-9"));
    }
}
