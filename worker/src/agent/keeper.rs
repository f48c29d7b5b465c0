//! Keeps what is in the workspace: every few turns, and at the end of an attempt that did not succeed.

use std::sync::{Mutex, PoisonError};

use agents::workspace::Slot;
use agents::{Keeper, Line, Progress};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use schemas::agent_job::PATCH;
use schemas::transcript::Event;

use super::attempt::Attempt;
use super::keep;
use super::keep::Kept;
use super::run::put;
use crate::fail;

impl Attempt<'_> {
    /// What there is goes on from here, whoever runs the next attempt.
    pub(super) async fn keep_at_the_end(&self, slot: &Slot, failed: Option<String>) {
        let stands = !self.known().kept.base.is_empty();
        if stands {
            let mut kept = self.known().kept.clone();
            kept.failed = failed;
            match self.keep_now(slot, kept, true).await {
                Ok(None) => {}
                Ok(Some(left_out)) => self.warn(format!("left out of the work that is kept: {left_out}")),
                Err(why) => self.warn(format!("the work of this attempt is not kept: {why}")),
            }
        }
    }

    /// Keeps what is in the workspace. With `as_artifact` it is a patch for people, too. What may not leave is not kept
    /// either, and told.
    pub(super) async fn keep_now(
        &self,
        slot: &Slot,
        mut kept: Kept,
        as_artifact: bool,
    ) -> Result<Option<String>, String> {
        let (change, left_out) = match self.sift(slot).await {
            Ok(sifted) => {
                let left_out = sifted.left_out();
                (sifted.change, left_out)
            }
            Err(error) => {
                // What was kept before stays.
                let put = keep::put_used(self.worker, &self.work.key, &self.work.start, &kept).await;
                put.map_err(|error| error.to_string())?;
                return Err(error.message);
            }
        };
        // Not all of what was declared done is there for whoever goes on.
        kept.implemented &= left_out.is_none();
        let patch = match change.is_empty() {
            true => Vec::new(),
            false => slot.patch(&change).await.map_err(|error| error.to_string())?,
        };
        keep::put(self.worker, &self.work.key, &self.work.start, &kept, &patch)
            .await
            .map_err(|error| error.to_string())?;
        if change.is_empty() {
            return Ok(left_out);
        }
        if self.job.keep.remote {
            slot.keep(&change, &self.kept_name(), true).await.map_err(|error| error.to_string())?;
        }
        if as_artifact && !self.known().artifacts.iter().any(|artifact| artifact.path == PATCH) {
            let artifact =
                put(self.worker, self.work, PATCH, patch.len() as u64, &mut patch.as_slice(), Some(30)).await;
            let artifact = artifact.map_err(|error| error.to_string())?;
            let mut known = self.known();
            known.report.change = Some(change.report);
            known.artifacts.push(artifact);
        }
        Ok(left_out)
    }

    /// Nobody goes on from a job that succeeded. But its record is not written yet: whoever finds it unwritten must find
    /// what was pushed; that little goes with its retention.
    pub(super) async fn forget_but_the_push(&self) {
        for starts in [&self.work.earlier, &self.work.resumes] {
            keep::forget(self.worker, &self.work.key, starts).await;
        }
        let kept = self.known().kept.clone();
        if kept.pushing.is_some()
            && let Err(error) = keep::put(self.worker, &self.work.key, &self.work.start, &kept, &[]).await
        {
            tracing::debug!(task = %self.work.key, %error, "kept work stays until its retention ends");
        }
    }
}

/// Keeps the work every few turns.
pub(super) struct WorkKeeper<'a> {
    pub(super) attempt: &'a Attempt<'a>,
    pub(super) slot: &'a Slot,
    /// Turns at the last time.
    pub(super) last: Mutex<Option<u32>>,
    /// What was told to be left out then.
    pub(super) left_out: Mutex<Option<String>>,
}

impl Keeper for WorkKeeper<'_> {
    fn turn<'a>(&'a self, progress: &'a Progress) -> BoxFuture<'a, ()> {
        async move {
            let attempt = self.attempt;
            attempt.count_time();
            attempt.known().kept.progress = progress.clone();
            {
                let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
                let since =
                    progress.used.turns.saturating_sub(*last.get_or_insert(progress.used.turns.saturating_sub(1)));
                if since < attempt.job.keep.every_turns {
                    return;
                }
                *last = Some(progress.used.turns);
            }
            let kept = attempt.known().kept.clone();
            match attempt.keep_now(self.slot, kept, false).await {
                Ok(left_out) => {
                    attempt.line.tell(Event::Kept { turns: progress.used.turns });
                    let mut told = self.left_out.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(left_out) = left_out.as_ref().filter(|_| *told != left_out) {
                        let text = format!("left out of the work in progress that is kept: {left_out}");
                        attempt.line.tell(Event::Note { text });
                    }
                    *told = left_out;
                }
                Err(why) => attempt.line.tell(Event::Note { text: format!("work in progress is not kept: {why}") }),
            }
            fail::point("agent_kept");
        }
        .boxed()
    }
}
