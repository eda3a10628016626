//! Rules on a reply that a pattern cannot say.

use crate::reply::{Reply, enhanced};

/// Judges a reply by a rule of that name.
pub fn check(name: &str, reply: &Reply, offers: Option<&Reply>) -> Result<(), String> {
    let (name, argument) = name.split_once(' ').unwrap_or((name, ""));
    match name {
        "line-length" => line_length(reply),
        "printable" => printable(reply),
        "begins-with-domain" => begins_with_domain(reply),
        "ehlo-keywords" => ehlo_keywords(reply),
        "offered-once" => offered_once(reply),
        "one-line" => demand(reply.lines.len() == 1, || format!("more than one line: {reply}")),
        "not-offered" => {
            demand(offers.is_some_and(|o| o.offer(argument).is_none()), || format!("{argument} is offered"))
        }
        "no-parameters" => match offers.and_then(|o| o.offer(argument)) {
            Some(parameters) => demand(parameters.is_empty(), || format!("{argument} has {parameters:?}")),
            None => Err(format!("{argument} is not offered")),
        },
        "size-parameter" => match offers.and_then(|o| o.offer("SIZE")).as_deref() {
            Some([] | [_]) => number_or_nothing(offers),
            other => Err(format!("SIZE {other:?}")),
        },
        "auth-mechanisms" => auth_mechanisms(offers),
        "clear-text-mechanisms" => clear_text_mechanisms(offers),
        "limits" => limits(offers),
        "enhanced" => enhanced_everywhere(reply),
        "no-enhanced" => demand(reply.lines.iter().all(|line| enhanced(line).is_none()), || {
            format!("enhanced code: {reply}")
        }),
        _ => Err(format!("the script asks for an unknown check, {name}")),
    }
}

fn demand(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}

fn line_length(reply: &Reply) -> Result<(), String> {
    demand(reply.longest <= 512, || format!("a reply line of {} octets", reply.longest))
}

/// textstring of RFC 5321 §4.2: HT, SP, and what is printable.
fn printable(reply: &Reply) -> Result<(), String> {
    let text = |c: char| c == '\t' || (' '..='~').contains(&c);
    demand(reply.lines.iter().all(|line| line.chars().all(text)), || format!("unprintable: {reply:?}"))
}

/// A domain, or an address literal, in front (RFC 5321 §4.1.1.1, §4.2).
fn begins_with_domain(reply: &Reply) -> Result<(), String> {
    let word = reply.lines[0].split(' ').next().unwrap_or_default();
    let label = |label: &str| {
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        ends(label.chars().next())
            && ends(label.chars().last())
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    let literal = word.starts_with('[') && word.ends_with(']') && word.len() > 2;
    demand(literal || word.split('.').all(label), || format!("{word:?} is no domain"))
}

/// ehlo-line of RFC 5321 §4.1.1.1: keywords of letters, digits and hyphens, single blanks, printable words.
fn ehlo_keywords(reply: &Reply) -> Result<(), String> {
    for line in &reply.lines[1..] {
        // RFC 5321 does not know this form, but AUTH=PLAIN is written for the clients of a draft of RFC 2554.
        if line.starts_with("AUTH=") {
            continue;
        }
        let mut words = line.split(' ');
        let keyword = words.next().unwrap_or_default();
        let letters = |c: char| c.is_ascii_alphanumeric() || c == '-';
        let good = keyword.starts_with(|c: char| c.is_ascii_alphanumeric()) && keyword.chars().all(letters);
        let words = words.all(|word| !word.is_empty() && word.bytes().all(|c| (33..=126).contains(&c)));
        demand(good && words, || format!("not the form of an EHLO line: {line:?}"))?;
    }
    Ok(())
}

fn offered_once(reply: &Reply) -> Result<(), String> {
    let mut keywords: Vec<_> = reply.lines[1..]
        .iter()
        .filter_map(|line| Some(line.split(' ').next()?.to_ascii_uppercase()))
        .collect();
    keywords.sort();
    match keywords.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("{} is offered twice", pair[0])),
        None => Ok(()),
    }
}

/// RFC 1870 §4: up to 20 digits.
fn number_or_nothing(offers: Option<&Reply>) -> Result<(), String> {
    let parameters = offers.and_then(|o| o.offer("SIZE")).unwrap_or_default();
    let digits = |p: &&str| (1..=20).contains(&p.len()) && p.bytes().all(|c| c.is_ascii_digit());
    demand(parameters.iter().all(digits), || format!("SIZE {parameters:?}"))
}

/// RFC 4422 §3.1: 1 to 20 letters, digits, hyphens, underscores; RFC 4954 §3: at least one.
fn auth_mechanisms(offers: Option<&Reply>) -> Result<(), String> {
    let mechanisms = offers.and_then(|o| o.offer("AUTH")).unwrap_or_default();
    let letters = |c: u8| c.is_ascii_uppercase() || c.is_ascii_digit() || matches!(c, b'-' | b'_');
    let good = |m: &&str| (1..=20).contains(&m.len()) && m.bytes().all(letters);
    demand(!mechanisms.is_empty() && mechanisms.iter().all(good), || format!("AUTH {mechanisms:?}"))
}

/// RFC 4954 §4: whoever listens on the way must not read the password.
fn clear_text_mechanisms(offers: Option<&Reply>) -> Result<(), String> {
    let mechanisms = offers.and_then(|o| o.offer("AUTH")).unwrap_or_default();
    let clear =
        mechanisms.iter().find(|m| m.eq_ignore_ascii_case("PLAIN") || m.eq_ignore_ascii_case("LOGIN"));
    demand(clear.is_none(), || format!("AUTH {mechanisms:?} in the clear"))
}

/// RFC 9422 §4: name=value or a name alone, and the registered limits are numbers of six digits that are at
/// least what RFC 5321 §4.5.3.1 demands.
fn limits(offers: Option<&Reply>) -> Result<(), String> {
    let limits = offers.and_then(|o| o.offer("LIMITS")).unwrap_or_default();
    demand(!limits.is_empty(), || "LIMITS without a limit".into())?;
    for limit in limits {
        let (name, value) = limit.split_once('=').unwrap_or((limit, ""));
        let letters = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
        demand(!name.is_empty() && name.chars().all(letters), || format!("no name of a limit: {limit}"))?;
        if matches!(name, "MAILMAX" | "RCPTMAX" | "RCPTDOMAINMAX") {
            let number = value.len() <= 6 && !value.starts_with('0') && value.parse::<u32>().is_ok();
            demand(number, || format!("no number of at most six digits: {limit}"))?;
        }
        if name == "RCPTMAX" {
            demand(value.parse().unwrap_or(0) >= 100, || format!("less than 100 recipients: {limit}"))?;
        }
    }
    Ok(())
}

/// RFC 2034 §4: each line of a reply has the same code, and its class is that of the reply.
fn enhanced_everywhere(reply: &Reply) -> Result<(), String> {
    let class = (reply.code / 100).to_string();
    let first = reply.enhanced().ok_or_else(|| format!("no enhanced code: {reply}"))?;
    demand(first.starts_with(&class), || format!("the classes differ: {reply}"))?;
    demand(reply.lines.iter().all(|line| enhanced(line) == Some(first)), || {
        format!("not the same enhanced code on each line: {reply}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reply::Read;

    fn judge(name: &str, reply: &str) -> bool {
        let Read::Reply(reply, _) = Reply::read(reply.as_bytes()) else { panic!("{reply:?}") };
        check(name, &reply, Some(&reply)).is_ok()
    }

    #[test]
    fn rules() {
        for (name, reply, good) in [
            ("printable", "250 a\tb\r\n", true),
            ("printable", "250 \u{e9}\r\n", false),
            ("begins-with-domain", "220 mx.test ESMTP\r\n", true),
            ("begins-with-domain", "220 [127.0.0.1] x\r\n", true),
            ("begins-with-domain", "220 *** x\r\n", false),
            ("ehlo-keywords", "250-a\r\n250-SIZE 5\r\n250 AUTH PLAIN LOGIN\r\n", true),
            ("ehlo-keywords", "250-a\r\n250 SIZE  5\r\n", false),
            ("ehlo-keywords", "250-a\r\n250 X_Y\r\n", false),
            ("offered-once", "250-a\r\n250-SIZE 5\r\n250 size\r\n", false),
            ("size-parameter", "250-a\r\n250 SIZE\r\n", true),
            ("size-parameter", "250-a\r\n250 SIZE x\r\n", false),
            ("no-parameters PIPELINING", "250-a\r\n250 PIPELINING\r\n", true),
            ("auth-mechanisms", "250-a\r\n250 AUTH plain\r\n", false),
            ("limits", "250-a\r\n250 LIMITS RCPTMAX=100 MAILMAX=5\r\n", true),
            ("limits", "250-a\r\n250 LIMITS RCPTMAX=50\r\n", false),
            ("limits", "250-a\r\n250 LIMITS MAILMAX=1000000\r\n", false),
            ("enhanced", "550-5.1.1 a\r\n550 5.1.1 b\r\n", true),
            ("enhanced", "550-5.1.1 a\r\n550 b\r\n", false),
            ("enhanced", "550 4.1.1 a\r\n", false),
            ("no-enhanced", "250 a\r\n", true),
            ("nothing", "250 a\r\n", false),
        ] {
            assert_eq!(judge(name, reply), good, "{name} {reply:?}");
        }
    }
}
