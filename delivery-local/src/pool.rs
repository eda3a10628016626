//! Which worker does what: a pure table. Its actions are to be carried out in their order.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::plan::Post;

/// A worker without work ends after this.
pub const IDLE: Duration = Duration::from_secs(5);

/// How often a job is given to another worker because the first one left before it began.
const TRIES: u8 = 3;

/// Names a worker for ever: actions that are still to be done must not reach a successor.
pub type WorkerId = u64;

/// To be done by the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start a worker for this.
    Start(WorkerId, Post),
    /// Give it this job.
    Send(WorkerId, u64),
    /// Close its socket: it ends.
    End(WorkerId),
}

/// Workers and what they have to do. Jobs are named by a number.
#[derive(Debug)]
pub struct Pool {
    workers: BTreeMap<WorkerId, Worker>,
    next_id: WorkerId,
    /// No worker was free for these: oldest first.
    waiting: VecDeque<Task>,
    limit: usize,
}

#[derive(Clone, Debug)]
struct Task {
    serial: u64,
    post: Post,
    tries: u8,
}

#[derive(Debug)]
struct Worker {
    post: Post,
    tasks: Vec<Task>,
    idle_since: Instant,
}

impl Pool {
    /// A pool of at most `limit` workers at once.
    pub fn new(limit: usize) -> Self {
        Self { workers: BTreeMap::new(), next_id: 0, waiting: VecDeque::new(), limit: limit.max(1) }
    }

    /// A job to do.
    pub fn submit(&mut self, serial: u64, post: Post, now: Instant) -> Vec<Action> {
        self.waiting.push_back(Task { serial, post, tries: 0 });
        self.assign(now)
    }

    /// A worker has answered a job. False when it never had it.
    pub fn finished(&mut self, worker: WorkerId, serial: u64, now: Instant) -> (bool, Vec<Action>) {
        let Some(entry) = self.workers.get_mut(&worker) else { return (false, Vec::new()) };
        let before = entry.tasks.len();
        entry.tasks.retain(|task| task.serial != serial);
        entry.idle_since = now;
        let had = entry.tasks.len() < before;
        (had, self.assign(now))
    }

    /// A worker is gone. When it left in order, what it had goes to others; returns the jobs that are lost.
    pub fn gone(&mut self, worker: WorkerId, in_order: bool, now: Instant) -> (Vec<u64>, Vec<Action>) {
        let Some(entry) = self.workers.remove(&worker) else { return (Vec::new(), Vec::new()) };
        let mut lost = Vec::new();
        for task in entry.tasks.into_iter().rev() {
            match in_order && task.tries + 1 < TRIES {
                true => self.waiting.push_front(Task { tries: task.tries + 1, ..task }),
                false => lost.push(task.serial),
            }
        }
        lost.reverse();
        (lost, self.assign(now))
    }

    /// The worker lives and has this job: a [`Action::Send`] is still good.
    pub fn holds(&self, worker: WorkerId, serial: u64) -> bool {
        self.workers.get(&worker).is_some_and(|w| w.tasks.iter().any(|task| task.serial == serial))
    }

    /// Forgets jobs that no worker has yet; returns them.
    pub fn withdraw_waiting(&mut self) -> Vec<u64> {
        self.waiting.drain(..).map(|task| task.serial).collect()
    }

    /// Ends workers that were idle for long.
    pub fn expire(&mut self, now: Instant) -> Vec<Action> {
        let idle: Vec<WorkerId> = self
            .workers
            .iter()
            .filter(|(_, w)| w.tasks.is_empty() && now.saturating_duration_since(w.idle_since) >= IDLE)
            .map(|(id, _)| *id)
            .collect();
        idle.into_iter().map(|id| self.end(id)).collect()
    }

    /// When [`Pool::expire`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.workers.iter().filter(|(_, w)| w.tasks.is_empty()).map(|(_, w)| w.idle_since + IDLE).min()
    }

    /// Workers alive.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Jobs that nobody has.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn assign(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut left = VecDeque::new();
        while let Some(task) = self.waiting.pop_front() {
            match self.worker_for(&task.post, now, &mut actions) {
                Some(id) => {
                    actions.push(Action::Send(id, task.serial));
                    if let Some(worker) = self.workers.get_mut(&id) {
                        worker.tasks.push(task);
                    }
                }
                None => left.push_back(task),
            }
        }
        self.waiting = left;
        actions
    }

    fn worker_for(&mut self, post: &Post, now: Instant, actions: &mut Vec<Action>) -> Option<WorkerId> {
        if let Some((id, _)) = self.workers.iter().find(|(_, worker)| worker.post == *post) {
            return Some(*id);
        }
        if self.workers.len() >= self.limit {
            let idle = self.workers.iter().filter(|(_, worker)| worker.tasks.is_empty());
            let (&id, _) = idle.min_by_key(|(_, worker)| worker.idle_since)?;
            let end = self.end(id);
            actions.push(end);
        }
        let id = self.next_id;
        self.next_id += 1;
        self.workers.insert(id, Worker { post: post.clone(), tasks: Vec::new(), idle_since: now });
        actions.push(Action::Start(id, post.clone()));
        Some(id)
    }

    fn end(&mut self, id: WorkerId) -> Action {
        self.workers.remove(&id);
        Action::End(id)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::plan::Place;

    fn post(n: u8) -> Post {
        Post { identity: None, place: Place::Virtual { shard: n } }
    }

    #[test]
    fn one_worker_for_one_post() {
        let (mut pool, now) = (Pool::new(2), Instant::now());
        assert_eq!(pool.submit(1, post(0), now), [Action::Start(0, post(0)), Action::Send(0, 1)]);
        assert_eq!(pool.submit(2, post(0), now), [Action::Send(0, 2)]);
        assert_eq!(pool.submit(3, post(1), now), [Action::Start(1, post(1)), Action::Send(1, 3)]);
        assert_eq!(pool.submit(4, post(2), now), []);
        let then = [Action::End(1), Action::Start(2, post(2)), Action::Send(2, 4)];
        assert_eq!(pool.finished(1, 3, now).1, then);
        assert!(pool.holds(2, 4) && !pool.holds(1, 3));
    }

    #[test]
    fn what_was_not_begun_is_given_to_another() {
        let (mut pool, now) = (Pool::new(2), Instant::now());
        pool.submit(1, post(0), now);
        pool.submit(2, post(0), now);
        let (lost, actions) = pool.gone(0, true, now);
        assert_eq!((lost, actions.len()), (vec![], 3));
        let (lost, _) = pool.gone(1, false, now);
        assert_eq!(lost, [1, 2]);
        pool.submit(3, post(0), now);
        pool.gone(2, true, now);
        pool.gone(3, true, now);
        assert_eq!(pool.gone(4, true, now).0, [3]);
    }

    #[test]
    fn idle_workers_end() {
        let (mut pool, now) = (Pool::new(2), Instant::now());
        pool.submit(1, post(0), now);
        assert_eq!(pool.deadline(), None);
        pool.finished(0, 1, now);
        assert_eq!(pool.deadline(), Some(now + IDLE));
        assert_eq!(pool.expire(now), []);
        assert_eq!(pool.expire(now + IDLE), [Action::End(0)]);
        assert_eq!(pool.workers(), 0);
    }

    proptest! {
        /// Every job is answered, lost or still there, exactly once, and the limit holds.
        #[test]
        fn nothing_is_forgotten(steps in proptest::collection::vec((0u8..4, 0u8..6), 1..80)) {
            let (mut pool, now) = (Pool::new(3), Instant::now());
            let (mut serial, mut open, mut with_worker) = (0u64, BTreeSet::new(), Vec::<(u64, u64)>::new());
            for (what, n) in steps {
                let actions = match what {
                    0 | 1 => {
                        serial += 1;
                        open.insert(serial);
                        pool.submit(serial, post(n), now)
                    }
                    2 => {
                        let Some(&(worker, job)) = with_worker.get(usize::from(n)) else { continue };
                        with_worker.remove(usize::from(n));
                        let (had, actions) = pool.finished(worker, job, now);
                        prop_assert!(had);
                        prop_assert!(open.remove(&job));
                        actions
                    }
                    _ => {
                        let Some(&(worker, _)) = with_worker.get(usize::from(n)) else { continue };
                        with_worker.retain(|(w, _)| *w != worker);
                        let (lost, actions) = pool.gone(worker, n % 2 == 0, now);
                        lost.iter().for_each(|job| assert!(open.remove(job)));
                        actions
                    }
                };
                for action in actions {
                    if let Action::Send(worker, job) = action {
                        prop_assert!(!with_worker.iter().any(|(_, j)| *j == job));
                        with_worker.push((worker, job));
                    }
                }
                prop_assert!(pool.workers() <= 3);
                prop_assert_eq!(open.len(), with_worker.len() + pool.waiting());
            }
        }
    }
}
