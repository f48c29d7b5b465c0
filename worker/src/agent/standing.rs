//! Where an attempt begins: the base, what is run there, and the work of an earlier attempt.

use agents::git::Commit;
use agents::retry::{Again, retried};
use agents::workspace::{Fetched, Kept as KeptWork, Slot, Want};
use agents::{Line, Progress};
use schemas::agent_job::PushPolicy;
use schemas::transcript::{Event, JobPhase};
use schemas::{Code, StartId, TaskError};

use super::attempt::{Attempt, Failed};
use super::keep::{self, Kept, Pushing};
use super::plan::Plan;
use crate::fail;

/// What a start before this one kept: how far it came, and its patch.
pub(super) type Earlier = (StartId, Kept, Vec<u8>);

/// The workspace is where the work begins.
pub(super) struct Standing {
    pub(super) fetched: Fetched,
    /// What the work goes on top of: the job's own branch, where it is there already.
    pub(super) base: Commit,
    pub(super) plan: Plan,
    pub(super) resumed: Option<Resumed>,
}

/// Work of an earlier attempt that this one goes on from.
pub(super) struct Resumed {
    /// Of which start.
    start: StartId,
    pub(super) progress: Progress,
    /// It was done and tested, and only failed later: it is tested again, and nobody works on it unless that fails.
    pub(super) implemented: bool,
    /// Time spent on implementing by then.
    worked_ms: u64,
}

impl Attempt<'_> {
    /// Fetches, and brings the workspace to where the work begins. `None`: an earlier attempt has pushed it already.
    pub(super) async fn stand(
        &self,
        slot: &mut Slot,
        branch: &str,
        earlier: Option<Earlier>,
    ) -> Result<Option<Standing>, Failed> {
        self.ledger.begin(JobPhase::Fetch);
        let want = Want {
            base: self.job.base.clone(),
            branch: (self.job.push == PushPolicy::Branch).then(|| branch.to_owned()),
            kept: self.job.keep.remote.then(|| self.kept_name()),
        };
        let fetched = self.fetch(slot, &want).await?;
        fail::point("agent_fetched");

        self.ledger.begin(JobPhase::Rebase);
        if let Some((_, kept, _)) = &earlier
            && let Some(pushing) = &kept.pushing
            && fetched.branch.as_ref().is_some_and(|tip| tip.as_str() == pushing.commit)
        {
            self.found_pushed(pushing, &fetched, kept);
            return Ok(None);
        }
        self.check_own(slot, &fetched, branch).await?;
        // Where our branch is there already, the job goes on from it.
        let base = fetched.branch.clone().unwrap_or_else(|| fetched.base.clone());
        // What is run is the base's word, not that of a branch that an earlier run has pushed.
        slot.stand(&fetched.base, branch, &fetched.base_name).await.map_err(|error| error.to_task_error())?;
        let plan = self.plan(slot).await?;
        if base != fetched.base {
            slot.stand(&base, branch, &fetched.base_name).await.map_err(|error| error.to_task_error())?;
        }
        let resumed = self.resume(slot, &fetched, earlier).await?;
        {
            let mut known = self.known();
            known.report.base_commit = Some(base.to_string());
            known.report.branch = Some(branch.to_owned());
            known.report.resumed_from = resumed.as_ref().map(|resumed| resumed.start.clone());
            known.kept.base = base.to_string();
            known.kept.worked_ms = resumed.as_ref().map_or(0, |resumed| resumed.worked_ms);
            known.kept.progress = resumed.as_ref().map(|resumed| resumed.progress.clone()).unwrap_or_default();
        }
        Ok(Some(Standing { fetched, base, plan, resumed }))
    }

    /// A branch of the usual name that is there already may be anybody's: of another queue's job with this id, or a
    /// person's. Whoever names it in the job wants it gone on from.
    async fn check_own(&self, slot: &Slot, fetched: &Fetched, branch: &str) -> Result<(), Failed> {
        let (Some(tip), None) = (&fetched.branch, &self.job.branch) else { return Ok(()) };
        match slot.may_go_on(&fetched.base, tip, &self.mark()).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(TaskError::new(
                Code::PushRefused,
                format!(
                    "the remote has a branch `{branch}` already, and no commit of it is this job's: name another `branch`, \
                     or this one to go on from it"
                ),
            )),
            Err(error) => Err(error.to_task_error()),
        }
    }

    /// The remote has moved: the same work on top of where it is now.
    pub(super) async fn stand_again(
        &self,
        slot: &mut Slot,
        branch: &str,
        fetched: &Fetched,
        work: Commit,
        onto: &Commit,
    ) -> Result<(), Failed> {
        // Until the work is there again, what is in the tree is not to be kept over what was.
        self.known().kept.base.clear();
        slot.stand(onto, branch, &fetched.base_name).await.map_err(|error| error.to_task_error())?;
        slot.resume(&KeptWork::Commit(work)).await.map_err(|error| error.to_task_error())?;
        let mut known = self.known();
        known.report.base_commit = Some(onto.to_string());
        known.kept.base = onto.to_string();
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
            self.before_next_try("fetch", &retry, tried, error).await?;
        }
    }

    /// What an earlier attempt kept, or the run before this one. What cannot be read now may be read later: nothing is
    /// begun anew for that.
    pub(super) async fn earlier(&self) -> Result<Option<Earlier>, Failed> {
        if let Some(earlier) = self.kept_by(&self.work.earlier).await? {
            return Ok(Some(earlier));
        }
        let before = self.kept_by(&self.work.resumes).await?;
        // Whoever has it run once more gives it the whole of its budget again.
        Ok(before.map(|(start, mut kept, patch)| {
            (kept.progress.used, kept.worked_ms) = Default::default();
            (start, kept, patch)
        }))
    }

    async fn kept_by(&self, starts: &[StartId]) -> Result<Option<Earlier>, Failed> {
        let find = || keep::find(self.worker, &self.work.key, starts);
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
    fn found_pushed(&self, pushing: &Pushing, fetched: &Fetched, kept: &Kept) {
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
    }

    /// Brings the work of an earlier attempt into the workspace. What does not fit is told, and the job begins anew: what
    /// was used counts all the same.
    async fn resume(
        &self,
        slot: &mut Slot,
        fetched: &Fetched,
        earlier: Option<Earlier>,
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
}
