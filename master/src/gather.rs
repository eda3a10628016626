//! Questions put to every program at once: the answers are gathered until all have come, their programs
//! died, or the patience is over.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use mio::Token;
use postern_config::Config;
use postern_ipc::supervise::{Attempt, FromChild};

use crate::resources::Tls;

/// How long programs may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is taken of a program's answer: all that one of ours says, and no more than fits a frame with the
/// answers of the others.
const COUNTERS_MOST: usize = 50;
const NAME_MOST: usize = 50;
const WHY_MOST: usize = 1000;

/// A question under way.
pub(crate) struct Gather {
    /// Who asked, on the control socket; nobody for a reload by SIGHUP.
    pub(crate) connection: Option<Token>,
    /// What was asked.
    pub(crate) subject: Subject,
    waiting: BTreeSet<usize>,
    deadline: Instant,
}

/// What a reload brings when all agree.
pub(crate) struct Renewal {
    pub(crate) config: Config,
    /// The log, opened anew.
    pub(crate) log: OwnedFd,
    /// Key and certificate, opened anew.
    pub(crate) tls: Option<Tls>,
}

/// What became of each attempt: `Ok` is a hole, `Err` the errno that closed it.
pub(crate) type Outcomes = Vec<(Attempt, Result<(), i32>)>;

/// What was asked, and the answers so far, by the place of the program that gave them.
pub(crate) enum Subject {
    /// Counters, for `postern status`.
    Status(Vec<(usize, Vec<(String, u64)>)>),
    /// What the sandbox prevented.
    Probe(Vec<(usize, Outcomes)>),
    /// Whether a new configuration can be taken: it, its files, and who refused it and why.
    Reload(Box<Renewal>, Vec<(usize, String)>),
}

impl Gather {
    /// A question to the programs at `places`.
    pub(crate) fn new(
        connection: Option<Token>,
        subject: Subject,
        places: impl Iterator<Item = usize>,
        now: Instant,
    ) -> Self {
        Self { connection, subject, waiting: places.collect(), deadline: now + PATIENCE }
    }

    /// An answer of the program at `place`. An answer to another question is none of ours.
    pub(crate) fn answer(&mut self, place: usize, answer: &FromChild) {
        if !self.waiting.contains(&place) {
            return;
        }
        match (&mut self.subject, answer) {
            (Subject::Status(answers), FromChild::Alive(counters)) => {
                let some = counters.iter().take(COUNTERS_MOST);
                answers.push((place, some.map(|(name, value)| (plain(name, NAME_MOST), *value)).collect()));
            }
            (Subject::Probe(answers), FromChild::Probed(outcome)) => answers.push((place, outcome.clone())),
            (Subject::Reload(_, refusals), FromChild::Prepared(outcome)) => {
                if let Err(why) = outcome {
                    refusals.push((place, plain(why, WHY_MOST)));
                }
            }
            _ => return,
        }
        self.waiting.remove(&place);
    }

    /// The program at `place` died. A reload cannot do without it.
    pub(crate) fn died(&mut self, place: usize) {
        if self.waiting.remove(&place)
            && let Subject::Reload(_, refusals) = &mut self.subject
        {
            refusals.push((place, "it died while checking the configuration".into()));
        }
    }

    /// Nobody is waited for any more. A program that did not answer a reload in time has refused it.
    pub(crate) fn is_over(&mut self, now: Instant) -> bool {
        if now >= self.deadline {
            let silent = std::mem::take(&mut self.waiting);
            if let Subject::Reload(_, refusals) = &mut self.subject {
                refusals.extend(silent.into_iter().map(|place| (place, "it did not answer in time".into())));
            }
        }
        self.waiting.is_empty()
    }

    /// A reload is waiting for its programs.
    pub(crate) fn is_reload(&self) -> bool {
        matches!(self.subject, Subject::Reload(..))
    }

    /// When the patience is over.
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }
}

/// A program's words, for a terminal and a frame: it may have been taken over.
fn plain(text: &str, most: usize) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '?' } else { c }).take(most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_deaths_and_silence() {
        let now = Instant::now();
        let mut gather = Gather::new(None, Subject::Status(Vec::new()), 0..3, now);
        gather.answer(0, &FromChild::Alive(vec![("x".into(), 1)]));
        gather.answer(0, &FromChild::Alive(vec![("twice".into(), 2)]));
        gather.answer(1, &FromChild::Ready);
        gather.died(2);
        assert!(!gather.is_over(now));
        assert!(gather.is_over(now + PATIENCE));
        let Subject::Status(answers) = gather.subject else { panic!() };
        assert_eq!(answers, [(0, vec![("x".into(), 1)])]);
    }

    #[test]
    fn a_program_s_words_are_cut_and_harmless() {
        let now = Instant::now();
        let mut gather = Gather::new(None, Subject::Status(Vec::new()), 0..1, now);
        gather.answer(0, &FromChild::Alive(vec![("\x1b[2J".repeat(9_000), 1); 900]));
        let Subject::Status(answers) = gather.subject else { panic!() };
        let counters = &answers[0].1;
        assert_eq!((counters.len(), counters[0].0.chars().count()), (COUNTERS_MOST, NAME_MOST));
        assert!(counters[0].0.starts_with("?[2J?"));
    }
}
