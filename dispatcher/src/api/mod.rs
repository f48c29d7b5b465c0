//! HTTP of a dispatcher: thin handlers over the client, one file a kind of thing. What all of them share is here.
//!
//! Every call is an [`openapi::Operation`] in its file's `operations()`; the router and `/openapi.json` are made of these.

mod agents;
mod artifacts;
mod events;
pub(crate) mod functions;
mod guard;
mod health;
mod known;
mod lambda;
pub(crate) mod openapi;
pub(crate) mod problem;
mod queues;
mod read;
mod registry;
pub(crate) mod tasks;

pub use guard::{HttpSettings, Origin, Token};
pub use health::Health;
pub use registry::Registry;

pub(crate) use agents::{AgentsQuery, list as list_agents};
pub(crate) use queues::list as list_queues;

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, FromRef};
use axum::http::{HeaderName, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::serve::ListenerExt;
use axum::{Router, middleware};
use bytes::Bytes;
use schemas::Code;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::CorsLayer;

use self::guard::Guard;
use self::openapi::Operation;
use self::problem::Failure;
use crate::DispatcherError;
use crate::client::Client;

/// How long open requests may take once it is told to stop.
const CLOSE: Duration = Duration::from_secs(3);

/// What the handlers work with. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Api {
    /// The fleet.
    pub client: Client,
    /// Who is there, kept fresh.
    pub registry: Arc<Registry>,
    /// Whether it can do its duties.
    pub health: Health,
    /// What goes on although its caller may have left.
    pub background: TaskTracker,
    /// Room for streams and long polls.
    streams: Arc<Semaphore>,
    /// Ends streams and long polls.
    stop: CancellationToken,
}

impl Api {
    /// The calls of a fleet, with room for so many streams at once; `stop` ends them.
    pub fn new(
        client: Client,
        registry: Arc<Registry>,
        health: Health,
        streams: usize,
        stop: CancellationToken,
    ) -> Self {
        let streams = Arc::new(Semaphore::new(streams.min(Semaphore::MAX_PERMITS)));
        Self { client, registry, health, background: TaskTracker::new(), streams, stop }
    }

    /// Room for one stream or long poll, held until dropped.
    pub(crate) fn stream(&self) -> Result<OwnedSemaphorePermit, Failure> {
        self.streams.clone().try_acquire_owned().map_err(|_| {
            Failure::unavailable("too many streams are open")
                .hint("close some, ask another dispatcher, or raise --http-streams")
        })
    }
}

impl FromRef<Api> for Health {
    fn from_ref(api: &Api) -> Self {
        api.health.clone()
    }
}

/// A bound socket, so that its port is known before anything is served.
pub struct Listener {
    listener: tokio::net::TcpListener,
    /// Where it listens.
    pub address: SocketAddr,
}

/// Binds `address`; port 0 is any free one. Beyond this machine only with a token.
pub async fn listen(address: SocketAddr, settings: &HttpSettings) -> Result<Listener, DispatcherError> {
    if !address.ip().is_loopback() && settings.token.is_none() {
        return Err(DispatcherError::Exposed { address });
    }
    if !address.ip().is_loopback() {
        tracing::warn!(%address, "HTTP without TLS listens beyond this machine: the token travels in the clear");
    }
    let failed = |source| DispatcherError::Listen { address, source };
    let listener = tokio::net::TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok(Listener { listener, address })
}

/// Every call there is.
fn operations() -> Vec<Operation> {
    let own = Operation::new(&Method::GET, "/openapi.json", "document", "This document", document)
        .answer::<serde_json::Map<String, serde_json::Value>>(StatusCode::OK, "OpenAPI 3.1.");
    let rooms = [
        health::operations(),
        tasks::operations(),
        events::operations(),
        functions::operations(),
        lambda::operations(),
        artifacts::operations(),
        agents::operations(),
        queues::operations(),
        vec![own],
    ];
    rooms.into_iter().flatten().collect()
}

/// The document of all calls, itself included.
static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| {
    let document = openapi::document(&operations(), env!("CARGO_PKG_VERSION"));
    serde_json::to_vec(&document).expect("a document is JSON").into()
});

async fn document() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, openapi::JSON)], DOCUMENT.clone())
}

/// All calls behind their guard.
fn routes(api: Api, settings: HttpSettings, address: SocketAddr) -> Router {
    let cors = cors(&settings);
    let body_limit = usize::try_from(settings.body_limit.0).unwrap_or(usize::MAX);
    let link = api.client.connection.link.clone();
    let guard = Arc::new(Guard::new(settings, address, link));
    let routes = openapi::router(operations())
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(body_limit))
        .layer(middleware::from_fn_with_state(guard, guard::watch))
        .layer(CatchPanicLayer::custom(panicked))
        .with_state(api);
    match cors {
        Some(cors) => routes.layer(cors),
        None => routes,
    }
}

/// Lets pages of the listed origins read what they are answered.
fn cors(settings: &HttpSettings) -> Option<CorsLayer> {
    if settings.origins.is_empty() {
        return None;
    }
    let own = ["last-event-id", "traceparent", "x-request-id", "x-shoal-invocation", "x-shoal-owner"];
    let own = own.map(HeaderName::from_static);
    let told = ["x-shoal-request-id", "x-shoal-instance", "x-shoal-worker", "x-shoal-function-error"];
    let told = told.map(HeaderName::from_static);
    Some(
        CorsLayer::new()
            .allow_origin(settings.origins.iter().map(Origin::header).collect::<Vec<_>>())
            .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
            .allow_headers(
                [header::AUTHORIZATION, header::CONTENT_TYPE, header::ACCEPT]
                    .into_iter()
                    .chain(own)
                    .collect::<Vec<_>>(),
            )
            .expose_headers(
                [header::LOCATION, header::RETRY_AFTER, header::ETAG].into_iter().chain(told).collect::<Vec<_>>(),
            )
            .max_age(Duration::from_secs(600)),
    )
}

async fn no_route(request: axum::extract::Request) -> Failure {
    let path: String = request.uri().path().chars().take(200).collect();
    Failure::not_found(format!("there is nothing at `{path}`")).hint("GET /openapi.json lists every call")
}

async fn no_method(request: axum::extract::Request) -> Failure {
    let detail = format!("{} is no method of this path", request.method());
    Failure::new(StatusCode::METHOD_NOT_ALLOWED, Code::MethodNotAllowed, detail)
        .hint("GET /openapi.json lists every call")
}

fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    // The panic itself is in the log already.
    Failure::new(StatusCode::INTERNAL_SERVER_ERROR, Code::Internal, "the call broke").into_response()
}

/// Serves until `stop`; open streams end then, and their readers go on elsewhere.
pub async fn serve(
    listener: Listener,
    api: Api,
    settings: HttpSettings,
    stop: CancellationToken,
) -> Result<(), DispatcherError> {
    let background = api.background.clone();
    let routes = routes(api, settings, listener.address).into_make_service_with_connect_info::<SocketAddr>();
    // An event is small and should not wait for the next.
    let listener = listener.listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection keeps its delay");
        }
    });
    let told = stop.clone();
    let served = axum::serve(listener, routes).with_graceful_shutdown(async move { told.cancelled().await });
    let closing = async {
        stop.cancelled().await;
        tokio::time::sleep(CLOSE).await;
    };
    let ended = tokio::select! {
        ended = served => ended.map_err(DispatcherError::Http),
        // A client that never finishes its request must not hold the end.
        () = closing => Ok(()),
    };
    background.close();
    // Cancels under way; they are bounded, and whoever waits for them knows that they may go on.
    let _ = tokio::time::timeout(CLOSE, background.wait()).await;
    ended
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_document_refers_only_to_what_it_has() {
        let document = openapi::document(&operations(), "0.0.0");
        let mut targets = BTreeSet::new();
        fn gather(value: &serde_json::Value, targets: &mut BTreeSet<String>) {
            match value {
                serde_json::Value::Object(fields) => {
                    if let Some(target) = fields.get("$ref").and_then(|target| target.as_str()) {
                        targets.insert(target.trim_start_matches('#').to_owned());
                    }
                    fields.values().for_each(|value| gather(value, targets));
                }
                serde_json::Value::Array(items) => items.iter().for_each(|value| gather(value, targets)),
                _ => {}
            }
        }
        gather(&document, &mut targets);
        assert!(targets.len() > 10, "{targets:?}");
        for target in targets {
            assert!(document.pointer(&target).is_some(), "{target}");
        }
    }

    #[test]
    fn every_operation_has_a_name_of_its_own_an_answer_and_its_parameters() {
        let document = openapi::document(&operations(), "0.0.0");
        let mut names = BTreeSet::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                let name = operation["operationId"].as_str().unwrap();
                assert!(names.insert(name.to_owned()), "{name} comes twice");
                let statuses = operation["responses"].as_object().unwrap();
                assert!(statuses.keys().any(|status| status.starts_with('2')), "{method} {path}");
                let named: BTreeSet<&str> = operation["parameters"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(|parameter| parameter["in"] == "path")
                    .map(|parameter| parameter["name"].as_str().unwrap())
                    .collect();
                let wanted: BTreeSet<&str> = path.split(['{', '}']).skip(1).step_by(2).collect();
                assert_eq!(named, wanted, "{method} {path}");
            }
        }
    }
}
