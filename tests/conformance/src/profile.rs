//! What the suite is told about a server: a small TOML file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::script::Want;
use crate::text::base64;

/// The profile of a server.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// What reports call the server.
    #[serde(default = "unnamed")]
    pub name: String,
    /// Our name in EHLO.
    #[serde(default = "client")]
    pub client: String,
    /// The sender of every message.
    #[serde(default = "sender")]
    pub sender: String,
    /// A mailbox that takes mail from us. Its local part should be of letters and digits only.
    pub recipient: String,
    /// Another one.
    pub second: Option<String>,
    /// A mailbox of the server's own domains that does not exist, refused at RCPT.
    pub unknown: Option<String>,
    /// A mailbox elsewhere, for which this server takes no mail from us.
    pub relay: Option<String>,
    /// A user for AUTH, with `password`.
    pub user: Option<String>,
    /// His password.
    pub password: Option<String>,
    /// How long, in seconds, a reply or a delivery may take.
    #[serde(default = "patience")]
    pub patience: u64,
    /// How to see what was delivered.
    pub delivered: Option<Delivered>,
}

/// How to see what was delivered.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delivered {
    /// Directories in which each message is a file, searched to the bottom: Maildirs, for example. What is
    /// called `tmp` is passed over.
    #[serde(default)]
    pub directories: Vec<PathBuf>,
    /// Or a command that prints the delivered message with the line `X-Conformance: MARK`, and nothing while
    /// there is none; MARK is its last argument.
    #[serde(default)]
    pub command: Vec<String>,
    /// Lines of a delivered message end with `lf` or `crlf`.
    #[serde(default)]
    pub lines: Lines,
}

/// How lines of delivered messages end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lines {
    /// LF.
    #[default]
    Lf,
    /// CRLF.
    Crlf,
}

impl Profile {
    /// Reads a profile.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        toml::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))
    }

    /// How long a reply or a delivery may take.
    pub fn patience(&self) -> Duration {
        Duration::from_secs(self.patience)
    }

    /// Why a test that wants this cannot be run; none if it can.
    pub fn lacks(&self, want: Want) -> Option<&'static str> {
        let (there, why) = match want {
            Want::Delivered => (self.delivered.is_some(), "the profile has no [delivered]"),
            Want::Unknown => (self.unknown.is_some(), "the profile has no `unknown`"),
            Want::Relay => (self.relay.is_some(), "the profile has no `relay`"),
            Want::Second => (self.second.is_some(), "the profile has no `second`"),
            Want::Password => {
                (self.user.is_some() && self.password.is_some(), "the profile has no `user` and `password`")
            }
        };
        (!there).then_some(why)
    }

    /// The variables that scripts may use.
    pub fn variables(&self) -> BTreeMap<String, Vec<u8>> {
        let (local, domain) = self.recipient.rsplit_once('@').unwrap_or((&self.recipient, "invalid"));
        let mut all: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut set = |name: &str, value: &str| drop(all.insert(name.to_owned(), value.as_bytes().to_vec()));
        set("client", &self.client);
        set("sender", &self.sender);
        set("recipient", &self.recipient);
        set("local", local);
        set("domain", domain);
        set("LOCAL", &local.to_ascii_uppercase());
        set("DOMAIN", &domain.to_ascii_uppercase());
        for (name, value) in [("second", &self.second), ("unknown", &self.unknown), ("relay", &self.relay)] {
            if let Some(value) = value {
                set(name, value);
            }
        }
        if let (Some(user), Some(password)) = (&self.user, &self.password) {
            set("auth-plain", &base64(format!("\0{user}\0{password}").as_bytes()));
            set("auth-wrong", &base64(format!("\0{user}\0{password}-wrong").as_bytes()));
            set("auth-user", &base64(user.as_bytes()));
            set("auth-password", &base64(password.as_bytes()));
        }
        all
    }
}

fn unnamed() -> String {
    "server".into()
}

fn client() -> String {
    "client.example".into()
}

fn sender() -> String {
    "sender@client.example".into()
}

fn patience() -> u64 {
    60
}
