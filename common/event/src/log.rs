//! Where events go.

use std::collections::VecDeque;
use std::fmt;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};
use serde::{Deserialize, Serialize};
use syslog::{Facility, Formatter3164, LogFormat, Severity};

use crate::event::{Event, Level};
use crate::{json, text};

/// Gathered octets at which the log writes itself before the turn ends.
const WRITE_AT: usize = 32 * 1024;

/// Most that is kept for a log that takes nothing now; what comes then is counted and dropped.
const KEEP: usize = 256 * 1024;

/// How long after one request for a new descriptor the next is made.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// What kind of thing the log descriptor is. Master opens it; no other program can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogKind {
    /// A connected datagram socket to syslog.
    Syslog,
    /// A file or terminal, one text line an event.
    Text,
    /// A file or terminal, one JSON object an event.
    Json,
}

/// The log of one program. Events are gathered and written once a turn of the event loop.
#[derive(Debug)]
pub struct Log {
    descriptor: OwnedFd,
    kind: LogKind,
    program: String,
    pid: u32,
    gathered: VecDeque<u8>,
    /// Where each datagram of `gathered` ends: syslog takes one line at a time.
    lengths: VecDeque<usize>,
    /// The line that is being made.
    line: Vec<u8>,
    clock: Clock,
    dropped: u64,
    broken: bool,
    asked: Option<Instant>,
}

/// The time as it stands in a line; all but the milliseconds is made once a second.
#[derive(Debug, Default)]
struct Clock {
    second: Option<i64>,
    text: String,
}

impl Log {
    /// A log for `program` (`smtpd`), over a descriptor that master opened.
    pub fn new(descriptor: OwnedFd, kind: LogKind, program: &str) -> Self {
        Self {
            descriptor,
            kind,
            program: program.to_owned(),
            pid: std::process::id(),
            gathered: VecDeque::new(),
            lengths: VecDeque::new(),
            line: Vec::new(),
            clock: Clock::default(),
            dropped: 0,
            broken: false,
            asked: None,
        }
    }

    /// Notes an event. It is on its way after [`Log::flush`]. [`Level::Debug`] is not shown.
    pub fn emit(&mut self, event: &Event<'_>) {
        if event.level() == Level::Debug {
            return;
        }
        if self.gathered.len() >= WRITE_AT {
            self.flush();
        }
        self.gather(event);
    }

    /// Notes something that has no event of its own.
    pub fn note(&mut self, level: Level, id: Option<&str>, text: &str) {
        self.emit(&Event::Note { level, id, text });
    }

    /// Writes what was gathered. Never blocks for long and never fails: what a log cannot take is kept up
    /// to a limit, then counted, and told in the next line it takes.
    pub fn flush(&mut self) {
        self.write_gathered();
        if self.dropped > 0 && self.gathered.is_empty() && !self.broken {
            let lost = std::mem::take(&mut self.dropped);
            let text = format!("the log took no more: {lost} lines are lost");
            self.gather(&Event::Note { level: Level::Warning, id: None, text: &text });
            self.write_gathered();
        }
    }

    /// The descriptor takes nothing any more (syslog was restarted): ask master for a new one. True once,
    /// and again after a while if none came.
    pub fn take_broken(&mut self) -> bool {
        let ask = self.broken && self.asked.is_none_or(|at| at.elapsed() >= ASK_AGAIN);
        if ask {
            self.asked = Some(Instant::now());
        }
        ask
    }

    /// Goes on with a new descriptor; what was kept for the old one goes there.
    pub fn replace(&mut self, descriptor: OwnedFd) {
        // A line of which half stands in the old file must not put its other half into the new one: only
        // files are written in part, and those are replaced by rotation, when nothing waits as a rule.
        self.descriptor = descriptor;
        (self.broken, self.asked) = (false, None);
        self.flush();
    }

    fn gather(&mut self, event: &Event<'_>) {
        self.line.clear();
        let (line, program, pid) = (&mut self.line, &self.program, self.pid);
        let now = self.clock.show(Timestamp::now());
        let made = match self.kind {
            LogKind::Json => {
                json::write(line, now, program, pid, event);
                true
            }
            LogKind::Text => writeln!(line, "{now} postern/{program}[{pid}]: {}", text::line(event)).is_ok(),
            LogKind::Syslog => {
                let process = format!("postern/{program}");
                let formatter = Formatter3164 { facility: Facility::LOG_MAIL, hostname: None, process, pid };
                formatter.format(line, severity(event.level()), text::line(event)).is_ok()
            }
        };
        if !made || self.gathered.len() + self.line.len() > KEEP {
            self.dropped += 1;
            return;
        }
        self.lengths.push_back(self.line.len());
        self.gathered.extend(&self.line);
    }

    fn write_gathered(&mut self) {
        while !self.gathered.is_empty() {
            let outcome = match self.kind {
                LogKind::Syslog => self.send_one(),
                LogKind::Text | LogKind::Json => self.write_some(),
            };
            match outcome {
                Ok(()) | Err(Errno::EINTR) => {}
                // Full for now: a pipe nobody reads, a disk without room, a syslog that is behind.
                Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOSPC | Errno::EDQUOT) => return,
                Err(_) => {
                    self.broken = true;
                    return;
                }
            }
        }
        self.broken = false;
    }

    fn write_some(&mut self) -> nix::Result<()> {
        let written = nix::unistd::write(&self.descriptor, self.gathered.make_contiguous())?;
        self.forget(written);
        Ok(())
    }

    fn send_one(&mut self) -> nix::Result<()> {
        let length = self.lengths.front().copied().unwrap_or(0);
        let line = self.gathered.make_contiguous().get(..length).unwrap_or_default();
        match send(self.descriptor.as_raw_fd(), line, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
            Ok(_) => {}
            // This syslog takes no line of that length; it takes the others.
            Err(Errno::EMSGSIZE) => self.dropped += 1,
            Err(error) => return Err(error),
        }
        self.forget(length);
        Ok(())
    }

    /// Removes octets that are written from what is gathered.
    fn forget(&mut self, mut octets: usize) {
        self.gathered.drain(..octets.min(self.gathered.len()));
        while let Some(length) = self.lengths.front_mut() {
            if *length > octets {
                *length -= octets;
                return;
            }
            octets -= *length;
            self.lengths.pop_front();
        }
    }
}

impl Clock {
    /// `2026-11-22T04:18:27.123Z`
    fn show(&mut self, time: Timestamp) -> &str {
        if self.second != Some(time.as_second()) {
            self.text = time.strftime("%Y-%m-%dT%H:%M:%S.").to_string();
            self.second = Some(time.as_second());
        }
        self.text.truncate("2026-11-22T04:18:27.".len());
        // Writing to a String does not fail.
        let _ = fmt::Write::write_fmt(&mut self.text, format_args!("{:03}Z", time.subsec_millisecond()));
        &self.text
    }
}

fn severity(level: Level) -> Severity {
    match level {
        Level::Debug => Severity::LOG_DEBUG,
        Level::Info => Severity::LOG_INFO,
        Level::Warning => Severity::LOG_WARNING,
        Level::Error => Severity::LOG_ERR,
        Level::Fatal => Severity::LOG_CRIT,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn the_clock_shows_each_millisecond() {
        let mut clock = Clock::default();
        for time in ["2026-11-22T04:18:27.123Z", "2026-11-22T04:18:27.004Z", "2026-11-22T04:18:28.000Z"] {
            assert_eq!(clock.show(time.parse().unwrap()), time);
        }
        assert_eq!(clock.show("2026-11-22T04:18:28.9999999Z".parse().unwrap()), "2026-11-22T04:18:28.999Z");
    }

    fn lines(text: &str) -> Vec<&str> {
        text.lines().collect()
    }

    fn note(log: &mut Log, text: &str) {
        log.note(Level::Info, None, text);
    }

    #[test]
    fn a_file_gets_whole_lines_once_a_turn() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let open = || OwnedFd::from(File::options().append(true).create(true).open(&path).unwrap());
        let mut log = Log::new(open(), LogKind::Text, "smtpd");
        note(&mut log, "one");
        log.note(Level::Debug, None, "not shown");
        log.note(Level::Warning, Some("ID"), "two");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "", "gathered");
        log.flush();
        let text = std::fs::read_to_string(&path).unwrap();
        let head = format!(" postern/smtpd[{}]: ", std::process::id());
        let (time, first) = text.split_at(24);
        assert!(time.ends_with('Z') && time.parse::<Timestamp>().is_ok(), "{time}");
        assert_eq!(lines(first)[0], format!("{head}one"));
        assert!(lines(&text)[1].ends_with(&format!("{head}ID: warning: two")), "{text}");

        // Rotated: the next goes to the new file.
        std::fs::rename(&path, directory.path().join("log.1")).unwrap();
        log.replace(open());
        note(&mut log, "three");
        log.flush();
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("three\n"));
    }

    #[test]
    fn it_writes_by_itself_when_much_is_gathered() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = Log::new(File::create(&path).unwrap().into(), LogKind::Json, "smtpd");
        (0..1000).for_each(|n| note(&mut log, &format!("{n}: {}", "x".repeat(100))));
        assert!(std::fs::metadata(&path).unwrap().len() > 100_000);
        log.flush();
        let text = std::fs::read_to_string(&path).unwrap();
        for (n, line) in text.lines().enumerate() {
            let object: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(object["text"].as_str().unwrap().starts_with(&format!("{n}: ")));
        }
    }

    #[test]
    fn a_full_pipe_loses_lines_and_says_how_many() {
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
        let mut log = Log::new(writer, LogKind::Json, "smtpd");
        let line = "x".repeat(1000);
        for _ in 0..1000 {
            note(&mut log, &line);
            log.flush();
        }
        assert!(log.gathered.len() <= KEEP && log.dropped > 0 && !log.take_broken());
        let mut text = Vec::new();
        let mut reader = File::from(reader);
        while !log.gathered.is_empty() {
            let _ = reader.read_to_end(&mut text);
            log.flush();
        }
        let _ = reader.read_to_end(&mut text);
        let text = String::from_utf8(text).unwrap();
        let objects: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let last = objects.last().unwrap()["text"].as_str().unwrap();
        let lost: usize = last.split("no more: ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        assert_eq!(objects.len() - 1 + lost, 1000, "{last}");
    }

    #[test]
    fn syslog_that_is_slow_and_that_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("dev-log");
        let daemon = UnixDatagram::bind(&path).unwrap();
        daemon.set_nonblocking(true).unwrap();
        let connect = || {
            let socket = UnixDatagram::unbound().unwrap();
            socket.connect(&path).unwrap();
            OwnedFd::from(socket)
        };
        let heard = |daemon: &UnixDatagram| {
            let mut buffer = [0; 8192];
            let length = daemon.recv(&mut buffer).ok()?;
            Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
        };
        let mut log = Log::new(connect(), LogKind::Syslog, "smtpd");
        log.note(Level::Error, Some("ID"), "first\nforged");
        note(&mut log, "second");
        log.flush();
        let line = heard(&daemon).unwrap();
        // 19: facility mail (2), severity error (3).
        assert!(line.starts_with("<19>"), "{line}");
        let tag = format!(" postern/smtpd[{}]: ID: error: first\\nforged", std::process::id());
        assert!(line.ends_with(&tag), "{line}");
        assert!(heard(&daemon).unwrap().ends_with("second"), "a datagram a line");

        // It reads nothing: what its queue does not take waits here, and nothing blocks.
        (0..100).for_each(|n| note(&mut log, &format!("line {n}")));
        log.flush();
        assert!(!log.gathered.is_empty() && !log.take_broken());
        let mut count = 0;
        while count < 100 {
            log.flush();
            while heard(&daemon).is_some_and(|line| line.ends_with(&format!("line {count}"))) {
                count += 1;
            }
        }

        // It restarts: master is asked once for a new socket, and what was said meanwhile is not lost.
        drop(daemon);
        std::fs::remove_file(&path).unwrap();
        note(&mut log, "meanwhile");
        log.flush();
        assert!(log.take_broken() && !log.take_broken());
        let daemon = UnixDatagram::bind(&path).unwrap();
        daemon.set_nonblocking(true).unwrap();
        log.replace(connect());
        assert!(heard(&daemon).unwrap().ends_with("meanwhile"));
    }
}
