//! E: each cancel is confirmed in time, and holds from then on.

use schemas::State;

use super::effects::latest_after;
use super::runs::{Run, Runs, SLACK};
use super::violation::Violation;
use crate::history::Cancel;

/// Beyond the task's own grace, in milliseconds.
const MARGIN: i64 = 5_000;

/// All of it.
pub fn check(runs: &Runs) -> Vec<Violation> {
    let mut found = Vec::new();
    for cancel in &runs.history.cancels {
        for run in runs.of_nonce(&cancel.nonce).filter(|run| !run.refused) {
            found.extend(in_time(cancel, run, runs));
            found.extend(holds(cancel, run, runs));
        }
    }
    found
}

fn in_time(cancel: &Cancel, run: &Run, runs: &Runs) -> Option<Violation> {
    let of = run.name();
    let Some(confirmed) = cancel.confirmed_at else {
        // What ends by itself has no cancel to confirm.
        let due = cancel.asked_at + cancel.grace + MARGIN;
        let by_itself = run.end().is_some_and(|end| end.record.state != State::Cancelled && end.at <= due);
        return (!by_itself).then_some(Violation::Unconfirmed { of });
    };
    let ms = confirmed - cancel.asked_at;
    let excused = runs.absences.touch(cancel.asked_at, confirmed);
    (ms > cancel.grace + MARGIN + SLACK && !excused).then_some(Violation::ConfirmedLate { of, ms, grace: cancel.grace })
}

fn holds(cancel: &Cancel, run: &Run, runs: &Runs) -> Option<Violation> {
    let confirmed = cancel.confirmed_at? + SLACK;
    let (start, ms) = latest_after(runs, &cancel.nonce, confirmed, true)?;
    // What is there after the end is told as that.
    let told = run.end().is_some_and(|end| confirmed + ms > end.at + SLACK);
    (!told).then(|| Violation::EffectAfterCancel { of: run.name(), start, ms: ms + SLACK })
}
