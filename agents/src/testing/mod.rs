//! What a test run says: counts and names of failed tests, from its output and its reports.
//!
//! Known are JUnit XML, TAP 13 and 14, `cargo test` and `cargo nextest`, pytest, and `go test` with and without `-json`.
//! Everything that one output holds is summed up. Output may be cut or hostile: counts are for people and for the gate's
//! doubt; a run without the exit code 0 has failed, whatever it says.

mod junit;
mod lines;
mod reports;

use std::path::Path;
use std::time::SystemTime;

use schemas::transcript::TestCounts;

use crate::secret::Mask;
use crate::shell::Ran;

/// Most names of failed tests.
const NAMES: usize = 20;
/// Longest name, in characters.
const NAME: usize = 200;

/// What is known of a test run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// How many ended how.
    pub counts: TestCounts,
    /// Names of the first failed ones, each once.
    pub failed: Vec<String>,
}

/// Reads what a run wrote. Where there are reports from this run, they alone count: they tell the same as the output.
/// `began`: older reports are not of this run.
pub fn summary(tree: &Path, globs: &[String], began: SystemTime, ran: &Ran, mask: &Mask) -> Option<Summary> {
    let mut summary = reports::read(tree, globs, began).or_else(|| {
        let mut found = Found::default();
        for stream in [&ran.stdout, &ran.stderr] {
            found.read(&stream.text());
        }
        found.finish()
    })?;
    summary.failed.iter_mut().for_each(|name| *name = mask.text(name));
    Some(summary)
}

/// Reads one text.
pub fn of_text(text: &str) -> Option<Summary> {
    let mut found = Found::default();
    found.read(text);
    found.finish()
}

/// What was found so far; nothing until something of a known format is seen.
#[derive(Default)]
struct Found {
    summary: Summary,
    any: bool,
}

impl Found {
    fn read(&mut self, text: &str) {
        lines::read(text, self);
        junit::read_output(text, self);
    }

    fn add(&mut self, passed: u64, failed: u64, skipped: u64) {
        self.any = true;
        let counts = &mut self.summary.counts;
        counts.passed = counts.passed.saturating_add(passed);
        counts.failed = counts.failed.saturating_add(failed);
        counts.skipped = counts.skipped.saturating_add(skipped);
    }

    fn name(&mut self, name: &str) {
        let name: String = name.trim().chars().filter(|letter| !letter.is_control()).take(NAME).collect();
        let failed = &mut self.summary.failed;
        if !name.is_empty() && failed.len() < NAMES && !failed.contains(&name) {
            failed.push(name);
        }
    }

    fn finish(self) -> Option<Summary> {
        self.any.then_some(self.summary)
    }
}

#[cfg(test)]
mod tests;
