//! One job under way: who was told of, how long what took.

use std::time::Instant;

use mio::Token;
use postern_event::{Attempt as Line, Event, Status};
use postern_ipc::RequestId;
use postern_ipc::queue_agent::{Destination, Job, Outcome, Report, Target};
use postern_smtp::client::{self, Extensions, Form, Transaction, Verdict};
use postern_smtp::parameters::{Body, DeliverBy, MailParameters};
use postern_smtp::{EnhancedCode, Reply};
use postern_spool::{BodyType, Options, Timestamp};

use crate::content::Source;
use crate::routing::{Refusal, Route};

/// Octets of a reply's text that are reported and logged: fifty recipients fit a frame.
const REPLY_MAX: usize = 700;

/// A job under way.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) job: u64,
    pub(crate) destination: Destination,
    pub(crate) route: Route,
    pub(crate) source: Source,
    /// The connection it was given to last; it may be another's by now.
    pub(crate) connection: Option<Token>,
    /// What its route has asked the resolver.
    pub(crate) question: Option<RequestId>,
    /// A transaction was begun on a connection: it may run to its end while the program stops.
    pub(crate) in_transaction: bool,
    /// It is to be sent alone and in the plain way: how it was sent before may be what it was refused for.
    pub(crate) plain: bool,
    /// The server of the transaction offers DSN, and was told what the sender wants to hear.
    passes: bool,
    letter: Letter,
    clock: Clock,
    recipients: Recipients,
    /// The transaction's recipients, by their place among ours.
    current: Vec<usize>,
    results: Vec<(u32, Outcome)>,
}

/// What the envelope says.
#[derive(Debug)]
struct Letter {
    queue_id: postern_spool::QueueId,
    reverse_path: postern_address::ReversePath,
    body: Body,
    options: Box<Options>,
}

/// The moments that `delays=` is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    arrival: Timestamp,
    scheduled: Timestamp,
    received: Timestamp,
    begun: Instant,
    connected: Option<Instant>,
}

/// The recipients of a job; each is told of once.
#[derive(Debug)]
pub(crate) struct Recipients {
    targets: Vec<(Target, bool)>,
}

impl Recipients {
    pub(crate) fn new(targets: Vec<Target>) -> Self {
        Self { targets: targets.into_iter().map(|target| (target, false)).collect() }
    }

    /// Those not yet told of.
    pub(crate) fn remaining(&self) -> Vec<usize> {
        let open = |(n, (_, told)): (usize, &(Target, bool))| (!told).then_some(n);
        self.targets.iter().enumerate().filter_map(open).collect()
    }

    /// The recipient at this place, the first time; none after that.
    pub(crate) fn tell(&mut self, place: usize) -> Option<&Target> {
        let (target, told) = self.targets.get_mut(place)?;
        (!std::mem::replace(told, true)).then_some(target)
    }

    fn get(&self, place: usize) -> Option<&Target> {
        self.targets.get(place).map(|(target, _)| target)
    }
}

impl Clock {
    pub(crate) fn new(job: &Job, received: Timestamp, begun: Instant) -> Self {
        let (arrival, scheduled) = (job.arrival, job.scheduled);
        Self { arrival, scheduled, received, begun, connected: None }
    }

    /// Before the queue-manager, in it, connecting (with the DNS and the greeting), transmitting.
    fn delays(&self, now: Instant) -> [u64; 4] {
        let milliseconds = |from: Instant, to: Instant| to.saturating_duration_since(from).as_millis() as u64;
        let connected = self.connected.unwrap_or(now);
        [
            self.scheduled.0.saturating_sub(self.arrival.0),
            self.received.0.saturating_sub(self.scheduled.0.max(self.arrival.0)),
            milliseconds(self.begun, connected),
            milliseconds(connected, now),
        ]
    }
}

impl Attempt {
    pub(crate) fn new(job: Job, clock: Clock, route: Route, source: Source) -> Self {
        let body = match job.body {
            BodyType::SevenBit => Body::SevenBit,
            BodyType::EightBit => Body::EightBit,
            BodyType::Binary => Body::Binary,
        };
        let (reverse_path, options) = (job.reverse_path, job.options);
        let letter = Letter { queue_id: job.queue_id, reverse_path, body, options };
        Self {
            job: job.job,
            destination: job.destination,
            route,
            source,
            connection: None,
            question: None,
            in_transaction: false,
            plain: false,
            passes: false,
            letter,
            clock,
            recipients: Recipients::new(job.recipients),
            current: Vec::new(),
            results: Vec::new(),
        }
    }

    /// A session is open: what to send over it, or why this message cannot go to such a server.
    pub(crate) fn transaction(
        &mut self,
        extensions: &Extensions,
        wall: Timestamp,
        now: Instant,
    ) -> Result<Transaction, Reply> {
        self.clock.connected = Some(now);
        self.in_transaction = true;
        self.passes = extensions.dsn;
        self.current = self.recipients.remaining();
        let (body, smtputf8) = self.form(extensions)?;
        let options = &self.letter.options;
        let by = options.deliver_by.map(|deadline| {
            // What is left of it, downwards: it must not grow on the way.
            let left = i128::from(deadline.at.0) - i128::from(wall.0);
            let seconds = i64::try_from(left.div_euclid(1000)).unwrap_or(i64::MAX);
            DeliverBy { seconds, mode: deadline.mode, trace: deadline.trace }
        });
        let parameters = MailParameters {
            size: None,
            body,
            smtputf8,
            ret: options.ret,
            envid: options.envid.clone(),
            by,
            hold: None,
            priority: Some(options.priority),
        };
        let targets = || self.current.iter().filter_map(|place| self.recipients.get(*place));
        Ok(Transaction {
            reverse_path: self.letter.reverse_path.clone(),
            recipients: targets().map(|target| target.recipient.clone()).collect(),
            size: self.source.size(),
            parameters,
            said: targets().map(|target| target.parameters.clone()).collect(),
            whole: !self.plain,
        })
    }

    /// Makes the content ready for a server: in which octets it goes, and whether it needs SMTPUTF8.
    fn form(&mut self, extensions: &Extensions) -> Result<(Body, bool), Reply> {
        let (body, smtputf8) = (self.letter.body, self.letter.options.smtputf8);
        let form = Form::of(body, extensions);
        let odd = form == Form::SevenBit && body == Body::Binary;
        let maybe_ascii = smtputf8 && !extensions.utf8;
        if !odd && !maybe_ascii {
            self.source.rewind(form == Form::SevenBit);
            return Ok((if form == Form::SevenBit { Body::SevenBit } else { body }, smtputf8));
        }
        let unreadable = |_| Reply::new(451, EnhancedCode::new(4, 3, 0), "cannot read the message's content");
        let header = self.source.header().map_err(unreadable)?;
        if odd && !postern_message::is_mime(&header) {
            let text =
                "the server does not offer BINARYMIME, and what is no MIME message cannot be converted";
            return Err(Reply::new(554, EnhancedCode::new(5, 6, 3), text));
        }
        self.source.rewind(form == Form::SevenBit);
        // Asked for and not needed: addresses are looked at by the client (RFC 6531 §3.2).
        let needed = smtputf8 && !(maybe_ascii && header.is_ascii());
        Ok((if form == Form::SevenBit { Body::SevenBit } else { body }, needed))
    }

    /// The session is gone; another is to be found.
    pub(crate) fn disconnected(&mut self) {
        self.clock.connected = None;
        self.in_transaction = false;
    }

    /// What became of one recipient of the transaction.
    pub(crate) fn told(
        &mut self,
        index: usize,
        outcome: client::Outcome,
        relay: &str,
        now: Instant,
        log: &mut dyn FnMut(&Event<'_>),
    ) {
        let Some(&place) = self.current.get(index) else { return };
        let report = Report {
            relay: Some(relay.to_owned()),
            reply: brief(outcome.reply),
            remote: outcome.remote,
            destination_down: false,
        };
        self.tell(place, outcome.verdict, report, now, log);
    }

    /// Whoever is left gets the same end.
    pub(crate) fn give_up(&mut self, refusal: &Refusal, now: Instant, log: &mut dyn FnMut(&Event<'_>)) {
        let verdict = if refusal.permanent { Verdict::Failed } else { Verdict::Deferred };
        for place in self.recipients.remaining() {
            let report = Report {
                relay: refusal.relay.clone(),
                reply: brief(refusal.reply.clone()),
                remote: refusal.remote,
                destination_down: refusal.destination_down,
            };
            self.tell(place, verdict, report, now, log);
        }
    }

    /// Results not yet sent.
    pub(crate) fn take_results(&mut self) -> Vec<(u32, Outcome)> {
        std::mem::take(&mut self.results)
    }

    /// Nobody is left.
    pub(crate) fn is_done(&self) -> bool {
        self.recipients.remaining().is_empty()
    }

    fn tell(
        &mut self,
        place: usize,
        verdict: Verdict,
        report: Report,
        now: Instant,
        log: &mut dyn FnMut(&Event<'_>),
    ) {
        let Some(target) = self.recipients.tell(place) else { return };
        let (index, status) = match verdict {
            Verdict::Delivered => (target.index, Status::Sent),
            Verdict::Deferred => (target.index, Status::Deferred),
            Verdict::Failed => (target.index, Status::Bounced),
        };
        log(&Event::Delivery(Line {
            id: self.letter.queue_id,
            to: &target.recipient,
            orig_to: target.original.as_ref(),
            relay: report.relay.as_deref(),
            delays: self.clock.delays(now),
            status,
            reply: &report.reply,
        }));
        let outcome = match verdict {
            Verdict::Delivered if self.passes => Outcome::Passed(report),
            // An LMTP server delivers.
            Verdict::Delivered if matches!(self.destination, Destination::Lmtp(_)) => {
                Outcome::Delivered(report)
            }
            Verdict::Delivered => Outcome::Relayed(report),
            Verdict::Deferred => Outcome::Deferred(report),
            Verdict::Failed => Outcome::Failed(report),
        };
        self.results.push((index, outcome));
    }
}

/// A reply cut to what logs and bounces can use: a server may send a hundred lines.
fn brief(mut reply: Reply) -> Reply {
    let mut room = REPLY_MAX;
    let mut lines = Vec::new();
    for mut line in reply.lines {
        if line.len() > room {
            let end = (0..=room).rev().find(|end| line.is_char_boundary(*end)).unwrap_or(0);
            line.truncate(end);
            lines.push(line);
            break;
        }
        room -= line.len();
        lines.push(line);
        if lines.len() == 10 {
            break;
        }
    }
    reply.lines = lines;
    reply
}

#[cfg(test)]
mod tests {
    use postern_address::{Domain, Mailbox, ReversePath};
    use postern_ipc::queue_agent::{Content, FromAgent, Nexthop, RECIPIENTS_MAX};
    use postern_spool::QueueId;
    use proptest::prelude::*;

    use super::*;

    fn job(recipients: u32) -> Job {
        let target = |n| Target {
            index: 100 + n,
            recipient: Mailbox::parse(&format!("u{n}@b.test")).unwrap(),
            original: None,
            parameters: Default::default(),
        };
        Job {
            job: 1,
            queue_id: QueueId::from_u64(1),
            arrival: Timestamp(1_000),
            scheduled: Timestamp(1_500),
            reverse_path: ReversePath::Null,
            recipients: (0..recipients).map(target).collect(),
            destination: Destination::Smtp(Nexthop::Address("127.0.0.1:25".parse().unwrap())),
            body: BodyType::SevenBit,
            options: Default::default(),
            content: Content::Inline(b"x".to_vec()),
        }
    }

    fn attempt(recipients: u32, begun: Instant) -> Attempt {
        let job = job(recipients);
        let clock = Clock::new(&job, Timestamp(1_700), begun);
        let nexthop = Nexthop::Address("127.0.0.1:25".parse().unwrap());
        let route = Route::smtp(&nexthop, &Domain::parse("us.test").unwrap(), 0);
        Attempt::new(job, clock, route, Source::new(Content::Inline(b"x".to_vec()), None).unwrap())
    }

    fn outcome(verdict: Verdict, text: &str) -> client::Outcome {
        let reply = Reply::new(250, EnhancedCode::new(2, 0, 0), text);
        client::Outcome { verdict, reply, remote: true }
    }

    fn refusal(text: &str) -> Refusal {
        let reply = Reply::new(451, EnhancedCode::new(4, 4, 1), text);
        Refusal { permanent: false, reply, remote: false, destination_down: true, relay: None }
    }

    #[test]
    fn delays_are_postfix_s() {
        let begun = Instant::now();
        let mut attempt = attempt(1, begun);
        let after = |ms| begun + std::time::Duration::from_millis(ms);
        assert_eq!(attempt.clock.delays(after(40)), [500, 200, 40, 0]);
        attempt.transaction(&Extensions::default(), Timestamp(1_800), after(30)).unwrap();
        assert_eq!(attempt.clock.delays(after(100)), [500, 200, 30, 70]);
    }

    #[test]
    fn the_longest_results_fit_a_frame() {
        let mut attempt = attempt(RECIPIENTS_MAX as u32, Instant::now());
        let text = "ü".repeat(5_000);
        attempt.give_up(
            &Refusal { relay: Some("r".repeat(300)), ..refusal(&text) },
            Instant::now(),
            &mut |_| {},
        );
        let results = attempt.take_results();
        assert_eq!(results.len(), RECIPIENTS_MAX);
        postern_ipc::encode(&FromAgent::Results { job: 1, results }).unwrap();
    }

    proptest! {
        /// Whatever is said of whom in whatever order, with servers lost in between: one result each.
        #[test]
        fn one_result_for_each(
            count in 1u32..8,
            story in proptest::collection::vec((0usize..10, 0usize..9), 0..30),
        ) {
            let now = Instant::now();
            let mut attempt = attempt(count, now);
            let mut lines = 0;
            let mut results = Vec::new();
            for (what, index) in story {
                let verdict = [Verdict::Delivered, Verdict::Deferred, Verdict::Failed][what % 3];
                match what {
                    0..=6 => attempt.told(index, outcome(verdict, "x"), "r", now, &mut |_| lines += 1),
                    7 => drop(attempt.transaction(&Extensions::default(), Timestamp(1_800), now)),
                    8 => attempt.disconnected(),
                    _ => results.extend(attempt.take_results()),
                }
            }
            attempt.give_up(&refusal("x"), now, &mut |_| lines += 1);
            results.extend(attempt.take_results());
            prop_assert!(attempt.is_done());
            let mut told: Vec<u32> = results.iter().map(|(index, _)| *index).collect();
            told.sort_unstable();
            prop_assert_eq!(told, (100..100 + count).collect::<Vec<_>>());
            prop_assert_eq!(lines, count);
        }
    }
}
