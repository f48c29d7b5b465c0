//! T: what a killed worker had goes on elsewhere.

use schemas::{Attempt, Outcome, State};

use super::runs::{Run, Runs};
use super::violation::Violation;
use crate::history::{Fault, Revision};

/// All of it.
pub fn check(runs: &Runs) -> Vec<Violation> {
    let abandoned = |run: &Run| {
        let worker = abandoned(run, runs)?;
        Some(Violation::NotRestarted { of: run.name(), worker })
    };
    runs.judged().filter_map(|(run, _)| abandoned(run)).collect()
}

/// The killed worker that had this run and after which nobody began or ended it.
pub fn abandoned(run: &Run, runs: &Runs) -> Option<String> {
    let mut kills = runs.history.faults.iter().filter(|fault| fault.killed.is_some());
    let (kill, held) = kills.find_map(|kill| held(run, kill).map(|held| (kill, held)))?;
    let taken =
        held.later.iter().any(|revision| revision.record.state.is_terminal() || has_other(revision, held.start));
    let seen = run.submission.is_some_and(|submission| begun_after(runs, &submission.nonce, kill.from).is_some());
    (!taken && !seen).then(|| kill.killed.clone().unwrap_or_default())
}

/// Milliseconds from each kill to the next start of each run that the worker had.
pub fn delays(runs: &Runs) -> Vec<i64> {
    let mut delays = Vec::new();
    for kill in runs.history.faults.iter().filter(|fault| fault.killed.is_some()) {
        for (run, submission) in runs.judged() {
            let Some(held) = held(run, kill) else { continue };
            let recorded =
                held.later.iter().find(|revision| has_other(revision, held.start)).map(|revision| revision.at);
            let begun = begun_after(runs, &submission.nonce, kill.from);
            delays.extend(recorded.into_iter().chain(begun).min().map(|at| (at - kill.from).max(0)));
        }
    }
    delays
}

/// Milliseconds from each hand-back to the next start of the run.
pub fn handbacks(runs: &Runs) -> Vec<i64> {
    let mut delays = Vec::new();
    for (run, submission) in runs.judged() {
        for (at, revision) in run.revisions.iter().enumerate() {
            let Some(last) = revision.record.attempts.last() else { continue };
            let handed_back = last.outcome == Outcome::HandedBack && revision.record.state == State::Retrying;
            if !handed_back || revision.record.waiting.is_some() {
                continue;
            }
            let recorded = run.revisions[at + 1..].iter().find(|later| has_other(later, last)).map(|later| later.at);
            let begun = begun_after(runs, &submission.nonce, revision.at);
            delays.extend(recorded.into_iter().chain(begun).min().map(|next| (next - revision.at).max(0)));
        }
    }
    delays
}

/// A run that a worker had when it was killed.
struct Held<'r, 'h> {
    /// The start that died.
    start: &'h Attempt,
    /// Revisions since.
    later: &'r [&'h Revision],
}

/// Whether the worker that `kill` killed had this run: the last thing that the record said before was that it runs there.
/// Others may have put a wish to cancel into the record meanwhile.
fn held<'r, 'h>(run: &'r Run<'h>, kill: &Fault) -> Option<Held<'r, 'h>> {
    let worker = kill.killed.as_deref()?;
    let last = run.revisions.iter().rposition(|revision| {
        // The same worker may be back under its id and run it later.
        revision.at <= kill.from
            && running(revision).is_some_and(|attempt| attempt.worker.as_ref().is_some_and(|id| id.as_str() == worker))
    })?;
    let later = &run.revisions[last + 1..];
    let over = later.first().is_some_and(|next| next.at <= kill.from);
    (!over).then_some(Held { start: running(run.revisions[last])?, later })
}

/// The attempt that runs by this revision.
fn running(revision: &Revision) -> Option<&Attempt> {
    let last = revision.record.attempts.last()?;
    (revision.record.state == State::Running && last.outcome == Outcome::Running).then_some(last)
}

/// Whether the newest attempt of this revision is another start.
fn has_other(revision: &Revision, start: &Attempt) -> bool {
    revision.record.attempts.last().is_some_and(|last| last.start.is_some() && last.start != start.start)
}

/// When a start of this submission first began after `moment`.
fn begun_after(runs: &Runs, nonce: &str, moment: i64) -> Option<i64> {
    runs.starts(nonce).iter().map(|start| start.first).find(|first| *first > moment)
}
