//! The suite, played to Postern and, as controls, to Postfix and Exim as Debian has them. Each server has its
//! list of known gaps in `gaps/`; what is not listed must be met, and what is listed must not.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use postern_conformance::{Delivered, Gaps, Lines, Options, Profile, Report, requirements, run, suspects};
use postern_tests::{Exim, Postfix, System, have, have_root, skip};

#[test]
fn postern() {
    let system = System::builder()
        .users(&["u1@v.test", "u2@v.test", "postmaster@v.test"])
        .set("smtp", "errors", "1000")
        .listen("127.0.0.1:0", "submission")
        .start();
    let mail = system.directory().join("mail/v.test");
    let report = judge("postern", system.address(), &mail, &[]);
    assert!(report.is_good(), "{}", report.text());
    // What is offered on this port alone.
    let report = judge("postern", system.addresses("submission")[0], &mail, &["4865-4", "6710-4"]);
    assert!(report.is_good() && report.count("pass") > 5, "{}", report.text());
}

#[test]
fn the_controls() {
    if !have_root()
        || !have(&["postfix"])
        || !(Exim::is_there() || skip("Exim is not unpacked (tests/install-packages)"))
    {
        return;
    }
    let (postfix, exim) = (Postfix::start("reject", true), Exim::start());
    let (of_postfix, of_exim) = std::thread::scope(|scope| {
        let of_postfix = scope.spawn(|| judge("postfix", postfix.address(), &postfix.mail(), &[]));
        let of_exim = scope.spawn(|| judge("exim", exim.address(), &exim.mail(), &[]));
        (of_postfix.join().unwrap(), of_exim.join().unwrap())
    });
    // What none of the controls does may be a fault of the test: each such requirement is argued for.
    let argued = read("suspects");
    let suspects = suspects(&[&of_postfix, &of_exim]);
    let unargued: Vec<_> = suspects.iter().filter(|id| !argued.gaps.contains_key(*id)).collect();
    let no_longer: Vec<_> = argued.gaps.keys().filter(|id| !suspects.contains(id)).collect();
    let good = of_postfix.is_good() && of_exim.is_good();
    assert!(good, "{}{}", of_postfix.text(), of_exim.text());
    assert!(unargued.is_empty(), "suspect, since all controls fail: {unargued:?} (gaps/suspects.toml)");
    assert!(no_longer.is_empty(), "no longer suspect: {no_longer:?}");
}

/// The report also goes to a file beside the binaries, for who wants to compare.
fn judge(name: &str, at: SocketAddr, mail: &Path, only: &[&str]) -> Report {
    let profile = Profile {
        name: name.into(),
        client: "client.test".into(),
        sender: "sender@client.test".into(),
        recipient: "u1@v.test".into(),
        second: Some("u2@v.test".into()),
        unknown: Some("nobody@v.test".into()),
        relay: Some("somebody@elsewhere.test".into()),
        user: Some("u1".into()),
        password: Some("secret".into()),
        patience: 120,
        delivered: Some(Delivered {
            directories: vec![mail.to_owned()],
            command: Vec::new(),
            lines: Lines::Lf,
        }),
    };
    let options = Options { at, jobs: 8, only: only.iter().map(|id| (*id).to_owned()).collect() };
    let report = run(&requirements().unwrap(), &profile, &read(name), &options).unwrap();
    if !only.is_empty() {
        return report;
    }
    let place = std::env::current_exe().unwrap().ancestors().nth(3).unwrap().join("conformance");
    std::fs::create_dir_all(&place).unwrap();
    std::fs::write(place.join(format!("{name}.json")), format!("{:#}\n", report.json())).unwrap();
    report
}

fn read(name: &str) -> Gaps {
    let suite = requirements().unwrap();
    let ids: Vec<_> = suite.iter().map(|requirement| requirement.id.as_str()).collect();
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("gaps").join(format!("{name}.toml"));
    Gaps::read(&path, &ids).unwrap()
}
