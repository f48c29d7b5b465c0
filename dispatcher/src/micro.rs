//! The fleet as a NATS service, seen by `nats micro ls`: what HTTP does, for those who speak NATS. Requests and answers
//! are the same JSON; any dispatcher answers. A failure is the service protocol's error with the HTTP status as its code,
//! and the whole problem in the header `Shoal-Problem`.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::service::error::Error as ServiceError;
use async_nats::service::{Request, ServiceExt};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{SelectAll, select_all};
use schemas::header;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::api::functions;
use crate::api::problem::Failure;
use crate::api::tasks::{self, CancelQuery, ListQuery, Submissions, SubmitQuery, WaitQuery};
use crate::api::{AgentsQuery, Api, list_agents, list_queues};
use crate::client::documents::{self, Syntax};

/// Requests worked on at once; more wait in the subscription.
const AT_ONCE: usize = 256;
/// What headers and the rest of a message may take of its largest size.
const HEADROOM: usize = 1 << 10;

/// What the service does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Submit,
    Get,
    Explain,
    List,
    Cancel,
    Retry,
    Agents,
    Queues,
    Functions,
    Instances,
    Ensure,
}

impl Verb {
    const ALL: [Self; 11] = [
        Self::Submit,
        Self::Get,
        Self::Explain,
        Self::List,
        Self::Cancel,
        Self::Retry,
        Self::Agents,
        Self::Queues,
        Self::Functions,
        Self::Instances,
        Self::Ensure,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Submit => "submit",
            Self::Get => "get",
            Self::Explain => "explain",
            Self::List => "list",
            Self::Cancel => "cancel",
            Self::Retry => "retry",
            Self::Agents => "agents",
            Self::Queues => "queues",
            Self::Functions => "functions",
            Self::Instances => "instances",
            Self::Ensure => "ensure",
        }
    }

    fn about(self) -> &'static str {
        match self {
            Self::Submit => "a task, or {id, queue, once, task}, or a list of these; as POST /api/tasks",
            Self::Get => "{id, wait}; as GET /api/tasks/{id}",
            Self::Explain => "{id}; as GET /api/tasks/{id}/explain",
            Self::List => "{queue, state, label, since, limit, cursor}; as GET /api/tasks",
            Self::Cancel => "{id, reason, sequence, wait}; as DELETE /api/tasks/{id}",
            Self::Retry => "{id}; as POST /api/tasks/{id}/retry",
            Self::Agents => "{status, label}; as GET /api/agents",
            Self::Queues => "nothing; as GET /api/queues",
            Self::Functions => "nothing; as GET /api/functions",
            Self::Instances => "{function}; as GET /api/instances",
            Self::Ensure => "{name, timeout, owner}; as POST /api/functions/{name}/ensure",
        }
    }
}

/// The service of one dispatcher.
pub struct Service {
    api: Api,
    /// `None` where it could not be started.
    running: Option<(async_nats::service::Service, SelectAll<Requests>)>,
}

type Requests = futures_util::stream::BoxStream<'static, (Verb, Request)>;

impl Service {
    /// Subscribes. Without it the dispatcher does all its other duties, so a failure is told and no more.
    pub async fn start(api: Api) -> Self {
        let running = match subscribe(&api).await {
            Ok(running) => Some(running),
            Err(error) => {
                tracing::warn!(%error, "no NATS service: calls go over HTTP only");
                None
            }
        };
        Self { api, running }
    }

    /// Answers until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let Some((service, mut requests)) = self.running else { return };
        let room = std::sync::Arc::new(Semaphore::new(AT_ONCE));
        loop {
            let next = async {
                let permit = room.clone().acquire_owned().await.expect("never closed");
                requests.next().await.map(|request| (permit, request))
            };
            let (permit, (verb, request)) = tokio::select! {
                () = stop.cancelled() => break,
                next = next => match next {
                    Some(next) => next,
                    None => break,
                },
            };
            let (api, stop) = (self.api.clone(), stop.clone());
            self.api.background.spawn(async move {
                tokio::select! {
                    () = answer(&api, verb, &request) => {}
                    // A wait may be long; whoever waits asks another dispatcher.
                    () = async { stop.cancelled().await; tokio::time::sleep(Duration::from_secs(1)).await } => {}
                }
                drop(permit);
            });
        }
        if let Err(error) = service.stop().await {
            tracing::debug!(%error, "the NATS service did not end well");
        }
    }
}

async fn subscribe(api: &Api) -> Result<(async_nats::service::Service, SelectAll<Requests>), async_nats::Error> {
    let names = &api.client.names;
    let service = api
        .client
        .connection
        .client
        .service_builder()
        .description("Shoal: a worker fleet on NATS JetStream")
        .metadata(HashMap::from([("prefix".to_owned(), names.prefix().to_string())]))
        .start(names.service(), env!("CARGO_PKG_VERSION"))
        .await?;
    let mut requests = Vec::new();
    for verb in Verb::ALL {
        let about = HashMap::from([("takes".to_owned(), verb.about().to_owned())]);
        let endpoint = service.endpoint_builder().name(verb.as_str()).metadata(about);
        let endpoint = endpoint.add(names.api_subject(verb.as_str())).await?;
        requests.push(endpoint.map(move |request| (verb, request)).boxed());
    }
    Ok((service, select_all(requests)))
}

async fn answer(api: &Api, verb: Verb, request: &Request) {
    let done = perform(api, verb, request).await.and_then(|body| {
        let most = api.client.js.max_payload().saturating_sub(HEADROOM);
        if body.len() > most {
            let detail = format!("the answer is {} bytes; at most {most} fit into a message", body.len());
            return Err(Failure::too_large(detail).hint("ask for less, or over HTTP"));
        }
        Ok(body)
    });
    let responded = match done {
        Ok(body) => request.respond(Ok(body)).await,
        Err(failure) => {
            let problem = serde_json::to_string(&failure.problem).expect("a problem is plain data");
            let mut headers = HeaderMap::new();
            headers.insert(header::PROBLEM, one_line(&problem).as_str());
            let error = ServiceError { status: one_line(&failure.problem.detail), code: failure.problem.status.into() };
            request.respond_with_headers(Err(error), headers).await
        }
    };
    if let Err(error) = responded {
        tracing::debug!(verb = verb.as_str(), %error, "not answered");
    }
}

/// A header is one line.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

async fn perform(api: &Api, verb: Verb, request: &Request) -> Result<Bytes, Failure> {
    let body = &request.message.payload;
    match verb {
        Verb::Submit => {
            let text =
                std::str::from_utf8(body).map_err(|error| Failure::argument("", format!("no UTF-8: {error}")))?;
            let values = documents::values(text, Syntax::Either).map_err(|e| Failure::argument("", e.to_string()))?;
            let given = request.message.headers.iter().flat_map(|headers| {
                [header::TRACEPARENT, "tracestate"]
                    .into_iter()
                    .filter_map(|name| Some((name.to_owned(), headers.get(name)?.as_str().to_owned())))
            });
            let given: Vec<_> = given.collect();
            match tasks::submit(api, values, false, SubmitQuery::default(), &given).await? {
                Submissions::One(one) => json(&one?),
                Submissions::Many(many) => json(&many.into_iter().map(tasks::told).collect::<Vec<_>>()),
            }
        }
        Verb::Get => {
            let (id, query) = with_id::<WaitQuery>(body)?;
            json(&tasks::get(api, &id, query).await?)
        }
        Verb::Explain => {
            let (id, Nothing {}) = with_id(body)?;
            json(&tasks::explain(api, &id).await?)
        }
        Verb::List => json(&tasks::list(api, read::<ListQuery>(fields(body)?)?).await?),
        Verb::Cancel => {
            let (id, query) = with_id::<CancelQuery>(body)?;
            json(&tasks::cancel(api, &id, query).await?)
        }
        Verb::Retry => {
            let (id, Nothing {}) = with_id(body)?;
            json(&tasks::retry(api, &id).await?)
        }
        Verb::Agents => list_agents(api, &read::<AgentsQuery>(fields(body)?)?).await,
        Verb::Queues => {
            read::<Nothing>(fields(body)?)?;
            json(&list_queues(api).await?)
        }
        Verb::Functions => {
            read::<Nothing>(fields(body)?)?;
            json(&functions::list(api).await?)
        }
        Verb::Instances => json(&functions::instances(api, read(fields(body)?)?).await?),
        Verb::Ensure => json(&functions::ensure_by_fields(api, fields(body)?).await?),
    }
}

/// No arguments.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

fn json(value: &impl Serialize) -> Result<Bytes, Failure> {
    Ok(serde_json::to_vec(value).expect("our own types are JSON").into())
}

/// The fields of a request; an empty one has none.
fn fields(body: &[u8]) -> Result<Map<String, Value>, Failure> {
    if body.is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_slice(body).map_err(|error| Failure::argument("", format!("not a JSON object: {error}")))
}

fn read<T: DeserializeOwned>(fields: Map<String, Value>) -> Result<T, Failure> {
    serde_json::from_value(Value::Object(fields)).map_err(|error| Failure::argument("", error.to_string()))
}

/// The id, and the other fields.
fn with_id<T: DeserializeOwned>(body: &[u8]) -> Result<(String, T), Failure> {
    let mut fields = fields(body)?;
    match fields.remove("id") {
        Some(Value::String(id)) => Ok((id, read(fields)?)),
        Some(_) => Err(Failure::argument("id", "`id` must be text")),
        None => Err(Failure::argument("id", "`id` is required and missing")),
    }
}
