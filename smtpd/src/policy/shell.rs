//! The rules at work: who is asked what they need to know, and what their verdicts do to a session.
//!
//! A question of the session goes to the rules of its stage first; when they let it pass it takes its
//! usual way. What they did beside is applied when the session is told yes, and not before: an answer in
//! the end goes by [`Worker::answer`], so whatever refuses a recipient behind the rules undoes them.

use std::net::SocketAddr;
use std::sync::Arc;

use postern_address::Mailbox;
use postern_config::{Listen, PolicyServer, Service, Stage, Table};
use postern_daemon::Host;
use postern_event::{Event, Level};
use postern_ipc::smtpd_verify::ClientFacts;
use postern_ipc::{RequestId, smtpd_lookup, smtpd_verify};
use postern_smtp::Reply;
use postern_smtp::server::{Answer, Finished, Identity, Phase, Question};

use super::effects::Effects;
use super::engine::{Evaluation, Heard, Need, Rules, Step, Verdict};
use super::facts::Facts;
use crate::connection::{Connection, Content};
use crate::message::Receipt;
use crate::refusal;
use crate::worker::Worker;

/// The ticket of the question that no command asks: whether a whole message is to be taken.
pub(crate) const CONTENT: u16 = u16::MAX;

/// What the rules know and have done in one session.
#[derive(Debug)]
pub(crate) struct Beside {
    rules: Arc<Rules>,
    service: Service,
    listener: SocketAddr,
    /// What verify says of the client.
    client: Option<ClientFacts>,
    /// Of rules of the stage `client`, for every message.
    of_client: Effects,
    /// Of the stage `helo`, for every message behind it.
    of_helo: Effects,
    /// Of this message.
    of_message: Effects,
    /// For `instance=`: the transaction's number.
    transactions: u32,
    running: Vec<Running>,
    /// The message that waits for the rules of `data`.
    pub(crate) finished: Option<Box<Finished>>,
    /// Its header section, when its content is with the writer already.
    pub(crate) header: Vec<u8>,
}

/// A question that the rules have not answered yet, or have let pass.
#[derive(Debug)]
struct Running {
    ticket: u16,
    evaluation: Evaluation,
    question: Question,
    /// What is needed now.
    waits_for: Option<Need>,
    /// They have let it pass: what is done when everybody else does.
    passed: Option<(Effects, Option<Reply>)>,
}

impl Beside {
    /// For a new session; none when there are no rules.
    pub(crate) fn new(rules: &Arc<Rules>, listen: &Listen) -> Option<Box<Self>> {
        (!rules.is_empty()).then(|| {
            Box::new(Self {
                rules: rules.clone(),
                service: listen.service,
                listener: listen.address,
                client: None,
                of_client: Effects::default(),
                of_helo: Effects::default(),
                of_message: Effects::default(),
                transactions: 0,
                running: Vec::new(),
                finished: None,
                header: Vec::new(),
            })
        })
    }

    /// What the rules did to the message that is complete now.
    pub(crate) fn take_effects(&mut self) -> Effects {
        let mut effects = self.of_client.clone();
        effects.add(self.of_helo.clone());
        effects.add(std::mem::take(&mut self.of_message));
        effects
    }

    /// Rules of `data` look at messages.
    pub(crate) fn judges_content(&self) -> bool {
        self.rules.has(Stage::Data)
    }

    /// It waits for the verdict on a whole message.
    pub(crate) fn is_judging(&self) -> bool {
        self.finished.is_some()
    }

    fn of_stage(&mut self, stage: Stage) -> &mut Effects {
        match stage {
            Stage::Client => &mut self.of_client,
            Stage::Helo => &mut self.of_helo,
            Stage::From | Stage::Rcpt | Stage::Data => &mut self.of_message,
        }
    }
}

impl Connection {
    /// XCLIENT: the session is another client's from here on, and verify is asked who that is.
    pub(crate) fn client_replaced(&mut self) {
        if let Some(beside) = &mut self.beside {
            beside.client = None;
            (beside.of_client, beside.of_helo) = Default::default();
        }
    }
}

impl Worker {
    /// The rules of the question's stage, if there are any: then it is theirs, and none comes back.
    pub(crate) fn rules_first(
        &mut self,
        host: &mut Host,
        connection: &mut Connection,
        ticket: u16,
        question: Question,
    ) -> Option<Question> {
        let Some(beside) = &mut connection.beside else { return Some(question) };
        let stage = match &question {
            Question::Client => Stage::Client,
            Question::Helo(_) => Stage::Helo,
            Question::Mail { .. } => Stage::From,
            Question::Rcpt { .. } => Stage::Rcpt,
            _ => return Some(question),
        };
        match stage {
            Stage::Client => (beside.of_client, beside.of_helo) = Default::default(),
            Stage::Helo => beside.of_helo = Effects::default(),
            // A transaction begins: what became of the one before is nothing to it.
            Stage::From => {
                beside.of_message = Effects::default();
                beside.transactions = beside.transactions.wrapping_add(1);
            }
            Stage::Rcpt | Stage::Data => {}
        }
        if !beside.rules.has(stage) {
            return Some(question);
        }
        let evaluation = Evaluation::new(stage, false);
        let running = Running { ticket, evaluation, question, waits_for: None, passed: None };
        self.evaluate(host, connection, running, None);
        None
    }

    /// The rules of `data`, when a message is complete. It comes back when there are none: it is to be kept.
    pub(crate) fn judge_content(
        &mut self,
        host: &mut Host,
        connection: &mut Connection,
        finished: Box<Finished>,
    ) -> Option<Box<Finished>> {
        if matches!(connection.content, Content::Failed(_)) {
            return Some(finished);
        }
        let Some(beside) = connection.beside.as_mut().filter(|beside| beside.judges_content()) else {
            return Some(finished);
        };
        beside.finished = Some(finished);
        let evaluation = Evaluation::new(Stage::Data, false);
        let question = Question::Data;
        let running = Running { ticket: CONTENT, evaluation, question, waits_for: None, passed: None };
        self.evaluate(host, connection, running, None);
        None
    }

    /// What verify says of the client, at last.
    pub(crate) fn client_known(&mut self, host: &mut Host, connection: &mut Connection, facts: ClientFacts) {
        let Some(beside) = &mut connection.beside else { return };
        beside.client = Some(facts);
        let waiting = |running: &Running| running.waits_for == Some(Need::Client);
        while let Some(running) = take(connection, waiting) {
            self.evaluate(host, connection, running, Some(Heard::Client));
        }
    }

    /// What a table says.
    pub(crate) fn table_said(
        &mut self,
        host: &mut Host,
        connection: &mut Connection,
        ticket: u16,
        said: Result<Option<(String, String)>, String>,
    ) {
        let waiting = |running: &Running| {
            running.ticket == ticket && matches!(running.waits_for, Some(Need::Table(..)))
        };
        if let Some(running) = take(connection, waiting) {
            self.evaluate(host, connection, running, Some(Heard::Table(said)));
        }
    }

    /// What a policy server says.
    pub(crate) fn server_said(
        &mut self,
        host: &mut Host,
        connection: &mut Connection,
        ticket: u16,
        said: Result<String, String>,
    ) {
        let waiting = |running: &Running| {
            running.ticket == ticket && matches!(running.waits_for, Some(Need::Server(_)))
        };
        if let Some(running) = take(connection, waiting) {
            self.evaluate(host, connection, running, Some(Heard::Server(said)));
        }
    }

    /// Lookup is gone: no table says anything to what it was asked.
    pub(crate) fn tables_lost(&mut self, host: &mut Host, connection: &mut Connection) {
        let waiting = |running: &Running| matches!(running.waits_for, Some(Need::Table(..)));
        let mut was_waiting = false;
        while let Some(running) = take(connection, waiting) {
            was_waiting = true;
            self.evaluate(host, connection, running, Some(Heard::Table(Err("lookup is gone".into()))));
        }
        if was_waiting {
            self.drive(host, connection);
        }
    }

    /// Verify is gone: what it was asked it does not answer.
    pub(crate) fn verify_lost(&mut self, host: &mut Host, connection: &mut Connection) {
        let asked = |running: &Running| matches!(running.waits_for, Some(Need::Server(_)));
        while let Some(running) = take(connection, asked) {
            self.evaluate(host, connection, running, Some(Heard::Server(Err("verify is gone".into()))));
        }
        if connection.beside.as_ref().is_some_and(|beside| beside.client.is_none()) {
            self.client_known(host, connection, ClientFacts::UNKNOWN);
        }
    }

    /// Nobody says anything: whoever waits is told to come again. What the session asked is answered by
    /// the caller.
    pub(crate) fn rules_silent(&mut self, host: &mut Host, connection: &mut Connection) {
        let Some(beside) = &mut connection.beside else { return };
        beside.running.clear();
        if beside.is_judging() {
            self.content_refused(host, connection, refusal::lookup_failure());
        }
    }

    /// What the session is told in the end of a question that the rules let pass.
    pub(crate) fn behind_rules(
        &mut self,
        connection: &mut Connection,
        ticket: u16,
        answer: Answer,
    ) -> Answer {
        let passed = |running: &Running| running.ticket == ticket && running.passed.is_some();
        let Some(running) = take(connection, passed) else { return answer };
        let (Some((effects, otherwise)), Answer::Accepted) = (running.passed, &answer) else { return answer };
        match (otherwise, &mut connection.beside) {
            (Some(reply), _) => refused(reply),
            (None, Some(beside)) => {
                beside.of_stage(running.evaluation.stage).add(effects);
                answer
            }
            (None, None) => answer,
        }
    }

    /// Goes on with the rules of a stage, as far as it goes.
    fn evaluate(
        &mut self,
        host: &mut Host,
        connection: &mut Connection,
        mut running: Running,
        mut heard: Option<Heard>,
    ) {
        loop {
            let Some(beside) = &connection.beside else { return };
            let step = with_facts(connection, beside, &running.question, |facts| {
                running.evaluation.step(&beside.rules, facts, heard.take())
            });
            let need = match step {
                Step::Done(verdict) => return self.judged(host, connection, running, verdict),
                Step::Need(need) => need,
            };
            connection.asked = host.now();
            let id = connection.key.request(running.ticket);
            let said = match &need {
                // It is on its way, or known; who is lost says so.
                Need::Client => true,
                Need::Table(table, keys) => self.ask_table(host, id, table, keys),
                Need::Server(server) => self.ask_server(host, connection, server, &running),
            };
            if said {
                running.waits_for = Some(need);
                if let Some(beside) = &mut connection.beside {
                    beside.running.push(running);
                }
                return;
            }
            heard = Some(match need {
                Need::Server(_) => Heard::Server(Err("verify cannot be asked".into())),
                _ => Heard::Table(Err("lookup cannot be asked".into())),
            });
        }
    }

    fn ask_table(&mut self, host: &mut Host, id: RequestId, table: &Table, keys: &[String]) -> bool {
        self.ask_lookup(host, id, smtpd_lookup::Ask::Table { table: table.clone(), keys: keys.to_vec() })
    }

    fn ask_server(
        &mut self,
        host: &mut Host,
        connection: &Connection,
        server: &PolicyServer,
        running: &Running,
    ) -> bool {
        let Some(beside) = &connection.beside else { return false };
        let attributes = with_facts(connection, beside, &running.question, |facts| {
            attributes(facts, connection, beside, running)
        });
        let ask = smtpd_verify::Ask::Delegate { server: server.clone(), attributes };
        self.ask_verify(host, connection, running.ticket, ask)
    }

    /// The rules of a stage are through.
    fn judged(
        &mut self,
        host: &mut Host,
        connection: &mut Connection,
        mut running: Running,
        verdict: Verdict,
    ) {
        self.log_deeds(host, connection, &running, &verdict);
        let stage = running.evaluation.stage;
        let reply = verdict.refusal(stage).cloned();
        if stage == Stage::Data {
            return match reply {
                Some(reply) => self.content_refused(host, connection, reply),
                None => self.content_passed(host, connection, verdict.effects),
            };
        }
        let ticket = running.ticket;
        if let Some(reply) = reply {
            return self.answer(host, connection, ticket, refused(reply));
        }
        let question = std::mem::replace(&mut running.question, Question::Data);
        running.passed = Some((verdict.effects, verdict.otherwise));
        running.waits_for = None;
        if let Some(beside) = &mut connection.beside {
            beside.running.push(running);
        }
        self.ask_others(host, connection, ticket, question);
    }

    fn content_passed(&mut self, host: &mut Host, connection: &mut Connection, effects: Effects) {
        let Some(beside) = &mut connection.beside else { return };
        beside.of_message.add(effects);
        beside.header = Vec::new();
        let finished = beside.finished.take();
        // A session that was closed meanwhile has been told 421, and its content is dropped.
        if let (Some(finished), Phase::Settling) = (finished, connection.session.phase()) {
            self.commit(host, connection, *finished);
        }
    }

    fn content_refused(&mut self, host: &mut Host, connection: &mut Connection, reply: Reply) {
        let Some(beside) = &mut connection.beside else { return };
        (beside.finished, beside.header) = (None, Vec::new());
        self.drop_content(connection);
        connection.content = Content::Held;
        let closes = matches!(reply.code, 421 | 521);
        self.tell(host, connection, |session, out| match closes {
            true => session.close(reply, "refused by a rule", out),
            false => session.settle(reply, out),
        });
    }

    /// A rule wants nothing of it kept, and nobody to know.
    pub(crate) fn discard(
        &mut self,
        host: &mut Host,
        connection: &mut Connection,
        streamed: bool,
        receipt: &Receipt,
    ) {
        if streamed {
            self.abort_stream(connection);
        }
        let id = receipt.id.to_string();
        let text = format!(
            "discarded by a rule, from=<{}>, size={}, nrcpt={}, session={}",
            receipt.from, receipt.size, receipt.nrcpt, connection.id
        );
        host.log.note(Level::Info, Some(&id), &text);
        self.tell(host, connection, |session, out| session.settle(refusal::queued(&id), out));
    }

    fn log_deeds(&mut self, host: &mut Host, connection: &Connection, running: &Running, verdict: &Verdict) {
        let Some(beside) = &connection.beside else { return };
        if verdict.deeds.is_empty() {
            return;
        }
        with_facts(connection, beside, &running.question, |facts| {
            for deed in &verdict.deeds {
                host.emit(&Event::Policy {
                    session: connection.id,
                    client: connection.client(),
                    stage: running.evaluation.stage.name(),
                    action: deed.word,
                    rule: deed.by.rule,
                    line: deed.by.line,
                    text: &deed.text,
                    from: facts.from,
                    to: match facts.to {
                        [only] => Some(only.as_str()),
                        _ => None,
                    },
                    helo: Some(facts.helo).filter(|helo| !helo.is_empty()),
                    proto: connection.session.protocol_name(),
                });
            }
        });
    }
}

/// Takes out the first that is meant.
fn take(connection: &mut Connection, which: impl Fn(&Running) -> bool) -> Option<Running> {
    let running = &mut connection.beside.as_mut()?.running;
    let at = running.iter().position(which)?;
    let mut taken = running.remove(at);
    taken.waits_for = None;
    Some(taken)
}

fn refused(reply: Reply) -> Answer {
    match reply.code {
        421 | 521 => Answer::Closed(reply),
        _ => Answer::Refused(reply),
    }
}

/// What is known when a question is asked.
fn with_facts<R>(
    connection: &Connection,
    beside: &Beside,
    question: &Question,
    then: impl FnOnce(&Facts<'_>) -> R,
) -> R {
    let session = &connection.session;
    let (mut helo, mut from) =
        (session.helo().unwrap_or_default(), session.transaction().map(|(from, _)| from));
    let mut to: &[Mailbox] = &[];
    let mut message = None;
    match question {
        Question::Helo(name) => helo = name,
        Question::Mail { path, .. } => from = Some(path),
        Question::Rcpt { recipient, .. } => to = std::slice::from_ref(recipient),
        _ => {}
    }
    if let Some(finished) = &beside.finished {
        from = Some(&finished.reverse_path);
        to = &finished.recipients;
        message = Some(if beside.header.is_empty() { &finished.content[..] } else { &beside.header[..] });
    }
    then(&Facts {
        address: connection.address,
        service: beside.service,
        listener: beside.listener,
        client: beside.client.as_ref(),
        helo,
        user: match session.identity() {
            Identity::User(user) => Some(user),
            Identity::Anonymous => None,
        },
        from,
        to,
        message,
    })
}

/// What a policy server is told (SMTPD_POLICY_README).
fn attributes(
    facts: &Facts<'_>,
    connection: &Connection,
    beside: &Beside,
    running: &Running,
) -> Vec<(String, String)> {
    let session = &connection.session;
    let proto = session.protocol_name();
    let extended = proto != "SMTP";
    let count = beside.finished.as_ref().map_or(0, |finished| finished.recipients.len());
    let size = match (&beside.finished, session.transaction(), &running.question) {
        (Some(finished), ..) => finished.size,
        (None, Some((_, parameters)), _) | (None, None, Question::Mail { parameters, .. }) => {
            parameters.size.unwrap_or(0)
        }
        _ => 0,
    };
    let state = protocol_state(running.evaluation.stage, extended);
    // Postfix knows SMTP and ESMTP; TLS and login have attributes of their own.
    let name = if extended { "ESMTP" } else { "SMTP" };
    let instance = format!("{}.{}", connection.id, beside.transactions);
    delegated(facts, &Dialogue { state, name, count, size, instance: &instance })
}

/// `protocol_state` of a client that says EHLO, or HELO.
pub(crate) fn protocol_state(stage: Stage, extended: bool) -> &'static str {
    match stage {
        Stage::Client => "CONNECT",
        Stage::Helo if extended => "EHLO",
        Stage::Helo => "HELO",
        Stage::From => "MAIL",
        Stage::Rcpt => "RCPT",
        Stage::Data => "END-OF-MESSAGE",
    }
}

/// What a policy server is told of the dialogue.
pub(crate) struct Dialogue<'a> {
    /// `protocol_state`
    pub(crate) state: &'a str,
    /// `protocol_name`
    pub(crate) name: &'a str,
    /// `recipient_count`: known when all are.
    pub(crate) count: usize,
    /// As announced, or as it is.
    pub(crate) size: u64,
    /// The same for all questions about one message.
    pub(crate) instance: &'a str,
}

/// All attributes, in Postfix's order.
pub(crate) fn delegated(facts: &Facts<'_>, dialogue: &Dialogue<'_>) -> Vec<(String, String)> {
    let client_name = facts.name().unwrap_or("unknown");
    let sender = facts.from.map_or("", |from| from.as_str());
    let recipient = match facts.to {
        [only] => only.as_str(),
        _ => "",
    };
    [
        ("protocol_state", dialogue.state.to_owned()),
        ("protocol_name", dialogue.name.to_owned()),
        ("client_address", facts.address.to_string()),
        ("client_name", client_name.to_owned()),
        ("reverse_client_name", client_name.to_owned()),
        ("server_address", facts.listener.ip().to_string()),
        ("server_port", facts.listener.port().to_string()),
        ("helo_name", facts.helo.to_owned()),
        ("sender", sender.to_owned()),
        ("recipient", recipient.to_owned()),
        ("recipient_count", dialogue.count.to_string()),
        ("queue_id", String::new()),
        ("instance", dialogue.instance.to_owned()),
        ("size", dialogue.size.to_string()),
        ("etrn_domain", String::new()),
        ("stress", String::new()),
        ("sasl_method", String::new()),
        ("sasl_username", facts.user.unwrap_or_default().to_owned()),
        ("sasl_sender", String::new()),
        ("ccert_subject", String::new()),
        ("ccert_issuer", String::new()),
        ("ccert_fingerprint", String::new()),
        ("encryption_protocol", String::new()),
        ("encryption_cipher", String::new()),
        ("encryption_keysize", "0".to_owned()),
        ("policy_context", String::new()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}
