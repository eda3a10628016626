//! A spool on a desk, and messages to put into it.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use postern_address::{Mailbox, ReversePath};
use postern_spool::*;

pub struct Desk {
    pub directory: tempfile::TempDir,
    fds: HashMap<&'static str, OwnedFd>,
    wake: Sender<()>,
    woken: Receiver<()>,
}

impl Desk {
    pub fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap())
    }

    /// In memory where there is a place for that: nothing here waits for a disk.
    pub fn in_memory() -> Self {
        Self::at(tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap())
    }

    pub fn at(directory: tempfile::TempDir) -> Self {
        create_directories(directory.path()).unwrap();
        let open = |name| (name, File::open(directory.path().join(name)).unwrap().into());
        let fds = DIRECTORIES.into_iter().map(open).collect();
        let (wake, woken) = channel();
        Self { directory, fds, wake, woken }
    }

    /// Closes the spool; the directory itself stays for the caller.
    pub fn into_directory(self) -> tempfile::TempDir {
        self.directory
    }

    pub fn fd(&self, name: &str) -> BorrowedFd<'_> {
        self.fds[name].as_fd()
    }

    pub fn path(&self, directory: &str, name: impl ToString) -> PathBuf {
        self.directory.path().join(directory).join(name.to_string())
    }

    pub fn dirs(&self) -> WriterDirs {
        let own = |name: &str| self.fds[name].try_clone().unwrap();
        WriterDirs { tmp: own("tmp"), new: own("new") }
    }

    pub fn waker(&self) -> impl Fn() + Send + Sync + 'static {
        let wake = std::sync::Mutex::new(self.wake.clone());
        // The desk may be gone when the last thread ends.
        move || wake.lock().unwrap().send(()).unwrap_or_default()
    }

    pub fn writer(&self) -> Writer {
        Writer::start(self.dirs(), self.waker()).unwrap()
    }

    pub fn probed(&self, probe: Probe) -> Writer {
        Writer::start_probed(self.dirs(), self.waker(), probe).unwrap()
    }

    /// One that makes each batch a part of one file.
    pub fn keeping(&self, probe: Probe) -> Writer {
        Writer::start_probed_keeping(self.dirs(), self.waker(), probe).unwrap()
    }

    /// Waits for so many completions.
    pub fn wait(&self, writer: &mut Writer, count: usize) -> Vec<Completion> {
        let mut done = Vec::new();
        while done.len() < count {
            self.next_wake();
            done.extend(writer.completions());
        }
        done
    }

    pub fn next_wake(&self) {
        self.woken.recv_timeout(Duration::from_secs(60)).expect("a wake-up within a minute");
    }

    pub fn open(&self, directory: &str, id: QueueId) -> SpoolFile {
        SpoolFile::open(self.fd(directory), &id.to_string()).unwrap()
    }

    /// Asserts that the file named after this message's id holds it alone.
    pub fn holds(&self, directory: &str, sent: &NewMessage) {
        let file = self.open(directory, sent.id);
        assert_eq!(file.messages().len(), 1);
        assert_same(&file, 0, sent);
    }

    /// Every message in a directory, by id.
    pub fn messages(&self, directory: &str) -> HashMap<QueueId, NewMessage> {
        let mut all = HashMap::new();
        let listing = list(self.fd(directory)).unwrap();
        let open = |name: &String| SpoolFile::open_unfinished(self.fd(directory), name).ok();
        let whole = listing.others.iter().filter_map(open);
        for file in listing.files.iter().map(|id| self.open(directory, *id)).chain(whole) {
            for n in 0..file.messages().len() {
                let message = restore(&file, n);
                assert!(all.insert(message.id, message).is_none(), "twice in the spool");
            }
        }
        all
    }
}

/// A file system in memory, mounted as long as this lives.
pub struct Tmpfs(pub PathBuf);

impl Tmpfs {
    /// None where this is not allowed, which is said.
    pub fn mount(at: PathBuf, options: &str, test: &str) -> Option<Self> {
        let flags = nix::mount::MsFlags::empty();
        match nix::mount::mount(Some("tmpfs"), &at, Some("tmpfs"), flags, Some(options)) {
            Ok(()) => Some(Self(at)),
            Err(error) => {
                eprintln!("\n*** SKIPPED {test}: cannot mount a tmpfs here ({error}) ***\n");
                None
            }
        }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        nix::mount::umount(&self.0).unwrap();
    }
}

/// The message as it was handed to the writer.
pub fn restore(file: &SpoolFile, n: usize) -> NewMessage {
    let Stored { id, envelope, prepend, .. } = file.messages()[n].clone();
    NewMessage { id, envelope, prepend, body: file.read_body(n).unwrap() }
}

pub fn assert_same(file: &SpoolFile, n: usize, sent: &NewMessage) {
    assert!(restore(file, n) == *sent, "message {n} came back changed");
}

pub fn id(n: u64) -> QueueId {
    IdAllocator::new(Slot::worker(0)).next(1_790_000_000_000_000 + n)
}

pub fn message(n: u64, body: &[u8]) -> NewMessage {
    NewMessage {
        id: id(n),
        envelope: envelope(n),
        prepend: b"Received: by us\r\n".to_vec(),
        body: body.to_vec(),
    }
}

pub fn envelope(n: u64) -> Envelope {
    Envelope {
        reverse_path: ReversePath::Mailbox(Mailbox::parse("sender@example.org").unwrap()),
        recipients: (0..=n % 3).map(|k| Mailbox::parse(&format!("u{k}@example.net")).unwrap()).collect(),
        arrival: Timestamp(1_790_000_000_000 + n),
        body: BodyType::EightBit,
        origin: Origin::Smtp {
            address: "192.0.2.1".parse().unwrap(),
            name: Some("client.example".into()),
            helo: "client".into(),
        },
        options: postern_spool::Options::default(),
    }
}

/// Starts a writer and has it write message 0 alone and these bodies, as messages 1 and on, together.
pub fn gated_batch(desk: &Desk, bodies: &[&[u8]]) -> Writer {
    let gate = Gate::new();
    let mut writer = desk.probed(gate.probe());
    writer.submit(0, message(0, b"first"));
    gate.reached();
    for (body, n) in bodies.iter().zip(1..) {
        writer.submit(n, message(n, body));
    }
    gate.open();
    writer
}

/// Stops the writer at its first sync (or another operation) until it is opened.
pub struct Gate {
    at: fn(&Operation<'_>) -> bool,
    state: Arc<(Mutex<Passage>, Condvar)>,
}

#[derive(PartialEq)]
enum Passage {
    Closed,
    Waiting,
    Open,
}

impl Gate {
    pub fn new() -> Self {
        Self::of(|operation| matches!(operation, Operation::Sync(_)))
    }

    pub fn of(at: fn(&Operation<'_>) -> bool) -> Self {
        Self { at, state: Arc::new((Mutex::new(Passage::Closed), Condvar::new())) }
    }

    pub fn probe(&self) -> Probe {
        let (at, state) = (self.at, self.state.clone());
        Arc::new(move |operation| {
            if at(operation) {
                let mut passage = state.0.lock().unwrap();
                if *passage == Passage::Closed {
                    *passage = Passage::Waiting;
                    state.1.notify_all();
                }
                drop(state.1.wait_while(passage, |p| *p != Passage::Open).unwrap());
            }
            Ok(())
        })
    }

    /// Waits until the writer stands at the gate.
    pub fn reached(&self) {
        let passage = self.state.0.lock().unwrap();
        drop(self.state.1.wait_while(passage, |p| *p == Passage::Closed).unwrap());
    }

    pub fn open(&self) {
        *self.state.0.lock().unwrap() = Passage::Open;
        self.state.1.notify_all();
    }
}
