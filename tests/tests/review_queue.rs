//! What a hostile reading of the queue found, on the whole system.
#![allow(clippy::unwrap_used)]

use postern_tests::{System, message};

/// One person under two spellings gets one copy, and both recipients are finished.
#[test]
fn two_recipients_with_one_mailbox_get_one_copy() {
    let system = System::start();
    let mut client = system.smtp();
    client.ehlo();
    let id = client.send("a@x.test", &["u@v.test", "U@v.test", "v@v.test"], &message("once")).unwrap();
    system.finished(&id);
    assert_eq!(system.wait_maildir("v@v.test", 1).len(), 1);
    assert_eq!(system.wait_maildir("u@v.test", 1).len(), 1);
    assert_eq!(system.spool("cur"), [""; 0]);
    client.quit();
}
