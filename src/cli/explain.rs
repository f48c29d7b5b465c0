//! `shoal explain`: why a task waits, or what it does, and the next thing to try.

use clap::Args;
use schemas::explain::{Explanation, Standing};

use super::{Error, Server};
use crate::exit::{self, Exit};
use crate::output::{self, Facts, Format, printable_lines};

/// Flags of `shoal explain`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "The first line is the answer; what holds the task besides comes below it, each with the next thing to \
    try. Needs no dispatcher. Exit code 1 if nothing is known of the task."
)]
pub struct Explain {
    /// Id, `queue.id`, or a prefix that fits one task
    pub id: String,
}

/// Explains it.
pub async fn run(args: Explain, on: &Server<'_>) -> Result<Exit, Error> {
    let client = on.connect().await?;
    let explanation = client.explain_any(&args.id).await?;
    match on.output() {
        Format::Json => output::json(&explanation),
        Format::Table => {
            output::data(sentences(&explanation).as_bytes());
            facts(&explanation).print();
        }
    }
    Ok(if explanation.status == Standing::Unknown { exit::FAILED } else { exit::DONE })
}

/// The reasons, the answer first.
fn sentences(explanation: &Explanation) -> String {
    let name = match &explanation.queue {
        Some(queue) => format!("{queue}.{}", explanation.id),
        None => explanation.id.to_string(),
    };
    let mut text = format!("{name} is {}: ", explanation.status);
    for (i, reason) in explanation.reasons.iter().enumerate() {
        let also = if i == 0 { "" } else { "also: " };
        let (message, next) = (printable_lines(&reason.message, "    "), printable_lines(&reason.next, "    "));
        text.push_str(&format!("{also}{message}\n  try: {next}\n"));
    }
    text
}

fn facts(explanation: &Explanation) -> Facts {
    let mut facts = Facts::default();
    facts.add("submitted", explanation.submitted_at.map(|at| at.to_string()).unwrap_or_default());
    facts.add("runs", explanation.kind.clone().unwrap_or_default());
    if let Some(queue) = &explanation.waits_in {
        let cap = queue.cap.map_or("no cap".to_owned(), |cap| format!("cap {cap}"));
        let (waiting, out, pulls) = (queue.waiting, queue.in_flight, queue.pulls);
        facts.add("queue", format!("{waiting} waiting, {out} out, {cap}, {pulls} open pulls"));
    }
    if let Some(workers) = &explanation.workers {
        let (of_queue, alive, able) = (workers.of_queue, workers.alive, workers.able);
        let slots = format!("{} of {} slots taken", workers.running, workers.slots);
        facts.add("workers", format!("{of_queue} of the queue, {alive} alive, {able} could run it, {slots}"));
        for hindered in &workers.hindered {
            facts.add("not", format!("{}: {}", hindered.worker, hindered.reason));
        }
    }
    facts
}
