//! The committed corpora, as they are and changed by chance with a fixed seed: the part of fuzzing that each
//! push has. `POSTERN_FUZZ_ROUNDS` makes it longer.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use postern_fuzz::{Random, TARGETS};

/// How often each input is changed.
const ROUNDS: usize = 300;

/// Longest input.
const LONGEST: usize = 16 << 10;

#[test]
fn corpora_and_what_chance_makes_of_them() {
    let rounds = std::env::var("POSTERN_FUZZ_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    std::thread::scope(|scope| {
        for (name, run) in TARGETS {
            let go = move || {
                let corpus = corpus(name);
                assert!(corpus.len() >= 5, "{name}: {} inputs", corpus.len());
                corpus.iter().for_each(|input| guarded(name, run, input));
                let mut random = Random::new(1);
                for _ in 0..rounds {
                    for n in 0..corpus.len() {
                        guarded(name, run, &changed(&corpus, n, &mut random));
                    }
                }
            };
            scope.spawn(go);
        }
    });
}

/// What it was that panicked is printed, for `postern-fuzz TARGET FILE`.
fn guarded(name: &str, run: fn(&[u8]), input: &[u8]) {
    if std::panic::catch_unwind(|| run(input)).is_err() {
        let escaped: String =
            input.iter().flat_map(|octet| std::ascii::escape_default(*octet)).map(char::from).collect();
        panic!("{name} fails on b\"{escaped}\"");
    }
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut files: Vec<_> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// The n-th input, with some octets flipped, cut out, doubled, or put there from another.
fn changed(corpus: &[Vec<u8>], n: usize, random: &mut Random) -> Vec<u8> {
    let mut input = corpus[n].clone();
    for _ in 0..1 + random.below(6) {
        let at = random.below(input.len() + 1);
        let end = (at + random.below(16)).min(input.len());
        match random.below(6) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 if at < input.len() => input[at] = random.any() as u8,
            2 => drop(input.drain(at..end)),
            3 => {
                let piece = input[at..end].to_vec();
                input.splice(at..at, piece);
            }
            4 => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len() + 1);
                let to = (from + random.below(64)).min(other.len());
                input.splice(at..at, other[from..to].iter().copied());
            }
            _ => input.insert(at, b"\r\n.\0 <>@:=\"\\"[random.below(12)]),
        }
        input.truncate(LONGEST);
    }
    input
}
