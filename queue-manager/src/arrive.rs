//! What comes in, taken: from `new/`, from `drop/`, and from `cur/` at the start.

use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

use postern_daemon::Host;
use postern_event::{Event, Level};
use postern_spool::{QueueId, ReadError, WriteError};

use crate::copier;
use crate::intake::{self, Found, FoundMessage, Recovery};
use crate::pickup::{self, Pickup, Refusal};
use crate::queue::{QueueManager, Writing, damage};
use crate::scheduler::{Place, Standing};

/// One kind of intake has the loop for so long before others have their turn.
const SLICE: Duration = Duration::from_millis(5);
/// Messages of local programs with the writer at once.
const PICKUPS_MAX: usize = 64;

impl QueueManager {
    /// Takes files of `new/`. True when there are more.
    pub(crate) fn take_in(&mut self, host: &mut Host) -> bool {
        let begun = Instant::now();
        while let Some(file) = self.incoming.pop_front() {
            self.take_file(host, file);
            if begun.elapsed() >= SLICE {
                return !self.incoming.is_empty();
            }
        }
        false
    }

    fn take_file(&mut self, host: &mut Host, file: QueueId) {
        let name = file.to_string();
        let cur = self.store.directory().as_fd();
        match postern_spool::rename_between(self.new.as_fd(), &name, cur, &name) {
            Ok(()) => {}
            // Told twice, by the kernel and by a scan.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let why = "a file of this name is in the queue already";
                return match postern_spool::set_aside(self.new.as_fd(), &name, self.corrupt.as_fd()) {
                    Ok(file) => host.emit(&Event::Corrupt { file: &file, why }),
                    Err(error) => self.trouble(host, &format!("new/{name}"), &error.to_string()),
                };
            }
            Err(error) => return self.trouble(host, &format!("new/{name}"), &error.to_string()),
        }
        self.troubles.forget(&format!("new/{name}"));
        if self.recovery.is_some() {
            self.taken.insert(file);
        }
        let opened = self.store.get(file).map(|opened| {
            let messages = intake::read(opened);
            let seen = opened.messages().iter().map(|stored| {
                let envelope = &stored.envelope;
                let size = stored.prepend.len() as u64 + stored.length;
                (envelope.reverse_path.clone(), size, envelope.recipients.len())
            });
            (messages, seen.collect::<Vec<_>>())
        });
        match opened {
            Ok((messages, seen)) => {
                for (message, (from, size, nrcpt)) in messages.iter().zip(&seen) {
                    host.emit(&Event::Active { id: message.id, from, size: *size, nrcpt: *nrcpt });
                }
                self.adopt(host, file, messages, true);
            }
            Err(error) => match damage(&error) {
                Some(why) => self.set_aside(host, file, why),
                None => self.put_back(host, &name, &error),
            },
        }
    }

    /// A file that cannot be read now goes back, for the next scan.
    fn put_back(&mut self, host: &mut Host, name: &str, error: &ReadError) {
        let cur = self.store.directory().as_fd();
        let back = postern_spool::rename_between(cur, name, self.new.as_fd(), name);
        let back =
            back.map_or_else(|e| format!("; it stays in cur/ until the next start: {e}"), |()| String::new());
        self.trouble(host, &format!("new/{name}"), &format!("cannot be read: {error}{back}"));
    }

    fn trouble(&mut self, host: &mut Host, file: &str, why: &str) {
        if self.troubles.is_news(file, why) {
            host.note(Level::Error, &format!("{file} in the spool: {why}"));
        }
    }

    /// Puts the messages of a file into the schedule.
    fn adopt(&mut self, host: &mut Host, file: QueueId, messages: Vec<FoundMessage>, new: bool) {
        self.store.adopt(file, messages.len() as u16);
        for message in messages {
            let FoundMessage { id, number, finished, arrival, was_deferred, until, held, .. } = message;
            let FoundMessage { not_before, summary, .. } = message;
            let place = Place { file, number };
            if finished {
                self.remove_finished(host, id, place, true);
                continue;
            }
            let scheduled = not_before.filter(|at| *at > host.wall());
            let waits = match scheduled {
                _ if held => Standing::Held,
                Some(until) => Standing::Scheduled(until),
                None => Standing::Deferred(until),
            };
            let known = if new && !was_deferred && !held && scheduled.is_none() {
                !self.scheduler.arrive(id, place, summary)
            } else {
                let begun = arrival.max(not_before.unwrap_or_default());
                let elapsed = until.0.saturating_sub(begun.0);
                let attempts = if was_deferred { attempts(elapsed, &self.config.limits) } else { 0 };
                !self.scheduler.recover(id, place, summary, attempts, waits)
            };
            if known {
                // Ids are unique; whoever copied a file by hand gets it delivered once.
                let why = format!("{id} is in the queue already, in another file");
                host.note(Level::Error, &format!("message {number} of {file}: {why}"));
                self.remove_finished(host, id, place, false);
            }
        }
    }

    fn remove_finished(&mut self, host: &mut Host, id: QueueId, place: Place, recorded: bool) {
        if let Err(error) = self.store.finish(place.file, place.number, recorded) {
            let text =
                format!("{id}: finished, but its file cannot be removed from the spool's cur/: {error}");
            host.note(Level::Error, &text);
            self.store.remove_later(place.file, id);
        }
    }

    /// Takes what recovery has read. True when there is more.
    pub(crate) fn hear_recovery(&mut self, host: &mut Host) -> bool {
        let begun = Instant::now();
        while let Some(recovery) = &self.recovery {
            match recovery.try_recv() {
                Ok(Recovery::Found(found)) => self.recover_file(host, found),
                Ok(Recovery::Failed(error)) => {
                    let text = format!("cannot list cur/ of the spool, old mail waits: {error}");
                    host.note(Level::Error, &text);
                }
                Ok(Recovery::Done { swept, milliseconds }) => {
                    let (files, messages) = self.recovered;
                    host.emit(&Event::Recovered { files, messages, swept, milliseconds });
                    self.recovery = None;
                    self.taken.clear();
                    self.taken.shrink_to_fit();
                }
                Err(TryRecvError::Empty) => return false,
                Err(TryRecvError::Disconnected) => {
                    self.recovery = None;
                    self.taken.clear();
                }
            }
            if begun.elapsed() >= SLICE {
                return true;
            }
        }
        false
    }

    fn recover_file(&mut self, host: &mut Host, found: Found) {
        let Found { file, messages } = found;
        if self.taken.contains(&file) || self.store.knows(file) {
            return;
        }
        match messages {
            Ok(messages) => {
                self.recovered.0 += 1;
                self.recovered.1 += messages.iter().filter(|message| !message.finished).count() as u64;
                self.adopt(host, file, messages, false);
            }
            Err(error) => match damage(&error) {
                Some(why) => self.set_aside(host, file, why),
                None => self.trouble(host, &format!("cur/{file}"), &format!("cannot be read: {error}")),
            },
        }
    }

    /// Takes mail of local programs. True when there is more to do at once.
    pub(crate) fn pick_up(&mut self, host: &mut Host) -> bool {
        if let Some((name, copied)) = self.copier.finished() {
            self.copied(host, name, copied);
        }
        self.stream_on(host);
        self.copy_next(host);
        let begun = Instant::now();
        while self.picking.len() < PICKUPS_MAX {
            let Some(name) = self.dropped.pop_front() else { return false };
            if !self.picking.contains(&name) && !self.large.contains(&name) {
                match copier::is_large(&self.drop, name) {
                    true => {
                        self.large.push_back(name);
                        self.copy_next(host);
                    }
                    false => self.pick_up_one(host, name),
                }
            }
            if begun.elapsed() >= SLICE {
                return !self.dropped.is_empty();
            }
        }
        false // The writer's next word goes on.
    }

    /// Has the next large message copied, when the one before is in the spool.
    fn copy_next(&mut self, host: &mut Host) {
        if self.streaming.is_some() || self.copier.busy().is_some() {
            return;
        }
        let Some(name) = self.large.pop_front() else { return };
        self.picking.insert(name);
        let (id, now) = (self.next_id(), host.wall());
        let (hostname, message_size) = (self.config.hostname.as_str().to_owned(), self.config.message_size);
        self.copier.begin(copier::Request { name, id, hostname, message_size, now });
    }

    fn copied(&mut self, host: &mut Host, name: QueueId, copied: Result<Pickup, Refusal>) {
        match copied {
            Ok(pickup) => self.hand_over(host, pickup),
            Err(refusal) => {
                self.picking.remove(&name);
                self.refused(host, name, &refusal);
            }
        }
    }

    fn pick_up_one(&mut self, host: &mut Host, name: QueueId) {
        let id = self.next_id();
        let (cur, hostname) = (self.store.directory().as_fd(), self.config.hostname.as_str());
        let (drop, size) = (self.drop.as_fd(), self.config.message_size);
        match pickup::open(drop, cur, name, id, hostname, size, host.wall()) {
            // It grew after it was looked at: there may be another on its way already.
            Ok(pickup) if pickup.is_large() && (self.streaming.is_some() || self.copier.busy().is_some()) => {
                self.large.push_back(name);
            }
            Ok(pickup) => self.hand_over(host, pickup),
            Err(refusal) => self.refused(host, name, &refusal),
        }
    }

    /// Gives a message that is ours to the writer.
    fn hand_over(&mut self, host: &mut Host, mut pickup: Pickup) {
        let name = pickup.name;
        self.last_write += 1;
        let token = self.last_write;
        if pickup.is_large() {
            pickup.open_stream(&mut self.writer, token);
            self.streaming = Some(token);
        } else if let Err(refusal) = pickup.submit(&mut self.writer, token) {
            self.picking.remove(&name);
            return self.refused(host, name, &refusal);
        }
        self.picking.insert(name);
        self.writing.insert(token, Writing::Pickup(Box::new(pickup)));
        self.stream_on(host);
    }

    /// Hands over more of the large message that is under way.
    fn stream_on(&mut self, host: &mut Host) {
        let Some(token) = self.streaming else { return };
        let Some(Writing::Pickup(pickup)) = self.writing.get_mut(&token) else {
            self.streaming = None;
            return;
        };
        match pickup.stream(&mut self.writer, token) {
            Ok(false) => {}
            Ok(true) => self.streaming = None,
            Err(refusal) => {
                let name = pickup.name;
                self.give_up_streaming();
                self.refused(host, name, &refusal);
            }
        }
    }

    /// The large message that is under way stays in `drop/`.
    pub(crate) fn give_up_streaming(&mut self) {
        if let Some(token) = self.streaming.take() {
            self.writer.abort_stream(token);
            if let Some(Writing::Pickup(pickup)) = self.writing.remove(&token) {
                self.picking.remove(&pickup.name);
            }
        }
    }

    fn refused(&mut self, host: &mut Host, name: QueueId, refusal: &Refusal) {
        let file = format!("drop/{name}");
        match refusal {
            Refusal::Gone => {}
            Refusal::Later(error) => self.trouble(host, &file, &error.to_string()),
            Refusal::Unfit(why) => {
                match pickup::refuse(self.drop.as_fd(), &name.to_string(), self.corrupt.as_fd()) {
                    Ok(done) => host.emit(&Event::Corrupt { file: &file, why: &format!("{why}: {done}") }),
                    Err(error) => {
                        self.trouble(host, &file, &format!("{why}, and it cannot be set aside: {error}"));
                    }
                }
            }
        }
    }

    /// A message of a local program is in the spool, or is not.
    pub(crate) fn picked_up(
        &mut self,
        host: &mut Host,
        token: u64,
        pickup: &Pickup,
        result: Result<(), WriteError>,
    ) {
        if self.streaming == Some(token) {
            self.streaming = None; // It failed before its end.
        }
        let name = pickup.name;
        self.picking.remove(&name);
        match result {
            Ok(()) => {
                host.emit(&Event::PickedUp { id: pickup.id, uid: pickup.uid, from: pickup.reverse_path() });
                self.troubles.forget(&format!("drop/{name}"));
                // Left there it would be sent again.
                self.store.taken_from_drop();
                if let Err(error) = pickup::taken(&self.drop, name) {
                    let text = format!("cannot be removed though it was taken: {error}");
                    self.trouble(host, &format!("drop/{name}"), &text);
                }
            }
            Err(error) => {
                self.trouble(host, &format!("drop/{name}"), &format!("waits, cannot be taken now: {error}"));
            }
        }
    }
}

/// How many attempts a message had that is due so long after its arrival: the delays double, so that they
/// sum up to the first one times 2^n - 1. (The log keeps the last deferral alone.)
fn attempts(elapsed: u64, limits: &postern_config::QueueLimits) -> u8 {
    let first = u64::try_from(limits.retry_first.as_millis()).unwrap_or(u64::MAX).max(1);
    (elapsed / first).saturating_add(1).ilog2().clamp(1, 40) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_by_age() {
        let limits = postern_config::QueueLimits {
            lifetime: Duration::from_secs(1000),
            bounce_lifetime: Duration::from_secs(1000),
            delay_warning: None,
            retry_first: Duration::from_millis(10),
            retry_most: Duration::from_secs(10),
        };
        let attempts = [0, 11, 35, 80, 160, u64::MAX].map(|elapsed| attempts(elapsed, &limits));
        assert_eq!(attempts, [1, 1, 2, 3, 4, 40]);
    }
}
