//! Runs a playbook.
//!
//! Steps run in order, each under its condition as things are then. Where a step fails and has rounds left, the
//! implementer is told what failed, and then every step after the implementer runs again: a build before the tests, tests
//! that passed before. What a step has said last counts. No step begins after the deadline, and none outlives it.

use std::borrow::Cow;
use std::time::Duration;

use futures_util::future::BoxFuture;
use schemas::condition::{Condition, Facts};
use schemas::playbook::{Step, StepKind};
use schemas::transcript::{ChangeReport, Event, StepOutcome, StepReport, TestReport};
use schemas::{Code, HumanDuration, Playbook, TaskError};
use tokio::time::Instant;

use super::told;
use crate::implementer::ImplementError;
use crate::line::Line;
use crate::retry::{Again, Retry};
use crate::secret::Mask;
use crate::shell::{Command, Ran, Shell};
use crate::testing::{self, Summary};

/// Bytes kept of each stream of a `test` step: the counts of all its sections should be among them.
const TEST_OUTPUT: usize = 4 << 20;

/// Who writes the change, seen from the playbook.
pub trait Author: Send {
    /// Works on the task; `failed` says what failed since. Dropped half way for a timeout, it leaves everything as it is.
    fn work<'a>(&'a mut self, failed: Option<&'a str>) -> BoxFuture<'a, Result<(), ImplementError>>;

    /// What the change touches now.
    fn change(&mut self) -> BoxFuture<'_, Result<ChangeReport, TaskError>>;
}

/// One run of a playbook.
pub struct Run<'a> {
    /// It.
    pub playbook: &'a Playbook,
    /// Where the command of its tests is from, for the record: `playbook`, or the name of a file of the repository.
    pub source: &'a str,
    /// Runs its commands.
    pub shell: &'a dyn Shell,
    /// The workspace's root as this process sees it: reports of tests are read there.
    pub tree: &'a std::path::Path,
    /// Hears of each step.
    pub line: &'a dyn Line,
    /// Over what is told.
    pub mask: &'a Mask,
    /// The author.
    pub author: &'a mut dyn Author,
    /// Nothing runs after this.
    pub deadline: Instant,
    /// Texts of the task and its attempt; the rest is found out.
    pub facts: Facts,
}

/// How it ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ended {
    /// Every step that ended, in order.
    pub steps: Vec<StepReport>,
    /// The tests' result: of the first `test` step that failed last, else of the last one that ran.
    pub tests: Option<TestReport>,
    /// A `test` step has judged the change as it is.
    pub tested: bool,
    /// How often the author has worked.
    pub rounds: u64,
    /// Why there is nothing to push, if so.
    pub error: Option<TaskError>,
}

/// What is known of one step while the playbook runs.
#[derive(Default)]
struct Known {
    report: Option<StepReport>,
    tests: Option<TestReport>,
    rounds: u32,
    /// A `test` step that ran last, after the author.
    tested: bool,
    /// Of such a step that has failed.
    gate: Option<TaskError>,
}

/// How the last try of a command ended.
struct Tried {
    ran: Ran,
    tests: Option<Summary>,
    /// In a few words.
    how: String,
    passed: bool,
    tries: u32,
    wall: Duration,
}

impl Run<'_> {
    /// Runs it to its end, or to the first failure that ends it.
    ///
    /// Cancel safe in that what runs then is stopped by whoever owns the shell and the author.
    pub async fn run(mut self) -> Ended {
        let steps: Vec<Cow<'_, Step>> = self.playbook.all_steps().collect();
        let mut known: Vec<Known> = steps.iter().map(|_| Known::default()).collect();
        let error = match self.conditions(&steps) {
            Ok(conditions) => self.steps(&steps, &conditions, &mut known).await.err().map(|error| *error),
            Err(error) => Some(*error),
        };
        let error = error.or_else(|| known.iter().find_map(|known| known.gate.clone()));
        let failed = known.iter().find(|known| known.gate.is_some()).and_then(|known| known.tests.clone());
        let tested = known.iter().any(|known| known.tested);
        Ended {
            tests: failed.or_else(|| known.iter().rev().find_map(|known| known.tests.clone())),
            steps: known.into_iter().filter_map(|known| known.report).collect(),
            tested,
            rounds: self.facts.round,
            error,
        }
    }

    /// Read again, whoever checked before: a step whose condition cannot be read never runs.
    fn conditions(&self, steps: &[Cow<'_, Step>]) -> Result<Vec<Option<Condition>>, Box<TaskError>> {
        let wrong = |error: String| Box::new(TaskError::new(Code::ContextInvalid, format!("the playbook: {error}")));
        self.playbook.check("").map_err(|error| wrong(error.to_string()))?;
        let names: Vec<&str> = steps.iter().map(|step| step.name.as_str()).collect();
        let parse = |(i, step): (usize, &Cow<'_, Step>)| {
            let parsed = step.condition.as_deref().map(|text| Condition::parse(text, &names[..i]));
            parsed.transpose().map_err(|error| wrong(error.to_string()))
        };
        steps.iter().enumerate().map(parse).collect()
    }

    async fn steps(
        &mut self,
        steps: &[Cow<'_, Step>],
        conditions: &[Option<Condition>],
        known: &mut [Known],
    ) -> Result<(), Box<TaskError>> {
        let mut worked: Option<usize> = None;
        let mut at = 0;
        while let Some(step) = steps.get(at) {
            self.left(step)?;
            if let Some(condition) = &conditions[at]
                && !self.holds(condition).await?
            {
                let report = known[at].report.get_or_insert_with(|| report(step));
                *report = StepReport { outcome: StepOutcome::Skipped, exit_code: None, ..report.clone() };
                (known[at].tests, known[at].tested, known[at].gate) = (None, false, None);
                self.note(step, StepOutcome::Skipped, None, format!("`{condition}` does not hold"));
                at += 1;
                continue;
            }
            if step.kind == StepKind::Implement {
                self.implement(step, None, &mut known[at]).await?;
                worked = Some(at);
                at += 1;
                continue;
            }
            let tried = self.command(step).await?;
            self.write_down(step, &tried, worked.is_some(), &mut known[at]);
            if tried.passed {
                at += 1;
                continue;
            }
            if tried.ran.timed_out && self.left(step).is_err() {
                let message = format!("the time was over in the step `{}`", step.name);
                return Err(TaskError::new(Code::TimedOut, message).into());
            }
            if let Some(author) = worked.filter(|_| known[at].rounds < step.rounds()) {
                known[at].rounds += 1;
                let tests = known[at].tests.as_ref();
                let failed = told::to_implementer(step, &tried.ran, &tried.how, tests, self.mask);
                self.implement(&steps[author], Some(&failed), &mut known[author]).await?;
                at = author + 1;
                continue;
            }
            // Before the author there is nothing to judge: it shows how things were.
            let shows_only = step.kind == StepKind::Test && worked.is_none();
            if step.fail_fast && !shows_only {
                return Err(self.failure(step, &tried).into());
            }
            at += 1;
        }
        Ok(())
    }

    /// What is left until the deadline.
    fn left(&self, step: &Step) -> Result<Duration, Box<TaskError>> {
        match self.deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            Some(left) => Ok(left),
            None => {
                Err(Box::new(TaskError::new(Code::TimedOut, format!("no time is left for the step `{}`", step.name))))
            }
        }
    }

    async fn holds(&mut self, condition: &Condition) -> Result<bool, Box<TaskError>> {
        if condition.asks_about_change() {
            self.facts.change = self.author.change().await?;
        }
        Ok(condition.holds(&self.facts))
    }

    async fn implement(&mut self, step: &Step, failed: Option<&str>, known: &mut Known) -> Result<(), Box<TaskError>> {
        let left = self.left(step)?;
        let limit = step.timeout.map_or(left, |timeout| timeout.0.min(left));
        let began = Instant::now();
        self.facts.round += 1;
        let done = tokio::time::timeout(limit, self.author.work(failed)).await;
        let error = match done {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_task_error()),
            Err(_) if limit == left => Some(TaskError::new(Code::TimedOut, "the time is over while implementing")),
            Err(_) => {
                let message = format!("the implementer was not done after {}", HumanDuration(limit));
                Some(TaskError::new(Code::ImplementationFailed, message))
            }
        };
        let outcome = if error.is_some() { StepOutcome::Failed } else { StepOutcome::Passed };
        let report = known.report.get_or_insert_with(|| report(step));
        report.outcome = outcome;
        report.tries += 1;
        report.wall_ms += millis(began.elapsed());
        let detail = error.as_ref().map(|error| error.message.clone()).unwrap_or_default();
        self.note(step, outcome, None, detail);
        error.map_or(Ok(()), |error| Err(Box::new(error)))
    }

    /// Tries a command until it passes or was tried often enough.
    async fn command(&mut self, step: &Step) -> Result<Tried, Box<TaskError>> {
        let retry = Retry { tries: step.retry_count + 1, ..Retry::default() }.until(self.deadline);
        let (mut tries, mut wall) = (0, Duration::ZERO);
        loop {
            let left = self.left(step)?;
            let limit = step.timeout.map_or(left, |timeout| timeout.0.min(left));
            let mut command = Command::line(step.command.clone().unwrap_or_default(), limit);
            if step.kind == StepKind::Test {
                command.keep = TEST_OUTPUT;
            }
            let began = std::time::SystemTime::now();
            // The shell's own bound, and ours: a shell that hangs does not make a job hang.
            let ran = tokio::time::timeout(left + STOP, self.shell.run(command)).await;
            let Ok(ran) = ran else {
                let message = format!("the step `{}` could not be stopped in time", step.name);
                return Err(TaskError::new(Code::TimedOut, message).into());
            };
            let ran = ran.map_err(|error| error.to_task_error())?;
            tries += 1;
            wall += ran.wall;
            let tests = match step.kind {
                StepKind::Test => self.summary(step, began, &ran).await,
                StepKind::Command | StepKind::Implement => None,
            };
            // Where exit code and counts disagree, whichever is worse holds.
            let passed = ran.is_ok() && tests.as_ref().is_none_or(|tests| tests.counts.failed == 0);
            let how = match &tests {
                Some(Summary { counts, .. }) => {
                    let (passed, failed, skipped) = (counts.passed, counts.failed, counts.skipped);
                    format!("{}; {passed} passed, {failed} failed, {skipped} skipped", ran.how())
                }
                None => ran.how(),
            };
            let tried = Tried { ran, tests, how, passed, tries, wall };
            if passed {
                return Ok(tried);
            }
            let Some(pause) = retry.pause(tries, Again::Soon) else { return Ok(tried) };
            self.line.tell(Event::Retry {
                what: format!("step `{}`", step.name),
                why: tried.how,
                after_ms: millis(pause),
            });
            tokio::time::sleep(pause).await;
        }
    }

    /// Read beside the runtime: output and reports may be large, the workspace too.
    /// No `async fn` of `&self`: the author is not `Sync`, and this is to be `Send`.
    fn summary(
        &self,
        step: &Step,
        began: std::time::SystemTime,
        ran: &Ran,
    ) -> impl Future<Output = Option<Summary>> + Send + use<> {
        let (tree, globs) = (self.tree.to_owned(), step.reports.clone());
        let (ran, mask) = (ran.clone(), self.mask.clone());
        let read = move || testing::summary(&tree, &globs, began, &ran, &mask);
        async move {
            tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| {
                tracing::error!(%error, "reading the output of a test failed");
                None
            })
        }
    }

    fn write_down(&mut self, step: &Step, tried: &Tried, after_author: bool, known: &mut Known) {
        let outcome = if tried.passed { StepOutcome::Passed } else { StepOutcome::Failed };
        let report = known.report.get_or_insert_with(|| report(step));
        report.outcome = outcome;
        report.exit_code = tried.ran.exit_code;
        report.tries += tried.tries;
        report.wall_ms += millis(tried.wall);
        if step.kind == StepKind::Test {
            self.facts.tests = tried.tests.as_ref().map(|tests| tests.counts).unwrap_or_default();
            known.tested = after_author;
            known.gate = (after_author && !tried.passed).then(|| self.failure(step, tried));
            known.tests = Some(TestReport {
                command: self.mask.text(step.command.as_deref().unwrap_or_default()),
                source: self.source.to_owned(),
                exit_code: tried.ran.exit_code,
                counts: tried.tests.as_ref().map(|tests| tests.counts),
                failed: tried.tests.as_ref().map(|tests| tests.failed.clone()).unwrap_or_default(),
            });
        }
        self.note(step, outcome, tried.ran.exit_code, tried.how.clone());
    }

    fn note(&mut self, step: &Step, outcome: StepOutcome, exit_code: Option<i32>, detail: String) {
        self.facts.steps.insert(step.name.clone(), (outcome, exit_code));
        self.line.tell(Event::Step { name: step.name.clone(), outcome, detail });
    }

    fn failure(&self, step: &Step, tried: &Tried) -> TaskError {
        let code = match step.kind {
            StepKind::Test => Code::TestsFailed,
            StepKind::Command | StepKind::Implement => Code::StepFailed,
        };
        let mut message = format!("step `{}`: {}", step.name, tried.how);
        if let Some(names) = tried.tests.as_ref().map(|tests| &tests.failed).filter(|names| !names.is_empty()) {
            message.push_str(&format!("; failed: {}", names.join(", ")));
        }
        let said = told::to_people(&tried.ran, self.mask);
        if !said.is_empty() {
            message.push_str(&format!("\n{said}"));
        }
        TaskError::new(code, self.mask.text(&message))
    }
}

/// A shell takes so long to stop what it runs, at most.
const STOP: Duration = Duration::from_secs(30);

fn report(step: &Step) -> StepReport {
    StepReport { name: step.name.clone(), outcome: StepOutcome::Skipped, exit_code: None, tries: 0, wall_ms: 0 }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
