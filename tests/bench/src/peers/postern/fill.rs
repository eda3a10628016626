//! Many deferred messages, written as smtpd and the queue-manager would have done.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::{SystemTime, UNIX_EPOCH};

use postern_address::{Mailbox, ReversePath};
use postern_spool::{
    BodyType, Envelope, IdAllocator, LogEntry, LogRecord, NewMessage, Origin, Slot, SpoolFile, Timestamp,
    Writer, WriterDirs, rename_between,
};

use crate::generator;

/// How many messages are handed to the writer at a time: the most that share a file.
const BATCH: usize = 256;

/// Queues messages of 4 KiB that were deferred for a day.
pub(super) fn fill(spool: &Path, count: usize) {
    let open = |directory: &str| File::open(spool.join(directory)).unwrap();
    let (new, cur) = (open("new"), open("cur"));
    let dirs = WriterDirs { tmp: open("tmp").into(), new: open("new").into() };
    let (wake, woken) = channel();
    // Nobody listens any more when it is dropped.
    let wake = move || wake.send(()).unwrap_or_default();
    let mut writer = Writer::start(dirs, wake).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let mut ids = IdAllocator::new(Slot::QUEUE_MANAGER);
    let body = generator::message(4096);
    for first in (0..count).step_by(BATCH) {
        let batch = BATCH.min(count - first);
        for n in first..first + batch {
            let to = format!("user{n}@domain{}.dead.test", n % 1000);
            let envelope = Envelope {
                reverse_path: ReversePath::Mailbox(Mailbox::parse("a@x.test").unwrap()),
                recipients: vec![Mailbox::parse(&to).unwrap()],
                arrival: Timestamp(now.as_millis() as u64),
                body: BodyType::SevenBit,
                origin: Origin::Internal,
                options: postern_spool::Options::default(),
            };
            let id = ids.next(now.as_micros() as u64);
            let message = NewMessage { id, envelope, prepend: Vec::new(), body: body.clone() };
            writer.submit(n as u64, message);
        }
        let mut done = 0;
        while done < batch {
            woken.recv().unwrap();
            for completion in writer.completions() {
                completion.result.unwrap();
                done += 1;
            }
        }
    }
    drop(writer);
    defer(&new, &cur, Timestamp(now.as_millis() as u64 + 24 * 60 * 60 * 1000));
}

fn defer(new: &File, cur: &File, until: Timestamp) {
    for id in postern_spool::list(new.as_fd()).unwrap().files {
        let name = id.to_string();
        rename_between(new.as_fd(), &name, cur.as_fd(), &name).unwrap();
        let mut file = SpoolFile::open(cur.as_fd(), &name).unwrap();
        let reply = "451 4.2.0 Later".to_owned();
        let deferred = LogEntry::Deferred { recipient: 0, address: None, until, reply };
        let records: Vec<_> = (0..file.messages().len() as u16)
            .map(|message| LogRecord { message, what: deferred.clone() })
            .collect();
        file.append(&records).unwrap();
    }
}
