//! `GET /health/live`: the program's loop turns. `GET /health/ready`: it can do its duties: connected, JetStream answers,
//! the stores are there; 503 with the reason otherwise.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{Method, StatusCode};
use jetstream::{Connection, JetStream};
use schemars::JsonSchema;
use schemas::Names;
use schemas::stores::StoreSettings;
use serde_json::{Value, json};

use super::openapi::Operation;

/// How long JetStream may take to answer.
const ANSWER: Duration = Duration::from_secs(2);

/// What `ready` looks at.
#[derive(Clone, Debug)]
pub struct Health {
    js: JetStream,
    connection: Connection,
    streams: Arc<[String]>,
}

impl Health {
    /// The health of a dispatcher of this fleet on this connection.
    pub fn new(js: JetStream, connection: Connection, names: &Names, stores: &StoreSettings) -> Self {
        let streams = names.streams(stores, 0).into_iter().map(|spec| spec.name).collect();
        Self { js, connection, streams }
    }

    async fn check(&self) -> Result<(), String> {
        if !self.connection.link.borrow().connected {
            return Err(format!("not connected to NATS at {}", self.connection.url));
        }
        let states = futures_util::future::join_all(self.streams.iter().map(|name| self.js.stream_state(name)));
        let states = tokio::time::timeout(ANSWER, states)
            .await
            .map_err(|_| format!("JetStream does not answer within {} s", ANSWER.as_secs()))?;
        for (name, state) in self.streams.iter().zip(states) {
            match state {
                Ok(Some(_)) => {}
                Ok(None) => return Err(format!("there is no stream {name}")),
                Err(error) => return Err(format!("stream {name}: {error}")),
            }
        }
        Ok(())
    }
}

pub(super) fn operations() -> Vec<Operation> {
    vec![
        Operation::new(&Method::GET, "/health/live", "live", "Whether the program's loop turns", live)
            .answer::<HealthAnswer>(StatusCode::OK, "It lives.")
            .open(),
        Operation::new(&Method::GET, "/health/ready", "ready", "Whether it can do its duties", ready)
            .answer::<HealthAnswer>(StatusCode::OK, "It can.")
            .answer::<HealthAnswer>(StatusCode::SERVICE_UNAVAILABLE, "It cannot, and why.")
            .open(),
    ]
}

/// What health says, for the document.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "only its schema is used")]
struct HealthAnswer {
    /// `live`, `ready` or `not_ready`.
    status: String,
    /// Why not.
    reason: Option<String>,
}

/// Answering is all there is to it.
pub async fn live() -> Json<Value> {
    Json(json!({"status": "live"}))
}

/// Whether it can do its duties now.
pub async fn ready(State(health): State<Health>) -> (StatusCode, Json<Value>) {
    match health.check().await {
        Ok(()) => (StatusCode::OK, Json(json!({"status": "ready"}))),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"status": "not_ready", "reason": reason}))),
    }
}
