//! The PROXY protocol, versions 1 and 2 (haproxy's `proxy-protocol.txt`): the few octets before all others
//! in which a proxy says whose connection it hands on.
//!
//! [`parse`] is a pure look at the front of what has come so far. It never guesses: who calls it has decided
//! that a header must come, and anything else is a [`Fault`]. At most [`HEADER_MAX`] octets are ever waited
//! for. What the kinds of headers mean:
//!
//! | header | whose connection it is |
//! | --- | --- |
//! | `PROXY TCP4`, `PROXY TCP6`, version 2 TCP over IPv4 or IPv6 | the client's that is named |
//! | version 2 `LOCAL` (the proxy's own health checks) | the proxy's |
//! | `PROXY UNKNOWN`, version 2 `UNSPEC`, Unix sockets, datagrams | the proxy's: there is no address that we could use |

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Most octets of a header. Version 1 has its own limit of 107; of version 2, whose length field reaches to
/// 64 KiB, we take what proxies send (addresses, a certificate's names, a cloud's identifiers) with room.
pub const HEADER_MAX: usize = 4096;

/// Most octets of a line of version 1, CRLF included (§2.1).
const LINE_MAX: usize = 107;

/// What begins a header of version 2 (§2.2).
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// What begins one of version 1.
const WORD: &[u8] = b"PROXY ";

/// The signature, version and command, family, length.
const FIXED: usize = 16;

/// `PP2_TYPE_CRC32C` (§2.2.3).
const TYPE_CRC32C: u8 = 0x03;

/// What a whole header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// The connection is this client's.
    Client {
        /// The client.
        source: SocketAddr,
        /// Where it connected to.
        destination: SocketAddr,
    },
    /// The connection is the proxy's own, or nothing is known: its own addresses are to be used.
    Own,
}

/// What the octets so far are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The beginning of a header.
    More,
    /// A header, and how many octets it has: the client's own begin behind it.
    Whole(Header, usize),
    /// No header. The connection has to be dropped: nothing in it can be believed.
    Not(Fault),
}

/// Why it is no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It begins as no header does.
    #[error("no PROXY header")]
    Absent,
    /// A line of version 1 that is too long, not of its form, or of the wrong family.
    #[error("a broken PROXY line of version 1")]
    Line,
    /// A version or command of version 2 that does not exist.
    #[error("an unknown version or command")]
    Command,
    /// A family or protocol that does not exist.
    #[error("an unknown address family")]
    Family,
    /// The length does not fit what it counts.
    #[error("a length that does not fit")]
    Length,
    /// Longer than [`HEADER_MAX`].
    #[error("a header that is too long")]
    TooLong,
    /// The checksum is wrong.
    #[error("a wrong checksum")]
    Checksum,
}

/// Looks at the front of a connection; `input` is everything that has come.
pub fn parse(input: &[u8]) -> Parsed {
    let begins = |word: &[u8]| {
        let length = input.len().min(word.len());
        input.get(..length) == word.get(..length)
    };
    match () {
        () if begins(&SIGNATURE) => if_whole(version_2(input)),
        () if begins(WORD) => if_whole(version_1(input)),
        () => Parsed::Not(Fault::Absent),
    }
}

fn if_whole(read: Result<Option<(Header, usize)>, Fault>) -> Parsed {
    match read {
        Ok(Some((header, used))) => Parsed::Whole(header, used),
        Ok(None) => Parsed::More,
        Err(fault) => Parsed::Not(fault),
    }
}

/// `PROXY TCP4 192.0.2.1 192.0.2.2 40000 25 CRLF`
fn version_1(input: &[u8]) -> Result<Option<(Header, usize)>, Fault> {
    let line = input.get(..input.len().min(LINE_MAX)).unwrap_or_default();
    let Some(at) = memchr::memchr2(b'\r', b'\n', line) else {
        return if line.len() == LINE_MAX { Err(Fault::Line) } else { Ok(None) };
    };
    match line.get(at..) {
        Some([b'\r', b'\n', ..]) => {}
        Some([b'\r']) if line.len() < LINE_MAX => return Ok(None),
        _ => return Err(Fault::Line),
    }
    let text = line.get(WORD.len()..at).and_then(|text| std::str::from_utf8(text).ok()).ok_or(Fault::Line)?;
    // Whatever stands behind UNKNOWN is to be ignored.
    if text == "UNKNOWN" || text.starts_with("UNKNOWN ") {
        return Ok(Some((Header::Own, at + 2)));
    }
    let mut words = text.split(' ');
    let family = words.next();
    let (source, destination) = (words.next(), words.next());
    let (source_port, destination_port) = (port(words.next())?, port(words.next())?);
    if words.next().is_some() {
        return Err(Fault::Line);
    }
    let address = |word: Option<&str>| match (family, word) {
        (Some("TCP4"), Some(word)) => word.parse::<Ipv4Addr>().map(IpAddr::V4).map_err(|_| Fault::Line),
        (Some("TCP6"), Some(word)) => word.parse::<Ipv6Addr>().map(IpAddr::V6).map_err(|_| Fault::Line),
        _ => Err(Fault::Line),
    };
    let source = SocketAddr::new(address(source)?, source_port);
    let destination = SocketAddr::new(address(destination)?, destination_port);
    Ok(Some((client(source, destination), at + 2)))
}

/// 0 to 65535, without leading zeros.
fn port(word: Option<&str>) -> Result<u16, Fault> {
    let word = word.ok_or(Fault::Line)?;
    let digits = !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
    if !digits || (word.len() > 1 && word.starts_with('0')) {
        return Err(Fault::Line);
    }
    word.parse().map_err(|_| Fault::Line)
}

fn version_2(input: &[u8]) -> Result<Option<(Header, usize)>, Fault> {
    let Some(&command) = input.get(12) else { return Ok(None) };
    let local = match command {
        0x20 => true,
        0x21 => false,
        _ => return Err(Fault::Command),
    };
    let Some(&family) = input.get(13) else { return Ok(None) };
    let Some(&[high, low]) = input.get(14..FIXED) else { return Ok(None) };
    let whole = FIXED + usize::from(u16::from_be_bytes([high, low]));
    if whole > HEADER_MAX {
        return Err(Fault::TooLong);
    }
    // What the family needs is known before it has come.
    let addresses = match family {
        // LOCAL: the family is ignored, and the block is skipped.
        _ if local => 0,
        0x00 => 0,
        0x11 | 0x12 => 12,
        0x21 | 0x22 => 36,
        0x31 | 0x32 => 216,
        _ => return Err(Fault::Family),
    };
    let behind = FIXED + addresses;
    if behind > whole {
        return Err(Fault::Length);
    }
    let Some(header) = input.get(..whole) else { return Ok(None) };
    let block = header.get(FIXED..behind).unwrap_or_default();
    if !local {
        check_values(header, behind)?;
    }
    let said = match (family, block) {
        (0x11, block) if !local => pair::<4>(block),
        (0x21, block) if !local => pair::<16>(block),
        // A Unix socket or datagrams: what we do not support is UNSPEC (§2.2).
        _ => None,
    };
    let said = said.map(|(source, destination)| client(source, destination));
    Ok(Some((said.unwrap_or(Header::Own), whole)))
}

/// Source and destination of `N` octets each, then their ports.
fn pair<const N: usize>(block: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let address = |octets: &[u8]| -> Option<IpAddr> {
        match octets.len() {
            4 => Some(IpAddr::from(<[u8; 4]>::try_from(octets).ok()?)),
            _ => Some(IpAddr::from(<[u8; 16]>::try_from(octets).ok()?)),
        }
    };
    let port = |at: usize| Some(u16::from_be_bytes(block.get(at..at + 2)?.try_into().ok()?));
    let source = SocketAddr::new(address(block.get(..N)?)?, port(2 * N)?);
    Some((source, SocketAddr::new(address(block.get(N..2 * N)?)?, port(2 * N + 2)?)))
}

/// An IPv4 client is one, however it is written.
fn client(source: SocketAddr, destination: SocketAddr) -> Header {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    Header::Client { source: canonical(source), destination: canonical(destination) }
}

/// The type-length-values behind the addresses: skipped, but for a checksum, which covers the whole header
/// with its own four octets as zeros.
fn check_values(header: &[u8], from: usize) -> Result<(), Fault> {
    let mut at = from;
    while at < header.len() {
        let Some(&[kind, high, low]) = header.get(at..at + 3) else { return Err(Fault::Length) };
        let (begin, length) = (at + 3, usize::from(u16::from_be_bytes([high, low])));
        let Some(value) = header.get(begin..begin + length) else { return Err(Fault::Length) };
        if kind == TYPE_CRC32C {
            let said = u32::from_be_bytes(value.try_into().map_err(|_| Fault::Length)?);
            let (before, after) = (header.get(..begin), header.get(begin + length..));
            let mut sum = crc32c::crc32c(before.unwrap_or_default());
            sum = crc32c::crc32c_append(sum, &[0; 4]);
            sum = crc32c::crc32c_append(sum, after.unwrap_or_default());
            if sum != said {
                return Err(Fault::Checksum);
            }
        }
        at = begin + length;
    }
    Ok(())
}

#[cfg(test)]
#[path = "proxy_tests.rs"]
mod tests;
