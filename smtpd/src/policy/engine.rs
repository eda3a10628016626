//! The rules of one stage, tried in order. Pure: facts in, a question or a verdict out.

use std::borrow::Cow;

use postern_address::Mailbox;
use postern_config::{Condition, PolicyServer, Rule, RuleAction, Stage, Table, Test};
use postern_ipc::explain::{Looked, Tried};
use postern_ipc::smtpd_verify::ClientName;
use postern_smtp::{EnhancedCode, Reply};

use super::access::{self, Access, Words};
use super::effects::Effects;
use super::facts::Facts;
use super::keys;

/// The rules, sorted by their stages.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    /// Of each stage, in order, with their places among all.
    stages: [Vec<(u32, Rule)>; 5],
}

/// Which rule it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct By {
    /// Its place among all rules, from 1.
    pub(crate) rule: u32,
    /// Its line in the configuration.
    pub(crate) line: u32,
}

/// What has to be known before it goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// [`Facts::client`].
    Client,
    /// The first of these keys that a table has.
    Table(Table, Vec<String>),
    /// What a policy server says.
    Server(PolicyServer),
}

/// The answer to a [`Need`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// The facts have it now.
    Client,
    /// Key and value; or why the table cannot be read.
    Table(Result<Option<(String, String)>, String>),
    /// The action; or why there is none.
    Server(Result<String, String>),
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Find this out and come again with it.
    Need(Need),
    /// The stage is over.
    Done(Verdict),
}

/// What the rules of a stage say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// What becomes of the command.
    pub(crate) decision: Decision,
    /// What becomes of the message.
    pub(crate) effects: Effects,
    /// What was done, by which rule, in which words: for the log.
    pub(crate) deeds: Vec<Deed>,
    /// If nobody refuses it for another reason, this is said.
    pub(crate) otherwise: Option<Reply>,
}

impl Verdict {
    /// What is to be said no with, at this stage. Behind RCPT somebody else may refuse it for good; at the
    /// other stages nobody does.
    pub(crate) fn refusal(&self, stage: Stage) -> Option<&Reply> {
        match &self.decision {
            Decision::Refuse(reply) => Some(reply),
            _ if stage != Stage::Rcpt => self.otherwise.as_ref(),
            _ => None,
        }
    }
}

/// What becomes of the command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Decision {
    /// No rule decided.
    #[default]
    Pass,
    /// A rule said so.
    Accept,
    /// 4yz or 5yz.
    Refuse(Reply),
}

/// Something that a rule did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Deed {
    pub(crate) by: By,
    /// `reject`, `defer`, `hold`, `redirect`, `tag`, `discard`, `warn`, `accept`.
    pub(crate) word: &'static str,
    /// What exactly.
    pub(crate) text: String,
}

/// The way through the rules of one stage.
#[derive(Debug)]
pub(crate) struct Evaluation {
    pub(crate) stage: Stage,
    /// The rule that is tried, and which of its conditions is to be looked at.
    rule: usize,
    condition: usize,
    /// A condition of this rule cannot be known: the DNS does not answer.
    unknown: bool,
    /// A condition of this rule is about a message, and there is none (`postern explain`).
    messageless: bool,
    /// What the table or the server of this rule says.
    said: Option<String>,
    verdict: Verdict,
    if_reject: Option<Words>,
    tried: Option<Vec<Tried>>,
    looked: Vec<Looked>,
}

/// Whether a test holds, before `not`.
enum Outcome {
    Known(bool),
    /// The DNS does not answer.
    Unknown,
    /// There is no message.
    Messageless,
    Missing(Need),
    /// The stage ends with this.
    Failed(Reply, String),
}

/// What a rule does when it matches.
enum Act {
    Access(Access),
    /// In the configuration's own words.
    Refuse(Reply),
}

impl Rules {
    /// Sorts the configuration's rules.
    pub(crate) fn new(rules: &[Rule]) -> Self {
        let mut sorted = Self::default();
        for (n, rule) in (1..).zip(rules) {
            sorted.stages[rule.stage as usize].push((n, rule.clone()));
        }
        sorted
    }

    /// Whether a stage has any.
    pub(crate) fn has(&self, stage: Stage) -> bool {
        !self.of(stage).is_empty()
    }

    /// There is none at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.stages.iter().all(Vec::is_empty)
    }

    /// Those of a stage.
    pub(crate) fn of(&self, stage: Stage) -> &[(u32, Rule)] {
        &self.stages[stage as usize]
    }
}

impl Evaluation {
    /// At the first rule of a stage. With `traced`, [`Evaluation::tried`] tells of each rule.
    pub(crate) fn new(stage: Stage, traced: bool) -> Self {
        Self {
            stage,
            rule: 0,
            condition: 0,
            unknown: false,
            messageless: false,
            said: None,
            verdict: Verdict::default(),
            if_reject: None,
            tried: traced.then(Vec::new),
            looked: Vec::new(),
        }
    }

    /// Goes on as far as it goes: with what was needed, if something was.
    pub(crate) fn step(&mut self, rules: &Rules, facts: &Facts<'_>, mut heard: Option<Heard>) -> Step {
        while let Some((number, rule)) = rules.of(self.stage).get(self.rule) {
            let by = By { rule: *number, line: rule.line };
            let Some(condition) = rule.conditions.get(self.condition) else {
                if self.act(by, rule, facts) {
                    return Step::Done(self.finish());
                }
                self.next_rule();
                continue;
            };
            match self.look(condition, facts, heard.take()) {
                Outcome::Missing(need) => return Step::Need(need),
                Outcome::Known(holds) if holds != condition.negated => self.condition += 1,
                Outcome::Unknown => {
                    self.unknown = true;
                    self.condition += 1;
                }
                Outcome::Messageless => {
                    self.messageless = true;
                    self.condition += 1;
                }
                Outcome::Known(_) => {
                    self.trace(by, None);
                    self.next_rule();
                }
                Outcome::Failed(reply, why) => {
                    self.trace(by, Some(format!("{reply} ({why})")));
                    self.verdict.deeds.push(Deed { by, word: "defer", text: why });
                    self.verdict.decision = Decision::Refuse(reply);
                    return Step::Done(self.finish());
                }
            }
        }
        Step::Done(self.finish())
    }

    /// The rules tried since this was last asked.
    pub(crate) fn tried(&mut self) -> Vec<Tried> {
        self.tried.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn finish(&mut self) -> Verdict {
        std::mem::take(&mut self.verdict)
    }

    fn next_rule(&mut self) {
        self.rule += 1;
        self.condition = 0;
        self.unknown = false;
        self.messageless = false;
        self.said = None;
        self.looked.clear();
    }

    fn trace(&mut self, by: By, action: Option<String>) {
        if let Some(tried) = &mut self.tried {
            let conditions = std::mem::take(&mut self.looked);
            let stage = self.stage.name().to_owned();
            tried.push(Tried { stage, rule: by.rule, line: by.line, conditions, action });
        }
    }

    fn look(&mut self, condition: &Condition, facts: &Facts<'_>, heard: Option<Heard>) -> Outcome {
        let (outcome, because) = self.test(&condition.test, facts, heard);
        if self.tried.is_some() {
            let holds = match &outcome {
                Outcome::Missing(_) => return outcome,
                Outcome::Known(holds) => Some(*holds != condition.negated),
                Outcome::Unknown | Outcome::Messageless | Outcome::Failed(..) => None,
            };
            self.looked.push(Looked {
                condition: condition.to_string(),
                holds,
                because: because.into_owned(),
            });
        }
        outcome
    }

    /// The test, and in words why it is so.
    fn test<'a>(&mut self, test: &Test, facts: &Facts<'a>, heard: Option<Heard>) -> (Outcome, Cow<'a, str>) {
        use Outcome::{Failed, Known, Messageless, Missing, Unknown};
        let traced = self.tried.is_some();
        let words = |words: &dyn Fn() -> String| -> Cow<'a, str> {
            if traced { Cow::Owned(words()) } else { Cow::Borrowed("") }
        };
        match test {
            Test::Network(networks) => {
                let holds = networks.iter().any(|network| network.contains(&facts.address));
                (Known(holds), words(&|| format!("the client is {}", facts.address)))
            }
            Test::Service(services) => (
                Known(services.contains(&facts.service)),
                words(&|| format!("it is {}", facts.service.name())),
            ),
            Test::Listener(listeners) => {
                (Known(listeners.contains(&facts.listener)), words(&|| format!("it is {}", facts.listener)))
            }
            Test::Authenticated(yes) => {
                let because = words(&|| match facts.user {
                    Some(user) => format!("logged in as {user}"),
                    None => "not logged in".to_owned(),
                });
                (Known(facts.user.is_some() == *yes), because)
            }
            Test::Helo(patterns) => {
                let holds = patterns.iter().any(|pattern| pattern.matches(facts.helo));
                (Known(holds), words(&|| format!("it says `{}`", facts.helo)))
            }
            Test::From(patterns) => {
                let from = facts.from;
                let holds =
                    from.is_some_and(|from| patterns.iter().any(|pattern| pattern.matches_path(from)));
                (Known(holds), words(&|| format!("it is <{}>", from.map_or("", |from| from.as_str()))))
            }
            Test::To(patterns) => {
                let is = |to: &&Mailbox| patterns.iter().any(|pattern| pattern.matches(to));
                let found = facts.to.iter().find(is);
                let because = words(&|| match (found, facts.to) {
                    (Some(to), _) | (None, [to]) => format!("it is <{to}>"),
                    (None, all) => format!("it is none of {} recipients", all.len()),
                });
                (Known(found.is_some()), because)
            }
            Test::Header(patterns) => {
                let Some(message) = facts.message else { return (Messageless, "there is no message".into()) };
                let found = postern_message::fields(message).find(|field| {
                    patterns.iter().any(|pattern| {
                        field.is(&pattern.name) && pattern.matches(&pattern.name, &field.value())
                    })
                });
                let because = words(&|| match &found {
                    Some(field) => format!("it has `{}`", String::from_utf8_lossy(field.raw).trim_end()),
                    None => "it has none".to_owned(),
                });
                (Known(found.is_some()), because)
            }
            Test::Name(_) | Test::NameVerified(_) | Test::ScoreAtLeast(_) => {
                let Some(client) = facts.client else { return (Missing(Need::Client), "".into()) };
                let because = words(&|| match &client.name {
                    ClientName::Confirmed(name) => format!("its name is {name}"),
                    ClientName::Unknown => "it has no confirmed name".to_owned(),
                    ClientName::Unavailable => "the DNS does not say what its name is".to_owned(),
                });
                match (test, &client.name) {
                    (Test::ScoreAtLeast(score), _) => {
                        let because = words(&|| format!("the lists say {}", client.list_score));
                        (Known(client.list_score >= *score), because)
                    }
                    (_, ClientName::Unavailable) => (Unknown, because),
                    (Test::NameVerified(yes), name) => {
                        (Known(matches!(name, ClientName::Confirmed(_)) == *yes), because)
                    }
                    (Test::Name(patterns), ClientName::Confirmed(name)) => {
                        (Known(patterns.iter().any(|pattern| pattern.matches(name.as_str()))), because)
                    }
                    _ => (Known(false), because),
                }
            }
            Test::Table { table, key } => match heard {
                Some(Heard::Table(Ok(Some((key, value))))) => {
                    let because = words(&|| format!("`{key}` has the value `{value}`"));
                    // A list of keys without values is a table too.
                    let holds = value.trim().is_empty() || !access::is_dunno(&value);
                    self.said = Some(value);
                    (Known(holds), because)
                }
                Some(Heard::Table(Ok(None))) => (Known(false), "it is not there".into()),
                Some(Heard::Table(Err(why))) => {
                    let because = words(&|| why.clone());
                    (
                        Failed(
                            reply(451, (4, 3, 0), "Temporary lookup failure, try again"),
                            format!("{table}: {why}"),
                        ),
                        because,
                    )
                }
                // A client's name is a key too.
                _ if *key == postern_config::TableKey::Client && facts.client.is_none() => {
                    (Missing(Need::Client), "".into())
                }
                _ => match keys::keys(*key, facts) {
                    none if none.is_empty() => (Known(false), "there is nothing to look up".into()),
                    keys => (Missing(Need::Table(table.clone(), keys)), "".into()),
                },
            },
            Test::Ask(server) => match heard {
                Some(Heard::Server(Ok(answer))) => {
                    let because = words(&|| format!("it says `{answer}`"));
                    let holds = !access::is_dunno(&answer);
                    self.said = Some(answer);
                    (Known(holds), because)
                }
                Some(Heard::Server(Err(why))) => {
                    let because = words(&|| why.clone());
                    (Failed(server_problem(), format!("{server}: {why}")), because)
                }
                // It is told the client's name.
                _ if facts.client.is_none() => (Missing(Need::Client), "".into()),
                _ => (Missing(Need::Server(server.clone())), "".into()),
            },
        }
    }

    /// All conditions hold, as far as they are known. True when that ends the stage.
    fn act(&mut self, by: By, rule: &Rule, facts: &Facts<'_>) -> bool {
        let act = match (&rule.action, &self.said) {
            (Some(action), _) => of_configuration(action),
            (None, Some(said)) => match access::parse(said) {
                Ok(access) => Act::Access(access),
                Err(why) => return self.misconfigured(by, why),
            },
            // Not possible: the configuration has no such rule.
            (None, None) => Act::Access(Access::Dunno),
        };
        if self.messageless {
            self.trace(by, None);
            return false;
        }
        if self.unknown {
            return self.act_unknowing(by, &act);
        }
        let subject = || facts.subject(self.stage);
        let (decision, word, text) = match act {
            Act::Refuse(reply) => (Some(reply), "", String::new()),
            Act::Access(Access::Refuse(words)) => (Some(words.reply(subject())), "", String::new()),
            Act::Access(Access::DeferIfPermit(words)) => {
                let reply = words.reply(subject());
                let text = format!("if nobody refuses it: {reply}");
                self.verdict.otherwise.get_or_insert(reply);
                (None, "defer", text)
            }
            Act::Access(Access::DeferIfReject(words)) => {
                let text = format!("if somebody rejects it: {}", words.text);
                self.if_reject.get_or_insert(words);
                (None, "defer", text)
            }
            Act::Access(Access::Hold) => {
                self.verdict.effects.held = true;
                (None, "hold", String::new())
            }
            Act::Access(Access::Redirect(to)) => {
                let text = format!("to <{to}>");
                self.verdict.effects.redirect = Some(to);
                (None, "redirect", text)
            }
            Act::Access(Access::Tag(line)) => {
                let text = line.clone();
                self.verdict.effects.add(Effects { tags: vec![line], ..Effects::default() });
                (None, "tag", text)
            }
            Act::Access(Access::Note(text)) => (None, "warn", text),
            Act::Access(Access::Dunno) => (None, "", String::new()),
            Act::Access(Access::Accept) => {
                self.verdict.decision = Decision::Accept;
                (None, "accept", String::new())
            }
            Act::Access(Access::Discard) => {
                self.verdict.effects.discarded = true;
                self.verdict.decision = Decision::Accept;
                (None, "discard", String::new())
            }
        };
        if let Some(reply) = decision {
            let reply = match self.if_reject.take() {
                Some(words) if reply.is_permanent() => words.reply(facts.subject(self.stage)),
                _ => reply,
            };
            let word = if reply.is_permanent() { "reject" } else { "defer" };
            self.trace(by, Some(format!("{word} {reply}")));
            self.verdict.deeds.push(Deed { by, word, text: reply.to_string() });
            self.verdict.decision = Decision::Refuse(reply);
            return true;
        }
        self.trace(by, Some(format!("{word} {text}").trim().to_owned()));
        if !word.is_empty() {
            self.verdict.deeds.push(Deed { by, word, text });
        }
        self.verdict.decision != Decision::Pass
    }

    /// Something about the client is not known that the rule hangs on: what would be refused for good may
    /// come back, and nothing else is done (as reject_unknown_client_hostname has it).
    fn act_unknowing(&mut self, by: By, act: &Act) -> bool {
        let rejects = match act {
            Act::Refuse(reply) => reply.is_permanent(),
            Act::Access(Access::Refuse(words)) => words.code >= 500,
            Act::Access(_) => false,
        };
        if !rejects {
            self.trace(by, None);
            return false;
        }
        let reply = reply(450, (4, 7, 25), "Client host rejected: cannot find your hostname now, try again");
        self.trace(by, Some(format!("defer {reply}")));
        self.verdict.deeds.push(Deed { by, word: "defer", text: reply.to_string() });
        self.verdict.decision = Decision::Refuse(reply);
        true
    }

    /// As Postfix: somebody has to look at it.
    fn misconfigured(&mut self, by: By, why: String) -> bool {
        let reply = reply(451, (4, 3, 5), "Server configuration error");
        self.trace(by, Some(format!("defer {reply} ({why})")));
        self.verdict.deeds.push(Deed { by, word: "defer", text: why });
        self.verdict.decision = Decision::Refuse(reply);
        true
    }
}

fn of_configuration(action: &RuleAction) -> Act {
    match action {
        RuleAction::Accept => Act::Access(Access::Accept),
        RuleAction::Refuse(words) => {
            let (class, subject, detail) = words.status;
            Act::Refuse(reply(words.code, (class, subject, detail), &words.text))
        }
        RuleAction::Hold => Act::Access(Access::Hold),
        RuleAction::Redirect(to) => Act::Access(Access::Redirect(to.clone())),
        RuleAction::Tag(line) => Act::Access(Access::Tag(line.clone())),
        RuleAction::Discard => Act::Access(Access::Discard),
    }
}

/// What Postfix says when a policy server cannot be asked.
fn server_problem() -> Reply {
    reply(451, (4, 3, 5), "Server configuration problem")
}

fn reply(code: u16, (class, subject, detail): (u8, u16, u16), text: &str) -> Reply {
    // The configuration has no other class than 4 and 5.
    let enhanced =
        matches!(class, 2 | 4 | 5).then(|| EnhancedCode::new(class, subject % 1000, detail % 1000));
    Reply::new(code, enhanced, text)
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
