//! What an operator asks, and the answers: frames on the connection that came with the question, no faster
//! than it is read.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use mio::Token;
use postern_daemon::Host;
use postern_ipc::Link;
use postern_ipc::control::{MessageDetail, MessageState, MessageSummary, Reply};
use postern_smtp::parameters::RcptParameters;
use postern_spool::{DoneStatus, Options, QueueId, ReadError, Stored};

use crate::content;
use crate::replay::Replay;
use crate::scheduler::{Place, Scheduler, Standing};
use crate::store::Store;

/// Recipients in one line of the list.
const LISTED_RECIPIENTS: usize = 20;
/// Longest reason in the list.
const REASON_MAX: usize = 200;
/// Octets of one frame of the list, estimated before encoding: far below the frame's limit.
const FRAME_AIM: usize = 24 * 1024;
/// Messages in one frame, each of which is read from its file.
const FRAME_MESSAGES: usize = 64;
/// Octets of the header section that are shown.
const HEADER_SHOWN: usize = 16 * 1024;
/// Octets of what was said of recipients that are shown.
const OPTIONS_SHOWN: usize = 8 * 1024;
/// Octets of recipients that are shown.
const RECIPIENTS_SHOWN: usize = 24 * 1024;
/// Connections at once.
const CONNECTIONS_MAX: usize = 64;

/// The connections of operators.
#[derive(Debug, Default)]
pub(crate) struct Operators {
    conversations: HashMap<Token, Conversation>,
}

#[derive(Debug)]
struct Conversation {
    link: Link<Reply, ()>,
    /// The list goes on behind this message.
    listing: Option<Option<QueueId>>,
}

impl Operators {
    /// Answers with these, then the end.
    pub(crate) fn answer(&mut self, host: &mut Host, connection: OwnedFd, replies: Vec<Reply>) {
        if let Some(token) = self.open(host, connection, None)
            && let Some(conversation) = self.conversations.get_mut(&token)
        {
            let said =
                replies.iter().chain([&Reply::End]).try_for_each(|reply| conversation.link.send(reply));
            if said.is_err() || !conversation.link.wants_write() {
                self.close(host, token);
            }
        }
    }

    /// Lists the whole queue, as fast as it is read.
    pub(crate) fn list(&mut self, host: &mut Host, connection: OwnedFd) {
        self.open(host, connection, Some(None));
    }

    /// An event of one of the connections. False when it is none of ours.
    pub(crate) fn ready(&mut self, host: &mut Host, token: Token) -> bool {
        let Some(conversation) = self.conversations.get_mut(&token) else { return false };
        let alive = conversation.link.flush().is_ok()
            && match conversation.link.receive() {
                Ok(None) => true,
                // One question a connection: whatever else is said ends it.
                Ok(Some(_)) | Err(_) => false,
            };
        if !alive || (conversation.listing.is_none() && !conversation.link.wants_write()) {
            self.close(host, token);
        }
        true
    }

    /// Says more on each list. True when it would go on at once.
    pub(crate) fn turn(&mut self, host: &mut Host, scheduler: &Scheduler, store: &mut Store) -> bool {
        let mut more = false;
        let tokens: Vec<Token> = self.conversations.keys().copied().collect();
        for token in tokens {
            let Some(conversation) = self.conversations.get_mut(&token) else { continue };
            let Some(after) = conversation.listing.filter(|_| !conversation.link.wants_write()) else {
                continue;
            };
            let (summaries, last) = frame(scheduler, store, after);
            let ended = last.is_none();
            conversation.listing = last.map(Some);
            let mut said = Ok(());
            if !summaries.is_empty() {
                said = conversation.link.send(&Reply::Messages(summaries));
            }
            if ended && said.is_ok() {
                said = conversation.link.send(&Reply::End);
            }
            let waits = conversation.link.wants_write();
            if said.is_err() || (ended && !waits) {
                self.close(host, token);
            } else {
                more |= !ended && !waits;
            }
        }
        more
    }

    fn open(
        &mut self,
        host: &mut Host,
        connection: OwnedFd,
        listing: Option<Option<QueueId>>,
    ) -> Option<Token> {
        if self.conversations.len() >= CONNECTIONS_MAX {
            return None;
        }
        let (link, token) = (Link::new(connection), host.token());
        host.watch(&link, token).ok()?;
        self.conversations.insert(token, Conversation { link, listing });
        Some(token)
    }

    fn close(&mut self, host: &mut Host, token: Token) {
        if let Some(conversation) = self.conversations.remove(&token) {
            host.unwatch(&conversation.link);
        }
    }
}

/// The next messages behind `after`, and where the frame behind them begins: none at the end.
fn frame(
    scheduler: &Scheduler,
    store: &mut Store,
    after: Option<QueueId>,
) -> (Vec<MessageSummary>, Option<QueueId>) {
    let (mut summaries, mut size) = (Vec::new(), 0);
    for (n, (id, place, standing)) in scheduler.list(after).enumerate() {
        // A file that cannot be read is in the log of events; the list goes on.
        if let Ok((summary, _)) = summary(store, id, place, standing) {
            let recipients = summary.recipients.iter();
            size += 100 + summary.reverse_path.as_str().len();
            size += recipients
                .map(|(r, why)| 12 + r.as_str().len() + why.as_ref().map_or(0, String::len))
                .sum::<usize>();
            summaries.push(summary);
        }
        if size >= FRAME_AIM || n + 1 >= FRAME_MESSAGES {
            return (summaries, Some(id));
        }
    }
    (summaries, None)
}

fn summary(
    store: &mut Store,
    id: QueueId,
    place: Place,
    standing: Standing,
) -> Result<(MessageSummary, Replay), ReadError> {
    let unwritten = store.unwritten(place.file).to_vec();
    let file = store.get(place.file)?;
    let stored = stored(file.messages(), place)?;
    let replay = Replay::new(file.log().iter().chain(&unwritten), place.number, stored);
    let why = |n: u32| replay.why(n).map(|why| why.chars().take(REASON_MAX).collect());
    let unfinished = replay.unfinished(stored);
    let summary = MessageSummary {
        id,
        state: match standing {
            Standing::Active => MessageState::Active,
            Standing::Scheduled(until) => MessageState::Scheduled(until),
            Standing::Deferred(until) => MessageState::Deferred(until),
            Standing::Held => MessageState::Held,
        },
        arrival: stored.envelope.arrival,
        size: stored.prepend.len() as u64 + stored.length,
        reverse_path: stored.envelope.reverse_path.clone(),
        recipient_count: replay.unfinished(stored).count() as u32,
        recipients: unfinished.take(LISTED_RECIPIENTS).map(|(n, r)| (r.clone(), why(n))).collect(),
    };
    Ok((summary, replay))
}

/// The options without what was said of recipients that are not shown, nor more of it than a frame has room
/// for.
fn shown_options(options: &Options, shown: usize) -> Options {
    let mut room = OPTIONS_SHOWN;
    let fits = |(n, said): &&(u32, RcptParameters)| {
        let orcpt = said.orcpt.as_ref().map_or(0, |orcpt| orcpt.kind.len() + orcpt.address.len());
        room = room.saturating_sub(20 + orcpt);
        room > 0 && (*n as usize) < shown
    };
    Options { recipients: options.recipients.iter().take_while(fits).cloned().collect(), ..options.clone() }
}

fn stored(messages: &[Stored], place: Place) -> Result<&Stored, ReadError> {
    messages.get(usize::from(place.number)).ok_or_else(|| ReadError::Corrupt("no such message".into()))
}

/// One message, whole but for its body.
pub(crate) fn detail(
    store: &mut Store,
    id: QueueId,
    place: Place,
    standing: Standing,
) -> Result<MessageDetail, ReadError> {
    let (mut summary, replay) = summary(store, id, place, standing)?;
    summary.recipients.clear();
    let file = store.get(place.file)?;
    let (mut header, _) = content::beginning(file, place.number, HEADER_SHOWN)?;
    header.truncate(postern_message::body_offset(&header).min(HEADER_SHOWN));
    let envelope = &stored(file.messages(), place)?.envelope;
    let (mut recipients, mut size) = (Vec::new(), 0);
    for (n, recipient) in (0u32..).zip(&envelope.recipients) {
        let words: String = match (replay.finished.get(&n), replay.why(n)) {
            (Some(DoneStatus::Delivered), _) => "delivered".into(),
            (Some(DoneStatus::Failed), _) => "failed and reported".into(),
            (Some(DoneStatus::Removed), _) => "removed".into(),
            (None, Some(why)) => {
                format!("deferred: {}", why.chars().take(REASON_MAX).collect::<String>())
            }
            (None, None) => "waiting".into(),
        };
        size += 20 + recipient.as_str().len() + words.len();
        if size > RECIPIENTS_SHOWN {
            break; // The summary says how many there are.
        }
        recipients.push((recipient.clone(), words));
    }
    let options = shown_options(&envelope.options, recipients.len());
    Ok(MessageDetail { summary, recipients, header, body: envelope.body, options })
}
