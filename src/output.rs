//! What people and programs read: data on stdout as a table or JSON, talk on stderr, colours only on a terminal.

use std::fmt::{Arguments, Write as _};
use std::io::{IsTerminal, Write};

use clap::ValueEnum;
pub use schemas::strict::did_you_mean;
use serde::Serialize;

/// How data is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One JSON document.
    Json,
    /// Columns for people.
    Table,
}

/// Writes one line of talk to stderr.
pub fn talk(line: Arguments<'_>) {
    // Whoever closed stderr does not want to hear of it.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Writes bytes of data to stdout. A reader that has gone away (`| head`) ends the program quietly.
pub fn data(bytes: &[u8]) {
    let mut stdout = std::io::stdout().lock();
    if stdout.write_all(bytes).and_then(|()| stdout.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Writes one line of data to stdout.
pub fn line(line: Arguments<'_>) {
    data(format!("{line}\n").as_bytes());
}

/// Writes one JSON document to stdout.
pub fn json(value: &impl Serialize) {
    let mut text = serde_json::to_string_pretty(value).expect("our own types always serialize");
    text.push('\n');
    data(text.as_bytes());
}

/// An error with its causes, and the hint as the last line.
pub fn chain(error: &crate::cli::Error) -> String {
    let mut text = format!("error: {error}");
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some crates repeat the cause in their own words.
        if !text.contains(&cause_text) {
            // A String takes everything.
            let _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    let hint = error.hint();
    if !hint.is_empty() {
        let _ = write!(text, "\n  try: {hint}");
    }
    text
}

/// Columns of text, as wide as they need to be.
#[derive(Clone, Debug)]
pub struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column heads.
    pub fn new(head: &[&'static str]) -> Self {
        Self { head: head.to_vec(), rows: Vec::new() }
    }

    /// Adds one row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }

    /// Prints it; heads are bold on a terminal.
    pub fn print(&self) {
        data(self.render(std::io::stdout().is_terminal()).as_bytes());
    }

    fn render(&self, colours: bool) -> String {
        let mut widths: Vec<usize> = self.head.iter().map(|head| head.chars().count()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut line = String::new();
            for (cell, width) in cells.zip(&widths) {
                let _ = write!(line, "{cell:<width$}  ");
            }
            line.trim_end().to_owned()
        };
        let head = line(&mut self.head.iter().copied());
        let mut text = if colours { format!("\x1b[1m{head}\x1b[0m\n") } else { format!("{head}\n") };
        for row in &self.rows {
            text.push_str(&line(&mut row.iter().map(String::as_str)));
            text.push('\n');
        }
        text
    }
}

/// Names and values below each other; what is empty is left out.
#[derive(Clone, Debug, Default)]
pub struct Facts(Vec<(&'static str, String)>);

impl Facts {
    /// Adds a fact, unless there is nothing to say.
    pub fn add(&mut self, name: &'static str, value: impl Into<String>) {
        let value = value.into();
        if !value.is_empty() {
            self.0.push((name, value));
        }
    }

    /// Prints them.
    pub fn print(&self) {
        let width = self.0.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
        let mut text = String::new();
        for (name, value) in &self.0 {
            for (i, line) in value.lines().enumerate() {
                let name = if i == 0 { format!("{name}:") } else { String::new() };
                let _ = writeln!(text, "{name:<width$} {}", printable(line));
            }
        }
        data(text.as_bytes());
    }
}

/// Text from the wire must not steer a terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// The same of several lines: those after the first begin with `indent`.
pub fn printable_lines(text: &str, indent: &str) -> String {
    let lines: Vec<_> = text.trim_end().lines().map(|line| printable(&line.replace('\t', "    "))).collect();
    lines.join(&format!("\n{indent}"))
}

/// How long ago, in its largest unit.
pub fn ago(then: schemas::Timestamp, now: schemas::Timestamp) -> String {
    let seconds = now.since(then).as_secs();
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7_199 => format!("{}m", seconds / 60),
        7_200..=172_799 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["ID", "STATE"]);
        table.row(["a-long-id".into(), "running".into()]);
        table.row(["b".into(), "ü".into()]);
        assert_eq!(table.render(false), "ID         STATE\na-long-id  running\nb          ü\n");
        assert!(table.render(true).starts_with("\x1b[1mID"));
    }

    #[test]
    fn text_from_the_wire_cannot_steer_the_terminal() {
        let mut table = Table::new(&["A"]);
        table.row(["\x1b[31mred\n".into()]);
        assert!(!table.render(false).contains('\x1b'));
    }

    #[test]
    fn a_near_name_is_offered_and_a_far_one_is_not() {
        assert_eq!(did_you_mean("slot", &["slots", "queues"]), "did you mean `slots`?");
        assert_eq!(did_you_mean("zzzz", &["slots", "queues"]), "known are slots, queues");
    }

    #[test]
    fn ages_have_one_unit() {
        let now = schemas::Timestamp::from_millis(1_000_000_000_000);
        for (seconds, text) in [(5, "5s"), (119, "119s"), (300, "5m"), (7_200, "2h"), (864_000, "10d")] {
            assert_eq!(ago(schemas::Timestamp::from_millis(now.as_millis() - seconds * 1000), now), text);
        }
    }
}
