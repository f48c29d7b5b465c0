//! A history sorted out: which revisions, starts and submission belong to which run.

use std::collections::{BTreeMap, BTreeSet};

use schemas::{Attempt, Outcome, State};
use serde_json::Value;

use super::violation::Of;
use crate::history::{Answer, Effect, Fault, History, Moment, Revision, Submission};

/// What runs leave behind after their end counts from this many milliseconds on.
pub const SLACK: i64 = 1_000;

/// A history by run.
pub struct Runs<'h> {
    /// All of it.
    pub history: &'h History,
    /// By nonce: all tries of one submission taken together.
    pub asked: BTreeMap<&'h str, Asked<'h>>,
    /// By key and sequence: every run that has a record.
    pub all: BTreeMap<(&'h str, u64), Run<'h>>,
    /// By nonce: every start that left effects, in the order of their first.
    pub starts: BTreeMap<&'h str, Vec<Start<'h>>>,
    /// When two starts of one run may be there at once.
    pub windows: Windows,
    /// When a worker could not be told that a run was cancelled.
    pub silences: Windows,
    /// When the server did not answer everybody.
    pub absences: Windows,
}

/// What one submission came to.
pub struct Asked<'h> {
    /// The submission.
    pub submission: &'h Submission,
    /// Under which sequences its submitter was told that it is stored; one, if all is well.
    pub accepted: BTreeSet<u64>,
    /// Not stored, for sure.
    pub refused: bool,
}

/// One run: all revisions of one key with one sequence.
pub struct Run<'h> {
    /// `<queue>.<id>`.
    pub key: &'h str,
    /// Its message's place in the stream.
    pub sequence: u64,
    /// Whose task its record holds.
    pub nonce: Option<String>,
    /// Which submission this is the run of; `None`: nobody's.
    pub submission: Option<&'h Submission>,
    /// That submission was refused for sure.
    pub refused: bool,
    /// Oldest first.
    pub revisions: Vec<&'h Revision>,
}

/// One start, by what it wrote down itself.
pub struct Start<'h> {
    /// The job's own word for it.
    pub id: &'h str,
    /// The number that it was told.
    pub attempt: u32,
    /// How often it says that it began.
    pub begins: usize,
    /// Whether it came to its end.
    pub ended: bool,
    /// When it was first seen.
    pub first: i64,
    /// When it was last seen.
    pub last: i64,
    /// Every moment at which it was seen.
    pub seen: Vec<i64>,
}

impl<'h> Runs<'h> {
    /// Sorts `history` out.
    pub fn of(history: &'h History) -> Self {
        let mut asked: BTreeMap<&str, Asked> = BTreeMap::new();
        for submission in &history.submissions {
            let first = || Asked { submission, accepted: BTreeSet::new(), refused: true };
            let asked = asked.entry(&submission.nonce).or_insert_with(first);
            match submission.answer {
                Answer::Accepted(sequence) => {
                    asked.accepted.insert(sequence);
                    asked.refused = false;
                }
                Answer::Unknown => asked.refused = false,
                Answer::Refused => {}
            }
        }
        let mut all: BTreeMap<(&str, u64), Run> = BTreeMap::new();
        for revision in &history.revisions {
            let (key, sequence) = (revision.key.as_str(), revision.record.sequence);
            let run = all.entry((key, sequence)).or_insert_with(|| Run::new(key, sequence));
            run.nonce = run.nonce.take().or_else(|| nonce_of(revision, &asked));
            run.revisions.push(revision);
        }
        let accepted: BTreeMap<(&str, u64), &str> = asked
            .values()
            .flat_map(|asked| asked.accepted.iter().map(move |sequence| (asked, *sequence)))
            .map(|(asked, sequence)| ((asked.submission.key.as_str(), sequence), asked.submission.nonce.as_str()))
            .collect();
        for run in all.values_mut() {
            let named = run.nonce.as_deref().and_then(|nonce| asked.get(nonce));
            let named = named.filter(|asked| asked.submission.key == run.key);
            // A record that does not tell whose it is belongs to whom the server told this sequence.
            let told = || accepted.get(&(run.key, run.sequence)).and_then(|nonce| asked.get(nonce));
            if let Some(asked) = named.or_else(told) {
                run.submission = Some(asked.submission);
                run.refused = asked.refused;
            }
        }
        let windows = Windows::of(history, |fault| fault.may_overlap);
        let silences = Windows::of(history, |fault| fault.silent);
        let absences = Windows::of(history, |fault| fault.away);
        Self { history, asked, all, starts: starts(&history.effects), windows, silences, absences }
    }

    /// Runs that are judged: of submissions that were, or may have been, accepted.
    pub fn judged(&self) -> impl Iterator<Item = (&Run<'h>, &'h Submission)> {
        let judged = self.all.values().filter(|run| !run.refused);
        judged.filter_map(|run| run.submission.map(|submission| (run, submission)))
    }

    /// The runs of one submission; one, if all is well.
    pub fn of_nonce(&self, nonce: &str) -> impl Iterator<Item = &Run<'h>> {
        self.all.values().filter(move |run| run.submission.is_some_and(|submission| submission.nonce == nonce))
    }

    /// When the first trace of a run was left.
    pub fn began(&self, run: &Run, submission: &Submission) -> i64 {
        let recorded = run.revisions.first().map(|revision| revision.at);
        let begun = self.starts(&submission.nonce).first().map(|start| start.first);
        recorded.into_iter().chain(begun).min().expect("a run is made of its revisions")
    }

    /// What the starts of a submission wrote down.
    pub fn starts(&self, nonce: &str) -> &[Start<'h>] {
        self.starts.get(nonce).map_or(&[], Vec::as_slice)
    }
}

impl<'h> Run<'h> {
    fn new(key: &'h str, sequence: u64) -> Self {
        Self { key, sequence, nonce: None, submission: None, refused: false, revisions: Vec::new() }
    }

    /// How to find it by hand.
    pub fn name(&self) -> Of {
        let nonce = self.submission.map(|submission| submission.nonce.clone());
        Of {
            key: self.key.to_owned(),
            sequence: self.sequence,
            nonce: nonce.or(self.nonce.clone()).unwrap_or_default(),
        }
    }

    /// Its terminal revision; the first, should there be two.
    pub fn end(&self) -> Option<&'h Revision> {
        self.revisions.iter().find(|revision| revision.record.state.is_terminal()).copied()
    }

    /// Its terminal revision, if that says `state`.
    pub fn ended_as(&self, state: State) -> Option<&'h Revision> {
        self.end().filter(|end| end.record.state == state)
    }

    /// The start whose outcome is applied, by the worker's own word: the last of its end.
    pub fn applied(&self) -> Option<&'h Attempt> {
        self.end()?.record.attempts.last().filter(|attempt| attempt.outcome == Outcome::Exited)
    }
}

/// Whose task the record holds: a random word in its environment or its payload, or the submitter's own id.
fn nonce_of(revision: &Revision, asked: &BTreeMap<&str, Asked>) -> Option<String> {
    let task = revision.record.task.as_ref().and_then(|task| serde_json::from_str::<Value>(task.get()).ok());
    let named = task.as_ref().map(|task| &task["workload"]).and_then(|workload| {
        workload["env"]["NONCE"].as_str().map(str::to_owned).or_else(|| payload_nonce(&workload["payload"]))
    });
    let submission = || revision.record.submission.clone().filter(|id| asked.contains_key(id.as_str()));
    named.or_else(submission)
}

/// The nonce in the payload of a call, or in its answer.
pub fn payload_nonce(payload: &Value) -> Option<String> {
    payload.as_str().or_else(|| payload["nonce"].as_str()).map(str::to_owned)
}

fn starts(effects: &[Effect]) -> BTreeMap<&str, Vec<Start<'_>>> {
    let mut by_nonce: BTreeMap<&str, Vec<Start>> = BTreeMap::new();
    for effect in effects {
        let starts = by_nonce.entry(&effect.nonce).or_default();
        let at = starts.iter().position(|start| start.id == effect.start).unwrap_or_else(|| {
            let (id, attempt, at) = (effect.start.as_str(), effect.attempt, effect.at);
            starts.push(Start { id, attempt, begins: 0, ended: false, first: at, last: at, seen: Vec::new() });
            starts.len() - 1
        });
        let start = &mut starts[at];
        start.first = start.first.min(effect.at);
        start.last = start.last.max(effect.at);
        start.seen.push(effect.at);
        match effect.what {
            Moment::Begin => start.begins += 1,
            Moment::Alive => {}
            Moment::End => start.ended = true,
        }
    }
    for starts in by_nonce.values_mut() {
        starts.sort_by_key(|start| start.first);
    }
    by_nonce
}

/// Spans of time in which two starts of one run may be there at once, none touching another.
#[derive(Debug)]
pub struct Windows(Vec<(i64, i64)>);

impl Windows {
    fn of(history: &History, lasts: impl Fn(&Fault) -> Option<i64>) -> Self {
        let spans =
            history.faults.iter().filter_map(|fault| lasts(fault).map(|after| (fault.from, fault.until + after)));
        let mut spans: Vec<(i64, i64)> = spans.collect();
        spans.sort_unstable();
        let mut merged: Vec<(i64, i64)> = Vec::new();
        for (from, until) in spans {
            match merged.last_mut() {
                Some(last) if from <= last.1 => last.1 = last.1.max(until),
                Some(_) | None => merged.push((from, until)),
            }
        }
        Self(merged)
    }

    /// Whether any of `from..=until` lies in one of them.
    pub fn touch(&self, from: i64, until: i64) -> bool {
        self.0.iter().any(|window| window.0 <= until && from <= window.1)
    }

    /// Whether all of `from..=until` lies in one of them.
    pub fn cover(&self, from: i64, until: i64) -> bool {
        self.0.iter().any(|window| window.0 <= from && until <= window.1)
    }
}
