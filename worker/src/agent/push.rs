//! The change, its commit, and the fenced push.

use std::time::Instant;

use agents::Line;
use agents::git::{Change, Commit, Order, Pushed};
use agents::secret::find_known;
use agents::workspace::Slot;
use schemas::transcript::Event;
use schemas::{Code, State, TaskError};

use super::attempt::{Attempt, Failed};
use super::keep;
use super::keep::Pushing;
use crate::fail;

impl Attempt<'_> {
    /// What differs from the base. What has a secret in it does not leave.
    pub(super) async fn change(&self, slot: &Slot) -> Result<Change, Failed> {
        let scan = |bytes: &[u8]| {
            let own = self.mask.find(bytes).map(str::to_owned);
            own.or_else(|| find_known(bytes).map(str::to_owned))
        };
        slot.change(&scan).await.map_err(|error| error.to_task_error())
    }

    /// Subjects of this job's commits begin so.
    pub(super) fn mark(&self) -> String {
        format!("feat(task-{}): ", self.work.key.id)
    }

    pub(super) fn message(&self) -> String {
        let mut message = format!("{}{}\n", self.mark(), self.job.title);
        if let Some(spec) = &self.job.spec {
            message.push_str(&format!("\nSpecification: {spec}\n"));
        }
        message.push_str(&format!("\nShoal-Task: {}\nShoal-Start: {}\n", self.work.key, self.work.start));
        message
    }

    /// Whether this start is still the one: by its lease, and by the record.
    pub(super) async fn is_ours(&self) -> Result<(), Failed> {
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
    pub(super) async fn take_back(&self, slot: Option<&mut Slot>) {
        let pushing = self.known().pushing.clone();
        let (Some((commit, true)), Some(slot), false) = (pushing, slot, self.worker.stop_attempts.is_cancelled())
        else {
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
}
