//! What the implementer is told of a step that failed.

use schemas::playbook::Step;
use schemas::transcript::TestReport;

use crate::secret::Mask;
use crate::shell::Ran;
use crate::tools::output::ending;

/// As much of each stream is shown, from its end.
const STREAM_BYTES: usize = 12 << 10;
/// As much is told in an error.
const ERROR_BYTES: usize = 2 << 10;

/// What failed, and the end of what it said. Masked and bounded.
pub(super) fn to_implementer(step: &Step, ran: &Ran, how: &str, tests: Option<&TestReport>, mask: &Mask) -> String {
    let mut text = format!("The step `{}` of the playbook failed: {how}.\n", step.name);
    text.push_str(&format!("It runs this in the workspace: {}\n", step.command.as_deref().unwrap_or_default()));
    if let Some(names) = tests.map(|tests| &tests.failed).filter(|names| !names.is_empty()) {
        text.push_str("Failed tests:\n");
        names.iter().for_each(|name| text.push_str(&format!("- {name}\n")));
    }
    for (name, stream) in [("stdout", &ran.stdout), ("stderr", &ran.stderr)] {
        let whole = mask.text(&stream.text());
        if !whole.trim().is_empty() {
            text.push_str(&format!("The end of its {name}:\n{}\n", end(&whole, STREAM_BYTES)));
        }
    }
    text.push_str("Mend the cause in the workspace. Do not weaken the tests. Everything is run again afterwards.");
    mask.text(&text)
}

/// The end of what it said last, for an error. Masked and bounded.
pub(super) fn to_people(ran: &Ran, mask: &Mask) -> String {
    let stdout = mask.text(&ran.stdout.text());
    let stderr = mask.text(&ran.stderr.text());
    let said = [stdout.trim(), stderr.trim()]
        .into_iter()
        .filter(|text| !text.is_empty())
        .map(|text| end(text, ERROR_BYTES / 2));
    said.collect::<Vec<_>>().join("\n")
}

/// The last `bytes` of a text, in whole characters; a cut is told.
fn end(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_owned();
    }
    let shown = ending(text, bytes);
    format!("[… {} bytes left out …]\n{shown}", text.len() - shown.len())
}
