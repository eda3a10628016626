//! What those are told who have to wait or to go, in Postfix's words where it has some.

use std::net::IpAddr;

use postern_ipc::smtpd_verify::{ClientFacts, Exceeded, Measure};
use postern_smtp::Reply;

/// A limit is reached.
pub(crate) fn exceeded(exceeded: &Exceeded, client: IpAddr) -> Reply {
    let from = |what: &str| format!("Error: {what} from {client}");
    match exceeded.measure {
        Measure::Sessions | Measure::Connections => {
            Reply::coded(421, (4, 7, 0), from("too many connections"))
        }
        Measure::Messages => Reply::coded(450, (4, 7, 1), from("too much mail")),
        Measure::Recipients => Reply::coded(450, (4, 7, 1), from("too many recipients")),
        Measure::Errors => Reply::coded(421, (4, 7, 0), from("too many errors")),
        Measure::AuthFailures => Reply::coded(421, (4, 7, 0), from("too many AUTH failures")),
    }
}

/// Lists have the client.
pub(crate) fn listed(facts: &ClientFacts, client: IpAddr) -> Reply {
    let mut text = format!("Service unavailable; Client host [{client}] blocked using ");
    let denying: Vec<_> = facts.lists.iter().filter(|hit| hit.weight > 0).collect();
    let names: Vec<&str> = denying.iter().map(|hit| hit.list.as_str()).collect();
    text.push_str(&names.join(", "));
    for said in denying.iter().filter_map(|hit| hit.text.as_deref()).take(2) {
        text.push_str("; ");
        text.push_str(said);
    }
    Reply::coded(550, (5, 7, 1), text)
}

/// Who is greylisted comes back.
pub(crate) fn greylisted(seconds: u32) -> Reply {
    let text = format!("Recipient address rejected: Greylisted, try again in {seconds} seconds");
    Reply::coded(450, (4, 7, 1), text)
}

/// It talked before it was greeted (RFC 5321 §3.1, §4.3.1).
pub(crate) fn talked_before_greeting() -> Reply {
    Reply::coded(554, (5, 5, 1), "Error: protocol error, talked before the greeting")
}

/// Fewer errors are borne now.
pub(crate) fn too_many_errors() -> Reply {
    Reply::coded(421, (4, 7, 0), "Error: too many errors, try again later")
}

#[cfg(test)]
mod tests {
    use postern_address::Domain;
    use postern_ipc::smtpd_verify::{ListHit, Scope};

    use super::*;

    #[test]
    fn in_the_words_that_are_known() {
        let client = "192.0.2.1".parse().unwrap();
        let hit = |list: &str, weight, text: Option<&str>| ListHit {
            list: Domain::parse(list).unwrap(),
            weight,
            text: text.map(str::to_owned),
        };
        let lists = vec![hit("a.test", 1, Some("see a")), hit("good.test", -1, None), hit("b.test", 2, None)];
        let facts = ClientFacts { list_score: 2, lists, ..ClientFacts::UNKNOWN };
        assert_eq!(
            listed(&facts, client).to_string(),
            "550 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using a.test, b.test; see a"
        );
        for (measure, words) in [
            (Measure::Sessions, "421 4.7.0 Error: too many connections from 192.0.2.1"),
            (Measure::Messages, "450 4.7.1 Error: too much mail from 192.0.2.1"),
            (Measure::Recipients, "450 4.7.1 Error: too many recipients from 192.0.2.1"),
        ] {
            let reached = Exceeded { measure, scope: Scope::Client, count: 2, limit: 1 };
            assert_eq!(exceeded(&reached, client).to_string(), words);
        }
    }
}
