//! Which lists have this client (RFC 5782)? All are asked at once; what has not answered when the patience
//! is over counts nothing. Pure: questions and answers in, questions and answers out, time is an argument.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use postern_address::Domain;
use postern_config::List;
use postern_ipc::RequestId;
use postern_ipc::resolve::{DnsError, Query, RecordData, Records};
use postern_ipc::smtpd_verify::ListHit;

use crate::inquiries::Inquiries;

/// How long a client may wait for the lists.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Clients under way at once; further ones are in no list.
pub const CLIENTS_MOST: usize = 4_000;

/// Longest text taken of a list, octets: it becomes part of a reply.
const TEXT_MOST: usize = 200;

/// How often it is told that a list does not answer.
const TELL_EVERY: Duration = Duration::from_secs(600);

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<A> {
    /// Ask the resolver.
    Ask(RequestId, Query),
    /// These lists have this asker's client, and this is the sum of their weights.
    Answer(A, i32, Vec<ListHit>),
    /// This list does not do what it should, and why: for the log.
    Complain(Domain, String),
}

/// Every client being looked up; `A` names who asked.
#[derive(Debug)]
pub struct Listing<A> {
    lists: Vec<List>,
    /// The zones of the lists, each once.
    zones: Vec<Domain>,
    told: HashMap<Domain, Instant>,
    inquiries: Inquiries<Client<A>, Subject>,
}

#[derive(Debug)]
struct Client<A> {
    asker: A,
    address: IpAddr,
    /// The places in `lists` of those that have it.
    hits: Vec<usize>,
    /// Texts by zone.
    texts: Vec<(usize, String)>,
}

/// What a question is about: a zone.
#[derive(Clone, Copy, Debug)]
enum Subject {
    /// Does it have the client?
    Has(usize),
    /// What does it say of it?
    Says(usize),
}

impl<A> Listing<A> {
    /// Nobody is being looked up. The ids of the questions are above `first`.
    pub fn new(lists: Vec<List>, first: RequestId) -> Self {
        let mut listing = Self {
            lists: Vec::new(),
            zones: Vec::new(),
            told: HashMap::new(),
            inquiries: Inquiries::new(first),
        };
        listing.set_lists(lists);
        listing
    }

    /// Other lists. Who is being looked up is answered now, as far as it is known.
    pub fn set_lists(&mut self, lists: Vec<List>) -> Vec<Action<A>> {
        if lists == self.lists {
            return Vec::new();
        }
        let early = self.finish_all();
        self.zones = Vec::new();
        for list in &lists {
            if !self.zones.contains(&list.name) {
                self.zones.push(list.name.clone());
            }
        }
        self.lists = lists;
        early
    }

    /// There are lists to be asked.
    pub fn has_lists(&self) -> bool {
        !self.lists.is_empty()
    }

    /// `asker` wants to know which lists have `address`.
    pub fn begin(&mut self, asker: A, address: IpAddr, now: Instant) -> Vec<Action<A>> {
        let address = address.to_canonical();
        if self.zones.is_empty() || self.inquiries.len() >= CLIENTS_MOST {
            return vec![Action::Answer(asker, 0, Vec::new())];
        }
        let client = Client { asker, address, hits: Vec::new(), texts: Vec::new() };
        let id = self.inquiries.begin(client, now + PATIENCE);
        let mut actions = Vec::new();
        for zone in 0..self.zones.len() {
            actions.extend(self.ask(id, Subject::Has(zone)));
        }
        // No zone whose names are short enough: no question.
        if actions.is_empty() { self.finish(id) } else { actions }
    }

    /// The resolver answered. An answer that nobody waits for any more does nothing.
    pub fn heard(
        &mut self,
        question: RequestId,
        result: Result<Records, DnsError>,
        now: Instant,
    ) -> Vec<Action<A>> {
        let Some((id, subject)) = self.inquiries.answered(question) else { return Vec::new() };
        let Some(client) = self.inquiries.get_mut(id) else { return Vec::new() };
        let mut actions = Vec::new();
        match (subject, result.map(|records| records.data)) {
            (Subject::Has(zone), Ok(RecordData::Addresses(replies))) => {
                let Some(name) = self.zones.get(zone) else { return Vec::new() };
                let of_zone = self.lists.iter().enumerate().filter(|(_, list)| list.name == *name);
                let hits = of_zone.filter(|(_, list)| replies.iter().any(|reply| list.counts(*reply)));
                let hits: Vec<usize> = hits.map(|(place, _)| place).collect();
                let denied =
                    hits.iter().any(|place| self.lists.get(*place).is_some_and(|list| list.weight > 0));
                client.hits.extend(hits);
                if denied {
                    actions.extend(self.ask(id, Subject::Says(zone)));
                } else if let Some(reply) = replies.iter().find(|reply| is_complaint(**reply)) {
                    actions.extend(self.complain(zone, format!("it answers {reply}"), now));
                }
            }
            (Subject::Says(zone), Ok(RecordData::Txt(texts))) => {
                if let Some(text) = texts.first() {
                    client.texts.push((zone, printable(text)));
                }
            }
            (Subject::Has(zone), Err(DnsError::Temporary(why))) => {
                actions.extend(self.complain(zone, why, now));
            }
            // In no list; no text.
            _ => {}
        }
        if self.inquiries.is_quiet(id) {
            actions.extend(self.finish(id));
        }
        actions
    }

    /// Time passed: who waited too long is answered with what is known.
    pub fn pass(&mut self, now: Instant) -> Vec<Action<A>> {
        let mut actions = Vec::new();
        while let Some(id) = self.inquiries.overdue(now) {
            for zone in self.silent(id) {
                actions.extend(self.complain(zone, "it does not answer".into(), now));
            }
            actions.extend(self.finish(id));
        }
        actions
    }

    /// When [`Listing::pass`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.inquiries.deadline()
    }

    /// The resolver is gone, and every question with it.
    pub fn resolver_lost(&mut self) -> Vec<Action<A>> {
        self.finish_all()
    }

    /// Askers are gone: nobody waits for these.
    pub fn forget(&mut self, gone: impl Fn(&A) -> bool) {
        self.inquiries.forget(|client| gone(&client.asker));
    }

    /// Clients being looked up.
    pub fn len(&self) -> usize {
        self.inquiries.len()
    }

    /// Nobody is being looked up.
    pub fn is_empty(&self) -> bool {
        self.inquiries.is_empty()
    }

    fn ask(&mut self, id: u64, subject: Subject) -> Option<Action<A>> {
        let (Subject::Has(zone) | Subject::Says(zone)) = subject;
        let address = self.inquiries.get(id)?.address;
        let name = name(address, self.zones.get(zone)?)?;
        let question = self.inquiries.ask(id, subject)?;
        let query = match subject {
            Subject::Has(_) => Query::Ipv4(name),
            Subject::Says(_) => Query::Txt(name),
        };
        Some(Action::Ask(question, query))
    }

    /// The zones that have not said whether they have this client.
    fn silent(&self, id: u64) -> Vec<usize> {
        let zone = |subject: &Subject| match subject {
            Subject::Has(zone) => Some(*zone),
            Subject::Says(_) => None,
        };
        self.inquiries.open(id).filter_map(zone).collect()
    }

    fn complain(&mut self, zone: usize, why: String, now: Instant) -> Option<Action<A>> {
        let list = self.zones.get(zone)?.clone();
        if self.told.get(&list).is_some_and(|told| now.saturating_duration_since(*told) < TELL_EVERY) {
            return None;
        }
        self.told.insert(list.clone(), now);
        Some(Action::Complain(list, why))
    }

    fn finish_all(&mut self) -> Vec<Action<A>> {
        let clients = self.inquiries.end_all();
        clients.into_iter().map(|client| self.answer(client)).collect()
    }

    fn finish(&mut self, id: u64) -> Vec<Action<A>> {
        let client = self.inquiries.end(id);
        client.into_iter().map(|client| self.answer(client)).collect()
    }

    /// What is known of a client.
    fn answer(&self, mut client: Client<A>) -> Action<A> {
        client.hits.sort_unstable();
        let mut score = 0_i32;
        let mut lists = Vec::new();
        for list in client.hits.iter().filter_map(|place| self.lists.get(*place)) {
            score = score.saturating_add(list.weight);
            let text = client.texts.iter().find(|(zone, _)| self.zones.get(*zone) == Some(&list.name));
            let text = text.filter(|_| list.weight > 0).map(|(_, text)| text.clone());
            lists.push(ListHit { list: list.name.clone(), weight: list.weight, text });
        }
        Action::Answer(client.asker, score, lists)
    }
}

/// The name to ask for: the address backwards, below the zone (RFC 5782 §2.1, §2.4).
fn name(address: IpAddr, zone: &Domain) -> Option<Domain> {
    let mut name = String::with_capacity(64 + zone.as_str().len());
    match address {
        IpAddr::V4(v4) => v4.octets().iter().rev().for_each(|octet| {
            // Writing to a String does not fail.
            let _ = write!(name, "{octet}.");
        }),
        IpAddr::V6(v6) => v6.octets().iter().rev().for_each(|octet| {
            let _ = write!(name, "{:x}.{:x}.", octet & 15, octet >> 4);
        }),
    }
    name.push_str(zone.as_str());
    Domain::parse(&name).ok()
}

/// How lists say that they do not answer this resolver: too many questions, none without a key.
fn is_complaint(reply: IpAddr) -> bool {
    matches!(reply, IpAddr::V4(v4) if v4.octets()[..3] == [127, 255, 255])
}

/// A text as it may stand in a reply.
fn printable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let plain = text.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' });
    plain.take(TEXT_MOST).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn domain(text: &str) -> Domain {
        Domain::parse(text).unwrap()
    }

    fn list(name: &str, weight: i32, replies: &[&str]) -> List {
        let network = |text: &&str| match text.parse::<IpAddr>() {
            Ok(host) => host.into(),
            Err(_) => text.parse().unwrap(),
        };
        let replies = (!replies.is_empty()).then(|| replies.iter().map(network).collect());
        List { name: domain(name), weight, replies }
    }

    fn found(data: RecordData) -> Result<Records, DnsError> {
        Ok(Records { data, secure: false, ttl: 60 })
    }

    fn replies(all: &[&str]) -> Result<Records, DnsError> {
        found(RecordData::Addresses(all.iter().map(|text| ip(text)).collect()))
    }

    fn asked(actions: &[Action<u8>]) -> Vec<(RequestId, String)> {
        let asked = actions.iter().filter_map(|action| match action {
            Action::Ask(id, Query::Ipv4(name)) => Some((*id, name.as_str().to_owned())),
            Action::Ask(id, Query::Txt(name)) => Some((*id, format!("TXT {}", name.as_str()))),
            _ => None,
        });
        asked.collect()
    }

    fn hit(name: &str, weight: i32, text: Option<&str>) -> ListHit {
        ListHit { list: domain(name), weight, text: text.map(str::to_owned) }
    }

    #[test]
    fn names_to_ask_for() {
        let zone = domain("z.test");
        assert_eq!(name(ip("192.0.2.99"), &zone).unwrap().as_str(), "99.2.0.192.z.test");
        assert_eq!(
            name(ip("2001:db8:1:2:3:4:567:89ab"), &zone).unwrap().as_str(),
            "b.a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.z.test"
        );
        let long = domain(&["x".repeat(60), "x".repeat(60), "x".repeat(60), "x".repeat(60)].join("."));
        assert_eq!(name(ip("2001:db8::1"), &long), None);
    }

    #[test]
    fn weights_add_up() {
        let lists = vec![
            list("a.test", 2, &["127.0.0.2"]),
            list("a.test", 3, &["127.0.0.4/30"]),
            list("good.test", -4, &[]),
            list("b.test", 1, &[]),
        ];
        let mut listing = Listing::new(lists, 0);
        let now = Instant::now();
        let begun = asked(&listing.begin(7, ip("192.0.2.1"), now));
        let names: Vec<&str> = begun.iter().map(|(_, name)| &**name).collect();
        assert_eq!(names, ["1.2.0.192.a.test", "1.2.0.192.good.test", "1.2.0.192.b.test"]);
        assert_eq!(listing.heard(begun[2].0, Err(DnsError::NoSuchName), now), []);
        assert_eq!(listing.heard(begun[1].0, replies(&["127.0.5.1"]), now), []);
        let text = asked(&listing.heard(begun[0].0, replies(&["127.0.0.6", "127.0.0.2"]), now));
        assert_eq!(text[0].1, "TXT 1.2.0.192.a.test");
        let said = found(RecordData::Txt(vec![b"see\r\n a".to_vec(), b"other".to_vec()]));
        let hits = vec![
            hit("a.test", 2, Some("see?? a")),
            hit("a.test", 3, Some("see?? a")),
            hit("good.test", -4, None),
        ];
        assert_eq!(listing.heard(text[0].0, said, now), [Action::Answer(7, 1, hits)]);
        assert!(listing.is_empty() && listing.inquiries.questions.is_empty());
    }

    #[test]
    fn who_does_not_answer_counts_nothing() {
        let mut listing = Listing::new(vec![list("a.test", 2, &[]), list("b.test", 3, &[])], 0);
        let now = Instant::now();
        let begun = asked(&listing.begin(7, ip("192.0.2.1"), now));
        let text = asked(&listing.heard(begun[1].0, replies(&["127.0.0.2"]), now));
        assert_eq!(listing.pass(now + PATIENCE - Duration::from_millis(1)), []);
        let silent = Action::Complain(domain("a.test"), "it does not answer".into());
        let answer = Action::Answer(7, 3, vec![hit("b.test", 3, None)]);
        assert_eq!(listing.pass(now + PATIENCE), [silent, answer]);
        assert_eq!(listing.heard(text[0].0, Err(DnsError::NoRecords), now), []);
        // An answer that is a complaint, a failure: told once.
        let begun = asked(&listing.begin(8, ip("192.0.2.1"), now));
        let none = Err(DnsError::Temporary("SERVFAIL".into()));
        assert_eq!(listing.heard(begun[0].0, none, now), [], "told a moment ago");
        let said = listing.heard(begun[1].0, replies(&["127.255.255.254"]), now);
        let complaint = Action::Complain(domain("b.test"), "it answers 127.255.255.254".into());
        assert_eq!(said, [complaint, Action::Answer(8, 0, Vec::new())]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Begin(u8),
        Reply(usize, bool),
        Text(usize),
        Fail(usize),
        Pass(u64),
        Lost,
        Forget(u8),
        Lists(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..3u8).prop_map(Step::Begin),
            3 => (any::<usize>(), any::<bool>()).prop_map(|(n, hit)| Step::Reply(n, hit)),
            2 => any::<usize>().prop_map(Step::Text),
            1 => any::<usize>().prop_map(Step::Fail),
            1 => (0..4u64).prop_map(Step::Pass),
            1 => Just(Step::Lost),
            1 => (0..3u8).prop_map(Step::Forget),
            1 => (0..3u8).prop_map(Step::Lists),
        ]
    }

    proptest! {
        #[test]
        fn everyone_is_answered_once(steps in proptest::collection::vec(step(), 0..100)) {
            let lists = |n: u8| (0..n).map(|n| list(&format!("l{n}.test"), i32::from(n) - 1, &[])).collect();
            let mut listing = Listing::new(lists(2), 1 << 63);
            let mut now = Instant::now();
            let (mut waiting, mut asked): (Vec<(u8, u32)>, Vec<RequestId>) = (Vec::new(), Vec::new());
            let mut count = 0;
            for step in steps {
                let pick = |n: usize| asked.get(n % asked.len().max(1)).copied().unwrap_or(0);
                let actions = match step {
                    Step::Begin(port) => {
                        count += 1;
                        waiting.push((port, count));
                        listing.begin((port, count), ip("192.0.2.1"), now)
                    }
                    Step::Reply(n, hit) => {
                        listing.heard(pick(n), replies(&[if hit { "127.0.0.2" } else { "10.0.0.1" }]), now)
                    }
                    Step::Text(n) => {
                        listing.heard(pick(n), found(RecordData::Txt(vec![b"x".to_vec()])), now)
                    }
                    Step::Fail(n) => listing.heard(pick(n), Err(DnsError::Temporary("x".into())), now),
                    Step::Pass(seconds) => {
                        now += Duration::from_secs(seconds);
                        listing.pass(now)
                    }
                    Step::Lost => listing.resolver_lost(),
                    Step::Forget(port) => {
                        listing.forget(|(asker, _)| *asker == port);
                        waiting.retain(|(asker, _)| *asker != port);
                        Vec::new()
                    }
                    Step::Lists(n) => listing.set_lists(lists(n)),
                };
                for action in actions {
                    match action {
                        Action::Ask(id, _) => asked.push(id),
                        Action::Complain(..) => {}
                        Action::Answer(asker, score, hits) => {
                            prop_assert_eq!(score, hits.iter().map(|hit| hit.weight).sum::<i32>());
                            let at = waiting.iter().position(|w| *w == asker);
                            prop_assert!(at.is_some(), "{:?} answered twice", asker);
                            waiting.swap_remove(at.unwrap());
                        }
                    }
                }
                prop_assert_eq!(listing.len(), waiting.len());
                prop_assert!(listing.inquiries.questions.values().all(|(id, _)| listing.inquiries.clients.contains_key(id)));
                prop_assert!(listing.inquiries.clients.values().all(|client| !client.open.is_empty()));
            }
            listing.pass(now + PATIENCE);
            prop_assert!(listing.is_empty() && listing.inquiries.questions.is_empty());
        }
    }
}
