//! The greylist with its file: what is known is asked in memory, and what changes is written at the end of the
//! turn.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use postern_address::{Mailbox, ReversePath};
use postern_config::Greylist as Settings;
use postern_daemon::Host;
use postern_event::Level;
use postern_ipc::smtpd_verify::Greylisted;
use postern_spool::Timestamp;

use crate::greylist::{ENTRIES_MOST, Greylist};
use crate::store::{Found, Store};

/// Who was seen.
#[derive(Debug)]
pub(crate) struct Seen {
    settings: Settings,
    greylist: Greylist,
    store: Option<Store>,
    /// The last write failed, and it was told.
    failing: bool,
}

impl Seen {
    /// Nobody was seen, and nothing is kept.
    pub(crate) fn new(settings: Settings) -> Self {
        let greylist = Greylist::new(&settings, fresh_key(), ENTRIES_MOST);
        Self { settings, greylist, store: None, failing: false }
    }

    /// Remembers what is in this directory, and keeps it there from now on.
    pub(crate) fn open(&mut self, host: &mut Host, directory: OwnedFd) {
        let (store, found) = match Store::open(directory, fresh_key()) {
            Ok(opened) => opened,
            Err(error) => {
                let text = format!("the greylist cannot be opened, and is kept in memory alone: {error}");
                return host.note(Level::Error, &text);
            }
        };
        let Found { entries, damaged, set_aside } = found;
        if let Some(why) = set_aside {
            let text = format!("the greylist's file is set aside as greylist.damaged: {why}");
            host.note(Level::Error, &text);
        }
        if damaged > 0 {
            let text = format!("the greylist's file has {damaged} damaged records, which are passed over");
            host.note(Level::Warning, &text);
        }
        self.greylist = Greylist::new(&self.settings, store.hash, ENTRIES_MOST);
        entries.into_iter().for_each(|entry| self.greylist.remember(entry));
        self.store = Some(store);
    }

    /// Other settings.
    pub(crate) fn set(&mut self, settings: Settings) {
        self.greylist.set(&settings);
        self.settings = settings;
    }

    /// May this come now?
    pub(crate) fn ask(
        &mut self,
        client: IpAddr,
        from: &ReversePath,
        to: &Mailbox,
        now: Timestamp,
    ) -> Greylisted {
        if !self.settings.enabled {
            return Greylisted::Pass;
        }
        let store = &mut self.store;
        self.greylist.ask(client, from, to, seconds(now), |entry| {
            if let Some(store) = store {
                store.note(entry);
            }
        })
    }

    /// Writes what changed, and the whole file anew when most of it is old.
    pub(crate) fn write(&mut self, host: &mut Host) {
        let Some(store) = &mut self.store else { return };
        let mut outcome = store.write();
        if let Some(rewritten) = store.rewritten() {
            outcome = outcome.and(rewritten);
        }
        if store.wants_rewrite(self.greylist.len()) {
            let waker = host.waker();
            // A loop that is not woken takes the new file at its next turn.
            let wake = move || drop(waker.wake());
            outcome = outcome.and(store.rewrite(self.greylist.entries(seconds(host.wall())), wake));
        }
        match outcome {
            Ok(()) => self.failing = false,
            Err(_) if self.failing => {}
            Err(error) => {
                self.failing = true;
                host.note(Level::Error, &format!("the greylist cannot be written: {error}"));
            }
        }
    }

    /// How many are known.
    pub(crate) fn len(&self) -> usize {
        self.greylist.len()
    }
}

fn seconds(at: Timestamp) -> u32 {
    u32::try_from(at.0 / 1000).unwrap_or(u32::MAX)
}

/// The standard library's keys come from the kernel.
fn fresh_key() -> [u64; 2] {
    use std::hash::{BuildHasher, RandomState};
    [RandomState::new().hash_one(0_u8), RandomState::new().hash_one(1_u8)]
}
