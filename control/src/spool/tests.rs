//! On spools in temporary directories.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;

use postern_address::{Mailbox, ReversePath};
use postern_spool::{Envelope, LogEntry, LogRecord, NewMessage, QueueId, Timestamp};

use super::*;

struct Desk {
    directory: tempfile::TempDir,
    spool: Spool,
}

impl Desk {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        postern_spool::create_directories(directory.path()).unwrap();
        let spool = Spool::open(directory.path()).ok().unwrap();
        Self { directory, spool }
    }

    fn put(&self, label: &str, n: u64) -> String {
        let message = NewMessage {
            id: QueueId::from_u64(n),
            envelope: Envelope {
                reverse_path: ReversePath::Mailbox(Mailbox::parse("a@example.org").unwrap()),
                recipients: ["b@example.net", "c@example.net"].map(|m| Mailbox::parse(m).unwrap()).into(),
                arrival: Timestamp(1_790_000_000_000),
                body: BodyType::EightBit,
                origin: Origin::Local { uid: 42 },
                options: postern_spool::Options::default(),
            },
            prepend: b"Received: by us\r\n".to_vec(),
            body: format!("Subject: {n}\r\n\r\nHello\r\n").into_bytes(),
        };
        let directory = self.spool.directory(label).ok().unwrap();
        postern_spool::write_one(directory.as_fd(), &message).unwrap();
        message.id.to_string()
    }

    fn path(&self, label: &str, name: &str) -> PathBuf {
        self.directory.path().join(label).join(name)
    }

    /// Damages the octet where the body begins.
    fn damage(&self, label: &str, name: &str) {
        let file = OpenOptions::new().write(true).open(self.path(label, name)).unwrap();
        file.write_all_at(b"s", 64).unwrap();
    }

    fn log(&self, label: &str, name: &str, what: LogEntry) {
        let directory = self.spool.directory(label).ok().unwrap();
        let mut file = SpoolFile::open(directory.as_fd(), name).unwrap();
        file.append(&[LogRecord { message: 0, what }]).unwrap();
    }

    fn names(&self, label: &str) -> BTreeSet<String> {
        names(&self.directory.path().join(label))
    }
}

fn names(path: &Path) -> BTreeSet<String> {
    std::fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

fn ok<T>(result: Result<T, Failure>) -> T {
    result.unwrap_or_else(|failure| panic!("{}", failure.text))
}

#[test]
fn a_sound_spool_is_left_alone() {
    let desk = Desk::new();
    desk.put("new", 1);
    desk.put("cur", 2);
    let (report, damage) = ok(check(&desk.spool));
    assert!(!damage && report.remarks.is_empty());
    assert_eq!(report.json()["directories"]["cur"]["waiting"], 1);
    let (report, left) = ok(repair(&desk.spool));
    assert!(!left);
    assert_eq!(report.summary, "Nothing to repair.");
    assert_eq!((desk.names("new").len(), desk.names("cur").len()), (1, 1));
}

#[test]
fn damage_is_found_and_set_aside_and_the_rest_goes_on() {
    let desk = Desk::new();
    let flipped = desk.put("cur", 1);
    desk.damage("cur", &flipped);
    let cut = desk.put("new", 2);
    OpenOptions::new().write(true).open(desk.path("new", &cut)).unwrap().set_len(80).unwrap();
    let (sound, orphan) = (desk.put("cur", 3), desk.put("tmp", 4));
    std::fs::write(desk.path("tmp", "young"), b"").unwrap();
    let (report, damage) = ok(check(&desk.spool));
    assert!(damage);
    assert_eq!(report.remarks.len(), 2, "{:?}", report.remarks);
    let (report, left) = ok(repair(&desk.spool));
    assert!(!left, "{:?}", report.remarks);
    assert_eq!(desk.names("corrupt"), BTreeSet::from([flipped, cut]));
    assert_eq!(desk.names("cur"), BTreeSet::from([sound]));
    assert_eq!(desk.names("new"), BTreeSet::from([orphan]));
    assert_eq!(desk.names("tmp").len(), 1, "what is being written stays");
    assert!(!ok(check(&desk.spool)).1);
}

#[test]
fn a_damaged_log_is_cut() {
    let desk = Desk::new();
    let name = desk.put("cur", 1);
    let start = std::fs::metadata(desk.path("cur", &name)).unwrap().len();
    desk.log("cur", &name, LogEntry::Held);
    desk.log("cur", &name, LogEntry::Released);
    let file = OpenOptions::new().write(true).open(desk.path("cur", &name)).unwrap();
    file.write_all_at(b"\xff", start + 4).unwrap();
    assert!(ok(check(&desk.spool)).1);
    assert!(!ok(repair(&desk.spool)).1);
    assert_eq!(std::fs::metadata(desk.path("cur", &name)).unwrap().len(), start);
    assert!(!ok(check(&desk.spool)).1);
}

#[test]
fn a_running_system_is_not_repaired() {
    let desk = Desk::new();
    let master = File::open(desk.directory.path().join("cur")).unwrap();
    master.lock().unwrap();
    assert!(repair(&desk.spool).is_err());
    assert!(check(&desk.spool).is_ok(), "looking does no harm");
    drop(master);
    assert!(repair(&desk.spool).is_ok());
}

#[test]
fn every_message_can_be_taken_away() {
    let desk = Desk::new();
    let (waiting, set_aside) = (desk.put("cur", 1), desk.put("corrupt", 2));
    let (finished, dropped) = (desk.put("cur", 3), desk.put("drop", 4));
    desk.damage("corrupt", &set_aside);
    let done = |recipient| LogEntry::Done { recipient, address: None, status: DoneStatus::Delivered };
    desk.log("cur", &waiting, done(0));
    desk.log(
        "cur",
        &waiting,
        LogEntry::Deferred {
            recipient: 1,
            address: None,
            until: Timestamp(1_790_000_300_000),
            reply: "451 later".into(),
        },
    );
    desk.log("cur", &finished, done(0));
    desk.log("cur", &finished, done(1));
    // A dead writer's blank is nothing to be told of.
    std::fs::write(desk.path("tmp", ".1.2.3"), [0; 9000]).unwrap();
    let to = desk.directory.path().join("export");
    let (report, troubled) = ok(export(&desk.spool, &to));
    assert!(troubled, "one is damaged");
    assert_eq!(report.remarks.len(), 1);
    let envelope = |name: &str| format!("{name}.envelope.json");
    let expected = [
        format!("{waiting}.eml"),
        envelope(&waiting),
        format!("{set_aside}.damaged.eml"),
        envelope(&set_aside),
        format!("{dropped}.eml"),
        envelope(&dropped),
    ];
    assert_eq!(names(&to), BTreeSet::from(expected));
    let content = std::fs::read_to_string(to.join(format!("{waiting}.eml"))).unwrap();
    assert_eq!(content, "Received: by us\r\nSubject: 1\r\n\r\nHello\r\n");
    let json: Value = serde_json::from_slice(&std::fs::read(to.join(envelope(&waiting))).unwrap()).unwrap();
    assert_eq!(json["sender"], "a@example.org");
    assert_eq!(json["arrival"], "2026-09-21T14:13:20Z");
    assert_eq!(json["origin"]["local"]["uid"], 42);
    assert_eq!(json["recipients"][0]["state"], "delivered");
    assert_eq!(json["recipients"][1]["reason"], "451 later");
    // A second export must not mix with the first.
    assert!(ok(export(&desk.spool, &to)).1);
}
