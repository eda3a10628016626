//! Who runs us, with which privilege and which configuration.

use std::path::PathBuf;

use nix::unistd::{Uid, User, getresgid, getresuid, setresgid};
use postern_address::{Domain, Mailbox};
use postern_config::Config;

use crate::arguments::Arguments;
use crate::failure::{Failure, status};

const CONFIGURATION: &str = "/etc/postern/postern.toml";

/// The user who runs the command.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// By the kernel's word: the real user.
    pub(crate) uid: u32,
    /// The login name, or the number of a user without one.
    pub(crate) login: String,
    /// The name of the person.
    pub(crate) full_name: Option<String>,
}

impl Caller {
    pub(crate) fn get() -> Self {
        let uid = Uid::current();
        let user = User::from_uid(uid).ok().flatten();
        let login = user.as_ref().map_or_else(|| uid.to_string(), |user| user.name.clone());
        let full_name = user.and_then(|user| {
            let gecos = user.gecos.to_string_lossy().into_owned();
            person(&gecos, &user.name)
        });
        Self { uid: uid.as_raw(), login, full_name }
    }

    /// The caller's own address.
    pub(crate) fn address(&self, home: &Domain) -> Result<Mailbox, Failure> {
        Mailbox::new(&self.login, home)
            .map_err(|error| Failure::new(status::OS, format!("the login name {}: {error}", self.login)))
    }
}

/// The first field of passwd's comment; `&` stands for the login name with a capital.
fn person(gecos: &str, login: &str) -> Option<String> {
    let first = gecos.split(',').next().unwrap_or_default().trim();
    let mut letters = login.chars();
    let capital = letters.next().map(|c| c.to_ascii_uppercase().to_string()).unwrap_or_default();
    let name = first.replace('&', &format!("{capital}{}", letters.as_str()));
    (!name.is_empty()).then_some(name)
}

/// Reads the configuration. Where a privilege came with the program, the environment is not heeded, and
/// `-C` costs the privilege: whoever names the spool must be able to write there himself.
pub(crate) fn configuration(arguments: &Arguments) -> Result<(PathBuf, Config), Failure> {
    let path = match (&arguments.config, is_privileged()) {
        (Some(path), _) => {
            drop_privilege()?;
            PathBuf::from(path)
        }
        (None, true) => CONFIGURATION.into(),
        (None, false) => {
            std::env::var_os("POSTERN_CONFIG").map_or_else(|| CONFIGURATION.into(), PathBuf::from)
        }
    };
    let config = postern_config::load(&path)?;
    Ok((path, config))
}

/// The program runs with more than its caller has.
fn is_privileged() -> bool {
    let users = getresuid().is_ok_and(|ids| ids.real == ids.effective && ids.real == ids.saved);
    let groups = getresgid().is_ok_and(|ids| ids.real == ids.effective && ids.real == ids.saved);
    !(users && groups)
}

/// Back to the caller's own group, for good.
pub(crate) fn drop_privilege() -> Result<(), Failure> {
    let group = nix::unistd::getgid();
    setresgid(group, group, group)
        .map_err(|error| Failure::new(status::OS, format!("cannot give the group's privilege up: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn persons() {
        assert_eq!(person("Ann Smith,Room 1,,", "ann").as_deref(), Some("Ann Smith"));
        assert_eq!(person("& Smith", "ann").as_deref(), Some("Ann Smith"));
        assert_eq!(person(",,,", "ann"), None);
        assert_eq!(person("&", ""), None);
    }
}
