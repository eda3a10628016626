//! What rules may look at.

use std::net::{IpAddr, SocketAddr};

use postern_address::{Mailbox, ReversePath};
use postern_config::{Service, Stage};
use postern_ipc::smtpd_verify::{ClientFacts, ClientName};

/// What is known about a client and its mail. What a stage does not know yet is empty: the configuration
/// has no rule that looks at it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    /// Its address.
    pub(crate) address: IpAddr,
    /// Of the listener.
    pub(crate) service: Service,
    /// As in the configuration.
    pub(crate) listener: SocketAddr,
    /// What verify says of it; none when it has not said it yet.
    pub(crate) client: Option<&'a ClientFacts>,
    /// What it calls itself.
    pub(crate) helo: &'a str,
    /// As whom it logged in.
    pub(crate) user: Option<&'a str>,
    /// The reverse-path.
    pub(crate) from: Option<&'a ReversePath>,
    /// The recipient; at the stage `data`, all of them.
    pub(crate) to: &'a [Mailbox],
    /// The message, at least its header section; none when there is none.
    pub(crate) message: Option<&'a [u8]>,
}

impl Facts<'_> {
    /// The client's confirmed name.
    pub(crate) fn name(&self) -> Option<&str> {
        match &self.client?.name {
            ClientName::Confirmed(name) => Some(name.as_str()),
            ClientName::Unknown | ClientName::Unavailable => None,
        }
    }

    /// What a reply to an access(5) action is about, and in which words Postfix says it.
    pub(crate) fn subject(&self, stage: Stage) -> (String, &'static str) {
        let client = || format!("{}[{}]", self.name().unwrap_or("unknown"), self.address);
        match stage {
            Stage::Client => (client(), "Client host"),
            Stage::Helo => (self.helo.to_owned(), "Helo command"),
            Stage::From => {
                (self.from.map_or_else(String::new, |from| from.as_str().to_owned()), "Sender address")
            }
            Stage::Rcpt => {
                (self.to.first().map_or_else(client, |to| to.as_str().to_owned()), "Recipient address")
            }
            Stage::Data => ("END-OF-MESSAGE".to_owned(), "End-of-data command"),
        }
    }
}
