//! Postern beside Debian's Postfix, as strict as it can be told to be.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postern_conformance::Reply;
use postern_differential::{Dialogue, Difference, Generator, Known, Said, Turn, compare, parse, play};
use postern_tests::{Postfix, System, have, have_root, maildir, until};

const PATIENCE: Duration = Duration::from_secs(120);

/// Messages by mark: to whom, and what.
type Delivered = BTreeMap<String, Vec<(String, Vec<u8>)>>;

#[test]
fn the_corpus() {
    let Some(pair) = Pair::start() else { return };
    let corpus = corpus();
    assert!(corpus.len() >= 60, "{} dialogues", corpus.len());
    let known = known();
    let used = pair.judge(&corpus, &known);
    let unused = known.unused(&used);
    assert!(unused.is_empty(), "listed differences that the corpus does not show:\n{}", unused.join("\n"));
}

#[test]
fn generated() {
    let Some(pair) = Pair::start() else { return };
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse().unwrap());
    let seed = number("POSTERN_SEED").unwrap_or(1);
    let mut generator = Generator::new(seed, pair.both_offer("CHUNKING"));
    let dialogues: Vec<_> =
        (0..number("POSTERN_DIALOGUES").unwrap_or(150)).map(|_| generator.dialogue()).collect();
    pair.judge(&dialogues, &known());
}

/// Both systems.
struct Pair {
    postern: System,
    postfix: Postfix,
}

impl Pair {
    fn start() -> Option<Self> {
        if !have_root() || !have(&["postfix"]) {
            return None;
        }
        let postern = System::builder()
            .users(&["u1@v.test", "u2@v.test", "postmaster@v.test"])
            .set("smtp", "errors", "1000")
            .set("smtp", "message-size", "\"10 MiB\"")
            .start();
        Some(Self { postern, postfix: Postfix::start("reject", false) })
    }

    fn both_offer(&self, keyword: &str) -> bool {
        [self.postern.address(), self.postfix.address()].iter().all(|at| offers(*at).offer(keyword).is_some())
    }

    /// Plays dialogues to both. Panics over differences that are not known; returns the known ones that were
    /// seen.
    fn judge(&self, dialogues: &[Dialogue], known: &Known) -> BTreeSet<usize> {
        let play_all = |at: SocketAddr| dialogues.iter().map(|d| play(d, at).unwrap()).collect::<Vec<_>>();
        let (ours, theirs) = std::thread::scope(|scope| {
            let ours = scope.spawn(|| play_all(self.postern.address()));
            let theirs = scope.spawn(|| play_all(self.postfix.address()));
            (ours.join().unwrap(), theirs.join().unwrap())
        });
        self.postern.wait_empty(PATIENCE);
        until("Postfix's queue is empty", PATIENCE, || self.postfix.is_empty().then_some(()));
        let our_mail = delivered(&self.postern.directory().join("mail/v.test"));
        let their_mail = delivered(&self.postfix.mail());
        let (mut used, mut unknown) = (BTreeSet::new(), Vec::new());
        let mut compared_messages = 0;
        for ((dialogue, ours), theirs) in dialogues.iter().zip(&ours).zip(&theirs) {
            let compared = compare(dialogue, ours, theirs);
            let mut all = compared.differences;
            for (n, turn) in dialogue.turns.iter().enumerate() {
                let later = |m: &usize| *m >= n && matches!(turn, Turn::Chunk(..));
                if compared.apart.contains(&n) || compared.apart.iter().any(later) {
                    continue;
                }
                let mark = format!("{}{n}", dialogue.mark());
                let (a, b) = (our_mail.get(&mark), their_mail.get(&mark));
                compared_messages += usize::from(a.is_some());
                // What only one of them delivered is a difference as well, since both took it.
                if a != b {
                    all.push(Difference {
                        dialogue: dialogue.name.clone(),
                        command: "(delivered)".into(),
                        ours: shown(a),
                        theirs: shown(b),
                    });
                }
            }
            for difference in all {
                match known.covers(&difference) {
                    Some(rule) => drop(used.insert(rule)),
                    None => unknown.push(format!("{difference}\n{}", transcript(dialogue, ours, theirs))),
                }
            }
        }
        assert!(unknown.is_empty(), "{} differences are not listed:\n{}", unknown.len(), unknown.join("\n"));
        assert!(
            compared_messages * 4 > dialogues.len(),
            "only {compared_messages} messages could be compared"
        );
        used
    }
}

/// A dialogue as both heard it, to see how they came to differ.
fn transcript(dialogue: &Dialogue, ours: &[Said], theirs: &[Said]) -> String {
    let codes = |said: Option<&Said>| {
        let replies = said.map(|said| &said.replies[..]).unwrap_or_default();
        replies.iter().map(|reply| reply.code.to_string()).collect::<Vec<_>>().join(" ")
    };
    let line = |(n, turn): (usize, &Turn)| {
        format!("        {turn}   [{} | {}]", codes(ours.get(n + 1)), codes(theirs.get(n + 1)))
    };
    dialogue.turns.iter().enumerate().map(line).collect::<Vec<_>>().join("\n")
}

fn offers(at: SocketAddr) -> Reply {
    let ehlo = Dialogue { name: "ehlo".into(), turns: vec![Turn::Command(b"EHLO client.test".to_vec())] };
    play(&ehlo, at).unwrap().remove(1).replies.remove(0)
}

/// Every message in the Maildirs, from its mark on; lines end with LF in both.
fn delivered(mail: &Path) -> Delivered {
    let mut all = Delivered::new();
    for user in ["u1", "u2", "postmaster"] {
        for message in maildir(&mail.join(user)) {
            let starts = |at: &usize| message.bytes[*at..].starts_with(b"X-Mark: ");
            let Some(at) = (0..message.bytes.len()).find(starts) else { continue };
            let content = message.bytes[at..].to_vec();
            let line = content.split(|octet| *octet == b'\n').next().unwrap();
            let mark = String::from_utf8_lossy(&line[b"X-Mark: ".len()..]).into_owned();
            all.entry(mark).or_default().push((user.to_owned(), content));
        }
    }
    // How often somebody gets a message who is written in two ways is not compared.
    all.values_mut().for_each(|messages| {
        messages.sort();
        messages.dedup();
    });
    all
}

fn shown(messages: Option<&Vec<(String, Vec<u8>)>>) -> String {
    let one = |(user, content): &(String, Vec<u8>)| format!("{user}: {}", content.escape_ascii());
    messages.map_or("nothing".into(), |all| all.iter().map(one).collect::<Vec<_>>().join("; "))
}

fn corpus() -> Vec<Dialogue> {
    let place = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut files: Vec<_> = std::fs::read_dir(place).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let read = |file: &PathBuf| {
        parse(&std::fs::read_to_string(file).unwrap()).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
    };
    files.iter().flat_map(read).collect()
}

fn known() -> Known {
    Known::read(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("differences.toml")).unwrap()
}
