//! The writer and the reader together, on real files.

mod common;

use std::os::fd::AsFd;
use std::time::{Duration, SystemTime};

use common::{Desk, message};
use postern_spool::{Found, SpoolFile, classify, list, write_one};

#[test]
fn one_message_there_and_back() {
    let desk = Desk::new();
    let mut writer = desk.writer();
    let sent = message(1, b"Subject: x\r\n\r\nbody\r\n");
    writer.submit(7, sent.clone());
    let done = desk.wait(&mut writer, 1);
    assert_eq!((done[0].token, done[0].id, &done[0].result), (7, sent.id, &Ok(())));
    drop(writer);
    assert_eq!(list(desk.fd("tmp")).unwrap().files, []);
    desk.holds("new", &sent);
}

#[test]
fn one_message_written_and_waited_for() {
    let desk = Desk::new();
    let sent = message(1, b"");
    write_one(desk.fd("drop"), &sent).unwrap();
    desk.holds("drop", &sent);
    assert_eq!(list(desk.fd("drop")).unwrap().others, Vec::<String>::new());
    assert!(write_one(desk.fd("drop"), &sent).is_err(), "never over another");
    assert_eq!(classify(desk.fd("drop"), &sent.id.to_string()).unwrap(), Found::Whole);
}
