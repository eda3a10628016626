//! Who waits for what is known of a client: a name, and what the lists say. Both are found side by side, and told
//! together.

use std::collections::HashMap;
use std::hash::Hash;

use postern_ipc::smtpd_verify::{ClientFacts, ClientName, ListHit};

/// Everybody who waits; `A` names them.
#[derive(Debug)]
pub(crate) struct Waiting<A> {
    all: HashMap<A, Parts>,
}

/// What is known so far.
#[derive(Debug, Default)]
struct Parts {
    name: Option<ClientName>,
    lists: Option<(i32, Vec<ListHit>)>,
}

impl<A: Copy + Eq + Hash> Waiting<A> {
    pub(crate) fn new() -> Self {
        Self { all: HashMap::new() }
    }

    /// `asker` waits for a name, and for the lists if `listed`.
    pub(crate) fn begin(&mut self, asker: A, listed: bool) {
        let lists = (!listed).then(|| (0, Vec::new()));
        self.all.insert(asker, Parts { name: None, lists });
    }

    /// The name is known; the facts if all is.
    pub(crate) fn named(&mut self, asker: &A, name: ClientName) -> Option<ClientFacts> {
        self.all.get_mut(asker)?.name = Some(name);
        self.take_whole(asker)
    }

    /// What the lists say is known; the facts if all is.
    pub(crate) fn listed(&mut self, asker: &A, score: i32, lists: Vec<ListHit>) -> Option<ClientFacts> {
        self.all.get_mut(asker)?.lists = Some((score, lists));
        self.take_whole(asker)
    }

    /// These wait no more.
    pub(crate) fn forget(&mut self, gone: impl Fn(&A) -> bool) {
        self.all.retain(|asker, _| !gone(asker));
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    fn take_whole(&mut self, asker: &A) -> Option<ClientFacts> {
        let parts = self.all.get(asker)?;
        if parts.name.is_none() || parts.lists.is_none() {
            return None;
        }
        let parts = self.all.remove(asker)?;
        let (list_score, lists) = parts.lists?;
        Some(ClientFacts { name: parts.name?, list_score, lists })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn told_together() {
        let mut waiting = Waiting::new();
        waiting.begin(1, true);
        waiting.begin(2, false);
        assert_eq!(waiting.named(&1, ClientName::Unknown), None);
        assert_eq!(waiting.named(&2, ClientName::Unknown).unwrap().list_score, 0);
        assert_eq!(waiting.listed(&1, 3, Vec::new()).unwrap().list_score, 3);
        assert_eq!((waiting.len(), waiting.listed(&1, 3, Vec::new())), (0, None));
    }
}
