//! What people and programs read.

use std::io::{IsTerminal, Write};

use serde::Serialize;

/// Prints a table with columns as wide as their widest cell; a heading on a terminal and elsewhere alike,
/// so that scripts written at a terminal still fit. The last column is not padded.
pub(crate) fn print(heading: &[&str], rows: &[Vec<String>]) {
    let columns = heading.len();
    let mut widths: Vec<usize> = heading.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (n, cell) in cells.enumerate() {
            let padding = if n + 1 == columns {
                0
            } else {
                widths.get(n).copied().unwrap_or(0) + 2 - cell.chars().count()
            };
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', padding));
        }
        text
    };
    let head = line(&mut heading.iter().copied());
    out(&if std::io::stdout().is_terminal() { format!("\x1b[1m{head}\x1b[0m") } else { head });
    rows.iter().for_each(|row| out(&line(&mut row.iter().map(String::as_str))));
}

/// Prints a sentence, or a JSON object of it.
pub(crate) fn say(json: bool, text: &str) {
    if json { print_json(&serde_json::json!({ "done": text })) } else { out(text) }
}

/// Prints one JSON value on one line.
pub(crate) fn print_json(value: &impl Serialize) {
    match serde_json::to_string(value) {
        Ok(text) => out(&text),
        Err(error) => eprintln!("postern: {error}"),
    }
}

/// Prints a line. A reader who has gone (`| head`) ends us quietly.
pub(crate) fn out(line: &str) {
    let mut stdout = std::io::stdout().lock();
    if writeln!(stdout, "{line}").is_err() {
        std::process::exit(0);
    }
}

/// Control characters made visible: what a stranger wrote must not drive the terminal.
pub(crate) fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A time span as people say it: `42 s`, `5 min`, `3 h`, `2 d`.
pub(crate) fn span(milliseconds: u64) -> String {
    match milliseconds / 1000 {
        s @ 0..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s / 60),
        s @ 7200..172_800 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans() {
        let said: Vec<_> = [0, 119_999, 120_000, 7_200_000, 172_800_000].into_iter().map(span).collect();
        assert_eq!(said, ["0 s", "119 s", "2 min", "2 h", "2 d"]);
    }

    #[test]
    fn nothing_drives_the_terminal() {
        assert_eq!(visible("a\x1b[2J\r\nb"), "a\u{fffd}[2J\u{fffd}\u{fffd}b");
    }
}
