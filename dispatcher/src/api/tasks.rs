//! Tasks: submit, look, list, cancel, retry. Each call is a plain function of typed arguments, so that the micro service
//! answers with the same.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header as http_header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use schemas::http::{Accepted, CancelOutcome, Cancelled, Problem, ShownTask, Submitted, TaskPage};
use schemas::{Explanation, HumanDuration, QueueName, Task, TaskId, Timestamp, header};
use serde::Deserialize;
use serde_json::Value;

use super::Api;
use super::openapi::{JSON, NDJSON, Operation, YAML};
use super::problem::Failure;
use super::read::{Body, Query};
use crate::client::documents::{self, Document};
use crate::client::{
    CancelOptions, CancelOutcome as Ended, ClientError, ListFilter, Status, Submission, SubmitError, SubmitOptions,
};

/// How long a submission is tried before the caller is told that it failed.
const SUBMIT_WITHIN: Duration = Duration::from_secs(10);
/// How long a cancel waits to be confirmed, unless told otherwise.
const CONFIRMED_WITHIN: HumanDuration = HumanDuration::seconds(30);
/// Longest wait of a call.
const LONGEST_WAIT: HumanDuration = HumanDuration::seconds(600);
/// Largest page of a list.
const PAGE: usize = 1_000;

/// What the documents mean by a task in a path.
const ID: &str = "Id, `queue.id`, or a prefix that fits one task.";

pub(super) fn operations() -> Vec<Operation> {
    let task = |operation: Operation| operation.path::<String>("id", ID);
    vec![
        Operation::new(&Method::POST, "/api/tasks", "submitTasks", "Submit one task or many", submit_over_http)
            .notes(
                "The body is a task, or `{\"id\": …, \"queue\": …, \"once\": …, \"task\": {…}}` where more than the task \
                 is to be said; or a list of these, JSON lines, or several YAML documents. One that is wrong harms no \
                 other. Accepted means stored by the server. `traceparent` and `tracestate` travel with the task.",
            )
            .query::<SubmitQuery>()
            .header("traceparent", "W3C trace context, handed on to the tasks.")
            .body::<SubmitBody>(&[JSON, YAML[0], YAML[1], YAML[2], NDJSON])
            .answer::<SubmitAnswer>(StatusCode::CREATED, "Every task is stored.")
            .answer::<Accepted>(StatusCode::OK, "With `once`: the id has a record already, and nothing is started.")
            .answer::<Vec<Submitted>>(StatusCode::MULTI_STATUS, "Of many, some are not stored.")
            .fails(&[400, 408, 409, 413, 415]),
        Operation::new(&Method::GET, "/api/tasks", "listTasks", "Tasks, newest change first", list_over_http)
            .query::<ListQuery>()
            .answer::<TaskPage>(StatusCode::OK, "One page.")
            .fails(&[400]),
        task(Operation::new(&Method::GET, "/api/tasks/{id}", "getTask", "One task as it stands", get_over_http))
            .notes("With `wait` the answer comes once the task has ended, or after that time with what it is then.")
            .query::<WaitQuery>()
            .answer::<ShownTask>(StatusCode::OK, "Its record, or the same shape with the state `queued`.")
            .fails(&[400, 404, 409]),
        task(Operation::new(
            &Method::GET,
            "/api/tasks/{id}/explain",
            "explainTask",
            "Why a task waits, or what it does",
            explain_over_http,
        ))
        .notes("An id of which nothing is known is explained too.")
        .answer::<Explanation>(StatusCode::OK, "The reasons, the weightiest first.")
        .fails(&[400, 409]),
        task(Operation::new(&Method::DELETE, "/api/tasks/{id}", "cancelTask", "Cancel a task", cancel_over_http))
            .notes("It is cancelled also where the caller does not wait for it.")
            .query::<CancelQuery>()
            .answer::<Cancelled>(StatusCode::OK, "It has ended, by this call or before.")
            .answer::<Cancelled>(StatusCode::ACCEPTED, "It is being stopped.")
            .fails(&[400, 404, 409]),
        task(Operation::new(
            &Method::POST,
            "/api/tasks/{id}/retry",
            "retryTask",
            "Submit a finished task again, under the same id",
            retry_over_http,
        ))
        .answer::<Accepted>(StatusCode::CREATED, "It is queued again.")
        .fails(&[400, 404, 409, 413]),
    ]
}

/// What a body of submissions may be, for the document.
#[derive(JsonSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "only its schema is used")]
enum SubmitBody {
    One(Box<TaskDocument>),
    Many(Vec<TaskDocument>),
}

/// A task, alone or wrapped.
#[derive(JsonSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "only its schema is used")]
enum TaskDocument {
    /// A task.
    Task(Task),
    /// A task, and more than the task.
    Wrapped {
        /// Chosen id; a lock while it is queued or running.
        id: Option<TaskId>,
        /// Its queue.
        queue: Option<QueueName>,
        /// Start only if no record of its id exists.
        #[serde(default)]
        once: bool,
        /// The task.
        task: Task,
    },
}

/// One answer for one task, a list for many.
#[derive(JsonSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "only its schema is used")]
enum SubmitAnswer {
    One(Accepted),
    Many(Vec<Accepted>),
}

/// What holds for the tasks of a body that do not say it themselves.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SubmitQuery {
    /// Queue of tasks that name none; `default` if absent.
    queue: Option<QueueName>,
    /// Id of the task, where there is only one.
    id: Option<TaskId>,
    /// Start only if no record of the id exists.
    #[serde(default)]
    once: bool,
}

/// Which tasks.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    /// Only of this queue.
    queue: Option<QueueName>,
    /// Only in these states, with commas: queued, running, retrying, succeeded, failed, cancelled, lost, expired.
    state: Option<String>,
    /// Only with these labels, with commas: `team=a,nightly`.
    label: Option<String>,
    /// Only what was submitted within this time: `1h`.
    since: Option<HumanDuration>,
    /// At most so many, 1 to 1000; 100 if absent.
    limit: Option<usize>,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// How long to wait.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WaitQuery {
    /// Answer once it has ended, or after this time: `30s`, at most `10m`.
    wait: Option<HumanDuration>,
}

/// How to cancel.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CancelQuery {
    /// By whom or why, for the record.
    reason: Option<String>,
    /// Which run; the newest if absent. A later run is never hit.
    sequence: Option<u64>,
    /// How long to wait for it to be confirmed: `30s` if absent, at most `10m`.
    wait: Option<HumanDuration>,
}

/// What came of a body of submissions.
pub enum Submissions {
    /// The one.
    One(Result<Accepted, Failure>),
    /// All of many, in order.
    Many(Vec<Result<Accepted, Failure>>),
}

/// Submits what the values of a body hold.
pub async fn submit(
    api: &Api,
    values: Vec<Value>,
    lines: bool,
    query: SubmitQuery,
    headers: &[(String, String)],
) -> Result<Submissions, Failure> {
    let one = !lines && values.len() == 1 && !values[0].is_array();
    let values = documents::flattened(values);
    if values.is_empty() {
        return Err(Failure::argument("", "there is no task in it").hint("send a task as `{\"workload\": {…}}`"));
    }
    if query.id.is_some() && values.len() != 1 {
        return Err(Failure::argument("id", format!("`id` names one task, the body holds {}", values.len()))
            .hint("wrap each as {\"id\": …, \"task\": {…}}"));
    }
    let default = QueueName::new("default").expect("a literal of allowed characters");
    let queue = query.queue.as_ref().unwrap_or(&default);
    let prepare = |value| -> Result<Submission, SubmitError> {
        let mut document = Document::read(value)?;
        document.id = query.id.clone().or(document.id);
        document.once |= query.once;
        let submission = document.submission(queue)?;
        Ok(Submission { headers: headers.to_vec(), ..submission })
    };
    let mut refused = Vec::new();
    let mut accepted = Vec::new();
    for value in values {
        match prepare(value) {
            Ok(submission) => {
                accepted.push(submission);
                refused.push(None);
            }
            Err(error) => refused.push(Some(Failure::from(error))),
        }
    }
    let options = SubmitOptions { deadline: SUBMIT_WITHIN, ..SubmitOptions::default() };
    let mut submitted = api.client.submit_many(accepted, &options).await.into_iter();
    let mut next =
        || submitted.next().expect("one result for each submission").map(Accepted::from).map_err(Failure::from);
    let mut results = refused.into_iter().map(|refused| refused.map_or_else(&mut next, Err));
    Ok(match one {
        true => Submissions::One(results.next().expect("there is one")),
        false => Submissions::Many(results.collect()),
    })
}

/// One page of tasks.
pub async fn list(api: &Api, query: ListQuery) -> Result<TaskPage, Failure> {
    let mut filter = ListFilter { queue: query.queue, ..ListFilter::default() };
    for word in words(query.state.as_deref()) {
        filter.states.push(word.parse::<Status>().map_err(|error| Failure::argument("state", error))?);
    }
    for word in words(query.label.as_deref()) {
        filter.labels.push(match word.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (word.to_owned(), None),
        });
    }
    let now = Timestamp::now().as_millis();
    filter.since = query.since.map(|since| Timestamp::from_millis(now - since.0.as_millis() as i64));
    filter.limit = match query.limit {
        None => filter.limit,
        Some(limit) if (1..=PAGE).contains(&limit) => limit,
        Some(limit) => return Err(Failure::argument("limit", format!("`limit` is {limit}; allowed is 1 to {PAGE}"))),
    };
    filter.cursor = query.cursor.map(|cursor| cursor.parse()).transpose().map_err(|error: ClientError| {
        Failure::argument("cursor", error.to_string()).hint("take `next` of the page before, or begin without")
    })?;
    let page = api.client.list(&filter).await?;
    let tasks = page.tasks.into_iter().map(|item| item.shown()).collect();
    Ok(TaskPage { tasks, next: page.next.map(|next| next.to_string()) })
}

fn words(text: Option<&str>) -> impl Iterator<Item = &str> {
    text.into_iter().flat_map(|text| text.split(',')).map(str::trim).filter(|word| !word.is_empty())
}

fn waited(wait: Option<HumanDuration>) -> Result<Option<Duration>, Failure> {
    match wait {
        Some(wait) if wait > LONGEST_WAIT => {
            Err(Failure::argument("wait", format!("`wait` is {wait}; at most {LONGEST_WAIT} is allowed")))
        }
        wait => Ok(wait.map(|wait| wait.0)),
    }
}

/// One task as it stands, or as it ended within the wait.
pub async fn get(api: &Api, id: &str, query: WaitQuery) -> Result<ShownTask, Failure> {
    let wait = waited(query.wait)?;
    let key = api.client.find(id).await?;
    if let Some(wait) = wait {
        let _room = api.stream()?;
        let ended = tokio::select! {
            ended = api.client.wait(&key, None, Some(wait)) => ended,
            // As it stands; whoever waits asks another dispatcher.
            () = api.stop.cancelled() => Err(ClientError::TimedOut { what: String::new(), after: wait }),
        };
        match ended {
            Ok(recorded) => return Ok(recorded.record.into()),
            Err(ClientError::TimedOut { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let view = api.client.get(&key).await?;
    view.shown().ok_or_else(|| Failure::not_found(format!("no task `{key}`")))
}

/// Why a task waits, or what it does.
pub async fn explain(api: &Api, id: &str) -> Result<Explanation, Failure> {
    Ok(api.client.explain_any(id).await?)
}

/// Cancels a task; it goes on although the caller leaves or stops waiting.
pub async fn cancel(api: &Api, id: &str, query: CancelQuery) -> Result<Cancelled, Failure> {
    let wait = waited(query.wait)?.unwrap_or(CONFIRMED_WITHIN.0);
    let key = api.client.find(id).await?;
    let options = CancelOptions { sequence: query.sequence, reason: query.reason };
    let (client, task) = (api.client.clone(), key.clone());
    let cancelling = api.background.spawn(async move {
        let ended = client.cancel(&task, options).await;
        if let Err(error) = &ended {
            tracing::debug!(%task, %error, "cancel failed");
        }
        ended
    });
    match tokio::time::timeout(wait, cancelling).await {
        Ok(Ok(ended)) => {
            let Ended { end, record } = ended?;
            Ok(Cancelled { outcome: end.into(), task: record.record.into() })
        }
        Ok(Err(broken)) => Err(Failure::from(ClientError::Object { name: key.to_string(), source: Box::new(broken) })),
        Err(_) => {
            let view = api.client.get(&key).await?;
            let task = view.shown().ok_or_else(|| Failure::not_found(format!("no task `{key}`")))?;
            Ok(Cancelled { outcome: CancelOutcome::Asked, task })
        }
    }
}

/// Submits a finished task again.
pub async fn retry(api: &Api, id: &str) -> Result<Accepted, Failure> {
    let key = api.client.find(id).await?;
    Ok(api.client.retry(&key).await?.into())
}

async fn submit_over_http(
    State(api): State<Api>,
    Query(query): Query<SubmitQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let given = [header::TRACEPARENT, "tracestate"].into_iter().filter_map(|name| {
        let value = headers.get(name)?.to_str().ok()?;
        Some((name.to_owned(), value.to_owned()))
    });
    let submissions = submit(&api, body.values()?, body.lines, query, &given.collect::<Vec<_>>()).await?;
    Ok(match submissions {
        Submissions::One(result) => {
            let accepted = result?;
            let status = if accepted.existing.is_some() { StatusCode::OK } else { StatusCode::CREATED };
            let location = format!("/api/tasks/{}.{}", accepted.queue, accepted.id);
            let location = HeaderValue::try_from(location).expect("ids are ASCII");
            (status, [(http_header::LOCATION, location)], Json(accepted)).into_response()
        }
        Submissions::Many(results) => {
            let all = results.iter().all(Result::is_ok);
            let status = if all { StatusCode::CREATED } else { StatusCode::MULTI_STATUS };
            (status, Json(results.into_iter().map(told).collect::<Vec<_>>())).into_response()
        }
    })
}

/// What is said of one of many.
pub fn told(result: Result<Accepted, Failure>) -> Submitted {
    let refused = |failure: Failure| -> Box<Problem> { failure.problem };
    result.map_or_else(|failure| Submitted::Refused(refused(failure)), Submitted::Accepted)
}

async fn list_over_http(State(api): State<Api>, Query(query): Query<ListQuery>) -> Result<Json<TaskPage>, Failure> {
    list(&api, query).await.map(Json)
}

async fn get_over_http(
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(query): Query<WaitQuery>,
) -> Result<Json<ShownTask>, Failure> {
    get(&api, &id, query).await.map(Json)
}

async fn explain_over_http(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<Explanation>, Failure> {
    explain(&api, &id).await.map(Json)
}

async fn cancel_over_http(
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(query): Query<CancelQuery>,
) -> Result<(StatusCode, Json<Cancelled>), Failure> {
    let cancelled = cancel(&api, &id, query).await?;
    let status = match cancelled.outcome {
        CancelOutcome::Asked => StatusCode::ACCEPTED,
        CancelOutcome::Cancelled | CancelOutcome::AlreadyEnded | CancelOutcome::EndedMeanwhile => StatusCode::OK,
    };
    Ok((status, Json(cancelled)))
}

async fn retry_over_http(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<Accepted>), Failure> {
    Ok((StatusCode::CREATED, Json(retry(&api, &id).await?)))
}
