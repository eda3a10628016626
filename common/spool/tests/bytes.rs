//! Files byte by byte: cut, flipped, torn, of another time, and not ours at all.

#![allow(clippy::unwrap_used)] // a test that panics has failed

mod common;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime};

use common::*;
use nix::sys::stat::Mode;
use postern_address::{Mailbox, ReversePath};
use postern_smtp::parameters::{ByMode, Notify, OriginalRecipient, RcptParameters, Ret};
use postern_spool::*;

/// A file of three messages, in memory.
fn three(desk: &Desk) -> (QueueId, Vec<u8>) {
    let mut writer = gated_batch(desk, &[b"one\r\n", b"", &[0xe9; 5000]]);
    desk.wait(&mut writer, 4);
    drop(writer);
    (id(1), std::fs::read(desk.path("new", id(1))).unwrap())
}

#[test]
fn cut_at_any_length_a_file_has_no_valid_foot() {
    let desk = Desk::in_memory();
    let (file, bytes) = three(&desk);
    let one = message(9, &[b'x'; 300]);
    write_one(desk.fd("new"), &one).unwrap();
    for (name, length) in
        [(file, bytes.len()), (one.id, std::fs::read(desk.path("new", one.id)).unwrap().len())]
    {
        let open = OpenOptions::new().write(true).open(desk.path("new", name)).unwrap();
        let name = name.to_string();
        assert_eq!(classify(desk.fd("new"), &name).unwrap(), Found::Whole);
        for keep in (0..length as u64).rev() {
            open.set_len(keep).unwrap();
            assert!(
                matches!(SpoolFile::open(desk.fd("new"), &name), Err(ReadError::Corrupt(_))),
                "at {keep}"
            );
            assert_eq!(classify(desk.fd("new"), &name).unwrap(), Found::Unfinished, "at {keep}");
        }
    }
}

#[test]
fn any_flipped_bit_is_noticed_where_it_matters() {
    let desk = Desk::in_memory();
    let (name, bytes) = three(&desk);
    let file = OpenOptions::new().write(true).open(desk.path("new", name)).unwrap();
    let intact = desk.open("new", name);
    let bodies: Vec<_> = intact.messages().iter().map(|m| (m.offset, m.offset + m.length)).collect();
    for at in 0..bytes.len() as u64 {
        let bit = 1 << (at % 8);
        file.write_all_at(&[bytes[at as usize] ^ bit], at).unwrap();
        let hit = bodies.iter().position(|(start, end)| (*start..*end).contains(&at));
        let padding = hit.is_none() && (64..bodies[2].1).contains(&at);
        match (SpoolFile::open(desk.fd("new"), &name.to_string()), hit) {
            (Ok(read), None) => {
                assert!(padding, "bit at {at} not noticed");
                assert_eq!(read.messages(), intact.messages());
            }
            (Ok(read), Some(hit)) => {
                for n in 0..3 {
                    assert_eq!(read.read_body(n).is_err(), n == hit, "bit at {at}, body {n}");
                }
            }
            (Err(ReadError::Corrupt(_)), None) => assert!(!padding, "bit at {at} is padding"),
            (Err(error), _) => panic!("bit at {at}: {error}"),
        }
        file.write_all_at(&[bytes[at as usize]], at).unwrap();
    }
    assert_eq!(classify(desk.fd("new"), &name.to_string()).unwrap(), Found::Whole);
}

fn records() -> Vec<LogRecord> {
    let alias = Mailbox::parse("alias@example.net").unwrap();
    let deferred = LogEntry::Deferred {
        recipient: 1,
        address: Some(alias.clone()),
        until: Timestamp(1_790_000_300_000),
        reply: "451 4.7.1 Приходите завтра".into(),
    };
    let done = |address, status| LogEntry::Done { recipient: 0, address, status };
    let entries = [
        done(None, DoneStatus::Delivered),
        deferred,
        LogEntry::Held,
        LogEntry::Released,
        done(Some(alias), DoneStatus::Failed),
        LogEntry::BounceSent,
        done(None, DoneStatus::Removed),
    ];
    entries.into_iter().map(|what| LogRecord { message: 0, what }).collect()
}

#[test]
fn a_torn_log_is_read_up_to_the_tear_and_goes_on_from_there() {
    let desk = Desk::in_memory();
    write_one(desk.fd("cur"), &message(1, b"x")).unwrap();
    let name = id(1);
    let start = std::fs::metadata(desk.path("cur", name)).unwrap().len();
    desk.open("cur", name).append(&records()).unwrap();
    let full = std::fs::read(desk.path("cur", name)).unwrap();
    let held = [LogRecord { message: 0, what: LogEntry::Held }];
    for keep in start..=full.len() as u64 {
        // What the tear left: nothing, zeros (blocks given and not written), or a stranger's bytes with a
        // whole record of ours behind them, which must not come to life again.
        let record = &full[full.len() - 17..];
        for rest in [&b""[..], &[0; 700], &[b"stranger", record].concat()] {
            std::fs::write(desk.path("cur", name), [&full[..keep as usize], rest].concat()).unwrap();
            let mut file = desk.open("cur", name);
            let known = file.log().len();
            assert_eq!(file.log(), &records()[..known]);
            assert_eq!(known == records().len(), keep == full.len() as u64);
            file.append(&held).unwrap();
            file.append(&held).unwrap();
            file.sync().unwrap();
            let expected = [&records()[..known], &held, &held].concat();
            assert_eq!(desk.open("cur", name).log(), expected);
            assert_eq!(file.log(), expected, "it knows what it wrote");
        }
    }
}

#[test]
fn a_long_log() {
    let desk = Desk::in_memory();
    write_one(desk.fd("cur"), &message(1, &[b'x'; 100_000])).unwrap();
    let mut file = desk.open("cur", id(1));
    let many: Vec<_> = (0..5000u32)
        .map(|n| LogRecord {
            message: 0,
            what: LogEntry::Deferred {
                recipient: n,
                address: None,
                until: Timestamp(n.into()),
                reply: "x".repeat((n * 7 % 9000) as usize % 8192),
            },
        })
        .collect();
    many.chunks(100).for_each(|records| file.append(records).unwrap());
    assert!(desk.open("cur", id(1)).log() == many && file.log() == many);
}

#[test]
fn of_deferrals_the_last_stands() {
    let desk = Desk::in_memory();
    write_one(desk.fd("cur"), &message(1, b"x")).unwrap();
    let at = |recipient, until| LogRecord {
        message: 0,
        what: LogEntry::Deferred { recipient, address: None, until: Timestamp(until), reply: "later".into() },
    };
    let held = LogRecord { message: 0, what: LogEntry::Held };
    let mut file = desk.open("cur", id(1));
    file.append(&[at(0, 1), at(1, 2), held.clone(), at(0, 3), at(0, 4), held.clone()]).unwrap();
    assert_eq!(desk.open("cur", id(1)).log(), [at(0, 4), at(1, 2), held.clone(), held]);
    assert_eq!(file.log(), desk.open("cur", id(1)).log());
}

#[test]
fn what_a_local_user_put_behind_the_foot_is_not_looked_at() {
    let desk = Desk::in_memory();
    let sent = message(1, b"x");
    write_one(desk.fd("drop"), &sent).unwrap();
    desk.open("drop", sent.id).append(&records()).unwrap();
    let file = SpoolFile::open_dropped(desk.fd("drop"), &sent.id.to_string()).unwrap();
    assert_eq!(file.log(), []);
    assert_same(&file, 0, &sent);
    assert_eq!(file.owner().unwrap(), nix::unistd::geteuid().as_raw());
}

#[test]
fn a_log_that_names_no_message_is_refused() {
    let desk = Desk::in_memory();
    write_one(desk.fd("cur"), &message(1, b"x")).unwrap();
    desk.open("cur", id(1)).append(&[LogRecord { message: 1, what: LogEntry::Held }]).unwrap();
    assert!(matches!(SpoolFile::open(desk.fd("cur"), &id(1).to_string()), Err(ReadError::Corrupt(_))));
}

#[test]
fn what_is_no_file_is_refused_and_never_waited_for() {
    let desk = Desk::in_memory();
    nix::unistd::mkfifo(&desk.path("drop", id(1)), Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", desk.path("drop", id(2))).unwrap();
    std::fs::create_dir(desk.path("drop", id(3))).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(desk.path("drop", id(4))).unwrap();
    File::create(desk.path("drop", id(5))).unwrap();
    for n in 1..=5 {
        let opened = SpoolFile::open(desk.fd("drop"), &id(n).to_string());
        assert!(matches!(opened, Err(ReadError::Corrupt(_))), "{n}: {opened:?}");
    }
    assert_eq!(list(desk.fd("drop")).unwrap().files, [id(5)]);
    let opened = SpoolFile::open(desk.fd("drop"), &id(6).to_string());
    assert!(matches!(opened, Err(ReadError::Io(e)) if e.kind() == std::io::ErrorKind::NotFound));
}

#[test]
fn what_may_only_be_read_is_read() {
    let desk = Desk::in_memory();
    let sent = message(1, b"x");
    write_one(desk.fd("drop"), &sent).unwrap();
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(desk.path("drop", sent.id)).unwrap());
    assert_eq!(mode & 0o7777, 0o640);
    std::fs::set_permissions(desk.path("drop", sent.id), std::os::unix::fs::PermissionsExt::from_mode(0o440))
        .unwrap();
    desk.holds("drop", &sent);
}

#[test]
fn recovery_sorts_what_it_finds() {
    let desk = Desk::in_memory();
    let (whole, bytes) = three(&desk);
    rename_between(desk.fd("new"), &whole.to_string(), desk.fd("tmp"), &whole.to_string()).unwrap();
    let mut damaged = bytes.clone();
    damaged[4096] ^= 1;
    std::fs::write(desk.path("tmp", id(20)), damaged).unwrap();
    std::fs::write(desk.path("corrupt", id(20)), b"of another day").unwrap();
    std::fs::write(desk.path("tmp", id(21)), &bytes[..5000]).unwrap();
    std::fs::write(desk.path("tmp", id(22)), b"").unwrap();
    std::fs::write(desk.path("tmp", "core"), b"").unwrap();
    let mut newer = bytes.clone();
    newer[8] = 2;
    let crc = crc32c::crc32c(&newer[..60]).to_le_bytes();
    newer[60..64].copy_from_slice(&crc);
    std::fs::write(desk.path("tmp", id(23)), newer).unwrap();

    let rescue_at =
        |now| rescue(desk.fd("tmp"), desk.fd("new"), desk.fd("corrupt"), Duration::ZERO, now).unwrap();
    let rescued = rescue_at(SystemTime::now());
    assert_eq!(rescued.adopted, [whole]);
    assert_eq!(rescued.swept, Vec::<String>::new());
    assert_eq!(rescued.set_aside.len(), 1);
    assert_eq!(rescued.set_aside[0].0, format!("{}.1", id(20)));
    assert_eq!(rescued.failed.len(), 1, "{:?}", rescued.failed);
    assert_eq!(desk.messages("new").len(), 4);

    let rescued = rescue_at(SystemTime::now() + SWEEP_AFTER);
    assert_eq!(rescued.swept, [id(21).to_string(), id(22).to_string(), "core".to_owned()]);
    assert_eq!(list(desk.fd("tmp")).unwrap(), Listing { files: vec![id(23)], others: vec![] });
    assert_eq!(std::fs::read(desk.path("corrupt", id(20))).unwrap(), b"of another day");
}

#[test]
fn temporary_names_in_drop_are_swept_after_a_day() {
    let desk = Desk::in_memory();
    write_one(desk.fd("drop"), &message(1, b"x")).unwrap();
    std::fs::write(desk.path("drop", format!(".{}", id(2))), b"half").unwrap();
    let now = SystemTime::now();
    assert_eq!(sweep_temporary(desk.fd("drop"), now).unwrap(), Vec::<String>::new());
    assert_eq!(sweep_temporary(desk.fd("drop"), now + SWEEP_AFTER).unwrap(), [format!(".{}", id(2))]);
    assert_eq!(list(desk.fd("drop")).unwrap(), Listing { files: vec![id(1)], others: vec![] });
}

/// The messages of the golden file. It was written by the first version of the format and is never
/// written again: what is in a spool stays readable.
fn golden() -> (Vec<NewMessage>, Vec<LogRecord>) {
    let recipients = |all: &[&str]| all.iter().map(|r| Mailbox::parse(r).unwrap()).collect::<Vec<_>>();
    let envelope = |reverse_path, to: &[&str], body, origin| Envelope {
        reverse_path,
        recipients: recipients(to),
        arrival: Timestamp(1_790_000_000_123),
        body,
        origin,
        options: postern_spool::Options::default(),
    };
    let sender = ReversePath::Mailbox(Mailbox::parse("sender@example.org").unwrap());
    let smtp = |address: &str, name: Option<&str>| Origin::Smtp {
        address: address.parse().unwrap(),
        name: name.map(str::to_owned),
        helo: "client.example".into(),
    };
    let everyone = ["u@example.net", "\"v w\"@example.net", "почта@xn--e1afmkfd.xn--p1ai", "x@[192.0.2.9]"];
    let parts = [
        (
            envelope(sender.clone(), &everyone, BodyType::EightBit, smtp("192.0.2.1", Some("a.example"))),
            "one\r\n",
        ),
        (envelope(sender, &["u@example.net"], BodyType::SevenBit, smtp("2001:db8::1", None)), ""),
        (envelope(ReversePath::Null, &["u@example.net"], BodyType::SevenBit, Origin::Internal), "bounce\r\n"),
        (
            envelope(ReversePath::Null, &["u@example.net"], BodyType::EightBit, Origin::Local { uid: 1000 }),
            "é\r\n",
        ),
    ];
    let messages = parts.into_iter().zip(0..).map(|((envelope, body), n)| NewMessage {
        id: id(n),
        envelope,
        prepend: format!("Received: {n}\r\n").into(),
        body: body.into(),
    });
    let mut log = records();
    log.push(LogRecord { message: 3, what: LogEntry::Held });
    (messages.collect(), log)
}

/// The messages of the second golden file: what a client may ask for, and the reports it leads to.
fn golden_options() -> (Vec<NewMessage>, Vec<LogRecord>) {
    let envelope = |n: u64, options: Options| NewMessage {
        id: id(n),
        envelope: Envelope {
            reverse_path: ReversePath::Mailbox(Mailbox::parse("отправитель@example.org").unwrap()),
            recipients: ["u@example.net", "v@example.net", "почта@example.net"]
                .map(|r| Mailbox::parse(r).unwrap())
                .into(),
            arrival: Timestamp(1_790_000_000_123),
            body: BodyType::Binary,
            origin: Origin::Internal,
            options,
        },
        prepend: Vec::new(),
        body: b"one\r\n".to_vec(),
    };
    let notify = |success, failure, delay| Some(Notify { success, failure, delay });
    let orcpt =
        |kind: &str, address: &str| Some(OriginalRecipient { kind: kind.into(), address: address.into() });
    let deadline = |mode, trace| Some(Deadline { at: Timestamp(1_790_000_600_000), mode, trace });
    let all = Options {
        smtputf8: true,
        ret: Some(Ret::Headers),
        envid: Some("QQ314159 +=".into()),
        deliver_by: deadline(ByMode::Return, true),
        hold_until: Some(Timestamp(1_790_000_300_000)),
        priority: -9,
        held: true,
        recipients: vec![
            (0, RcptParameters { notify: notify(true, true, true), orcpt: orcpt("rfc822", "U@example.net") }),
            (2, RcptParameters { notify: notify(false, false, false), orcpt: orcpt("utf-8", "почта@x") }),
        ],
    };
    let some = Options {
        ret: Some(Ret::Full),
        deliver_by: deadline(ByMode::Notify, false),
        priority: 9,
        recipients: vec![(1, RcptParameters { notify: notify(false, true, false), orcpt: None })],
        ..Options::default()
    };
    let owed = |recipient, address, action, relay: Option<&str>| LogEntry::Owed {
        recipient,
        address,
        action,
        relay: relay.map(str::to_owned),
        reply: "250 2.0.0 Ok".into(),
    };
    let alias = Mailbox::parse("alias@example.net").unwrap();
    let log = [
        LogEntry::DelaySent,
        owed(0, Some(alias), Success::Relayed, Some("mx.example.net[192.0.2.3]:25")),
        owed(1, None, Success::Delivered, None),
        owed(2, None, Success::Expanded, None),
        LogEntry::Told { recipient: 2 },
        LogEntry::Complete { recipient: 1 },
    ];
    let log = log.into_iter().map(|what| LogRecord { message: 0, what });
    (vec![envelope(0, all), envelope(1, some), envelope(2, Options::default())], log.collect())
}

#[test]
fn the_golden_files_of_format_1_read_for_ever() {
    let plain = (golden(), &include_bytes!("golden/format-1.spool")[..]);
    let options = (golden_options(), &include_bytes!("golden/format-1-options.spool")[..]);
    for ((messages, log), golden_bytes) in [plain, options] {
        let desk = Desk::in_memory();
        std::fs::write(desk.path("cur", id(0)), golden_bytes).unwrap();
        let file = desk.open("cur", id(0));
        assert_eq!(file.messages().len(), messages.len());
        messages.iter().enumerate().for_each(|(n, message)| assert_same(&file, n, message));
        assert_eq!(file.log(), log);
    }
}

#[test]
fn format_1_is_still_written_as_it_was() {
    written_as("format-1.spool", golden(), include_bytes!("golden/format-1.spool"));
    let options = include_bytes!("golden/format-1-options.spool");
    written_as("format-1-options.spool", golden_options(), options);
}

fn written_as(name: &str, (messages, log): (Vec<NewMessage>, Vec<LogRecord>), golden: &[u8]) {
    let desk = Desk::in_memory();
    let count = messages.len() + 1;
    let gate = Gate::new();
    let mut writer = desk.probed(gate.probe());
    writer.submit(100, message(100, b"holds the others back"));
    gate.reached();
    messages.into_iter().zip(0..).for_each(|(message, n)| writer.submit(n, message));
    gate.open();
    desk.wait(&mut writer, count);
    drop(writer);
    desk.open("new", id(0)).append(&log).unwrap();
    let written = std::fs::read(desk.path("new", id(0))).unwrap();
    if written != golden {
        let kept = std::env::temp_dir().join(name);
        std::fs::write(&kept, written).unwrap();
        panic!("differs from the golden file: see {}", kept.display());
    }
}
