//! The phases of an attempt, in order, and what follows its end or its stop.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agents::git::{Commit, Login, Order, Pushed};
use agents::retry::{Again, Retry, retried};
use agents::secret::{Mask, Secret};
use agents::workspace::{Fetched, Kept as KeptWork, Remote, Slot, Want, WorkspaceError};
use agents::{Line, Progress, prompt};
use schemas::agent_job::{AgentJob, Implementer as Wish, PATCH, PushPolicy, SlotLease};
use schemas::record::Artifact;
use schemas::transcript::{AgentReport, Event, JobPhase, TestReport};
use schemas::{Code, More, StartId, TaskError};
use tokio::sync::watch;

use super::implementing::Implementing;
use super::keep::{Kept, Pushing};
use super::ledger::Ledger;
use super::line::JobLine;
use super::outside::PoolSlot;
use super::run::{JOB_LOG, JobFolder, PUT_AWAY, put};
use super::shell::JobShell;
use super::{Agents, author, keep, lease};
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
    /// Somebody implements, and the time was last counted then.
    pub(super) working: Option<Instant>,
    /// Of the pool outside, where there is one.
    pub(super) pooled: Option<PoolSlot>,
    pub(super) result: Option<schemas::record::TaskResult>,
    pub(super) warnings: Vec<String>,
}

/// Work of an earlier attempt that this one goes on from.
struct Resumed {
    /// Of which start.
    start: StartId,
    progress: Progress,
    /// It was done and tested, and only failed later: it is tested again, and nobody works on it unless that fails.
    implemented: bool,
    /// Time spent on implementing by then.
    worked_ms: u64,
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

    pub(super) async fn phases(&self, slot: &mut Option<Slot>, shell: &mut Option<JobShell>) -> Result<(), Failed> {
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

    pub(super) async fn in_slot(
        &self,
        slot: &mut Slot,
        shell: &mut Option<JobShell>,
        branch: &str,
        implementer: &mut Implementing,
        earlier: Option<(StartId, Kept, Vec<u8>)>,
    ) -> Result<(), Failed> {
        let (work, job) = (self.work, self.job);
        self.ledger.begin(JobPhase::Fetch);
        let want = Want {
            base: job.base.clone(),
            branch: (job.push == PushPolicy::Branch).then(|| branch.to_owned()),
            kept: job.keep.remote.then(|| self.kept_name()),
        };
        let fetched = self.fetch(slot, &want).await?;
        fail::point("agent_fetched");

        self.ledger.begin(JobPhase::Rebase);
        if let Some((_, kept, _)) = &earlier
            && let Some(pushing) = &kept.pushing
            && fetched.branch.as_ref().is_some_and(|tip| tip.as_str() == pushing.commit)
        {
            return self.found_pushed(pushing, &fetched, kept);
        }
        // Where our branch is there already, the job goes on from it.
        let base = fetched.branch.clone().unwrap_or_else(|| fetched.base.clone());
        // What is run is the base's word, not that of a branch that an earlier run has pushed.
        slot.stand(&fetched.base, branch, &fetched.base_name).await.map_err(|error| error.to_task_error())?;
        let plan = self.plan(slot).await?;
        if base != fetched.base {
            slot.stand(&base, branch, &fetched.base_name).await.map_err(|error| error.to_task_error())?;
        }
        let resumed = self.resume(slot, &fetched, earlier).await?;
        let mut skip = resumed.as_ref().is_some_and(|resumed| resumed.implemented);
        {
            let mut known = self.known();
            known.report.base_commit = Some(base.to_string());
            known.report.branch = Some(branch.to_owned());
            known.report.resumed_from = resumed.as_ref().map(|resumed| resumed.start.clone());
            known.kept.base = base.to_string();
            known.kept.worked_ms = resumed.as_ref().map_or(0, |resumed| resumed.worked_ms);
            known.kept.progress = resumed.as_ref().map(|resumed| resumed.progress.clone()).unwrap_or_default();
        }

        self.ledger.begin(JobPhase::Branch);
        let opened = self.open_shell(slot)?;
        let opened: &JobShell = shell.insert(opened);
        let used_before = self.known().kept.progress.used;
        let mut who = implementer.build(self, resumed.map(|resumed| resumed.progress))?;
        let told = {
            let before = match &job.implementer {
                // A model is told by its own loop.
                Wish::Model(_) => None,
                Wish::Command(_) => Some(self.known().kept.progress.summary.clone()).filter(|text| !text.is_empty()),
            };
            prompt::prompt(job, &work.key.id, plan.test.as_deref(), before.as_deref())
        };
        fail::point("agent_ready");
        let mut moves = 0;
        let mut at = base;
        loop {
            let ended = self.implement(slot, opened, who.as_mut(), &plan, branch, &told, skip).await;
            {
                let mut known = self.known();
                let used = who.used();
                known.report.model = who.model();
                known.report.turns = used.turns - used_before.turns.min(used.turns);
                known.report.input_tokens = used.input_tokens - used_before.input_tokens.min(used.input_tokens);
                known.report.output_tokens = used.output_tokens - used_before.output_tokens.min(used.output_tokens);
                let cost = used.cost_micros - used_before.cost_micros.min(used.cost_micros);
                known.report.cost_micros = implementer.is_priced().then_some(cost);
                known.report.steps.clone_from(&ended.steps);
                known.report.tests.clone_from(&ended.tests);
                known.kept.progress.used = used;
            }
            self.keep_tests(ended.tests.as_ref()).await;
            if let Some(error) = ended.error {
                return Err(error);
            }
            self.known().kept.implemented = true;

            self.ledger.begin(JobPhase::Commit);
            let change = self.change(slot).await?;
            if change.is_empty() {
                return Err(TaskError::new(
                    Code::NothingChanged,
                    "the implementer ended, and nothing differs from the base",
                ));
            }
            self.known().report.change = Some(change.report);
            let patch = slot.patch(&change).await.map_err(|error| error.to_task_error())?;
            let commit = slot.commit(&change, &self.message()).await.map_err(|error| error.to_task_error())?;
            self.known().report.commit = Some(commit.to_string());
            let artifact = put(self.worker, work, PATCH, patch.len() as u64, &mut patch.as_slice(), Some(30)).await;
            let artifact = artifact.map_err(|error| {
                TaskError::new(Code::ArtifactFailed, format!("the change could not be kept: {error}"))
            })?;
            {
                let mut known = self.known();
                known.artifacts.retain(|other| other.path != PATCH);
                known.artifacts.push(artifact);
            }
            if job.push == PushPolicy::Patch {
                break;
            }
            self.ledger.begin(JobPhase::Push);
            let order = Order {
                commit: commit.clone(),
                base: fetched.base_name.clone(),
                branch: branch.to_owned(),
                began: fetched.branch.clone(),
                mark: self.mark(),
                author: author(&self.worker.config.agents.git.author),
            };
            match self.push(slot, &order, &patch).await? {
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
                Pushed::Moved { commit, onto } => {
                    moves += 1;
                    if moves > MOVES {
                        let message = format!("the remote moved {moves} times while the change was being tested");
                        return Err(TaskError::new(Code::PushFailed, message));
                    }
                    self.ledger.begin(JobPhase::Rebase);
                    self.line
                        .tell(Event::Note { text: format!("the remote moved from {at} to {onto}; testing again") });
                    // Until the work is there again, what is in the tree is not to be kept over what was.
                    self.known().kept.base.clear();
                    slot.stand(&onto, branch, &fetched.base_name).await.map_err(|error| error.to_task_error())?;
                    slot.resume(&KeptWork::Commit(commit)).await.map_err(|error| error.to_task_error())?;
                    self.known().report.base_commit = Some(onto.to_string());
                    self.known().kept.base = onto.to_string();
                    (at, skip) = (onto, true);
                }
            }
        }
        self.ledger.begin(JobPhase::Report);
        if job.keep.remote
            && let Err(error) = slot.forget(&self.kept_name(), true).await
        {
            self.warn(format!("the kept work at the remote is not removed: {error}"));
        }
        self.report();
        self.ledger.over();
        Ok(())
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

    pub(super) async fn fetch(&self, slot: &mut Slot, want: &Want) -> Result<Fetched, Failed> {
        let retry = self.retry();
        let mut tried = 0;
        loop {
            tried += 1;
            let error = match slot.fetch(want).await {
                Ok(fetched) => return Ok(fetched),
                Err(error) => error,
            };
            self.before_next_try("fetch", &retry, tried, error).await?;
        }
    }

    /// What an earlier attempt kept. What cannot be read now may be read later: nothing is begun anew for that.
    pub(super) async fn earlier(&self) -> Result<Option<(StartId, Kept, Vec<u8>)>, Failed> {
        let find = || keep::find(self.worker, &self.work.key, &self.work.earlier);
        let again = |_: &String| Again::Soon;
        retried(&self.retry(), "kept work", again, |event| self.ledger.tell(event), find).await.map_err(|why| {
            TaskError::new(Code::ArtifactFailed, format!("the work of an earlier attempt cannot be read: {why}"))
        })
    }

    /// Under which name its work is kept at the remote: an id may be in several queues.
    pub(super) fn kept_name(&self) -> String {
        self.work.key.to_string()
    }

    /// An earlier attempt pushed, and died before it could say so.
    pub(super) fn found_pushed(&self, pushing: &Pushing, fetched: &Fetched, kept: &Kept) -> Result<(), Failed> {
        self.line.tell(Event::Note { text: "an earlier attempt has pushed the branch already".to_owned() });
        self.ledger.begin(JobPhase::Report);
        {
            let mut known = self.known();
            known.report.base_commit = Some(kept.base.clone());
            known.report.branch = Some(pushing.branch.clone());
            known.report.commit = fetched.branch.as_ref().map(Commit::to_string);
            known.report.pushed = true;
            known.report.tests.clone_from(&pushing.tests);
            known.kept = kept.clone();
        }
        self.report();
        self.ledger.over();
        Ok(())
    }

    /// Brings the work of an earlier attempt into the workspace. What does not fit is told, and the job begins anew: what
    /// was used counts all the same.
    async fn resume(
        &self,
        slot: &mut Slot,
        fetched: &Fetched,
        earlier: Option<(StartId, Kept, Vec<u8>)>,
    ) -> Result<Option<Resumed>, Failed> {
        let Some((start, kept, patch)) = earlier else { return Ok(None) };
        let anew = Resumed {
            start: start.clone(),
            progress: Progress { used: kept.progress.used, summary: String::new() },
            implemented: false,
            worked_ms: kept.worked_ms,
        };
        let work = match (Commit::parse(&kept.base), &fetched.kept) {
            (Some(base), _) if !patch.is_empty() => KeptWork::Patch { base, patch },
            (_, Some(commit)) => KeptWork::Commit(commit.clone()),
            // Nothing was changed yet; what was looked at is worth telling.
            (Some(_), None) => return Ok(Some(Resumed { progress: kept.progress, ..anew })),
            (None, None) => return Ok(Some(anew)),
        };
        let mut brought = slot.resume(&work).await;
        if let (Err(_), KeptWork::Patch { .. }, Some(commit)) = (&brought, &work, &fetched.kept) {
            brought = slot.resume(&KeptWork::Commit(commit.clone())).await;
        }
        match brought {
            Ok(()) => {
                let mut progress = kept.progress;
                if let Some(failed) = &kept.failed {
                    progress.summary.push_str(&format!("\nThat attempt ended so: {failed}\n"));
                }
                Ok(Some(Resumed { progress, implemented: kept.implemented, ..anew }))
            }
            Err(error) if error.retryable() => Err(error.to_task_error()),
            Err(error) => {
                self.warn(format!("the work of an earlier attempt does not fit, so this one begins anew: {error}"));
                Ok(Some(anew))
            }
        }
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
