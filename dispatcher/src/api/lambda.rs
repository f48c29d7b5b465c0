//! The door that AWS Lambda's SDKs know: `Invoke`, with `endpoint_url` at this dispatcher. Requests and answers are
//! Lambda's, errors too. A token is given as the AWS access key id; what else is signed is not looked at.
//!
//! SDKs send again what is answered with 5xx or 429. So these are answered only for what reached no instance. A call that
//! was sent and came to nothing is, as with Lambda itself, a 200 with `X-Amz-Function-Error: Unhandled`.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header as http_header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use schemas::{Code, FunctionName};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Api;
use super::functions::{call, called, owner};
use super::openapi::{BYTES, JSON, Operation};
use super::problem::Failure;
use super::read::{Query, Raw};
use crate::client::Later;

/// Where these calls begin.
pub const PREFIX: &str = "/2015-03-31/";

const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");
const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");
const INVOCATION_TYPE: HeaderName = HeaderName::from_static("x-amz-invocation-type");
const FUNCTION_ERROR: HeaderName = HeaderName::from_static("x-amz-function-error");
const EXECUTED_VERSION: HeaderName = HeaderName::from_static("x-amz-executed-version");
/// The one version there is.
const LATEST: &str = "$LATEST";

pub(super) fn operations() -> Vec<Operation> {
    let refused = [
        (StatusCode::BAD_REQUEST, "`InvalidParameterValueException`."),
        (StatusCode::FORBIDDEN, "`AccessDeniedException`."),
        (StatusCode::NOT_FOUND, "`ResourceNotFoundException`."),
        (StatusCode::PAYLOAD_TOO_LARGE, "`RequestTooLargeException`."),
        (StatusCode::TOO_MANY_REQUESTS, "`TooManyRequestsException`: no instance had room in time; nothing was sent."),
        (StatusCode::INTERNAL_SERVER_ERROR, "`ServiceException`."),
        (StatusCode::BAD_GATEWAY, "`ServiceException`: no instance could be made or reached; nothing was sent."),
        (StatusCode::SERVICE_UNAVAILABLE, "`ServiceException`: NATS, or who makes instances, cannot be reached now."),
    ];
    let invoke = Operation::new(
        &Method::POST,
        "/2015-03-31/functions/{name}/invocations",
        "lambdaInvoke",
        "Call a function as AWS Lambda is called",
        invoke,
    )
    .notes(
        "For Lambda's SDKs. Errors are Lambda's: `X-Amzn-ErrorType`, and `{\"Type\", \"Message\"}` as body. Where a token \
         is wanted it is the AWS access key id.",
    )
    .path::<String>("name", "The function's name; an ARN's last part counts.")
    .query::<LambdaQuery>()
    .header("X-Amz-Invocation-Type", "`RequestResponse` (the default), `Event`, `DryRun`.")
    .header("X-Amz-Log-Type", "Taken and left unanswered: logs are in `shoal logs _functions.<function>`.")
    .header("X-Shoal-Owner", "Who calls, where the function has an owner.")
    .optional_bytes_body(&[JSON, BYTES])
    .bytes(StatusCode::OK, BYTES, "What the function answered, of any type; `X-Amz-Function-Error` if it failed.")
    .bytes(StatusCode::OK, JSON, "The same.")
    .empty(StatusCode::ACCEPTED, "`Event`: the call is a task now.")
    .empty(StatusCode::NO_CONTENT, "`DryRun`: the caller may call it.");
    let invoke =
        refused.into_iter().fold(invoke, |invoke, (status, meaning)| invoke.answer::<Refusal>(status, meaning));
    vec![invoke]
}

/// A failure as Lambda would tell it; what kind it is of is in `X-Amzn-ErrorType`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct Refusal {
    /// `User` or `Service`: whose fault it is.
    #[serde(rename = "Type")]
    by: &'static str,
    /// For people.
    #[serde(rename = "Message")]
    message: String,
    /// The same: SDKs read the one spelling or the other.
    #[serde(rename = "message")]
    again: String,
    /// Our own code.
    #[serde(rename = "Code")]
    code: Code,
    /// What to try next.
    #[serde(rename = "Hint", skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

/// Which version.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub struct LambdaQuery {
    /// Version or alias; there is none but `$LATEST`.
    #[serde(rename = "Qualifier")]
    qualifier: Option<String>,
}

async fn invoke(
    State(api): State<Api>,
    Path(name): Path<String>,
    query: Result<Query<LambdaQuery>, Failure>,
    headers: HeaderMap,
    body: Result<Raw, Failure>,
) -> Response {
    let invoked = async {
        let Query(query) = query?;
        invoked(&api, &name, query.qualifier, &headers, body?).await
    };
    invoked.await.unwrap_or_else(|failure| told(&failure))
}

async fn invoked(
    api: &Api,
    name: &str,
    qualifier: Option<String>,
    headers: &HeaderMap,
    body: Raw,
) -> Result<Response, Failure> {
    let (name, own) = plain(name);
    let name: FunctionName = name.parse()?;
    if let Some(version) = qualifier.as_deref().or(own).filter(|version| *version != LATEST) {
        return Err(Failure::not_found(format!("the function `{name}` has no version or alias `{version}`")));
    }
    let kind = headers.get(INVOCATION_TYPE).map_or("RequestResponse", |value| value.to_str().unwrap_or("?"));
    let (call, owner) = (call(headers, body), owner(headers)?);
    match kind {
        "RequestResponse" => match called(api, owner, &name, &call).await {
            Ok(answer) => {
                let mut response = (StatusCode::OK, answer.body).into_response();
                let media = answer.content_type.and_then(|kind| HeaderValue::try_from(kind).ok());
                let headers = response.headers_mut();
                headers.insert(http_header::CONTENT_TYPE, media.unwrap_or(HeaderValue::from_static(JSON)));
                headers.insert(EXECUTED_VERSION, HeaderValue::from_static(LATEST));
                name_it(headers, &answer.request_id);
                if let Some(error) = answer.function_error {
                    // A status of 400 or more has no word of its own.
                    let word = HeaderValue::try_from(error).ok().filter(|word| word != "status");
                    headers.insert(FUNCTION_ERROR, word.unwrap_or(HeaderValue::from_static("Unhandled")));
                }
                Ok(response)
            }
            Err(failure) if was_sent(failure.problem.code) => Ok(unhandled(&failure)),
            Err(failure) => Err(failure),
        },
        "Event" => {
            let later = Later { owner, ..Later::default() };
            let submitted = api.client.invoke_later(&name, &call, later).await?;
            let mut response = StatusCode::ACCEPTED.into_response();
            name_it(response.headers_mut(), &submitted.key.to_string());
            Ok(response)
        }
        "DryRun" => {
            api.client.functions(owner).admitted(&name).await?;
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        other => {
            let other: String = other.chars().take(64).collect();
            let detail = format!("`{other}` is no invocation type; allowed is RequestResponse, Event, DryRun");
            Err(Failure::argument("X-Amz-Invocation-Type", detail))
        }
    }
}

/// The name in an ARN, whole or partial, and its version: `arn:aws:lambda:eu-west-1:123456789012:function:name:version`,
/// `123456789012:function:name`, `name:version`, `name`.
fn plain(text: &str) -> (&str, Option<&str>) {
    let name = text.rsplit_once("function:").map_or(text, |(_, name)| name);
    match name.split_once(':') {
        Some((name, version)) => (name, Some(version)),
        None => (name, None),
    }
}

fn name_it(headers: &mut HeaderMap, request_id: &str) {
    if let Ok(value) = HeaderValue::try_from(request_id) {
        headers.insert(REQUEST_ID, value);
    }
}

/// Whether a call that ended so may have been carried out: then no SDK may send it again by itself.
fn was_sent(code: Code) -> bool {
    matches!(code, Code::ResponseLost | Code::ResponseTooLarge | Code::TimedOut | Code::InstanceExited)
}

/// A call that was sent and came to nothing, as Lambda tells of a function that ran out of time or of memory.
fn unhandled(failure: &Failure) -> Response {
    let body = json!({"errorType": failure.problem.code, "errorMessage": failure.problem.detail});
    let mut response = (StatusCode::OK, body.to_string()).into_response();
    let headers = response.headers_mut();
    headers.insert(http_header::CONTENT_TYPE, HeaderValue::from_static(JSON));
    headers.insert(FUNCTION_ERROR, HeaderValue::from_static("Unhandled"));
    headers.insert(EXECUTED_VERSION, HeaderValue::from_static(LATEST));
    response
}

/// A failure as Lambda would tell it.
pub fn told(failure: &Failure) -> Response {
    let problem = &failure.problem;
    let (status, kind) = match problem.code {
        Code::NotFound => (StatusCode::NOT_FOUND, "ResourceNotFoundException"),
        Code::PermissionDenied | Code::Unauthenticated => (StatusCode::FORBIDDEN, "AccessDeniedException"),
        Code::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "RequestTooLargeException"),
        Code::NoInstance | Code::CircuitOpen | Code::RateLimited => {
            (StatusCode::TOO_MANY_REQUESTS, "TooManyRequestsException")
        }
        Code::InvalidArgument | Code::InvalidId | Code::InvalidTask => {
            (StatusCode::BAD_REQUEST, "InvalidParameterValueException")
        }
        _ => (StatusCode::from_u16(problem.status).expect("statuses are given as such"), "ServiceException"),
    };
    let body = Refusal {
        by: if status.is_server_error() { "Service" } else { "User" },
        message: problem.detail.clone(),
        again: problem.detail.clone(),
        code: problem.code,
        hint: problem.hint.clone(),
    };
    let mut response = (status, Json(body)).into_response();
    let headers = response.headers_mut();
    headers.insert(http_header::CONTENT_TYPE, HeaderValue::from_static(JSON));
    headers.insert(ERROR_TYPE, HeaderValue::from_static(kind));
    if let Some(after) = failure.retry_after {
        headers.insert(http_header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
    }
    response
}

/// The access key id of a request that is signed as AWS does it.
pub fn access_key(authorization: &str) -> Option<&str> {
    let parts = authorization.strip_prefix("AWS4-HMAC-SHA256")?;
    let credential = parts.split([',', ' ']).find_map(|part| part.strip_prefix("Credential="))?;
    // `<key>/<date>/<region>/<service>/aws4_request`; a key of ours may have slashes.
    credential.rsplitn(5, '/').nth(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_in_every_form_of_an_arn() {
        for text in ["f", "123456789012:function:f", "arn:aws:lambda:eu-west-1:123456789012:function:f"] {
            assert_eq!(plain(text), ("f", None), "{text}");
            assert_eq!(plain(&format!("{text}:3")), ("f", Some("3")), "{text}");
        }
    }

    #[test]
    fn the_access_key_id_is_read_from_a_signed_request() {
        let signed = |key: &str| {
            format!(
                "AWS4-HMAC-SHA256 Credential={key}/20261121/eu-west-1/lambda/aws4_request, \
                 SignedHeaders=host;x-amz-date, Signature=abc"
            )
        };
        assert_eq!(access_key(&signed("secret")), Some("secret"));
        assert_eq!(access_key(&signed("a/b+c==")), Some("a/b+c=="));
        for other in ["Bearer secret", "AWS4-HMAC-SHA256 Credential=secret", "AWS4-HMAC-SHA256 Signature=a", ""] {
            assert_eq!(access_key(other), None, "{other}");
        }
    }

    #[test]
    fn nothing_that_may_have_been_carried_out_is_answered_so_that_an_sdk_sends_it_again() {
        for code in [Code::ResponseLost, Code::ResponseTooLarge, Code::TimedOut, Code::InstanceExited] {
            assert!(was_sent(code), "{code}");
        }
        let lost = Failure::new(StatusCode::BAD_GATEWAY, Code::ResponseLost, "gone");
        let response = unhandled(&lost);
        assert_eq!(
            (response.status(), &response.headers()[FUNCTION_ERROR]),
            (StatusCode::OK, &HeaderValue::from_static("Unhandled"))
        );
        for (code, status, kind) in [
            (Code::NotFound, 404, "ResourceNotFoundException"),
            (Code::NoInstance, 429, "TooManyRequestsException"),
            (Code::TooLarge, 413, "RequestTooLargeException"),
            (Code::InvalidArgument, 400, "InvalidParameterValueException"),
            (Code::PermissionDenied, 403, "AccessDeniedException"),
            (Code::NotHealthy, 502, "ServiceException"),
        ] {
            let response = told(&Failure::new(StatusCode::BAD_GATEWAY, code, "why"));
            assert_eq!(response.status().as_u16(), status, "{code}");
            assert_eq!(response.headers()[ERROR_TYPE], kind, "{code}");
        }
    }
}
