//! Prints a job's log as it comes: each stream to where it was written, what Shoal itself says to stderr. On a terminal the
//! progress of a pull is one line that replaces itself.

use std::io::{IsTerminal, Write};

use dispatcher::client::LogChunk;
use schemas::names::LogSource;

use crate::output::{self, printable};

/// How a worker marks its own words, which here have a mark of their own.
const MARK: &str = "[shoal] ";
/// How a line begins that the next one of its kind makes obsolete.
const PROGRESS: &str = "pulling image ";
/// Back to the beginning of the line, and nothing left on it.
const CLEAR: &str = "\r\x1b[2K";

/// Where a log goes.
#[derive(Debug)]
pub struct Printer {
    /// Whether a line may be replaced.
    terminal: bool,
    /// A line of progress stands on the terminal, its end not written.
    open: bool,
}

impl Printer {
    /// To this program's stdout and stderr.
    pub fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), open: false }
    }

    /// Writes what a job wrote to where it would have written it.
    pub fn print(&mut self, chunk: &LogChunk) {
        match chunk.source {
            LogSource::Stdout => {
                self.close();
                output::data(&chunk.bytes);
            }
            LogSource::Stderr => {
                self.close();
                talk(&chunk.bytes);
            }
            LogSource::System => {
                let text = self.system(&String::from_utf8_lossy(&chunk.bytes));
                talk(text.as_bytes());
            }
        }
    }

    /// Ends a line of progress that still stands.
    pub fn close(&mut self) {
        if std::mem::take(&mut self.open) {
            talk(CLEAR.as_bytes());
        }
    }

    /// What is written for Shoal's own words.
    fn system(&mut self, words: &str) -> String {
        let mut text = String::new();
        for line in words.lines() {
            let line = printable(line.strip_prefix(MARK).unwrap_or(line));
            if std::mem::take(&mut self.open) {
                text.push_str(CLEAR);
            }
            text.push_str("shoal: ");
            text.push_str(&line);
            self.open = self.terminal && line.starts_with(PROGRESS);
            if !self.open {
                text.push('\n');
            }
        }
        text
    }
}

impl Drop for Printer {
    fn drop(&mut self) {
        self.close();
    }
}

fn talk(bytes: &[u8]) {
    let mut stderr = std::io::stderr().lock();
    // Whoever closed stderr does not want to hear of it.
    drop(stderr.write_all(bytes).and_then(|()| stderr.flush()));
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: &str = "[shoal] pulling image a: 1 of 2\n[shoal] pulling image a: 2 of 2\n[shoal] pulled image a\n";

    #[test]
    fn progress_replaces_itself_on_a_terminal_only() {
        let mut printer = Printer { terminal: true, open: false };
        let text = printer.system(WORDS);
        let expected = format!(
            "shoal: pulling image a: 1 of 2{CLEAR}shoal: pulling image a: 2 of 2{CLEAR}shoal: pulled image a\n"
        );
        assert_eq!((text, printer.open), (expected, false));
        let mut printer = Printer { terminal: false, open: false };
        assert_eq!(printer.system(WORDS).lines().count(), 3);
    }

    #[test]
    fn a_line_of_progress_is_cleared_before_anything_else() {
        let mut printer = Printer { terminal: true, open: false };
        assert_eq!(printer.system("[shoal] pulling image a\n"), "shoal: pulling image a");
        assert!(printer.open);
        assert_eq!(printer.system("cut\n"), format!("{CLEAR}shoal: cut\n"));
    }

    #[test]
    fn words_from_the_wire_cannot_steer_the_terminal() {
        let mut printer = Printer { terminal: true, open: false };
        assert!(!printer.system("\x1b[31mred\n").contains('\x1b'));
    }
}
