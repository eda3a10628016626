use postern_address::{Domain, ReversePath};
use postern_config::{AddressPattern, NamePattern, Service, TableKey};
use postern_ipc::smtpd_verify::ClientFacts;
use proptest::prelude::*;

use super::*;

/// Facts of a client, with everything known.
struct World {
    client: ClientFacts,
    from: ReversePath,
    to: Vec<Mailbox>,
    message: Vec<u8>,
}

impl World {
    fn new(name: ClientName, score: i32) -> Self {
        Self {
            client: ClientFacts { name, list_score: score, ..ClientFacts::UNKNOWN },
            from: ReversePath::Mailbox(Mailbox::parse("a@x.test").unwrap()),
            to: vec![Mailbox::parse("u@v.test").unwrap()],
            message: b"Subject: hello\r\nX-Flag: YES indeed\r\n\r\nX-Body: no\r\n".to_vec(),
        }
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            address: "192.0.2.7".parse().unwrap(),
            service: Service::Smtp,
            listener: "127.0.0.1:25".parse().unwrap(),
            client: Some(&self.client),
            helo: "mx.x.test",
            user: None,
            from: Some(&self.from),
            to: &self.to,
            message: Some(&self.message),
        }
    }
}

fn named() -> World {
    World::new(ClientName::Confirmed(Domain::parse("mx.x.test").unwrap()), 3)
}

fn rule(conditions: Vec<Condition>, action: Option<RuleAction>) -> Rule {
    Rule { line: 7, stage: Stage::Rcpt, conditions, action }
}

fn is(test: Test) -> Condition {
    Condition { negated: false, test }
}

fn table() -> Test {
    Test::Table { table: Table::Text("/t".into()), key: TableKey::From }
}

fn server() -> Test {
    Test::Ask(PolicyServer::Unix("/s".into()))
}

fn refuse(code: u16) -> Option<RuleAction> {
    let status = ((code / 100) as u8, 7, 1);
    Some(RuleAction::Refuse(postern_config::RuleReply { code, status, text: "no".into() }))
}

/// Goes to the end, with these answers of tables and servers in their order.
fn run(
    rules: &[Rule],
    world: &World,
    answers: &[Result<Option<&str>, &str>],
    traced: bool,
) -> (Verdict, Vec<Tried>) {
    let rules = Rules::new(rules);
    let mut evaluation = Evaluation::new(Stage::Rcpt, traced);
    let mut answers = answers.iter();
    let mut heard = None;
    let most = 1 + 3 * rules.of(Stage::Rcpt).iter().map(|(_, rule)| 1 + rule.conditions.len()).sum::<usize>();
    for _ in 0..most {
        match evaluation.step(&rules, &world.facts(), heard.take()) {
            Step::Done(verdict) => return (verdict, evaluation.tried()),
            Step::Need(Need::Client) => panic!("it is known"),
            Step::Need(Need::Table(..)) => {
                let answer = answers.next().copied().unwrap_or(Ok(None));
                let answer = answer.map(|value| value.map(|v| ("key".to_owned(), v.to_owned())));
                heard = Some(Heard::Table(answer.map_err(str::to_owned)));
            }
            Step::Need(Need::Server(_)) => {
                let answer = answers.next().copied().unwrap_or(Ok(None));
                heard = Some(Heard::Server(
                    answer.map(|v| v.unwrap_or("DUNNO").to_owned()).map_err(str::to_owned),
                ));
            }
        }
    }
    panic!("no end after {most} steps");
}

fn decided(rules: &[Rule], answers: &[Result<Option<&str>, &str>]) -> String {
    words(&run(rules, &named(), answers, false).0)
}

fn words(verdict: &Verdict) -> String {
    match (&verdict.decision, &verdict.otherwise) {
        (Decision::Refuse(reply), _) => reply.to_string(),
        (decision, Some(otherwise)) => format!("{decision:?} or {otherwise}"),
        (decision, None) => format!("{decision:?}"),
    }
}

#[test]
fn the_first_that_decides() {
    let never = is(Test::NameVerified(false));
    let rules = [
        rule(vec![never], refuse(550)),
        rule(vec![], Some(RuleAction::Hold)),
        rule(vec![], Some(RuleAction::Tag("X-A: 1".into()))),
        rule(vec![is(Test::ScoreAtLeast(3))], Some(RuleAction::Accept)),
        rule(vec![], refuse(550)),
    ];
    let (verdict, tried) = run(&rules, &named(), &[], true);
    assert_eq!(verdict.decision, Decision::Accept);
    assert_eq!(verdict.effects, Effects { held: true, tags: vec!["X-A: 1".into()], ..Effects::default() });
    assert_eq!(verdict.deeds.iter().map(|deed| deed.word).collect::<Vec<_>>(), ["hold", "tag", "accept"]);
    let actions: Vec<_> = tried.iter().map(|tried| (tried.rule, tried.action.as_deref())).collect();
    assert_eq!(actions, [(1, None), (2, Some("hold")), (3, Some("tag X-A: 1")), (4, Some("accept"))]);
    assert_eq!(tried[0].conditions[0].because, "its name is mx.x.test");
    assert_eq!(tried[0].conditions[0].holds, Some(false));
}

#[test]
fn what_tables_and_servers_say() {
    let asks = [rule(vec![is(table())], None), rule(vec![is(server())], None), rule(vec![], refuse(550))];
    for (answers, wanted) in [
        (&[Ok(None), Ok(Some("DUNNO"))][..], "550 5.7.1 no"),
        (&[Ok(Some("dunno")), Ok(Some("OK"))], "Accept"),
        (&[Ok(Some("REJECT go"))], "554 5.7.1 <u@v.test>: Recipient address rejected: go"),
        (&[Ok(Some("450 4.2.0 later"))], "450 4.2.0 <u@v.test>: Recipient address rejected: later"),
        (&[Ok(Some("HOLD")), Ok(Some("OK"))], "Accept"),
        (&[Err("gone")], "451 4.3.0 Temporary lookup failure, try again"),
        (&[Ok(None), Err("gone")], "451 4.3.5 Server configuration problem"),
        (&[Ok(Some("permit_mynetworks"))], "451 4.3.5 Server configuration error"),
        // It is deferred when it would pass, and refused when it would not.
        (
            &[Ok(Some("DEFER_IF_PERMIT wait")), Ok(Some("OK"))],
            "Accept or 450 4.7.1 <u@v.test>: Recipient address rejected: wait",
        ),
        (&[Ok(Some("DEFER_IF_PERMIT wait"))], "550 5.7.1 no"),
        (&[Ok(Some("DEFER_IF_REJECT wait"))], "450 4.7.1 <u@v.test>: Recipient address rejected: wait"),
    ] {
        assert_eq!(decided(&asks, answers), wanted, "{answers:?}");
    }
    // An action of the rule's own takes the place of what the table says.
    let own = [rule(vec![is(table())], refuse(551))];
    assert_eq!(decided(&own, &[Ok(Some("OK"))]), "551 5.7.1 no");
    assert_eq!(decided(&own, &[Ok(Some("DUNNO"))]), "Pass");
    let not = [rule(vec![Condition { negated: true, test: table() }], refuse(551))];
    assert_eq!(decided(&not, &[Ok(None)]), "551 5.7.1 no");
    assert_eq!(decided(&not, &[Ok(Some("yes"))]), "Pass");
    assert!(decided(&not, &[Err("gone")]).starts_with("451 4.3.0"));
}

#[test]
fn a_silent_dns_defers_and_does_nothing_else() {
    let unknown = World::new(ClientName::Unavailable, 0);
    let of = |negated, action| [rule(vec![Condition { negated, test: Test::NameVerified(true) }], action)];
    for negated in [false, true] {
        assert!(words(&run(&of(negated, refuse(550)), &unknown, &[], false).0).starts_with("450 4.7.25"));
        assert_eq!(words(&run(&of(negated, refuse(450)), &unknown, &[], false).0), "Pass");
        assert_eq!(words(&run(&of(negated, Some(RuleAction::Accept)), &unknown, &[], false).0), "Pass");
        assert!(run(&of(negated, Some(RuleAction::Hold)), &unknown, &[], false).0.effects.is_none());
    }
    // Another condition says no for sure.
    let sure = [rule(vec![is(Test::NameVerified(true)), is(Test::ScoreAtLeast(9))], refuse(550))];
    assert_eq!(words(&run(&sure, &unknown, &[], false).0), "Pass");
}

#[test]
fn conditions() {
    let world = named();
    let header = |text: &str| {
        let (name, value) = text.split_once(": ").map_or((text, None), |(n, v)| (n, Some(v.to_owned())));
        Test::Header(vec![postern_config::HeaderPattern { name: name.into(), value }])
    };
    for (test, holds) in [
        (Test::Network(vec!["192.0.2.0/24".parse().unwrap()]), true),
        (Test::Network(vec!["10.0.0.0/8".parse().unwrap(), "::/0".parse().unwrap()]), false),
        (Test::Service(vec![Service::Submission, Service::Smtp]), true),
        (Test::Listener(vec!["127.0.0.1:26".parse().unwrap()]), false),
        (Test::Authenticated(false), true),
        (Test::Helo(vec![NamePattern::Exact("MX.x.test".into())]), true),
        (Test::From(vec![AddressPattern::Null, AddressPattern::At(Domain::parse("x.test").unwrap())]), true),
        (Test::To(vec![AddressPattern::Local("u".into())]), true),
        (header("X-Flag: yes*"), true),
        (header("subject"), true),
        (header("X-Body"), false),
        (Test::Name(vec![NamePattern::Below(Domain::parse("x.test").unwrap())]), true),
        (Test::NameVerified(true), true),
        (Test::ScoreAtLeast(4), false),
    ] {
        for negated in [false, true] {
            let rules = [rule(vec![Condition { negated, test: test.clone() }], refuse(550))];
            let refused = run(&rules, &world, &[], false).0.decision != Decision::Pass;
            assert_eq!(refused, holds != negated, "{test} {negated}");
        }
    }
}

fn any_test() -> impl Strategy<Value = Condition> {
    let test = prop_oneof![
        any::<bool>().prop_map(Test::NameVerified),
        any::<bool>().prop_map(Test::Authenticated),
        (0..6i32).prop_map(Test::ScoreAtLeast),
        Just(table()),
        Just(server()),
    ];
    (any::<bool>(), test).prop_map(|(negated, test)| Condition { negated, test })
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let action = prop_oneof![
        Just(Some(RuleAction::Accept)),
        Just(refuse(550)),
        Just(refuse(451)),
        Just(Some(RuleAction::Hold)),
        Just(Some(RuleAction::Discard)),
        (0..3u8).prop_map(|n| Some(RuleAction::Tag(format!("X-T: {n}")))),
        Just(None),
    ];
    (prop::collection::vec(any_test(), 0..4), action)
        .prop_map(|(conditions, action)| rule(conditions, action))
}

const SAID: [Result<Option<&str>, &str>; 10] = [
    Ok(None),
    Ok(Some("DUNNO")),
    Ok(Some("OK")),
    Ok(Some("REJECT")),
    Ok(Some("450 wait")),
    Ok(Some("HOLD")),
    Ok(Some("DEFER_IF_PERMIT x")),
    Ok(Some("DISCARD")),
    Ok(Some("nonsense")),
    Err("gone"),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Whatever is answered, it ends; the same facts and answers give the same verdict; and whether somebody
    /// watches changes nothing.
    #[test]
    fn it_ends_and_has_no_memory(
        rules in prop::collection::vec(any_rule(), 0..6),
        answers in prop::collection::vec(prop::sample::select(&SAID[..]), 0..12),
        name in 0..3u8, score in 0..6,
    ) {
        let name = match name {
            0 => ClientName::Unknown,
            1 => ClientName::Unavailable,
            _ => ClientName::Confirmed(Domain::parse("mx.x.test").unwrap()),
        };
        let world = World::new(name, score);
        let (verdict, none) = run(&rules, &world, &answers, false);
        prop_assert!(none.is_empty());
        prop_assert_eq!(&run(&rules, &world, &answers, false).0, &verdict);
        let (traced, tried) = run(&rules, &world, &answers, true);
        prop_assert_eq!(&traced, &verdict);
        // Rules are tried in order, from the first, without a gap.
        let order: Vec<u32> = tried.iter().map(|tried| tried.rule).collect();
        prop_assert_eq!(order, (1..=tried.len() as u32).collect::<Vec<_>>());
        if verdict.decision == Decision::Pass {
            prop_assert_eq!(tried.len(), rules.len());
        }
    }

    /// Order decides: what stands behind the rule that ended the stage does not matter, and a rule that does
    /// not match may stand anywhere.
    #[test]
    fn order_decides(
        rules in prop::collection::vec(any_rule(), 0..6),
        more in prop::collection::vec(any_rule(), 0..4),
        at in any::<prop::sample::Index>(),
        answers in prop::collection::vec(prop::sample::select(&SAID[..]), 0..12),
    ) {
        let world = named();
        let (verdict, tried) = run(&rules, &world, &answers, true);
        if verdict.decision != Decision::Pass {
            let mut longer = rules[..tried.len()].to_vec();
            longer.extend(more);
            prop_assert_eq!(&run(&longer, &world, &answers, false).0, &verdict);
        }
        let mut idle = rules.clone();
        let never = rule(vec![is(Test::ScoreAtLeast(100))], refuse(550));
        idle.insert(at.index(rules.len() + 1), never);
        let same = run(&idle, &world, &answers, false).0;
        prop_assert_eq!((same.decision, same.effects, same.otherwise), (verdict.decision, verdict.effects, verdict.otherwise));
    }
}
