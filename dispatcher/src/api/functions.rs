//! Functions over HTTP: defined, ensured, called, their instances listed, held and removed. Nothing is kept here: what one
//! dispatcher answers any other would.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header as http_header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use schemas::http::Accepted;
use schemas::{Code, Function, FunctionName, HumanDuration, Instance, QueueName, TaskError, TaskId, Timestamp, strict};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Api;
use super::openapi::{BYTES, JSON, Operation, YAML};
use super::problem::Failure;
use super::read::{Body, Query, Raw};
use crate::client::{Call, CallError, Defined, Functions, Later, Response as Answer};

/// Longest wait of a call that waits for an instance to come or to go.
const LONGEST_WAIT: HumanDuration = HumanDuration::seconds(600);
/// How long a removal is waited for unless its caller says otherwise.
const GONE_WITHIN: HumanDuration = HumanDuration::seconds(60);

/// Who calls, where a function has an owner.
const OWNER: &str = "x-shoal-owner";
/// `event`: the call becomes a task.
const INVOCATION: HeaderName = HeaderName::from_static("x-shoal-invocation");
/// Names a call.
const REQUEST_ID: &str = "x-request-id";

const NAME: &str = "The function's name.";
const AS_OWNER: &str = "Who calls, where the function has an owner.";
const INSTANCE: &str = "Its container's id (12 characters or more), its name, or its start id.";

pub(super) fn operations() -> Vec<Operation> {
    let media = [JSON, YAML[0], YAML[1], YAML[2]];
    let named = |operation: Operation| operation.path::<FunctionName>("name", NAME);
    let owned = |operation: Operation| operation.header("X-Shoal-Owner", AS_OWNER);
    vec![
        Operation::new(&Method::GET, "/api/functions", "listFunctions", "Every function, by name", list_over_http)
            .answer::<Vec<FunctionInfo>>(StatusCode::OK, "As they are defined."),
        owned(named(Operation::new(
            &Method::PUT,
            "/api/functions/{name}",
            "applyFunction",
            "Define a function, or change it",
            apply,
        )))
        .notes("Instances that would be made from something else now are replaced without a gap.")
        .body::<Function>(&media)
        .answer::<FunctionInfo>(StatusCode::OK, "It was defined before; as it is now.")
        .answer::<FunctionInfo>(StatusCode::CREATED, "It is new.")
        .fails(&[400, 403, 408, 409, 413, 415]),
        named(Operation::new(&Method::GET, "/api/functions/{name}", "getFunction", "One function", get))
            .answer::<FunctionInfo>(StatusCode::OK, "As it is defined, with its instances.")
            .fails(&[400, 404]),
        owned(named(Operation::new(
            &Method::DELETE,
            "/api/functions/{name}",
            "deleteFunction",
            "Delete a function; its instances are stopped",
            delete,
        )))
        .empty(StatusCode::NO_CONTENT, "It is deleted.")
        .fails(&[400, 403, 404, 409]),
        owned(named(Operation::new(
            &Method::POST,
            "/api/functions/{name}/ensure",
            "ensureInstance",
            "An instance that takes calls, made if there is none",
            ensure_over_http,
        )))
        .query::<EnsureQuery>()
        .answer::<Instance>(StatusCode::OK, "Where it is.")
        .fails(&[400, 403, 404, 502, 504]),
        owned(named(Operation::new(
            &Method::POST,
            "/api/functions/{name}/acquire",
            "acquireInstance",
            "The same, held: not taken for idle for as long as it is touched",
            acquire,
        )))
        .notes(
            "Touch it before `expires_at`, and again. Who stops doing so has given it back; who deletes it has it removed.",
        )
        .query::<EnsureQuery>()
        .answer::<Held>(StatusCode::OK, "What is held, and until when.")
        .fails(&[400, 403, 404, 502, 504]),
        owned(named(Operation::new(
            &Method::POST,
            "/api/functions/{name}/invocations",
            "invokeFunction",
            "Call a function",
            invoke,
        )))
        .notes(
            "The answer is the function's own: its status, content type and body, with `X-Shoal-Instance`; \
             `X-Shoal-Function-Error` where it says that it failed. An answer without `X-Shoal-Instance` is Shoal's. With \
             `X-Shoal-Invocation: event` the call becomes a task. The call is sent once.",
        )
        .header("X-Shoal-Invocation", "`event` submits the call as a task.")
        .header("X-Request-Id", "Names the call, in the container's headers and in logs.")
        .header("traceparent", "W3C trace context, handed on to the container.")
        .query::<InvokeQuery>()
        .optional_bytes_body(&[JSON, BYTES])
        .bytes(StatusCode::OK, BYTES, "What the function answered, whatever its status and type.")
        .bytes(StatusCode::OK, JSON, "The same.")
        .answer::<Accepted>(StatusCode::ACCEPTED, "The call is a task now.")
        .fails(&[400, 403, 404, 408, 413, 502, 504]),
        owned(named(Operation::new(
            &Method::DELETE,
            "/api/functions/{name}/instances",
            "destroyInstances",
            "Remove all instances of a function",
            destroy,
        )))
        .notes("Calls under way end first. What is kept warm is made again.")
        .query::<DestroyQuery>()
        .answer::<Vec<Instance>>(StatusCode::OK, "Those that are gone; none if there were none.")
        .fails(&[400, 403, 409, 504]),
        Operation::new(&Method::GET, "/api/instances", "listInstances", "Instances of functions", instances_over_http)
            .query::<InstancesQuery>()
            .answer::<Vec<Instance>>(StatusCode::OK, "By function and index.")
            .fails(&[400]),
        owned(
            Operation::new(&Method::DELETE, "/api/instances/{id}", "destroyInstance", "Remove one instance", destroy_one)
                .path::<String>("id", INSTANCE),
        )
        .query::<DestroyQuery>()
        .answer::<Vec<Instance>>(StatusCode::OK, "What is gone; nothing if it was not there.")
        .fails(&[400, 403, 409, 504]),
        owned(
            Operation::new(&Method::POST, "/api/instances/{id}/touch", "touchInstance", "Say that it is in use", touch)
                .path::<String>("id", INSTANCE),
        )
        .answer::<Held>(StatusCode::OK, "Until when it is held.")
        .fails(&[400, 403, 404]),
    ]
}

/// A function as it is defined.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct FunctionInfo {
    /// Its name.
    name: FunctionName,
    /// Revision of the definition.
    revision: u64,
    /// The definition.
    function: Function,
    /// Its instances, where one function was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    instances: Option<Vec<Instance>>,
}

impl From<Defined> for FunctionInfo {
    fn from(defined: Defined) -> Self {
        let Defined { name, function, revision } = defined;
        Self { name, revision, function, instances: None }
    }
}

/// An instance that is held.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Held {
    /// Where it is.
    instance: Instance,
    /// It may be taken for idle from then on, unless it is touched or called before.
    expires_at: Timestamp,
}

/// How long to wait for an instance.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EnsureQuery {
    /// Longest wait for one that is made; the function's `acquire_timeout` if absent.
    pub(crate) timeout: Option<HumanDuration>,
}

/// How to call.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InvokeQuery {
    /// Longest wait for an instance with room; the function's `acquire_timeout` if absent.
    timeout: Option<HumanDuration>,
    /// Of an event: queue of the task; the function's pool if absent.
    queue: Option<QueueName>,
    /// Of an event: id of the task.
    id: Option<TaskId>,
}

/// How long to wait for the end.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DestroyQuery {
    /// Longest wait for the end of what is removed; 1m if absent.
    timeout: Option<HumanDuration>,
}

/// Which instances.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InstancesQuery {
    /// Only of this function.
    function: Option<FunctionName>,
}

/// Every function.
pub async fn list(api: &Api) -> Result<Vec<FunctionInfo>, Failure> {
    let defined = api.client.functions(None).definitions().await?;
    Ok(defined.into_iter().map(FunctionInfo::from).collect())
}

/// The instances that are wanted.
pub async fn instances(api: &Api, query: InstancesQuery) -> Result<Vec<Instance>, Failure> {
    let found = api.client.functions(None).instances(query.function.as_ref()).await?;
    Ok(found.into_iter().map(|known| known.instance).collect())
}

/// An instance that takes calls, for `owner`.
pub async fn ensure(
    api: &Api,
    owner: Option<String>,
    name: &FunctionName,
    query: &EnsureQuery,
) -> Result<Instance, Failure> {
    let within = waited(query.timeout)?;
    let _room = api.stream()?;
    let caller = api.client.functions(owner);
    let ensured = until_stop(api, caller.ensure(name, within)).await?;
    Ok(ensured.instance)
}

async fn list_over_http(State(api): State<Api>) -> Result<Json<Vec<FunctionInfo>>, Failure> {
    list(&api).await.map(Json)
}

async fn instances_over_http(
    State(api): State<Api>,
    Query(query): Query<InstancesQuery>,
) -> Result<Json<Vec<Instance>>, Failure> {
    instances(&api, query).await.map(Json)
}

async fn apply(
    State(api): State<Api>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let name: FunctionName = name.parse()?;
    let value = body.value()?.ok_or_else(|| Failure::argument("", "the body must hold at least the `image`"))?;
    let function = strict::function(&value).map_err(|error| Failure::wrong_field(error, Code::InvalidArgument))?;
    let caller = caller(&api, &headers)?;
    let is_new = caller.definition(&name).await.is_ok_and(|before| before.is_none());
    let applied = caller.apply(&name, function).await?;
    let status = if is_new && applied.changed { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(FunctionInfo::from(applied.defined))).into_response())
}

async fn get(State(api): State<Api>, Path(name): Path<String>) -> Result<Json<FunctionInfo>, Failure> {
    let name: FunctionName = name.parse()?;
    let defined = api.client.functions(None).defined(&name).await?;
    let instances = instances(&api, InstancesQuery { function: Some(name) }).await?;
    Ok(Json(FunctionInfo { instances: Some(instances), ..defined.into() }))
}

async fn delete(State(api): State<Api>, Path(name): Path<String>, headers: HeaderMap) -> Result<StatusCode, Failure> {
    let name: FunctionName = name.parse()?;
    match caller(&api, &headers)?.delete(&name).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Failure::not_found(format!("no function `{name}`")).hint("GET /api/functions lists them")),
    }
}

async fn ensure_over_http(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(query): Query<EnsureQuery>,
    headers: HeaderMap,
) -> Result<Json<Instance>, Failure> {
    ensure(&api, owner(&headers)?, &name.parse()?, &query).await.map(Json)
}

async fn acquire(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(query): Query<EnsureQuery>,
    headers: HeaderMap,
) -> Result<Json<Held>, Failure> {
    let instance = ensure(&api, owner(&headers)?, &name.parse()?, &query).await?;
    hold(&caller(&api, &headers)?, instance).await
}

async fn touch(State(api): State<Api>, Path(id): Path<String>, headers: HeaderMap) -> Result<Json<Held>, Failure> {
    let caller = caller(&api, &headers)?;
    match caller.find_instance(&id).await?.filter(Instance::takes_calls) {
        Some(instance) => hold(&caller, instance).await,
        None => Err(Failure::not_found(format!("no instance `{id}` takes calls")).hint("acquire one anew")),
    }
}

/// Touches an instance, and tells for how long that is good.
async fn hold(caller: &Functions, instance: Instance) -> Result<Json<Held>, Failure> {
    let idle_timeout = caller.admitted(&instance.function).await?.function.idle_timeout;
    let expires_at = Timestamp::now().plus(idle_timeout.0);
    caller.touch(&instance).await?;
    Ok(Json(Held { instance, expires_at }))
}

async fn destroy(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(query): Query<DestroyQuery>,
    headers: HeaderMap,
) -> Result<Json<Vec<Instance>>, Failure> {
    let (name, caller) = (name.parse()?, caller(&api, &headers)?);
    let within = waited(query.timeout)?.unwrap_or(GONE_WITHIN.0);
    let _room = api.stream()?;
    Ok(Json(until_stop(&api, caller.destroy(&name, within)).await?))
}

async fn destroy_one(
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(query): Query<DestroyQuery>,
    headers: HeaderMap,
) -> Result<Json<Vec<Instance>>, Failure> {
    let caller = caller(&api, &headers)?;
    let within = waited(query.timeout)?.unwrap_or(GONE_WITHIN.0);
    let _room = api.stream()?;
    Ok(Json(until_stop(&api, caller.destroy_one(&id, within)).await?))
}

async fn invoke(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(query): Query<InvokeQuery>,
    headers: HeaderMap,
    body: Raw,
) -> Result<Response, Failure> {
    let name: FunctionName = name.parse()?;
    let call = Call { acquire_timeout: waited(query.timeout)?, ..call(&headers, body) };
    match headers.get(INVOCATION).map(|word| word.to_str().unwrap_or("?").to_ascii_lowercase()).as_deref() {
        None | Some("request") => {
            let answer = called(&api, owner(&headers)?, &name, &call).await?;
            Ok(passed_on(answer))
        }
        Some("event") => {
            let later = Later { queue: query.queue, id: query.id, owner: owner(&headers)? };
            let submitted = api.client.invoke_later(&name, &call, later).await?;
            let location = HeaderValue::try_from(format!("/api/tasks/{}", submitted.key)).expect("keys are ASCII");
            let accepted = Json(Accepted::from(submitted));
            Ok((StatusCode::ACCEPTED, [(http_header::LOCATION, location)], accepted).into_response())
        }
        Some(other) => {
            let other: String = other.chars().take(64).collect();
            let detail = format!("`{other}` is no kind of invocation; allowed is `request`, `event`");
            Err(Failure::argument("X-Shoal-Invocation", detail))
        }
    }
}

/// One call of a function, within the room that there is for open calls.
pub async fn called(api: &Api, owner: Option<String>, name: &FunctionName, call: &Call) -> Result<Answer, Failure> {
    let _room = api.stream()?;
    let caller = api.client.functions(owner);
    // A dispatcher that stops lets it end as long as it lets any.
    Ok(caller.invoke(name, call).await?)
}

/// A function's answer as our own.
fn passed_on(answer: Answer) -> Response {
    // Below 200 is no final answer; no server should say so.
    let status = StatusCode::from_u16(answer.status).ok().filter(|status| status.as_u16() >= 200);
    let mut response = (status.unwrap_or(StatusCode::BAD_GATEWAY), answer.body).into_response();
    let headers = response.headers_mut();
    headers.remove(http_header::CONTENT_TYPE);
    let mut say = |name: &'static str, value: Option<String>| {
        // What the function says of itself may be no header's text.
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            headers.insert(name, value);
        }
    };
    say("content-type", answer.content_type);
    say("x-shoal-request-id", Some(answer.request_id));
    say("x-shoal-instance", answer.instance.map(|start| start.to_string()));
    say("x-shoal-worker", answer.worker.map(|worker| worker.to_string()));
    say("x-shoal-function-error", answer.function_error);
    response
}

/// What is called with: body, content type, and the ids that travel along.
pub fn call(headers: &HeaderMap, body: Raw) -> Call {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    Call {
        body: body.bytes,
        content_type: body.content_type,
        request_id: text(REQUEST_ID).filter(|id| !id.is_empty() && id.len() <= 128),
        traceparent: text(schemas::header::TRACEPARENT).filter(|text| text.len() <= 128),
        acquire_timeout: None,
    }
}

/// Who calls.
pub fn owner(headers: &HeaderMap) -> Result<Option<String>, Failure> {
    let Some(value) = headers.get(OWNER) else { return Ok(None) };
    let text = value.to_str().ok().filter(|text| text.len() <= 128 && text.bytes().all(|b| b.is_ascii_graphic()));
    match text {
        Some("") => Ok(None),
        Some(text) => Ok(Some(text.to_owned())),
        None => Err(Failure::argument("X-Shoal-Owner", "an owner is a word of at most 128 printable characters")),
    }
}

fn caller(api: &Api, headers: &HeaderMap) -> Result<Functions, Failure> {
    Ok(api.client.functions(owner(headers)?))
}

/// A wait within bounds.
fn waited(timeout: Option<HumanDuration>) -> Result<Option<Duration>, Failure> {
    match timeout {
        Some(timeout) if timeout > LONGEST_WAIT => {
            Err(Failure::argument("timeout", format!("`timeout` is {timeout}; allowed is up to {LONGEST_WAIT}")))
        }
        timeout => Ok(timeout.map(|timeout| timeout.0)),
    }
}

/// A wait that ends when this dispatcher does: its caller asks another.
async fn until_stop<T>(api: &Api, waiting: impl Future<Output = Result<T, CallError>>) -> Result<T, CallError> {
    tokio::select! {
        done = waiting => done,
        () = api.stop.cancelled() => {
            Err(CallError::Failed(TaskError::new(Code::Unavailable, "this dispatcher stops; ask another")))
        }
    }
}

/// The fields of a request over NATS, for its `ensure`.
pub async fn ensure_by_fields(api: &Api, mut fields: serde_json::Map<String, Value>) -> Result<Instance, Failure> {
    let mut text = |field: &str| match fields.remove(field) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Failure::argument(field, format!("`{field}` must be text"))),
    };
    let name = text("name")?.ok_or_else(|| Failure::argument("name", "`name` is required and missing"))?;
    let owner = text("owner")?;
    let query = serde_json::from_value(Value::Object(fields)).map_err(|e| Failure::argument("", e.to_string()))?;
    ensure(api, owner, &name.parse()?, &query).await
}
