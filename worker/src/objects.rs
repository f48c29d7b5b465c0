//! Results and artifacts: small results travel in the record, everything else lies in the object store.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::jetstream::object_store::{ObjectMetadata, ObjectStore};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use schemas::record::{Artifact, INLINE_RESULT_BYTES, ObjectRef, TaskResult};
use schemas::{Code, More, TaskError};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::io::AsyncRead;

use crate::attempt::workload::Work;
use crate::worker::Worker;

/// Most files gathered of one attempt.
const MOST_FILES: usize = 1_000;
/// Most files kept in memory to choose from.
const MOST_FOUND: usize = 100 * MOST_FILES;
/// Most bytes of their names: they stand in the record.
const MOST_NAMES: usize = 64 << 10;
/// Chunks read at a time.
const CHUNKS: usize = 100;
/// After so many failed uploads the rest is not tried.
const MOST_FAILED: usize = 8;
/// Most bytes gathered of one attempt.
const MOST_BYTES: u64 = 1 << 30;
/// An upload that makes no end is given up: this long, and a second more per MiB.
const UPLOAD_PATIENCE: Duration = Duration::from_secs(30);
/// Name of a large result among the artifacts; no glob can gather a file of this path.
const RESULT_NAME: &str = ".shoal/result";

/// Why something could not be put away.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    #[error("no object store: {0}")]
    Store(String),
    #[error("upload failed: {0}")]
    Put(String),
    #[error("upload took too long")]
    TimedOut,
    #[error(transparent)]
    File(#[from] std::io::Error),
}

/// One of the fleet's object stores.
pub(crate) async fn store(worker: &Worker, bucket: &str) -> Result<ObjectStore, UploadError> {
    let context = async_nats::jetstream::new(worker.js.client().clone());
    context.get_object_store(bucket).await.map_err(|error| UploadError::Store(error.to_string()))
}

/// Puts one object into `bucket`. A failure takes back what it stored, as far as the store does.
pub(crate) async fn put(
    worker: &Worker,
    bucket: &str,
    name: String,
    bytes: u64,
    body: &mut (impl AsyncRead + Unpin),
) -> Result<ObjectRef, UploadError> {
    let store = store(worker, bucket).await?;
    let meta = ObjectMetadata { name, chunk_size: Some(256 << 10), ..ObjectMetadata::default() };
    let patience = UPLOAD_PATIENCE + Duration::from_secs(bytes >> 20);
    let info = tokio::time::timeout(patience, store.put(meta, body))
        .await
        .map_err(|_| UploadError::TimedOut)?
        .map_err(|error| UploadError::Put(error.to_string()))?;
    Ok(ObjectRef {
        name: info.name,
        bytes: info.size as u64,
        digest: info.digest.unwrap_or_default(),
        more: More::default(),
    })
}

/// How an object store describes an object.
#[derive(Deserialize)]
struct Meta {
    nuid: String,
    size: u64,
    digest: String,
    #[serde(default)]
    deleted: bool,
}

/// An object of at most `most` bytes, whole; `None` where there is none. Its chunks are read in pages: the client crate's
/// reader makes a consumer for each object.
pub(crate) async fn get(worker: &Worker, bucket: &str, name: &str, most: u64) -> Result<Option<Vec<u8>>, String> {
    let stream = format!("OBJ_{bucket}");
    let failed = |error: jetstream::ApiError| error.to_string();
    let meta = format!("$O.{bucket}.M.{}", URL_SAFE.encode(name));
    let Some(meta) = worker.js.last(&stream, &meta).await.map_err(failed)? else { return Ok(None) };
    let meta: Meta = serde_json::from_slice(&meta.payload).map_err(|error| error.to_string())?;
    if meta.deleted {
        return Ok(None);
    }
    if meta.size > most {
        return Err(format!("it has {} bytes, more than the {most} that are taken", meta.size));
    }
    let chunks = format!("$O.{bucket}.C.{}", meta.nuid);
    let (mut bytes, mut from) = (Vec::new(), 1);
    let mut missing = 0;
    while (bytes.len() as u64) < meta.size {
        let page = worker.js.page(&stream, &chunks, from, CHUNKS).await.map_err(failed)?;
        if page.messages.is_empty() {
            missing += 1;
            if missing > MOST_FAILED {
                return Err(format!("only {} of {} bytes are there", bytes.len(), meta.size));
            }
            // A replica may trail.
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        for chunk in page.messages {
            from = chunk.sequence + 1;
            bytes.extend_from_slice(&chunk.payload);
        }
    }
    match format!("SHA-256={}", URL_SAFE.encode(Sha256::digest(&bytes))) == meta.digest {
        true => Ok(Some(bytes)),
        false => Err("its digest is wrong".to_owned()),
    }
}

/// Keeps a result that is in memory.
pub async fn keep_result(worker: &Worker, work: &Work, bytes: &[u8]) -> Result<TaskResult, TaskError> {
    if bytes.len() <= INLINE_RESULT_BYTES {
        return Ok(TaskResult::inline(bytes));
    }
    check_size(worker, bytes.len() as u64)?;
    let name = worker.config.names.artifact_name(&work.key, &work.start, RESULT_NAME);
    let mut body = bytes;
    put(worker, &worker.config.names.artifacts_bucket(), name, bytes.len() as u64, &mut body)
        .await
        .map(TaskResult::Object)
        .map_err(not_kept)
}

/// Keeps what a workload wrote to its result file; nothing written is no result.
pub async fn keep_result_file(worker: &Worker, work: &Work, file: &Path) -> Result<Option<TaskResult>, TaskError> {
    let size = match std::fs::symlink_metadata(file) {
        Ok(meta) if meta.is_file() => meta.len(),
        // A link could name any file of the worker's.
        Ok(_) | Err(_) => return Ok(None),
    };
    if size == 0 {
        return Ok(None);
    }
    check_size(worker, size)?;
    let read = |error: std::io::Error| not_kept(UploadError::File(error));
    if size <= INLINE_RESULT_BYTES as u64 {
        let bytes = tokio::fs::read(file).await.map_err(read)?;
        return keep_result(worker, work, &bytes).await.map(Some);
    }
    let name = worker.config.names.artifact_name(&work.key, &work.start, RESULT_NAME);
    let mut body = tokio::io::BufReader::with_capacity(256 << 10, tokio::fs::File::open(file).await.map_err(read)?);
    put(worker, &worker.config.names.artifacts_bucket(), name, size, &mut body)
        .await
        .map(|object| Some(TaskResult::Object(object)))
        .map_err(not_kept)
}

fn check_size(worker: &Worker, size: u64) -> Result<(), TaskError> {
    let limit = worker.config.result_limit;
    if size <= limit.0 {
        return Ok(());
    }
    let message = format!("the result has {size} bytes, the worker takes at most {limit} ({} bytes)", limit.0);
    Err(TaskError::new(Code::ResultTooLarge, message))
}

fn not_kept(error: UploadError) -> TaskError {
    TaskError::new(Code::Internal, format!("the result could not be kept: {error}"))
}

/// Gathers the files that the task asks for. What fails is a warning, never a failure of the task.
pub async fn gather(worker: &Worker, work: &Work, folder: &Path, warnings: &mut Vec<String>) -> Vec<Artifact> {
    let globs = match globs(&work.task.artifacts) {
        Ok(globs) => globs,
        Err(error) => {
            warnings.push(format!("artifacts not gathered: {error}"));
            return Vec::new();
        }
    };
    let root = folder.to_owned();
    let found = tokio::task::spawn_blocking(move || find(&root, &globs)).await.unwrap_or_default();
    let (mut artifacts, mut total, mut names, mut failed) = (Vec::new(), 0, 0, 0);
    for (path, bytes) in found {
        total += bytes;
        names += path.len();
        if artifacts.len() == MOST_FILES || total > MOST_BYTES || names > MOST_NAMES || failed == MOST_FAILED {
            warnings.push(format!(
                "artifacts cut: `{path}` and what follows is beyond {MOST_FILES} files, {MOST_BYTES} bytes or \
                 {MOST_NAMES} bytes of names, or {MOST_FAILED} uploads had failed"
            ));
            break;
        }
        let uploaded = tokio::select! {
            uploaded = upload(worker, work, folder, &path, bytes) => uploaded,
            () = worker.stop_now.cancelled() => {
                warnings.push(format!("artifacts cut at `{path}`: the worker was told to stop now"));
                break;
            }
        };
        failed += usize::from(uploaded.is_err());
        match uploaded {
            Ok(object) => artifacts.push(Artifact {
                path,
                start: work.start.clone(),
                bytes: object.bytes,
                digest: object.digest,
                bucket: None,
                more: More::default(),
            }),
            Err(error) => warnings.push(format!("artifact `{path}` not kept: {error}")),
        }
    }
    artifacts
}

async fn upload(worker: &Worker, work: &Work, folder: &Path, path: &str, bytes: u64) -> Result<ObjectRef, UploadError> {
    let name = worker.config.names.artifact_name(&work.key, &work.start, path);
    let file = tokio::fs::File::open(folder.join(path)).await?;
    put(
        worker,
        &worker.config.names.artifacts_bucket(),
        name,
        bytes,
        &mut tokio::io::BufReader::with_capacity(256 << 10, file),
    )
    .await
}

/// The globs of a task, as they are matched against paths below its working directory.
pub fn globs(patterns: &[String]) -> Result<GlobSet, globset::Error> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        // `*` stays within a folder, as in a shell; `**` crosses them.
        set.add(GlobBuilder::new(pattern).literal_separator(true).build()?);
    }
    set.build()
}

/// Plain files below `root` that match, sorted; links are not followed, for they may lead anywhere.
fn find(root: &Path, globs: &GlobSet) -> Vec<(String, u64)> {
    let (mut found, mut folders) = (Vec::new(), vec![PathBuf::new()]);
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(root.join(&folder)) else { continue };
        for entry in entries.flatten() {
            let path = folder.join(entry.file_name());
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => folders.push(path),
                // Far beyond what is gathered, so that the rest is told as cut all the same.
                Ok(meta) if meta.is_file() && found.len() <= MOST_FOUND && globs.is_match(&path) => {
                    if let Some(name) = path.to_str() {
                        found.push((name.to_owned(), meta.len()));
                    }
                }
                Ok(_) | Err(_) => {}
            }
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_gather_plain_files_below_the_folder() {
        let root = tempfile::tempdir().unwrap();
        for file in ["a.txt", "out/b.txt", "out/deep/c.txt"] {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, file).unwrap();
        }
        std::os::unix::fs::symlink("/etc/hostname", root.path().join("out/link.txt")).unwrap();
        let gather = |glob: &str| -> Vec<String> {
            let globs = globs(&[glob.to_owned()]).unwrap();
            find(root.path(), &globs).into_iter().map(|(path, _)| path).collect()
        };
        assert_eq!(gather("out/**"), ["out/b.txt", "out/deep/c.txt"]);
        assert_eq!(gather("*.txt"), ["a.txt"]);
        assert_eq!(gather("**/*.txt"), ["a.txt", "out/b.txt", "out/deep/c.txt"]);
    }
}
