//! D: what is kept of a log is what was written, from the first line on, in order, each once.

use std::collections::BTreeMap;

use schemas::State;

use super::runs::Runs;
use super::violation::{Of, Violation};
use crate::history::Log;

/// The start whose log must be whole, and whose it is.
struct Whole {
    of: Of,
    lines: u32,
    /// The record itself says that some of it could not be stored.
    excused: bool,
}

/// All of it.
pub fn check(runs: &Runs) -> Vec<Violation> {
    let mut whole: BTreeMap<(String, String), Whole> = BTreeMap::new();
    for (run, submission) in runs.judged() {
        let Some(end) = run.ended_as(State::Succeeded) else { continue };
        let Some(start) = run.applied().and_then(|attempt| attempt.start.as_ref()) else { continue };
        let excused = end.record.warnings.iter().any(|warning| speaks_of_logs(warning));
        let entry = Whole { of: run.name(), lines: submission.plan.lines, excused };
        whole.insert((run.key.to_owned(), start.to_string()), entry);
    }
    // A start that was killed before it had written its record belongs to some run of its key.
    let mut most: BTreeMap<&str, u32> = BTreeMap::new();
    for submission in &runs.history.submissions {
        let most = most.entry(&submission.key).or_default();
        *most = if submission.plan.babbles { u32::MAX } else { submission.plan.lines.max(*most) };
    }
    let mut found = Vec::new();
    for ((key, start), log) in &runs.history.logs {
        // What babbles may write anything.
        if most.get(key.as_str()) == Some(&u32::MAX) {
            continue;
        }
        let applied = whole.get(&(key.clone(), start.clone()));
        let lines = applied.map_or_else(|| most.get(key.as_str()).copied().unwrap_or(0), |whole| whole.lines);
        found.extend(in_order(key, start, log, lines, applied.is_some_and(|whole| whole.excused)));
    }
    for ((key, start), whole) in whole {
        let nothing = Log::default();
        let log = runs.history.logs.get(&(key, start.clone())).unwrap_or(&nothing);
        let last = log.lines.last().map_or("0", String::as_str);
        if !log.cut && !whole.excused && last.parse::<u32>().is_ok_and(|last| last < whole.lines) {
            let (of, found_lines, written) = (whole.of, log.lines.len(), whole.lines);
            found.push(Violation::LogCut { of, start, found: found_lines, written });
        }
    }
    found
}

fn speaks_of_logs(warning: &str) -> bool {
    warning.starts_with("log cut") || warning.ends_with("of log could not be stored")
}

/// Lines 1, 2, … at most to `lines`; where some were left out, at least in order. The first fault only.
fn in_order(key: &str, start: &str, log: &Log, lines: u32, excused: bool) -> Option<Violation> {
    let (key, start) = (key.to_owned(), start.to_owned());
    let mut before = 0;
    for text in &log.lines {
        let line = match text.parse::<u32>() {
            Ok(line) if (1..=lines).contains(&line) => line,
            Ok(_) | Err(_) => return Some(Violation::LogForeign { key, start, line: text.clone() }),
        };
        if line <= before {
            return Some(Violation::LogRepeats { key, start, before, line });
        }
        if line > before + 1 && !log.cut && !excused {
            return Some(Violation::LogGap { key, start, before, line });
        }
        before = line;
    }
    None
}
