//! Intake on real directories.

use std::fs::File;
use std::path::Path;
use std::sync::mpsc::channel;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use postern_address::{Mailbox, ReversePath};
use postern_spool::{
    BodyType, DoneStatus, Envelope, LogEntry, LogRecord, NewMessage, Origin, create_directories, write_one,
};

use super::*;

fn open(spool: &Path, name: &str) -> OwnedFd {
    File::open(spool.join(name)).unwrap().into()
}

fn put(spool: &Path, directory: &str, id: u64) -> QueueId {
    let envelope = Envelope {
        reverse_path: ReversePath::Null,
        recipients: vec![Mailbox::parse("u@v.test").unwrap()],
        arrival: Timestamp(1),
        body: BodyType::SevenBit,
        origin: Origin::Internal,
        options: postern_spool::Options::default(),
    };
    let id = QueueId::from_u64(id);
    let message = NewMessage { id, envelope, prepend: Vec::new(), body: b"A: b\r\n\r\n".to_vec() };
    write_one(open(spool, directory).as_fd(), &message).unwrap();
    id
}

#[test]
fn the_kernel_tells_of_new_names() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    create_directories(spool).unwrap();
    let watcher = Watcher::new(open(spool, "new").as_fd(), open(spool, "drop").as_fd()).unwrap();
    assert_eq!(watcher.read(), Seen::default());
    let (first, second) = (put(spool, "drop", 1000), put(spool, "tmp", 2000));
    std::fs::rename(spool.join("tmp").join(second.to_string()), spool.join("new").join(second.to_string()))
        .unwrap();
    File::create(spool.join("new/.strange")).unwrap();
    let mut ready = [PollFd::new(watcher.as_fd(), PollFlags::POLLIN)];
    poll(&mut ready, PollTimeout::NONE).unwrap();
    assert_eq!(watcher.read(), Seen { new: vec![second], dropped: vec![first], overflow: false });
}

#[test]
fn recovery_reads_what_is_left() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    create_directories(spool).unwrap();
    let (fresh, done, later) = (put(spool, "cur", 1000), put(spool, "cur", 2000), put(spool, "cur", 3000));
    let append = |id: QueueId, what| {
        let mut file = SpoolFile::open(open(spool, "cur").as_fd(), &id.to_string()).unwrap();
        file.append(&[LogRecord { message: 0, what }]).unwrap();
    };
    append(done, LogEntry::Done { recipient: 0, address: None, status: DoneStatus::Delivered });
    let until = Timestamp(900);
    append(later, LogEntry::Deferred { recipient: 0, address: None, until, reply: "450".into() });
    let damaged = QueueId::from_u64(4000);
    std::fs::write(spool.join("cur").join(damaged.to_string()), "damaged").unwrap();
    File::create(spool.join("cur/drop-left-over")).unwrap();
    let (woken, wait) = channel();
    let recovery = recover(open(spool, "cur"), move || {
        let _ = woken.send(());
    })
    .unwrap();
    wait.recv().unwrap();
    let mut found = Vec::new();
    loop {
        match recovery.recv().unwrap() {
            Recovery::Found(one) => found.push((one.file, one.messages)),
            Recovery::Done { swept, .. } => {
                assert_eq!(swept, 1);
                break;
            }
            Recovery::Failed(error) => panic!("{error}"),
        }
    }
    let summary: Vec<_> = found
        .iter()
        .map(|(file, messages)| {
            let message = messages.as_ref().ok().and_then(|messages| messages.first());
            (*file, message.map(|m| (m.finished, m.was_deferred, m.until)))
        })
        .collect();
    let at_once = Timestamp(0);
    assert_eq!(
        summary,
        [
            (fresh, Some((false, false, at_once))),
            (done, Some((true, false, at_once))),
            (later, Some((false, true, until))),
            (damaged, None),
        ]
    );
    assert!(matches!(found[3].1, Err(ReadError::Corrupt(_))));
}

#[test]
fn the_janitor_adopts_orphans() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path();
    create_directories(spool).unwrap();
    let orphan = put(spool, "tmp", 1000);
    let file = File::options().write(true).open(spool.join("tmp").join(orphan.to_string())).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(60)).unwrap();
    let young = put(spool, "tmp", 2000);
    let (woken, wait) = channel();
    let dirs = JanitorDirs {
        tmp: open(spool, "tmp"),
        new: open(spool, "new"),
        corrupt: open(spool, "corrupt"),
        drop: open(spool, "drop"),
    };
    let janitor = Janitor::start(dirs, move || {
        let _ = woken.send(());
    })
    .unwrap();
    wait.recv().unwrap();
    assert_eq!(janitor.told().unwrap().unwrap().adopted, [orphan]);
    assert!(spool.join("new").join(orphan.to_string()).exists());
    assert!(spool.join("tmp").join(young.to_string()).exists(), "its writer may be about to move it");
}
