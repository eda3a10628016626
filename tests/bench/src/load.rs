//! One load on one system, measured.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use postern_tests::until;

use crate::Point;
use crate::generator;
use crate::measure::{Figures, Tree, median};
use crate::peers::Peer;

/// What is done with the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Workload {
    /// Accepted, and nothing delivered.
    Hold,
    /// Delivered to one Maildir.
    Maildir,
    /// Relayed to smtp-sink.
    Relay,
    /// One message to a thousand Maildirs.
    Fanout,
    /// `sendmail` run again and again, to one Maildir.
    Sendmail,
}

impl Workload {
    pub(crate) const ALL: [Self; 5] = [Self::Hold, Self::Maildir, Self::Relay, Self::Fanout, Self::Sendmail];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Hold => "accept and hold",
            Self::Maildir => "maildir",
            Self::Relay => "relay",
            Self::Fanout => "1 x 1000 recipients",
            Self::Sendmail => "sendmail",
        }
    }
}

/// The longest that a system may take to deliver.
const PATIENCE: Duration = Duration::from_secs(120);

/// Messages a second, about, by a short load.
pub(crate) fn pilot(peer: &mut Peer, point: Point) -> f64 {
    if matches!(point.workload, Workload::Fanout | Workload::Sendmail) {
        return 1.0;
    }
    run(peer, point, 200.0, 1.0);
    run(peer, point, 500.0, 1.0).accepted
}

/// A load that should take about `seconds` at `rate` messages a second.
pub(crate) fn run(peer: &mut Peer, point: Point, rate: f64, seconds: f64) -> Figures {
    let sessions = point.sessions;
    // A hundred a session, so that the sessions' beginnings do not count; and what a directory holds well.
    let most = if point.size > 32 << 10 { 4_000.0 } else { 30_000.0 };
    let count = match point.workload {
        Workload::Fanout => 1,
        Workload::Sendmail => 500,
        _ => (rate * seconds).clamp(200.0, most) as usize / sessions * sessions,
    };
    let user = peer.next_user();
    let to = recipient(point.workload, &user);
    let (expected, already) = match point.workload {
        Workload::Fanout => (1000, 0),
        Workload::Relay => (count, peer.sunk()),
        _ => (count, 0),
    };
    let mut tree = Tree::watch(peer.root());
    let begin = Instant::now();
    match point.workload {
        Workload::Sendmail => sendmail(peer, &to, count),
        Workload::Fanout => fanout(peer, &user),
        _ => source(&peer.address().to_string(), point, count, &to),
    }
    let accepted = begin.elapsed();
    until("everything is delivered", PATIENCE, || {
        let there = match point.workload {
            Workload::Hold => count,
            Workload::Relay => peer.sunk() - already,
            Workload::Maildir | Workload::Sendmail => peer.delivered(&user),
            Workload::Fanout => (0..1000).filter(|n| peer.delivered(&format!("{user}n{n}")) > 0).count(),
        };
        (there >= expected).then_some(())
    });
    let delivered = begin.elapsed();
    peer.settle(point.workload);
    let used = tree.end();
    let latencies = match point.workload {
        Workload::Fanout | Workload::Sendmail => generator::Measured::default(),
        _ => {
            let user = peer.next_user();
            let to = recipient(point.workload, &user);
            let already = peer.sunk();
            let few = (count / 2).max(sessions) / sessions;
            let measured = generator::run(peer.address(), sessions, few, point.size, &to);
            let few = few * sessions;
            until("what the generator sent is delivered", PATIENCE, || {
                let there = match point.workload {
                    Workload::Relay => peer.sunk() - already,
                    Workload::Maildir => peer.delivered(&user),
                    _ => few,
                };
                (there >= few).then_some(())
            });
            measured
        }
    };
    let many = expected as f64;
    Figures {
        accepted: count as f64 / accepted.as_secs_f64(),
        delivered: many / delivered.as_secs_f64(),
        cpu: used.seconds / many * 1000.0,
        rss: used.peak_kib as f64 / 1024.0,
        p50: median(&latencies.milliseconds, 0.5),
        p99: median(&latencies.milliseconds, 0.99),
        most: median(&latencies.milliseconds, 1.0),
        own_rate: latencies.rate,
    }
}

fn recipient(workload: Workload, user: &str) -> String {
    match workload {
        Workload::Hold => "u@hold.test".to_owned(),
        Workload::Relay => "u@relay.test".to_owned(),
        Workload::Maildir | Workload::Sendmail | Workload::Fanout => format!("{user}@v.test"),
    }
}

/// smtp-source(1), until it ends.
pub(crate) fn source(address: &str, point: Point, count: usize, to: &str) {
    let mut command = Command::new("smtp-source");
    command.args(["-s", &point.sessions.to_string(), "-m", &count.to_string()]);
    command.args(["-l", &point.size.to_string(), "-f", "a@x.test", "-t", to, "-M", "client.test"]);
    if point.long {
        command.arg("-d");
    }
    let output = command.arg(address).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "smtp-source: {}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "smtp-source: {}", String::from_utf8_lossy(&output.stderr));
}

/// One message to a thousand users.
fn fanout(peer: &Peer, user: &str) {
    let to: Vec<_> = (0..1000).map(|n| format!("{user}n{n}@v.test")).collect();
    generator::send_to_all(peer.address(), &to, 4096);
}

fn sendmail(peer: &Peer, to: &str, count: usize) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("message");
    let text = String::from_utf8(generator::message(4096)).unwrap().replace("\r\n", "\n");
    std::fs::write(&path, text).unwrap();
    for _ in 0..count {
        let mut command = peer.sendmail();
        command.args(["-f", "a@x.test", to]).stdin(std::fs::File::open(&path).unwrap());
        let status = command.status().unwrap();
        assert!(status.success(), "sendmail: {status}");
    }
}
