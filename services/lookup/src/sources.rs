//! Table files, read again when they change.

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use crate::aliases::LineError;
use crate::routing::Source;

/// How often a file is looked at, at most.
const LOOK: Duration = Duration::from_secs(1);

/// A file that was written so lately may be written again within the same tick of its time stamp, or only
/// half of it be there: it is read once more.
const SETTLING: Duration = Duration::from_secs(2);

/// Largest table, octets.
const MAX_FILE: u64 = 256 << 20;

/// One file and what was read from it last.
#[derive(Debug)]
pub struct Watched {
    path: PathBuf,
    stamp: Option<Stamp>,
    looked: Option<Instant>,
    complained: Option<String>,
}

/// When any of it differs, the file was changed or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

/// What a look at a file came to: lines for the log.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Something is wrong.
    pub errors: Vec<String>,
    /// A new table is in force.
    pub taken: bool,
}

impl Watched {
    /// A file that was not looked at yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), stamp: None, looked: None, complained: None }
    }

    /// Looks again at the next question, whatever the time.
    pub fn look_again(&mut self) {
        self.looked = None;
    }

    /// Brings `table` up to date. A file that cannot be read, or that has errors where the table before had
    /// none, leaves the table as it is: better the users of yesterday than none.
    pub fn refresh<T: PartialEq>(
        &mut self,
        now: Instant,
        table: &mut Source<T>,
        parse: fn(&str) -> (T, Vec<LineError>),
    ) -> Report {
        if self.looked.is_some_and(|at| now.saturating_duration_since(at) < LOOK) {
            return Report::default();
        }
        self.looked = Some(now);
        let path = self.path.display().to_string();
        let (errors, taken) = match self.read_changed() {
            Ok(None) => return Report::default(),
            Err(error) => {
                let why = format!("{path}: {error}");
                let kept = matches!(table, Source::Ready(_));
                if !kept {
                    *table = Source::Unavailable(why.clone());
                }
                let then =
                    if kept { "the table read before stays in force" } else { "mail that needs it waits" };
                (vec![format!("{why}; {then}")], false)
            }
            Ok(Some(text)) => {
                let (new, errors) = parse(&text);
                let mut errors: Vec<_> =
                    errors.iter().take(20).map(|e| format!("{path}:{}: {}", e.line, e.message)).collect();
                let keep = !errors.is_empty() && matches!(table, Source::Ready(_));
                let changed = !matches!(table, Source::Ready(old) if *old == new);
                match (keep, changed) {
                    (true, true) => errors.push(format!("{path}: the table read before stays in force")),
                    (true, false) => {}
                    (false, _) => *table = Source::Ready(new),
                }
                (errors, !keep && changed)
            }
        };
        // The same complaint once a second would be a log of nothing else.
        let complaint = (!errors.is_empty()).then(|| errors.join("\n"));
        let repeated = complaint.is_some() && complaint == self.complained;
        self.complained = complaint;
        Report { errors: if repeated { Vec::new() } else { errors }, taken }
    }

    /// The file's text, if it changed since it was last read.
    fn read_changed(&mut self) -> Result<Option<String>, String> {
        let outcome = (|| {
            let mut file = File::open(&self.path)?;
            let metadata = file.metadata()?;
            let stamp = Stamp::of(&metadata);
            if self.stamp == Some(stamp) {
                return Ok(None);
            }
            let mut bytes = Vec::new();
            file.by_ref().take(MAX_FILE + 1).read_to_end(&mut bytes)?;
            Ok(Some((bytes, stamp, metadata.modified().ok())))
        })();
        match outcome {
            Ok(None) => Ok(None),
            Ok(Some((bytes, stamp, modified))) => {
                self.stamp = (!is_fresh(modified)).then_some(stamp);
                if bytes.len() as u64 > MAX_FILE {
                    return Err(format!("longer than {} MiB", MAX_FILE >> 20));
                }
                String::from_utf8(bytes).map(Some).map_err(|_| "not UTF-8".to_owned())
            }
            Err(error) => {
                let error: std::io::Error = error;
                self.stamp = None;
                Err(error.to_string())
            }
        }
    }
}

fn is_fresh(modified: Option<SystemTime>) -> bool {
    let age = modified.map(|at| SystemTime::now().duration_since(at));
    !matches!(age, Some(Ok(age)) if age >= SETTLING)
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// Reads a small file whole, for includes.
pub fn read_text(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes));
    read.map_err(|e| format!("{}: {e}", path.display()))?;
    String::from_utf8(bytes).map_err(|_| format!("{}: not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::table::TextTable;

    /// A file of a test, its age set so that it counts as settled.
    fn write(path: &Path, text: &str, age: u64) {
        std::fs::write(path, text).unwrap();
        let at = SystemTime::now() - Duration::from_secs(age);
        File::options().write(true).open(path).unwrap().set_modified(at).unwrap();
    }

    #[test]
    fn a_table_follows_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users");
        let (mut file, mut table) = (Watched::new(&path), Source::Absent);
        let mut now = Instant::now();
        let mut refresh = |file: &mut Watched, table: &mut Source<TextTable>| {
            now += LOOK;
            file.refresh(now, table, TextTable::parse)
        };
        let missing = refresh(&mut file, &mut table);
        assert!(
            missing.errors[0].contains("No such file") && missing.errors[0].ends_with("waits"),
            "{missing:?}"
        );
        assert!(matches!(table, Source::Unavailable(_)));
        assert_eq!(refresh(&mut file, &mut table).errors, [""; 0], "the same is not said twice");

        write(&path, "u@v.test yes\n", 60);
        assert!(refresh(&mut file, &mut table).taken);
        assert!(matches!(&table, Source::Ready(t) if t.get("u@v.test").is_some()));
        assert_eq!(refresh(&mut file, &mut table), Report::default(), "unchanged");

        // Replaced by rename, with the same size and time stamp.
        let beside = directory.path().join("users.new");
        write(&beside, "w@v.test yes\n", 60);
        std::fs::rename(&beside, &path).unwrap();
        assert!(refresh(&mut file, &mut table).taken);
        assert!(matches!(&table, Source::Ready(t) if t.get("w@v.test").is_some()));

        // Broken, then gone: the last good table stays.
        write(&path, "a@v.test\na@v.test\n", 50);
        let broken = refresh(&mut file, &mut table);
        assert!(!broken.taken && broken.errors[0].contains("users:2: "), "{broken:?}");
        std::fs::remove_file(&path).unwrap();
        assert!(refresh(&mut file, &mut table).errors[0].ends_with("stays in force"));
        assert!(matches!(&table, Source::Ready(t) if t.get("w@v.test").is_some()));
    }

    #[test]
    fn a_file_just_written_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users");
        let (mut file, mut table, now) = (Watched::new(&path), Source::<TextTable>::Absent, Instant::now());
        write(&path, "u@v.test\n", 0);
        let written = std::fs::metadata(&path).unwrap().modified().unwrap();
        assert!(file.refresh(now, &mut table, TextTable::parse).taken);
        // Written over within the same tick of the file system's clock.
        std::fs::write(&path, "w@v.test\n").unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(written).unwrap();
        assert!(!file.refresh(now, &mut table, TextTable::parse).taken, "not twice in a second");
        assert!(file.refresh(now + LOOK, &mut table, TextTable::parse).taken);
        assert!(!file.refresh(now + 2 * LOOK, &mut table, TextTable::parse).taken, "read again, the same");
    }

    #[test]
    fn what_cannot_be_a_table() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users");
        std::fs::write(&path, b"u@v.test \xff\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let mut table = Source::<TextTable>::Absent;
        let report = Watched::new(&path).refresh(Instant::now(), &mut table, TextTable::parse);
        assert!(report.errors[0].contains("not UTF-8"), "{report:?}");
        let report = Watched::new(directory.path()).refresh(Instant::now(), &mut table, TextTable::parse);
        assert!(report.errors[0].contains("directory"), "{report:?}");
    }
}
