//! From a DNS message to what was asked: the walk along aliases and the reading of records. Pure.
//!
//! We walk ourselves, from the name that was asked and only along owners that are the previous target: an
//! answer section may hold anything in any order (RFC 1034 §3.6.2), and hickory's own cache has been seen
//! to hand one alias's chain to another alias with the same target.

use std::net::IpAddr;

use hickory_resolver::proto::rr::{DNSClass, Name, RData, Record, RecordType};
use postern_address::Domain;
use postern_ipc::resolve::{DnsError, RecordData};

/// Aliases followed for one question. Real chains are 1 to 4 long; a loop ends here.
pub const HOPS_MOST: u8 = 10;

/// One question on its way along aliases.
#[derive(Clone, Debug)]
pub struct Chain {
    /// Where it stands: the name to ask for.
    pub name: Name,
    /// The records wanted.
    pub kind: RecordType,
    /// Seconds the whole chain may be kept: the least TTL so far.
    pub ttl: u32,
    /// Every answer so far was secure.
    pub secure: bool,
    hops: u8,
}

/// Where an answer leads.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// These records.
    Found(Vec<RData>),
    /// An alias whose target is not in the answer: [`Chain::name`] is the target now.
    Alias,
    /// The name has neither records nor an alias in the answer.
    Nothing,
    /// More than [`HOPS_MOST`] aliases.
    TooLong,
}

impl Chain {
    /// Begins at the name asked for.
    pub fn new(name: Name, kind: RecordType) -> Self {
        Self { name, kind, ttl: u32::MAX, secure: true, hops: 0 }
    }

    /// Walks through one answer section; `secure` says whether that answer was validated.
    pub fn walk(&mut self, answers: &[Record], secure: bool) -> Step {
        self.secure &= secure;
        let mut moved = false;
        loop {
            let here: Vec<&Record> = self.at(answers, self.kind).collect();
            if !here.is_empty() {
                self.ttl = here.iter().map(|record| record.ttl).fold(self.ttl, u32::min);
                return Step::Found(here.into_iter().map(|record| record.data.clone()).collect());
            }
            let alias = self.at(answers, RecordType::CNAME).find_map(|record| match &record.data {
                RData::CNAME(target) => Some((target.0.clone(), record.ttl)),
                _ => None,
            });
            let Some((target, ttl)) = alias else {
                return if moved { Step::Alias } else { Step::Nothing };
            };
            self.hops += 1;
            if self.hops > HOPS_MOST {
                return Step::TooLong;
            }
            self.ttl = self.ttl.min(ttl);
            self.name = target;
            moved = true;
        }
    }

    /// Records of a type at the place where the walk stands. Case does not count (RFC 4343).
    fn at<'a>(&self, answers: &'a [Record], kind: RecordType) -> impl Iterator<Item = &'a Record> {
        let name = self.name.clone();
        answers.iter().filter(move |record| {
            record.dns_class == DNSClass::IN
                && record.record_type() == kind
                && record.name.eq_ignore_root(&name)
        })
    }
}

/// MX records by preference, those of one preference by name. An exchanger that is no host name is left
/// out. A `.` alone is the null MX (RFC 7505); beside others it means nothing (RFC 7505 §3) and is left out.
pub fn mx(records: Vec<RData>) -> Result<RecordData, DnsError> {
    let mut exchangers: Vec<(u16, Option<Domain>)> = records
        .into_iter()
        .filter_map(|data| match data {
            RData::MX(mx) if mx.exchange.is_root() => Some((mx.preference, None)),
            RData::MX(mx) => Some((mx.preference, Some(host(&mx.exchange)?))),
            _ => None,
        })
        .collect();
    exchangers.sort();
    exchangers.dedup();
    if exchangers.iter().any(|(_, host)| host.is_some()) {
        exchangers.retain(|(_, host)| host.is_some());
    } else {
        exchangers.truncate(1);
    }
    // "No MX records" would send the mail to the domain's own address (RFC 5321 §5.1), but it has some.
    if exchangers.is_empty() { Err(unusable("MX")) } else { Ok(RecordData::Mx(exchangers)) }
}

/// The addresses in A and AAAA records.
pub fn addresses(records: Vec<RData>) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for data in records {
        let address = match data {
            RData::A(a) => IpAddr::V4(a.0),
            RData::AAAA(aaaa) => IpAddr::V6(aaaa.0),
            _ => continue,
        };
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

/// The addresses in A records alone: what lists answer (RFC 5782 §2.1).
pub fn ipv4(records: Vec<RData>) -> Result<RecordData, DnsError> {
    let addresses = addresses(records);
    if addresses.is_empty() { Err(DnsError::NoRecords) } else { Ok(RecordData::Addresses(addresses)) }
}

/// The names in PTR records; what is no host name is left out.
pub fn ptr(records: Vec<RData>) -> Result<RecordData, DnsError> {
    let names = records.into_iter().filter_map(|data| match data {
        RData::PTR(name) => host(&name.0),
        _ => None,
    });
    let names: Vec<Domain> = names.collect();
    if names.is_empty() { Err(DnsError::NoRecords) } else { Ok(RecordData::Ptr(names)) }
}

/// TXT records, the strings of each joined (RFC 7208 §3.3, RFC 6376 §3.6.2.2).
pub fn txt(records: Vec<RData>) -> Result<RecordData, DnsError> {
    let texts = records.into_iter().filter_map(|data| match data {
        RData::TXT(txt) => Some(txt.txt_data.concat()),
        _ => None,
    });
    let texts: Vec<Vec<u8>> = texts.collect();
    if texts.is_empty() { Err(unusable("TXT")) } else { Ok(RecordData::Txt(texts)) }
}

/// TLSA records (RFC 6698 §2.1).
pub fn tlsa(records: Vec<RData>) -> Result<RecordData, DnsError> {
    let all = records.into_iter().filter_map(|data| match data {
        RData::TLSA(tlsa) => {
            Some((tlsa.cert_usage.into(), tlsa.selector.into(), tlsa.matching.into(), tlsa.cert_data))
        }
        _ => None,
    });
    let all: Vec<(u8, u8, u8, Vec<u8>)> = all.collect();
    // An unreadable TLSA record must not look like none: that would switch TLS's protection off.
    if all.is_empty() { Err(unusable("TLSA")) } else { Ok(RecordData::Tlsa(all)) }
}

fn unusable(kind: &str) -> DnsError {
    DnsError::Temporary(format!("none of its {kind} records is usable"))
}

/// A DNS name as a host name: labels may hold any octet (RFC 2181 §11), a [`Domain`] may not.
fn host(name: &Name) -> Option<Domain> {
    Domain::parse(&name.to_ascii()).ok()
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::rr::rdata::{A, CNAME, MX, PTR};
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn a(owner: &str, ttl: u32, last: u8) -> Record {
        Record::from_rdata(name(owner), ttl, RData::A(A::new(192, 0, 2, last)))
    }

    fn cname(owner: &str, ttl: u32, target: &str) -> Record {
        Record::from_rdata(name(owner), ttl, RData::CNAME(CNAME(name(target))))
    }

    #[test]
    fn along_aliases_in_any_order_and_case() {
        let answers = [
            a("c.test.", 50, 1),
            cname("B.test.", 20, "C.test."),
            a("other.test.", 1, 9),
            cname("a.test.", 30, "b.TEST."),
        ];
        let mut chain = Chain::new(name("A.test."), RecordType::A);
        assert_eq!(chain.walk(&answers, true), Step::Found(vec![RData::A(A::new(192, 0, 2, 1))]));
        assert_eq!((chain.ttl, chain.secure), (20, true));
    }

    #[test]
    fn security_is_the_least_of_all_answers() {
        let mut chain = Chain::new(name("a.test."), RecordType::A);
        assert_eq!(chain.walk(&[cname("a.test.", 30, "b.test.")], false), Step::Alias);
        assert_eq!(chain.name, name("b.test."));
        assert!(matches!(chain.walk(&[a("b.test.", 5, 1)], true), Step::Found(_)));
        assert_eq!((chain.ttl, chain.secure), (5, false));
    }

    #[test]
    fn foreign_records_and_loops() {
        let mut chain = Chain::new(name("a.test."), RecordType::A);
        assert_eq!(chain.walk(&[a("b.test.", 5, 1)], true), Step::Nothing);
        let around = [cname("a.test.", 5, "b.test."), cname("b.test.", 5, "a.test.")];
        assert_eq!(chain.walk(&around, true), Step::TooLong);
    }

    fn mx_record(preference: u16, host: &str) -> RData {
        RData::MX(MX::new(preference, name(host)))
    }

    #[test]
    fn exchangers() {
        let some = |text: &str| Some(Domain::parse(text).unwrap());
        let sorted = mx(vec![mx_record(20, "b.test."), mx_record(0, "."), mx_record(10, "A.test.")]);
        assert_eq!(sorted, Ok(RecordData::Mx(vec![(10, some("a.test")), (20, some("b.test"))])));
        assert_eq!(mx(vec![mx_record(0, ".")]), Ok(RecordData::Mx(vec![(0, None)])));
        let odd = Name::from_labels([b"a b".as_slice(), b"\xff\0", b"test"]).unwrap();
        let mail = RData::MX(MX::new(0, odd.clone()));
        assert!(matches!(mx(vec![mail]), Err(DnsError::Temporary(_))));
        assert_eq!(ptr(vec![RData::PTR(PTR(odd))]), Err(DnsError::NoRecords));
    }

    proptest! {
        #[test]
        fn any_web_of_aliases_ends(
            links in proptest::collection::vec((0..8u8, 0..8u8, any::<u32>()), 0..20),
            address in 0..8u8,
        ) {
            let mut answers: Vec<Record> = links
                .iter()
                .map(|(from, to, ttl)| cname(&format!("{from}.test."), *ttl, &format!("{to}.test.")))
                .collect();
            answers.push(a(&format!("{address}.test."), 7, 1));
            let mut chain = Chain::new(name("0.test."), RecordType::A);
            if let Step::Found(records) = chain.walk(&answers, true) {
                prop_assert_eq!(records.len(), 1);
                prop_assert!(chain.ttl <= 7);
            }
        }

        #[test]
        fn exchangers_come_sorted(records in proptest::collection::vec((any::<u16>(), "([a-c_-]{1,3}\\.){0,2}"), 0..8)) {
            let records = records
                .into_iter()
                .filter_map(|(p, host)| Some(RData::MX(MX::new(p, Name::from_ascii(if host.is_empty() { "." } else { &host }).ok()?))))
                .collect();
            if let Ok(RecordData::Mx(all)) = mx(records) {
                prop_assert!(all.is_sorted_by_key(|(preference, _)| *preference));
                prop_assert!(all.len() == 1 || all.iter().all(|(_, host)| host.is_some()));
            }
        }
    }
}
