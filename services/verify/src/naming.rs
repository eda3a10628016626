//! Who is this client? Its reverse name, confirmed forward (RFC 8601 §2.7.3 calls it iprev). Pure: questions
//! and answers in, questions and answers out, time is an argument.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use postern_address::Domain;
use postern_ipc::RequestId;
use postern_ipc::resolve::{DnsError, Query, RecordData, Records};
use postern_ipc::smtpd_verify::ClientName;

use crate::inquiries::Inquiries;

/// How long a client may wait for its name. A slow reverse zone must not hold up its mail.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Names of one address that are tried. Honest hosts have one or two.
const NAMES_MOST: usize = 5;

/// Clients being named at once.
pub const CLIENTS_MOST: usize = 4_000;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<A> {
    /// Ask the resolver. If that cannot be said, [`Naming::resolver_lost`].
    Ask(RequestId, Query),
    /// This asker's client has this name.
    Answer(A, ClientName),
}

/// Every client being named; `A` names who asked.
#[derive(Debug)]
pub struct Naming<A> {
    inquiries: Inquiries<Client<A>, Subject>,
}

#[derive(Debug)]
struct Client<A> {
    asker: A,
    address: IpAddr,
    /// One of the answers was a failure, so "unknown" would be a guess.
    failed: bool,
}

/// What a question to the resolver is about.
#[derive(Debug)]
enum Subject {
    /// The names of the client's address.
    Names,
    /// The addresses of this name.
    Addresses(Domain),
}

impl<A> Naming<A> {
    /// Nobody to be named.
    pub fn new() -> Self {
        Self { inquiries: Inquiries::new(0) }
    }

    /// `asker` wants the name of `address`.
    pub fn begin(&mut self, asker: A, address: IpAddr, now: Instant) -> Vec<Action<A>> {
        // A socket that takes both families shows an IPv4 client as ::ffff:a.b.c.d.
        let address = address.to_canonical();
        if address.is_loopback() || address.is_unspecified() {
            return vec![Action::Answer(asker, ClientName::Unknown)];
        }
        if self.inquiries.len() >= CLIENTS_MOST {
            return vec![Action::Answer(asker, ClientName::Unavailable)];
        }
        let id = self.inquiries.begin(Client { asker, address, failed: false }, now + PATIENCE);
        let question = self.inquiries.ask(id, Subject::Names);
        question.into_iter().map(|question| Action::Ask(question, Query::Ptr(address))).collect()
    }

    /// The resolver answered. An answer that nobody waits for any more does nothing.
    pub fn heard(&mut self, question: RequestId, result: Result<Records, DnsError>) -> Vec<Action<A>> {
        let Some((id, subject)) = self.inquiries.answered(question) else { return Vec::new() };
        let Some(client) = self.inquiries.get_mut(id) else { return Vec::new() };
        let data = match result {
            Ok(records) => Some(records.data),
            Err(DnsError::NoSuchName | DnsError::NoRecords) => None,
            Err(DnsError::Temporary(_)) => {
                client.failed = true;
                None
            }
        };
        let address = client.address;
        match (subject, data) {
            (Subject::Names, Some(RecordData::Ptr(mut names))) => {
                names.dedup();
                names.truncate(NAMES_MOST);
                let asked: Vec<_> = names.into_iter().filter_map(|name| self.confirm(id, name)).collect();
                if asked.is_empty() { self.finish(id, None) } else { asked }
            }
            (Subject::Addresses(name), Some(RecordData::Addresses(all))) if all.contains(&address) => {
                self.finish(id, Some(name))
            }
            _ if self.inquiries.is_quiet(id) => self.finish(id, None),
            _ => Vec::new(),
        }
    }

    /// Time passed: who waited too long is answered without.
    pub fn pass(&mut self, now: Instant) -> Vec<Action<A>> {
        let mut actions = Vec::new();
        while let Some(id) = self.inquiries.overdue(now) {
            if let Some(client) = self.inquiries.get_mut(id) {
                client.failed = true;
            }
            actions.extend(self.finish(id, None));
        }
        actions
    }

    /// When [`Naming::pass`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.inquiries.deadline()
    }

    /// The resolver is gone, and every question with it.
    pub fn resolver_lost(&mut self) -> Vec<Action<A>> {
        let clients = self.inquiries.end_all().into_iter();
        clients.map(|client| Action::Answer(client.asker, ClientName::Unavailable)).collect()
    }

    /// Askers are gone: nobody waits for these names.
    pub fn forget(&mut self, gone: impl Fn(&A) -> bool) {
        self.inquiries.forget(|client| gone(&client.asker));
    }

    /// Clients being named.
    pub fn len(&self) -> usize {
        self.inquiries.len()
    }

    /// Nobody is being named.
    pub fn is_empty(&self) -> bool {
        self.inquiries.is_empty()
    }

    fn confirm(&mut self, id: u64, name: Domain) -> Option<Action<A>> {
        let question = self.inquiries.ask(id, Subject::Addresses(name.clone()))?;
        Some(Action::Ask(question, Query::Addresses(name)))
    }

    fn finish(&mut self, id: u64, name: Option<Domain>) -> Vec<Action<A>> {
        let Some(client) = self.inquiries.end(id) else { return Vec::new() };
        let name = match name {
            Some(name) => ClientName::Confirmed(name),
            None if client.failed => ClientName::Unavailable,
            None => ClientName::Unknown,
        };
        vec![Action::Answer(client.asker, name)]
    }
}

impl<A> Default for Naming<A> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLIENT: &str = "192.0.2.1";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn name(text: &str) -> Domain {
        Domain::parse(text).unwrap()
    }

    fn found(data: RecordData) -> Result<Records, DnsError> {
        Ok(Records { data, secure: false, ttl: 60 })
    }

    fn names(all: &[&str]) -> Result<Records, DnsError> {
        found(RecordData::Ptr(all.iter().map(|text| name(text)).collect()))
    }

    fn addresses(all: &[&str]) -> Result<Records, DnsError> {
        found(RecordData::Addresses(all.iter().map(|text| ip(text)).collect()))
    }

    fn failure() -> Result<Records, DnsError> {
        Err(DnsError::Temporary("SERVFAIL".into()))
    }

    fn confirmed(text: &str) -> Vec<Action<u8>> {
        vec![Action::Answer(7, ClientName::Confirmed(name(text)))]
    }

    /// A client whose PTR question was answered; the ids of the address questions that follow.
    fn named(naming: &mut Naming<u8>, all: &[&str]) -> Vec<RequestId> {
        let begun = naming.begin(7, ip(CLIENT), Instant::now());
        let [Action::Ask(id, Query::Ptr(_))] = begun[..] else { panic!("{begun:?}") };
        let asked = naming.heard(id, names(all));
        asked
            .iter()
            .map(|action| match action {
                Action::Ask(id, Query::Addresses(_)) => *id,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn confirmed_by_any_of_its_names() {
        let mut naming = Naming::new();
        let asked = named(&mut naming, &["a.test", "b.test", "c.test"]);
        assert_eq!(naming.heard(asked[0], addresses(&["192.0.2.9"])), []);
        assert_eq!(naming.heard(asked[1], addresses(&["2001:db8::1", CLIENT])), confirmed("b.test"));
        assert_eq!(naming.heard(asked[2], addresses(&[CLIENT])), []);
        assert!(naming.is_empty() && naming.inquiries.questions.is_empty());
    }

    #[test]
    fn unknown_and_unavailable() {
        let unknown = vec![Action::Answer(7, ClientName::Unknown)];
        let unavailable = vec![Action::Answer(7, ClientName::Unavailable)];
        let mut naming = Naming::new();
        for loopback in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(naming.begin(7, ip(loopback), Instant::now()), unknown);
        }
        for (answer, expected) in [(Err(DnsError::NoSuchName), &unknown), (failure(), &unavailable)] {
            let begun = naming.begin(7, ip("::ffff:192.0.2.1"), Instant::now());
            let [Action::Ask(id, Query::Ptr(IpAddr::V4(_)))] = begun[..] else { panic!("{begun:?}") };
            assert_eq!(naming.heard(id, answer), *expected);
        }
        let asked = named(&mut naming, &["a.test", "b.test"]);
        assert_eq!(naming.heard(asked[0], failure()), []);
        assert_eq!(naming.heard(asked[1], addresses(&["192.0.2.9"])), unavailable);
        let asked = named(&mut naming, &["a.test"]);
        assert_eq!(naming.heard(asked[0], Err(DnsError::NoRecords)), unknown);
        // Answers of the wrong kind, or for nobody.
        let asked = named(&mut naming, &["a.test"]);
        assert_eq!(naming.heard(asked[0], names(&["x.test"])), unknown);
        assert_eq!(naming.heard(asked[0], names(&["x.test"])), []);
        assert_eq!(named(&mut naming, &["a.x", "b.x", "c.x", "d.x", "e.x", "f.x"]).len(), NAMES_MOST);
    }

    #[test]
    fn patience_ends() {
        let (mut naming, now) = (Naming::new(), Instant::now());
        naming.begin(1, ip(CLIENT), now);
        naming.begin(2, ip(CLIENT), now + Duration::from_secs(1));
        assert_eq!(naming.deadline(), Some(now + PATIENCE));
        assert_eq!(naming.pass(now + PATIENCE), [Action::Answer(1, ClientName::Unavailable)]);
        assert_eq!(naming.resolver_lost(), [Action::Answer(2, ClientName::Unavailable)]);
        assert_eq!(naming.deadline(), None);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Begin(u8),
        Names(usize, Vec<u8>),
        Addresses(usize, bool),
        Fail(usize),
        Pass(u64),
        Lost,
        Forget(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..3u8).prop_map(Step::Begin),
            3 => (any::<usize>(), proptest::collection::vec(0..9u8, 0..8)).prop_map(|(n, v)| Step::Names(n, v)),
            3 => (any::<usize>(), any::<bool>()).prop_map(|(n, ours)| Step::Addresses(n, ours)),
            1 => any::<usize>().prop_map(Step::Fail),
            1 => (0..4u64).prop_map(Step::Pass),
            1 => Just(Step::Lost),
            1 => (0..3u8).prop_map(Step::Forget),
        ]
    }

    proptest! {
        #[test]
        fn everyone_is_answered_once(steps in proptest::collection::vec(step(), 0..100)) {
            let (mut naming, mut now) = (Naming::new(), Instant::now());
            let (mut waiting, mut asked): (Vec<(u8, u32)>, Vec<RequestId>) = (Vec::new(), Vec::new());
            let mut count = 0;
            for step in steps {
                let pick = |n: usize| asked.get(n % asked.len().max(1)).copied().unwrap_or(0);
                let actions = match step {
                    Step::Begin(port) => {
                        count += 1;
                        waiting.push((port, count));
                        naming.begin((port, count), ip(CLIENT), now)
                    }
                    Step::Names(n, hosts) => {
                        let hosts = hosts.iter().map(|n| name(&format!("h{n}.test"))).collect();
                        naming.heard(pick(n), found(RecordData::Ptr(hosts)))
                    }
                    Step::Addresses(n, ours) => {
                        naming.heard(pick(n), addresses(&[if ours { CLIENT } else { "192.0.2.9" }]))
                    }
                    Step::Fail(n) => naming.heard(pick(n), failure()),
                    Step::Pass(seconds) => {
                        now += Duration::from_secs(seconds);
                        naming.pass(now)
                    }
                    Step::Lost => naming.resolver_lost(),
                    Step::Forget(port) => {
                        naming.forget(|(asker, _)| *asker == port);
                        waiting.retain(|(asker, _)| *asker != port);
                        Vec::new()
                    }
                };
                for action in actions {
                    match action {
                        Action::Ask(id, _) => asked.push(id),
                        Action::Answer(asker, _) => {
                            let at = waiting.iter().position(|w| *w == asker);
                            prop_assert!(at.is_some(), "{asker:?} answered twice");
                            waiting.swap_remove(at.unwrap());
                        }
                    }
                }
                prop_assert_eq!(naming.len(), waiting.len());
                prop_assert!(naming.inquiries.questions.values().all(|(id, _)| naming.inquiries.clients.contains_key(id)));
                prop_assert!(naming.inquiries.clients.values().all(|client| !client.open.is_empty()));
            }
            naming.pass(now + PATIENCE);
            prop_assert!(naming.is_empty() && naming.inquiries.questions.is_empty());
        }
    }
}
