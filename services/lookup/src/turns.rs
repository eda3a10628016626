//! ETRN (RFC 1985): whose mail may be asked for, and how often. Whoever asks: the mail goes to the domain's
//! own host and not to him, so all that he can do is to ask again and again.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use postern_address::Domain;
use postern_config::RoutePattern;
use postern_ipc::smtpd_lookup::Turned;

use crate::routing::Tables;

/// A domain's mail is asked for once in this time.
const AGAIN: Duration = Duration::from_secs(30);

/// Most domains remembered: below a parent strangers choose them.
const MOST: usize = 1000;

/// When each domain was last asked for.
#[derive(Debug, Default)]
pub struct Turns {
    asked: HashMap<Domain, Instant>,
}

impl Turns {
    /// Whether it may be asked for now; if so, it was.
    pub fn may(&mut self, domain: &Domain, now: Instant) -> bool {
        let recent = |at: &Instant| now.saturating_duration_since(*at) < AGAIN;
        if self.asked.get(domain).is_some_and(recent) {
            return false;
        }
        if self.asked.len() >= MOST {
            self.asked.retain(|_, at| recent(at));
        }
        if self.asked.len() >= MOST {
            return false;
        }
        self.asked.insert(domain.clone(), now);
        true
    }
}

impl Tables {
    /// The domains of ETRN's argument: one, or with `@` also those below it that the configuration names. `#`
    /// and a queue's name is nothing here.
    pub fn turn(&self, node: &str) -> Result<Vec<Domain>, Turned> {
        if node.starts_with('#') {
            return Err(Turned::NoSuchQueue);
        }
        let (below, name) = node.strip_prefix('@').map_or((false, node), |name| (true, name));
        let domain = Domain::parse(name).map_err(|_| Turned::Malformed)?;
        let routed = self.config.routes.iter().filter_map(|route| match &route.domain {
            RoutePattern::Domain(domain) => Some(domain),
            RoutePattern::Below(_) | RoutePattern::Any => None,
        });
        let named = routed.chain(&self.config.relay.domains).filter(|one| below && one.is_within(&domain));
        let mut domains: Vec<Domain> = std::iter::once(&domain).chain(named).cloned().collect();
        domains.sort();
        domains.dedup();
        domains.retain(|domain| self.queues_for(domain));
        if domains.is_empty() { Err(Turned::NotOurs) } else { Ok(domains) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_too_often_and_not_too_many() {
        let (mut turns, start) = (Turns::default(), Instant::now());
        let turn = |name: &str| Domain::parse(name).unwrap();
        assert!(turns.may(&turn("a.test"), start));
        assert!(!turns.may(&turn("a.test"), start + AGAIN / 2));
        assert!(turns.may(&turn("b.test"), start + AGAIN / 2));
        assert!(turns.may(&turn("a.test"), start + AGAIN));
        let others = (0..MOST).filter(|n| turns.may(&turn(&format!("x{n}.test")), start + AGAIN)).count();
        assert_eq!(others, MOST - 2);
        assert!(turns.asked.len() <= MOST);
        assert!(turns.may(&turn("c.test"), start + 3 * AGAIN));
    }
}
