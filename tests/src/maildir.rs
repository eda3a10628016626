//! Reading a Maildir.

use std::path::{Path, PathBuf};

/// A message in a Maildir.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mail {
    /// Its file.
    pub path: PathBuf,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Mail {
    /// The value of the first header field of that name, unfolded; none when there is no such field.
    pub fn header(&self, name: &str) -> Option<String> {
        self.headers(name).into_iter().next()
    }

    /// The values of all header fields of that name, unfolded, from the top.
    pub fn headers(&self, name: &str) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.bytes).replace("\r\n", "\n");
        let section = text.split("\n\n").next().unwrap_or_default();
        let unfolded = section.replace("\n\t", " ").replace("\n ", " ");
        let fields = unfolded.lines().filter_map(|line| line.split_once(':'));
        fields.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim().to_owned()).collect()
    }
}

/// The messages in `new` and `cur` of a Maildir, by name of file, which is about their order; none when it
/// does not exist.
pub fn maildir(path: &Path) -> Vec<Mail> {
    let mut mails: Vec<Mail> = ["new", "cur"]
        .iter()
        .filter_map(|folder| std::fs::read_dir(path.join(folder)).ok())
        .flatten()
        .map(|entry| entry.unwrap().path())
        .map(|path| Mail { bytes: std::fs::read(&path).unwrap(), path })
        .collect();
    mails.sort_by(|a, b| a.path.file_name().cmp(&b.path.file_name()));
    mails
}
