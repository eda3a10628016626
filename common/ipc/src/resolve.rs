//! Anyone who may ask the DNS, and the resolver.

use std::net::IpAddr;

use postern_address::Domain;
use serde::{Deserialize, Serialize};

use crate::link::RequestId;

/// Somebody asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Comes back in the answer.
    pub id: RequestId,
    /// What is asked.
    pub query: Query,
}

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Query {
    /// Mail exchangers (RFC 5321 §5.1).
    Mx(Domain),
    /// IPv4 and IPv6 addresses.
    Addresses(Domain),
    /// IPv4 addresses alone: [`RecordData::Addresses`].
    Ipv4(Domain),
    /// Names of an address.
    Ptr(IpAddr),
    /// Text records.
    Txt(Domain),
    /// TLSA records at `_port._tcp.host` (RFC 6698).
    Tlsa {
        /// The server's name.
        host: Domain,
        /// Its port.
        port: u16,
    },
}

/// The resolver answers, in any order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Of the question.
    pub id: RequestId,
    /// What the DNS says.
    pub result: Result<Records, DnsError>,
}

/// Records and whether they were validated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Records {
    /// The records; empty is not possible, that is [`DnsError::NoRecords`].
    pub data: RecordData,
    /// DNSSEC-secure by the word of a trusted validating resolver.
    pub secure: bool,
    /// Seconds the answer may be kept.
    pub ttl: u32,
}

/// The records of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecordData {
    /// Preference and exchanger, by preference. An exchanger of `None` is the root: null MX (RFC 7505).
    Mx(Vec<(u16, Option<Domain>)>),
    /// Addresses.
    Addresses(Vec<IpAddr>),
    /// Names.
    Ptr(Vec<Domain>),
    /// Each record's strings joined.
    Txt(Vec<Vec<u8>>),
    /// Usage, selector, matching type, data.
    Tlsa(Vec<(u8, u8, u8, Vec<u8>)>),
}

/// Why there are no records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DnsError {
    /// The name does not exist (NXDOMAIN).
    NoSuchName,
    /// The name exists and has no such records.
    NoRecords,
    /// SERVFAIL, bogus, timeout, no server: try again later. The text says which.
    Temporary(String),
}
