//! One attempt of an agent job: slot, fetch, rebase, branch, implement, test, commit, push, report.
//!
//! The push is seen outside, so it is fenced: the lease must be ours and the record must name this start, and what is about
//! to be pushed is kept before, so that an attempt after a crash finds its commit at the remote and pushes nothing twice.
//! A job that is stopped while it pushes takes its own branch back.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agents::git::{Change, Commit, Login, Order, Pushed};
use agents::implementer::acp::{AcpAgent, Permissions};
use agents::implementer::command::{CommandAgent, Template};
use agents::model::{Client, Limits, ModelImplementer};
use agents::playbook::{Author, Ended, Run as PlaybookRun, default_playbook, from_yaml, instructions};
use agents::retry::{Retry, retried};
use agents::secret::{Mask, Secret, find_known};
use agents::workspace::{Fetched, Kept as KeptWork, Remote, Slot, Want, WorkspaceError};
use agents::{Allowance, ImplementError, Implementer, Keeper, Line, Progress, Room, prompt};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use schemas::agent_job::{
    AgentJob, AgentProtocol, DEFAULT_TURNS, Implementer as Wish, PATCH, PlaybookSource, PushPolicy, SlotLease,
};
use schemas::condition::Facts;
use schemas::playbook::StepKind;
use schemas::record::Artifact;
use schemas::transcript::{AgentReport, ChangeReport, Event, JobPhase, TestReport};
use schemas::{Code, HumanDuration, More, Playbook, StartId, State, TaskError};
use tokio::sync::watch;

use super::keep::{Kept, Pushing};
use super::ledger::Ledger;
use super::line::{Ends, JobLine};
use super::shell::{JobShell, Surroundings};
use super::{Agents, author, endpoint, keep, lease, mask_of};
use crate::attempt::phase::{End, Why};
use crate::attempt::workload::{Done, Work, bounds, limit, stopping};
use crate::logs::{LogSink, LogWriter};
use crate::runtime::Exit;
use crate::worker::Worker;
use crate::{fail, objects, placement};

/// Transcript, log and test output among the artifacts.
const TRANSCRIPT: &str = "transcript.jsonl";
const JOB_LOG: &str = "job.log";
const TESTS: &str = "tests.json";
/// How often a push may find that the remote has moved.
const MOVES: u32 = 5;
/// For what a stopped job puts away, at least and at most.
const PUT_AWAY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(20));
/// Largest playbook and largest file of instructions that is read.
const LARGEST_FILE: u64 = 1 << 20;
/// The deadline of a job whose timeout is `unlimited`.
const UNLIMITED: Duration = Duration::from_secs(365 * 86_400);

/// Runs it. `stop` carries the grace once it is to stop; then this returns as soon as all of it is gone.
pub async fn run(
    worker: &Worker,
    work: &Work,
    job: &AgentJob,
    mut stop: watch::Receiver<Option<Duration>>,
) -> Done {
    let unstarted = |error: TaskError| Done::new(End::Stopped(Why::Unstarted(error)));
    let Some(agents) = &worker.agents else {
        return unstarted(TaskError::new(Code::RuntimeNotAllowed, "this worker runs no agent jobs"));
    };
    let runtime = match placement::runtime(worker, &work.task.workload) {
        Ok(runtime) => runtime.clone(),
        // It could when the task was admitted.
        Err(hindrance) => return unstarted(hindrance),
    };
    let folder = JobFolder { path: agents.folder(&work.start) };
    if let Err(error) = std::fs::create_dir_all(&folder.path) {
        let message = format!("on the worker {} no folder for the job can be made: {error}", worker.id);
        return unstarted(TaskError::new(Code::NoWorkFolder, message));
    }
    let mask = match mask_of(&worker.config) {
        Ok(mask) => mask,
        Err(error) => return Done::new(End::failed(TaskError::new(Code::ContextInvalid, error.to_string()))),
    };
    let log_limit = work.task.limits.logs.unwrap_or(worker.config.log_limit);
    let (storing, output) = LogSink::open(worker, &work.key, &work.start, log_limit, work.activity.clone());
    let log = output.writer().into_file(&folder.path.join(JOB_LOG), log_limit.bound().map_or(u64::MAX, |limit| limit.0));
    let (line, carrier) = JobLine::open(Ends {
        js: worker.js.clone(),
        names: worker.config.names.clone(),
        key: work.key.clone(),
        start: work.start.clone(),
        since: work.submitted_at,
        mask: mask.clone(),
        activity: work.activity.clone(),
        patience: worker.config.agents.question_timeout,
        transcript: folder.path.join(TRANSCRIPT),
        give_up: worker.stop_now.clone(),
    });
    let started = worker.js.now();
    let running = async {
        let attempt = Attempt {
            worker,
            agents,
            work,
            job,
            line: line.clone(),
            ledger: Ledger::new(line.clone()),
            mask,
            log,
            folder: &folder.path,
            runtime,
            state: Mutex::default(),
            began: Instant::now(),
        };
        let serving =
            endpoint::serve(worker.js.client().clone(), worker.config.names.clone(), work.key.clone(), line.clone());
        let done = tokio::select! {
            done = attempt.whole(&mut stop) => done,
            never = serving => match never {},
        };
        work.exited.store(true, std::sync::atomic::Ordering::Release);
        line.end();
        done
    };
    let (mut done, warnings, untold) = tokio::join!(running, storing, carrier.carry());
    done.warnings.extend(warnings);
    done.warnings.extend(untold);
    done.started = Some(started);
    if !worker.stop_now.is_cancelled() {
        let kept = folder.keep(worker, work, TRANSCRIPT, Some(30));
        match tokio::time::timeout(PUT_AWAY.1, kept).await {
            Ok(Ok(artifact)) => done.artifacts.extend(artifact),
            Ok(Err(error)) => done.warnings.push(format!("artifact `{TRANSCRIPT}` not kept: {error}")),
            Err(_) => done.warnings.push(format!("artifact `{TRANSCRIPT}` not kept: the server took too long")),
        }
    }
    done
}

/// What one attempt writes on this worker; gone with it.
struct JobFolder {
    path: PathBuf,
}

impl JobFolder {
    /// Stores one of its files, if it is there and not empty, for so many days.
    async fn keep(
        &self,
        worker: &Worker,
        work: &Work,
        name: &str,
        days: Option<u32>,
    ) -> Result<Option<Artifact>, objects::UploadError> {
        let path = self.path.join(name);
        let bytes = match tokio::fs::metadata(&path).await {
            Ok(found) if found.len() > 0 => found.len(),
            _ => return Ok(None),
        };
        let mut body = tokio::io::BufReader::with_capacity(256 << 10, tokio::fs::File::open(&path).await?);
        put(worker, work, name, bytes, &mut body, days).await.map(Some)
    }
}

impl Drop for JobFolder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "what a job wrote is removed at the next start");
        }
    }
}

/// Stores an artifact for so many days; without a number as long as artifacts are usually kept.
async fn put(
    worker: &Worker,
    work: &Work,
    path: &str,
    bytes: u64,
    body: &mut (impl tokio::io::AsyncRead + Unpin),
    days: Option<u32>,
) -> Result<Artifact, objects::UploadError> {
    let names = &worker.config.names;
    let bucket = days.map(|days| names.kept_bucket(days));
    let name = names.artifact_name(&work.key, &work.start, path);
    let usual = names.artifacts_bucket();
    let object = objects::put(worker, bucket.as_deref().unwrap_or(&usual), name, bytes, body).await?;
    Ok(Artifact {
        path: path.to_owned(),
        start: work.start.clone(),
        bytes: object.bytes,
        digest: object.digest,
        bucket,
        more: More::default(),
    })
}

/// One attempt, and all that it knows.
struct Attempt<'a> {
    worker: &'a Worker,
    agents: &'a Agents,
    work: &'a Work,
    job: &'a AgentJob,
    line: JobLine,
    ledger: Ledger,
    mask: Mask,
    log: LogWriter,
    folder: &'a Path,
    runtime: Arc<dyn crate::runtime::Runtime>,
    state: Mutex<Known>,
    began: Instant,
}

/// What is known so far, for the report and for whoever goes on.
#[derive(Clone, Default)]
struct Known {
    report: AgentReport,
    kept: Kept,
    /// A push of ours is under way: what it pushes, and whether the branch was not there before.
    pushing: Option<(String, bool)>,
    artifacts: Vec<Artifact>,
    result: Option<schemas::record::TaskResult>,
    warnings: Vec<String>,
}

/// A step of the run that failed.
type Failed = TaskError;

impl Attempt<'_> {
    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn retry(&self) -> Retry {
        Retry::default().until(tokio::time::Instant::from_std(self.deadline()))
    }

    /// Nothing is begun after it.
    fn deadline(&self) -> Instant {
        let queue = self.worker.queues.iter().find(|queue| queue.name == self.work.key.queue);
        let defaults = queue.map(|queue| queue.settings().defaults.clone()).unwrap_or_default();
        self.began + limit(self.work.task.policy(&defaults).timeout).unwrap_or(UNLIMITED)
    }

    fn warn(&self, warning: String) {
        self.line.tell(Event::Note { text: warning.clone() });
        self.known().warnings.push(self.mask.text(&warning));
    }

    /// From the first look to the report, or to the stop; everything that it made is gone then.
    async fn whole(&self, stop: &mut watch::Receiver<Option<Duration>>) -> Done {
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
            Ok(Ok(())) => End::Succeeded,
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
    fn masked(&self, error: &TaskError) -> TaskError {
        TaskError { message: self.mask.text(&error.message), ..error.clone() }.bounded()
    }

    fn remote(&self) -> Remote {
        let git = &self.worker.config.agents.git;
        let login = |token: &Arc<Secret>| Login { user: git.user.clone(), token: token.clone() };
        Remote {
            url: self.job.repository.clone(),
            login: git.token.as_ref().map(login),
            mask: self.mask.clone(),
        }
    }

    /// Again what may pass, told on the line.
    async fn again<T, F>(&self, what: &str, work: impl FnMut() -> F) -> Result<T, Failed>
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
        let earlier = self.earlier().await;

        self.ledger.begin(JobPhase::Slot);
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
        tokio::select! {
            biased;
            done = rest => done,
            never = holding => match never {},
        }
    }

    async fn in_slot(
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
            kept: job.keep.remote.then(|| work.key.id.to_string()),
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
        slot.stand(&base, branch, &fetched.base_name).await.map_err(|error| error.to_task_error())?;
        let plan = self.plan(slot).await?;
        let resumed = self.resume(slot, &fetched, earlier).await;
        {
            let mut known = self.known();
            known.report.base_commit = Some(base.to_string());
            known.report.branch = Some(branch.to_owned());
            known.report.resumed_from = resumed.as_ref().map(|(start, _)| start.clone());
            known.kept.base = base.to_string();
            known.kept.progress = resumed.as_ref().map(|(_, progress)| progress.clone()).unwrap_or_default();
        }

        self.ledger.begin(JobPhase::Branch);
        let opened = self.open_shell(slot)?;
        let opened: &JobShell = shell.insert(opened);
        let used_before = self.known().kept.progress.used;
        let mut who = implementer.build(self, resumed.map(|(_, progress)| progress))?;
        let told = {
            let before = match &job.implementer {
                // A model is told by its own loop.
                Wish::Model(_) => None,
                Wish::Command(_) => Some(self.known().kept.progress.summary.clone()).filter(|text| !text.is_empty()),
            };
            prompt::prompt(job, &work.key.id, plan.test.as_deref(), before.as_deref())
        };
        fail::point("agent_ready");
        let mut skip = false;
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
                return Err(TaskError::new(Code::NothingChanged, "the implementer ended, and nothing differs from the base"));
            }
            self.known().report.change = Some(change.report);
            let patch = slot.patch(&change).await.map_err(|error| error.to_task_error())?;
            let commit = slot.commit(&change, &self.message()).await.map_err(|error| error.to_task_error())?;
            self.known().report.commit = Some(commit.to_string());
            let artifact = put(self.worker, work, PATCH, patch.len() as u64, &mut patch.as_slice(), Some(30)).await;
            let artifact = artifact.map_err(|error| TaskError::new(Code::ArtifactFailed, format!("the change could not be kept: {error}")))?;
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
                Pushed::Moved { commit, onto } => {
                    moves += 1;
                    if moves > MOVES {
                        let message = format!("the remote moved {moves} times while the change was being tested");
                        return Err(TaskError::new(Code::PushFailed, message));
                    }
                    self.ledger.begin(JobPhase::Rebase);
                    self.line.tell(Event::Note { text: format!("the remote moved from {at} to {onto}; testing again") });
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
            && let Err(error) = slot.forget(work.key.id.as_str(), true).await
        {
            self.warn(format!("the kept work at the remote is not removed: {error}"));
        }
        self.report();
        self.ledger.over();
        Ok(())
    }

    async fn fetch(&self, slot: &mut Slot, want: &Want) -> Result<Fetched, Failed> {
        let retry = self.retry();
        let mut tried = 0;
        loop {
            tried += 1;
            let error = match slot.fetch(want).await {
                Ok(fetched) => return Ok(fetched),
                Err(error) => error,
            };
            let Some(pause) = retry.pause(tried, error.again()) else { return Err(error.to_task_error()) };
            self.ledger.tell(Event::Retry {
                what: "fetch".to_owned(),
                why: error.to_string(),
                after_ms: u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
            });
            tokio::time::sleep(pause).await;
        }
    }

    /// What an earlier attempt kept.
    async fn earlier(&self) -> Option<(StartId, Kept, Vec<u8>)> {
        match keep::find(self.worker, &self.work.key, &self.work.earlier).await {
            Ok(found) => found,
            Err(why) => {
                self.warn(format!("the work of an earlier attempt cannot be read: {why}"));
                None
            }
        }
    }

    /// An earlier attempt pushed, and died before it could say so.
    fn found_pushed(&self, pushing: &Pushing, fetched: &Fetched, kept: &Kept) -> Result<(), Failed> {
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
    ) -> Option<(StartId, Progress)> {
        let (start, kept, patch) = earlier?;
        let used = Progress { used: kept.progress.used, summary: String::new() };
        let work = match (Commit::parse(&kept.base), &fetched.kept) {
            _ if patch.is_empty() => return Some((start, kept.progress)),
            (Some(base), _) => KeptWork::Patch { base, patch },
            (None, Some(commit)) => KeptWork::Commit(commit.clone()),
            (None, None) => return Some((start, used)),
        };
        let mut brought = slot.resume(&work).await;
        if let (Err(_), Some(commit)) = (&brought, &fetched.kept) {
            brought = slot.resume(&KeptWork::Commit(commit.clone())).await;
        }
        match brought {
            Ok(()) => {
                let mut progress = kept.progress;
                if let Some(failed) = &kept.failed {
                    progress.summary.push_str(&format!("\nThat attempt ended so: {failed}\n"));
                }
                Some((start, progress))
            }
            Err(error) => {
                self.warn(format!("the work of an earlier attempt does not fit, so this one begins anew: {error}"));
                Some((start, used))
            }
        }
    }

    /// What is run, decided by the task and by the base alone: nothing of the job's own can change it.
    async fn plan(&self, slot: &Slot) -> Result<Plan, Failed> {
        let tree = slot.tree();
        let invalid = |message: String| TaskError::new(Code::ContextInvalid, message);
        let (playbook, source) = match &self.job.playbook {
            Some(PlaybookSource::Inline { playbook }) => (playbook.clone(), "playbook".to_owned()),
            Some(PlaybookSource::File { path }) => {
                let bytes = read_plain(&tree, path).map_err(|why| invalid(format!("the playbook `{path}`: {why}")))?;
                (from_yaml(&bytes).map_err(|error| error.to_task_error(path))?, path.clone())
            }
            Some(PlaybookSource::Named { name }) => {
                let stream = format!("KV_{}", self.worker.config.names.playbooks_bucket());
                let subject = self.worker.config.names.playbook_subject(name);
                let found = self.worker.js.last(&stream, &subject).await;
                let found = found.map_err(|error| {
                    TaskError::new(Code::WorkspaceFailed, format!("the playbook `{name}` cannot be read: {error}"))
                })?;
                let found = found.filter(|found| !found.is_marker());
                let found = found.ok_or_else(|| invalid(format!("there is no playbook of the name `{name}`")))?;
                (from_yaml(&found.payload).map_err(|error| error.to_task_error(name))?, "playbook".to_owned())
            }
            None => {
                let mut named = None;
                for file in instructions::FILES {
                    let Ok(bytes) = read_plain(&tree, file) else { continue };
                    if let Some(command) =
                        instructions::test_command(file, &bytes).map_err(|error| error.to_task_error(file))?
                    {
                        named = Some((command, file.to_owned()));
                        break;
                    }
                }
                match named {
                    Some((command, file)) => (default_playbook(Some(&command)), file),
                    None => {
                        self.warn("no tests are run: neither a playbook nor the repository names a command".to_owned());
                        (default_playbook(None), "none".to_owned())
                    }
                }
            }
        };
        let tests = |step: &&schemas::playbook::Step| step.kind == StepKind::Test;
        let test = playbook.steps.iter().find(tests).and_then(|step| step.command.clone());
        Ok(Plan { playbook, source, test })
    }

    fn open_shell(&self, slot: &Slot) -> Result<JobShell, Failed> {
        let settings = &self.worker.config.agents;
        let mut env = self.job.env.clone();
        for (variable, name) in &self.job.secrets {
            let secret = settings.secrets.get(name).ok_or_else(|| {
                TaskError::new(Code::PolicyForbidden, format!("this worker has no secret `{name}`"))
            })?;
            env.insert(variable.clone(), secret.expose().to_owned());
        }
        let (kept, own) = (self.worker.leases.kept_until(), self.work.alive_until);
        let alive_until = move || own.map(|own| kept.borrow().map_or(own, |kept| kept.max(own)));
        let root = slot.tree().parent().map(Path::to_owned).unwrap_or_default();
        Ok(JobShell::new(Surroundings {
            runtime: self.runtime.clone(),
            wish: &self.job.runtime,
            key: self.work.key.clone(),
            attempt: self.work.number,
            slot: root,
            objects: slot.objects(),
            env,
            limits: bounds(&self.work.task, self.worker),
            alive_until: Box::new(alive_until),
            log: self.log.clone(),
            mask: self.mask.clone(),
        }))
    }

    fn implementer_settings(&self) -> Result<Implementing, Failed> {
        let settings = &self.worker.config.agents;
        let invalid = |message: String| TaskError::new(Code::ContextInvalid, message);
        match &self.job.implementer {
            Wish::Model(wish) => {
                let name = wish.model.clone().or_else(|| settings.model.model.clone());
                let name = name.ok_or_else(|| {
                    invalid("neither the job nor the worker (its setting `model`) names a model".to_owned())
                })?;
                let prices = settings.model.prices.get(&name).copied();
                if self.job.budget.cost.is_some() && prices.is_none() {
                    let message = format!("the job has a budget of money, and this worker knows no price of the model `{name}` (`model-prices`)");
                    return Err(invalid(message));
                }
                let mut client = agents::model::Settings::new(settings.model.endpoint.clone(), None, name);
                client.key.clone_from(&settings.model.key);
                client.timeout = wish.timeout.map_or(client.timeout, |timeout| timeout.0);
                client.max_output_tokens = wish.max_output_tokens;
                client.temperature = wish.temperature;
                client.prices = prices;
                let client = Client::new(client).map_err(|error| invalid(error.to_string()))?;
                Ok(Implementing::Model(Some(client), prices.is_some()))
            }
            Wish::Command(wish) => {
                let template = Template::parse(&wish.command).map_err(|error| invalid(format!("implementer.command: {error}")))?;
                let timeout = wish.timeout.map(|timeout| timeout.0);
                match wish.protocol {
                    AgentProtocol::None => Ok(Implementing::Command(Some((template, timeout)))),
                    AgentProtocol::Acp => Ok(Implementing::Acp(Some((template, timeout)))),
                }
            }
        }
    }

    fn allowance(&self) -> Allowance {
        let budget = &self.job.budget;
        let until = budget.time.map(|time| (Instant::now() + time.0, time));
        Allowance {
            turns: budget.turns.unwrap_or(DEFAULT_TURNS),
            tokens: budget.tokens,
            cost_micros: budget.cost.map(|cost| cost.micros()),
            until: until.or_else(|| {
                let timeout = self.deadline().saturating_duration_since(self.began);
                Some((self.deadline(), HumanDuration(timeout)))
            }),
        }
    }

    #[allow(clippy::too_many_arguments, reason = "what a playbook runs in, each used once")]
    async fn implement(
        &self,
        slot: &Slot,
        shell: &JobShell,
        implementer: &mut dyn Implementer,
        plan: &Plan,
        branch: &str,
        told: &str,
        skip: bool,
    ) -> Ended {
        let keeper = WorkKeeper { attempt: self, slot, last: Mutex::new(None) };
        let room = Room {
            tree: &slot.tree(),
            shell,
            line: &self.ledger,
            mask: &self.mask,
            keeper: &keeper,
            allowance: self.allowance(),
        };
        let has_tests = plan.playbook.steps.iter().any(|step| step.kind == StepKind::Test);
        let mut author = Writer { attempt: self, slot, room: &room, implementer, told, skip, has_tests };
        let mut facts = Facts { attempt: u64::from(self.work.number), ..Facts::default() };
        let job = self.job;
        for (name, text) in [
            ("task.id", Some(self.work.key.id.to_string())),
            ("task.queue", Some(self.work.key.queue.to_string())),
            ("task.title", Some(job.title.clone())),
            ("task.spec", job.spec.clone()),
            ("task.skill", job.skill.clone()),
            ("task.base", job.base.clone()),
            ("task.branch", Some(branch.to_owned())),
        ] {
            facts.task.extend(text.map(|text| (name.to_owned(), text)));
        }
        PlaybookRun {
            playbook: &plan.playbook,
            source: &plan.source,
            shell,
            tree: &slot.tree(),
            line: &self.ledger,
            mask: &self.mask,
            author: &mut author,
            deadline: tokio::time::Instant::from_std(self.deadline()),
            facts,
        }
        .run()
        .await
    }

    /// What differs from the base. What has a secret in it does not leave.
    async fn change(&self, slot: &Slot) -> Result<Change, Failed> {
        let scan = |bytes: &[u8]| {
            let own = self.mask.find(bytes).map(str::to_owned);
            own.or_else(|| find_known(bytes).map(str::to_owned))
        };
        slot.change(&scan).await.map_err(|error| error.to_task_error())
    }

    /// Subjects of this job's commits begin so.
    fn mark(&self) -> String {
        format!("feat(task-{}): ", self.work.key.id)
    }

    fn message(&self) -> String {
        let mut message = format!("{}{}\n", self.mark(), self.job.title);
        if let Some(spec) = &self.job.spec {
            message.push_str(&format!("\nSpecification: {spec}\n"));
        }
        message.push_str(&format!("\nShoal-Task: {}\nShoal-Start: {}\n", self.work.key, self.work.start));
        message
    }

    /// Whether this start is still the one: by its lease, and by the record.
    async fn is_ours(&self) -> Result<(), Failed> {
        let lost = |why: &str| TaskError::new(Code::PushFailed, format!("nothing is pushed: {why}"));
        let own = self.work.alive_until;
        let until = own.map(|own| self.worker.leases.kept_until().borrow().map_or(own, |kept| kept.max(own)));
        if until.is_some_and(|until| until <= Instant::now()) {
            return Err(lost("the lease of the task has run out"));
        }
        let read = self.worker.store.read(&self.work.key).await;
        let standing = read.map_err(|error| lost(&format!("its record cannot be read: {error}")))?;
        let record = standing.record.ok_or_else(|| lost("its record is gone"))?;
        let last = record.attempts.last().and_then(|attempt| attempt.start.as_ref());
        if record.state != State::Running || last != Some(&self.work.start) {
            return Err(lost("another start of it is ahead"));
        }
        match record.cancel {
            Some(_) => Err(lost("it is being cancelled")),
            None => Ok(()),
        }
    }

    async fn push(&self, slot: &mut Slot, order: &Order, patch: &[u8]) -> Result<Pushed, Failed> {
        let retry = self.retry();
        let mut tried = 0;
        let is_new = order.began.is_none();
        let kept = {
            let mut known = self.known();
            let tests = known.report.tests.clone();
            known.kept.pushing =
                Some(Pushing { commit: order.commit.to_string(), branch: order.branch.clone(), tests });
            known.kept.clone()
        };
        keep::put(self.worker, &self.work.key, &self.work.start, &kept, patch).await.map_err(|error| {
            TaskError::new(Code::ArtifactFailed, format!("what is about to be pushed could not be kept: {error}"))
        })?;
        loop {
            tried += 1;
            self.is_ours().await?;
            fail::point("agent_before_push");
            self.known().pushing = Some((order.commit.to_string(), is_new));
            let pushed = slot.push(order).await;
            if !matches!(pushed, Ok(Pushed::Done)) {
                self.known().pushing = None;
            }
            let error = match pushed {
                Ok(pushed) => {
                    fail::point("agent_after_push");
                    return Ok(pushed);
                }
                Err(error) => error,
            };
            let Some(pause) = retry.pause(tried, error.again()) else { return Err(error.to_task_error()) };
            self.ledger.tell(Event::Retry {
                what: "push".to_owned(),
                why: error.to_string(),
                after_ms: u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
            });
            tokio::time::sleep(pause).await;
        }
    }

    /// A job that is cancelled leaves no branch: one that it made, and nobody has touched since, goes.
    async fn take_back(&self, slot: Option<&mut Slot>) {
        let pushing = self.known().pushing.clone();
        let (Some((commit, true)), Some(slot), false) = (pushing, slot, self.worker.stop_attempts.is_cancelled()) else {
            return;
        };
        let branch = self.known().report.branch.clone().unwrap_or_default();
        if let Some(commit) = Commit::parse(&commit) {
            match slot.take_back(&branch, &commit).await {
                Ok(()) => {
                    let mut known = self.known();
                    known.report.pushed = false;
                    known.kept.pushing = None;
                }
                Err(error) => self.warn(format!("the branch `{branch}` may be at the remote: {error}")),
            }
        }
    }

    /// What there is goes on from here, whoever runs the next attempt.
    async fn keep_at_the_end(&self, slot: &Slot, failed: Option<String>) {
        if slot_stands(&self.known().kept) {
            let mut kept = self.known().kept.clone();
            kept.failed = failed;
            if let Err(why) = self.keep_now(slot, kept, true).await {
                self.warn(format!("the work of this attempt is not kept: {why}"));
            }
        }
    }

    /// Keeps what is in the workspace. With `as_artifact` it is a patch for people, too.
    async fn keep_now(&self, slot: &Slot, kept: Kept, as_artifact: bool) -> Result<(), String> {
        let change = self.change(slot).await.map_err(|error| error.message)?;
        let patch = match change.is_empty() {
            true => Vec::new(),
            false => slot.patch(&change).await.map_err(|error| error.to_string())?,
        };
        keep::put(self.worker, &self.work.key, &self.work.start, &kept, &patch)
            .await
            .map_err(|error| error.to_string())?;
        if change.is_empty() {
            return Ok(());
        }
        if self.job.keep.remote {
            let name = self.work.key.id.as_str();
            slot.keep(&change, name, true).await.map_err(|error| error.to_string())?;
        }
        if as_artifact && !self.known().artifacts.iter().any(|artifact| artifact.path == PATCH) {
            let artifact =
                put(self.worker, self.work, PATCH, patch.len() as u64, &mut patch.as_slice(), Some(30)).await;
            let artifact = artifact.map_err(|error| error.to_string())?;
            let mut known = self.known();
            known.report.change = Some(change.report);
            known.artifacts.push(artifact);
        }
        Ok(())
    }

    /// Nobody goes on from a job that succeeded. But its record is not written yet: whoever finds it unwritten must find
    /// what was pushed; that little goes with its retention.
    async fn forget_but_the_push(&self) {
        keep::forget(self.worker, &self.work.key, &self.work.earlier).await;
        let kept = self.known().kept.clone();
        if kept.pushing.is_some()
            && let Err(error) = keep::put(self.worker, &self.work.key, &self.work.start, &kept, &[]).await
        {
            tracing::debug!(task = %self.work.key, %error, "kept work stays until its retention ends");
        }
    }

    async fn keep_tests(&self, tests: Option<&TestReport>) {
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

    async fn leave_logs(&self) {
        let folder = std::mem::ManuallyDrop::new(JobFolder { path: self.folder.to_owned() });
        match folder.keep(self.worker, self.work, JOB_LOG, None).await {
            Ok(artifact) => self.known().artifacts.extend(artifact),
            Err(error) => self.warn(format!("artifact `{JOB_LOG}` not kept: {error}")),
        }
    }

    /// The task's result: what people and programs want to know of it.
    fn report(&self) {
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

fn slot_stands(kept: &Kept) -> bool {
    !kept.base.is_empty()
}

/// What is run.
struct Plan {
    playbook: Playbook,
    source: String,
    /// The command of its first tests, for the implementer to know.
    test: Option<String>,
}

/// Who implements, checked before anything is begun.
enum Implementing {
    Model(Option<Client>, bool),
    Command(Option<(Template, Option<Duration>)>),
    Acp(Option<(Template, Option<Duration>)>),
}

impl Implementing {
    fn is_priced(&self) -> bool {
        matches!(self, Self::Model(_, true))
    }

    fn build(&mut self, attempt: &Attempt<'_>, resume: Option<Progress>) -> Result<Box<dyn Implementer>, Failed> {
        let used = resume.as_ref().map(|progress| progress.used).unwrap_or_default();
        let gone = || TaskError::new(Code::Internal, "an implementer is built once");
        match self {
            Self::Model(client, _) => {
                let limits = Limits { retry: attempt.retry(), ..Limits::default() };
                Ok(Box::new(ModelImplementer::new(client.take().ok_or_else(gone)?, limits, resume)))
            }
            Self::Command(template) => {
                let (template, timeout) = template.take().ok_or_else(gone)?;
                Ok(Box::new(CommandAgent::new(template, timeout, used)))
            }
            Self::Acp(template) => {
                let (template, timeout) = template.take().ok_or_else(gone)?;
                Ok(Box::new(AcpAgent::new(template, timeout, Permissions::default(), used)))
            }
        }
    }
}

/// The author of a playbook: the implementer, in its phase.
struct Writer<'a> {
    attempt: &'a Attempt<'a>,
    slot: &'a Slot,
    room: &'a Room<'a>,
    implementer: &'a mut dyn Implementer,
    told: &'a str,
    /// The work is there already, and is only tested again.
    skip: bool,
    has_tests: bool,
}

impl Author for Writer<'_> {
    fn work<'a>(&'a mut self, failed: Option<&'a str>) -> BoxFuture<'a, Result<(), ImplementError>> {
        async move {
            let ledger = &self.attempt.ledger;
            if !std::mem::take(&mut self.skip) || failed.is_some() {
                ledger.begin(JobPhase::Implement);
                let told = failed.unwrap_or(self.told);
                fail::point("agent_implement");
                self.implementer.work(self.room, told).await?;
            }
            if self.has_tests {
                ledger.begin(JobPhase::Test);
            }
            Ok(())
        }
        .boxed()
    }

    fn change(&mut self) -> BoxFuture<'_, Result<ChangeReport, TaskError>> {
        async move { Ok(self.attempt.change(self.slot).await?.report) }.boxed()
    }
}

/// Keeps the work every few turns.
struct WorkKeeper<'a> {
    attempt: &'a Attempt<'a>,
    slot: &'a Slot,
    /// Turns at the last time.
    last: Mutex<Option<u32>>,
}

impl Keeper for WorkKeeper<'_> {
    fn turn<'a>(&'a self, progress: &'a Progress) -> BoxFuture<'a, ()> {
        async move {
            let attempt = self.attempt;
            attempt.known().kept.progress = progress.clone();
            {
                let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
                let since = progress.used.turns.saturating_sub(*last.get_or_insert(progress.used.turns.saturating_sub(1)));
                if since < attempt.job.keep.every_turns {
                    return;
                }
                *last = Some(progress.used.turns);
            }
            let kept = attempt.known().kept.clone();
            match attempt.keep_now(self.slot, kept, false).await {
                Ok(()) => attempt.line.tell(Event::Kept { turns: progress.used.turns }),
                Err(why) => attempt.line.tell(Event::Note { text: format!("work in progress is not kept: {why}") }),
            }
            fail::point("agent_kept");
        }
        .boxed()
    }
}

/// A file of the tree that is no link, in folders that are none: what a repository has may lead anywhere.
fn read_plain(tree: &Path, path: &str) -> Result<Vec<u8>, String> {
    let mut at = tree.to_owned();
    for part in path.split('/') {
        at.push(part);
        let found = at.symlink_metadata().map_err(|error| error.to_string())?;
        if found.is_symlink() {
            return Err("it is a link, or behind one".to_owned());
        }
    }
    let found = at.symlink_metadata().map_err(|error| error.to_string())?;
    if !found.is_file() {
        return Err("it is no file".to_owned());
    }
    if found.len() > LARGEST_FILE {
        return Err(format!("it has {} bytes, more than the {LARGEST_FILE} that are read", found.len()));
    }
    std::fs::read(&at).map_err(|error| error.to_string())
}
