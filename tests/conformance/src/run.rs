//! A run of the suite.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::connection;
use crate::delivered::Mailboxes;
use crate::gaps::Gaps;
use crate::machine::{Machine, Verdict};
use crate::profile::Profile;
use crate::report::{Finding, Outcome, Report};
use crate::script::{Requirement, parse};
use crate::text::expand;

/// How to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the server is.
    pub at: SocketAddr,
    /// So many tests at once.
    pub jobs: usize,
    /// Only requirements whose id has one of these in it; all if there is none.
    pub only: Vec<String>,
}

/// A last message, behind everything: when it is delivered, so is what came before it.
const FENCE: &str =
    "[fence] MUST the run\nThe last message is delivered.\n> ehlo\n> send\n> quit\narrived: {token}\n";

/// Runs the suite and judges each requirement.
pub fn run(
    suite: &[Requirement],
    profile: &Profile,
    gaps: &Gaps,
    options: &Options,
) -> Result<Report, String> {
    let chosen =
        |r: &&Requirement| options.only.is_empty() || options.only.iter().any(|o| r.id.contains(o.as_str()));
    let chosen: Vec<&Requirement> = suite.iter().filter(chosen).collect();
    if chosen.is_empty() {
        return Err("no requirement has such an id".into());
    }
    let mailboxes = Mailboxes::new(profile.delivered.clone());
    let run = Run { profile, options, mailboxes, name: unique() };
    let results: Vec<Mutex<Option<Judged>>> = chosen.iter().map(|_| Mutex::default()).collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.clamp(1, chosen.len()) {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let (Some(requirement), Some(result)) = (chosen.get(n), results.get(n)) else { return };
                    let judged = run.judge(requirement, n);
                    *result.lock().unwrap_or_else(PoisonError::into_inner) = Some(judged);
                }
            });
        }
    });
    let mut judged: Vec<Judged> =
        results.into_iter().filter_map(|r| r.into_inner().unwrap_or_else(PoisonError::into_inner)).collect();
    run.judge_absences(&mut judged)?;
    let findings = chosen.iter().zip(judged).map(|(requirement, judged)| Finding {
        outcome: with_gaps(judged.verdict, gaps.gaps.get(&requirement.id)),
        requirement: (*requirement).clone(),
        transcript: judged.transcript,
    });
    Ok(Report { server: profile.name.clone(), at: options.at.to_string(), findings: findings.collect() })
}

struct Run<'a> {
    profile: &'a Profile,
    options: &'a Options,
    mailboxes: Mailboxes,
    name: String,
}

struct Judged {
    verdict: Verdict,
    transcript: Vec<String>,
    absent: Vec<String>,
}

impl Run<'_> {
    /// Runs the script for each value; the first failure decides.
    fn judge(&self, requirement: &Requirement, n: usize) -> Judged {
        if let Some(why) = requirement.wants.iter().find_map(|want| self.profile.lacks(*want)) {
            return Judged { verdict: Verdict::Skip(why.into()), transcript: Vec::new(), absent: Vec::new() };
        }
        let (name, values) = &requirement.each;
        let none = [String::new()];
        let values = if values.is_empty() { &none[..] } else { values };
        let mut all = Judged { verdict: Verdict::Pass, transcript: Vec::new(), absent: Vec::new() };
        for (m, value) in values.iter().enumerate() {
            let mut variables = self.profile.variables();
            variables.insert("id".into(), requirement.id.clone().into_bytes());
            variables.insert("token".into(), format!("{}-{n}-{m}", self.name).into_bytes());
            if !name.is_empty() {
                let filled = expand(value, &|name| variables.get(name).cloned());
                variables.insert(name.clone(), filled);
            }
            let mut machine = Machine::new(requirement, variables, self.mailboxes.lf());
            let verdict =
                connection::run(&mut machine, self.options.at, self.profile.patience(), &self.mailboxes);
            all.absent.extend_from_slice(machine.absent());
            all.transcript = machine.transcript().to_vec();
            match verdict {
                Verdict::Pass => {}
                Verdict::Fail(why) if name.is_empty() => {
                    return Judged { verdict: Verdict::Fail(why), ..all };
                }
                Verdict::Fail(why) => {
                    return Judged { verdict: Verdict::Fail(format!("{name} = {value}: {why}")), ..all };
                }
                skip => return Judged { verdict: skip, ..all },
            }
        }
        all
    }

    /// What must not be delivered is looked for when a last message is through.
    fn judge_absences(&self, judged: &mut [Judged]) -> Result<(), String> {
        if self.profile.delivered.is_none() || judged.iter().all(|judged| judged.absent.is_empty()) {
            return Ok(());
        }
        let fence = parse(FENCE).map_err(|e| e.to_string())?;
        if let Some(fence) = fence.first()
            && let Verdict::Fail(why) = self.judge(fence, usize::MAX).verdict
        {
            return Err(format!("the last message, after which nothing may be delivered, failed: {why}"));
        }
        for judged in judged.iter_mut().filter(|judged| judged.verdict == Verdict::Pass) {
            if let Some(mark) = judged.absent.iter().find(|mark| !self.mailboxes.find(mark).is_empty()) {
                judged.verdict =
                    Verdict::Fail(format!("a message was delivered that never should be: {mark}"));
            }
        }
        Ok(())
    }
}

fn with_gaps(verdict: Verdict, known: Option<&String>) -> Outcome {
    match (verdict, known) {
        (Verdict::Pass, None) => Outcome::Pass,
        (Verdict::Pass, Some(reason)) => Outcome::GapClosed(reason.clone()),
        (Verdict::Fail(why), None) => Outcome::Fail(why),
        (Verdict::Fail(why), Some(reason)) => Outcome::KnownGap(why, reason.clone()),
        (Verdict::Skip(why), _) => Outcome::Skip(why),
    }
}

/// Tells the messages of this run from those of all others.
fn unique() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("c{:x}-{:x}", now.as_micros(), std::process::id())
}
