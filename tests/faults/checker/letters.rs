//! C: a dead letter for each failure, with what was sent and why it failed, and none for anything else. Letters of runs
//! without a record are judged with `ends`.

use schemas::State;

use super::runs::{Run, Runs};
use super::violation::Violation;
use crate::history::{Letter, Submission};

/// All of it.
pub fn check(runs: &Runs) -> Vec<Violation> {
    runs.judged().flat_map(|(run, submission)| of_run(run, submission, runs)).collect()
}

fn of_run(run: &Run, submission: &Submission, runs: &Runs) -> Vec<Violation> {
    let of_run = |letter: &&Letter| letter.key == run.key && letter.sequence == run.sequence;
    let letters: Vec<&Letter> = runs.history.letters.iter().filter(of_run).collect();
    let Some(end) = run.ended_as(State::Failed) else {
        let state = run.revisions.last().expect("a run is made of its revisions").record.state;
        let unfounded = Violation::UnfoundedLetter { of: run.name(), state };
        return if letters.is_empty() { Vec::new() } else { vec![unfounded] };
    };
    let reason = end.record.error.as_ref().map_or("", |error| error.code.as_str());
    let wrong = |what: &str| Violation::WrongLetter { of: run.name(), what: what.to_owned() };
    match letters.as_slice() {
        [] => vec![Violation::NoLetter { of: run.name() }],
        [letter] if letter.body != submission.body => vec![wrong("body")],
        [letter] if letter.reason != reason => vec![wrong(&format!("reason: {}, not {reason}", letter.reason))],
        [_] => Vec::new(),
        [_, ..] => vec![Violation::TwoLetters { of: run.name(), count: letters.len() }],
    }
}
