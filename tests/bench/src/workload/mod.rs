//! One load on one system, measured.

use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::beside::{self, Sink};
use crate::cell::{Cell, Workload};
use crate::figures::{ACCEPTED, CPU, DELIVERED, Figures, MOST, OWN, P50, P99, RSS, quantile};
use crate::generator;
use crate::peers::{ADDRESS, Peer};
use crate::tree::Tree;

/// The longest that a system may go on without delivering anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// A system, what is beside it, and what is to be done.
pub(crate) struct Run {
    peer: Box<dyn Peer>,
    cell: Cell,
    sink: Option<Sink>,
    _silent: TcpListener,
    users: usize,
}

impl Run {
    pub(crate) fn prepare(peer: Box<dyn Peer>, cell: Cell) -> Self {
        let sink = (cell.workload == Workload::Relay).then(|| Sink::start(beside::SINK, &[]));
        Self { peer, cell, sink, _silent: beside::silent(), users: 0 }
    }

    /// A load that should take about `seconds`, if the system takes `rate` messages a second. When no rate is
    /// known it is found out.
    pub(crate) fn measure(&mut self, rate: f64, seconds: f64) -> Figures {
        let sessions = self.cell.sessions;
        // Every process that a system starts when it has work is there when it counts.
        let warm = self.load(self.whole(200.0));
        let rate = match rate > 0.0 {
            true => rate,
            false => {
                let rate = warm.get(ACCEPTED).copied().unwrap_or_default();
                self.load(self.whole(rate * seconds / 4.0)).get(ACCEPTED).copied().unwrap_or_default()
            }
        };
        let mut figures = self.load(self.whole(rate * seconds));
        if !matches!(self.cell.workload, Workload::Fanout | Workload::Sendmail) {
            let each = (self.whole(rate * seconds / 2.0) / sessions).max(2);
            figures.append(&mut self.latency(each));
        }
        figures
    }

    /// About so many messages: as many in each session, and no more than a directory holds well.
    fn whole(&self, count: f64) -> usize {
        let most = 200e6 / self.cell.size as f64;
        let sessions = self.cell.sessions;
        ((count.clamp(20.0, most.clamp(20.0, 20_000.0)) as usize) / sessions).max(1) * sessions
    }

    /// So many messages, measured.
    fn load(&mut self, count: usize) -> Figures {
        let (user, already) = (self.next_user(), self.sunk());
        let to = self.recipient(&user);
        let (count, expected) = match self.cell.workload {
            Workload::Fanout => (1, 1000),
            _ => (count, count),
        };
        nix::unistd::sync();
        let mut tree = Tree::watch(self.peer.root());
        let begin = Instant::now();
        match self.cell.workload {
            Workload::Sendmail => self.sendmail(&to, count),
            Workload::Fanout => fanout(&user),
            _ => source(ADDRESS, self.cell, count, &to),
        }
        let accepted = begin.elapsed();
        self.wait(expected, |run| run.delivered(&user, already, count));
        let delivered = begin.elapsed();
        self.settle();
        let used = tree.end();
        let many = expected as f64;
        let mut figures = Figures::new();
        figures.insert(ACCEPTED.into(), count as f64 / accepted.as_secs_f64());
        if self.cell.workload != Workload::Hold {
            figures.insert(DELIVERED.into(), many / delivered.as_secs_f64());
        }
        figures.insert(CPU.into(), used.seconds / many * 1000.0);
        figures.insert(RSS.into(), used.peak_kib as f64 / 1024.0);
        figures
    }

    /// How long the final reply takes, by our own generator.
    fn latency(&mut self, each: usize) -> Figures {
        let (user, already) = (self.next_user(), self.sunk());
        let measured =
            generator::run(ADDRESS, self.cell.sessions, each, self.cell.size, &self.recipient(&user));
        let count = each * self.cell.sessions;
        self.wait(count, |run| run.delivered(&user, already, count));
        let mut figures = Figures::from([(OWN.into(), measured.rate)]);
        for (name, part) in [(P50, 0.5), (P99, 0.99), (MOST, 1.0)] {
            figures.extend(quantile(&measured.milliseconds, part).map(|value| (name.into(), value)));
        }
        figures
    }

    /// Waits until so many are there. Looking costs the system's time, so it is done seldom when it is long.
    fn wait(&self, expected: usize, there: impl Fn(&Self) -> usize) {
        let (mut last, mut since) = (0, Instant::now());
        loop {
            let begin = Instant::now();
            let now = there(self);
            if now >= expected {
                return;
            }
            if now > last {
                (last, since) = (now, begin);
            }
            assert!(since.elapsed() < PATIENCE, "{now} of {expected} delivered, none more in {PATIENCE:?}");
            std::thread::sleep((begin.elapsed() * 9).max(Duration::from_millis(2)));
        }
    }

    /// What is still done when the last message is delivered is done now, so that it is counted.
    fn settle(&self) {
        let held = self.cell.workload == Workload::Hold;
        self.wait(1, |run| usize::from(if held { run.peer.is_held() } else { run.peer.is_empty() }));
    }

    /// How many were delivered.
    fn delivered(&self, user: &str, already: usize, count: usize) -> usize {
        match self.cell.workload {
            Workload::Hold => count,
            Workload::Relay => self.sunk() - already,
            Workload::Maildir | Workload::Sendmail => self.in_maildir(user),
            Workload::Fanout => (0..1000).filter(|n| self.in_maildir(&format!("{user}n{n}")) > 0).count(),
        }
    }

    fn in_maildir(&self, user: &str) -> usize {
        std::fs::read_dir(self.peer.maildir(user).join("new")).map_or(0, Iterator::count)
    }

    fn sunk(&self) -> usize {
        self.sink.as_ref().map_or(0, Sink::count)
    }

    /// A user with an empty Maildir.
    fn next_user(&mut self) -> String {
        self.users += 1;
        format!("u{}", self.users)
    }

    fn recipient(&self, user: &str) -> String {
        match self.cell.workload {
            Workload::Hold => "u@hold.test".to_owned(),
            Workload::Relay => "u@relay.test".to_owned(),
            Workload::Maildir | Workload::Sendmail | Workload::Fanout => format!("{user}@v.test"),
        }
    }

    fn sendmail(&self, to: &str, count: usize) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("message");
        let text = String::from_utf8(generator::message(self.cell.size)).unwrap().replace("\r\n", "\n");
        std::fs::write(&path, text).unwrap();
        for _ in 0..count {
            let mut command = self.peer.sendmail();
            command.args(["-f", "a@x.test", to]).stdin(std::fs::File::open(&path).unwrap());
            let status = command.status().unwrap();
            assert!(status.success(), "sendmail: {status}");
        }
    }
}

/// smtp-source(1), until it ends.
pub(crate) fn source(address: SocketAddr, cell: Cell, count: usize, to: &str) {
    let mut command = Command::new("smtp-source");
    command.args(["-s", &cell.sessions.to_string(), "-m", &count.to_string()]);
    command.args(["-l", &cell.size.to_string(), "-f", "a@x.test", "-t", to, "-M", "client.test"]);
    if cell.long {
        command.arg("-d");
    }
    let output = command.arg(address.to_string()).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "smtp-source: {}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "smtp-source: {}", String::from_utf8_lossy(&output.stderr));
}

/// One message to a thousand users.
fn fanout(user: &str) {
    let to: Vec<_> = (0..1000).map(|n| format!("{user}n{n}@v.test")).collect();
    generator::send_to_all(ADDRESS, &to, 4096);
}
