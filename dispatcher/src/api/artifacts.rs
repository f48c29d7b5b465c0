//! What a task left behind: its result and its artifacts, streamed. The last piece is held back until the digest was
//! checked: of a damaged object the connection breaks before the promised length, and nobody takes it for whole.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use schemars::JsonSchema;
use schemas::http::Artifacts;
use schemas::record::TaskResult;
use schemas::{StartId, TaskRecord};
use serde::Deserialize;
use tokio::io::DuplexStream;
use tokio::sync::oneshot;
use tokio_util::io::ReaderStream;

use super::Api;
use super::openapi::{BYTES, Operation};
use super::problem::Failure;
use super::read::Query;
use crate::client::ClientError;

/// Bytes between the store and a slow reader.
const AHEAD: usize = 256 << 10;

pub(super) fn operations() -> Vec<Operation> {
    let task = |operation: Operation| operation.path::<String>("id", "Id, `queue.id`, or a prefix that fits one task.");
    vec![
        task(Operation::new(
            &Method::GET,
            "/api/tasks/{id}/result",
            "getResult",
            "The bytes of a task's result",
            result,
        ))
        .bytes(StatusCode::OK, BYTES, "The bytes, their digest checked.")
        .fails(&[400, 404, 409]),
        task(Operation::new(
            &Method::GET,
            "/api/tasks/{id}/artifacts",
            "listArtifacts",
            "What files a task left",
            list,
        ))
        .answer::<Artifacts>(StatusCode::OK, "All of the newest run.")
        .fails(&[400, 404, 409]),
        task(Operation::new(
            &Method::GET,
            "/api/tasks/{id}/artifacts/{*path}",
            "getArtifact",
            "The bytes of one artifact",
            artifact,
        ))
        .path::<String>("path", "As the record names it; may have slashes.")
        .query::<ArtifactQuery>()
        .bytes(StatusCode::OK, BYTES, "The bytes, their digest checked.")
        .fails(&[400, 404, 409]),
    ]
}

/// Which of several.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ArtifactQuery {
    /// Of this start of an attempt; of the newest that has one if absent.
    start: Option<StartId>,
}

/// The record of the newest run, if there is one yet.
async fn record(api: &Api, id: &str) -> Result<TaskRecord, Failure> {
    let key = api.client.find(id).await?;
    let view = api.client.get(&key).await?;
    match view.current() {
        Some(current) => Ok(current.record.clone()),
        None => Err(Failure::conflict(format!("task {key} is queued"))
            .hint(format!("wait for it: GET /api/tasks/{key}?wait=30s"))),
    }
}

async fn result(State(api): State<Api>, Path(id): Path<String>) -> Result<Response, Failure> {
    let record = record(&api, &id).await?;
    let key = record.key();
    if !record.state.is_terminal() {
        let unfinished = ClientError::Unfinished { key, status: record.state.to_string() };
        return Err(unfinished.into());
    }
    match &record.result {
        None => Err(Failure::not_found(format!("task {key} left no result"))),
        Some(TaskResult::Inline(_) | TaskResult::Newer(_)) => {
            let bytes = api.client.result(&record).await?.unwrap_or_default();
            Ok(([(header::CONTENT_TYPE, BYTES)], bytes).into_response())
        }
        Some(TaskResult::Object(object)) => {
            let (bytes, digest) = (object.bytes, object.digest.clone());
            let (writer, reader) = tokio::io::duplex(AHEAD);
            let client = api.client.clone();
            let copy = async move {
                let mut writer = writer;
                client.result_to(&record, &mut writer).await
            };
            streamed(&api, copy, reader, bytes, &digest).await
        }
    }
}

async fn list(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<Artifacts>, Failure> {
    Ok(Json(Artifacts { artifacts: record(&api, &id).await?.artifacts }))
}

async fn artifact(
    State(api): State<Api>,
    Path((id, path)): Path<(String, String)>,
    Query(query): Query<ArtifactQuery>,
) -> Result<Response, Failure> {
    let record = record(&api, &id).await?;
    let artifact = api.client.find_artifact(&record, &path, query.start.as_ref())?.clone();
    let (bytes, digest) = (artifact.bytes, artifact.digest.clone());
    let (writer, reader) = tokio::io::duplex(AHEAD);
    let client = api.client.clone();
    let copy = async move {
        let mut writer = writer;
        client.artifact_to(&record, &artifact, &mut writer).await
    };
    let mut response = streamed(&api, copy, reader, bytes, &digest).await?;
    // Whatever a job calls its file, a browser is to save it and not to show it.
    response.headers_mut().insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    Ok(response)
}

/// Answers with what `copy` writes. Nothing is answered before the first bytes are there.
async fn streamed(
    api: &Api,
    copy: impl Future<Output = Result<u64, ClientError>> + Send + 'static,
    reader: DuplexStream,
    bytes: u64,
    digest: &str,
) -> Result<Response, Failure> {
    let room = api.stream()?;
    let (ended, end) = oneshot::channel();
    // Ends with its reader: then nobody takes what it writes.
    api.background.spawn(async move {
        let _ = ended.send(copy.await);
    });
    let mut pieces = Box::pin(checked(ReaderStream::with_capacity(reader, AHEAD), end));
    let first = match pieces.next().await {
        Some(Err(error)) => return Err((*error).into()),
        first => first,
    };
    let pieces = stream::iter(first).chain(pieces).map(move |piece| {
        let _held = &room;
        piece
    });
    let mut response = ([(header::CONTENT_TYPE, BYTES)], Body::from_stream(pieces)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
    if let Ok(etag) = HeaderValue::from_str(&format!("\"{digest}\"")) {
        headers.insert(header::ETAG, etag);
    }
    Ok(response)
}

/// The pieces of `reader`, each handed on when the next one is there, and the last when the copy ended well.
fn checked<R>(
    reader: R,
    end: oneshot::Receiver<Result<u64, ClientError>>,
) -> impl Stream<Item = Result<Bytes, Box<ClientError>>>
where
    R: Stream<Item = std::io::Result<Bytes>> + Unpin,
{
    let begin = (reader, Some(end), None::<Bytes>);
    stream::unfold(begin, |(mut reader, mut end, mut held)| async move {
        end.as_ref()?;
        loop {
            match reader.next().await {
                Some(Ok(piece)) => {
                    if let Some(before) = held.replace(piece) {
                        return Some((Ok(before), (reader, end, held)));
                    }
                }
                Some(Err(_)) | None => {
                    let ended = end.take().expect("asked once").await;
                    return match ended {
                        Ok(Ok(_)) => held.take().map(|last| (Ok(last), (reader, None, None))),
                        Ok(Err(error)) => Some((Err(Box::new(error)), (reader, None, None))),
                        // The copy is gone without a word: the program ends.
                        Err(_) => Some((Err(Box::new(ClientError::Closed)), (reader, None, None))),
                    };
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(pieces: &[&'static str], ended: Result<u64, ClientError>) -> Vec<Result<Bytes, Box<ClientError>>> {
        let (tell, end) = oneshot::channel();
        tell.send(ended).unwrap();
        let reader =
            stream::iter(pieces.iter().map(|piece| Ok(Bytes::from_static(piece.as_bytes()))).collect::<Vec<_>>());
        checked(reader, end).collect().await
    }

    #[tokio::test]
    async fn the_last_piece_comes_only_with_a_good_digest() {
        let whole = read(&["a", "b"], Ok(2)).await;
        assert_eq!(whole.into_iter().map(Result::unwrap).collect::<Vec<_>>(), ["a", "b"]);
        let damaged = read(&["a", "b"], Err(ClientError::Closed)).await;
        assert_eq!(damaged[0].as_deref().unwrap(), b"a");
        assert!(damaged[1].is_err() && damaged.len() == 2);
        assert!(read(&[], Ok(0)).await.is_empty());
        assert!(read(&[], Err(ClientError::Closed)).await[0].is_err());
    }
}
