//! What is wrong with a configuration, and where: printed in the manner of rustc.

use std::fmt;
use std::ops::Range;

/// Everything that is wrong with a configuration file. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file as the caller named it.
    pub file: String,
    /// What is wrong, in the file's order.
    pub problems: Vec<Problem>,
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What was read, and what is wrong with it.
    pub message: String,
    /// What was meant, where that can be guessed, or what to write.
    pub help: Option<String>,
    /// Where; none when the file could not be read at all.
    pub place: Option<Place>,
}

/// A place in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// Characters to underline, at least 1.
    pub width: usize,
    /// The line's text.
    pub text: String,
}

impl ConfigError {
    /// A file of which nothing can be said but that it cannot be read.
    pub(crate) fn whole(file: &str, message: String, help: &str) -> Self {
        let problem = Problem { message, help: Some(help.to_owned()), place: None };
        Self { file: file.to_owned(), problems: vec![problem] }
    }
}

impl Place {
    /// The place of a byte range of `text`. A range over several lines is cut at the end of its first.
    pub(crate) fn of(text: &str, range: &Range<usize>) -> Self {
        let start = floor(text, range.start);
        let begin = text.get(..start).and_then(|before| before.rfind('\n')).map_or(0, |at| at + 1);
        let line_text = text.get(begin..).unwrap_or_default().split('\n').next().unwrap_or_default();
        let line_text = line_text.strip_suffix('\r').unwrap_or(line_text);
        let before = text.get(begin..start).unwrap_or_default().chars().count();
        let end = floor(text, range.end).min(begin + line_text.len());
        let width = text.get(start..end).map_or(0, |marked| marked.chars().count());
        Self {
            line: text.as_bytes().iter().take(begin).filter(|b| **b == b'\n').count() + 1,
            column: before + 1,
            width: width.max(1),
            text: line_text.to_owned(),
        }
    }
}

/// The nearest character boundary at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            writeln!(f, "error: {}", problem.message)?;
            match &problem.place {
                Some(place) => show(f, &self.file, place)?,
                None => writeln!(f, " --> {}", self.file)?,
            }
            if let Some(help) = &problem.help {
                let gutter = problem.place.as_ref().map_or(1, |p| p.line.to_string().len());
                writeln!(f, "{:gutter$} = help: {help}", "")?;
            }
            writeln!(f)?;
        }
        let n = self.problems.len();
        write!(f, "{n} {} in {}", if n == 1 { "error" } else { "errors" }, self.file)
    }
}

fn show(f: &mut fmt::Formatter<'_>, file: &str, place: &Place) -> fmt::Result {
    let gutter = place.line.to_string().len();
    // A terminal must not obey what stands in a broken file.
    let text: String =
        place.text.chars().map(|c| if c.is_control() && c != '\t' { '?' } else { c }).collect();
    // Tabs stay tabs, so the caret stands below what it means at any tab width.
    let indent: String =
        text.chars().take(place.column - 1).map(|c| if c == '\t' { c } else { ' ' }).collect();
    writeln!(f, "{:gutter$}--> {file}:{}:{}", "", place.line, place.column)?;
    writeln!(f, "{:gutter$} |", "")?;
    writeln!(f, "{} | {text}", place.line)?;
    writeln!(f, "{:gutter$} | {indent}{}", "", "^".repeat(place.width))
}

/// The word of `known` nearest to `read`, when it is near enough to have been meant.
pub(crate) fn nearest<'a>(read: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let read = read.to_ascii_lowercase();
    let most = (read.chars().count() / 3).max(1) + 1;
    known
        .into_iter()
        .map(|word| (distance(&read, &word.to_ascii_lowercase()), word))
        .filter(|(distance, word)| *distance <= most && *distance < word.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// Edit distance with transposition of neighbours (Damerau, restricted).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut two_ago: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = Vec::with_capacity(b.len() + 1);
        row.push(i + 1);
        for (j, y) in b.iter().enumerate() {
            let change = last[j] + usize::from(x != y);
            let mut least = change.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                least = least.min(two_ago[j - 1] + 1);
            }
            row.push(least);
        }
        two_ago = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, d) in
            [("", "abc", 3), ("hostnmae", "hostname", 1), ("kitten", "sitting", 3), ("a", "a", 0)]
        {
            assert_eq!(distance(a, b), d, "{a} {b}");
        }
    }

    #[test]
    fn what_was_meant() {
        let words = ["smtp", "submission", "submissions", "lmtp"];
        assert_eq!(nearest("stmp", words), Some("smtp"));
        assert_eq!(nearest("SMTPS", words), Some("smtp"));
        assert_eq!(nearest("submision", words), Some("submission"));
        assert_eq!(nearest("pop3", words), None);
        assert_eq!(nearest("", words), None);
    }

    #[test]
    fn places() {
        let text = "a = 1\r\nb\t= \"ü\"\nlast";
        let at = text.find("\"ü").unwrap();
        let place = Place::of(text, &(at..at + 4));
        assert_eq!((place.line, place.column, place.width, &*place.text), (2, 5, 3, "b\t= \"ü\""));
        let end = Place::of(text, &(text.len()..text.len()));
        assert_eq!((end.line, end.column, end.width), (3, 5, 1));
        assert_eq!(Place::of("", &(7..9)).line, 1);
        assert_eq!(Place::of(text, &(0..text.len())).width, 5);
    }
}
