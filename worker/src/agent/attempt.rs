//! The phases of an attempt, in order, and what follows its end or its stop.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agents::git::{Login, Order, Pushed};
use agents::retry::{Retry, retried};
use agents::secret::{Mask, Secret};
use agents::workspace::{Remote, Slot, WorkspaceError};
use agents::{Line, Used, prompt};
use schemas::agent_job::{AgentJob, Implementer as Wish, PATCH, PushPolicy, SlotLease};
use schemas::record::Artifact;
use schemas::transcript::{AgentReport, Event, JobPhase, TestReport};
use schemas::{Code, More, TaskError};
use tokio::sync::watch;

use super::implementing::Implementing;
use super::keep::Kept;
use super::ledger::Ledger;
use super::line::JobLine;
use super::outside::PoolSlot;
use super::plan::Plan;
use super::run::{JOB_LOG, JobFolder, PUT_AWAY, put};
use super::shell::JobShell;
use super::standing::{Earlier, Standing};
use super::{Agents, author, lease};
use crate::attempt::phase::End;
use crate::attempt::workload::{Done, Work, limit, stopping};
use crate::fail;
use crate::logs::LogWriter;
use crate::runtime::Exit;
use crate::worker::Worker;

pub(super) const TESTS: &str = "tests.json";
/// How often a push may find that the remote has moved.
pub(super) const MOVES: u32 = 5;
/// The deadline of a job whose timeout is `unlimited`.
pub(super) const UNLIMITED: Duration = Duration::from_secs(365 * 86_400);

/// One attempt, and all that it knows.
pub(super) struct Attempt<'a> {
    pub(super) worker: &'a Worker,
    pub(super) agents: &'a Agents,
    pub(super) work: &'a Work,
    pub(super) job: &'a AgentJob,
    pub(super) line: JobLine,
    pub(super) ledger: Ledger,
    pub(super) mask: Mask,
    pub(super) log: LogWriter,
    pub(super) folder: &'a Path,
    pub(super) runtime: Arc<dyn crate::runtime::Runtime>,
    pub(super) state: Mutex<Known>,
    pub(super) began: Instant,
}

/// What is known so far, for the report and for whoever goes on.
#[derive(Clone, Default)]
pub(super) struct Known {
    pub(super) report: AgentReport,
    pub(super) kept: Kept,
    /// A push of ours is under way: what it pushes, and whether the branch was not there before.
    pub(super) pushing: Option<(String, bool)>,
    pub(super) artifacts: Vec<Artifact>,
    /// What was used before this attempt, and whether the model's price is known; once an implementer is there.
    pub(super) counted: Option<(Used, bool)>,
    /// Somebody implements, and the time was last counted then.
    pub(super) working: Option<Instant>,
    /// Of the pool outside, where there is one.
    pub(super) pooled: Option<PoolSlot>,
    pub(super) result: Option<schemas::record::TaskResult>,
    pub(super) warnings: Vec<String>,
}

/// A step of the run that failed.
pub(super) type Failed = TaskError;

impl Attempt<'_> {
    pub(super) fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn retry(&self) -> Retry {
        Retry::default().until(tokio::time::Instant::from_std(self.deadline()))
    }

    /// Nothing is begun after it.
    pub(super) fn deadline(&self) -> Instant {
        let queue = self.worker.queues.iter().find(|queue| queue.name == self.work.key.queue);
        let defaults = queue.map(|queue| queue.settings().defaults.clone()).unwrap_or_default();
        self.began + limit(self.work.task.policy(&defaults).timeout).unwrap_or(UNLIMITED)
    }

    pub(super) fn warn(&self, warning: String) {
        self.line.tell(Event::Note { text: warning.clone() });
        self.known().warnings.push(self.mask.text(&warning));
    }

    /// From the first look to the report, or to the stop; everything that it made is gone then.
    pub(super) async fn whole(&self, stop: &mut watch::Receiver<Option<Duration>>) -> Done {
        let mut slot = None;
        let mut shell = None;
        let ended = {
            let running = self.phases(&mut slot, &mut shell);
            tokio::pin!(running);
            tokio::select! {
                biased;
                ended = &mut running => Ok(ended),
                grace = stopping(stop) => Err(grace),
            }
        };
        let end = match &ended {
            Ok(Ok(())) => {
                // It is done, and told so outside: from here on no cancel and no deadline makes it something else.
                self.work.exited.store(true, std::sync::atomic::Ordering::Release);
                End::Succeeded
            }
            Ok(Err(error)) => {
                self.ledger.failed(error);
                End::failed(self.masked(error))
            }
            Err(_) => {
                // By its last whole turn: the implementer is gone.
                let used = self.known().kept.progress.used;
                self.count_used(used);
                let error = TaskError::new(Code::Cancelled, "stopped");
                self.ledger.failed(&error);
                End::failed(error)
            }
        };
        let grace = ended.as_ref().err().copied();
        if let Some(shell) = &shell {
            shell.close(grace.unwrap_or(Duration::ZERO)).await;
        }
        // Where somebody else may have it by now, there is no time for anything but this.
        let patience = grace.map_or(PUT_AWAY.1, |grace| grace.clamp(PUT_AWAY.0, PUT_AWAY.1));
        let stopped = grace.is_some();
        let away = async {
            if stopped {
                self.take_back(slot.as_mut()).await;
            }
            if let (Some(slot), false) = (&slot, end == End::Succeeded) {
                let why = match &end {
                    End::Failed { error, .. } => Some(format!("{}: {}", error.code, error.message)),
                    End::Succeeded | End::Stopped(_) => None,
                };
                self.keep_at_the_end(slot, why).await;
            }
            if let Some(shell) = &shell
                && !shell.last_words().await
            {
                self.warn("what its commands wrote last is not in the log".to_owned());
            }
            self.leave_logs().await;
        };
        if tokio::time::timeout(patience, away).await.is_err() {
            self.warn("not everything of the attempt could be put away in time".to_owned());
        }
        if let Some(slot) = slot {
            let number = slot.number() as u32;
            if let Err(error) = slot.release().await {
                tracing::warn!(task = %self.work.key, %error, "a workspace is not left clean; it is made clean before its next use");
            }
            lease::free(self.worker, number).await;
        }
        let pooled = self.known().pooled.take();
        if let Some(pooled) = pooled
            && let Some(why) = self.agents.outside.give_back(&pooled).await
        {
            self.warn(why);
        }
        if end == End::Succeeded {
            self.forget_but_the_push().await;
        }
        let mut usage = shell.map(|shell| shell.used()).unwrap_or_default();
        usage.wall_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let known = self.known().clone();
        Done {
            exit: Some(Exit { usage, ..Exit::default() }),
            result: known.result.filter(|_| end == End::Succeeded),
            artifacts: known.artifacts,
            warnings: known.warnings,
            agent: Some(Box::new(AgentReport { phases: self.ledger.report(), ..known.report })),
            ..Done::new(end)
        }
    }

    /// The error as it may be shown.
    pub(super) fn masked(&self, error: &TaskError) -> TaskError {
        TaskError { message: self.mask.text(&error.message), ..error.clone() }.bounded()
    }

    pub(super) fn remote(&self) -> Remote {
        let git = &self.worker.config.agents.git;
        let login = |token: &Arc<Secret>| Login { user: git.user.clone(), token: token.clone() };
        let token = self.worker.config.agents.token_for(&self.job.repository);
        if token.is_none() && git.token.is_some() && self.job.repository.starts_with("http") {
            let text = "the git token is not given to this host: neither `git-token-hosts` nor `allowed-repositories` names it";
            self.line.tell(Event::Note { text: text.to_owned() });
        }
        Remote { url: self.job.repository.clone(), login: token.map(login), mask: self.mask.clone() }
    }

    /// Again what may pass, told on the line.
    pub(super) async fn again<T, F>(&self, what: &str, work: impl FnMut() -> F) -> Result<T, Failed>
    where
        F: Future<Output = Result<T, WorkspaceError>>,
    {
        retried(&self.retry(), what, WorkspaceError::again, |event| self.ledger.tell(event), work)
            .await
            .map_err(|error| error.to_task_error())
    }

    async fn phases(&self, slot: &mut Option<Slot>, shell: &mut Option<JobShell>) -> Result<(), Failed> {
        let (worker, work, job) = (self.worker, self.work, self.job);
        let branch = job.branch_of(&work.key.id);
        worker.config.agents.check(job, &branch)?;
        let mut implementer = self.implementer_settings()?;
        let earlier = self.earlier().await?;

        self.ledger.begin(JobPhase::Slot);
        let pooled =
            self.agents.outside.slot(worker, work, &job.repository, self.retry(), |event| self.ledger.tell(event));
        let pooled = pooled.await.map_err(|error| TaskError::new(Code::WorkspaceFailed, error.to_string()))?;
        self.known().pooled.clone_from(&pooled);
        let remote = self.remote();
        let taken = self.again("slot", || self.agents.workspaces.take(&remote)).await?;
        let told = SlotLease {
            task: work.key.to_string(),
            start: work.start.clone(),
            worker: worker.id.clone(),
            instance: worker.instance.clone(),
            repository: job.repository.clone(),
            since: worker.js.now(),
            more: More::default(),
        };
        let number = taken.number() as u32;
        *slot = Some(taken);
        let holding = lease::hold(worker, number, &told);
        let rest = self.in_slot(slot.as_mut().expect("just taken"), shell, &branch, &mut implementer, earlier);
        let renewing = async {
            match &pooled {
                Some(pooled) => self.agents.outside.renew(pooled, |why| self.warn(why)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            done = rest => done,
            never = holding => match never {},
            never = renewing => match never {},
        }
    }

    async fn in_slot(
        &self,
        slot: &mut Slot,
        shell: &mut Option<JobShell>,
        branch: &str,
        implementer: &mut Implementing,
        earlier: Option<Earlier>,
    ) -> Result<(), Failed> {
        let Some(Standing { fetched, base, plan, resumed }) = self.stand(slot, branch, earlier).await? else {
            return Ok(());
        };
        self.ledger.begin(JobPhase::Branch);
        let opened = self.open_shell(slot)?;
        let opened: &JobShell = shell.insert(opened);
        opened.prepare().await?;
        let mut skip = resumed.as_ref().is_some_and(|resumed| resumed.implemented);
        let mut who = implementer.build(self, resumed.map(|resumed| resumed.progress))?;
        {
            let mut known = self.known();
            known.report.model = who.model();
            known.counted = Some((known.kept.progress.used, implementer.is_priced()));
        }
        let told = self.told(&plan);
        fail::point("agent_ready");
        let (mut moves, mut at) = (0, base);
        loop {
            let ended = self.implement(slot, opened, who.as_mut(), &plan, branch, &told, skip).await;
            self.count_used(who.used());
            {
                let mut known = self.known();
                known.report.steps.clone_from(&ended.steps);
                known.report.tests.clone_from(&ended.tests);
            }
            self.keep_tests(ended.tests.as_ref()).await;
            if let Some(error) = ended.error {
                return Err(error);
            }
            if self.job.playbook.is_some() && !ended.tested {
                self.warn(
                    "the change is not tested: no `test` step of the playbook ran after the implementer".to_owned(),
                );
            }
            self.known().kept.implemented = true;

            self.ledger.begin(JobPhase::Commit);
            let (commit, patch) = self.commit(slot).await?;
            if self.job.push == PushPolicy::Patch {
                break;
            }
            self.ledger.begin(JobPhase::Push);
            let order = Order {
                commit,
                base: fetched.base_name.clone(),
                branch: branch.to_owned(),
                began: fetched.branch.clone(),
                mark: self.mark(),
                author: author(&self.worker.config.agents.git.author),
            };
            let (commit, onto) = match self.push(slot, &order, &patch).await? {
                Pushed::Done => {
                    self.known().report.pushed = true;
                    break;
                }
                // Another start of this job was faster, and all of ours is in it.
                Pushed::Moved { commit, onto } if commit == onto => {
                    let mut known = self.known();
                    (known.report.commit, known.report.pushed) = (Some(onto.to_string()), true);
                    break;
                }
                Pushed::Moved { commit, onto } => (commit, onto),
            };
            moves += 1;
            if moves > MOVES {
                let message = format!("the remote moved {moves} times while the change was being tested");
                return Err(TaskError::new(Code::PushFailed, message));
            }
            self.ledger.begin(JobPhase::Rebase);
            self.line.tell(Event::Note { text: format!("the remote moved from {at} to {onto}; testing again") });
            self.stand_again(slot, branch, &fetched, commit, &onto).await?;
            (at, skip) = (onto, true);
        }
        self.ledger.begin(JobPhase::Report);
        if self.job.keep.remote
            && let Err(error) = slot.forget(&self.kept_name(), true).await
        {
            self.warn(format!("the kept work at the remote is not removed: {error}"));
        }
        self.report();
        self.ledger.over();
        Ok(())
    }

    /// What the implementer is told.
    fn told(&self, plan: &Plan) -> String {
        let before = match &self.job.implementer {
            // A model is told by its own loop.
            Wish::Model(_) => None,
            Wish::Command(_) => Some(self.known().kept.progress.summary.clone()).filter(|text| !text.is_empty()),
        };
        prompt::prompt(self.job, &self.work.key.id, plan.test.as_deref(), before.as_deref())
    }

    /// What the implementer has used over all attempts, and so in this one.
    fn count_used(&self, used: Used) {
        let mut known = self.known();
        let Some((before, is_priced)) = known.counted else { return };
        known.report.turns = used.turns.saturating_sub(before.turns);
        known.report.input_tokens = used.input_tokens.saturating_sub(before.input_tokens);
        known.report.output_tokens = used.output_tokens.saturating_sub(before.output_tokens);
        known.report.cost_micros = is_priced.then_some(used.cost_micros.saturating_sub(before.cost_micros));
        known.kept.progress.used = used;
    }

    /// Waits until something may be tried again, told on the line; the error, if that makes no sense. For what borrows too
    /// much to be handed to [`retried`].
    pub(super) async fn before_next_try(
        &self,
        what: &str,
        retry: &Retry,
        tried: u32,
        error: WorkspaceError,
    ) -> Result<(), Failed> {
        let Some(pause) = retry.pause(tried, error.again()) else { return Err(error.to_task_error()) };
        self.ledger.tell(Event::Retry {
            what: what.to_owned(),
            why: error.to_string(),
            after_ms: u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
        });
        tokio::time::sleep(pause).await;
        Ok(())
    }

    pub(super) async fn keep_tests(&self, tests: Option<&TestReport>) {
        let Some(tests) = tests else { return };
        let body = serde_json::to_vec_pretty(tests).expect("our own types are JSON");
        match put(self.worker, self.work, TESTS, body.len() as u64, &mut body.as_slice(), Some(14)).await {
            Ok(artifact) => {
                let mut known = self.known();
                known.artifacts.retain(|other| other.path != TESTS);
                known.artifacts.push(artifact);
            }
            Err(error) => self.warn(format!("artifact `{TESTS}` not kept: {error}")),
        }
    }

    pub(super) async fn leave_logs(&self) {
        let folder = std::mem::ManuallyDrop::new(JobFolder { path: self.folder.to_owned() });
        match folder.keep(self.worker, self.work, JOB_LOG, None).await {
            Ok(artifact) => self.known().artifacts.extend(artifact),
            Err(error) => self.warn(format!("artifact `{JOB_LOG}` not kept: {error}")),
        }
    }

    /// The task's result: what people and programs want to know of it.
    pub(super) fn report(&self) {
        let mut known = self.known();
        let report = &known.report;
        let result = serde_json::json!({
            "branch": report.branch.as_ref().filter(|_| report.pushed),
            "commit": report.commit,
            "base_commit": report.base_commit,
            "pushed": report.pushed,
            "patch": (self.job.push == PushPolicy::Patch || report.change.is_some()).then_some(PATCH),
            "change": report.change,
            "tests": report.tests,
        });
        known.result = Some(schemas::record::TaskResult::inline(result.to_string().as_bytes()));
    }
}
