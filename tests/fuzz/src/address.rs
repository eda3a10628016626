//! Mailboxes, domains and paths.

use postern_address::{Charset, Domain, ForwardPath, Mailbox, ReversePath};

pub(crate) fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(mailbox) = Mailbox::parse(text) {
        check(&mailbox, text);
    }
    for path in [text.to_owned(), format!("<{text}>")] {
        let utf8 = ReversePath::parse(&path);
        let ascii = ReversePath::parse_in(Charset::Ascii, &path);
        assert_eq!(ascii.is_ok(), utf8.is_ok() && path.is_ascii(), "{path:?}");
        if let Ok(ReversePath::Mailbox(mailbox)) = &utf8 {
            check(mailbox, &path);
        }
        let forward = ForwardPath::parse(&path);
        let same = match (&utf8, &forward) {
            (Ok(ReversePath::Mailbox(one)), Ok(ForwardPath::Mailbox(other))) => one == other,
            (Ok(ReversePath::Null), Err(_)) | (Err(_), Ok(ForwardPath::Postmaster) | Err(_)) => true,
            _ => false,
        };
        assert!(same, "{path:?}: {utf8:?}, {forward:?}");
    }
    if let Ok(domain) = Domain::parse(text) {
        assert!(domain.as_str().is_ascii() && domain.as_str().len() <= 255);
        assert_eq!(Domain::parse(domain.as_str()), Ok(domain));
    }
}

/// Its canonical form is the same mailbox, and can stand in a line.
fn check(mailbox: &Mailbox, text: &str) {
    let canonical = mailbox.as_str();
    assert!(canonical.len() <= 254, "{text:?}: {canonical:?}");
    assert!(!canonical.chars().any(char::is_control), "{text:?}: {canonical:?}");
    assert_eq!(Mailbox::parse(canonical).as_ref(), Ok(mailbox), "{text:?}");
    assert_eq!(format!("{}@{}", mailbox.local_part(), mailbox.host()), canonical);
    assert!(!mailbox.local_name().is_empty());
    match mailbox.domain() {
        Some(domain) => {
            assert_eq!(domain.as_str(), mailbox.host());
            assert_eq!(Mailbox::new(&mailbox.local_name(), &domain).as_ref(), Ok(mailbox), "{text:?}");
        }
        None => assert!(mailbox.literal().is_some(), "{text:?}: {canonical:?}"),
    }
}
