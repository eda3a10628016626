//! Mail that comes into the spool with options that no client may ask for, or not at this port.

use std::time::Duration;

use crate::{System, message};
use postern_address::{Mailbox, ReversePath};
use postern_spool::{
    BodyType, Envelope, IdAllocator, NewMessage, Options, Origin, Slot, Timestamp, Writer, WriterDirs,
};

/// Puts a message from `sender@v.test` into the spool as smtpd does, and returns its id.
pub fn put(system: &System, to: &str, options: Options) -> String {
    let open = |name: &str| std::fs::File::open(system.spool_path().join(name)).unwrap().into();
    let (wake, woken) = std::sync::mpsc::channel();
    let wake = std::sync::Mutex::new(wake);
    let wake = move || wake.lock().unwrap().send(()).unwrap_or_default();
    let mut writer = Writer::start(WriterDirs { tmp: open("tmp"), new: open("new") }, wake).unwrap();
    let now = Timestamp::now();
    let id = IdAllocator::new(Slot::worker(99)).next(now.0 * 1000);
    let envelope = Envelope {
        reverse_path: ReversePath::parse("<sender@v.test>").unwrap(),
        recipients: vec![Mailbox::parse(to).unwrap()],
        arrival: now,
        body: BodyType::SevenBit,
        origin: Origin::Internal,
        options,
    };
    writer.submit(1, NewMessage { id, envelope, prepend: Vec::new(), body: message("put") });
    woken.recv_timeout(Duration::from_secs(60)).unwrap();
    assert!(writer.completions()[0].result.is_ok());
    id.to_string()
}
