//! A: every accepted run has exactly one end, one that its plan allows; what was refused or never sent leaves nothing.

use std::collections::{BTreeMap, BTreeSet};

use schemas::{Code, Outcome, State};

use super::kills;
use super::runs::{Run, Runs, SLACK};
use super::violation::{Of, Trace, Violation};
use crate::history::{Kind, Submission};

/// All of it.
pub fn check(runs: &Runs) -> Vec<Violation> {
    let mut found = Vec::new();
    found.extend(submitted(runs));
    found.extend(traces(runs));
    found.extend(order(runs));
    for (run, submission) in runs.judged() {
        found.extend(before_sent(run, submission, runs));
        found.extend(one_end(run, runs));
        found.extend(allowed(run, submission, runs));
        found.extend(losses(run));
    }
    found
}

/// What was submitted is one run, and its own.
fn submitted(runs: &Runs) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut of_nonce: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
    for (run, submission) in runs.judged() {
        of_nonce.entry(&submission.nonce).or_default().insert(run.sequence);
    }
    for (nonce, asked) in &runs.asked {
        let (key, nonce) = (asked.submission.key.clone(), (*nonce).to_owned());
        for sequence in &asked.accepted {
            let of = Of { key: key.clone(), sequence: *sequence, nonce: nonce.clone() };
            match runs.all.get(&(key.as_str(), *sequence)) {
                None => found.push(Violation::NoRecord { of }),
                Some(run) => match &run.nonce {
                    Some(found_nonce) if *found_nonce != nonce => {
                        found.push(Violation::WrongTask { of, found: found_nonce.clone() });
                    }
                    Some(_) | None => {}
                },
            }
        }
        let mut sequences = of_nonce.remove(nonce.as_str()).unwrap_or_default();
        sequences.extend(&asked.accepted);
        if sequences.len() > 1 {
            found.push(Violation::StoredTwice { nonce, key, sequences: sequences.into_iter().collect() });
        }
    }
    found
}

/// Nothing is left of what was refused or never submitted, and nothing but a record's run of what was never answered.
/// (Letters of runs with a record are judged with them.)
fn traces(runs: &Runs) -> Vec<Violation> {
    let mut found = Vec::new();
    for run in runs.all.values() {
        let trace = Trace::Record;
        match run.submission {
            Some(submission) if run.refused => {
                let (key, nonce) = (submission.key.clone(), submission.nonce.clone());
                found.push(Violation::RefusedRan { key, nonce, trace });
            }
            Some(_) => {}
            None => found.push(Violation::Unsubmitted { what: run.name().to_string(), trace }),
        }
    }
    let letters = runs.history.letters.iter().filter(|letter| !runs.all.contains_key(&(&letter.key, letter.sequence)));
    for letter in letters {
        let sent = runs.asked.values().find(|asked| {
            asked.submission.key == letter.key
                && (asked.accepted.contains(&letter.sequence) || asked.submission.body == letter.body)
        });
        found.extend(trace(runs, sent.map(|asked| asked.submission), &letter.key, Trace::Letter));
    }
    for nonce in runs.starts.keys() {
        let sent = runs.asked.get(nonce).map(|asked| asked.submission);
        found.extend(trace(runs, sent, nonce, Trace::Effect));
    }
    found
}

/// What `trace` says against a submission that may have no record; `what` names it where there is none.
fn trace(runs: &Runs, sent: Option<&Submission>, what: &str, trace: Trace) -> Option<Violation> {
    let Some(submission) = sent else {
        return Some(Violation::Unsubmitted { what: what.to_owned(), trace });
    };
    let asked = &runs.asked[submission.nonce.as_str()];
    let (key, nonce) = (submission.key.clone(), submission.nonce.clone());
    if asked.refused {
        return Some(Violation::RefusedRan { key, nonce, trace });
    }
    // What was accepted must have a record anyway.
    let missing = asked.accepted.is_empty() && runs.of_nonce(&nonce).next().is_none();
    missing.then_some(Violation::NothingButTraces { key, nonce, trace })
}

/// No older run of an id writes after a newer one.
fn order(runs: &Runs) -> Vec<Violation> {
    let mut newest: BTreeMap<&str, u64> = BTreeMap::new();
    let mut found: BTreeMap<(&str, u64), Violation> = BTreeMap::new();
    for revision in &runs.history.revisions {
        let sequence = revision.record.sequence;
        let newest = newest.entry(&revision.key).or_insert(sequence);
        if sequence < *newest {
            let of = runs.all[&(revision.key.as_str(), sequence)].name();
            let violation = Violation::OutOfOrder { of, revision: revision.revision, after: *newest };
            found.entry((&revision.key, sequence)).or_insert(violation);
        }
        *newest = sequence.max(*newest);
    }
    found.into_values().collect()
}

/// Nothing comes before it was sent.
fn before_sent(run: &Run, submission: &Submission, runs: &Runs) -> Option<Violation> {
    let ms = submission.sent_at - runs.began(run, submission);
    (ms > SLACK).then(|| Violation::BeforeSent { of: run.name(), ms })
}

/// Exactly one terminal revision, and none after it.
fn one_end(run: &Run, runs: &Runs) -> Vec<Violation> {
    let states: Vec<State> = run.revisions.iter().map(|revision| revision.record.state).collect();
    let Some(first) = states.iter().position(|state| state.is_terminal()) else {
        let state = *states.last().expect("a run is made of its revisions");
        // A more telling word for the same.
        let abandoned = kills::abandoned(run, runs).is_some();
        return if abandoned { Vec::new() } else { vec![Violation::NoEnd { of: run.name(), state }] };
    };
    let mut found = Vec::new();
    let ends: Vec<State> = states.iter().copied().filter(|state| state.is_terminal()).collect();
    if ends.len() > 1 {
        found.push(Violation::TwoEnds { of: run.name(), states: ends });
    }
    if let Some(late) = run.revisions[first..].iter().find(|revision| !revision.record.state.is_terminal()) {
        let (revision, state) = (late.revision, late.record.state);
        found.push(Violation::WroteAfterEnd { of: run.name(), revision, state });
    }
    found
}

/// The end is the planned one, or one that trouble may cause.
fn allowed(run: &Run, submission: &Submission, runs: &Runs) -> Option<Violation> {
    let end = run.end()?;
    let (of, plan, record) = (run.name(), submission.plan, &end.record);
    let code = record.error.as_ref().map(|error| error.code);
    let why = || record.error.as_ref().map_or_else(String::new, |error| format!("{}: {}", error.code, error.message));
    match record.state {
        State::Running | State::Retrying => None,
        State::Cancelled => {
            let mut asked = runs.history.cancels.iter().filter(|cancel| cancel.nonce == submission.nonce);
            (!asked.any(|cancel| cancel.asked_at <= end.at)).then_some(Violation::CancelledUnasked { of })
        }
        State::Lost => {
            let by_worker = code == Some(Code::WorkerLost);
            // A container that ends with its engine is as lost as one that ends with its worker.
            let by_engine = code == Some(Code::EngineLost) && plan.kind == Kind::Container;
            let allowed = plan.at_most_once && (by_worker || by_engine);
            (!allowed).then(|| Violation::LostUnasked { of, why: why() })
        }
        State::Expired => (!plan.expires).then_some(Violation::ExpiredUnasked { of }),
        State::Failed if code == Some(Code::LostTooOften) => Some(Violation::Condemned { of }),
        state @ (State::Succeeded | State::Failed) if state == plan.end => {
            let numbers: Vec<u32> =
                record.attempts.iter().filter_map(|attempt| attempt.number).map(u32::from).collect();
            let planned: Vec<u32> = (1..=plan.attempts).collect();
            (numbers != planned).then_some(Violation::WrongAttempts {
                of,
                found: numbers.len(),
                planned: plan.attempts,
            })
        }
        end @ (State::Succeeded | State::Failed) => {
            Some(Violation::WrongEnd { of, end, planned: plan.end, why: why() })
        }
    }
}

/// A loss spends no attempt.
fn losses(run: &Run) -> Option<Violation> {
    let spent = run.revisions.iter().find(|revision| {
        let lost = |outcome| matches!(outcome, Outcome::Lost | Outcome::HandedBack);
        revision.record.attempts.iter().any(|attempt| attempt.number.is_some() && lost(attempt.outcome))
    })?;
    Some(Violation::NumberedLoss { of: run.name(), revision: spent.revision })
}
