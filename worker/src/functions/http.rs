//! HTTP to an instance: one client for all of a worker's instances, one request a call.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use schemas::function::CONNECT_TIMEOUT;

/// How long a connection without a call is kept: less than servers keep theirs, so that none is used as it is closed.
const KEPT_FOR: Duration = Duration::from_millis(1500);
/// Connections kept to one instance.
const KEPT: usize = 64;
/// Longest look at an instance's health.
const HEALTH_WITHIN: Duration = Duration::from_secs(2);

/// The worker's HTTP client.
pub struct Http {
    client: Client<HttpConnector, Full<Bytes>>,
}

/// What an instance answered.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// All of its body.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Failed {
    /// Nothing was sent.
    NotSent(String),
    /// It was sent, or may have been.
    Lost(String),
    /// Not all of it came in time.
    TimedOut,
    /// More than is taken: as much as it says, or as was read of it.
    TooLarge(u64),
}

impl Http {
    /// A client without connections.
    pub fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(KEPT_FOR)
            .pool_max_idle_per_host(KEPT)
            // Only what was certainly not written: a pooled connection that turned out closed.
            .retry_canceled_requests(true)
            .build(connector);
        Self { client }
    }

    /// Posts once, and reads up to `limit` bytes of the answer's body.
    pub async fn post(
        &self,
        address: SocketAddr,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
        within: Duration,
        limit: u64,
    ) -> Result<Answer, Failed> {
        let mut request = request(Method::POST, address, path, Full::new(body)).map_err(Failed::NotSent)?;
        *request.headers_mut() = headers;
        tokio::time::timeout(within, self.send(request, limit)).await.unwrap_or(Err(Failed::TimedOut))
    }

    /// The status that a GET of `path` is answered with.
    pub async fn look(&self, address: SocketAddr, path: &str) -> Result<u16, String> {
        let request = request(Method::GET, address, path, Full::default())?;
        match tokio::time::timeout(HEALTH_WITHIN, self.client.request(request)).await {
            Ok(Ok(response)) => Ok(response.status().as_u16()),
            Ok(Err(error)) => Err(whole(&error)),
            Err(_) => Err(format!("no answer within {HEALTH_WITHIN:?}")),
        }
    }

    async fn send(&self, request: Request<Full<Bytes>>, limit: u64) -> Result<Answer, Failed> {
        let response = self.client.request(request).await.map_err(|error| match error.is_connect() {
            true => Failed::NotSent(whole(&error)),
            false => Failed::Lost(whole(&error)),
        })?;
        let (head, mut body) = response.into_parts();
        let said = head.headers.get(http::header::CONTENT_LENGTH);
        let said: Option<u64> = said.and_then(|length| length.to_str().ok()).and_then(|length| length.parse().ok());
        if let Some(size) = said.filter(|size| *size > limit) {
            return Err(Failed::TooLarge(size));
        }
        let mut read = BytesMut::with_capacity(usize::try_from(said.unwrap_or(0)).unwrap_or(0));
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Failed::Lost(format!("the response broke off: {}", whole(&error))))?;
            let Ok(data) = frame.into_data() else { continue };
            if (read.len() + data.len()) as u64 > limit {
                return Err(Failed::TooLarge((read.len() + data.len()) as u64));
            }
            read.extend_from_slice(&data);
        }
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body: read.freeze() })
    }
}

fn request(method: Method, address: SocketAddr, path: &str, body: Full<Bytes>) -> Result<Request<Full<Bytes>>, String> {
    let uri: Uri = format!("http://{address}{path}").parse().map_err(|error| format!("`{path}`: {error}"))?;
    Request::builder().method(method).uri(uri).body(body).map_err(|error| error.to_string())
}

/// An error with all its causes.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
