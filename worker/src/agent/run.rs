//! One attempt of an agent job: slot, fetch, rebase, branch, implement, test, commit, push, report.
//!
//! The push is seen outside, so it is fenced: the lease must be ours and the record must name this start, and what is about
//! to be pushed is kept before, so that an attempt after a crash finds its commit at the remote and pushes nothing twice.
//! A job that is stopped while it pushes takes its own branch back.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use schemas::agent_job::AgentJob;
use schemas::record::Artifact;
use schemas::{Code, More, TaskError};
use tokio::sync::watch;

use super::attempt::Attempt;
use super::ledger::Ledger;
use super::line::{Ends, JobLine};
use super::outside::end_of;
use super::{endpoint, mask_of};
use crate::attempt::phase::{End, Why};
use crate::attempt::workload::{Done, Work};
use crate::logs::LogSink;
use crate::worker::Worker;
use crate::{objects, placement};

/// Transcript, log and test output among the artifacts.
pub(super) const TRANSCRIPT: &str = "transcript.jsonl";
pub(super) const JOB_LOG: &str = "job.log";
/// For what a stopped job puts away, at least and at most.
pub(super) const PUT_AWAY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(20));

/// Runs it. `stop` carries the grace once it is to stop; then this returns as soon as all of it is gone.
pub async fn run(worker: &Worker, work: &Work, job: &AgentJob, mut stop: watch::Receiver<Option<Duration>>) -> Done {
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
    let log =
        output.writer().into_file(&folder.path.join(JOB_LOG), log_limit.bound().map_or(u64::MAX, |limit| limit.0));
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
    let events = agents.outside.events(worker, work, &line);
    let (tell_end, end_told) = tokio::sync::oneshot::channel();
    let telling = async {
        match events {
            Some(events) => events.tell(end_told).await,
            None => Vec::new(),
        }
    };
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
        let working = async {
            let done = attempt.whole(&mut stop).await;
            work.exited.store(true, std::sync::atomic::Ordering::Release);
            let _ = tell_end.send(end_of(worker, work, &done));
            line.end();
            done
        };
        tokio::join!(working, serving).0
    };
    let (mut done, warnings, untold, outside) = tokio::join!(running, storing, carrier.carry(), telling);
    done.warnings.extend(warnings.into_iter().chain(untold).chain(outside));
    done.started = Some(started);
    if !worker.stop_now.is_cancelled() {
        let kept = folder.keep(worker, work, TRANSCRIPT, Some(30));
        match tokio::time::timeout(PUT_AWAY.1, kept).await {
            Ok(Ok(artifact)) => done.artifacts.extend(artifact),
            Ok(Err(error)) => done.warnings.push(format!("artifact `{TRANSCRIPT}` not kept: {error}")),
            Err(_) => done.warnings.push(format!("artifact `{TRANSCRIPT}` not kept: the server took too long")),
        }
        let unstored = agents.outside.store(worker, work, &done.artifacts).await;
        done.warnings.extend(unstored);
    }
    done
}

/// What one attempt writes on this worker; gone with it.
pub(super) struct JobFolder {
    pub(super) path: PathBuf,
}

impl JobFolder {
    /// Stores one of its files, if it is there and not empty, for so many days.
    pub(super) async fn keep(
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
pub(super) async fn put(
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
