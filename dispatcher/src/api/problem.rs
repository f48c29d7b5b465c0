//! What is answered where a call fails: RFC 9457 with a code of the one table. The same over HTTP and NATS.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jetstream::{ApiError, PublishError, STREAM_NOT_FOUND};
use schemas::http::Problem;
use schemas::strict::InvalidTask;
use schemas::{Code, InvalidId};

use crate::client::{CallError, ClientError, SubmitError};
use crate::topology::TopologyError;

/// The media type of a problem.
pub const PROBLEM_JSON: &str = "application/problem+json";
/// When to come back after a failure that passes.
const SOON: Duration = Duration::from_secs(1);

/// A call that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What is answered.
    pub problem: Box<Problem>,
    /// When to come back, where that helps.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// A failure of `code`.
    pub fn new(status: StatusCode, code: Code, detail: impl Into<String>) -> Self {
        Self { problem: Box::new(Problem::new(status.as_u16(), code, detail)), retry_after: None }
    }

    /// An argument that is not allowed.
    pub fn argument(field: &str, detail: impl Into<String>) -> Self {
        let mut failure = Self::new(StatusCode::BAD_REQUEST, Code::InvalidArgument, detail);
        failure.problem.field = Some(field.into());
        failure
    }

    /// There is no such thing.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, Code::NotFound, detail)
    }

    /// It is in another state than that.
    pub fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, Code::Conflict, detail)
    }

    /// Not now.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, detail).retry_after(SOON)
    }

    /// Larger than is taken.
    pub fn too_large(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, Code::TooLarge, detail)
    }

    /// The same with what to try next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.problem.hint = Some(hint.into());
        self
    }

    /// The same with when to come back.
    pub fn retry_after(self, after: Duration) -> Self {
        Self { retry_after: Some(after), ..self }
    }

    fn of(status: StatusCode, code: Code, error: &(dyn std::error::Error + 'static), hint: Option<String>) -> Self {
        let mut failure = Self::new(status, code, chain(error));
        failure.problem.hint = hint;
        if status == StatusCode::SERVICE_UNAVAILABLE {
            failure.retry_after = Some(SOON);
        }
        failure
    }
}

/// An error with its causes; what a transparent one repeats is said once.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    text
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.problem.status).expect("statuses are given as such");
        let body = serde_json::to_vec(&self.problem).expect("a problem is plain data");
        let mut response = (status, [(header::CONTENT_TYPE, PROBLEM_JSON)], body).into_response();
        if let Some(after) = self.retry_after {
            let seconds = after.as_secs_f64().ceil().max(1.0) as u64;
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            let bearer = HeaderValue::from_static("Bearer realm=\"shoal\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, bearer);
        }
        response
    }
}

impl From<InvalidTask> for Failure {
    fn from(error: InvalidTask) -> Self {
        Self::wrong_field(error, Code::InvalidTask)
    }
}

impl Failure {
    /// A document that its schema does not take.
    pub fn wrong_field(error: InvalidTask, code: Code) -> Self {
        let mut failure = Self::new(StatusCode::BAD_REQUEST, code, error.to_string());
        failure.problem.field = Some(error.field).filter(|field| !field.is_empty());
        failure
    }
}

impl From<InvalidId> for Failure {
    fn from(error: InvalidId) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Code::InvalidId, error.to_string())
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        ClientError::from(error).into()
    }
}

impl Failure {
    /// What keeps a function from being had or called: its own code, and the status that says whose fault it is.
    fn of_function(error: CallError, hint: Option<String>) -> Self {
        let error = match error {
            CallError::Failed(error) => error,
            CallError::Api(error) => return ClientError::Api(error).into(),
            CallError::Publish(source) => return ClientError::Write { what: "it".into(), source }.into(),
        };
        let status = match error.code {
            Code::InvalidArgument | Code::InvalidId | Code::InvalidTask | Code::InvalidImage => StatusCode::BAD_REQUEST,
            Code::PermissionDenied => StatusCode::FORBIDDEN,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::Conflict | Code::Ambiguous => StatusCode::CONFLICT,
            Code::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Code::NoInstance | Code::CircuitOpen | Code::Unavailable | Code::EngineUnavailable => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Code::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            // The instance, or what it is made from, is not as it should be.
            _ => StatusCode::BAD_GATEWAY,
        };
        let mut failure = Self::new(status, error.code, error.message);
        failure.problem.hint = hint;
        if status == StatusCode::SERVICE_UNAVAILABLE {
            failure.retry_after = Some(SOON);
        }
        failure
    }
}

impl From<SubmitError> for Failure {
    fn from(error: SubmitError) -> Self {
        let hint = error.hint();
        let (status, code) = match error {
            SubmitError::Invalid(error) => return error.into(),
            SubmitError::InvalidId(error) => return error.into(),
            SubmitError::Read { source, .. } => return Self::from(*source),
            SubmitError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, Code::TooLarge),
            SubmitError::Locked { .. } => (StatusCode::CONFLICT, Code::Locked),
            SubmitError::NotStored { .. } | SubmitError::NotSetUp { .. } | SubmitError::Unknown { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable)
            }
            SubmitError::Header { .. } => (StatusCode::BAD_REQUEST, Code::InvalidArgument),
            SubmitError::Refused { .. } => (StatusCode::INTERNAL_SERVER_ERROR, Code::Internal),
        };
        let mut failure = Self::of(status, code, &error, hint);
        if let SubmitError::Locked { holder: Some(holder), .. } = error {
            failure.problem.holder = Some((*holder).into());
        }
        failure
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        ClientError::from(error).into()
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        const UNAVAILABLE: (StatusCode, Code) = (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable);
        const INTERNAL: (StatusCode, Code) = (StatusCode::INTERNAL_SERVER_ERROR, Code::Internal);
        let hint = error.hint();
        let (status, code) = match error {
            ClientError::Submit(error) => return Self::from(*error),
            ClientError::InvalidId(error) => return error.into(),
            ClientError::Function(error) => return Self::of_function(error, hint),
            ClientError::Api(ApiError::Refused { err_code: STREAM_NOT_FOUND, .. }) => UNAVAILABLE,
            ClientError::Api(ref error) if error.is_transient() => UNAVAILABLE,
            ClientError::Topology(TopologyError::NoJetStream { .. }) => UNAVAILABLE,
            ClientError::Topology(ref error) if error.is_transient() => UNAVAILABLE,
            ClientError::Write { ref source, .. } => match source {
                PublishError::NotStored { .. } | PublishError::Unknown { .. } => UNAVAILABLE,
                PublishError::Refused { err_code: STREAM_NOT_FOUND, .. } => UNAVAILABLE,
                PublishError::Conflict { .. } | PublishError::Locked => (StatusCode::CONFLICT, Code::Conflict),
                PublishError::Refused { .. } | PublishError::Unsendable { .. } => INTERNAL,
            },
            ClientError::NotFound { kind: "store", .. } | ClientError::Closed => UNAVAILABLE,
            ClientError::NotFound { .. } | ClientError::Gone { .. } => (StatusCode::NOT_FOUND, Code::NotFound),
            ClientError::Ambiguous { .. } | ClientError::GaveUp { .. } => (StatusCode::CONFLICT, Code::Ambiguous),
            ClientError::Invalid(_) => (StatusCode::BAD_REQUEST, Code::InvalidArgument),
            ClientError::TimedOut { .. } => (StatusCode::GATEWAY_TIMEOUT, Code::Unavailable),
            ClientError::RunOver { .. }
            | ClientError::Unfinished { .. }
            | ClientError::NoTaskKept { .. }
            | ClientError::NotReplayable { .. }
            | ClientError::AgentSilent { .. }
            | ClientError::Refused { .. }
            | ClientError::Contended { .. } => (StatusCode::CONFLICT, Code::Conflict),
            ClientError::Api(_)
            | ClientError::Topology(_)
            | ClientError::Unreadable { .. }
            | ClientError::Digest { .. }
            | ClientError::Object { .. } => INTERNAL,
        };
        Self::of(status, code, &error, hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_has_its_status_and_its_code() {
        let key = || "q.a".parse().unwrap();
        let not_found = |kind| ClientError::NotFound { kind, name: "a".into() };
        let timed_out = || ApiError::TimedOut { subject: "s".into() };
        let cases: Vec<(ClientError, u16, Code)> = vec![
            (timed_out().into(), 503, Code::Unavailable),
            (ApiError::Refused { err_code: STREAM_NOT_FOUND, description: "no".into() }.into(), 503, Code::Unavailable),
            (ApiError::Refused { err_code: 1, description: "no".into() }.into(), 500, Code::Internal),
            (not_found("task"), 404, Code::NotFound),
            (not_found("store"), 503, Code::Unavailable),
            (ClientError::Unfinished { key: key(), status: "running".into() }, 409, Code::Conflict),
            (ClientError::Closed, 503, Code::Unavailable),
            (SubmitError::Locked { key: key(), holder: None }.into(), 409, Code::Locked),
            (SubmitError::TooLarge { key: key(), bytes: 2, most: 1 }.into(), 413, Code::TooLarge),
            (SubmitError::Read { key: key(), source: Box::new(timed_out().into()) }.into(), 503, Code::Unavailable),
        ];
        for (error, status, code) in cases {
            let said = error.to_string();
            let failure = Failure::from(error);
            assert_eq!((failure.problem.status, failure.problem.code), (status, code), "{said}");
            assert_eq!(failure.retry_after.is_some(), status == 503, "{said}");
            assert_eq!(failure.problem.kind, format!("urn:shoal:error:{code}"));
        }
    }

    #[test]
    fn causes_are_told_once() {
        let error = ClientError::Write {
            what: "the record".into(),
            source: PublishError::NotStored { why: "no leader".into() },
        };
        assert_eq!(Failure::from(error).problem.detail, "cannot store the record: not stored: no leader");
        let transparent = ClientError::from(ApiError::TimedOut { subject: "s".into() });
        assert_eq!(Failure::from(transparent).problem.detail, "no answer on `s` in time");
    }
}
