use proptest::prelude::*;

use super::*;

fn domain(text: &str) -> Domain {
    Domain::parse(text).unwrap()
}

fn mx(records: &[(u16, &str)]) -> Result<Records, DnsError> {
    let records = records.iter().map(|(n, host)| (*n, (!host.is_empty()).then(|| domain(host)))).collect();
    Ok(Records { data: RecordData::Mx(records), secure: false, ttl: 1 })
}

fn addresses(list: &[&str]) -> Result<Records, DnsError> {
    let list = list.iter().map(|a| a.parse().unwrap()).collect();
    Ok(Records { data: RecordData::Addresses(list), secure: false, ttl: 1 })
}

fn by_mx(seed: u64) -> Route {
    Route::smtp(&Nexthop::Mx(domain("example.org")), &domain("us.test"), seed)
}

/// Follows a route whose every server fails; the relays tried, and the end.
fn follow(
    mut route: Route,
    mx: Result<Records, DnsError>,
    mut hosts: impl FnMut(&str) -> Result<Records, DnsError>,
) -> (Vec<String>, Refusal) {
    let mut tried = Vec::new();
    loop {
        match route.step() {
            Step::AskMx(_) => route.answered(mx.clone()),
            Step::AskAddresses(host) => route.answered(hosts(host.as_str())),
            Step::Connect(candidate) => {
                tried.push(candidate.relay());
                route.failed(&candidate, Reply::new(451, EnhancedCode::new(4, 4, 1), "refused"), false);
            }
            Step::GiveUp(refusal) => return (tried, refusal),
        }
    }
}

#[test]
fn preferences_families_and_limits() {
    let records =
        mx(&[(20, "c.test"), (10, "b.test"), (5, "a.test"), (30, "d.test"), (40, "e.test"), (50, "f.test")]);
    let (tried, refusal) = follow(by_mx(1), records, |host| match host {
        "a.test" => addresses(&["192.0.2.1", "192.0.2.2", "2001:db8::1"]),
        "b.test" => Err(DnsError::NoSuchName),
        "f.test" => panic!("a sixth exchanger was asked for"),
        _ => addresses(&["192.0.2.3"]),
    });
    let expected = ["a.test[2001:db8::1]:25", "a.test[192.0.2.1]:25", "a.test[192.0.2.2]:25"];
    assert_eq!(tried[..3], expected);
    assert_eq!(tried[3..], ["c.test[192.0.2.3]:25", "d.test[192.0.2.3]:25", "e.test[192.0.2.3]:25"]);
    assert!(!refusal.permanent && refusal.destination_down);
    assert_eq!(refusal.relay.as_deref(), Some("e.test[192.0.2.3]:25"));
    let many: Vec<String> = (1..30).map(|n| format!("192.0.2.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let (tried, _) = follow(by_mx(1), mx(&[(1, "a.test"), (2, "b.test")]), |_| addresses(&many));
    assert_eq!((tried.len(), tried.iter().filter(|t| t.starts_with('b')).count()), (10, 5));
}

#[test]
fn equal_preferences_are_shuffled() {
    let first = |seed| {
        let records = mx(&[(10, "a.test"), (10, "b.test"), (10, "c.test"), (20, "d.test")]);
        let (tried, _) = follow(by_mx(seed), records, |_| addresses(&["192.0.2.1"]));
        assert!(tried[3].starts_with('d'));
        tried[0].as_bytes()[0]
    };
    let firsts: Vec<u8> = (0..300).map(first).collect();
    for host in *b"abc" {
        assert!(firsts.iter().filter(|f| **f == host).count() > 60);
    }
}

#[test]
fn what_the_dns_says() {
    let code = |mx: Result<Records, DnsError>, hosts: Result<Records, DnsError>| {
        let (tried, refusal) = follow(by_mx(1), mx, |_| hosts.clone());
        assert_eq!(refusal.permanent, refusal.reply.code >= 500);
        (tried.len(), refusal.reply.enhanced.unwrap().to_string())
    };
    let here = addresses(&["192.0.2.1"]);
    let servfail = || Err(DnsError::Temporary("SERVFAIL".into()));
    for (mx, hosts, tried, enhanced) in [
        (mx(&[(0, "")]), here.clone(), 0, "5.1.10"),
        (mx(&[(0, ""), (1, "a.test")]), here.clone(), 1, "4.4.1"),
        (Err(DnsError::NoSuchName), here.clone(), 0, "5.1.2"),
        (Err(DnsError::NoRecords), here.clone(), 1, "4.4.1"),
        (Err(DnsError::NoRecords), Err(DnsError::NoRecords), 0, "5.4.4"),
        (Err(DnsError::NoRecords), Err(DnsError::NoSuchName), 0, "5.4.4"),
        (servfail(), here.clone(), 0, "4.4.3"),
        (mx(&[(1, "a.test")]), servfail(), 0, "4.4.3"),
        (mx(&[(1, "a.test")]), Err(DnsError::NoSuchName), 0, "5.4.4"),
        (here.clone(), here.clone(), 0, "4.4.3"),
        // Ourselves: what is not better than us is no way.
        (mx(&[(1, "us.test")]), here.clone(), 0, "5.4.6"),
        (mx(&[(1, "US.test"), (1, "a.test"), (2, "b.test")]), here.clone(), 0, "5.4.6"),
        (mx(&[(5, "us.test"), (1, "a.test"), (9, "b.test")]), here.clone(), 1, "4.4.1"),
    ] {
        assert_eq!(code(mx.clone(), hosts), (tried, enhanced.into()), "{mx:?}");
    }
    let (_, refusal) = follow(
        Route::smtp(&Nexthop::Mx(domain("us.test")), &domain("us.test"), 1),
        Err(DnsError::NoRecords),
        |_| panic!(),
    );
    assert_eq!(refusal.reply.enhanced.unwrap().to_string(), "5.4.6");
    // One temporary failure among permanent ones leaves hope.
    let mut first = true;
    let (_, refusal) = follow(by_mx(1), super::tests::mx(&[(1, "a.test"), (2, "b.test")]), |_| {
        if std::mem::take(&mut first) {
            Err(DnsError::Temporary("t".into()))
        } else {
            Err(DnsError::NoSuchName)
        }
    });
    assert!(!refusal.permanent);
}

#[test]
fn hosts_that_never_take_mail() {
    let mut route = Route::smtp(&Nexthop::Address("192.0.2.1:2525".parse().unwrap()), &domain("us.test"), 0);
    let Step::Connect(candidate) = route.step() else { panic!() };
    assert_eq!(candidate.relay(), "192.0.2.1[192.0.2.1]:2525");
    route.failed(&candidate, Reply::new(521, None, "never"), true);
    assert!(matches!(route.step(), Step::GiveUp(Refusal { permanent: true, .. })));
}

#[test]
fn refusals_to_talk_pass() {
    let mut route = Route::smtp(&Nexthop::Address("192.0.2.1:25".parse().unwrap()), &domain("us.test"), 0);
    let Step::Connect(candidate) = route.step() else { panic!() };
    route.failed(&candidate, Reply::new(554, EnhancedCode::new(5, 7, 1), "go"), true);
    let Step::GiveUp(refusal) = route.step() else { panic!() };
    assert!(!refusal.permanent);
    assert_eq!(refusal.reply.to_string(), "451 4.7.1 the server refused to talk to us: 554 5.7.1 go");
}

#[test]
fn postponed_candidates_come_last_and_once() {
    let mut route = by_mx(1);
    let mut tried = Vec::new();
    loop {
        match route.step() {
            Step::AskMx(_) => route.answered(mx(&[(1, "a.test"), (2, "b.test")])),
            Step::AskAddresses(_) => route.answered(addresses(&["192.0.2.1", "192.0.2.2"])),
            Step::Connect(candidate) => {
                let dead = candidate.relay().contains("192.0.2.1");
                match if dead { route.postpone(candidate) } else { Err(candidate) } {
                    Ok(()) => {}
                    Err(candidate) => {
                        tried.push(candidate.relay());
                        route.failed(&candidate, Reply::new(451, None, "no"), false);
                    }
                }
            }
            Step::GiveUp(_) => break,
        }
    }
    let order = ["a.test[192.0.2.2]", "b.test[192.0.2.2]", "a.test[192.0.2.1]", "b.test[192.0.2.1]"];
    assert_eq!(tried, order.map(|relay| format!("{relay}:25")));
}

#[test]
fn ourselves_under_another_name() {
    let first = |mut route: Route| loop {
        match route.step() {
            Step::AskMx(_) => route.answered(mx(&[(1, "alias.test"), (2, "b.test")])),
            Step::AskAddresses(_) => route.answered(addresses(&["192.0.2.1", "192.0.2.2"])),
            Step::Connect(candidate) => return (route, candidate),
            Step::GiveUp(_) => panic!(),
        }
    };
    let (mut route, candidate) = first(by_mx(1));
    assert!(!route.is_ourselves(&candidate, "them.test") && !route.is_ourselves(&candidate, ""));
    assert!(route.is_ourselves(&candidate, "US.test."));
    let Step::GiveUp(refusal) = route.step() else { panic!() };
    assert!(refusal.permanent && refusal.relay.is_some());
    assert_eq!(refusal.reply.to_string(), "554 5.4.6 mail for example.org loops back to myself");
    // A better exchanger did not answer: it may yet.
    let (mut route, candidate) = first(by_mx(1));
    route.failed(&candidate, Reply::new(451, None, "refused"), false);
    let Step::Connect(candidate) = route.step() else { panic!() };
    assert!(route.is_ourselves(&candidate, "us.test"));
    assert!(matches!(route.step(), Step::GiveUp(Refusal { permanent: false, .. })));
    // An operator's route is not doubted.
    let nexthop = Nexthop::Address("192.0.2.1:25".parse().unwrap());
    let (mut route, candidate) = first(Route::smtp(&nexthop, &domain("us.test"), 0));
    assert!(!route.is_ourselves(&candidate, "us.test"));
}

#[test]
fn named_hosts_and_sockets() {
    let host = Nexthop::Host { host: domain("a.test"), port: 26 };
    let (tried, _) = follow(Route::smtp(&host, &domain("us.test"), 0), mx(&[]), |_| addresses(&["::1"]));
    assert_eq!(tried, ["a.test[::1]:26"]);
    let server = LmtpServer::Unix("/run/lmtp".into());
    let (tried, refusal) = follow(Route::lmtp(&server, &domain("us.test"), 0), mx(&[]), |_| panic!());
    assert_eq!((tried, refusal.permanent), (vec!["us.test[/run/lmtp]".to_owned()], false));
    let server = LmtpServer::Tcp(host);
    let (tried, _) =
        follow(Route::lmtp(&server, &domain("us.test"), 0), mx(&[]), |_| addresses(&["127.0.0.1"]));
    assert_eq!(tried, ["a.test[127.0.0.1]:26"]);
}

proptest! {
    #[test]
    fn every_route_ends(
        records in proptest::collection::vec((0u16..4, 0usize..5), 1..12),
        answers in proptest::collection::vec(0usize..5, 1..6),
        seed in any::<u64>(),
    ) {
        let names = ["", "a.test", "b.test", "c.test", "us.test"];
        let records: Vec<_> = records.iter().map(|(n, host)| (*n, names[*host])).collect();
        let mut answers = answers.into_iter().cycle();
        let (tried, refusal) = follow(by_mx(seed), mx(&records), |_| match answers.next().unwrap() {
            0 => Err(DnsError::NoSuchName),
            1 => Err(DnsError::NoRecords),
            2 => Err(DnsError::Temporary("t".into())),
            3 => addresses(&["::1", "127.0.0.1"]),
            _ => addresses(&["127.0.0.1"; 20]),
        });
        prop_assert!(tried.len() <= ADDRESSES_MAX);
        prop_assert!(!tried.iter().any(|relay| relay.starts_with("us.test")));
        // Where a server was there to be tried, or the DNS did not know, nothing bounces.
        prop_assert!(tried.is_empty() || !refusal.permanent);
    }
}
