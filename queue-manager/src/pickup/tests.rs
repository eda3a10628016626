//! What local users may put into `drop/`, on real files.

use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, symlink};
use std::path::PathBuf;
use std::sync::mpsc::channel;

use postern_address::Mailbox;
use postern_smtp::parameters::{Notify, OriginalRecipient, Ret};
use postern_spool::{WriterDirs, create_directories, write_one};
use proptest::prelude::*;

use super::*;

const MESSAGE_SIZE: u64 = 1 << 20;

struct Spool {
    directory: tempfile::TempDir,
}

impl Spool {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        create_directories(directory.path()).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn open(&self, name: &str) -> OwnedFd {
        File::open(self.path(name)).unwrap().into()
    }

    fn pick_up(&self, name: QueueId) -> Result<Pickup, Refusal> {
        let (drop, cur) = (self.open("drop"), self.open("cur"));
        let id = QueueId::from_u64(77);
        let picked = open(drop.as_fd(), cur.as_fd(), name, id, "mx.test", MESSAGE_SIZE, Timestamp(5));
        assert_eq!(std::fs::read_dir(self.path("cur")).unwrap().count(), 0, "the copy is gone");
        picked
    }

    /// All the way into `new/`.
    fn take(&self, pickup: &mut Pickup) -> Result<(), Refusal> {
        let (woken, wait) = channel();
        let dirs = WriterDirs { tmp: self.open("tmp"), new: self.open("new") };
        let mut writer = Writer::start(dirs, move || {
            let _ = woken.send(());
        })
        .unwrap();
        if pickup.is_large() {
            pickup.open_stream(&mut writer, 1);
            while !pickup.stream(&mut writer, 1)? {
                wait.recv().unwrap();
            }
        } else {
            pickup.submit(&mut writer, 1)?;
        }
        loop {
            if let Some(completion) = writer.completions().pop() {
                assert_eq!(completion.result, Ok(()));
                return Ok(());
            }
            wait.recv().unwrap();
        }
    }
}

fn mailbox(text: &str) -> Mailbox {
    Mailbox::parse(text).unwrap()
}

fn dropped(id: u64, body: &[u8]) -> NewMessage {
    let envelope = Envelope {
        reverse_path: ReversePath::Mailbox(mailbox("me@x.test")),
        recipients: vec![mailbox("u@v.test"), mailbox("w@v.test"), mailbox("u@v.test")],
        arrival: Timestamp(u64::MAX / 2),
        body: BodyType::EightBit,
        origin: Origin::Smtp { address: "192.0.2.1".parse().unwrap(), name: None, helo: "forged".into() },
        options: postern_spool::Options::default(),
    };
    NewMessage { id: QueueId::from_u64(id), envelope, prepend: Vec::new(), body: body.to_vec() }
}

#[test]
fn what_a_local_program_asks_for() {
    let said = |n, success, kind: &str, address: &str| {
        let orcpt = Some(OriginalRecipient { kind: kind.into(), address: address.into() });
        (n, RcptParameters { notify: Some(Notify { success, failure: true, delay: false }), orcpt })
    };
    let spool = Spool::new();
    let mut message = dropped(1_000_000, b"A: b\r\n");
    message.envelope.recipients.swap(1, 2);
    message.envelope.options = Options {
        ret: Some(Ret::Headers),
        envid: Some("mine".into()),
        // Not for a local program to ask.
        priority: 9,
        held: true,
        hold_until: Some(Timestamp(1)),
        // Of u@, of u@ again, and of w@, whose place is another when u@ is there once.
        recipients: vec![
            said(0, true, "rfc822", "u@x"),
            said(1, false, "rfc822", "again@x"),
            said(2, false, "rfc822\r\nQUIT", "w@x"),
        ],
        ..Options::default()
    };
    write_one(spool.open("drop").as_fd(), &message).unwrap();
    let mut pickup = spool.pick_up(message.id).unwrap();
    spool.take(&mut pickup).unwrap();
    let file = SpoolFile::open(spool.open("new").as_fd(), &QueueId::from_u64(77).to_string()).unwrap();
    let mut w = said(1, false, "", "").1;
    w.orcpt = None;
    let expected = Options {
        ret: Some(Ret::Headers),
        envid: Some("mine".into()),
        recipients: vec![said(0, true, "rfc822", "u@x"), (1, w)],
        ..Options::default()
    };
    assert_eq!(file.messages()[0].envelope.options, expected);
}

#[test]
fn a_message_is_written_anew() {
    for size in [10, 3 * STREAM_ABOVE] {
        let spool = Spool::new();
        let body =
            [b"Subject: hi\r\nFrom: <other@x.test>\r\n\r\n", &b"text\r\n".repeat(size / 6)[..]].concat();
        let message = dropped(1_000_000, &body);
        write_one(spool.open("drop").as_fd(), &message).unwrap();
        let mut pickup = spool.pick_up(message.id).unwrap();
        let uid = nix::unistd::getuid().as_raw();
        assert_eq!((pickup.uid, pickup.reverse_path().as_str()), (uid, "me@x.test"));
        assert_eq!(pickup.is_large(), size > STREAM_ABOVE);
        spool.take(&mut pickup).unwrap();
        taken(&spool.open("drop"), message.id).unwrap();
        assert_eq!(std::fs::read_dir(spool.path("drop")).unwrap().count(), 0);
        let file = SpoolFile::open(spool.open("new").as_fd(), &QueueId::from_u64(77).to_string()).unwrap();
        let stored = &file.messages()[0];
        assert_eq!(stored.envelope.origin, Origin::Local { uid });
        assert_eq!((stored.envelope.arrival, stored.envelope.body), (Timestamp(5), BodyType::SevenBit));
        assert_eq!(stored.envelope.recipients, [mailbox("u@v.test"), mailbox("w@v.test")]);
        assert_eq!(file.read_body(0).unwrap(), body);
        let prepend = String::from_utf8(stored.prepend.clone()).unwrap();
        assert!(prepend.starts_with(&format!("Received: by mx.test (Postern, from userid {uid})\r\n\tid ")));
        assert!(prepend.contains("\r\nDate: ") && prepend.contains("\r\nMessage-ID: <"));
        assert!(!prepend.contains("From:"), "the message has one");
    }
}

#[test]
fn what_is_no_message_is_refused() {
    let spool = Spool::new();
    let refused = |id: u64, expected: &str| {
        let name = QueueId::from_u64(id);
        let why = match spool.pick_up(name).and_then(|mut pickup| spool.take(&mut pickup)) {
            Err(Refusal::Unfit(why)) => why,
            other => panic!("{expected}: {other:?}"),
        };
        assert!(why.contains(expected), "{why}");
        refuse(spool.open("drop").as_fd(), &name.to_string(), spool.open("corrupt").as_fd()).unwrap()
    };
    let path = |id: u64| spool.path("drop").join(QueueId::from_u64(id).to_string());
    let put = |message: NewMessage| write_one(spool.open("drop").as_fd(), &message).unwrap();

    std::fs::write(path(1), "not a spool file").unwrap();
    assert_eq!(refused(1, "no spool file"), "set aside");

    std::fs::write(spool.path("secret"), "secret").unwrap();
    symlink(spool.path("secret"), path(2)).unwrap();
    assert_eq!(refused(2, "not a regular file"), "removed");
    assert!(spool.path("secret").exists());

    put(dropped(3, b"A: b\r\n\r\n"));
    std::fs::hard_link(path(3), spool.path("other name")).unwrap();
    assert_eq!(refused(3, "has another name"), "set aside");

    nix::unistd::mkfifo(&path(4), Mode::S_IRWXU).unwrap();
    assert_eq!(refused(4, "not a regular file"), "removed");

    std::fs::create_dir(path(5)).unwrap();
    assert_eq!(refused(5, "not a regular file"), "removed");

    File::create(path(6)).unwrap().set_len(MESSAGE_SIZE + BESIDE_MAX + 1).unwrap();
    assert_eq!(refused(6, "too large"), "set aside");

    put(dropped(7, b"A: b\r\n\r\nbare\nline\r\n"));
    assert_eq!(refused(7, "not CRLF"), "set aside");
    put(dropped(8, &[&b"A: b\r\n\r\n"[..], &b"x\r\n".repeat(STREAM_ABOVE), b"\r.\r\n"].concat()));
    assert_eq!(refused(8, "not CRLF"), "set aside");
    put(dropped(9, b"A: b\r\n\r\nno end"));
    assert_eq!(refused(9, "last line"), "set aside");

    let mut lines = dropped(10, b"A: b\r\n\r\n");
    lines.prepend = b"X: y".to_vec();
    put(lines);
    assert_eq!(refused(10, "header lines"), "set aside");

    put(dropped(11, b"A: b\r\n\r\nbody body\r\n"));
    let file = File::options().read(true).write(true).open(path(11)).unwrap();
    let at = SpoolFile::open(spool.open("drop").as_fd(), &QueueId::from_u64(11).to_string()).unwrap();
    file.write_all_at(b"X", at.messages()[0].offset).unwrap();
    assert_eq!(refused(11, "damaged"), "set aside");

    let lines = |octets: u64| b"123456\r\n".repeat(octets as usize / 8);
    put(dropped(12, &lines(MESSAGE_SIZE + 8)));
    assert_eq!(refused(12, "message-size is 1048576 octets"), "set aside");
    put(dropped(13, &lines(MESSAGE_SIZE)));
    assert!(spool.pick_up(QueueId::from_u64(13)).is_ok());
    std::fs::remove_file(path(13)).unwrap();

    assert!(matches!(spool.pick_up(QueueId::from_u64(99)), Err(Refusal::Gone)));
    assert_eq!(std::fs::read_dir(spool.path("drop")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(spool.path("new")).unwrap().count(), 0);
}

#[test]
fn what_a_message_must_have() {
    let id = QueueId::from_u64(77);
    let added = |beginning: &[u8], from: &ReversePath| {
        String::from_utf8(header(beginning, from, 7, id, "mx.test", Timestamp(0))).unwrap()
    };
    let me = ReversePath::Mailbox(mailbox("me@x.test"));
    let whole = added(b"date: x\r\nMESSAGE-ID: <1@x>\r\nFrom: <a@b>\r\n\r\n", &me);
    assert_eq!(fields(whole.as_bytes()).count(), 1);
    let nothing = added(b"just text\r\n", &ReversePath::Null);
    assert!(nothing.contains("\r\nFrom: <MAILER-DAEMON@mx.test>\r\n") && nothing.ends_with("\r\n\r\n"));
    assert!(!added(b"\r\nbody\r\n", &me).ends_with("\r\n\r\n"));
}

proptest! {
    #[test]
    fn any_bytes_are_refused_or_taken(bytes in proptest::collection::vec(any::<u8>(), 0..400), cut in any::<u8>()) {
        let spool = Spool::new();
        let name = QueueId::from_u64(1);
        let path = spool.path("drop").join(name.to_string());
        std::fs::write(&path, &bytes).unwrap();
        prop_assert!(spool.pick_up(name).is_err());
        // A real file with bytes changed in it.
        std::fs::remove_file(&path).unwrap();
        write_one(spool.open("drop").as_fd(), &dropped(1, b"A: b\r\n\r\nbody\r\n")).unwrap();
        let mut real = std::fs::read(&path).unwrap();
        for (n, byte) in bytes.iter().take(4).enumerate() {
            let at = (usize::from(cut) * 7 + n * 31) % real.len();
            real[at] = *byte;
        }
        std::fs::write(&path, &real).unwrap();
        let _ = spool.pick_up(name);
    }

    #[test]
    fn lines_by_pieces(text in "[a\r\n]{0,12}", cut in 0usize..12) {
        let ok = text.replace("\r\n", "").chars().all(|c| c == 'a') && (text.is_empty() || text.ends_with("\r\n"));
        let (head, rest) = text.as_bytes().split_at(cut.min(text.len()));
        let mut lines = Lines::default();
        prop_assert_eq!(lines.take(head) && lines.take(rest) && lines.at_start(), ok);
    }
}
