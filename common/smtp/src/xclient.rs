//! XCLIENT and XFORWARD (Postfix's `XCLIENT_README` and `XFORWARD_README`): what a trusted client says about
//! the client behind it. XCLIENT makes the session that client's; XFORWARD is for the log and the record of
//! where the next message came from, and decides nothing.
//!
//! Both are lists of `NAME=value`, the values in xtext (RFC 3461 §4), `[UNAVAILABLE]` for what is not known,
//! `[TEMPUNAVAIL]` for what could not be found out now. Names and these words are understood in any case.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use postern_address::Domain;

use crate::reply::{EnhancedCode, Reply};
use crate::xtext::decode_loosely;

/// What stands behind XCLIENT in the reply to EHLO.
pub const XCLIENT_KEYWORDS: &str = "XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT";

/// What stands behind XFORWARD in the reply to EHLO.
pub const XFORWARD_KEYWORDS: &str = "XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE";

/// Longest value, octets, after decoding.
const VALUE_MAX: usize = 255;

/// Longest PROTO of XFORWARD.
const PROTOCOL_MAX: usize = 64;

/// What becomes `?`: it would have a meaning in a header or in a log line.
const SPECIAL: &str = " <>()\\\";@";

/// A value that may be missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told<T> {
    /// It is this.
    Known(T),
    /// `[UNAVAILABLE]`: there is none.
    Unavailable,
    /// `[TEMPUNAVAIL]`: it cannot be found out now.
    Temporary,
}

/// One XCLIENT command; none of a value: the session's stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Xclient {
    /// NAME: the client's verified name.
    pub name: Option<Told<Domain>>,
    /// ADDR: who it is.
    pub address: Option<Told<IpAddr>>,
    /// PORT it connected from.
    pub port: Option<Told<u16>>,
    /// PROTO: `ESMTP` (true) or `SMTP`.
    pub extended: Option<bool>,
    /// HELO: what it called itself.
    pub helo: Option<Told<String>>,
    /// LOGIN: who it proved to be.
    pub login: Option<Told<String>>,
    /// DESTADDR: where it connected to.
    pub destination: Option<Told<IpAddr>>,
    /// DESTPORT
    pub destination_port: Option<Told<u16>>,
}

/// One XFORWARD command; none of a value: what an earlier one said stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Xforward {
    /// NAME: need not be a name of the DNS.
    pub name: Option<Told<String>>,
    /// ADDR: one that is no address of the Internet is [`Told::Unavailable`].
    pub address: Option<Told<IpAddr>>,
    /// PORT
    pub port: Option<Told<u16>>,
    /// PROTO: need not be one of SMTP's.
    pub protocol: Option<Told<String>>,
    /// HELO
    pub helo: Option<Told<String>>,
    /// IDENT: what the host before us called the message.
    pub ident: Option<Told<String>>,
    /// SOURCE: `LOCAL` (true): the message came from that host itself.
    pub local: Option<Told<bool>>,
}

/// What XFORWARD said so far about the next message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// The client's name.
    pub name: Option<String>,
    /// Its address. None also when the message began on the host that forwards it.
    pub address: Option<IpAddr>,
    /// The port it connected from.
    pub port: Option<u16>,
    /// How it spoke.
    pub protocol: Option<String>,
    /// What it called itself.
    pub helo: Option<String>,
    /// What the host before us called the message.
    pub ident: Option<String>,
    /// The message began on that host.
    pub local: bool,
}

/// What is wrong with a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// Nothing stands behind the verb, or something without `=`.
    Form(&'static str),
    /// There is no such attribute.
    Name(String),
    /// It is no value of that attribute.
    Value(&'static str),
}

impl Xclient {
    /// Parses what stands behind `XCLIENT`.
    pub fn parse(text: &str) -> Result<Self, Mistake> {
        let mut said = Self::default();
        for attribute in attributes("XCLIENT attribute=value...", text) {
            let (name, value) = attribute?;
            match name.to_ascii_uppercase().as_str() {
                "NAME" => said.name = Some(told("NAME", value, |text| Domain::parse(text).ok())?),
                "ADDR" => said.address = Some(told("ADDR", value, address)?),
                "PORT" => said.port = Some(told("PORT", value, number)?),
                "PROTO" => said.extended = Some(protocol(value)?),
                "HELO" => said.helo = Some(told("HELO", value, clean)?),
                "LOGIN" => said.login = Some(told("LOGIN", value, |text| Some(text.to_owned()))?),
                "DESTADDR" => said.destination = Some(told("DESTADDR", value, address)?),
                "DESTPORT" => said.destination_port = Some(told("DESTPORT", value, number)?),
                _ => return Err(Mistake::Name(shown(name))),
            }
        }
        Ok(said)
    }
}

impl Xforward {
    /// Parses what stands behind `XFORWARD`.
    pub fn parse(text: &str) -> Result<Self, Mistake> {
        let mut said = Self::default();
        for attribute in attributes("XFORWARD attribute=value...", text) {
            let (name, value) = attribute?;
            match name.to_ascii_uppercase().as_str() {
                "NAME" => said.name = Some(told("NAME", value, clean)?),
                // "The address may be a non-IP address": we have no use for one.
                "ADDR" => said.address = Some(told("ADDR", value, |text| Some(address(text)))?.flat()),
                "PORT" => said.port = Some(told("PORT", value, number)?),
                "PROTO" => {
                    said.protocol = Some(told("PROTO", value, |text| {
                        clean(text).filter(|text| text.len() <= PROTOCOL_MAX)
                    })?);
                }
                "HELO" => said.helo = Some(told("HELO", value, clean)?),
                "IDENT" => said.ident = Some(told("IDENT", value, clean)?),
                "SOURCE" => said.local = Some(told("SOURCE", value, source)?),
                _ => return Err(Mistake::Name(shown(name))),
            }
        }
        Ok(said)
    }
}

impl Forwarded {
    /// Takes over what one more command says; `[UNAVAILABLE]` erases.
    pub fn take(&mut self, said: Xforward) {
        fn put<T>(mine: &mut Option<T>, said: Option<Told<T>>) {
            if let Some(said) = said {
                *mine = said.known();
            }
        }
        put(&mut self.name, said.name);
        put(&mut self.address, said.address);
        put(&mut self.port, said.port);
        put(&mut self.protocol, said.protocol);
        put(&mut self.helo, said.helo);
        put(&mut self.ident, said.ident);
        if let Some(said) = said.local {
            self.local = said == Told::Known(true);
        }
    }
}

impl<T> Told<T> {
    /// The value, if there is one.
    pub fn known(self) -> Option<T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Unavailable | Self::Temporary => None,
        }
    }
}

impl<T> Told<Option<T>> {
    fn flat(self) -> Told<T> {
        match self {
            Self::Known(Some(value)) => Told::Known(value),
            Self::Known(None) | Self::Unavailable => Told::Unavailable,
            Self::Temporary => Told::Temporary,
        }
    }
}

impl Mistake {
    /// As the client hears it.
    pub fn reply(&self) -> Reply {
        Reply::new(501, EnhancedCode::new(5, 5, 4), self.to_string())
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Form(syntax) => write!(f, "Syntax: {syntax}"),
            Self::Name(name) => write!(f, "Bad attribute name: {name}"),
            Self::Value(name) => write!(f, "Bad {name} syntax"),
        }
    }
}

impl std::error::Error for Mistake {}

/// `NAME=value` by blanks; a mistake where there is none.
fn attributes<'t>(
    syntax: &'static str,
    text: &'t str,
) -> impl Iterator<Item = Result<(&'t str, &'t str), Mistake>> {
    let text = text.trim_matches([' ', '\t']);
    // An empty text is one word that is no attribute.
    let words = text.split([' ', '\t']).filter(move |word| !word.is_empty() || text.is_empty());
    words.map(move |word| word.split_once('=').ok_or(Mistake::Form(syntax)))
}

/// One value: decoded, one of the two words, or what `read` makes of it.
fn told<T>(
    name: &'static str,
    value: &str,
    read: impl FnOnce(&str) -> Option<T>,
) -> Result<Told<T>, Mistake> {
    let value = decode_loosely(value).filter(|value| !value.is_empty() && value.len() <= VALUE_MAX);
    let value = value.ok_or(Mistake::Value(name))?;
    match () {
        () if value.eq_ignore_ascii_case("[UNAVAILABLE]") => Ok(Told::Unavailable),
        () if value.eq_ignore_ascii_case("[TEMPUNAVAIL]") => Ok(Told::Temporary),
        () => read(&value).map(Told::Known).ok_or(Mistake::Value(name)),
    }
}

/// A text for a header or the log: what is special there becomes `?`.
fn clean(text: &str) -> Option<String> {
    Some(text.chars().map(|c| if SPECIAL.contains(c) { '?' } else { c }).collect())
}

/// `192.0.2.1`, `IPV6:2001:db8::1`; a bare IPv6 address is understood too.
fn address(text: &str) -> Option<IpAddr> {
    let v6 = text.get(..5).filter(|prefix| prefix.eq_ignore_ascii_case("IPV6:"));
    match v6 {
        Some(prefix) => text.get(prefix.len()..)?.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => text.parse().ok(),
    }
    .map(|address: IpAddr| address.to_canonical())
}

fn number(text: &str) -> Option<u16> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn protocol(value: &str) -> Result<bool, Mistake> {
    match () {
        () if value.eq_ignore_ascii_case("ESMTP") => Ok(true),
        () if value.eq_ignore_ascii_case("SMTP") => Ok(false),
        () => Err(Mistake::Value("PROTO")),
    }
}

fn source(text: &str) -> Option<bool> {
    match () {
        () if text.eq_ignore_ascii_case("LOCAL") => Some(true),
        () if text.eq_ignore_ascii_case("REMOTE") => Some(false),
        () => None,
    }
}

/// A name as it may be repeated to the client.
fn shown(name: &str) -> String {
    name.chars().take(32).map(|c| if c.is_ascii_graphic() { c } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_whole_client() {
        let said = Xclient::parse(
            "NAME=spike.porcupine.org addr=168.100.189.2 PORT=40000 Proto=ESMTP HELO=spike \
             LOGIN=ann+40example.org DESTADDR=IPV6:2001:db8::1 DESTPORT=25",
        );
        assert_eq!(
            said,
            Ok(Xclient {
                name: Some(Told::Known(Domain::parse("spike.porcupine.org").unwrap())),
                address: Some(Told::Known("168.100.189.2".parse().unwrap())),
                port: Some(Told::Known(40000)),
                extended: Some(true),
                helo: Some(Told::Known("spike".into())),
                login: Some(Told::Known("ann@example.org".into())),
                destination: Some(Told::Known("2001:db8::1".parse().unwrap())),
                destination_port: Some(Told::Known(25)),
            })
        );
    }

    #[test]
    fn what_is_not_known() {
        let said = Xclient::parse("NAME=[unavailable] ADDR=[UNAVAILABLE] LOGIN=[UnAvailable]").unwrap();
        assert_eq!((said.name, said.address), (Some(Told::Unavailable), Some(Told::Unavailable)));
        assert_eq!((said.login, said.helo), (Some(Told::Unavailable), None));
        assert_eq!(Xclient::parse("NAME=[TEMPUNAVAIL]").unwrap().name, Some(Told::Temporary));
        // xtext hides nothing.
        assert_eq!(Xclient::parse("NAME=+5BUNAVAILABLE+5D").unwrap().name, Some(Told::Unavailable));
        let said = Xclient::parse("ADDR=::ffff:192.0.2.1").unwrap();
        assert_eq!(said.address, Some(Told::Known("192.0.2.1".parse().unwrap())));
    }

    #[test]
    fn mistakes() {
        for text in ["", " ", "NAME", "NAME a=b", "ADDR=192.0.2.1 x"] {
            assert!(matches!(Xclient::parse(text), Err(Mistake::Form(_))), "{text:?}");
            assert!(matches!(Xforward::parse(text), Err(Mistake::Form(_) | Mistake::Name(_))), "{text:?}");
        }
        for text in ["X=1", "IDENT=1", "=1", "SOURCE=LOCAL"] {
            assert!(matches!(Xclient::parse(text), Err(Mistake::Name(_))), "{text:?}");
        }
        assert!(matches!(Xforward::parse("LOGIN=ann"), Err(Mistake::Name(_))));
        let long = format!("HELO={}", "x".repeat(256));
        for text in [
            "ADDR=",
            "ADDR=host",
            "ADDR=[192.0.2.1]",
            "ADDR=IPV6:192.0.2.1",
            "ADDR=192.0.2.1:25",
            "PORT=65536",
            "PORT=-1",
            "PORT=+31",
            "PROTO=LMTP",
            "PROTO=[UNAVAILABLE]",
            "NAME=a..b",
            "NAME=a_b+0A",
            "HELO=a+0Db",
            "HELO=a+0db",
            "HELO=a+4",
            "HELO=a+GG",
            "HELO=\u{e9}",
            "LOGIN=+00",
            &long,
        ] {
            let expected = if text == "PORT=+31" { "Ok" } else { "Bad" };
            let read = Xclient::parse(text).map_or_else(|e| e.to_string(), |_| "Ok".into());
            assert!(read.starts_with(expected), "{text:?}: {read}");
        }
        assert_eq!(Mistake::Name("X".into()).reply().to_string(), "501 5.5.4 Bad attribute name: X");
    }

    #[test]
    fn forwarded_values_add_up() {
        let mut forwarded = Forwarded::default();
        let said = "NAME=a+20(b) ADDR=198.51.100.7 PORT=1 PROTO=ESMTPS HELO=x IDENT=4Q+28 SOURCE=LOCAL";
        forwarded.take(Xforward::parse(said).unwrap());
        assert_eq!(forwarded.name.as_deref(), Some("a??b?"));
        assert_eq!(forwarded.address, Some("198.51.100.7".parse().unwrap()));
        assert_eq!((forwarded.port, forwarded.local), (Some(1), true));
        assert_eq!((forwarded.protocol.as_deref(), forwarded.helo.as_deref()), (Some("ESMTPS"), Some("x")));
        forwarded.take(Xforward::parse("HELO=y ADDR=[UNAVAILABLE] SOURCE=REMOTE").unwrap());
        assert_eq!((forwarded.helo.as_deref(), forwarded.address), (Some("y"), None));
        assert_eq!((forwarded.ident.as_deref(), forwarded.local), (Some("4Q?"), false));
        // What is no address of the Internet is none for us.
        assert_eq!(Xforward::parse("ADDR=X.25:1234").unwrap().address, Some(Told::Unavailable));
        assert!(Xforward::parse(&format!("PROTO={}", "x".repeat(65))).is_err());
    }

    /// RFC 3461 §4.
    fn encode(text: &str) -> String {
        let plain = |b: u8| b.is_ascii_graphic() && b != b'+' && b != b'=';
        text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("+{b:02X}") }).collect()
    }

    proptest! {
        #[test]
        fn any_login_survives(login in "[ -~]{1,80}", address: [u8; 16], port: u16) {
            prop_assume!(!login.starts_with('['));
            let address = IpAddr::from(address);
            let text = format!("LOGIN={} ADDR=IPV6:{address} PORT={port}", encode(&login));
            let said = Xclient::parse(&text).unwrap();
            prop_assert_eq!(said.login, Some(Told::Known(login)));
            prop_assert_eq!(said.address, Some(Told::Known(address.to_canonical())));
            prop_assert_eq!(said.port, Some(Told::Known(port)));
        }

        /// Nothing panics, and no value that is taken could end a line or open a header's comment.
        #[test]
        fn any_text(text in "((NAME|ADDR|PORT|PROTO|HELO|LOGIN|IDENT|SOURCE)=([ -~]|\\+[0-9A-F]{2}){0,30} ?){0,4}|.{0,80}") {
            let _ = Xclient::parse(&text);
            let mut forwarded = Forwarded::default();
            if let Ok(said) = Xforward::parse(&text) {
                forwarded.take(said);
            }
            for value in [forwarded.name, forwarded.protocol, forwarded.helo, forwarded.ident] {
                let safe = |c: char| c.is_ascii_graphic() && !SPECIAL.contains(c);
                prop_assert!(value.is_none_or(|value| value.chars().all(safe)));
            }
        }
    }
}
