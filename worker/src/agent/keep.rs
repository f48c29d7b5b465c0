//! Work in progress, kept as one object an attempt, so that a next attempt on any worker goes on from it: a line of JSON
//! that says how far it came, then the patch against the base.

use std::time::Duration;

use agents::Progress;
use schemas::transcript::TestReport;
use schemas::{StartId, TaskKey};
use serde::{Deserialize, Serialize};

use crate::objects::{self, UploadError};
use crate::worker::Worker;

/// Name of the object among the artifacts; no glob can gather a file of this path.
const NAME: &str = ".shoal/wip";
/// The same of what was used, where no work is kept.
const USED: &str = ".shoal/used";
/// More is not taken back into a workspace.
const LARGEST: u64 = 256 << 20;
/// A server that makes no end is not waited for longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// How far an attempt came.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// Time spent on implementing, over all attempts.
    #[serde(default)]
    pub worked_ms: u64,
    /// Of its implementer, over all attempts.
    #[serde(default)]
    pub progress: Progress,
    /// Commit of the base that the patch is against.
    pub base: String,
    /// A push of this commit was begun: the tests had passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pushing: Option<Pushing>,
    /// The work was declared done, and only failed later.
    #[serde(default)]
    pub implemented: bool,
    /// Why the attempt ended, if it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// What was about to be pushed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pushing {
    /// The commit.
    pub commit: String,
    /// The branch.
    pub branch: String,
    /// The tests' result.
    pub tests: Option<TestReport>,
}

/// Puts it away; the earlier one of the same start is replaced.
pub async fn put(
    worker: &Worker,
    key: &TaskKey,
    start: &StartId,
    kept: &Kept,
    patch: &[u8],
) -> Result<(), UploadError> {
    let mut body = serde_json::to_vec(kept).expect("our own types are JSON");
    body.push(b'\n');
    body.extend_from_slice(patch);
    let name = worker.config.names.artifact_name(key, start, NAME);
    objects::put(worker, &worker.config.names.artifacts_bucket(), name, body.len() as u64, &mut body.as_slice())
        .await
        .map(|_| ())
}

/// Puts away what was used alone, where the work itself cannot be kept: a budget holds over all attempts.
pub async fn put_used(worker: &Worker, key: &TaskKey, start: &StartId, kept: &Kept) -> Result<(), UploadError> {
    let progress = Progress { used: kept.progress.used, summary: String::new() };
    let used = Kept { progress, worked_ms: kept.worked_ms, ..Kept::default() };
    let mut body = serde_json::to_vec(&used).expect("our own types are JSON");
    body.push(b'\n');
    let name = worker.config.names.artifact_name(key, start, USED);
    objects::put(worker, &worker.config.names.artifacts_bucket(), name, body.len() as u64, &mut body.as_slice())
        .await
        .map(|_| ())
}

/// The newest kept work of these starts, the newest of which is last. What cannot be read counts as none, with a reason.
pub async fn find(
    worker: &Worker,
    key: &TaskKey,
    starts: &[StartId],
) -> Result<Option<(StartId, Kept, Vec<u8>)>, String> {
    for start in starts.iter().rev() {
        let (mut found, mut used) = (None, None);
        for (path, into) in [(NAME, &mut found), (USED, &mut used)] {
            let name = worker.config.names.artifact_name(key, start, path);
            let read = tokio::time::timeout(PATIENCE, read(worker, &name)).await;
            *into = read.map_err(|_| "the server took too long to hand it out".to_owned())??;
        }
        if let Some((used, _)) = used {
            let (mut kept, patch) = found.unwrap_or_default();
            // Written later than the work: the work could not be kept any more by then.
            kept.progress.used = used.progress.used;
            kept.worked_ms = used.worked_ms;
            return Ok(Some((start.clone(), kept, patch)));
        }
        if let Some((kept, patch)) = found {
            return Ok(Some((start.clone(), kept, patch)));
        }
    }
    Ok(None)
}

async fn read(worker: &Worker, name: &str) -> Result<Option<(Kept, Vec<u8>)>, String> {
    let bucket = worker.config.names.artifacts_bucket();
    let Some(mut body) = objects::get(worker, &bucket, name, LARGEST).await? else { return Ok(None) };
    let at = body.iter().position(|byte| *byte == b'\n').ok_or("it is not of this program")?;
    let kept = serde_json::from_slice(&body[..at]).map_err(|error| error.to_string())?;
    Ok(Some((kept, body.split_off(at + 1))))
}

/// Nothing of these starts needs to be gone on from any more.
pub async fn forget(worker: &Worker, key: &TaskKey, starts: &[StartId]) {
    let bucket = worker.config.names.artifacts_bucket();
    let Ok(store) = objects::store(worker, &bucket).await else { return };
    for (start, path) in starts.iter().flat_map(|start| [(start, NAME), (start, USED)]) {
        let name = worker.config.names.artifact_name(key, start, path);
        // It goes with its retention otherwise.
        let _ = tokio::time::timeout(PATIENCE, store.delete(&name)).await;
    }
}
