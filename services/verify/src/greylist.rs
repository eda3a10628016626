//! Who has come back (RFC 6647)? Mail from a network, a sender, to a recipient not seen together before is
//! to come later; who does is let in from then on. Pure; time is an argument, seconds of the wall clock,
//! since what is known outlives us.
//!
//! What is kept are hashes of 64 bits under a key that nobody outside knows: no address lies on the disk, and
//! nobody can choose one that is taken for another.

use std::collections::HashMap;
use std::net::IpAddr;

use postern_address::{Mailbox, ReversePath};
use postern_config::Greylist as Settings;
use postern_ipc::smtpd_verify::Greylisted;

/// Entries kept at most: about 13 MiB. Beyond it those go first that are of no more use, then the oldest.
pub const ENTRIES_MOST: usize = 400_000;

/// A use is noted anew when the one noted is so old, seconds: not each one needs a record.
const NOTE_AFTER: u32 = 3600;

/// What is known of one triplet, or of one network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its hash.
    pub key: u64,
    /// When it was first seen.
    pub first: u32,
    /// When it was last of use, as far as noted.
    pub last: u32,
    /// Of a triplet: it came back, and how often it was seen since. Of a network: how many came back.
    pub passes: u16,
}

/// Everybody who was seen.
#[derive(Debug)]
pub struct Greylist {
    settings: Times,
    hash: [u64; 2],
    entries: HashMap<u64, Known>,
    most: usize,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    first: u32,
    last: u32,
    passes: u16,
}

/// The settings, in seconds.
#[derive(Clone, Copy, Debug)]
struct Times {
    delay: u32,
    window: u32,
    lifetime: u32,
    auto_allow: u32,
}

impl Greylist {
    /// Nobody was seen; at most `most` will be known. `hash` is the key of the hashes.
    pub fn new(settings: &Settings, hash: [u64; 2], most: usize) -> Self {
        Self { settings: Times::of(settings), hash, entries: HashMap::new(), most: most.max(1) }
    }

    /// Other settings.
    pub fn set(&mut self, settings: &Settings) {
        self.settings = Times::of(settings);
    }

    /// What was known before. Later entries of the same key replace earlier ones.
    pub fn remember(&mut self, entry: Entry) {
        let Entry { key, first, last, passes } = entry;
        if self.entries.len() < self.most || self.entries.contains_key(&key) {
            self.entries.insert(key, Known { first, last, passes });
        }
    }

    /// May this come now? `note` is told what changed, to be kept.
    pub fn ask(
        &mut self,
        client: IpAddr,
        from: &ReversePath,
        to: &Mailbox,
        now: u32,
        mut note: impl FnMut(Entry),
    ) -> Greylisted {
        let network = self.network_key(client);
        let allowed = |known: &Known| self.settings.allows(known, now);
        if self.entries.get(&network).is_some_and(allowed) {
            self.touch(network, now, &mut note);
            return Greylisted::Pass;
        }
        let triplet = self.triplet_key(client, from, to);
        let settings = self.settings;
        match self.entries.get(&triplet).copied().filter(|known| !settings.is_over(known, now)) {
            None => {
                self.make_room(now);
                self.put(triplet, Known { first: now, last: now, passes: 0 }, &mut note);
                Greylisted::Later(settings.delay)
            }
            Some(known) if known.passes > 0 => {
                self.touch(triplet, now, &mut note);
                Greylisted::Pass
            }
            Some(known) => {
                let away = now.saturating_sub(known.first);
                if away < settings.delay {
                    return Greylisted::Later(settings.delay - away);
                }
                self.put(triplet, Known { last: now, passes: 1, ..known }, &mut note);
                if settings.auto_allow > 0 {
                    self.make_room(now);
                    let before = self.entries.get(&network).copied();
                    let before = before.filter(|known| !settings.is_over(known, now));
                    let (first, passes) = before.map_or((now, 0), |known| (known.first, known.passes));
                    let passes = passes.saturating_add(1);
                    self.put(network, Known { first, last: now, passes }, &mut note);
                }
                Greylisted::Returned(away)
            }
        }
    }

    /// All that is of use still.
    pub fn entries(&self, now: u32) -> impl Iterator<Item = Entry> + '_ {
        let of_use = self.entries.iter().filter(move |(_, known)| !self.settings.is_over(known, now));
        of_use.map(|(key, known)| known.entry(*key))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Nobody was seen.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Something was of use.
    fn touch(&mut self, key: u64, now: u32, note: &mut impl FnMut(Entry)) {
        let Some(known) = self.entries.get_mut(&key) else { return };
        if now.saturating_sub(known.last) >= NOTE_AFTER {
            known.last = now;
            note(known.entry(key));
        }
    }

    fn put(&mut self, key: u64, known: Known, note: &mut impl FnMut(Entry)) {
        self.entries.insert(key, known);
        note(known.entry(key));
    }

    /// Makes room for one more: an eighth of all at once, so that it is seldom done.
    fn make_room(&mut self, now: u32) {
        if self.entries.len() < self.most {
            return;
        }
        let settings = self.settings;
        self.entries.retain(|_, known| !settings.is_over(known, now));
        let keep = self.most - (self.most / 8).max(1);
        if self.entries.len() <= keep {
            return;
        }
        // Who came back is worth more than who was seen once.
        let worth = |known: &Known| (known.passes > 0, known.last);
        let mut all: Vec<_> = self.entries.iter().map(|(key, known)| (worth(known), *key)).collect();
        let gone = (all.len() - keep).min(all.len() - 1);
        all.select_nth_unstable(gone);
        for (_, key) in all.iter().take(gone) {
            self.entries.remove(key);
        }
    }

    fn network_key(&self, client: IpAddr) -> u64 {
        let mut text = vec![b'N'];
        push_network(&mut text, client);
        siphash(self.hash, &text)
    }

    fn triplet_key(&self, client: IpAddr, from: &ReversePath, to: &Mailbox) -> u64 {
        let mut text = vec![b'T'];
        push_network(&mut text, client);
        push_sender(&mut text, from.as_str());
        text.push(0);
        text.extend_from_slice(to.as_str().as_bytes());
        siphash(self.hash, &text)
    }
}

impl Times {
    fn of(settings: &Settings) -> Self {
        let seconds = |time: std::time::Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        let Settings { delay, window, lifetime, auto_allow, enabled: _ } = settings;
        let (delay, window, lifetime) = (seconds(*delay), seconds(*window), seconds(*lifetime));
        Self { delay, window, lifetime, auto_allow: *auto_allow }
    }

    /// Of no more use.
    fn is_over(&self, known: &Known, now: u32) -> bool {
        match known.passes {
            0 => now.saturating_sub(known.first) > self.window,
            _ => now.saturating_sub(known.last) > self.lifetime,
        }
    }

    fn allows(&self, network: &Known, now: u32) -> bool {
        self.auto_allow > 0 && u32::from(network.passes) >= self.auto_allow && !self.is_over(network, now)
    }
}

impl Known {
    fn entry(self, key: u64) -> Entry {
        Entry { key, first: self.first, last: self.last, passes: self.passes }
    }
}

/// The /24 or the /64: a sender's hosts take turns.
fn push_network(text: &mut Vec<u8>, client: IpAddr) {
    match client.to_canonical() {
        IpAddr::V4(v4) => {
            text.push(4);
            text.extend_from_slice(&v4.octets()[..3]);
        }
        IpAddr::V6(v6) => {
            text.push(6);
            text.extend_from_slice(&v6.octets()[..8]);
        }
    }
}

/// The sender, with every run of digits as one: mailing lists put counters into theirs (VERP).
fn push_sender(text: &mut Vec<u8>, from: &str) {
    let mut digits = false;
    for octet in from.bytes() {
        let digit = octet.is_ascii_digit();
        if !digit {
            text.push(octet);
        } else if !digits {
            text.push(b'#');
        }
        digits = digit;
    }
}

/// SipHash-2-4 (Aumasson, Bernstein 2012). That of the standard library may change with its release, and what
/// was written must be found again.
fn siphash(key: [u64; 2], text: &[u8]) -> u64 {
    let [k0, k1] = key;
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    let mut take = |word: u64| {
        v[3] ^= word;
        sip_round(&mut v);
        sip_round(&mut v);
        v[0] ^= word;
    };
    let (words, rest) = text.as_chunks::<8>();
    words.iter().for_each(|word| take(u64::from_le_bytes(*word)));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    take(u64::from_le_bytes(last) | (text.len() as u64) << 56);
    v[2] ^= 0xff;
    (0..4).for_each(|_| sip_round(&mut v));
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

fn sip_round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const NOW: u32 = 1_800_000_000;

    fn settings(auto_allow: u32) -> Settings {
        let seconds = Duration::from_secs;
        Settings {
            enabled: true,
            delay: seconds(300),
            window: seconds(7200),
            lifetime: seconds(100_000),
            auto_allow,
        }
    }

    fn greylist(auto_allow: u32) -> Greylist {
        Greylist::new(&settings(auto_allow), [1, 2], 1000)
    }

    fn ask(greylist: &mut Greylist, client: &str, from: &str, to: &str, now: u32) -> Greylisted {
        let (from, to) = (ReversePath::parse(&format!("<{from}>")).unwrap(), Mailbox::parse(to).unwrap());
        greylist.ask(client.parse().unwrap(), &from, &to, now, |_| {})
    }

    #[test]
    fn the_reference_vectors_of_siphash() {
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        let text: Vec<u8> = (0..15).collect();
        assert_eq!(siphash(key, &text), 0xa129_ca61_49be_45e5);
        assert_eq!(siphash(key, b""), 0x726f_db47_dd0e_0e31);
    }

    #[test]
    fn who_comes_back_is_let_in() {
        let mut greylist = greylist(0);
        let mut at = |client: &str, from: &str, now: u32| ask(&mut greylist, client, from, "u@v.test", now);
        assert_eq!(at("192.0.2.1", "a@x.test", NOW), Greylisted::Later(300));
        assert_eq!(at("192.0.2.1", "a@x.test", NOW + 100), Greylisted::Later(200));
        assert_eq!(at("192.0.2.1", "b@x.test", NOW + 100), Greylisted::Later(300), "another sender");
        assert_eq!(at("192.0.3.1", "a@x.test", NOW + 100), Greylisted::Later(300), "another network");
        assert_eq!(at("192.0.2.99", "a@x.test", NOW + 300), Greylisted::Returned(300), "the same network");
        assert_eq!(at("192.0.2.1", "a@x.test", NOW + 301), Greylisted::Pass);
        assert_eq!(at("192.0.2.1", "a@x.test", NOW + 90_000), Greylisted::Pass);
        assert_eq!(at("192.0.2.1", "a@x.test", NOW + 180_000), Greylisted::Pass, "counted from its last use");
        assert_eq!(at("192.0.2.1", "a@x.test", NOW + 290_000), Greylisted::Later(300), "forgotten");
        assert_eq!(at("192.0.3.1", "a@x.test", NOW + 100 + 7201), Greylisted::Later(300), "too late");
        // A clock that was put back: no panic, and nobody passes for it.
        assert_eq!(at("192.0.2.1", "b@x.test", NOW - 1000), Greylisted::Later(300));
    }

    #[test]
    fn counters_in_senders_do_not_matter() {
        let mut greylist = greylist(0);
        ask(&mut greylist, "2001:db8::1", "list-123-u=v.test@x.test", "u@v.test", NOW);
        let again = ask(&mut greylist, "2001:db8::2", "list-4567-u=v.test@x.test", "u@v.test", NOW + 300);
        assert_eq!(again, Greylisted::Returned(300));
        assert_eq!(ask(&mut greylist, "192.0.2.1", "", "u@v.test", NOW), Greylisted::Later(300));
    }

    #[test]
    fn a_network_that_always_comes_back_is_let_in_at_once() {
        let mut greylist = greylist(2);
        for (n, from) in ["a@x.test", "b@x.test"].into_iter().enumerate() {
            assert_eq!(ask(&mut greylist, "192.0.2.1", from, "u@v.test", NOW), Greylisted::Later(300));
            let returned = ask(&mut greylist, "192.0.2.1", from, "u@v.test", NOW + 400);
            assert_eq!(returned, Greylisted::Returned(400), "{n}");
            if n == 0 {
                assert_eq!(
                    ask(&mut greylist, "192.0.2.1", "z@x.test", "u@v.test", NOW),
                    Greylisted::Later(300)
                );
            }
        }
        assert_eq!(ask(&mut greylist, "192.0.2.8", "new@x.test", "u@v.test", NOW + 500), Greylisted::Pass);
        assert_eq!(
            ask(&mut greylist, "192.0.9.8", "new@x.test", "u@v.test", NOW + 500),
            Greylisted::Later(300)
        );
    }

    #[test]
    fn it_is_bounded_and_keeps_who_came_back() {
        let mut greylist = Greylist::new(&settings(0), [3, 4], 80);
        for n in 0..10 {
            ask(&mut greylist, "192.0.2.1", &format!("{}@x.test", letters(n)), "u@v.test", NOW);
            ask(&mut greylist, "192.0.2.1", &format!("{}@x.test", letters(n)), "u@v.test", NOW + 300);
        }
        for n in 0..1000 {
            let from = format!("{}@y.test", letters(n));
            ask(&mut greylist, "192.0.2.1", &from, "u@v.test", NOW + 301 + n);
            assert!(greylist.len() <= 80);
        }
        for n in 0..10 {
            let from = format!("{}@x.test", letters(n));
            assert_eq!(ask(&mut greylist, "192.0.2.1", &from, "u@v.test", NOW + 1400), Greylisted::Pass);
        }
    }

    /// Digits in senders are all one, so numbers in letters.
    fn letters(n: u32) -> String {
        n.to_string().bytes().map(|digit| char::from(digit - b'0' + b'a')).collect()
    }

    proptest! {
        /// Nobody is let in before `delay`; and one who remembers all that was noted says the same.
        #[test]
        fn notes_are_the_whole_truth(
            steps in proptest::collection::vec((0..3u8, 0..4u32, 0..600u32), 0..120),
            auto_allow in 0..3u32,
        ) {
            let mut greylist = greylist(auto_allow);
            let (mut now, mut notes) = (NOW, Vec::new());
            let mut first: HashMap<(u8, u32), u32> = HashMap::new();
            for (client, sender, pause) in steps {
                now += pause;
                let address = IpAddr::from([192, 0, client, 1]);
                let from = ReversePath::parse(&format!("<{}@x.test>", letters(sender))).unwrap();
                let to = Mailbox::parse("u@v.test").unwrap();
                let mut copy = Greylist::new(&settings(auto_allow), [1, 2], 1000);
                notes.iter().for_each(|entry| copy.remember(*entry));
                let expected = copy.ask(address, &from, &to, now, |_| {});
                let said = greylist.ask(address, &from, &to, now, |entry| notes.push(entry));
                prop_assert_eq!(said, expected);
                let seen = *first.entry((client, sender)).or_insert(now);
                match said {
                    Greylisted::Returned(away) => prop_assert!(away >= 300 && now - seen >= 300),
                    Greylisted::Later(wait) => prop_assert!(wait > 0 && wait <= 300),
                    Greylisted::Pass => {}
                }
            }
        }
    }
}
