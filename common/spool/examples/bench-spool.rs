//! NAME
//!     bench-spool: what the disk under a directory can do, and what the spool's writer makes of it
//!
//! SYNOPSIS
//!     bench-spool DIR [SECONDS [KIBIBYTES]]
//!
//! WHAT IT DOES
//!     In one run, in turns of SECONDS (default 1), for messages of 1, 4, 16, 64 KiB and 1 MiB, or of one size:
//!     file-per-message, which is what a mail server without group commit does (threads that each create
//!     a file, write it, fsync it and rename it), by 1, 10 and 50 threads; and the writer with 1, 10, 50
//!     and 500 producers, each of which waits for its completion before it hands over the next. Every
//!     turn comes twice, so that a disk that changes its mind is seen in both.
//!
//!     Then the syscalls of the writer and its event loop per message at 50 producers, counted by strace.
//!
//! FAILURE
//!     Exit status 1 when the directory cannot be written.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use postern_address::{Mailbox, ReversePath};
use postern_spool::{
    BodyType, Envelope, IdAllocator, NewMessage, Origin, QueueId, STREAM_ABOVE, Slot, Timestamp, Writer,
    WriterDirs, create_directories, rename_between,
};

const SIZES: [usize; 5] = [1 << 10, 4 << 10, 16 << 10, 64 << 10, 1 << 20];
const THREADS: [usize; 3] = [1, 10, 50];
const PRODUCERS: [usize; 4] = [1, 10, 50, 500];
const ROUNDS: usize = 2;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        // How it calls itself under strace.
        ["--writer", directory, producers, size, seconds] => {
            alone(Path::new(directory), number(producers), number(size), number(seconds) as f64)
        }
        [directory] => bench(Path::new(directory), 1.0, &SIZES),
        [directory, seconds] => bench(Path::new(directory), seconds.parse().unwrap_or(1.0), &SIZES),
        [directory, seconds, kibibytes] => {
            bench(Path::new(directory), seconds.parse().unwrap_or(1.0), &[number(kibibytes) << 10])
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "bench-spool DIR [SECONDS]")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-spool: {error}");
            ExitCode::FAILURE
        }
    }
}

fn number(text: &str) -> usize {
    text.parse().unwrap_or(1)
}

/// The figures of one kind of turn, over all rounds.
#[derive(Default)]
struct Turn {
    messages: usize,
    seconds: f64,
    /// Each message's, from the hand-over to the answer.
    latencies: Vec<Duration>,
    /// Each fsync's, of file-per-message.
    syncs: Vec<Duration>,
}

impl Turn {
    fn rate(&self) -> f64 {
        self.messages as f64 / self.seconds.max(1e-9)
    }

    fn add(&mut self, other: Self) {
        self.messages += other.messages;
        self.seconds += other.seconds;
        self.latencies.extend(other.latencies);
        self.syncs.extend(other.syncs);
    }
}

fn percentile(durations: &[Duration], percent: usize) -> f64 {
    let mut sorted = durations.to_vec();
    sorted.sort_unstable();
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(0.0, |d| d.as_secs_f64() * 1e3)
}

fn bench(directory: &Path, seconds: f64, sizes: &[usize]) -> io::Result<()> {
    let desk = Desk::new(directory)?;
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!(
        "file system {}, {} processors, load before {}",
        file_system(&desk.path),
        std::thread::available_parallelism().map_or(0, usize::from),
        load.split(' ').next().unwrap_or("?"),
    );
    let sequential = desk.sequential(seconds)?;
    println!(
        "sequential 4 KiB write and fdatasync: {:.0}/s, p50 {:.2} ms, p99 {:.2} ms\n",
        sequential.rate(),
        percentile(&sequential.syncs, 50),
        percentile(&sequential.syncs, 99)
    );
    println!(
        "{:>6} {:>9} | {:>10} {:>9} {:>9} | {:>10} {:>6} {:>9} {:>9} {:>9}",
        "size",
        "producers",
        "file/msg",
        "fsync p50",
        "fsync p99",
        "writer/s",
        "ratio",
        "p50 ms",
        "p99 ms",
        "p99/fsync"
    );
    for &size in sizes {
        let mut single: [Turn; 3] = std::array::from_fn(|_| Turn::default());
        let mut group: [Turn; 4] = std::array::from_fn(|_| Turn::default());
        for _ in 0..ROUNDS {
            for (n, producers) in PRODUCERS.into_iter().enumerate() {
                if let (Some(threads), Some(turn)) = (THREADS.get(n), single.get_mut(n)) {
                    turn.add(desk.file_per_message(*threads, size, seconds)?);
                }
                if let Some(turn) = group.get_mut(n) {
                    turn.add(desk.writer(producers, size, seconds)?);
                }
            }
        }
        let fsync = single.first().map_or(0.0, |turn| percentile(&turn.syncs, 99));
        for (n, turn) in group.iter().enumerate() {
            let p99 = percentile(&turn.latencies, 99);
            let beside = single.get(n).map_or(format!("{:>10} {:>9} {:>9}", "", "", ""), |single| {
                let [p50, p99] = [50, 99].map(|p| percentile(&single.syncs, p));
                format!("{:>10.0} {p50:>9.2} {p99:>9.2}", single.rate())
            });
            let ratio = single.get(n).map_or(String::new(), |s| format!("{:.2}", turn.rate() / s.rate()));
            println!(
                "{:>6} {:>9} | {beside} | {:>10.0} {ratio:>6} {:>9.2} {p99:>9.2} {:>9.1}",
                kibibytes(size),
                PRODUCERS.get(n).unwrap_or(&0),
                turn.rate(),
                percentile(&turn.latencies, 50),
                p99 / fsync.max(1e-9),
            );
        }
    }
    println!("\nfsync: of file-per-message at that concurrency; p99/fsync: to the fsync p99 of one thread");
    desk.syscalls()
}

fn kibibytes(size: usize) -> String {
    if size < 1 << 20 { format!("{} KiB", size >> 10) } else { format!("{} MiB", size >> 20) }
}

fn file_system(path: &Path) -> String {
    let known = [(0xef53, "ext4"), (0x5846_5342, "XFS"), (0x9123_683e, "btrfs"), (0x0102_1994, "tmpfs")];
    let magic = nix::sys::statfs::statfs(path).map_or(0, |stat| stat.filesystem_type().0);
    known.iter().find(|(m, _)| *m == magic).map_or(format!("{magic:x}"), |(_, name)| (*name).to_owned())
}

/// A spool below the directory, removed in the end.
struct Desk {
    path: PathBuf,
    names: AtomicU64,
}

impl Drop for Desk {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl Desk {
    fn new(directory: &Path) -> io::Result<Self> {
        let path = directory.join(format!("bench-spool-{}", std::process::id()));
        create_directories(&path)?;
        Ok(Self { path, names: AtomicU64::new(0) })
    }

    fn open(&self, name: &str) -> io::Result<OwnedFd> {
        Ok(File::open(self.path.join(name))?.into())
    }

    /// The next turn begins with an empty spool and a quiet journal.
    fn clean(&self) -> io::Result<()> {
        for name in ["tmp", "new"] {
            for entry in fs::read_dir(self.path.join(name))? {
                fs::remove_file(entry?.path())?;
            }
        }
        File::open(&self.path)?.sync_all()?;
        Ok(nix::unistd::syncfs(self.open("tmp")?)?)
    }

    fn sequential(&self, seconds: f64) -> io::Result<Turn> {
        let mut file = File::create(self.path.join("sequential"))?;
        let mut turn = Turn::default();
        let begin = Instant::now();
        while begin.elapsed().as_secs_f64() < seconds {
            file.write_all(&[b'x'; 4096])?;
            let before = Instant::now();
            file.sync_data()?;
            turn.syncs.push(before.elapsed());
            turn.messages += 1;
        }
        turn.seconds = begin.elapsed().as_secs_f64();
        Ok(turn)
    }

    fn file_per_message(&self, threads: usize, size: usize, seconds: f64) -> io::Result<Turn> {
        let body = vec![b'x'; size];
        let stop = AtomicBool::new(false);
        let begin = Instant::now();
        let results = std::thread::scope(|scope| {
            let handles: Vec<_> =
                (0..threads).map(|_| scope.spawn(|| self.one_thread(&body, &stop))).collect();
            std::thread::sleep(Duration::from_secs_f64(seconds));
            stop.store(true, Ordering::Relaxed);
            handles.into_iter().map(|h| h.join()).collect::<Vec<_>>()
        });
        let mut turn = Turn::default();
        for result in results {
            turn.add(result.map_err(|_| io::Error::other("a thread panicked"))??);
        }
        turn.seconds = begin.elapsed().as_secs_f64();
        self.clean()?;
        Ok(turn)
    }

    fn one_thread(&self, body: &[u8], stop: &AtomicBool) -> io::Result<Turn> {
        let (tmp, new) = (self.open("tmp")?, self.open("new")?);
        let mut turn = Turn::default();
        while !stop.load(Ordering::Relaxed) {
            let name = format!("{:013}", self.names.fetch_add(1, Ordering::Relaxed));
            let begin = Instant::now();
            let mut file = File::create_new(self.path.join("tmp").join(&name))?;
            file.write_all(body)?;
            let before = Instant::now();
            file.sync_all()?;
            turn.syncs.push(before.elapsed());
            rename_between(tmp.as_fd(), &name, new.as_fd(), &name)?;
            turn.latencies.push(begin.elapsed());
            turn.messages += 1;
        }
        Ok(turn)
    }

    fn writer(&self, producers: usize, size: usize, seconds: f64) -> io::Result<Turn> {
        let turn = Producers::new(self, producers, size)?.run(seconds)?;
        self.clean()?;
        Ok(turn)
    }

    /// Runs itself under strace and counts what it did, less what it takes to start and to end.
    fn syscalls(&self) -> io::Result<()> {
        let own = std::env::current_exe()?;
        for size in [1usize << 10, 4 << 10, 64 << 10] {
            let counts = self.path.join("strace");
            let output = Command::new("strace")
                .args(["-f", "-c", "-U", "calls,name", "-o"])
                .arg(&counts)
                .arg(&own)
                .arg("--writer")
                .args([self.path.as_os_str(), "50".as_ref(), size.to_string().as_ref(), "3".as_ref()])
                .output();
            let Ok(output) = output else {
                println!("strace is not installed: syscalls not counted");
                return Ok(());
            };
            let messages: f64 = String::from_utf8_lossy(&output.stdout).trim().parse().unwrap_or(0.0);
            let text = fs::read_to_string(&counts)?;
            let total = text.lines().rev().find_map(|line| line.trim().strip_suffix("total"));
            let total: f64 = total.and_then(|n| n.trim().parse().ok()).unwrap_or(0.0);
            let mut most: Vec<&str> = text.lines().skip(2).take(8).map(str::trim).collect();
            most.retain(|line| line.starts_with(|c: char| c.is_ascii_digit()));
            println!(
                "syscalls per message, 50 producers, {}: {:.2} ({total:.0} for {messages:.0}; {})",
                kibibytes(size),
                total / messages.max(1.0),
                most.iter()
                    .map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "))
                    .collect::<Vec<_>>()
                    .join(", "),
            );
        }
        Ok(())
    }
}

/// Only the writer, for strace: says how many messages.
fn alone(directory: &Path, producers: usize, size: usize, seconds: f64) -> io::Result<()> {
    let desk = Desk { path: directory.join("traced"), names: AtomicU64::new(0) };
    create_directories(&desk.path)?;
    println!("{}", Producers::new(&desk, producers, size)?.run(seconds)?.messages);
    Ok(())
}

/// An event loop with so many clients, each of which sends a message as soon as the last one was taken.
struct Producers {
    writer: Writer,
    woken: Arc<EventFd>,
    ids: IdAllocator,
    clock: u64,
    envelope: Envelope,
    body: Vec<u8>,
    /// When each client's message was handed over, and what is left to hand over of it.
    clients: Vec<(Instant, usize, QueueId)>,
}

impl Producers {
    fn new(desk: &Desk, producers: usize, size: usize) -> io::Result<Self> {
        let woken = Arc::new(EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC)?);
        let waker = woken.clone();
        let wake = move || {
            // A counter that is full wakes as well.
            let _ = waker.write(1);
        };
        let writer = Writer::start(WriterDirs { tmp: desk.open("tmp")?, new: desk.open("new")? }, wake)?;
        let mailbox = |text| Mailbox::parse(text).map_err(|_| io::Error::other("no mailbox"));
        let envelope = Envelope {
            reverse_path: ReversePath::Mailbox(mailbox("sender@example.org")?),
            recipients: vec![mailbox("recipient@example.net")?],
            arrival: Timestamp::now(),
            body: BodyType::EightBit,
            origin: Origin::Internal,
            options: postern_spool::Options::default(),
        };
        let mut ids = IdAllocator::new(Slot::worker(0));
        let clock = Timestamp::now().0 * 1000;
        let clients = (0..producers).map(|_| (Instant::now(), 0, ids.next(clock))).collect();
        Ok(Self { writer, woken, ids, clock, envelope, body: vec![b'x'; size], clients })
    }

    fn run(mut self, seconds: f64) -> io::Result<Turn> {
        let mut turn = Turn::default();
        let begin = Instant::now();
        (0..self.clients.len()).for_each(|n| self.begin(n));
        let mut open = self.clients.len();
        while open > 0 {
            self.woken.read()?;
            for completion in self.writer.completions() {
                completion.result.map_err(io::Error::other)?;
                let n = completion.token as usize;
                turn.latencies.push(self.clients.get(n).map_or(Duration::ZERO, |c| c.0.elapsed()));
                turn.messages += 1;
                if begin.elapsed().as_secs_f64() < seconds {
                    self.begin(n);
                } else {
                    open -= 1;
                }
            }
            (0..self.clients.len()).for_each(|n| self.pour(n));
        }
        turn.seconds = begin.elapsed().as_secs_f64();
        Ok(turn)
    }

    fn begin(&mut self, n: usize) {
        let id = self.ids.next(self.clock);
        let Some(client) = self.clients.get_mut(n) else { return };
        *client = (Instant::now(), 0, id);
        if self.body.len() > STREAM_ABOVE {
            client.1 = self.body.len();
            self.writer.open_stream(n as u64, id);
            self.pour(n);
        } else {
            let (envelope, body) = (self.envelope.clone(), self.body.clone());
            let prepend = b"Received: from a client\r\n\tby a server; today\r\n".to_vec();
            self.writer.submit(n as u64, NewMessage { id, envelope, prepend, body });
        }
    }

    /// As much of a large message as the writer takes now.
    fn pour(&mut self, n: usize) {
        let Some(client) = self.clients.get_mut(n) else { return };
        while client.1 > 0 && self.writer.unwritten(n as u64) <= 2 * STREAM_ABOVE {
            let piece = client.1.min(64 << 10);
            self.writer.append(n as u64, self.body.get(..piece).unwrap_or(&[]).to_vec());
            client.1 -= piece;
            if client.1 == 0 {
                self.writer.finish_stream(n as u64, self.envelope.clone(), Vec::new());
            }
        }
    }
}
