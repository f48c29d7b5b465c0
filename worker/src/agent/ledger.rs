//! The account of one run: each phase with its times and retries, told on the line as it happens.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agents::{Line, Unanswered};
use futures_util::future::BoxFuture;
use schemas::transcript::{Event, JobPhase, PhaseReport, StepReport};
use schemas::{TaskError, Timestamp};

use super::line::JobLine;

/// Cheap to clone. A [`Line`] that counts what is tried again.
#[derive(Clone)]
pub struct Ledger {
    line: JobLine,
    phases: Arc<Mutex<Vec<PhaseReport>>>,
}

impl Ledger {
    /// Nothing has happened yet.
    pub fn new(line: JobLine) -> Self {
        Self { line, phases: Arc::default() }
    }

    fn phases(&self) -> MutexGuard<'_, Vec<PhaseReport>> {
        self.phases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A phase begins; the one before it is over, well. To begin the one that is open changes nothing.
    pub fn begin(&self, phase: JobPhase) {
        if self.open() == Some(phase) {
            return;
        }
        self.over();
        self.phases().push(PhaseReport { phase, began: Timestamp::now(), ended: None, retries: 0, code: None });
        self.line.tell(Event::PhaseBegan { phase });
    }

    /// The phase that is open, if one is, went well.
    pub fn over(&self) {
        self.end(None);
    }

    /// The phase that is open, if one is, failed.
    pub fn failed(&self, error: &TaskError) {
        self.end(Some(error));
    }

    fn end(&self, error: Option<&TaskError>) {
        let mut phases = self.phases();
        let Some(open) = phases.last_mut().filter(|phase| phase.ended.is_none()) else { return };
        (open.ended, open.code) = (Some(Timestamp::now()), error.map(|error| error.code));
        let phase = open.phase;
        drop(phases);
        self.line.tell(Event::PhaseEnded { phase, error: error.cloned() });
    }

    /// The phase that is open.
    pub fn open(&self) -> Option<JobPhase> {
        self.phases().last().filter(|phase| phase.ended.is_none()).map(|phase| phase.phase)
    }

    /// All of it.
    pub fn report(&self) -> Vec<PhaseReport> {
        self.phases().clone()
    }
}

/// The steps of several runs of one playbook: what a step said last counts, its tries and times are summed. An author
/// who had nothing to do in the later run has not tried.
pub fn added(mut before: Vec<StepReport>, now: Vec<StepReport>, idle: &[String]) -> Vec<StepReport> {
    for step in now {
        match before.iter_mut().find(|earlier| earlier.name == step.name) {
            Some(earlier) => {
                let tries = earlier.tries + step.tries - u32::from(idle.contains(&step.name)).min(step.tries);
                *earlier = StepReport { tries, wall_ms: earlier.wall_ms + step.wall_ms, ..step };
            }
            None => before.push(step),
        }
    }
    before
}

impl Line for Ledger {
    fn tell(&self, event: Event) {
        if matches!(event, Event::Retry { .. })
            && let Some(open) = self.phases().last_mut().filter(|phase| phase.ended.is_none())
        {
            open.retries += 1;
        }
        self.line.tell(event);
    }

    fn ask<'a>(&'a self, question: &'a str) -> BoxFuture<'a, Result<String, Unanswered>> {
        self.line.ask(question)
    }

    fn heard(&self) -> Vec<String> {
        self.line.heard()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::transcript::StepOutcome::{self, Failed, Passed, Skipped};

    fn step(name: &str, outcome: StepOutcome, tries: u32, wall_ms: u64) -> StepReport {
        StepReport { name: name.to_owned(), outcome, exit_code: None, tries, wall_ms }
    }

    #[test]
    fn a_step_that_ran_again_has_both_its_tries_and_times_and_its_last_outcome() {
        let first = vec![step("write", Passed, 1, 900), step("lint", Skipped, 0, 0), step("test", Passed, 2, 50)];
        let second = vec![step("write", Passed, 1, 0), step("lint", Passed, 1, 7), step("test", Failed, 1, 30)];
        let expected = [step("write", Passed, 1, 900), step("lint", Passed, 1, 7), step("test", Failed, 3, 80)];
        assert_eq!(added(first.clone(), second, &["write".to_owned()]), expected);
        // The tests failed, and the author worked after all.
        let third = vec![step("write", Passed, 2, 100)];
        let expected = [step("write", Passed, 2, 1000), step("lint", Skipped, 0, 0), step("test", Passed, 2, 50)];
        assert_eq!(added(first.clone(), third, &["write".to_owned()]), expected);
        assert_eq!(added(Vec::new(), first.clone(), &["write".to_owned()]), first);
    }
}
