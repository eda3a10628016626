//! The file of users: a name, a colon and a password hash on each line. Pure.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use sha_crypt::{PasswordHash, PasswordVerifier, ShaCrypt};

/// Rounds that sha-crypt does when a hash does not say.
const USUAL_ROUNDS: u32 = 5_000;

/// Most rounds taken: about half a second. One line must not be able to stop everybody's AUTH.
const ROUNDS_MOST: u32 = 1_000_000;

/// Longest password that is hashed, octets. The work grows with it, and the client chooses it.
pub const PASSWORD_MOST: usize = 256;

/// Everybody who can authenticate.
#[derive(Clone, Debug)]
pub struct Users {
    hashes: HashMap<String, Arc<Hash>>,
    decoy: Arc<Hash>,
}

/// A password hash of a kind that we verify: `$5$` (SHA-256) or `$6$` (SHA-512) of crypt(5).
#[derive(Clone, PartialEq, Eq)]
pub struct Hash {
    text: String,
    cost: u32,
}

/// A line that was not taken, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// Counted from 1.
    pub line: usize,
    /// In words; never the hash.
    pub why: String,
}

impl Users {
    /// Nobody.
    pub fn none() -> Self {
        Self { hashes: HashMap::new(), decoy: Arc::new(Hash::decoy(None)) }
    }

    /// Reads the text of a file. `#` begins a comment line. What follows a second colon is not ours and
    /// is ignored, so a shadow(5) or a Dovecot passwd-file can be used as it is.
    pub fn parse(text: &str) -> (Self, Vec<Complaint>) {
        let (mut hashes, mut complaints) = (HashMap::new(), Vec::new());
        for (n, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Err(why) = take(line, &mut hashes) {
                complaints.push(Complaint { line: n + 1, why });
            }
        }
        let costliest = hashes.values().max_by_key(|hash| hash.cost);
        let decoy = Arc::new(Hash::decoy(costliest.map(Arc::as_ref)));
        (Self { hashes, decoy }, complaints)
    }

    /// The hash to verify for a name, and whether it counts: for a name that does not exist it is a decoy,
    /// so that the time to an answer does not tell who exists.
    pub fn find(&self, name: &str) -> (Arc<Hash>, bool) {
        match self.hashes.get(name) {
            Some(hash) => (Arc::clone(hash), true),
            None => (Arc::clone(&self.decoy), false),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// There is nobody.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }
}

fn take(line: &str, hashes: &mut HashMap<String, Arc<Hash>>) -> Result<(), String> {
    let (name, rest) = line.split_once(':').ok_or("no colon: expected name:hash")?;
    if name.is_empty() || name.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err("the name is empty or holds blanks".into());
    }
    let hash = rest.split_once(':').map_or(rest, |(hash, _)| hash);
    let hash = Hash::parse(hash).map_err(|why| format!("{name}: {why}"))?;
    if hashes.contains_key(name) {
        return Err(format!("{name} stands here a second time; the first counts"));
    }
    hashes.insert(name.to_owned(), Arc::new(hash));
    Ok(())
}

impl Hash {
    /// Parses `$5$…` or `$6$…`, with Dovecot's `{SHA512-CRYPT}` before it or not.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = ["{SHA512-CRYPT}", "{SHA256-CRYPT}", "{CRYPT}"]
            .iter()
            .find_map(|prefix| text.strip_prefix(prefix))
            .unwrap_or(text);
        let mut fields = text.split('$');
        let (Some(""), Some(id)) = (fields.next(), fields.next()) else {
            return Err(kind_refused(text));
        };
        let digits = match id {
            "5" => 43,
            "6" => 86,
            _ => return Err(kind_refused(text)),
        };
        let mut fields = fields.peekable();
        let rounds = fields.peek().and_then(|field| field.strip_prefix("rounds="));
        let rounds = match rounds {
            None => USUAL_ROUNDS,
            Some(number) => {
                let number: u32 = number.parse().map_err(|_| "rounds= is not a number".to_owned())?;
                fields.next();
                number
            }
        };
        if !(1_000..=ROUNDS_MOST).contains(&rounds) {
            return Err(format!("rounds={rounds} is not between 1000 and {ROUNDS_MOST}"));
        }
        let (Some(salt), Some(hash), None) = (fields.next(), fields.next(), fields.next()) else {
            return Err("the hash is incomplete: expected $6$salt$hash".into());
        };
        let of_alphabet =
            |text: &str| text.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'/'));
        if salt.is_empty() || salt.len() > 16 || !of_alphabet(hash) || hash.len() != digits {
            return Err("the hash is damaged: a part of it has the wrong length".into());
        }
        let hash = Self { text: text.to_owned(), cost: rounds };
        // What we would take and the library would not must be told now and not at the first AUTH.
        PasswordHash::new(&hash.text).map_err(|error| format!("the hash is damaged: {error}"))?;
        Ok(hash)
    }

    /// Whether it is this password's. Slow, and meant to be.
    pub fn verify(&self, password: &[u8]) -> bool {
        let usable = !password.is_empty() && password.len() <= PASSWORD_MOST;
        // Too long or empty is refused, after the same work as for a wrong one.
        let hashed = password.get(..PASSWORD_MOST).unwrap_or(password);
        let hash = PasswordHash::new(&self.text);
        let right = hash.is_ok_and(|hash| ShaCrypt::SHA512.verify_password(hashed, &hash).is_ok());
        usable && right
    }

    /// A hash of no password that costs as much as `like`.
    fn decoy(like: Option<&Hash>) -> Self {
        let id_and_digits = |hash: &Hash| if hash.text.starts_with("$5$") { ("5", 43) } else { ("6", 86) };
        let (id, digits) = like.map_or(("6", 86), id_and_digits);
        let cost = like.map_or(USUAL_ROUNDS, |hash| hash.cost);
        // It must decode, or it would be refused before any hashing.
        let nothing = ".".repeat(digits);
        Self { text: format!("${id}$rounds={cost}$posterndecoy${nothing}"), cost }
    }
}

fn kind_refused(text: &str) -> String {
    let kind = match text.strip_prefix('$').and_then(|rest| rest.split_once('$')) {
        Some((id, _)) if id.len() <= 8 && id.chars().all(|c| c.is_ascii_alphanumeric()) => {
            format!("a hash of kind ${id}$")
        }
        _ if text.is_empty() || text.starts_with(['!', '*']) => "a locked account".to_owned(),
        _ => "no known hash".to_owned(),
    };
    format!("{kind} is not taken: make one with `openssl passwd -6`")
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hash(…)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `openssl passwd -6 -salt abcdefgh secret`
    const SHA512: &str =
        "$6$abcdefgh$ltjgWl6579NluT/Vi1nwEvcil.G5Nbc4NiXZaNGStk8PSwGfQv72N2CKPPrVACtLtip/cZ/1GM/O6IND4WQhG.";
    /// `openssl passwd -5 -salt abcdefgh 'pass:word'`
    const SHA256: &str = "$5$abcdefgh$0REkPn1Z4CNNcjMacpXfYSNOtfCErlQR.ejJ2YSRMr4";
    /// The like of the specification's own, made by openssl; the last one also by mkpasswd.
    const BY_OPENSSL: [(&str, &str); 4] = [
        ("$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5", "Hello world!"),
        ("$5$rounds=10000$saltstringsaltst$3xv.VbSHBb41AL9AvLeujZkZRBAwqFMz2.opqey6IcA", "Hello world!"),
        (
            "$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1",
            "Hello world!",
        ),
        (
            "$6$rounds=1400$anotherlongsalts$POfYwTEok97VWcjxIiSOjiykti.o/pQs.wPvMxQ6Fm7I6IoYN3CmLs66x9t0oSwbtEW7o7UmJEiDwGqd8p4ur1",
            "a very much longer text to encrypt.  This one even stretches over morethan one line.",
        ),
    ];

    #[test]
    fn known_hashes() {
        for (hash, password) in [(SHA512, "secret"), (SHA256, "pass:word")] {
            let hash = Hash::parse(hash).unwrap();
            assert!(hash.verify(password.as_bytes()));
            assert!(!hash.verify(b"Secret") && !hash.verify(b""));
        }
        for (hash, password) in BY_OPENSSL {
            match Hash::parse(hash) {
                Ok(parsed) => assert!(parsed.verify(password.as_bytes()), "{hash}"),
                Err(why) => panic!("{hash}: {why}"),
            }
        }
        // The password is all of it, not its beginning.
        let long = "x".repeat(PASSWORD_MOST + 1);
        assert!(!Hash::parse(SHA512).unwrap().verify(long.as_bytes()));
    }

    #[test]
    fn a_file() {
        let text = format!(
            "# users\n\nann:{SHA512}\nbob@example.org:{{SHA256-CRYPT}}{SHA256}:1000:1000::/home/bob\n\
             carl:$1$salt$qJH7.N4xYta3aEG/dfqo/0\ndora:!\nann:{SHA256}\n:{SHA512}\nnothing\n\
             eve:$6$abcdefgh$short\nfred:$6$rounds=999999999$abcdefgh$x\nmallory:secret\n"
        );
        let (users, complaints) = Users::parse(&text);
        assert_eq!(users.len(), 2);
        assert_eq!(complaints.iter().map(|c| c.line).collect::<Vec<_>>(), [5, 6, 7, 8, 9, 10, 11, 12]);
        assert!(complaints[0].why.contains("$1$") && complaints[0].why.contains("openssl passwd -6"));
        assert!(complaints[1].why.contains("locked"));
        assert!(!complaints.iter().any(|c| c.why.contains("secret") || c.why.contains("qJH7")));
        let (hash, counts) = users.find("bob@example.org");
        assert!(counts && hash.verify(b"pass:word"));
        assert!(!users.find("Ann").1);
    }

    #[test]
    fn who_does_not_exist_costs_as_much() {
        let (costly, password) = BY_OPENSSL[1];
        let (users, _) = Users::parse(&format!("a:{costly}\nb:{SHA512}"));
        let (decoy, counts) = users.find("nobody");
        assert!(!counts && decoy.text.starts_with("$5$rounds=10000$"));
        assert!(!decoy.verify(password.as_bytes()));
        for decoy in [decoy, Users::none().find("x").0] {
            let again = Hash::parse(&decoy.text).unwrap();
            assert_eq!(again.cost, decoy.cost);
            // Ten times faster would mean that nothing was hashed.
            let time = |hash: &Hash| {
                let begun = std::time::Instant::now();
                assert!(!hash.verify(b"wrong"));
                begun.elapsed()
            };
            let usual = Hash::parse(SHA512).unwrap();
            assert!(time(&decoy) * 10 > time(&usual));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "(?s).{0,200}|([ab]:\\$[56]\\$(rounds=[0-9]{1,12}\\$)?[a-z.$]{0,100}\n){0,4}") {
            let (users, complaints) = Users::parse(&text);
            prop_assert!(users.len() + complaints.len() <= text.lines().count());
        }
    }
}
