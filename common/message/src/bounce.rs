//! Reports to senders: of failure, of delay, of success (RFC 3464 in a multipart/report, RFC 6522).
//!
//! Three parts: the facts in plain words for a human, the same for a program, and the message itself or its
//! header section. Everything that came from outside is cleaned before it is written into a line, and
//! the parts before the last are 7-bit; the last one is what the message was, declared 8bit when it is.

use postern_address::Mailbox;

use crate::header::body_offset;
use crate::trace::date;

/// Messages of more octets than this are returned as their header section alone.
const WHOLE_MAX: usize = 64 * 1024;
/// Longest header section that is returned.
const HEADER_MAX: usize = 64 * 1024;
/// A line of mail has at most 998 octets (RFC 5322 §2.1.1); a longer one is cut in a returned header section.
const LINE_MAX: usize = 998;
/// Where words are folded.
const FOLD_AT: usize = 76;
/// Longest reply that is quoted.
const REPLY_MAX: usize = 2000;

/// What a report is made from.
#[derive(Clone, Debug)]
pub struct Bounce<'a> {
    /// Us.
    pub hostname: &'a str,
    /// The report's own queue id: names its Message-ID.
    pub id: &'a str,
    /// Now, milliseconds since 1970.
    pub now: u64,
    /// Who is told.
    pub to: &'a Mailbox,
    /// The queue id of the message that failed.
    pub message_id: &'a str,
    /// When it arrived, milliseconds since 1970.
    pub arrival: u64,
    /// Its envelope's reverse-path, for the human.
    pub sender: &'a str,
    /// What is told.
    pub kind: Kind,
    /// The sender's own name for the envelope (RFC 3461 §4.4).
    pub envid: Option<&'a str>,
    /// Whom it is about; at least one.
    pub failures: &'a [Failed<'a>],
    /// The message, or as much of its beginning as holds the header section.
    pub content: &'a [u8],
    /// `content` is the whole message, and may be returned.
    pub whole: bool,
}

/// What a report tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// That it was given up.
    Failure,
    /// That it is late, and tried until then: milliseconds since 1970.
    Delay(u64),
    /// That it arrived.
    Success,
}

/// What became of a recipient (RFC 3464 §2.3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Given up.
    Failed,
    /// Tried again.
    Delayed,
    /// In the mailbox.
    Delivered,
    /// With a host that makes no such reports.
    Relayed,
    /// Sent to several.
    Expanded,
}

/// A recipient of whom is told.
#[derive(Clone, Debug)]
pub struct Failed<'a> {
    /// The address that was tried.
    pub address: &'a Mailbox,
    /// What the envelope said, where an alias changed it.
    pub original: Option<&'a Mailbox>,
    /// What the sender calls it: type and address (RFC 3461 §4.2).
    pub orcpt: Option<(&'a str, &'a str)>,
    /// What became of it.
    pub action: Action,
    /// `5.1.1` (RFC 3463).
    pub status: String,
    /// Who said so: `name[address]:port`.
    pub remote: Option<&'a str>,
    /// The reply, on one line.
    pub reply: String,
    /// The reply is a remote server's own words.
    pub is_remote: bool,
    /// It was given up for its age; the reply is that of the last attempt.
    pub expired: bool,
}

/// A report, ready for the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Composed {
    /// Header section and body, CRLF line ends.
    pub message: Vec<u8>,
    /// It holds octets above 127.
    pub eight_bit: bool,
}

/// Writes a report. Its envelope's reverse-path is to be null (RFC 3464 §2, RFC 5321 §4.5.5).
pub fn compose(bounce: &Bounce<'_>) -> Composed {
    let (kind, returned) = returned(bounce);
    let eight_bit = returned.iter().any(|b| *b >= 0x80);
    let encoding = if eight_bit { "8bit" } else { "7bit" };
    let words = words(bounce);
    let status = status(bounce);
    let boundary = boundary(bounce, &[words.as_bytes(), status.as_bytes(), &returned]);
    let mut out = format!(
        "Date: {date}\r\n\
         From: Mail Delivery System <MAILER-DAEMON@{host}>\r\n\
         To: <{to}>\r\n\
         Message-ID: <{id}@{host}>\r\n\
         Subject: {subject}\r\n\
         Auto-Submitted: auto-replied\r\n\
         MIME-Version: 1.0\r\n\
         Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary=\"{boundary}\"\r\n\
         Content-Transfer-Encoding: {encoding}\r\n\
         \r\n\
         This is a report about the delivery of mail, in MIME format.\r\n\
         \r\n\
         --{boundary}\r\n\
         Content-Description: Notification\r\n\
         Content-Type: text/plain; charset=us-ascii\r\n\
         \r\n\
         {words}\
         \r\n\
         --{boundary}\r\n\
         Content-Description: Delivery report\r\n\
         Content-Type: message/delivery-status\r\n\
         \r\n\
         {status}\
         \r\n\
         --{boundary}\r\n\
         Content-Description: {description}\r\n\
         Content-Type: {kind}\r\n\
         Content-Transfer-Encoding: {encoding}\r\n\
         \r\n",
        subject = match bounce.kind {
            Kind::Failure => "Undelivered Mail Returned to Sender",
            Kind::Delay(_) => "Delayed Mail (still being retried)",
            Kind::Success => "Successful Mail Delivery Report",
        },
        description = match bounce.kind {
            Kind::Failure => "Undelivered message",
            Kind::Delay(_) => "Delayed message",
            Kind::Success => "Delivered message",
        },
        date = date(bounce.now),
        host = bounce.hostname,
        to = bounce.to,
        id = bounce.id,
    )
    .into_bytes();
    out.extend_from_slice(&returned);
    out.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    // A UTF-8 address in To is 8-bit as well.
    let eight_bit = eight_bit || out.iter().any(|b| *b >= 0x80);
    Composed { message: out, eight_bit }
}

/// For a human (RFC 6522 §3, first part).
fn words(bounce: &Bounce<'_>) -> String {
    let what = match bounce.kind {
        Kind::Failure => "Your message could not be delivered to everyone it was for. The\r\n\
             recipients below did not get it, and it will not be tried again.\r\n\
             The message, or its beginning, is attached.\r\n"
            .to_owned(),
        Kind::Delay(until) => format!(
            "Your message could not be delivered to the recipients below yet.\r\n\
             You do not need to send it again: it will be tried until\r\n\
             {}.\r\n\
             The header of the message is attached.\r\n",
            date(until)
        ),
        Kind::Success => "Your message was delivered to the recipients below, as you asked\r\n\
             to be told. Where it says so, it was handed on to where no more is\r\n\
             told. The header of the message is attached.\r\n"
            .to_owned(),
    };
    let mut text = format!("This is the mail system at host {}.\r\n\r\n{what}", bounce.hostname);
    for failed in bounce.failures {
        text.push_str("\r\n");
        let original = failed.original.map(|o| format!(" (expanded from <{}>)", ascii(o.as_str())));
        let address = format!("<{}>{}:", ascii(failed.address.as_str()), original.unwrap_or_default());
        fold(&mut text, &address, "    ");
        let who = match failed.remote {
            Some(remote) if failed.is_remote => format!("host {} said: ", ascii(remote)),
            _ => String::new(),
        };
        let age = match failed.action {
            _ if failed.expired => "not delivered in time. The last attempt: ",
            Action::Failed | Action::Delayed => "",
            Action::Delivered => "delivered. ",
            Action::Relayed => "relayed to a host that does not tell of delivery. ",
            Action::Expanded => "is an alias of several; no more is told of them. ",
        };
        text.push_str("    ");
        fold(&mut text, &format!("{age}{who}{}", quoted_reply(failed)), "    ");
    }
    text
}

/// For a program (RFC 3464 §2).
fn status(bounce: &Bounce<'_>) -> String {
    let mut text = String::new();
    if let Some(envid) = bounce.envid {
        field(&mut text, "Original-Envelope-Id", &ascii(envid));
    }
    field(&mut text, "Reporting-MTA", &format!("dns; {}", ascii(bounce.hostname)));
    field(&mut text, "X-Postern-Queue-ID", &ascii(bounce.message_id));
    // A comment for those who look, not a field of the RFC.
    let sender = if bounce.sender.is_empty() { "" } else { bounce.sender };
    field(&mut text, "X-Postern-Sender", &address(sender));
    field(&mut text, "Arrival-Date", &date(bounce.arrival));
    for failed in bounce.failures {
        text.push_str("\r\n");
        match (failed.orcpt, failed.original) {
            (Some((kind, orcpt)), _) => {
                field(&mut text, "Original-Recipient", &format!("{}; {}", ascii(kind), seven_bit(orcpt)));
            }
            (None, Some(original)) => field(&mut text, "Original-Recipient", &address(original.as_str())),
            (None, None) => {}
        }
        field(&mut text, "Final-Recipient", &address(failed.address.as_str()));
        let action = match failed.action {
            Action::Failed => "failed",
            Action::Delayed => "delayed",
            Action::Delivered => "delivered",
            Action::Relayed => "relayed",
            Action::Expanded => "expanded",
        };
        field(&mut text, "Action", action);
        field(&mut text, "Status", &failed.status);
        if let Some(remote) = failed.remote.filter(|_| failed.is_remote) {
            field(&mut text, "Remote-MTA", &format!("dns; {}", ascii(&host_name(remote))));
        }
        let kind = if failed.is_remote { "smtp" } else { "x-postern" };
        field(&mut text, "Diagnostic-Code", &format!("{kind}; {}", quoted_reply(failed)));
        if let Kind::Delay(until) = bounce.kind {
            field(&mut text, "Will-Retry-Until", &date(until));
        }
    }
    text
}

/// The name in `name[address]:port`; an address in its place is written as a literal.
fn host_name(remote: &str) -> String {
    let name = remote.split_once('[').map_or(remote, |(name, _)| name);
    match name.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(v4)) => format!("[{v4}]"),
        Ok(std::net::IpAddr::V6(v6)) => format!("[IPv6:{v6}]"),
        Err(_) if name.is_empty() => remote.to_owned(),
        Err(_) => name.to_owned(),
    }
}

fn field(out: &mut String, name: &str, value: &str) {
    fold(out, &format!("{name}: {value}"), "    ");
}

/// RFC 3464 §2.1.2; a UTF-8 address in the 7-bit form of RFC 6533 §3.
fn address(text: &str) -> String {
    match text.is_ascii() {
        true => format!("rfc822; {}", ascii(text)),
        false => format!("utf-8; {}", seven_bit(text)),
    }
}

/// An address as it stands in a field that holds nothing but ASCII.
fn seven_bit(text: &str) -> String {
    if text.is_ascii() {
        return ascii(text);
    }
    let mut out = String::new();
    for c in text.chars() {
        if c.is_ascii_graphic() && !"\\+=".contains(c) {
            out.push(c);
        } else {
            out.push_str(&format!("\\x{{{:X}}}", u32::from(c)));
        }
    }
    out
}

fn quoted_reply(failed: &Failed<'_>) -> String {
    let mut reply = ascii(&failed.reply);
    reply.truncate(REPLY_MAX);
    reply
}

/// Printable ASCII; anything else becomes `?`.
fn ascii(text: &str) -> String {
    text.chars().map(|c| if c == ' ' || c.is_ascii_graphic() { c } else { '?' }).collect()
}

/// Appends words and a line end, broken at blanks, where there are some, before lines get long, and
/// anywhere before they get longer than mail allows.
fn fold(out: &mut String, text: &str, indent: &str) {
    let mut length = out.len() - out.rfind('\n').map_or(0, |at| at + 1);
    let mut first = true;
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let mut word = word;
        if !first {
            if length + 1 + word.len() > FOLD_AT {
                out.push_str("\r\n");
                out.push_str(indent);
                length = indent.len();
            } else {
                out.push(' ');
                length += 1;
            }
        }
        first = false;
        while length + word.len() > LINE_MAX - 8 {
            let (head, rest) = word.split_at((LINE_MAX - 8).saturating_sub(length).min(word.len()));
            out.push_str(head);
            out.push_str("\r\n");
            out.push_str(indent);
            length = indent.len();
            word = rest;
        }
        out.push_str(word);
        length += word.len();
    }
    out.push_str("\r\n");
}

/// The last part: media type and content.
fn returned(bounce: &Bounce<'_>) -> (&'static str, Vec<u8>) {
    let content = bounce.content;
    // A header section with UTF-8 is that of another type (RFC 6532 §3.7, RFC 6533 §4).
    let offset = body_offset(content);
    let utf8 = !content.get(..offset).unwrap_or(content).is_ascii();
    let long_line = content.split(|b| *b == b'\n').any(|line| line.len() > LINE_MAX + 1);
    if bounce.whole && content.len() <= WHOLE_MAX && !long_line {
        let kind = if utf8 { "message/global" } else { "message/rfc822" };
        return (kind, ended(content.to_vec()));
    }
    let header = content.get(..offset.min(HEADER_MAX)).unwrap_or(content);
    let mut out = Vec::with_capacity(header.len());
    for line in header.split(|b| *b == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            continue; // The empty line that ends the section, and what follows the last line end.
        }
        out.extend_from_slice(line.get(..LINE_MAX).unwrap_or(line));
        out.extend_from_slice(b"\r\n");
    }
    (if utf8 { "message/global-headers" } else { "text/rfc822-headers" }, out)
}

fn ended(mut content: Vec<u8>) -> Vec<u8> {
    if !content.ends_with(b"\r\n") {
        content.extend_from_slice(b"\r\n");
    }
    content
}

/// A boundary that occurs in no part (RFC 2046 §5.1.1).
fn boundary(bounce: &Bounce<'_>, parts: &[&[u8]]) -> String {
    (0u32..)
        .map(|n| format!("{}.{n}/{}", bounce.id, bounce.hostname.get(..40).unwrap_or(bounce.hostname)))
        .find(|boundary| parts.iter().all(|part| memchr::memmem::find(part, boundary.as_bytes()).is_none()))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::header::fields;

    fn mailbox(text: &str) -> Mailbox {
        Mailbox::parse(text).unwrap()
    }

    fn failed<'a>(address: &'a Mailbox, reply: &str) -> Failed<'a> {
        Failed {
            address,
            original: None,
            orcpt: None,
            action: Action::Failed,
            status: "5.1.1".into(),
            remote: Some("mx.y.test[192.0.2.1]:25"),
            reply: reply.into(),
            is_remote: true,
            expired: false,
        }
    }

    fn report(to: &Mailbox, failures: &[Failed<'_>], content: &[u8], whole: bool) -> Composed {
        compose(&Bounce {
            hostname: "mx.test",
            id: "0B",
            now: 1_790_000_000_000,
            to,
            message_id: "0A",
            arrival: 1_789_999_000_000,
            sender: to.as_str(),
            kind: Kind::Failure,
            envid: None,
            failures,
            content,
            whole,
        })
    }

    /// Splits a report as a MIME reader does: content type and content of each part.
    fn parts(message: &[u8]) -> Vec<(String, Vec<u8>)> {
        let kind = fields(message).find(|f| f.is("content-type")).unwrap().value();
        let boundary = kind.split("boundary=\"").nth(1).unwrap().trim_end_matches('"').to_owned();
        let text = &message[body_offset(message)..];
        let delimiter = format!("\r\n--{boundary}").into_bytes();
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(at) = memchr::memmem::find(rest, &delimiter) {
            pieces.push(&rest[..at]);
            rest = &rest[at + delimiter.len()..];
        }
        assert_eq!(rest, b"--\r\n");
        pieces[1..]
            .iter()
            .map(|piece| {
                let part = piece.strip_prefix(b"\r\n").unwrap();
                let kind = fields(part).find(|f| f.is("content-type")).unwrap().value();
                (kind, part[body_offset(part)..].to_vec())
            })
            .collect()
    }

    #[test]
    fn a_report() {
        let (to, gone, alias) = (mailbox("s@x.test"), mailbox("u@y.test"), mailbox("list@x.test"));
        let mut second = failed(&gone, "451 4.3.0 disk full");
        (second.original, second.is_remote, second.expired) = (Some(&alias), false, true);
        second.status = "4.3.0".into();
        let failures = [failed(&gone, "550 5.1.1 No such user\r\nX-Evil: yes"), second];
        let content = b"Subject: hello\r\nFrom: <s@x.test>\r\n\r\nbody\r\n";
        let composed = report(&to, &failures, content, true);
        assert!(!composed.eight_bit);
        let field = |name: &str| fields(&composed.message).find(|f| f.is(name)).map(|f| f.value());
        assert_eq!(field("to").as_deref(), Some("<s@x.test>"));
        assert_eq!(field("auto-submitted").as_deref(), Some("auto-replied"));
        assert_eq!(field("message-id").as_deref(), Some("<0B@mx.test>"));
        assert!(field("content-type").unwrap().starts_with("multipart/report; report-type=delivery-status;"));
        let parts = parts(&composed.message);
        let kinds: Vec<&str> = parts.iter().map(|(kind, _)| kind.as_str()).collect();
        assert_eq!(kinds, ["text/plain; charset=us-ascii", "message/delivery-status", "message/rfc822"]);
        let words = String::from_utf8(parts[0].1.clone()).unwrap();
        assert!(words.contains("host mx.y.test[192.0.2.1]:25 said: 550 5.1.1"), "{words}");
        assert!(words.contains("<u@y.test> (expanded from <list@x.test>):"), "{words}");
        let status = String::from_utf8(parts[1].1.clone()).unwrap();
        let groups: Vec<&str> = status.trim_end().split("\r\n\r\n").collect();
        assert!(
            groups[0].starts_with("Reporting-MTA: dns; mx.test\r\n") && groups[0].contains("Arrival-Date: ")
        );
        assert_eq!(
            groups[1],
            "Final-Recipient: rfc822; u@y.test\r\nAction: failed\r\nStatus: 5.1.1\r\n\
             Remote-MTA: dns; mx.y.test\r\nDiagnostic-Code: smtp; 550 5.1.1 No such user??X-Evil: yes"
        );
        assert_eq!(
            groups[2],
            "Original-Recipient: rfc822; list@x.test\r\nFinal-Recipient: rfc822; u@y.test\r\nAction: failed\r\n\
             Status: 4.3.0\r\nDiagnostic-Code: x-postern; 451 4.3.0 disk full"
        );
        assert_eq!(parts[2].1, content);
    }

    #[test]
    fn what_a_sender_asked_to_be_told() {
        let (to, there) = (mailbox("s@x.test"), mailbox("почта@y.test"));
        let told = |kind, action, status: &str, reply: &str| {
            let recipient = Failed {
                orcpt: Some(("utf-8", "ящик@y.test")),
                action,
                status: status.into(),
                ..failed(&there, reply)
            };
            let composed = compose(&Bounce {
                hostname: "mx.test",
                id: "0B",
                now: 1_790_000_000_000,
                to: &to,
                message_id: "0A",
                arrival: 1_789_999_000_000,
                sender: to.as_str(),
                kind,
                envid: Some("QQ314159 \u{e9}"),
                failures: &[recipient],
                content: "Subject: привет\r\n\r\nbody\r\n".as_bytes(),
                whole: false,
            });
            let parts = parts(&composed.message);
            assert_eq!(parts[2].0, "message/global-headers");
            let subject = fields(&composed.message).find(|f| f.is("subject")).unwrap().value();
            (subject, String::from_utf8(parts[1].1.clone()).unwrap())
        };
        let (subject, status) = told(Kind::Success, Action::Relayed, "2.1.5", "250 2.1.5 Ok");
        assert_eq!(subject, "Successful Mail Delivery Report");
        assert!(status.starts_with("Original-Envelope-Id: QQ314159 ?\r\nReporting-MTA: dns; mx.test\r\n"));
        let group = status.trim_end().split("\r\n\r\n").nth(1).unwrap();
        assert_eq!(
            group.replace("\r\n    ", " "),
            "Original-Recipient: utf-8; \\x{44F}\\x{449}\\x{438}\\x{43A}@y.test\r\n\
             Final-Recipient: utf-8; \\x{43F}\\x{43E}\\x{447}\\x{442}\\x{430}@y.test\r\n\
             Action: relayed\r\nStatus: 2.1.5\r\nRemote-MTA: dns; mx.y.test\r\n\
             Diagnostic-Code: smtp; 250 2.1.5 Ok"
        );
        let (subject, status) =
            told(Kind::Delay(1_790_100_000_000), Action::Delayed, "4.4.1", "451 4.4.1 no");
        assert!(subject.starts_with("Delayed Mail"));
        assert!(status.contains("\r\nAction: delayed\r\n") && status.contains("\r\nWill-Retry-Until: "));
    }

    #[test]
    fn names_of_hosts() {
        assert_eq!(host_name("mx.y.test[192.0.2.1]:25"), "mx.y.test");
        assert_eq!(host_name("192.0.2.1[192.0.2.1]:25"), "[192.0.2.1]");
        assert_eq!(host_name("2001:db8::1[2001:db8::1]:25"), "[IPv6:2001:db8::1]");
    }

    #[test]
    fn large_or_odd_content_is_returned_as_its_header() {
        let (to, gone) = (mailbox("s@x.test"), mailbox("u@y.test"));
        let failures = [failed(&gone, "550 no")];
        let long = [b"Subject: a\r\nX: ", &[b'y'; 3000][..], b"\r\n\r\nbody\r\n"].concat();
        let composed = report(&to, &failures, &long, true);
        let parts = parts(&composed.message);
        assert_eq!(parts[2].0, "text/rfc822-headers");
        assert_eq!(parts[2].1.len(), b"Subject: a\r\n".len() + LINE_MAX + 2);
        assert!(!report(&to, &failures, b"A: b\r\n\r\nsecret\r\n", false).message.ends_with(b"secret\r\n"));
    }

    #[test]
    fn the_boundary_is_not_in_the_content() {
        let (to, gone) = (mailbox("s@x.test"), mailbox("u@y.test"));
        let content = b"A: b\r\n\r\n--0B.0/mx.test\r\n--0B.1/mx.test--\r\n";
        let composed = report(&to, &[failed(&gone, "550 no")], content, true);
        assert_eq!(parts(&composed.message)[2].1, content);
    }

    proptest! {
        #[test]
        fn whatever_comes_in_a_report_is_well_formed(
            reply in "\\PC{0,40}|(?s).{0,3000}",
            content in proptest::collection::vec(any::<u8>(), 0..300),
            local in "[a-zé]{1,10}",
        ) {
            let (to, gone) = (mailbox("s@x.test"), mailbox(&format!("{local}@y.test")));
            let composed = report(&to, &[failed(&gone, &reply)], &content, true);
            let parts = parts(&composed.message);
            prop_assert_eq!(parts.len(), 3);
            for (_, part) in &parts[..2] {
                prop_assert!(part.is_ascii());
                for line in part.split(|b| *b == b'\n') {
                    prop_assert!(line.len() <= LINE_MAX + 1);
                }
            }
            prop_assert_eq!(composed.eight_bit, !composed.message.is_ascii());
            let status = String::from_utf8(parts[1].1.clone()).unwrap();
            prop_assert_eq!(status.matches("\r\n\r\n").count(), 1, "one group of fields a recipient");
        }
    }
}
