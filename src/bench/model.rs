//! The model of measured agent jobs: it answers at once, and does the same in every job.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use super::BenchError;

/// A name for it.
pub const NAME: &str = "bench";
/// The file that every job writes.
pub const FILE: &str = "change.txt";
/// Who is not joined by the others in this time goes on alone.
const PATIENCE: Duration = Duration::from_secs(60);

/// Chat completions on a port of this machine; served until it is dropped.
pub struct Model {
    /// Base URL.
    pub endpoint: String,
    meeting: Arc<Meeting>,
    serving: tokio::task::JoinHandle<()>,
}

/// Where jobs wait for each other before their first answer.
#[derive(Default)]
struct Meeting {
    /// So many are waited for.
    wanted: AtomicUsize,
    came: AtomicUsize,
    all: Notify,
    answers: AtomicU64,
}

impl Drop for Model {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Model {
    /// Serves.
    pub async fn start() -> Result<Self, BenchError> {
        let failed = |error| BenchError::fleet("could not serve a model", error);
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
        let endpoint = format!("http://{}/v1", listener.local_addr().map_err(failed)?);
        let meeting: Arc<Meeting> = Arc::default();
        let serving = tokio::spawn({
            let meeting = meeting.clone();
            async move {
                let mut connections = tokio::task::JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    let meeting = meeting.clone();
                    let service = service_fn(move |request| answer(meeting.clone(), request));
                    let serve =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                    connections.spawn(serve);
                    while connections.try_join_next().is_some() {}
                }
            }
        });
        Ok(Self { endpoint, meeting, serving })
    }

    /// From now on the first answers are held until so many jobs have asked for theirs; 1 holds none.
    pub fn gather(&self, jobs: usize) {
        self.meeting.came.store(0, Ordering::Relaxed);
        self.meeting.wanted.store(jobs, Ordering::Relaxed);
    }
}

impl Meeting {
    async fn joined(&self) {
        let all = self.all.notified();
        tokio::pin!(all);
        all.as_mut().enable();
        if self.came.fetch_add(1, Ordering::AcqRel) + 1 >= self.wanted.load(Ordering::Acquire) {
            self.all.notify_waiters();
            return;
        }
        let _ = tokio::time::timeout(PATIENCE, all).await;
    }
}

/// First a file, then the end.
async fn answer(meeting: Arc<Meeting>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    let has_answers =
        asked["messages"].as_array().is_some_and(|all| all.iter().any(|message| message["role"] == "tool"));
    let number = meeting.answers.fetch_add(1, Ordering::Relaxed);
    let (message, finish) = if has_answers {
        (json!({"role": "assistant", "content": "Done."}), "stop")
    } else {
        meeting.joined().await;
        let arguments = json!({"path": FILE, "content": format!("{number}\n")}).to_string();
        let call = json!({"id": format!("call-{number}"), "type": "function",
            "function": {"name": "write_file", "arguments": arguments}});
        (json!({"role": "assistant", "content": null, "tool_calls": [call]}), "tool_calls")
    };
    let answer = json!({
        "id": format!("bench-{number}"), "object": "chat.completion", "created": 0, "model": NAME,
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050},
    });
    let mut response = Response::new(Full::from(answer.to_string()));
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
    Ok(response)
}
