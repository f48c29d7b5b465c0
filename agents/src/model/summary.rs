//! What was done so far, for the implementer of a next attempt.

use std::collections::VecDeque;

use crate::tools::Effect;
use crate::tools::output::{beginning, middle_cut};

/// Bytes of a whole summary.
pub const SUMMARY_BYTES: usize = 8_000;
/// Bytes of an earlier attempt's summary that are kept.
const EARLIER_BYTES: usize = 2_500;
/// Things of a kind that are kept: the newest.
const FILES: usize = 60;
const COMMANDS: usize = 25;
const WORDS: usize = 4;

/// Collects it.
#[derive(Debug, Default)]
pub struct Summary {
    earlier: String,
    files: VecDeque<String>,
    commands: VecDeque<String>,
    words: VecDeque<String>,
}

impl Summary {
    /// Goes on from an earlier attempt's.
    pub fn after(earlier: &str) -> Self {
        Self { earlier: middle_cut(earlier, EARLIER_BYTES), ..Self::default() }
    }

    /// The model said something.
    pub fn said(&mut self, text: &str) {
        let text = text.trim();
        if !text.is_empty() {
            keep(&mut self.words, beginning(text, 700).to_owned(), WORDS);
        }
    }

    /// A call did something.
    pub fn did(&mut self, effect: &Effect) {
        match effect {
            Effect::Changed(file) => {
                self.files.retain(|other| other != file);
                keep(&mut self.files, beginning(file, 200).to_owned(), FILES);
            }
            Effect::Ran(command, how) => {
                let command = beginning(command.lines().next().unwrap_or_default(), 160);
                keep(&mut self.commands, format!("`{command}`: {how}"), COMMANDS);
            }
            Effect::Looked | Effect::Malformed => {}
        }
    }

    /// As text, at most [`SUMMARY_BYTES`] long.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if !self.earlier.is_empty() {
            text.push_str(&format!("Before that:\n{}\n\n", self.earlier));
        }
        for (title, things) in [
            ("Files written, newest last", &self.files),
            ("Commands run, newest last", &self.commands),
            ("Said, newest last", &self.words),
        ] {
            if !things.is_empty() {
                text.push_str(&format!("{title}:\n"));
                text.extend(things.iter().map(|thing| format!("- {thing}\n")));
            }
        }
        middle_cut(text.trim_end(), SUMMARY_BYTES - 60)
    }
}

fn keep(things: &mut VecDeque<String>, thing: String, most: usize) {
    things.push_back(thing);
    if things.len() > most {
        things.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_bounded_over_any_number_of_attempts_and_tells_the_newest() {
        let mut text = String::new();
        for attempt in 0..20 {
            let mut summary = Summary::after(&text);
            for number in 0..200 {
                summary.did(&Effect::Changed(format!("{attempt}/{number}/{}", "f".repeat(300))));
                summary.did(&Effect::Ran(format!("make {number} {}", "x".repeat(300)), "exit code 2".to_owned()));
                summary.said(&"ä".repeat(2_000));
            }
            summary.did(&Effect::Ran("cargo test".to_owned(), "exit code 0".to_owned()));
            summary.said(&format!("attempt {attempt} is nearly done"));
            text = summary.text();
            assert!(text.len() <= SUMMARY_BYTES, "{}", text.len());
            assert!(text.contains(&format!("attempt {attempt} is nearly done")));
        }
        assert!(text.contains("Before that:"));
    }
}
