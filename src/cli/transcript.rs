//! What an agent job tells, as lines for people.

use dispatcher::client::Told;
use schemas::transcript::{Event, StepOutcome};

use crate::output::{self, printable};

/// One entry for people.
pub fn show(told: &Told) {
    let at = told.entry.at.to_string();
    let time = at.get(11..19).unwrap_or(&at);
    let indented = |text: &str| {
        let lines: Vec<_> = text.trim_end().lines().map(printable).collect();
        lines.join("\n           ")
    };
    let line = match &told.entry.event {
        Event::PhaseBegan { phase } => format!("-- {phase}"),
        Event::PhaseEnded { error: None, .. } => return,
        Event::PhaseEnded { phase, error: Some(error) } => {
            format!("-- {phase} failed: {}: {}", error.code, indented(&error.message))
        }
        Event::Retry { what, why, after_ms } => {
            format!("!! {} again in {after_ms} ms: {}", printable(what), indented(why))
        }
        Event::Prompt { text } => format!(">> {}", indented(text)),
        Event::Turn { number, model } => format!("== turn {number}, {}", printable(model)),
        Event::Text { text } => format!("   {}", indented(text)),
        Event::ToolCall { name, arguments, .. } => format!(" * {} {}", printable(name), short(&indented(arguments))),
        Event::ToolResult { text, failed, .. } => {
            format!("{} {}", if *failed { " x" } else { " =" }, short(&indented(text)))
        }
        Event::Used { input_tokens, output_tokens, .. } => format!("   {input_tokens} tokens in, {output_tokens} out"),
        Event::Step { name, outcome, detail } => {
            let word = match outcome {
                StepOutcome::Passed => "passed",
                StepOutcome::Failed => "failed",
                StepOutcome::Skipped => "skipped",
                StepOutcome::Newer(word) => word.as_str(),
            };
            format!("-- step {} {word} {}", printable(name), indented(detail))
        }
        Event::Question { id, text } => {
            format!("?? {}\n           answer it: shoal agent answer … '…' --question {id}", indented(text))
        }
        Event::Answer { text, .. } => format!("<< {}", indented(text)),
        Event::Said { text } => format!("<< {}", indented(text)),
        Event::Kept { turns } => format!("   kept after {turns} turns"),
        Event::Note { text } => format!("   {}", indented(text)),
    };
    output::line(format_args!("{time}  {line}"));
}

/// Enough of a text to know it by.
fn short(text: &str) -> String {
    const MOST: usize = 600;
    match text.char_indices().nth(MOST) {
        None => text.to_owned(),
        Some((at, _)) => format!("{}… ({} bytes)", &text[..at], text.len()),
    }
}
