//! Who a client is, by the word of one that may give it (XCLIENT, XFORWARD), and what clients ask about
//! names and queues (VRFY, EXPN, ETRN): the conversations with lookup, and the words for its answers.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use postern_address::Mailbox;
use postern_daemon::Host;
use postern_event::Event;
use postern_ipc::smtpd_lookup::{Known, Named, Turned};
use postern_ipc::smtpd_verify::{ClientFacts, ClientName};
use postern_smtp::server::{Answer, Identity};
use postern_smtp::xclient::{Forwarded, Told, XCLIENT_KEYWORDS, XFORWARD_KEYWORDS, Xclient, Xforward};
use postern_smtp::{EnhancedCode, Reply};
use postern_spool::{Envelope, Origin};

use crate::connection::Connection;
use crate::worker::Worker;

/// Who the address of the client is not known of: in no network that could be configured.
const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// What XFORWARD said, and for which transaction.
#[derive(Debug)]
pub(crate) struct Forwarding {
    turn: u32,
    said: Forwarded,
}

/// What EHLO offers to a client for what it is trusted with.
pub(crate) fn offers(address: IpAddr, xclient: &[IpNet], xforward: &[IpNet]) -> &'static [&'static str] {
    let among = |networks: &[IpNet]| networks.iter().any(|network| network.contains(&address));
    match (among(xclient), among(xforward)) {
        (false, false) => &[],
        (true, false) => &[XCLIENT_KEYWORDS],
        (false, true) => &[XFORWARD_KEYWORDS],
        (true, true) => &[XCLIENT_KEYWORDS, XFORWARD_KEYWORDS],
    }
}

impl Worker {
    /// XCLIENT: from here on the session is another client's. HELO and PROTO are read and then superseded by
    /// the greeting that has to follow; where the client connected to matters to nothing here.
    pub(crate) fn xclient(&mut self, host: &mut Host, connection: &mut Connection, text: &str) -> Answer {
        let said = match Xclient::parse(text) {
            Ok(said) => said,
            Err(mistake) => return Answer::Refused(mistake.reply()),
        };
        let teller = connection.address;
        if let Some(address) = said.address {
            connection.address = address.known().unwrap_or(NOBODY);
            (connection.name, connection.name_told) = (None, false);
        }
        if let Some(name) = said.name {
            (connection.name, connection.name_told) = (name.known(), true);
        }
        if let Some(login) = said.login {
            connection.session.set_identity(match login {
                Told::Known(name) => Identity::User(name.into()),
                Told::Unavailable | Told::Temporary => Identity::Anonymous,
            });
        }
        connection.forwarding = None;
        connection.client_replaced();
        // The one before is gone: what it was allowed, what lists said of it, its name.
        self.give_back(host, connection);
        connection.changes = connection.changes.wrapping_add(1);
        connection.guard = self.abuse.guard_after(&connection.guard, connection.address);
        connection.session.set_strict(!connection.guard.is_exempt());
        self.introduce(host, connection, connection.listener);
        self.guard_user(host, connection);
        let client = connection.client();
        host.emit(&Event::Connect { session: connection.id, client, proxy: Some(teller) });
        Answer::Accepted
    }

    /// XFORWARD: for the record of the next transaction alone.
    pub(crate) fn xforward(&mut self, connection: &mut Connection, text: &str) -> Answer {
        let said = match Xforward::parse(text) {
            Ok(said) => said,
            Err(mistake) => return Answer::Refused(mistake.reply()),
        };
        let turn = connection.session.turns();
        let known = connection.forwarding.take().filter(|forwarding| forwarding.turn == turn);
        let mut forwarding =
            known.unwrap_or_else(|| Box::new(Forwarding { turn, said: Forwarded::default() }));
        forwarding.said.take(said);
        connection.forwarding = Some(forwarding);
        Answer::Accepted
    }
}

impl Connection {
    /// What was forwarded about the transaction that ends now, if anything was.
    pub(crate) fn take_forwarded(&mut self) -> Option<Forwarded> {
        let turn = self.session.turns();
        self.forwarding
            .take()
            .filter(|forwarding| forwarding.turn + 1 == turn)
            .map(|forwarding| forwarding.said)
    }

    /// verify says who the client is; what XCLIENT told of its name stands.
    pub(crate) fn learn_name(&mut self, facts: &mut ClientFacts) {
        if self.name_told {
            facts.name = self.name.clone().map_or(ClientName::Unknown, ClientName::Confirmed);
        } else if let ClientName::Confirmed(name) = &facts.name {
            self.name = Some(name.clone());
        }
    }

    /// VRFY's or EXPN's question.
    pub(crate) fn named(&self, name: String) -> Named {
        let authenticated = matches!(self.session.identity(), Identity::User(_));
        Named { client: self.address, authenticated, name }
    }
}

/// A message's origin is where it was forwarded from. The trace line names who handed it to us: the host
/// before has written its own (RFC 5321 §4.4).
pub(crate) fn originate(envelope: &mut Envelope, forwarded: &Forwarded) {
    if let (Some(address), Origin::Smtp { .. }) = (forwarded.address, &envelope.origin) {
        envelope.origin = Origin::Smtp {
            address,
            name: forwarded.name.clone(),
            helo: forwarded.helo.clone().unwrap_or_default(),
        };
    }
}

/// VRFY: RFC 5321 §3.5.
pub(crate) fn verified(known: Known) -> Answer {
    Answer::Say(match known {
        Known::Mailbox(mailbox) => Reply::coded(250, (2, 1, 5), format!("<{mailbox}>")),
        Known::Forwards(mailbox) => {
            Reply::coded(251, (2, 1, 5), format!("User not local; will forward to <{mailbox}>"))
        }
        Known::Ambiguous(mailboxes) => {
            let mut lines = vec!["User ambiguous, it may be".to_owned()];
            lines.extend(mailboxes.iter().map(|mailbox| format!("<{mailbox}>")));
            Reply { code: 553, enhanced: Some(EnhancedCode::new(5, 1, 4)), lines }
        }
        Known::Elsewhere | Known::Members(_) | Known::TooMany(_) => {
            Reply::coded(252, (2, 0, 0), "Cannot VRFY, but will take mail for it and try to deliver")
        }
        other => unknown("VRFY", &other),
    })
}

/// EXPN: RFC 5321 §3.5.
pub(crate) fn expanded(known: Known) -> Answer {
    Answer::Say(match known {
        Known::Members(members) => {
            let lines = members.iter().map(|member: &Mailbox| format!("<{member}>")).collect();
            Reply { code: 250, enhanced: Some(EnhancedCode::new(2, 1, 5)), lines }
        }
        Known::TooMany(count) => Reply::coded(252, (2, 0, 0), format!("Cannot EXPN, it has {count} members")),
        Known::Ambiguous(mailboxes) => verified_list(mailboxes),
        other => unknown("EXPN", &other),
    })
}

fn verified_list(mailboxes: Vec<Mailbox>) -> Reply {
    match verified(Known::Ambiguous(mailboxes)) {
        Answer::Say(reply) => reply,
        _ => unknown("EXPN", &Known::Untold),
    }
}

/// What is the same for both. RFC 5321 §7.3: who is not to know hears 252, which says neither yes nor no.
fn unknown(verb: &str, known: &Known) -> Reply {
    match known {
        Known::Unknown => Reply::coded(550, (5, 1, 1), "No such user here"),
        Known::Malformed => Reply::coded(501, (5, 1, 3), format!("Syntax: {verb} name or address")),
        Known::Unavailable(_) => crate::refusal::lookup_failure(),
        _ => Reply::coded(252, (2, 0, 0), format!("Cannot {verb}; send mail and see")),
    }
}

/// ETRN: the replies of RFC 1985 §5.3.
pub(crate) fn turned(turned: Turned) -> Answer {
    Answer::Say(match turned {
        Turned::Started => Reply::coded(250, (2, 0, 0), "Ok, queuing started"),
        Turned::TooOften => Reply::coded(458, (4, 7, 0), "Unable to queue messages: asked for a moment ago"),
        Turned::Unavailable => Reply::coded(458, (4, 3, 0), "Unable to queue messages now, try again"),
        Turned::NoSuchQueue => {
            Reply::coded(458, (4, 5, 0), "Unable to queue messages: no queue of that name")
        }
        // 459 is a refusal for good in the clothes of a temporary one: that is how RFC 1985 has it.
        Turned::NotOurs => Reply::coded(459, (4, 7, 1), "Node not allowed: no mail is queued for it here"),
        Turned::Malformed => Reply::coded(501, (5, 5, 4), "Syntax: ETRN domain, or @domain"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(answer: Answer) -> String {
        let Answer::Say(reply) = answer else { panic!("{answer:?}") };
        reply.to_string()
    }

    #[test]
    fn what_a_name_is() {
        let mailbox = |text| Mailbox::parse(text).unwrap();
        let both = vec![mailbox("a@x.test"), mailbox("a@y.test")];
        for (known, vrfy, expn) in [
            (Known::Untold, 252, 252),
            (Known::Elsewhere, 252, 252),
            (Known::Mailbox(mailbox("a@x.test")), 250, 252),
            (Known::Forwards(mailbox("a@x.test")), 251, 252),
            (Known::Members(both.clone()), 252, 250),
            (Known::TooMany(1000), 252, 252),
            (Known::Ambiguous(both.clone()), 553, 553),
            (Known::Unknown, 550, 550),
            (Known::Malformed, 501, 501),
            (Known::Unavailable("x".into()), 451, 451),
        ] {
            assert!(said(verified(known.clone())).starts_with(&vrfy.to_string()), "{known:?}");
            assert!(said(expanded(known.clone())).starts_with(&expn.to_string()), "{known:?}");
        }
        assert_eq!(said(expanded(Known::Members(both))), "250 2.1.5 <a@x.test> <a@y.test>");
        // Nothing of a table's trouble is told.
        assert!(!said(verified(Known::Unavailable("secret".into()))).contains("secret"));
    }

    #[test]
    fn trust_is_by_network() {
        let networks = |text: &str| vec![text.parse::<IpNet>().unwrap()];
        let (one, two) = (networks("192.0.2.1/32"), networks("192.0.2.0/24"));
        let offered = |address: &str| offers(address.parse().unwrap(), &one, &two).len();
        assert_eq!((offered("192.0.2.1"), offered("192.0.2.2"), offered("192.0.3.1")), (2, 1, 0));
        assert_eq!(offered("0.0.0.0"), 0);
    }
}
