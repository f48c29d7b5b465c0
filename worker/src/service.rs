//! A worker as a NATS service, seen by `nats micro ls`: who it is, what it runs and has run; and how it is told to leave.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::service::error::Error as ServiceError;
use async_nats::service::{Request, Service, ServiceExt};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use schemas::AgentRecord;
use schemas::cancel::{DrainReply, DrainRequest};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::attempt::holder;
use crate::cordon;
use crate::worker::Worker;

/// What it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    /// Take nothing new, finish or hand back, leave: `shoal.control.<agent>.drain`.
    Drain,
    /// Take nothing new but stay, or take tasks again: `shoal.control.<agent>.cordon`.
    Cordon,
    /// Its record, as it stands now: `shoal.control.<agent>.info`.
    Info,
    /// Whether it still holds a run: `shoal.control.<agent>.holds`.
    Holds,
}

/// The endpoint that bears the counts.
const INFO: &str = "info";

/// Subscribes, and gives what answers until `stop`; a wish to drain is told by `wish`.
/// Whatever is sent to the server from now on, it reads after the subscriptions.
pub async fn listen(
    worker: Arc<Worker>,
    wish: watch::Sender<Option<Duration>>,
    stop: CancellationToken,
) -> impl Future<Output = ()> {
    let started = start(&worker).await;
    async move {
        match started {
            Ok((service, requests)) => answer(&worker, service, requests, &wish, &stop).await,
            Err(error) => tracing::warn!(%error, "no NATS service: it cannot be drained from afar"),
        }
    }
}

async fn answer(
    worker: &Worker,
    service: Service,
    mut requests: Requests,
    wish: &watch::Sender<Option<Duration>>,
    stop: &CancellationToken,
) {
    loop {
        let (verb, request) = tokio::select! {
            () = stop.cancelled() => break,
            request = requests.next() => match request {
                Some(request) => request,
                None => break,
            },
        };
        let answer = match verb {
            Verb::Drain => drain(worker, &request, wish),
            Verb::Cordon => asked(&request).and_then(|asked| json(&cordon::obey(worker, asked))),
            Verb::Info => info(worker),
            Verb::Holds => read(&request).and_then(|asked| json(&holder::holds(worker, &asked))),
        };
        if let Err(error) = request.respond(answer).await {
            tracing::debug!(?verb, %error, "not answered");
        }
    }
    if let Err(error) = service.stop().await {
        tracing::debug!(%error, "the NATS service did not end well");
    }
}

type Requests = BoxStream<'static, (Verb, Request)>;

async fn start(worker: &Arc<Worker>) -> Result<(Service, Requests), async_nats::Error> {
    let names = &worker.config.names;
    let counted = worker.clone();
    let service = worker
        .js
        .client()
        .service_builder()
        .description("Shoal: a worker")
        .metadata(metadata(worker))
        .stats_handler(move |endpoint, _| match endpoint.as_str() {
            INFO => serde_json::to_value(counted.tally.counts()).unwrap_or_default(),
            _ => serde_json::Value::Null,
        })
        .start(names.worker_service(), env!("CARGO_PKG_VERSION"))
        .await?;
    let drain = service.endpoint_builder().name("drain").add(names.drain_subject(&worker.id)).await?;
    let cordon = service.endpoint_builder().name("cordon").add(names.cordon_subject(&worker.id)).await?;
    let info = service.endpoint_builder().name(INFO).add(names.info_subject(&worker.id)).await?;
    let holds = service.endpoint_builder().name("holds").add(names.holds_subject(&worker.id)).await?;
    let requests = futures_util::stream::select_all([
        drain.map(|request| (Verb::Drain, request)).boxed(),
        cordon.map(|request| (Verb::Cordon, request)).boxed(),
        info.map(|request| (Verb::Info, request)).boxed(),
        holds.map(|request| (Verb::Holds, request)).boxed(),
    ]);
    Ok((service, requests.boxed()))
}

fn metadata(worker: &Worker) -> HashMap<String, String> {
    let queues: Vec<&str> = worker.queues.iter().map(|queue| queue.name.as_str()).collect();
    let calls = worker.calls.then_some("call");
    let agents = worker.agents.as_ref().map(|_| "agent");
    let runtimes: Vec<&str> = calls.into_iter().chain(worker.runtimes.keys().copied()).chain(agents).collect();
    [
        ("worker", worker.id.to_string()),
        ("instance", worker.instance.clone()),
        ("queues", queues.join(",")),
        ("runtimes", runtimes.join(",")),
        ("slots", worker.slots.total().to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// What a request says; nothing said is what is usual.
fn asked<T: Default + DeserializeOwned>(request: &Request) -> Result<T, ServiceError> {
    let body = &request.message.payload;
    match body.is_empty() {
        true => Ok(T::default()),
        false => read(request),
    }
}

fn read<T: DeserializeOwned>(request: &Request) -> Result<T, ServiceError> {
    let body = &request.message.payload;
    serde_json::from_slice(body).map_err(|error| ServiceError { status: error.to_string(), code: 400 })
}

fn drain(worker: &Worker, request: &Request, wish: &watch::Sender<Option<Duration>>) -> Result<Bytes, ServiceError> {
    let asked: DrainRequest = asked(request)?;
    wish.send_replace(Some(asked.grace.map_or(worker.config.drain_grace, |grace| grace.0)));
    json(&DrainReply { running: worker.running.count() as u32 })
}

/// What it said at its last beat, with what changes in between as it is now.
fn info(worker: &Worker) -> Result<Bytes, ServiceError> {
    let said = worker.said.borrow().clone();
    let record = said.ok_or_else(|| ServiceError { status: "it has not beaten yet".into(), code: 503 })?;
    json(&AgentRecord {
        slots_taken: Some(worker.slots.taken() as u32),
        running: worker.running.names(crate::heartbeat::NAMED),
        running_count: worker.running.count() as u32,
        last_fetch: worker.pulse.last_fetch(),
        last_ack: worker.pulse.last_ack(),
        ..record
    })
}

fn json(value: &impl Serialize) -> Result<Bytes, ServiceError> {
    Ok(serde_json::to_vec(value).expect("our own types are JSON").into())
}
