//! A spool full of deferred mail, made as smtpd and the queue-manager make it.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::{SystemTime, UNIX_EPOCH};

use postern_address::{Mailbox, ReversePath};
use postern_spool::{
    BodyType, Envelope, IdAllocator, LogEntry, LogRecord, NewMessage, Options, Origin, Slot, SpoolFile,
    Timestamp, Writer, WriterDirs, rename_between,
};

/// Queues messages of this body that were deferred for a day, each to `recipient` of its number. `files` says
/// how many messages share each file, at most 256.
pub fn backlog(
    spool: &Path,
    files: impl IntoIterator<Item = usize>,
    body: &[u8],
    recipient: impl Fn(usize) -> String,
) {
    let open = |directory: &str| File::open(spool.join(directory)).unwrap();
    let (new, cur) = (open("new"), open("cur"));
    let dirs = WriterDirs { tmp: open("tmp").into(), new: open("new").into() };
    let (wake, woken) = channel();
    // Nobody listens any more when it is dropped.
    let wake = move || wake.send(()).unwrap_or_default();
    let mut writer = Writer::start(dirs, wake).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let mut ids = IdAllocator::new(Slot::QUEUE_MANAGER);
    let mut number = 0;
    for together in files {
        for n in number..number + together {
            let envelope = Envelope {
                reverse_path: ReversePath::Mailbox(Mailbox::parse("a@x.test").unwrap()),
                recipients: vec![Mailbox::parse(&recipient(n)).unwrap()],
                arrival: Timestamp(now.as_millis() as u64),
                body: BodyType::SevenBit,
                origin: Origin::Internal,
                options: Options::default(),
            };
            let id = ids.next(now.as_micros() as u64);
            let message = NewMessage { id, envelope, prepend: Vec::new(), body: body.to_vec() };
            writer.submit(n as u64, message);
        }
        number += together;
        // What is submitted before the last is done may share its file.
        let mut done = 0;
        while done < together {
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
