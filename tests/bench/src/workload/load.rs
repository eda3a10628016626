//! Messages, from smtp-source, from `sendmail` or from our own generator, until the last is delivered.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::{Run, wait};
use crate::cell::{Cell, Workload};
use crate::figures::{
    self, ACCEPTED, CPU, DELIVERED, Figures, MOST, OWN, P50, P99, RSS, SWITCHES, SYNCS, SYSCALLS, quantile,
};
use crate::generator::{self, Load, Measured};
use crate::peers::ADDRESS;
use crate::tree::{self, Trace, Tree};

impl Run {
    /// A load that should take about `seconds`, if the system takes `rate` messages a second. When no rate is
    /// known it is found out.
    pub(super) fn measure(&mut self, rate: f64, seconds: f64) -> Figures {
        // Every process that a system starts when it has work is there when it counts.
        let warm = self.load(self.whole(200.0));
        let known = |figures: &Figures| figures::rate(figures).unwrap_or_default();
        let rate = match rate > 0.0 {
            true => rate,
            false if known(&warm) * seconds / 4.0 < 200.0 => known(&warm),
            false => known(&self.load(self.whole(known(&warm) * seconds / 4.0))),
        };
        let mut figures = self.load(self.whole((rate * seconds).max(self.enough())));
        if !self.generated() && !matches!(self.cell.workload, Workload::Sendmail | Workload::Flaky) {
            figures.append(&mut self.latency(self.whole(rate * seconds / 2.0)));
        }
        figures
    }

    /// So many that a system's first seconds are not all that is measured. OpenSMTPD keeps some of the clients that
    /// come together waiting for a second, and looks only after ten whether a next hop should have more than one
    /// connection.
    fn enough(&self) -> f64 {
        match self.cell.workload {
            Workload::Relay => 1000.0,
            Workload::Hold | Workload::Maildir | Workload::LmtpSink if self.cell.sessions > 1 => 1000.0,
            _ => 0.0,
        }
    }

    /// System calls and context switches. Each is counted in a load of its own: who is traced is slow.
    pub(super) fn trace(&mut self) -> Figures {
        self.load(self.whole(200.0));
        let count = self.whole(1000.0);
        let before = tree::switches(self.peer.root());
        self.load(count);
        let switches = tree::switches(self.peer.root()) - before;
        let trace = Trace::begin(self.peer.root());
        self.load(count);
        let calls = trace.end();
        let many = (count * self.cell.workload.recipients()) as f64;
        Figures::from([
            (SYNCS.into(), calls.syncs as f64 / many),
            (SYSCALLS.into(), calls.others as f64 / many),
            (SWITCHES.into(), switches as f64 / many),
        ])
    }

    /// About so many messages: as many in each session, and no more than a directory holds well.
    fn whole(&self, count: f64) -> usize {
        if self.cell.workload == Workload::Fanout {
            return 1;
        }
        let sessions = self.cell.sessions;
        let most = (200e6 / self.cell.size as f64).clamp(20.0, 20_000.0).min(self.peer.holds() as f64);
        // With few the sessions' beginnings would be all that is measured.
        let least = match self.cell.workload {
            // Its end is made of pauses before further attempts, however many there are.
            Workload::Flaky => 500.0,
            _ => (10.0 * sessions as f64).clamp(50.0, 500.0).min(most),
        };
        (count.clamp(least, most) as usize / sessions).max(1) * sessions
    }

    /// So many messages, measured.
    fn load(&mut self, count: usize) -> Figures {
        self.loads += 1;
        let already = self.beside.sunk();
        nix::unistd::sync();
        let tree = Tree::watch(self.peer.root());
        let begin = Instant::now();
        let mut figures = match self.cell.workload {
            Workload::Sendmail => self.sendmail(count),
            Workload::Fanout => timed(&self.fanout()),
            _ if self.generated() => timed(&self.generate(count)),
            _ => {
                source(ADDRESS, self.cell, count, &self.to(0));
                Figures::new()
            }
        };
        let accepted = begin.elapsed();
        self.wait(count, already);
        let delivered = begin.elapsed();
        self.settle();
        let used = tree.end();
        let many = (count * self.cell.workload.recipients()) as f64;
        figures.insert(ACCEPTED.into(), count as f64 / accepted.as_secs_f64());
        if self.cell.workload != Workload::Hold {
            figures.insert(DELIVERED.into(), many / delivered.as_secs_f64());
        }
        figures.insert(CPU.into(), used.seconds / many * 1000.0);
        figures.insert(RSS.into(), used.peak_kib as f64 / 1024.0);
        figures
    }

    /// How long the final reply takes, by our own generator. It is the last load: that everything is delivered, the
    /// one before has shown.
    fn latency(&mut self, count: usize) -> Figures {
        self.loads += 1;
        timed(&self.generate(count))
    }

    /// smtp-source sends everything to one recipient, so where there are many the load is our own. It also waits
    /// for the reply to QUIT.
    fn generated(&self) -> bool {
        let workload = self.cell.workload;
        workload.destinations() > 0
            || matches!(workload, Workload::Maildirs | Workload::Fanout)
            || self.peer.quits_late() && !self.cell.long
    }

    fn generate(&self, count: usize) -> Measured {
        let Cell { sessions, size, long, .. } = self.cell;
        let (workload, load) = (self.cell.workload, self.loads);
        let to = move |n| recipient(workload, load, n);
        let (each, patient) = (count / sessions, !self.peer.quits_late());
        generator::run(&Load { address: ADDRESS, sessions, each, size, long, patient, to: &to })
    }

    fn wait(&self, count: usize, already: usize) {
        let user = format!("u{}", self.loads);
        let expected = count * self.cell.workload.recipients();
        // Who has it is not looked at again: a look at a thousand takes 5 ms, and is followed by nine times that of rest.
        let mut served = 0;
        let mut serve_on = || {
            served += (served..1000).take_while(|n| self.in_maildir(&format!("{user}n{n}")) > 0).count();
            served
        };
        wait("delivered", expected, || match self.cell.workload {
            Workload::Hold => count,
            Workload::Maildir | Workload::Sendmail => self.in_maildir(&user),
            Workload::Maildirs => (0..100).map(|n| self.in_maildir(&format!("{user}n{n}"))).sum(),
            Workload::Fanout => serve_on(),
            Workload::LmtpDovecot => {
                let inbox = self.beside.inbox(&user).unwrap();
                std::fs::read_dir(inbox).map_or(0, Iterator::count)
            }
            _ => self.beside.sunk() - already,
        });
    }

    /// What is still done when the last message is delivered is done now, so that it is counted.
    fn settle(&self) {
        let held = self.cell.workload == Workload::Hold;
        wait("the queue rests", 1, || {
            usize::from(if held {
                self.peer.queued(true) == 0
            } else {
                self.peer.queued(false) <= self.resting
            })
        });
    }

    fn in_maildir(&self, user: &str) -> usize {
        std::fs::read_dir(self.peer.maildir(user).join("new")).map_or(0, Iterator::count)
    }

    /// The recipient of the n-th message.
    fn to(&self, n: usize) -> String {
        recipient(self.cell.workload, self.loads, n)
    }

    /// One message to a thousand users.
    fn fanout(&self) -> Measured {
        let to: Vec<_> = (0..1000).map(|n| self.to(n)).collect();
        generator::send_to_all(ADDRESS, &to, self.cell.size)
    }

    fn sendmail(&self, count: usize) -> Figures {
        let path = std::env::temp_dir().join("message");
        let text = String::from_utf8(generator::message(self.cell.size)).unwrap().replace("\r\n", "\n");
        std::fs::write(&path, text).unwrap();
        for _ in 0..count {
            let mut command = self.peer.sendmail();
            command.args(["-f", "a@x.test", &self.to(0)]);
            let status = command.stdin(std::fs::File::open(&path).unwrap()).status().unwrap();
            assert!(status.success(), "sendmail: {status}");
        }
        Figures::new()
    }
}

/// Every load has users of its own.
fn recipient(workload: Workload, load: usize, n: usize) -> String {
    match workload {
        Workload::Hold => "u@hold.test".to_owned(),
        Workload::Far => "u@far.test".to_owned(),
        Workload::FarChunks => "u@far-chunks.test".to_owned(),
        Workload::Flaky => "u@flaky.test".to_owned(),
        Workload::LmtpSink => "u@lmtp.test".to_owned(),
        Workload::LmtpDovecot => format!("u{load}@dovecot.test"),
        Workload::Maildir | Workload::Sendmail => format!("u{load}@v.test"),
        Workload::Maildirs => format!("u{load}n{}@v.test", n % 100),
        Workload::Fanout => format!("u{load}n{n}@v.test"),
        _ if workload.destinations() > 0 => format!("u@d{}.dest.test", n % workload.destinations()),
        _ => "u@relay.test".to_owned(),
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

fn timed(measured: &Measured) -> Figures {
    let mut figures = Figures::from([(OWN.into(), measured.rate)]);
    for (name, part) in [(P50, 0.5), (P99, 0.99), (MOST, 1.0)] {
        figures.extend(quantile(&measured.milliseconds, part).map(|value| (name.into(), value)));
    }
    figures
}
