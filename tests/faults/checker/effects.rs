//! B and J: one outcome is applied, it is that of a start that took place, and nothing goes on after the end.

use std::collections::BTreeMap;

use schemas::{Outcome, State};
use serde_json::Value;

use super::runs::{Run, Runs, SLACK, Start, payload_nonce};
use super::violation::Violation;
use crate::history::{Kind, Submission};

/// All of it.
pub fn check(runs: &Runs) -> Vec<Violation> {
    let mut found = overlaps(runs);
    for (run, submission) in runs.judged() {
        found.extend(applied(run, submission, runs));
        found.extend(after_end(run, submission, runs));
        if submission.plan.at_most_once {
            found.extend(at_most_once(run, submission, runs));
        }
    }
    found.extend(beside_later_runs(runs));
    found
}

/// The result is what one of its starts said.
fn applied(run: &Run, submission: &Submission, runs: &Runs) -> Option<Violation> {
    let end = run.ended_as(State::Succeeded)?;
    let of = run.name();
    let bytes = match end.record.result.as_ref().map(|result| result.inline_bytes()) {
        Some(Some(Ok(bytes))) => bytes,
        None => return Some(Violation::WrongResult { of, found: "nothing".into() }),
        Some(None | Some(Err(_))) => {
            return Some(Violation::WrongResult { of, found: format!("{:?}", end.record.result) });
        }
    };
    let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
    let start = match submission.plan.kind {
        Kind::Call => {
            let answered = serde_json::from_slice::<Value>(&bytes).ok().and_then(|value| payload_nonce(&value));
            let right = answered.as_ref() == Some(&submission.nonce);
            return (!right).then_some(Violation::WrongResult { of, found: text });
        }
        Kind::Process | Kind::Container => match text.split_once(':') {
            Some((nonce, start)) if nonce == submission.nonce && !start.is_empty() => start,
            Some(_) | None => return Some(Violation::WrongResult { of, found: text }),
        },
    };
    let took_place = |other: &&Start| other.id == start && other.begins > 0 && other.ended;
    let Some(began) = runs.starts(&submission.nonce).iter().find(took_place) else {
        return Some(Violation::ResultOfNoStart { of, start: start.to_owned() });
    };
    let recorded = run.applied().and_then(|attempt| attempt.number).map_or(0, u32::from);
    (began.attempt != recorded).then_some(Violation::WrongNumber { of, told: began.attempt, recorded })
}

/// Two starts of one submission that were there at once.
pub struct Overlap<'h> {
    /// Whose.
    pub nonce: &'h str,
    /// The earlier.
    pub first: &'h str,
    /// The later.
    pub second: &'h str,
    /// Since when.
    pub from: i64,
    /// Until when, as far as it was seen.
    pub until: i64,
}

/// Every pair of starts of one submission that were there at once.
pub fn pairs<'h>(runs: &Runs<'h>) -> Vec<Overlap<'h>> {
    let mut pairs = Vec::new();
    for (nonce, starts) in &runs.starts {
        for (at, first) in starts.iter().enumerate() {
            // In the order of their beginning.
            for second in &starts[at + 1..] {
                let (from, until) = (second.first, first.last.min(second.last));
                if from < first.last {
                    pairs.push(Overlap { nonce, first: first.id, second: second.id, from, until });
                }
            }
        }
    }
    pairs
}

fn overlaps(runs: &Runs) -> Vec<Violation> {
    let unexcused = pairs(runs).into_iter().filter(|pair| !runs.windows.cover(pair.from, pair.until));
    let overlap = |pair: Overlap| Violation::Overlap {
        key: runs.asked.get(pair.nonce).map_or_else(String::new, |asked| asked.submission.key.clone()),
        nonce: pair.nonce.to_owned(),
        first: pair.first.to_owned(),
        second: pair.second.to_owned(),
        at: pair.from,
        ms: pair.until - pair.from,
    };
    unexcused.map(overlap).collect()
}

/// The latest effect of a submission after `moment` that no fault excuses: of which start, and how late it was.
///
/// A run that was cancelled may go on where its worker could not be told.
pub fn latest_after(runs: &Runs, nonce: &str, moment: i64, was_cancelled: bool) -> Option<(String, i64)> {
    let excused = |at: i64| runs.windows.cover(at, at) || (was_cancelled && runs.silences.cover(at, at));
    let seen = runs.starts(nonce).iter().flat_map(|start| start.seen.iter().map(|at| (start.id, *at)));
    let unexcused = seen.filter(|(_, at)| *at > moment && !excused(*at));
    unexcused.max_by_key(|(_, at)| *at).map(|(start, at)| (start.to_owned(), at - moment))
}

/// Nothing is left running after the end.
fn after_end(run: &Run, submission: &Submission, runs: &Runs) -> Option<Violation> {
    let over = over(run, submission, runs)?;
    let was_cancelled = run.ended_as(State::Cancelled).is_some();
    let (start, ms) = latest_after(runs, &submission.nonce, over + SLACK, was_cancelled)?;
    Some(Violation::EffectAfterEnd { of: run.name(), start, ms: ms + SLACK })
}

/// When a run must be over: at its end; where it was cancelled, once that is confirmed. A canceller writes the record
/// first, and until it has the message out of the queue a first delivery may still start, to be stopped at its first
/// write.
fn over(run: &Run, submission: &Submission, runs: &Runs) -> Option<i64> {
    let end = run.end()?;
    let confirmed = runs.history.cancels.iter().filter(|cancel| cancel.nonce == submission.nonce);
    let confirmed = confirmed.filter_map(|cancel| cancel.confirmed_at).max();
    Some(match end.record.state {
        State::Cancelled => end.at.max(confirmed.unwrap_or(end.at)),
        _ => end.at,
    })
}

/// Nothing of a run is there any more once a later run of its id has begun: not even for the moment that an end has.
fn beside_later_runs(runs: &Runs) -> Vec<Violation> {
    let mut later: BTreeMap<&str, (u64, i64)> = BTreeMap::new();
    let mut found = Vec::new();
    // From the newest run of each id to the oldest.
    for (run, submission) in runs.judged().collect::<Vec<_>>().into_iter().rev() {
        let since = runs.began(run, submission);
        if let Some((sequence, since)) = later.insert(run.key, (run.sequence, since))
            && let Some(over) = over(run, submission, runs)
            && let Some((start, ms)) =
                latest_after(runs, &submission.nonce, since, run.ended_as(State::Cancelled).is_some())
            // Said already.
            && since + ms <= over + SLACK
        {
            found.push(Violation::EffectInLaterRun { of: run.name(), start, ms, later: sequence });
        }
    }
    found
}

/// What asks for it is started at most once, by the job's word and by the record's.
fn at_most_once(run: &Run, submission: &Submission, runs: &Runs) -> Option<Violation> {
    let begins = runs.starts(&submission.nonce).iter().map(|start| start.begins).sum();
    if begins > 1 {
        return Some(Violation::BegunTwice { of: run.name(), begins });
    }
    let claims = run.revisions.iter().map(|revision| {
        let ran = revision.record.attempts.iter().filter(|a| a.start.is_some() && a.outcome != Outcome::FailedToStart);
        ran.count()
    });
    let starts = claims.max().unwrap_or(0);
    (starts > 1).then(|| Violation::ClaimedTwice { of: run.name(), starts })
}
