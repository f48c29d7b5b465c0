//! REST services beside NATS, for fleets that have them: a registry that hears of states and events, a pool that gives
//! slots, a store that takes artifacts. Their shape is in `docs/outside-services.md`. What is not set costs nothing.
//!
//! Registry and store being down fails no job: what they missed is a warning in the record. Without a slot of a pool that is
//! set, no job begins.

mod events;
mod pool;
mod rest;

use std::time::Duration;

use agents::retry::Retry;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use reqwest::Method;
use schemas::Timestamp;
use schemas::record::Artifact;
use serde_json::{Value, json};

use super::line::JobLine;
use super::settings::Outside;
use crate::attempt::phase::End;
use crate::attempt::workload::{Done, Work};
use crate::objects;
use crate::worker::Worker;

pub use self::events::Events;
pub use self::pool::PoolSlot;
pub use self::rest::Failure;
use self::rest::Rest;

/// For all artifacts of a job, at its end.
const STORING: Duration = Duration::from_secs(5);
/// Larger ones stay in the fleet's own store.
const LARGEST_ARTIFACT: u64 = 64 << 20;

/// Those that are set.
#[derive(Default)]
pub struct Services {
    registry: Option<Rest>,
    pool: Option<Rest>,
    store: Option<Rest>,
}

impl Services {
    /// Nothing is asked of anybody yet.
    pub fn open(settings: &Outside) -> Result<Self, String> {
        Ok(Self {
            registry: settings.task_registry.as_ref().map(|it| Rest::open("task registry", it)).transpose()?,
            pool: settings.repo_pool.as_ref().map(|it| Rest::open("repository pool", it)).transpose()?,
            store: settings.artifact_store.as_ref().map(|it| Rest::open("artifact store", it)).transpose()?,
        })
    }

    /// What tells the registry of one attempt, if there is one: to be polled beside the job.
    pub fn events(&self, worker: &Worker, work: &Work, line: &JobLine) -> Option<Events<'_>> {
        let state = |state: &str| state_of(worker, work, state);
        self.registry.as_ref().map(|registry| Events::new(registry, &work.key, line, state("running")))
    }

    /// A slot for a repository, if there is a pool. `tell` hears of each wait.
    pub async fn slot(
        &self,
        worker: &Worker,
        work: &Work,
        repository: &str,
        retry: Retry,
        tell: impl FnMut(schemas::transcript::Event),
    ) -> Result<Option<PoolSlot>, Failure> {
        let Some(pool) = &self.pool else { return Ok(None) };
        let wish = json!({
            "repository": repository,
            "task": work.key.to_string(),
            "start": work.start,
            "worker": worker.id,
        });
        PoolSlot::take(pool, &wish, retry, tell).await.map(Some)
    }

    /// Puts artifacts away outside, too; returns what did not work.
    pub async fn store(&self, worker: &Worker, work: &Work, artifacts: &[Artifact]) -> Vec<String> {
        let Some(store) = &self.store else { return Vec::new() };
        let (mut put, mut warnings) = (0, Vec::new());
        let putting = async {
            for artifact in artifacts {
                match put_one(store, worker, work, artifact).await {
                    Ok(()) => put += 1,
                    // One that is down is not asked for each.
                    Err((true, why)) => return Some(why),
                    Err((false, why)) => {
                        put += 1;
                        warnings.push(format!("artifact `{}` not put into the artifact store: {why}", artifact.path));
                    }
                }
            }
            None
        };
        let failed = tokio::select! {
            failed = tokio::time::timeout(STORING, putting) => failed.unwrap_or_else(|_| Some("it took too long".to_owned())),
            () = worker.stop_now.cancelled() => Some("the worker was told to stop now".to_owned()),
        };
        if let Some(why) = failed {
            warnings.push(format!("{} artifacts not put into the artifact store: {why}", artifacts.len() - put));
        }
        warnings
    }
}

/// On failure: whether the store itself is the trouble, and why.
async fn put_one(store: &Rest, worker: &Worker, work: &Work, artifact: &Artifact) -> Result<(), (bool, String)> {
    let names = &worker.config.names;
    let bucket = artifact.bucket.clone().unwrap_or_else(|| names.artifacts_bucket());
    let name = names.artifact_name(&work.key, &artifact.start, &artifact.path);
    let found = objects::get(worker, &bucket, &name, LARGEST_ARTIFACT).await.map_err(|why| (false, why))?;
    let body = bytes::Bytes::from(found.ok_or_else(|| (false, "it is not in the fleet's store".to_owned()))?);
    let (queue, id) = (work.key.queue.as_str(), work.key.id.as_str());
    let path = ["artifacts", queue, id, artifact.start.as_str()].into_iter().chain(artifact.path.split('/'));
    let path: Vec<&str> = path.collect();
    let digest = artifact.digest.strip_prefix("SHA-256=").and_then(|text| URL_SAFE.decode(text).ok());
    let days = artifact
        .bucket
        .as_deref()
        .and_then(|bucket| [14, 30].into_iter().find(|days| names.kept_bucket(*days) == bucket));
    let retry = Retry { tries: 3, first: Duration::from_millis(300), ..Retry::default() };
    let mut tried = 0;
    loop {
        tried += 1;
        let mut request = store.request(Method::PUT, &path);
        if let Some(digest) = &digest {
            request = request.header("Content-Digest", format!("sha-256=:{}:", STANDARD.encode(digest)));
        }
        if let Some(days) = days {
            request = request.header("Shoal-Retention-Days", days);
        }
        let request = request.header("Content-Type", "application/octet-stream").body(body.clone());
        let Err(failure) = store.send(request).await else { return Ok(()) };
        match retry.pause(tried, failure.again()) {
            Some(pause) => tokio::time::sleep(pause).await,
            None => return Err((failure.status().is_none_or(|status| status.is_server_error()), failure.to_string())),
        }
    }
}

/// What the registry is told of an attempt.
fn state_of(worker: &Worker, work: &Work, state: &str) -> Value {
    json!({
        "queue": work.key.queue,
        "id": work.key.id,
        "start": work.start,
        "attempt": work.number,
        "worker": worker.id,
        "state": state,
        "at": Timestamp::now(),
    })
}

/// The same at its end.
pub fn end_of(worker: &Worker, work: &Work, done: &Done) -> Value {
    let (state, error) = match &done.end {
        End::Succeeded => ("succeeded", None),
        End::Failed { error, .. } => ("failed", Some(error)),
        End::Stopped(_) => ("stopped", None),
    };
    let mut told = state_of(worker, work, state);
    if let Some(error) = error {
        told["error"] = json!(error);
    }
    if let Some(report) = &done.agent {
        for (name, text) in
            [("branch", &report.branch), ("base_commit", &report.base_commit), ("commit", &report.commit)]
        {
            if let Some(text) = text {
                told[name] = json!(text);
            }
        }
        told["pushed"] = json!(report.pushed);
        if let Some(tests) = &report.tests {
            told["tests"] = json!(tests);
        }
    }
    told
}
