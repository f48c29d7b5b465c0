//! The change, its commit, and the fenced push.

use std::time::Instant;

use agents::git::{Change, Commit, Order, Pushed, Sifted};
use agents::secret::find_all;
use agents::workspace::{Slot, WorkspaceError};
use schemas::agent_job::PATCH;
use schemas::record::TaskRecord;
use schemas::{Code, State, TaskError};

use super::attempt::{Attempt, Failed};
use super::keep;
use super::keep::Pushing;
use super::run::put;
use crate::fail;

impl Attempt<'_> {
    /// What differs from the base; refused, if something of it may not leave the worker.
    pub(super) async fn change(&self, slot: &Slot) -> Result<Change, Failed> {
        self.sift(slot).await?.whole().map_err(|error| error.to_task_error())
    }

    /// What differs from the base, without what may not leave the worker: what has a secret in it, is too large, or odd.
    pub(super) async fn sift(&self, slot: &Slot) -> Result<Sifted, Failed> {
        let scan = |bytes: &[u8]| find_all(&self.mask, bytes);
        slot.sift(&scan).await.map_err(|error| error.to_task_error())
    }

    /// Commits the change and keeps its patch.
    pub(super) async fn commit(&self, slot: &mut Slot) -> Result<(Commit, Vec<u8>), Failed> {
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
        let artifact = put(self.worker, self.work, PATCH, patch.len() as u64, &mut patch.as_slice(), Some(30)).await;
        let artifact = artifact
            .map_err(|error| TaskError::new(Code::ArtifactFailed, format!("the change could not be kept: {error}")))?;
        let mut known = self.known();
        known.artifacts.retain(|other| other.path != PATCH);
        known.artifacts.push(artifact);
        Ok((commit, patch))
    }

    /// A line of every commit of this job's, and of no other's.
    pub(super) fn mark(&self) -> String {
        format!("Shoal-Task: {}", self.work.key)
    }

    pub(super) fn message(&self) -> String {
        let mut message = format!("feat(task-{}): {}\n", self.work.key.id, self.job.title);
        if let Some(spec) = &self.job.spec {
            message.push_str(&format!("\nSpecification: {spec}\n"));
        }
        message.push_str(&format!("\n{}\nShoal-Start: {}\n", self.mark(), self.work.start));
        message
    }

    /// Whether this start is still the one: by its lease, and by the record. The record as it is then.
    async fn is_ours(&self) -> Result<TaskRecord, Failed> {
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
        Ok(record)
    }

    async fn may_push(&self) -> Result<(), Failed> {
        match self.is_ours().await?.cancel {
            Some(_) => Err(TaskError::new(Code::PushFailed, "nothing is pushed: it is being cancelled")),
            None => Ok(()),
        }
    }

    /// Looks at the remote, and then, if nothing stands in the way and this start is still the one, pushes.
    async fn push_once(
        &self,
        slot: &mut Slot,
        order: &Order,
        is_new: bool,
    ) -> Result<Result<Pushed, WorkspaceError>, Failed> {
        match slot.look(order).await {
            Ok(None) => {}
            Ok(Some(pushed)) => return Ok(Ok(pushed)),
            Err(error) => return Ok(Err(error)),
        }
        // Behind the look, which may take long: what is asked here is to be true when the push begins.
        self.may_push().await?;
        fail::point("agent_before_push");
        self.known().pushing = Some((order.commit.to_string(), is_new));
        let sent = slot.send(order).await;
        if sent.is_err() {
            self.known().pushing = None;
        }
        Ok(sent.map(|()| Pushed::Done))
    }

    pub(super) async fn push(&self, slot: &mut Slot, order: &Order, patch: &[u8]) -> Result<Pushed, Failed> {
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
            let pushed = self.push_once(slot, order, is_new).await?;
            let error = match pushed {
                Ok(pushed) => {
                    fail::point("agent_after_push");
                    return Ok(pushed);
                }
                Err(error) => error,
            };
            self.before_next_try("push", &retry, tried, error).await?;
        }
    }

    /// A job that is cancelled leaves no branch: one that it made, and nobody has touched since, goes. Only while it is
    /// still ours: another start may have reported that very branch by now.
    pub(super) async fn take_back(&self, slot: Option<&mut Slot>) {
        let pushing = self.known().pushing.clone();
        let (Some((commit, true)), Some(slot), false) = (pushing, slot, self.worker.stop_attempts.is_cancelled())
        else {
            return;
        };
        if self.is_ours().await.is_err() {
            return;
        }
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
}
