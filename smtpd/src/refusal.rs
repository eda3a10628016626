//! What clients are told when it is not theirs to decide: the words for other programs' verdicts.

use postern_ipc::smtpd_lookup::{Say, Verdict};
use postern_smtp::Reply;
use postern_smtp::server::Answer;
use postern_spool::WriteError;

/// lookup's word on a recipient, as the client hears it.
pub(crate) fn answer(verdict: Verdict) -> Answer {
    match verdict {
        Verdict::Local | Verdict::Relay => Answer::Accepted,
        Verdict::RelayDenied => Answer::Refused(Reply::coded(554, (5, 7, 1), "Relay access denied")),
        Verdict::UnknownUser => {
            Answer::Refused(Reply::coded(550, (5, 1, 1), "Recipient address rejected: no such user here"))
        }
        Verdict::Rejected(reply) if reply.is_permanent() || reply.is_transient() => Answer::Refused(reply),
        // An "error:" that is none would be a 250 in disguise.
        Verdict::Rejected(_) | Verdict::Unavailable(_) => Answer::Refused(lookup_failure()),
    }
}

/// lookup lets a recipient in.
pub(crate) fn is_let_in(say: &Say) -> bool {
    matches!(say, Say::Recipient(Verdict::Local | Verdict::Relay))
}

/// lookup is gone, too busy, or cannot tell.
pub(crate) fn lookup_failure() -> Reply {
    Reply::coded(451, (4, 3, 0), "Temporary lookup failure, try again")
}

/// The spool did not take a message.
pub(crate) fn spool(error: &WriteError) -> Reply {
    match error {
        WriteError::NoSpace => Reply::coded(452, (4, 3, 1), "Error: insufficient system storage, try again"),
        WriteError::Io(_) => Reply::coded(451, (4, 3, 0), "Error: queue file write error, try again"),
    }
}

/// RFC 5321 §6.3.
pub(crate) fn looping() -> Reply {
    Reply::coded(554, (5, 4, 6), "Error: too many hops")
}

pub(crate) fn timeout() -> Reply {
    Reply::coded(421, (4, 4, 2), "Error: timeout exceeded")
}

pub(crate) fn too_many_sessions() -> Reply {
    Reply::coded(421, (4, 3, 2), "Error: too many connections, try again")
}

/// A stranger at a port that is for proxies alone.
pub(crate) fn not_a_proxy() -> Reply {
    Reply::coded(554, (5, 7, 1), "Error: this port is for proxies")
}

/// A proxy that does not say whose connection it is.
pub(crate) fn no_proxy_header(why: &str) -> Reply {
    Reply::coded(554, (5, 7, 1), format!("Error: {why}"))
}

pub(crate) fn stopping() -> Reply {
    Reply::coded(421, (4, 3, 2), "Service shutting down, try again")
}

pub(crate) fn queued(id: &str) -> Reply {
    Reply::coded(250, (2, 0, 0), format!("Ok: queued as {id}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_a_yes_is_a_yes() {
        for verdict in [Verdict::Local, Verdict::Relay] {
            assert_eq!(answer(verdict), Answer::Accepted);
        }
        let strange = Verdict::Rejected(Reply::new(250, None, "come in"));
        for (verdict, code) in [
            (Verdict::RelayDenied, 554),
            (Verdict::UnknownUser, 550),
            (Verdict::Unavailable("x".into()), 451),
            (strange, 451),
            (Verdict::Rejected(Reply::new(550, None, "moved")), 550),
        ] {
            assert!(matches!(answer(verdict), Answer::Refused(reply) if reply.code == code));
        }
    }
}
