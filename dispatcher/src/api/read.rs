//! Reading a call: its body within the limits, its query, its headers; each mistake a typed problem.

use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use schemas::Code;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::openapi::{JSON, NDJSON, YAML};
use super::problem::Failure;
use crate::client::documents::{self, Syntax};

/// How long a body may take to come.
const BODY_WITHIN: Duration = Duration::from_secs(30);

/// The query as `T`.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(query)) => Ok(Self(query)),
            Err(QueryRejection::FailedToDeserializeQueryString(error)) => {
                let said = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
                // `<field>: <why>`, where the field is known.
                let field = said.split_once(": ").map(|(field, _)| field.to_owned());
                let mut failure = Failure::argument("", format!("in the query: {said}"));
                failure.problem.field = field.filter(|field| !field.contains(' '));
                Err(failure)
            }
            Err(error) => Err(Failure::argument("", error.to_string())),
        }
    }
}

/// A body as it came, within the limits.
pub struct Body {
    /// Its bytes.
    pub bytes: Bytes,
    /// How it is written; `None` if it is empty and does not say.
    pub syntax: Option<Syntax>,
    /// Whether it is one value a line, even where there is only one.
    pub lines: bool,
}

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let media = media(request.headers());
        let bytes = whole(request, state).await?;
        let syntax = match media.as_str() {
            "" if bytes.is_empty() => None,
            JSON | NDJSON | "application/jsonl" => Some(Syntax::Json),
            other if other.ends_with("+json") => Some(Syntax::Json),
            other if YAML.contains(&other) => Some(Syntax::Yaml),
            // `curl -X POST` without a body says nothing, `curl -d ''` calls it a form.
            _ if bytes.is_empty() => None,
            other => {
                let other: String = other.chars().take(64).collect();
                let detail =
                    format!("the content type `{other}` is not read; allowed is {JSON}, {NDJSON}, {}", YAML[0]);
                return Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::UnsupportedMediaType, detail)
                    .hint("with curl: `--json @file`, or -H 'content-type: application/yaml' --data-binary @file"));
            }
        };
        Ok(Self { bytes, syntax, lines: matches!(media.as_str(), NDJSON | "application/jsonl") })
    }
}

/// A body of any type as it came, within the limits.
pub struct Raw {
    /// Its bytes.
    pub bytes: Bytes,
    /// What its sender says it is.
    pub content_type: Option<String>,
}

impl<S: Send + Sync> FromRequest<S> for Raw {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let content_type = content_type.filter(|text| !text.is_empty() && text.len() <= 256).map(str::to_owned);
        Ok(Self { bytes: whole(request, state).await?, content_type })
    }
}

/// All of a body, in time.
async fn whole<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Failure> {
    match tokio::time::timeout(BODY_WITHIN, Bytes::from_request(request, state)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            Err(Failure::too_large("the body is larger than this dispatcher takes")
                .hint("submit in several calls, or raise --http-body-limit"))
        }
        Ok(Err(rejection)) => Err(Failure::argument("", rejection.body_text())),
        Err(_) => {
            let detail = format!("the body did not come within {} s", BODY_WITHIN.as_secs());
            Err(Failure::new(StatusCode::REQUEST_TIMEOUT, Code::InvalidArgument, detail))
        }
    }
}

impl Body {
    /// The values it holds.
    pub fn values(&self) -> Result<Vec<Value>, Failure> {
        let Some(syntax) = self.syntax else { return Ok(Vec::new()) };
        let text =
            std::str::from_utf8(&self.bytes).map_err(|error| Failure::argument("", format!("no UTF-8: {error}")))?;
        documents::values(text, syntax).map_err(|error| Failure::argument("", error.to_string()))
    }

    /// The one value it holds; `None` if it is empty.
    pub fn value(&self) -> Result<Option<Value>, Failure> {
        let mut values = self.values()?;
        match (values.pop(), values.len()) {
            (value, 0) => Ok(value),
            _ => Err(Failure::argument("", "the body holds several values; one is wanted")),
        }
    }
}

/// The media type of a body, without its parameters.
fn media(headers: &HeaderMap) -> String {
    let text = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Whether the caller would take this media type by name.
pub fn accepts(headers: &HeaderMap, media: &str) -> bool {
    let values = headers.get_all(header::ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .any(|one| one.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(media))
}

/// Where a reader of events left off.
pub fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, Failure> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = |_| Failure::argument("Last-Event-ID", "Last-Event-ID must be the id of an event, a number");
    text.parse().map(Some).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_accepted_type_is_found_among_others() {
        let headers = |accept: &str| HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())]);
        assert!(accepts(&headers("text/html, Text/Event-Stream;q=0.9"), "text/event-stream"));
        assert!(!accepts(&headers("*/*"), "text/event-stream"));
        assert!(!accepts(&HeaderMap::new(), "text/event-stream"));
    }

    #[test]
    fn an_event_id_is_a_number() {
        let headers = |id: &str| HeaderMap::from_iter([("last-event-id".parse().unwrap(), id.parse().unwrap())]);
        assert_eq!(last_event_id(&headers("42")).unwrap(), Some(42));
        assert_eq!(last_event_id(&headers("")).unwrap(), None);
        assert!(last_event_id(&headers("x")).is_err());
    }
}
