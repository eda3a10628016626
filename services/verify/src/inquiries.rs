//! Clients of whom the resolver is asked something: which questions are open for whom, and until when each
//! client waits. What is asked, and what is made of the answers, is its users' (`naming`, `listing`). Pure.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use postern_ipc::RequestId;

/// Everybody who waits: `C` is what is known of a client, `S` what a question is about.
#[derive(Debug)]
pub(crate) struct Inquiries<C, S> {
    pub(crate) clients: HashMap<u64, Waiting<C>>,
    pub(crate) questions: HashMap<RequestId, (u64, S)>,
    /// All have the same patience, so those who began first end first.
    deadlines: VecDeque<(Instant, u64)>,
    last: u64,
}

/// A client and its questions that are not answered yet.
#[derive(Debug)]
pub(crate) struct Waiting<C> {
    client: C,
    pub(crate) open: Vec<RequestId>,
}

impl<C, S> Inquiries<C, S> {
    /// Nobody waits. All ids, those of clients too, are above `first`.
    pub(crate) fn new(first: u64) -> Self {
        Self { clients: HashMap::new(), questions: HashMap::new(), deadlines: VecDeque::new(), last: first }
    }

    /// A client that waits until `deadline`, no earlier than those before it.
    pub(crate) fn begin(&mut self, client: C, deadline: Instant) -> u64 {
        let id = self.fresh();
        self.clients.insert(id, Waiting { client, open: Vec::new() });
        self.deadlines.push_back((deadline, id));
        id
    }

    /// The id of a new question for a client; none when nobody waits for its answer.
    pub(crate) fn ask(&mut self, id: u64, subject: S) -> Option<RequestId> {
        let question = self.fresh();
        self.clients.get_mut(&id)?.open.push(question);
        self.questions.insert(question, (id, subject));
        Some(question)
    }

    /// A question is answered: whose it was. None when nobody waits for it any more.
    pub(crate) fn answered(&mut self, question: RequestId) -> Option<(u64, S)> {
        let (id, subject) = self.questions.remove(&question)?;
        self.clients.get_mut(&id)?.open.retain(|open| *open != question);
        Some((id, subject))
    }

    pub(crate) fn get(&self, id: u64) -> Option<&C> {
        self.clients.get(&id).map(|waiting| &waiting.client)
    }

    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut C> {
        self.clients.get_mut(&id).map(|waiting| &mut waiting.client)
    }

    /// What a client's open questions are about.
    pub(crate) fn open(&self, id: u64) -> impl Iterator<Item = &S> {
        let open = self.clients.get(&id).into_iter().flat_map(|waiting| &waiting.open);
        open.filter_map(|question| self.questions.get(question).map(|(_, subject)| subject))
    }

    /// A client waits, and none of its questions is open.
    pub(crate) fn is_quiet(&self, id: u64) -> bool {
        self.clients.get(&id).is_some_and(|waiting| waiting.open.is_empty())
    }

    /// A client waits no longer.
    pub(crate) fn end(&mut self, id: u64) -> Option<C> {
        let Waiting { client, open } = self.clients.remove(&id)?;
        for question in open {
            self.questions.remove(&question);
        }
        Some(client)
    }

    /// Nobody waits any longer.
    pub(crate) fn end_all(&mut self) -> Vec<C> {
        self.questions.clear();
        self.deadlines.clear();
        self.clients.drain().map(|(_, waiting)| waiting.client).collect()
    }

    /// One who has waited too long, and is to be ended.
    pub(crate) fn overdue(&mut self, now: Instant) -> Option<u64> {
        while let Some((at, id)) = self.deadlines.front().copied() {
            let waits = self.clients.contains_key(&id);
            if at > now && waits {
                return None;
            }
            self.deadlines.pop_front();
            if waits {
                return Some(id);
            }
        }
        None
    }

    /// When there may be one who is overdue.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadlines.front().map(|(at, _)| *at)
    }

    /// Those for whom `gone` holds wait no longer.
    pub(crate) fn forget(&mut self, gone: impl Fn(&C) -> bool) {
        self.clients.retain(|_, waiting| !gone(&waiting.client));
        self.questions.retain(|_, (id, _)| self.clients.contains_key(id));
    }

    pub(crate) fn len(&self) -> usize {
        self.clients.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    fn fresh(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
}
