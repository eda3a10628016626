//! Trace fields (RFC 5321 §4.4).

use std::net::IpAddr;
use std::sync::LazyLock;

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// A date and time as RFC 5322 §3.3 writes it, in the local zone: `Sun, 22 Nov 2026 04:18:27 +0000`. The zone is the one
/// there was when the program first asked.
pub fn date(unix_milliseconds: u64) -> String {
    date_in(&ZONE, unix_milliseconds)
}

/// jiff finds out the zone's name, for which it lists the system's thirty directories of zones: a millisecond that
/// `sendmail` has for each message. A date in a message tells no name. TZ has many forms, and is left to jiff.
static ZONE: LazyLock<TimeZone> = LazyLock::new(|| match std::env::var_os("TZ") {
    None => zone_at("/etc/localtime").unwrap_or_else(TimeZone::system),
    Some(_) => TimeZone::system(),
});

fn zone_at(path: &str) -> Option<TimeZone> {
    TimeZone::tzif("localtime", &std::fs::read(path).ok()?).ok()
}

fn date_in(zone: &TimeZone, unix_milliseconds: u64) -> String {
    let instant = i64::try_from(unix_milliseconds)
        .ok()
        .and_then(|at| Timestamp::from_millisecond(at).ok())
        .unwrap_or(Timestamp::UNIX_EPOCH);
    instant.to_zoned(zone.clone()).strftime("%a, %d %b %Y %H:%M:%S %z").to_string()
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
    use std::process::Command;

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

    /// date(1) takes a zone whose file is not there for UTC.
    #[test]
    fn the_same_as_date_1() {
        let zones = ["Europe/Berlin", "America/St_Johns", "Asia/Kolkata", "Etc/UTC", "No/Where"];
        let paths = zones.map(|zone| format!("/usr/share/zoneinfo/{zone}"));
        let winter_and_summer = [1_768_000_000, 1_784_000_000, 4_000_000_000u64];
        for (path, seconds) in paths.iter().flat_map(|path| winter_and_summer.map(|at| (path, at))) {
            let mut date = Command::new("date");
            date.env("TZ", format!(":{path}")).env("LC_ALL", "C").arg("-R").arg(format!("-d@{seconds}"));
            let theirs = String::from_utf8(date.output().unwrap().stdout).unwrap();
            let zone = zone_at(path).unwrap_or(TimeZone::UTC);
            assert_eq!(date_in(&zone, seconds * 1000), theirs.trim_end(), "{path}");
        }
    }
}
