//! Content: from DATA to the message.

use super::replies::too_big;
use super::{Action, Due, Output, Protocol, Replies, Session, Stage};
use crate::reply::Reply;
use crate::server::data::{Decoder, Fault, Progress, Violation};
use crate::server::transaction::Finished;

impl Session {
    /// DATA is accepted: content is next.
    pub(super) fn begin_content(&mut self, out: &mut Output) {
        let Stage::Open(transaction) = std::mem::replace(&mut self.stage, Stage::Idle) else { return };
        let limits = (self.settings.message_size, u64::from(self.settings.line_length));
        let decoder = Decoder::new(limits.0, limits.1).normalising(self.settings.normalise);
        match transaction.begin_content(decoder) {
            Ok(receiving) => {
                self.stage = Stage::Content(receiving);
                super::replies::push(out, "354 End data with <CR><LF>.<CR><LF>\r\n");
            }
            Err(transaction) => {
                self.stage = Stage::Open(transaction);
                let reply = self.no_recipients();
                self.refuse("DATA", reply, None, None, out);
            }
        }
    }

    /// RFC 5321 §4.1.4: out of order, so the state stays. RFC 2033 §4.2 wants 503.
    pub(super) fn no_recipients(&self) -> Reply {
        let code = if self.is_smtp() { 554 } else { 503 };
        Reply::coded(code, (5, 5, 1), "Error: no valid recipients")
    }

    /// Content, up to its end or that of the input.
    pub(super) fn content(&mut self, input: &[u8], out: &mut Output) -> usize {
        let Stage::Content(receiving) = &mut self.stage else { return 0 };
        let progress = receiving.decode(input);
        if progress == Progress::More {
            return input.len();
        }
        let Stage::Content(receiving) = std::mem::replace(&mut self.stage, Stage::Idle) else { return 0 };
        match progress {
            Progress::More => input.len(),
            Progress::Violation(violation) => {
                let text = match violation {
                    Violation::BareCr => "Error: bare <CR> received",
                    Violation::BareLf => "Error: bare <LF> received",
                };
                let from = Some(receiving.mail().0.clone());
                out.actions.push(Action::Dropped);
                self.reject("END-OF-MESSAGE", Reply::coded(554, (5, 5, 2), text), from, None, out);
                self.end("line end violation", out);
                input.len()
            }
            Progress::End { used } => {
                match receiving.finish() {
                    Ok(finished) => self.finished(finished, out),
                    Err((fault, from)) => {
                        out.actions.push(Action::Dropped);
                        let reply = match fault {
                            Fault::TooBig => too_big(),
                            Fault::LineTooLong => {
                                Reply::coded(554, (5, 6, 0), "Error: line of text too long")
                            }
                            Fault::Nul => Reply::coded(554, (5, 5, 2), "Error: NUL in the message"),
                        };
                        self.refuse("END-OF-MESSAGE", reply, Some(from), None, out);
                    }
                }
                used
            }
        }
    }

    pub(super) fn finished(&mut self, finished: Finished, out: &mut Output) {
        let replies = match self.settings.protocol {
            Protocol::Lmtp => Replies::Each(finished.accepted),
            Protocol::Smtp if finished.prdr && finished.accepted > 1 => Replies::Announced(finished.accepted),
            Protocol::Smtp => Replies::One,
        };
        self.stage = Stage::Settling(Due { from: finished.reverse_path.clone(), replies });
        out.actions.push(Action::Finished(Box::new(finished)));
    }
}
