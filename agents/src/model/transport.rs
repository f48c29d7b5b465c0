//! HTTP to the endpoint, below the crate `async-openai`.
//!
//! The crate's own transport tries again by rules of its own, drops the headers of errors (and `Retry-After` with them),
//! logs bodies of errors unmasked, and reads without bound. This one does none of that; and the key lives here alone, as a
//! value that is wiped, marked as sensitive in each request.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use async_openai::error::OpenAIError;
use async_openai::middleware::HttpRequestFactory;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Body, Response, StatusCode};

use crate::secret::Secret;

/// Bytes of one whole answer on the wire: each few letters come in an envelope of some 300 bytes.
const MOST_BYTES: usize = 64 << 20;
/// Bytes of an error's body that are looked at.
const ERROR_BYTES: usize = 64 << 10;

/// Sends requests, and answers what is no success as an [`HttpFailure`].
#[derive(Clone, Debug)]
pub(super) struct Transport {
    http: reqwest::Client,
    key: Option<Arc<Secret>>,
}

/// Why there is no answer to read.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpFailure {
    /// Nothing came back.
    #[error("{0}")]
    Connection(String),
    /// An answer that is no success.
    #[error("{status}: {words}")]
    Status {
        /// Its status.
        status: StatusCode,
        /// `error.code` or `error.type`.
        code: String,
        /// What the endpoint says about it.
        words: String,
        /// What it asks to wait.
        after: Option<Duration>,
    },
}

impl Transport {
    pub(super) fn new(http: reqwest::Client, key: Option<Arc<Secret>>) -> Self {
        Self { http, key }
    }

    async fn sent(self, request: HttpRequestFactory) -> Result<Response, OpenAIError> {
        let mut request = request.build().await?;
        let headers = request.headers_mut();
        headers.remove(AUTHORIZATION);
        if let Some(key) = &self.key {
            let bearer = HeaderValue::from_str(&format!("Bearer {}", key.expose().trim()));
            let mut bearer = bearer.map_err(|_| OpenAIError::InvalidArgument("the key is no header".to_owned()))?;
            bearer.set_sensitive(true);
            headers.insert(AUTHORIZATION, bearer);
        }
        let boxed = |failure| OpenAIError::Boxed(Box::new(failure));
        match self.http.execute(request).await {
            Ok(response) if response.status().is_success() => Ok(bounded(response)),
            Ok(response) => Err(boxed(refused(response).await)),
            Err(error) => Err(boxed(HttpFailure::Connection(chain(&error.without_url())))),
        }
    }
}

impl tower_service::Service<HttpRequestFactory> for Transport {
    type Response = Response;
    type Error = OpenAIError;
    type Future = BoxFuture<'static, Result<Response, OpenAIError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), OpenAIError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequestFactory) -> Self::Future {
        Box::pin(self.clone().sent(request))
    }
}

/// The same answer with a bound. One that came as a whole, though a stream was asked for, becomes a stream of one event.
fn bounded(response: Response) -> Response {
    let mut answer = http::Response::new(());
    *answer.status_mut() = response.status();
    *answer.headers_mut() = response.headers().clone();
    let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let whole = content_type.starts_with("application/json");
    let mut left = MOST_BYTES;
    let body = response.bytes_stream().map(move |piece| {
        let piece = piece.map_err(|error| std::io::Error::other(chain(&error.without_url())))?;
        left =
            left.checked_sub(piece.len()).ok_or_else(|| std::io::Error::other("the answer is too long to be one"))?;
        let on_one_line = |byte: &u8| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte };
        Ok::<_, std::io::Error>(if whole { piece.iter().map(on_one_line).collect() } else { piece })
    });
    let around = |text: &'static [u8]| stream::once(std::future::ready(Ok(Bytes::from_static(text))));
    let body = if whole {
        Body::wrap_stream(around(b"data: ").chain(body).chain(around(b"\n\n")))
    } else {
        Body::wrap_stream(body)
    };
    Response::from(answer.map(|()| body))
}

/// An answer that is no success, in the endpoint's own words.
async fn refused(response: Response) -> HttpFailure {
    let (status, after) = (response.status(), retry_after(response.headers()));
    let (mut body, mut stream) = (Vec::new(), response.bytes_stream());
    while let Some(Ok(piece)) = stream.next().await {
        body.extend_from_slice(&piece[..piece.len().min(ERROR_BYTES - body.len())]);
        if body.len() >= ERROR_BYTES {
            break;
        }
    }
    let value = serde_json::from_slice::<serde_json::Value>(&body).unwrap_or_default();
    let error = if value["error"].is_null() { &value } else { &value["error"] };
    let words = match error["message"].as_str().or(error.as_str()) {
        Some(words) => words.to_owned(),
        None => String::from_utf8_lossy(&body).into_owned(),
    };
    let code = error["code"].as_str().or(error["type"].as_str()).unwrap_or_default().to_owned();
    HttpFailure::Status { status, code, words, after }
}

/// What an endpoint asks to wait: seconds, or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    if let Some(ms) = text("retry-after-ms").and_then(|text| text.parse::<f64>().ok()) {
        return Duration::try_from_secs_f64(ms / 1000.0).ok();
    }
    let text = text(RETRY_AFTER.as_str())?;
    match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        Err(_) => Some(httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).unwrap_or_default()),
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_endpoint_asks_to_wait_is_seconds_or_a_date() {
        let after = |name: &'static str, value: &str| {
            retry_after(&HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())]))
        };
        assert_eq!(after("retry-after", "7"), Some(Duration::from_secs(7)));
        assert_eq!(after("retry-after", " 0.5 "), Some(Duration::from_millis(500)));
        assert_eq!(after("retry-after-ms", "250"), Some(Duration::from_millis(250)));
        assert_eq!(after("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        let asked = after("retry-after", &date).unwrap();
        assert!(asked > Duration::from_secs(90) && asked <= Duration::from_secs(100), "{asked:?}");
        for nonsense in ["-1", "soon", "1e99", "NaN", ""] {
            assert_eq!(after("retry-after", nonsense), None, "{nonsense:?}");
        }
    }
}
