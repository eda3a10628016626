//! smtpd asks verify who a client is, how much it may do, what lists say of it, and whether it has to come
//! back. (What its content is worth comes to this conversation later.)

use std::net::IpAddr;

use postern_address::{Domain, Mailbox, ReversePath};
use postern_config::PolicyServer;
use serde::{Deserialize, Serialize};

use crate::link::RequestId;

/// smtpd asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Comes back in the answer. That of [`Ask::Begin`] names the session until [`Ask::End`].
    pub id: RequestId,
    /// What is asked.
    pub ask: Ask,
}

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// A client connected. If it is counted, [`Say::Lease`] comes at once; [`Say::Client`] comes when name
    /// and lists are known, or the patience is over.
    Begin {
        /// Who.
        client: IpAddr,
        /// The place of its listener in the configuration.
        listener: u16,
        /// The limits are for it: it is to be counted, and [`Ask::End`] follows.
        counted: bool,
        /// The lists are to be asked about it.
        listed: bool,
    },
    /// A counted session has used up some of its lease: [`Say::Lease`].
    More {
        /// The session.
        session: RequestId,
        /// Of what it needs more.
        of: Measure,
    },
    /// A counted session has a user from now on, whose limits are for it too: [`Say::Lease`] instead of
    /// what it had.
    User {
        /// The session.
        session: RequestId,
        /// Its name.
        user: String,
        /// What it had left of its lease.
        left: Lease,
    },
    /// A password was wrong: counted for the session's client, and for the user it was tried for. Not
    /// answered: the next [`Ask::Begin`] and [`Ask::User`] are.
    AuthFailed {
        /// The session.
        session: RequestId,
        /// Who the client said it was.
        user: String,
    },
    /// A counted session has ended. Not answered.
    End {
        /// The session.
        session: RequestId,
        /// What it had left of its lease.
        left: Lease,
    },
    /// May this come now, or later? [`Say::Greylist`].
    Greylist {
        /// From where.
        client: IpAddr,
        /// From whom.
        from: ReversePath,
        /// To whom.
        to: Mailbox,
    },
    /// What does a policy server say? [`Say::Delegated`].
    Delegate {
        /// One that the configuration names in a rule; others are not asked.
        server: PolicyServer,
        /// What it is told (SMTPD_POLICY_README), in order.
        attributes: Vec<(String, String)>,
    },
}

/// verify answers, in any order but where [`Ask`] says else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Of the question.
    pub id: RequestId,
    /// What is answered.
    pub say: Say,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Say {
    /// So much may be done before more is to be asked for, or why no more.
    Lease(Result<Lease, Exceeded>),
    /// Who the client is.
    Client(ClientFacts),
    /// Whether it may come now.
    Greylist(Greylisted),
    /// The policy server's action; or why there is none.
    Delegated(Result<String, String>),
}

/// What is known about a client, for rules and refusals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientFacts {
    /// Its name.
    pub name: ClientName,
    /// The sum of the weights of the lists that have it: those of `deny` lists, less those of `allow` lists.
    pub list_score: i32,
    /// The lists that have it, in the configuration's order.
    pub lists: Vec<ListHit>,
}

/// A list that has the client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListHit {
    /// The list's name.
    pub list: Domain,
    /// What it adds to the score; negative for an `allow` list.
    pub weight: i32,
    /// Its TXT record on the client, without control characters, as far as it is known.
    pub text: Option<String>,
}

/// A client's reverse name, confirmed forward (FCrDNS).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientName {
    /// A PTR record names it, and that name has the client's address.
    Confirmed(Domain),
    /// No name, or one that does not lead back.
    Unknown,
    /// The DNS did not answer in time.
    Unavailable,
}

/// What a session may do before it has to ask again. [`Lease::FREE`] of something: as much as it likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Messages.
    pub messages: u32,
    /// Recipients, accepted or not.
    pub recipients: u32,
    /// Errors: commands refused for good.
    pub errors: u32,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Measure {
    /// Sessions at once.
    Sessions,
    /// Connections a minute.
    Connections,
    /// Messages a minute.
    Messages,
    /// Recipients a minute.
    Recipients,
    /// Errors a minute.
    Errors,
    /// Failed AUTHs a minute.
    AuthFailures,
}

/// Whose limit it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Scope {
    /// The client's network: its address, or its /64.
    Client,
    /// The user who logged in.
    User,
    /// The listener.
    Listener,
}

/// A limit that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exceeded {
    /// Of what.
    pub measure: Measure,
    /// Whose.
    pub scope: Scope,
    /// How many there are, or would be.
    pub count: u32,
    /// How many there may be.
    pub limit: u32,
}

/// What the greylist says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Greylisted {
    /// Known, or not greylisted at all: come in.
    Pass,
    /// Came back after so many seconds: come in.
    Returned(u32),
    /// Come back after so many seconds.
    Later(u32),
}

impl ClientFacts {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self { name: ClientName::Unavailable, list_score: 0, lists: Vec::new() };
}

impl Lease {
    /// More than anybody does.
    pub const FREE: u32 = u32::MAX;

    /// As much of everything as one likes.
    pub const UNLIMITED: Self = Self { messages: Self::FREE, recipients: Self::FREE, errors: Self::FREE };

    /// Nothing at all.
    pub const NONE: Self = Self { messages: 0, recipients: 0, errors: 0 };

    /// Uses one of what is measured; false when none is left. What a lease does not measure is free.
    pub fn take(&mut self, measure: Measure) -> bool {
        match self.of_mut(measure) {
            None | Some(&mut Self::FREE) => true,
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }

    /// What is left of something; none where a lease does not measure it.
    pub fn of_mut(&mut self, measure: Measure) -> Option<&mut u32> {
        match measure {
            Measure::Messages => Some(&mut self.messages),
            Measure::Recipients => Some(&mut self.recipients),
            Measure::Errors => Some(&mut self.errors),
            Measure::Sessions | Measure::Connections | Measure::AuthFailures => None,
        }
    }

    /// Adds what was granted: nothing is less free than before.
    pub fn add(&mut self, more: Self) {
        self.messages = self.messages.saturating_add(more.messages);
        self.recipients = self.recipients.saturating_add(more.recipients);
        self.errors = self.errors.saturating_add(more.errors);
    }
}

impl Measure {
    /// As the log says it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sessions => "Connection concurrency",
            Self::Connections => "Connection rate",
            Self::Messages => "Message delivery request rate",
            Self::Recipients => "Recipient address rate",
            Self::Errors => "Error rate",
            Self::AuthFailures => "AUTH failure rate",
        }
    }
}

impl Scope {
    /// As the log says it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::User => "user",
            Self::Listener => "listener",
        }
    }
}
