//! Trace fields (RFC 5321 §4.4).

use std::net::IpAddr;

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// A date and time as RFC 5322 §3.3 writes it, in the local zone: `Sun, 22 Nov 2026 04:18:27 +0000`.
pub fn date(unix_milliseconds: u64) -> String {
    let instant = i64::try_from(unix_milliseconds)
        .ok()
        .and_then(|at| Timestamp::from_millisecond(at).ok())
        .unwrap_or(Timestamp::UNIX_EPOCH);
    instant.to_zoned(TimeZone::system()).strftime("%a, %d %b %Y %H:%M:%S %z").to_string()
}

/// The Received field for one acceptance.
#[derive(Clone, Debug)]
pub struct Received<'a> {
    /// What the client called itself.
    pub helo: &'a str,
    /// Its verified reverse name.
    pub client_name: Option<&'a str>,
    /// Where the connection came from.
    pub client_address: IpAddr,
    /// Us.
    pub hostname: &'a str,
    /// `SMTP`, `ESMTP`, `ESMTPS`, `LMTP`, … (RFC 3848).
    pub protocol: &'a str,
    /// The queue id.
    pub id: &'a str,
    /// The recipient, told only when there is one alone: others must not learn of each other.
    pub recipient: Option<&'a str>,
    /// When, milliseconds since 1970.
    pub at: u64,
}

impl Received<'_> {
    /// The field, folded, with its last CRLF. Every part has been cleaned: a line of the client's making
    /// cannot come out of it.
    pub fn line(&self) -> Vec<u8> {
        let helo = clean(self.helo);
        let name = clean(self.client_name.unwrap_or("unknown"));
        let address = match self.client_address {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => format!("IPv6:{v6}"),
        };
        let recipient = self.recipient.map(|r| format!("\r\n\tfor <{}>", clean(r))).unwrap_or_default();
        format!(
            "Received: from {helo} ({name} [{address}])\r\n\tby {} (Postern) with {} id {}{recipient};\r\n\t{}\r\n",
            self.hostname,
            self.protocol,
            self.id,
            date(self.at),
        )
        .into_bytes()
    }
}

/// Control characters, and brackets that would end our comment, become `?`.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || "()\\;".contains(c) { '?' } else { c }).take(255).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_received_line() {
        let received = Received {
            helo: "a\r\nX: (y)",
            client_name: None,
            client_address: "2001:db8::1".parse().unwrap(),
            hostname: "mx.test",
            protocol: "ESMTP",
            id: "0ABC",
            recipient: Some("u@v.test"),
            at: 1_790_000_000_000,
        };
        let line = String::from_utf8(received.line()).unwrap();
        let (head, date) = line.rsplit_once(";\r\n\t").unwrap();
        assert_eq!(
            head,
            "Received: from a??X: ?y? (unknown [IPv6:2001:db8::1])\r\n\tby mx.test (Postern) with ESMTP id 0ABC\r\n\tfor <u@v.test>"
        );
        assert_eq!(date.len(), "Mon, 21 Sep 2026 14:13:20 +0000\r\n".len());
    }

    #[test]
    fn dates() {
        assert!(date(1_790_000_000_000).contains(" Sep 2026 "));
        assert!(date(u64::MAX).contains(" 1970 ") || date(u64::MAX).contains(" 1969 "));
    }
}
