//! What is asked for on the command line.

use std::str::FromStr;

use crate::cell::Workload;
use crate::peers::Name;

#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) quick: bool,
    pub(crate) rounds: usize,
    /// How long a load should take.
    pub(crate) seconds: f64,
    /// Postern first.
    pub(crate) systems: Vec<Name>,
    pub(crate) document: bool,
    /// Count system calls in a round of their own.
    pub(crate) trace: bool,
    /// Not the plan's cells, but these.
    pub(crate) workloads: Vec<Workload>,
    pub(crate) sessions: Vec<usize>,
    pub(crate) kib: Vec<usize>,
    pub(crate) short: bool,
}

impl Options {
    /// Whether there are others beside Postern and Postfix.
    pub(crate) fn guests(&self) -> bool {
        self.systems.iter().any(|name| !matches!(name, Name::Postern | Name::Postfix))
    }

    pub(crate) fn parse(words: &[String]) -> Result<Self, String> {
        let mut options = Self {
            quick: false,
            rounds: 5,
            seconds: 1.5,
            systems: vec![Name::Postern, Name::Postfix],
            document: false,
            trace: true,
            workloads: Vec::new(),
            sessions: vec![10],
            kib: vec![4],
            short: false,
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            match word.as_str() {
                "--quick" => {
                    (options.quick, options.rounds, options.seconds, options.trace) = (true, 3, 0.7, false);
                }
                "--rounds" => options.rounds = one(value()?)?,
                "--seconds" => options.seconds = one(value()?)?,
                "--peers" => {
                    options.systems = vec![Name::Postern];
                    options.systems.extend(match &**value()? {
                        "all" => Name::ALL[1..].to_vec(),
                        "none" => Vec::new(),
                        names => list(names)?,
                    });
                }
                "--workload" => (options.workloads, options.trace) = (list(value()?)?, false),
                "--sessions" => options.sessions = list(value()?)?,
                "--size" => options.kib = list(value()?)?,
                "--short" => options.short = true,
                "--document" => options.document = true,
                "--trace" => options.trace = true,
                _ => return Err(format!("unknown option {word}")),
            }
        }
        Ok(options)
    }
}

fn list<T: FromStr<Err: ToString>>(words: &str) -> Result<Vec<T>, String> {
    words.split(',').map(one).collect()
}

fn one<T: FromStr<Err: ToString>>(word: &str) -> Result<T, String> {
    word.parse().map_err(|e: T::Err| format!("{word}: {}", e.to_string()))
}
