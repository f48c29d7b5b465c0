//! What a task left behind: its result and its artifacts.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use schemas::record::{Artifact, TaskResult};
use schemas::{StartId, TaskRecord};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use super::record::Pauses;
use super::{Client, ClientError};

/// Chunks asked for at a time; a page is bounded to 8 MB besides.
const PAGE: usize = 256;

/// What the object store says of one object.
#[derive(Deserialize)]
struct Meta {
    nuid: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    digest: String,
    #[serde(default)]
    deleted: bool,
}

/// A result kept in a way that this version does not know.
fn of_a_newer_kind(record: &TaskRecord) -> ClientError {
    let source = serde::de::Error::custom("it is kept in a way of a newer version");
    ClientError::Unreadable { what: format!("result of {}", record.key()), source }
}

impl Client {
    /// The result's bytes, wherever they are; `None` if the task left none. The digest is checked.
    pub async fn result(&self, record: &TaskRecord) -> Result<Option<Bytes>, ClientError> {
        match &record.result {
            None => Ok(None),
            Some(TaskResult::Inline(_)) => {
                let bytes = record.result.as_ref().and_then(TaskResult::inline_bytes).transpose();
                let name = format!("inline result of {}", record.key());
                let bytes = bytes.map_err(|source| ClientError::Object { name, source: Box::new(source) })?;
                Ok(bytes.map(Bytes::from))
            }
            Some(TaskResult::Object(object)) => {
                let mut bytes = Vec::new();
                self.object_to(&self.names.artifacts_bucket(), &object.name, &object.digest, &mut bytes).await?;
                Ok(Some(bytes.into()))
            }
            Some(TaskResult::Newer(_)) => Err(of_a_newer_kind(record)),
        }
    }

    /// Writes the result's bytes to `out` and returns how many; none if the task left none. What is written before an
    /// error is not whole.
    pub async fn result_to(
        &self,
        record: &TaskRecord,
        out: &mut (impl AsyncWrite + Unpin + Send),
    ) -> Result<u64, ClientError> {
        if let Some(TaskResult::Object(object)) = &record.result {
            let bucket = self.names.artifacts_bucket();
            return self.object_to(&bucket, &object.name, &object.digest, out).await;
        }
        let bytes = self.result(record).await?.unwrap_or_default();
        let name = format!("inline result of {}", record.key());
        out.write_all(&bytes).await.map_err(|source| ClientError::Object { name, source: Box::new(source) })?;
        Ok(bytes.len() as u64)
    }

    /// The artifact `path` of a task: of this start, or of the newest start that has one.
    pub fn find_artifact<'a>(
        &self,
        record: &'a TaskRecord,
        path: &str,
        start: Option<&StartId>,
    ) -> Result<&'a Artifact, ClientError> {
        let fits = |artifact: &&Artifact| artifact.path == path && start.is_none_or(|start| *start == artifact.start);
        let not_found = || ClientError::NotFound { kind: "artifact", name: path.to_owned() };
        // They are gathered start by start.
        record.artifacts.iter().rev().find(fits).ok_or_else(not_found)
    }

    /// Writes an artifact's bytes to `out` and returns how many. What is written before an error is not whole.
    pub async fn artifact_to(
        &self,
        record: &TaskRecord,
        artifact: &Artifact,
        out: &mut (impl AsyncWrite + Unpin + Send),
    ) -> Result<u64, ClientError> {
        let name = self.names.artifact_name(&record.key(), &artifact.start, &artifact.path);
        let bucket = artifact.bucket.clone().unwrap_or_else(|| self.names.artifacts_bucket());
        self.object_to(&bucket, &name, &artifact.digest, out).await
    }

    /// Copies an object of the artifacts' store. Its chunks are read in pages: the client crate's reader makes a consumer
    /// for each object, and waits without end where chunks are missing.
    async fn object_to(
        &self,
        bucket: &str,
        name: &str,
        expected: &str,
        out: &mut (impl AsyncWrite + Unpin + Send),
    ) -> Result<u64, ClientError> {
        let stream = format!("OBJ_{bucket}");
        let meta = self.js.last(&stream, &format!("$O.{bucket}.M.{}", URL_SAFE.encode(name))).await?;
        let gone = || ClientError::NotFound { kind: "object", name: name.to_owned() };
        let meta: Meta = match meta {
            Some(meta) => serde_json::from_slice(&meta.payload).map_err(|source| ClientError::Unreadable {
                what: format!("the description of object {name}"),
                source,
            })?,
            None => return Err(gone()),
        };
        if meta.deleted {
            return Err(gone());
        }
        let broken = |found: String| ClientError::Digest { name: name.into(), expected: expected.into(), found };
        if meta.digest != expected {
            return Err(broken(meta.digest));
        }
        let chunks = format!("$O.{bucket}.C.{}", meta.nuid);
        let (mut digest, mut bytes, mut from) = (Sha256::new(), 0, 1);
        // Counted by bytes, not by pages: a replica may trail.
        let mut pauses = Pauses::new(Duration::from_millis(20), Duration::from_secs(1));
        let give_up = Instant::now() + INCOMPLETE_FOR;
        while bytes < meta.size {
            let page = self.js.page(&stream, &chunks, from, PAGE).await?;
            if page.messages.is_empty() {
                if Instant::now() >= give_up {
                    return Err(broken(format!("only {bytes} of {} bytes", meta.size)));
                }
                pauses.sleep().await;
            }
            for chunk in page.messages {
                from = chunk.sequence + 1;
                bytes += chunk.payload.len() as u64;
                digest.update(&chunk.payload);
                out.write_all(&chunk.payload)
                    .await
                    .map_err(|source| ClientError::Object { name: name.into(), source: Box::new(source) })?;
            }
        }
        let found = format!("SHA-256={}", URL_SAFE.encode(digest.finalize()));
        if found != expected {
            return Err(broken(found));
        }
        out.flush().await.map_err(|source| ClientError::Object { name: name.into(), source: Box::new(source) })?;
        Ok(bytes)
    }
}

/// How long chunks may be missing before the object counts as broken.
const INCOMPLETE_FOR: Duration = Duration::from_secs(5);
