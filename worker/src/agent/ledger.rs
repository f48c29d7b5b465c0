//! The account of one run: each phase with its times and retries, told on the line as it happens.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agents::{Line, Unanswered};
use futures_util::future::BoxFuture;
use schemas::transcript::{Event, JobPhase, PhaseReport};
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
