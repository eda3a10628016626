//! What came out.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::script::Requirement;

/// What came out for one requirement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is met.
    Pass,
    /// It is not, and what was seen.
    Fail(String),
    /// It is not, what was seen, and why that is known.
    KnownGap(String, String),
    /// It is met, though the list of known gaps says that it is not.
    GapClosed(String),
    /// It could not be judged, and why.
    Skip(String),
}

/// One line of the report.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Which requirement.
    pub requirement: Requirement,
    /// What came out.
    pub outcome: Outcome,
    /// What was said in the run that decided.
    pub transcript: Vec<String>,
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// The profile's name.
    pub server: String,
    /// What the server called itself.
    pub at: String,
    /// One for each requirement.
    pub findings: Vec<Finding>,
}

impl Outcome {
    /// One word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail(_) => "fail",
            Self::KnownGap(..) => "gap",
            Self::GapClosed(_) => "gap-closed",
            Self::Skip(_) => "skip",
        }
    }

    /// What was seen, or why.
    pub fn why(&self) -> &str {
        match self {
            Self::Pass => "",
            Self::Fail(why) | Self::KnownGap(why, _) | Self::GapClosed(why) | Self::Skip(why) => why,
        }
    }
}

impl Report {
    /// Nothing failed that is not listed, and nothing listed was met.
    pub fn is_good(&self) -> bool {
        !self.findings.iter().any(|f| matches!(f.outcome, Outcome::Fail(_) | Outcome::GapClosed(_)))
    }

    /// How many came out so.
    pub fn count(&self, word: &str) -> usize {
        self.findings.iter().filter(|finding| finding.outcome.word() == word).count()
    }

    /// The ids of what is not met, listed or not.
    pub fn unmet(&self) -> Vec<&str> {
        let unmet = |f: &&Finding| matches!(f.outcome, Outcome::Fail(_) | Outcome::KnownGap(..));
        self.findings.iter().filter(unmet).map(|f| f.requirement.id.as_str()).collect()
    }

    /// For people: a line for each requirement, and below a failure what was said.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for Finding { requirement, outcome, transcript } in &self.findings {
            // Writing to a string does not fail.
            let _ = writeln!(
                out,
                "{:<10} {:<6} {}",
                outcome.word(),
                requirement.level.to_string(),
                requirement.id
            );
            match outcome {
                Outcome::Pass => {}
                Outcome::Skip(why) => drop(writeln!(out, "           {why}")),
                Outcome::GapClosed(why) => drop(writeln!(
                    out,
                    "           listed as a known gap, but it is met now: take it off the list ({why})"
                )),
                Outcome::KnownGap(why, reason) => {
                    let _ = writeln!(out, "           {why}\n           known: {reason}");
                }
                Outcome::Fail(why) => {
                    let _ = writeln!(out, "           {}: {}", requirement.reference, requirement.says);
                    let _ = writeln!(out, "           {why}");
                    for line in transcript {
                        let _ = writeln!(out, "             {line}");
                    }
                }
            }
        }
        let counts: Vec<_> = ["pass", "fail", "gap", "gap-closed", "skip"]
            .iter()
            .map(|word| format!("{} {word}", self.count(word)))
            .collect();
        let _ = writeln!(
            out,
            "{} ({}): {} requirements: {}",
            self.server,
            self.at,
            self.findings.len(),
            counts.join(", ")
        );
        out
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let finding = |f: &Finding| {
            json!({
                "id": f.requirement.id,
                "reference": f.requirement.reference,
                "level": f.requirement.level.to_string(),
                "says": f.requirement.says,
                "result": f.outcome.word(),
                "why": f.outcome.why(),
                "known": if let Outcome::KnownGap(_, reason) = &f.outcome { Some(reason) } else { None },
                "transcript": f.transcript,
            })
        };
        json!({
            "server": self.server,
            "at": self.at,
            "good": self.is_good(),
            "requirements": self.findings.len(),
            "pass": self.count("pass"),
            "fail": self.count("fail"),
            "gap": self.count("gap"),
            "gap-closed": self.count("gap-closed"),
            "skip": self.count("skip"),
            "results": self.findings.iter().map(finding).collect::<Vec<_>>(),
        })
    }
}

/// Requirements that none of the controls meets: more likely the test is wrong than all of them.
pub fn suspects(controls: &[&Report]) -> Vec<String> {
    let Some((first, rest)) = controls.split_first() else { return Vec::new() };
    let all = first.unmet().into_iter().filter(|id| rest.iter().all(|report| report.unmet().contains(id)));
    all.map(str::to_owned).collect()
}
